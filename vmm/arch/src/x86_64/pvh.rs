//! `hvm_start_info` of the PVH entry (Xen `xen/include/public/arch-x86/hvm/start_info.h`).

use super::MemoryLine;
use super::layout::{ACPI, CMDLINE, PVH_MEMORY_MAP, PVH_MODULES, PVH_START_INFO, ZERO_PAGE};
use crate::boot::{BootPlan, Error, Piece};

/// "xEn3" with bit 7 of the first letter set.
const MAGIC: u32 = 0x336e_c578;
/// Version 1: with a memory map.
const VERSION: u32 = 1;
/// Bytes of a memory map entry.
const MAP_ENTRY: usize = 24;

/// Start info, module list (the initrd, if any) and memory map.
pub(super) fn build(plan: &BootPlan<'_>, map: &[MemoryLine]) -> Result<Vec<Piece>, Error> {
    let limit = (ZERO_PAGE - PVH_MEMORY_MAP) as usize / MAP_ENTRY;
    if map.len() > limit {
        return Err(Error::RamRanges { ranges: map.len(), limit });
    }
    let mut pieces = vec![
        Piece { address: PVH_START_INFO, bytes: start_info(plan.initrd.is_some(), map.len() as u32) },
        Piece { address: PVH_MEMORY_MAP, bytes: map.iter().flat_map(map_entry).collect() },
    ];
    if let Some(initrd) = plan.initrd {
        // paddr, size, cmdline_paddr, reserved
        let entry = [initrd.address, initrd.bytes, 0, 0];
        pieces.push(Piece {
            address: PVH_MODULES,
            bytes: entry.iter().flat_map(|w| w.to_le_bytes()).collect(),
        });
    }
    Ok(pieces)
}

fn start_info(initrd: bool, map_entries: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(56);
    let (flags, reserved) = (0u32, 0u32);
    for half in [MAGIC, VERSION, flags, u32::from(initrd)] {
        bytes.extend(half.to_le_bytes());
    }
    for word in [if initrd { PVH_MODULES } else { 0 }, CMDLINE, ACPI, PVH_MEMORY_MAP] {
        bytes.extend(word.to_le_bytes());
    }
    for half in [map_entries, reserved] {
        bytes.extend(half.to_le_bytes());
    }
    bytes
}

fn map_entry(line: &MemoryLine) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(MAP_ENTRY);
    bytes.extend(line.address.to_le_bytes());
    bytes.extend(line.bytes.to_le_bytes());
    bytes.extend(line.kind.to_le_bytes());
    bytes.extend(0u32.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use std::mem::{offset_of, size_of};

    use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_start_info};

    use super::*;

    #[test]
    fn the_layout_is_that_of_the_published_header() {
        let info = start_info(true, 3);
        assert_eq!(info.len(), size_of::<hvm_start_info>());
        let word = |at: usize| u64::from_le_bytes(info[at..at + 8].try_into().unwrap());
        assert_eq!(word(0), u64::from(MAGIC) | u64::from(VERSION) << 32);
        assert_eq!(word(offset_of!(hvm_start_info, modlist_paddr)), PVH_MODULES);
        assert_eq!(word(offset_of!(hvm_start_info, cmdline_paddr)), CMDLINE);
        assert_eq!(word(offset_of!(hvm_start_info, rsdp_paddr)), ACPI);
        assert_eq!(word(offset_of!(hvm_start_info, memmap_paddr)), PVH_MEMORY_MAP);
        assert_eq!(word(offset_of!(hvm_start_info, memmap_entries)), 3);
        let entry = map_entry(&MemoryLine { address: 1, bytes: 2, kind: 3 });
        assert_eq!(entry.len(), size_of::<hvm_memmap_table_entry>());
        assert_eq!(entry[offset_of!(hvm_memmap_table_entry, type_)], 3);
    }

    #[test]
    fn without_an_initrd_there_is_no_module() {
        let info = start_info(false, 1);
        assert_eq!(info[12..24], [0; 12]);
    }
}
