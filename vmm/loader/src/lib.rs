//! Puts a kernel, its initrd and command line, and all boot structures into guest memory.
//!
//! The images come from strangers. They are parsed in a short-lived, jailed process, and this crate's promise to it is:
//!
//! 1. No image makes it panic, loop or allocate more than [`MAX_HEADERS_BYTES`]; big parts are read straight into guest memory.
//! 2. Nothing is written outside guest RAM, and no part of an image below `layout::KERNEL_FLOOR`, where the boot structures are.
//! 3. Each refusal names the field, its value, and what is allowed.
//!
//! What comes out, [`Loaded`], is plain data. The supervisor, which does not trust the loader's process, checks it with
//! [`Loaded::check`].
//!
//! Kernel formats are parsed here and not by `linux-loader`, whose ELF and bzImage loaders do unchecked arithmetic on header
//! fields and follow tables of any length; its ABI structures are used (in `cellblock-arch`).
#![forbid(unsafe_code)]

mod bzimage;
mod elf;
mod error;
mod file;
mod linux_mark;
mod load;
mod loaded;
mod notes;
mod place;
#[cfg(test)]
mod samples;

pub use error::LoadError;
pub use file::ImageFile;
pub use load::{LoadRequest, Protocol, load};
pub use loaded::{ImageKind, Loaded, LoadedError, Range};

/// The most memory that parsing takes at any time: one note segment's first part, or one chunk of a search. Copying takes a
/// chunk of 256 KiB.
pub const MAX_HEADERS_BYTES: usize = 64 * 1024;

/// Loads `bytes` as a kernel in every way there is, and panics if what comes out is not sound. For fuzzers and property tests.
#[doc(hidden)]
pub fn fuzz_image(bytes: &[u8]) {
    load::fuzz_image(bytes);
}
