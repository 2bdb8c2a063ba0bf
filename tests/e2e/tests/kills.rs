//! Workers die, hang and stumble at moments of chance while a guest uses them without a pause, and checks all that they do: it
//! notices nothing. (`chaos.rs` does this to a Linux guest.)
//!
//! `CELLBLOCK_KILLS` says how many deaths there are for each device (12), `CELLBLOCK_KILLS_SEED` from which seed on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests; clippy knows only #[test] functions as such.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use cellblock_e2e::Lab;
use cellblock_e2e::deaths::Fate;
use cellblock_e2e::dice::{Dice, setting};
use cellblock_e2e::lab::Plan;
use cellblock_e2e::processes::{Row, Tree};
use cellblock_e2e::vm::patience;

const KILLS: u64 = 12;
/// More requests than a guest has under way.
const DONE: u64 = 4;

fn fate(dice: &mut Dice) -> Fate {
    match dice.roll(16) {
        0..=9 => Fate::Killed,
        10..=12 => Fate::Crashed,
        13 | 14 => Fate::Paused(1 + dice.roll(40)),
        _ => Fate::Stopped,
    }
}

/// The worker of `device`. `None` = the VM has ended.
fn worker(lab: &Lab, plan: &Plan<'_>, device: &str) -> Option<Row> {
    let tree = Tree::of_vm(&lab.places().program(), plan.id()).ok()?;
    tree.processes.into_iter().find(|row| row.process == device)
}

/// The worker of `device` that serves, which is not number `before` of its successors. `None` = the VM has ended.
fn serving(lab: &Lab, plan: &Plan<'_>, device: &str, before: Option<u32>) -> Option<Row> {
    let end = Instant::now() + patience();
    loop {
        let row = worker(lab, plan, device)?;
        if row.state == "serving" && row.restarts != before {
            return Some(row);
        }
        assert!(Instant::now() < end, "{row:?}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Whether the guest has got on since `device` had the worker of `row`: the requests that it had sent are done, so the next worker to
/// die is the first one over another. `false` = the VM has ended.
fn goes_on(lab: &Lab, plan: &Plan<'_>, device: &str, row: &Row) -> bool {
    let done = |row: &Row| row.exits.unwrap_or(0) + row.requests.unwrap_or(0);
    let end = Instant::now() + patience();
    while let Some(now) = worker(lab, plan, device) {
        if done(&now) >= done(row) + DONE {
            return true;
        }
        assert!(Instant::now() < end, "{now:?} since {row:?}");
        thread::sleep(Duration::from_millis(5));
    }
    false
}

/// Runs `plan`, in which `device` is at work, and has its worker end up to `wanted` times. How often it did, in which way.
fn run(lab: &Lab, plan: &Plan<'_>, device: &str, wanted: u64, dice: &mut Dice) -> BTreeMap<String, u64> {
    let mut vm = plan.start();
    vm.expect("ready").unwrap();
    let (mut deaths, mut before) = (BTreeMap::new(), None);
    while deaths.values().sum::<u64>() < wanted
        && let Some(row) = serving(lab, plan, device, before)
    {
        // Of two that die over the same request the guest is told.
        if !goes_on(lab, plan, device, &row) {
            break;
        }
        thread::sleep(Duration::from_millis(dice.roll(20)));
        let fate = fate(dice);
        // It may end with the VM.
        if fate.befall(row.pid).is_err() || matches!(fate, Fate::Paused(_)) {
            continue;
        }
        before = row.restarts;
        if serving(lab, plan, device, before).is_some() {
            *deaths.entry(format!("{fate:?}")).or_default() += 1;
            before = None;
        }
    }
    let ended = vm.wait_for(6 * patience()).unwrap();
    ended.assert(0, "guest powered off");
    assert!(ended.output.contains("rounds=") && ended.output.contains("wrong=0"), "{device}: {ended}");
    assert!(!ended.messages.contains("is dropped"), "{device}: {ended}");
    deaths
}

#[test]
fn a_guest_whose_workers_die_at_any_time_notices_nothing() {
    let Some(lab) = Lab::with_guests("kills") else { return };
    let kills = setting("CELLBLOCK_KILLS").unwrap().unwrap_or(KILLS);
    let mut dice = Dice::seeded("CELLBLOCK_KILLS_SEED").unwrap();
    println!("CELLBLOCK_KILLS={kills}");
    let image = lab.image("image", &[0; 1 << 20]);
    let disk = format!("path={},queues=2", image.display());
    for (device, guest, rounds, options) in [
        ("block", "disk", "rounds=150", ["--disk", &disk].as_slice()),
        ("serial", "exact", "rounds=400", &[]),
        ("i8042", "exact", "rounds=400", &[]),
        ("rtc", "exact", "rounds=400", &[]),
        ("entropy", "entropy", "rounds=400", &["--rng"]),
    ] {
        for spares in ["0", "1"] {
            let (mut deaths, mut runs) = (BTreeMap::<_, u64>::new(), 0);
            while deaths.values().sum::<u64>() < kills.div_ceil(2) {
                let left = kills.div_ceil(2) - deaths.values().sum::<u64>();
                let plan = lab.guest(guest).with(["--cmdline", rounds, "--spares", spares]);
                let plan = plan.with(options.iter().copied());
                let more = run(&lab, &plan, device, left, &mut dice);
                runs += 1;
                assert!(runs < 60, "{device}: the guest is done before its worker dies");
                more.into_iter().for_each(|(fate, count)| *deaths.entry(fate).or_default() += count);
            }
            println!("{device}, {spares} spares: {deaths:?} in {runs} VMs, 0 errors");
        }
    }
}
