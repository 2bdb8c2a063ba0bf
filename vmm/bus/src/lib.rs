//! The immutable map from guest addresses to device regions.
//!
//! A [`Bus`] is built once, shared by all vCPUs as a snapshot, and never locked. An access belongs to a device only if
//! every byte of it lies in one region; any other is unclaimed: reads give all ones, writes are dropped, as on a real
//! board.
#![forbid(unsafe_code)]

use cellblock_wire::slot::Space;
use thiserror::Error;

/// A piece of one address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// Which address space.
    pub space: Space,
    /// The first address.
    pub base: u64,
    /// Bytes, at least 1; `base + length` does not pass 2^64.
    pub length: u64,
}

/// A device's region, by the device's index in the VM and the region's in the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The device's index.
    pub device: usize,
    /// The region's number, as the device knows it.
    pub region: u32,
}

/// Where an access goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hit {
    /// The device's region.
    pub target: Target,
    /// Byte offset in the region.
    pub offset: u64,
}

/// A range that cannot be added.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BusError {
    /// It has no bytes, or leaves the address space.
    #[error("bus range {base:#x} of {length:#x} bytes is empty or leaves the {space:?} space")]
    Bounds {
        /// Which space.
        space: Space,
        /// The first address.
        base: u64,
        /// Bytes.
        length: u64,
    },
    /// Another device is there already.
    #[error(
        "bus range {base:#x} of {length:#x} bytes overlaps device {other} at {other_base:#x} in the {space:?} space"
    )]
    Overlap {
        /// Which space.
        space: Space,
        /// The first address.
        base: u64,
        /// Bytes.
        length: u64,
        /// Who has it.
        other: usize,
        /// Where that one begins.
        other_base: u64,
    },
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    base: u64,
    /// Inclusive, so that a range may end at the top of the space.
    last: u64,
    target: Target,
}

/// The map; see the crate's documentation.
#[derive(Debug, Clone, Default)]
pub struct Bus {
    mmio: Vec<Entry>,
    pio: Vec<Entry>,
}

impl Bus {
    /// Adds a region.
    ///
    /// # Errors
    /// The range is empty, leaves its space, or overlaps another.
    pub fn insert(&mut self, range: Range, target: Target) -> Result<(), BusError> {
        let Range { space, base, length } = range;
        let limit = match space {
            Space::Mmio => u64::MAX,
            Space::Pio => u16::MAX.into(),
        };
        let last = length
            .checked_sub(1)
            .and_then(|span| base.checked_add(span))
            .filter(|last| *last <= limit)
            .ok_or(BusError::Bounds { space, base, length })?;
        let entries = match space {
            Space::Mmio => &mut self.mmio,
            Space::Pio => &mut self.pio,
        };
        let at = entries.partition_point(|entry| entry.last < base);
        if let Some(other) = entries.get(at).filter(|other| other.base <= last) {
            let (other, other_base) = (other.target.device, other.base);
            return Err(BusError::Overlap { space, base, length, other, other_base });
        }
        entries.insert(at, Entry { base, last, target });
        Ok(())
    }

    /// The region that holds all `size` bytes from `addr`, if one does.
    #[inline]
    pub fn find(&self, space: Space, addr: u64, size: usize) -> Option<Hit> {
        let entries = match space {
            Space::Mmio => &self.mmio,
            Space::Pio => &self.pio,
        };
        let entry = entries.get(entries.partition_point(|entry| entry.last < addr))?;
        let end = addr.checked_add((size as u64).checked_sub(1)?)?;
        (entry.base <= addr && end <= entry.last)
            .then(|| Hit { target: entry.target, offset: addr - entry.base })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pio(base: u64, length: u64) -> Range {
        Range { space: Space::Pio, base, length }
    }

    fn target(device: usize) -> Target {
        Target { device, region: 0 }
    }

    #[test]
    fn an_access_that_straddles_a_region_is_unclaimed() {
        let mut bus = Bus::default();
        bus.insert(pio(0x3f8, 8), target(1)).unwrap();
        assert_eq!(bus.find(Space::Pio, 0x3fc, 4), Some(Hit { target: target(1), offset: 4 }));
        assert_eq!(bus.find(Space::Pio, 0x3fd, 4), None);
        assert_eq!(bus.find(Space::Pio, 0x3f7, 2), None);
        assert_eq!(bus.find(Space::Mmio, 0x3f8, 1), None);
        assert_eq!(bus.find(Space::Pio, 0x3f8, 0), None);
    }

    #[test]
    fn overlaps_and_bounds_are_refused() {
        let mut bus = Bus::default();
        bus.insert(pio(0x60, 1), target(0)).unwrap();
        bus.insert(pio(0x64, 1), target(0)).unwrap();
        bus.insert(pio(0x61, 3), target(1)).unwrap();
        assert!(matches!(bus.insert(pio(0x63, 2), target(2)), Err(BusError::Overlap { other: 1, .. })));
        assert!(matches!(bus.insert(pio(0xffff, 2), target(2)), Err(BusError::Bounds { .. })));
        assert!(matches!(bus.insert(pio(1, 0), target(2)), Err(BusError::Bounds { .. })));
        let top = Range { space: Space::Mmio, base: u64::MAX, length: 1 };
        bus.insert(top, target(3)).unwrap();
        assert!(bus.find(Space::Mmio, u64::MAX, 1).is_some());
        assert!(bus.find(Space::Mmio, u64::MAX, 2).is_none());
    }

    proptest! {
        #[test]
        fn the_search_agrees_with_a_scan(ranges in proptest::collection::vec((0u64..200, 1u64..20), 0..20), addr in 0u64..230, size in 1usize..9) {
            let mut bus = Bus::default();
            let mut kept = Vec::new();
            for (device, (base, length)) in ranges.into_iter().enumerate() {
                if bus.insert(pio(base, length), target(device)).is_ok() {
                    kept.push((device, base, length));
                }
            }
            let scan = kept
                .iter()
                .find(|(_, base, length)| *base <= addr && addr + size as u64 <= base + length)
                .map(|(device, base, _)| Hit { target: target(*device), offset: addr - base });
            prop_assert_eq!(bus.find(Space::Pio, addr, size), scan);
        }
    }
}
