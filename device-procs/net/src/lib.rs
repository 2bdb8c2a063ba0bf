//! A virtio network device (Virtio 1.3 §5.1) over a tap interface or passt: registers (region 0), interrupt line 0, a thread for
//! each queue pair.
//!
//! Guarantees:
//! 1. A frame is passed on whole or not at all: one that does not fit the driver's buffers, is shorter than an Ethernet header
//!    or longer than 65550 bytes is dropped. With a driver that does not merge buffers a frame that fills its buffer to the last
//!    byte may have been longer, if the driver's buffers are shorter than §5.1.6.3.1 wants.
//! 2. The driver gets frames with checksums still to be made, or larger than the MTU, only if it said that it takes them; what was
//!    meant for the driver before is dropped when a driver begins.
//! 3. Over a tap no frame is copied in user space, and each takes one system call.
//! 4. What a driver says in a frame's header is judged by the host's kernel, and is of effect on that frame only.
//! 5. A far end that is gone shows as a link that is down; frames to it are dropped. One that floods takes no more than its turn
//!    from frames of the driver's, and one that says nothing holds up nothing.
//! 6. Across a restart frames may be lost or doubled, as on any network.
//! 7. The limits of each direction hold for all queue pairs together.
//!
//! Over how many queue pairs frames come is the driver's to say by the control queue; a tap spreads flows over them.
#![forbid(unsafe_code)]

pub mod backend;
mod control;
pub mod device;
mod limit;
mod receive;
pub mod spec;
pub mod state;
mod transmit;
mod turn;

pub use device::{Pair, identity, pairs};
