//! The power registers.

use cellblock_acpi_power::AcpiPower;
use crate::host::{Line, Ticks, fresh};
use crate::{Script, registers};

/// Looks at one input.
pub(crate) fn run(bytes: &[u8]) {
    fresh();
    registers::run(&mut Script::new(bytes), || AcpiPower::new(Line, Ticks), |_| ());
}
