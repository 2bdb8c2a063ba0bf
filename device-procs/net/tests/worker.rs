//! A network device in a real worker process: behind the ring, with its own threads, kicked by eventfds as KVM does it, under its
//! serve program.
#![allow(clippy::unwrap_used, clippy::panic, unreachable_pub)] // Helpers beside the tests.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cellblock_channel::tap;
use cellblock_net::spec::feature as net;
use cellblock_sdk::testing::process::{Program, Supervised, Wanted};
use cellblock_sdk::testing::virtio::{DATA, Driver, Segment, shared_ram};
use cellblock_wire::device::{Bucket, DeviceConfig, Limits, NetConfig, Role};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::OFlags;

mod probes;
use probes::*;

/// A worker, its far ends, and its queues' kicks.
struct Remote {
    driver: Driver<Supervised>,
    far: Vec<OwnedFd>,
    kicks: Vec<OwnedFd>,
}

impl Bench for Remote {
    type Host = Supervised;

    fn driver(&mut self) -> &mut Driver<Supervised> {
        &mut self.driver
    }

    fn far(&mut self) -> &OwnedFd {
        &self.far[0]
    }

    /// It takes its turns itself.
    fn turn(&mut self) {}

    fn interrupts(&mut self) -> u64 {
        self.driver.host.pulses()
    }
}

fn program() -> Program {
    let start = include_bytes!(concat!(env!("OUT_DIR"), "/worker.start.bpf"));
    Program::find("net", env!("CARGO_BIN_EXE_net"), start)
}

fn try_start(config: &NetConfig, roles: Vec<(Role, OwnedFd)>) -> std::io::Result<Remote> {
    let wanted = Wanted {
        config: DeviceConfig::Net(config.clone()),
        lanes: 1,
        poll_max_us: 0,
        pipes: false,
        nonblocking: false,
    };
    let (ram, memory, fd) = shared_ram();
    let queues = 2 * config.pairs + u16::from(config.pairs > 1);
    let kicks: Vec<_> = (0..queues).map(|_| eventfd(0, EventfdFlags::CLOEXEC).unwrap()).collect();
    let mut extras = vec![(memory, fd)];
    extras.extend(roles);
    extras.extend((0..).zip(&kicks).map(|(n, kick)| (Role::QueueKick(n), kick.try_clone().unwrap())));
    let worker = Supervised::start_with(&program(), &wanted, extras)?;
    Ok(Remote { driver: Driver::new(worker, ram), far: vec![], kicks })
}

/// Over what stands for a tap.
fn start(config: &NetConfig) -> Remote {
    let (near, far): (Vec<_>, Vec<_>) = (0..config.pairs).map(|_| wire()).unzip();
    let taps = (0..).map(Role::Tap).zip(near).collect();
    Remote { far, ..try_start(config, taps).unwrap() }
}

/// Over what stands for passt.
fn start_stream() -> Remote {
    let (near, far) = stream();
    let config = NetConfig { offloads: false, ..config() };
    Remote { far: vec![far], ..try_start(&config, vec![(Role::NetStream, near)]).unwrap() }
}

fn fresh() -> Remote {
    start(&config())
}

#[test]
fn it_is_found_and_negotiated_with() {
    negotiation(&mut fresh());
    sizes(fresh().driver(), 2);
}

#[test]
fn frames_go_out() {
    let mut bench = fresh();
    transmits(&mut bench);
    odd_transmits(&mut bench);
}

#[test]
fn frames_come_in() {
    let mut bench = fresh();
    merges(&mut bench);
    does_not_merge(&mut bench);
    drops(&mut bench);
    odd_buffers(&mut bench);
}

#[test]
fn queues_that_make_no_sense_need_a_reset() {
    broken_queues(&mut fresh());
}

#[test]
fn resets_forget() {
    resets(&mut fresh());
}

#[test]
fn interrupts_come_when_they_are_wanted() {
    event_index(&mut fresh());
}

#[test]
fn crowds_come_through() {
    crowds(&mut fresh(), 200);
}

#[test]
fn a_far_end_that_dies_is_a_link_that_is_down() {
    dies(&mut fresh(), |bench| bench.far.clear());
    let mut bench = start_stream();
    dies(&mut bench, |bench| bench.far.clear());
    // And nothing turns in circles for it.
    let cpu = |pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<u64> =
            stat.rsplit(") ").next().unwrap().split(' ').filter_map(|f| f.parse().ok()).collect();
        fields[10] + fields[11]
    };
    let pid = bench.driver.host.pid();
    let before = cpu(pid);
    std::thread::sleep(Duration::from_millis(200));
    assert!(cpu(pid) - before <= 5, "ticks of 10 ms");
}

#[test]
fn the_control_queue_answers() {
    let mut bench = start(&NetConfig { pairs: 3, ..config() });
    sizes(bench.driver(), 7);
    commands_are_answered(&mut bench);
}

/// Sockets have no queues to use, so that the kernel refuses: the driver is told so, and the worker lives.
fn commands_are_answered(bench: &mut Remote) {
    bench.driver.begin(ALL, 7, 16);
    assert_eq!(command(&mut bench.driver, 6, &[4, 0, 2, 0]).1, 1);
    assert_eq!(command(&mut bench.driver, 6, &[4, 0, 9, 0]), (1, 1));
    assert_eq!(bench.driver.status(), 15);
}

#[test]
fn kicks_need_no_register() {
    let mut bench = fresh();
    bench.begin(ALL);
    let served = bench.driver.host.counters().unwrap().served;
    let sent = frame(4, 200);
    bench.driver.poke(DATA, &sent);
    for _ in 0..20 {
        bench.driver.push(TX, &[Segment::read(DATA, sent.len() as u32)]);
        rustix::io::write(&bench.kicks[usize::from(TX)], &1u64.to_ne_bytes()).unwrap();
        assert_eq!(hear(&bench.far[0]), sent);
        while bench.driver.used(TX).is_none() {}
    }
    assert_eq!(bench.driver.host.counters().unwrap().served, served, "the register thread had nothing to do");
}

/// As Linux does it: a kick only where the device asks for one, and then nothing but its interrupt to go by.
#[test]
fn the_event_indices_of_both_sides_are_enough() {
    use cellblock_sdk::virtio::spec::feature;
    let mut bench = fresh();
    bench.begin(feature::EVENT_IDX | net::MRG_RXBUF);
    let sent = frame(4, 200);
    bench.driver.poke(DATA, &sent);
    for i in 0..60 {
        bench.driver.push(RX, &[Segment::write(DATA + 0x1_0000 + 0x800 * i, 2048)]);
    }
    rustix::io::write(&bench.kicks[usize::from(RX)], &1u64.to_ne_bytes()).unwrap();
    // One frame was used at the beginning.
    let (mut available, mut used) = (1u16, 1u16);
    let mut received = 0u16;
    let event = |bench: &Remote, queue: u16| {
        let at = areas(queue)[2] + 4 + 8 * 64;
        u16::from_le_bytes(bench.driver.peek(at, 2).try_into().unwrap())
    };
    let (mut kicks, mut interrupts) = (0, 0);
    for round in 0..3000u32 {
        bench.driver.set_interrupts(TX, 0, used);
        bench.driver.set_interrupts(RX, 0, received);
        bench.driver.host.pulses();
        bench.driver.push(TX, &[Segment::read(DATA, 12), Segment::read(DATA + 12, 200)]);
        let (old, new) = (available, available.wrapping_add(1));
        available = new;
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        if new.wrapping_sub(event(&bench, TX)).wrapping_sub(1) < new.wrapping_sub(old) {
            rustix::io::write(&bench.kicks[usize::from(TX)], &1u64.to_ne_bytes()).unwrap();
            kicks += 1;
        }
        let wait = |bench: &mut Remote, what: &str| {
            let until = Instant::now() + Duration::from_secs(3);
            while bench.driver.host.pulses() == 0 {
                assert!(Instant::now() < until, "no interrupt for {what} at {round}");
                std::thread::yield_now();
            }
        };
        wait(&mut bench, "what was sent");
        interrupts += 1;
        assert!(bench.driver.used(TX).is_some(), "an interrupt for nothing at {round}");
        used = used.wrapping_add(1);
        assert_eq!(heard(&bench.far[0]).unwrap(), sent);
        if round % 3 == 0 {
            say(&bench.far[0], &sent);
            wait(&mut bench, "what came");
            assert!(bench.driver.used(RX).is_some());
            received = received.wrapping_add(1);
            bench.driver.push(RX, &[Segment::write(DATA + 0x1_0000, 2048)]);
        }
    }
    assert!(kicks > 0 && interrupts == 3000);
}

/// Killed with frames on their way, and with buffers held.
#[test]
fn a_successor_goes_on() {
    let mut bench = fresh();
    bench.begin(ALL);
    for i in 0..40 {
        bench.offer(&[Segment::write(DATA + 0x1000 * i, 2048)]);
    }
    bench.say(&frame(1, 100));
    assert_eq!(bench.driver.wait_used(RX), (0, 112));
    bench.offer(&[Segment::write(DATA + 0x1000 * 40, 2048)]);
    bench.driver.host.replace().unwrap();
    bench.say(&frame(2, 5000));
    for head in [1, 2, 3] {
        assert_eq!(bench.driver.wait_used(RX).0, head);
    }
    let sent = frame(3, 100);
    bench.driver.poke(DATA + 0x8_0000, &sent);
    bench.send(&[Segment::read(DATA + 0x8_0000, sent.len() as u32)]);
    assert_eq!(hear(&bench.far[0]), sent);
}

#[test]
fn a_stream_works_as_a_tap_does() {
    let mut bench = start_stream();
    bench.begin(net::MRG_RXBUF);
    let sent = frame(4, 200);
    bench.driver.poke(DATA, &sent);
    bench.send(&[Segment::read(DATA, sent.len() as u32)]);
    let mut expected = 200u32.to_be_bytes().to_vec();
    expected.extend(&sent[HEADER..]);
    assert_eq!(hear(&bench.far[0]), expected);
    bench.offer(&[Segment::write(DATA + 0x1000, 2048)]);
    bench.say(&expected[..100]);
    bench.say(&expected[100..]);
    assert_eq!(bench.driver.wait_used(RX).1, 212);
    assert_eq!(bench.driver.peek(DATA + 0x1000 + 12, 200), sent[HEADER..]);
}

/// By the real clock; how long it takes is what the limit says, at least.
#[test]
fn limits_hold() {
    let limits = Limits { bytes: None, operations: Some(Bucket { per_second: 200, burst: 1 }) };
    let mut bench = start(&NetConfig { transmit: limits, ..config() });
    bench.begin(ALL);
    bench.driver.poke(DATA, &frame(1, 60));
    let begun = Instant::now();
    for _ in 0..41 {
        bench.driver.push(TX, &[Segment::read(DATA, 72)]);
    }
    bench.driver.kick(TX);
    for _ in 0..41 {
        bench.driver.wait_used(TX);
    }
    assert!(begun.elapsed() >= Duration::from_millis(190), "{:?}", begun.elapsed());
}

/// A frame after the other, each large: the queues' thread tries to wake in turn, and stops that when there is no stream any more.
#[test]
fn a_stream_is_carried_whichever_way_its_thread_wakes() {
    let mut bench = fresh();
    bench.begin(ALL);
    let sent = frame(1, 40_000);
    bench.driver.poke(DATA, &sent);
    // Who is traced is slow.
    let end = Instant::now() + 6 * PATIENCE;
    let mut seen = false;
    while !seen {
        assert!(Instant::now() < end, "it never tried");
        for _ in 0..8 {
            assert_eq!(bench.send(&[Segment::read(DATA, sent.len() as u32)]), 0);
            assert!(hear(&bench.far[0]) == sent);
        }
        seen = wakes_in_turn(&bench);
    }
    while wakes_in_turn(&bench) {
        assert!(Instant::now() < end, "it goes on without a stream");
        std::thread::sleep(Duration::from_millis(5));
    }
    bench.works();
}

/// Whether the queues' thread is one of `SCHED_BATCH`: proc_pid_stat(5), field 41.
fn wakes_in_turn(bench: &Remote) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{}/task", bench.driver.host.pid())).unwrap();
    threads.map(|thread| std::fs::read_to_string(thread.unwrap().path().join("stat")).unwrap()).any(|stat| {
        let (_, fields) = stat.split_once("(queue 0) ").unwrap_or_default();
        fields.split(' ').nth(38) == Some("3")
    })
}

/// A guest that floods both queues and a far end that floods: whatever comes first, a reset is not held up.
#[test]
fn floods_do_not_hold_up_a_reset() {
    let mut bench = fresh();
    for _ in 0..5 {
        bench.begin(ALL);
        for i in 0..60 {
            bench.driver.push(RX, &[Segment::write(DATA + 0x1000 * i, 4096)]);
            bench.driver.push(TX, &[Segment::read(DATA, 1000)]);
        }
        bench.driver.kick(RX);
        bench.driver.kick(TX);
        while rustix::net::send(&bench.far[0], &frame(1, 1400), rustix::net::SendFlags::DONTWAIT).is_ok() {}
        bench.driver.reset();
        while heard(&bench.far[0]).is_some() {}
    }
    bench.works();
}

/// A real tap of this test's, if there can be one: its queues, and its name.
fn real_tap(letter: char, queues: u16) -> Option<(Vec<OwnedFd>, String)> {
    let text = format!("cbt{letter}{}", std::process::id());
    let name = tap::Name::new(&text).unwrap();
    let queue = || {
        let mut options = File::options();
        options.read(true).write(true).custom_flags(OFlags::NONBLOCK.bits() as i32);
        let queue = OwnedFd::from(options.open("/dev/net/tun").ok()?);
        tap::attach(&queue, name, true).ok().map(|()| queue)
    };
    let queues: Option<Vec<_>> = (0..queues).map(|_| queue()).collect();
    let up = Command::new("ip").args(["link", "set", &text, "up"]).status().is_ok_and(|s| s.success());
    if queues.is_none() || !up {
        eprintln!("SKIP: taps need root, /dev/net/tun and iproute2");
        return None;
    }
    Some((queues?, text))
}

/// What the host's side of an interface has counted.
fn counted(name: &str, what: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/sys/class/net/{name}/statistics/{what}"));
    text.map_or(0, |text| text.trim().parse().unwrap())
}

fn counts(name: &str, what: &str, least: u64) {
    let until = Instant::now() + Duration::from_secs(10);
    while counted(name, what) < least {
        assert!(Instant::now() < until, "{what} of {name} is {}", counted(name, what));
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_real_tap_takes_frames_and_judges_headers() {
    let Some((queues, name)) = real_tap('a', 1) else { return };
    let roles = (0..).map(Role::Tap).zip(queues).collect();
    let mut bench = try_start(&config(), roles).unwrap();
    for features in [ALL, 0] {
        bench.begin(features);
        let before = counted(&name, "rx_packets");
        let sent = frame(1, 100);
        bench.driver.poke(DATA, &sent);
        for _ in 0..10 {
            bench.send(&[Segment::read(DATA, 12), Segment::read(DATA + 12, 100)]);
        }
        counts(&name, "rx_packets", before + 10);
        // Checksums and segments that lie nowhere in the frame.
        let mut wrong = sent.clone();
        wrong[..10].copy_from_slice(&[1, 1, 255, 255, 255, 255, 255, 255, 255, 255]);
        bench.driver.poke(DATA, &wrong);
        for _ in 0..10 {
            bench.send(&[Segment::read(DATA, 112)]);
        }
        assert_eq!((bench.driver.status(), counted(&name, "rx_packets")), (15, before + 10));
    }
    bench.driver.reset();
}

#[test]
fn a_real_tap_has_the_queues_that_the_driver_uses() {
    let Some((queues, name)) = real_tap('b', 3) else { return };
    queues.iter().skip(1).for_each(|queue| tap::use_queue(queue, false).unwrap());
    let roles = (0..).map(Role::Tap).zip(queues).collect();
    let mut bench = try_start(&NetConfig { pairs: 3, ..config() }, roles).unwrap();
    let used = || {
        let queues = std::fs::read_dir(format!("/sys/class/net/{name}/queues")).unwrap();
        queues.filter(|queue| queue.as_ref().unwrap().file_name().to_string_lossy().starts_with("tx")).count()
    };
    bench.driver.begin(ALL, 7, 16);
    assert_eq!(used(), 1);
    for pairs in [3, 1, 2] {
        assert_eq!(command(&mut bench.driver, 6, &[4, 0, pairs, 0]), (0, 1));
        assert_eq!(used(), usize::from(pairs));
    }
    // A successor leaves it so; another driver begins with one.
    bench.driver.host.replace().unwrap();
    assert_eq!(command(&mut bench.driver, 6, &[9, 9, 9, 9]), (1, 1));
    assert_eq!(used(), 2);
    bench.driver.reset();
    bench.driver.begin(ALL, 7, 16);
    assert_eq!(command(&mut bench.driver, 6, &[9, 9, 9, 9]), (1, 1));
    assert_eq!(used(), 1);
}

/// The real passt at the far end answers for the gateway.
#[test]
fn passt_answers() {
    let (near, theirs) = stream();
    rustix::io::ioctl_fionbio(&theirs, false).unwrap();
    rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty()).unwrap();
    let fd = theirs.as_raw_fd().to_string();
    let passt = Command::new("passt").args(["-f", "-q", "--fd", &fd]).stderr(Stdio::null()).spawn();
    let Ok(mut passt) = passt else {
        eprintln!("SKIP: passt is not here");
        return;
    };
    drop(theirs);
    let mut bench =
        try_start(&NetConfig { offloads: false, ..config() }, vec![(Role::NetStream, near)]).unwrap();
    bench.begin(ALL);
    bench.offer(&[Segment::write(DATA + 0x1000, 2048)]);
    // An ARP request (RFC 826) of 02:01:02:03:04:05, 10.0.2.15, for 10.0.2.2.
    let mut request = vec![0; HEADER];
    request.extend([0xff; 6]);
    request.extend([2, 1, 2, 3, 4, 5, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 1, 2, 3, 4, 5, 10, 0, 2, 15]);
    request.extend([0, 0, 0, 0, 0, 0, 10, 0, 2, 2]);
    bench.driver.poke(DATA, &request);
    bench.send(&[Segment::read(DATA, request.len() as u32)]);
    let until = Instant::now() + Duration::from_secs(10);
    let used = loop {
        if let Some(used) = bench.driver.used(RX) {
            break used;
        }
        if passt.try_wait().unwrap().is_some() {
            eprintln!("SKIP: passt does not run here (it needs a default route)");
            return;
        }
        assert!(Instant::now() < until, "passt does not answer");
        std::thread::sleep(Duration::from_millis(1));
    };
    assert!(used.1 >= 12 + 42, "{used:?}");
    let reply = bench.driver.peek(DATA + 0x1000 + 12, 42);
    assert_eq!(
        (&reply[..6], &reply[12..22]),
        (&[2u8, 1, 2, 3, 4, 5][..], &[8u8, 6, 0, 1, 8, 0, 6, 4, 0, 2][..])
    );
    drop(bench);
    let until = Instant::now() + Duration::from_secs(10);
    while passt.try_wait().unwrap().is_none() {
        assert!(Instant::now() < until, "passt does not end with its socket");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn wrong_grants_are_refused() {
    let refused = |roles| match try_start(&config(), roles) {
        Ok(_) => panic!("it started"),
        Err(error) => error.to_string(),
    };
    assert!(refused(vec![]).contains("tap"));
    let (near, _far) = wire();
    rustix::io::ioctl_fionbio(&near, false).unwrap();
    let blocking = refused(vec![(Role::Tap(0), near)]);
    assert!(blocking.contains("without blocking"), "{blocking}");
    let (one, other) = wire();
    let both = refused(vec![(Role::Tap(0), one), (Role::NetStream, other)]);
    assert!(both.contains("Tap"), "{both}");
}
