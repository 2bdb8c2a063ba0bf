//! The ways in which one process tells another something: a word in shared memory, and what wakes who waits for it.
//!
//! `unsafe` because: two words of a shared mapping.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::null_mut;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Release};

use anyhow::{Context, Result};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::{Errno, read, write};
use rustix::mm::{MapFlags, ProtFlags, mmap};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::thread::ClockId;
use rustix::thread::futex::{self, Flags, Wait, WaitFlags, WaitPtr, WaitvFlags};
use serde::{Deserialize, Serialize};

/// How who waits is woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Way {
    /// Not at all: both spin.
    Spin,
    Futex,
    FutexWaitv,
    Pipe,
    Eventfd,
    UnixSeqpacket,
    UnixStream,
}

impl Way {
    /// Those in which who waits sleeps.
    pub(crate) const SLEEPING: [Way; 6] =
        [Way::Futex, Way::FutexWaitv, Way::Pipe, Way::Eventfd, Way::UnixSeqpacket, Way::UnixStream];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Way::Spin => "spin",
            Way::Futex => "futex",
            Way::FutexWaitv => "futex_waitv",
            Way::Pipe => "pipe",
            Way::Eventfd => "eventfd",
            Way::UnixSeqpacket => "unix seqpacket",
            Way::UnixStream => "unix stream",
        }
    }
}

/// The distance of the two words in memory, in bytes: a cache line of each and one between.
const APART: usize = 128;
const BYTES: usize = 4096;

/// One end. Both words count rounds.
pub(crate) struct Ends {
    way: Way,
    memory: OwnedFd,
    asks: &'static AtomicU32,
    answers: &'static AtomicU32,
    read: Option<OwnedFd>,
    write: Option<OwnedFd>,
    round: u32,
}

impl Ends {
    /// The end that asks, and the one that answers.
    pub(crate) fn pair(way: Way) -> Result<(Ends, Ends)> {
        let memory = memfd_create("floor", MemfdFlags::CLOEXEC)?;
        ftruncate(&memory, BYTES as u64)?;
        let ((near_read, near_write), (far_read, far_write)) = match way {
            Way::Spin | Way::Futex | Way::FutexWaitv => ((None, None), (None, None)),
            Way::Pipe => {
                let (there, from_here) = pipe_with(PipeFlags::CLOEXEC)?;
                let (here, from_there) = pipe_with(PipeFlags::CLOEXEC)?;
                ((Some(here), Some(from_here)), (Some(there), Some(from_there)))
            }
            Way::Eventfd => {
                let (ask, answer) = (eventfd(0, EventfdFlags::CLOEXEC)?, eventfd(0, EventfdFlags::CLOEXEC)?);
                let near = (Some(answer.try_clone()?), Some(ask.try_clone()?));
                (near, (Some(ask), Some(answer)))
            }
            Way::UnixSeqpacket | Way::UnixStream => {
                let kind = if way == Way::UnixStream { SocketType::STREAM } else { SocketType::SEQPACKET };
                let (near, far) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
                ((Some(near.try_clone()?), Some(near)), (Some(far.try_clone()?), Some(far)))
            }
        };
        let far = Ends::new(way, memory.try_clone()?, far_read, far_write)?;
        Ok((Ends::new(way, memory, near_read, near_write)?, far))
    }

    /// The end that answers, in the other process.
    pub(crate) fn received(way: Way, descriptors: Vec<OwnedFd>) -> Result<Ends> {
        let mut descriptors = descriptors.into_iter();
        let memory = descriptors.next().context("no memory")?;
        Ends::new(way, memory, descriptors.next(), descriptors.next())
    }

    pub(crate) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        [Some(&self.memory), self.read.as_ref(), self.write.as_ref()]
            .into_iter()
            .flatten()
            .map(AsFd::as_fd)
            .collect()
    }

    fn new(way: Way, memory: OwnedFd, read: Option<OwnedFd>, write: Option<OwnedFd>) -> Result<Ends> {
        let flags = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping of a memfd of this size, which stays for the process' life.
        let base = unsafe { mmap(null_mut(), BYTES, flags, MapFlags::SHARED, &memory, 0) }?.cast::<u8>();
        // SAFETY: the first word of the mapping is aligned, and accessed as an atomic alone.
        let asks = unsafe { &*base.cast::<AtomicU32>() };
        // SAFETY: inside the mapping.
        let second = unsafe { base.add(APART) };
        // SAFETY: likewise, at the second word.
        let answers = unsafe { &*second.cast::<AtomicU32>() };
        Ok(Ends { way, memory, asks, answers, read, write, round: 0 })
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// The other end is gone (as far as a descriptor shows that), or this kernel lacks the way.
    pub(crate) fn exchange(&mut self) -> rustix::io::Result<()> {
        self.round = self.round.wrapping_add(1);
        self.tell(self.asks)?;
        self.wait(self.answers)
    }

    /// Waits to be asked, and answers.
    ///
    /// # Errors
    /// As of [`exchange`](Self::exchange).
    pub(crate) fn answer(&mut self) -> rustix::io::Result<()> {
        self.round = self.round.wrapping_add(1);
        self.wait(self.asks)?;
        self.tell(self.answers)
    }

    fn tell(&self, word: &AtomicU32) -> rustix::io::Result<()> {
        // SYNC POINT: pairs with the Acquire in `wait`.
        word.store(self.round, Release);
        match (self.way, &self.write) {
            (Way::Futex | Way::FutexWaitv, _) => futex::wake(word, Flags::empty(), 1)?,
            (Way::Eventfd, Some(fd)) => write(fd, &1u64.to_ne_bytes())?,
            (_, Some(fd)) => write(fd, &[1])?,
            (_, None) => 0,
        };
        Ok(())
    }

    fn wait(&self, word: &AtomicU32) -> rustix::io::Result<()> {
        let mut room = [0; 8];
        if let Some(fd) = &self.read {
            // All have gone who could write.
            if read(fd, &mut room)? == 0 {
                return Err(Errno::PIPE);
            }
        }
        loop {
            // SYNC POINT: pairs with the Release in `tell`.
            let seen = word.load(Acquire);
            if seen == self.round {
                return Ok(());
            }
            let waited = match self.way {
                Way::Futex => futex::wait(word, Flags::empty(), seen, None),
                Way::FutexWaitv => {
                    let mut wait = Wait::new();
                    wait.val = seen.into();
                    wait.uaddr = WaitPtr::new(word.as_ptr().cast());
                    wait.flags = WaitFlags::SIZE_U32;
                    futex::waitv(&[wait], WaitvFlags::empty(), None, ClockId::Monotonic).map(drop)
                }
                _ => {
                    std::hint::spin_loop();
                    Ok(())
                }
            };
            match waited {
                // The word has changed already.
                Ok(()) | Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_that_is_gone_is_an_error_and_no_wait() {
        for way in [Way::Pipe, Way::UnixSeqpacket, Way::UnixStream] {
            let (mut near, far) = Ends::pair(way).unwrap();
            drop(far);
            assert!(near.answer().is_err(), "{way:?}");
        }
    }
}
