//! A CMOS real-time clock: the MC146818A of the PC, on ports 0x70 and 0x71 (region 0), interrupt line 0.
//!
//! Guarantees:
//! 1. It shows the host's `CLOCK_REALTIME` as UTC. What the guest sets is kept as a distance from it, for this VM only.
//! 2. Across a restart each register access takes effect exactly once; the time goes on as if nothing had been. A pending
//!    interrupt is raised again: at least once.
//! 3. It wakes the host only while the guest has an interrupt of it enabled and handled.
#![forbid(unsafe_code)]
#![warn(unreachable_pub)]

pub mod calendar;
pub mod device;
pub mod spec;
pub mod state;

pub use device::Rtc;
