//! The clock.
#![no_main]

use cellblock_fuzz::host::{Line, Ticks, fresh};
use cellblock_fuzz::{Script, registers};
use cellblock_rtc::Rtc;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    fresh();
    registers::run(&mut Script::new(bytes), || Rtc::new(Line, Ticks), |_| ());
});
