//! `cellblock-bench`: how long a VM takes to start and to boot Linux, what it costs while it idles, and how fast its
//! devices are.
//!
//! `scripts/bench` builds and runs it; `boot` and `io` inside the emulated host, `start` and `restart` on this machine. A peer's program may be
//! measured in turn with ours, run by run, so that both see the same machine.
#![forbid(unsafe_code)]

mod boot;
mod exits;
mod floor;
mod io;
mod others;
mod restart;
mod rival;
mod sample;
mod sandbox;
mod start;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

const USAGE: &str = "usage: cellblock-bench boot|start|io|restart [--runs N] [--firecracker PATH] [--cpus N] [--initrd PATH] [--only disk|net]";

/// What to measure, from the command line.
pub(crate) struct Request {
    /// Measured runs of each program.
    runs: usize,
    /// Firecracker's binary, to be measured beside ours.
    firecracker: Option<PathBuf>,
    /// vCPUs of the guest.
    cpus: u32,
    /// The initrd with the guest's programs.
    initrd: Option<PathBuf>,
    /// Of `io`: this half only.
    only: Option<String>,
}

fn main() -> ExitCode {
    match measure() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cellblock-bench: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Runs the bench that the command line names; whether every figure with a limit keeps it.
fn measure() -> Result<bool> {
    let mut arguments = std::env::args().skip(1);
    let bench = arguments.next().context(USAGE)?;
    let mut request = Request { runs: 0, firecracker: None, cpus: 1, initrd: None, only: None };
    while let Some(option) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{option} needs a value"))?;
        match option.as_str() {
            "--runs" => request.runs = value.parse().with_context(|| format!("--runs {value}"))?,
            "--cpus" => request.cpus = value.parse().with_context(|| format!("--cpus {value}"))?,
            "--only" => request.only = Some(value),
            "--initrd" => request.initrd = Some(value.into()),
            "--firecracker" => request.firecracker = Some(value.into()),
            _ => bail!("{option} is not an option\n{USAGE}"),
        }
    }
    match bench.as_str() {
        "boot" => boot::run(&request),
        "start" => start::run(&request),
        "io" => io::run(&request),
        "restart" => restart::run(&request),
        floor::PART => floor::play(),
        _ => bail!("{bench} is not a bench\n{USAGE}"),
    }
}
