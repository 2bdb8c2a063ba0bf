//! The console in a real worker process, under its serve program.
#![allow(clippy::unwrap_used, clippy::panic)] // Helpers beside the tests.

mod probes;

use std::os::fd::OwnedFd;

use cellblock_console::spec::{event, queue};
use cellblock_sdk::testing::conformance::conforms;
use cellblock_sdk::testing::process::{Program, Supervised, Wanted};
use cellblock_sdk::testing::virtio::{Driver, shared_ram};
use cellblock_wire::control::ToWorker;
use cellblock_wire::device::{ConsoleConfig, DeviceConfig, Role};
use probes::{Far, NO_PORT, ROOM, Rig, content, pair, three_ports};
use rustix::event::{EventfdFlags, eventfd};
use rustix::pipe::{PipeFlags, pipe_with};

fn start(config: &ConsoleConfig, mut more: Vec<(Role, OwnedFd)>) -> std::io::Result<Driver<Supervised>> {
    let program = Program::find(
        "console",
        env!("CARGO_BIN_EXE_console"),
        include_bytes!(concat!(env!("OUT_DIR"), "/worker.start.bpf")),
    );
    let device = DeviceConfig::Console(config.clone());
    let wanted = Wanted { config: device, lanes: 1, poll_max_us: 0, pipes: false, nonblocking: false };
    let (ram, memory, fd) = shared_ram();
    more.push((memory, fd));
    for queue in 0..config.queues() {
        more.push((Role::QueueKick(queue), eventfd(0, EventfdFlags::CLOEXEC).unwrap()));
    }
    Ok(Driver::new(Supervised::start_with(&program, &wanted, more)?, ram))
}

/// A console with pipes for its first two ports.
fn rig(config: &ConsoleConfig) -> Rig<Supervised> {
    let (mut roles, mut far) = (vec![], vec![]);
    for port in 0..config.ports.len() as u8 {
        if port >= 2 {
            far.push(Far::default());
            continue;
        }
        let (input, host_input) = probes::socket();
        let (host_output, output) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).unwrap();
        roles.extend([(Role::PortInput(port), input), (Role::PortOutput(port), output)]);
        far.push(Far { input: Some(host_input), output: Some(host_output) });
    }
    let resize = |host: &mut Supervised, port, columns, rows| {
        host.control.send_message(&ToWorker::Resize { port, columns, rows }, &[]).unwrap();
    };
    Rig::new(start(config, roles).unwrap(), far, |_| (), resize)
}

#[test]
fn it_conforms() {
    conforms(&mut rig(&three_ports()).driver, &probes::conforming());
}

macro_rules! probes {
    ($config:ident: $($file:ident::$name:ident),* $(,)?) => {$(
        #[test]
        fn $name() {
            probes::$file::$name(rig(&probes::$config()));
        }
    )*};
}

probes!(three_ports:
    messages::is_found,
    messages::ports_are_introduced,
    messages::a_driver_that_fails_is_left_alone,
    messages::messages_that_make_no_sense_change_nothing,
    messages::buffers_that_hold_no_message_come_back_empty,
    messages::what_is_to_be_said_waits_for_buffers,
    messages::a_new_size_is_told,
    messages::without_multiport_there_is_a_console,
    bytes::bytes_leave_in_order,
    bytes::a_full_sink_holds_its_port_and_no_other,
    bytes::input_waits_for_buffers_and_an_open_port,
    bytes::much_goes_both_ways_at_once,
    bytes::an_end_of_input_is_silent_and_a_gone_sink_takes_all,
    bytes::a_reset_forgets_what_is_held,
    bytes::a_loop_needs_a_reset,
);
probes!(one_port: messages::a_lone_console_has_two_queues);

#[test]
fn a_successor_sends_what_was_held_from_its_beginning() {
    let mut rig = rig(&three_ports());
    rig.begin(u64::MAX, 8);
    rig.introduce(&three_ports());
    let bytes = content(100_000);
    let head = rig.give(pair(1).1, &bytes);
    rig.none_back(pair(1).1);
    rig.driver.host.replace().unwrap();
    let mut before = vec![0; 1 << 20];
    let went = rustix::io::read(rig.far[1].output.as_ref().unwrap(), &mut before).unwrap();
    assert!(went < bytes.len() && before[..went] == bytes[..went]);
    assert_eq!(rig.collect(1, bytes.len()), bytes);
    assert_eq!(rig.back(pair(1).1), (head, 0));
    rig.nothing(1);
}

#[test]
fn input_that_the_guest_does_not_have_yet_outlives_the_worker() {
    let mut rig = rig(&three_ports());
    rig.begin(u64::MAX, 8);
    rig.introduce(&three_ports());
    let (receive, _) = pair(1);
    rig.offer(receive, 4);
    rig.feed(1, b"0123456789");
    assert_eq!(rig.filled(receive), b"0123");
    // Its thread has taken from the socket what it gave, when it answers of another queue.
    rig.give(1, b"x");
    rig.back(1);
    rig.driver.host.replace().unwrap();
    rig.offer(receive, 3);
    assert_eq!(rig.filled(receive), b"456");
    // A buffer that is held, and bytes that come while there is nobody.
    rig.offer(receive, 3);
    assert_eq!(rig.filled(receive), b"789");
    rig.offer(receive, 64);
    rig.settle();
    rig.driver.host.replace().unwrap();
    rig.feed(1, b"late");
    assert_eq!(rig.filled(receive), b"late");
}

#[test]
fn a_successor_knows_which_ports_are_open() {
    let config = three_ports();
    let mut rig = rig(&config);
    rig.begin(u64::MAX, 8);
    rig.introduce(&config);
    rig.say(0, event::PORT_OPEN, 0);
    rig.offer(0, ROOM);
    rig.offer(pair(1).0, ROOM);
    rig.settle();
    rig.driver.host.replace().unwrap();
    rig.feed(0, b"closed");
    rig.feed(1, b"open");
    assert_eq!(rig.filled(pair(1).0), b"open");
    rig.none_back(0);
    // It says again what may not have been heard, but for what must not be said twice.
    (0..3).for_each(|port| rig.expect_introduction(&config, port));
    rig.none_back(queue::CONTROL_RECEIVE);
    rig.say(0, event::PORT_OPEN, 1);
    assert_eq!(rig.filled(0), b"closed");
}

#[test]
fn a_successor_adds_the_ports_that_were_not_added() {
    let config = three_ports();
    let mut rig = rig(&config);
    rig.driver.begin(u64::MAX, 8, probes::SIZE);
    rig.offer(queue::CONTROL_RECEIVE, ROOM);
    rig.say(NO_PORT, event::DEVICE_READY, 1);
    let bytes = rig.filled(queue::CONTROL_RECEIVE);
    assert_eq!(bytes, [0, 0, 0, 0, event::DEVICE_ADD as u8, 0, 1, 0]);
    rig.settle();
    rig.driver.host.replace().unwrap();
    (0..8).for_each(|_| rig.offer(queue::CONTROL_RECEIVE, ROOM));
    rig.expect(1, event::DEVICE_ADD, 1, &[]);
    rig.expect(2, event::DEVICE_ADD, 1, &[]);
    rig.none_back(queue::CONTROL_RECEIVE);
}

#[test]
fn a_worker_wants_the_right_ends_which_do_not_block() {
    for (flags, swapped, reason) in [
        (PipeFlags::CLOEXEC, false, "cannot be used without blocking"),
        (PipeFlags::NONBLOCK, true, "cannot be read"),
    ] {
        let (read, write) = pipe_with(flags).unwrap();
        let end = if swapped { write } else { read };
        let refusal = start(&three_ports(), vec![(Role::PortInput(0), end)]).err().unwrap();
        assert!(refusal.to_string().contains(reason), "{refusal}");
    }
    let (_read, write) = pipe_with(PipeFlags::NONBLOCK).unwrap();
    let refusal = start(&three_ports(), vec![(Role::PortOutput(3), write)]).err().unwrap();
    assert!(refusal.to_string().contains("does not use"), "{refusal}");
}

#[test]
fn what_it_did_is_counted() {
    let mut rig = rig(&three_ports());
    rig.begin(u64::MAX, 8);
    rig.introduce(&three_ports());
    let before = rig.driver.host.counters().unwrap();
    rig.give(1, &content(1000));
    rig.back(1);
    rig.offer(0, ROOM);
    rig.feed(0, b"three");
    rig.filled(0);
    let after = rig.driver.host.counters().unwrap();
    assert_eq!(after.requests - before.requests, 2);
    assert_eq!((after.host_out - before.host_out, after.host_in - before.host_in), (1000, 5));
    assert!(after.interrupts > before.interrupts && after.dropped == 0);
}
