//! The front end's ears: for each queue an eventfd that is signalled when buffers were used, and one for when it broke.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cellblock_wire::device::MAX_QUEUES;

use crate::host::Tally;
use crate::virtio::Raise;

/// Shared by the session, which sets them, and the queues' threads, which signal them; clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Calls {
    ears: Arc<[Mutex<Ears>]>,
    tally: Arc<Tally>,
}

#[derive(Debug, Default)]
struct Ears {
    used: Option<OwnedFd>,
    broken: Option<OwnedFd>,
}

impl Calls {
    pub(crate) fn new(tally: Arc<Tally>) -> Self {
        Calls { ears: (0..MAX_QUEUES).map(|_| Mutex::default()).collect(), tally }
    }

    /// What to signal when buffers of queue `index` were used. A signal that went to the old one is given to the new one, too.
    pub(super) fn set_used(&self, index: usize, fd: Option<OwnedFd>) {
        if let Some(mut ears) = self.ears(index) {
            ears.used = fd;
        }
        self.used(index);
    }

    /// What to signal when queue `index` makes no sense.
    pub(super) fn set_broken(&self, index: usize, fd: Option<OwnedFd>) {
        if let Some(mut ears) = self.ears(index) {
            ears.broken = fd;
        }
    }

    /// Buffers of queue `index` were used.
    fn used(&self, index: usize) {
        if let Some(ears) = self.ears(index)
            && let Some(fd) = &ears.used
        {
            signal(fd);
            self.tally.interrupts.add(1);
        }
    }

    fn ears(&self, index: usize) -> Option<MutexGuard<'_, Ears>> {
        // Nothing panics while it holds the lock, and what it guards is whole at any time.
        self.ears.get(index).map(|ears| ears.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Raise for Calls {
    fn raise(&self) {
        (0..self.ears.len()).for_each(|index| self.used(index));
    }

    fn raise_queue(&self, index: usize) {
        self.used(index);
    }

    fn raise_broken(&self) {
        for index in 0..self.ears.len() {
            if let Some(ears) = self.ears(index) {
                ears.broken.iter().for_each(signal);
            }
        }
    }
}

/// An eventfd that cannot take one more has a signal pending already. One that blocks then, or is no eventfd, holds up the
/// front end's own device.
fn signal(fd: &OwnedFd) {
    let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
}
