//! The x86_64 board.

pub mod acpi;
pub mod cpuid;
pub mod layout;
pub mod msrs;
mod paging;
mod pvh;
mod registers;
mod reset;
mod zero_page;

pub use registers::boot_state;

use crate::boot::{BootPlan, BootProtocol, Error, Piece};

/// Kinds of memory in an e820 map (ACPI 6.5 §15, table 15.4); PVH uses the same numbers.
const MEMORY_RAM: u32 = 1;
const MEMORY_RESERVED: u32 = 2;

/// One line of the memory map that either protocol passes to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct MemoryLine {
    address: u64,
    bytes: u64,
    kind: u32,
}

/// All boot structures for `plan`, each with its address: ACPI tables, reset code, command line, memory map, protocol structure, and
/// for the 64-bit protocol page tables and GDT.
///
/// # Errors
/// [`Error`] names the value of the plan that cannot be described.
pub fn boot_pieces(plan: &BootPlan<'_>) -> Result<Vec<Piece>, Error> {
    let mut pieces = vec![acpi::build(plan.acpi)?, reset::vector(), cmdline(plan.cmdline)?];
    let map = memory_map(plan);
    match plan.protocol {
        BootProtocol::Linux64 => {
            pieces.push(paging::gdt());
            pieces.extend(paging::page_tables());
            pieces.push(zero_page::seed(&plan.rng_seed));
            pieces.push(zero_page::build(plan, &map)?);
        }
        BootProtocol::Pvh => pieces.extend(pvh::build(plan, &map)?),
    }
    Ok(pieces)
}

/// The zero-terminated command line.
fn cmdline(text: &str) -> Result<Piece, Error> {
    let limit = layout::CMDLINE_BYTES - 1;
    if text.len() > limit {
        return Err(Error::CommandLine { bytes: text.len(), limit });
    }
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    Ok(Piece { address: layout::CMDLINE, bytes })
}

/// Guest RAM without the area from the EBDA to 1 MiB, where the ACPI tables lie.
fn memory_map(plan: &BootPlan<'_>) -> Vec<MemoryLine> {
    let mut map = vec![
        MemoryLine { address: 0, bytes: layout::LOW_RAM_RESERVED, kind: MEMORY_RAM },
        MemoryLine {
            address: layout::LOW_RAM_RESERVED,
            bytes: layout::KERNEL_FLOOR - layout::LOW_RAM_RESERVED,
            kind: MEMORY_RESERVED,
        },
    ];
    for range in plan.ram {
        let start = range.address.max(layout::KERNEL_FLOOR);
        let end = range.address.saturating_add(range.bytes);
        if start < end {
            map.push(MemoryLine { address: start, bytes: end - start, kind: MEMORY_RAM });
        }
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::{AcpiConfig, Initrd, RamRange};

    const RAM: [RamRange; 2] = [
        RamRange { address: 0, bytes: layout::LOW_RAM_END },
        RamRange { address: layout::HIGH_RAM_START, bytes: 1 << 30 },
    ];

    fn pieces(protocol: BootProtocol) -> Vec<Piece> {
        let acpi = AcpiConfig { cpus: 32, virtio_slots: (0..layout::VIRTIO_SLOTS).collect() };
        let initrd = Some(Initrd { address: 0x7000_0000, bytes: 4097 });
        let cmdline = "x".repeat(layout::CMDLINE_BYTES - 1);
        let plan = BootPlan {
            protocol,
            ram: &RAM,
            cmdline: &cmdline,
            initrd,
            setup_header: None,
            rng_seed: [7; 32],
            acpi: &acpi,
        };
        boot_pieces(&plan).unwrap()
    }

    #[test]
    fn pieces_never_overlap_and_stay_below_the_kernel() {
        for protocol in [BootProtocol::Linux64, BootProtocol::Pvh] {
            let mut ranges: Vec<_> =
                pieces(protocol).iter().map(|p| (p.address, p.address + p.bytes.len() as u64)).collect();
            ranges.sort_unstable();
            for pair in ranges.windows(2) {
                assert!(pair[0].1 <= pair[1].0, "{pair:x?} overlap for {protocol:?}");
            }
            assert!(ranges.iter().all(|r| r.1 <= layout::KERNEL_FLOOR));
            let stack = (layout::BOOT_STACK - 0x800, layout::BOOT_STACK);
            assert!(ranges.iter().all(|r| r.1 <= stack.0 || stack.1 <= r.0));
        }
    }

    #[test]
    fn memory_map_ascends_and_covers_all_ram_but_the_reserved_area() {
        let acpi = AcpiConfig { cpus: 1, virtio_slots: vec![] };
        let plan = BootPlan {
            protocol: BootProtocol::Pvh,
            ram: &RAM,
            cmdline: "",
            initrd: None,
            setup_header: None,
            rng_seed: [0; 32],
            acpi: &acpi,
        };
        let map = memory_map(&plan);
        assert!(map.windows(2).all(|pair| pair[0].address + pair[0].bytes <= pair[1].address));
        let ram: u64 = map.iter().filter(|line| line.kind == MEMORY_RAM).map(|line| line.bytes).sum();
        let all: u64 = RAM.iter().map(|range| range.bytes).sum();
        assert_eq!(ram, all - (layout::KERNEL_FLOOR - layout::LOW_RAM_RESERVED));
    }

    #[test]
    fn too_long_a_command_line_names_length_and_limit() {
        let text = "y".repeat(layout::CMDLINE_BYTES);
        assert_eq!(
            cmdline(&text),
            Err(Error::CommandLine { bytes: layout::CMDLINE_BYTES, limit: layout::CMDLINE_BYTES - 1 })
        );
    }
}
