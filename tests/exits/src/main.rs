//! `cellblock-exits`: what a guest's access to a device costs, timed by the guest itself, with the device in the VMM's own process,
//! in a worker, and behind JSON over a socket; beside what this machine can do at best.
//!
//! `scripts/bench exits` builds and runs it. Every scenario is measured with every program in turn, run by run, so that all see
//! the same machine; what counts is the median over the runs. The worker is the program that ships. The VMM with its devices
//! in-process ([`in_process`]) is here alone: the same back end, bus and device models, a lock for each device, as peers have it, and
//! the seccomp program of the shipped vCPU threads.

mod board;
mod floors;
mod grid;
mod guest;
mod in_process;
mod json;
mod limits;
mod plot;
mod results;
mod scenario;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};

use results::Results;
use scenario::{Scenario, scenarios};

const USAGE: &str =
    "usage: cellblock-exits [--runs N] [--only NAME,…] [--grid] [--poll-max-us N] [--json FILE] [--svg FILE]";

/// What to measure, from the command line.
#[derive(Debug, Clone, Default)]
struct Request {
    runs: usize,
    /// Scenarios by their names; none = all.
    only: Vec<String>,
    grid: bool,
    /// Instead of the program's default.
    poll_max_us: Option<u32>,
    json: Option<PathBuf>,
    svg: Option<PathBuf>,
}

fn main() -> ExitCode {
    match measure() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cellblock-exits: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn measure() -> Result<bool> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        // The programs that it runs beside itself.
        ["in-process", via, cpus, kernel, cmdline] => {
            return in_process::run(via.parse()?, cpus.parse()?, kernel.as_ref(), cmdline).map(|()| true);
        }
        ["json-device"] => return json::serve().map(|()| true),
        ["floor-peer"] => return floors::peer::serve().map(|()| true),
        _ => {}
    }
    let mut request = Request { runs: 15, ..Request::default() };
    let mut rest = words.into_iter();
    while let Some(option) = rest.next() {
        if option == "--grid" {
            request.grid = true;
            continue;
        }
        let value = rest.next().with_context(|| format!("{option} needs a value"))?;
        match option {
            "--runs" => request.runs = value.parse().with_context(|| format!("--runs {value}"))?,
            "--only" => request.only = value.split(',').map(str::to_owned).collect(),
            "--poll-max-us" => request.poll_max_us = Some(value.parse().context("--poll-max-us")?),
            "--json" => request.json = Some(value.into()),
            "--svg" => request.svg = Some(value.into()),
            _ => bail!("{option} is not an option\n{USAGE}"),
        }
    }
    if request.grid { grid::run(&request) } else { run(&request) }
}

/// Those of `all` that are wanted and can be had here; never none.
///
/// # Errors
/// A name that is not among them, or a machine that has the CPUs for none.
fn choose<'a>(request: &Request, all: &'a [Scenario]) -> Result<Vec<&'a Scenario>> {
    if let Some(name) = request.only.iter().find(|name| all.iter().all(|one| one.name != **name)) {
        let names: Vec<_> = all.iter().map(|scenario| scenario.name).collect();
        bail!("{name} is not a scenario; there are {}", names.join(", "));
    }
    let wanted =
        |scenario: &&Scenario| request.only.is_empty() || request.only.iter().any(|n| n == scenario.name);
    let chosen: Vec<_> = all.iter().filter(wanted).filter(|scenario| scenario.possible()).collect();
    ensure!(!chosen.is_empty(), "nothing can be measured on this machine");
    Ok(chosen)
}

fn run(request: &Request) -> Result<bool> {
    let all = scenarios();
    let chosen = choose(request, &all)?;
    let mut results = Results::default();
    for run in 1..=request.runs.max(1) {
        eprintln!("run {run} of {}", request.runs.max(1));
        for scenario in &chosen {
            results.add_floors(scenario, floors::measure(scenario)?);
            for via in scenario.vias() {
                let measured = scenario.measure(via, request.poll_max_us)?;
                results.add(scenario, via, measured);
            }
        }
    }
    results.print(&chosen);
    let kept = limits::judge(&results, &chosen);
    if let Some(path) = &request.json {
        fs::write(path, serde_json::to_string_pretty(&results.to_json())?)
            .with_context(|| path.display().to_string())?;
    }
    if let Some(path) = &request.svg {
        fs::write(path, plot::svg(&results, &chosen)).with_context(|| path.display().to_string())?;
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_nothing_are_refused() {
        let only = |names: &[&str]| Request {
            only: names.iter().map(|name| (*name).to_owned()).collect(),
            ..Request::default()
        };
        for all in [scenarios(), grid::loads()] {
            assert_eq!(choose(&only(&["idle"]), &all).unwrap()[0].name, "idle");
            let error = choose(&only(&["idle", "typo"]), &all).unwrap_err().to_string();
            assert!(error.starts_with("typo is not a scenario; there are "), "{error}");
        }
        assert!(choose(&only(&[]), &[]).is_err());
    }
}
