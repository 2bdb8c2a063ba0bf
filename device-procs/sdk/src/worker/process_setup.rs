//! What a process needs before its first message, which Rust's own start-up code would do, or would do otherwise.

use std::panic;

use cellblock_channel::clock;
use cellblock_channel::process::entry;
use cellblock_channel::socket::Control;
use cellblock_wire::control::{FromWorker, LogLevel};

use super::{cut, end, status};

/// Options of the process. Returns the control socket that it was started with.
pub(super) fn prepare() -> &'static Control {
    entry::prepare();
    // The first look at the clock finds the vDSO, which may take more than serving is allowed.
    clock::now();
    let control = entry::control_socket();
    // Descriptor 2 may be anything that was granted, so nothing may be written there.
    panic::set_hook(Box::new(|info| {
        let text = cut(&format!("bug in the worker: {info}"));
        let _ = control.send_message(&FromWorker::Log { level: LogLevel::Warn, text }, &[]);
        end(status::PANICKED);
    }));
    control
}
