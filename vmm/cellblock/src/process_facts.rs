//! What the kernel says of a process: its memory, and which sandbox layers it is in.

use std::fs;

use serde::Serialize;

/// Facts from `/proc/<pid>`; what this user may not read is absent.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Facts {
    /// The effective uid, as this process sees it.
    pub uid: Option<u32>,
    /// Proportional set size without guest memory where it may be read, else the resident set size, in KiB.
    pub memory_kib: Option<u64>,
    /// CPU time of all its threads, in ms.
    pub cpu_ms: Option<u64>,
    /// Sandbox layers, by what the kernel reports.
    pub layers: Vec<&'static str>,
}

const NAMESPACES: [(&str, &str); 6] =
    [("user", "user"), ("pid", "pid"), ("mnt", "mount"), ("net", "net"), ("ipc", "ipc"), ("uts", "uts")];

impl Facts {
    /// The facts about `pid`.
    pub(crate) fn of(pid: i32) -> Self {
        let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { return Facts::default() };
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
        let hex = |name| field(name).and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
        let mut layers = namespaces(pid);
        if hex("CapPrm") == Some(0) && hex("CapBnd") == Some(0) {
            layers.push("caps");
        }
        if field("NoNewPrivs") == Some("1") {
            layers.push("no-new-privs");
        }
        if field("Seccomp") == Some("2") {
            layers.push("seccomp");
        }
        let resident = || field("VmRSS")?.trim_end_matches(" kB").trim().parse().ok();
        Facts {
            uid: field("Uid").and_then(|text| text.split_whitespace().nth(1)?.parse().ok()),
            memory_kib: proportional(pid).or_else(resident),
            cpu_ms: cpu_ms(pid),
            layers,
        }
    }
}

/// The processes that `pid` has started, those among them that have ended and that nobody has asked after, too.
pub(crate) fn children(pid: i32) -> Vec<i32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    let pids = |list: String| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>();
    lists.flat_map(pids).collect()
}

/// The kernel's name for `pid`, unless it has ended.
pub(crate) fn name_if_alive(pid: i32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (start, fields) = stat.rsplit_once(')')?;
    let (_, name) = start.split_once('(')?;
    (!fields.trim_start().starts_with(['Z', 'X'])).then(|| name.to_owned())
}

/// User and system time of `pid`, from fields 14 and 15 of its stat (proc(5)), which count in ticks.
fn cpu_ms(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in field 2 may have blanks, and ends with the last parenthesis.
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks = |field: usize| fields.split_whitespace().nth(field - 3)?.parse::<u64>().ok();
    let total = ticks(14)?.saturating_add(ticks(15)?);
    Some(total.saturating_mul(1000) / rustix::param::clock_ticks_per_second().max(1))
}

/// The namespaces that `pid` does not share with this process.
fn namespaces(pid: i32) -> Vec<&'static str> {
    let differs = |kind: &str| {
        let own = fs::read_link(format!("/proc/self/ns/{kind}")).ok()?;
        let other = fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok()?;
        Some(own != other)
    };
    NAMESPACES.iter().filter(|(kind, _)| differs(kind) == Some(true)).map(|(_, name)| *name).collect()
}

/// The proportional set size less the shared memory that guest RAM is, in KiB.
fn proportional(pid: i32) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let field = |name: &str| -> Option<u64> {
        rollup.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse().ok())
    };
    Some(field("Pss:")?.saturating_sub(field("Pss_Shmem:").unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_about_oneself_are_complete() {
        let facts = Facts::of(std::process::id() as i32);
        assert_eq!(facts.uid, Some(rustix::process::geteuid().as_raw()));
        assert!(facts.memory_kib.is_some_and(|kib| kib > 100));
        assert!(facts.cpu_ms.is_some());
        assert!(!facts.layers.contains(&"user"));
    }

    #[test]
    fn children_are_found_while_they_live() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id() as i32;
        assert!(children(std::process::id() as i32).contains(&pid));
        assert!(name_if_alive(pid).is_some());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(name_if_alive(pid), None);
    }

    #[test]
    fn nothing_is_known_of_nobody() {
        assert!(Facts::of(-1).uid.is_none());
    }
}
