//! Resource limits (setrlimit(2)).

use std::io;

use crate::sys;

/// What one worker may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Threads, the first one among them, exactly.
    pub threads: u32,
    /// Address space in bytes.
    pub address_space: u64,
    /// Open descriptors: one more than the highest number.
    pub files: u32,
    /// The size to which a file can be written, in bytes.
    pub file_size: u64,
}

impl Limits {
    /// For a small device without a disk: 2 threads, 256 MiB of addresses, 64 descriptors, no file.
    pub const SMALL: Limits = Limits { threads: 2, address_space: 256 << 20, files: 64, file_size: 0 };

    /// Sets them, and forbids core dumps, locked memory, queued signals, message queues and real-time priorities.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn apply(&self) -> io::Result<()> {
        no_extras()?;
        sys::limit(libc::RLIMIT_FSIZE, self.file_size)?;
        sys::limit(libc::RLIMIT_NOFILE, self.files.into())?;
        sys::limit(libc::RLIMIT_NPROC, self.threads.into())?;
        sys::limit(libc::RLIMIT_AS, self.address_space)
    }
}

/// What no process of a VM needs.
pub(crate) fn no_extras() -> io::Result<()> {
    let none = [
        libc::RLIMIT_CORE,
        libc::RLIMIT_MEMLOCK,
        libc::RLIMIT_MSGQUEUE,
        libc::RLIMIT_RTPRIO,
        libc::RLIMIT_NICE,
    ];
    none.into_iter().try_for_each(|resource| sys::limit(resource, 0))
}
