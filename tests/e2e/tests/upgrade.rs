//! A device goes over to another binary while the guest uses it, or goes on with the one that it has.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests; clippy knows only #[test] functions as such.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use cellblock_e2e::lab::Plan;
use cellblock_e2e::processes::{Process, Row, descendants};
use cellblock_e2e::vm::patience;
use cellblock_e2e::{Ended, Lab, Vm, skip};
use rustix::process::Signal;

/// How often, in a row, while the guest writes.
const UPGRADES: u32 = 200;

/// `cellblock upgrade`: what it says, and whether it succeeded.
fn upgrade(lab: &Lab, id: &str, device: &str, binary: Option<&Path>) -> Result<String, String> {
    let mut command = Command::new(lab.places().program());
    command.args(["upgrade", id, device]);
    if let Some(binary) = binary {
        command.arg("--binary").arg(binary);
    }
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

fn row(vm: &Vm, id: &str, name: &str) -> Row {
    let tree = vm.processes(id).unwrap();
    tree.processes.into_iter().find(|row| row.process == name).unwrap()
}

#[test]
fn every_device_goes_over_to_another_process_in_the_same_jail() {
    let Some(lab) = Lab::with_guests("upgrade") else { return };
    for user in lab.users() {
        for spares in ["0", "1"] {
            let plan = lab.guest("echo").with_every_device().with(["--spares", spares]).as_user(&user);
            let mut vm = plan.start();
            vm.expect("ready").unwrap();
            for (round, name) in lab.places().workers().into_iter().enumerate() {
                let before = row(&vm, plan.id(), &name);
                let bounding = Process(before.pid).status("CapBnd").unwrap();
                let said = upgrade(&lab, plan.id(), &name, None).unwrap();
                assert!(said.contains(&format!("device {name} runs")), "{said}");
                let after = row(&vm, plan.id(), &name);
                assert_ne!(after.pid, before.pid, "{name}");
                assert_eq!((after.restarts, after.upgrades), (Some(0), Some(1)), "{name}");
                assert!(!Process(before.pid).alive(), "{name}");
                assert_eq!(Process(after.pid).status("Seccomp").unwrap(), "2", "{name}");
                assert_eq!(Process(after.pid).status("CapBnd").unwrap(), bounding, "{name}");
                let word = format!("after {round}\n");
                vm.type_in(&word).unwrap();
                vm.expect(word.trim()).unwrap();
            }
            // What was upgraded can be restarted.
            let pid = row(&vm, plan.id(), "rtc").pid;
            rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), Signal::KILL)
                .unwrap();
            vm.expect_message("device rtc: its successor serves (generation 3").unwrap();
            vm.type_in("\u{4}").unwrap();
            vm.wait().unwrap().assert(0, "guest powered off");
        }
    }
}

/// The bad worker of this name. `None`, and a line, where no C compiler is.
fn bad(lab: &Lab, which: &str) -> Option<PathBuf> {
    let path = lab.folder().join(which);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("workers/bad.c");
    let mut command = Command::new("cc");
    command.args(["-static-pie", "-O1", "-Wall", "-Wextra", "-Werror", "-D", which, "-o"]);
    let Ok(status) = command.arg(&path).arg(source).status() else {
        skip("no C compiler (cc)");
        return None;
    };
    assert!(status.success(), "bad.c does not compile as {which}");
    Some(path)
}

#[test]
fn a_binary_that_cannot_take_over_leaves_the_old_one_serving() {
    let Some(lab) = Lab::with_guests("bad-upgrade") else { return };
    let plan = lab.guest("echo");
    let mut vm = plan.start();
    vm.expect("ready").unwrap();
    let before = row(&vm, plan.id(), "serial");
    for (which, why) in [
        ("CRASH", "was killed by signal 4"),
        ("HANG", "did not say what it is in time"),
        ("OLD", "speaks protocol 1.0"),
        ("OTHER", "runs the device rtc"),
        ("REJECT", "never"),
        ("DIE", "was killed by signal 4"),
        ("MUTE", "did not take over the state in time"),
    ] {
        let Some(path) = bad(&lab, which) else { return };
        let said = upgrade(&lab, plan.id(), "serial", Some(&path)).unwrap_err();
        assert!(said.contains("goes on as before") && said.contains(why), "{which}: {said}");
        vm.type_in(&format!("after {which}\n")).unwrap();
        vm.expect(&format!("after {which}")).unwrap();
        let now = row(&vm, plan.id(), "serial");
        assert_eq!((now.pid, now.restarts, now.upgrades), (before.pid, Some(0), Some(0)), "{which}");
    }
    let text = lab.image("text", b"not a binary");
    let said = upgrade(&lab, plan.id(), "serial", Some(&text)).unwrap_err();
    assert!(said.contains("others than root and this user can change it"), "{said}");
    std::fs::set_permissions(&text, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let said = upgrade(&lab, plan.id(), "serial", Some(&text)).unwrap_err();
    assert!(said.contains("goes on as before"), "{said}");
    let said = upgrade(&lab, plan.id(), "serial", Some(Path::new("/nowhere"))).unwrap_err();
    assert!(said.contains("/nowhere cannot be read"), "{said}");
    let said = upgrade(&lab, plan.id(), "disk", None).unwrap_err();
    assert!(said.contains("has no device \"disk\""), "{said}");
    upgrade(&lab, plan.id(), "serial", None).unwrap();
    vm.type_in("at last\n").unwrap();
    vm.expect("at last").unwrap();
    assert_eq!(row(&vm, plan.id(), "serial").upgrades, Some(1));
    vm.type_in("\u{4}").unwrap();
    vm.wait().unwrap().assert(0, "guest powered off");
}

#[test]
fn whoever_upgrades_what_is_being_upgraded_gets_an_answer_of_his_own() {
    let Some(lab) = Lab::with_guests("two-upgrades") else { return };
    let plan = lab.guest("echo");
    let mut vm = plan.start();
    vm.expect("ready").unwrap();
    let Some(path) = bad(&lab, "HANG") else { return };
    let spawner = vm.processes(plan.id()).unwrap().pid("spawner").unwrap();
    let before = descendants(spawner).unwrap().len();
    let (first, second) = std::thread::scope(|scope| {
        let first = scope.spawn(|| upgrade(&lab, plan.id(), "serial", Some(&path)));
        let end = Instant::now() + patience();
        while descendants(spawner).unwrap().len() == before && !first.is_finished() {
            assert!(Instant::now() < end, "nothing was started");
            std::thread::sleep(Duration::from_millis(10));
        }
        let second = upgrade(&lab, plan.id(), "serial", None);
        (first.join().unwrap().unwrap_err(), second.unwrap_err())
    });
    assert!(first.contains("did not say what it is in time"), "{first}");
    assert!(second.contains("it is being upgraded already"), "{second}");
    vm.type_in("\u{4}").unwrap();
    vm.wait().unwrap().assert(0, "guest powered off");
}

/// The numbers that the guest's lines begin with, but for the last line, which may be cut.
fn numbers(output: &str) -> Vec<u64> {
    let whole = output.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().filter_map(|line| line.trim().split(' ').next()?.parse().ok()).collect()
}

#[test]
fn two_hundred_upgrades_while_the_guest_writes() {
    let Some(lab) = Lab::with_guests("upgrades") else { return };
    let path = lab.folder().join("guest.log");
    let sink = format!("file={}", path.display());
    let plan =
        lab.guest("flood").with(["--cmdline", "lines=100000000", "--serial", &sink, "--stop-timeout", "0"]);
    let vm = plan.start();
    let written = || std::fs::read_to_string(&path).unwrap_or_default();
    while numbers(&written()).is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    for round in 1..=UPGRADES {
        let said = upgrade(&lab, plan.id(), "serial", None);
        assert!(said.is_ok(), "round {round}: {said:?}");
    }
    assert_eq!(row(&vm, plan.id(), "serial").upgrades, Some(UPGRADES));
    vm.signal(Signal::INT).unwrap();
    vm.wait().unwrap();
    let numbers = numbers(&written());
    let breaks: Vec<_> = numbers.windows(2).filter(|pair| pair[1] != pair[0] + 1).collect();
    assert!(breaks.is_empty(), "of {} lines these do not follow each other: {breaks:?}", numbers.len());
}

/// Upgrades `device` again and again while `plan`'s guest does its work, which is right in the end.
fn upgraded_at_work(lab: &Lab, plan: &Plan<'_>, device: &str) -> Ended {
    let mut vm = plan.start();
    vm.expect("ready").unwrap();
    let mut upgrades = 0;
    while vm.is_running() {
        match upgrade(lab, plan.id(), device, None) {
            Ok(_) => upgrades += 1,
            // It has ended meanwhile, or just begun.
            Err(said)
                if [
                    "no VM",
                    "does not answer",
                    "the VM ends",
                    "closed the control socket",
                    "is starting",
                ]
                .iter()
                .any(|end| said.contains(end)) => {}
            Err(said) => panic!("upgrade {upgrades} of {device}: {said}"),
        }
    }
    let ended = vm.wait().unwrap();
    ended.assert(0, "guest powered off");
    println!("{device}: {upgrades} upgrades");
    assert!(upgrades > 0, "{device}: {ended}");
    ended
}

#[test]
fn what_a_guest_does_with_a_device_is_right_across_upgrades() {
    let Some(lab) = Lab::with_guests("at-work") else { return };
    for format in ["raw", "qcow2"] {
        let image = lab.folder().join(format);
        let made =
            Command::new("qemu-img").args(["create", "-q", "-f", format]).arg(&image).arg("1M").status();
        if !made.is_ok_and(|status| status.success()) {
            skip("no qemu-img");
            continue;
        }
        let disk = format!("path={},queues=2,format={format}", image.display());
        let plan = lab.guest("disk").with(["--cmdline", "rounds=100", "--disk", &disk]);
        let ended = upgraded_at_work(&lab, &plan, "block");
        assert!(ended.output.contains("rounds=100") && ended.output.contains("wrong=0"), "{ended}");
    }
    for device in ["serial", "i8042", "rtc"] {
        let plan = lab.guest("exact").with(["--cmdline", "rounds=400"]);
        let ended = upgraded_at_work(&lab, &plan, device);
        assert!(ended.output.contains("rounds=400") && ended.output.contains("wrong=0"), "{ended}");
    }
    let plan = lab.guest("entropy").with(["--cmdline", "rounds=400", "--rng"]);
    let ended = upgraded_at_work(&lab, &plan, "entropy");
    assert!(ended.output.contains("rounds=400") && ended.output.contains("wrong=0"), "{ended}");
}
