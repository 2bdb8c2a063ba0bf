//! How a worker's process begins: what Rust's own start-up code would do, or would do otherwise.
#![allow(unsafe_code)] // Adopting an inherited descriptor, and two C calls that set process-wide options.

use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::OnceLock;

use crate::socket::Control;

/// The control socket's number.
const CONTROL: i32 = 3;

/// Makes an expression of type `i32` what the C library calls as `main`, in a crate root with `#![no_main]`: the exit status.
///
/// Not Rust's own `main`, because that opens `/dev/null` for missing standard streams, which a jailed worker cannot, and
/// sets up signal stacks that it does not need.
#[macro_export]
macro_rules! c_main {
    ($run:expr) => {
        // SAFETY: `main` is the C start-up code's to call, with arguments that this one ignores, and `#![no_main]` leaves the
        // name free: with a second one the program would not link.
        #[unsafe(no_mangle)]
        extern "C" fn main() -> i32 {
            $run
        }
    };
}

/// Options of the process, before it has a second thread: one arena for all threads, for a worker has little to allocate, and many
/// arenas cost address space and pages; and no death by `SIGPIPE`, for a sink may go away.
pub fn prepare() {
    // SAFETY: sets a number in the allocator.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    // SAFETY: ignoring a signal installs no handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// The control socket that this process was started with, as a worker. Whoever is none has something else there, or nothing.
pub fn control_socket() -> &'static Control {
    static SOCKET: OnceLock<Control> = OnceLock::new();
    SOCKET.get_or_init(|| {
        // SAFETY: by the contract with the spawner number 3 is the control socket and nobody else's; it is adopted here alone,
        // once, and never closed. If it is not open, the first call on it fails and the worker ends.
        Control::from_fd(unsafe { OwnedFd::from_raw_fd(CONTROL) })
    })
}
