//! Handing a compiled program to the kernel.
#![allow(unsafe_code)] // seccomp(2) takes a pointer to the program.

use std::io;

use thiserror::Error;

/// Bytes of one BPF instruction (`struct sock_filter`).
const INSTRUCTION: usize = size_of::<libc::sock_filter>();
/// The longest program that Linux takes, in bytes.
pub const MAX_PROGRAM: usize = libc::BPF_MAXINSNS as usize * INSTRUCTION;

/// A program that was not installed.
#[derive(Debug, Error)]
pub enum InstallError {
    /// Not a whole number of instructions, none, or too many.
    #[error("a seccomp program of {0} bytes is refused: it is 8 to 32768 bytes, a multiple of 8")]
    Length(usize),
    /// The kernel refuses it. `EACCES`: `no_new_privs` is not set. `EINVAL`: no seccomp, or an invalid program.
    #[error("the kernel refuses the seccomp program: {0}")]
    Kernel(#[source] io::Error),
    /// Another thread has installed a program of its own, so that this one cannot be given to it.
    #[error("thread {0} has a seccomp program of its own, so this one cannot be given to all threads")]
    Diverged(i32),
}

impl InstallError {
    /// The error number, for processes that can report no more (0 where the kernel gave none).
    pub fn errno(&self) -> i32 {
        match self {
            InstallError::Kernel(error) => error.raw_os_error().unwrap_or(0),
            InstallError::Length(_) => libc::EINVAL,
            InstallError::Diverged(_) => libc::ESRCH,
        }
    }
}

/// Installs `program` for the calling thread, or with `tsync` for every thread of the process. It cannot be taken
/// back. Needs `no_new_privs`, or `CAP_SYS_ADMIN` in the own user namespace. Allocates nothing.
///
/// # Errors
/// See [`InstallError`]; nothing is installed then.
pub fn install(program: &[u8], tsync: bool) -> Result<(), InstallError> {
    let count = program.len() / INSTRUCTION;
    if !program.len().is_multiple_of(INSTRUCTION) || count == 0 || program.len() > MAX_PROGRAM {
        return Err(InstallError::Length(program.len()));
    }
    // The kernel copies the program in byte by byte, so its alignment does not matter.
    let header = libc::sock_fprog { len: count as u16, filter: program.as_ptr().cast_mut().cast() };
    // What is refused stands in the kernel's log, also where it does not kill at once.
    let flags = libc::SECCOMP_FILTER_FLAG_LOG | if tsync { libc::SECCOMP_FILTER_FLAG_TSYNC } else { 0 };
    // SAFETY: `header` points to `count` whole instructions, which the kernel only reads, and both outlive the call.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const header) };
    match result {
        0 => Ok(()),
        thread if thread > 0 => Err(InstallError::Diverged(thread as i32)),
        _ => Err(InstallError::Kernel(io::Error::last_os_error())),
    }
}
