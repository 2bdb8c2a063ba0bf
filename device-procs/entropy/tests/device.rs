//! The entropy device in this process, over a source that counts.
#![allow(clippy::unwrap_used, clippy::panic)] // Tests; clippy knows only #[test] functions as such.

use std::io;

use cellblock_entropy::spec::{MAX_BYTES, QUEUE_SIZE};
use cellblock_entropy::{HostRandom, Random, Requests, identity};
use cellblock_sdk::device::{Clock, SECOND};
use cellblock_sdk::testing::conformance::{self, conforms};
use cellblock_sdk::testing::virtio::{DATA, Driver, Edges, RAM_BYTES, Segment, shared_ram};
use cellblock_sdk::testing::{Harness, Host, ManualClock};
use cellblock_sdk::virtio::spec::{feature, register};
use cellblock_sdk::virtio::{Inline, Interrupt, OneByOne, Transport};
use cellblock_wire::device::{Bucket, Limits};

/// 1, 2, 3, … and an error after so many bytes.
struct Counting(u64, u64);

impl Random for Counting {
    fn fill(&mut self, into: &mut [u8]) -> io::Result<()> {
        if self.0 + into.len() as u64 > self.1 {
            return Err(io::Error::other("dry"));
        }
        for byte in into {
            self.0 += 1;
            *byte = self.0 as u8;
        }
        Ok(())
    }
}

type Model<R> = Harness<Transport<Inline<OneByOne<Requests<R, ManualClock>>>>>;

fn device<R: Random>(source: R) -> Driver<Model<R>> {
    limited(source, &ManualClock::default(), &Limits::default())
}

fn limited<R: Random>(source: R, clock: &ManualClock, limits: &Limits) -> Driver<Model<R>> {
    let interrupt = Interrupt::new(Edges::default());
    let ram = shared_ram().0;
    let engine = Inline::servers(vec![Requests::new(source, clock.clone(), limits)], interrupt.clone());
    Driver::new(Harness::new(Transport::new(identity(), engine, ram.clone(), interrupt)), ram)
}

fn ask(driver: &mut Driver<impl Host>, chain: &[Segment]) -> u32 {
    let head = driver.push(0, chain);
    driver.kick(0);
    let (id, length) = driver.wait_used(0);
    assert_eq!(id, u32::from(head));
    length
}

#[test]
fn it_conforms() {
    let wanted = conformance::Device { id: 4, features: 0, queues: 1, queue_size: QUEUE_SIZE, eager: &[0] };
    conforms(&mut device(HostRandom), &wanted);
}

#[test]
fn it_is_found() {
    let mut driver = device(HostRandom);
    assert_eq!(driver.get(register::DEVICE_ID), 4);
    assert_eq!(driver.offered(), feature::VERSION_1 | feature::EVENT_IDX | feature::INDIRECT_DESC);
    driver.begin(u64::MAX, 1, QUEUE_SIZE);
}

#[test]
fn buffers_are_filled_over_their_borders() {
    let mut driver = device(Counting(0, u64::MAX));
    driver.begin(u64::MAX, 1, 16);
    assert_eq!(ask(&mut driver, &[Segment::write(DATA, 3), Segment::write(DATA + 0x100, 600)]), 603);
    assert_eq!(driver.peek(DATA, 4), [1, 2, 3, 0]);
    assert_eq!(driver.peek(DATA + 0x100, 2), [4, 5]);
    assert_eq!(driver.peek(DATA + 0x100 + 599, 2), [(603 % 256) as u8, 0]);
}

#[test]
fn a_request_gets_so_much_and_no_more() {
    let mut driver = device(Counting(0, u64::MAX));
    driver.begin(u64::MAX, 1, 16);
    assert_eq!(u64::from(ask(&mut driver, &[Segment::write(DATA, 1 << 20)])), MAX_BYTES);
    assert_eq!(ask(&mut driver, &[Segment::write(DATA, 0)]), 0);
    assert_eq!(ask(&mut driver, &[Segment::read(DATA, 16)]), 0, "nothing to write");
}

#[test]
fn bad_buffers_and_a_dry_source_get_nothing() {
    let mut driver = device(Counting(0, 300));
    driver.begin(u64::MAX, 1, 16);
    assert_eq!(ask(&mut driver, &[Segment::write(RAM_BYTES, 16)]), 0);
    assert_eq!(ask(&mut driver, &[Segment::write(u64::MAX, 16)]), 0);
    assert_eq!(ask(&mut driver, &[Segment::write(DATA, 1000)]), 256, "what there was");
    assert_eq!(ask(&mut driver, &[Segment::write(DATA, 1000)]), 0);
    assert_eq!(driver.status(), 15);
}

#[test]
fn a_loop_needs_a_reset() {
    let mut driver = device(HostRandom);
    driver.begin(u64::MAX, 1, 16);
    driver.descriptor(0x1_0000, 0, Segment::write(DATA, 16), 1, 0);
    driver.make_available(0, 0);
    driver.kick(0);
    driver.wait_needs_reset();
    driver.begin(u64::MAX, 1, 16);
    assert_eq!(ask(&mut driver, &[Segment::write(DATA, 16)]), 16);
}

/// Requests of `bytes` bytes, always four of them waiting, for ten seconds. How many are served.
fn served_in_ten_seconds(limits: &Limits, bytes: u32) -> u64 {
    let clock = ManualClock::default();
    let mut driver = limited(Counting(0, u64::MAX), &clock, limits);
    driver.begin(u64::MAX, 1, 16);
    for _ in 0..4 {
        driver.push(0, &[Segment::write(DATA, bytes)]);
    }
    driver.kick(0);
    let mut served = 0;
    loop {
        while driver.used(0).is_some() {
            served += 1;
            driver.push(0, &[Segment::write(DATA, bytes)]);
        }
        let wait = driver.host.device.engine().wait(0);
        match wait.until.map(|until| until.max(clock.monotonic())) {
            Some(until) if until > 10 * SECOND => return served,
            Some(until) => clock.advance(until - clock.monotonic() + 30_000),
            None => {}
        }
        driver.host.device.engine().poll();
    }
}

#[test]
fn limits_are_kept() {
    let bucket = |per_second, burst| Some(Bucket { per_second, burst });
    for (per_second, burst, each) in [(1000, 64, 64), (100_000, 1, 256), (1 << 20, 1 << 20, 4096)] {
        let limits = Limits { bytes: bucket(per_second, burst), operations: None };
        let (bytes, wanted) =
            (served_in_ten_seconds(&limits, each) * u64::from(each), 10 * per_second + burst);
        assert!(bytes.abs_diff(wanted) <= wanted / 10, "{bytes} bytes, allowed are {wanted}");
    }
    for (per_second, burst) in [(10, 1), (500, 100)] {
        let limits = Limits { bytes: None, operations: bucket(per_second, burst) };
        let (served, wanted) = (served_in_ten_seconds(&limits, 16), 10 * per_second + burst);
        assert!(served.abs_diff(wanted) <= wanted / 10, "{served} requests, allowed are {wanted}");
    }
    // The tighter of two counts.
    let limits = Limits { bytes: bucket(1 << 30, 1), operations: bucket(10, 1) };
    assert!(served_in_ten_seconds(&limits, 16).abs_diff(101) <= 10);
}

#[test]
fn a_request_larger_than_the_burst_is_served_whole_and_paid_for() {
    let clock = ManualClock::default();
    let limits = Limits { bytes: Some(Bucket { per_second: 1000, burst: 10 }), operations: None };
    let mut driver = limited(Counting(0, u64::MAX), &clock, &limits);
    driver.begin(u64::MAX, 1, 16);
    assert_eq!(ask(&mut driver, &[Segment::write(DATA, 5010)]), 5010);
    driver.push(0, &[Segment::write(DATA, 1)]);
    driver.kick(0);
    assert_eq!(driver.host.device.engine().wait(0).until, Some(5 * SECOND));
    clock.advance(5 * SECOND - 1);
    driver.host.device.engine().poll();
    assert_eq!(driver.used(0), None);
    clock.advance(1);
    driver.host.device.engine().poll();
    assert_eq!(driver.wait_used(0).1, 1);
}
