//! What a worker notes of its own death ([`last_words`]): the signal, where it stood, and which system call was refused.
//!
//! The kernel tells a parent the signal alone. So a process that has called [`watch`] hears of a fault first, notes it, and
//! then dies of it: of a refused call (`SECCOMP_RET_TRAP`) by one more while `SIGSYS` is blocked, of all
//! else by meeting it again without a handler. A refused call is never made, whatever becomes of the handler.
#![allow(unsafe_code)] // Signal handlers, and what the kernel hands to them.

use std::ffi::{c_int, c_void};
use std::io;
use std::sync::OnceLock;

use libc::{siginfo_t, ucontext_t};

use crate::last_words::{self, LastWords};
use crate::memory::{Mapping, Writable};

/// The signals that a process dies of by its own doing. A start program must let it set handlers for these, and a
/// serve program return from one (`rt_sigreturn`).
pub const SIGNALS: [c_int; 5] = [libc::SIGSYS, libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE];

/// What a handler is told (include/uapi/asm-generic/siginfo.h, 64-bit): the part that faults and refused calls have.
#[repr(C)]
struct Info {
    signo: i32,
    errno: i32,
    code: i32,
    padding: i32,
    /// `si_addr`, `si_call_addr`.
    address: u64,
    /// `si_syscall`, with `SIGSYS`.
    call: u32,
}

struct Watch {
    /// Where the binary's image begins.
    image: u64,
    replies: Mapping<Writable>,
}

/// The one thing that a handler can find: there is no other way into it than a static.
static WATCH: OnceLock<Watch> = OnceLock::new();

/// From now on a fault of any thread is noted in `replies`, right before the process dies of it. Once in a process; later calls
/// change nothing.
///
/// # Errors
/// The kernel does not take a handler.
pub fn watch(replies: Mapping<Writable>) -> io::Result<()> {
    // SAFETY: reads a number that the kernel gave at exec. The program headers stand in the image's first page.
    let image = unsafe { libc::getauxval(libc::AT_PHDR) } & !0xfff;
    if WATCH.set(Watch { image, replies }).is_err() {
        return Ok(());
    }
    SIGNALS.iter().try_for_each(|signal| handle(*signal))
}

fn handle(signal: c_int) -> io::Result<()> {
    // SAFETY: all zeroes is a valid sigaction.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_signal as extern "C" fn(c_int, *mut siginfo_t, *mut c_void) as usize;
    // A fault is met again without a handler; a refused call must find its signal blocked, not reset.
    let once = if signal == libc::SIGSYS { 0 } else { libc::SA_RESETHAND };
    action.sa_flags = libc::SA_SIGINFO | once;
    // SAFETY: `action` is whole, and its handler only stores into memory that stays mapped and makes system calls.
    match unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

extern "C" fn on_signal(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel hands a handler with SA_SIGINFO a whole siginfo_t, longer than this part of it, which is the
    // handler's alone until it returns.
    let &Info { code, address, call, .. } = unsafe { &*info.cast::<Info>() };
    let call = (signal == libc::SIGSYS).then_some(call);
    // SAFETY: as above, for the context.
    let instruction = unsafe { instruction(context.cast()) };
    if let Some(watch) = WATCH.get() {
        let instruction = instruction.wrapping_sub(watch.image);
        let words = LastWords { signal: signal as u32, code, call, address, instruction };
        last_words::note(&watch.replies, &words);
    }
    if call.is_some() {
        // SAFETY: takes numbers. No program of ours allows it; refused while its signal is blocked, it ends the process.
        unsafe { libc::syscall(libc::SYS_ptrace, 0, 0, 0, 0) };
    }
    if call.is_some() || code <= 0 {
        // Sent by somebody, it would not come again.
        // SAFETY: ends the process.
        unsafe { libc::_exit(128 + signal) }
    }
}

/// Where the thread stood.
///
/// # Safety
/// `context` is what the kernel handed to a handler.
unsafe fn instruction(context: *const ucontext_t) -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller's.
    unsafe {
        (*context).uc_mcontext.gregs[libc::REG_RIP as usize] as u64
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the caller's.
    unsafe {
        (*context).uc_mcontext.pc
    }
}
