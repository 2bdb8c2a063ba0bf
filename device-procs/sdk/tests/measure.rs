//! What a request costs beside its own work. `cargo test --profile worker -p cellblock-sdk --test measure -- --ignored --nocapture`
#![allow(clippy::unwrap_used)] // Test code.

use std::time::Duration;

use cellblock_channel::memory;
use cellblock_sdk::testing::virtio::{DATA, Driver, Edges, Segment, shared_ram};
use cellblock_sdk::testing::{Harness, Host};
use cellblock_sdk::virtio::inflight::Pages;
use cellblock_sdk::virtio::{Chain, Identity, Inline, Interrupt, Serve, Space, Transport};
use cellblock_wire::device::IN_FLIGHT_BYTES;
use rustix::time::{ClockId, clock_gettime};

const SIZE: u16 = 256;
const BATCH: u16 = 64;
const ROUNDS: u32 = 20_000;

struct Nothing;

impl Serve for Nothing {
    fn begin(&mut self, _features: u64) {}

    fn serve(&mut self, _chain: &mut Chain<'_>) -> u32 {
        0
    }
}

/// This thread's time on a processor, for the machine may have other things to do.
fn busy() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// Nanoseconds for each request of two descriptors, without the driver's part.
fn cost(recorded: bool) -> f64 {
    let interrupt = Interrupt::new(Edges::default());
    let record = memory::create_replies("in flight", IN_FLIGHT_BYTES).unwrap().fd;
    let mut engine = Inline::servers(vec![Nothing], interrupt.clone());
    if recorded {
        engine = engine.with_pages(Pages::open(&record, 1).unwrap());
    }
    let config = Space::fixed(vec![]);
    let identity = Identity { id: 42, features: 0, queues: 1, queue_size: SIZE, config };
    let ram = shared_ram().0;
    let device = Transport::new(identity, engine, ram.clone(), interrupt);
    let mut driver = Driver::new(Harness::new(device), ram);
    driver.begin(u64::MAX, 1, SIZE);
    let mut all = Duration::ZERO;
    for _ in 0..ROUNDS {
        for _ in 0..BATCH {
            driver.push(0, &[Segment::read(DATA, 16), Segment::write(DATA + 16, 1)]);
        }
        let before = busy();
        driver.host.write(0, 0x50, 4, 0);
        all += busy() - before;
        for _ in 0..BATCH {
            driver.used(0).unwrap();
        }
    }
    all.as_nanos() as f64 / f64::from(ROUNDS * u32::from(BATCH))
}

#[test]
#[ignore = "figures"]
fn cost_of_a_request() {
    for _ in 0..3 {
        println!(
            "{:6.1} ns a request, {:6.1} ns with a record of requests in flight",
            cost(false),
            cost(true)
        );
    }
}
