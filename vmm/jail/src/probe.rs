//! What this host offers of each layer: for `cellblock doctor` and for one clear sentence when a start is refused.
//! Namespaces are really made, in a child that ends at once.
#![allow(unsafe_code)] // Forks a child that tries things.

use std::fs;
use std::os::fd::AsFd;

use cellblock_channel::process::landlock;

use crate::speculation::{Control, Speculation};
use crate::{Layer, cgroup, spawner, sys};

/// Whether a layer can be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Availability {
    /// Yes.
    Available {
        /// A version or restriction worth knowing; may be empty.
        note: String,
    },
    /// No.
    Missing {
        /// What was tried and what happened.
        why: String,
        /// What an administrator can do.
        mend: String,
    },
}

impl Availability {
    /// Whether it can be had.
    pub const fn is_available(&self) -> bool {
        matches!(self, Availability::Available { .. })
    }

    fn available(note: impl Into<String>) -> Availability {
        Availability::Available { note: note.into() }
    }

    fn missing(why: impl Into<String>, mend: impl Into<String>) -> Availability {
        Availability::Missing { why: why.into(), mend: mend.into() }
    }
}

/// Tries every layer, as the user that calls. The process should be single-threaded.
pub fn probe() -> Vec<(Layer, Availability)> {
    Layer::ALL.into_iter().map(|layer| (layer, probe_layer(layer))).collect()
}

fn probe_layer(layer: Layer) -> Availability {
    match layer {
        Layer::User => namespace(libc::CLONE_NEWUSER),
        Layer::Pid => namespace(libc::CLONE_NEWPID),
        Layer::Mount => namespace(libc::CLONE_NEWNS),
        Layer::Net => namespace(libc::CLONE_NEWNET),
        Layer::Ipc => namespace(libc::CLONE_NEWIPC),
        Layer::Uts => namespace(libc::CLONE_NEWUTS),
        Layer::Uid => uids(),
        Layer::NoNewPrivs => no_new_privs(),
        Layer::Landlock => landlock_abi(),
        Layer::Seccomp => seccomp(),
        Layer::Caps | Layer::Rlimits => Availability::available(""),
        Layer::Cgroup => cgroups(),
        Layer::Speculation => speculation(),
    }
}

fn privileged() -> bool {
    sys::own_ids().0 == 0
}

/// Makes the namespace in a child: as root by itself, as a user within a mapped user namespace.
fn namespace(flag: i32) -> Availability {
    match try_namespace(if privileged() { flag } else { flag | libc::CLONE_NEWUSER }) {
        0 => Availability::available(""),
        errno => {
            let error = std::io::Error::from_raw_os_error(errno);
            Availability::missing(format!("the kernel refuses it: {error}"), hint(errno))
        }
    }
}

/// Returns 0 or the errno.
fn try_namespace(flags: i32) -> i32 {
    let Ok((gate, opener)) = std::io::pipe() else { return libc::EMFILE };
    // SAFETY: the child calls only async-signal-safe functions: read, unshare, _exit.
    let side = unsafe { sys::fork_into(flags, None) };
    let (pid, pidfd) = match side {
        Ok(sys::Side::Child) => {
            drop(opener);
            let _ = sys::read(gate.as_fd(), &mut [0]);
            // In a user namespace that a security module has stripped of its rights this fails, though the clone did not.
            let uts = sys::unshare(libc::CLONE_NEWUTS);
            sys::exit_now(uts.map_or_else(|error| error.raw_os_error().unwrap_or(1) & 0xff, |()| 0));
        }
        Ok(sys::Side::Parent { pid, pidfd }) => (pid, pidfd),
        Err(error) => return error.raw_os_error().unwrap_or(libc::EPERM),
    };
    let mapped = if flags & libc::CLONE_NEWUSER == 0 {
        Ok(())
    } else {
        let proc = fs::File::open("/proc").map_err(|error| error.raw_os_error().unwrap_or(libc::ENOENT));
        proc.and_then(|proc| {
            spawner::write_maps(proc.as_fd(), pid, spawner::Ids::Own).map_err(|error| error.errno)
        })
    };
    drop(opener);
    let mut status = 0;
    // SAFETY: waits for the child just made, into a local.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    drop(pidfd);
    mapped.err().unwrap_or(if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { libc::ECHILD })
}

/// Which setting is in the way.
fn hint(errno: i32) -> String {
    let setting = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    if setting("/proc/sys/kernel/unprivileged_userns_clone").as_deref() == Some("0") && !privileged() {
        return "sysctl kernel.unprivileged_userns_clone=1, or run as root".to_owned();
    }
    if setting("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").as_deref() == Some("1")
        && !privileged()
    {
        return "sysctl kernel.apparmor_restrict_unprivileged_userns=0, an AppArmor profile with `userns,`, or run as root"
            .to_owned();
    }
    if setting("/proc/sys/user/max_user_namespaces").as_deref() == Some("0") {
        return "sysctl user.max_user_namespaces=10000".to_owned();
    }
    match errno {
        libc::ENOSPC => "too many namespaces: raise the sysctls user.max_*_namespaces".to_owned(),
        libc::EINVAL => {
            "the kernel was built without it: use one with CONFIG_NAMESPACES and all its parts".to_owned()
        }
        _ => "a container's or security module's policy forbids it: run outside it, or as root".to_owned(),
    }
}

fn uids() -> Availability {
    if privileged() {
        Availability::available(format!("ranges of {} from {}", crate::uids::COUNT, crate::uids::BASE))
    } else {
        Availability::missing(
            "an ordinary user has one uid, so the workers of a VM share it",
            "run as root for a uid per worker; every other layer holds without",
        )
    }
}

fn no_new_privs() -> Availability {
    match sys::prctl(libc::PR_GET_NO_NEW_PRIVS, 0, 0) {
        Ok(_) => Availability::available(""),
        Err(error) => Availability::missing(error.to_string(), "use Linux 5.16 or later"),
    }
}

fn landlock_abi() -> Availability {
    match landlock::abi() {
        Ok(abi @ ..4) => {
            Availability::available(format!("ABI {abi}: paths only; ports from Linux 6.7, signals from 6.12"))
        }
        Ok(abi @ 4..6) => {
            Availability::available(format!("ABI {abi}: paths and ports; signals from Linux 6.12"))
        }
        Ok(abi) => Availability::available(format!("ABI {abi}")),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Availability::missing(
            "the kernel has Landlock, but it was not enabled at boot",
            "add landlock to the kernel's lsm= parameter",
        ),
        Err(error) => {
            Availability::missing(error.to_string(), "use Linux 5.13 or later with CONFIG_SECURITY_LANDLOCK")
        }
    }
}

fn seccomp() -> Availability {
    let actions = fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    let has = |action: &str| actions.split_whitespace().any(|word| word == action);
    if !has("kill_process") {
        return Availability::missing(
            "the kernel has no seccomp filters that kill a process",
            "use Linux 4.14 or later with CONFIG_SECCOMP_FILTER",
        );
    }
    let logged = fs::read_to_string("/proc/sys/kernel/seccomp/actions_logged").unwrap_or_default();
    let note =
        if has("log") && logged.contains("log") { "" } else { "--log-refused shows nothing on this kernel" };
    Availability::available(note)
}

fn cgroups() -> Availability {
    match cgroup::Hierarchy::find() {
        Ok(hierarchy) if hierarchy.offers_io() => Availability::available("memory, pids, cpu, io"),
        Ok(_) => Availability::available(
            "memory, pids, cpu; without io a disk's rate and ops bind the guest, not a compromised worker",
        ),
        Err(error) => Availability::missing(
            error.to_string(),
            "boot with systemd.unified_cgroup_hierarchy=1; as a user, `systemd-run --user --scope -p Delegate=yes cellblock run ...`. \
             A VM starts without",
        ),
    }
}

fn speculation() -> Availability {
    let controls = Speculation::ALL.map(|kind| (kind, kind.control().unwrap_or(Control::Unknown)));
    let told = controls.map(|(kind, control)| format!("{}: {control}", kind.name())).join("; ");
    let open = |control| matches!(control, Control::Host(true) | Control::Unknown);
    if controls.into_iter().any(|(_, control)| open(control)) {
        Availability::missing(
            told,
            "boot without mitigations=off, with spec_store_bypass_disable=prctl spectre_v2_user=prctl. A VM starts without",
        )
    } else {
        Availability::available(told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layer_gets_an_answer_that_helps() {
        let answers = probe();
        assert_eq!(answers.len(), Layer::ALL.len());
        for (layer, answer) in answers {
            eprintln!("{layer}: {answer:?}");
            if let Availability::Missing { why, mend } = answer {
                assert!(!why.is_empty() && !mend.is_empty(), "{layer}");
            }
        }
    }

    #[test]
    fn a_namespace_that_does_not_exist_is_missing() {
        // CLONE_THREAD without CLONE_SIGHAND is always EINVAL.
        assert_eq!(try_namespace(libc::CLONE_THREAD), libc::EINVAL);
    }
}
