//! A virtio entropy device (Virtio 1.3 §5.4): registers (region 0), interrupt line 0, a thread for its queue.
//!
//! Guarantees:
//! 1. The bytes are the host kernel's (`getrandom`), fresh for each request, and kept nowhere.
//! 2. A request gets at most 64 KiB, however large its buffers are.
//! 3. With limits, bytes and requests flow as fast as those say on average, after a burst. The request that uses a limit up is
//!    served whole; the next waits until it is paid for. A successor begins with a full burst.
//! 4. Across a restart a request that was not in the used ring is served anew, with other bytes.
#![forbid(unsafe_code)]

pub mod device;
pub mod request;
pub mod spec;
pub mod state;

pub use device::identity;
pub use request::{HostRandom, Random, Requests};
