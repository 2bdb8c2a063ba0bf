//! What a process needs before its first message, which Rust's own start-up code would do, or would do otherwise.
#![allow(unsafe_code)] // Adopting an inherited descriptor, and two C calls that set process-wide options.

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::panic;

use cellblock_channel::clock;
use cellblock_channel::socket::Control;
use cellblock_wire::control::{FromWorker, LogLevel};

use super::{cut, end, status};

/// The control socket's number.
const CONTROL: i32 = 3;

/// Options of the process.
pub(super) fn prepare() {
    // SAFETY: sets a number in the allocator, before there is a second thread: one arena for all of them, for a worker
    // has little to allocate and many arenas cost address space and pages.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    // SAFETY: ignoring a signal installs no handler. Without it a sink that goes away would kill the worker.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    // The first look at the clock finds the vDSO, which may take more than serving is allowed.
    clock::now();
    // Descriptor 2 may be anything that was granted, so nothing may be written there.
    panic::set_hook(Box::new(|info| {
        // SAFETY: the number stays open as long as the process; it is only borrowed for one message.
        let socket = unsafe { BorrowedFd::borrow_raw(CONTROL) };
        if let Ok(copy) = socket.try_clone_to_owned() {
            let text = cut(&format!("bug in the worker: {info}"));
            let log = FromWorker::Log { level: LogLevel::Warn, text };
            let _ = Control::from_fd(copy).send_message(&log, &[]);
        }
        end(status::PANICKED);
    }));
}

/// The control socket that the worker was started with.
pub(super) fn control_socket() -> Control {
    // SAFETY: by the contract with the spawner number 3 is the control socket and nobody else's. If it is not open, the
    // first call on it fails and the worker ends.
    Control::from_fd(unsafe { OwnedFd::from_raw_fd(CONTROL) })
}
