//! 2-MiB pages under guest memory that does not come from the pool of huge pages.
//!
//! A first touch of a page by the guest costs a fault in KVM and one in the memfd, 512 of them where one would do. Shared
//! memory gets huge pages by itself only where the host's `shmem_enabled` says so (`never` by default), but may be put on them
//! on request, `MADV_COLLAPSE`, from Linux 6.1 on.
#![allow(unsafe_code)] // madvise on mapped guest memory; nothing is dereferenced and no contents change.

use std::io;

use rustix::mm::Advice;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::UNIT;

/// Puts the pages that hold guest addresses `start..end` (within one region) on huge pages, rounded outwards to [`UNIT`], and
/// so allocates all of them. The contents stay. `false` = not all could be: the kernel is older than 6.1, memory is
/// fragmented, or the range is not all guest memory. It works as before then, with small pages.
///
/// The mapping need not be aligned, but only one that is (as those of [`GuestRam::map`](crate::GuestRam::map) are) is then itself made of
/// huge pages.
#[must_use = "where it is false, other ways of copying are quicker"]
pub fn back_with_huge_pages(ram: &GuestMemoryMmap, start: u64, end: u64) -> bool {
    let Some(region) = ram.find_region(GuestAddress(start)) else { return false };
    if region.is_hugetlbfs() == Some(true) {
        return true;
    }
    let base = region.start_addr().raw_value();
    if start >= end || end - 1 > region.last_addr().raw_value() {
        return false;
    }
    let (from, to) = ((start - base) / UNIT * UNIT, (end - base).next_multiple_of(UNIT).min(region.len()));
    let host = region.get_mmap().as_ptr();
    (from..to).step_by(UNIT as usize).all(|unit| has_a_page(host.wrapping_add(unit as usize)))
        && collapse(host.wrapping_add(from as usize), (to - from) as usize).is_ok()
}

/// Empty units are not put on huge pages: the first page of this one is made to be there.
fn has_a_page(unit: *mut u8) -> bool {
    // SAFETY: the page lies in a mapping of guest memory; populating changes no contents.
    unsafe { rustix::mm::madvise(unit.cast(), 4096, Advice::LinuxPopulateWrite) }.is_ok()
}

fn collapse(start: *mut u8, bytes: usize) -> io::Result<()> {
    // SAFETY: the range lies in one mapping of guest memory; collapsing moves pages, not contents.
    let answer = unsafe { libc::madvise(start.cast(), bytes, libc::MADV_COLLAPSE) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;
    use crate::GuestRam;

    #[test]
    fn contents_stay_and_the_rest_reads_as_zero() {
        let ram = GuestRam::create(4 * UNIT, false).unwrap().map().unwrap();
        ram.write_obj(0x1234_5678_u32, GuestAddress(UNIT + 12)).unwrap();
        if !back_with_huge_pages(&ram, UNIT + 4096, 2 * UNIT + 1) {
            eprintln!("SKIP: this host puts no shared memory on huge pages (MADV_COLLAPSE, Linux 6.1)");
            return;
        }
        assert_eq!(ram.read_obj::<u32>(GuestAddress(UNIT + 12)).unwrap(), 0x1234_5678);
        assert_eq!(ram.read_obj::<u64>(GuestAddress(3 * UNIT - 8)).unwrap(), 0);
        let file = ram.find_region(GuestAddress(0)).unwrap().file_offset().unwrap().file();
        let blocks = rustix::fs::fstat(file).unwrap().st_blocks as u64 * 512;
        assert_eq!(blocks, 2 * UNIT, "two units and no more are allocated");
    }

    #[test]
    fn what_is_not_guest_memory_is_refused() {
        let ram = GuestRam::create(UNIT, false).unwrap().map().unwrap();
        for (start, end) in [(0, 0), (5, 4), (0, UNIT + 1), (UNIT, 2 * UNIT), (0, u64::MAX)] {
            assert!(!back_with_huge_pages(&ram, start, end), "{start:#x}..{end:#x}");
        }
    }
}
