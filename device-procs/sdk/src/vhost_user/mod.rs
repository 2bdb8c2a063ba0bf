//! A virtio device whose front end is another VMM, over the vhost-user protocol (QEMU's `docs/interop/vhost-user.rst`).
//!
//! The same device and the same threads as behind [`crate::virtio::Transport`], but the registers are the front end's: it says by
//! messages where its guest's memory and queues are, kicks by eventfds of its own, and is signalled by such. The messages are
//! taken apart by the crate `vhost`.
//!
//! Guarantees:
//! 1. Whatever a front end sends, nothing panics and nothing outside the memory that it lent is touched; a message that makes
//!    no sense ends the session, and with it the worker. A front end that takes back what it lent (truncates its memory), or
//!    stops in the middle of a message, harms nobody else: the worker serves it alone, and ends with its connection.
//! 2. Memory is mapped readable and writable, never executable, from the descriptors that came with it.
//! 3. A queue is stopped, its request in flight done, before its memory, size, address or kicks change, and before its position
//!    is told.
//! 4. Once the front end is gone, requests in flight are done, and the process ends with status 0.

mod backend;
mod calls;
mod early;
mod memory;
mod session;
#[cfg(test)]
mod tests;
mod watch;

pub(crate) use calls::Calls;
pub(crate) use session::{FrontEnd, Session};
