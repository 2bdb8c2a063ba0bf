//! ACPI power registers: power-off, reset, power button. Eight ports (region 0), interrupt line 0.
//!
//! Guarantees:
//! 1. Power-off and reset take effect before the guest runs on: they are the reply's action, not a message.
//! 2. A press of the power button is kept until the guest reads it, and its interrupt repeated every half second (for two
//!    minutes at most) until then.
//! 3. Across a restart each register access takes effect exactly once; the interrupt of an unread press is raised again.
#![forbid(unsafe_code)]

pub mod device;
pub mod spec;
pub mod state;

pub use device::AcpiPower;
