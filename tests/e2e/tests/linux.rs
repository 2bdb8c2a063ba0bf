//! Unmodified Debian kernels, in the emulated host (`scripts/host`): every way to boot and to end.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests; clippy knows only #[test] functions as such.

use std::collections::BTreeMap;

use cellblock_e2e::lab::Plan;
use cellblock_e2e::processes::Process;
use cellblock_e2e::{Ended, Lab, places};
use rustix::process::Signal;

const UP: &str = "CELLBLOCK-GUEST-UP";

/// Runs `plan` to its end. The emulator now and then corrupts a guest: a broken run is repeated once, and says so.
fn run(plan: &Plan<'_>) -> Ended {
    let first = plan.start().wait();
    match first {
        Ok(ended) if !(places::in_emulated_host() && ended.code() != 0 && !ended.output.contains(UP)) => {
            ended
        }
        broken => {
            eprintln!("RETRY: the first run broke: {broken:?}");
            plan.start().wait().unwrap()
        }
    }
}

#[track_caller]
fn assert_up(ended: &Ended, code: i32, message: &str) {
    ended.assert(code, message);
    assert!(ended.output.contains(UP), "{ended}");
}

/// What the guest's init printed between its marks for `what`.
fn shown<'a>(ended: &'a Ended, what: &str) -> &'a str {
    let between = ended.output.split_once(&format!("CELLBLOCK-BEGIN {what}"));
    between.and_then(|(_, rest)| rest.split_once(&format!("CELLBLOCK-END {what}"))).unwrap_or_default().0
}

/// `/proc/interrupts` by line name: the count on all CPUs, and the rest of the line.
fn interrupts(text: &str, cpus: usize) -> BTreeMap<String, (u64, String)> {
    let line = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        let words: Vec<_> = rest.split_whitespace().collect();
        let count = words.iter().take(cpus).filter_map(|word| word.parse::<u64>().ok()).sum();
        Some((name.trim().to_owned(), (count, words.get(cpus..).unwrap_or_default().join(" "))))
    };
    text.lines().filter_map(line).collect()
}

#[test]
fn a_bzimage_boots_and_reboots() {
    let Some(lab) = Lab::with_images("bzimage") else { return };
    assert_up(&run(&lab.linux("bzImage", "reboot")), 0, "guest rebooted");
}

#[test]
fn a_vmlinux_boots_by_the_64_bit_entry() {
    let Some(lab) = Lab::with_images("entry64") else { return };
    let ended = run(&lab.linux("vmlinux", "entry,poweroff").with(["--boot-protocol", "linux64"]));
    assert_up(&ended, 0, "guest powered off");
    let entry = shown(&ended, "entry");
    assert!(entry.contains("Hypervisor detected: KVM") && !entry.contains("PVH"), "{ended}");
}

#[test]
fn a_vmlinux_boots_by_pvh() {
    let Some(lab) = Lab::with_images("pvh") else { return };
    assert_up(
        &run(&lab.linux("vmlinux", "poweroff").with(["--boot-protocol", "pvh"])),
        0,
        "guest powered off",
    );
}

#[test]
fn interrupts_arrive_where_the_tables_say() {
    let Some(lab) = Lab::with_images("interrupts") else { return };
    let ended = run(&lab.linux("vmlinux", "interrupts,reboot"));
    let lines = interrupts(shown(&ended, "interrupts"), 1);
    // Linux numbers interrupts as it likes; the pin is in the line: `IO-APIC 4-edge ttyS0`.
    let pins: Vec<_> = lines.values().filter(|(_, rest)| rest.contains("IO-APIC")).collect();
    for wanted in ["4-edge ttyS0", "8-edge rtc0", "5-edge ACPI:Ged"] {
        assert!(pins.iter().any(|(_, rest)| rest.ends_with(wanted)), "no {wanted}: {pins:?}");
    }
    // The tables keep Linux from looking for one: ours only resets.
    assert!(pins.iter().all(|(_, rest)| !rest.contains("i8042")), "an i8042: {pins:?}");
    assert!(pins.iter().all(|(_, rest)| rest.contains("-edge")), "a level-triggered interrupt: {pins:?}");
    assert!(pins.iter().any(|(count, rest)| rest.contains("ttyS0") && *count > 0), "no ttyS0: {pins:?}");
    assert!(lines["LOC"].0 > 0, "no timer interrupt: {lines:#?}");
    assert!(
        ["ERR", "MIS"].iter().all(|name| lines.get(*name).is_none_or(|(count, _)| *count == 0)),
        "{lines:#?}"
    );
}

#[test]
fn two_vcpus_are_two_cores_in_one_package() {
    let Some(lab) = Lab::with_images("cpus") else { return };
    let ended = run(&lab.linux("bzImage", "cpuinfo,interrupts,reboot").with(["--cpus", "2"]));
    assert_up(&ended, 0, "guest rebooted");
    let field = |name: &str| -> Vec<String> {
        let lines = shown(&ended, "cpuinfo")
            .lines()
            .filter(|line| line.split(':').next().is_some_and(|key| key.trim() == name));
        lines.filter_map(|line| Some(line.split_once(':')?.1.trim().to_owned())).collect()
    };
    assert_eq!(field("processor"), ["0", "1"]);
    assert_eq!(field("apicid"), ["0", "1"]);
    assert_eq!(field("core id"), ["0", "1"]);
    assert_eq!(field("physical id"), ["0", "0"]);
    assert_eq!(field("cpu cores"), ["2", "2"]);
    let lines = interrupts(shown(&ended, "interrupts"), 2);
    assert!(lines["RES"].0 + lines["CAL"].0 > 0, "no interrupt between processors: {lines:#?}");
}

#[test]
fn a_panic_reboots_after_saying_why() {
    let Some(lab) = Lab::with_images("panic") else { return };
    let ended = run(&lab.linux("vmlinux", "panic"));
    assert_up(&ended, 0, "guest rebooted");
    assert!(ended.output.contains("Kernel panic - not syncing"), "{ended}");
}

#[test]
fn a_triple_fault_is_told_from_a_reboot() {
    let Some(lab) = Lab::with_images("triple") else { return };
    // A later reboot= overrides an earlier one.
    let ended = run(&lab.linux("vmlinux", "reboot reboot=t"));
    assert_up(&ended, 4, "triple-faulted");
}

#[test]
fn reboot_by_the_acpi_reset_register_works_too() {
    let Some(lab) = Lab::with_images("acpi-reset") else { return };
    assert_up(&run(&lab.linux("vmlinux", "reboot reboot=a")), 0, "guest rebooted");
}

#[test]
fn sigterm_presses_the_power_button() {
    let Some(lab) = Lab::with_images("button") else { return };
    let mut vm = lab.linux("vmlinux", "button").with(["--stop-timeout", "30"]).start();
    vm.expect("CELLBLOCK-WAITING-FOR-BUTTON").unwrap();
    vm.signal(Signal::TERM).unwrap();
    vm.expect("CELLBLOCK-BUTTON").unwrap();
    vm.wait().unwrap().assert(0, "guest powered off");
}

#[test]
fn the_console_takes_input() {
    let Some(lab) = Lab::with_images("input") else { return };
    let mut vm = lab.linux("vmlinux", "echo,poweroff").start();
    vm.expect(UP).unwrap();
    vm.type_in("one two\n").unwrap();
    vm.expect("echo: one two").unwrap();
    vm.type_in("quit\n").unwrap();
    vm.wait().unwrap().assert(0, "guest powered off");
}

#[test]
fn a_reboot_can_restart_the_guest() {
    let Some(lab) = Lab::with_images("restart") else { return };
    let mut vm = lab.linux("vmlinux", "reboot").with(["--on-reboot", "restart"]).start();
    vm.expect(UP).unwrap();
    vm.expect(UP).unwrap();
    vm.signal(Signal::INT).unwrap();
    assert_eq!(vm.wait().unwrap().code(), 7);
}

#[test]
fn workers_are_in_limited_cgroups() {
    let Some(lab) = Lab::with_images("cgroups") else { return };
    if !std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        return cellblock_e2e::skip("no cgroup v2 here");
    }
    let plan = lab.linux("vmlinux", "wait").with_every_device();
    let mut vm = plan.start();
    vm.expect(UP).unwrap();
    let tree = vm.processes(plan.id()).unwrap();
    for name in lab.places().workers() {
        let group = std::fs::read_to_string(format!("/proc/{}/cgroup", tree.pid(&name).unwrap())).unwrap();
        let path = format!("/sys/fs/cgroup{}", group.trim().trim_start_matches("0::"));
        for limit in ["memory.max", "pids.max", "cpu.max"] {
            let value =
                std::fs::read_to_string(format!("{path}/{limit}")).unwrap_or_else(|error| error.to_string());
            assert!(
                !value.starts_with("max") && value.starts_with(|first: char| first.is_ascii_digit()),
                "{name}: {limit} in {path}: {value}"
            );
        }
        assert_eq!(Process(tree.pid(&name).unwrap()).status("Seccomp").unwrap(), "2", "{name}");
    }
}
