//! What is told: features, configuration space, control messages.

use cellblock_console::control::Message;
use cellblock_console::spec::{event, feature, queue};
use cellblock_sdk::testing::Host;
use cellblock_sdk::testing::virtio::{RAM_BYTES, Segment};
use cellblock_sdk::virtio::spec::{interrupt, register};
use cellblock_wire::device::ConsoleConfig;

use super::{HEAP, NO_PORT, ROOM, Rig, pair, size, three_ports};

pub(crate) fn is_found<H: Host>(mut rig: Rig<H>) {
    assert_eq!(rig.driver.get(register::DEVICE_ID), 3);
    assert_eq!(rig.driver.offered() & 0xff_ffff, feature::SIZE | feature::MULTIPORT);
    let space: Vec<u8> = (0..12).map(|at| rig.driver.host.read(0, register::CONFIG + at, 1) as u8).collect();
    assert_eq!(space, [80, 0, 25, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
    for queue in 0..9 {
        rig.driver.set(register::QUEUE_SEL, queue);
        assert_eq!(rig.driver.get(register::QUEUE_SIZE_MAX) != 0, queue < 8, "queue {queue}");
    }
}

pub(crate) fn ports_are_introduced<H: Host>(mut rig: Rig<H>) {
    let config = three_ports();
    rig.begin(u64::MAX, 8);
    rig.none_back(queue::CONTROL_RECEIVE);
    rig.introduce(&config);
    rig.none_back(queue::CONTROL_RECEIVE);
    // Asked again, it says again what may be said again.
    rig.say(NO_PORT, event::DEVICE_READY, 1);
    rig.none_back(queue::CONTROL_RECEIVE);
    rig.say(1, event::PORT_READY, 1);
    rig.expect_introduction(&config, 1);
    rig.none_back(queue::CONTROL_RECEIVE);
    // After a reset all begins anew.
    rig.begin(u64::MAX, 8);
    rig.introduce(&config);
}

pub(crate) fn a_driver_that_fails_is_left_alone<H: Host>(mut rig: Rig<H>) {
    rig.begin(u64::MAX, 8);
    rig.say(NO_PORT, event::DEVICE_READY, 0);
    rig.none_back(queue::CONTROL_RECEIVE);
    rig.say(NO_PORT, event::DEVICE_READY, 1);
    (0..3).for_each(|port| rig.expect(port, event::DEVICE_ADD, 1, &[]));
    rig.say(1, event::PORT_READY, 0);
    rig.none_back(queue::CONTROL_RECEIVE);
    rig.say(2, event::PORT_READY, 1);
    rig.expect_introduction(&three_ports(), 2);
}

pub(crate) fn messages_that_make_no_sense_change_nothing<H: Host>(mut rig: Rig<H>) {
    rig.begin(u64::MAX, 8);
    // Before the device has added a port there is none to be ready or open.
    for port in [0, 1, 2, 3, 7, 1 << 16, NO_PORT] {
        rig.say(port, event::PORT_READY, 1);
        rig.say(port, event::PORT_OPEN, 1);
    }
    rig.none_back(queue::CONTROL_RECEIVE);
    rig.introduce(&three_ports());
    let not_the_drivers =
        [event::DEVICE_ADD, event::DEVICE_REMOVE, event::CONSOLE_PORT, event::RESIZE, event::PORT_NAME];
    for event in not_the_drivers.into_iter().chain([8, u16::MAX]) {
        [0, 1, NO_PORT].into_iter().for_each(|port| rig.say(port, event, 1));
    }
    for port in [3, 6, 7, 8, 1 << 16, 1 << 31, NO_PORT] {
        rig.say(port, event::PORT_READY, 1);
        rig.say(port, event::PORT_OPEN, 1);
    }
    for value in [2, 0x100, u16::MAX] {
        rig.say(0, event::PORT_OPEN, value);
        rig.say(1, event::PORT_READY, value);
        rig.say(NO_PORT, event::DEVICE_READY, value);
    }
    [0, 1, 7].into_iter().for_each(|length| rig.say_bytes(&[0; 8][..length]));
    // Nothing to be read at all, or not in memory.
    let nowhere = [RAM_BYTES, RAM_BYTES - 4, u64::MAX - 3].map(|at| Segment::read(at, 8));
    for segment in nowhere.into_iter().chain([Segment::write(HEAP, 64)]) {
        let head = rig.push(queue::CONTROL_TRANSMIT, &[segment]);
        assert_eq!(rig.back(queue::CONTROL_TRANSMIT), (head, 0));
    }
    rig.none_back(queue::CONTROL_RECEIVE);
    // All is as it was: the ports are open.
    for port in [0, 1] {
        rig.offer(pair(port).0, ROOM);
        rig.feed(port, b"still");
        assert_eq!(rig.filled(pair(port).0), b"still");
    }
    // A message in pieces, with more behind it, is one.
    let at = rig.place(64);
    rig.driver.poke(at, &Message { port: 0, event: event::PORT_READY, value: 1 }.bytes());
    rig.push(queue::CONTROL_TRANSMIT, &[Segment::read(at, 3), Segment::read(at + 3, 40)]);
    rig.back(queue::CONTROL_TRANSMIT);
    rig.expect_introduction(&three_ports(), 0);
    assert_eq!(rig.driver.status(), 15);
}

pub(crate) fn buffers_that_hold_no_message_come_back_empty<H: Host>(mut rig: Rig<H>) {
    rig.driver.begin(u64::MAX, 8, super::SIZE);
    rig.say(NO_PORT, event::DEVICE_READY, 1);
    let useless = [
        Segment::write(HEAP, 7),
        Segment::write(HEAP, 0),
        Segment::read(HEAP, 64),
        Segment::write(RAM_BYTES, 64),
    ];
    for segment in useless {
        let head = rig.push(queue::CONTROL_RECEIVE, &[segment]);
        assert_eq!(rig.back(queue::CONTROL_RECEIVE), (head, 0), "{segment:?}");
    }
    // What there was to say was not lost; a buffer that just fits will do, and one in pieces.
    rig.offer(queue::CONTROL_RECEIVE, 8);
    let at = rig.place(64);
    rig.push(queue::CONTROL_RECEIVE, &[Segment::write(at, 5), Segment::write(at + 5, 3)]);
    rig.offer(queue::CONTROL_RECEIVE, 8);
    (0..3).for_each(|port| rig.expect(port, event::DEVICE_ADD, 1, &[]));
    // A name is longer than that, and goes into one of the buffers that were offered since.
    rig.say(1, event::PORT_READY, 1);
    rig.expect_introduction(&three_ports(), 1);
}

pub(crate) fn what_is_to_be_said_waits_for_buffers<H: Host>(mut rig: Rig<H>) {
    rig.driver.begin(u64::MAX, 8, super::SIZE);
    rig.say(NO_PORT, event::DEVICE_READY, 1);
    // However often it is asked for.
    (0..300).for_each(|_| rig.say(NO_PORT, event::DEVICE_READY, 1));
    (0..12).for_each(|_| rig.offer(queue::CONTROL_RECEIVE, ROOM));
    (0..3).for_each(|port| rig.expect(port, event::DEVICE_ADD, 1, &[]));
    rig.none_back(queue::CONTROL_RECEIVE);
}

pub(crate) fn a_new_size_is_told<H: Host>(mut rig: Rig<H>) {
    rig.begin(u64::MAX, 8);
    rig.introduce(&three_ports());
    rig.driver.set(register::INTERRUPT_ACK, 3);
    let generation = rig.driver.get(register::CONFIG_GENERATION);
    let shape = |rig: &mut Rig<H>| rig.driver.host.read(0, register::CONFIG, 4);
    assert_eq!(shape(&mut rig), 25 << 16 | 80);
    (rig.resize)(&mut rig.driver.host, 0, 100, 31);
    rig.expect(0, event::RESIZE, 0, &size(100, 31));
    assert_eq!(shape(&mut rig), 31 << 16 | 100);
    assert_ne!(rig.driver.get(register::CONFIG_GENERATION), generation);
    assert_ne!(rig.driver.get(register::INTERRUPT_STATUS) & interrupt::CONFIG_CHANGE, 0);
    // The same again, and of a port that is no console, is nothing new.
    (rig.resize)(&mut rig.driver.host, 0, 100, 31);
    (rig.resize)(&mut rig.driver.host, 1, 7, 7);
    (rig.resize)(&mut rig.driver.host, NO_PORT, 7, 7);
    rig.none_back(queue::CONTROL_RECEIVE);
    assert_eq!(shape(&mut rig), 31 << 16 | 100);
    // A driver that comes later gets what is so then.
    rig.begin(u64::MAX, 8);
    rig.introduce(&ConsoleConfig { columns: 100, rows: 31, ..three_ports() });
}

/// A driver that knows nothing of ports has one console.
pub(crate) fn without_multiport_there_is_a_console<H: Host>(mut rig: Rig<H>) {
    rig.driver.begin(feature::SIZE, 8, super::SIZE);
    rig.give(1, b"out");
    assert_eq!(rig.collect(0, 3), b"out");
    rig.offer(0, ROOM);
    rig.feed(0, b"in");
    assert_eq!(rig.filled(0), b"in", "nobody has to open it");
    rig.driver.set(register::INTERRUPT_ACK, 3);
    (rig.resize)(&mut rig.driver.host, 0, 90, 30);
    rig.settle();
    assert_eq!(rig.driver.host.read(0, register::CONFIG, 4), 30 << 16 | 90);
    assert_ne!(rig.driver.get(register::INTERRUPT_STATUS) & interrupt::CONFIG_CHANGE, 0);
    // The other queues are nobody's.
    rig.offer(queue::CONTROL_RECEIVE, ROOM);
    rig.give(
        queue::CONTROL_TRANSMIT,
        &Message { port: NO_PORT, event: event::DEVICE_READY, value: 1 }.bytes(),
    );
    rig.give(pair(1).1, b"port");
    [2, 3, 5].into_iter().for_each(|queue| rig.none_back(queue));
    rig.nothing(1);
}

pub(crate) fn a_lone_console_has_two_queues<H: Host>(mut rig: Rig<H>) {
    assert_eq!(rig.driver.offered() & 0xff_ffff, feature::SIZE);
    assert_eq!(rig.driver.host.read(0, register::CONFIG, 8), 43 << 16 | 132);
    rig.driver.set(register::QUEUE_SEL, 2);
    assert_eq!(rig.driver.get(register::QUEUE_SIZE_MAX), 0);
    rig.driver.begin(u64::MAX, 2, super::SIZE);
    // The driver is told to look at the size that it has from the beginning.
    rig.until("no interrupt", |rig| {
        let status = rig.driver.get(register::INTERRUPT_STATUS);
        (status & interrupt::CONFIG_CHANGE != 0).then_some(())
    });
    rig.give(1, b"out");
    assert_eq!(rig.collect(0, 3), b"out");
    rig.offer(0, ROOM);
    rig.feed(0, b"in");
    assert_eq!(rig.filled(0), b"in");
}
