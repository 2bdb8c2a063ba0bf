//! The memory and interrupt map of the x86_64 board.
//!
//! ```text
//! 0x0000_0500  GDT, 0x520 empty IDT                 0x0002_0000  command line (64 KiB)
//! 0x0000_6000  PVH start_info, module, memory map    0x0009_fc00  end of low RAM in the e820 map
//! 0x0000_7000  boot_params (the "zero page")         0x000e_0000  RSDP and all ACPI tables, 0xffff0 reset code
//! 0x0000_8ff0  top of the boot stack (grows down)    0x0010_0000  kernels from here on
//! 0x0000_9000  page tables: PML4, PDPT, 4 PDs        0xc000_0000  end of RAM below 4 GiB, devices
//! 0x0001_f000  setup_data with the RNG seed          0x1_0000_0000 the rest of RAM
//! ```

/// End of RAM below 4 GiB; the hole from here to [`HIGH_RAM_START`] belongs to devices.
pub const LOW_RAM_END: u64 = 0xC000_0000;
/// Where RAM beyond [`LOW_RAM_END`] goes on.
pub const HIGH_RAM_START: u64 = 0x1_0000_0000;
/// Kernels and initrds must lie at or above this address: all below belongs to the boot structures.
pub const KERNEL_FLOOR: u64 = 0x10_0000;
/// The least RAM that the boot structures and a small kernel fit in.
pub const MIN_RAM: u64 = 0x20_0000;
/// Initrds end at or below this address, which every Linux since 2.6 can reach (`initrd_addr_max` is 0x7fff_ffff).
pub const INITRD_CEILING: u64 = 0x8000_0000;
/// Linux's `COMMAND_LINE_SIZE` on x86 without the terminating zero: what an ELF kernel, which states no limit, takes.
pub const LINUX_CMDLINE_LIMIT: usize = 2047;

/// GDT for the entry (five descriptors).
pub const GDT: u64 = 0x500;
/// IDT for the entry: empty, so that an exception before the guest has its own is a triple fault.
pub const IDT: u64 = 0x520;
/// PVH `hvm_start_info`.
pub const PVH_START_INFO: u64 = 0x6000;
/// PVH module list (one entry: the initrd).
pub const PVH_MODULES: u64 = 0x6040;
/// PVH memory map.
pub const PVH_MEMORY_MAP: u64 = 0x6080;
/// Linux `boot_params`.
pub const ZERO_PAGE: u64 = 0x7000;
/// Initial stack pointer of the 64-bit protocol.
pub const BOOT_STACK: u64 = 0x8ff0;
/// First page table (PML4); PDPT and four page directories follow.
pub const PAGE_TABLES: u64 = 0x9000;
/// `setup_data` record with the RNG seed.
pub const SETUP_DATA: u64 = 0x1_f000;
/// Command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Bytes kept for the command line with its terminating zero.
pub const CMDLINE_BYTES: usize = 0x1_0000;
/// End of the first range of RAM in the memory maps; a PC has its EBDA here.
pub const LOW_RAM_RESERVED: u64 = 0x9_fc00;
/// RSDP, followed by all ACPI tables. In the area that an operating system scans (ACPI 6.5 §5.2.5.1).
pub const ACPI: u64 = 0xe_0000;
/// Bytes kept for RSDP and tables.
pub const ACPI_BYTES: usize = (RESET_VECTOR - ACPI) as usize;
/// F000:FFF0, where real-mode code jumps to for a reset; 16 bytes.
pub const RESET_VECTOR: u64 = 0xf_fff0;

/// I/O APIC registers.
pub const IO_APIC: u32 = 0xFEC0_0000;
/// Local APIC registers.
pub const LOCAL_APIC: u32 = 0xFEE0_0000;
/// Interrupt inputs of the I/O APIC: GSI 0 to 23.
pub const IO_APIC_PINS: u32 = 24;

/// First port of the serial port (8 ports).
pub const SERIAL_PORT: u16 = 0x3f8;
/// GSI of the serial port.
pub const SERIAL_GSI: u32 = 4;
/// First port of the RTC (2 ports).
pub const RTC_PORT: u16 = 0x70;
/// GSI of the RTC.
pub const RTC_GSI: u32 = 8;
/// Data port of the i8042.
pub const I8042_DATA_PORT: u16 = 0x60;
/// Command and status port of the i8042.
pub const I8042_COMMAND_PORT: u16 = 0x64;
/// GSI of the i8042's keyboard.
pub const I8042_GSI: u32 = 1;
/// First port of the ACPI power device (8 ports): the sleep control register.
pub const POWER_PORT: u16 = 0x600;
/// Sleep status register.
pub const POWER_STATUS_PORT: u16 = 0x601;
/// Reset register: writing [`POWER_RESET_VALUE`] resets.
pub const POWER_RESET_PORT: u16 = 0x602;
/// What the reset register wants.
pub const POWER_RESET_VALUE: u8 = 1;
/// Event status register; bit 0 = power button; a read clears it.
pub const POWER_EVENT_PORT: u16 = 0x604;
/// GSI of the generic event device (power button).
pub const POWER_GSI: u32 = 5;

/// Ports that a guest of a PC writes although this board has nothing there: the delay port, PCI's configuration mechanisms 1 and 2,
/// the interrupt enable registers of three more serial ports, by which Linux's 8250 driver looks for them.
pub const DEAF_PORTS: [u16; 7] = [0x80, 0xcf8, 0xcfa, 0xcfb, 0x2f9, 0x3e9, 0x2e9];

/// A port to which writes may be held back until the guest's next exit: the RTC's index, which does nothing by itself.
pub const HELD_PORT: u16 = RTC_PORT;

/// Registers of virtio-mmio slot 0; slot *n* is *n* × [`VIRTIO_SLOT_BYTES`] further.
pub const VIRTIO_BASE: u64 = 0xD000_0000;
/// Bytes of one virtio-mmio slot.
pub const VIRTIO_SLOT_BYTES: u64 = 0x1000;
/// GSI of each virtio slot: the I/O APIC's inputs that no legacy device uses (2 and 3 stay free, 0 is the PIT's).
const VIRTIO_GSIS: [u32; 17] = [6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23];
/// Number of virtio-mmio slots.
pub const VIRTIO_SLOTS: u32 = VIRTIO_GSIS.len() as u32;

/// A place for a virtio-mmio device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioSlot {
    /// The slot's number.
    pub number: u32,
    /// Guest-physical address of its registers.
    pub address: u64,
    /// Its interrupt.
    pub gsi: u32,
}

/// Slot `number`, or none past [`VIRTIO_SLOTS`].
#[must_use]
pub fn virtio_slot(number: u32) -> Option<VirtioSlot> {
    let gsi = *VIRTIO_GSIS.get(usize::try_from(number).ok()?)?;
    Some(VirtioSlot { number, address: VIRTIO_BASE + u64::from(number) * VIRTIO_SLOT_BYTES, gsi })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_devices_share_an_interrupt_and_all_are_edge_capable_pins() {
        let mut gsis = vec![SERIAL_GSI, RTC_GSI, I8042_GSI, POWER_GSI];
        gsis.extend((0..VIRTIO_SLOTS).filter_map(|n| virtio_slot(n).map(|slot| slot.gsi)));
        let count = gsis.len();
        gsis.sort_unstable();
        gsis.dedup();
        assert_eq!(gsis.len(), count);
        assert!(gsis.iter().all(|gsi| *gsi != 0 && *gsi < IO_APIC_PINS));
    }

    #[test]
    fn slots_lie_in_the_device_hole_below_the_io_apic() {
        let last = virtio_slot(VIRTIO_SLOTS - 1).unwrap();
        assert!(VIRTIO_BASE >= LOW_RAM_END && last.address + VIRTIO_SLOT_BYTES <= u64::from(IO_APIC));
        assert_eq!(virtio_slot(VIRTIO_SLOTS), None);
        assert_eq!(virtio_slot(u32::MAX), None);
    }
}
