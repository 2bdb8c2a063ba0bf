//! What a process asks of the kernel and the C library for itself, where nobody offers it without `unsafe`. Nothing here
//! reaches another process.
//!
//! | module | runs in |
//! |---|---|
//! | [`entry`] | workers, at their start: their `main`, their control socket, options of the process |
//! | [`seal`] | workers: their half of the sandbox |
//! | [`fault`] | workers: the handlers that note what they die of |
//! | [`install`], [`landlock`] | workers, and every process that `vmm/jail` confines, spawner and supervisor among them |
//! | `start` (feature `testing`) | tests in the spawner's place, and their children until these execute a worker |

pub mod entry;
pub mod fault;
pub mod install;
pub mod landlock;
pub mod seal;
#[cfg(feature = "testing")]
pub mod start;
