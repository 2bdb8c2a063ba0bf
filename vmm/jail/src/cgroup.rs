//! cgroup v2: a group per VM and one per worker in it, with limits, where the host lets us make them
//! (Linux `Documentation/admin-guide/cgroup-v2.rst`).

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// What we limit, so what the parent must delegate.
const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];
/// The group that holds all our VMs'.
const OURS: &str = "cellblock";

/// cgroups cannot be used.
#[derive(Debug, Error)]
pub enum CgroupError {
    /// There is none to use: the layer is absent on this host.
    #[error("no cgroup v2 with the controllers memory, pids and cpu is delegated to us: {0}")]
    Absent(String),
    /// A file of the hierarchy.
    #[error("cgroup file {path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Limits of one group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupLimits {
    /// Bytes of memory, page cache included.
    pub memory: u64,
    /// Processes and threads.
    pub pids: u64,
    /// CPU time in µs per 100 ms; 100000 is one CPU.
    pub cpu_us: u64,
}

/// The group under which VMs' groups are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    path: PathBuf,
}

impl Hierarchy {
    /// Finds one: as root the whole hierarchy, as a user the group that this process is in, if it is the user's.
    ///
    /// # Errors
    /// [`CgroupError::Absent`] where there is none.
    pub fn find() -> Result<Hierarchy, CgroupError> {
        let mounts = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let root = crate::sys::own_ids().0 == 0;
        Hierarchy::find_under(&mounts, &own, root)
    }

    fn find_under(mounts: &[&Path], own: &str, root: bool) -> Result<Hierarchy, CgroupError> {
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
        let missing: Vec<&str> = CONTROLLERS
            .into_iter()
            .filter(|name| !offered.split_whitespace().any(|word| word == *name))
            .collect();
        if !missing.is_empty() {
            let what = format!("{} lacks {} (v1 may hold them)", parent.display(), missing.join(", "));
            return Err(CgroupError::Absent(what));
        }
        let hierarchy = Hierarchy { path: parent.join(OURS) };
        match hierarchy.prepare(&parent) {
            Ok(()) => Ok(hierarchy),
            Err(error) => Err(CgroupError::Absent(error.to_string())),
        }
    }

    /// Makes our group and hands the controllers down to it.
    fn prepare(&self, parent: &Path) -> Result<(), CgroupError> {
        enable(parent)?;
        make(&self.path)?;
        enable(&self.path)
    }

    /// The group of VM `id` (made if need be), after removing groups of VMs that are gone.
    ///
    /// # Errors
    /// [`CgroupError::File`].
    pub fn vm(&self, id: &str) -> Result<VmGroup, CgroupError> {
        self.remove_stale();
        let path = self.path.join(id);
        make(&path)?;
        enable(&path)?;
        Ok(VmGroup { path })
    }

    /// Removes every VM's group without a process in it. One that is in use cannot be removed, so nothing is checked.
    fn remove_stale(&self) {
        for group in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            remove(&group.path());
        }
    }
}

/// A VM's group; removed, with its workers', when dropped (the processes must have ended).
#[derive(Debug)]
pub struct VmGroup {
    path: PathBuf,
}

impl VmGroup {
    /// A group for worker `name` with `limits`, as the descriptor that clone takes.
    ///
    /// # Errors
    /// [`CgroupError::File`].
    pub fn worker(&self, name: &str, limits: &GroupLimits) -> Result<OwnedFd, CgroupError> {
        let path = self.path.join(name);
        make(&path)?;
        write(&path.join("memory.max"), &limits.memory.to_string())?;
        write(&path.join("pids.max"), &limits.pids.to_string())?;
        write(&path.join("cpu.max"), &format!("{} 100000", limits.cpu_us))?;
        File::open(&path).map(OwnedFd::from).map_err(|source| CgroupError::File { path, source })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for VmGroup {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

fn enable(group: &Path) -> Result<(), CgroupError> {
    let path = group.join("cgroup.subtree_control");
    let enabled = fs::read_to_string(&path).unwrap_or_default();
    if CONTROLLERS.iter().all(|name| enabled.split_whitespace().any(|word| word == *name)) {
        return Ok(());
    }
    write(&path, &CONTROLLERS.map(|name| format!("+{name}")).join(" "))
}

fn make(path: &Path) -> Result<(), CgroupError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(CgroupError::File { path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

fn write(path: &Path, text: &str) -> Result<(), CgroupError> {
    fs::write(path, text).map_err(|source| CgroupError::File { path: path.to_owned(), source })
}

/// A group and those in it. Failure means that it is in use, or gone.
fn remove(path: &Path) {
    for child in fs::read_dir(path).into_iter().flatten().flatten() {
        if child.file_type().is_ok_and(|kind| kind.is_dir()) {
            let _ = fs::remove_dir(child.path());
        }
    }
    let _ = fs::remove_dir(path);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fake(controllers: &str) -> tempfile::TempDir {
        let mount = tempfile::tempdir().unwrap();
        fs::write(mount.path().join("cgroup.controllers"), controllers).unwrap();
        mount
    }

    #[test]
    fn limits_are_written_where_the_host_delegates() {
        let mount = fake("cpuset cpu io memory pids\n");
        let hierarchy = Hierarchy::find_under(&[Path::new("/nowhere"), mount.path()], "", true).unwrap();
        let vm = hierarchy.vm("vm-1").unwrap();
        let limits = GroupLimits { memory: 1 << 20, pids: 3, cpu_us: 50_000 };
        vm.worker("serial", &limits).unwrap();
        let read = |file: &str| fs::read_to_string(vm.path().join("serial").join(file)).unwrap();
        assert_eq!(read("memory.max"), "1048576");
        assert_eq!(read("pids.max"), "3");
        assert_eq!(read("cpu.max"), "50000 100000");
        let handed_down = fs::read_to_string(mount.path().join("cellblock/cgroup.subtree_control")).unwrap();
        assert_eq!(handed_down, "+memory +pids +cpu");
    }

    #[test]
    fn a_user_gets_the_group_that_it_is_in() {
        let mount = fake("memory pids cpu");
        let own = mount.path().join("user.slice/me");
        fs::create_dir_all(&own).unwrap();
        fs::write(own.join("cgroup.controllers"), "memory pids cpu").unwrap();
        let hierarchy =
            Hierarchy::find_under(&[mount.path()], "1:name=systemd:/x\n0::/user.slice/me\n", false).unwrap();
        assert_eq!(hierarchy.path, own.join("cellblock"));
    }

    #[test]
    fn a_host_without_says_what_it_lacks() {
        let none = Hierarchy::find_under(&[Path::new("/nowhere")], "", true).unwrap_err();
        assert!(none.to_string().contains("only v1"), "{none}");
        let mount = fake("cpu");
        let partial = Hierarchy::find_under(&[mount.path()], "", true).unwrap_err();
        assert!(partial.to_string().contains("lacks memory, pids"), "{partial}");
    }
}
