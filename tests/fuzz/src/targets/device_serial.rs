//! The serial port, with a slow sink or not.

use crate::host::{Line, Ticks, fresh};
use crate::{Script, registers};
use cellblock_sdk::testing::Desk;
use cellblock_serial::Serial;
use cellblock_wire::device::Bucket;

/// Looks at one input.
pub(crate) fn run(bytes: &[u8]) {
    fresh();
    let mut script = Script::new(bytes);
    let desk = Desk::default();
    let bucket = Bucket { per_second: script.u8().max(1).into(), burst: script.u8().max(1).into() };
    let limit = script.flag().then_some(bucket);
    let input = desk.clone();
    registers::run(
        &mut script,
        || Serial::new(Line, Ticks, desk.clone()).limited(limit.as_ref()),
        |script| {
            let count = script.u8().into();
            input.input.borrow_mut().extend(script.bytes(count));
        },
    );
}
