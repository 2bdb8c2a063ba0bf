//! Figures of a disk's worker, from kick to used entry, with the image in the page cache:
//! `CELLBLOCK_WORKER_DIR=… cargo test -p cellblock-block --test measure -- --ignored --nocapture`
#![allow(clippy::unwrap_used, unreachable_pub)] // All of this is test code.

use std::time::Instant;

use cellblock_block::spec::request;
use cellblock_sdk::testing::process::{Program, Supervised, Wanted};
use cellblock_sdk::testing::virtio::{DATA, Driver, Segment, shared_ram};
use cellblock_wire::device::{DeviceConfig, Role};
use rustix::event::{EventfdFlags, eventfd};

mod probes;
use probes::config;

#[test]
#[ignore = "figures"]
fn throughput_and_latency() {
    let program = Program::find(
        "block",
        env!("CARGO_BIN_EXE_block"),
        include_bytes!(concat!(env!("OUT_DIR"), "/worker.start.bpf")),
    );
    let config = cellblock_wire::device::BlockConfig { sectors: 65_536, ..config() };
    let image = tempfile::tempfile().unwrap();
    image.set_len(config.sectors * 512).unwrap();
    let (ram, memory, fd) = shared_ram();
    let kick = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let extras =
        vec![(memory, fd), (Role::Image, image.into()), (Role::QueueKick(0), kick.try_clone().unwrap())];
    let device = DeviceConfig::Block(config);
    let wanted = Wanted { config: device, lanes: 1, poll_max_us: 0, pipes: false, nonblocking: false };
    let mut driver = Driver::new(Supervised::start_with(&program, &wanted, extras).unwrap(), ram);
    driver.begin(u64::MAX, 1, 64);
    for (kind, name) in [(request::OUT, "write"), (request::IN, "read")] {
        for length in [4096u32, 128 << 10, 1 << 20] {
            const ROUNDS: u64 = 500;
            let before = Instant::now();
            for round in 0..ROUNDS {
                let mut header = kind.to_le_bytes().to_vec();
                header.extend([0; 4]);
                header.extend((round * u64::from(length / 512) % 60_000 / 8 * 8).to_le_bytes());
                driver.poke(DATA, &header);
                let data = Segment { address: DATA + 0x1000, length, writable: kind == request::IN };
                driver.push(0, &[Segment::read(DATA, 16), data, Segment::write(DATA + 0x100, 1)]);
                rustix::io::write(&kick, &1u64.to_ne_bytes()).unwrap();
                while driver.used(0).is_none() {
                    std::hint::spin_loop();
                }
            }
            let each = before.elapsed() / ROUNDS as u32;
            let rate = f64::from(length) / each.as_secs_f64() / 1e6;
            eprintln!("{name} {:>4} KiB: {each:>10.1?} each, {rate:>7.0} MB/s", length >> 10);
        }
    }
}
