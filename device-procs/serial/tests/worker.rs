//! The serial port in a real worker process, behind the ring, with the worker's own part of the sandbox on.
#![allow(clippy::unwrap_used, clippy::panic, unreachable_pub)] // Helpers beside the tests.

use std::time::{Duration, Instant};

use cellblock_ring::Access;
use cellblock_sdk::testing::Host;
use cellblock_sdk::testing::process::{Program, Supervised, Wanted};
use cellblock_wire::control::ToWorker;
use cellblock_wire::device::{Bucket, DeviceConfig, Limits};
use cellblock_wire::slot::{Op, Space};
use rustix::io::ioctl_fionread;
use rustix::process::{Pid, Signal, kill_process};

mod probes;

fn program() -> Program {
    let start = include_bytes!(concat!(env!("OUT_DIR"), "/worker.start.bpf"));
    Program::find("serial", env!("CARGO_BIN_EXE_serial"), start)
}

fn wanted() -> Wanted {
    Wanted {
        config: DeviceConfig::Serial { buffer: 4096, limits: Default::default() },
        lanes: 2,
        poll_max_us: 0,
        pipes: true,
        nonblocking: false,
    }
}

fn start() -> Supervised {
    Supervised::start(&program(), &wanted()).unwrap()
}

#[test]
fn linux_probes_find_a_16550a() {
    probes::linux_autoconfig(&mut start());
}

#[test]
fn output_reaches_the_pipe_and_quit_flushes_it() {
    let mut worker = start();
    for byte in b"hello" {
        worker.outb(0, *byte);
    }
    worker.control.send_message(&ToWorker::Quit, &[]).unwrap();
    assert_eq!(worker.ended().unwrap().code(), Some(0));
    let mut space = [0; 16];
    let count = rustix::io::read(worker.output.as_ref().unwrap(), &mut space).unwrap();
    assert_eq!(&space[..count], b"hello");
}

#[test]
fn input_raises_an_interrupt_and_waits_to_be_read() {
    input_arrives(&mut start());
}

#[test]
fn pipes_that_do_not_block_are_waited_for() {
    let mut worker = Supervised::start(&program(), &Wanted { nonblocking: true, ..wanted() }).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    input_arrives(&mut worker);
    for _ in 0..70_000 {
        worker.outb(0, b'x');
    }
    let (mut got, mut space) = (0, [0; 4096]);
    while got < 65_536 {
        got += rustix::io::read(worker.output.as_ref().unwrap(), &mut space).unwrap();
    }
    assert!(worker.counters().unwrap().host_out >= 65_536);
}

fn input_arrives(worker: &mut Supervised) {
    worker.outb(2, 0x81); // FIFOs on, trigger at 8
    worker.outb(4, 0x0b); // OUT2
    worker.outb(1, 0x01); // received data
    worker.pulses();
    rustix::io::write(worker.input.as_ref().unwrap(), b"abc").unwrap();
    let end = Instant::now() + Duration::from_secs(10);
    while worker.pulses() == 0 {
        assert!(Instant::now() < end, "no interrupt");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(worker.inb(2), 0xcc, "timeout");
    assert_eq!([worker.inb(0), worker.inb(0), worker.inb(0)], *b"abc");
    assert_eq!(worker.inb(2), 0xc1);
}

/// Whatever its threads wait for, and for however long.
#[test]
fn a_worker_that_is_stopped_and_goes_on_serves_on() {
    let mut worker = start();
    let pid = Pid::from_raw(worker.pid() as i32).unwrap();
    for byte in 0..50 {
        // The thread that writes it out first waits a while for more.
        worker.outb(0, byte);
        kill_process(pid, Signal::STOP).unwrap();
        std::thread::sleep(Duration::from_millis(2));
        kill_process(pid, Signal::CONT).unwrap();
    }
    let (mut got, mut space) = (vec![], [0; 64]);
    while got.len() < 50 {
        let count = rustix::io::read(worker.output.as_ref().unwrap(), &mut space).unwrap();
        assert_ne!(count, 0, "it has ended");
        got.extend_from_slice(&space[..count]);
    }
    assert!(got.into_iter().eq(0..50));
}

#[test]
fn a_blocked_sink_stalls_nobody() {
    let mut worker = start();
    let count = 80_000; // the pipe takes 64 KiB, the buffer 4
    for _ in 0..count {
        worker.outb(0, b'x');
    }
    let counters = worker.counters().unwrap();
    assert_eq!(counters.served, count);
    assert!(counters.dropped > 0, "{counters:?}");
    let before = Instant::now();
    worker.control.send_message(&ToWorker::Quit, &[]).unwrap();
    assert_eq!(worker.ended().unwrap().code(), Some(0));
    assert!(before.elapsed() < Duration::from_secs(20), "the flush is bounded");
}

/// Writes for `time`, as a driver does that keeps to THRE; how many bytes.
fn written_in(worker: &mut Supervised, time: Duration) -> u64 {
    let (begin, mut written) = (Instant::now(), 0);
    while begin.elapsed() < time {
        while worker.inb(5) & 0x20 == 0 {}
        (0..16).for_each(|_| worker.outb(0, b'x'));
        written += 16;
    }
    written
}

#[test]
fn limited_output_is_as_fast_as_it_may_be() {
    let (per_second, burst) = (20_000, 20_000);
    let limits = Limits { bytes: Some(Bucket { per_second, burst }), operations: None };
    let config = DeviceConfig::Serial { buffer: 65536, limits };
    let mut worker = Supervised::start(&program(), &Wanted { config, ..wanted() }).unwrap();
    let output = worker.output.take().unwrap();
    std::thread::spawn(move || while rustix::io::read(&output, &mut [0; 4096]).is_ok_and(|got| got > 0) {});
    worker.outb(2, 0x81);
    let (begin, mut written) = (Instant::now(), 0);
    // A busy machine makes it slower: that costs another round.
    for _ in 0..40 {
        let (begun, before) = (begin.elapsed(), written);
        written += written_in(&mut worker, Duration::from_secs(1));
        let allowed = burst as f64 + per_second as f64 * begin.elapsed().as_secs_f64();
        let rate = (written - before) as f64 / (begin.elapsed() - begun).as_secs_f64();
        eprintln!("{written} bytes, allowed are {allowed:.0}; {rate:.0} a second");
        // Two FIFOs are on their way.
        assert!(written as f64 <= allowed + 32.0, "{written} of {allowed:.0}");
        let counters = worker.counters().unwrap();
        assert_eq!(counters.dropped, 0, "{counters:?}");
        // The burst is used up, and the limit held it back.
        if counters.limited > 100 && (0.9..1.1).contains(&(rate / per_second as f64)) {
            return;
        }
    }
    panic!("it is too slow");
}

#[test]
fn a_successor_goes_on_where_the_killed_one_was() {
    let mut worker = start();
    worker.outb(3, 0x1b);
    worker.outb(7, 0xa5);
    worker.replace().unwrap();
    assert_eq!((worker.inb(3), worker.inb(7)), (0x1b, 0xa5));
    probes::linux_autoconfig(&mut worker);
}

/// The doorbell's pipe is the device's, not the worker's: a successor finds in it what its predecessor did not take out, which may be
/// all that goes in. It takes that out, so that no number of deaths fills the pipe, and hears each ring, also one for what was asked
/// before it was there.
#[test]
fn a_successor_hears_the_doorbell_that_its_predecessor_left_rung() {
    let mut worker = start();
    let left = |worker: &Supervised| ioctl_fionread(&worker.bell).unwrap();
    for rings in [0, 1, 63, 64, 100, 70_000] {
        let asleep = Duration::from_millis(2);
        std::thread::sleep(asleep);
        kill_process(Pid::from_raw(worker.pid() as i32).unwrap(), Signal::STOP).unwrap();
        for _ in 0..rings {
            worker.ringer.ring();
        }
        let access = Access { space: Space::Pio, op: Op::Write, size: 1, region: 0, offset: 7, data: 0x5a };
        worker.post(0, &access);
        assert!(left(&worker) > rings.min(60_000), "the one who sleeps was rung for");
        worker.replace().unwrap();
        worker.wait(0).unwrap();
        std::thread::sleep(asleep);
        assert!(left(&worker) < 64, "{} rings are left of {rings}", left(&worker));
        for _ in 0..70 {
            assert_eq!(worker.inb(7), 0x5a);
            // Long enough that most times it sleeps again.
            std::thread::sleep(Duration::from_micros(300));
        }
    }
}

/// What the sink gets, until it has been silent for a while.
fn drained(worker: &Supervised) -> Vec<u8> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let output = worker.output.as_ref().unwrap();
    let (mut got, mut space) = (vec![], vec![0; 1 << 16]);
    let silent = Timespec { tv_sec: 0, tv_nsec: 300_000_000 };
    while poll(&mut [PollFd::new(output, PollFlags::IN)], Some(&silent)).unwrap() > 0 {
        let count = rustix::io::read(output, &mut space[..]).unwrap();
        got.extend_from_slice(&space[..count]);
    }
    got
}

#[test]
fn output_that_waits_outlives_its_worker() {
    let mut worker = start();
    let mut sent: Vec<u8> = vec![];
    let mut send = |worker: &mut Supervised, count: u32| {
        for number in 0..count {
            sent.push((number % 251) as u8);
            worker.outb(0, (number % 251) as u8);
        }
        sent.len() as u64
    };
    // Until the pipe takes no more, and then as much as the buffer surely has room for.
    loop {
        let all = send(&mut worker, 1000);
        let end = Instant::now() + Duration::from_millis(100);
        while worker.counters().unwrap().host_out < all && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(2));
        }
        if worker.counters().unwrap().host_out < all {
            break;
        }
    }
    send(&mut worker, 2000);
    assert_eq!(worker.counters().unwrap().dropped, 0);
    // The sink takes nothing from a dead worker, and another lives as shortly.
    worker.replace().unwrap();
    worker.replace().unwrap();
    worker.outb(0, b'!');
    let got = drained(&worker);
    assert!(got == [&sent[..], b"!"].concat(), "{} bytes of {}", got.len(), sent.len() + 1);
}

/// Reads what the guest may read, `count` bytes.
fn received(worker: &mut Supervised, count: usize) -> Vec<u8> {
    let (mut got, end) = (vec![], Instant::now() + Duration::from_secs(10));
    while got.len() < count {
        if worker.inb(5) & 1 != 0 {
            got.push(worker.inb(0));
        }
        assert!(Instant::now() < end, "only {got:?}");
    }
    got
}

#[test]
fn input_outlives_the_worker_that_took_it() {
    let mut worker = start();
    worker.outb(2, 0x81);
    let sent: Vec<u8> = (0..60).collect();
    rustix::io::write(worker.input.as_ref().unwrap(), &sent).unwrap();
    assert_eq!(received(&mut worker, 5), sent[..5]);
    // The next access comes after all that the one before has to do.
    worker.inb(7);
    worker.replace().unwrap();
    assert_eq!(received(&mut worker, 25), sent[5..30]);
    worker.inb(7);
    worker.replace().unwrap();
    worker.replace().unwrap();
    assert_eq!(received(&mut worker, 30), sent[30..]);
    worker.inb(7);
    assert_eq!(worker.inb(5) & 1, 0, "nothing comes twice");
}

#[test]
fn killed_at_any_time_it_loses_no_byte() {
    let mut worker = start();
    worker.outb(2, 0x81);
    let input = worker.input.as_ref().unwrap().try_clone().unwrap();
    // Bytes of each direction count up, to no more than tells how far behind one is that comes again.
    let (mut written, mut read, mut fed) = (0u8, vec![], 0u8);
    for round in 0..40 {
        for _ in 0..3 {
            rustix::io::write(&input, &[fed]).unwrap();
            fed += 1;
        }
        let (pause, begin) = (Duration::from_micros(round * 37 % 400), Instant::now());
        while begin.elapsed() < pause {
            if written < 3 * round as u8 {
                worker.outb(0, written);
                written += 1;
            }
            if worker.inb(5) & 1 != 0 {
                read.push(worker.inb(0));
            }
        }
        worker.replace().unwrap();
    }
    let end = Instant::now() + Duration::from_secs(10);
    while read.last() != Some(&(fed - 1)) {
        read.extend(received(&mut worker, 1));
        assert!(Instant::now() < end);
    }
    let got = drained(&worker);
    for (what, bytes, count) in [("output", &got, written), ("input", &read, fed)] {
        let mut next = 0;
        for byte in bytes {
            assert!(*byte <= next, "{what}: {byte} where {next} was due: {bytes:?}");
            next = next.max(*byte + 1);
        }
        assert_eq!(next, count, "{what}: all of it: {bytes:?}");
        eprintln!("{what}: {count} bytes, {} of them twice", bytes.len() - usize::from(count));
    }
}

#[test]
fn lanes_are_served_beside_each_other() {
    use cellblock_ring::Access;
    use cellblock_wire::slot::{Op, Space};
    let mut worker = start();
    let read = |offset| Access { space: Space::Pio, op: Op::Read, size: 1, region: 0, offset, data: 0 };
    worker.outb(7, 0x77);
    worker.post(0, &read(7));
    worker.post(1, &read(5));
    assert_eq!(worker.wait(1).unwrap().data, 0x60);
    assert_eq!(worker.wait(0).unwrap().data, 0x77);
}
