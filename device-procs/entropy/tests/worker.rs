//! The entropy device in a real worker process, under its serve program.
#![allow(clippy::unwrap_used)] // Helpers beside the tests.

use cellblock_sdk::testing::process::{Program, Supervised, Wanted};
use cellblock_sdk::testing::virtio::{DATA, Driver, Segment, shared_ram};
use cellblock_wire::device::{DeviceConfig, EntropyConfig, Role};
use rustix::event::{EventfdFlags, eventfd};

fn start() -> Driver<Supervised> {
    let program = Program::find(
        "entropy",
        env!("CARGO_BIN_EXE_entropy"),
        include_bytes!(concat!(env!("OUT_DIR"), "/worker.start.bpf")),
    );
    let wanted = Wanted {
        config: DeviceConfig::Entropy(EntropyConfig::default()),
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
