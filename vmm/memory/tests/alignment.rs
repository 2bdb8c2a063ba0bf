//! Where mappings lie. A program of its own with one test: other tests' threads would map in between.
#![allow(clippy::unwrap_used)] // Tests; clippy knows only #[test] functions as such.

use cellblock_memory::{GuestRam, UNIT};
use vm_memory::{GuestAddress, GuestMemoryBackend};

#[test]
fn every_mapping_is_aligned_for_huge_pages() {
    let ram = GuestRam::create(3 * UNIT, false).unwrap();
    let maps: Vec<_> = (0..8).map(|_| ram.map().unwrap()).collect();
    for map in &maps {
        let start = map.get_host_address(GuestAddress(0)).unwrap() as u64;
        assert!(start.is_multiple_of(UNIT), "{start:#x}");
    }
}
