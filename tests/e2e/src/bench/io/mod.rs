//! How fast a guest's devices are, beside the rival's on the same kernel, image and set-up.
//!
//! Both VMs live at the same time, and one after the other is told to measure for a moment while the other idles. So both
//! meet the same machine, however busy it is: what counts is the ratio of two figures that stand side by side.

mod disk;
mod net;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use cellblock_e2e::{Places, Vm};

use crate::Request;
use crate::rival::Program;
use crate::sample::at_least;

/// What of the rival's throughput ours must have at least.
const RATIO: f64 = 0.95;
/// Rounds, unless the request says otherwise.
const ROUNDS: usize = 15;
/// How the VMs take orders: see scripts/guest/init.
const CMDLINE: &str = "console=ttyS0 reboot=k panic=-1 quiet cell.do=load,commands,reboot";

/// What a measured VM boots.
struct Images {
    kernel: PathBuf,
    /// With the guest's programs, which `scripts/bench` adds.
    initrd: PathBuf,
}

/// Measures; whether each of our figures is at least [`RATIO`] of the rival's, where there is one.
pub(crate) fn run(request: &Request) -> Result<bool> {
    let places = Places::find();
    let images =
        places.images.clone().context("no images here: run by `scripts/bench io`, in the emulated host")?;
    let initrd = request.initrd.clone().context("--initrd with the guest's programs is missing")?;
    let images = Images { kernel: images.join("vmlinux"), initrd };
    let mut programs = Vec::new();
    if places.program().exists() {
        programs.push(Program::Cellblock(places));
    }
    programs.extend(request.firecracker.clone().map(Program::Firecracker));
    ensure!(!programs.is_empty(), "neither cellblock nor firecracker is here");
    let wanted = |half| request.only.as_deref().is_none_or(|only| only == half);
    let disk = !wanted("disk") || disk::run(request, &programs, &images)?;
    let net = !wanted("net") || net::run(request, &programs, &images)?;
    Ok(disk && net)
}

/// A VM whose guest waits for orders.
struct Session {
    name: &'static str,
    vm: Vm,
    /// What `HOST` in a command is: the host's address on the VM's own network, if it has one.
    host: String,
}

impl Session {
    /// Has the guest run `command`, which tells `CELLBLOCK-IO bytes=N ns=N`: bytes per second.
    fn measure(&mut self, command: &str) -> Result<f64> {
        let command = &command.replace("HOST", &self.host);
        self.vm.type_in(&format!("{command}\n"))?;
        let told = self.vm.expect_line("CELLBLOCK-IO ")?;
        let number = |what: &str| -> Option<f64> {
            told.split_whitespace().find_map(|word| word.strip_prefix(what)?.parse().ok())
        };
        match (number("bytes="), number("ns=")) {
            (Some(bytes), Some(ns)) if bytes > 0.0 && ns > 0.0 => Ok(bytes / ns * 1e9),
            _ => anyhow::bail!("{}: {command} told {told:?}", self.name),
        }
    }

    fn end(mut self) -> Result<()> {
        self.vm.type_in("quit\n")?;
        let ended = self.vm.wait()?;
        ensure!(ended.code() == 0, "{} failed: {ended}", self.name);
        Ok(())
    }
}

/// Has each of `sessions` run `measures`, (what, command), in turn for some rounds; whether the first is fast enough beside
/// the second, if there is one.
fn compare(request: &Request, sessions: &mut [Session], measures: &[(&str, String)]) -> Result<bool> {
    let mut kept = true;
    for (what, command) in measures {
        let mut rates = vec![Figures::default(); sessions.len()];
        let mut ratios = Figures::default();
        for round in 0..if request.runs == 0 { ROUNDS } else { request.runs } {
            let mut now = vec![0.0; sessions.len()];
            for turn in 0..sessions.len() {
                // Whoever is second finds warmer caches: each is it every other time.
                let index = (turn + round) % sessions.len();
                now[index] = sessions[index].measure(command)?;
                rates[index].add(now[index]);
            }
            if let [ours, theirs] = now[..] {
                ratios.add(ours / theirs);
            }
        }
        for (session, rates) in sessions.iter().zip(&rates) {
            let [least, median, most] = [0, 50, 100].map(|percent| rates.percentile(percent) / 1e6);
            println!(
                "{:12} {what}: median {median:.2} MB/s (least {least:.2}, most {most:.2})",
                session.name
            );
        }
        if let [_, theirs] = sessions {
            let (low, high) = (ratios.percentile(25), ratios.percentile(75));
            println!("     quarters of the ratios of neighbours: {low:.3} and {high:.3}");
            kept &= at_least(&format!("{what} against {}", theirs.name), ratios.percentile(50), RATIO);
        }
    }
    Ok(kept)
}

/// Figures of one thing, sorted.
#[derive(Debug, Clone, Default)]
struct Figures(Vec<f64>);

impl Figures {
    fn add(&mut self, figure: f64) {
        let at = self.0.partition_point(|other| *other < figure);
        self.0.insert(at, figure);
    }

    /// The one that `percent` of all do not exceed; zero without any.
    fn percentile(&self, percent: usize) -> f64 {
        let last = self.0.len().saturating_sub(1);
        self.0.get(last * percent / 100).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_sorted_figures() {
        let mut figures = Figures::default();
        [5.0, 1.0, 3.0].into_iter().for_each(|figure| figures.add(figure));
        assert_eq!([0, 50, 100].map(|percent| figures.percentile(percent)), [1.0, 3.0, 5.0]);
    }
}
