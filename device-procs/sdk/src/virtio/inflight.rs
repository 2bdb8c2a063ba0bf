//! Which requests are in flight, in memory that outlives the worker: so that a successor finishes what its predecessor had begun,
//! in whatever order that ended.
//!
//! The layout is vhost-user's for split queues (`VHOST_USER_GET_INFLIGHT_FD`), a region for each queue:
//!
//! | bytes | field | |
//! |---|---|---|
//! | 0–7 | `features` | 0 |
//! | 8–9 | `version` | 1; 0 = no queue was begun here |
//! | 10–11 | `desc_num` | descriptors of the queue |
//! | 12–13 | `last_batch_head` | head that was marked used last |
//! | 14–15 | `used_idx` | the used index as of the last batch |
//! | 16 + 16 N | `desc[N]` | `inflight` (byte 0), `next` (bytes 6–7), `counter` (bytes 8–15) |
//!
//! Of the padding in `desc[N]` byte 1 is used: how often a worker has begun with the request.
//!
//! The order of stores is that of the vhost-user specification. One thread of one process writes a region at a time. A worker that is
//! killed leaves a prefix of its stores in program order, so each store that others hang on is a Release; no other fence
//! is needed.
//!
//! A successor takes all of it as a stranger's: what no queue leaves is an error, and costs a reset of the device.

use cellblock_channel::memory::{self, Mapping, MemoryError, Writable};
use cellblock_ring::words::{Words as _, WordsMut as _};
use cellblock_wire::device::{IN_FLIGHT_BYTES, MAX_QUEUE_SIZE};
use rustix::fd::OwnedFd;

use super::queue::QueueError;
use crate::fail_point::{Step, reach};

const VERSION: u64 = 1;
const REGION_WORDS: usize = IN_FLIGHT_BYTES / 8;
/// The word of version, descriptors, last batch head and used index.
const HEAD: usize = 1;
/// The first descriptor's words: flag and next, counter.
const DESCRIPTORS: usize = 2;

/// The memory of all queues of a device.
#[derive(Debug, Clone)]
pub struct Pages {
    map: Mapping<Writable>,
    queues: u16,
}

impl Pages {
    /// Maps the memory for `queues` queues.
    ///
    /// # Errors
    /// It is not of that size, or could shrink.
    pub fn open(fd: &OwnedFd, queues: u16) -> Result<Self, MemoryError> {
        let map = memory::open_write(fd, IN_FLIGHT_BYTES * usize::from(queues))?;
        Ok(Pages { map, queues })
    }

    /// Queue `index`'s.
    pub fn region(&self, index: usize) -> Option<Region> {
        let base = (index < usize::from(self.queues)).then_some(index * REGION_WORDS)?;
        Some(Region { map: self.map.clone(), base, size: 0, counter: 0, last_head: 0, used: 0 })
    }
}

/// One queue's memory.
#[derive(Debug)]
pub struct Region {
    map: Mapping<Writable>,
    base: usize,
    size: u16,
    counter: u64,
    last_head: u16,
    used: u16,
}

impl Region {
    fn load(&self, word: usize) -> u64 {
        self.map.load(self.base + word)
    }

    fn store(&self, word: usize, value: u64) {
        reach(Step::RecordStore);
        self.map.publish(self.base + word, value);
    }

    fn store_head(&self) {
        let (size, last, used) = (u64::from(self.size), u64::from(self.last_head), u64::from(self.used));
        self.store(HEAD, VERSION | size << 16 | last << 32 | used << 48);
    }

    /// Whether a queue was begun here.
    pub(crate) fn is_begun(&self) -> bool {
        self.load(HEAD) as u16 != 0
    }

    /// No queue was begun here.
    pub(crate) fn forget(&self) {
        self.store(HEAD, 0);
    }

    /// Nothing is in flight in a queue of `size` descriptors, whose used index is `used`.
    ///
    /// # Errors
    /// There is no room for so many.
    pub(super) fn start(&mut self, size: u16, used: u16) -> Result<(), QueueError> {
        if size > MAX_QUEUE_SIZE {
            return Err(wrong("desc_num", size.into()));
        }
        (self.size, self.counter, self.last_head, self.used) = (size, 0, 0, used);
        // First not valid, then valid again.
        self.store(HEAD, 0);
        self.store(0, 0);
        for head in 0..size {
            self.store(flag(head), 0);
            self.store(counter(head), 0);
        }
        self.store_head();
        Ok(())
    }

    /// Chain `head` was taken off the available ring.
    pub(super) fn mark(&mut self, head: u16) {
        self.store(counter(head), self.counter);
        self.counter = self.counter.wrapping_add(1);
        self.store(flag(head), self.load(flag(head)) & !0xffff | 0x101);
    }

    /// Chain `head`, which a predecessor had begun with, is begun with once more. Returns how often that was so before.
    pub(super) fn mark_again(&mut self, head: u16) -> u8 {
        let before = (self.load(flag(head)) >> 8) as u8;
        let now = u64::from(before.saturating_add(1));
        self.store(flag(head), self.load(flag(head)) & !0xff00 | now << 8);
        before
    }

    /// Chain `head` was put back.
    pub(super) fn clear(&mut self, head: u16) {
        self.store(flag(head), self.load(flag(head)) & !0xff);
    }

    /// Chain `head` is about to be given back, with the next store of the used index.
    pub(super) fn batch(&mut self, head: u16) {
        self.store(flag(head), self.load(flag(head)) & 0xff | u64::from(self.last_head) << 48);
        self.last_head = head;
        self.store_head();
    }

    /// These chains were given back, and `used` is the used index now.
    pub(super) fn finish(&mut self, heads: impl Iterator<Item = u16>, used: u16) {
        heads.for_each(|head| self.clear(head));
        self.used = used;
        self.store_head();
    }

    /// Goes on where a predecessor was with a queue of `size` descriptors, whose used index in guest memory is `used`. Returns the
    /// heads of the chains in flight, in the order in which they were taken.
    ///
    /// # Errors
    /// What no queue leaves.
    pub(super) fn resume(&mut self, size: u16, used: u16) -> Result<Vec<u16>, QueueError> {
        let head = self.load(HEAD);
        let [version, desc_num, last, known] = [0, 16, 32, 48].map(|shift| (head >> shift) as u16);
        if u64::from(version) != VERSION {
            return Err(wrong("version", version.into()));
        }
        if desc_num != size || size > MAX_QUEUE_SIZE {
            return Err(wrong("desc_num", desc_num.into()));
        }
        (self.size, self.last_head, self.used) = (size, last, used);
        self.finish_batch(used.wrapping_sub(known))?;
        self.store_head();

        let mut open = Vec::with_capacity(size.into());
        for head in 0..size {
            match self.load(flag(head)) & 0xff {
                0 => {}
                1 => open.push((self.load(counter(head)), head)),
                other => return Err(wrong("inflight", other)),
            }
        }
        open.sort_unstable();
        self.counter = open.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        Ok(open.into_iter().map(|(_, head)| head).collect())
    }

    /// The predecessor ended between its last `count` entries of the used ring and what it would have noted here.
    fn finish_batch(&mut self, count: u16) -> Result<(), QueueError> {
        if count > self.size {
            return Err(wrong("used_idx", count.into()));
        }
        let mut head = self.last_head;
        for _ in 0..count {
            if head >= self.size {
                return Err(wrong("last_batch_head", head.into()));
            }
            self.clear(head);
            head = (self.load(flag(head)) >> 48) as u16;
        }
        Ok(())
    }
}

fn flag(head: u16) -> usize {
    DESCRIPTORS + 2 * usize::from(head)
}

fn counter(head: u16) -> usize {
    flag(head) + 1
}

fn wrong(field: &'static str, value: u64) -> QueueError {
    QueueError::InFlight { field, value }
}
