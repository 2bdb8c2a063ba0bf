//! Figures, not judgements: `cargo test -p cellblock-serial --test measure -- --ignored --nocapture`, with the static workers
//! by `CELLBLOCK_WORKER_DIR`.
#![allow(clippy::unwrap_used)] // Helpers beside the tests.

use std::fs;
use std::time::{Duration, Instant};

use cellblock_sdk::testing::Host;
use cellblock_sdk::testing::process::{Program, Supervised, Wanted};
use cellblock_wire::device::DeviceConfig;

fn start(poll_max_us: u32) -> Supervised {
    let start = include_bytes!(concat!(env!("OUT_DIR"), "/worker.start.bpf"));
    let program = Program::find("serial", env!("CARGO_BIN_EXE_serial"), start);
    let config = DeviceConfig::Serial { buffer: 65536, limits: Default::default() };
    let wanted = Wanted { config, lanes: 1, poll_max_us, pipes: true, nonblocking: false };
    Supervised::start(&program, &wanted).unwrap()
}

fn median(mut samples: Vec<Duration>) -> Duration {
    samples.sort();
    samples[samples.len() / 2]
}

fn round_trip(worker: &mut Supervised) -> Duration {
    let sample = |_| {
        let before = Instant::now();
        worker.inb(5);
        before.elapsed()
    };
    median((0..20_000).map(sample).collect())
}

#[test]
#[ignore = "prints figures"]
fn figures() {
    let before = Instant::now();
    let mut worker = start(0);
    println!("start to Ready: {:?}", before.elapsed());
    println!("round trip, neither side spins: {:?}", round_trip(&mut worker));
    // Undumpable: its memory map belongs to root.
    match fs::read_to_string(format!("/proc/{}/smaps_rollup", worker.pid())) {
        Ok(rollup) => rollup
            .lines()
            .filter(|line| ["Rss", "Pss:", "Private", "Pss_Anon"].iter().any(|field| line.starts_with(field)))
            .for_each(|line| println!("{line}")),
        Err(error) => eprintln!("SKIP: memory: {error}"),
    }
    let mut worker = start(1000);
    worker.spin = Duration::from_millis(1);
    println!("round trip, both sides spin: {:?}", round_trip(&mut worker));
}
