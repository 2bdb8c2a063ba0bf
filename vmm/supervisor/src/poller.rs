//! What the loop thread waits for: descriptors by token, until a deadline.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

/// Who is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    /// The front's socket.
    Link,
    /// The spawner's socket.
    Spawner,
    /// A vCPU's report.
    Mailbox,
    /// The end of a front end's connection.
    FrontEnd,
    /// A worker's control socket, by the device's index.
    Control(usize),
    /// The control socket of one that is to take over, by the device's index.
    Candidate(usize),
    /// A worker's process, which has ended.
    Process {
        /// The device's.
        index: usize,
        /// What the spawner knows it by: the device may have another one by now.
        instance: u32,
    },
}

const CONTROL: u64 = 1 << 32;
const CANDIDATE: u64 = 2 << 32;
/// The instance follows, and the index in the lowest bits.
const PROCESS: u64 = 1 << 63;
const INDEX_BITS: u32 = 16;

impl Token {
    fn number(self) -> u64 {
        match self {
            Token::Link => 0,
            Token::Spawner => 1,
            Token::Mailbox => 2,
            Token::FrontEnd => 3,
            Token::Control(index) => CONTROL | index as u64,
            Token::Candidate(index) => CANDIDATE | index as u64,
            Token::Process { index, instance } => {
                PROCESS | u64::from(instance) << INDEX_BITS | index as u64 & ((1 << INDEX_BITS) - 1)
            }
        }
    }

    fn from_number(number: u64) -> Option<Token> {
        if number & PROCESS != 0 {
            let index = (number & ((1 << INDEX_BITS) - 1)) as usize;
            return Some(Token::Process { index, instance: (number >> INDEX_BITS) as u32 });
        }
        let index = (number & 0xffff_ffff) as usize;
        match (number & !0xffff_ffff, index) {
            (0, 0) => Some(Token::Link),
            (0, 1) => Some(Token::Spawner),
            (0, 2) => Some(Token::Mailbox),
            (0, 3) => Some(Token::FrontEnd),
            (CONTROL, index) => Some(Token::Control(index)),
            (CANDIDATE, index) => Some(Token::Candidate(index)),
            _ => None,
        }
    }
}

/// An epoll instance.
pub(crate) struct Poller {
    epoll: OwnedFd,
}

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Poller { epoll: epoll::create(CreateFlags::CLOEXEC)? })
    }

    /// Watches `fd` for something to read, or its end.
    pub(crate) fn watch(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, EventData::new_u64(token.number()), EventFlags::IN)?)
    }

    /// Watches `fd`, a stream, for its end alone: what comes is somebody else's to read.
    pub(crate) fn watch_end(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, EventData::new_u64(token.number()), EventFlags::RDHUP)?)
    }

    /// Watches `fd` no longer.
    pub(crate) fn forget(&self, fd: impl AsFd) {
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Waits for the next events, at most until `deadline`.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> io::Result<Vec<Token>> {
        let mut events = [Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; 16];
        let timeout = deadline.map(|at| {
            let left = at.saturating_duration_since(Instant::now());
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() }
        });
        let count = match epoll::wait(&self.epoll, &mut events, timeout.as_ref()) {
            Ok(count) => count,
            Err(rustix::io::Errno::INTR) => 0,
            Err(error) => return Err(error.into()),
        };
        Ok(events[..count].iter().filter_map(|event| Token::from_number(event.data.u64())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_kernel() {
        for token in [
            Token::Link,
            Token::Spawner,
            Token::Mailbox,
            Token::FrontEnd,
            Token::Control(0),
            Token::Control(7),
            Token::Candidate(61),
            Token::Process { index: 61, instance: u32::MAX },
            Token::Process { index: 0, instance: 0 },
        ] {
            assert_eq!(Token::from_number(token.number()), Some(token));
        }
        assert_eq!(Token::from_number(9), None);
    }
}
