//! The power registers.
#![no_main]

use cellblock_acpi_power::AcpiPower;
use cellblock_fuzz::host::{Line, Ticks, fresh};
use cellblock_fuzz::{Script, registers};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    fresh();
    registers::run(&mut Script::new(bytes), || AcpiPower::new(Line, Ticks), |_| ());
});
