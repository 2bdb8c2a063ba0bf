//! The clock in this process: reading, setting, interrupts, state.

use cellblock_rtc::{Rtc, calendar::Fields};
use cellblock_sdk::device::{Clock, Device, SECOND};
use cellblock_sdk::testing::{Harness, Host, ManualClock, Pulses};
use proptest::prelude::*;

/// 2026-11-21 22:20:21 UTC, a Saturday.
const START: i64 = 1_795_299_621;

struct Bench {
    rtc: Harness<Rtc<Pulses, ManualClock>>,
    pulses: Pulses,
    clock: ManualClock,
}

fn bench_at(wall: i64) -> Bench {
    let (pulses, clock) = (Pulses::default(), ManualClock::at(wall));
    let rtc = Harness::new(Rtc::new(pulses.clone(), clock.clone()));
    Bench { rtc, pulses, clock }
}

fn bench() -> Bench {
    bench_at(START * SECOND as i64)
}

impl Bench {
    fn get(&mut self, index: u8) -> u8 {
        self.rtc.outb(0, index);
        self.rtc.inb(1)
    }

    fn set(&mut self, index: u8, value: u8) {
        self.rtc.outb(0, index);
        self.rtc.outb(1, value);
    }

    fn shown(&mut self) -> [u8; 8] {
        [0x32, 0x09, 0x08, 0x07, 0x06, 0x04, 0x02, 0x00].map(|index| self.get(index))
    }

    /// Advances to the timer's next expiry and fires it; how far that was.
    fn next_timer(&mut self) -> Option<u64> {
        let ahead = self.rtc.device.deadline()?.saturating_sub(self.clock.monotonic());
        self.clock.advance(ahead);
        self.rtc.run_timers(&self.clock, 1);
        Some(ahead)
    }
}

#[test]
fn it_shows_the_hosts_time_in_bcd() {
    assert_eq!(bench().shown(), [0x20, 0x26, 0x11, 0x21, 0x07, 0x22, 0x20, 0x21]);
}

#[test]
fn binary_and_twelve_hours() {
    let mut bench = bench();
    bench.set(0x0b, 0x06);
    assert_eq!(bench.shown(), [20, 26, 11, 21, 7, 22, 20, 21]);
    bench.set(0x0b, 0x00);
    assert_eq!(bench.get(4), 0x90, "10 PM");
    bench.set(4, 0x12);
    assert_eq!(bench.get(4), 0x12, "12 AM");
    bench.set(0x0b, 0x02);
    assert_eq!(bench.get(4), 0x00, "midnight");
}

#[test]
fn linux_sets_the_time() {
    // mc146818_set_time(): SET and the divider's reset, the parts, then back.
    let mut bench = bench();
    let (b, a) = (bench.get(0x0b), bench.get(0x0a));
    bench.set(0x0b, b | 0x80);
    bench.set(0x0a, a | 0x70);
    for (index, value) in [(9, 0x30), (8, 0x02), (7, 0x28), (4, 0x23), (2, 0x59), (0, 0x58), (0x32, 0x20)] {
        bench.set(index, value);
    }
    bench.clock.advance(SECOND);
    assert_eq!(bench.get(0), 0x58, "while SET is set the time stands");
    bench.set(0x0b, b);
    bench.set(0x0a, a);
    bench.clock.advance(2 * SECOND);
    assert_eq!(bench.shown(), [0x20, 0x30, 0x03, 0x01, 0x06, 0x00, 0x00, 0x00]);
}

#[test]
fn linux_reads_a_steady_time() {
    // mc146818_avoid_UIP(): UIP is up for the last 244 µs of a second only.
    let mut bench = bench();
    assert_eq!(bench.get(0x0a) & 0x80, 0);
    assert_eq!(bench.get(0x0d) & 0x80, 0x80);
    bench.clock.advance(SECOND - 200_000);
    assert_eq!(bench.get(0x0a) & 0x80, 0x80);
    bench.clock.advance(200_000);
    assert_eq!((bench.get(0x0a) & 0x80, bench.get(0)), (0, 0x22));
}

#[test]
fn nothing_is_timed_without_an_interrupt() {
    let mut bench = bench();
    assert_eq!(bench.rtc.device.deadline(), None);
    bench.clock.advance(3 * SECOND);
    assert_eq!(bench.get(0x0c), 0x50, "flags come without interrupts, but IRQF does not");
}

#[test]
fn update_interrupts_come_once_until_they_are_read() {
    let mut bench = bench();
    bench.set(0x0b, 0x12);
    assert_eq!(bench.next_timer(), Some(SECOND));
    assert_eq!(bench.pulses.take(), 1);
    assert_eq!(bench.rtc.device.deadline(), None, "a pending interrupt needs no timer");
    assert_eq!(bench.get(0x0c) & 0x90, 0x90);
    assert_eq!(bench.get(0x0c), 0);
    assert_eq!(bench.next_timer(), Some(SECOND));
}

#[test]
fn periodic_interrupts_have_the_datasheets_rates() {
    let mut bench = bench();
    for (rate, period) in [(0x6, 976_562), (0xf, 500_000_000), (0x3, 122_070), (0x1, 3_906_250)] {
        bench.set(0x0b, 0x02);
        bench.set(0x0a, 0x20 | rate);
        bench.get(0x0c);
        bench.set(0x0b, 0x42);
        bench.next_timer();
        bench.get(0x0c);
        bench.pulses.take();
        assert_eq!((bench.next_timer(), bench.pulses.take()), (Some(period), 1), "rate {rate}");
    }
}

#[test]
fn the_alarm_rings_at_its_second_and_after_a_day_again() {
    let mut bench = bench();
    for (index, value) in [(5, 0x22), (3, 0x21), (1, 0x05)] {
        bench.set(index, value);
    }
    bench.set(0x0b, 0x22);
    assert_eq!(bench.next_timer(), Some(44 * SECOND));
    assert_eq!((bench.pulses.take(), bench.get(0x0c) & 0xa0), (1, 0xa0));
    assert_eq!(bench.next_timer(), Some(86_400 * SECOND));
}

proptest! {
    /// The alarm's next match, against counting seconds.
    #[test]
    fn the_alarm_is_where_counting_finds_it(
        start in 0i64..86_400, second in 0u8..60, minute in 0u8..60, hour in 0u8..24, any in 0u8..8,
    ) {
        let pick = |bit: u8, value: u8| if any & bit != 0 { 0xff } else { value };
        let alarm = [pick(1, second), pick(2, minute), pick(4, hour)];
        let mut bench = bench_at(start * SECOND as i64);
        bench.set(0x0b, 0x06);
        for (index, value) in [1, 3, 5].into_iter().zip(alarm) {
            bench.set(index, value);
        }
        bench.set(0x0b, 0x26);
        let matches = |at: i64| {
            let now = Fields::at(at);
            [now.second, now.minute, now.hour].into_iter().zip(alarm).all(|(now, want)| want >= 0xc0 || now == want)
        };
        let counted = (start + 1..).find(|&at| matches(at)).unwrap();
        prop_assert_eq!(bench.next_timer(), Some((counted - start) as u64 * SECOND));
        prop_assert_eq!(bench.pulses.take(), 1);
    }

    #[test]
    fn a_successor_answers_as_the_predecessor_would(
        steps in proptest::collection::vec((0u8..5, any::<u8>(), 0u64..3, 0u32..3, any::<u32>()), 0..80),
    ) {
        let (mut one, mut other) = (bench(), bench());
        for (kind, value, offset, log2, wide) in steps {
            let size = 1 << log2;
            for bench in [&mut one, &mut other] {
                match kind {
                    0 | 1 => bench.set(value % 0x33, wide as u8),
                    2 => { bench.rtc.write(0, offset, size, wide.into()); }
                    3 => bench.clock.advance(u64::from(wide) * u64::from(value)),
                    _ => bench.clock.step_wall(i64::from(wide as i32) * 1_000_000),
                }
                prop_assert!(bench.rtc.run_timers(&bench.clock.clone(), 8) < 8, "a timer that does not rest");
            }
            prop_assert_eq!(one.rtc.read(0, offset, size), other.rtc.read(0, offset, size));
            prop_assert_eq!(one.shown(), other.shown());
            let fresh = Rtc::new(other.pulses.clone(), other.clock.clone());
            other.rtc.replace(fresh).unwrap();
            prop_assert_eq!(one.rtc.saved(), other.rtc.saved());
        }
    }

    #[test]
    fn any_bytes_are_a_state_or_are_refused(
        changes in proptest::collection::vec((0usize..160, any::<u8>()), 0..12), cut in 100usize..200, wall: i64,
    ) {
        let mut bench = bench_at(wall);
        let before = bench.rtc.saved();
        let mut saved = before.clone();
        saved.truncate(cut);
        for (place, value) in changes {
            if let Some(byte) = saved.get_mut(place) { *byte = value; }
        }
        match bench.rtc.device.restore(&saved) {
            Ok(()) => {
                bench.shown();
                bench.get(0x0c);
                bench.set(0x0b, 0x72);
                let _ = bench.rtc.device.deadline();
                bench.set(0x09, 0x99);
            }
            Err(_) => prop_assert_eq!(bench.rtc.saved(), before),
        }
    }
}
