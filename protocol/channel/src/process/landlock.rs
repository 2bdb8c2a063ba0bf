//! Landlock by its system calls (Linux `Documentation/userspace-api/landlock.rst`): rulesets that handle, and so deny,
//! all that the running kernel knows, with single exceptions.
#![allow(unsafe_code)] // The calls have no wrapper in libc.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Execute a file.
pub const EXECUTE: u64 = 1 << 0;
/// Open a file for writing.
pub const WRITE_FILE: u64 = 1 << 1;
/// Open a file for reading.
pub const READ_FILE: u64 = 1 << 2;

const CREATE_RULESET_VERSION: u32 = 1;
const RULE_PATH_BENEATH: u32 = 1;

/// `struct landlock_ruleset_attr`.
#[repr(C)]
struct Attributes {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct PathBeneath {
    allowed_access: u64,
    parent_fd: i32,
}

/// The kernel's Landlock ABI, 1 and up.
///
/// # Errors
/// `ENOSYS`: not built in. `EOPNOTSUPP`: built in, but not enabled at boot (`lsm=`).
pub fn abi() -> io::Result<u32> {
    let none = std::ptr::null::<Attributes>();
    // SAFETY: asks for the version, for which the pointer must be null.
    let abi =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0usize, CREATE_RULESET_VERSION) };
    u32::try_from(abi).map_err(|_| io::Error::last_os_error())
}

/// All rights that the kernel of ABI `abi` knows, and how many bytes of the structure it knows.
fn attributes(abi: u32) -> (Attributes, usize) {
    let fs_rights = match abi {
        ..=1 => 13,
        2 => 14,
        3 | 4 => 15,
        _ => 16,
    };
    let attributes = Attributes {
        handled_access_fs: (1 << fs_rights) - 1,
        handled_access_net: if abi >= 4 { 0b11 } else { 0 },
        scoped: if abi >= 6 { 0b11 } else { 0 },
    };
    let known = match abi {
        ..4 => 8,
        4 | 5 => 16,
        _ => 24,
    };
    (attributes, known)
}

/// A set of rules, not in force yet.
#[derive(Debug)]
pub struct Ruleset(OwnedFd);

impl Ruleset {
    /// Denies every path, TCP port, and signal or abstract socket out of the domain, as far as the kernel knows them.
    ///
    /// # Errors
    /// As [`abi`].
    pub fn deny_all() -> io::Result<Ruleset> {
        let (attributes, bytes) = attributes(abi()?);
        // SAFETY: the structure holds at least `bytes` bytes, which the kernel only reads.
        let fd =
            unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const attributes, bytes, 0u32) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
        Ok(Ruleset(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
    }

    /// Makes an exception: `rights` on the file, or everything beneath the directory, that `path` refers to.
    ///
    /// # Errors
    /// `EINVAL`: a right that does not fit a file.
    pub fn allow(&self, path: BorrowedFd, rights: u64) -> io::Result<()> {
        let rule = PathBeneath { allowed_access: rights, parent_fd: path.as_raw_fd() };
        let fd = self.0.as_raw_fd();
        // SAFETY: the kernel reads one rule of this layout.
        let result = unsafe {
            libc::syscall(libc::SYS_landlock_add_rule, fd, RULE_PATH_BENEATH, &raw const rule, 0u32)
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Puts the rules in force for the calling thread and what it starts from now on, for good.
    ///
    /// # Errors
    /// `EPERM`: `no_new_privs` is not set. `E2BIG`: sixteen rulesets are in force already.
    pub fn restrict(&self) -> io::Result<()> {
        restrict(self.0.as_fd())
    }
}

impl AsFd for Ruleset {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// [`Ruleset::restrict`] for a ruleset that came as a descriptor.
///
/// # Errors
/// As there.
pub fn restrict(ruleset: BorrowedFd) -> io::Result<()> {
    // SAFETY: takes no pointer.
    match unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0u32) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
