//! A worker that breaks the rules (`tests/hostile`), in the place of the clock's: the supervisor says what was wrong, replaces it or gives
//! the device up, and is neither slower nor larger for it; the guest, and its other devices, go on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests; clippy knows only #[test] functions as such.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use cellblock_e2e::hostile_workers::install;
use cellblock_e2e::lab::Plan;
use cellblock_e2e::processes::Process;
use cellblock_e2e::vm::patience;
use cellblock_e2e::{Lab, Vm, skip};

/// What stands in the binary before the name of what it does, and how long both are.
const MARK: &[u8] = b"CELLBLOCK-HOSTILE-CASE: ";
const TEXT: usize = 64;
/// What the guest reads from a worker that is honest, and from a port where nobody is.
const HONEST: &str = "value=90";
const FLOATING: &str = "value=255";
/// What it reads once more messages were taken from a worker than there may be lines in the log, and how many that may be.
const FLOODED: &str = "value=91";
const LOG_LINES: usize = 1000;

/// What is to become of the worker.
#[derive(Debug, Clone, Copy)]
enum Fate {
    /// It is replaced, for a reason that holds these words.
    Replaced(&'static str),
    /// It may do that: it hurts itself alone.
    Spared,
}
use Fate::{Replaced, Spared};

/// Who closes its socket ends, as far as anybody can see, and if it does not, the supervisor sees to that.
const ENDED: &str = "its worker process was killed by signal 9";

/// Everything that a worker does to its memories, its doorbell and its interrupt.
const RINGS: [(&str, Fate); 24] = [
    ("twice", Spared),
    // What comes before it is asked for answers what is asked for next, as if it were quick; or is the wrong answer to this.
    ("early", Spared),
    ("late", Replaced("it sleeps; it is replaced")),
    ("never-asleep", Replaced("it sleeps; it is replaced")),
    ("never-busy", Replaced("it runs and does not answer; it is replaced")),
    ("previous-again", Replaced("it sleeps; it is replaced")),
    ("sequence-next", Replaced("field sequence has the value 0x4, outstanding is 0x3")),
    ("sequence-far", Replaced("field sequence has the value 0x1003, outstanding is 0x3")),
    ("generation-old", Replaced("field generation has the value 0x0, expected is 0x1")),
    ("generation-new", Replaced("field generation has the value 0x2, expected is 0x1")),
    ("action-unknown", Replaced("slot field action has the value 0x3")),
    ("action-wide", Replaced("slot field action has the value 0x10000000000")),
    ("action-off", Replaced("reply asks for PowerOff, which is not for this device")),
    ("action-reset", Replaced("reply asks for Reset, which is not for this device")),
    ("wide-data", Spared),
    ("scribble", Replaced("protocol violation: reply in lane 0")),
    ("scribble-header", Spared),
    ("last-words", Replaced("exited with status 7")),
    ("exit", Replaced("exited with status 7")),
    // An init ignores its own SIGABRT, and what comes after that is a fault.
    ("fault", Replaced("was killed by signal 11")),
    ("doorbell-full", Spared),
    ("doorbell-closed", Spared),
    ("interrupt-flood", Spared),
    ("holes", Replaced("field sequence has the value 0x0, outstanding is 0x3")),
];

/// Everything that it says on its control socket.
const MESSAGES: [(&str, Fate); 22] = [
    ("reseal", Spared),
    ("garbage", Replaced("control message does not decode")),
    ("empty", Replaced(ENDED)),
    ("long", Replaced("longer than 4096 bytes")),
    ("trailing", Replaced("is followed by 2 more")),
    ("truncated", Replaced("control message does not decode")),
    ("four-gib", Replaced("control message does not decode")),
    ("sixteen-eib", Replaced("control message does not decode")),
    ("nesting", Replaced("is followed by 4095 more")),
    ("unknown", Replaced("control message does not decode")),
    ("not-utf-8", Replaced("control message does not decode")),
    ("long-text", Replaced("text length has the value 513, allowed is at most 512")),
    ("descriptor", Replaced("brings more than the 0 descriptors allowed")),
    ("descriptors", Replaced("brings more than the 0 descriptors allowed")),
    ("hello-again", Replaced("it sent Hello")),
    ("ready-again", Replaced("it sent Ready while serving")),
    ("state-lost", Replaced("it sent StateLost")),
    ("balloon", Replaced("it sent Balloon")),
    ("gives-up", Replaced("it gave up: \u{fffd}]0;owned\u{fffd}never")),
    ("quiesced", Spared),
    ("closed", Replaced(ENDED)),
    ("half-closed", Replaced(ENDED)),
];

/// A lab whose clock is served by the hostile worker. `None`, and a line, where that is not built.
fn lab(name: &str) -> Option<(Lab, PathBuf)> {
    let lab = Lab::with_guests(name)?;
    let built = lab.places().hostile.clone();
    if !built.exists() {
        skip(&format!("{} is not built (scripts/test build)", built.display()));
        return None;
    }
    Some((lab, built))
}

/// Puts the worker that does `case` where `to` is.
fn place(built: &Path, case: &str, to: &Path) {
    let text = [MARK, case.as_bytes(), &[b'.'; TEXT]].concat();
    install(built, &[MARK, &[b'.'; TEXT - MARK.len()]].concat(), &text[..TEXT], to);
}

/// A VM in which the clock's worker does `case`. Its system calls are not held against it: here the supervisor stands alone.
fn plan<'a>(lab: &'a Lab, built: &Path, case: &str) -> Plan<'a> {
    place(built, case, &lab.places().dist.join("libexec/cellblock/rtc"));
    lab.guest("prod").with(["--without-layer", "seccomp"])
}

/// What the guest says to a command.
fn answer(vm: &mut Vm, command: &str) -> String {
    vm.type_in(command).unwrap();
    let start = match command {
        "r" => "read ",
        "l" => "loop ",
        _ => "wrote",
    };
    vm.expect_line(start).unwrap()
}

/// What the supervisor holds: descriptors, threads, KiB of memory.
#[derive(Debug, Clone, Copy)]
struct Size {
    descriptors: usize,
    threads: u32,
    kib: u64,
}

fn size(pid: i32) -> Size {
    let process = Process(pid);
    let number =
        |field: &str| process.status(field).unwrap().trim_end_matches(" kB").trim().parse::<u64>().unwrap();
    Size {
        // An ordinary user cannot look.
        descriptors: process.files().map_or(0, |files| files.len()),
        threads: number("Threads") as u32,
        kib: number("RssAnon"),
    }
}

/// The VM is as well as before: the supervisor has not grown, does not run while there is nothing to do, and answers.
fn unharmed(vm: &Vm, plan: &Plan<'_>, before: Size, case: &str) {
    let pid = vm.processes(plan.id()).unwrap().pid("supervisor").unwrap();
    let after = size(pid);
    assert!(after.descriptors <= before.descriptors + 4, "{case}: {before:?} {after:?}");
    assert!(
        after.threads == before.threads && after.kib <= before.kib + 2048,
        "{case}: {before:?} {after:?}"
    );
    // One that works off what is left is given time; one that spins never rests.
    assert!((0..10).any(|_| rests(pid)), "{case}: the supervisor's loop does not rest");
}

/// Whether the supervisor's loop, which is its first thread, has run for less than half of the time since a moment ago.
fn rests(pid: i32) -> bool {
    let ran = || {
        let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/schedstat")).unwrap();
        // First field: nanoseconds on a CPU (Documentation/scheduler/sched-stats.rst).
        Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
    };
    let (before, since) = (ran(), Instant::now());
    thread::sleep(Duration::from_millis(100));
    (ran() - before) * 2 < since.elapsed()
}

/// Three accesses, of which the third has the worker do it; and what became of that.
fn strike(lab: &Lab, built: &Path, case: &str, fate: Fate) {
    let plan = plan(lab, built, case);
    let mut vm = plan.start();
    vm.expect("ready").unwrap();
    let before = size(vm.processes(plan.id()).unwrap().pid("supervisor").unwrap());
    for access in 1..=2 {
        assert_eq!(answer(&mut vm, "r"), HONEST, "{case}: access {access}");
    }
    // The access is answered by whoever serves then.
    let third = answer(&mut vm, "r");
    match fate {
        Replaced(why) => {
            vm.expect_message(why).unwrap_or_else(|error| panic!("{case}: {error}"));
            let line = vm.messages().lines().find(|line| line.contains(why)).unwrap_or_default().to_owned();
            assert!(line.contains("device rtc: "), "{case}: {line}");
            vm.expect_message("device rtc: its successor serves (generation 2")
                .unwrap_or_else(|error| panic!("{case}: {error}"));
        }
        Spared => {}
    }
    // Those that were answered, and what was wrong only later, gave what they gave.
    assert!([HONEST, "value=0"].contains(&&*third), "{case}: {third}");
    let mut after = answer(&mut vm, "r");
    if case == "early" && after == "value=0" {
        // The third had its answer before the early one came, which is then this one's.
        after = answer(&mut vm, "r");
    }
    assert_eq!(after, HONEST, "{case}: the access after that");
    if let Spared = fate {
        if case != "early" {
            assert!(!vm.messages().contains("successor"), "{case}: {}", vm.messages());
        }
        if case.starts_with("doorbell") {
            assert_eq!(answer(&mut vm, "l"), "sum=450000", "{case}");
        }
    }
    unharmed(&vm, &plan, before, case);
    let messages = vm.messages();
    assert!(!messages.contains("panicked") && !messages.contains('\u{1b}'), "{case}: {messages}");
    vm.type_in("q").unwrap();
    vm.wait().unwrap().assert(0, "guest powered off");
}

#[test]
fn what_a_worker_does_to_its_ring_is_named_and_costs_its_place() {
    let Some((lab, built)) = lab("hostile-ring") else { return };
    RINGS.iter().for_each(|(case, fate)| strike(&lab, &built, case, *fate));
}

#[test]
fn what_a_worker_says_is_named_and_costs_its_place() {
    let Some((lab, built)) = lab("hostile-socket") else { return };
    MESSAGES.iter().for_each(|(case, fate)| strike(&lab, &built, case, *fate));
}

#[test]
fn a_device_whose_workers_are_all_hostile_fails_alone() {
    let Some((lab, built)) = lab("hostile-always") else { return };
    for (case, why) in [
        ("sequence-far", "field sequence has the value 0x1001, outstanding is 0x1"),
        ("generation-old", "field generation has the value 0x4, expected is 0x5"),
        ("exit", "exited with status 7"),
    ] {
        let plan = plan(&lab, &built, &format!("always {case}"));
        let mut vm = plan.start();
        vm.expect("ready").unwrap();
        let before = size(vm.processes(plan.id()).unwrap().pid("supervisor").unwrap());
        // The first access is poison to two of them, the second to two more, and five deaths without an answer are the end.
        for _ in 0..4 {
            assert_eq!(answer(&mut vm, "r"), FLOATING, "{case}");
        }
        vm.expect_message("; 5 of its workers ended").unwrap();
        assert!(vm.messages().contains(why), "{case}: {}", vm.messages());
        unharmed(&vm, &plan, before, case);
        vm.type_in("q").unwrap();
        vm.wait().unwrap().assert(0, "guest powered off");
    }
}

#[test]
fn a_flood_of_messages_holds_nobody_up() {
    let Some((lab, built)) = lab("hostile-flood") else { return };
    for case in ["counter-flood", "log-flood"] {
        let plan = plan(&lab, &built, case).with(["-vv"]);
        let mut vm = plan.start();
        vm.expect("ready").unwrap();
        let before = size(vm.processes(plan.id()).unwrap().pid("supervisor").unwrap());
        for _ in 0..3 {
            assert_eq!(answer(&mut vm, "r"), HONEST, "{case}");
        }
        // It goes on for ever; the device serves, and the VM's other affairs go on, too.
        let deadline = Instant::now() + patience();
        while answer(&mut vm, "r") != FLOODED {
            assert!(Instant::now() < deadline, "{case}: nobody takes its messages: {}", vm.messages());
        }
        for _ in 0..5 {
            assert_eq!(answer(&mut vm, "r"), FLOODED, "{case}");
            vm.processes(plan.id()).unwrap();
        }
        plan.tell("restart", &["rtc"]).unwrap();
        // Its successor has not come to its third access.
        assert_eq!(answer(&mut vm, "r"), HONEST, "{case}");
        unharmed(&vm, &plan, before, case);
        vm.type_in("q").unwrap();
        let ended = vm.wait().unwrap();
        ended.assert(0, "guest powered off");
        assert!(!ended.messages.contains("panicked"), "{case}: {ended}");
        if case == "log-flood" {
            assert!(!ended.messages.contains('\u{1b}'), "what a terminal obeys: {ended}");
            let lines = ended.messages.matches("rtc: warning: \u{fffd}[31mline xxx").count();
            assert!((1..=LOG_LINES).contains(&lines), "{lines} lines, of {LOG_LINES} that are allowed");
        }
    }
}

#[test]
fn a_worker_that_does_not_listen_is_found_out() {
    let Some((lab, built)) = lab("hostile-deaf") else { return };
    let plan = plan(&lab, &built, "deaf");
    let mut vm = plan.start();
    vm.expect("ready").unwrap();
    for _ in 0..3 {
        assert_eq!(answer(&mut vm, "r"), HONEST);
    }
    vm.expect_message("device rtc: no sign of life").unwrap();
    vm.expect_message("device rtc: its successor serves (generation 2").unwrap();
    assert_eq!(answer(&mut vm, "r"), HONEST);
    vm.type_in("q").unwrap();
    vm.wait().unwrap().assert(0, "guest powered off");
}

/// What a process says before it is trusted with anything, and what is said of that.
const GREETINGS: [(&str, &str); 7] = [
    ("greeting-garbage", "control message does not decode"),
    ("greeting-version", "it speaks protocol 99.0"),
    ("greeting-device", "it runs the device serial"),
    ("greeting-ready", "it sent Ready"),
    ("greeting-twice", "it sent Hello"),
    ("greeting-refusal", "\u{fffd}[2Jno\u{fffd}thanks"),
    ("greeting-exit", "exited with status 9"),
];

#[test]
fn a_vm_whose_first_worker_lies_in_its_greeting_does_not_start() {
    let Some((lab, built)) = lab("hostile-greeting") else { return };
    for (case, why) in GREETINGS {
        let ended = plan(&lab, &built, case).start().wait().unwrap();
        assert!(ended.code() != 0 && ended.code() < 100, "{case}: {ended}");
        assert!(ended.messages.contains("rtc") && ended.messages.contains(why), "{case}: {ended}");
        assert!(
            !ended.messages.contains("panicked") && !ended.messages.contains('\u{1b}'),
            "{case}: {ended}"
        );
    }
}

#[test]
fn a_worker_that_lies_in_its_greeting_takes_nothing_over() {
    let Some((lab, built)) = lab("hostile-upgrade") else { return };
    let plan = lab.guest("prod").with(["--without-layer", "seccomp"]);
    let mut vm = plan.start();
    vm.expect("ready").unwrap();
    let before = size(vm.processes(plan.id()).unwrap().pid("supervisor").unwrap());
    for (case, why) in GREETINGS {
        let path = lab.folder().join("candidate");
        place(&built, case, &path);
        let said = plan.tell("upgrade", &["rtc", "--binary", path.to_str().unwrap()]).unwrap_err();
        assert!(said.contains("goes on as before"), "{case}: {said}");
        assert!(case == "greeting-twice" || said.contains(why), "{case}: {said}");
        assert_eq!(answer(&mut vm, "w"), "");
    }
    unharmed(&vm, &plan, before, "upgrades");
    vm.type_in("q").unwrap();
    vm.wait().unwrap().assert(0, "guest powered off");
}
