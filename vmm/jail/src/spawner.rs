//! The way into the spawner's jail. The front clones it with [`clone_namespaces`], writes its maps with [`write_maps`]
//! and lets it go on; the child runs [`enter`] meanwhile.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use cellblock_channel::process::landlock;
use cellblock_policy::Refusal;

use crate::step::During;
use crate::{JailError, Layer, LayerSet, Step, capabilities, limits, programs, speculation, sys};

/// Which ids a VM's processes run as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ids {
    /// Started by root: `count` uids (and gids) from `base` on, which no other VM has: see [`crate::uids`]. The first is
    /// the spawner's, the last the supervisor's and the loader's, those between the workers'.
    Root {
        /// The first, on the host.
        base: u32,
        /// How many.
        count: u32,
    },
    /// Started by an ordinary user: all run as that one.
    Own,
}

impl Ids {
    /// The id of worker number `index`, as the spawner's user namespace numbers it; `None`: the spawner's own. Without
    /// the layer `uid` all workers share one.
    pub fn worker(self, layers: LayerSet, index: usize) -> Option<u32> {
        let Ids::Root { base, count } = self else { return None };
        let offset = 1 + index as u32 % count.saturating_sub(2).max(1);
        match (layers.has(Layer::Uid), layers.has(Layer::User)) {
            // All share one; not the spawner's, which no namespace below it may map without CAP_SETFCAP.
            (false, true) => Some(1),
            (false, false) => None,
            (true, true) => Some(offset),
            (true, false) => Some(base + offset),
        }
    }

    /// The host uid and gid of the spawner; `None`: the caller's.
    pub fn spawner(self, layers: LayerSet) -> Option<u32> {
        match self {
            Ids::Root { base, .. } if layers.has(Layer::User) => Some(base),
            _ => None,
        }
    }

    /// The host uid and gid of the supervisor and the loader; `None`: the caller's.
    pub fn supervisor(self, layers: LayerSet) -> Option<u32> {
        match self {
            Ids::Root { base, count } if layers.has(Layer::Uid) => Some(base + count.saturating_sub(1)),
            _ => None,
        }
    }
}

/// What of the in-namespace privilege the spawner keeps, to start and kill workers.
pub const KEPT: u64 = capabilities::KILL
    | capabilities::SETGID
    | capabilities::SETUID
    | capabilities::SETPCAP
    | capabilities::SYS_ADMIN;

/// The most descriptors that a spawner may have open.
const FILES: u64 = 1024;

/// What the front's clone gives it. The rest it makes itself ([`enter`]), so that the front does not wait for it: a
/// network namespace alone takes 0.3 ms.
pub fn clone_namespaces(layers: LayerSet) -> i32 {
    let of = |layer, flag| if layers.has(layer) { flag } else { 0 };
    of(Layer::User, libc::CLONE_NEWUSER) | of(Layer::Pid, libc::CLONE_NEWPID)
}

/// In the front: maps the ids of the spawner `pid` (as the front sees it).
///
/// # Errors
/// [`Step::IdMaps`].
pub fn write_maps(proc: BorrowedFd, pid: i32, ids: Ids) -> Result<(), JailError> {
    let write = |file: &str, text: String| {
        let path = CString::new(format!("{pid}/{file}")).map_err(io::Error::from);
        path.and_then(|path| sys::open_at(proc, &path, libc::O_WRONLY))
            .and_then(|file| sys::write_all(file.as_fd(), text.as_bytes()))
            .during(Step::IdMaps)
    };
    match ids {
        Ids::Root { base, count } => {
            write("uid_map", format!("0 {base} {count}"))?;
            write("gid_map", format!("0 {base} {count}"))
        }
        Ids::Own => {
            let (uid, gid) = sys::own_ids();
            write("setgroups", "deny".to_owned())?;
            write("uid_map", format!("{uid} {uid} 1"))?;
            write("gid_map", format!("{gid} {gid} 1"))
        }
    }
}

/// What [`enter`] needs.
#[derive(Debug)]
pub struct Plan<'a> {
    /// The layers wanted.
    pub layers: LayerSet,
    /// Whether the front is root.
    pub privileged: bool,
    /// Ids.
    pub ids: Ids,
    /// The host's /proc.
    pub proc: BorrowedFd<'a>,
    /// The workers' binaries.
    pub binaries: Vec<BorrowedFd<'a>>,
    /// The largest of the workers' limits on a file's size, in bytes: nobody here may raise a limit again.
    pub file_size: u64,
    /// What becomes of refused calls.
    pub refusal: Refusal,
}

/// In the child: enters the jail. `mapped` waits until the front has written the maps.
///
/// # Errors
/// The step that failed; the child must end.
pub fn enter(plan: &Plan, mapped: impl FnOnce() -> io::Result<()>) -> Result<(), JailError> {
    sys::fresh_session().during(Step::Session)?;
    // Its workers' too.
    speculation::hold_back(plan.layers)?;
    sys::unshare(own_namespaces(plan.layers)).during(Step::Namespaces)?;
    mapped().during(Step::IdMaps)?;
    become_own_id(plan)?;
    // Its workers' too.
    sys::fresh_keyring().during(Step::Session)?;
    if plan.layers.has(Layer::Uts) {
        sys::set_host_name(b"cellblock").during(Step::HostName)?;
    }
    if plan.layers.has(Layer::Mount) {
        sys::enter_empty_root().during(Step::EmptyRoot)?;
    }
    if plan.layers.has(Layer::Rlimits) {
        limits::no_extras().during(Step::Limits)?;
        sys::limit(libc::RLIMIT_NOFILE, FILES).during(Step::Limits)?;
        sys::limit(libc::RLIMIT_FSIZE, plan.file_size.max(4096)).during(Step::Limits)?;
    }
    let has_capabilities = plan.privileged || plan.layers.has(Layer::User);
    if plan.layers.has(Layer::Caps) && has_capabilities {
        capabilities::bound(KEPT).during(Step::Capabilities)?;
        capabilities::keep(KEPT).during(Step::Capabilities)?;
    }
    close(plan)
}

fn own_namespaces(layers: LayerSet) -> i32 {
    let of = |layer, flag| if layers.has(layer) { flag } else { 0 };
    of(Layer::Mount, libc::CLONE_NEWNS)
        | of(Layer::Net, libc::CLONE_NEWNET)
        | of(Layer::Ipc, libc::CLONE_NEWIPC)
        | of(Layer::Uts, libc::CLONE_NEWUTS)
}

/// As root: id 0 of the VM's range. Without a user namespace it stays root, with the few capabilities kept.
fn become_own_id(plan: &Plan) -> Result<(), JailError> {
    if matches!(plan.ids, Ids::Root { .. }) {
        sys::no_groups().during(Step::Uid)?;
        if plan.layers.has(Layer::User) {
            sys::become_id(0, 0).during(Step::Uid)?;
        }
    }
    Ok(())
}

fn close(plan: &Plan) -> Result<(), JailError> {
    sys::prctl(libc::PR_SET_DUMPABLE, 0, 0).during(Step::NoNewPrivs)?;
    // Workers inherit it.
    sys::refuse_new_code().during(Step::NoNewPrivs)?;
    if plan.layers.has(Layer::NoNewPrivs) {
        sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).during(Step::NoNewPrivs)?;
    }
    if plan.layers.has(Layer::Landlock) {
        // Children inherit these rules, and write their id maps through /proc.
        let ruleset = landlock::Ruleset::deny_all().during(Step::Landlock)?;
        ruleset.allow(plan.proc, landlock::READ_FILE | landlock::WRITE_FILE).during(Step::Landlock)?;
        for binary in &plan.binaries {
            ruleset.allow(*binary, landlock::READ_FILE | landlock::EXECUTE).during(Step::Landlock)?;
        }
        ruleset.restrict().during(Step::Landlock)?;
    }
    if plan.layers.has(Layer::Seccomp) {
        programs::install(programs::SPAWNER, plan.refusal)?;
    }
    Ok(())
}
