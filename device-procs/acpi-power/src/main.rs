//! The power registers' worker.
#![no_main]
#![forbid(unsafe_code)]

use cellblock_acpi_power::AcpiPower;
use cellblock_sdk::worker;
use cellblock_wire::device::DeviceKind;

worker!(DeviceKind::AcpiPower, |parts| Ok(AcpiPower::new(parts.interrupt(0), parts.clock())));
