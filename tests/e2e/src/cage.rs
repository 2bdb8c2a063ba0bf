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
    /// The controller that its parent has got for its sake, and gives back.
    delegated: Option<Delegated>,
}

/// A controller that a group's children have, and had not before.
#[derive(Debug)]
struct Delegated {
    control: PathBuf,
    controller: &'static str,
}

impl Delegated {
    /// Gives `controller` to the children of the group that has the file `control`. `None` = they had it.
    fn to_children(control: PathBuf, controller: &'static str) -> Result<Option<Delegated>> {
        if fs::read_to_string(&control)?.split_whitespace().any(|had| had == controller) {
            return Ok(None);
        }
        fs::write(&control, format!("+{controller}"))?;
        Ok(Some(Delegated { control, controller }))
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        let _ = fs::write(&self.control, format!("-{}", self.controller));
    }
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
            let control = Path::new(ROOT).join("cgroup.subtree_control");
            let delegated = Delegated::to_children(control, "cpu").context("the cpu controller")?;
            let mut cage = Cage::make(ROOT.into(), name, false)?;
            cage.delegated = delegated;
            cage
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
        Ok(Cage { folder, top, freezes, delegated: None })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_group_got_for_a_cage_it_gives_back_and_nothing_else() {
        let control = std::env::temp_dir().join(format!("cage-{}", std::process::id()));
        let said = || fs::read_to_string(&control).unwrap();
        fs::write(&control, "cpuset memory\n").unwrap();
        let delegated = Delegated::to_children(control.clone(), "cpu").unwrap();
        assert_eq!(said(), "+cpu");
        drop(delegated);
        assert_eq!(said(), "-cpu");
        fs::write(&control, "cpuset cpu\n").unwrap();
        assert!(Delegated::to_children(control.clone(), "cpu").unwrap().is_none());
        assert_eq!(said(), "cpuset cpu\n");
        fs::remove_file(&control).unwrap();
    }
}
