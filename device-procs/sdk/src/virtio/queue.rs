//! A split virtqueue (Virtio 1.3 §2.7), the device's side. The available ring is walked by `virtio-queue`; chains
//! ([`descriptors`](super::descriptors)) and the used ring are not, for there it knows no batches.

use std::collections::VecDeque;
use std::num::Wrapping;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use cellblock_channel::ram::Ram;
use thiserror::Error;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

use super::chain::{Buffers, Chain};
use super::descriptors::{Table, walk};
use super::inflight::Region;
use super::spec::{NO_INTERRUPT, feature};
use crate::fail_point::{Step, reach};
use crate::host::Traffic;

/// Where a queue is, as its registers say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Layout {
    /// Descriptors; a power of two.
    pub size: u16,
    /// Descriptor table, 16-byte aligned.
    pub desc: u64,
    /// Driver area (available ring), 2-byte aligned.
    pub driver: u64,
    /// Device area (used ring), 4-byte aligned.
    pub device: u64,
}

/// Where a queue's service begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// At the first entry, as the driver has set it up.
    Start,
    /// Where a predecessor was: what it had not finished is done again. That is what its record of requests in flight says, or
    /// without one everything after the last entry in the used ring.
    Resume,
    /// As [`Resume`](Self::Resume), of a queue whose requests end in their order: a record that makes no sense is done without.
    InOrder,
    /// At this available index, as a front end says; what is used is as the ring has it.
    At(u16),
}

/// A queue that makes no sense. Only a reset mends it.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum QueueError {
    /// Its registers.
    #[error("queue of size {size}: {reason}")]
    Layout {
        /// `QueueSize`.
        size: u16,
        /// What is wrong.
        reason: String,
    },
    /// Its rings.
    #[error("ring: {0}")]
    Ring(#[from] virtio_queue::Error),
    /// A descriptor chain: a loop, an index out of bounds, a bad indirect table, 2^32 bytes or more.
    #[error("chain at descriptor {head} is cut off after {length} descriptors")]
    Cut {
        /// Its first descriptor.
        head: u16,
        /// Descriptors before the break.
        length: usize,
    },
    /// A chain longer than the queue (§2.7.5.3.1).
    #[error("chain at descriptor {head} has more descriptors than the queue, {size}")]
    Long {
        /// Its first descriptor.
        head: u16,
        /// `QueueSize`.
        size: u16,
    },
    /// The driver makes a chain available that it has not got back.
    #[error("chain at descriptor {head} is available twice")]
    Twice {
        /// Its first descriptor.
        head: u16,
    },
    /// The device gives a chain back that it does not have.
    #[error("chain at descriptor {head} is given back, but was not taken")]
    NotTaken {
        /// Its first descriptor.
        head: u16,
    },
    /// The record of requests in flight is none of this queue's.
    #[error("the record of requests in flight has {field} {value:#x}")]
    InFlight {
        /// The field's name.
        field: &'static str,
        /// What it holds.
        value: u64,
    },
    /// A readable buffer after a writable one (§2.7.4.2).
    #[error("chain at descriptor {head} has a readable buffer after a writable one")]
    Order {
        /// Its first descriptor.
        head: u16,
    },
}

/// A queue that can be served.
#[derive(Debug)]
pub struct Virtqueue {
    queue: Queue,
    ram: Ram,
    buffers: Buffers,
    /// The used index.
    used: Wrapping<u16>,
    /// The used index when the driver's wish for interrupts was last looked at.
    told: Wrapping<u16>,
    /// Descriptors of a chain at most.
    longest: u16,
    /// For each descriptor: a chain that begins there was popped and not pushed.
    held: Vec<bool>,
    /// What was popped last, the latest last: as many as may have to be put back.
    popped: VecDeque<Popped>,
    /// Chains that a predecessor had begun, the first last.
    redo: Vec<u16>,
    /// How many workers have ended with what was popped last.
    died: u8,
    record: Option<Region>,
    /// For each descriptor: bytes to be read in the chain that begins there and was popped.
    lengths: Vec<u32>,
    traffic: Arc<Traffic>,
    /// A limit makes requests wait until then, and that is counted.
    waits_until: u64,
    /// See [`is_resumed`](Self::is_resumed).
    resumed: bool,
}

#[derive(Debug, Clone, Copy)]
struct Popped {
    head: u16,
    /// It was a predecessor's.
    redone: bool,
}

impl Virtqueue {
    /// A queue at `layout`, of at most `max_size` descriptors, with the negotiated `features`.
    ///
    /// # Errors
    /// [`QueueError::Layout`].
    pub fn new(
        layout: &Layout,
        max_size: u16,
        ram: Ram,
        features: u64,
        from: Position,
    ) -> Result<Self, QueueError> {
        Self::recorded(layout, max_size, ram, features, from, None)
    }

    /// As [`new`](Self::new); which requests are in flight is written to `record`.
    ///
    /// # Errors
    /// Also [`QueueError::InFlight`], if it is to go on where a predecessor was, which left no such record.
    pub fn recorded(
        layout: &Layout,
        max_size: u16,
        ram: Ram,
        features: u64,
        from: Position,
        mut record: Option<Region>,
    ) -> Result<Self, QueueError> {
        let wrong = |reason: String| QueueError::Layout { size: layout.size, reason };
        let refused = |error: virtio_queue::Error| wrong(error.to_string());
        let mut queue = Queue::new(max_size).map_err(refused)?;
        queue.try_set_size(layout.size).map_err(refused)?;
        queue.try_set_desc_table_address(GuestAddress(layout.desc)).map_err(refused)?;
        queue.try_set_avail_ring_address(GuestAddress(layout.driver)).map_err(refused)?;
        queue.try_set_used_ring_address(GuestAddress(layout.device)).map_err(refused)?;
        check_ranges(layout, ram.memory()).map_err(wrong)?;
        queue.set_event_idx(features & feature::EVENT_IDX != 0);
        queue.set_ready(true);
        let (mut used, mut redo) = (Wrapping(0), Vec::new());
        match (from, &mut record) {
            (Position::Start, Some(record)) => record.start(layout.size, 0)?,
            (Position::Start, None) => {}
            (Position::Resume | Position::InOrder, record) => {
                used = queue.used_idx(ram.memory(), Ordering::Acquire)?;
                if let Some(record) = record {
                    redo = match record.resume(layout.size, used.0) {
                        Err(_) if from == Position::InOrder => {
                            record.start(layout.size, used.0)?;
                            Vec::new()
                        }
                        resumed => resumed?,
                    };
                }
                // What was taken is in the used ring or in flight.
                queue.set_next_avail(used.0.wrapping_add(redo.len() as u16));
                redo.reverse();
            }
            (Position::At(index), record) => {
                used = queue.used_idx(ram.memory(), Ordering::Acquire)?;
                queue.set_next_avail(index);
                record.as_mut().map_or(Ok(()), |record| record.start(layout.size, used.0))?;
            }
        }
        // A chain is no longer than its queue (§2.7.5.3.1). But other VMMs pass on what we say of requests (`seg_max`), and may make
        // the queue shorter than we would: then drivers make indirect chains that are longer.
        let longest = if matches!(from, Position::At(_)) { max_size } else { layout.size };
        let buffers = Buffers::for_chains_of(longest);
        let held = vec![false; layout.size.into()];
        let popped = VecDeque::with_capacity(layout.size.into());
        let lengths = vec![0; layout.size.into()];
        let resumed = !matches!(from, Position::Start | Position::At(0));
        let traffic = Arc::default();
        let told = used;
        Ok(Virtqueue {
            queue,
            ram,
            buffers,
            used,
            told,
            longest,
            held,
            popped,
            redo,
            died: 0,
            record,
            lengths,
            traffic,
            waits_until: 0,
            resumed,
        })
    }

    /// Counts in `traffic` from now on.
    pub(super) fn count_in(&mut self, traffic: Arc<Traffic>) {
        self.traffic = traffic;
    }

    /// A limit makes requests wait until `time`, as `Clock::monotonic`: counts that, once.
    pub fn count_limit(&mut self, time: u64) {
        if time > self.waits_until {
            self.waits_until = time;
            self.traffic.limited.add(1);
        }
    }

    /// Counts a request that failed.
    pub fn count_failure(&self) {
        self.traffic.failed.add(1);
    }

    /// Whether it was served before: what that server knew, and the driver still relies on, may be lost.
    pub fn is_resumed(&self) -> bool {
        self.resumed
    }

    /// The memory that its chains lie in.
    pub(super) fn ram(&self) -> &Ram {
        &self.ram
    }

    /// Where it is.
    pub fn layout(&self) -> Layout {
        let (desc, driver, device) =
            (self.queue.desc_table(), self.queue.avail_ring(), self.queue.used_ring());
        Layout { size: self.queue.size(), desc, driver, device }
    }

    /// Descriptors in it.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Takes the next available chain off the ring: its head. Its buffers are then [`chain`](Self::chain)'s.
    ///
    /// # Errors
    /// The ring or the chain makes no sense.
    pub fn pop(&mut self) -> Result<Option<u16>, QueueError> {
        let mut buffers = std::mem::take(&mut self.buffers);
        let popped = self.pop_into(&mut buffers);
        self.buffers = buffers;
        popped
    }

    /// The chain that [`pop`](Self::pop) took last.
    pub fn chain(&self) -> Chain<'_> {
        Chain::new(&self.ram, &self.buffers)
    }

    /// Takes the next available chain off the ring, as [`pop`](Self::pop) does, into `buffers`: where several are held at a
    /// time.
    ///
    /// # Errors
    /// The ring or the chain makes no sense.
    pub fn pop_into(&mut self, buffers: &mut Buffers) -> Result<Option<u16>, QueueError> {
        let (head, redone) = match self.redo.pop() {
            Some(head) => (head, true),
            None => match self.queue.iter(self.ram.memory())?.next() {
                Some(chain) => (chain.head_index(), false),
                None => return Ok(None),
            },
        };
        reach(Step::Popped);
        let table = Table { address: self.queue.desc_table(), size: self.queue.size().into() };
        walk(&self.ram, table, self.longest, head, buffers)?;
        match self.held.get_mut(usize::from(head)) {
            Some(held) if !*held => *held = true,
            _ => return Err(QueueError::Twice { head }),
        }
        if let Some(length) = self.lengths.get_mut(usize::from(head)) {
            // A chain has less than 2^32 bytes.
            *length = buffers.readable.iter().fold(0, |all, buffer| all.saturating_add(buffer.length));
        }
        if self.popped.len() == self.held.len() {
            self.popped.pop_front();
        }
        self.popped.push_back(Popped { head, redone });
        self.died = match &mut self.record {
            Some(record) if redone => record.mark_again(head),
            Some(record) => {
                record.mark(head);
                0
            }
            None => 0,
        };
        Ok(Some(head))
    }

    /// How many workers have ended with the chain that was popped last in flight, as far as the record tells.
    pub fn died(&self) -> u8 {
        self.died
    }

    /// A chain that [`pop_into`](Self::pop_into) put into `buffers`, from its beginning on.
    pub fn chain_of<'a>(&'a self, buffers: &'a Buffers) -> Chain<'a> {
        Chain::new(&self.ram, buffers)
    }

    /// Puts the `count` chains that were popped last back: the next `pop` takes the first of them again. None of them may have
    /// been pushed.
    pub fn unpop(&mut self, count: u16) {
        for _ in 0..count {
            let Some(Popped { head, redone }) = self.popped.pop_back() else { return };
            if let Some(held) = self.held.get_mut(usize::from(head)) {
                *held = false;
            }
            if redone {
                self.redo.push(head);
                continue;
            }
            self.queue.go_to_previous_position();
            if let Some(record) = &mut self.record {
                record.clear(head);
            }
        }
    }

    /// Gives the chain `head` back, with `written` bytes written from its beginning on.
    ///
    /// # Errors
    /// `head` is none that was taken.
    pub fn push(&mut self, head: u16, written: u32) -> Result<(), QueueError> {
        self.push_all(&[(head, written)])
    }

    /// Gives several chains back, each with how many bytes were written: the driver sees all of them at once.
    ///
    /// # Errors
    /// A head is none that was taken; the driver sees nothing, and the queue is not to be touched again.
    pub fn push_all(&mut self, used: &[(u16, u32)]) -> Result<(), QueueError> {
        reach(Step::Done);
        for (head, _) in used {
            match self.held.get_mut(usize::from(*head)) {
                Some(held) if *held => *held = false,
                _ => return Err(QueueError::NotTaken { head: *head }),
            }
            if let Some(record) = &mut self.record {
                record.batch(*head);
            }
        }
        let (ring, size) = (self.queue.used_ring(), self.queue.size());
        let memory = self.ram.memory();
        let mut next = self.used;
        for (head, written) in used {
            // The ring's ranges were checked: no sum overflows.
            let at = GuestAddress(ring + 4 + 8 * u64::from(next.0 % size));
            let [h0, h1, h2, h3] = u32::from(*head).to_le_bytes();
            let [w0, w1, w2, w3] = written.to_le_bytes();
            let entry = [h0, h1, h2, h3, w0, w1, w2, w3];
            memory.write_slice(&entry, at).map_err(virtio_queue::Error::GuestMemory)?;
            next += 1;
        }
        reach(Step::UsedWritten);
        // SYNC POINT: Release orders the entries, and what was written to the chains, before the index that the driver reads.
        let stored = memory.store(next.0.to_le(), GuestAddress(ring + 2), Ordering::Release);
        stored.map_err(virtio_queue::Error::GuestMemory)?;
        reach(Step::UsedPublished);
        self.used = next;
        self.count(used);
        if let Some(record) = &mut self.record {
            record.finish(used.iter().map(|(head, _)| *head), next.0);
        }
        reach(Step::Given);
        Ok(())
    }

    fn count(&self, used: &[(u16, u32)]) {
        let length = |head: u16| self.lengths.get(usize::from(head)).copied().unwrap_or(0);
        self.traffic.requests.add(used.len() as u64);
        self.traffic.to_guest.add(used.iter().map(|(_, written)| u64::from(*written)).sum());
        self.traffic.from_guest.add(used.iter().map(|(head, _)| u64::from(length(*head))).sum());
    }

    /// Whether the driver wants an interrupt for what was pushed since the last call.
    ///
    /// # Errors
    /// The ring is not readable.
    pub fn wants_interrupt(&mut self) -> Result<bool, QueueError> {
        let before = std::mem::replace(&mut self.told, self.used);
        if before == self.used {
            return Ok(false);
        }
        // SYNC POINT: between the used index and what the driver says, which it writes before it looks at the index again.
        fence(Ordering::SeqCst);
        let ring = self.queue.avail_ring();
        let load = |at: u64| {
            let word = self.ram.memory().load::<u16>(GuestAddress(at), Ordering::Relaxed);
            word.map(u16::from_le).map_err(virtio_queue::Error::GuestMemory)
        };
        if self.queue.event_idx_enabled() {
            // §2.7.7.2: wanted is the one after entry number `used_event`.
            let used_event = Wrapping(load(ring + 4 + 2 * u64::from(self.queue.size()))?);
            return Ok(self.used - used_event - Wrapping(1) < self.used - before);
        }
        Ok(load(ring)? & NO_INTERRUPT == 0)
    }

    /// How many chains [`pop`](Self::pop) would find now.
    ///
    /// # Errors
    /// The ring is not readable.
    pub fn waiting(&self) -> Result<u16, QueueError> {
        let index = self.queue.avail_idx(self.ram.memory(), Ordering::Acquire)?;
        let fresh = index.0.wrapping_sub(self.queue.next_avail());
        Ok(fresh.saturating_add(self.redo.len() as u16))
    }

    /// Tells the driver not to kick, as far as it listens.
    ///
    /// # Errors
    /// The ring is not writable.
    pub fn silence(&mut self) -> Result<(), QueueError> {
        Ok(self.queue.disable_notification(self.ram.memory())?)
    }

    /// Asks the driver for a kick; `true` = there is something already.
    ///
    /// # Errors
    /// The ring is not writable.
    pub fn listen(&mut self) -> Result<bool, QueueError> {
        Ok(self.queue.enable_notification(self.ram.memory())?)
    }
}

/// All three areas lie in guest memory, with the event indices at their ends.
fn check_ranges(layout: &Layout, memory: &GuestMemoryMmap) -> Result<(), String> {
    let size = usize::from(layout.size);
    let areas = [
        ("descriptor table", layout.desc, 16 * size, Permissions::Read),
        ("driver area", layout.driver, 6 + 2 * size, Permissions::Read),
        ("device area", layout.device, 6 + 8 * size, Permissions::Write),
    ];
    for (name, address, bytes, access) in areas {
        if address == 0 || !GuestMemory::check_range(memory, GuestAddress(address), bytes, access) {
            return Err(format!("its {name} of {bytes} bytes at {address:#x} is not in guest memory"));
        }
    }
    Ok(())
}
