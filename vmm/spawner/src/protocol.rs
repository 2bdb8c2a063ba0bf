//! What supervisor and spawner say to each other: one datagram each, encoded as all control messages.
//!
//! A worker of the manifest may run in several processes at a time: the one that serves, and others that wait to take its
//! place. The supervisor numbers them as it likes, each number once at a time (`instance`).

use cellblock_jail::JailError;
use cellblock_wire::control::{Checked, CodecError};
use serde::{Deserialize, Serialize};

/// From the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Request {
    /// Start this worker; with one descriptor, its end of its control socket. Answered by [`Event::Started`],
    /// [`Event::Failed`] or [`Event::Refused`].
    Start {
        /// Index in the manifest.
        worker: u32,
        /// Which of its processes this will be.
        instance: u32,
        /// What it executes.
        program: Program,
    },
    /// What the front has offered for this worker is its binary from now on (`true`), or is forgotten.
    Settle {
        /// Index in the manifest.
        worker: u32,
        /// [`Offer::number`].
        offer: u32,
        /// Whether it is the worker's binary now.
        adopt: bool,
    },
    /// Look at what it does; answered by [`Event::Examined`].
    Examine {
        /// Index in the manifest.
        worker: u32,
        /// Which of its processes.
        instance: u32,
    },
    /// Kill it, if it runs; its [`Event::Ended`] follows.
    Kill {
        /// Index in the manifest.
        worker: u32,
        /// Which of its processes.
        instance: u32,
    },
}

/// What a worker's process executes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Program {
    /// The worker's own program: the manifest's, until another is adopted.
    Own,
    /// The manifest's tombstone.
    Tombstone,
    /// What the front has offered ([`Offer`]).
    Offered {
        /// [`Offer::number`].
        offer: u32,
    },
}

/// From the front, on a socket of its own: another binary for a worker. With one descriptor, the binary, or two, the binary and
/// its start program; both memfds that nobody can change any more. Sandbox, uid and limits stay those of the manifest. It is
/// looked at when the supervisor asks for [`Program::Offered`]: neither of them can bring in a binary alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Index in the manifest.
    pub worker: u32,
    /// Counted from 1 on, so that what one upgrade is refused is not taken for what another wants.
    pub number: u32,
}

/// From the spawner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Event {
    /// The first event: the spawner is jailed and serves.
    Ready {
        /// As the host numbers it; 0 if the host's /proc did not tell.
        host_pid: i32,
    },
    /// The spawner is gone; init says so. The workers run on, and every start is refused from now on.
    Lost(Cause),
    /// The first and last event: it could not enter its jail.
    Unable(JailError),
    /// The worker is cloned; with one descriptor, its pidfd. It now enters its jail, and executes its binary: that it got
    /// there is known from what it says itself, that it did not from [`Event::Failed`].
    Started {
        /// Index in the manifest.
        worker: u32,
        /// As in the request.
        instance: u32,
        /// As the host numbers it; 0 if the host's /proc did not tell.
        host_pid: i32,
        /// What it took.
        took: StartTime,
    },
    /// The worker could not be cloned, or ended before its binary took over.
    Failed {
        /// Index in the manifest.
        worker: u32,
        /// As in the request.
        instance: u32,
        /// What failed.
        error: JailError,
    },
    /// The request makes no sense; nothing was done.
    Refused {
        /// Index as it was sent.
        worker: u32,
        /// As it was sent.
        instance: u32,
        /// Why.
        reason: Refusal,
    },
    /// What a worker does.
    Examined {
        /// Index in the manifest.
        worker: u32,
        /// As in the request.
        instance: u32,
        /// What the host's /proc tells, if it does.
        activity: Option<Activity>,
    },
    /// The worker has ended: nothing of it runs any more. It is reaped before another request is looked at.
    Ended {
        /// Index in the manifest.
        worker: u32,
        /// As in the request.
        instance: u32,
        /// How.
        cause: Cause,
    },
}

/// How long a start took, from the request to the exec of the worker's binary.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartTime {
    /// To clone the process and execute the binary, in µs.
    pub spawn_us: u32,
    /// To enter the jail, in µs.
    pub sandbox_us: u32,
}

/// What a process' main thread does, which is a worker's register thread (`Documentation/filesystems/proc.rst`, table 1-4;
/// `Documentation/scheduler/sched-stats.rst`, `/proc/<pid>/schedstat`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Activity {
    /// Its state: `R` = runs or waits for a CPU, `D` = waits and cannot be woken, `T` = stopped, `S` = sleeps.
    pub state: u8,
    /// CPU time that it has had, in µs.
    pub ran_us: u64,
    /// How long it has waited for a CPU before each time that it had one, in µs; what it waits now is not in it.
    pub waited_us: u64,
    /// How often it was given a CPU; 0 = this kernel does not count that, nor the wait.
    pub turns: u64,
}

/// Why a request makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// The manifest names no such worker.
    NoSuchWorker,
    /// That instance of it runs already, or as many as may.
    Running,
    /// A start came without its one descriptor.
    NoSocket,
    /// The manifest has no tombstone.
    NoTombstone,
    /// The front has offered no binary for it.
    NothingOffered,
    /// What the front has offered can still be changed, or is no memfd.
    NotSealed,
    /// The start program that the front has offered cannot be read, or is longer than one can be.
    NoProgram,
    /// The spawner is gone.
    Lost,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Refusal::NoSuchWorker => "the manifest names no such worker",
            Refusal::Running => "that instance of it runs already, or as many as may",
            Refusal::Lost => "the VM's spawner is gone",
            Refusal::NoSocket => "no control socket came with the request",
            Refusal::NoTombstone => "the manifest has no tombstone",
            Refusal::NothingOffered => "no other binary was offered for it",
            Refusal::NotSealed => "the binary that was offered for it is not sealed against changes",
            Refusal::NoProgram => "the start program that was offered with the binary cannot be read",
        })
    }
}

/// How a worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// By itself, with this status.
    Exited(i32),
    /// By a signal: 31 (`SIGSYS`) is a refused system call.
    Signaled {
        /// Its number.
        signal: i32,
        /// Whether a core was written (never, in the jail).
        core: bool,
    },
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Cause::Exited(status) => write!(f, "exited with status {status}"),
            Cause::Signaled { signal: 31, .. } => {
                f.write_str("was killed for a system call that its policy refuses")
            }
            Cause::Signaled { signal, .. } => write!(f, "was killed by signal {signal}"),
        }
    }
}

/// Every value that decodes is in bounds: an index that names no worker is answered, not dropped.
impl Checked for Request {
    fn check(&self) -> Result<(), CodecError> {
        Ok(())
    }
}

impl Checked for Offer {
    fn check(&self) -> Result<(), CodecError> {
        Ok(())
    }
}

impl Checked for Event {
    fn check(&self) -> Result<(), CodecError> {
        Ok(())
    }
}
