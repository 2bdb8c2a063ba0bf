//! Figures, not judgements: `cargo test -p cellblock-serial --test measure -- --ignored --nocapture`, with the static workers
//! by `CELLBLOCK_WORKER_DIR`.
#![allow(clippy::unwrap_used)] // Helpers beside the tests.

use std::fs;
use std::hint::black_box;
use std::time::{Duration, Instant};

use cellblock_channel::{StateWriter, memory};
use cellblock_ring::LaneId;
use cellblock_ring::state_page::Shape;
use cellblock_sdk::device::{Access, Device};
use cellblock_sdk::state::{CAPACITY, StateBuffer};
use cellblock_sdk::testing::process::{Program, Supervised, Wanted};
use cellblock_sdk::testing::{Desk, Host, ManualClock, Pulses};
use cellblock_serial::Serial;
use cellblock_wire::device::DeviceConfig;
use cellblock_wire::slot::{Action, Reply};

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

/// The most that committing may cost an exit, in ns.
const COMMIT_NS: f64 = 100.0;
/// Exits in a row, and how often: the fastest row counts, for a busy machine only adds.
const EXITS: u32 = 200_000;
const ROWS: u32 = 20;

/// What one exit takes, in ns, of a worker that does `then` with each reply. Every second exit changes the device's state.
fn exit_ns(mut then: impl FnMut(&mut Serial<Pulses, ManualClock, Desk>, &Reply)) -> f64 {
    let mut port = Serial::new(Pulses::default(), ManualClock::at(0), Desk::default());
    let scratch = Access { region: 0, offset: 7, size: 1 };
    let row = |_| {
        let before = Instant::now();
        for number in 0..EXITS {
            if number % 2 == 0 {
                port.write(black_box(scratch), u64::from(number) & 0xff);
            }
            let data = port.read(black_box(scratch));
            let reply = Reply { sequence: number + 1, generation: 1, action: Action::None, data };
            then(&mut port, black_box(&reply));
        }
        before.elapsed().as_secs_f64() * 1e9 / f64::from(EXITS)
    };
    (0..ROWS).map(row).fold(f64::MAX, f64::min)
}

/// With `--release`: `scripts/bench commit`.
#[test]
#[ignore = "prints figures"]
fn commit_cost() {
    let lane = LaneId::new(0);
    let without = exit_ns(|_, _| ());
    println!("without a commit: {without:.1} ns");
    let mut slowest = 0.0f64;
    // The port's own state, and as much as there can be.
    for all in [false, true] {
        let shape = Shape::new(1, CAPACITY);
        let bytes = memory::bytes(shape.words());
        let page = memory::create_state("state", bytes).unwrap();
        let page = memory::open_write(&page.fd, bytes).unwrap();
        let (mut page, _) = StateWriter::open(page, shape, 1).unwrap();
        let mut state = StateBuffer::default();
        let mut length = 0;
        let with = exit_ns(|port, reply| {
            let mut fields = state.start();
            port.save(&mut fields);
            if all {
                (0..CAPACITY / 8 - 10).for_each(|word| fields.u64(word as u64));
            }
            length = state.bytes().len();
            page.commit(state.bytes(), Some((lane, reply))).unwrap();
        });
        println!(
            "with a commit of {length} bytes and the reply: {with:.1} ns, {:.1} ns more",
            with - without
        );
        if !all {
            slowest = slowest.max(with - without);
        }
    }
    let kept = slowest <= COMMIT_NS;
    println!(
        "{:4} commit of state and reply: {slowest:.1} ns, limit {COMMIT_NS} ns",
        if kept { "ok" } else { "MISS" }
    );
    assert!(kept, "committing costs more than {COMMIT_NS} ns");
}
