//! What a VM may not leave behind: processes, mounts, sockets, memfds, cgroups.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// Which VMs a census counts: those of one test, so that others on the machine do not disturb it.
#[derive(Debug, Clone)]
pub struct Scope {
    /// The folder of this test's own copy of the programs.
    pub programs: PathBuf,
    /// What the ids of this test's VMs contain.
    pub id: String,
}

/// Everything on this machine that belongs to the VMs of a [`Scope`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Census {
    /// Processes whose executable is one of ours: pid and executable.
    pub processes: BTreeSet<String>,
    /// Abstract and named sockets of ours.
    pub sockets: BTreeSet<String>,
    /// cgroups of ours.
    pub cgroups: BTreeSet<String>,
    /// Number of mounts in this mount namespace.
    pub mounts: usize,
}

impl Scope {
    /// Counts now.
    pub fn census(&self) -> Census {
        let mut cgroups = BTreeSet::new();
        self.find_cgroups(Path::new("/sys/fs/cgroup"), &mut cgroups);
        Census {
            processes: self.processes(),
            sockets: self.sockets(),
            cgroups,
            mounts: lines("/proc/self/mounts").len(),
        }
    }

    /// Waits until nothing is there but what was there `before`, and nobody holds any of `memfds`.
    ///
    /// # Errors
    /// What is still there after `patience`, as text.
    pub fn wait_for(&self, before: &Census, memfds: &Memfds, patience: Duration) -> Result<(), String> {
        let deadline = Instant::now() + patience;
        loop {
            let (now, held) = (self.census(), memfds.held());
            if now == *before && held.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("left behind: before {before:#?}, now {now:#?}, memfds held {held:?}"));
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Processes whose executable is one of ours: pid and executable.
    pub fn processes(&self) -> BTreeSet<String> {
        let executable = |pid: i32| {
            let path = fs::read_link(format!("/proc/{pid}/exe")).ok()?.display().to_string();
            path.contains(&*self.programs.to_string_lossy()).then(|| format!("{pid} {path}"))
        };
        pids().into_iter().filter_map(executable).collect()
    }

    fn sockets(&self) -> BTreeSet<String> {
        let name = |line: String| line.split_whitespace().nth(7).map(str::to_owned);
        lines("/proc/net/unix").into_iter().filter_map(name).filter(|name| name.contains(&self.id)).collect()
    }

    fn find_cgroups(&self, folder: &Path, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if entry.file_name().to_string_lossy().contains(&self.id) {
                found.insert(entry.path().display().to_string());
            }
            self.find_cgroups(&entry.path(), found);
        }
    }
}

/// The memfds of a running VM, known by their inodes: one that is still held later was leaked.
#[derive(Debug, Clone, Default)]
pub struct Memfds(BTreeSet<(u64, u64)>);

impl Memfds {
    /// Those that the processes `pids` hold open.
    pub fn of(pids: &[i32]) -> Self {
        Memfds(pids.iter().flat_map(|pid| open_memfds(*pid)).map(|(inode, _)| inode).collect())
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Who holds any of them now.
    pub fn held(&self) -> Vec<String> {
        if self.0.is_empty() {
            return Vec::new();
        }
        let of_pid = |pid: i32| {
            open_memfds(pid).into_iter().map(move |(inode, name)| (inode, format!("{pid} {name}")))
        };
        pids()
            .into_iter()
            .flat_map(of_pid)
            .filter(|(inode, _)| self.0.contains(inode))
            .map(|(_, text)| text)
            .collect()
    }
}

fn open_memfds(pid: i32) -> Vec<((u64, u64), String)> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let memfd = |entry: fs::DirEntry| {
        let name = fs::read_link(entry.path()).ok()?.display().to_string();
        let data = name.starts_with("/memfd:").then(|| fs::metadata(entry.path()).ok())??;
        Some(((data.dev(), data.ino()), name))
    };
    entries.filter_map(memfd).collect()
}

fn pids() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn lines(path: &str) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, memfd_create};

    #[test]
    fn a_held_memfd_is_found_and_a_closed_one_is_not() {
        let memfd = memfd_create("leftovers-test", MemfdFlags::CLOEXEC).unwrap();
        let memfds = Memfds::of(&[std::process::id() as i32]);
        assert!(memfds.held().iter().any(|text| text.contains("leftovers-test")));
        drop(memfd);
        assert!(!memfds.held().iter().any(|text| text.contains("leftovers-test")));
    }

    #[test]
    fn a_running_program_is_in_the_census() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("sleep");
        fs::copy("/bin/sleep", &program).unwrap();
        let scope = Scope { programs: folder.path().to_owned(), id: "no-such-vm".into() };
        let before = scope.census();
        let mut child = std::process::Command::new(&program).arg("60").spawn().unwrap();
        assert_eq!(scope.census().processes.len(), 1);
        child.kill().unwrap();
        child.wait().unwrap();
        scope.wait_for(&before, &Memfds::default(), Duration::from_secs(5)).unwrap();
    }
}
