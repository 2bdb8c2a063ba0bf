//! Where guest memory lies in the guest's physical address space.

use crate::{Error, Result};

/// Memory comes in multiples of this many bytes (2 MiB: a huge page), at least one.
pub const UNIT: u64 = 2 << 20;
/// Most bytes a guest may have: 4 TiB (one KVM slot holds 2^31 - 1 pages of 4 KiB).
pub const MAX_BYTES: u64 = 4 << 40;
/// The low region ends here at the latest: 3 GiB. Devices live between this and [`HIGH_BASE`].
pub const LOW_LIMIT: u64 = 3 << 30;
/// The high region starts here: 4 GiB.
pub const HIGH_BASE: u64 = 4 << 30;

/// One contiguous piece of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Guest-physical address of its first byte.
    pub guest_addr: u64,
    /// Size in bytes.
    pub len: u64,
    /// Where it starts in the memfd.
    pub file_offset: u64,
}

/// How `bytes` of memory are laid out: one region, or two around the hole.
///
/// # Errors
/// [`Error::Size`] unless `bytes` is a multiple of [`UNIT`] between [`UNIT`] and [`MAX_BYTES`].
pub fn regions(bytes: u64) -> Result<Vec<Region>> {
    if bytes == 0 || bytes > MAX_BYTES || !bytes.is_multiple_of(UNIT) {
        return Err(Error::Size { bytes });
    }
    let low = bytes.min(LOW_LIMIT);
    let mut all = vec![Region { guest_addr: 0, len: low, file_offset: 0 }];
    if bytes > low {
        all.push(Region { guest_addr: HIGH_BASE, len: bytes - low, file_offset: low });
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hole_splits_only_what_reaches_it() {
        assert_eq!(regions(UNIT).unwrap(), [Region { guest_addr: 0, len: UNIT, file_offset: 0 }]);
        assert_eq!(regions(LOW_LIMIT).unwrap().len(), 1);
        assert_eq!(
            regions(LOW_LIMIT + UNIT).unwrap(),
            [
                Region { guest_addr: 0, len: LOW_LIMIT, file_offset: 0 },
                Region { guest_addr: HIGH_BASE, len: UNIT, file_offset: LOW_LIMIT },
            ]
        );
        let most: u64 = regions(MAX_BYTES).unwrap().iter().map(|region| region.len).sum();
        assert_eq!(most, MAX_BYTES);
    }

    #[test]
    fn odd_sizes_are_refused_by_name() {
        for bytes in [0, 1, UNIT - 1, UNIT + 4096, MAX_BYTES + UNIT, u64::MAX] {
            let error = regions(bytes).unwrap_err().to_string();
            assert!(error.contains(&bytes.to_string()) && error.contains("2 MiB"), "{error}");
        }
    }
}
