//! The console in the test's process.
#![allow(clippy::unwrap_used, clippy::panic)] // Tests; clippy knows only #[test] functions as such.

mod probes;

use std::sync::Arc;

use cellblock_console::control::Message;
use cellblock_console::port::{End, Pipes};
use cellblock_console::spec::{event, queue};
use cellblock_console::state::Standing;
use cellblock_console::{Console, Screen, handler, identity};
use cellblock_sdk::device::Event;
use cellblock_sdk::host::Tally;
use cellblock_sdk::testing::Harness;
use cellblock_sdk::testing::conformance::conforms;
use cellblock_sdk::testing::virtio::{Driver, Edges, shared_ram};
use cellblock_sdk::virtio::{Inline, Interrupt, Kept, Transport};
use cellblock_wire::device::ConsoleConfig;
use probes::{Far, NO_PORT, Rig, three_ports};
use proptest::prelude::*;
use rustix::pipe::{PipeFlags, pipe_with};

type Inside = Harness<Transport<Inline<Console>>>;

/// A console with pipes for its first two ports.
fn rig(config: &ConsoleConfig) -> (Rig<Inside>, Arc<Tally>) {
    let (interrupt, ram, tally) = (Interrupt::new(Edges::default()), shared_ram().0, Arc::<Tally>::default());
    let (mut pipes, mut far) = (vec![], vec![]);
    for port in 0..config.ports.len() as u32 {
        if port >= 2 {
            pipes.push(Pipes::default());
            far.push(Far::default());
            continue;
        }
        let (input, host_input) = probes::socket();
        let (host_output, output) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        let end = |fd, bit| Some(End { fd: Arc::new(fd), bit });
        pipes.push(Pipes { input: end(input, 1 << (2 * port)), output: end(output, 2 << (2 * port)) });
        far.push(Far { input: Some(host_input), output: Some(host_output) });
    }
    let (identity, screen) = (identity(config), Screen::new(config));
    let kept = Kept::new(Standing::legal(config.ports.len()));
    let work = Console::new(config, pipes, screen.clone(), kept.clone(), &tally);
    let queues = (0..config.queues()).collect();
    let engine = Inline::new(vec![(work, queues)], interrupt.clone());
    let on_event = handler(&identity, screen, interrupt.clone(), engine.kicker(0));
    let device = Transport::new(identity, engine, ram.clone(), interrupt).on_event(on_event).keeping(kept);
    let turn = |host: &mut Inside| host.device.engine().poll();
    let resize = |host: &mut Inside, port, columns, rows| host.event(Event::Resize { port, columns, rows });
    (Rig::new(Driver::new(Harness::new(device), ram), far, turn, resize), tally)
}

#[test]
fn it_conforms() {
    conforms(&mut rig(&three_ports()).0.driver, &probes::conforming());
}

macro_rules! probes {
    ($config:ident: $($file:ident::$name:ident),* $(,)?) => {$(
        #[test]
        fn $name() {
            probes::$file::$name(rig(&probes::$config()).0);
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

/// What post 0 waits for, as (sources to be read, sources to be written).
fn waits(rig: &mut Rig<Inside>) -> (u32, u32) {
    let wait = rig.driver.host.device.engine().wait(0);
    assert!(!wait.again && wait.until.is_none());
    (wait.readable, wait.writable)
}

#[test]
fn it_waits_for_what_it_can_use() {
    let (mut rig, tally) = rig(&three_ports());
    rig.begin(u64::MAX, 8);
    rig.introduce(&three_ports());
    assert_eq!(waits(&mut rig), (0, 0), "there is no buffer for input");
    rig.offer(0, 16);
    assert_eq!(waits(&mut rig), (0b0001, 0));
    rig.give(probes::pair(1).1, &probes::content(100_000));
    assert_eq!(waits(&mut rig), (0b0001, 0b1000));
    let traffic = rig.driver.host.device.engine().traffic(0);
    let (requests, given) = (traffic.requests.get(), traffic.from_guest.get());
    rig.collect(1, 100_000);
    assert_eq!((traffic.requests.get(), traffic.from_guest.get()), (requests + 1, given + 100_000));
    assert_eq!(waits(&mut rig), (0b0001, 0));
    rig.say(0, event::PORT_OPEN, 0);
    assert_eq!(waits(&mut rig), (0, 0), "a closed port takes nothing");
    rig.say(0, event::PORT_OPEN, 1);
    rig.far[0].input = None;
    rig.settle();
    assert_eq!(waits(&mut rig), (0, 0), "the input has ended");
    assert_eq!(tally.dropped.get(), 0);
    rig.far[0].output = None;
    rig.give(1, b"gone");
    assert_eq!(tally.dropped.get(), 4);
}

#[test]
fn a_successor_goes_on_where_they_stood() {
    let config = three_ports();
    let (mut first, _) = rig(&config);
    first.begin(u64::MAX, 8);
    first.introduce(&config);
    first.say(1, event::PORT_OPEN, 0);
    let saved = first.driver.host.saved();
    let (second, _) = rig(&config);
    let Rig { driver: Driver { host, .. }, .. } = second;
    // Not the same guest memory, in which the rings are as after a reset: all the same the state is taken.
    let mut successor = host.device;
    use cellblock_sdk::device::Device as _;
    successor.restore(&saved).unwrap();
    assert_eq!(Harness::new(successor).saved(), saved);
    // A bit that no console of three ports has.
    let at = saved.len() - 8 * 28 - 1 - 8;
    let mut altered = saved.clone();
    altered[at + 4] |= 1;
    let (third, _) = rig(&config);
    let error = third.driver.host.device;
    let mut device = error;
    assert!(device.restore(&altered).unwrap_err().to_string().contains("kept"));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    /// Whatever a driver says, and into whatever it has the device speak: each port is added once at most, nothing is told of
    /// a port before it is ready, and the device runs on.
    #[test]
    fn no_message_breaks_the_rules(
        words in proptest::collection::vec((0u32..5, 0u16..9, 0u16..3, 0usize..12, 0u32..64), 1..60),
    ) {
        let (mut rig, _) = rig(&three_ports());
        rig.driver.begin(u64::MAX, 8, probes::SIZE);
        let (mut added, mut ready, mut heard, mut offered) = ([0; 3], [false; 3], Vec::new(), 0);
        for (port, event, value, length, room) in words {
            if offered < probes::SIZE {
                rig.offer(queue::CONTROL_RECEIVE, room);
                offered += 1;
            }
            let port = if port == 4 { NO_PORT } else { port };
            let message = Message { port, event, value };
            let mut bytes = message.bytes().to_vec();
            bytes.resize(length, 0);
            rig.say_bytes(&bytes);
            if length >= 8 && event == event::PORT_READY && value == 1 && port < 3 {
                ready[port as usize] = true;
            }
            while let Some((head, length)) = rig.driver.used(queue::CONTROL_RECEIVE as u16) {
                offered -= 1;
                let bytes = rig.bytes_of(queue::CONTROL_RECEIVE, head, length);
                if bytes.is_empty() {
                    continue;
                }
                let (port, event) = (usize::from(bytes[0]), u16::from(bytes[4]));
                prop_assert!(bytes.len() >= 8 && port < 3, "{bytes:?}");
                if event == event::DEVICE_ADD {
                    added[port] += 1;
                } else {
                    prop_assert!(ready[port], "port {port} is told of before it is ready: {bytes:?}");
                }
                heard.push((port, event));
            }
            prop_assert!(added.iter().all(|count| *count <= 1), "{heard:?}");
            prop_assert_eq!(rig.driver.status(), 15);
        }
    }
}
