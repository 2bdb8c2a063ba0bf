//! What the register thread waits for.

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::epoll;
use rustix::io::Errno;

/// Who is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// The supervisor.
    Control,
    /// The front end has sent something, or is gone.
    Message,
    /// A queue's thread has something to tell. An edge, which need not be read to be silent.
    Wake,
}

impl Source {
    pub(super) const COUNT: usize = 3;
    const ALL: [Source; Self::COUNT] = [Source::Control, Source::Message, Source::Wake];
}

/// An epoll instance.
#[derive(Debug)]
pub(super) struct Watch(OwnedFd);

impl Watch {
    pub(super) fn new() -> Result<Self, Errno> {
        epoll::create(epoll::CreateFlags::CLOEXEC).map(Watch)
    }

    /// Waits for `fd`, too.
    pub(super) fn add(&self, fd: impl AsFd, source: Source) -> Result<(), Errno> {
        let edge = if source == Source::Wake { epoll::EventFlags::ET } else { epoll::EventFlags::empty() };
        epoll::add(&self.0, fd, epoll::EventData::new_u64(source as u64), epoll::EventFlags::IN | edge)
    }

    /// Waits until something is ready.
    pub(super) fn wait(&self) -> Result<[Option<Source>; Source::COUNT], Errno> {
        let none = epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) };
        let mut events = [none; Source::COUNT];
        let count = match epoll::wait(&self.0, &mut events[..], None) {
            Err(Errno::INTR) => 0,
            count => count?,
        };
        let mut ready = [None; Source::COUNT];
        for (slot, event) in ready.iter_mut().zip(events.iter().take(count)) {
            let number = event.data.u64();
            *slot = Source::ALL.into_iter().find(|source| *source as u64 == number);
        }
        Ok(ready)
    }
}
