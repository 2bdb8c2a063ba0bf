//! The keyboard controller in a real worker process.
#![allow(clippy::unwrap_used, unreachable_pub)] // Helpers beside the tests.

use cellblock_sdk::device::Action;
use cellblock_sdk::testing::Host;
use cellblock_sdk::testing::process::{Program, Supervised, Wanted};
use cellblock_wire::device::DeviceConfig;

mod probes;

fn start() -> Supervised {
    let start = include_bytes!(concat!(env!("OUT_DIR"), "/worker.start.bpf"));
    let program = Program::find("i8042", env!("CARGO_BIN_EXE_i8042"), start);
    let wanted =
        Wanted { config: DeviceConfig::I8042, lanes: 1, poll_max_us: 0, pipes: false, nonblocking: false };
    Supervised::start(&program, &wanted).unwrap()
}

#[test]
fn linux_finds_the_port_before_and_after_a_restart() {
    let mut worker = start();
    probes::linux_init(&mut worker);
    worker.replace().unwrap();
    probes::linux_init(&mut worker);
}

#[test]
fn the_keyboard_interrupts_and_the_reset_is_an_action() {
    let mut worker = start();
    probes::enable_keyboard(&mut worker);
    worker.write(0, 0, 1, 0xf2);
    assert_eq!(worker.pulses(), 1);
    assert_eq!(worker.write(1, 0, 1, 0xfe), Action::Reset);
}
