//! Who takes a worker's place: a spare that waited for it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests; clippy knows only #[test] functions as such.

use std::thread;
use std::time::{Duration, Instant};

use cellblock_e2e::processes::{Process, Row, Tree, descendants};
use cellblock_e2e::vm::patience;
use cellblock_e2e::{Lab, Vm};
use rustix::process::{Pid, Signal, kill_process};

fn kill(pid: i32) {
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

fn row(tree: &Tree, name: &str) -> Row {
    tree.processes.iter().find(|row| row.process == name).unwrap().clone()
}

/// Once device `name` serves and has so many spares.
fn settled(vm: &Vm, id: &str, name: &str, spares: u32) -> Tree {
    let end = Instant::now() + patience();
    loop {
        let tree = vm.processes(id).unwrap();
        let now = row(&tree, name);
        if now.state == "serving" && now.spares == Some(spares) {
            return tree;
        }
        assert!(Instant::now() < end, "{now:?} has no {spares} spares");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_spare_takes_a_killed_workers_place_in_the_same_jail() {
    let Some(lab) = Lab::with_guests("spares") else { return };
    for user in lab.users() {
        let plan = lab.guest("echo").with_every_device().with(["--spares", "1"]).as_user(&user);
        let mut vm = plan.start();
        vm.expect("ready").unwrap();
        for name in lab.places().workers() {
            let tree = settled(&vm, plan.id(), &name, 1);
            let waiting = descendants(tree.pid("spawner").unwrap()).unwrap();
            let before = row(&tree, &name).pid;
            let bounding = Process(before).status("CapBnd").unwrap();
            kill(before);
            vm.expect_message(&format!("device {name}: its successor serves (generation 2")).unwrap();
            let after = row(&settled(&vm, plan.id(), &name, 1), &name);
            assert!(after.last_pause.unwrap().spare, "{name}: {after:?}");
            assert!(after.pid != before && waiting.contains(&after.pid), "{name}: {after:?} of {waiting:?}");
            let process = Process(after.pid);
            assert_eq!(process.status("Seccomp").unwrap(), "2", "{name}");
            assert_eq!(process.status("CapBnd").unwrap(), bounding, "{name}");
        }
        vm.type_in("still there\n").unwrap();
        vm.expect("still there").unwrap();
        vm.type_in("\u{4}").unwrap();
        vm.wait().unwrap().assert(0, "guest powered off");
    }
}

#[test]
fn a_spare_that_dies_is_missed_once() {
    let Some(lab) = Lab::with_guests("dead-spare") else { return };
    let plan = lab.guest("echo").with(["--spares", "1"]);
    let mut vm = plan.start();
    vm.expect("ready").unwrap();
    let workers = ["serial", "rtc", "i8042", "acpi-power"];
    let [.., tree] = workers.map(|name| settled(&vm, plan.id(), name, 1));
    let known = tree.pids();
    let spares = descendants(tree.pid("spawner").unwrap()).unwrap();
    let spares: Vec<_> = spares.into_iter().filter(|pid| !known.contains(pid)).collect();
    assert_eq!(spares.len(), workers.len());
    spares.into_iter().for_each(kill);
    for name in workers {
        vm.expect_message(&format!("device {name}: one of its spares was killed by signal 9")).unwrap();
    }
    kill(row(&settled(&vm, plan.id(), "rtc", 0), "rtc").pid);
    vm.expect_message("device rtc: its successor serves (generation 2").unwrap();
    let after = row(&settled(&vm, plan.id(), "rtc", 1), "rtc");
    assert!(!after.last_pause.unwrap().spare, "{after:?}");
    kill(after.pid);
    vm.expect_message("device rtc: its successor serves (generation 3").unwrap();
    let after = row(&settled(&vm, plan.id(), "rtc", 1), "rtc");
    assert!(after.last_pause.unwrap().spare, "{after:?}");
}
