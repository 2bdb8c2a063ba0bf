//! A 16550A serial port: eight ports (region 0), interrupt line 0, a pipe from and to the host.
//!
//! Guarantees:
//! 1. A sink that does not take its bytes never delays the guest: what the buffer cannot hold is dropped and counted.
//! 2. Input is taken from the host only as the guest reads it: at most 32 bytes are on the way.
//! 3. No interrupt is lost to a driver that serves an edge-triggered line; a spurious one is possible.
//! 4. Across a restart each register access takes effect exactly once. The line's bytes are not registers: output bytes
//!    whose reply was not yet given are sent again (at least once); bytes that wait in the worker's own buffer when it is
//!    killed, and at most 16 bytes of input, are lost with it. An orderly end writes the buffer out first.
//! 5. With a limit, output is as fast as that on average, after a burst; a driver that keeps to THRE loses no byte by it.
//!    A successor begins with a full burst.

pub mod device;
pub mod fifo;
pub mod spec;
pub mod state;

pub use device::Serial;
