//! The serial port in a real worker process, behind the ring, with the worker's own part of the sandbox on.
#![allow(clippy::unwrap_used, clippy::panic, unreachable_pub)] // Helpers beside the tests.

use std::time::{Duration, Instant};

use cellblock_sdk::testing::Host;
use cellblock_sdk::testing::process::{Program, Supervised, Wanted};
use cellblock_wire::control::ToWorker;
use cellblock_wire::device::{Bucket, DeviceConfig, Limits};

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
    assert!(before.elapsed() < Duration::from_secs(2), "the flush is bounded");
}

/// A second's worth of output, and longer, through a real timer and clock: the rate while the bucket is empty.
fn measured_rate(worker: &mut Supervised, time: Duration) -> f64 {
    worker.outb(2, 0x81);
    let wait = |worker: &mut Supervised| while worker.inb(5) & 0x20 == 0 {};
    // The burst.
    for _ in 0..2000 {
        wait(worker);
        (0..16).for_each(|_| worker.outb(0, b'x'));
    }
    wait(worker);
    let (begin, mut written) = (Instant::now(), 0);
    while begin.elapsed() < time {
        (0..16).for_each(|_| worker.outb(0, b'x'));
        written += 16;
        wait(worker);
    }
    f64::from(written) / begin.elapsed().as_secs_f64()
}

#[test]
fn limited_output_is_as_fast_as_it_may_be() {
    let per_second = 20_000;
    let limits = Limits { bytes: Some(Bucket { per_second, burst: 20_000 }), operations: None };
    let config = DeviceConfig::Serial { buffer: 65536, limits };
    let mut worker = Supervised::start(&program(), &Wanted { config, ..wanted() }).unwrap();
    let output = worker.output.take().unwrap();
    std::thread::spawn(move || while rustix::io::read(&output, &mut [0; 4096]).is_ok_and(|got| got > 0) {});
    let wanted = per_second as f64;
    // A busy machine makes it slower, never faster.
    for _ in 0..3 {
        let rate = measured_rate(&mut worker, Duration::from_secs(2));
        eprintln!("{rate:.0} bytes a second, allowed are {wanted}");
        assert!(rate < 1.1 * wanted, "{rate}");
        if rate > 0.9 * wanted {
            let counters = worker.counters().unwrap();
            assert!(counters.limited > 100 && counters.dropped == 0, "{counters:?}");
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
