//! The balloon in this process.
#![allow(clippy::unwrap_used, unreachable_pub)] // Helpers beside the tests.

use std::os::fd::OwnedFd;

use cellblock_balloon::device::PATIENCE;
use cellblock_balloon::spec::PAGE;
use cellblock_balloon::{Balloon, Desk, Front, Pages, identity, space};
use cellblock_channel::ram::Piece;
use cellblock_sdk::device::{Action, Device, Event};
use cellblock_sdk::testing::conformance::conforms;
use cellblock_sdk::testing::virtio::{DATA, Driver, Edges, RAM_BYTES, Segment, shared_ram};
use cellblock_sdk::testing::{Harness, Host, ManualClock};
use cellblock_sdk::virtio::{Inline, Interrupt, Kicker, Ram, Transport};
use cellblock_wire::control::BalloonReport;
use cellblock_wire::device::BalloonConfig;
use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate, memfd_create,
};

use probes::{Bench, EVERYTHING, INFLATE, REPORTING, Supervised};

mod probes;

type Model = Transport<Inline<Balloon<ManualClock, fn()>>>;

/// The device with the clock that it looks at.
struct InProcess {
    harness: Harness<Model>,
    clock: ManualClock,
}

impl Host for InProcess {
    fn read(&mut self, region: u32, offset: u64, size: u8) -> u64 {
        self.harness.read(region, offset, size)
    }

    fn write(&mut self, region: u32, offset: u64, size: u8, data: u64) -> Action {
        self.harness.write(region, offset, size, data)
    }
}

impl Supervised for InProcess {
    fn set_balloon(&mut self, pages: u32) {
        self.harness.event(Event::Balloon { pages });
    }

    fn ask(&mut self) {
        self.harness.event(Event::ReportBalloon);
    }

    fn report(&mut self) -> BalloonReport {
        if let Some(report) = self.harness.device.answer() {
            return report;
        }
        self.clock.advance(PATIENCE - 1);
        self.harness.device.engine().poll();
        assert_eq!(self.harness.device.answer(), None, "it waits for so long");
        self.clock.advance(1);
        self.harness.device.engine().poll();
        self.harness.device.answer().unwrap()
    }
}

fn model(config: &BalloonConfig, ram: Ram, clock: ManualClock) -> Model {
    let interrupt = Interrupt::new(Edges::default());
    let pages = Pages::new(ram.clone(), if config.huge_pages { 2 << 20 } else { 4096 });
    let (space, desk) = (space(config, &pages), Desk::default());
    let wake: fn() = || ();
    let balloon = Balloon::new(pages.clone(), desk.clone(), clock, wake);
    let engine = Inline::new(vec![(balloon, (0..config.queues()).collect())], interrupt.clone());
    let front = Front::new(space.clone(), interrupt.clone(), desk, Kicker::none(), &pages);
    let reporter = front.clone();
    Transport::new(identity(config, space), engine, ram, interrupt)
        .on_event(move |event| front.event(event))
        .on_question(move || reporter.report())
}

fn bench(config: &BalloonConfig) -> Bench<InProcess> {
    let (ram, _, memory) = shared_ram();
    bench_of(config, ram, memory)
}

/// Guest memory from the host's pool of huge pages; `None` = that is empty.
fn huge_ram() -> Option<(Ram, OwnedFd)> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    let memory = memfd_create("ram", flags).ok()?;
    ftruncate(&memory, RAM_BYTES).unwrap();
    fcntl_add_seals(&memory, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL).unwrap();
    // All of it has to be there, or touching it is the end of this process.
    fallocate(&memory, FallocateFlags::empty(), 0, RAM_BYTES).ok()?;
    let piece = Piece { address: 0, bytes: RAM_BYTES, offset: 0 };
    Some((Ram::open(vec![(piece, memory.try_clone().unwrap())]).ok()?, memory))
}

fn bench_of(config: &BalloonConfig, ram: Ram, memory: OwnedFd) -> Bench<InProcess> {
    let clock = ManualClock::default();
    let harness = Harness::new(model(config, ram.clone(), clock.clone()));
    Bench { driver: Driver::new(InProcess { harness, clock }, ram), memory }
}

#[test]
fn it_conforms() {
    conforms(&mut bench(&EVERYTHING).driver, &probes::conforming());
}

#[test]
fn it_offers_what_it_is_told_to() {
    for bits in 0..8 {
        let config = BalloonConfig {
            statistics: bits & 1 != 0,
            deflate_on_oom: bits & 2 != 0,
            reporting: bits & 4 != 0,
            ..EVERYTHING
        };
        probes::it_offers_what_it_is_told_to(&mut bench(&config), &config);
    }
}

#[test]
fn inflated_pages_are_the_hosts() {
    probes::inflated_pages_are_the_hosts(&mut bench(&EVERYTHING));
}

#[test]
fn page_numbers_run_over_borders() {
    probes::page_numbers_run_over_borders(&mut bench(&EVERYTHING));
}

#[test]
fn deflating_gives_nothing_back() {
    probes::deflating_gives_nothing_back(&mut bench(&EVERYTHING));
}

#[test]
fn pages_that_are_not_there_are_left_out() {
    probes::pages_that_are_not_there_are_left_out(&mut bench(&EVERYTHING));
}

#[test]
fn bad_requests_end_alone() {
    probes::bad_requests_end_alone(&mut bench(&EVERYTHING));
}

#[test]
fn a_request_is_bounded() {
    probes::a_request_is_bounded(&mut bench(&EVERYTHING));
}

#[test]
fn a_loop_needs_a_reset() {
    probes::a_loop_needs_a_reset(&mut bench(&EVERYTHING));
}

#[test]
fn the_size_is_told_both_ways() {
    probes::the_size_is_told_both_ways(&mut bench(&EVERYTHING));
}

#[test]
fn statistics_come_when_they_are_asked_for() {
    probes::statistics_come_when_they_are_asked_for(&mut bench(&EVERYTHING));
}

#[test]
fn bad_statistics_are_passed_over() {
    probes::bad_statistics_are_passed_over(&mut bench(&EVERYTHING));
}

#[test]
fn without_statistics_there_are_none() {
    probes::without_statistics_there_are_none(&mut bench(&EVERYTHING));
}

#[test]
fn reported_pages_are_the_hosts() {
    probes::reported_pages_are_the_hosts(&mut bench(&EVERYTHING));
}

#[test]
fn what_is_not_negotiated_does_nothing() {
    probes::what_is_not_negotiated_does_nothing(&mut bench(&EVERYTHING));
}

#[test]
fn it_begins_with_the_size_that_it_is_told() {
    let mut bench = bench(&BalloonConfig { pages: 77, ..EVERYTHING });
    bench.begin(0);
    assert_eq!(bench.num_pages(), 77);
}

#[test]
fn of_huge_pages_only_whole_ones_are_given_back() {
    let mut bench = bench(&BalloonConfig { huge_pages: true, ..EVERYTHING });
    bench.begin(u64::MAX);
    bench.fill();
    // 2 MiB from the third MiB on, but for one page.
    let first = (2 * DATA / PAGE) as u32;
    let numbers: Vec<u32> = (0..511).map(|i| first + i).collect();
    assert_eq!(bench.given_back(|bench| bench.pages(INFLATE, &numbers)), 0);
    let numbers: Vec<u32> = (0..513).map(|i| first - 1 + i).collect();
    assert_eq!(bench.given_back(|bench| bench.pages(INFLATE, &numbers)), 2 * DATA);
    let report = [Segment::write(3 * DATA, 4 * DATA as u32)];
    assert_eq!(bench.given_back(|bench| bench.request(REPORTING[0], &report)), 2 * DATA);
}

#[test]
fn huge_pages_go_back_to_their_pool() {
    let Some((ram, memory)) = huge_ram() else {
        eprintln!("SKIP: no four free huge pages of 2 MiB on this host");
        return;
    };
    let mut bench = bench_of(&BalloonConfig { huge_pages: true, ..EVERYTHING }, ram, memory);
    bench.begin(u64::MAX);
    bench.fill();
    let report = [Segment::write(3 * DATA, 4 * DATA as u32)];
    assert_eq!(bench.given_back(|bench| bench.request(REPORTING[0], &report)), 2 * DATA);
    assert_eq!(bench.driver.peek(4 * DATA - 1, 2), [0xa5, 0]);
    assert_eq!(bench.driver.peek(6 * DATA - 1, 2), [0, 0xa5]);
    let first = (6 * DATA / PAGE) as u32;
    assert_eq!(bench.given_back(|bench| bench.pages(INFLATE, &[first, first + 1])), 0);
    assert_eq!(bench.driver.peek(6 * DATA, 1), [0xa5], "what stays the guest's stays as it is");
}

#[test]
fn a_successor_knows_the_size_and_serves_what_waits() {
    let mut bench = bench(&EVERYTHING);
    bench.begin(u64::MAX);
    bench.set_actual(5);
    bench.statistics_wait();
    let (ram, clock) = (bench.driver.ram.clone(), bench.driver.host.clock.clone());
    let saved = bench.driver.host.harness.saved();
    bench.driver.host.harness.device = model(&EVERYTHING, ram, clock);
    bench.driver.host.harness.device.restore(&saved).unwrap();
    bench.driver.host.ask();
    bench.driver.wait_used(probes::STATISTICS);
    assert_eq!(bench.driver.host.report().actual, 5);
}
