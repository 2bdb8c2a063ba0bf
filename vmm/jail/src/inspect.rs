//! What a running process is really confined by, from the host's /proc: for tests and `ps --security`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::Serialize;

use crate::cores;
use crate::speculation::Speculation;

/// Soft and hard limit; `None` is unlimited.
pub type SoftHard = (Option<u64>, Option<u64>);

/// What /proc says about one process. Reading another uid's needs root, as reading one that is not dumpable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Inspection {
    /// As the host numbers it.
    pub pid: i32,
    /// The kernel's name for it.
    pub name: String,
    /// Host uids: real, effective, saved, filesystem.
    pub uids: [u32; 4],
    /// Host gids, likewise.
    pub gids: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Capability sets as bit masks: inheritable, permitted, effective, bounding, ambient.
    pub capabilities: [u64; 5],
    /// `no_new_privs` is set.
    pub no_new_privs: bool,
    /// 0 none, 2 a filter.
    pub seccomp: u32,
    /// How many filters.
    pub seccomp_filters: u32,
    /// Threads.
    pub threads: u32,
    /// Of each thread: as `seccomp_filters`.
    pub thread_filters: Vec<u32>,
    /// What of the processor's speculation is held back, by the kinds' names: in each thread's own words, each once.
    pub speculation: BTreeMap<&'static str, BTreeSet<String>>,
    /// The threads' core-scheduling cookies, each once; 0 is none. Empty where the kernel has no core scheduling.
    pub core_cookies: BTreeSet<u64>,
    /// The identity of each namespace, by its name: user, pid, mnt, net, ipc, uts, cgroup.
    pub namespaces: BTreeMap<String, String>,
    /// Open descriptors and what they refer to.
    pub descriptors: BTreeMap<u32, String>,
    /// Mounts in its namespace: mount point, file system type, options.
    pub mounts: Vec<Mount>,
    /// Soft and hard limits by the kernel's name; `None` is unlimited.
    pub limits: BTreeMap<String, SoftHard>,
    /// /proc/pid/cgroup.
    pub cgroup: String,
    /// Triples of uid_map: inside, outside (of the reader's namespace), count.
    pub uid_map: Vec<[u32; 3]>,
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mount {
    /// Where.
    pub point: String,
    /// tmpfs, ...
    pub kind: String,
    /// ro, nosuid, ...
    pub options: BTreeSet<String>,
}

/// Reads everything about `pid`.
///
/// # Errors
/// A file that cannot be read, with its path in the text: the process has ended, or is not ours to look at.
pub fn inspect(pid: i32) -> io::Result<Inspection> {
    let (found, unseen) = look(pid)?;
    match unseen.first() {
        None => Ok(found),
        Some(file) => {
            let text = format!("/proc/{pid}, {file}: it may not be looked at");
            Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
        }
    }
}

/// Reads what may be read about `pid`; what may not is empty, and the files of `/proc/pid` where it would be are named.
///
/// # Errors
/// As [`inspect`], but for what is not ours to look at.
pub fn look(pid: i32) -> io::Result<(Inspection, Vec<String>)> {
    let folder = PathBuf::from(format!("/proc/{pid}"));
    let read = |file: &str| named(&folder.join(file), fs::read_to_string(folder.join(file)));
    let status = Status::parse(&read("status")?);
    let mut unseen = Vec::new();
    let mut allowed = |file: &str, result: io::Result<BTreeMap<String, String>>| match result {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            unseen.push(file.to_owned());
            Ok(BTreeMap::new())
        }
        result => result,
    };
    let namespaces = allowed("ns", links(&folder.join("ns")))?;
    let descriptors = allowed("fd", links(&folder.join("fd")))?;
    let whole = |text: String| BTreeMap::from([(String::new(), text)]);
    let mounts = allowed("mountinfo", read("mountinfo").map(whole))?;
    let core_cookies = match cores::cookies(pid) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            unseen.push("core-scheduling cookies".to_owned());
            BTreeSet::new()
        }
        found => named(&folder, found)?,
    };
    let threads = threads(&folder)?;
    let found = Inspection {
        pid,
        name: status.text("Name"),
        uids: status.numbers("Uid"),
        gids: status.numbers("Gid"),
        groups: status.text("Groups").split_whitespace().filter_map(|word| word.parse().ok()).collect(),
        capabilities: ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]
            .map(|key| u64::from_str_radix(&status.text(key), 16).unwrap_or(u64::MAX)),
        no_new_privs: status.number("NoNewPrivs") == 1,
        seccomp: status.number("Seccomp"),
        seccomp_filters: status.number("Seccomp_filters"),
        threads: status.number("Threads"),
        thread_filters: threads.iter().map(|thread| thread.number("Seccomp_filters")).collect(),
        speculation: Speculation::ALL.map(|kind| (kind.name(), held(&threads, kind))).into(),
        core_cookies,
        namespaces: namespaces.into_iter().filter(|(name, _)| !name.ends_with("_for_children")).collect(),
        descriptors: descriptors
            .into_iter()
            .filter_map(|(name, target)| Some((name.parse().ok()?, target)))
            .collect(),
        mounts: mounts.values().flat_map(|text| text.lines()).filter_map(mount).collect(),
        limits: read("limits")?.lines().skip(1).filter_map(limit).collect(),
        cgroup: read("cgroup")?,
        uid_map: read("uid_map")?.lines().filter_map(triple).collect(),
    };
    Ok((found, unseen))
}

/// Of each thread that has not ended meanwhile.
fn threads(folder: &Path) -> io::Result<Vec<Status>> {
    let threads = named(folder, fs::read_dir(folder.join("task")))?;
    let texts = threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("status")).ok());
    Ok(texts.map(|text| Status::parse(&text)).collect())
}

/// What `threads` say of this speculation.
fn held(threads: &[Status], kind: Speculation) -> BTreeSet<String> {
    threads.iter().map(|thread| thread.text(kind.key())).filter(|text| !text.is_empty()).collect()
}

/// `/proc/pid/status` by key.
struct Status(BTreeMap<String, String>);

impl Status {
    fn parse(text: &str) -> Status {
        let fields = text.lines().filter_map(|line| line.split_once(':'));
        Status(fields.map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect())
    }

    fn text(&self, key: &str) -> String {
        self.0.get(key).cloned().unwrap_or_default()
    }

    fn number(&self, key: &str) -> u32 {
        self.text(key).parse().unwrap_or(0)
    }

    fn numbers(&self, key: &str) -> [u32; 4] {
        let text = self.text(key);
        let mut words = text.split_whitespace().map(|word| word.parse().unwrap_or(u32::MAX));
        [(); 4].map(|()| words.next().unwrap_or(u32::MAX))
    }
}

fn named<T>(path: &Path, result: io::Result<T>) -> io::Result<T> {
    result.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

fn links(folder: &Path) -> io::Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for entry in named(folder, fs::read_dir(folder))? {
        let entry = entry?;
        // A descriptor may have been closed meanwhile.
        if let Ok(target) = fs::read_link(entry.path()) {
            found.insert(
                entry.file_name().to_string_lossy().into_owned(),
                target.to_string_lossy().into_owned(),
            );
        }
    }
    Ok(found)
}

/// `36 35 98:0 /root /point rw,noatime shared:1 - ext3 /dev/root rw` (proc_pid_mountinfo(5)).
fn mount(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let mut fields = before.split(' ').skip(4);
    let point = fields.next()?.to_owned();
    let options = fields.next()?.split(',').map(str::to_owned).collect();
    Some(Mount { point, kind: after.split(' ').next()?.to_owned(), options })
}

/// `Max open files            1024                 4096                 files`
fn limit(line: &str) -> Option<(String, SoftHard)> {
    let (name, rest) = line.split_at_checked(26)?;
    let mut words = rest.split_whitespace().map(|word| word.parse().ok());
    Some((name.trim().to_owned(), (words.next()?, words.next()?)))
}

fn triple(line: &str) -> Option<[u32; 3]> {
    let mut words = line.split_whitespace().filter_map(|word| word.parse().ok());
    Some([words.next()?, words.next()?, words.next()?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_read() {
        let own = inspect(std::process::id() as i32).unwrap();
        assert_eq!(own.uids[1], crate::sys::own_ids().0);
        assert!(own.namespaces["user"].starts_with("user:["), "{:?}", own.namespaces);
        assert!(own.descriptors.contains_key(&1));
        assert!(own.mounts.iter().any(|mount| mount.point == "/proc" && mount.kind == "proc"));
        assert!(own.limits["Max open files"].1.unwrap() > 16, "{:?}", own.limits);
        assert!(!own.uid_map.is_empty());
        let words: Vec<_> = own.speculation.values().map(BTreeSet::len).collect();
        assert_eq!(words, [1, 1], "{:?}", own.speculation);
    }

    #[test]
    fn a_process_that_is_gone_is_named() {
        assert!(inspect(i32::MAX).unwrap_err().to_string().contains("/proc/2147483647/status"));
    }
}
