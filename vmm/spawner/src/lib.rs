//! The spawner: the only process of a VM that can still start others; and its parent, init of the VM's pid namespace, which
//! outlives it.
//!
//! The front calls [`start`] while it is single-threaded; it forks, and the child never returns: it becomes init, and forks the
//! spawner. The supervisor drives
//! it over a `SEQPACKET` socket with [`client::Client`]: it can start and kill the workers that the [`Manifest`] names,
//! with the binaries, ids, limits and programs fixed there, and nothing else.
//!
//! Guarantees (each has a test in `tests/`):
//! 1. Only what the manifest names is started, in at most [`MAX_PROCESSES`] processes of each worker at a time.
//! 2. When the supervisor's end of the socket closes, or init is killed, every worker ends. When the spawner is killed they run on,
//!    and the supervisor is told. Without a pid namespace there is no init, and the supervisor sees its socket close.
//! 3. A binary that the manifest does not name is started only if the front has offered it on its own socket and the supervisor
//!    asks for it, with the worker's sandbox as it was, and only if nobody can change it any more.
//! 4. A worker that could not enter its jail is reported with step, layer and errno.
//! 5. Every worker's end is reported with its exit status or signal.
#![forbid(unsafe_code)]

mod activity;
pub mod client;
mod init;
pub mod protocol;
mod service;
mod slot;

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::{fs, io};

use cellblock_channel::socket::{self, Control};
use cellblock_jail::spawner::{self as jail, Ids};
use cellblock_jail::{
    JailError, Layer, LayerConflict, LayerSet, Limits, Refusal, loader, process, sys, worker,
};
use thiserror::Error;

/// The most workers of a VM: the uids of its range, less spawner and supervisor.
pub const MAX_WORKERS: usize = 62;

/// The most processes of one worker at a time: one that serves, two spares, one that is to take the first one's place, and the two
/// spares before these, which are not reaped yet.
pub const MAX_PROCESSES: usize = 6;

/// Everything that a VM's spawner may do, fixed when the VM is built.
#[derive(Debug)]
pub struct Manifest {
    /// Workers are named by their index here.
    pub workers: Vec<Entry>,
    /// What may run in the place of any of them, with its limits, ids and cgroup.
    pub tombstone: Option<Tombstone>,
    /// The layers of their sandbox, and of the spawner's own.
    pub layers: LayerSet,
    /// Ids.
    pub ids: Ids,
    /// Held as long as the spawner lives: the lock of the uid range.
    pub lock: Option<OwnedFd>,
    /// What becomes of calls that a policy refuses.
    pub refusal: Refusal,
    /// The spawner's own cgroup: a directory beside those of its workers.
    pub cgroup: Option<OwnedFd>,
}

/// One worker.
#[derive(Debug)]
pub struct Entry {
    /// For messages, and `argv[0]`.
    pub name: String,
    /// Its static-pie binary, opened for reading.
    pub binary: OwnedFd,
    /// Its start program (`<name>.bpf`).
    pub start_filter: Vec<u8>,
    /// Limits.
    pub limits: Limits,
    /// Its cgroup's directory.
    pub cgroup: Option<OwnedFd>,
}

/// The program that answers for a device that has failed.
#[derive(Debug)]
pub struct Tombstone {
    /// Its static-pie binary, opened for reading.
    pub binary: OwnedFd,
    /// Its start program.
    pub start_filter: Vec<u8>,
}

/// A spawner that was started.
#[derive(Debug)]
pub struct Spawner {
    /// For the supervisor; once every copy is closed the spawner and all workers end.
    pub socket: Control,
    /// For the front: see [`client::Authority`].
    pub authority: Control,
    /// Init, or the spawner itself without a pid namespace; a child of the caller, who must reap it.
    pub pidfd: OwnedFd,
    /// Its pid as the caller sees it.
    pub pid: i32,
}

/// A spawner that could not be started.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SpawnerError {
    /// These layers exclude each other.
    #[error(transparent)]
    Layers(#[from] LayerConflict),
    /// Too many workers.
    #[error("a VM has at most {MAX_WORKERS} workers, but the manifest names {0}")]
    TooMany(usize),
    /// A name with a zero byte.
    #[error("worker name {0:?} has a zero byte in it")]
    Name(String),
    /// A step of the start.
    #[error("the spawner cannot be started: {what}: {source}")]
    Start {
        /// Which.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A step of its jail.
    #[error("the spawner cannot be started: {0}")]
    Jail(#[from] JailError),
}

fn starting(what: &'static str) -> impl FnOnce(io::Error) -> SpawnerError {
    move |source| SpawnerError::Start { what, source }
}

/// Forks the spawner. The caller must be single-threaded; the child keeps only what the manifest holds. Returns as soon as
/// it is cloned and its ids are mapped: the rest of its jail goes on meanwhile, and the first event on the socket says
/// whether it got there.
///
/// # Errors
/// See [`SpawnerError`].
pub fn start(manifest: Manifest) -> Result<Spawner, SpawnerError> {
    let privileged = sys::own_ids().0 == 0;
    manifest.layers.check(privileged)?;
    if manifest.workers.len() > MAX_WORKERS {
        return Err(SpawnerError::TooMany(manifest.workers.len()));
    }
    let proc = open_proc().map_err(starting("opening /proc"))?;
    let (ours, theirs) = socket::pair().map_err(starting("making its socket"))?;
    let (authority, offers) = socket::pair().map_err(starting("making its socket"))?;
    let (gate, mut opener) = io::pipe().map_err(starting("making its gate"))?;
    let cgroup = manifest.cgroup.as_ref().filter(|_| manifest.layers.has(Layer::Cgroup)).map(AsFd::as_fd);
    let namespaces = jail::clone_namespaces(manifest.layers);
    match process::fork_into(proc.as_fd(), namespaces, cgroup).map_err(starting("clone"))? {
        sys::Side::Child => {
            // While we held these, neither the front's nor the supervisor's end would ever be seen to close.
            drop((ours, authority, opener));
            let mapped = move || wait_at(gate);
            service::run(manifest, privileged, [theirs.into(), offers.into()], proc, mapped)
        }
        sys::Side::Parent { pid, pidfd } => {
            if manifest.layers.has(Layer::User) {
                jail::write_maps(proc.as_fd(), pid, manifest.ids)?;
            }
            opener.write_all(&[1]).map_err(starting("opening its gate"))?;
            Ok(Spawner { socket: ours, authority, pidfd, pid })
        }
    }
}

/// As an O_PATH descriptor it serves as a starting point and nothing else.
fn open_proc() -> io::Result<OwnedFd> {
    use std::os::unix::fs::OpenOptionsExt;
    const O_PATH_DIRECTORY: u32 = (rustix::fs::OFlags::PATH.union(rustix::fs::OFlags::DIRECTORY)).bits();
    fs::OpenOptions::new().read(true).custom_flags(O_PATH_DIRECTORY as i32).open("/proc").map(OwnedFd::from)
}

/// Waits until the front has mapped the ids. If the front is gone, or could not, there is no byte.
fn wait_at(mut gate: io::PipeReader) -> io::Result<()> {
    gate.read_exact(&mut [0])
}

/// Closes what the front had open, but `kept`.
fn keep_only(kept: &[BorrowedFd]) -> io::Result<()> {
    loader::close_others(kept)
}

/// `fd`, renumbered so that a child can put its own in place.
fn out_of_the_way(fd: OwnedFd) -> io::Result<OwnedFd> {
    sys::above(fd.as_fd(), worker::FREE)
}
