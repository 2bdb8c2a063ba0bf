//! `cellblock pause` and `resume`: nothing runs meanwhile, and nothing is lost.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests; clippy knows only #[test] functions as such.

use std::thread;
use std::time::Duration;

use cellblock_e2e::Lab;
use rustix::process::{Pid, Signal, kill_process};

/// Long enough for a guest that runs to show it.
const WHILE: Duration = Duration::from_millis(300);

#[test]
fn a_paused_guest_does_nothing_and_goes_on() {
    let Some(lab) = Lab::with_guests("pause") else { return };
    for user in lab.users() {
        let plan = lab.guest("echo").with_every_device().as_user(&user);
        let mut vm = plan.start();
        vm.expect("ready").unwrap();
        for word in ["first", "second", "third"] {
            plan.tell("pause", &[]).unwrap();
            assert!(plan.tell("ps", &[]).unwrap().contains(", paused"), "{word}");
            vm.type_in(word).unwrap();
            thread::sleep(WHILE);
            assert!(!vm.output().contains(word), "{}", vm.output());
            // Who asks for what is so already is not refused.
            plan.tell("pause", &[]).unwrap();
            plan.tell("resume", &[]).unwrap();
            plan.tell("resume", &[]).unwrap();
            vm.expect(word).unwrap();
            assert!(!plan.tell("ps", &[]).unwrap().contains("paused"));
        }
        vm.type_in("\u{4}").unwrap();
        vm.wait().unwrap().assert(0, "guest powered off");
    }
}

#[test]
fn output_goes_on_where_it_was() {
    let Some(lab) = Lab::with_guests("pause-flood") else { return };
    for way in ["lines=300", "lines=300 string=1"] {
        let plan = lab.guest("flood").with(["--cmdline", way]);
        let vm = plan.start();
        vm.expect_any().unwrap();
        let mut pauses = 0;
        // A guest that has ended cannot be paused.
        while pauses < 40 && plan.tell("pause", &[]).is_ok() {
            pauses += 1;
            plan.tell("resume", &[]).unwrap();
        }
        let ended = vm.wait().unwrap();
        ended.assert(0, "guest powered off");
        println!("{way}: {pauses} pauses");
        let numbers: Vec<usize> =
            ended.output.lines().filter_map(|line| line.get(..7)?.parse().ok()).collect();
        assert_eq!(numbers, (1..=300).collect::<Vec<_>>(), "{way}");
        assert!(pauses > 0, "{way}");
    }
}

#[test]
fn every_vcpu_is_paused() {
    let Some(lab) = Lab::with_guests("pause-smp") else { return };
    // The others wait to be started; the first prints without an end.
    let plan = lab.guest("flood").with(["--cpus", "4", "--cmdline", "lines=10000000", "--stop-timeout", "0"]);
    let vm = plan.start();
    vm.expect_any().unwrap();
    let exits = || {
        let vms: serde_json::Value = serde_json::from_str(&plan.tell("ps", &["--json"]).unwrap()).unwrap();
        vms[0]["vcpu_exits"]
            .as_array()
            .unwrap()
            .iter()
            .map(|exits| exits.as_u64().unwrap())
            .collect::<Vec<_>>()
    };
    plan.tell("pause", &[]).unwrap();
    let before = exits();
    thread::sleep(WHILE);
    assert_eq!((exits(), before.len()), (before, 4));
    // What does not run can be ended nevertheless.
    vm.signal(Signal::INT).unwrap();
    vm.wait().unwrap().assert(7, "");
}

#[test]
fn a_worker_that_dies_in_a_pause_is_replaced() {
    let Some(lab) = Lab::with_guests("pause-kill") else { return };
    let plan = lab.guest("echo").with_every_device();
    let mut vm = plan.start();
    vm.expect("ready").unwrap();
    plan.tell("pause", &[]).unwrap();
    let before = vm.processes(plan.id()).unwrap();
    for name in ["serial", "block"] {
        kill_process(Pid::from_raw(before.pid(name).unwrap()).unwrap(), Signal::KILL).unwrap();
        vm.expect_message(&format!("device {name}: its successor serves")).unwrap();
    }
    vm.type_in("back").unwrap();
    thread::sleep(WHILE);
    assert!(!vm.output().contains("back"), "{}", vm.output());
    plan.tell("resume", &[]).unwrap();
    vm.expect("back").unwrap();
    vm.type_in("\u{4}").unwrap();
    vm.wait().unwrap().assert(0, "guest powered off");
}

/// Longer than Linux's lockup detector allows a CPU to be away, under a guest that writes and verifies a disk.
#[test]
fn linux_takes_a_long_pause_for_no_lockup() {
    let Some(lab) = Lab::with_images("long-pause") else { return };
    let image = lab.image("disk.img", &vec![0; 8 << 20]);
    let disk = format!("--disk=path={},queues=2", image.display());
    let plan = lab.linux("vmlinux", "load,commands").with([disk]).with(["--cpus", "2"]);
    let mut vm = plan.start();
    vm.expect("CELLBLOCK-WAITS").unwrap();
    vm.type_in("dd if=/dev/urandom of=/tmp/made bs=64k count=32 status=none\n").unwrap();
    vm.type_in(
        "{ n=0; bad=0; while [ ! -e /tmp/stop ]; do \
         dd if=/tmp/made of=/dev/vda bs=64k conv=fsync,notrunc status=none || bad=$((bad + 1)); \
         echo 3 >/proc/sys/vm/drop_caches; \
         dd if=/dev/vda bs=64k count=32 status=none | cmp - /tmp/made || bad=$((bad + 1)); n=$((n + 1)); done; \
         echo ROUNDS=$n BAD=$bad.; } &\n",
    )
    .unwrap();
    vm.type_in("echo WORKS\n").unwrap();
    vm.expect("WORKS").unwrap();
    for length in [0, 30, 0] {
        plan.tell("pause", &[]).unwrap();
        thread::sleep(Duration::from_secs(length));
        plan.tell("resume", &[]).unwrap();
        thread::sleep(Duration::from_secs(1));
    }
    vm.type_in("touch /tmp/stop\n").unwrap();
    let rounds = vm.expect_line("ROUNDS=").unwrap();
    assert!(rounds.contains("BAD=0.") && !rounds.starts_with("0 "), "{rounds}");
    vm.type_in("echo COMPLAINTS=$(dmesg | grep -iE 'lockup|stall|i/o error|hung').\n").unwrap();
    assert_eq!(vm.expect_line("COMPLAINTS=").unwrap(), ".");
    vm.type_in("quit\n").unwrap();
    vm.wait().unwrap().assert(0, "guest rebooted");
}
