//! Starts and ends in a row: whoever is killed, nothing is left behind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests; clippy knows only #[test] functions as such.

use std::thread;
use std::time::Duration;

use cellblock_e2e::leftovers::Memfds;
use cellblock_e2e::vm::patience;
use cellblock_e2e::{Lab, Vm};
use rustix::process::{Pid, Signal, kill_process};

const ROUNDS: usize = 100;

/// Ends `vm` in the way of round `round`.
fn end(round: usize, vm: Vm, supervisor: i32, init: i32) {
    let kill = |pid| kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    if round.is_multiple_of(3) {
        kill(supervisor);
    } else if round.is_multiple_of(4) {
        kill(init);
    } else if round.is_multiple_of(2) {
        vm.signal(Signal::KILL).unwrap();
    } else {
        vm.signal(Signal::INT).unwrap();
    }
    let ended = vm.wait().unwrap();
    assert_ne!(ended.code(), 0, "round {round}: {ended}");
}

#[test]
fn a_hundred_starts_and_ends_leave_nothing() {
    let Some(lab) = Lab::with_guests("lifetimes") else { return };
    let scope = lab.scope();
    let before = scope.census();
    assert!(before.processes.is_empty(), "{before:?}");
    for user in lab.users() {
        for round in 1..=ROUNDS {
            // The guest has no power button: a SIGINT ends it at once.
            let plan = lab.guest("hello").with(["--stop-timeout", "0"]).with_every_device().as_user(&user);
            let vm = plan.start();
            vm.expect_any().unwrap();
            let tree = vm.processes(plan.id()).unwrap();
            let memfds = Memfds::of(&tree.pids());
            assert!(memfds.count() > lab.places().workers().len(), "round {round}: {memfds:?}");
            end(round, vm, tree.pid("supervisor").unwrap(), tree.pid("init").unwrap());
            let left = scope.wait_for(&before, &memfds, patience());
            assert_eq!(left, Ok(()), "round {round} as {user:?}");
        }
    }
}

#[test]
fn a_guest_that_ends_by_itself_leaves_nothing_either() {
    let Some(lab) = Lab::with_guests("own-end") else { return };
    let scope = lab.scope();
    let before = scope.census();
    for guest in ["poweroff", "reset-acpi", "triple-fault"] {
        lab.guest(guest).start().wait().unwrap();
        scope.wait_for(&before, &Memfds::default(), patience()).unwrap();
    }
}

/// Signals at every moment of the set-up, as far as a clock finds them: each half-done start goes as a whole one does.
#[test]
fn a_start_that_is_cut_short_anywhere_leaves_nothing() {
    let Some(lab) = Lab::with_guests("cut-short") else { return };
    let scope = lab.scope();
    let before = scope.census();
    for user in lab.users() {
        for signal in [Signal::KILL, Signal::TERM] {
            for step in 0..20 {
                let plan =
                    lab.guest("hello").with(["--stop-timeout", "0"]).with_every_device().as_user(&user);
                let vm = plan.start();
                thread::sleep(Duration::from_micros(1500 * step));
                vm.signal(signal).unwrap();
                assert_ne!(vm.wait().unwrap().code(), 0, "{signal:?} after {step} steps");
                let left = scope.wait_for(&before, &Memfds::default(), patience());
                assert_eq!(left, Ok(()), "{signal:?} after {step} steps as {user:?}");
            }
        }
    }
}
