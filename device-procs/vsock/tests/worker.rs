//! The socket device in a real worker process: behind the ring, with its own thread, under its serve program.
#![allow(clippy::unwrap_used, clippy::panic, unreachable_pub)] // Helpers beside the tests.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use cellblock_sdk::testing::conformance::conforms;
use cellblock_sdk::testing::process::{Program, Supervised, Wanted};
use cellblock_sdk::testing::virtio::{DATA, Driver, Segment, shared_ram};
use cellblock_vsock::spec::{HEADER_BYTES, TRANSPORT_RESET, op, shutdown};
use cellblock_wire::control::ToWorker;
use cellblock_wire::device::{DeviceConfig, Role};
use cellblock_wire::vsock::Stream;
use rustix::event::{EventfdFlags, eventfd};
use rustix::process::{Pid, Resource, Rlimit, prlimit};

mod probes;
use probes::*;

type InWorker = Guest<Supervised>;

fn program() -> Program {
    let start = include_bytes!(concat!(env!("OUT_DIR"), "/worker.start.bpf"));
    Program::find("vsock", env!("CARGO_BIN_EXE_vsock"), start)
}

fn wanted() -> Wanted {
    let config = DeviceConfig::Vsock(CONFIG);
    Wanted { config, lanes: 1, poll_max_us: 0, pipes: false, nonblocking: false }
}

/// A worker, and the eventfd of its transmit queue's kicks.
fn start_kicked() -> (InWorker, OwnedFd) {
    let (front, socket) = broker();
    let (ram, memory, fd) = shared_ram();
    let kicks: Vec<_> = (0..3).map(|_| eventfd(0, EventfdFlags::CLOEXEC).unwrap()).collect();
    let mut extras = vec![(memory, fd), (Role::Broker, socket)];
    extras.extend((0..).zip(&kicks).map(|(n, kick)| (Role::QueueKick(n), kick.try_clone().unwrap())));
    let worker = Supervised::start_with(&program(), &wanted(), extras).unwrap();
    (Guest::new(Driver::new(worker, ram), front), kicks.into_iter().nth(1).unwrap())
}

fn start() -> InWorker {
    start_kicked().0
}

fn ready() -> InWorker {
    let mut guest = start();
    guest.begin(ALL);
    guest
}

#[test]
fn it_conforms() {
    conforms(&mut start().driver, &CONFORMING);
}

#[test]
fn it_is_found() {
    is_found(&mut start());
}

#[test]
fn hosts_and_guests_connect() {
    hosts_connect(&mut ready());
    guests_connect(&mut ready());
}

#[test]
fn what_makes_no_sense_is_refused() {
    let mut guest = ready();
    refusals(&mut guest);
    strays(&mut guest);
    broken_rules(&mut guest);
}

#[test]
fn both_sides_keep_to_their_credit() {
    let mut guest = ready();
    guests_credit(&mut guest);
    hosts_credit(&mut guest);
}

#[test]
fn directions_end_alone() {
    halves(&mut ready());
    last_bytes(&mut ready());
}

#[test]
fn connections_have_bounds_and_turns() {
    let mut guest = ready();
    fairness(&mut guest);
    bounds(&mut guest);
}

#[test]
fn answers_wait_for_buffers() {
    no_buffers(&mut start());
}

#[test]
fn streams_are_negotiated() {
    implied_streams(&mut start());
}

#[test]
fn a_reset_closes_all() {
    resets(&mut start());
}

/// The host's bytes alone wake the worker, and no register is touched.
#[test]
fn neither_kicks_nor_bytes_need_a_register() {
    let (mut guest, kick) = start_kicked();
    guest.begin(ALL);
    let (mut client, ports) = guest.accept(52);
    guest.quiet();
    let served = guest.driver.host.counters().unwrap().served;
    for round in 0..20u8 {
        client.write_all(&[round; 100]).unwrap();
        while guest.driver.used(0).is_none() {
            std::thread::yield_now();
        }
        let header = guest.header(ports, op::CREDIT_UPDATE).encode();
        guest.driver.poke(DATA + 0x30_0000, &header);
        guest.driver.push(1, &[Segment::read(DATA + 0x30_0000, HEADER_BYTES as u32)]);
        rustix::io::write(&kick, &1u64.to_ne_bytes()).unwrap();
        while guest.driver.used(1).is_none() {
            std::thread::yield_now();
        }
    }
    assert_eq!(guest.driver.host.counters().unwrap().served, served);
    assert!(guest.driver.host.pulses() > 0);
}

/// A successor cannot keep streams: the guest is told, host programs find theirs closed, and all begins anew.
#[test]
fn a_successor_resets_all_streams() {
    let mut guest = ready();
    let head = guest.driver.push(2, &[Segment::write(EVENT_PLACE, 8)]);
    for round in 0..3 {
        let (mut client, old) = guest.accept(52);
        let mut server = guest.connect((4000, 5000));
        client.write_all(b"on its way").unwrap();
        guest.write(old, b"as well");
        while guest.poll().is_some() {}
        guest.send((4000, 5001), op::REQUEST);
        let late = guest.wanted();
        guest.driver.poke(EVENT_PLACE, &[0xff; 8]);
        guest.driver.host.pulses();
        guest.driver.host.replace().unwrap();
        assert_eq!(guest.driver.wait_used(2), ((head + round).into(), 4));
        assert_eq!(guest.driver.peek(EVENT_PLACE, 8), [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(TRANSPORT_RESET, 0);
        assert!(guest.driver.host.pulses() > 0);
        assert_eq!(guest.rest(&mut server), b"");
        let said = guest.rest(&mut client);
        assert!(said.is_empty() || said == b"as well");
        while guest.poll().is_some() {}
        // Until the guest has heard it is not told otherwise: a RST would look like an end to its program.
        guest.write(old, b"?");
        guest.quiet();
        guest.driver.push(2, &[Segment::write(EVENT_PLACE, 8)]);
        // It has given its buffer back.
        guest.write(old, b"?");
        let (mut reset, mut bytes) = guest.recv();
        while reset.op != op::RST {
            // What the predecessor had read of the stream.
            (reset, bytes) = guest.recv();
        }
        assert_eq!((reset.src_port, bytes.len()), (old.0, 0));
        // An answer to the predecessor's question.
        let mut late = guest.serve(late.id);
        assert_eq!(guest.rest(&mut late), b"");
        hosts_connect(&mut guest);
        guests_connect(&mut guest);
        assert_eq!(guest.driver.used(2), None, "told once");
    }
}

/// One that had no buffer for its event tells as soon as it has one, however small those before.
#[test]
fn an_event_waits_for_its_buffer() {
    let mut guest = ready();
    guest.driver.host.replace().unwrap();
    hosts_connect(&mut guest);
    for (room, written) in [(3, 0), (4, 4)] {
        let head = guest.driver.push(2, &[Segment::write(EVENT_PLACE, room)]);
        guest.driver.kick(2);
        assert_eq!(guest.driver.wait_used(2), (head.into(), written));
    }
    guest.driver.push(2, &[Segment::write(EVENT_PLACE, 4)]);
    guest.driver.kick(2);
    guest.quiet();
    assert_eq!(guest.driver.used(2), None, "told once");
    // A reset makes it forget, and a new driver has nothing to be told.
    guest.driver.host.replace().unwrap();
    guest.begin(ALL);
    guest.driver.push(2, &[Segment::write(EVENT_PLACE, 4)]);
    guest.driver.kick(2);
    guest.quiet();
    assert_eq!(guest.driver.used(2), None);
}

/// A worker at its limit of descriptors refuses, and goes on once it has some.
#[test]
fn a_limit_of_descriptors_is_a_no() {
    let mut guest = ready();
    let (mut client, ports) = guest.accept(52);
    let pid = Pid::from_raw(guest.driver.host.pid() as i32).unwrap();
    let is_open = |number: &u64| {
        std::fs::symlink_metadata(format!("/proc/{}/fd/{number}", guest.driver.host.pid())).is_ok()
    };
    let lowest_free = (0..).find(|number| !is_open(number)).unwrap();
    let limit = |current| {
        prlimit(Some(pid), Resource::Nofile, Rlimit { current: Some(current), maximum: Some(4096) }).unwrap();
    };
    limit(lowest_free);
    let mut refused = guest.client();
    assert_eq!(guest.rest(&mut refused), b"");
    guest.send((4000, 5000), op::REQUEST);
    let wanted = guest.wanted();
    let mut refused = guest.serve(wanted.id);
    guest.expect((4000, 5000), op::RST);
    assert_eq!(guest.rest(&mut refused), b"");
    // Far more than fits: all are closed.
    let (near, far) = stream();
    guest.front.send(&Stream::Accepted.encode(), &[far.as_fd(); 30]).unwrap();
    drop(far);
    let mut near = near;
    assert_eq!(guest.rest(&mut near), b"");
    client.write_all(b"still here").unwrap();
    assert_eq!(guest.read(ports, 10), b"still here");
    limit(4096);
    hosts_connect(&mut guest);
    guest.drop_connection(client, ports);
}

#[test]
fn a_quit_ends_it_in_order() {
    let mut guest = ready();
    let (mut client, ports) = guest.accept(52);
    guest.shut(ports, shutdown::SEND);
    guest.driver.host.control.send_message(&ToWorker::Quit, &[]).unwrap();
    assert_eq!(guest.driver.host.ended().unwrap().code(), Some(0));
    let mut all = Vec::new();
    let _ = std::io::Read::read_to_end(&mut client, &mut all);
    assert!(all.is_empty());
}

#[test]
fn a_grant_without_the_front_is_refused() {
    let (_, memory, fd) = shared_ram();
    let kick = || eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let mut extras: Vec<_> = (0..3).map(|n| (Role::QueueKick(n), kick())).collect();
    extras.push((memory, fd));
    let error = Supervised::start_with(&program(), &wanted(), extras).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("lacks the socket to the front"), "{error}");
}
