//! A virtio console (Virtio 1.3 §5.3): registers (region 0), interrupt line 0, one thread for all queues, a socket from and
//! a pipe to the host for each port.
//!
//! Guarantees:
//! 1. A sink that does not take its bytes holds the guest's buffer, and nothing is dropped; the other ports, and the other
//!    direction, go on. Only when nobody reads a pipe any more are its bytes dropped, and counted.
//! 2. Bytes from the host stay in their socket until the guest has a buffer for them and, where it knows of ports, has its end
//!    of the port open.
//! 3. Whatever a driver says on the control queues, there is at most one message of each kind for each port to be given, and
//!    each port is added once. Messages of ports that are not there, of unknown events and of other values than 0 and 1
//!    change nothing; buffers that are too short for a message are given back empty.
//! 4. Across a restart, bytes from the guest reach the pipe at least once: a buffer that was not given back is sent again
//!    from its beginning. Bytes from the host are the guest's at least once: they leave their socket when the buffer that
//!    they fill is given back, and only a worker that dies between these two, a moment of microseconds, has its successor
//!    give the guest that buffer's bytes again.
//!    A successor knows which ports are added, ready and open, and says again what may not have been heard, but for
//!    `DEVICE_ADD`; only what a driver said in the moment before the end, not yet saved by the register thread, is forgotten.
//! 5. A change of the terminal's size is told in the configuration space with its interrupt, and to a driver that knows of
//!    ports also by a message; only the last of several that come at once is.
//!
//! Only port 0 is a console; the others are streams with names.
#![forbid(unsafe_code)]

pub mod control;
pub mod device;
pub mod port;
pub mod spec;
pub mod state;

pub use device::{Console, Screen, handler, identity};
