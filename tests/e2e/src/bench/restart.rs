//! From a worker's death to its successor's service, for each device of an idle VM.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use cellblock_e2e::Lab;
use rustix::process::{Pid, Signal, kill_process};

use crate::Request;
use crate::sample::{Sample, verdict};

const P50_MS: f64 = 4.0;
const P99_MS: f64 = 12.0;
/// Long enough to count as progress, so that the device does not fail.
const PAUSE: Duration = Duration::from_millis(300);

/// Measures; whether the percentiles keep their limits.
pub(crate) fn run(request: &Request) -> Result<bool> {
    let lab = Lab::with_guests("bench-restart").context("no guests here")?;
    let plan = lab.guest("echo").with_every_device().with([format!("--cpus={}", request.cpus)]);
    let vm = plan.start();
    vm.expect_any()?;
    let names = lab.places().workers();
    let (mut seen, mut told) = (Sample::default(), Sample::default());
    let mut of_each: BTreeMap<String, Sample> = BTreeMap::new();
    for generation in 2..request.runs.max(15) + 2 {
        for name in &names {
            thread::sleep(PAUSE / names.len() as u32);
            let pid = Pid::from_raw(vm.processes(plan.id())?.pid(name)?).context("no process")?;
            let start = Instant::now();
            kill_process(pid, Signal::KILL)?;
            let begin = format!("device {name}: its successor serves (generation {generation}, after ");
            let ms = vm.expect_message_rest(&begin)?;
            seen.add(start.elapsed());
            let ms: f64 = ms.trim_end_matches(" ms)").parse().with_context(|| ms.clone())?;
            let pause = Duration::from_secs_f64(ms / 1e3);
            told.add(pause);
            of_each.entry(name.clone()).or_default().add(pause);
        }
    }
    for (name, sample) in &of_each {
        println!("{name:12} noticed to serving: {sample}");
    }
    println!("{:12} noticed to serving: {told}", "all");
    println!("{:12} killed to known to serve: {seen}", "all");
    let ms = |percent| seen.percentile(percent).as_secs_f64() * 1e3;
    let median = verdict("death to serving again, p50", ms(50), P50_MS, "ms");
    Ok(verdict("death to serving again, p99", ms(99), P99_MS, "ms") && median)
}
