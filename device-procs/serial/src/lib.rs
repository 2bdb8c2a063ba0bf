//! A 16550A serial port: eight ports (region 0), interrupt line 0, a socket from and a pipe to the host.
//!
//! Guarantees:
//! 1. A sink that does not take its bytes never delays the guest: what the buffer cannot hold is dropped and counted.
//! 2. Input is taken from the host only as the guest reads it: at most 16 bytes are in the receiver, and 16 more were looked at.
//! 3. No interrupt is lost to a driver that serves an edge-triggered line; a spurious one is possible.
//! 4. Across a restart each register access takes effect exactly once. The line's bytes are not registers. Output is at least
//!    once: it waits in memory that outlives the worker, and a successor goes on where the sink stopped; a byte whose reply was not
//!    given is sent again, and so is what the sink took in the very moment of the death (2 KiB at most). Input is at least once: it
//!    stays in its socket until the state in which the guest has it is committed, and only a worker that dies right then, within
//!    microseconds, has its successor give the guest these bytes again (16 at most). An orderly end writes the buffer out first.
//! 5. With a limit, output is as fast as that on average, after a burst; a driver that keeps to THRE loses no byte by it.
//!    A successor begins with a full burst.
#![forbid(unsafe_code)]

pub mod device;
pub mod fifo;
pub mod spec;
pub mod state;

pub use device::Serial;
