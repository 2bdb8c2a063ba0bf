//! The ring on real memfds and futexes: between threads, between processes, against a hostile peer, and over deaths.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cellblock_channel::memory::{self, ReadOnly, Sealed, Writable};
use cellblock_channel::{
    KickWatch, Requester, Responder, clock, doorbell, doorbell::Bell, futex, kick, socket,
};
use cellblock_ring::words::{Words, WordsMut};
use cellblock_ring::{Access, Deadline, Outcome, Succession, answer, layout};
use cellblock_wire::slot::{Action, Op, Space};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

const LANES: u32 = 2;
/// Set for the copy of this program that plays the worker; its stdin is the control socket.
const WORKER: &str = "CELLBLOCK_TEST_WORKER";
const PATIENCE: Duration = Duration::from_secs(30);

fn request_bytes() -> usize {
    memory::bytes(layout::request_words(LANES))
}

fn reply_bytes() -> usize {
    memory::bytes(layout::reply_words(LANES))
}

/// What the worker answers to a read at `offset`.
fn expected(offset: u64) -> u64 {
    offset.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn access(offset: u64) -> Access {
    Access { space: Space::Mmio, op: Op::Read, size: 8, region: 0, offset, data: 0 }
}

/// The supervisor's part of a worker.
struct Device {
    requests: Sealed<Writable>,
    replies: Sealed<ReadOnly>,
}

impl Device {
    fn new() -> Device {
        Device {
            requests: memory::create_requests("requests", request_bytes()).unwrap(),
            replies: memory::create_replies("replies", reply_bytes()).unwrap(),
        }
    }

    fn requester(&self, lane: u32) -> Requester {
        Requester::new(self.requests.map.clone(), self.replies.map.clone(), lane, 1).unwrap()
    }

    /// Starts a worker process of incarnation `generation`.
    fn start(&self, generation: u32) -> (Child, doorbell::Ringer, socket::Control) {
        let (here, there) = socket::pair().unwrap();
        let (ringer, bell) = doorbell::pair().unwrap();
        here.send(
            &generation.to_le_bytes(),
            &[self.requests.fd.as_fd(), self.replies.fd.as_fd(), bell.as_fd()],
        )
        .unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_worker_process", "--nocapture"])
            .env(WORKER, "1")
            .stdin(std::os::fd::OwnedFd::from(there))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        (child, ringer, here)
    }
}

/// Serves until the other end of `bell` closes.
fn serve(mut responder: Responder, bell: &Bell) {
    loop {
        while let Some(next) = responder.next() {
            let (lane, request) = next.unwrap();
            responder.reply(lane, &answer(&request, Action::None, expected(request.offset)));
        }
        if responder.prepare_sleep() {
            poll(&mut [PollFd::new(bell, PollFlags::IN)], None).unwrap();
            let alive = bell.silence();
            responder.awake();
            if !alive {
                return;
            }
        }
    }
}

/// Not a test of its own: what the spawned copies run.
#[test]
fn the_worker_process() {
    if std::env::var_os(WORKER).is_none() {
        return;
    }
    let control = socket::Control::from_fd(rustix::stdio::stdin().try_clone_to_owned().unwrap());
    let mut generation = [0; 4];
    let (_, descriptors) = control.recv(&mut generation, 3).unwrap();
    let [requests, replies, bell] = <[_; 3]>::try_from(descriptors).unwrap();
    let requests = memory::open_read(requests, request_bytes()).unwrap();
    let replies = memory::open_write(replies, reply_bytes()).unwrap();
    let responder = Responder::new(requests, replies, LANES, u32::from_le_bytes(generation)).unwrap();
    serve(responder, &Bell::from_fd(bell));
}

/// Posts `count` reads in one lane and checks each answer; returns how often the wait was kicked.
fn drive(
    requester: &mut Requester,
    kicks: &mut KickWatch,
    ringer: &doorbell::Ringer,
    spin: Duration,
    count: u64,
) -> u64 {
    let mut kicked = 0;
    for offset in 0..count {
        if requester.post(&access(offset)) {
            ringer.ring();
        }
        let deadline = clock::deadline_in(PATIENCE);
        loop {
            match requester.wait(kicks, spin, deadline).unwrap() {
                Outcome::Replied(reply) => {
                    assert_eq!(reply.data, expected(offset));
                    break;
                }
                Outcome::Kicked => kicked += 1,
                Outcome::Deadline => panic!("access {offset} was lost"),
            }
        }
    }
    kicked
}

#[test]
fn threads_exchange_replies() {
    let device = Device::new();
    let (ringer, bell) = doorbell::pair().unwrap();
    let requests = memory::open_read(&device.requests.fd, request_bytes()).unwrap();
    let replies = memory::open_write(&device.replies.fd, reply_bytes()).unwrap();
    let responder = Responder::new(requests, replies, LANES, 1).unwrap();
    let worker = std::thread::spawn(move || serve(responder, &bell));
    let mut requester = device.requester(0);
    let (_kick, mut kicks) = kick();
    for spin in [0, 5, 100] {
        drive(&mut requester, &mut kicks, &ringer, Duration::from_micros(spin), 3000);
    }
    drop(ringer);
    worker.join().unwrap();
}

#[test]
fn processes_exchange_replies_on_two_lanes_while_kicks_rain() {
    let device = Device::new();
    let (mut child, ringer, _control) = device.start(1);
    let (ringer, stop) = (Arc::new(ringer), Arc::new(AtomicBool::new(false)));
    let mut kickers = Vec::new();
    let vcpus: Vec<_> = (0..LANES)
        .map(|lane| {
            let (kick, mut kicks) = kick();
            kickers.push(kick);
            let (mut requester, ringer) = (device.requester(lane), Arc::clone(&ringer));
            let spin = Duration::from_micros(30 * u64::from(lane));
            std::thread::spawn(move || drive(&mut requester, &mut kicks, &ringer, spin, 5000))
        })
        .collect();
    let kicker = {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                kickers.iter().for_each(|kick| kick.bump());
                std::thread::sleep(Duration::from_micros(100));
            }
        })
    };
    let kicked: u64 = vcpus.into_iter().map(|vcpu| vcpu.join().unwrap()).sum();
    stop.store(true, Ordering::Relaxed);
    kicker.join().unwrap();
    assert!(kicked > 0, "no kick was delivered");
    drop(ringer);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_kick_ends_a_wait_and_a_deadline_ends_it_in_time() {
    let device = Device::new();
    let mut requester = device.requester(0);
    let (kick, mut kicks) = kick();
    assert!(!requester.post(&access(1)));
    for spin in [Duration::ZERO, Duration::from_micros(200), Duration::from_secs(3600)] {
        let start = Instant::now();
        let outcome =
            requester.wait(&mut kicks, spin, clock::deadline_in(Duration::from_millis(30))).unwrap();
        assert_eq!(outcome, Outcome::Deadline);
        assert!((30..20_000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
        let kicker = {
            let kick = kick.clone();
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(10));
                kick.bump();
            })
        };
        assert_eq!(requester.wait(&mut kicks, spin, Deadline::NEVER).unwrap(), Outcome::Kicked);
        kicker.join().unwrap();
    }
    let passed = requester.wait(&mut kicks, Duration::ZERO, Deadline::at(0)).unwrap();
    assert_eq!(passed, Outcome::Deadline, "a deadline in the past");
}

/// Stops the process, and returns when it has stopped.
fn halt(child: &Child) {
    let pid = Pid::from_child(child);
    kill_process(pid, Signal::STOP).unwrap();
    waitpid(Some(pid), WaitOptions::UNTRACED).unwrap();
}

#[test]
fn a_killed_worker_is_succeeded_on_the_same_memory() {
    let device = Device::new();
    let mut requester = device.requester(0);
    let (kick, mut kicks) = kick();
    for generation in 1..=5 {
        let (mut child, ringer, _control) = device.start(generation);
        let spin = Duration::from_micros(20);
        match requester.succeed(device.requests.map.clone(), device.replies.map.clone(), generation).unwrap()
        {
            Succession::Reposted { ring } => {
                if ring {
                    ringer.ring();
                }
                let outcome = requester.wait(&mut kicks, spin, clock::deadline_in(PATIENCE)).unwrap();
                assert!(
                    matches!(outcome, Outcome::Replied(reply) if reply.data == expected(77)),
                    "{outcome:?}"
                );
            }
            other => assert_eq!((generation, other), (1, Succession::Idle)),
        }
        drive(&mut requester, &mut kicks, &ringer, spin, 200);
        // Its death, and the kick that tells of it, come while the request is on its way.
        halt(&child);
        if requester.post(&access(77)) {
            ringer.ring();
        }
        let actor = {
            let kick = kick.clone();
            std::thread::spawn(move || {
                child.kill().unwrap();
                child.wait().unwrap();
                kick.bump();
            })
        };
        assert_eq!(requester.wait(&mut kicks, spin, clock::deadline_in(PATIENCE)).unwrap(), Outcome::Kicked);
        actor.join().unwrap();
    }
}

/// The words that a hostile peer writes: random ones, and ones that come near to what is expected.
fn nasty(state: &mut u64, stamp: u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    match *state % 6 {
        0 => stamp,
        1 => stamp.wrapping_sub(1),
        2 => stamp.wrapping_add(1),
        3 => 0,
        4 => *state % 4,
        _ => *state,
    }
}

#[test]
fn a_hostile_peer_costs_at_most_the_deadline() {
    use cellblock_ring::words::Wake;

    let device = Device::new();
    let requests = memory::open_read(&device.requests.fd, request_bytes()).unwrap();
    let replies = memory::open_write(&device.replies.fd, reply_bytes()).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let peer = {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || {
            let (base, mut state) = (layout::reply_slot(0), 0x1234_5678_9abc_def1);
            while !stop.load(Ordering::Relaxed) {
                let stamp = requests.load(layout::request_slot(0));
                for word in [1, 2, 3, 0] {
                    replies.store(base + word, nasty(&mut state, stamp));
                }
                replies.store(layout::SLEEPING, state);
                replies.wake(base);
            }
        })
    };
    let mut requester = device.requester(0);
    let (_kick, mut kicks) = kick();
    let (mut violations, mut replied, mut longest) = (0, 0, Duration::ZERO);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(2) {
        let _ = requester.post(&access(1));
        let posted = Instant::now();
        let deadline = clock::deadline_in(Duration::from_millis(5));
        match requester.wait(&mut kicks, Duration::from_micros(20), deadline) {
            Err(_) => violations += 1,
            Ok(Outcome::Replied(_)) => replied += 1,
            Ok(Outcome::Deadline) => {}
            Ok(Outcome::Kicked) => panic!("nobody kicked"),
        }
        longest = longest.max(posted.elapsed());
    }
    stop.store(true, Ordering::Relaxed);
    peer.join().unwrap();
    assert!(
        violations > 0 && replied > 0,
        "{violations} violations, {replied} replies: the peer is not nasty enough"
    );
    assert!(longest < Duration::from_secs(1), "a wait took {longest:?}");
}

#[test]
fn a_peer_that_wakes_all_the_time_does_not_outlive_the_deadline() {
    use cellblock_ring::words::Wake;

    let device = Device::new();
    let replies = memory::open_write(&device.replies.fd, reply_bytes()).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let peer = {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                replies.wake(layout::reply_slot(0));
            }
        })
    };
    let mut requester = device.requester(0);
    let (_kick, mut kicks) = kick();
    let _ = requester.post(&access(1));
    for _ in 0..10 {
        let start = Instant::now();
        let outcome =
            requester.wait(&mut kicks, Duration::ZERO, clock::deadline_in(Duration::from_millis(20)));
        assert_eq!(outcome, Ok(Outcome::Deadline));
        assert!(start.elapsed() < Duration::from_secs(10));
    }
    stop.store(true, Ordering::Relaxed);
    peer.join().unwrap();
}

#[test]
fn this_kernel_has_futex_waitv() {
    assert!(futex::available(), "Linux 5.16 or later is required");
}
