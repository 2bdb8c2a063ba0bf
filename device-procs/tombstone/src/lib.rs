//! What the guest finds in the place of a device whose workers have died too often: something that answers at once, and that
//! says no.
//!
//! Guarantees:
//! 1. A register access of a device that is not virtio reads as all ones, and a write goes nowhere.
//! 2. A virtio device is there as before: its registers, queues and features are those that the driver had, also after a reset.
//! 3. A request that can fail does, at once, those in flight among them: to a disk with `VIRTIO_BLK_S_IOERR`, to a network
//!    device's control queue with `VIRTIO_NET_ERR`. What cannot fail is given back: packets and console output are dropped, an
//!    entropy request brings no bytes, a balloon's pages stay as they are.
//! 4. Buffers for what the host would send are left where they are: nothing comes. A socket device's driver is told that all
//!    its connections are gone, and each packet that wants an answer is answered by a reset.
//! 5. The network link is down, and stays so. That configuration space may have changed is told when a tombstone comes and when
//!    the device is back; `ConfigGeneration` is none that another process has shown.
//! 6. It has nothing of the host's: no file, no pipe, no socket. Of a state page it takes nothing, and a record of requests in
//!    flight that makes no sense does not stop it.
//! 7. Nothing that the guest writes ends it; queues that make no sense need a reset of the device, as with any.
//!
//! The device comes back by `cellblock revive`, as it is when it is switched on, with the registers that its driver has written.
#![forbid(unsafe_code)]

pub mod device;
pub mod request;
pub mod spec;
pub mod state;

pub use device::{Silent, identity};
pub use request::Refusing;
