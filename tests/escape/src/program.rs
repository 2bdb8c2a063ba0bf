//! The hostile worker's life.
#![allow(unsafe_code)] // Reads what the compiler would take for constant.

use std::os::fd::{AsRawFd, OwnedFd};

use cellblock_channel::process::{entry, seal};
use cellblock_channel::socket::Control;
use cellblock_policy::{Refusal, with_refusal};
use cellblock_wire::Version;
use cellblock_wire::control::{Counters, FIXED_DESCRIPTORS, FromWorker, LogLevel, MAX_ROLES, ToWorker};
use cellblock_wire::device::Role;

use crate::attempt::{Own, survive_refusals};
use crate::bait::Bait;
use crate::report::{Report, lines};
use crate::{Held, all};

/// The serve program of every worker, by its name.
static PROGRAMS: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/programs.rs"));

/// Where a test writes which worker's program a copy of the binary shall have, if not that of the device that it is granted: the
/// tombstone is granted any.
pub const PLACE: [u8; 40] = *b"escape under the program of: the device.";

/// Read as if it could change, for in copies it does.
static WHOSE: [u8; 40] = PLACE;

/// [`PLACE`] in a copy that is to have the program of `name`.
pub fn place(name: &str) -> [u8; 40] {
    let mut place = PLACE;
    let end = b"the device.".len();
    if let Some(room) = place.len().checked_sub(end).and_then(|start| place.get_mut(start..)) {
        room.fill(b' ');
        room.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
    }
    place
}

fn named() -> String {
    // SAFETY: an ordinary read of a static, which the compiler is kept from knowing.
    let whose = unsafe { std::ptr::read_volatile(&raw const WHOSE) };
    let end = whose.len() - b"the device.".len();
    String::from_utf8_lossy(whose.get(end..).unwrap_or_default()).trim_end().to_owned()
}

/// From the first instruction to the end: 1 if there was no grant or no sandbox, 2 once nobody listens.
pub fn run() -> i32 {
    let control = entry::control_socket();
    survive_refusals();
    if control.send_message(&FromWorker::Hello { version: Version::CURRENT, device: None }, &[]).is_err() {
        return 1;
    }
    let Ok((ToWorker::Grant(grant), descriptors)) = control.recv_message(FIXED_DESCRIPTORS + MAX_ROLES)
    else {
        return 1;
    };
    let name = match named() {
        name if name == "the device." => grant.config.kind().name().to_owned(),
        name => name,
    };
    let program = PROGRAMS.iter().find(|(known, _)| *known == name).map(|(_, program)| *program);
    let closed = program.map(|program| seal::close_sandbox(&with_refusal(program, Refusal::Trap)));
    if !matches!(closed, Some(Ok(_))) {
        let reason = format!("the sandbox of {name} does not close: {closed:?}");
        let _ = control.send_message(&FromWorker::Refused { reason }, &[]);
        return 1;
    }
    if control.send_message(&FromWorker::Ready, &[]).is_err() {
        return 2;
    }
    let own = own(control, &grant.roles, &descriptors);
    let mut reports = Vec::new();
    for case in all() {
        reports.push((case.name, report((case.attempt)(&own))));
        // It behaves as if it served, however long all of it takes.
        while let Ok((asked, _)) = control.try_recv_message::<ToWorker>(0) {
            answer(control, &asked);
        }
    }
    for text in lines(&reports) {
        if control.send_message(&FromWorker::Log { level: LogLevel::Info, text }, &[]).is_err() {
            return 2;
        }
    }
    while let Ok((asked, _)) = control.recv_message::<ToWorker>(0) {
        answer(control, &asked);
    }
    2
}

/// A sign of life: one that gives none is replaced.
fn answer(control: &Control, asked: &ToWorker) {
    if *asked == ToWorker::ReportCounters {
        let _ = control.send_message(&FromWorker::Counters(Counters::default()), &[]);
    }
}

fn report(attempt: crate::Attempt) -> Report {
    match attempt {
        Ok(_) => Report::Through,
        Err(Held::Seccomp) => Report::Seccomp,
        Err(Held::Errno(errno)) => Report::Errno(errno),
    }
}

fn own(control: &Control, roles: &[Role], descriptors: &[OwnedFd]) -> Own {
    use std::os::fd::AsFd;
    let granted: Vec<i32> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let of = |wanted: fn(&Role) -> bool| {
        let rest = granted.iter().skip(FIXED_DESCRIPTORS);
        roles.iter().zip(rest).filter(move |(role, _)| wanted(role)).map(|(_, fd)| *fd).collect::<Vec<_>>()
    };
    let memfds = |role: &Role| {
        matches!(role, Role::GuestMemory { .. } | Role::Registers | Role::InFlight | Role::HostBytes)
    };
    let mut memories: Vec<i32> = granted.iter().take(FIXED_DESCRIPTORS - 1).copied().collect();
    memories.extend(of(memfds));
    Own {
        control: control.as_fd().as_raw_fd(),
        requests: granted.first().copied().unwrap_or(-1),
        memories,
        image: of(|role| matches!(role, Role::Image)).first().copied(),
        granted,
        bait: Bait::laid(),
    }
}
