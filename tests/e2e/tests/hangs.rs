//! Workers that do not answer are replaced; those that the host keeps from answering are those of `starved.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests; clippy knows only #[test] functions as such.

use std::thread;
use std::time::Duration;

use cellblock_e2e::Lab;
use cellblock_e2e::processes::Process;
use rustix::process::{Pid, Signal, kill_process};

/// Stops a worker, whose threads may be on their way out of a read.
fn stop(pid: i32) {
    kill_process(Pid::from_raw(pid).unwrap(), Signal::STOP).unwrap();
    let runs = |thread: &i32| !Process(*thread).status("State").is_ok_and(|state| state.starts_with('T'));
    while Process(pid).threads().unwrap().iter().any(runs) {
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_stopped_worker_that_a_vcpu_waits_for_is_replaced() {
    let Some(lab) = Lab::with_guests("stopped") else { return };
    for user in lab.users() {
        let plan = lab.guest("echo").as_user(&user);
        let mut vm = plan.start();
        vm.expect("ready").unwrap();
        for _ in 0..2 {
            stop(vm.processes(plan.id()).unwrap().pid("serial").unwrap());
            vm.type_in("back").unwrap();
            vm.expect_message("it is stopped; it is replaced").unwrap();
            vm.expect_message("device serial: its successor serves").unwrap();
        }
        vm.type_in("again").unwrap();
        vm.expect("again").unwrap();
        vm.type_in("\u{4}").unwrap();
        vm.wait().unwrap().assert(0, "guest powered off");
    }
}

#[test]
fn a_stopped_worker_that_nobody_waits_for_is_replaced() {
    let Some(lab) = Lab::with_guests("silent") else { return };
    let plan = lab.guest("echo").with_every_device();
    let mut vm = plan.start();
    vm.expect("ready").unwrap();
    let tree = vm.processes(plan.id()).unwrap();
    let workers = lab.places().workers();
    workers.iter().for_each(|name| stop(tree.pid(name).unwrap()));
    for name in &workers {
        vm.expect_message(&format!("device {name}: its successor serves")).unwrap();
        assert!(vm.messages().contains(&format!("device {name}: no sign of life: it is stopped")), "{name}");
    }
    vm.type_in("still there").unwrap();
    vm.expect("still there").unwrap();
    vm.type_in("\u{4}").unwrap();
    vm.wait().unwrap().assert(0, "guest powered off");
}
