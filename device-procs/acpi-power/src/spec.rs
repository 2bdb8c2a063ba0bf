//! The power registers of a hardware-reduced ACPI machine (ACPI 6.5 §4.1, §4.8.3.7), at offsets in region 0.
//!
//! The FADT's SLEEP_CONTROL_REG, SLEEP_STATUS_REG and RESET_REG point to the first three; the DSDT's Generic Event Device
//! reads the event status when interrupt line 0 fires.

/// Register addresses.
pub mod offset {
    /// Sleep control.
    pub const SLEEP_CONTROL: u64 = 0;
    /// Sleep status.
    pub const SLEEP_STATUS: u64 = 1;
    /// Reset: [`super::RESET_VALUE`] resets the machine (FADT RESET_VALUE).
    pub const RESET: u64 = 2;
    /// Events since the last read, which clears them. Ours, not ACPI's.
    pub const EVENT_STATUS: u64 = 4;
}

/// Sleep control (ACPI 6.5 table 4.18).
pub mod sleep_control {
    /// Goes to sleep; write only.
    pub const SLP_EN: u8 = 1 << 5;
    /// Shift of the sleep type.
    pub const SLP_TYP_SHIFT: u8 = 2;
    /// Mask of the sleep type, in place.
    pub const SLP_TYP_MASK: u8 = 0b111 << SLP_TYP_SHIFT;
    /// The sleep type that the DSDT's `\_S5` names: soft off.
    pub const S5: u8 = 5;
}

/// Sleep status (ACPI 6.5 table 4.19).
pub mod sleep_status {
    /// Woken; writing it clears it. This machine never sleeps, so never wakes.
    pub const WAK_STS: u8 = 1 << 7;
}

/// What the reset register takes.
pub const RESET_VALUE: u8 = 1;

/// Event status.
pub mod event {
    /// The power button was pressed.
    pub const POWER_BUTTON: u8 = 1 << 0;
}

/// A press that the guest has not seen is told again after so many ns: its driver may not have been there.
pub const REPEAT_NS: u64 = 500_000_000;
/// So often at most: two minutes.
pub const REPEATS: u8 = 240;
