//! cgroup v2: a group per VM and one per worker in it, with limits, where the host lets us make them
//! (Linux `Documentation/admin-guide/cgroup-v2.rst`).
//!
//! ```text
//! cellblock/            made by the first VM, and left; locked while groups are made and swept
//!   <vm>/               locked as long as the front lives; its cgroup.procs is the spawner's to write
//!     spawner/          the front clones the spawner into it
//!     <worker>/         the spawner clones the worker into it; its cgroup.procs is the spawner's to write
//! ```
//!
//! To clone into a group the caller must be allowed to write `cgroup.procs` there and in the nearest group above both
//! that and its own: hence the spawner lives beside its workers, and owns these files and nothing else.

mod hierarchy;
mod io;

use std::fs::{self, File};
use std::io::{Error, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use thiserror::Error;

pub use hierarchy::Hierarchy;
pub use io::{IoLimit, disk_of};

/// The spawner's group in its VM's; no worker is called so.
const SPAWNER: &str = "spawner";
/// How long a VM's processes may take to be gone once they are killed.
const PATIENCE: Duration = Duration::from_secs(1);

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
        source: Error,
    },
    /// A VM of that name has it.
    #[error("the group {0} belongs to another running VM; choose another --id")]
    InUse(PathBuf),
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

/// A VM's group. When dropped, what still runs in it is killed, and it is removed.
#[derive(Debug)]
pub struct VmGroup {
    path: PathBuf,
    /// The uid and gid that may move processes within it; `None`: its maker's.
    owner: Option<u32>,
    /// Its groups have the controller io.
    io: bool,
    /// Locked, so that no other front sweeps it away.
    _lock: File,
}

impl VmGroup {
    /// The group of init, into which the front clones it, and of the spawner: two processes.
    ///
    /// # Errors
    /// [`CgroupError::File`].
    pub fn spawner(&self) -> Result<OwnedFd, CgroupError> {
        self.hand_over(&self.path)?;
        let path = self.path.join(SPAWNER);
        make(&path)?;
        // Init and the spawner.
        write(&path.join("pids.max"), "2")?;
        descriptor(path)
    }

    /// A group for worker `name` with `limits`, and with those of `disks` where [`VmGroup::limits_disks`], as the descriptor that clone takes.
    ///
    /// # Errors
    /// [`CgroupError::File`].
    pub fn worker(
        &self,
        name: &str,
        limits: &GroupLimits,
        disks: &[IoLimit],
    ) -> Result<OwnedFd, CgroupError> {
        let path = self.path.join(name);
        make(&path)?;
        write(&path.join("memory.max"), &limits.memory.to_string())?;
        write(&path.join("pids.max"), &limits.pids.to_string())?;
        write(&path.join("cpu.max"), &format!("{} 100000", limits.cpu_us))?;
        // The kernel takes one disk at a time.
        for disk in disks.iter().filter(|_| self.io) {
            write(&self.io_max(name), &disk.to_string())?;
        }
        self.hand_over(&path)?;
        descriptor(path)
    }

    /// Whether the host lets its groups limit disks.
    pub fn limits_disks(&self) -> bool {
        self.io
    }

    /// The file that holds worker `name`'s limits of disks.
    pub fn io_max(&self, name: &str) -> PathBuf {
        self.path.join(name).join("io.max")
    }

    /// Lets the spawner put processes into `group`. It cannot change the group's limits.
    fn hand_over(&self, group: &Path) -> Result<(), CgroupError> {
        let path = group.join("cgroup.procs");
        chown(&path, self.owner, self.owner).map_err(|source| CgroupError::File { path, source })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for VmGroup {
    fn drop(&mut self) {
        // A kernel before 5.14 has no such file; there the pid namespace's end alone has to do.
        let _ = fs::write(self.path.join("cgroup.kill"), "1");
        remove_patiently(&self.path);
    }
}

/// For clone: a descriptor that can be used for nothing else.
fn descriptor(path: PathBuf) -> Result<OwnedFd, CgroupError> {
    const O_PATH: i32 = libc::O_PATH | libc::O_DIRECTORY;
    let opened = File::options().read(true).custom_flags(O_PATH).open(&path);
    opened.map(OwnedFd::from).map_err(|source| CgroupError::File { path, source })
}

fn make(path: &Path) -> Result<(), CgroupError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(CgroupError::File { path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

fn write(path: &Path, text: &str) -> Result<(), CgroupError> {
    fs::write(path, text).map_err(|source| CgroupError::File { path: path.to_owned(), source })
}

/// A group and those in it. False: it is in use.
fn remove(path: &Path) -> bool {
    for child in fs::read_dir(path).into_iter().flatten().flatten() {
        if child.file_type().is_ok_and(|kind| kind.is_dir()) {
            let _ = fs::remove_dir(child.path());
        }
    }
    !fs::remove_dir(path).is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY))
}

/// As [`remove`], waiting for killed processes to be gone.
fn remove_patiently(path: &Path) -> bool {
    let give_up = Instant::now() + PATIENCE;
    loop {
        if remove(path) {
            return true;
        }
        if Instant::now() >= give_up {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[cfg(test)]
mod tests;
