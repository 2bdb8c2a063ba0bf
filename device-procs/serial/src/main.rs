//! The serial port's worker.
#![no_main]
#![forbid(unsafe_code)]

use cellblock_sdk::worker;
use cellblock_serial::Serial;
use cellblock_wire::device::{DeviceConfig, DeviceKind, Limits};

worker!(DeviceKind::Serial, |parts| {
    let (buffer, limits) = match parts.config() {
        DeviceConfig::Serial { buffer, limits } => (*buffer, *limits),
        // The kind was checked; another configuration cannot come.
        _ => (1, Limits::default()),
    };
    let serial = Serial::new(parts.interrupt(0), parts.clock(), parts.pipes(buffer)?);
    Ok(serial.limited(limits.bytes.as_ref()))
});
