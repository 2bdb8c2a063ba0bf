//! Where VMs' groups can be made, and making and sweeping them.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use super::{CgroupError, VmGroup, make, remove, remove_patiently, write};

/// What we limit, so what the parent must delegate. Where it delegates [`IO`] too, that is used.
const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];
/// Limits disks.
const IO: &str = "io";
/// The group that holds all our VMs'.
const OURS: &str = "cellblock";
/// The group that the front moves to, so that the one it was in may have groups with limits in it.
const FRONT: &str = "cellblock-front";

/// The group under which VMs' groups are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    parent: PathBuf,
    path: PathBuf,
}

impl Hierarchy {
    /// Finds one, and changes nothing: as root the whole hierarchy, as a user the group that this process is in, if that
    /// is the user's and nobody else's process is in it (`systemd-run --user --scope -p Delegate=yes`).
    ///
    /// # Errors
    /// [`CgroupError::Absent`] where there is none.
    pub fn find() -> Result<Hierarchy, CgroupError> {
        let mounts = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let root = crate::sys::own_ids().0 == 0;
        Hierarchy::find_under(&mounts, &own, root)
    }

    pub(super) fn find_under(mounts: &[&Path], own: &str, root: bool) -> Result<Hierarchy, CgroupError> {
        let mount = mounts
            .iter()
            .find(|mount| mount.join("cgroup.controllers").exists())
            .ok_or_else(|| CgroupError::Absent("no cgroup v2 is mounted (only v1?)".to_owned()))?;
        let parent = if root {
            mount.to_path_buf()
        } else {
            let path = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
            mount.join(path.trim_start_matches('/'))
        };
        let offered = fs::read_to_string(parent.join("cgroup.controllers")).unwrap_or_default();
        let missing: Vec<&str> = CONTROLLERS.into_iter().filter(|name| !names(&offered, name)).collect();
        if !missing.is_empty() {
            let what = format!("{} lacks {} (v1 may hold them)", parent.display(), missing.join(", "));
            return Err(CgroupError::Absent(what));
        }
        let hierarchy = Hierarchy { path: parent.join(OURS), parent };
        hierarchy.check()?;
        Ok(hierarchy)
    }

    /// Whether [`Hierarchy::vm`] will be let.
    fn check(&self) -> Result<(), CgroupError> {
        let parent = self.parent.display();
        let absent = |why: String| Err(CgroupError::Absent(why));
        if !crate::sys::may_write(&self.parent) {
            return absent(format!("{parent} is not this user's"));
        }
        if handed_down(&self.parent, &CONTROLLERS) {
            return Ok(());
        }
        if !crate::sys::may_write(&self.parent.join("cgroup.subtree_control")) {
            return absent(format!("{parent} is not this user's"));
        }
        // The kernel lets the root group alone have both processes and groups with limits.
        let is_root_group = !self.parent.join("cgroup.type").exists();
        if is_root_group || self.strangers() == 0 {
            Ok(())
        } else {
            absent(format!("{parent} has other processes in it"))
        }
    }

    /// How many processes other than this one are in the parent group.
    fn strangers(&self) -> usize {
        let own = std::process::id().to_string();
        let all = fs::read_to_string(self.parent.join("cgroup.procs")).unwrap_or_default();
        all.lines().filter(|pid| *pid != own).count()
    }

    /// Makes the group of VM `id`, whose spawner has the host uid and gid `spawner` (`None`: the caller's), after removing
    /// groups of VMs that are gone.
    ///
    /// # Errors
    /// [`CgroupError::File`]; [`CgroupError::InUse`] if another front has one of that name.
    pub fn vm(&self, id: &str, spawner: Option<u32>) -> Result<VmGroup, CgroupError> {
        let io = self.hand_down()?;
        let lock = open(&self.path)?;
        lock.lock().map_err(|source| CgroupError::File { path: self.path.clone(), source })?;
        self.remove_stale();
        let path = self.path.join(id);
        // One left by a front that was killed just now: its processes are about to end.
        if path.exists() && !(unlocked(&path) && remove_patiently(&path)) {
            return Err(CgroupError::InUse(path));
        }
        make(&path)?;
        let own = open(&path)?;
        own.lock().map_err(|source| CgroupError::File { path: path.clone(), source })?;
        let io = enable(&path, io)?;
        Ok(VmGroup { path, owner: spawner, io, _lock: own })
    }

    /// Whether disks can be limited, too.
    pub fn offers_io(&self) -> bool {
        let offered = fs::read_to_string(self.parent.join("cgroup.controllers")).unwrap_or_default();
        names(&offered, IO)
    }

    /// Makes our group and hands the controllers down to it; whether io is among them.
    fn hand_down(&self) -> Result<bool, CgroupError> {
        if !handed_down(&self.parent, &CONTROLLERS) {
            let is_root_group = !self.parent.join("cgroup.type").exists();
            if !is_root_group {
                let leaf = self.parent.join(FRONT);
                make(&leaf)?;
                write(&leaf.join("cgroup.procs"), "0")?;
            }
        }
        let io = enable(&self.parent, self.offers_io())?;
        make(&self.path)?;
        enable(&self.path, io)
    }

    /// Removes every VM's group that no front has and that has no process in it (else the kernel refuses).
    fn remove_stale(&self) {
        for group in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            if group.file_type().is_ok_and(|kind| kind.is_dir()) && unlocked(&group.path()) {
                remove(&group.path());
            }
        }
    }
}

fn open(path: &Path) -> Result<File, CgroupError> {
    File::open(path).map_err(|source| CgroupError::File { path: path.to_owned(), source })
}

/// Whether no front has the group at `path`.
fn unlocked(path: &Path) -> bool {
    match File::open(path) {
        Ok(group) => !matches!(group.try_lock(), Err(TryLockError::WouldBlock)),
        Err(_) => true,
    }
}

fn names(list: &str, name: &str) -> bool {
    list.split_whitespace().any(|word| word == name)
}

/// Whether groups in `group` have all `controllers` already.
fn handed_down(group: &Path, controllers: &[&str]) -> bool {
    let enabled = fs::read_to_string(group.join("cgroup.subtree_control")).unwrap_or_default();
    controllers.iter().all(|name| names(&enabled, name))
}

/// Gives groups in `group` all controllers, and `io` if it is wanted and can be had; whether that is so.
fn enable(group: &Path, io: bool) -> Result<bool, CgroupError> {
    let path = group.join("cgroup.subtree_control");
    let hand = |controllers: &[&str]| {
        let words: Vec<_> = controllers.iter().map(|name| format!("+{name}")).collect();
        if handed_down(group, controllers) { Ok(()) } else { write(&path, &words.join(" ")) }
    };
    let [memory, pids, cpu] = CONTROLLERS;
    if io && hand(&[memory, pids, cpu, IO]).is_ok() {
        return Ok(true);
    }
    hand(&CONTROLLERS)?;
    Ok(false)
}
