//! A control socket that says what no supervisor says: the worker refuses with a reason and ends; it never hangs.
#![allow(clippy::unwrap_used, clippy::panic)] // Helpers beside the tests.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use cellblock_channel::socket::Control;
use cellblock_channel::{doorbell, memory};
use cellblock_ring::{layout, state_page::Shape};
use cellblock_sdk::testing::process::{Program, ended, receive, start_process};
use cellblock_sdk::worker::status;
use cellblock_wire::Version;
use cellblock_wire::control::{Fallback, FromWorker, Grant, ToWorker, encode};
use cellblock_wire::device::{DeviceConfig, Role};

fn program() -> Program {
    let start = include_bytes!(concat!(env!("OUT_DIR"), "/worker.start.bpf"));
    Program::find("rtc", env!("CARGO_BIN_EXE_rtc"), start)
}

/// Descriptors of a good grant for one lane without roles, each of which a test may exchange.
struct Parts {
    descriptors: Vec<OwnedFd>,
    _ringer: doorbell::Ringer,
}

fn parts() -> Parts {
    let requests = memory::create_requests("requests", memory::bytes(layout::request_words(1))).unwrap();
    let replies = memory::create_replies("replies", memory::bytes(layout::reply_words(1))).unwrap();
    let page = memory::create_state("state", memory::bytes(Shape::new(1, 512).words())).unwrap();
    let (ringer, bell) = doorbell::pair().unwrap();
    Parts { descriptors: vec![requests.fd, replies.fd, page.fd, bell.into()], _ringer: ringer }
}

fn grant() -> Grant {
    Grant {
        version: Version::CURRENT,
        generation: 1,
        lanes: 1,
        poll_max_us: 0,
        resting: false,
        roles: vec![],
        config: DeviceConfig::Rtc,
        fallback: Fallback::Refuse,
    }
}

fn send(control: &Control, grant: Grant, descriptors: &[OwnedFd]) {
    let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    control.send(&encode(&ToWorker::Grant(grant)).unwrap(), &borrowed).unwrap();
}

/// The worker says why and ends with the status for it.
fn refused(say: impl FnOnce(&Control)) -> String {
    let (control, mut child) = start_process(&program()).unwrap();
    say(&control);
    let reason = match receive(&control) {
        Ok(FromWorker::Refused { reason }) => reason,
        other => panic!("instead of a refusal: {other:?}"),
    };
    assert_eq!(ended(&mut child).unwrap().code(), Some(status::REFUSED), "{reason}");
    reason
}

fn refused_grant(grant: Grant, descriptors: &[OwnedFd]) -> String {
    refused(|control| send(control, grant, descriptors))
}

#[test]
fn garbage_is_refused() {
    assert!(refused(|control| control.send(&[0xff; 100], &[]).unwrap()).contains("does not decode"));
    assert!(refused(|control| control.send(&[0; 5000], &[]).unwrap()).contains("longer than 4096"));
    let first = encode(&ToWorker::ReportCounters).unwrap();
    assert!(refused(|control| control.send(&first, &[]).unwrap()).contains("not the grant"));
}

#[test]
fn another_version_or_device_is_refused() {
    let version = Version { major: 9, minor: 1 };
    let reason = refused_grant(Grant { version, ..grant() }, &parts().descriptors);
    assert_eq!(
        reason,
        format!("the grant's protocol version is 9.1, this worker speaks {}", Version::CURRENT)
    );
    let reason = refused_grant(Grant { config: DeviceConfig::I8042, ..grant() }, &parts().descriptors);
    assert_eq!(reason, "the grant is for the device i8042, this worker is rtc");
    assert!(refused_grant(Grant { lanes: 0, ..grant() }, &parts().descriptors).contains("grant.lanes"));
}

#[test]
fn descriptors_that_do_not_match_the_roles_are_refused() {
    let mut few = parts();
    few.descriptors.pop();
    assert_eq!(refused_grant(grant(), &few.descriptors), "the grant brings 3 descriptors, its roles need 4");
    assert!(refused_grant(grant(), &[]).contains("brings 0 descriptors"));
    let roles = vec![Role::Interrupt(0); 2];
    assert!(refused_grant(Grant { roles, ..grant() }, &parts().descriptors).contains("Interrupt(0) twice"));
    let mut more = parts();
    more.descriptors.push(parts().descriptors.remove(0));
    let unused = refused_grant(Grant { roles: vec![Role::HostInput], ..grant() }, &more.descriptors);
    assert_eq!(unused, "the grant has the role HostInput, which this device does not use");
}

#[test]
fn memory_that_is_not_as_agreed_is_refused() {
    for (wrong, name) in [(0, "requests"), (1, "replies"), (2, "state page")] {
        let mut parts = parts();
        parts.descriptors[wrong] = memory::create_replies("short", 8).unwrap().fd;
        let reason = refused_grant(grant(), &parts.descriptors);
        assert!(reason.starts_with(name) && reason.contains("8 bytes"), "{reason}");
        let (pipe, _keep) = rustix::pipe::pipe().unwrap();
        parts.descriptors[wrong] = pipe;
        assert!(refused_grant(grant(), &parts.descriptors).contains("seals"));
    }
}

#[test]
fn a_broken_rule_while_serving_ends_the_worker() {
    let breaks: [fn(&Control); 3] = [
        |control| control.send(&[9, 9, 9], &[]).unwrap(),
        |control| send(control, grant(), &[]),
        |control| control.send(&encode(&ToWorker::ReportCounters).unwrap(), &[control.as_fd()]).unwrap(),
    ];
    for break_rule in breaks {
        let parts = parts();
        refused(|control| {
            send(control, grant(), &parts.descriptors);
            assert!(matches!(receive(control), Ok(FromWorker::Ready)));
            break_rule(control);
        });
    }
}

#[test]
fn a_worker_without_a_supervisor_ends() {
    let (control, mut child) = start_process(&program()).unwrap();
    drop(control);
    assert_eq!(ended(&mut child).unwrap().code(), Some(status::ORPHANED));

    let (control, mut child) = start_process(&program()).unwrap();
    let parts = parts();
    send(&control, grant(), &parts.descriptors);
    assert!(matches!(receive(&control), Ok(FromWorker::Ready)));
    drop(control);
    assert_eq!(ended(&mut child).unwrap().code(), Some(status::ORPHANED));
}
