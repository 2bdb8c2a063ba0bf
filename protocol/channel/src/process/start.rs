//! A worker's start without a spawner, for tests.
#![allow(unsafe_code)] // What the spawner does between fork and exec: moving descriptors, installing a program, execveat.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};

use rustix::fs::{Mode, OFlags};

use super::install;
use crate::socket::Control;

/// Starts the binary at `path` under `name`, with `control` as descriptor 3 and nothing else open, with no environment, and under
/// the seccomp program `program`.
///
/// # Errors
/// The binary is missing, or a step fails before it is executed.
pub fn start(path: &Path, name: &CStr, control: Control, program: &[u8]) -> io::Result<Child> {
    let control = OwnedFd::from(control);
    let binary = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let (name, program) = (name.to_owned(), program.to_owned());
    let mut command = Command::new(path);
    // SAFETY: the closure makes system calls only; it allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(move || become_worker(control.as_raw_fd(), binary.as_raw_fd(), &program, &name))
    };
    command.spawn()
}

/// The spawner's steps that the tests need, then exec. Returns only if one fails.
fn become_worker(control: i32, binary: i32, program: &[u8], name: &CStr) -> io::Result<()> {
    let moved = |fd: i32| {
        // SAFETY: takes numbers.
        checked(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 100) })
    };
    let (control, binary) = (moved(control)?, moved(binary)?);
    // SAFETY: takes numbers. What these were is closed next: no owner of it runs any more.
    checked(unsafe { libc::dup2(control, 3) })?;
    // SAFETY: as above.
    checked(unsafe { libc::dup3(binary, 4, libc::O_CLOEXEC) })?;
    // SAFETY: takes numbers. Nothing of this process uses what is closed: it becomes another.
    checked(unsafe { libc::close_range(5, u32::MAX, 0) })?;
    // SAFETY: as above.
    checked(unsafe { libc::close_range(0, 2, 0) })?;
    // SAFETY: takes numbers.
    checked(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    install::install(program, false).map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
    let (name, none) = ([name.as_ptr(), std::ptr::null()], [std::ptr::null::<libc::c_char>()]);
    // SAFETY: both lists end with a null and live until the call is over.
    unsafe {
        libc::syscall(libc::SYS_execveat, 4, c"".as_ptr(), name.as_ptr(), none.as_ptr(), libc::AT_EMPTY_PATH)
    };
    Err(io::Error::last_os_error())
}

fn checked(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
