//! The entropy device with another VMM as its front end, in a real worker process, over vhost-user.
#![allow(clippy::unwrap_used)] // Helpers beside the tests.

use cellblock_entropy::spec::QUEUE_SIZE;
use cellblock_sdk::testing::Harness;
use cellblock_sdk::testing::process::{Program, Supervised, Wanted};
use cellblock_sdk::testing::vhost_user::{Remote, connection, driver, in_flight};
use cellblock_sdk::testing::virtio::{DATA, Driver, Segment, shared_ram};
use cellblock_sdk::virtio::Transport;
use cellblock_sdk::virtio::spec::device_id;
use cellblock_wire::device::{DeviceConfig, EntropyConfig};

fn start() -> (Supervised, Driver<Harness<Transport<Remote>>>) {
    let program = include_bytes!(concat!(env!("OUT_DIR"), "/worker.start.bpf"));
    let program = Program::find("entropy", env!("CARGO_BIN_EXE_entropy"), program);
    let config = DeviceConfig::Entropy(EntropyConfig::default());
    let wanted = Wanted { config, lanes: 1, poll_max_us: 0, pipes: false, nonblocking: false };
    let (stream, role, theirs) = connection();
    let extras = vec![(role, theirs), in_flight()];
    let worker = Supervised::start_with(&program, &wanted, extras).unwrap();
    let (ram, _, memory) = shared_ram();
    let (driver, _edges) = driver(stream, device_id::ENTROPY, QUEUE_SIZE, (ram, &memory));
    (worker, driver)
}

#[test]
fn random_bytes_come_and_never_the_same() {
    let (mut worker, mut driver) = start();
    driver.begin(u64::MAX, 1, 16);
    let mut seen = Vec::new();
    for _ in 0..2 {
        driver.poke(DATA, &[0; 256]);
        driver.push(0, &[Segment::write(DATA, 256)]);
        driver.kick(0);
        assert_eq!(driver.wait_used(0).1, 256);
        seen.push(driver.peek(DATA, 256));
    }
    assert_ne!(seen[0], seen[1]);
    let distinct: std::collections::BTreeSet<_> = seen.iter().flatten().collect();
    assert!(distinct.len() > 150, "512 random bytes have only {} values", distinct.len());
    drop(driver);
    assert_eq!(worker.ended().unwrap().code(), Some(0));
}
