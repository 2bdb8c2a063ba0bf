//! The power registers in a real worker process.
#![allow(clippy::unwrap_used, unreachable_pub)] // Helpers beside the tests.

use std::time::{Duration, Instant};

use cellblock_sdk::device::Action;
use cellblock_sdk::testing::Host;
use cellblock_sdk::testing::process::{Program, Supervised, Wanted};
use cellblock_wire::control::ToWorker;
use cellblock_wire::device::DeviceConfig;

fn start() -> Supervised {
    let start = include_bytes!(concat!(env!("OUT_DIR"), "/worker.start.bpf"));
    let program = Program::find("acpi-power", env!("CARGO_BIN_EXE_acpi-power"), start);
    let wanted = Wanted {
        config: DeviceConfig::AcpiPower,
        lanes: 1,
        poll_max_us: 0,
        pipes: false,
        nonblocking: false,
    };
    Supervised::start(&program, &wanted).unwrap()
}

fn interrupted(worker: &Supervised) {
    let end = Instant::now() + Duration::from_secs(10);
    while worker.pulses() == 0 {
        assert!(Instant::now() < end, "no interrupt");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn power_off_and_reset_are_actions() {
    let mut worker = start();
    assert_eq!(worker.write(0, 0, 1, 0x34), Action::PowerOff);
    assert_eq!(worker.write(0, 2, 1, 1), Action::Reset);
}

#[test]
fn the_power_button_interrupts_again_and_survives_a_restart() {
    let mut worker = start();
    worker.control.send_message(&ToWorker::PowerButton, &[]).unwrap();
    interrupted(&worker);
    interrupted(&worker); // the timer
    worker.replace().unwrap();
    interrupted(&worker);
    assert_eq!((worker.inb(4), worker.inb(4)), (1, 0));
}
