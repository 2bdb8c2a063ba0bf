//! Where the initrd goes, and which memory Linux uses first.

use cellblock_arch::{Initrd, layout};
use cellblock_memory::{UNIT, back_with_huge_pages};
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::error::LoadError;
use crate::file::{Image, ImageFile};
use crate::loaded::Range;

const PAGE: u64 = 0x1000;

/// Bytes after the kernel where Linux's allocator begins: Debian's 6.1 takes 22 MiB of these until its first process runs.
const FIRST_ALLOCATIONS: u64 = 26 << 20;
/// Bytes at the end of memory that Linux takes before it has an allocator (page tables, per-CPU data, hash tables) ...
const FIRST_TABLES: u64 = 4 << 20;
/// ... beside the table of all pages, 64 bytes for each 4096, ...
const PAGES_PER_TABLE_PAGE: u64 = 64;
/// ... but no more than this, for a big guest must not wait for its memory to be cleared.
const MAX_TABLES: u64 = 64 << 20;

/// What bounds the initrd.
pub(crate) struct Bounds {
    /// End of the memory that the kernel needs.
    pub(crate) kernel_end: u64,
    /// The kernel's own limit.
    pub(crate) kernel_ceiling: u64,
    /// End of RAM below the device hole.
    pub(crate) low_ram_end: u64,
}

/// Copies the initrd as high as the kernel can reach, so that it is out of the kernel's way while that unpacks.
pub(crate) fn initrd<F: ImageFile>(
    image: &mut Image<'_, F>,
    ram: &GuestMemoryMmap,
    bounds: &Bounds,
) -> Result<Initrd, LoadError> {
    let bytes = image.bytes();
    if bytes == 0 {
        let allowed = "an initrd cannot be empty; leave it out".to_owned();
        return Err(LoadError::Field { image: "initrd", field: "file length", value: 0, allowed });
    }
    let ceiling = bounds.low_ram_end.min(layout::INITRD_CEILING).min(bounds.kernel_ceiling);
    let no_room = LoadError::NoRoom { image: "initrd", needed: bytes, from: bounds.kernel_end, to: ceiling };
    let address = match ceiling.checked_sub(bytes) {
        Some(address) => address & !(PAGE - 1),
        None => return Err(no_room),
    };
    if address < bounds.kernel_end {
        return Err(no_room);
    }
    image.copy_to(ram, address, 0, bytes)?;
    Ok(Initrd { address, bytes })
}

/// Puts the memory that every Linux touches while it starts on huge pages, where the host has them: the lowest, the kernel's
/// and a little beyond, and the end. The guest would take it page by page at once; where this fails, it does.
pub(crate) fn early_memory(ram: &GuestMemoryMmap, kernel: &Range) {
    let bytes: u64 = ram.iter().map(GuestMemoryRegion::len).sum();
    let tables = (FIRST_TABLES + bytes / PAGES_PER_TABLE_PAGE).min(MAX_TABLES);
    let last = ram.last_addr().raw_value();
    let end_of =
        |address| ram.find_region(GuestAddress(address)).map_or(0, |r| r.last_addr().raw_value() + 1);
    let start_of = |address| ram.find_region(GuestAddress(address)).map_or(0, |r| r.start_addr().raw_value());
    let beyond = (kernel.end + FIRST_ALLOCATIONS).min(end_of(kernel.start));
    let tables = last.saturating_sub(tables).max(start_of(last));
    for (start, end) in [(0, UNIT), (kernel.start, beyond), (tables, last + 1)] {
        // Nothing hangs on it but time.
        let _ = back_with_huge_pages(ram, start, end);
    }
}
