//! What is told of a worker's death: by `cellblock blackbox`, and by `cellblock ps` of those that there were before.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests; clippy knows only #[test] functions as such.

use std::fs;
use std::process::Command;

use cellblock_e2e::{Lab, Vm};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// `program arguments` prints this JSON.
fn json(lab: &Lab, arguments: &[&str]) -> Value {
    let output = Command::new(lab.places().program()).args(arguments).arg("--json").output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The row of `device` in `ps`.
fn row(lab: &Lab, id: &str, device: &str) -> Value {
    let vms = json(lab, &["ps", id]);
    let rows = vms[0]["processes"].as_array().unwrap();
    rows.iter().find(|row| row["process"] == device).unwrap_or_else(|| panic!("no {device}: {vms}")).clone()
}

/// Sends `signal` to the worker of `device` and waits until one of `generation` serves.
fn lose(vm: &Vm, id: &str, device: &str, signal: Signal, generation: u32) {
    let pid = vm.processes(id).unwrap().pid(device).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    vm.expect_message(&format!("device {device}: its successor serves (generation {generation}")).unwrap();
}

#[test]
fn each_death_is_kept_with_its_reason_and_the_last_exits() {
    let Some(lab) = Lab::with_guests("deaths") else { return };
    let plan = lab.guest("echo");
    let mut vm = plan.start();
    vm.expect("ready").unwrap();
    assert_eq!(json(&lab, &["blackbox", plan.id(), "serial"]), Value::Array(vec![]));
    let before = row(&lab, plan.id(), "serial");
    lose(&vm, plan.id(), "serial", Signal::KILL, 2);
    lose(&vm, plan.id(), "serial", Signal::SEGV, 3);
    let restart = Command::new(lab.places().program()).args(["restart", plan.id(), "serial"]).output();
    assert!(restart.unwrap().status.success());

    let deaths = json(&lab, &["blackbox", plan.id(), "serial"]);
    let reasons: Vec<_> = deaths.as_array().unwrap().iter().map(|death| &death["reason"]).collect();
    assert_eq!(reasons, ["asked", "signal", "signal"], "the last one first: {deaths:#}");
    let (sent, killed) = (&deaths[1], &deaths[2]);
    assert_eq!((&killed["pid"], &killed["generation"]), (&before["pid"], &Value::from(1)), "{killed:#}");
    assert!(killed["cause"].as_str().unwrap().contains("killed by signal 9"), "{killed:#}");
    assert!(killed["last_words"].is_null() && killed["served_ms"].is_u64(), "{killed:#}");
    // What it died of it has noted itself.
    assert_eq!(sent["last_words"]["signal"], 11, "{sent:#}");
    assert!(sent["cause"].as_str().unwrap().contains("signal 11 that somebody sent"), "{sent:#}");
    // The guest writes "ready" and then looks for input.
    let exits = killed["exits"].as_array().unwrap();
    assert!(!exits.is_empty() && exits.len() <= 16, "{killed:#}");
    let times: Vec<_> = exits.iter().map(|exit| exit["before_us"].as_u64().unwrap()).collect();
    assert!(times.is_sorted_by(|one, next| one >= next), "the oldest first: {times:?}");

    let now = row(&lab, plan.id(), "serial");
    assert_eq!((&now["generation"], &now["restarts"]), (&Value::from(4), &Value::from(3)), "{now:#}");
    assert_eq!((&now["reasons"]["signal"], &now["reasons"]["asked"]), (&Value::from(2), &Value::from(1)));
    assert!(now["last_pause"]["spawn_us"].is_u64() && now["cpu_ms"].is_u64(), "{now:#}");

    let people =
        Command::new(lab.places().program()).args(["blackbox", plan.id(), "serial"]).output().unwrap();
    let people = String::from_utf8(people.stdout).unwrap();
    assert!(people.contains("serial, generation 2") && people.contains("vCPU 0 region 0"), "{people}");
    let ps = Command::new(lab.places().program()).args(["ps", plan.id()]).output().unwrap();
    let ps = String::from_utf8(ps.stdout).unwrap();
    assert!(ps.contains("replaced 3 times (2 × ended by a signal, 1 × replaced on request)"), "{ps}");
    vm.type_in("\u{4}").unwrap();
    vm.wait().unwrap().assert(0, "guest powered off");
}

#[test]
fn a_refused_system_call_is_told_by_its_name() {
    let Some(lab) = Lab::with_guests("refused") else { return };
    // Raising an interrupt is refused to one worker, beside all that its own policy refuses.
    let program = lab.places().program();
    let start = program.parent().unwrap().join("../libexec/cellblock/acpi-power.bpf");
    let mut refusing: Vec<u8> = Vec::new();
    for (code, yes, no, k) in
        [(0x20u16, 0u8, 0u8, 0u32), (0x15, 0, 1, libc::SYS_write as u32), (0x06, 0, 0, 0x3_0000)]
    {
        refusing.extend(code.to_le_bytes());
        refusing.extend([yes, no]);
        refusing.extend(k.to_le_bytes());
    }
    refusing.extend(fs::read(&start).unwrap());
    fs::write(&start, refusing).unwrap();

    let plan = lab.guest("powerbutton");
    let mut vm = plan.start();
    vm.expect("ready").unwrap();
    vm.processes(plan.id()).unwrap();
    vm.signal(Signal::TERM).unwrap();
    vm.expect_message("device acpi-power: its successor serves (generation 2").unwrap();
    assert!(vm.messages().contains("write (system call 1)"), "{}", vm.messages());
    let deaths = json(&lab, &["blackbox", plan.id(), "acpi-power"]);
    let death = &deaths[0];
    assert_eq!(death["reason"], "refused-call", "{death:#}");
    assert_eq!(death["last_words"]["call_name"], "write", "{death:#}");
    assert!(
        death["last_words"]["instruction"].as_u64().is_some_and(|at| at > 0 && at < 1 << 24),
        "{death:#}"
    );
    assert_eq!(row(&lab, plan.id(), "acpi-power")["reasons"]["refused_call"], 1);
}

#[test]
fn what_there_is_not_is_said() {
    let Some(lab) = Lab::with_guests("nobody") else { return };
    let plan = lab.guest("echo");
    let mut vm = plan.start();
    vm.expect("ready").unwrap();
    let output =
        Command::new(lab.places().program()).args(["blackbox", plan.id(), "toaster"]).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        !output.status.success() && error.contains("no device \"toaster\"") && error.contains("serial"),
        "{error}"
    );
}
