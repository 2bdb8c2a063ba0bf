//! Every setting on every host size under every load, each against never spinning.

use std::time::Duration;

use anyhow::Result;

use crate::floors;
use crate::guest::{median, percentile};
use crate::scenario::{Load, Scenario, Via, scenarios};
use crate::{Request, choose};

/// `--poll-max-us`; the first is what the others are compared with.
const SETTINGS: [u32; 6] = [0, 10, 20, 50, 100, 200];
/// How much longer than without spinning an access may take.
const WORSE: f64 = 1.10;

/// Measures and prints; whether no setting is worse than never spinning by more than it may be.
///
/// # Errors
/// A guest does not end as it should.
pub(crate) fn run(request: &Request) -> Result<bool> {
    let mut kept = true;
    let all = loads();
    let chosen = choose(request, &all)?;
    println!("p50 of an access in µs, and how many times as long as with --poll-max-us 0:");
    for scenario in chosen {
        for cpus in [1, floors::cpus()?.len()] {
            let scenario = Scenario { one_cpu: cpus == 1, ..scenario.clone() };
            let mut times = vec![Vec::new(); SETTINGS.len()];
            for _ in 0..request.runs.max(1) {
                for (setting, times) in SETTINGS.iter().zip(&mut times) {
                    let measured = scenario.measure(Via::Worker, Some(*setting))?;
                    // Every kind has samples, or there was an error.
                    times.push(median(measured.samples.values().map(|samples| percentile(samples, 50))));
                }
            }
            let never = median(times.first().cloned().unwrap_or_default());
            print!("{:12} {cpus} CPUs", scenario.name);
            for (setting, times) in SETTINGS.iter().zip(&times) {
                let time = median(times.iter().copied());
                let worse = time > WORSE * never;
                kept &= !worse;
                print!(
                    "  {setting:3}: {:7.2} ({:.2}){}",
                    time / 1e3,
                    time / never,
                    if worse { " MISS" } else { "" }
                );
            }
            println!();
        }
    }
    println!(
        "{:4} no setting is worse than never spinning by more than {WORSE} times",
        if kept { "ok" } else { "MISS" }
    );
    Ok(kept)
}

/// The scenarios, and some that idle for less than 10 ms.
pub(crate) fn loads() -> Vec<Scenario> {
    let all = scenarios();
    let hot = all.iter().find(|scenario| scenario.name == "hot").cloned();
    let pauses = [("idle-30us", 30), ("idle-100us", 100), ("idle-1ms", 1000)];
    let short = hot.into_iter().flat_map(|hot| {
        pauses.map(|(name, us)| Scenario { name, idle: Duration::from_micros(us), count: 200, ..hot.clone() })
    });
    let long = all.iter().filter(|scenario| !scenario.one_cpu && scenario.load != Load::Computes).cloned();
    short.chain(long).collect()
}
