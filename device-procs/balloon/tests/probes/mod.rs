//! What a driver and a supervisor do to a balloon, on any host: in this process, or in a worker.
#![allow(clippy::unwrap_used, clippy::panic)] // Tests; clippy knows only #[test] functions as such.

use std::os::fd::OwnedFd;

use cellblock_balloon::spec::{PAGE, QUEUE_SIZE, feature};
use cellblock_sdk::testing::Host;
use cellblock_sdk::testing::conformance;
use cellblock_sdk::testing::virtio::{DATA, Driver, RAM_BYTES, Segment};
use cellblock_sdk::virtio::spec::{interrupt, register};
use cellblock_wire::control::BalloonReport;
use cellblock_wire::device::BalloonConfig;
use rustix::fs::fstat;

pub const INFLATE: u16 = 0;
pub const DEFLATE: u16 = 1;
pub const STATISTICS: u16 = 2;
/// Where Linux has the reporting queue behind the statistics', and where the specification has it.
pub const REPORTING: [u16; 2] = [3, 4];
/// Where requests lie.
pub const REQUEST: u64 = 0x8_0000;
/// Pages of guest memory.
pub const PAGES: u32 = (RAM_BYTES / PAGE) as u32;

pub const EVERYTHING: BalloonConfig =
    BalloonConfig { pages: 0, deflate_on_oom: true, statistics: true, reporting: true, huge_pages: false };

/// What a driver finds of `EVERYTHING`.
pub fn conforming() -> conformance::Device<'static> {
    let features = feature::STATS_VQ | feature::DEFLATE_ON_OOM | feature::PAGE_REPORTING;
    conformance::Device {
        id: 5,
        features,
        queues: EVERYTHING.queues(),
        queue_size: QUEUE_SIZE,
        eager: &[0, 1, 2],
    }
}

/// A host whose supervisor can speak.
pub trait Supervised: Host {
    /// Sets the balloon's size.
    fn set_balloon(&mut self, pages: u32);
    /// Asks for a report; it need not be there yet.
    fn ask(&mut self);
    /// The report, within the balloon's patience.
    fn report(&mut self) -> BalloonReport;
}

/// A driver, and guest memory as the host sees it.
pub struct Bench<H> {
    pub driver: Driver<H>,
    pub memory: OwnedFd,
}

impl<H: Supervised> Bench<H> {
    pub fn begin(&mut self, features: u64) {
        let queues = if self.driver.offered() & feature::PAGE_REPORTING != 0 { 5 } else { 3 };
        self.driver.begin(features, queues, 64);
    }

    /// Bytes that the host has for guest memory.
    pub fn held(&self) -> u64 {
        fstat(&self.memory).unwrap().st_blocks as u64 * 512
    }

    /// What the host gets back while `what` is done.
    pub fn given_back(&mut self, what: impl FnOnce(&mut Self)) -> u64 {
        let before = self.held();
        what(self);
        before.saturating_sub(self.held())
    }

    /// Touches all memory but that of the rings.
    pub fn fill(&mut self) {
        self.driver.poke(REQUEST, &vec![0xa5; (RAM_BYTES - REQUEST) as usize]);
    }

    /// One request, to its end.
    pub fn request(&mut self, queue: u16, segments: &[Segment]) {
        let head = self.driver.push(queue, segments);
        self.driver.kick(queue);
        assert_eq!(self.driver.wait_used(queue), (head.into(), 0));
    }

    pub fn pages(&mut self, queue: u16, numbers: &[u32]) {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        self.driver.poke(REQUEST, &bytes);
        self.request(queue, &[Segment::read(REQUEST, bytes.len() as u32)]);
    }

    pub fn num_pages(&mut self) -> u32 {
        self.driver.get(register::CONFIG)
    }

    pub fn set_actual(&mut self, pages: u32) {
        self.driver.set(register::CONFIG + 4, pages);
    }

    /// Statistics that nobody has asked for.
    pub fn statistics_wait(&mut self) {
        self.statistics(&[(4, 1)]);
    }

    /// The device's thread has the queue, which it gets a moment after the driver has heard that the device runs, and holds
    /// nothing of it.
    fn statistics_taken(&mut self) {
        self.statistics(&[(4, 1)]);
        self.statistics(&[(4, 2)]);
        self.driver.wait_used(STATISTICS);
        self.driver.host.ask();
        self.driver.wait_used(STATISTICS);
        assert!(!self.driver.host.report().fresh, "the driver said nothing");
    }

    /// What the guest tells of its memory.
    pub fn statistics(&mut self, told: &[(u16, u64)]) {
        let pair = |(tag, value): &(u16, u64)| [&tag.to_le_bytes()[..], &value.to_le_bytes()[..]].concat();
        let bytes: Vec<u8> = told.iter().flat_map(pair).collect();
        self.driver.poke(REQUEST, &bytes);
        self.driver.push(STATISTICS, &[Segment::read(REQUEST, bytes.len() as u32)]);
        self.driver.kick(STATISTICS);
    }
}

fn number(address: u64) -> u32 {
    (address / PAGE) as u32
}

pub fn it_offers_what_it_is_told_to(bench: &mut Bench<impl Supervised>, config: &BalloonConfig) {
    assert_eq!(bench.driver.get(register::DEVICE_ID), 5);
    let offered = bench.driver.offered();
    for (wanted, bit) in [
        (config.statistics, feature::STATS_VQ),
        (config.deflate_on_oom, feature::DEFLATE_ON_OOM),
        (config.reporting, feature::PAGE_REPORTING),
        (false, 1),
        (false, 1 << 3),
        (false, 1 << 4),
    ] {
        assert_eq!(offered & bit != 0, wanted, "{bit:#x} of {offered:#x}");
    }
    bench.driver.begin(u64::MAX, config.queues(), QUEUE_SIZE);
}

/// Pages go and leave no trace, in any order, alone and in runs; their neighbours stay.
pub fn inflated_pages_are_the_hosts(bench: &mut Bench<impl Supervised>) {
    bench.begin(0);
    bench.fill();
    let first = number(DATA);
    let numbers: Vec<u32> = (0..256).rev().map(|i| first + 2 * i).collect();
    assert_eq!(bench.given_back(|bench| bench.pages(INFLATE, &numbers)), 256 * PAGE);
    for page in 0..512 {
        let wanted = if page % 2 == 0 { 0 } else { 0xa5 };
        assert_eq!(bench.driver.peek(DATA + page * PAGE, 1), [wanted], "page {page}");
    }
    bench.fill();
    let run: Vec<u32> = (0..100).chain(50..60).chain([200, 200]).map(|i| first + i).collect();
    assert_eq!(bench.given_back(|bench| bench.pages(INFLATE, &run)), 101 * PAGE);
    assert_eq!(bench.given_back(|bench| bench.pages(INFLATE, &run)), 0, "they are gone already");
}

/// Over several buffers, some of a few bytes, and a number that is cut off.
pub fn page_numbers_run_over_borders(bench: &mut Bench<impl Supervised>) {
    bench.begin(0);
    bench.fill();
    let numbers: Vec<u8> = (0..8u32).flat_map(|i| (number(DATA) + 3 * i).to_le_bytes()).collect();
    bench.driver.poke(REQUEST, &numbers);
    let pieces = [(0, 5), (5, 1), (6, 12), (18, 13)];
    let segments: Vec<_> = pieces.map(|(at, length)| Segment::read(REQUEST + at, length)).to_vec();
    assert_eq!(bench.given_back(|bench| bench.request(INFLATE, &segments)), 7 * PAGE);
}

pub fn deflating_gives_nothing_back(bench: &mut Bench<impl Supervised>) {
    bench.begin(0);
    bench.fill();
    let first = number(DATA);
    assert_eq!(bench.given_back(|bench| bench.pages(DEFLATE, &[first, first + 1])), 0);
    bench.pages(INFLATE, &[first]);
    bench.pages(DEFLATE, &[first]);
    assert_eq!(bench.driver.peek(DATA, 4), [0; 4]);
    bench.driver.poke(DATA, b"back");
    assert_eq!(bench.driver.peek(DATA, 4), b"back");
}

/// Numbers that are no pages cost only the guest: the good ones beside them are taken.
pub fn pages_that_are_not_there_are_left_out(bench: &mut Bench<impl Supervised>) {
    bench.begin(0);
    bench.fill();
    let first = number(DATA);
    let numbers = [PAGES - 1, PAGES, PAGES + 1, u32::MAX, u32::MAX - 1, first, 0x000f_ffff, 0x0010_0000];
    assert_eq!(bench.given_back(|bench| bench.pages(INFLATE, &numbers)), 2 * PAGE);
    assert_eq!(bench.driver.status(), 15);
}

pub fn bad_requests_end_alone(bench: &mut Bench<impl Supervised>) {
    bench.begin(u64::MAX);
    bench.fill();
    for queue in [INFLATE, DEFLATE, REPORTING[0], REPORTING[1]] {
        let bad = |bench: &mut Bench<_>| {
            bench.request(queue, &[Segment::read(REQUEST, 0)]);
            bench.request(queue, &[Segment::read(REQUEST, 3)]);
            bench.request(queue, &[Segment::read(RAM_BYTES - 2, 4)]);
            bench.request(queue, &[Segment::read(u64::MAX, u32::MAX)]);
            bench.request(queue, &[Segment::write(RAM_BYTES, 4096)]);
            bench.request(queue, &[Segment::write(u64::MAX - 1, 4096)]);
            bench.request(queue, &[Segment::write(DATA + 1, 4096)]);
            bench.request(queue, &[Segment::write(DATA, 4095)]);
        };
        assert_eq!(bench.given_back(bad), 0);
        assert_eq!(bench.driver.status(), 15);
    }
}

/// A long list is cut, and so are the host's costs.
pub fn a_request_is_bounded(bench: &mut Bench<impl Supervised>) {
    bench.begin(0);
    bench.fill();
    // Every number once behind 4096 that are nowhere: none is looked at.
    let nowhere = vec![0xff; 16384];
    bench.driver.poke(0x10_0000 - 16384, &nowhere);
    bench.driver.poke(DATA, &number(DATA + 64 * PAGE).to_le_bytes());
    let request = [Segment::read(0x10_0000 - 16384, 16384 + 4)];
    assert_eq!(bench.given_back(|bench| bench.request(INFLATE, &request)), 0);
    bench.request(INFLATE, &[Segment::read(DATA, 6 << 20)]);
}

pub fn a_loop_needs_a_reset(bench: &mut Bench<impl Supervised>) {
    bench.begin(0);
    bench.driver.descriptor(0x1_0000, 0, Segment::read(DATA, 16), 1, 0);
    bench.driver.make_available(INFLATE, 0);
    bench.driver.kick(INFLATE);
    bench.driver.wait_needs_reset();
    bench.begin(0);
    bench.fill();
    assert_eq!(bench.given_back(|bench| bench.pages(INFLATE, &[number(DATA)])), PAGE);
}

/// The size that the balloon shall have, and the one that it has.
pub fn the_size_is_told_both_ways(bench: &mut Bench<impl Supervised>) {
    bench.begin(0);
    assert_eq!(bench.num_pages(), 0);
    let generation = bench.driver.get(register::CONFIG_GENERATION);
    bench.driver.host.set_balloon(300);
    bench.driver.host.ask();
    let report = bench.driver.host.report();
    assert_eq!((report.target, report.actual), (300, 0));
    assert_eq!(bench.num_pages(), 300);
    assert_ne!(bench.driver.get(register::CONFIG_GENERATION), generation);
    assert_ne!(bench.driver.get(register::INTERRUPT_STATUS) & interrupt::CONFIG_CHANGE, 0);
    bench.driver.set(register::INTERRUPT_ACK, interrupt::CONFIG_CHANGE);
    bench.set_actual(256);
    bench.driver.set(register::CONFIG, 7);
    assert_eq!(bench.num_pages(), 300, "the driver does not write it");
    bench.driver.host.ask();
    let report = bench.driver.host.report();
    assert_eq!((report.target, report.actual), (300, 256));
    bench.driver.host.set_balloon(u32::MAX);
    bench.driver.host.ask();
    assert_eq!(bench.driver.host.report().target, PAGES, "there is no more");
    bench.driver.reset();
    bench.driver.host.ask();
    let report = bench.driver.host.report();
    assert_eq!((report.target, report.actual), (PAGES, 0), "another driver begins with an empty one");
}

/// The driver's first request waits until somebody asks; then it brings another.
pub fn statistics_come_when_they_are_asked_for(bench: &mut Bench<impl Supervised>) {
    bench.begin(feature::STATS_VQ);
    bench.statistics_taken();
    bench.statistics(&[(4, 1000), (5, 5000)]);
    bench.driver.host.ask();
    bench.driver.wait_used(STATISTICS);
    bench.statistics(&[(4, 900), (5, 5000), (15, u64::MAX), (16, 1), (0xffff, 2)]);
    let report = bench.driver.host.report();
    assert!(report.fresh, "{report:?}");
    let told: Vec<_> = report.statistics.iter().enumerate().filter_map(|(i, v)| v.map(|v| (i, v))).collect();
    assert_eq!(told, [(4, 900), (5, 5000), (15, u64::MAX)]);
    assert_eq!(bench.driver.used(STATISTICS), None, "the next waits again");

    bench.driver.host.ask();
    bench.driver.wait_used(STATISTICS);
    let report = bench.driver.host.report();
    assert!(!report.fresh, "the driver said nothing");
    assert_eq!(report.statistics[4], Some(900), "so it is what it said last");
    bench.statistics(&[(4, 800)]);
    bench.statistics(&[(4, 700)]);
    bench.driver.wait_used(STATISTICS);
    assert_eq!(bench.driver.used(STATISTICS), None, "of two it keeps one");

    bench.driver.host.ask();
    bench.driver.wait_used(STATISTICS);
    bench.driver.reset();
    assert!(!bench.driver.host.report().fresh, "a reset answers");
}

pub fn bad_statistics_are_passed_over(bench: &mut Bench<impl Supervised>) {
    bench.begin(feature::STATS_VQ);
    bench.statistics_taken();
    for segments in [
        &[Segment::read(REQUEST, 9)][..],
        &[Segment::write(REQUEST, 100)],
        &[Segment::read(RAM_BYTES - 5, 10)],
        &[Segment::read(REQUEST, 1 << 20)],
    ] {
        let head = bench.driver.push(STATISTICS, segments);
        bench.driver.kick(STATISTICS);
        bench.driver.host.ask();
        assert_eq!(bench.driver.wait_used(STATISTICS), (head.into(), 0));
        bench.driver.host.report();
    }
    assert_eq!(bench.driver.status(), 15);
}

pub fn without_statistics_there_are_none(bench: &mut Bench<impl Supervised>) {
    bench.driver.host.ask();
    assert!(!bench.driver.host.report().fresh, "no driver");
    bench.begin(feature::PAGE_REPORTING | feature::DEFLATE_ON_OOM);
    bench.driver.host.ask();
    let report = bench.driver.host.report();
    assert!(!report.fresh && report.statistics.iter().all(Option::is_none));
    bench.fill();
    let report = [Segment::write(DATA, PAGE as u32)];
    assert_eq!(
        bench.given_back(|bench| bench.request(2, &report)),
        PAGE,
        "where Linux then reports free pages"
    );
}

pub fn reported_pages_are_the_hosts(bench: &mut Bench<impl Supervised>) {
    bench.begin(u64::MAX);
    for queue in REPORTING {
        bench.fill();
        let report = [
            Segment::write(DATA, 64 * PAGE as u32),
            Segment::write(DATA + 100 * PAGE, PAGE as u32),
            Segment::write(RAM_BYTES - PAGE, 2 * PAGE as u32),
            // Whole pages only: of this one there are two.
            Segment::write(DATA + 200 * PAGE - 1, 2 * PAGE as u32 + 2),
        ];
        assert_eq!(bench.given_back(|bench| bench.request(queue, &report)), 67 * PAGE);
        assert_eq!(bench.driver.peek(DATA, 1), [0]);
        assert_eq!(bench.driver.peek(DATA + 200 * PAGE - 1, 1), [0xa5]);
        assert_eq!(bench.driver.peek(DATA + 202 * PAGE, 1), [0xa5]);
    }
}

/// Free pages are taken from drivers only that know of it.
pub fn what_is_not_negotiated_does_nothing(bench: &mut Bench<impl Supervised>) {
    bench.begin(feature::DEFLATE_ON_OOM);
    bench.fill();
    let before = bench.held();
    for queue in [2, 3, 4] {
        bench.driver.push(queue, &[Segment::write(DATA, 4096)]);
        bench.driver.kick(queue);
    }
    // This one is served, after those would have been.
    bench.pages(DEFLATE, &[0]);
    for queue in [2, 3, 4] {
        assert_eq!(bench.driver.used(queue), None, "queue {queue}");
    }
    assert_eq!(bench.held(), before);
}
