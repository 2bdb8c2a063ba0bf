//! The power registers in this process.

use cellblock_acpi_power::AcpiPower;
use cellblock_sdk::device::{Action, Device, Event};
use cellblock_sdk::testing::{Harness, Host, ManualClock, Pulses};
use proptest::prelude::*;

type Power = AcpiPower<Pulses, ManualClock>;

fn bench() -> (Harness<Power>, Pulses, ManualClock) {
    let (pulses, clock) = (Pulses::default(), ManualClock::default());
    (Harness::new(AcpiPower::new(pulses.clone(), clock.clone())), pulses, clock)
}

#[test]
fn linux_powers_off_and_resets() {
    let (mut power, ..) = bench();
    // acpi_hw_extended_sleep(): clears WAK_STS, then writes SLP_TYP and SLP_EN at once.
    assert_eq!(power.write(0, 1, 1, 0x80), Action::None);
    assert_eq!(power.write(0, 0, 1, 5 << 2), Action::None, "without SLP_EN nothing happens");
    assert_eq!(power.write(0, 0, 1, 5 << 2 | 1 << 5), Action::PowerOff);
    assert_eq!(power.inb(0), 5 << 2, "SLP_EN reads as zero");
    assert_eq!(power.write(0, 0, 1, 3 << 2 | 1 << 5), Action::None, "S3 is not described, so not there");
    assert_eq!(power.write(0, 2, 1, 1), Action::Reset);
    assert_eq!(power.write(0, 2, 1, 0), Action::None);
}

#[test]
fn a_press_is_told_until_it_is_read() {
    let (mut power, pulses, clock) = bench();
    power.event(Event::PowerButton);
    assert_eq!(pulses.take(), 1);
    for _ in 0..3 {
        clock.advance(500_000_000);
        assert_eq!(power.run_timers(&clock, 2), 1);
        assert_eq!(pulses.take(), 1);
    }
    assert_eq!((power.inb(4), power.inb(4)), (1, 0));
    assert_eq!(power.device.deadline(), None);
}

#[test]
fn a_guest_that_never_reads_is_left_alone_in_the_end() {
    let (mut power, pulses, clock) = bench();
    power.event(Event::PowerButton);
    for _ in 0..1000 {
        clock.advance(500_000_000);
        power.run_timers(&clock, 2);
    }
    assert_eq!(pulses.take(), 241);
    assert_eq!(power.device.deadline(), None);
    assert_eq!(power.inb(4), 1, "the press itself is kept");
}

proptest! {
    #[test]
    fn a_successor_answers_as_the_predecessor_would(
        steps in proptest::collection::vec((0u8..4, 0u64..9, 0u32..4, any::<u64>()), 0..60),
    ) {
        let ((mut one, _, clock), (mut other, pulses, other_clock)) = (bench(), bench());
        for (kind, offset, log2, data) in steps {
            let size = 1 << log2;
            match kind {
                0 => prop_assert_eq!(one.write(0, offset, size, data), other.write(0, offset, size, data)),
                1 => prop_assert_eq!(one.read(0, offset, size), other.read(0, offset, size)),
                2 => { one.event(Event::PowerButton); other.event(Event::PowerButton); }
                _ => {
                    for (clock, power) in [(&clock, &mut one), (&other_clock, &mut other)] {
                        clock.advance(data % 1_000_000_000);
                        power.run_timers(clock, 1);
                    }
                }
            }
            other.replace(AcpiPower::new(pulses.clone(), other_clock.clone())).unwrap();
            prop_assert_eq!(one.saved(), other.saved());
        }
    }

    #[test]
    fn any_bytes_are_a_state_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..20), head: bool) {
        let (mut power, ..) = bench();
        let before = power.saved();
        let saved = if head { [&before[..2], &bytes[..]].concat() } else { bytes };
        match power.device.restore(&saved) {
            Ok(()) => prop_assert_eq!(power.saved().len(), before.len()),
            Err(_) => prop_assert_eq!(power.saved(), before),
        }
    }
}
