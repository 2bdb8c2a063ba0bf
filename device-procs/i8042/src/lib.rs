//! An i8042 keyboard controller: the reset line and an empty keyboard connector. Ports 0x60 (region 0) and 0x64
//! (region 1), interrupt line 0.
//!
//! Guarantees:
//! 1. A reset by command 0xfe, or by the output port's bit 0, takes effect before the guest runs on.
//! 2. Every command with an answer is answered at once; no driver waits for a keyboard that is not there.
//! 3. Across a restart each register access takes effect exactly once; the interrupt of a waiting byte is raised again.
#![forbid(unsafe_code)]

pub mod device;
pub mod spec;
pub mod state;

pub use device::I8042;
