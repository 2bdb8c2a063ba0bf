//! The socket device in this process, on a clock that stands until it is moved.
#![allow(clippy::unwrap_used, clippy::panic, unreachable_pub)] // Tests; clippy knows only #[test] functions as such.

use std::io::Write;

use cellblock_sdk::device::SECOND;
use cellblock_sdk::testing::conformance::conforms;
use cellblock_sdk::testing::virtio::Segment;
use cellblock_vsock::connection::{CLOSING_TIME, DRAINING_TIME, GREETING_TIME, OPENING_TIME, REQUEST_TIME};
use cellblock_vsock::spec::{MAX_CONNECTIONS, op, shutdown};

mod probes;
use probes::*;

#[test]
fn it_conforms() {
    conforms(&mut in_process().0.driver, &CONFORMING);
}

#[test]
fn it_is_found() {
    is_found(&mut in_process().0);
}

#[test]
fn hosts_and_guests_connect() {
    hosts_connect(&mut ready_in_process());
    guests_connect(&mut ready_in_process());
}

#[test]
fn what_is_not_accepted_is_closed() {
    refusals(&mut ready_in_process());
}

#[test]
fn strays_are_answered() {
    strays(&mut ready_in_process());
}

#[test]
fn broken_rules_break_one_connection() {
    broken_rules(&mut ready_in_process());
}

#[test]
fn guests_keep_to_their_credit() {
    guests_credit(&mut ready_in_process());
}

#[test]
fn hosts_keep_to_the_guests_credit() {
    hosts_credit(&mut ready_in_process());
}

#[test]
fn directions_end_alone() {
    halves(&mut ready_in_process());
}

#[test]
fn last_bytes_arrive() {
    last_bytes(&mut ready_in_process());
}

#[test]
fn connections_are_bounded() {
    bounds(&mut ready_in_process());
}

#[test]
fn connections_have_their_turns() {
    fairness(&mut ready_in_process());
}

#[test]
fn answers_wait_for_buffers() {
    no_buffers(&mut in_process().0);
}

#[test]
fn streams_are_negotiated() {
    implied_streams(&mut in_process().0);
}

#[test]
fn a_reset_closes_all() {
    resets(&mut in_process().0);
}

/// A host program may be there before the guest's driver is.
#[test]
fn early_programs_wait_for_a_driver() {
    let (mut guest, clock) = in_process();
    let mut client = guest.client();
    writeln!(client, "CONNECT 5").unwrap();
    clock.advance(1000 * SECOND);
    guest.begin(ALL);
    let (request, _) = guest.recv();
    assert_eq!((request.op, request.dst_port), (op::REQUEST, 5));
}

/// What the guest has sent by a stream of the device before is no stray, although it may be looked at before the guest can be told
/// of the end of its streams: for a RST its program would take for an orderly end.
#[test]
fn a_guest_is_told_of_its_streams_end_before_it_is_answered() {
    let (mut guest, clock) = in_process();
    guest.begin(ALL);
    guest.driver.push(2, &[Segment::write(EVENT_PLACE, 8)]);
    let _server = guest.connect((6, 7));
    for op in [op::RW, op::SHUTDOWN] {
        guest.post((6, 7), op);
    }
    succeed(&mut guest, &clock);
    assert_eq!(guest.driver.used(2).map(|(_, written)| written), Some(4));
    guest.driver.wait_used(1);
    guest.driver.wait_used(1);
    guest.quiet();
    // It has given the event's buffer back.
    guest.driver.push(2, &[Segment::write(EVENT_PLACE, 8)]);
    guest.send((6, 7), op::CREDIT_UPDATE);
    guest.expect((6, 7), op::RST);
}

/// Each wait has an end, at its time and not before.
#[test]
fn nothing_pends_for_ever() {
    let (mut guest, clock) = in_process();
    guest.begin(ALL);
    let step = |guest: &mut InProcess, time: u64| {
        clock.advance(time - 1);
        guest.quiet();
        clock.advance(1);
    };
    let mut silent = guest.client();
    guest.quiet();
    step(&mut guest, GREETING_TIME);
    assert!(guest.poll().is_none(), "the guest never heard of it");
    assert_eq!(guest.rest(&mut silent), b"");
    let mut unanswered = guest.client();
    writeln!(unanswered, "CONNECT 5").unwrap();
    let (request, _) = guest.recv();
    step(&mut guest, REQUEST_TIME);
    guest.expect((request.src_port, 5), op::RST);
    assert_eq!(guest.rest(&mut unanswered), b"");
    guest.send((6, 7), op::REQUEST);
    let wanted = guest.wanted();
    step(&mut guest, OPENING_TIME);
    guest.expect((6, 7), op::RST);
    let mut late = guest.serve(wanted.id);
    assert_eq!(guest.rest(&mut late), b"", "too late");
    // The guest does not confirm.
    let server = guest.connect((6, 7));
    drop(server);
    guest.expect((6, 7), op::SHUTDOWN);
    step(&mut guest, CLOSING_TIME);
    guest.expect((6, 7), op::RST);
    // A half that is open stays so.
    let (server, mut client) = (guest.connect((6, 7)), guest.accept(8));
    server.shutdown(std::net::Shutdown::Write).unwrap();
    guest.expect((6, 7), op::SHUTDOWN);
    guest.shut(client.1, shutdown::SEND);
    clock.advance(100 * 3600 * SECOND);
    guest.quiet();
    guest.drop_connection(server, (6, 7));
    client.0.write_all(b"after days").unwrap();
    assert_eq!(guest.read(client.1, 10), b"after days");
    guest.drop_connection(client.0, client.1);
}

/// A closed guest's bytes wait for a program that goes on reading, and not for one that rests.
#[test]
fn draining_ends_when_nobody_reads() {
    let (mut guest, clock) = in_process();
    guest.begin(ALL);
    for reads in [true, false] {
        let mut server = guest.connect((6, 7));
        let bytes = pattern(1, 4 << 20);
        let sent = fill(&mut guest, (6, 7), &bytes);
        close(&mut guest, (6, 7));
        let mut got = Vec::new();
        for _ in 0..4 {
            clock.advance(DRAINING_TIME - 1);
            if reads {
                got.extend(guest.take(&mut server, 100_000.min(sent - got.len())));
            }
            guest.quiet();
        }
        got.extend(guest.rest(&mut server));
        assert_eq!(got.len() == sent, reads, "{} of {sent}", got.len());
        assert!(got == bytes[..got.len()]);
    }
}

/// A place is free again in whatever way a connection ended.
#[test]
fn no_place_is_lost() {
    let (mut guest, clock) = in_process();
    guest.begin(ALL);
    for round in 0..3 * MAX_CONNECTIONS as u32 {
        let ports = (4000, round);
        match round % 6 {
            0 => drop(guest.client()),
            1 => {
                let server = guest.connect(ports);
                guest.drop_connection(server, ports);
            }
            2 => {
                let _server = guest.connect(ports);
                close(&mut guest, ports);
            }
            3 => {
                drop(guest.connect(ports));
                guest.expect(ports, op::SHUTDOWN);
                guest.send(ports, op::RST);
            }
            4 => {
                let _server = guest.connect(ports);
                guest.send(ports, 0);
                guest.expect(ports, op::RST);
            }
            _ => {
                guest.send(ports, op::REQUEST);
                guest.wanted();
                guest.send(ports, op::RST);
            }
        }
        clock.advance(1);
    }
    bounds(&mut guest);
}

/// Without the front the host's side is closed, and the guest is told so at once.
#[test]
fn without_the_front_nothing_is_opened() {
    let mut guest = ready_in_process();
    let (mut client, ports) = guest.accept(5);
    guest.front = broker().0;
    guest.quiet();
    guest.send((6, 7), op::REQUEST);
    guest.expect((6, 7), op::RST);
    client.write_all(b"still").unwrap();
    assert_eq!(guest.read(ports, 5), b"still");
}
