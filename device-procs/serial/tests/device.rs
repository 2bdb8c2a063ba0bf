//! The serial port in this process: probes, interrupts, state.
#![allow(clippy::unwrap_used, unreachable_pub)] // Helpers beside the tests.

use cellblock_sdk::device::{Clock, Device, Event, SECOND};
use cellblock_sdk::testing::{Desk, Harness, Host, ManualClock, Pulses};
use cellblock_serial::Serial;
use cellblock_wire::device::Bucket;
use proptest::prelude::*;

mod probes;

type Port = Serial<Pulses, ManualClock, Desk>;

/// A port with the handles that a test keeps.
struct Bench {
    port: Harness<Port>,
    pulses: Pulses,
    clock: ManualClock,
    desk: Desk,
}

fn bench() -> Bench {
    let (pulses, clock, desk) = (Pulses::default(), ManualClock::at(0), Desk::default());
    let port = Harness::new(Serial::new(pulses.clone(), clock.clone(), desk.clone()));
    Bench { port, pulses, clock, desk }
}

impl Bench {
    /// FIFOs on with a trigger of 8, OUT2 open, the given interrupts enabled; what that caused is forgotten.
    fn open(ier: u8) -> Bench {
        let mut bench = bench();
        bench.port.outb(2, 0x81);
        bench.port.outb(4, 0x08);
        bench.port.outb(1, ier);
        bench.port.inb(2);
        bench.pulses.take();
        bench
    }

    fn type_in(&mut self, text: &[u8]) {
        self.desk.input.borrow_mut().extend(text);
        self.port.event(Event::Host);
    }

    fn skip(&mut self, count: usize) {
        for _ in 0..count {
            self.port.inb(0);
        }
    }
}

#[test]
fn linux_probes_find_a_16550a() {
    probes::linux_autoconfig(&mut bench().port);
}

#[test]
fn a_quiet_port_costs_one_read_per_byte_at_most() {
    let mut bench = bench();
    for byte in b"boot" {
        assert_eq!(bench.port.inb(5) & 0x60, 0x60);
        bench.port.outb(0, *byte);
    }
    assert_eq!(*bench.desk.output.borrow(), b"boot");
    assert_eq!(bench.pulses.take(), 0);
}

#[test]
fn every_byte_sent_is_told() {
    let mut bench = Bench::open(0x02);
    for _ in 0..3 {
        bench.port.outb(0, b'x');
        assert_eq!(bench.pulses.take(), 1);
        assert_eq!(bench.port.inb(2), 0xc2);
        assert_eq!(bench.port.inb(2), 0xc1, "reading IIR clears it");
        assert_eq!(bench.pulses.take(), 0);
    }
}

#[test]
fn the_trigger_level_and_the_timeout_are_told_apart() {
    let mut bench = Bench::open(0x01);
    bench.type_in(b"abc");
    assert_eq!((bench.pulses.take(), bench.port.inb(2)), (1, 0xcc));
    bench.type_in(b"defgh");
    assert_eq!((bench.pulses.take(), bench.port.inb(2)), (1, 0xc4));
    for byte in b"abcdefgh" {
        assert_eq!(bench.port.inb(0), *byte);
    }
    assert_eq!(bench.port.inb(2), 0xc1);
}

#[test]
fn a_driver_that_reads_one_byte_per_interrupt_gets_all() {
    let mut bench = Bench::open(0x01);
    bench.type_in(b"abc");
    let mut got = vec![];
    while bench.pulses.take() > 0 {
        assert_eq!(bench.port.inb(2), 0xcc);
        got.push(bench.port.inb(0));
        // Four characters at 115200 baud.
        bench.clock.advance(347_223);
        bench.port.run_timers(&bench.clock.clone(), 2);
    }
    assert_eq!(got, b"abc");
    assert_eq!(bench.port.device.deadline(), None);
}

#[test]
fn a_driver_that_serves_one_cause_per_interrupt_loses_none() {
    let mut bench = Bench::open(0x03);
    bench.type_in(b"12345678");
    bench.port.outb(0, b'x');
    assert!(bench.pulses.take() >= 2);
    assert_eq!(bench.port.inb(2), 0xc4, "received data goes first");
    assert_eq!(bench.pulses.take(), 1, "the other cause is told again");
    bench.skip(8);
    assert_eq!(bench.port.inb(2), 0xc2);
}

#[test]
fn out2_gates_the_line_and_opening_it_tells_what_waits() {
    let mut bench = Bench::open(0x01);
    bench.port.outb(4, 0);
    bench.type_in(b"a");
    assert_eq!(bench.pulses.take(), 0);
    bench.port.outb(4, 0x08);
    assert_eq!(bench.pulses.take(), 1);
}

#[test]
fn input_is_taken_as_there_is_room() {
    let mut bench = Bench::open(0x01);
    bench.type_in(&[7; 40]);
    assert_eq!(bench.desk.input.borrow().len(), 24);
    bench.skip(4);
    assert_eq!(bench.desk.input.borrow().len(), 20);
    bench.port.outb(4, 0x18);
    bench.skip(16);
    assert_eq!(bench.desk.input.borrow().len(), 20, "in loopback the line is cut");
    bench.port.outb(4, 0x08);
    assert_eq!(bench.desk.input.borrow().len(), 4);
}

#[test]
fn without_fifos_one_character_waits() {
    let mut bench = bench();
    bench.type_in(b"ab");
    assert_eq!(bench.desk.input.borrow().len(), 1);
    assert_eq!((bench.port.inb(2), bench.port.inb(0), bench.port.inb(0)), (1, b'a', b'b'));
    assert_eq!(bench.port.inb(5), 0x60);
}

#[test]
fn an_overrun_in_loopback_is_told_and_cleared() {
    let mut bench = Bench::open(0x04);
    bench.port.outb(4, 0x18);
    (0..17).for_each(|_| bench.port.outb(0, 1));
    assert_eq!(bench.port.inb(2), 0xc6);
    assert_eq!(bench.port.inb(5), 0x63);
    assert_eq!((bench.port.inb(5), bench.port.inb(2)), (0x61, 0xc1));
}

#[test]
fn modem_changes_are_told() {
    let mut bench = Bench::open(0x08);
    assert_eq!(bench.port.inb(6), 0xb0);
    bench.port.outb(4, 0x18);
    assert_eq!(bench.port.inb(2), 0xc0);
    assert_eq!(bench.port.inb(6), 0x83, "CTS and DSR fell, DCD is OUT2");
    assert_eq!((bench.port.inb(2), bench.port.inb(6)), (0xc1, 0x80));
}

#[test]
fn a_wide_access_is_two_narrow_ones() {
    let mut bench = bench();
    bench.port.write(0, 3, 1, 0x80);
    bench.port.write(0, 0, 2, 0x0102);
    assert_eq!(bench.port.read(0, 0, 2), 0x0102);
    assert_eq!(bench.port.read(0, 6, 4) & 0xffff_0000, 0xffff_0000, "past the end");
}

/// A port whose output is limited, as Linux's driver opens it.
fn limited(per_second: u64, burst: u64) -> Bench {
    let mut bench = Bench::open(0);
    let (pulses, clock, desk) = (bench.pulses.clone(), bench.clock.clone(), bench.desk.clone());
    let saved = bench.port.saved();
    bench.port.device = Serial::new(pulses, clock, desk).limited(Some(&Bucket { per_second, burst }));
    bench.port.device.restore(&saved).unwrap();
    bench.pulses.take();
    bench
}

/// Writes as a driver does that waits for each interrupt and then fills the FIFO, until `time` is over. Bytes written.
fn write_by_interrupts(bench: &mut Bench, time: u64) -> u64 {
    let (end, mut written) = (bench.clock.monotonic() + time, 0);
    bench.port.outb(1, 0x02);
    loop {
        if bench.pulses.take() > 0 && bench.port.inb(2) == 0xc2 {
            assert_eq!(bench.port.inb(5) & 0x60, 0x60);
            (0..16).for_each(|_| bench.port.outb(0, b'x'));
            written += 16;
            continue;
        }
        assert_eq!(bench.port.inb(5) & 0x60, 0, "it has no room, or it would have said so");
        let next = bench.port.device.deadline().unwrap();
        if next > end {
            return written;
        }
        // The host's timer is late, as it is.
        bench.clock.advance(next - bench.clock.monotonic() + 50_000);
        bench.port.run_timers(&bench.clock.clone(), 2);
    }
}

#[test]
fn a_limited_transmitter_keeps_to_its_limit_and_loses_nothing() {
    for (per_second, burst) in [(100, 1), (1000, 16), (9600, 4096), (100_000, 100)] {
        let mut bench = limited(per_second, burst);
        let written = write_by_interrupts(&mut bench, 10 * SECOND);
        let wanted = 10 * per_second + burst;
        assert!(written.abs_diff(wanted) <= wanted / 10, "{written} bytes, allowed are {wanted}");
        assert_eq!(bench.desk.output.borrow().len() as u64, written, "every byte arrives");
    }
}

#[test]
fn a_driver_that_polls_is_held_back_as_well() {
    let mut bench = limited(1000, 10);
    let mut written: u64 = 0;
    while bench.clock.monotonic() < 10 * SECOND {
        match bench.port.inb(5) & 0x60 {
            0x60 => {
                bench.port.outb(0, b'x');
                written += 1;
            }
            other => assert_eq!(other, 0),
        }
        bench.clock.advance(100_000);
    }
    assert!(written.abs_diff(10_010) <= 1000, "{written}");
    assert_eq!(bench.desk.output.borrow().len() as u64, written);
}

#[test]
fn a_driver_that_does_not_wait_loses_what_the_fifo_does_not_hold() {
    let mut bench = limited(1000, 10);
    (0..100).for_each(|_| bench.port.outb(0, b'x'));
    // The burst, and the FIFO's 16 bytes.
    assert_eq!(bench.desk.output.borrow().len(), 26);
    bench.port.outb(2, 0);
    bench.clock.advance(SECOND);
    bench.port.run_timers(&bench.clock.clone(), 2);
    (0..100).for_each(|_| bench.port.outb(0, b'y'));
    assert_eq!(bench.desk.output.borrow().len(), 26 + 11, "without FIFOs one character waits");
}

#[test]
fn in_loopback_nothing_is_limited() {
    let mut bench = limited(1, 1);
    bench.port.outb(4, 0x18);
    for byte in 0..100 {
        bench.port.outb(0, byte);
        assert_eq!((bench.port.inb(5), bench.port.inb(0)), (0x61, byte));
    }
}

#[test]
fn a_successor_lets_the_line_finish_first() {
    let mut bench = limited(1000, 1);
    bench.port.outb(1, 0x02);
    (0..4).for_each(|_| bench.port.outb(0, b'x'));
    let (pulses, clock, desk) = (bench.pulses.clone(), bench.clock.clone(), bench.desk.clone());
    let fresh = Serial::new(pulses, clock, desk).limited(Some(&Bucket { per_second: 1000, burst: 1 }));
    bench.port.replace(fresh).unwrap();
    bench.pulses.take();
    assert_eq!(bench.port.inb(5) & 0x60, 0);
    assert_eq!(bench.port.device.deadline(), Some(3_000_000));
    bench.clock.advance(3_000_000);
    bench.port.run_timers(&bench.clock.clone(), 2);
    assert_eq!((bench.pulses.take(), bench.port.inb(2), bench.port.inb(5) & 0x60), (1, 0xc2, 0x60));
}

/// Something that guest, host or time does.
#[derive(Debug, Clone)]
enum Step {
    Read(u64, u8),
    Write(u64, u8, u64),
    Type(u8),
    Wait(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let size = prop_oneof![8 => Just(1u8), 1 => Just(2), 1 => Just(4), 1 => Just(8)];
    let offset = prop_oneof![20 => 0u64..8, 1 => any::<u64>()];
    prop_oneof![
        4 => (offset.clone(), size.clone()).prop_map(|(offset, size)| Step::Read(offset, size)),
        6 => (offset, size, any::<u64>()).prop_map(|(offset, size, data)| Step::Write(offset, size, data)),
        1 => any::<u8>().prop_map(Step::Type),
        1 => any::<u32>().prop_map(Step::Wait),
    ]
}

fn apply(bench: &mut Bench, step: &Step) -> u64 {
    match *step {
        Step::Read(offset, size) => return bench.port.read(0, offset, size),
        Step::Write(offset, size, data) => {
            bench.port.write(0, offset, size, data);
        }
        Step::Type(byte) => bench.type_in(&[byte]),
        Step::Wait(ns) => {
            bench.clock.advance(ns.into());
            assert!(bench.port.run_timers(&bench.clock.clone(), 4) < 4, "a timer that does not rest");
        }
    }
    0
}

proptest! {
    /// As below, with a transmitter that is busy now and then.
    #[test]
    fn a_limited_successor_answers_as_the_predecessor_would(steps in proptest::collection::vec(step(), 0..80)) {
        let rate = Bucket { per_second: 100_000, burst: 1 };
        let (mut one, mut other) = (bench(), bench());
        for bench in [&mut one, &mut other] {
            let fresh = Serial::new(bench.pulses.clone(), bench.clock.clone(), bench.desk.clone());
            bench.port.device = fresh.limited(Some(&rate));
        }
        for step in &steps {
            prop_assert_eq!(apply(&mut one, step), apply(&mut other, step));
            let saved = other.port.saved();
            other.port.device.restore(&saved).unwrap();
            prop_assert_eq!(one.port.saved(), other.port.saved());
        }
    }

    /// One device lives through all; the other is replaced after each step. They answer alike.
    #[test]
    fn a_successor_answers_as_the_predecessor_would(steps in proptest::collection::vec(step(), 0..80)) {
        let (mut one, mut other) = (bench(), bench());
        for step in &steps {
            prop_assert_eq!(apply(&mut one, step), apply(&mut other, step));
            let fresh = Serial::new(other.pulses.clone(), other.clock.clone(), other.desk.clone());
            other.port.replace(fresh).unwrap();
            prop_assert_eq!(one.port.saved(), other.port.saved());
        }
    }

    #[test]
    fn any_bytes_are_a_state_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..64), good: bool) {
        let mut bench = bench();
        let before = bench.port.saved();
        // Half of the time a good state with a few bytes changed.
        let mut saved = if good { before.clone() } else { bytes.clone() };
        for pair in bytes.chunks_exact(2).take(3).filter(|_| good) {
            let place = usize::from(pair[0]) % saved.len();
            saved[place] = pair[1];
        }
        match bench.port.device.restore(&saved) {
            Ok(()) => for offset in 0..8 { bench.port.inb(offset); bench.port.outb(offset, 0xff); },
            Err(_) => prop_assert_eq!(bench.port.saved(), before),
        }
        prop_assert!(bench.clock.monotonic() == 0);
    }

    /// While a cause is pending and the line open, the guest was told since it last looked.
    #[test]
    fn no_cause_waits_untold(steps in proptest::collection::vec(step(), 0..80)) {
        let mut bench = Bench::open(0x0f);
        let mut told = false;
        for step in &steps {
            apply(&mut bench, step);
            told |= bench.pulses.take() > 0;
            let (open, dlab) = (bench.port.inb(4) & 0x18 == 0x08, bench.port.inb(3) & 0x80 != 0);
            told |= bench.pulses.take() > 0;
            if open && !dlab && !told {
                prop_assert_eq!(bench.port.inb(2) & 0x0f, 1);
            }
            if bench.port.inb(2) & 0x0f == 1 { told = false; }
            told |= bench.pulses.take() > 0;
        }
    }
}
