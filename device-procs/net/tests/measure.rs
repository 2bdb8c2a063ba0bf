//! What a frame costs, in a real worker (`cargo test -p cellblock-net --test measure -- --ignored --nocapture`).
#![allow(clippy::unwrap_used, clippy::panic, unreachable_pub)] // Figures for people.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use cellblock_sdk::testing::process::{Program, Supervised, Wanted};
use cellblock_sdk::testing::virtio::{DATA, Driver, Segment, shared_ram};
use cellblock_wire::device::{DeviceConfig, Role};
use rustix::event::{EventfdFlags, eventfd};

mod probes;
use probes::*;

fn start() -> (Driver<Supervised>, OwnedFd, Vec<OwnedFd>) {
    let start = include_bytes!(concat!(env!("OUT_DIR"), "/worker.start.bpf"));
    let program = Program::find("net", env!("CARGO_BIN_EXE_net"), start);
    let wanted = Wanted {
        config: DeviceConfig::Net(config()),
        lanes: 1,
        poll_max_us: 0,
        pipes: false,
        nonblocking: false,
    };
    let (ram, memory, fd) = shared_ram();
    let (near, far) = wire();
    let kicks: Vec<_> = (0..2).map(|_| eventfd(0, EventfdFlags::CLOEXEC).unwrap()).collect();
    let mut extras = vec![(memory, fd), (Role::Tap(0), near)];
    extras.extend((0..).zip(&kicks).map(|(n, kick)| (Role::QueueKick(n), kick.try_clone().unwrap())));
    let worker = Supervised::start_with(&program, &wanted, extras).unwrap();
    (Driver::new(worker, ram), far, kicks)
}

/// The worker's CPU time so far.
fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap_or_default();
    let own: u64 = stat.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0);
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let all: u64 = threads
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok())
        .filter_map(|stat| stat.split(' ').next()?.parse::<u64>().ok())
        .sum();
    Duration::from_nanos(all.max(own))
}

#[test]
#[ignore = "figures"]
fn frames() {
    for (bytes, rounds) in [(64, 4000u32), (1500, 4000), (16_000, 1000), (60_000, 300)] {
        let (mut driver, far, kicks) = start();
        driver.begin(ALL, 2, 256);
        let pid = driver.host.pid();
        let sent = frame(1, bytes);
        driver.poke(DATA, &sent);
        let (before, begun) = (cpu(pid), Instant::now());
        for _ in 0..rounds {
            for _ in 0..8 {
                driver.push(TX, &[Segment::read(DATA, 12), Segment::read(DATA + 12, bytes as u32)]);
            }
            rustix::io::write(&kicks[1], &1u64.to_ne_bytes()).unwrap();
            for _ in 0..8 {
                while heard(&far).is_none() {}
            }
            for _ in 0..8 {
                while driver.used(TX).is_none() {}
            }
        }
        let each = (cpu(pid) - before) / (8 * rounds);
        println!("transmit {bytes}: {each:?} of CPU a frame, {:?} in all", begun.elapsed() / (8 * rounds));

        for i in 0..200 {
            driver.push(RX, &[Segment::write(DATA + 0x10_0000 + 0x800 * i, 1536)]);
        }
        rustix::io::write(&kicks[0], &1u64.to_ne_bytes()).unwrap();
        let (before, begun) = (cpu(pid), Instant::now());
        let chains = (bytes + 12).div_ceil(1536) as u32;
        for _ in 0..rounds {
            for _ in 0..2 {
                say(&far, &sent);
            }
            for _ in 0..2 * chains {
                while driver.used(RX).is_none() {}
                driver.push(RX, &[Segment::write(DATA + 0x10_0000, 1536)]);
            }
            rustix::io::write(&kicks[0], &1u64.to_ne_bytes()).unwrap();
        }
        let each = (cpu(pid) - before) / (2 * rounds);
        println!("receive {bytes}: {each:?} of CPU a frame, {:?} in all", begun.elapsed() / (2 * rounds));
    }
}
