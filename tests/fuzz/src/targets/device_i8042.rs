//! The keyboard controller.

use crate::host::{Line, fresh};
use crate::{Script, registers};
use cellblock_i8042::I8042;

/// Looks at one input.
pub(crate) fn run(bytes: &[u8]) {
    fresh();
    registers::run(&mut Script::new(bytes), || I8042::new(Line), |_| ());
}
