//! The clock's worker.
#![no_main]
#![forbid(unsafe_code)]

use cellblock_rtc::Rtc;
use cellblock_sdk::worker;
use cellblock_wire::device::DeviceKind;

worker!(DeviceKind::Rtc, |parts| Ok(Rtc::new(parts.interrupt(0), parts.clock())));
