//! Why an image was refused.

use std::io;

use thiserror::Error;

/// Why nothing was booted. Guest memory may be partly written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A file cannot be read.
    #[error("cannot read the {image}: {action} failed: {source}")]
    Io {
        /// "kernel" or "initrd".
        image: &'static str,
        /// What was attempted.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Copying from a file into guest memory failed: it was truncated meanwhile, or the device failed.
    #[error("cannot read {bytes} bytes at offset {offset:#x} of the {image} into guest memory: {reason}")]
    Copy {
        /// "kernel" or "initrd".
        image: &'static str,
        /// Offset in the file.
        offset: u64,
        /// Number of bytes.
        bytes: u64,
        /// Why it failed.
        reason: String,
    },
    /// Neither an ELF file nor a bzImage.
    #[error(
        "the kernel is neither an ELF image nor a bzImage: it is {bytes} bytes long and begins with {start:02x?}; \
         give a vmlinux or a bzImage (vmlinuz) for x86_64"
    )]
    UnknownFormat {
        /// Length of the file.
        bytes: u64,
        /// Its first bytes.
        start: Vec<u8>,
    },
    /// A field of an image has a value that is not allowed.
    #[error("the {image}'s {field} is {value:#x}; {allowed}")]
    Field {
        /// Which image.
        image: &'static str,
        /// The field, as its specification names it.
        field: &'static str,
        /// Its value.
        value: u64,
        /// What is allowed.
        allowed: String,
    },
    /// Two parts of the ELF image want the same memory.
    #[error("the kernel's segments at {first:#x} and {second:#x} overlap")]
    Overlap {
        /// Lower address.
        first: u64,
        /// Higher address.
        second: u64,
    },
    /// The image has no entry for the protocol asked for.
    #[error("the kernel cannot be entered by {protocol}: {why}")]
    Protocol {
        /// The protocol asked for.
        protocol: &'static str,
        /// What is missing.
        why: &'static str,
    },
    /// The command line does not fit the kernel.
    #[error("cmdline is {bytes} bytes long; this kernel takes at most {limit}")]
    CmdlineTooLong {
        /// Its length.
        bytes: usize,
        /// The kernel's limit.
        limit: usize,
    },
    /// A zero byte would end the command line early.
    #[error("cmdline has a zero byte at offset {offset}; remove it")]
    CmdlineZero {
        /// Where.
        offset: usize,
    },
    /// Not enough guest memory.
    #[error(
        "memory is too small: the {image} needs {needed} bytes between {from:#x} and {to:#x}; give the VM more memory"
    )]
    NoRoom {
        /// "kernel" or "initrd".
        image: &'static str,
        /// Bytes needed.
        needed: u64,
        /// First usable address.
        from: u64,
        /// End of the usable memory.
        to: u64,
    },
    /// The board cannot be described.
    #[error(transparent)]
    Board(#[from] cellblock_arch::Error),
    /// A boot structure could not be written.
    #[error("cannot write {bytes} bytes at guest address {address:#x}: {reason}")]
    Write {
        /// Guest-physical address.
        address: u64,
        /// Number of bytes.
        bytes: usize,
        /// Why it failed.
        reason: String,
    },
}

/// A value of a kernel's header that is not allowed.
pub(crate) fn kernel_field(field: &'static str, value: u64, allowed: impl Into<String>) -> LoadError {
    LoadError::Field { image: "kernel", field, value, allowed: allowed.into() }
}
