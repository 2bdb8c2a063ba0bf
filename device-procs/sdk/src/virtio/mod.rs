//! Virtio over MMIO: the [`transport`] that a driver finds, split [`queue`]s in guest memory, and the [`engine`] that has each
//! queue served.
//!
//! A virtio device is a [`transport::Identity`] (numbers, and its configuration [`Space`]) and a few posts: each a [`Work`] with the
//! queues and descriptors that it looks after, or, where each request of a queue has its answer before the next is begun, a
//! [`Serve`]. It is given [`Chain`]s of buffers and does not know where the bytes are, which process it is in, or on which
//! thread. The same code runs in a test with [`inline::Inline`], and in a worker on [`threads::Threads`].
//!
//! Guarantees:
//! 1. Whatever a driver writes to registers, rings and descriptors, nothing panics, nothing loops for ever, and nothing
//!    outside guest memory is touched: a queue that makes no sense stops with `DEVICE_NEEDS_RESET`.
//! 2. A queue's registers do not change once it is ready; what is used of it is a private copy.
//! 3. A [`Serve`]'s queue is served in the order of its available ring, one chain at a time. So what is in flight when the worker
//!    dies is what lies between the used and the available index, and a successor does just that again.
//! 4. A reset is complete, and `Status` reads 0, only when no request is in flight any more.
//! 5. A device at rest ([`Device::quiesce`](crate::device::Device::quiesce)) touches neither its queues nor guest memory: its state and
//!    the record of requests in flight say all that a successor needs.

pub mod chain;
pub mod config;
mod descriptors;
pub mod engine;
pub mod inflight;
pub mod inline;
pub mod interrupt;
pub mod kept;
pub mod limit;
pub mod queue;
pub mod spec;
mod state;
#[cfg(test)]
mod tests;
pub mod threads;
pub mod transport;
mod vectored;
mod waking;

pub use cellblock_channel::ram::{Buffer, Piece, Ram, RamError};
pub use chain::{Buffers, Chain, ChainError};
pub use config::Space;
pub use engine::{OneByOne, Queues, Serve, Wait, Work};
pub use inline::Inline;
pub use interrupt::{Interrupt, Raise};
pub use kept::Kept;
pub use limit::{Bucket, Limiter};
pub use queue::{QueueError, Virtqueue};
pub use threads::{Kicker, Post, Threads};
pub use transport::{Identity, Transport};
pub use vectored::{Gather, Scatter, Taken};
