//! The keyboard controller.
#![no_main]

use cellblock_fuzz::host::{Line, fresh};
use cellblock_fuzz::{Script, registers};
use cellblock_i8042::I8042;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    fresh();
    registers::run(&mut Script::new(bytes), || I8042::new(Line), |_| ());
});
