//! The doorbell: a pipe whose read end sits in the worker's epoll.
//!
//! A pipe and no eventfd: its ends are separate open files, so a worker that clears `O_NONBLOCK` on its end or fills the
//! pipe cannot make the supervisor block.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::pipe::{PipeFlags, pipe_with};

/// The supervisor's end.
#[derive(Debug)]
pub struct Ringer(OwnedFd);

/// The worker's end: readable once it was rung, until it is silenced; an edge for epoll with each ring.
#[derive(Debug)]
pub struct Bell(OwnedFd);

/// A doorbell. Both ends are non-blocking and close on exec.
///
/// # Errors
/// No descriptors are left.
pub fn pair() -> io::Result<(Ringer, Bell)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    Ok((Ringer(write), Bell(read)))
}

impl Ringer {
    /// Rings; never blocks. A full pipe has been rung already (and gives an edge all the same), and a closed one belongs to a dead worker: `SIGPIPE` must be
    /// ignored, as Rust's runtime has it from the start of `main`.
    pub fn ring(&self) {
        let _ = rustix::io::write(&self.0, &[1]);
    }
}

impl Bell {
    /// A bell over the read end that the grant brought.
    pub fn from_fd(fd: OwnedFd) -> Bell {
        Bell(fd)
    }

    /// Takes all rings out of the pipe; never blocks. `false` = the supervisor has closed its end.
    pub fn silence(&self) -> bool {
        let mut sink = [0; 256];
        loop {
            match rustix::io::read(&self.0, &mut sink) {
                Ok(0) => return false,
                Ok(length) if length == sink.len() => {}
                Err(rustix::io::Errno::INTR) => {}
                Ok(_) | Err(_) => return true,
            }
        }
    }
}

impl AsFd for Ringer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Bell> for OwnedFd {
    fn from(bell: Bell) -> OwnedFd {
        bell.0
    }
}
