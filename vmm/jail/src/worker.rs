//! The way into a worker's jail: from the clone in the spawner to the exec of the worker's binary.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use cellblock_channel::process::{install::install, landlock};

use crate::step::During;
use crate::{JailError, Layer, LayerSet, Limits, Step, capabilities, sys};

/// The worker's control socket.
pub const CONTROL: i32 = 3;
/// The worker's binary, until exec closes it.
pub const BINARY: i32 = 4;
const PROC: i32 = 5;
const RULESET: i32 = 6;
/// Every descriptor that a [`Plan`] names has at least this number, so that putting one in place closes no other.
pub const FREE: i32 = 7;

/// The status with which a child ends that could not enter; [`Progress`] tells why.
pub const FAILED: i32 = 125;

/// Where a child stands, in memory shared with the spawner: no call is needed to tell it, so it can be told from under
/// any seccomp program; and exec unmaps it, so a worker cannot forge it.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    step: &'static AtomicU32,
    errno: &'static AtomicU32,
    /// How long it has been in its jail's making, in µs.
    micros: &'static AtomicU32,
}

impl Progress {
    /// Progress in these words.
    pub const fn new([step, errno, micros]: &'static [AtomicU32; 3]) -> Progress {
        Progress { step, errno, micros }
    }

    /// Before a clone.
    pub fn reset(&self) {
        self.begin(Step::Clone);
        self.errno.store(0, Ordering::Relaxed);
        self.micros.store(0, Ordering::Relaxed);
    }

    /// How long the way into the jail took, in µs, once the child has executed its binary. Its last step, the seccomp program,
    /// is not in it: under that the clock may not be read.
    pub fn micros(&self) -> u32 {
        self.micros.load(Ordering::Relaxed)
    }

    fn begin(&self, step: Step) {
        self.step.store(step as u32, Ordering::Relaxed);
    }

    fn fail(&self, error: JailError) {
        self.step.store(error.step as u32, Ordering::Relaxed);
        self.errno.store(error.errno.unsigned_abs(), Ordering::Relaxed);
    }

    /// Once the child has executed its binary, or ended: the step that failed before, if one did. A child that a signal ended
    /// on its way in has errno 0.
    pub fn failure(&self) -> Option<JailError> {
        // The child's exec or end, for which the spawner's clone has waited, orders its stores before these loads.
        let step = Step::numbered(self.step.load(Ordering::Relaxed));
        let errno = self.errno.load(Ordering::Relaxed) as i32;
        if step == Step::Exec && errno == 0 { None } else { Some(JailError { step, errno }) }
    }
}

/// All that a child needs to enter, prepared before the clone.
#[derive(Debug)]
pub struct Plan<'a> {
    /// The layers wanted.
    pub layers: LayerSet,
    /// Whether the spawner has privilege: in its own user namespace, or as root.
    pub privileged: bool,
    /// The worker's uid and gid as the spawner's user namespace numbers them; `None`: the spawner's own.
    pub id: Option<u32>,
    /// `"id id 1"` for uid_map and for gid_map: see [`id_map`].
    pub maps: &'a (CString, CString),
    /// Limits.
    pub limits: &'a Limits,
    /// The worker's end of the control socket.
    pub control: BorrowedFd<'a>,
    /// The binary, opened for reading.
    pub binary: BorrowedFd<'a>,
    /// The host's /proc.
    pub proc: BorrowedFd<'a>,
    /// Denies all but the binary: see [`ruleset`].
    pub ruleset: Option<BorrowedFd<'a>>,
    /// The start program.
    pub start_filter: &'a [u8],
    /// `argv[0]`.
    pub name: &'a CStr,
}

/// The maps of a worker of this id (`None`: of the calling process' own).
pub fn id_map(id: Option<u32>) -> (CString, CString) {
    let (uid, gid) = id.map_or_else(sys::own_ids, |id| (id, id));
    let line = |id: u32| CString::new(format!("{id} {id} 1")).unwrap_or_default();
    (line(uid), line(gid))
}

/// The Landlock rules under which a worker starts: its binary can be executed, and nothing else touched. `None`: it is a memfd,
/// which Landlock has no rules for.
///
/// # Errors
/// [`Step::Landlock`].
pub fn ruleset(binary: Option<BorrowedFd>) -> Result<landlock::Ruleset, JailError> {
    let ruleset = landlock::Ruleset::deny_all().during(Step::Landlock)?;
    if let Some(binary) = binary {
        ruleset.allow(binary, landlock::EXECUTE | landlock::READ_FILE).during(Step::Landlock)?;
    }
    Ok(ruleset)
}

/// The namespaces with which a worker is cloned. Its user namespace comes later, under its own uid.
pub fn namespaces(layers: LayerSet) -> i32 {
    let of = |layer, flag| if layers.has(layer) { flag } else { 0 };
    of(Layer::Pid, libc::CLONE_NEWPID) | of(Layer::Mount, libc::CLONE_NEWNS)
}

/// Clones a child into `cgroup`, if given, that enters the jail and executes the worker: its pidfd. The caller rests until it has, or
/// has ended; if it could not, `progress` says why.
///
/// # Errors
/// [`Step::Clone`].
#[allow(unsafe_code)] // Clones without exec: the child makes its jail first.
pub fn start(plan: &Plan, cgroup: Option<BorrowedFd>, progress: &Progress) -> Result<OwnedFd, JailError> {
    // SAFETY: until it executes the worker or ends, the child makes system calls and stores into memory: nothing in `enter`
    // allocates or takes a lock, so it may stand in for whatever other threads the caller has.
    let side = unsafe { sys::fork_to_exec(namespaces(plan.layers), cgroup) };
    match side.during(Step::Clone)? {
        sys::Side::Child => enter(plan, progress),
        sys::Side::Parent { pidfd, .. } => Ok(pidfd),
    }
}

/// In the child, right after the clone: enters the jail and executes the worker. If it cannot, `progress` says why, and
/// the process ends.
fn enter(plan: &Plan, progress: &Progress) -> ! {
    if let Err(error) = try_enter(plan, progress) {
        progress.fail(error);
    }
    sys::exit_now(FAILED)
}

fn try_enter(plan: &Plan, progress: &Progress) -> Result<(), JailError> {
    let began = Instant::now();
    progress.begin(Step::Descriptors);
    arrange_descriptors(plan).during(Step::Descriptors)?;
    progress.begin(Step::Session);
    sys::fresh_session().during(Step::Session)?;
    let own_user = plan.layers.has(Layer::User);
    if !own_user && plan.privileged && plan.layers.has(Layer::Caps) {
        // Takes a right that changing the uid would take away.
        bound()?;
    }
    progress.begin(Step::Uid);
    become_own_id(plan)?;
    if own_user {
        progress.begin(Step::UserNamespace);
        enter_user_namespace(plan)?;
    }
    // The limits come after the user namespace, whose count of processes starts at one.
    if plan.layers.has(Layer::Rlimits) {
        progress.begin(Step::Limits);
        plan.limits.apply().during(Step::Limits)?;
    }
    if own_user && plan.layers.has(Layer::Caps) {
        progress.begin(Step::Capabilities);
        bound()?;
    }
    close(plan, progress, began)?;
    progress.begin(Step::Exec);
    Err(sys::exec(BINARY, plan.name)).during(Step::Exec)
}

fn arrange_descriptors(plan: &Plan) -> io::Result<()> {
    sys::place(plan.control.as_raw_fd(), CONTROL, false)?;
    sys::place(plan.binary.as_raw_fd(), BINARY, true)?;
    sys::place(plan.proc.as_raw_fd(), PROC, true)?;
    if let Some(ruleset) = plan.ruleset {
        sys::place(ruleset.as_raw_fd(), RULESET, true)?;
    }
    sys::close_range(0, 2)?;
    sys::close_range(FREE as u32, u32::MAX)
}

fn become_own_id(plan: &Plan) -> Result<(), JailError> {
    let Some(id) = plan.id else { return Ok(()) };
    sys::no_groups().during(Step::Uid)?;
    sys::become_id(id, id).during(Step::Uid)?;
    if !plan.layers.has(Layer::Pid) {
        // Not pid 1 of anything: the spawner's death must reach it in another way.
        sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0).during(Step::Uid)?;
    }
    Ok(())
}

/// A user namespace of its own, which maps just its own id to itself.
fn enter_user_namespace(plan: &Plan) -> Result<(), JailError> {
    // The change of uid made /proc/self root's.
    sys::prctl(libc::PR_SET_DUMPABLE, 1, 0).during(Step::UserNamespace)?;
    sys::unshare(libc::CLONE_NEWUSER).during(Step::UserNamespace)?;
    map_self(proc_descriptor(), plan.maps)?;
    no_further_namespace().during(Step::UserNamespace)
}

/// Nobody in this user namespace may make one below it, in which he would have all capabilities again: a wide part of the kernel
/// would be open to him, though nothing of the host's. Where the host's sysctls cannot be written at all, the seccomp program is
/// what forbids it.
fn no_further_namespace() -> io::Result<()> {
    let file = sys::open_at(proc_descriptor(), c"sys/user/max_user_namespaces", libc::O_WRONLY);
    match file.and_then(|file| sys::write_all(file.as_fd(), b"0")) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EROFS | libc::EACCES | libc::ENOENT)) => {
            Ok(())
        }
        written => written,
    }
}

/// Maps the calling process' one id in its new user namespace.
pub(crate) fn map_self(proc: BorrowedFd, (uid, gid): &(CString, CString)) -> Result<(), JailError> {
    let write = |path: &CStr, bytes: &[u8]| {
        sys::open_at(proc, path, libc::O_WRONLY)
            .and_then(|file| sys::write_all(file.as_fd(), bytes))
            .during(Step::IdMaps)
    };
    match write(c"self/setgroups", b"deny") {
        // Denied in the parent namespace means denied here, and no longer writable.
        Err(error) if error.errno == libc::EPERM => {}
        other => other?,
    }
    write(c"self/uid_map", uid.as_bytes())?;
    write(c"self/gid_map", gid.as_bytes())
}

/// Drops what is bounded by privilege.
fn bound() -> Result<(), JailError> {
    capabilities::bound(0).during(Step::Capabilities)?;
    capabilities::lock_securebits().during(Step::Capabilities)
}

/// Capabilities, `no_new_privs`, Landlock and the start program. Without `no_new_privs` the last two need a capability:
/// then exec drops the capabilities, as neither the bounding set nor root's specialness is left.
fn close(plan: &Plan, progress: &Progress, began: Instant) -> Result<(), JailError> {
    let no_new_privs = plan.layers.has(Layer::NoNewPrivs);
    if plan.layers.has(Layer::Caps) && no_new_privs {
        progress.begin(Step::Capabilities);
        capabilities::keep(0).during(Step::Capabilities)?;
    }
    if no_new_privs {
        progress.begin(Step::NoNewPrivs);
        sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).during(Step::NoNewPrivs)?;
    }
    if plan.layers.has(Layer::Landlock) {
        progress.begin(Step::Landlock);
        landlock::restrict(ruleset_descriptor()).during(Step::Landlock)?;
    }
    progress.micros.store(u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX), Ordering::Relaxed);
    if plan.layers.has(Layer::Seccomp) {
        progress.begin(Step::Seccomp);
        install(plan.start_filter, false)
            .map_err(|error| JailError { step: Step::Seccomp, errno: error.errno() })?;
    }
    Ok(())
}

/// The /proc that [`arrange_descriptors`] put in place.
#[allow(unsafe_code)] // Names a descriptor by its number.
fn proc_descriptor() -> BorrowedFd<'static> {
    // SAFETY: open from `arrange_descriptors` until exec or exit, and nobody closes it before.
    unsafe { BorrowedFd::borrow_raw(PROC) }
}

/// The ruleset that [`arrange_descriptors`] put in place.
#[allow(unsafe_code)] // As above.
fn ruleset_descriptor() -> BorrowedFd<'static> {
    // SAFETY: as above; if there is none the kernel says EBADF.
    unsafe { BorrowedFd::borrow_raw(RULESET) }
}
