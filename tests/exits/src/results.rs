//! What was measured, run by run, and what it comes to.

use std::collections::BTreeMap;

use crate::floors::Floors;
use crate::guest::{Measured, median, percentile};
use crate::scenario::{Scenario, Via};

/// The kinds of access that the guest times.
pub(crate) const KINDS: [&str; 3] = ["read", "write", "virtio"];

/// All runs of all scenarios.
#[derive(Debug, Default)]
pub(crate) struct Results {
    measured: BTreeMap<(&'static str, Via), Vec<Measured>>,
    floors: BTreeMap<&'static str, Vec<Floors>>,
}

impl Results {
    pub(crate) fn add(&mut self, scenario: &Scenario, via: Via, measured: Measured) {
        self.measured.entry((scenario.name, via)).or_default().push(measured);
    }

    pub(crate) fn add_floors(&mut self, scenario: &Scenario, floors: Floors) {
        self.floors.entry(scenario.name).or_default().push(floors);
    }

    /// For each run the time in ns that `percent` of the accesses of this `kind` did not exceed.
    fn of_runs(&self, scenario: &'static str, via: Via, kind: &str, percent: usize) -> Vec<f64> {
        let runs = self.measured.get(&(scenario, via)).map(Vec::as_slice).unwrap_or_default();
        runs.iter().filter_map(|run| run.samples.get(kind)).map(|times| percentile(times, percent)).collect()
    }

    /// The median of the runs.
    pub(crate) fn time(&self, scenario: &'static str, via: Via, kind: &str, percent: usize) -> f64 {
        median(self.of_runs(scenario, via, kind, percent))
    }

    /// What `via` adds to an access in-process at the 50th percentile, in ns: the median of the runs' differences.
    pub(crate) fn added(&self, scenario: &'static str, via: Via, kind: &str) -> f64 {
        let theirs = self.of_runs(scenario, via, kind, 50);
        let ours = self.of_runs(scenario, Via::InProcess, kind, 50);
        median(theirs.into_iter().zip(ours).map(|(theirs, ours)| theirs - ours))
    }

    /// How many times as long as in-process an access takes at this percentile: the median of the runs' ratios.
    pub(crate) fn ratio(&self, scenario: &'static str, via: Via, kind: &str, percent: usize) -> f64 {
        let theirs = self.of_runs(scenario, via, kind, percent);
        let ours = self.of_runs(scenario, Via::InProcess, kind, percent);
        median(theirs.into_iter().zip(ours).map(|(theirs, ours)| theirs / ours))
    }

    /// What a second vCPU did in each ms, in the median.
    pub(crate) fn load(&self, scenario: &'static str, via: Via) -> f64 {
        median(self.measured.get(&(scenario, via)).into_iter().flatten().map(|run| run.load))
    }

    /// The floor of this name, in ns: the median of the runs.
    pub(crate) fn floor(&self, scenario: &'static str, name: &str) -> Option<f64> {
        let runs = self.floors.get(scenario)?;
        let found: Vec<f64> = runs.iter().filter_map(|floors| floors.get(name).copied()).collect();
        (!found.is_empty()).then(|| median(found))
    }

    /// The cheapest floor whose name ends so, with its name.
    pub(crate) fn cheapest(&self, scenario: &'static str, ending: &str) -> Option<(String, f64)> {
        let names = self.floor_names(scenario).into_iter().filter(|name| name.ends_with(ending));
        let times = names.filter_map(|name| self.floor(scenario, &name).map(|time| (name, time)));
        times.min_by(|one, other| one.1.total_cmp(&other.1))
    }

    pub(crate) fn floor_names(&self, scenario: &'static str) -> Vec<String> {
        let runs = self.floors.get(scenario).into_iter().flatten();
        runs.take(1).flat_map(|floors| floors.keys().cloned()).collect()
    }

    pub(crate) fn print(&self, scenarios: &[&Scenario]) {
        for scenario in scenarios {
            let name = scenario.name;
            println!("\n{name}: {} ({} runs; µs)", scenario.what, self.floors.get(name).map_or(0, Vec::len));
            println!(
                "  {:26} {:8} {:>9} {:>9} {:>9} {:>10} {:>7} {:>7}",
                "", "", "p50", "p90", "p99", "added p50", "x p50", "x p99"
            );
            for via in scenario.vias() {
                for kind in KINDS {
                    let time = |percent| self.time(name, via, kind, percent) / 1e3;
                    println!(
                        "  {:26} {kind:8} {:9.2} {:9.2} {:9.2} {:+10.3} {:7.3} {:7.3}",
                        via.name(),
                        time(50),
                        time(90),
                        time(99),
                        self.added(name, via, kind) / 1e3,
                        self.ratio(name, via, kind, 50),
                        self.ratio(name, via, kind, 99),
                    );
                }
                if scenario.second_cpu() {
                    println!("  {:26} the second vCPU: {:.1} a ms", via.name(), self.load(name, via));
                }
            }
            for floor in self.floor_names(name) {
                println!("  floor: {floor:30} {:8.2}", self.floor(name, &floor).unwrap_or(0.0) / 1e3);
            }
        }
        println!();
    }

    /// Everything that [`print`](Self::print) shows, in ns.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        let rows = self.measured.iter().map(|((scenario, via), runs)| {
            let kinds: BTreeMap<_, _> = KINDS
                .iter()
                .map(|kind| {
                    let of = |percent| self.time(scenario, *via, kind, percent);
                    let figures = serde_json::json!({
                        "p50_ns": of(50), "p90_ns": of(90), "p99_ns": of(99),
                        "added_p50_ns": self.added(scenario, *via, kind),
                        "ratio_p50": self.ratio(scenario, *via, kind, 50),
                        "ratio_p99": self.ratio(scenario, *via, kind, 99),
                        "p50_ns_of_runs": self.of_runs(scenario, *via, kind, 50),
                    });
                    (*kind, figures)
                })
                .collect();
            serde_json::json!({
                "scenario": scenario, "via": via.name(), "runs": runs.len(), "accesses": kinds,
                "second_vcpu_per_ms": self.load(scenario, *via),
            })
        });
        let floors: BTreeMap<_, _> = self
            .floors
            .keys()
            .map(|scenario| {
                let names = self.floor_names(scenario).into_iter();
                let times: BTreeMap<_, _> =
                    names.filter_map(|name| self.floor(scenario, &name).map(|time| (name, time))).collect();
                (*scenario, times)
            })
            .collect();
        serde_json::json!({ "measured": rows.collect::<Vec<_>>(), "floors_ns": floors })
    }
}
