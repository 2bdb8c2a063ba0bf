//! The serial port's worker.
#![no_main]

use cellblock_sdk::worker;
use cellblock_serial::Serial;
use cellblock_wire::device::{DeviceConfig, DeviceKind};

worker!(DeviceKind::Serial, |parts| {
    // The kind was checked; another configuration cannot come.
    let buffer = if let DeviceConfig::Serial { buffer, .. } = *parts.config() { buffer } else { 1 };
    Ok(Serial::new(parts.interrupt(0), parts.clock(), parts.pipes(buffer)?))
});
