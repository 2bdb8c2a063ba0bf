//! End-to-end tests: the harness.
//!
//! The tests run the programs that `scripts/build` left in `dist/`, as a user would, and look at them from outside: output,
//! exit status, `/proc`. Each test says `SKIP: why` on a machine that lacks what it needs. The same test binaries run on
//! this machine (bare-metal guests, `tests/guests`) and, copied in, inside the emulated host (unmodified Linux guests).
//!
//! | variable | what it points at | default |
//! |---|---|---|
//! | `CELLBLOCK_DIST` | the folder with `bin/` and `libexec/` | `dist/x86_64-linux`, in the emulated host `/opt/cellblock` |
//! | `CELLBLOCK_GUESTS` | the bare-metal guests | `.cache/guests` |
//! | `CELLBLOCK_FAIL_POINTS` | workers that end where a test wants it (`scripts/test build`) | `.cache/fail-points` |
//! | `CELLBLOCK_ESCAPE` | the hostile worker of `tests/escape` (`scripts/test build`) | `.cache/escape/escape` |
//! | `CELLBLOCK_HOSTILE` | the worker of `tests/hostile` that breaks the rules (`scripts/test build`) | `.cache/hostile/hostile` |
//! | `CELLBLOCK_IMAGES` | Debian's kernel and the initrd | `/boot` in the emulated host, else none (QEMU's guests: `.cache/images/x86_64`) |
//! | `CELLBLOCK_DEBIAN` | what boots `root.img` of `scripts/debian`, copies of which are `/dev/vda`, `/dev/vdb` | none |
#![forbid(unsafe_code)]

pub mod cage;
pub mod deaths;
pub mod debian;
pub mod dice;
pub mod files;
pub mod hostile_workers;
pub mod lab;
pub mod leftovers;
pub mod line;
mod network;
pub mod places;
pub mod processes;
pub mod qemu;
pub mod repeats;
pub mod tap;
pub mod terminal;
pub mod user;
pub mod vm;

pub use debian::Debian;
pub use lab::Lab;
pub use line::Line;
pub use places::Places;
pub use terminal::Terminal;
pub use user::User;
pub use vm::{Ended, Vm};

/// Says why a test cannot run here; the test then returns.
pub fn skip(why: &str) {
    eprintln!("SKIP: {why}");
}
