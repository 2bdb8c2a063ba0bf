//! A worker's life: hand-shake, sandbox, serving.
//!
//! The process starts with one descriptor, the control socket, as number 3, and reads neither arguments nor environment.
//! It gets all else with the grant ([`grant`]), closes its sandbox, says `Ready`, and serves ([`serve`]).

use std::mem::ManuallyDrop;
use std::process;

use cellblock_channel::socket::{Control, SocketError};
use cellblock_policy::seal;
use cellblock_wire::Version;
use cellblock_wire::control::{FromWorker, MAX_TEXT};
use cellblock_wire::device::DeviceKind;

use crate::device::Device;

mod grant;
mod parts;
mod process_setup;
mod refusal;
mod serve;
mod timer;

pub use parts::{IrqLine, Parts, SystemClock};
pub use refusal::Refusal;
pub use serve::End;

/// How a worker's process ends.
pub mod status {
    /// It was told to quit, and did so in order.
    pub const QUIT: i32 = 0;
    /// It refused its grant, or its supervisor broke the protocol; the reason went out by the control socket.
    pub const REFUSED: i32 = 1;
    /// Its supervisor closed the control socket.
    pub const ORPHANED: i32 = 2;
    /// It has a bug; a log line told where.
    pub const PANICKED: i32 = 101;
}

/// Makes the `main` function of a worker's binary: `worker!(DeviceKind::Rtc, |parts| Ok(Rtc::new(…)))`, in a crate root with
/// `#![no_main]` whose build script embedded the policy as `worker`.
///
/// Not Rust's own `main`, because that opens `/dev/null` for missing standard streams, which a jailed worker cannot, and
/// sets up signal stacks that it does not need.
#[macro_export]
macro_rules! worker {
    ($kind:expr, $build:expr) => {
        #[unsafe(no_mangle)]
        extern "C" fn main() -> i32 {
            let serve_program = include_bytes!(concat!(env!("OUT_DIR"), "/worker.serve.bpf"));
            $crate::worker::run($kind, serve_program, $build)
        }
    };
}

/// A worker from its first instruction to its exit status (see [`status`]). `build` makes the device of what was granted;
/// `serve_program` is the seccomp program under which it serves.
pub fn run<D: Device>(
    kind: DeviceKind,
    serve_program: &[u8],
    build: impl FnOnce(&mut Parts) -> Result<D, Refusal>,
) -> i32 {
    process_setup::prepare();
    let control = process_setup::control_socket();
    match set_up(kind, serve_program, build, &control) {
        Ok(mut server) => match server.serve(&control) {
            End::Quit => status::QUIT,
            End::Orphaned => status::ORPHANED,
            End::Violation(reason) => refuse(&control, &reason),
        },
        Err(Refusal::Socket(SocketError::Closed)) => status::ORPHANED,
        Err(refusal) => refuse(&control, &refusal.to_string()),
    }
}

fn set_up<D: Device>(
    kind: DeviceKind,
    serve_program: &[u8],
    build: impl FnOnce(&mut Parts) -> Result<D, Refusal>,
    control: &Control,
) -> Result<ManuallyDrop<serve::Server<D>>, Refusal> {
    // Before the first thread, which inherits it, and before the first byte from outside.
    seal::deny_paths()?;
    let granted = grant::receive(control, kind)?;
    // Never dropped: unmapping takes system calls that serving does not have, and the process ends anyway.
    let server = ManuallyDrop::new(granted.build(control, build)?);
    seal::close_sandbox(serve_program)?;
    control.send_message(&FromWorker::Ready { version: Version::CURRENT, device: kind }, &[])?;
    Ok(server)
}

fn refuse(control: &Control, reason: &str) -> i32 {
    // If even this fails, the status still tells.
    let _ = control.send_message(&FromWorker::Refused { reason: cut(reason) }, &[]);
    status::REFUSED
}

/// `text`, cut to what one message may hold.
fn cut(text: &str) -> String {
    let end = (0..=text.len().min(MAX_TEXT)).rev().find(|&end| text.is_char_boundary(end));
    text.get(..end.unwrap_or(0)).unwrap_or_default().to_owned()
}

/// Ends the process at once; the kernel closes the rest.
fn end(status: i32) -> ! {
    process::exit(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_reasons_are_cut_between_characters() {
        let cut = cut(&"ü".repeat(MAX_TEXT));
        assert_eq!(cut.len(), MAX_TEXT);
        assert_eq!(super::cut("short"), "short");
    }
}
