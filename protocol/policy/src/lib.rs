//! Seccomp policies: readable text in, BPF out, at build time. What installs such a program is `cellblock_channel::process`.
//!
//! Features, so that a worker does not carry the compiler:
//!
//! - `compile` (build scripts, the `cellblock-policy` tool): [`compile()`], [`compile_file`], [`build::embed`] and the
//!   interpreter [`simulate`] for tests that ask what a program says to a call.
//! - `names`: [`call_name`].
//!
//! # The language
//!
//! ```text
//! include ../../sdk/policy/x86_64/worker.policy
//!
//! [start]                      # allowed from exec until the sandbox closes, besides all of [serve]
//! mmap: arg2 & ~(PROT_READ|PROT_WRITE) == 0
//!
//! [serve]                      # all that is left afterwards
//! read                         # why it is needed
//! fcntl: arg1.low == F_GETFL || arg1.low == F_SETFL && arg2 == O_NONBLOCK
//!
//! [vhost-user]                 # left besides [serve] in a worker that serves another VMM, and only there
//! munmap
//! ```
//!
//! One system call a line, and whoever reads the line knows what is allowed: a name alone allows every argument; after
//! the colon come conditions, `&&` binding tighter than `||`. `argN` (0 to 5) is the whole 64-bit register;
//! `argN.low` its lower half, for arguments that the kernel takes as `int` and callers leave dirt above. Operators:
//! `==`, `!=`, `<`, `<=`, `>`, `>=`, and `argN & MASK == VALUE`. Values are numbers or the names in
//! `constants.rs`, joined by `|`, complemented by `~`, grouped by parentheses. The same call on two lines is allowed
//! if either line allows it. A line of an included file is as if it stood in the including one; lines before the
//! first section header belong to both sections.
//!
//! What no line allows kills the process. To the start section the compiler adds what closing the sandbox needs
//! ([`SEAL`]).
#![forbid(unsafe_code)]

#[cfg(feature = "compile")]
pub mod build;
#[cfg(feature = "compile")]
mod compile;
#[cfg(feature = "compile")]
mod constants;
#[cfg(feature = "compile")]
mod dispatch;
#[cfg(feature = "compile")]
mod parse;
#[cfg(feature = "compile")]
mod shorten;
#[cfg(feature = "compile")]
pub mod simulate;
#[cfg(feature = "compile")]
mod trace;
#[cfg(feature = "compile")]
pub mod used;

#[cfg(feature = "compile")]
pub use compile::{Arch, PolicyError, SEAL, Section, compile, compile_file};

/// Bytes of one BPF instruction (`struct sock_filter`): code (16 bits), jt, jf (8 each), k (32), little-endian.
pub const INSTRUCTION_BYTES: usize = 8;
/// The most instructions that Linux takes in one program (`BPF_MAXINSNS`).
pub const MAX_INSTRUCTIONS: usize = 4096;

/// What becomes of a call that the program refuses, where it is not to be killed: for finding out what a policy lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Kill the process (`SECCOMP_RET_KILL_PROCESS`).
    Kill,
    /// Let it pass and write it to the kernel's audit log (`SECCOMP_RET_LOG`): `dmesg | grep type=1326`.
    Log,
    /// Send `SIGSYS` to the calling thread (`SECCOMP_RET_TRAP`). Without a handler, or blocked, it ends the process as
    /// `Kill` does; a worker's handler notes the call before it does.
    Trap,
}

const RET_K: u16 = 0x06;
const RET_KILL_PROCESS: u32 = 0x8000_0000;
const RET_TRAP: u32 = 0x0003_0000;
const RET_LOG: u32 = 0x7ffc_0000;

/// What this machine's kernel calls system call `number`, if it has one of that number.
#[cfg(feature = "names")]
pub fn call_name(number: u32) -> Option<&'static str> {
    let call = syscalls::Sysno::new(usize::try_from(number).ok()?)?;
    Some(call.name())
}

/// The program with every `KILL_PROCESS` replaced: a policy can be debugged without compiling it again. The check of
/// the architecture still kills.
pub fn with_refusal(program: &[u8], refusal: Refusal) -> Vec<u8> {
    let action = match refusal {
        Refusal::Kill => RET_KILL_PROCESS,
        Refusal::Log => RET_LOG,
        Refusal::Trap => RET_TRAP,
    };
    let mut changed = program.to_vec();
    // The first three instructions load, compare and refuse the architecture.
    for instruction in changed.chunks_exact_mut(INSTRUCTION_BYTES).skip(3) {
        let code = u16::from_le_bytes([instruction[0], instruction[1]]);
        let k = u32::from_le_bytes([instruction[4], instruction[5], instruction[6], instruction[7]]);
        if code == RET_K && k == RET_KILL_PROCESS {
            instruction[4..].copy_from_slice(&action.to_le_bytes());
        }
    }
    changed
}
