//! The portable vocabulary of booting: what the loader decides, and what the board makes of it.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The most vCPUs that a VM can have.
pub const MAX_CPUS: u32 = 32;

/// The kernel command line where the user gives none: messages to the serial port, and a reboot at once after a panic.
/// Power-off and reset need no words: ACPI describes them.
pub const DEFAULT_CMDLINE: &str = "console=ttyS0 panic=-1";

/// How the guest's first instruction finds the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BootProtocol {
    /// Linux's 64-bit boot protocol (Linux `Documentation/arch/x86/boot.rst`): long mode, identity map of the low 4 GiB, RSI = `boot_params`.
    Linux64,
    /// Xen's PVH entry (Xen `docs/misc/pvh.pandoc`): 32-bit protected mode without paging, EBX = `hvm_start_info`.
    Pvh,
}

/// Where and how the boot vCPU starts: all that the supervisor needs from the loader to set its registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootEntry {
    /// The protocol that fixes mode and registers.
    pub protocol: BootProtocol,
    /// Guest-physical address of the first instruction.
    pub entry: u64,
    /// Guest-physical address of `boot_params` or `hvm_start_info`.
    pub parameters: u64,
}

/// Bytes to be put at a guest-physical address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Guest-physical address of the first byte.
    pub address: u64,
    /// What goes there; a few pages at most.
    pub bytes: Vec<u8>,
}

/// A range of guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamRange {
    /// Guest-physical address of the first byte.
    pub address: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// Where the initrd was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Initrd {
    /// Guest-physical address of the first byte.
    pub address: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// What the ACPI tables describe besides the devices that every board has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcpiConfig {
    /// Number of vCPUs, 1 to [`MAX_CPUS`]; the APIC id of vCPU *n* is *n*.
    pub cpus: u32,
    /// The virtio-mmio slots in use, by number (see `layout::virtio_slot`).
    pub virtio_slots: Vec<u32>,
}

/// All that goes into the structures that the guest reads at boot.
#[derive(Debug)]
pub struct BootPlan<'a> {
    /// How the guest is entered.
    pub protocol: BootProtocol,
    /// Guest RAM, ascending.
    pub ram: &'a [RamRange],
    /// Kernel command line, without the terminating zero.
    pub cmdline: &'a str,
    /// The initrd, if any.
    pub initrd: Option<Initrd>,
    /// A bzImage's setup header from its offset 0x1f1 on; none for an ELF image.
    pub setup_header: Option<&'a [u8]>,
    /// Fresh random bytes for the guest's random number generator (boot_params protocols only).
    pub rng_seed: [u8; 32],
    /// What ACPI describes.
    pub acpi: &'a AcpiConfig,
}

/// Why a board cannot be described as asked.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Error {
    /// Nothing of the kind exists for this architecture yet.
    #[error("{what} is not supported for {arch} guests yet; run this VM on an x86_64 host")]
    Unsupported {
        /// What was asked for.
        what: &'static str,
        /// The architecture that lacks it.
        arch: &'static str,
    },
    /// `cpus` out of range.
    #[error("cpus is {value}; it must be from 1 to {MAX_CPUS}")]
    Cpus {
        /// The value given.
        value: u32,
    },
    /// A virtio-mmio slot that the board does not have.
    #[error(
        "virtio slot {slot} does not exist or is used twice; the board has slots 0 to {last}, each for one device"
    )]
    VirtioSlot {
        /// The slot number given.
        slot: u32,
        /// The last slot number.
        last: u32,
    },
    /// The command line is too long for the area kept for it.
    #[error("the kernel command line is {bytes} bytes long; the limit is {limit}")]
    CommandLine {
        /// Length without the terminating zero.
        bytes: usize,
        /// The most that fits.
        limit: usize,
    },
    /// Guest RAM in more ranges than the boot structures hold.
    #[error("guest memory has {ranges} ranges; the boot protocol's memory map holds {limit}")]
    RamRanges {
        /// Number of ranges.
        ranges: usize,
        /// The most that fits.
        limit: usize,
    },
    /// A table outgrew the area that the memory map keeps for it.
    #[error("the {what} takes {bytes} bytes; the memory map keeps {limit} for it")]
    TooBig {
        /// Which structure.
        what: &'static str,
        /// Its size.
        bytes: usize,
        /// The size kept.
        limit: usize,
    },
}
