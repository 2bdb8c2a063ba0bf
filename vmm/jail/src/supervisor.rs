//! The supervisor's jail: [`confine`] before its first thread but after all is opened; then each thread installs its own
//! seccomp program, [`confine_loop`] or [`confine_vcpu`], as the last thing before it serves.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsFd;

use cellblock_channel::process::landlock;
use cellblock_policy::Refusal;

use crate::step::During;
use crate::{JailError, Layer, LayerSet, Step, capabilities, limits, programs, speculation, sys, worker};

/// How to confine.
#[derive(Debug, Clone, Copy)]
pub struct Confinement {
    /// The layers wanted; `pid`, `net`, `ipc`, `uts` and `cgroup` are not the supervisor's.
    pub layers: LayerSet,
    /// Whether the front is root.
    pub privileged: bool,
    /// The host uid and gid to become (root only): [`crate::spawner::Ids::supervisor`].
    pub id: Option<u32>,
    /// What becomes of refused calls.
    pub refusal: Refusal,
}

/// Everything but seccomp, for the whole process: an own mount namespace with an empty root (an ordinary user's within an
/// own user namespace), an own uid, no capabilities, no core, not dumpable, no new code, `no_new_privs`, Landlock without any exception,
/// speculation held back.
/// Open descriptors stay usable, /dev/kvm among them. No thread may exist yet.
///
/// # Errors
/// The step that failed; the process must end.
pub fn confine(how: &Confinement) -> Result<(), JailError> {
    sys::fresh_session().or_else(already_a_leader).during(Step::Session)?;
    speculation::hold_back(how.layers)?;
    let rooted = how.layers.has(Layer::Mount) && enter_mount_namespace(how)?;
    if rooted {
        sys::enter_empty_root().during(Step::EmptyRoot)?;
    }
    if how.layers.has(Layer::Rlimits) {
        limits::no_extras().during(Step::Limits)?;
    }
    if how.layers.has(Layer::NoNewPrivs) {
        sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).during(Step::NoNewPrivs)?;
    }
    // Before privilege goes: without no_new_privs Landlock needs it.
    if how.layers.has(Layer::Landlock) && !lost(how.layers, how.privileged).has(Layer::Landlock) {
        landlock::Ruleset::deny_all().and_then(|rules| rules.restrict()).during(Step::Landlock)?;
    }
    drop_privilege(how, rooted)?;
    sys::refuse_new_code().during(Step::NoNewPrivs)?;
    sys::prctl(libc::PR_SET_DUMPABLE, 0, 0).during(Step::NoNewPrivs).map(drop)
}

/// Which of the wanted `layers` the supervisor and the loader cannot have for want of others, to be told to the user: without
/// `no-new-privs` a seccomp program needs a capability, and Landlock needs one at least when it closes. Workers are not
/// concerned: they close both while they have privilege in their own user namespace.
pub fn lost(layers: LayerSet, privileged: bool) -> LayerSet {
    if layers.has(Layer::NoNewPrivs) {
        return LayerSet::none();
    }
    let has_capabilities = privileged || (layers.has(Layer::User) && layers.has(Layer::Mount));
    let missing = if has_capabilities { &[Layer::Seccomp][..] } else { &[Layer::Seccomp, Layer::Landlock] };
    missing.iter().copied().filter(|layer| layers.has(*layer)).collect()
}

/// setsid fails for a process group's leader, which then already is apart.
fn already_a_leader(error: std::io::Error) -> std::io::Result<()> {
    if error.raw_os_error() == Some(libc::EPERM) { Ok(()) } else { Err(error) }
}

/// Returns whether there is one now: an ordinary user has none without a user namespace.
fn enter_mount_namespace(how: &Confinement) -> Result<bool, JailError> {
    if how.privileged {
        sys::unshare(libc::CLONE_NEWNS).during(Step::Namespaces)?;
        return Ok(true);
    }
    if !how.layers.has(Layer::User) {
        return Ok(false);
    }
    let proc = File::open("/proc").during(Step::IdMaps)?;
    let maps: (CString, CString) = worker::id_map(None);
    sys::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS).during(Step::UserNamespace)?;
    worker::map_self(proc.as_fd(), &maps)?;
    Ok(true)
}

fn drop_privilege(how: &Confinement, rooted: bool) -> Result<(), JailError> {
    let has_capabilities = how.privileged || rooted;
    if how.layers.has(Layer::Caps) && has_capabilities {
        capabilities::bound(0).during(Step::Capabilities)?;
    }
    if let Some(id) = how.id {
        sys::no_groups().during(Step::Uid)?;
        sys::become_id(id, id).during(Step::Uid)?;
    }
    if how.layers.has(Layer::Caps) {
        capabilities::keep(0).during(Step::Capabilities)?;
    }
    Ok(())
}

/// The calling thread is the loop: installs its program. Threads that it starts afterwards inherit it, so the vCPU threads
/// are started before.
///
/// # Errors
/// [`Step::Seccomp`].
pub fn confine_loop(how: &Confinement) -> Result<(), JailError> {
    install(how, programs::SUPERVISOR)
}

/// The calling thread is a vCPU's: installs its program.
///
/// # Errors
/// [`Step::Seccomp`].
pub fn confine_vcpu(how: &Confinement) -> Result<(), JailError> {
    install(how, programs::VCPU)
}

pub(crate) fn install(how: &Confinement, program: &[u8]) -> Result<(), JailError> {
    let possible = how.layers.has(Layer::Seccomp) && !lost(how.layers, how.privileged).has(Layer::Seccomp);
    if possible { programs::install(program, how.refusal) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_without_no_new_privs_is_told() {
        let all = LayerSet::all();
        assert_eq!(lost(all, true), LayerSet::none());
        let without = all.without(Layer::NoNewPrivs);
        assert_eq!(lost(without, true), LayerSet::none().with(Layer::Seccomp));
        assert_eq!(lost(without, false), LayerSet::none().with(Layer::Seccomp));
        let poor = without.without(Layer::Mount);
        assert_eq!(lost(poor, false), LayerSet::none().with(Layer::Seccomp).with(Layer::Landlock));
        assert_eq!(lost(without.without(Layer::Seccomp), true), LayerSet::none());
    }
}
