//! As whom the program runs: the tests' own user, or an ordinary one that may use KVM.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The uid and gid of the ordinary user in tests; no account needs to exist.
pub(crate) const ORDINARY: u32 = 61_234;
/// The group that owns the ordinary user's `/dev/kvm`, as group kvm does on a distribution.
const KVM_GROUP: u32 = 61_235;

/// A user to run the program as.
#[derive(Debug, Clone)]
pub enum User {
    /// The one that runs the tests.
    Own,
    /// An ordinary user in the group of `/dev/kvm`: in a mount namespace of its own, so that this machine's device node
    /// keeps its owner and mode. The pid stays that of the program.
    Ordinary {
        /// Holds the device node.
        folder: PathBuf,
    },
}

impl User {
    /// An ordinary user; `folder` (of the tests, reachable by anyone) holds its device node.
    ///
    /// # Errors
    /// A sentence why there is none: the tests do not run as root, or a tool is missing.
    pub fn ordinary(folder: &Path) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("only root can become another user".into());
        }
        let ready = Command::new("unshare").args(["-m", "setpriv", "--version"]).output();
        if !ready.is_ok_and(|output| output.status.success()) {
            return Err("unshare and setpriv (util-linux) are not here".into());
        }
        Ok(User::Ordinary { folder: folder.to_owned() })
    }

    /// The command that runs `program` as this user.
    pub fn command(&self, program: &Path) -> Command {
        match self {
            User::Own => Command::new(program),
            User::Ordinary { folder } => {
                let node = folder.join("kvm");
                let script = format!(
                    "[ -e {node} ] || {{ mknod -m 660 {node} c 10 232 && chgrp {KVM_GROUP} {node}; }}
                     mount --bind {node} /dev/kvm
                     exec setpriv --reuid {ORDINARY} --regid {ORDINARY} --groups {KVM_GROUP} -- \"$@\"",
                    node = node.display()
                );
                let mut command = Command::new("unshare");
                command.args(["-m", "sh", "-ec", &script, "sh"]).arg(program).current_dir(folder);
                command
            }
        }
    }
}
