//! A split virtqueue (Virtio 1.3 §2.7), the device's side. The available ring is walked by `virtio-queue`; chains
//! ([`descriptors`](super::descriptors)) and the used ring are not, for there it knows no batches.

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use cellblock_channel::ram::Ram;
use thiserror::Error;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

use super::chain::{Buffers, Chain};
use super::descriptors::{Table, walk};
use super::spec::{NO_INTERRUPT, feature};

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
    /// After the last entry in the used ring: what a predecessor had not finished is done again.
    Resume,
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
        let mut used = Wrapping(0);
        if from != Position::Start {
            used = queue.used_idx(ram.memory(), Ordering::Acquire)?;
            queue.set_next_avail(if let Position::At(index) = from { index } else { used.0 });
        }
        let buffers = Buffers::for_chains_of(layout.size);
        Ok(Virtqueue { queue, ram, buffers, used, told: used })
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
        let Some(chain) = self.queue.iter(self.ram.memory())?.next() else { return Ok(None) };
        let head = chain.head_index();
        let table = Table { address: self.queue.desc_table(), size: self.queue.size().into() };
        walk(&self.ram, table, head, buffers)?;
        Ok(Some(head))
    }

    /// A chain that [`pop_into`](Self::pop_into) put into `buffers`, from its beginning on.
    pub fn chain_of<'a>(&'a self, buffers: &'a Buffers) -> Chain<'a> {
        Chain::new(&self.ram, buffers)
    }

    /// Puts the `count` chains that were popped last back: the next `pop` takes the first of them again. None of them may have
    /// been pushed.
    pub fn unpop(&mut self, count: u16) {
        let Wrapping(next) = Wrapping(self.queue.next_avail()) - Wrapping(count);
        self.queue.set_next_avail(next);
    }

    /// Gives the chain `head` back, with `written` bytes written from its beginning on.
    ///
    /// # Errors
    /// `head` is none.
    pub fn push(&mut self, head: u16, written: u32) -> Result<(), QueueError> {
        self.push_all(&[(head, written)])
    }

    /// Gives several chains back, each with how many bytes were written: the driver sees all of them at once.
    ///
    /// # Errors
    /// A head is none, or there are more than the queue has; nothing is given back.
    pub fn push_all(&mut self, used: &[(u16, u32)]) -> Result<(), QueueError> {
        let size = self.queue.size();
        if used.len() > usize::from(size) || used.iter().any(|(head, _)| *head >= size) {
            return Err(virtio_queue::Error::InvalidDescriptorIndex.into());
        }
        let ring = self.queue.used_ring();
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
        // SYNC POINT: Release orders the entries, and what was written to the chains, before the index that the driver reads.
        let stored = memory.store(next.0.to_le(), GuestAddress(ring + 2), Ordering::Release);
        stored.map_err(virtio_queue::Error::GuestMemory)?;
        self.used = next;
        Ok(())
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
