//! What a queue pair leads to.

mod passt;
mod tap;

pub use passt::Passt;
pub use tap::{Tap, TapQueues};

use cellblock_sdk::virtio::{Gather, Scatter};

/// What became of a frame of the driver's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// It is gone: sent, or dropped by the far end, as networks may.
    Gone,
    /// There is no room for it now; it is to be tried again when the far end can be written to.
    Later,
    /// The far end is gone, and the frame with it.
    Dead,
}

/// What the far end has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// A frame of so many bytes with its header, in the driver's buffers.
    Frame(u64),
    /// One that did not fit, or was none: dropped.
    Dropped,
    /// None yet.
    Nothing,
    /// It never will have one again.
    Dead,
}

/// The far end of one queue pair. It never blocks. All frames have a header of [`header::BYTES`](crate::spec::header::BYTES),
/// of which `num_buffers` is the device's affair.
pub trait Backend {
    /// The driver agreed to `features`: nothing that it did not agree to may come. `stale` = what came before is for nobody.
    fn begin(&mut self, features: u64, stale: bool);

    /// Room that the next frame may need, with its header. `None` = there is no frame, as far as known without trying.
    fn wanted(&mut self) -> Option<u64>;

    /// Puts the next frame into `room`, which has as much as was wanted, or all that the driver offers.
    fn receive(&mut self, room: &Scatter) -> Received;

    /// Sends the frame in `chain`, which has a header and is not too long.
    fn send(&mut self, chain: &Gather) -> Sent;

    /// Sends what [`send`](Self::send) has kept back, at the end of a turn.
    fn flush(&mut self) -> Sent {
        Sent::Gone
    }
}

/// Says over how many of a device's queue pairs frames come.
pub trait Steer {
    /// The first `pairs`, 1 and up; whether that could be done.
    fn use_pairs(&mut self, pairs: u16) -> bool;
}

/// Of a far end that has no queues: the one pair is used.
#[derive(Debug, Clone, Copy)]
pub struct OnePair;

impl Steer for OnePair {
    fn use_pairs(&mut self, pairs: u16) -> bool {
        pairs == 1
    }
}
