//! Whether a device's workers get any further.

use std::os::fd::OwnedFd;

use cellblock_wire::device::{DriverQueue, Role};

use super::Worker;

/// Offset of `idx` in a queue's device area (Virtio 1.3 §2.7.8).
const USED_INDEX: u64 = 2;

impl Worker {
    /// A number that changes when a worker has answered an access or given a request back. What a virtio device does by its queues
    /// causes no exits, but its used indices are in guest memory.
    pub(super) fn progress(&self) -> u64 {
        let Some(shadow) = &self.shadow else { return self.exits() };
        let queues = shadow.read().queues.into_iter().filter(|queue| queue.ready);
        queues.fold(self.exits(), |sum, queue| sum.wrapping_add(used_index(&self.roles, &queue)))
    }
}

/// The guest's, or its devices' word: of use as one that changes, and no more.
fn used_index(roles: &[(Role, OwnedFd)], queue: &DriverQueue) -> u64 {
    let Some(at) = queue.device.checked_add(USED_INDEX) else { return 0 };
    let place = roles.iter().find_map(|(role, fd)| match role {
        Role::GuestMemory { address, bytes, offset } => {
            let inside = at
                .checked_sub(*address)
                .filter(|inside| inside.checked_add(2).is_some_and(|end| end <= *bytes))?;
            Some((fd, offset.checked_add(inside)?))
        }
        _ => None,
    });
    let mut index = [0; 2];
    match place.map(|(fd, offset)| rustix::io::pread(fd, &mut index, offset)) {
        Some(Ok(2)) => u16::from_le_bytes(index).into(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cellblock_channel::memory;

    #[test]
    fn a_used_index_is_read_where_the_guest_has_it_and_nowhere_else() {
        let ram = memory::create_replies("ram", 8192).unwrap();
        rustix::io::pwrite(&ram.fd, &[0x34, 0x12], 4096 + 64 + 2).unwrap();
        let piece = Role::GuestMemory { address: 0x10_0000, bytes: 4096, offset: 4096 };
        let roles = [(Role::InFlight, ram.fd.try_clone().unwrap()), (piece, ram.fd)];
        let index = |device| used_index(&roles, &DriverQueue { device, ..DriverQueue::default() });
        assert_eq!(index(0x10_0000 + 64), 0x1234);
        for outside in [0, 0x10_0000 - 3, 0x10_0000 + 4096 - 3, 0x10_0000 + 4096, u64::MAX, u64::MAX - 2] {
            assert_eq!(index(outside), 0, "{outside:#x}");
        }
    }
}
