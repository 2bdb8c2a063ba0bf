//! A worker's life: hand-shake, sandbox, serving.
//!
//! The process starts with one descriptor, the control socket, as number 3, and reads neither arguments nor environment.
//! It gets all else with the grant ([`grant`]), closes its sandbox, says `Ready`, and serves ([`serve`]).

use std::mem::ManuallyDrop;
use std::process;

#[doc(hidden)]
pub use cellblock_channel::c_main;
use cellblock_channel::process::seal;
use cellblock_channel::socket::{Control, SocketError};
use cellblock_policy::with_refusal;
use cellblock_wire::Version;
use cellblock_wire::control::{FromWorker, MAX_TEXT};
use cellblock_wire::device::DeviceKind;

use crate::device::Device;
use crate::fail_point::{Step, reach};
use crate::virtio::Transport;
use crate::virtio::engine::Engine;

mod grant;
mod pace;
mod parts;
mod process_setup;
mod refusal;
mod serve;
mod timer;

use grant::{Granted, Service};
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
/// A worker for whatever device is granted has `None::<DeviceKind>` in the kind's place.
#[macro_export]
macro_rules! worker {
    ($kind:expr, $build:expr) => {
        $crate::worker::c_main!({
            let serve_program = include_bytes!(concat!(env!("OUT_DIR"), "/worker.serve.bpf"));
            $crate::worker::run($kind, serve_program, $build)
        });
    };
}

/// As [`worker!`] for a virtio device: the closure makes a [`Transport`]. The worker also serves another VMM's front end, if it is
/// granted one.
#[macro_export]
macro_rules! virtio_worker {
    ($kind:expr, $build:expr) => {
        $crate::worker::c_main!({
            let programs = $crate::worker::Programs {
                serve: include_bytes!(concat!(env!("OUT_DIR"), "/worker.serve.bpf")),
                vhost_user: include_bytes!(concat!(env!("OUT_DIR"), "/worker.vhost-user.bpf")),
            };
            $crate::worker::run_virtio($kind, &programs, $build)
        });
    };
}

/// The seccomp programs under which a virtio device's worker serves.
#[derive(Debug, Clone, Copy)]
pub struct Programs<'a> {
    /// A VM of this project.
    pub serve: &'a [u8],
    /// Another VMM's front end.
    pub vhost_user: &'a [u8],
}

/// A worker from its first instruction to its exit status (see [`status`]), for a device of `kind`, or of any. `build` makes the
/// device of what was granted; `serve_program` is the seccomp program under which it serves.
pub fn run<D: Device>(
    kind: impl Into<Option<DeviceKind>>,
    serve_program: &[u8],
    build: impl FnOnce(&mut Parts) -> Result<D, Refusal>,
) -> i32 {
    live(kind.into(), |granted, control| {
        // Never dropped: unmapping takes system calls that serving does not have, and the process ends anyway.
        let mut server = ManuallyDrop::new(granted.build(control, build)?);
        ready(serve_program, control)?;
        Ok(server.serve(control))
    })
}

/// As [`run`], for a virtio device, whose driver is a guest of this project or of another VMM: the grant says which.
pub fn run_virtio<E: Engine>(
    kind: DeviceKind,
    programs: &Programs<'_>,
    build: impl FnOnce(&mut Parts) -> Result<Transport<E>, Refusal>,
) -> i32 {
    live(Some(kind), |granted, control| {
        // Never dropped, as above.
        let mut service = ManuallyDrop::new(granted.build_virtio(control, build)?);
        match &mut *service {
            Service::Registers(server) => {
                ready(programs.serve, control)?;
                Ok(server.serve(control))
            }
            Service::FrontEnd(session) => {
                ready(programs.vhost_user, control)?;
                Ok(session.serve(control))
            }
        }
    })
}

fn live(kind: Option<DeviceKind>, serve: impl FnOnce(Granted, &Control) -> Result<End, Refusal>) -> i32 {
    let control = process_setup::prepare();
    let granted = granted(kind, control).and_then(|granted| granted.note_faults().map(|()| granted));
    match granted.and_then(|granted| serve(granted, control)) {
        Ok(End::Quit) => status::QUIT,
        Ok(End::Orphaned) | Err(Refusal::Socket(SocketError::Closed)) => status::ORPHANED,
        Ok(End::Violation(reason)) => refuse(control, &reason),
        Err(refusal) => refuse(control, &refusal.to_string()),
    }
}

fn granted(kind: Option<DeviceKind>, control: &Control) -> Result<Granted, Refusal> {
    // Before the first thread, which inherits it, and before the first byte from outside.
    seal::deny_paths()?;
    control.send_message(&FromWorker::Hello { version: Version::CURRENT, device: kind }, &[])?;
    grant::receive(control, kind)
}

/// Everything is there that serving takes: the sandbox closes.
fn ready(serve_program: &[u8], control: &Control) -> Result<(), Refusal> {
    // Paths are denied since before the greeting.
    seal::allow_serving(&with_refusal(serve_program, cellblock_policy::Refusal::Trap))?;
    reach(Step::Sealed);
    control.send_message(&FromWorker::Ready, &[])?;
    reach(Step::Ready);
    Ok(())
}

fn refuse(control: &Control, reason: &str) -> i32 {
    // If even this fails, the status still tells.
    let _ = control.send_message(&FromWorker::Refused { reason: cut(reason) }, &[]);
    status::REFUSED
}

/// `text`, cut to what one message may hold.
pub(crate) fn cut(text: &str) -> String {
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
