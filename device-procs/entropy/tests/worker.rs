//! The entropy device in a real worker process, under its serve program.
#![allow(clippy::unwrap_used, clippy::panic)] // Helpers beside the tests.

use std::time::{Duration, Instant};

use cellblock_entropy::spec::QUEUE_SIZE;
use cellblock_sdk::testing::conformance::{self, conforms};
use cellblock_sdk::testing::process::{Program, Supervised, Wanted};
use cellblock_sdk::testing::virtio::{DATA, Driver, Segment, shared_ram};
use cellblock_wire::device::{Bucket, DeviceConfig, EntropyConfig, Limits, Role};
use rustix::event::{EventfdFlags, eventfd};

fn start() -> Driver<Supervised> {
    start_with(Limits::default())
}

fn start_with(limits: Limits) -> Driver<Supervised> {
    let program = Program::find(
        "entropy",
        env!("CARGO_BIN_EXE_entropy"),
        include_bytes!(concat!(env!("OUT_DIR"), "/worker.start.bpf")),
    );
    let wanted = Wanted {
        config: DeviceConfig::Entropy(EntropyConfig { limits }),
        lanes: 1,
        poll_max_us: 0,
        pipes: false,
        nonblocking: false,
    };
    let (ram, memory, fd) = shared_ram();
    let kick = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let worker = Supervised::start_with(&program, &wanted, vec![(memory, fd), (Role::QueueKick(0), kick)]);
    Driver::new(worker.unwrap(), ram)
}

fn bytes(driver: &mut Driver<Supervised>) -> Vec<u8> {
    driver.poke(DATA, &[0; 256]);
    driver.push(0, &[Segment::write(DATA, 256)]);
    driver.kick(0);
    assert_eq!(driver.wait_used(0).1, 256);
    driver.peek(DATA, 256)
}

#[test]
fn it_conforms() {
    let wanted = conformance::Device { id: 4, features: 0, queues: 1, queue_size: QUEUE_SIZE, eager: &[0] };
    conforms(&mut start(), &wanted);
}

#[test]
fn random_bytes_come_and_never_the_same() {
    let mut driver = start();
    driver.begin(u64::MAX, 1, 16);
    let (first, second) = (bytes(&mut driver), bytes(&mut driver));
    assert_ne!(first, second);
    let distinct: std::collections::BTreeSet<_> = first.iter().chain(&second).collect();
    assert!(distinct.len() > 150, "512 random bytes have only {} values", distinct.len());
}

#[test]
fn a_successor_does_what_was_left() {
    let mut driver = start();
    driver.begin(u64::MAX, 1, 16);
    bytes(&mut driver);
    driver.push(0, &[Segment::write(DATA + 0x1000, 64)]);
    driver.host.replace().unwrap();
    assert_eq!(driver.wait_used(0).1, 64);
    assert_ne!(driver.peek(DATA + 0x1000, 64), [0; 64]);
}

/// Bytes a second over some seconds, once the burst is used up.
fn measured_rate(driver: &mut Driver<Supervised>, time: Duration) -> f64 {
    let ask = |driver: &mut Driver<Supervised>| {
        driver.push(0, &[Segment::write(DATA, 4096)]);
        driver.kick(0);
        f64::from(driver.wait_used(0).1)
    };
    for _ in 0..64 {
        ask(driver);
    }
    let (begin, mut bytes) = (Instant::now(), 0.0);
    while begin.elapsed() < time {
        bytes += ask(driver);
    }
    bytes / begin.elapsed().as_secs_f64()
}

#[test]
fn limits_are_kept() {
    let per_second = 128 << 10;
    let bytes = Some(Bucket { per_second, burst: per_second });
    let mut driver = start_with(Limits { bytes, operations: None });
    driver.begin(u64::MAX, 1, 16);
    let wanted = per_second as f64;
    // A busy machine makes it slower, never faster.
    for _ in 0..30 {
        let rate = measured_rate(&mut driver, Duration::from_secs(2));
        eprintln!("{rate:.0} bytes a second, allowed are {wanted}");
        assert!(rate < 1.1 * wanted, "{rate}");
        if rate > 0.9 * wanted {
            let counters = driver.host.counters().unwrap();
            assert!(counters.limited > 10 && counters.failed == 0, "{counters:?}");
            return;
        }
    }
    panic!("it is too slow");
}
