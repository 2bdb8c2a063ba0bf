//! What a driver may ask of a network device, and what it must not: the same for a device in this process and one in a worker.
//! The far end is a socket that keeps the borders of frames, which a tap's descriptor does, too.
#![allow(clippy::unwrap_used, clippy::panic, dead_code, unreachable_pub)] // Helpers beside the tests; not all tests use all.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use cellblock_net::spec::{QUEUE_SIZE, control, feature as net};
use cellblock_sdk::testing::Host;
use cellblock_sdk::testing::virtio::{DATA, Driver, INDIRECT, NEXT, RAM_BYTES, Segment};
use cellblock_sdk::virtio::spec::{feature, register};
use cellblock_wire::device::{Limits, NetConfig};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};

/// All that a driver could accept.
pub const ALL: u64 = u64::MAX;
/// Queues of the first pair.
pub const RX: u16 = 0;
pub const TX: u16 = 1;
/// Bytes of the header.
pub const HEADER: usize = 12;

pub const PATIENCE: Duration = Duration::from_secs(10);

pub fn config() -> NetConfig {
    NetConfig {
        mac: [2, 1, 2, 3, 4, 5],
        mtu: 1400,
        pairs: 1,
        offloads: true,
        receive: Limits::default(),
        transmit: Limits::default(),
    }
}

/// The two ends of what stands for a tap: the worker's does not block.
pub fn wire() -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
}

/// The two ends of what stands for passt's stream.
pub fn stream() -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap()
}

/// A header that says nothing but what is in its first byte, and a frame of `length` bytes.
pub fn frame(seed: u8, length: usize) -> Vec<u8> {
    let header = [0u8; HEADER];
    let body = (0..length).map(|i| seed.wrapping_add((i / 7) as u8) ^ i as u8);
    header.into_iter().chain(body).collect()
}

/// What came at the far end, if something did.
pub fn heard(end: &OwnedFd) -> Option<Vec<u8>> {
    let mut bytes = vec![0; 70_000];
    match recv(end, bytes.as_mut_slice(), RecvFlags::DONTWAIT) {
        Ok((length, _)) => {
            bytes.truncate(length);
            Some(bytes)
        }
        Err(Errno::AGAIN) => None,
        Err(errno) => panic!("the far end: {errno}"),
    }
}

/// Waits for what comes at the far end.
pub fn hear(end: &OwnedFd) -> Vec<u8> {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(bytes) = heard(end) {
            return bytes;
        }
        assert!(Instant::now() < until, "nothing came");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Says `bytes` at the far end.
pub fn say(end: &OwnedFd, bytes: &[u8]) {
    assert_eq!(send(end, bytes, SendFlags::NOSIGNAL).unwrap(), bytes.len());
}

/// A device under test, with its far end.
pub trait Bench {
    type Host: Host;
    fn driver(&mut self) -> &mut Driver<Self::Host>;
    fn far(&mut self) -> &OwnedFd;
    /// Gives the device a turn, where nobody else does.
    fn turn(&mut self);
    /// Interrupts since the last call.
    fn interrupts(&mut self) -> u64;

    /// Negotiates `features`, for the one pair, with queues of 64. The device has begun when this is over: what comes before that
    /// is for nobody. A frame that is none tells, the first of the transmit queue.
    fn begin(&mut self, features: u64) {
        self.driver().begin(features, 2, 64);
        self.send(&[Segment::read(DATA, 1)]);
    }

    fn send(&mut self, segments: &[Segment]) -> u32 {
        let driver = self.driver();
        let head = driver.push(TX, segments);
        driver.kick(TX);
        let (id, written) = driver.wait_used(TX);
        assert_eq!(id, u32::from(head));
        written
    }

    fn say(&mut self, bytes: &[u8]) {
        say(self.far(), bytes);
        self.turn();
    }

    /// One more buffer for what comes.
    fn offer(&mut self, segments: &[Segment]) -> u16 {
        let driver = self.driver();
        let head = driver.push(RX, segments);
        driver.kick(RX);
        head
    }

    /// The device works: a frame each way.
    fn works(&mut self) {
        self.begin(net::MRG_RXBUF);
        let sent = frame(9, 600);
        self.driver().poke(DATA, &sent);
        self.send(&[Segment::read(DATA, sent.len() as u32)]);
        assert_eq!(hear(self.far()), sent);
        self.offer(&[Segment::write(DATA + 0x8000, 2048)]);
        self.say(&sent);
        let (_, written) = self.driver().wait_used(RX);
        assert_eq!(written as usize, sent.len());
        let mut expected = sent;
        expected[10] = 1;
        assert_eq!(self.driver().peek(DATA + 0x8000, expected.len()), expected);
    }
}

/// Addresses of a queue's areas, whatever drives it.
pub fn areas(queue: u16) -> [u64; 3] {
    Driver::<Nothing>::areas(queue)
}

pub enum Nothing {}

impl Host for Nothing {
    fn read(&mut self, _: u32, _: u64, _: u8) -> u64 {
        match *self {}
    }

    fn write(&mut self, _: u32, _: u64, _: u8, _: u64) -> cellblock_wire::slot::Action {
        match *self {}
    }
}

/// What is offered, and what configuration space tells.
pub fn negotiation<B: Bench>(bench: &mut B) {
    let driver = bench.driver();
    assert_eq!(driver.get(register::DEVICE_ID), 1);
    let own = feature::VERSION_1 | feature::EVENT_IDX | feature::INDIRECT_DESC;
    let offloads =
        net::CSUM | net::HOST_TSO4 | net::HOST_TSO6 | net::GUEST_CSUM | net::GUEST_TSO4 | net::GUEST_TSO6;
    let kinds = net::MAC | net::STATUS | net::MTU | net::MRG_RXBUF | offloads;
    assert_eq!(driver.offered(), own | kinds);
    for bit in [2, 10, 14, 18, 19, 21, 22, 17, 33, 40] {
        assert!(!driver.negotiate(feature::VERSION_1 | 1 << bit), "bit {bit} was not offered");
    }
    assert!(driver.negotiate(feature::VERSION_1 | net::MAC));
    let byte = |driver: &mut Driver<B::Host>, at| driver.host.read(0, register::CONFIG + at, 1) as u8;
    let space: Vec<_> = (0..13).map(|at| byte(driver, at)).collect();
    assert_eq!(space, [2, 1, 2, 3, 4, 5, 1, 0, 0, 0, 0x78, 5, 0]);
    driver.host.write(0, register::CONFIG, 1, 0xff);
    assert_eq!(byte(driver, 0), 2, "it is not the driver's to write");
}

/// Frames of all lengths, in all kinds of pieces.
pub fn transmits(bench: &mut impl Bench) {
    bench.begin(ALL);
    for length in [14, 15, 60, 1414, 1500, 9000, 65_550] {
        let sent = frame(length as u8, length);
        bench.driver().poke(DATA, &sent);
        let all = sent.len() as u32;
        let at = |from: u32, to: u32| Segment::read(DATA + u64::from(from), to - from);
        for pieces in [
            vec![at(0, all)],
            vec![at(0, 12), at(12, all)],
            vec![at(0, 5), at(5, 13), at(13, 20), at(20, all)],
            vec![at(0, 12), Segment::read(DATA, 0), at(12, all), Segment::write(DATA + 0x20_000, 64)],
        ] {
            assert_eq!(bench.send(&pieces), 0, "nothing is written");
            assert!(hear(bench.far()) == sent, "{length} bytes in {} pieces", pieces.len());
        }
    }
    // By an indirect table.
    let sent = frame(7, 300);
    let driver = bench.driver();
    driver.poke(DATA + 0x1000, &sent);
    driver.descriptor(DATA, 0, Segment::read(DATA + 0x1000, 12), NEXT, 1);
    driver.descriptor(DATA, 1, Segment::read(DATA + 0x100c, 300), 0, 0);
    driver.descriptor(areas(TX)[0], 40, Segment::read(DATA, 32), INDIRECT, 0);
    driver.make_available(TX, 40);
    driver.kick(TX);
    assert_eq!(driver.wait_used(TX), (40, 0));
    assert_eq!(hear(bench.far()), sent);
}

/// What is no frame goes nowhere, and is given back.
pub fn odd_transmits(bench: &mut impl Bench) {
    bench.begin(ALL);
    let outside = Segment::read(RAM_BYTES, 100);
    let huge = Segment::read(DATA, 0x7fff_ffff);
    for segments in [
        vec![Segment::read(DATA, 25)],
        vec![Segment::read(DATA, 11)],
        vec![Segment::read(DATA, 0)],
        vec![Segment::write(DATA, 100)],
        vec![Segment::read(DATA, 65_563)],
        vec![huge],
        vec![Segment::read(DATA, 65_562), Segment::read(DATA, 1)],
        vec![outside],
        vec![Segment::read(DATA, 12), outside],
        vec![Segment::read(DATA, 12), Segment::read(RAM_BYTES - 50, 51)],
        vec![Segment::read(DATA, 12), Segment::read(u64::MAX - 20, 21)],
        vec![Segment::read(DATA, 12), Segment::read(u64::MAX, 60)],
    ] {
        assert_eq!(bench.send(&segments), 0);
        assert_eq!(bench.driver().status(), 15, "{segments:?}");
    }
    assert_eq!(heard(bench.far()), None);
    bench.works();
}

/// Frames over several buffers, as many as it takes. There is always room for the largest frame, or none would come.
pub fn merges(bench: &mut impl Bench) {
    bench.begin(ALL);
    let buffers = 40u64;
    let slot = |i: u64| DATA + 0x1000 * (i % buffers);
    // In one piece, or in two.
    let offer = |bench: &mut _, i: u64| match i % 2 {
        0 => Bench::offer(bench, &[Segment::write(slot(i), 2048)]),
        _ => Bench::offer(bench, &[Segment::write(slot(i), 20), Segment::write(slot(i) + 20, 2028)]),
    };
    let mut heads: Vec<_> = (0..buffers).map(|i| offer(bench, i)).collect();
    let mut next = 0;
    for length in [14usize, 2036, 2037, 20_000, 60, 1500, 65_550] {
        let said = frame(length as u8, length);
        bench.say(&said);
        let chains = (said.len() as u64).div_ceil(2048);
        let mut got = vec![];
        for chain in next..next + chains {
            let (id, written) = bench.driver().wait_used(RX);
            assert_eq!(id, u32::from(heads[chain as usize]), "{length}");
            got.extend(bench.driver().peek(slot(chain), written as usize));
        }
        assert_eq!(got[10..12], (chains as u16).to_le_bytes(), "num_buffers");
        assert_eq!(got.len(), said.len(), "{length}");
        assert!(got[..10] == said[..10] && got[12..] == said[12..], "{length}");
        for _ in next..next + chains {
            heads.push(offer(bench, heads.len() as u64));
        }
        next += chains;
    }
    assert_eq!(bench.driver().used(RX), None);
}

/// Without merging, each frame has one buffer.
pub fn does_not_merge(bench: &mut impl Bench) {
    bench.begin(ALL & !net::MRG_RXBUF);
    for (index, length) in [(0u64, 60usize), (1, 1500), (2, 65_550)] {
        let at = DATA + 0x2_0000 * index;
        bench.offer(&[Segment::write(at, 12), Segment::write(at + 12, 65_550)]);
        let said = frame(length as u8, length);
        bench.say(&said);
        let (_, written) = bench.driver().wait_used(RX);
        assert_eq!(written as usize, said.len());
        let got = bench.driver().peek(at, said.len());
        assert_eq!(got[10..12], [1, 0], "num_buffers");
        assert!(got[12..] == said[12..]);
    }
}

/// A frame that is larger than the driver takes, or than its buffers, or none at all, is not seen.
pub fn drops(bench: &mut impl Bench) {
    for (features, largest) in [(net::MRG_RXBUF, 1418), (ALL, 65_550), (0, 1418)] {
        bench.begin(features);
        for i in 0..40 {
            let bytes = if features & net::MRG_RXBUF == 0 { 1440 } else { 2048 };
            bench.offer(&[Segment::write(DATA + 0x1000 * i, bytes)]);
        }
        bench.say(&frame(1, largest + 1));
        bench.say(&frame(2, 13));
        bench.say(&[7; 3]);
        bench.say(&frame(3, largest));
        let (_, written) = bench.driver().wait_used(RX);
        let mut total = written as usize;
        while let Some((_, written)) = bench.driver().used(RX) {
            total += written as usize;
        }
        assert_eq!(total, HEADER + largest, "{features:#x}");
    }
    bench.works();
}

/// Receive buffers that are of no use are given back, and the frame comes in the next.
pub fn odd_buffers(bench: &mut impl Bench) {
    for features in [ALL, net::MRG_RXBUF, 0] {
        bench.begin(features & !(net::GUEST_TSO4 | net::GUEST_TSO6));
        let useless = [
            vec![Segment::write(DATA, 11)],
            vec![Segment::read(DATA, 2048)],
            vec![Segment::write(DATA, 0)],
            vec![Segment::write(RAM_BYTES, 2048)],
            vec![Segment::write(RAM_BYTES - 100, 2048)],
            vec![Segment::write(DATA, 100), Segment::write(u64::MAX - 2047, 2048)],
        ];
        let mut heads: Vec<_> = useless.iter().map(|segments| bench.offer(segments)).collect();
        heads.push(bench.offer(&[Segment::write(DATA, 2048)]));
        bench.say(&frame(5, 100));
        for head in &heads[..useless.len()] {
            assert_eq!(bench.driver().wait_used(RX), (u32::from(*head), 0));
        }
        assert_eq!(bench.driver().wait_used(RX), (u32::from(heads[useless.len()]), 112));
        assert_eq!(bench.driver().status(), 15);
    }
    // Between good ones: the order is kept.
    bench.begin(net::MRG_RXBUF);
    let first = bench.offer(&[Segment::write(DATA, 300)]);
    let useless = bench.offer(&[Segment::write(RAM_BYTES, 2048)]);
    bench.say(&frame(5, 100));
    assert_eq!(bench.driver().wait_used(RX), (u32::from(first), 112));
    let last = bench.offer(&[Segment::write(DATA, 2048)]);
    bench.say(&frame(6, 100));
    assert_eq!(bench.driver().wait_used(RX), (u32::from(useless), 0));
    assert_eq!(bench.driver().wait_used(RX), (u32::from(last), 112));
}

/// Chains and rings that make no sense, in either queue: the device needs a reset, and after it works.
pub fn broken_queues<B: Bench>(bench: &mut B) {
    type Break<H> = fn(&mut Driver<H>, u16, u64);
    let breaks: [(&str, Break<B::Host>); 5] = [
        ("a loop", |driver, queue, table| {
            driver.descriptor(table, 0, Segment::read(DATA, 16), NEXT, 1);
            driver.descriptor(table, 1, Segment::read(DATA, 16), NEXT, 0);
            driver.make_available(queue, 0);
        }),
        ("a head outside", |driver, queue, _| driver.make_available(queue, 64)),
        ("a next outside", |driver, queue, table| {
            driver.descriptor(table, 0, Segment::read(DATA, 16), NEXT, 64);
            driver.make_available(queue, 0);
        }),
        ("2^32 bytes", |driver, queue, _| {
            driver.push(queue, &[Segment::write(DATA, u32::MAX), Segment::write(DATA, 2)]);
        }),
        ("an available index that jumps", |driver, queue, _| driver.set_available(queue, 200)),
    ];
    for queue in [RX, TX] {
        for (what, broken) in breaks {
            bench.begin(net::MRG_RXBUF);
            let table = Driver::<B::Host>::areas(queue)[0];
            broken(bench.driver(), queue, table);
            bench.driver().kick(queue);
            bench.turn();
            bench.driver().wait_needs_reset();
            assert_eq!(bench.driver().used(queue), None, "{what}");
            bench.driver().reset();
        }
    }
    bench.works();
}

/// A reset while buffers are held: nothing is written to them any more, and what came for that driver is not the next one's.
pub fn resets(bench: &mut impl Bench) {
    for _ in 0..3 {
        bench.begin(ALL);
        for i in 0..40 {
            bench.offer(&[Segment::write(DATA + 0x1000 * i, 2048)]);
        }
        bench.say(&frame(1, 100));
        bench.driver().wait_used(RX);
        bench.driver().reset();
        bench.driver().poke(DATA, &[0xaa; 0x28_000]);
        say(bench.far(), &frame(2, 100));
        bench.turn();
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(bench.driver().peek(DATA, 0x28_000), [0xaa; 0x28_000]);
        bench.works();
    }
}

/// No interrupt that the driver does not want.
pub fn event_index(bench: &mut impl Bench) {
    bench.begin(feature::EVENT_IDX | net::MRG_RXBUF);
    // That of the first frame comes after its used entry.
    let until = Instant::now() + PATIENCE;
    while bench.interrupts() == 0 {
        assert!(Instant::now() < until, "no interrupt comes");
        std::thread::sleep(Duration::from_micros(100));
    }
    let sent = frame(3, 60);
    bench.driver().poke(DATA, &sent);
    bench.driver().set_interrupts(TX, 1, 3); // the flag means nothing now; at the third from here
    for number in 0..4 {
        bench.send(&[Segment::read(DATA, sent.len() as u32)]);
        hear(bench.far());
        let expected = u64::from(number == 2);
        // The interrupt comes after the used entry.
        let mut seen = bench.interrupts();
        for _ in 0..200 {
            if seen >= expected && expected > 0 {
                break;
            }
            std::thread::sleep(Duration::from_micros(100));
            seen += bench.interrupts();
        }
        assert_eq!(seen, expected, "at frame {number}");
    }
}

/// Many frames both ways, and as many rounds that all indices wrap.
pub fn crowds(bench: &mut impl Bench, rounds: u64) {
    bench.begin(ALL);
    let (sent, room) = (DATA, DATA + 0x10_0000);
    for i in 0..48 {
        bench.driver().push(RX, &[Segment::write(room + 0x800 * i, 2048)]);
    }
    bench.driver().kick(RX);
    let mut next = 0;
    for round in 0..rounds {
        for i in 0..16u64 {
            let frame = frame((round + i) as u8, 60 + i as usize);
            bench.driver().poke(sent + 0x100 * i, &frame);
            bench.driver().push(TX, &[Segment::read(sent + 0x100 * i, frame.len() as u32)]);
        }
        bench.driver().kick(TX);
        for i in 0..16u64 {
            bench.driver().wait_used(TX);
            let got = hear(bench.far());
            assert!(got == frame((round + i) as u8, 60 + i as usize), "{round} {i}");
            say(bench.far(), &got);
        }
        bench.turn();
        for i in 0..16u64 {
            let (_, written) = bench.driver().wait_used(RX);
            assert_eq!(u64::from(written), 72 + i, "{round} {i}");
            let at = room + 0x800 * (next % 48);
            let expected = frame((round + i) as u8, 60 + i as usize);
            assert!(bench.driver().peek(at + 12, written as usize - 12) == expected[12..], "{round} {i}");
            bench.driver().push(RX, &[Segment::write(at, 2048)]);
            next += 1;
        }
        bench.driver().kick(RX);
    }
}

/// A far end that has gone: the driver sees it, and is not held up.
pub fn dies<B: Bench>(bench: &mut B, gone: impl FnOnce(&mut B)) {
    bench.begin(ALL);
    for i in 0..40 {
        bench.offer(&[Segment::write(DATA + 0x1000 * i, 2048)]);
    }
    let status = |bench: &mut B| bench.driver().host.read(0, register::CONFIG + 6, 2);
    assert_eq!(status(bench), 1);
    let generation = bench.driver().get(register::CONFIG_GENERATION);
    gone(bench);
    bench.turn();
    let until = Instant::now() + PATIENCE;
    while status(bench) != 0 {
        assert!(Instant::now() < until, "the link is up");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_ne!(bench.driver().get(register::CONFIG_GENERATION), generation);
    assert_eq!(bench.driver().get(register::INTERRUPT_STATUS) & 2, 2, "the driver is told");
    for _ in 0..100 {
        bench.send(&[Segment::read(DATA, 112)]);
    }
    assert_eq!(bench.driver().status(), 15);
}

/// A command to the control queue: what the device acknowledges it with.
pub fn command<H: Host>(driver: &mut Driver<H>, queue: u16, bytes: &[u8]) -> (u8, u32) {
    driver.poke(DATA, bytes);
    driver.poke(DATA + 0x100, &[0xee]);
    driver.push(queue, &[Segment::read(DATA, bytes.len() as u32), Segment::write(DATA + 0x100, 1)]);
    driver.kick(queue);
    let (_, written) = driver.wait_used(queue);
    (driver.peek(DATA + 0x100, 1)[0], written)
}

/// The control queue of a device of three pairs.
pub fn commands<H: Host>(driver: &mut Driver<H>) {
    driver.begin(ALL, 7, 16);
    let space: Vec<_> = (8..10).map(|at| driver.host.read(0, register::CONFIG + at, 1)).collect();
    assert_eq!(space, [3, 0]);
    let mq = |pairs: u16| {
        let [low, high] = pairs.to_le_bytes();
        vec![control::CLASS_MQ, control::MQ_VQ_PAIRS_SET, low, high]
    };
    for pairs in [1, 3, 2, 1] {
        assert_eq!(command(driver, 6, &mq(pairs)), (control::OK, 1), "{pairs} pairs");
    }
    for pairs in [0, 4, 0x100, 0x8000, u16::MAX] {
        assert_eq!(command(driver, 6, &mq(pairs)), (control::ERR, 1), "{pairs} pairs");
    }
    for (class, number) in [(0, 0), (1, 0), (2, 0), (3, 0), (4, 1), (4, 2), (5, 0), (255, 255)] {
        assert_eq!(command(driver, 6, &[class, number, 1, 0]), (control::ERR, 1), "{class} {number}");
    }
    for bytes in [&[4u8][..], &[4, 0], &[4, 0, 1], &[4, 0, 1, 0, 0]] {
        assert_eq!(command(driver, 6, bytes), (control::ERR, 1), "{bytes:?}");
    }
    // Without room for an answer, or with one that is not there.
    for answer in [vec![], vec![Segment::write(RAM_BYTES, 1)]] {
        driver.poke(DATA, &mq(2));
        let mut chain = vec![Segment::read(DATA, 4)];
        chain.extend(answer);
        driver.push(6, &chain);
        driver.kick(6);
        assert_eq!(driver.wait_used(6).1, 0);
    }
    assert_eq!(driver.status(), 15);
}

/// The size of each queue.
pub fn sizes<H: Host>(driver: &mut Driver<H>, queues: u16) {
    for queue in 0..=queues {
        driver.set(register::QUEUE_SEL, queue.into());
        let expected = if queue == queues { 0 } else { u32::from(QUEUE_SIZE) };
        assert_eq!(driver.get(register::QUEUE_SIZE_MAX), expected);
    }
}
