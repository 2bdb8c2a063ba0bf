//! Workers of the built program that end at each step of their lives in turn, under bare-metal guests that check all that they do. The
//! supervisor, the spawner and the jails are those that ship; the workers are built with fail-points.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests; clippy knows only #[test] functions as such.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use cellblock_e2e::repeats::repeats;
use cellblock_e2e::{Ended, Lab, Vm, skip};
use cellblock_sdk::fail_point::{INCARNATIONS, MARK, STATUS, Step};
use cellblock_sdk::testing::ends::Mortals;

/// Of every worker that serves.
const SERVING: &[Step] = &[Step::Received, Step::Accessed, Step::Committed, Step::Replied, Step::Settled];
/// Of its register thread, whatever others do meanwhile.
const ASIDE: &[Step] = &[Step::Sleeps, Step::Awake];
/// Of one that has queues.
const QUEUES: &[Step] = &[
    Step::OrderTaken,
    Step::Popped,
    Step::RecordStore,
    Step::Done,
    Step::UsedWritten,
    Step::UsedPublished,
    Step::Given,
    Step::CauseNoted,
    Step::Raised,
    Step::PostSleeps,
];
/// Of one whose queues are taken away now and then.
const RESETS: &[Step] = &[Step::TakenAway, Step::EventTaken, Step::EventCommitted];
/// Of every successor.
const RESTORE: &[Step] = &[
    Step::Granted,
    Step::PageOpened,
    Step::Built,
    Step::Restored,
    Step::FirstCommit,
    Step::Sealed,
    Step::Ready,
];
/// Of a virtio device's.
const RESUME: &[Step] = &[Step::RegistersRestored, Step::QueueResumed];
/// Of one with streams to the host.
const STREAMS: &[Step] = &[Step::SinkTook, Step::SourceCounted];
/// Of one that comes to rest, to be relieved.
const REST: &[Step] = &[Step::RestAsked, Step::PostRests, Step::Rests, Step::RestTold];
/// Of one that relieves another.
const RELIEF: &[Step] = &[Step::Resumed];

/// A guest sees dozens of restarts, on a machine that may be busy.
const PATIENCE: Duration = Duration::from_secs(120);

type Ends = Vec<Option<(Step, u16)>>;

/// The ends of one device's workers. A step of its queues may come without the guest's having accessed a register in between, and so
/// do the steps of a successor's start: after each the next worker serves a little, so that no two die of one request. That one ends
/// before the guest has its reply, and so before the guest makes the next request.
fn ends(queues: &[&'static [Step]], restore: &[&'static [Step]]) -> Ends {
    let both = |visits: [u16; 2], steps: &'static [Step]| {
        visits.into_iter().flat_map(move |visit| steps.iter().map(move |step| (*step, visit)))
    };
    let queues = both([2, 3], ASIDE).chain(queues.iter().copied().flat_map(|steps| both([1, 2], steps)));
    let restore = restore.iter().copied().flatten().map(|step| (*step, 1));
    let rest = restore.chain(queues).flat_map(|end| [(Step::Committed, 3), end]);
    // The queues are the guest's by then: some steps come only with such, and the guest takes them back now and then.
    let begun = [(Step::Committed, 20)].into_iter();
    let ends: Ends = both([2, 3], SERVING).chain(begun).chain(rest).map(Some).collect();
    assert!(ends.len() <= INCARNATIONS);
    ends
}

/// Runs `guest` with `options`; the workers of `device` end as `ends` says, each of them.
fn run(lab: &Lab, device: &str, guest: &str, options: &[&str], ends: &Ends) -> Option<Ended> {
    let worker = lab.places().dist.join("libexec/cellblock").join(device);
    mortals(lab, device, &worker)?.arm(ends).unwrap();
    let ended = lab.guest(guest).with(options.iter().copied()).start().wait_for(PATIENCE).unwrap();
    ended.assert(0, "guest powered off");
    let died = ended.messages.matches(&format!("exited with status {STATUS}")).count();
    assert_eq!(died, ends.len(), "{ended}");
    assert!(!ended.messages.contains("two of its workers ended on"), "{ended}");
    assert_eq!(ended.told("wrong"), "0", "{ended}");
    println!("{device}: {died} workers ended, each elsewhere");
    Some(ended)
}

#[test]
fn register_accesses_take_effect_once_whichever_step_a_worker_ends_at() {
    for device in ["serial", "i8042", "rtc"] {
        let Some(lab) = Lab::with_guests(device) else { return };
        let ends = ends(&[], &[RESTORE]);
        let Some(_) = run(&lab, device, "exact", &["--cmdline", "rounds=400"], &ends) else { return };
    }
}

#[test]
fn a_disk_loses_no_request_and_no_interrupt_whichever_step_its_worker_ends_at() {
    let Some(lab) = Lab::with_guests("disk-steps") else { return };
    let image = lab.image("disk.img", &[0; 65536]);
    let ends = ends(&[QUEUES, RESETS], &[RESUME, RESTORE]);
    let disk = format!("path={},queues=2", image.display());
    run(&lab, "block", "disk", &["--disk", &disk, "--cmdline", "rounds=600"], &ends);
}

#[test]
fn an_entropy_device_loses_no_request_whichever_step_its_worker_ends_at() {
    let Some(lab) = Lab::with_guests("entropy-steps") else { return };
    let ends = ends(&[QUEUES, RESETS], &[RESUME, RESTORE]);
    run(&lab, "entropy", "entropy", &["--rng", "--cmdline", "rounds=1500"], &ends);
}

#[test]
fn a_console_loses_no_byte_whichever_step_its_worker_ends_at() {
    let Some(lab) = Lab::with_guests("console-steps") else { return };
    let log = lab.image("console.log", b"");
    let ends = ends(&[QUEUES], &[RESUME, RESTORE]);
    let sink = format!("file={}", log.display());
    let options = ["--console", &sink, "--cmdline", "lines=1000"];
    let Some(ended) = run(&lab, "console", "console", &options, &ends) else { return };
    let said: String = (1..=1000).map(|line| format!("{line:07} by the virtio console\n")).collect();
    let again = repeats(said.as_bytes(), &fs::read(log).unwrap(), 64);
    println!("console: {again:?} times a line came again");
    assert!(again.is_ok_and(|again| again <= ends.len()), "{ended}");
}

#[test]
fn a_serial_port_loses_no_byte_whichever_step_its_worker_ends_at() {
    let Some(lab) = Lab::with_guests("serial-out") else { return };
    let both = [SERVING, &[Step::SinkTook]];
    let ends: Ends = [2, 3]
        .into_iter()
        .flat_map(|visit| both.concat().into_iter().map(move |s| Some((s, visit))))
        .collect();
    let worker = lab.places().dist.join("libexec/cellblock/serial");
    let Some(serial) = mortals(&lab, "serial", &worker) else { return };
    serial.arm(&ends).unwrap();
    let plan = lab.guest("flood").with(["--cmdline", "lines=300"]);
    let ended = plan.start().wait_for(PATIENCE).unwrap();
    ended.assert(0, "guest powered off");
    let line = |n| format!("{n:07} the quick brown fox jumps over the lazy dog, and again it jumps\n");
    let said: String = (1..=300).map(line).collect();
    let again = repeats(said.as_bytes(), ended.output.as_bytes(), 4096);
    let died = ended.messages.matches(&format!("exited with status {STATUS}")).count();
    println!("serial: {died} workers ended; {again:?} times bytes came again");
    assert_eq!(died, ends.len(), "{ended}");
    assert!(again.is_ok(), "{again:?}: {ended}");

    // Each byte of input that the guest has taken counts, and is then taken from its socket.
    serial.arm(&[1, 2, 3, 1].map(|visit| Some((Step::SourceCounted, visit)))).unwrap();
    let plan = lab.guest("echo");
    let mut vm = plan.start().patient(PATIENCE);
    vm.expect("ready").unwrap();
    let word = "0123456789abcdefghijklmnopqrstuvwxyz";
    let arrived = |output: &str| {
        let echoed = output.split_once("ready\n").map_or("", |(_, echoed)| echoed);
        let wanted = word.repeat(4);
        let next = |at: usize, byte: u8| at + usize::from(wanted.as_bytes().get(at) == Some(&byte));
        echoed.bytes().fold(0, next) / word.len()
    };
    for round in 1..=4 {
        vm.type_in(word).unwrap();
        let end = Instant::now() + PATIENCE;
        while arrived(&vm.output()) < round {
            assert!(Instant::now() < end, "round {round}: {}", vm.output());
            thread::sleep(Duration::from_millis(2));
        }
    }
    vm.type_in("\u{4}").unwrap();
    let ended = vm.wait_for(PATIENCE).unwrap();
    ended.assert(0, "guest powered off");
    assert_eq!(ended.messages.matches(&format!("exited with status {STATUS}")).count(), 4, "{ended}");
}

/// The binary with fail-points of `device`, copied to `copy`. `None`, and a line, where it is not built.
fn mortals(lab: &Lab, device: &str, copy: &Path) -> Option<Mortals> {
    let found = lab.places().fail_points.join(device);
    if !found.exists() {
        skip(&format!("{} is not built (scripts/test build)", found.display()));
        return None;
    }
    let _ = fs::remove_file(copy);
    Some(Mortals::copy(&found, copy).unwrap())
}

/// `cellblock upgrade` of the disk, to `binary`: what it says.
fn upgrade(lab: &Lab, id: &str, binary: &Path) -> String {
    let mut command = Command::new(lab.places().program());
    let output = command.args(["upgrade", id, "block", "--binary"]).arg(binary).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// The worker that is relieved ends at each step of that in turn, and then the one that relieves it.
#[test]
fn a_hand_over_that_ends_at_any_step_leaves_a_disk_that_loses_nothing() {
    let Some(lab) = Lab::with_guests("hand-over") else { return };
    let image = lab.image("disk.img", &[0; 65536]);
    let disk = format!("path={},queues=2", image.display());
    let shipped = lab.places().dist.join("libexec/cellblock/block");
    let other = lab.folder().join("other");
    let steps = |steps: &[&'static [Step]]| steps.iter().copied().flatten().copied().collect::<Vec<_>>();
    let olds = steps(&[REST]).into_iter().map(|step| (step, true));
    let news = steps(&[RESTORE, RESUME, RELIEF]).into_iter().filter(|step| *step != Step::FirstCommit);
    for (step, old) in olds.chain(news.map(|step| (step, false))) {
        let Some(serving) = mortals(&lab, "block", &shipped) else { return };
        let Some(relief) = mortals(&lab, "block", &other) else { return };
        // The first incarnation is relieved by the second.
        if old {
            serving.arm(&[Some((step, 1))]).unwrap();
        } else {
            relief.arm(&[None, Some((step, 1))]).unwrap();
        }
        let plan = lab.guest("disk").with(["--disk", &disk, "--cmdline", "rounds=1000000 every=1000000"]);
        let mut vm = plan.start().patient(PATIENCE);
        vm.expect("ready").unwrap();
        // The driver is there, and has requests on their way.
        let requests = |vm: &Vm| {
            let rows = vm.processes(plan.id()).unwrap().processes;
            rows.into_iter().find(|row| row.process == "block").and_then(|row| row.requests)
        };
        while requests(&vm) < Some(4) {}
        let said = upgrade(&lab, plan.id(), &other);
        // One that has died, or not, is relieved for good.
        relief.arm(&[]).unwrap();
        vm.processes(plan.id()).unwrap();
        let again = upgrade(&lab, plan.id(), &other);
        vm.type_in("q").unwrap();
        let ended = vm.wait_for(PATIENCE).unwrap();
        ended.assert(0, "guest powered off");
        println!("{step:?} of the {}: {}", if old { "old" } else { "new" }, said.trim());
        let died = format!("exited with status {STATUS}");
        // Once the old one has told that it rests, the supervisor may kill it before it ends by itself.
        let relieved = step == Step::RestTold && said.contains("device block runs");
        let died = said.contains(&died) || ended.messages.contains(&died);
        assert!(died || relieved, "{step:?}: {said}{ended}");
        assert!(again.contains("device block runs"), "{step:?}: {again}{ended}");
        assert_eq!(ended.told("wrong"), "0", "{step:?}: {said}{ended}");
        assert_ne!(ended.told("rounds"), "0", "{ended}");
    }
}

#[test]
fn every_step_is_tried() {
    let all = [SERVING, ASIDE, QUEUES, RESETS, RESTORE, RESUME, REST, RELIEF, STREAMS];
    let tried: BTreeSet<usize> = all.into_iter().flatten().map(|step| *step as usize).collect();
    let missing: Vec<_> = Step::ALL.iter().filter(|step| !tried.contains(&(**step as usize))).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn no_shipped_program_has_fail_points() {
    let Some(lab) = Lab::with_program("shipped") else { return };
    let workers = lab.places().workers();
    assert!(workers.len() > 5, "{workers:?}");
    let paths = workers.iter().map(|name| lab.places().dist.join("libexec/cellblock").join(name));
    for path in paths.chain([lab.places().program()]) {
        let bytes = fs::read(&path).unwrap();
        let found = bytes.windows(MARK.len()).any(|window| window == MARK);
        assert!(!found, "{}", path.display());
    }
}
