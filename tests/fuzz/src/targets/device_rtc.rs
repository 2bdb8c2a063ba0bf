//! The clock.

use crate::host::{Line, Ticks, fresh};
use crate::{Script, registers};
use cellblock_rtc::Rtc;

/// Looks at one input.
pub(crate) fn run(bytes: &[u8]) {
    fresh();
    registers::run(&mut Script::new(bytes), || Rtc::new(Line, Ticks), |_| ());
}
