//! A VM's processes, and what `/proc` says of each.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// One row of `cellblock ps --json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Row {
    /// `front`, `supervisor`, `spawner` or the device's name.
    pub process: String,
    /// Its pid in the host's pid namespace.
    pub pid: i32,
    /// `starting`, `serving`, `dying` or `gone`, of a worker; `running`, of the others.
    pub state: String,
    /// How often it had to be replaced, of a worker.
    #[serde(default)]
    pub restarts: Option<u32>,
    /// How often another binary has taken over, of a worker.
    #[serde(default)]
    pub upgrades: Option<u32>,
    /// Accesses served, of a worker.
    #[serde(default)]
    pub exits: Option<u64>,
    /// Requests in virtqueues that were done, of a worker.
    #[serde(default)]
    pub requests: Option<u64>,
    /// Bytes that the guest was given, by a worker.
    #[serde(default)]
    pub bytes_to_guest: Option<u64>,
    /// Bytes that the guest gave, to a worker.
    #[serde(default)]
    pub bytes_from_guest: Option<u64>,
    /// Processes that wait to take its place, of a worker.
    #[serde(default)]
    pub spares: Option<u32>,
    /// How a worker's device was last without one.
    #[serde(default)]
    pub last_pause: Option<Pause>,
    /// Proportional set size without guest memory.
    #[serde(default)]
    pub memory_kib: Option<u64>,
    /// Sandbox layers in force.
    #[serde(default)]
    pub layers: Vec<String>,
}

/// From a worker's end, as it was noticed, to its successor's service, step by step.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Pause {
    /// In ns of `CLOCK_MONOTONIC`.
    pub noticed_ns: u64,
    /// In µs, as all steps.
    pub reap_us: u64,
    /// 0 with a spare, as the next one.
    pub spawn_us: u64,
    /// The way into the jail.
    pub sandbox_us: u64,
    /// From the exec, or with a spare from the reaping, to service.
    pub restore_us: u64,
    /// The successor had been waiting.
    pub spare: bool,
}

/// All processes of one VM.
#[derive(Debug, Clone, Deserialize)]
pub struct Tree {
    /// The VM's name.
    pub id: String,
    /// In the order of `ps`.
    pub processes: Vec<Row>,
}

impl Tree {
    /// Asks `program ps`.
    ///
    /// # Errors
    /// It fails, prints something else, or knows no such VM.
    pub fn of_vm(program: &Path, id: &str) -> Result<Self> {
        let output = Command::new(program).args(["ps", id, "--json"]).output().context("cellblock ps")?;
        if !output.status.success() {
            bail!("cellblock ps: {}", String::from_utf8_lossy(&output.stderr));
        }
        let mut vms: Vec<Tree> = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("cellblock ps printed {}", String::from_utf8_lossy(&output.stdout)))?;
        vms.pop().with_context(|| format!("cellblock ps does not know {id}"))
    }

    /// Whether every device is answered for: a guest runs, and writes, while those that it has not asked for yet still start.
    pub fn serves(&self) -> bool {
        self.processes.iter().all(|row| matches!(&*row.state, "serving" | "running" | "failed"))
    }

    /// The pid of the process called `name`.
    ///
    /// # Errors
    /// There is none.
    pub fn pid(&self, name: &str) -> Result<i32> {
        let row = self.processes.iter().find(|row| row.process == name);
        Ok(row.with_context(|| format!("no process {name} in {:?}", self.processes))?.pid)
    }

    /// All pids.
    pub fn pids(&self) -> Vec<i32> {
        self.processes.iter().map(|row| row.pid).collect()
    }
}

/// What `/proc/<pid>` says.
#[derive(Debug, Clone, Copy)]
pub struct Process(pub i32);

impl Process {
    fn path(self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.0))
    }

    /// A field of `/proc/<pid>/status`.
    ///
    /// # Errors
    /// The process is gone, or there is no such field.
    pub fn status(self, field: &str) -> Result<String> {
        let text = fs::read_to_string(self.path("status"))?;
        let found = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        Ok(found.with_context(|| format!("/proc/{}/status has no {field}", self.0))?.trim().to_owned())
    }

    /// The namespace of `kind` (`user`, `pid`, `mnt`, …) as the kernel names it.
    ///
    /// # Errors
    /// The process is gone.
    pub fn namespace(self, kind: &str) -> io::Result<String> {
        Ok(fs::read_link(self.path("ns").join(kind))?.display().to_string())
    }

    /// What its file descriptors lead to, as `/proc` names them.
    ///
    /// # Errors
    /// The process is gone.
    pub fn files(self) -> io::Result<Vec<String>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(self.path("fd"))? {
            files.push(fs::read_link(entry?.path())?.display().to_string());
        }
        files.sort();
        Ok(files)
    }

    /// Its mounts: `(mount point, file system type, options)`.
    ///
    /// # Errors
    /// The process is gone.
    pub fn mounts(self) -> io::Result<Vec<(String, String, String)>> {
        let text = fs::read_to_string(self.path("mounts"))?;
        let line = |line: &str| {
            let mut words = line.split(' ').skip(1).map(str::to_owned);
            Some((words.next()?, words.next()?, words.next()?))
        };
        Ok(text.lines().filter_map(line).collect())
    }

    /// A soft limit of `/proc/<pid>/limits`, such as `Max core file size`.
    ///
    /// # Errors
    /// The process is gone, or there is no such limit.
    pub fn limit(self, name: &str) -> Result<String> {
        let text = fs::read_to_string(self.path("limits"))?;
        let rest = text.lines().find_map(|line| line.strip_prefix(name));
        let soft = rest.and_then(|rest| rest.split_whitespace().next()).map(str::to_owned);
        soft.with_context(|| format!("/proc/{}/limits has no {name}", self.0))
    }

    /// Its threads' ids.
    ///
    /// # Errors
    /// The process is gone.
    pub fn threads(self) -> io::Result<Vec<i32>> {
        fs::read_dir(self.path("task"))?
            .map(|entry| entry?.file_name().to_string_lossy().parse().map_err(io::Error::other))
            .collect()
    }

    /// The CPU time that its threads have used.
    ///
    /// # Errors
    /// The process is gone.
    pub fn cpu_time(self) -> Result<Duration> {
        let mut total = 0;
        for thread in self.threads()? {
            // First field: nanoseconds on a CPU (Documentation/scheduler/sched-stats.rst).
            let text = fs::read_to_string(self.path("task").join(thread.to_string()).join("schedstat"))?;
            total += text.split(' ').next().context("schedstat is empty")?.parse::<u64>()?;
        }
        Ok(Duration::from_nanos(total))
    }

    /// Proportional set size in KiB without guest RAM: without mappings of at least `guest_bytes`, and of Cellblock's memfd.
    ///
    /// # Errors
    /// The process is gone, or not ours to read.
    pub fn overhead_kib(self, guest_bytes: u64) -> Result<u64> {
        let mut total = 0;
        let mut counted = false;
        for line in fs::read_to_string(self.path("smaps"))?.lines() {
            let (first, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            if let Some((start, end)) = first.split_once('-') {
                let size = u64::from_str_radix(end, 16)? - u64::from_str_radix(start, 16)?;
                counted = size < guest_bytes && !rest.contains("cellblock-guest-ram");
            } else if counted && first == "Pss:" {
                total += rest.trim().trim_end_matches(" kB").parse::<u64>()?;
            }
        }
        Ok(total)
    }

    /// Whether it is there and not a zombie.
    pub fn alive(self) -> bool {
        self.status("State").is_ok_and(|state| !state.starts_with('Z') && !state.starts_with('X'))
    }
}

/// The pids whose parent chain leads to `ancestor`.
///
/// # Errors
/// `/proc` cannot be read.
pub fn descendants(ancestor: i32) -> io::Result<Vec<i32>> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if let Ok(parent) = Process(pid).status("PPid") {
            parents.push((pid, parent.parse::<i32>().unwrap_or(0)));
        }
    }
    let mut found = vec![ancestor];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    found.remove(0);
    Ok(found)
}
