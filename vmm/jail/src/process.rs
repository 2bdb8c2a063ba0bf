//! Forking the VM's processes off the front.
#![allow(unsafe_code)] // fork: sound because the caller is checked to be single-threaded.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;

use crate::loader::close_others;
use crate::sys::{self, Side};

/// A child of this process.
#[derive(Debug)]
pub struct Child {
    /// Its pid here.
    pub pid: i32,
    /// Readable once it is gone.
    pub pidfd: OwnedFd,
}

/// Forks a child that has only the descriptors numbered `kept` open, and `null` (of `/dev/null`) as its standard streams,
/// runs `body` and exits with its result. `body` must own or borrow nothing else that is open: it is closed.
///
/// # Errors
/// This process has more than one thread, or the kernel refuses.
pub fn fork(null: BorrowedFd<'_>, kept: &[RawFd], body: impl FnOnce() -> i32) -> io::Result<Child> {
    // A directory's links are itself, its name above, and its folders: here one for each thread.
    if std::fs::metadata("/proc/self/task")?.nlink() != 3 {
        return Err(io::Error::other("only a single-threaded process may fork a VM's processes"));
    }
    // SAFETY: there is no other thread, so the child may do whatever its parent could.
    match unsafe { sys::fork_into(0, None) }? {
        Side::Parent { pid, pidfd } => Ok(Child { pid, pidfd }),
        Side::Child => {
            // Nothing that is opened later may take a standard stream's number: a panic's text would go there.
            let streams = (0..3).try_for_each(|number| sys::place(null.as_raw_fd(), number, false));
            let numbers = [0, 1, 2].into_iter().chain(kept.iter().copied());
            // SAFETY: they are open: the three were placed just now (or the error ends the child), the caller owns the rest.
            let all: Vec<BorrowedFd<'_>> =
                numbers.map(|number| unsafe { BorrowedFd::borrow_raw(number) }).collect();
            let closed = streams.and_then(|()| close_others(&all));
            sys::exit_now(if closed.is_ok() { body() } else { 1 })
        }
    }
}
