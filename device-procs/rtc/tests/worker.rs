//! The clock in a real worker process.
#![allow(clippy::unwrap_used, unreachable_pub)] // Helpers beside the tests.

use std::time::{Duration, Instant};

use cellblock_sdk::testing::Host;
use cellblock_sdk::testing::process::{Noise, Program, Supervised, Wanted};
use cellblock_wire::control::Fallback;
use cellblock_wire::device::DeviceConfig;

fn start() -> Supervised {
    let start = include_bytes!(concat!(env!("OUT_DIR"), "/worker.start.bpf"));
    let program = Program::find("rtc", env!("CARGO_BIN_EXE_rtc"), start);
    let wanted =
        Wanted { config: DeviceConfig::Rtc, lanes: 1, poll_max_us: 0, pipes: false, nonblocking: false };
    Supervised::start(&program, &wanted).unwrap()
}

fn get(worker: &mut Supervised, index: u8) -> u8 {
    worker.outb(0, index);
    worker.inb(1)
}

#[test]
fn it_shows_a_plausible_time_before_and_after_a_restart() {
    let mut worker = start();
    for _ in 0..2 {
        assert_eq!(get(&mut worker, 0x32), 0x20, "the century");
        assert!((1..=0x31).contains(&get(&mut worker, 7)), "the day");
        worker.replace().unwrap();
    }
}

#[test]
fn periodic_interrupts_come_by_themselves() {
    let mut worker = start();
    worker.outb(0, 0x0b);
    worker.outb(1, 0x42);
    let end = Instant::now() + Duration::from_secs(10);
    for _ in 0..5 {
        while worker.pulses() == 0 {
            assert!(Instant::now() < end, "no interrupt");
            std::thread::sleep(Duration::from_micros(300));
        }
        assert_eq!(get(&mut worker, 0x0c) & 0xc0, 0xc0);
    }
    assert!(worker.counters().unwrap().interrupts >= 5);
}

#[test]
fn a_poisoned_state_page_costs_a_reset_at_worst() {
    let (mut worker, mut noise, mut lost) = (start(), Noise(1), 0);
    worker.fallback = Fallback::PowerOn;
    for _ in 0..60 {
        assert_eq!(get(&mut worker, 0x32), 0x20, "the century");
        worker.poison_at_random(&mut noise).unwrap();
        worker.replace().unwrap();
        lost += u32::from(worker.state_lost.is_some());
        worker.outb(0, 0x0b);
        worker.outb(1, 0x02);
    }
    assert!(lost > 20, "{lost} of 60");
    worker.fallback = Fallback::Refuse;
    worker.poison(0, &[0; 8]).unwrap();
    let refused = worker.replace().unwrap_err().to_string();
    assert!(refused.contains("Refused") && refused.contains("magic"), "{refused}");
}
