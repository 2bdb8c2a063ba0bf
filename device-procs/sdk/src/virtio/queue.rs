//! A split virtqueue (Virtio 1.3 §2.7), the device's side. The rings are walked by `virtio-queue`; what is here turns what
//! that passes over in silence into errors, and keeps its rules in one place.

use std::num::Wrapping;
use std::sync::atomic::Ordering;

use cellblock_channel::ram::Ram;
use thiserror::Error;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

use super::chain::{Buffer, Buffers, Chain};
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
        if from == Position::Resume {
            let Wrapping(used) = queue.used_idx(ram.memory(), Ordering::Acquire)?;
            queue.set_next_avail(used);
            queue.set_next_used(used);
        }
        Ok(Virtqueue { queue, ram, buffers: Buffers::for_chains_of(layout.size) })
    }

    /// Takes the next available chain off the ring: its head. Its buffers are then [`chain`](Self::chain)'s.
    ///
    /// # Errors
    /// The ring or the chain makes no sense.
    pub fn pop(&mut self) -> Result<Option<u16>, QueueError> {
        let size = self.queue.size();
        let Some(chain) = self.queue.iter(self.ram.memory())?.next() else { return Ok(None) };
        let head = chain.head_index();
        self.buffers.clear();
        collect(chain, &mut self.buffers, head, size)?;
        Ok(Some(head))
    }

    /// The chain that was popped last.
    pub fn chain(&self) -> Chain<'_> {
        Chain::new(self.ram.memory(), &self.buffers)
    }

    /// Gives the chain `head` back, with `written` bytes written from its beginning on.
    ///
    /// # Errors
    /// `head` is none.
    pub fn push(&mut self, head: u16, written: u32) -> Result<(), QueueError> {
        Ok(self.queue.add_used(self.ram.memory(), head, written)?)
    }

    /// Whether the driver wants an interrupt for what was pushed since the last call.
    ///
    /// # Errors
    /// The ring is not readable.
    pub fn wants_interrupt(&mut self) -> Result<bool, QueueError> {
        let memory = self.ram.memory();
        // Also the fence between the used index and what the driver says.
        let wanted = self.queue.needs_notification(memory)?;
        if self.queue.event_idx_enabled() {
            return Ok(wanted);
        }
        let flags = memory.load::<u16>(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed);
        let flags = flags.map_err(virtio_queue::Error::GuestMemory)?;
        Ok(u16::from_le(flags) & NO_INTERRUPT == 0)
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

/// The chain's buffers, in two lists. `virtio-queue` ends a broken chain early: then its last descriptor has a successor.
fn collect(
    chain: DescriptorChain<&GuestMemoryMmap>,
    buffers: &mut Buffers,
    head: u16,
    size: u16,
) -> Result<(), QueueError> {
    let (mut length, mut goes_on, mut writing) = (0, true, false);
    for descriptor in chain {
        length += 1;
        goes_on = descriptor.has_next();
        if length > usize::from(size) {
            return Err(QueueError::Long { head, size });
        }
        let buffer = Buffer { address: descriptor.addr().0, length: descriptor.len() };
        match (descriptor.is_write_only(), writing) {
            (false, true) => return Err(QueueError::Order { head }),
            (writable, _) => writing = writable,
        }
        if buffer.length > 0 {
            let list = if writing { &mut buffers.writable } else { &mut buffers.readable };
            list.push(buffer);
        }
    }
    if goes_on { Err(QueueError::Cut { head, length }) } else { Ok(()) }
}
