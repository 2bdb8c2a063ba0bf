//! Making calls, and telling what refused them.
#![allow(unsafe_code)] // System calls by their numbers, and the handler of the signal that a refused one raises.

use std::ffi::{CStr, c_int, c_long, c_void};
use std::sync::atomic::{AtomicBool, Ordering};

use libc::{siginfo_t, ucontext_t};

use crate::bait::Bait;

/// What did not let something through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// A seccomp program.
    Seccomp,
    /// Something else, which answered with this error number.
    Errno(i32),
}

/// What became of something that was tried; with what the last call returned.
pub type Attempt = Result<i64, Held>;

/// What the worker was started with and granted.
#[derive(Debug)]
pub struct Own {
    /// The control socket.
    pub control: i32,
    /// The ring memory that the supervisor writes and this process must not.
    pub requests: i32,
    /// Memory that it shares with others: rings, state page, and what else is a memfd.
    pub memories: Vec<i32>,
    /// All that it was granted.
    pub granted: Vec<i32>,
    /// The disk's image, of a disk.
    pub image: Option<i32>,
    /// What a test has laid on the host for it to find.
    pub bait: Bait,
}

/// Since the last look a seccomp program has refused something.
static REFUSED: AtomicBool = AtomicBool::new(false);

/// Refused calls are noted and answered with `ENOSYS` from now on.
pub fn survive_refusals() {
    // SAFETY: all zeroes is a valid sigaction.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_refusal as extern "C" fn(c_int, *mut siginfo_t, *mut c_void) as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: the action is whole, and its handler touches its own context and an atomic alone.
    unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) };
    // A file that may not grow says so by an error then. Where the policy forbids to block it, there is no file.
    let set = 1u64 << (libc::SIGXFSZ - 1);
    let _ = call(libc::SYS_rt_sigprocmask, [libc::SIG_BLOCK as usize, at(&set), 0, size_of_val(&set)]);
}

extern "C" fn on_refusal(_: c_int, _: *mut siginfo_t, context: *mut c_void) {
    REFUSED.store(true, Ordering::Relaxed);
    // The kernel has put the call's number back to where its result would be.
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the kernel hands a handler with SA_SIGINFO its context, which is the handler's until it returns.
    unsafe {
        (*context.cast::<ucontext_t>()).uc_mcontext.gregs[libc::REG_RAX as usize] = -i64::from(libc::ENOSYS);
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        (*context.cast::<ucontext_t>()).uc_mcontext.regs[0] = (-i64::from(libc::ENOSYS)) as u64;
    }
}

/// One system call.
///
/// # Errors
/// What held it.
pub fn call<const N: usize>(number: c_long, arguments: [usize; N]) -> Attempt {
    let mut all = [0; 6];
    all.iter_mut().zip(arguments).for_each(|(to, from)| *to = from);
    judged(|| {
        let [a, b, c, d, e, f] = all;
        // SAFETY: the callers' pointers are to whole objects that live on their stacks; what else a call may do to this process
        // is what is being tried.
        let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
        if result < 0 { Err(last_errno()) } else { Ok(result) }
    })
}

/// What `calls` comes to, which tells an error number.
///
/// # Errors
/// What held it.
pub fn judged(calls: impl FnOnce() -> Result<i64, i32>) -> Attempt {
    REFUSED.store(false, Ordering::Relaxed);
    let result = calls();
    if REFUSED.load(Ordering::Relaxed) { Err(Held::Seccomp) } else { result.map_err(Held::Errno) }
}

fn last_errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// Of several ways the first that gets through, else what held the last of those that a seccomp program let pass, else that: a policy
/// that lets one of them reach the kernel is seen.
///
/// # Errors
/// As told; `ENOENT` if there is no way.
pub fn any(ways: impl IntoIterator<Item = Attempt>) -> Attempt {
    let mut held = None;
    for way in ways {
        match (way, held) {
            (Ok(done), _) => return Ok(done),
            (Err(Held::Seccomp), Some(_)) => {}
            (Err(by), _) => held = Some(by),
        }
    }
    Err(held.unwrap_or(Held::Errno(libc::ENOENT)))
}

/// A pointer to something, as an argument.
pub fn at<T>(what: &T) -> usize {
    std::ptr::from_ref(what) as usize
}

/// A text, as an argument.
pub fn text(what: &CStr) -> usize {
    what.as_ptr() as usize
}

/// Opens `path` in every way that reads it.
///
/// # Errors
/// What held it.
pub fn open(path: &CStr, flags: i32) -> Attempt {
    let fd = call(libc::SYS_openat, [libc::AT_FDCWD as usize, text(path), flags as usize, 0o600])?;
    close(fd);
    Ok(fd)
}

/// Forgets a descriptor that was made on the way.
pub fn close(fd: i64) {
    let _ = call(libc::SYS_close, [fd as usize]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_past_the_policy_is_seen_whichever_it_is() {
        let (seccomp, errno) = (Err(Held::Seccomp), Err(Held::Errno(libc::EPERM)));
        for (ways, result) in [
            (vec![seccomp, errno, seccomp], errno),
            (vec![errno, seccomp], errno),
            (vec![seccomp, seccomp], seccomp),
            (vec![seccomp, Ok(7), errno], Ok(7)),
            (vec![], Err(Held::Errno(libc::ENOENT))),
        ] {
            assert_eq!(any(ways.clone()), result, "{ways:?}");
        }
    }
}
