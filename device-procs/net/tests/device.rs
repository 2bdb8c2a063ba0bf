//! A network device in this process, with a far end of the test's.
#![allow(clippy::unwrap_used, clippy::panic, unreachable_pub)] // Tests; clippy knows only #[test] functions as such.

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use cellblock_net::backend::{Backend, OnePair, Passt, Steer, Tap};
use cellblock_net::spec::feature as net;
use cellblock_net::{Pair, identity, pairs};
use cellblock_sdk::device::Device;
use cellblock_sdk::testing::virtio::{DATA, Driver, Edges, RAM_BYTES, Segment, shared_ram};
use cellblock_sdk::testing::{Harness, ManualClock};
use cellblock_sdk::virtio::engine::Engine;
use cellblock_sdk::virtio::spec::feature;
use cellblock_sdk::virtio::{Inline, Interrupt, Ram, Transport};
use cellblock_wire::device::{Bucket, Limits, NetConfig};
use proptest::prelude::*;

mod probes;
use probes::*;

type Inner<B> = Inline<Pair<B, ManualClock>>;
/// Shared, so that a test can give turns while the transport owns it.
#[derive(Debug)]
struct Shared<B: Backend>(Rc<RefCell<Inner<B>>>);

impl<B: Backend> Engine for Shared<B> {
    fn start(&mut self, index: usize, queue: cellblock_sdk::virtio::Virtqueue, features: u64) {
        self.0.borrow_mut().start(index, queue, features);
    }
    fn kick(&mut self, index: usize) {
        self.0.borrow_mut().kick(index);
    }
    fn stop(&mut self, index: usize) {
        self.0.borrow_mut().stop(index);
    }
    fn busy(&self, index: usize) -> bool {
        self.0.borrow().busy(index)
    }
    fn settle(&self, index: usize, limit: std::time::Duration) -> bool {
        self.0.borrow().settle(index, limit)
    }
    fn park(&mut self, park: bool) {
        self.0.borrow_mut().park(park);
    }
    fn is_parked(&self) -> bool {
        self.0.borrow().is_parked()
    }
}

struct Local<B: Backend> {
    driver: Driver<Harness<Transport<Shared<B>>>>,
    engine: Rc<RefCell<Inner<B>>>,
    far: Option<OwnedFd>,
    edges: Edges,
    clock: ManualClock,
}

impl<B: Backend> Bench for Local<B> {
    type Host = Harness<Transport<Shared<B>>>;

    fn driver(&mut self) -> &mut Driver<Self::Host> {
        &mut self.driver
    }

    fn far(&mut self) -> &OwnedFd {
        self.far.as_ref().unwrap()
    }

    fn turn(&mut self) {
        self.engine.borrow_mut().poll();
    }

    fn interrupts(&mut self) -> u64 {
        self.edges.take()
    }
}

fn build<B: Backend>(
    config: &NetConfig,
    ram: Ram,
    backends: Vec<B>,
    steer: Box<dyn Steer + Send>,
    far: OwnedFd,
) -> Local<B> {
    let (edges, clock) = (Edges::default(), ManualClock::default());
    let interrupt = Interrupt::new(edges.clone());
    let identity = identity(config);
    let pairs = pairs(config, &identity, &ram, &clock, backends, steer);
    let engine = Rc::new(RefCell::new(Inline::new(pairs, interrupt.clone())));
    let device = Transport::new(identity, Shared(Rc::clone(&engine)), ram.clone(), interrupt);
    Local { driver: Driver::new(Harness::new(device), ram), engine, far: Some(far), edges, clock }
}

fn tap(config: &NetConfig) -> Local<Tap> {
    let (near, far) = wire();
    let backend = Tap::new(Arc::new(near), config.mtu);
    build(config, shared_ram().0, vec![backend], Box::new(OnePair), far)
}

fn fresh() -> Local<Tap> {
    tap(&config())
}

fn passt() -> Local<Passt> {
    let (near, far) = stream();
    let config = NetConfig { offloads: false, ..config() };
    build(&config, shared_ram().0, vec![Passt::new(Arc::new(near))], Box::new(OnePair), far)
}

#[test]
fn it_is_found_and_negotiated_with() {
    negotiation(&mut fresh());
    sizes(fresh().driver(), 2);
}

#[test]
fn only_what_is_there_is_offered() {
    let plain = NetConfig { offloads: false, mtu: 0, ..config() };
    let own = feature::VERSION_1 | feature::EVENT_IDX | feature::INDIRECT_DESC;
    assert_eq!(tap(&plain).driver().offered(), own | net::MAC | net::STATUS | net::MRG_RXBUF);
    let several = NetConfig { pairs: 2, ..plain };
    assert_eq!(identity(&several).features, net::MAC | net::STATUS | net::MRG_RXBUF | net::CTRL_VQ | net::MQ);
    assert_eq!(identity(&several).queues, 5);
}

#[test]
fn frames_go_out() {
    transmits(&mut fresh());
    odd_transmits(&mut fresh());
}

#[test]
fn frames_come_in() {
    merges(&mut fresh());
    does_not_merge(&mut fresh());
    drops(&mut fresh());
    odd_buffers(&mut fresh());
}

#[test]
fn queues_that_make_no_sense_need_a_reset() {
    broken_queues(&mut fresh());
}

#[test]
fn resets_forget() {
    resets(&mut fresh());
}

#[test]
fn interrupts_come_when_they_are_wanted() {
    event_index(&mut fresh());
}

#[test]
fn indices_wrap() {
    crowds(&mut fresh(), 65_536 / 16 + 10);
}

#[test]
fn a_far_end_that_dies_is_a_link_that_is_down() {
    dies(&mut fresh(), |bench| bench.far = None);
    dies(&mut passt(), |bench| bench.far = None);
}

/// Which of the pairs frames come over, as the device has said.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<u16>>>);

impl Steer for Said {
    fn use_pairs(&mut self, pairs: u16) -> bool {
        self.0.lock().unwrap().push(pairs);
        true
    }
}

fn three_pairs() -> (Local<Tap>, Said, Vec<OwnedFd>) {
    let config = NetConfig { pairs: 3, ..config() };
    let (near, mut far): (Vec<_>, Vec<_>) = (0..3).map(|_| wire()).unzip();
    let backends = near.into_iter().map(|near| Tap::new(Arc::new(near), 0)).collect();
    let said = Said::default();
    let first = far.remove(0);
    (build(&config, shared_ram().0, backends, Box::new(said.clone()), first), said, far)
}

#[test]
fn the_driver_says_how_many_pairs_it_uses() {
    let (mut bench, said, _far) = three_pairs();
    sizes(bench.driver(), 7);
    commands(bench.driver());
    assert_eq!(*said.0.lock().unwrap(), [1, 3, 2, 1, 2, 2]);
    bench.begin(0);
    assert_eq!(said.0.lock().unwrap().last(), Some(&1), "as after a reset");
}

#[test]
fn each_pair_has_its_own_frames() {
    let (mut bench, _, far) = three_pairs();
    bench.driver().begin(ALL, 7, 16);
    for (pair, end) in (1u16..).zip(&far) {
        let sent = frame(pair as u8, 90);
        bench.driver().poke(DATA, &sent);
        bench.driver().push(2 * pair + 1, &[Segment::read(DATA, sent.len() as u32)]);
        bench.driver().kick(2 * pair + 1);
        assert_eq!(hear(end), sent);
        for i in 0..15 {
            let at = DATA + 0x2000 * (i + 1);
            bench.driver().push(2 * pair, &[Segment::write(at, 0x2000)]);
        }
        bench.driver().kick(2 * pair);
        say(end, &sent);
        bench.turn();
        assert_eq!(bench.driver().wait_used(2 * pair).1, 102);
    }
    assert_eq!(heard(bench.far()), None);
}

/// Frames through passt's stream, of which each turn sees whatever has come.
#[test]
fn streams_are_cut_into_frames() {
    let mut bench = passt();
    bench.begin(ALL);
    assert_eq!(bench.driver().features & (net::CSUM | net::GUEST_CSUM | net::GUEST_TSO4), 0);
    let lengths = [60usize, 14, 1500, 65_550, 61];
    for i in 0..60 {
        bench.driver().push(RX, &[Segment::write(DATA + 0x800 * i, 2048)]);
    }
    bench.driver().kick(RX);
    let mut stream = vec![];
    for length in lengths {
        stream.extend((length as u32).to_be_bytes());
        stream.extend(&frame(length as u8, length)[HEADER..]);
    }
    for (number, piece) in stream.chunks(997).enumerate() {
        say(bench.far(), piece);
        if number % 3 != 0 {
            bench.turn();
        }
    }
    bench.turn();
    let mut chain = 0u64;
    for length in lengths {
        let mut got: Vec<u8> = vec![];
        while got.len() < HEADER + length {
            let (_, written) = bench.driver().wait_used(RX);
            got.extend(bench.driver().peek(DATA + 0x800 * chain, written as usize));
            chain += 1;
        }
        assert_eq!(got[..10], [0; 10], "nothing is left to the driver");
        assert!(got[12..] == frame(length as u8, length)[HEADER..], "{length}");
    }
    // And out.
    let mut expected = vec![];
    for length in lengths {
        let sent = frame(length as u8, length);
        bench.driver().poke(DATA, &sent);
        bench.driver().push(TX, &[Segment::read(DATA, 9), Segment::read(DATA + 9, sent.len() as u32 - 9)]);
        bench.driver().kick(TX);
        bench.driver().wait_used(TX);
        expected.extend((length as u32).to_be_bytes());
        expected.extend(&sent[HEADER..]);
    }
    let mut got = vec![];
    while got.len() < expected.len() {
        bench.turn();
        got.extend(hear(bench.far()));
    }
    assert!(got == expected);
    // A stream that is full holds frames up until it is read; none is lost or cut.
    let sent = frame(1, 60_000);
    bench.driver().poke(DATA, &sent);
    for _ in 0..60 {
        bench.driver().push(TX, &[Segment::read(DATA, sent.len() as u32)]);
    }
    bench.driver().kick(TX);
    assert_ne!(bench.engine.borrow().wait(0).writable, 0, "it waits until it can be written");
    let mut got = 0;
    while got < 60 * 60_004 {
        got += hear(bench.far()).len();
        bench.turn();
    }
    assert_eq!((got, heard(bench.far())), (60 * 60_004, None));
}

/// A length that no frame has: nothing of that stream can be believed any more.
#[test]
fn a_stream_out_of_step_is_dead() {
    for length in [0u32, 65_551, u32::MAX] {
        dies(&mut passt(), |bench| say(bench.far(), &length.to_be_bytes()));
    }
    // Too short for Ethernet, but in step.
    let mut bench = passt();
    bench.begin(ALL);
    bench.offer(&[Segment::write(DATA, 2048)]);
    bench.say(&[0, 0, 0, 3, 7, 7, 7, 0, 0, 0, 14, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]);
    assert_eq!(bench.driver().wait_used(RX).1, 26);
}

fn limited(bytes: Option<Bucket>, operations: Option<Bucket>) -> NetConfig {
    let limits = Limits { bytes, operations };
    NetConfig { receive: limits, transmit: limits, ..config() }
}

#[test]
fn limits_hold_in_each_direction() {
    let second = 1_000_000_000;
    let bytes = Some(Bucket { per_second: 100_000, burst: 10_000 });
    let frames = Some(Bucket { per_second: 100, burst: 10 });
    // What flows in ten seconds, and what the bucket held.
    let (least, most) = (1_009, 1_012);
    for config in [limited(bytes, None), limited(None, frames)] {
        let mut bench = tap(&config);
        bench.begin(ALL);
        let sent = frame(1, 1000);
        bench.driver().poke(DATA, &sent);
        let room = DATA + 0x1_0000;
        for _ in 0..60 {
            bench.driver().push(RX, &[Segment::write(room, 4096)]);
        }
        bench.driver().kick(RX);
        let (mut out, mut came, mut queued) = (0u32, 0u32, 0);
        // Ten seconds, by the millisecond; more is offered at any time than may pass.
        for _ in 0..10_000 {
            while queued < 20 {
                bench.driver().push(TX, &[Segment::read(DATA, sent.len() as u32)]);
                queued += 1;
            }
            bench.driver().kick(TX);
            while bench.driver().used(TX).is_some() {
                (queued, out) = (queued - 1, out + 1);
            }
            while heard(bench.far()).is_some() {}
            let _ = rustix::net::send(bench.far(), &sent, rustix::net::SendFlags::DONTWAIT);
            bench.turn();
            while bench.driver().used(RX).is_some() {
                came += 1;
                bench.driver().push(RX, &[Segment::write(room, 4096)]);
            }
            bench.driver().kick(RX);
            assert!(bench.engine.borrow().wait(0).until.is_some() || out < 20);
            bench.clock.advance(second / 1000);
        }
        assert!((least..=most).contains(&out), "{out} went out: {config:?}");
        assert!((least..=most).contains(&came), "{came} came in: {config:?}");
    }
}

/// A successor finds the registers, and goes on with the frames that were not yet given.
#[test]
fn a_successor_goes_on() {
    let mut old = fresh();
    old.begin(ALL);
    for i in 0..40 {
        old.offer(&[Segment::write(DATA + 0x1000 * i, 2048)]);
    }
    old.say(&frame(1, 100));
    assert_eq!(old.driver().wait_used(RX), (0, 112));
    let saved = old.driver.host.saved();
    let (near, far) = wire();
    let backend = Tap::new(Arc::new(near), 1400);
    let mut new = build(&config(), old.driver.ram.clone(), vec![backend], Box::new(OnePair), far);
    new.driver.host.device.restore(&saved).unwrap();
    assert_eq!(new.edges.take(), 1, "an interrupt that may have been lost");
    new.say(&frame(2, 5000));
    for head in [1, 2, 3] {
        assert_eq!(old.driver().wait_used(RX).0, head);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever stands in rings and descriptors, and whatever comes, the device comes back, and works after a reset.
    #[test]
    fn any_descriptors_are_survived(
        table in proptest::collection::vec((0u64..RAM_BYTES + 4096, 0u32..70_000, 0u16..8, 0u16..10), 16),
        steps in proptest::collection::vec((0u16..3, 0u16..10, 1usize..3000), 1..24),
        features in any::<u64>(),
    ) {
        let mut bench = fresh();
        bench.driver().begin(features, 2, 8);
        for queue in [RX, TX] {
            for (index, (address, length, flags, next)) in (0..).zip(&table[8 * usize::from(queue)..][..8]) {
                // Not over the rings, or the next step is none.
                let address = if *address < DATA { address + DATA } else { *address };
                let segment = Segment { address, length: *length, writable: flags & 2 != 0 };
                bench.driver().descriptor(areas(queue)[0], index, segment, flags & 5, *next);
            }
        }
        for (what, head, length) in steps {
            if what == 2 {
                let _ = rustix::net::send(bench.far(), &vec![1; length], rustix::net::SendFlags::DONTWAIT);
                bench.turn();
            } else {
                bench.driver().make_available(what, head);
                bench.driver().kick(what);
            }
        }
        while heard(bench.far()).is_some() {}
        bench.works();
    }

    /// The same of a stream: it may end, but nothing else does.
    #[test]
    fn any_stream_is_survived(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..200), 1..8)) {
        let mut bench = passt();
        bench.begin(ALL);
        for i in 0..20 {
            bench.offer(&[Segment::write(DATA + 0x1000 * i, 4096)]);
        }
        for mut piece in pieces {
            // Some of it in step.
            if piece[0] & 1 == 0 && piece.len() >= 4 {
                piece[0..4].copy_from_slice(&[0, 0, 0, 20]);
            }
            let _ = rustix::net::send(bench.far(), &piece, rustix::net::SendFlags::NOSIGNAL);
            bench.turn();
        }
        prop_assert_eq!(bench.driver().status(), 15);
        bench.driver().poke(DATA, &frame(1, 60));
        bench.send(&[Segment::read(DATA, 72)]);
    }
}
