//! The worker's half of its sandbox: what it closes itself once it is set up, so that nothing of what start-up needed
//! is left. The spawner's half (namespaces, uid, capabilities, limits, Landlock, the start program) is in place
//! before the worker's first instruction and does not rely on this.

use std::io;

use rustix::io::Errno;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{SecureComputingMode, secure_computing_mode, set_no_new_privs};
use thiserror::Error;

use super::install::{InstallError, install};
use super::landlock::Ruleset;

/// What of the sandbox was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed {
    /// Landlock denies every path (false: this kernel has no Landlock).
    pub landlock: bool,
    /// The serve program is installed (false: the spawner was told to do without seccomp).
    pub seccomp: bool,
}

/// A sandbox that could not be closed. The worker must end.
#[derive(Debug, Error)]
pub enum SealError {
    /// A step failed.
    #[error("closing the sandbox failed at {step}: {source}")]
    Step {
        /// Which.
        step: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The serve program was refused.
    #[error("closing the sandbox failed at the serve program: {0}")]
    Program(#[from] InstallError),
}

/// Makes the process undumpable (no ptrace, no `/proc/<pid>/mem`, no core) and denies every path by Landlock, without
/// any exception. Landlock holds for the calling thread and those that it starts afterwards: call this before the
/// first thread is made. Returns whether Landlock is in force.
///
/// # Errors
/// The step that failed.
pub fn deny_paths() -> Result<bool, SealError> {
    let failed = |step| move |error: Errno| SealError::Step { step, source: error.into() };
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(failed("dumpable"))?;
    // Only without the layer no-new-privs is this not set already; Landlock and seccomp cannot do without it.
    set_no_new_privs(true).map_err(failed("no_new_privs"))?;
    match Ruleset::deny_all().and_then(|ruleset| ruleset.restrict()) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EOPNOTSUPP)) => Ok(false),
        Err(source) => Err(SealError::Step { step: "landlock", source }),
    }
}

/// [`deny_paths`], then the serve program for all threads. Afterwards nothing but `serve_program` is allowed. Where the
/// process was started without a start program (the layer seccomp was waived) none is installed now either.
///
/// # Errors
/// The step that failed; the worker must end.
pub fn close_sandbox(serve_program: &[u8]) -> Result<Closed, SealError> {
    Ok(Closed { landlock: deny_paths()?, seccomp: allow_serving(serve_program)? })
}

/// The second half of [`close_sandbox`], for a process that has called [`deny_paths`] already: whether the serve program is
/// installed.
///
/// # Errors
/// As there.
pub fn allow_serving(serve_program: &[u8]) -> Result<bool, SealError> {
    let seccomp = filtered();
    if seccomp {
        install(serve_program, true)?;
    }
    Ok(seccomp)
}

/// Whether the calling thread runs under a seccomp program.
fn filtered() -> bool {
    secure_computing_mode() == Ok(SecureComputingMode::Filter)
}
