//! The balloon in a real worker process, under its serve program.
#![allow(clippy::unwrap_used, clippy::panic, unreachable_pub)] // Helpers beside the tests.

use cellblock_balloon::spec::PAGE;
use cellblock_sdk::testing::conformance::conforms;
use cellblock_sdk::testing::process::{Program, Supervised as Worker, Wanted};
use cellblock_sdk::testing::virtio::{DATA, Driver, Segment, shared_ram};
use cellblock_sdk::virtio::spec::{interrupt, register};
use cellblock_wire::control::{BalloonReport, FromWorker, ToWorker};
use cellblock_wire::device::{BalloonConfig, DeviceConfig, Role};
use rustix::event::{EventfdFlags, eventfd};

use probes::{Bench, DEFLATE, EVERYTHING, INFLATE, REPORTING, STATISTICS, Supervised};

mod probes;

impl Supervised for Worker {
    fn set_balloon(&mut self, pages: u32) {
        self.control.send_message(&ToWorker::SetBalloon { pages }, &[]).unwrap();
    }

    fn ask(&mut self) {
        self.control.send_message(&ToWorker::ReportBalloon, &[]).unwrap();
    }

    fn report(&mut self) -> BalloonReport {
        loop {
            match self.message().unwrap() {
                FromWorker::Balloon(report) => return report,
                // Of queues that made no sense.
                FromWorker::Log { .. } => {}
                other => panic!("instead of a report: {other:?}"),
            }
        }
    }
}

fn start(config: &BalloonConfig) -> Bench<Worker> {
    let program = Program::find(
        "balloon",
        env!("CARGO_BIN_EXE_balloon"),
        include_bytes!(concat!(env!("OUT_DIR"), "/worker.start.bpf")),
    );
    let wanted = Wanted {
        config: DeviceConfig::Balloon(*config),
        lanes: 1,
        poll_max_us: 0,
        pipes: false,
        nonblocking: false,
    };
    let (ram, role, memory) = shared_ram();
    let mut extras = vec![(role, memory.try_clone().unwrap())];
    for queue in 0..config.queues() {
        extras.push((Role::QueueKick(queue), eventfd(0, EventfdFlags::CLOEXEC).unwrap()));
    }
    Bench { driver: Driver::new(Worker::start_with(&program, &wanted, extras).unwrap(), ram), memory }
}

#[test]
fn it_conforms() {
    conforms(&mut start(&EVERYTHING).driver, &probes::conforming());
}

#[test]
fn pages_go_to_the_host() {
    let mut bench = start(&EVERYTHING);
    probes::it_offers_what_it_is_told_to(&mut bench, &EVERYTHING);
    probes::inflated_pages_are_the_hosts(&mut bench);
    probes::page_numbers_run_over_borders(&mut bench);
    probes::deflating_gives_nothing_back(&mut bench);
    probes::reported_pages_are_the_hosts(&mut bench);
}

#[test]
fn what_makes_no_sense_costs_nothing() {
    let mut bench = start(&EVERYTHING);
    probes::pages_that_are_not_there_are_left_out(&mut bench);
    assert_eq!(bench.driver.host.counters().unwrap().failed, 1);
    probes::bad_requests_end_alone(&mut bench);
    probes::a_request_is_bounded(&mut bench);
    probes::a_loop_needs_a_reset(&mut bench);
    probes::bad_statistics_are_passed_over(&mut bench);
    probes::what_is_not_negotiated_does_nothing(&mut bench);
}

#[test]
fn size_and_statistics_are_told() {
    let mut bench = start(&EVERYTHING);
    probes::without_statistics_there_are_none(&mut bench);
    probes::the_size_is_told_both_ways(&mut bench);
    probes::statistics_come_when_they_are_asked_for(&mut bench);
}

#[test]
fn the_smallest_one_has_two_queues() {
    let config = BalloonConfig { statistics: false, reporting: false, ..EVERYTHING };
    probes::it_offers_what_it_is_told_to(&mut start(&config), &config);
}

#[test]
fn a_successor_knows_the_size_and_serves_what_waits() {
    let mut bench = start(&EVERYTHING);
    bench.begin(u64::MAX);
    bench.set_actual(5);
    bench.statistics_wait();
    bench.driver.host.replace().unwrap();
    // Of two it keeps one: it has what its predecessor held, and its thread has the queue.
    bench.statistics_wait();
    bench.driver.wait_used(probes::STATISTICS);
    bench.driver.host.ask();
    bench.driver.wait_used(probes::STATISTICS);
    let report = bench.driver.host.report();
    assert_eq!((report.actual, report.fresh), (5, false));
    bench.fill();
    let given_back = bench.given_back(|bench| bench.pages(probes::INFLATE, &[300]));
    assert_eq!(given_back, cellblock_balloon::spec::PAGE);
}

/// What it shall have, what it has, what the host got back: all of it stays, and all that it does goes on.
#[test]
fn a_successor_is_the_same_balloon() {
    let mut bench = start(&EVERYTHING);
    bench.begin(u64::MAX);
    bench.driver.host.set_balloon(300);
    bench.driver.host.ask();
    assert_eq!(bench.driver.host.report().target, 300);
    bench.driver.host.reconfigure(DeviceConfig::Balloon(BalloonConfig { pages: 300, ..EVERYTHING }));
    bench.fill();
    let first = (DATA / PAGE) as u32;
    let inflated: Vec<u32> = (first..first + 64).collect();
    assert_eq!(bench.given_back(|bench| bench.pages(INFLATE, &inflated)), 64 * PAGE);
    bench.set_actual(64);
    bench.statistics_wait();
    bench.driver.set(register::INTERRUPT_ACK, 3);
    let (held, generation) = (bench.held(), bench.driver.get(register::CONFIG_GENERATION));

    bench.driver.host.replace().unwrap();
    // Of two it keeps one: its thread has the queue.
    bench.statistics_wait();
    bench.driver.wait_used(STATISTICS);
    bench.driver.host.ask();
    bench.driver.wait_used(STATISTICS);
    bench.statistics(&[(4, 123)]);
    let report = bench.driver.host.report();
    assert_eq!((report.target, report.actual, report.fresh), (300, 64, true));
    assert_eq!(report.statistics[4], Some(123));
    assert_eq!(bench.num_pages(), 300);
    assert_ne!(bench.driver.get(register::CONFIG_GENERATION), generation);
    let told = bench.driver.get(register::INTERRUPT_STATUS) & interrupt::CONFIG_CHANGE;
    assert_ne!(told, 0, "the change may have been lost");
    assert_eq!((bench.held(), bench.driver.peek(DATA, 4)), (held, vec![0; 4]));

    bench.driver.poke(DATA, b"back");
    bench.pages(DEFLATE, &[first]);
    assert_eq!(bench.driver.peek(DATA, 4), b"back");
    assert_eq!(bench.given_back(|bench| bench.pages(INFLATE, &[first, first + 64])), 2 * PAGE);
    for (queue, page) in REPORTING.into_iter().zip([100, 200]) {
        let report = [Segment::write(DATA + page * PAGE, 16 * PAGE as u32)];
        assert_eq!(bench.given_back(|bench| bench.request(queue, &report)), 16 * PAGE, "queue {queue}");
    }
}

/// It was asked for, granted to its successors, and then it died.
#[test]
fn a_size_that_its_worker_did_not_hear_of_is_told_by_the_next() {
    let mut bench = start(&EVERYTHING);
    bench.begin(u64::MAX);
    let generation = bench.driver.get(register::CONFIG_GENERATION);
    assert_ne!(bench.num_pages(), 300);
    bench.driver.host.reconfigure(DeviceConfig::Balloon(BalloonConfig { pages: 300, ..EVERYTHING }));
    bench.driver.host.replace().unwrap();
    assert_eq!(bench.num_pages(), 300);
    assert_ne!(bench.driver.get(register::CONFIG_GENERATION), generation);
    assert_ne!(bench.driver.get(register::INTERRUPT_STATUS) & interrupt::CONFIG_CHANGE, 0);
}
