//! GDT and page tables for the entry in long mode (Linux `Documentation/arch/x86/boot.rst`, "64-bit boot protocol").

use super::layout::{GDT, PAGE_TABLES};
use crate::boot::Piece;

/// Selector of the flat 64-bit code segment: Linux's `__BOOT_CS`.
pub(super) const CODE64: u16 = 0x10;
/// Selector of the flat data segment: Linux's `__BOOT_DS`.
pub(super) const DATA: u16 = 0x18;
/// Selector of the task segment, which VM entry checks want to be present and busy.
pub(super) const TASK: u16 = 0x20;
/// Limit of the GDT in bytes, minus one.
pub(super) const GDT_LIMIT: u16 = 5 * 8 - 1;

const PRESENT_WRITABLE: u64 = 0b11;
const LARGE: u64 = 1 << 7;
const PAGE: u64 = 0x1000;
const LARGE_PAGE: u64 = 2 << 20;
/// Page directories: 1 GiB each, so the whole low 4 GiB with the local APIC and the I/O APIC are mapped.
const DIRECTORIES: u64 = 4;

/// Descriptors as Intel SDM vol 3 §3.4.5 lays them out: flat segments, accessed, so that loading a selector writes nothing.
pub(super) fn gdt() -> Piece {
    const DESCRIPTORS: [u64; 5] = [
        0,
        0,
        0x00af_9b00_0000_ffff, // code: execute, read, long
        0x00cf_9300_0000_ffff, // data: read, write, 4 GiB
        0x0000_8b00_0000_0067, // busy 32-bit TSS at 0
    ];
    Piece { address: GDT, bytes: words(&DESCRIPTORS) }
}

/// An identity map of the low 4 GiB in 2 MiB pages: PML4, PDPT and [`DIRECTORIES`] page directories, one after another.
pub(super) fn page_tables() -> [Piece; 2] {
    let pdpt = PAGE_TABLES + PAGE;
    let first_directory = pdpt + PAGE;
    let upper = {
        let mut table = vec![0u64; 2 * 512];
        table[0] = pdpt | PRESENT_WRITABLE;
        for n in 0..DIRECTORIES {
            table[512 + n as usize] = (first_directory + n * PAGE) | PRESENT_WRITABLE;
        }
        table
    };
    let directories: Vec<u64> =
        (0..DIRECTORIES * 512).map(|n| (n * LARGE_PAGE) | PRESENT_WRITABLE | LARGE).collect();
    [
        Piece { address: PAGE_TABLES, bytes: words(&upper) },
        Piece { address: first_directory, bytes: words(&directories) },
    ]
}

fn words(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(pieces: &[Piece], address: u64) -> u64 {
        let piece = pieces
            .iter()
            .find(|p| (p.address..p.address + p.bytes.len() as u64).contains(&address))
            .expect("walk leaves the tables");
        let at = (address - piece.address) as usize;
        u64::from_le_bytes(piece.bytes[at..at + 8].try_into().unwrap())
    }

    /// What the processor does with an address (Intel SDM vol 3 §4.5).
    fn translate(pieces: &[Piece], address: u64) -> Option<u64> {
        let mut table = PAGE_TABLES;
        for shift in [39, 30, 21] {
            let entry = word(pieces, table + (address >> shift & 511) * 8);
            if entry & 1 == 0 {
                return None;
            }
            if entry & LARGE != 0 {
                return Some((entry & !0xfff & !(LARGE_PAGE - 1)) + (address & (LARGE_PAGE - 1)));
            }
            table = entry & !0xfff;
        }
        None
    }

    #[test]
    fn the_low_four_gib_map_to_themselves_and_nothing_else_is_mapped() {
        let pieces = page_tables();
        for address in [0, 0x7123, 0x10_0000, 0x3fff_ffff, 0xbfff_ffff, 0xfec0_0010, 0xfee0_0000, 0xffff_ffff]
        {
            assert_eq!(translate(&pieces, address), Some(address));
        }
        for address in [1 << 32, 1 << 39, 1 << 46] {
            assert_eq!(translate(&pieces, address), None);
        }
    }

    #[test]
    fn selectors_point_at_their_descriptors() {
        let gdt = gdt();
        let access = |selector: u16| gdt.bytes[usize::from(selector) + 5];
        assert_eq!(access(CODE64), 0x9b);
        assert_eq!(access(DATA), 0x93);
        assert_eq!(access(TASK), 0x8b);
        assert_eq!(gdt.bytes.len(), usize::from(GDT_LIMIT) + 1);
    }
}
