//! A real worker process that is killed while it holds requests, and gives them back in any order: its successor finishes all of
//! them, each once. The worker is this very program, started by another name.
#![no_main]
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic)] // Tests.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::Path;

use cellblock_channel::memory;
use cellblock_policy::{Arch, Section, compile_file};
use cellblock_ring::Access;
use cellblock_sdk::testing::conformance::conforms;
use cellblock_sdk::testing::holder::{self, FILLED, Holder};
use cellblock_sdk::testing::process::{Program, Supervised, Wanted, run_tests};
use cellblock_sdk::testing::virtio::{DATA, Driver, shared_ram};
use cellblock_sdk::virtio::spec::register;
use cellblock_sdk::virtio::{Interrupt, Post};
use cellblock_sdk::worker;
use cellblock_wire::control::FromWorker;
use cellblock_wire::device::{DeviceConfig, DeviceKind, EntropyConfig, IN_FLIGHT_BYTES, Limits, Role};
use cellblock_wire::slot::{Op, Space};
use rustix::event::{EventfdFlags, eventfd};

/// As the test starts workers.
const WORKER: &str = "worker";
const SIZE: u16 = 32;

cellblock_channel::c_main!(work_or_test());

fn work_or_test() -> i32 {
    if std::env::args().next().as_deref() == Some(WORKER) {
        return work();
    }
    run_tests(&[
        ("it_conforms", it_conforms),
        ("what_was_held_is_given_back_once", what_was_held_is_given_back_once),
        ("killed_at_any_time_it_loses_nothing", killed_at_any_time_it_loses_nothing),
        ("a_poisoned_record_costs_a_reset", a_poisoned_record_costs_a_reset),
        ("at_rest_it_does_nothing_and_loses_nothing", at_rest_it_does_nothing_and_loses_nothing),
    ])
}

/// The worker, under what every virtio worker may do.
fn work() -> i32 {
    let policies = Path::new(env!("CARGO_MANIFEST_DIR")).join("policy");
    let policy = policies.join(std::env::consts::ARCH).join("virtio.policy");
    let program =
        compile_file(&policy, Arch::named(std::env::consts::ARCH).unwrap(), Section::Serve).unwrap();
    worker::run(DeviceKind::Entropy, &program, |parts| {
        let ram = parts.guest_memory()?;
        let interrupt = Interrupt::new(parts.interrupt(0));
        let post = Post { work: Holder::default(), queues: vec![0, 1], sources: vec![] };
        let threads = parts.posts(vec![post], &interrupt)?;
        Ok(holder::device(threads, ram, interrupt))
    })
}

struct Bench {
    driver: Driver<Supervised>,
    kicks: [OwnedFd; 2],
    record: OwnedFd,
    /// Chains of queue 1 so far.
    names: u64,
}

fn bench() -> Bench {
    let own = std::env::current_exe().unwrap();
    // Not one of those that are shipped, wherever these are.
    let program = Program::own(&own);
    let config = DeviceConfig::Entropy(EntropyConfig { limits: Limits::default() });
    let wanted = Wanted { config, lanes: 1, poll_max_us: 0, pipes: false, nonblocking: false };
    let (ram, memory, fd) = shared_ram();
    let kicks = [0, 1].map(|_| eventfd(0, EventfdFlags::CLOEXEC).unwrap());
    let record = memory::create_replies("in flight", 2 * IN_FLIGHT_BYTES).unwrap().fd;
    let mut extras = vec![(memory, fd), (Role::InFlight, record.try_clone().unwrap())];
    extras.extend((0..).zip(&kicks).map(|(n, kick)| (Role::QueueKick(n), kick.try_clone().unwrap())));
    let worker = Supervised::start_with(&program, &wanted, extras).unwrap();
    let mut driver = Driver::new(worker, ram);
    driver.begin(u64::MAX, 2, SIZE);
    Bench { driver, kicks, record, names: 0 }
}

impl Bench {
    /// As KVM does it.
    fn kick(&self, queue: usize) {
        rustix::io::write(&self.kicks[queue], &1u64.to_ne_bytes()).unwrap();
    }

    /// A chain for the worker to hold.
    fn offer(&mut self, at: u64) -> u32 {
        let head = holder::offer(&mut self.driver, at);
        self.kick(0);
        head
    }

    /// Has the worker give `head` back.
    fn name(&mut self, head: u32) {
        holder::name(&mut self.driver, &mut self.names, SIZE, head);
        self.kick(1);
    }
}

fn it_conforms() {
    conforms(&mut bench().driver, &holder::CONFORMS);
}

fn what_was_held_is_given_back_once() {
    let mut bench = bench();
    let heads: Vec<u32> = (0..8).map(|at| bench.offer(at)).collect();
    let mut left: BTreeSet<u32> = heads.iter().copied().collect();
    // Out of order, two for each life.
    for pair in [[5, 2], [7, 0], [1, 6], [4, 3]] {
        for index in pair {
            bench.name(heads[index]);
            bench.driver.wait_used(1);
            assert_eq!(bench.driver.wait_used(0), (heads[index], 1));
            left.remove(&heads[index]);
        }
        bench.driver.host.replace().unwrap();
        assert_eq!(bench.driver.used(0), None, "nothing is given back unasked");
    }
    assert!(left.is_empty());
    assert_eq!(bench.driver.peek(DATA, 8), [FILLED; 8]);
    // Those that were given back are not held any more.
    bench.name(heads[5]);
    bench.driver.wait_used(1);
    let again = bench.offer(5);
    bench.name(again);
    assert_eq!(bench.driver.wait_used(0), (again, 1));
    assert_eq!(bench.driver.status(), 15);
    assert_ne!(bench.driver.get(register::INTERRUPT_STATUS) & 1, 0);
}

fn killed_at_any_time_it_loses_nothing() {
    let mut bench = bench();
    for round in 0u64..30 {
        let heads: Vec<u32> = (0..16).map(|at| bench.offer(at)).collect();
        let mut open: BTreeMap<u32, u64> = heads.iter().copied().zip(0..).collect();
        // Half of them, from the back, every second one.
        let named: Vec<u32> = heads.iter().rev().step_by(2).copied().collect();
        named.iter().for_each(|head| bench.name(*head));
        // Not always at the same place.
        for _ in 0..round * 40 {
            std::hint::spin_loop();
        }
        if !round.is_multiple_of(3) {
            std::thread::sleep(std::time::Duration::from_micros(20 * round));
        }
        bench.driver.host.replace().unwrap();
        // A name may be given twice: once it was taken, its chain is held or in the used ring. One that was answered just when
        // the worker was killed may be forgotten, as any message in the ring of a process that died is: so all again.
        while bench.driver.used(1).is_some() {}
        for head in &heads {
            bench.name(*head);
            bench.driver.wait_used(1);
        }
        for _ in 0..16 {
            let (head, _) = bench.driver.wait_used(0);
            let at =
                open.remove(&head).unwrap_or_else(|| panic!("round {round}: {head} is given back twice"));
            assert_eq!(bench.driver.peek(DATA + at, 1), [FILLED]);
        }
        assert_eq!(bench.driver.used(0), None);
        // What is left of queue 1 from before.
        bench.driver.begin(u64::MAX, 2, SIZE);
        bench.names = 0;
    }
}

/// It goes on itself, or a successor does.
fn at_rest_it_does_nothing_and_loses_nothing() {
    let mut bench = bench();
    let heads: Vec<u32> = (0..20).map(|at| bench.offer(at)).collect();
    let status =
        Access { space: Space::Mmio, op: Op::Read, size: 4, region: 0, offset: register::STATUS, data: 0 };
    for (round, head) in heads.into_iter().enumerate() {
        bench.driver.host.quiesce().unwrap();
        let before = bench.driver.host.counters().unwrap();
        bench.name(head);
        bench.driver.host.post(0, &status);
        std::thread::sleep(std::time::Duration::from_millis(2));
        // It hears what it is told, and nothing else.
        assert_eq!(bench.driver.host.counters().unwrap(), before);
        assert_eq!(bench.driver.host.poll(0).unwrap(), None, "an access is answered at rest");
        assert_eq!(bench.driver.used(0), None, "a chain is given back at rest");
        match round % 3 {
            0 => bench.driver.host.resume().unwrap(),
            1 => bench.driver.host.replace().unwrap(),
            // Asked again, it says so again.
            _ => {
                bench.driver.host.quiesce().unwrap();
                bench.driver.host.resume().unwrap();
            }
        }
        assert_eq!(bench.driver.host.wait(0).unwrap().data, 15);
        bench.driver.wait_used(1);
        assert_eq!(bench.driver.wait_used(0), (head, 1));
    }
}

fn a_poisoned_record_costs_a_reset() {
    for (at, bytes) in [(8, [0u8, 0, 0, 0]), (10, [9, 9, 0, 0]), (14, [0x55, 0x55, 0, 0]), (16, [9, 9, 9, 9])]
    {
        let mut bench = bench();
        let head = bench.offer(0);
        bench.name(head);
        bench.driver.wait_used(0);
        bench.driver.wait_used(1);
        rustix::io::pwrite(&bench.record, &bytes, at).unwrap();
        bench.driver.host.replace().unwrap();
        bench.driver.wait_needs_reset();
        match bench.driver.host.message().unwrap() {
            FromWorker::Log { text, .. } => {
                assert!(text.contains("virtqueue [0]: the record of requests in flight has"), "{text}");
            }
            other => panic!("instead of a log line: {other:?}"),
        }
        bench.driver.begin(u64::MAX, 2, SIZE);
        let head = bench.offer(0);
        bench.name(head);
        assert_eq!(bench.driver.wait_used(0), (head, 1));
    }
}
