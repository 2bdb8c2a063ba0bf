//! The keyboard controller's worker.
#![no_main]
#![forbid(unsafe_code)]

use cellblock_i8042::I8042;
use cellblock_sdk::worker;
use cellblock_wire::device::DeviceKind;

worker!(DeviceKind::I8042, |parts| Ok(I8042::new(parts.interrupt(0))));
