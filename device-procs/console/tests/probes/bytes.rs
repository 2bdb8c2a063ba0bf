//! What is moved: bytes of ports, with back-pressure.

use cellblock_console::spec::{event, queue};
use cellblock_sdk::testing::Host;
use cellblock_sdk::testing::virtio::{Driver, NEXT, RAM_BYTES, Segment};

use super::{HEAP, ROOM, Rig, content, pair, three_ports};

pub(crate) fn bytes_leave_in_order<H: Host>(mut rig: Rig<H>) {
    rig.begin(u64::MAX, 8);
    rig.introduce(&three_ports());
    let mut sent: [Vec<u8>; 2] = [vec![], vec![]];
    for length in [1, 2, 0, 255, 4096, 3] {
        for (port, sent) in sent.iter_mut().enumerate() {
            let bytes = content(length + port);
            let head = rig.give(pair(port).1, &bytes);
            sent.extend(&bytes);
            assert_eq!(rig.back(pair(port).1), (head, 0), "{length} bytes");
        }
    }
    for (port, sent) in sent.iter().enumerate() {
        assert_eq!(&rig.collect(port, sent.len()), sent);
        rig.nothing(port);
    }
    // In pieces, with a part that can be written, which is not looked at.
    let at = rig.place(64);
    rig.driver.poke(at, b"abcdef");
    let pieces =
        [Segment::read(at, 2), Segment::read(at + 2, 0), Segment::read(at + 2, 4), Segment::write(at, 8)];
    rig.push(1, &pieces);
    assert_eq!(rig.collect(0, 6), b"abcdef");
    rig.back(1);
    // Port 2 leads nowhere, and takes all.
    rig.give(pair(2).1, &content(100_000));
    rig.back(pair(2).1);
    // What is not in memory is given back, and the next goes.
    let head = rig.push(1, &[Segment::read(at, 2), Segment::read(RAM_BYTES - 1, 2)]);
    assert_eq!(rig.back(1), (head, 0));
    rig.give(1, b"next");
    assert_eq!(rig.collect(0, 4), b"next");
    rig.nothing(0);
}

pub(crate) fn a_full_sink_holds_its_port_and_no_other<H: Host>(mut rig: Rig<H>) {
    rig.begin(u64::MAX, 8);
    rig.introduce(&three_ports());
    let (receive, transmit) = pair(1);
    // A pipe has 64 KiB.
    let bytes = content(300_000);
    let heads: Vec<_> = bytes.chunks(100_000).map(|chunk| rig.give(transmit, chunk)).collect();
    rig.none_back(transmit);
    // The other direction, another port, and the control queues go on.
    rig.offer(receive, ROOM);
    rig.feed(1, b"in");
    assert_eq!(rig.filled(receive), b"in");
    rig.give(1, b"console");
    assert_eq!(rig.collect(0, 7), b"console");
    rig.say(1, event::PORT_READY, 1);
    rig.expect_introduction(&three_ports(), 1);
    rig.none_back(transmit);
    assert_eq!(rig.collect(1, bytes.len()), bytes, "each byte once, in order");
    for head in heads {
        assert_eq!(rig.back(transmit), (head, 0));
    }
    rig.nothing(1);
}

pub(crate) fn input_waits_for_buffers_and_an_open_port<H: Host>(mut rig: Rig<H>) {
    rig.begin(u64::MAX, 8);
    let (receive, _) = pair(1);
    rig.offer(receive, 4);
    rig.feed(1, b"0123456789");
    rig.introduce(&three_ports());
    assert_eq!(rig.filled(receive), b"0123", "what came before the port was open is not lost");
    rig.none_back(receive);
    rig.say(1, event::PORT_OPEN, 0);
    rig.offer(receive, 64);
    rig.none_back(receive);
    rig.say(1, event::PORT_OPEN, 1);
    assert_eq!(rig.filled(receive), b"456789");
    // A port that is closed while its buffer is held.
    rig.offer(receive, 64);
    rig.settle();
    rig.say(1, event::PORT_OPEN, 0);
    rig.feed(1, b"held");
    rig.none_back(receive);
    rig.say(1, event::PORT_OPEN, 1);
    assert_eq!(rig.filled(receive), b"held");
    // Past buffers that can hold nothing, over the borders of those that can.
    let at = rig.place(64);
    rig.feed(1, b"xyz");
    for segment in [Segment::read(at, 8), Segment::write(at, 0), Segment::write(RAM_BYTES - 2, 4)] {
        let head = rig.push(receive, &[segment]);
        assert_eq!(rig.back(receive), (head, 0), "{segment:?}");
    }
    let head = rig.push(receive, &[Segment::write(at, 1), Segment::write(at + 8, 7)]);
    assert_eq!(rig.back(receive), (head, 3));
    assert_eq!((rig.driver.peek(at, 1), rig.driver.peek(at + 8, 2)), (b"x".to_vec(), b"yz".to_vec()));
    // Ports do not see each other's bytes.
    rig.offer(receive, ROOM);
    rig.offer(0, ROOM);
    rig.feed(0, b"console");
    assert_eq!(rig.filled(0), b"console");
    rig.none_back(receive);
}

pub(crate) fn much_goes_both_ways_at_once<H: Host>(mut rig: Rig<H>) {
    rig.begin(u64::MAX, 8);
    rig.introduce(&three_ports());
    let (receive, transmit) = pair(1);
    let bytes = content(1_000_000);
    let (mut fed, mut given, mut flying) = (0, 0, 0);
    let (mut got, mut left) = (Vec::<u8>::new(), Vec::<u8>::new());
    (0..8).for_each(|_| rig.offer(receive, 5000));
    while got.len() < bytes.len() || left.len() < bytes.len() {
        rig.until("neither way goes on", |rig| {
            let before = got.len() + left.len();
            let chunk = &bytes[fed..(fed + 3000).min(bytes.len())];
            fed += rustix::io::write(rig.far[1].input.as_ref().unwrap(), chunk).unwrap_or(0);
            let mut piece = [0; 7000];
            let read = rustix::io::read(rig.far[1].output.as_ref().unwrap(), &mut piece).unwrap_or(0);
            left.extend(&piece[..read]);
            if rig.driver.used(transmit as u16).is_some() {
                flying -= 1;
            }
            if given < bytes.len() && flying < 8 {
                let chunk = &bytes[given..(given + 9000).min(bytes.len())];
                rig.give(transmit, chunk);
                (given, flying) = (given + chunk.len(), flying + 1);
            }
            if let Some((head, length)) = rig.driver.used(receive as u16) {
                let table = Driver::<H>::areas(receive as u16)[0];
                let at = rig.driver.peek(table + 16 * u64::from(head), 8);
                got.extend(rig.driver.peek(u64::from_le_bytes(at.try_into().unwrap()), length as usize));
                rig.offer(receive, 5000);
            }
            (got.len() + left.len() > before).then_some(())
        });
    }
    assert!(got == bytes && left == bytes);
}

pub(crate) fn an_end_of_input_is_silent_and_a_gone_sink_takes_all<H: Host>(mut rig: Rig<H>) {
    rig.begin(u64::MAX, 8);
    rig.introduce(&three_ports());
    rig.offer(0, ROOM);
    rig.feed(0, b"last");
    rig.far[0].input = None;
    assert_eq!(rig.filled(0), b"last");
    rig.offer(0, ROOM);
    rig.none_back(0);
    rig.far[0].output = None;
    for _ in 0..2 {
        let head = rig.give(1, &content(1000));
        assert_eq!(rig.back(1), (head, 0));
    }
    rig.give(pair(1).1, b"other");
    assert_eq!(rig.collect(1, 5), b"other");
}

pub(crate) fn a_reset_forgets_what_is_held<H: Host>(mut rig: Rig<H>) {
    rig.begin(u64::MAX, 8);
    rig.introduce(&three_ports());
    rig.offer(0, ROOM);
    let bytes = content(100_000);
    rig.give(1, &bytes);
    // Both are held: one for input, one for room.
    rig.none_back(1);
    rig.begin(u64::MAX, 8);
    let mut piece = vec![0; 1 << 20];
    let went = rustix::io::read(rig.far[0].output.as_ref().unwrap(), &mut piece).unwrap();
    assert!(went < bytes.len());
    rig.nothing(0);
    rig.feed(0, b"new");
    rig.introduce(&three_ports());
    rig.none_back(0);
    rig.offer(0, ROOM);
    assert_eq!(rig.filled(0), b"new");
}

pub(crate) fn a_loop_needs_a_reset<H: Host>(mut rig: Rig<H>) {
    // Not the control queue's buffers, before which good ones lie, nor those of a port to which nothing ever comes.
    for queue in [pair(0).0, pair(0).1, queue::CONTROL_TRANSMIT, pair(1).0, pair(1).1, pair(2).1] {
        rig.begin(u64::MAX, 8);
        rig.introduce(&three_ports());
        let table = Driver::<H>::areas(queue as u16)[0];
        rig.driver.descriptor(table, 15, Segment::read(HEAP, 16), NEXT, 15);
        rig.driver.make_available(queue as u16, 15);
        rig.driver.kick(queue as u16);
        rig.driver.wait_needs_reset();
    }
    rig.begin(u64::MAX, 8);
    rig.introduce(&three_ports());
}
