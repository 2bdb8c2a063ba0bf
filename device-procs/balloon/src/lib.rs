//! A virtio memory balloon (Virtio 1.3 §5.5): registers (region 0), interrupt line 0, one thread for its queues.
//!
//! Guarantees:
//! 1. Pages in the balloon, and pages reported free, are the host's: the file that guest memory is loses them. The guest finds
//!    zeroes when it touches them again, whether it has said so before or not.
//! 2. What a guest says of its pages costs nobody but itself: pages that are not its memory are left out and counted.
//! 3. A request takes bounded time: 4096 page numbers of it are looked at, and neighbours among them are given back together.
//! 4. The size that the balloon shall have is at most guest memory. How it gets it is the guest's affair.
//! 5. A question for statistics is answered within half a second, with old ones if the guest tells no new ones.
//! 6. Guest memory of huge pages is given back in whole ones. Drivers put single pages into the balloon, which then gives
//!    nothing back; free pages are reported in large pieces.
//! 7. Across a restart what was given back stays so, and a request that was in flight is done again, to the same end. The size
//!    that the balloon shall have and the one that it has stay, statistics and reports of free pages go on, and a change of
//!    size that may have been lost is told again.
#![forbid(unsafe_code)]

pub mod device;
pub mod pages;
pub mod spec;
pub mod state;
pub mod statistics;

pub use device::{Balloon, Front, identity, space};
pub use pages::Pages;
pub use statistics::Desk;
