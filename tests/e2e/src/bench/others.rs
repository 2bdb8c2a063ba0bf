//! What else has run on this machine while something was measured: it explains figures, and changes none.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::time::Duration;

use cellblock_e2e::processes::{Process, descendants};

/// What `/proc/stat` counts in.
const TICK: Duration = Duration::from_millis(10);

/// How long each thread that is none of this program's has run.
#[derive(Debug)]
pub(crate) struct Others {
    threads: BTreeMap<i32, Duration>,
    stolen: Duration,
}

/// The one that ran longest.
#[derive(Debug, Clone)]
pub(crate) struct Busiest {
    pub(crate) ran: Duration,
    name: String,
    /// What the machine's own host took of all CPUs, as far as it tells.
    pub(crate) stolen: Duration,
}

impl Others {
    /// By now. Threads that this program and its children start later are taken for its own.
    pub(crate) fn now() -> Others {
        let own = std::process::id() as i32;
        let own: Vec<i32> = descendants(own).unwrap_or_default().into_iter().chain([own]).collect();
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let processes = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let threads = processes
            .filter(|pid| !own.contains(pid))
            .flat_map(|pid| Process(pid).threads().unwrap_or_default())
            .filter_map(|thread| Some((thread, ran(thread)?)));
        Others { threads: threads.collect(), stolen: stolen() }
    }

    /// Which of them has run longest since.
    pub(crate) fn busiest(&self) -> Busiest {
        let since = self.threads.iter().map(|(thread, before)| {
            (ran(*thread).map_or(Duration::ZERO, |now| now.saturating_sub(*before)), *thread)
        });
        let (ran, thread) = since.max().unwrap_or_default();
        let name = fs::read_to_string(format!("/proc/{thread}/comm")).unwrap_or_default();
        Busiest { ran, name: name.trim().to_owned(), stolen: stolen().saturating_sub(self.stolen) }
    }
}

impl fmt::Display for Busiest {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{} had {:.2?} of a CPU, the machine's host {:.0?}", self.name, self.ran, self.stolen)
    }
}

fn ran(thread: i32) -> Option<Duration> {
    let said = fs::read_to_string(format!("/proc/{thread}/schedstat")).ok()?;
    said.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

/// The eighth number of the first line: all CPUs'.
fn stolen() -> Duration {
    let said = fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks = said.split_whitespace().nth(8).and_then(|ticks| ticks.parse().ok());
    TICK * ticks.unwrap_or(0)
}
