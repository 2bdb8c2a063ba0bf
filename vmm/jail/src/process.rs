//! Forking the VM's processes off the front, and the spawner off init.
#![allow(unsafe_code)] // fork: sound because the caller is checked to be single-threaded.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

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
    match fork_into(File::open("/proc")?.as_fd(), 0, None)? {
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

/// Forks with `namespaces` (CLONE_NEW*), into `cgroup` if given. The child is a copy of this process. `proc` is a /proc that shows it.
///
/// # Errors
/// This process has more than one thread, or the kernel refuses.
pub fn fork_into(proc: BorrowedFd, namespaces: i32, cgroup: Option<BorrowedFd>) -> io::Result<Side> {
    if !is_alone(proc)? {
        return Err(io::Error::other("only a single-threaded process may fork a VM's processes"));
    }
    // SAFETY: there is no other thread, so the child may do whatever its parent could.
    unsafe { sys::fork_into(namespaces, cgroup) }
}

/// Whether this process has no other thread, by field 20 of its `stat` (proc_pid_stat(5)).
fn is_alone(proc: BorrowedFd) -> io::Result<bool> {
    let file = sys::open_at(proc, c"self/stat", libc::O_RDONLY)?;
    // A name of at most 15 bytes, and 51 numbers of at most 20 digits.
    let mut buffer = [0; 1152];
    let length = sys::read(file.as_fd(), &mut buffer)?;
    let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default());
    // The name is in brackets, and may hold some.
    let threads = text.rsplit_once(')').and_then(|(_, rest)| rest.split_ascii_whitespace().nth(17));
    Ok(threads == Some("1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_another_thread_is_not_copied() {
        let proc = File::open("/proc").unwrap();
        std::thread::scope(|scope| {
            let refused = scope.spawn(|| fork_into(proc.as_fd(), 0, None).map(drop)).join().unwrap();
            assert!(refused.unwrap_err().to_string().contains("single-threaded"));
        });
    }
}
