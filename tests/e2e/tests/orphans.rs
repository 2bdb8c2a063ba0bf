//! The spawner's death: the VM runs on, without the replacement of workers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests; clippy knows only #[test] functions as such.

use std::time::Instant;

use cellblock_e2e::Lab;
use cellblock_e2e::leftovers::Memfds;
use cellblock_e2e::vm::patience;
use rustix::process::{Pid, Signal, kill_process};

fn send(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

#[test]
fn a_vm_outlives_its_spawner() {
    let Some(lab) = Lab::with_guests("orphans") else { return };
    let scope = lab.scope();
    let before = scope.census();
    for user in lab.users() {
        let plan = lab.guest("echo").with_every_device().as_user(&user);
        let mut vm = plan.start();
        vm.expect("ready").unwrap();
        let tree = vm.processes(plan.id()).unwrap();
        let memfds = Memfds::of(&tree.pids());
        send(tree.pid("spawner").unwrap(), Signal::KILL);
        vm.expect_message("the spawner was killed by signal 9; the VM runs on").unwrap();
        vm.type_in("first").unwrap();
        vm.expect("first").unwrap();
        let refused = plan.tell("restart", &["serial"]).unwrap_err();
        assert!(refused.contains("its spawner is gone"), "{refused}");
        assert!(
            plan.tell("ps", &[])
                .unwrap()
                .lines()
                .any(|line| { line.contains("spawner") && line.contains(" gone ") })
        );
        // Pauses take no spawner.
        plan.tell("pause", &[]).unwrap();
        plan.tell("resume", &[]).unwrap();
        // One whose worker ends is lost, and the others are not. One that hangs is as good as ended.
        send(tree.pid("rtc").unwrap(), Signal::KILL);
        vm.expect_message(
            "device rtc: its worker process has closed its socket; without the spawner it is not replaced",
        )
        .unwrap();
        send(tree.pid("block").unwrap(), Signal::STOP);
        vm.expect_message("device block: no sign of life; without the spawner").unwrap();
        vm.type_in("second").unwrap();
        vm.expect("second").unwrap();
        vm.type_in("\u{4}").unwrap();
        vm.wait().unwrap().assert(0, "guest powered off");
        assert_eq!(scope.wait_for(&before, &memfds, patience()), Ok(()), "{user:?}");
    }
}

#[test]
fn an_access_to_a_lost_device_comes_to_an_end() {
    let Some(lab) = Lab::with_guests("lost") else { return };
    let plan = lab.guest("flood").with(["--cmdline", "lines=100000000", "--stop-timeout", "0"]);
    let vm = plan.start();
    vm.expect_any().unwrap();
    let tree = vm.processes(plan.id()).unwrap();
    send(tree.pid("spawner").unwrap(), Signal::KILL);
    vm.expect_message("the VM runs on").unwrap();
    // The guest prints, and waits for an answer at any time.
    send(tree.pid("serial").unwrap(), Signal::KILL);
    vm.expect_message("device serial: its worker process has closed its socket").unwrap();
    let exits = || {
        let vms: serde_json::Value = serde_json::from_str(&plan.tell("ps", &["--json"]).unwrap()).unwrap();
        vms[0]["vcpu_exits"][0].as_u64().unwrap()
    };
    let (before, end) = (exits(), Instant::now() + patience());
    while exits() <= before + 1000 {
        assert!(Instant::now() < end, "the guest hangs");
    }
    vm.signal(Signal::INT).unwrap();
    vm.wait().unwrap().assert(7, "");
}
