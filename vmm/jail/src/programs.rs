//! The seccomp programs of the VMM's own processes, compiled from `policy/<arch>/*.policy` by the build script. To let
//! a call through, add a line there. To find out which call is refused, pass [`Refusal::Log`] (`--log-refused`): it
//! passes and stands in the kernel's log (`dmesg | grep type=1326`, with `syscall=N` and the thread's name).

use std::borrow::Cow;

use cellblock_channel::process::install::install as install_program;
use cellblock_policy::{Refusal, with_refusal};

use crate::{JailError, Step};

/// The spawner's. Workers inherit it, so it allows what any worker may need; their own programs narrow it.
pub const SPAWNER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/spawner.serve.bpf"));
/// The supervisor's loop thread.
pub const SUPERVISOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/supervisor.serve.bpf"));
/// The supervisor's vCPU threads.
pub const VCPU: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/vcpu.serve.bpf"));
/// The loader.
pub const LOADER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/loader.serve.bpf"));

/// Installs `program` for the calling thread.
///
/// # Errors
/// [`Step::Seccomp`].
pub fn install(program: &[u8], refusal: Refusal) -> Result<(), JailError> {
    let program = match refusal {
        Refusal::Kill => Cow::Borrowed(program),
        other => Cow::Owned(with_refusal(program, other)),
    };
    install_program(&program, false).map_err(|error| JailError { step: Step::Seccomp, errno: error.errno() })
}
