//! Virtio over MMIO: the [`transport`] that a driver finds, split [`queue`]s in guest memory, and the [`engine`] that has each
//! queue served.
//!
//! A virtio device is a [`transport::Identity`] (numbers only) and, for each of its queues, a [`Serve`]: a state machine that
//! is given one [`Chain`] of buffers after the other, reads and writes it by copying, and does not know where the bytes are,
//! which process it is in, or on which thread. The same code runs in a test with [`engine::Inline`], and in a worker on
//! [`threads::Threads`].
//!
//! Guarantees:
//! 1. Whatever a driver writes to registers, rings and descriptors, nothing panics, nothing loops for ever, and nothing
//!    outside guest memory is touched: a queue that makes no sense stops with `DEVICE_NEEDS_RESET`.
//! 2. A queue's registers do not change once it is ready; what is used of it is a private copy.
//! 3. A queue is served in the order of its available ring, one chain at a time. So what is in flight when the worker dies
//!    is what lies between the used and the available index, and a successor does just that again.
//! 4. A reset is complete, and `Status` reads 0, only when no request is in flight any more.

pub mod chain;
pub mod engine;
pub mod interrupt;
pub mod queue;
pub mod spec;
mod state;
#[cfg(test)]
mod tests;
pub mod threads;
pub mod transport;

pub use cellblock_channel::ram::{Ram, RamError};
pub use chain::{Chain, ChainError};
pub use engine::Serve;
pub use interrupt::{Interrupt, Raise};
pub use transport::{Identity, Transport};
