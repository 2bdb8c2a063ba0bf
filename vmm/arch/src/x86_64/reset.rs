//! What lies at the reset vector: a board without firmware needs code there all the same.
//!
//! Linux with hardware-reduced ACPI, but without EFI, reboots by a jump to the BIOS's reset vector in real mode, unless its command
//! line says otherwise (`arch/x86/kernel/reboot.c`: `reboot_init` picks `BOOT_EFI`, which falls through to `BOOT_BIOS`).

use super::layout::{POWER_RESET_PORT, POWER_RESET_VALUE, RESET_VECTOR};
use crate::boot::Piece;

/// Real-mode code that writes the ACPI reset register and halts.
pub(super) fn vector() -> Piece {
    let [low, high] = POWER_RESET_PORT.to_le_bytes();
    let bytes = vec![
        0xba,
        low,
        high, // mov $POWER_RESET_PORT, %dx
        0xb0,
        POWER_RESET_VALUE, // mov $POWER_RESET_VALUE, %al
        0xee,              // out %al, %dx
        0xfa,              // cli
        0xf4,              // hlt
        0xeb,
        0xfd, // jmp to the hlt
    ];
    Piece { address: RESET_VECTOR, bytes }
}
