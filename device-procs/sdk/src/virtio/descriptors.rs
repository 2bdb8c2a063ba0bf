//! From the first descriptor of a chain (Virtio 1.3 §2.7.5) to its buffers.

use cellblock_channel::ram::{Buffer, Ram};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use super::chain::Buffers;
use super::queue::QueueError;

const DESCRIPTOR_BYTES: u32 = 16;

/// Where descriptors are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Table {
    /// Guest-physical address.
    pub(super) address: u64,
    /// Descriptors in it.
    pub(super) size: u32,
}

/// Puts the buffers of the chain at `head` of a queue's `table` into `buffers`. Each descriptor is read once, and at most `most` of
/// them.
///
/// # Errors
/// The chain makes no sense.
pub(super) fn walk(
    ram: &Ram,
    table: Table,
    most: u16,
    head: u16,
    buffers: &mut Buffers,
) -> Result<(), QueueError> {
    buffers.clear();
    let (mut table, mut next, mut indirect) = (table, u32::from(head), false);
    let (mut length, mut bytes, mut writing) = (0, 0u32, false);
    loop {
        let cut = QueueError::Cut { head, length };
        let Some(descriptor) = descriptor(ram, table, next) else { return Err(cut) };
        if descriptor.refers_to_indirect_table() {
            // §2.7.5.3.1: no table in a table, and whole descriptors.
            let size = descriptor.len() / DESCRIPTOR_BYTES;
            // A descriptor's successor has 16 bits: more cannot be meant.
            let whole = descriptor.len().is_multiple_of(DESCRIPTOR_BYTES) && size <= u16::MAX.into();
            if indirect || !whole {
                return Err(cut);
            }
            (table, next, indirect) = (Table { address: descriptor.addr().0, size }, 0, true);
            continue;
        }
        length += 1;
        if length > usize::from(most) {
            return Err(QueueError::Long { head, size: most });
        }
        match (descriptor.is_write_only(), writing) {
            (false, true) => return Err(QueueError::Order { head }),
            (writable, _) => writing = writable,
        }
        // §2.7.5.2: less than 2^32 bytes.
        bytes = bytes.checked_add(descriptor.len()).ok_or(cut)?;
        if descriptor.len() > 0 {
            let list = if writing { &mut buffers.writable } else { &mut buffers.readable };
            list.push(Buffer { address: descriptor.addr().0, length: descriptor.len() });
        }
        if !descriptor.has_next() {
            return Ok(());
        }
        next = descriptor.next().into();
    }
}

fn descriptor(ram: &Ram, table: Table, index: u32) -> Option<Descriptor> {
    let offset = u64::from(index) * u64::from(DESCRIPTOR_BYTES);
    let address = table.address.checked_add(offset).filter(|_| index < table.size)?;
    ram.memory().read_obj(GuestAddress(address)).ok()
}
