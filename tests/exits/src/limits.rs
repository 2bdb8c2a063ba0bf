//! What the figures have to keep.

use crate::results::{KINDS, Results};
use crate::scenario::{Load, Scenario, Via};

/// Hot, beyond a raw round trip of a cache line, in ns.
const BEYOND_PING_PONG: f64 = 200.0;
const HOT_P50: f64 = 1.05;
const HOT_P99: f64 = 1.25;
/// Of the cheapest sleep and wake-up.
const OF_WAKE_UP: f64 = 1.3;
/// What is left of a computing vCPU.
const COMPUTE_LEFT: f64 = 0.98;
/// Of what JSON over a socket adds.
const JSON_HOT: f64 = 50.0;
const JSON_IDLE: f64 = 4.0;

/// Prints each limit, and whether it is kept; whether all are.
pub(crate) fn judge(results: &Results, scenarios: &[&Scenario]) -> bool {
    let mut all = true;
    for scenario in scenarios {
        for (what, value, limit, least) in of(results, scenario) {
            let kept = if least { value >= limit } else { value <= limit };
            all &= kept;
            let relation = if least { "at least" } else { "at most" };
            println!(
                "{:4} {}: {what}: {value:.3}, {relation} {limit:.3}",
                if kept { "ok" } else { "MISS" },
                scenario.name
            );
        }
    }
    all
}

/// What it is, the figure, its limit, and whether that is the least.
type Limit = (String, f64, f64, bool);

fn of(results: &Results, scenario: &Scenario) -> Vec<Limit> {
    let name = scenario.name;
    let mut limits = Vec::new();
    for kind in KINDS {
        let added = results.added(name, Via::Worker, kind);
        let json = results.added(name, Via::Json, kind) / added.max(1.0);
        if name == "hot" {
            if let Some(ping_pong) = results.floor(name, "ping-pong") {
                limits.push((format!("{kind}: added p50, ns"), added, ping_pong + BEYOND_PING_PONG, false));
            } else {
                println!(
                    "SKIP {name}: {kind}: added p50, ns: the round trip that it is compared with needs two CPUs"
                );
            }
            limits.push((
                format!("{kind}: p50 of in-process"),
                results.ratio(name, Via::Worker, kind, 50),
                HOT_P50,
                false,
            ));
            limits.push((
                format!("{kind}: p99 of in-process"),
                results.ratio(name, Via::Worker, kind, 99),
                HOT_P99,
                false,
            ));
            limits.push((format!("{kind}: JSON adds times as much"), json, JSON_HOT, true));
        }
        let sleeps = name == "idle" || scenario.one_cpu;
        if let Some((cheapest, time)) = results.cheapest(name, "on one CPU").filter(|_| sleeps) {
            let what = format!("{kind}: added p50, ns, against {cheapest}");
            limits.push((what, added, OF_WAKE_UP * time, false));
        }
        if name == "idle" {
            limits.push((format!("{kind}: JSON adds times as much"), json, JSON_IDLE, true));
        }
        if matches!(scenario.load, Load::OtherDevice | Load::SameDevice) {
            let blocking = results.added(name, Via::NeverSpinning, kind);
            limits.push((format!("{kind}: added p50, ns, against never spinning"), added, blocking, false));
        }
    }
    if scenario.load == Load::Computes {
        let left = results.load(name, Via::Worker) / results.load(name, Via::InProcess);
        limits.push(("speed of a computing vCPU, of in-process".to_owned(), left, COMPUTE_LEFT, true));
    }
    limits
}
