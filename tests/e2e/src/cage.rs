//! Control groups of a test's own, in which processes get little or nothing.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Where cgroups are.
const ROOT: &str = "/sys/fs/cgroup";

/// One group; who is in it is let out when it is dropped.
#[derive(Debug)]
pub struct Cage {
    folder: PathBuf,
    /// The top of its hierarchy.
    top: PathBuf,
    freezes: bool,
}

impl Cage {
    /// A group whose processes share a CPU among themselves by their priorities, and get `quota` in each 100 ms (at least 1 ms).
    ///
    /// # Errors
    /// Why there is none: no such controller, or not ours to use.
    pub fn of_cpu(name: &str, quota: Option<std::time::Duration>) -> Result<Cage> {
        let v1 = Path::new(ROOT).join("cpu");
        let cage = if v1.is_dir() {
            Cage::make(v1, name, false)?
        } else {
            fs::write(Path::new(ROOT).join("cgroup.subtree_control"), "+cpu")
                .context("the cpu controller")?;
            Cage::make(ROOT.into(), name, false)?
        };
        if let Some(quota) = quota {
            let quota = quota.as_micros();
            match cage.folder.join("cpu.cfs_quota_us") {
                v1 if v1.exists() => fs::write(v1, quota.to_string())?,
                _ => fs::write(cage.folder.join("cpu.max"), format!("{quota} 100000"))?,
            }
        }
        Ok(cage)
    }

    /// A group whose processes can be kept in uninterruptible sleep, which the freezer of cgroup v2 does not do.
    ///
    /// # Errors
    /// As above.
    pub fn of_ice(name: &str) -> Result<Cage> {
        Cage::make(Path::new(ROOT).join("freezer"), name, true)
    }

    fn make(top: PathBuf, name: &str, freezes: bool) -> Result<Cage> {
        let folder = top.join(format!("cellblock-test-{name}-{}", std::process::id()));
        fs::create_dir(&folder).with_context(|| folder.display().to_string())?;
        Ok(Cage { folder, top, freezes })
    }

    /// Puts process `pid` in.
    ///
    /// # Errors
    /// The kernel's.
    pub fn take(&self, pid: i32) -> Result<()> {
        fs::write(self.folder.join("cgroup.procs"), pid.to_string()).with_context(|| format!("{self:?}"))
    }

    /// Freezes those in it, or lets them go on.
    ///
    /// # Errors
    /// The kernel's.
    pub fn freeze(&self, freeze: bool) -> Result<()> {
        let state = if freeze { "FROZEN" } else { "THAWED" };
        fs::write(self.folder.join("freezer.state"), state).with_context(|| format!("{self:?}"))
    }

    /// Lets all out.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(&self) -> Result<()> {
        for pid in fs::read_to_string(self.folder.join("cgroup.procs"))?.lines() {
            // One that has ended needs no help.
            let _ = fs::write(self.top.join("cgroup.procs"), pid);
        }
        Ok(())
    }
}

impl Drop for Cage {
    fn drop(&mut self) {
        if self.freezes {
            let _ = self.freeze(false);
        }
        let _ = self.open();
        let _ = fs::remove_dir(&self.folder);
    }
}
