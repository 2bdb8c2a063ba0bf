//! The memory that the front end lends, and its addresses: those of its guest, and its own, in which it names the rings.

use std::fs::File;
use std::os::fd::OwnedFd;

use cellblock_channel::ram::{Piece, Ram, RamError};
use vhost::vhost_user::message::VhostUserMemoryRegion;

/// Memory as the last table of the front end says.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) ram: Ram,
    spans: Vec<Span>,
}

/// A region in the front end's own address space.
#[derive(Debug, Clone, Copy)]
struct Span {
    user: u64,
    bytes: u64,
    guest: u64,
}

impl Memory {
    pub(super) fn none() -> Self {
        Memory { ram: Ram::none(), spans: Vec::new() }
    }

    /// Maps `regions`, each from its file.
    ///
    /// # Errors
    /// A file is too small or cannot be mapped, or regions overlap.
    pub(super) fn map(regions: &[VhostUserMemoryRegion], files: Vec<File>) -> Result<Self, RamError> {
        let pieces = regions.iter().zip(files).map(|(region, file)| {
            let (address, bytes, offset) = (region.guest_phys_addr, region.memory_size, region.mmap_offset);
            (Piece { address, bytes, offset }, OwnedFd::from(file))
        });
        let ram = Ram::lent(pieces.collect())?;
        let span = |region: &VhostUserMemoryRegion| Span {
            user: region.user_addr,
            bytes: region.memory_size,
            guest: region.guest_phys_addr,
        };
        Ok(Memory { ram, spans: regions.iter().map(span).collect() })
    }

    /// The guest-physical address of the front end's own `address`.
    pub(super) fn guest_address(&self, address: u64) -> Option<u64> {
        self.spans.iter().find_map(|span| {
            let offset = address.checked_sub(span.user).filter(|offset| *offset < span.bytes)?;
            span.guest.checked_add(offset)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_the_regions_or_nothing() {
        let span = |user, guest| Span { user, bytes: 0x1000, guest };
        let memory = Memory { spans: vec![span(0x7000, 0), span(0x2000, 0x10_0000)], ..Memory::none() };
        let found = [0x7000, 0x7fff, 0x8000, 0x1fff, 0x2010].map(|at| memory.guest_address(at));
        assert_eq!(found, [Some(0), Some(0xfff), None, None, Some(0x10_0010)]);
    }
}
