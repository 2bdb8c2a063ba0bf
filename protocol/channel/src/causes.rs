//! Why a device has raised its interrupt, where the supervisor can tell the guest without asking the worker.
//!
//! A virtio-mmio driver reads and acknowledges the cause of each interrupt by two register accesses. A round trip each
//! would be most of what a small request costs. So the worker counts, for each of [`CAUSES`] bits, how often it raised that
//! cause (a word in the replies, which it writes), and the supervisor notes which count was acknowledged (a word in the
//! requests, which it writes): a bit is pending while the two differ. One writer for each word, as everywhere in the ring.
//!
//! Guarantees:
//! 1. A cause that was raised before the interrupt's pulse is pending when the guest looks for it, until the guest has
//!    acknowledged what it saw: what is raised between its look and its acknowledgement stays pending.
//! 2. Whatever a worker writes there changes nothing but the bits that its own guest reads.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed};

use cellblock_ring::layout::{CAUSES, acknowledged_cause, raised_cause};
use cellblock_ring::words::{Words, WordsMut};

use crate::memory::{Mapping, ReadOnly, Writable};

/// A bit for each cause that there is.
pub const ALL: u32 = (1 << CAUSES) - 1;

/// The supervisor's side; clones are the same, for the vCPUs' threads.
#[derive(Debug, Clone)]
pub struct Pending {
    requests: Mapping<Writable>,
    replies: Mapping<ReadOnly>,
    /// What was raised when the guest last looked.
    seen: Arc<[AtomicU64; CAUSES]>,
}

impl Pending {
    /// Over the ring's memory.
    pub fn new(requests: Mapping<Writable>, replies: Mapping<ReadOnly>) -> Self {
        Pending { requests, replies, seen: Arc::default() }
    }

    /// The causes that are pending, for the guest to see.
    pub fn look(&self) -> u32 {
        let mut bits = 0;
        for (cause, seen) in self.seen.iter().enumerate() {
            let raised = self.replies.load(raised_cause(cause));
            // SYNC POINT: none between the vCPUs; each acknowledges what one of them saw, and that one handles it.
            seen.store(raised, Relaxed);
            bits |= u32::from(raised != self.requests.load(acknowledged_cause(cause))) << cause;
        }
        // SYNC POINT: pairs with the Release of `Causes::raise`; the guest reads the used ring after it has seen the bit.
        Mapping::<ReadOnly>::fence(Acquire);
        bits
    }

    /// The guest has handled the causes in `bits`, as it saw them last.
    pub fn acknowledge(&self, bits: u32) {
        for (cause, seen) in self.seen.iter().enumerate().filter(|(cause, _)| bits & 1 << cause != 0) {
            self.requests.publish(acknowledged_cause(cause), seen.load(Relaxed));
        }
    }
}

/// The worker's side, which its threads share.
#[derive(Debug)]
pub struct Causes {
    requests: Mapping<ReadOnly>,
    replies: Mapping<Writable>,
    raised: [AtomicU64; CAUSES],
}

impl Causes {
    /// Over the ring's memory. Nothing is pending: what a predecessor raised is to be raised again.
    pub fn new(requests: Mapping<ReadOnly>, replies: Mapping<Writable>) -> Self {
        let causes = Causes { requests, replies, raised: Default::default() };
        causes.withdraw(ALL);
        causes
    }

    /// Raises the causes in `bits`; the interrupt's pulse comes after it.
    pub fn raise(&self, bits: u32) {
        for (cause, raised) in self.raised.iter().enumerate().filter(|(cause, _)| bits & 1 << cause != 0) {
            let count = raised.fetch_add(1, Relaxed).wrapping_add(1);
            // SYNC POINT: Release orders the used ring before it; pairs with the fence in `Pending::look`. Of two threads the
            // later count may be stored first: it then goes back to one that was never acknowledged, and both pulse.
            self.replies.publish(raised_cause(cause), count);
        }
    }

    /// The causes that are pending.
    pub fn pending(&self) -> u32 {
        let pending = |cause| {
            u32::from(self.replies.load(raised_cause(cause)) != self.requests.load(acknowledged_cause(cause)))
        };
        (0..CAUSES).fold(0, |bits, cause| bits | pending(cause) << cause)
    }

    /// Takes the causes in `bits` back.
    pub fn withdraw(&self, bits: u32) {
        for (cause, raised) in self.raised.iter().enumerate().filter(|(cause, _)| bits & 1 << cause != 0) {
            let acknowledged = self.requests.load(acknowledged_cause(cause));
            raised.store(acknowledged, Relaxed);
            self.replies.publish(raised_cause(cause), acknowledged);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{self, Sealed};
    use cellblock_ring::layout;

    struct Both {
        pending: Pending,
        causes: Causes,
        requests: Sealed<Writable>,
        replies: Sealed<ReadOnly>,
    }

    const BYTES: [usize; 2] =
        [memory::bytes(layout::request_words(1)), memory::bytes(layout::reply_words(1))];

    fn both() -> Both {
        let requests = memory::create_requests("requests", BYTES[0]).unwrap();
        let replies = memory::create_replies("replies", BYTES[1]).unwrap();
        let pending = Pending::new(requests.map.clone(), replies.map.clone());
        Both { pending, causes: worker(&requests, &replies), requests, replies }
    }

    fn worker(requests: &Sealed<Writable>, replies: &Sealed<ReadOnly>) -> Causes {
        let requests = memory::open_read(&requests.fd, BYTES[0]).unwrap();
        Causes::new(requests, memory::open_write(&replies.fd, BYTES[1]).unwrap())
    }

    #[test]
    fn a_cause_is_pending_until_what_was_seen_is_acknowledged() {
        let Both { pending, causes, .. } = both();
        assert_eq!((pending.look(), causes.pending()), (0, 0));
        causes.raise(1);
        assert_eq!((pending.look(), causes.pending()), (1, 1));
        assert_eq!(pending.look(), 1, "a look changes nothing");
        // Between the look and the acknowledgement.
        causes.raise(1);
        pending.acknowledge(1);
        assert_eq!((pending.look(), causes.pending()), (1, 1));
        causes.raise(2);
        assert_eq!(pending.look(), 3);
        pending.acknowledge(2);
        assert_eq!((pending.look(), causes.pending()), (1, 1));
        pending.acknowledge(!0);
        assert_eq!((pending.look(), causes.pending()), (0, 0));
        pending.acknowledge(ALL);
        assert_eq!(pending.look(), 0, "once more");
    }

    #[test]
    fn a_reset_takes_all_back_and_a_successor_goes_on() {
        let Both { pending, causes, requests, .. } = both();
        causes.raise(3);
        assert_eq!(pending.look(), 3);
        causes.withdraw(1);
        assert_eq!((pending.look(), causes.pending()), (2, 2));
        causes.raise(1);
        pending.look();
        pending.acknowledge(2);
        // The replies of a successor are new; what was acknowledged is not.
        let replies = memory::create_replies("replies", BYTES[1]).unwrap();
        let successor = worker(&requests, &replies);
        let pending = Pending::new(requests.map, replies.map);
        assert_eq!((pending.look(), successor.pending()), (0, 0));
        successor.raise(2);
        assert_eq!(pending.look(), 2);
        pending.acknowledge(2);
        assert_eq!(pending.look(), 0);
    }

    #[test]
    fn a_worker_that_lies_is_its_own_guests_affair() {
        let Both { pending, replies, .. } = both();
        let replies = memory::open_write(&replies.fd, BYTES[1]).unwrap();
        replies.publish(layout::raised_cause(1), u64::MAX);
        assert_eq!(pending.look(), 2);
        pending.acknowledge(2);
        assert_eq!(pending.look(), 0);
        replies.publish(layout::raised_cause(1), 0);
        assert_eq!(pending.look(), 2);
    }
}
