//! What a board looks like to the guest: memory map, ACPI tables, CPUID, MSRs, boot structures and boot registers.
//!
//! Everything here is computed, nothing is done: functions take plain values and return plain values
//! ([`Piece`]s of guest memory, register structs, CPUID leaves). The crate has one implementation for each guest architecture
//! behind the same names, so that its users need no `target_arch` of their own; on an architecture that cannot boot yet
//! each function returns [`Error::Unsupported`].
#![forbid(unsafe_code)]

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod boot;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
pub use aarch64::{acpi, boot_pieces, boot_state, cpuid, layout, msrs};
pub use boot::{
    AcpiConfig, BootEntry, BootPlan, BootProtocol, DEFAULT_CMDLINE, Error, Initrd, MAX_CPUS, Piece, RamRange,
};
#[cfg(target_arch = "x86_64")]
pub use x86_64::{acpi, boot_pieces, boot_state, cpuid, layout, msrs};
