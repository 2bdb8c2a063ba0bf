//! The keyboard controller in this process: Linux's probes, reset, state.
#![allow(clippy::unwrap_used, unreachable_pub)] // Helpers beside the tests.

use cellblock_i8042::I8042;
use cellblock_sdk::device::{Action, Device};
use cellblock_sdk::testing::{Harness, Host, Pulses};
use proptest::prelude::*;

mod probes;

fn bench() -> (Harness<I8042<Pulses>>, Pulses) {
    let pulses = Pulses::default();
    (Harness::new(I8042::new(pulses.clone())), pulses)
}

#[test]
fn linux_finds_a_keyboard_port_and_no_second_port() {
    probes::linux_init(&mut bench().0);
}

#[test]
fn an_empty_keyboard_answers_at_once_that_it_is_not_there() {
    let (mut controller, pulses) = bench();
    probes::enable_keyboard(&mut controller);
    for byte in [0xf2, 0xed, 0xff] {
        controller.write(0, 0, 1, byte);
        assert_eq!(pulses.take(), 1);
        assert_eq!(controller.read(1, 0, 1) & 0x41, 0x41, "a byte waits, with the timeout flag");
        assert_eq!(controller.read(0, 0, 1), 0xfe);
        assert_eq!(controller.read(1, 0, 1) & 0x01, 0);
    }
}

#[test]
fn both_ways_to_reset() {
    let (mut controller, _) = bench();
    assert_eq!(controller.write(1, 0, 1, 0xfe), Action::Reset);
    assert_eq!(controller.write(1, 0, 1, 0xd1), Action::None);
    assert_eq!(controller.write(0, 0, 1, 0xfe), Action::Reset);
    assert_eq!(controller.write(1, 0, 1, 0xd1), Action::None);
    assert_eq!(controller.write(0, 0, 1, 0xdf), Action::None, "A20 is no reset");
    assert_eq!(controller.write(1, 0, 1, 0xff), Action::None);
}

proptest! {
    #[test]
    fn a_successor_answers_as_the_predecessor_would(
        steps in proptest::collection::vec((any::<bool>(), 0u32..3, 0u64..2, 0u32..4, any::<u64>()), 0..80),
    ) {
        let ((mut one, _), (mut other, pulses)) = (bench(), bench());
        for (write, region, offset, log2, data) in steps {
            let size = 1 << log2;
            if write {
                prop_assert_eq!(one.write(region, offset, size, data), other.write(region, offset, size, data));
            } else {
                prop_assert_eq!(one.read(region, offset, size), other.read(region, offset, size));
            }
            other.replace(I8042::new(pulses.clone())).unwrap();
            prop_assert_eq!(one.saved(), other.saved());
        }
    }

    #[test]
    fn any_bytes_are_a_state_or_are_refused(place in 0usize..64, value: u8, cut in 0usize..64) {
        let (mut controller, _) = bench();
        let before = controller.saved();
        let mut bytes = before.clone();
        bytes.truncate(cut);
        if let Some(byte) = bytes.get_mut(place) { *byte = value; }
        match controller.device.restore(&bytes) {
            Ok(()) => { controller.read(0, 0, 1); controller.write(0, 0, 1, 0xff); }
            Err(_) => prop_assert_eq!(controller.saved(), before),
        }
    }
}
