//! A real worker process that ends at each step of its life in turn: no register access is lost or done twice, no request and no
//! interrupt is lost. The worker is this very program, started by another name.
#![no_main]
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic)] // Tests.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cellblock_channel::process::entry;
use cellblock_policy::{Arch, Section, compile_file};
use cellblock_ring::Access as Asked;
use cellblock_sdk::device::{Access, Action, Device, Event};
use cellblock_sdk::fail_point::{STATUS, Step};
use cellblock_sdk::state::{Encoder, StateError};
use cellblock_sdk::testing::Host;
use cellblock_sdk::testing::ends::Mortals;
use cellblock_sdk::testing::holder::{self, FILLED, Holder};
use cellblock_sdk::testing::process::{Program, Supervised, Wanted, run_tests};
use cellblock_sdk::testing::virtio::{DATA, Driver, shared_ram};
use cellblock_sdk::virtio::spec::feature;
use cellblock_sdk::virtio::{Interrupt, Post, Threads, Transport};
use cellblock_sdk::worker;
use cellblock_wire::device::{DeviceConfig, DeviceKind, EntropyConfig, Limits, Role};
use cellblock_wire::slot::{Op, Reply, Space};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// As the test starts workers.
const WORKER: &str = "worker";
const SIZE: u16 = 4;
const LANES: usize = 2;
const PATIENCE: Duration = Duration::from_secs(20);
/// Steps on the way of a successor to its service.
const RESTORE: [Step; 9] = [
    Step::Granted,
    Step::PageOpened,
    Step::Built,
    Step::RegistersRestored,
    Step::QueueResumed,
    Step::Restored,
    Step::FirstCommit,
    Step::Sealed,
    Step::Ready,
];

/// Steps of a device with streams to the host, which this one does not have: `tests/e2e/tests/fail_points.rs`.
const STREAMS: [Step; 2] = [Step::SinkTook, Step::SourceCounted];

cellblock_channel::c_main!(work_or_test());

fn work_or_test() -> i32 {
    if std::env::args().next().as_deref() == Some(WORKER) {
        return work();
    }
    // Workers end while they are written to.
    entry::prepare();
    run_tests(&[(
        "whichever_step_it_ends_at_nothing_is_lost_or_done_twice",
        whichever_step_it_ends_at_nothing_is_lost_or_done_twice,
    )])
}

/// A [`Holder`] behind virtio registers (region 0), and in region 1 a counter for each lane, at 8 × the lane: a read adds one, a
/// write adds what is written, and both see what was there before.
struct Counting {
    transport: Transport<Threads>,
    counters: [u64; LANES],
}

impl Counting {
    fn add(&mut self, access: Access, more: u64) -> u64 {
        match self.counters.get_mut(access.offset as usize / 8) {
            Some(counter) => std::mem::replace(counter, counter.wrapping_mul(3).wrapping_add(more)),
            None => u64::MAX,
        }
    }
}

impl Device for Counting {
    fn read(&mut self, access: Access) -> u64 {
        if access.region == 0 { self.transport.read(access) } else { self.add(access, 1) }
    }

    fn write(&mut self, access: Access, data: u64) -> Action {
        if access.region == 0 {
            return self.transport.write(access, data);
        }
        self.add(access, data);
        Action::None
    }

    fn event(&mut self, event: Event) {
        self.transport.event(event);
    }

    fn complaint(&mut self) -> Option<String> {
        self.transport.complaint()
    }

    fn quiesce(&mut self) {
        self.transport.quiesce();
    }

    fn is_quiet(&self) -> bool {
        self.transport.is_quiet()
    }

    fn resume(&mut self) {
        self.transport.resume();
    }

    fn save(&self, out: &mut Encoder<'_>) {
        self.transport.save(out);
        self.counters.iter().for_each(|counter| out.bytes(&counter.to_le_bytes()));
    }

    fn restore(&mut self, saved: &[u8]) -> Result<(), StateError> {
        let (registers, counters) = saved.split_at(saved.len() - 8 * LANES);
        for (own, bytes) in self.counters.iter_mut().zip(counters.as_chunks().0) {
            *own = u64::from_le_bytes(*bytes);
        }
        self.transport.restore(registers)
    }
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
        Ok(Counting { transport: holder::device(threads, ram, interrupt), counters: [0; LANES] })
    })
}

/// A worker whose successors are started as soon as it is missed.
struct Mortal {
    worker: Supervised,
    deaths: usize,
}

impl Mortal {
    /// What the supervisor does when a pidfd tells it of a worker's end.
    fn mend(&mut self) {
        let ends = self.worker.mend().unwrap();
        assert!(ends.iter().all(|end| end.code() == Some(STATUS)), "{ends:?}");
        self.deaths += ends.len();
    }

    /// Has the worker come to rest, and go on. A successor that was not asked does not rest.
    fn rest(&mut self) {
        let end = Instant::now() + PATIENCE;
        while self.worker.quiesce().is_err() {
            // Its socket is closed a little before it can be reaped.
            self.mend();
            assert!(Instant::now() < end, "it does not come to rest");
        }
        // One that has ended meanwhile is missed at the next access.
        let _ = self.worker.resume();
    }

    fn wait(&mut self, lane: usize) -> Reply {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(reply) = self.worker.wait_for(lane, Duration::from_millis(2)).unwrap() {
                return reply;
            }
            assert!(Instant::now() < end, "no answer in lane {lane}");
            self.mend();
        }
    }
}

fn asked(op: Op, region: u32, offset: u64, size: u8, data: u64) -> Asked {
    Asked { space: Space::Mmio, op, size, region, offset, data }
}

impl Host for Mortal {
    fn read(&mut self, region: u32, offset: u64, size: u8) -> u64 {
        self.worker.post(0, &asked(Op::Read, region, offset, size, 0));
        self.wait(0).data
    }

    fn write(&mut self, region: u32, offset: u64, size: u8, data: u64) -> Action {
        self.worker.post(0, &asked(Op::Write, region, offset, size, data));
        self.wait(0).action
    }
}

struct Bench {
    driver: Driver<Mortal>,
    kicks: [OwnedFd; 2],
    /// What the device's counters should be.
    counters: [u64; LANES],
    /// Chains of queue 1 so far, since the last reset.
    names: u64,
}

impl Bench {
    fn start(program: &Path) -> Bench {
        let config = DeviceConfig::Entropy(EntropyConfig { limits: Limits::default() });
        let wanted = Wanted { config, lanes: LANES as u32, poll_max_us: 0, pipes: false, nonblocking: false };
        let (ram, memory, fd) = shared_ram();
        let kicks = [0, 1].map(|_| eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        let mut extras = vec![(memory, fd)];
        extras.extend((0..).zip(&kicks).map(|(n, kick)| (Role::QueueKick(n), kick.try_clone().unwrap())));
        let worker = Supervised::start_with(&Program::own(program), &wanted, extras).unwrap();
        let driver = Driver::new(Mortal { worker, deaths: 0 }, ram);
        Bench { driver, kicks, counters: [0; LANES], names: 0 }
    }

    /// Both lanes at a time: a read in one, a write in the other, and the other way round.
    fn count(&mut self, with: u64) {
        for reader in 0..LANES {
            let host = &mut self.driver.host;
            for lane in 0..LANES {
                let (op, data) = if lane == reader { (Op::Read, 0) } else { (Op::Write, with) };
                host.worker.post(lane, &asked(op, 1, 8 * lane as u64, 8, data));
            }
            for lane in 0..LANES {
                let (reply, before) = (host.wait(lane), self.counters[lane]);
                let more = if lane == reader { 1 } else { with };
                self.counters[lane] = before.wrapping_mul(3).wrapping_add(more);
                if lane == reader {
                    assert_eq!(reply.data, before, "lane {lane}");
                }
            }
        }
    }

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

    /// The next entry of the used ring, which an interrupt has to tell of: the driver sleeps until there is one.
    fn told_of(&mut self, queue: u16) -> (u32, u32) {
        let end = Instant::now() + PATIENCE;
        loop {
            self.driver.want_interrupt(queue);
            if let Some(used) = self.driver.used(queue) {
                return used;
            }
            while !self.interrupted() {
                self.driver.host.mend();
                assert!(Instant::now() < end, "no interrupt tells of queue {queue}");
            }
        }
    }

    /// Waits a little for an interrupt; whether there was one.
    fn interrupted(&self) -> bool {
        let worker = &self.driver.host.worker;
        let pause = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };
        poll(&mut [PollFd::new(&worker.interrupt, PollFlags::IN)], Some(&pause)).unwrap();
        worker.pulses() > 0
    }

    /// A driver's whole life, twice; each time with requests in both queues that end in another order than they came in.
    fn live(&mut self) {
        for round in 1..3 {
            let features = if round == 1 { u64::MAX } else { !feature::EVENT_IDX };
            self.driver.begin(features, 2, SIZE);
            self.names = 0;
            self.count(round);
            for turn in 0..2 {
                let heads: Vec<u32> = (0..3).map(|at| self.offer(at)).collect();
                self.count(turn);
                let mut open: BTreeSet<u32> = heads.iter().copied().collect();
                // A name that its server had taken, and answered, may be forgotten with it, as any message in the memory of a process
                // that died; a request is not.
                while !open.is_empty() {
                    let left: Vec<u32> = heads.iter().rev().copied().filter(|h| open.contains(h)).collect();
                    for head in left {
                        self.name(head);
                        self.told_of(1);
                        self.count(head.into());
                        while let Some((used, length)) = self.driver.used(0) {
                            assert!(open.remove(&used), "{used} is given back twice");
                            assert_eq!(length, 1);
                        }
                    }
                }
                assert_eq!(self.driver.peek(DATA, 3), [FILLED; 3]);
                assert_eq!(self.driver.used(0), None);
                self.driver.host.rest();
            }
            assert_eq!(self.driver.status(), 15);
        }
    }
}

/// One life under a worker whose incarnations end as `ends` says: how many did.
fn run(mortals: &Mortals, ends: &[Option<(Step, u16)>]) -> usize {
    mortals.arm(ends).unwrap();
    let mut bench = Bench::start(mortals.path());
    bench.live();
    bench.driver.host.mend();
    bench.driver.host.deaths
}

fn whichever_step_it_ends_at_nothing_is_lost_or_done_twice() {
    let own = std::env::current_exe().unwrap();
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let copy = folder.join(format!("fail-points-{}", std::process::id()));
    let mortals = Mortals::copy(&own, &copy).unwrap();
    let others = |step: &Step| !RESTORE.contains(step) && !STREAMS.contains(step);
    let serving: Vec<Step> = Step::ALL.iter().copied().filter(others).collect();
    assert_eq!(run(&mortals, &[]), 0, "nothing is armed");
    let (mut runs, mut deaths) = (1, 0);
    // At every second, third, … visit of each incarnation, so that with the second each access but the first is one's last.
    for step in &serving {
        // The first incarnation has to serve before it ends.
        let mut ends = vec![Some((Step::Settled, 9))];
        ends.extend([Some((*step, 1)); 3]);
        let mut reached = run(&mortals, &ends) - 1;
        for visit in [2, 3, 7] {
            reached += run(&mortals, &[Some((*step, visit)); 64]);
        }
        runs += 4;
        assert!(reached > 0, "nothing reaches {step:?}");
        deaths += reached;
    }
    // On its way to its service, whatever the one before it ended at.
    for restore in RESTORE {
        let mut from = 0;
        for step in &serving {
            let most = [70, 4].map(|visit| {
                let ends = [Some((*step, visit)), Some((restore, 1)), Some((restore, 1))];
                let died = run(&mortals, &ends);
                // The first may never get that far, or have no queues to leave.
                assert!(matches!(died, 0 | 1 | 3), "{step:?}, then {restore:?}: {died}");
                died
            });
            runs += most.len();
            deaths += most.iter().sum::<usize>();
            from += usize::from(most.contains(&3));
        }
        assert!(2 * from > serving.len(), "{restore:?} is reached after {from} of {} steps", serving.len());
    }
    std::fs::remove_file(&copy).unwrap();
    println!("{runs} lives of a driver, {deaths} ends of workers, {} steps", Step::ALL.len());
}
