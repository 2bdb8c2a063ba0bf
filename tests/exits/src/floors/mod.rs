//! What this machine can do at best: two processes that tell each other something and wait for the answer, in every way there is,
//! each on one CPU and on two, at once and after the time for which the guest of the scenario idles.

pub(crate) mod peer;
mod ring;
mod signal;

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use cellblock_channel::socket;
use cellblock_wire::control::{Checked, CodecError};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::{Deserialize, Serialize};

use crate::guest::percentile;
use crate::scenario::Scenario;
use signal::Ends;
pub(crate) use signal::Way;

/// What the other process is to do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    way: Way,
    cpu: usize,
    rounds: u32,
}

impl Checked for Order {
    fn check(&self) -> Result<(), CodecError> {
        Ok(())
    }
}

/// One floor's 50th percentile in ns, by its name: `futex same cpu`, …
pub(crate) type Floors = BTreeMap<String, f64>;

/// Rounds without a pause of which one sample is made, where both spin: a clock's reading costs as much as a round.
const BATCH: u32 = 100;

/// The CPUs that this process may use.
pub(crate) fn cpus() -> Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect())
}

/// Binds this process to `cpus`.
pub(crate) fn bind(cpus: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    cpus.iter().for_each(|cpu| set.set(*cpu));
    sched_setaffinity(None, &set).with_context(|| format!("cannot be bound to the CPUs {cpus:?}"))
}

/// The floors that `scenario` is compared with.
///
/// # Errors
/// The other process cannot be started or asked.
pub(crate) fn measure(scenario: &Scenario) -> Result<Floors> {
    let all = cpus()?;
    let mut floors = Floors::new();
    if scenario.second_cpu() {
        return Ok(floors);
    }
    let (first, last) = (all.first().copied().unwrap_or(0), all.last().copied().unwrap_or(0));
    if first != last && !scenario.one_cpu {
        if scenario.idle == Duration::ZERO {
            floors.insert(
                "ping-pong".to_owned(),
                round_trip(Way::Spin, first, last, 20 * BATCH, Duration::ZERO)?,
            );
            floors.insert("ring, both spinning".to_owned(), ring::round_trip(first, last, 20 * BATCH)?);
        }
        for way in Way::SLEEPING {
            let rounds = scenario.floor_rounds();
            let name = format!("{} across CPUs", way.name());
            floors.insert(name, round_trip(way, first, last, rounds, scenario.idle)?);
        }
    }
    for way in Way::SLEEPING {
        let rounds = scenario.floor_rounds();
        let name = format!("{} on one CPU", way.name());
        floors.insert(name, round_trip(way, first, first, rounds, scenario.idle)?);
    }
    bind(&all)?;
    Ok(floors)
}

/// The median of `rounds` round trips between CPU `ours` and CPU `theirs`, each after `idle` of work; in ns.
fn round_trip(way: Way, ours: usize, theirs: usize, rounds: u32, idle: Duration) -> Result<f64> {
    let (mut near, far) = Ends::pair(way)?;
    let (control, stdin) = socket::pair()?;
    let stdin = stdin.as_fd().try_clone_to_owned()?;
    let mut command = Command::new(std::env::current_exe()?);
    let peer = watch(command.arg("floor-peer").stdin(Stdio::from(stdin)).spawn()?);
    let order = Order { way, cpu: theirs, rounds: rounds + 1 };
    control.send_message(&order, &far.descriptors())?;
    // The other process alone holds that end now, so that its death ends a read here.
    drop(far);
    bind(&[ours])?;
    // The first finds the other process ready.
    near.exchange()?;
    let mut samples = Vec::new();
    if way == Way::Spin {
        for _ in 0..rounds / BATCH {
            let start = Instant::now();
            for _ in 0..BATCH {
                near.exchange()?;
            }
            samples.push(start.elapsed().as_nanos() as f64 / f64::from(BATCH));
        }
    } else {
        for _ in 0..rounds {
            let busy = Instant::now();
            while busy.elapsed() < idle {
                std::hint::spin_loop();
            }
            let start = Instant::now();
            near.exchange()?;
            samples.push(start.elapsed().as_nanos() as f64);
        }
    }
    let _ = peer.join();
    samples.sort_by(f64::total_cmp);
    Ok(percentile(&samples, 50))
}

/// Ends this program if `child` ends otherwise than it should: who waits for it on a futex or spins would never know, and a wait
/// with an end would not be the cheapest. (The child is killed when this program ends.)
fn watch(mut child: Child) -> JoinHandle<()> {
    thread::spawn(move || match child.wait() {
        Ok(status) if status.success() => {}
        status => {
            eprintln!("cellblock-exits: the other process of a floor has ended: {status:?}");
            std::process::exit(2);
        }
    })
}
