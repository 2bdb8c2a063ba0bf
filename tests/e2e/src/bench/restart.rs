//! From a worker's death to its successor's service, for each device of an idle VM, step by step; without and with a spare. And how
//! long a device pauses for an upgrade.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cellblock_e2e::processes::{Pause, Row};
use cellblock_e2e::{Lab, Vm};
use rustix::process::{Pid, Signal, kill_process};
use rustix::time::{ClockId, clock_gettime};

use crate::Request;
use crate::floor::Floor;
use crate::others::Others;
use crate::sample::{Sample, verdict};

/// Limits without a spare, of the 50th and the 99th percentile, in ms.
const P50_MS: f64 = 4.0;
const P99_MS: f64 = 12.0;
/// And with one.
const SPARE_P99_MS: f64 = 2.0;
/// Of an upgrade, from the request to the old worker to come to rest until the new one is told to go on.
const UPGRADE_P99_MS: f64 = 5.0;
/// Long enough to count as progress, so that the device does not fail.
const PAUSE: Duration = Duration::from_millis(300);
/// How many of the slowest are printed, each with its steps.
const SLOWEST: usize = 8;
/// Whoever has so much of a CPU may have kept it from those that are measured.
const DISTURBING: Duration = Duration::from_micros(500);
/// Long enough for a successor to serve.
const TAKING_OVER: Duration = Duration::from_millis(20);
/// How long a spare may take to be there.
const PATIENCE: Duration = Duration::from_secs(10);

/// Measures; whether the percentiles keep their limits.
pub(crate) fn run(request: &Request) -> Result<bool> {
    let without = deaths(request, 0)?;
    let with = deaths(request, 1)?;
    let upgrade = upgrades(request)?;
    let p99 = |sample: &Sample| sample.percentile(99).as_secs_f64() * 1e3;
    let median = without.median().as_secs_f64() * 1e3;
    let verdicts = [
        verdict("death to serving again, p50", median, P50_MS, "ms"),
        verdict("death to serving again, p99", p99(&without), P99_MS, "ms"),
        verdict("death to serving again, with a spare, p99", p99(&with), SPARE_P99_MS, "ms"),
        verdict("pause for an upgrade, p99", p99(&upgrade), UPGRADE_P99_MS, "ms"),
    ];
    Ok(verdicts.into_iter().all(|kept| kept))
}

/// Kills each worker as often as asked for; how long the devices were without one.
fn deaths(request: &Request, spares: u32) -> Result<Sample> {
    let lab = Lab::with_guests("bench-restart").context("no guests here")?;
    let options = [format!("--cpus={}", request.cpus), format!("--spares={spares}")];
    let plan = lab.guest("echo").with_every_device().with(options);
    let mut vm = plan.start();
    vm.expect_any()?;
    let names = lab.places().workers();
    let (mut all, mut of_each) = (Sample::default(), BTreeMap::<_, Sample>::new());
    let mut steps: [(&str, Sample); 5] =
        ["detect", "reap", "spawn", "sandbox", "restore"].map(|step| (step, Sample::default()));
    let (mut slowest, mut undisturbed) = (Vec::new(), Sample::default());
    let (mut floor, mut bare) = (Floor::new()?, Sample::default());
    for generation in 2..request.runs.max(15) + 2 {
        for name in &names {
            thread::sleep(PAUSE / names.len() as u32);
            let pid = settled(&vm, plan.id(), name, spares)?.pid;
            let others = Others::now();
            let killed = monotonic_ns();
            kill_process(Pid::from_raw(pid).context("no process")?, Signal::KILL)?;
            // Whoever looks for the message meanwhile takes a CPU from those that he waits for.
            thread::sleep(TAKING_OVER);
            let meanwhile = others.busiest();
            vm.next_message(&format!("device {name}: its successor serves (generation {generation}"))?;
            let pause = settled(&vm, plan.id(), name, 0)?.last_pause.context("no pause")?;
            ensure!(pause.spare == (spares > 0), "{name}: {pause:?}");
            let Pause { noticed_ns, reap_us, spawn_us, sandbox_us, restore_us, .. } = pause;
            let detect = Duration::from_nanos(noticed_ns.saturating_sub(killed));
            let later = [reap_us, spawn_us, sandbox_us, restore_us].map(Duration::from_micros);
            let took = [detect].into_iter().chain(later);
            let whole = took.clone().sum();
            all.add(whole);
            of_each.entry(name).or_default().add(whole);
            if meanwhile.ran < DISTURBING && meanwhile.stolen.is_zero() {
                undisturbed.add(whole);
            }
            slowest.push((whole, name, took.clone().collect::<Vec<_>>(), meanwhile));
            if spares > 0 {
                bare.add(floor.cycle(TAKING_OVER)?);
            }
            steps.iter_mut().zip(took).for_each(|((_, sample), time)| sample.add(time));
        }
    }
    println!("a killed worker to its successor, {spares} spares:");
    steps.iter().for_each(|(step, sample)| println!("  {step:12} {sample}"));
    println!("  {:12} {all}, p99 {:.2}", "in all", all.percentile(99).as_secs_f64() * 1e3);
    of_each.iter().for_each(|(name, sample)| println!("    {name:12} {sample}"));
    slowest.sort_by_key(|(whole, ..)| Reverse(*whole));
    for (whole, name, took, meanwhile) in slowest.iter().take(SLOWEST) {
        println!("  slowest      {whole:.2?} {name}: {took:.2?}; meanwhile {meanwhile}");
    }
    let p99 = undisturbed.percentile(99).as_secs_f64() * 1e3;
    println!("  while nobody else ran {DISTURBING:.0?} (decides nothing): {undisturbed}, p99 {p99:.2}");
    if spares > 0 {
        let p99 = bare.percentile(99).as_secs_f64() * 1e3;
        println!(
            "  a bare kill and a question to a process that waits (decides nothing): {bare}, p99 {p99:.2}"
        );
    }
    Ok(all)
}

/// Upgrades each worker as often as asked for; how long the devices paused.
fn upgrades(request: &Request) -> Result<Sample> {
    let lab = Lab::with_guests("bench-upgrade").context("no guests here")?;
    let plan = lab.guest("echo").with_every_device().with([format!("--cpus={}", request.cpus)]);
    let vm = plan.start();
    vm.expect_any()?;
    let (mut all, mut reaps) = (Sample::default(), Sample::default());
    for _ in 0..request.runs.max(15) {
        for name in &lab.places().workers() {
            let upgraded =
                Command::new(lab.places().program()).args(["upgrade", plan.id(), name]).output()?;
            ensure!(upgraded.status.success(), "{}", String::from_utf8_lossy(&upgraded.stderr));
            let pause = settled(&vm, plan.id(), name, 0)?.last_pause.context("no pause")?;
            all.add(Duration::from_micros(pause.reap_us + pause.restore_us));
            reaps.add(Duration::from_micros(pause.reap_us));
        }
    }
    println!("upgrades:");
    println!("  {:12} {reaps}", "reap");
    println!("  {:12} {all}, p99 {:.2}", "in all", all.percentile(99).as_secs_f64() * 1e3);
    Ok(all)
}

/// The worker called `name`, once it has so many spares.
fn settled(vm: &Vm, id: &str, name: &str, spares: u32) -> Result<Row> {
    let end = Instant::now() + PATIENCE;
    loop {
        let tree = vm.processes(id)?;
        let row = tree.processes.into_iter().find(|row| row.process == name);
        let row = row.with_context(|| format!("no process {name}"))?;
        if row.state == "serving" && row.spares.unwrap_or(0) >= spares {
            return Ok(row);
        }
        ensure!(Instant::now() < end, "{row:?} instead of {spares} spares");
        thread::sleep(Duration::from_millis(1));
    }
}

fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    (now.tv_sec as u64) * 1_000_000_000 + now.tv_nsec as u64
}
