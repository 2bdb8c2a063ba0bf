//! Ending a vCPU's run from any thread, without losing one.
#![allow(unsafe_code)] // Signals.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, Once, PoisonError};

use cellblock_hypervisor::Kick;

use super::run_page::RunPage;

/// A vCPU's sticky kick.
///
/// A kicker does three things in this order: it sets `pending`, sets `immediate_exit`, signals the bound thread (all under one lock, so that one
/// who finds `pending` set has nothing left to do). The vCPU that gets `EINTR` from `KVM_RUN` clears `immediate_exit`, and then takes `pending`. So whatever the vCPU's thread is doing:
///
/// - before `KVM_RUN`, or on the way in before the kernel's check: `immediate_exit` makes it return;
/// - in the guest, or past that check: the signal makes it return (the kernel checks for signals with interrupts off, last thing before the guest);
/// - between clearing and taking, as another kick comes: either `pending` is taken now and the later `immediate_exit` costs one
///   spurious `EINTR`, or `pending` is set after it was taken, and then `immediate_exit` is set after it was cleared.
///
/// `pending` alone decides; the other two only bring the vCPU to look at it.
pub(super) struct Kicker {
    page: Arc<RunPage>,
    pending: AtomicBool,
    /// The bound thread, while there is one. Held while signalling, so that a thread that has gone, or another that got its number, is never
    /// signalled.
    thread: Mutex<Option<libc::pid_t>>,
}

impl Kicker {
    pub(super) fn new(page: Arc<RunPage>) -> Self {
        Self { page, pending: AtomicBool::new(false), thread: Mutex::new(None) }
    }

    /// From now on the calling thread is signalled.
    pub(super) fn bind(&self) {
        receive_signal();
        // SAFETY: no argument, cannot fail.
        let thread = unsafe { libc::syscall(libc::SYS_gettid) } as libc::pid_t;
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
    }

    /// From now on nobody is.
    pub(super) fn unbind(&self) {
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Takes the pending kick, if there is one, and lets the vCPU run again.
    pub(super) fn take(&self) -> bool {
        self.page.immediate_exit().store(0, SeqCst);
        self.pending.swap(false, SeqCst)
    }

    /// Makes the next `KVM_RUN` complete what is pending and no more.
    pub(super) fn hold(&self) {
        self.page.immediate_exit().store(1, SeqCst);
    }

    /// Ends [`hold`](Self::hold), unless a kick holds the vCPU too.
    pub(super) fn release(&self) {
        self.page.immediate_exit().store(0, SeqCst);
        // A kicker that sets `pending` after this look sets `immediate_exit` after it too.
        if self.pending.load(SeqCst) {
            self.hold();
        }
    }
}

impl Kick for Kicker {
    fn kick(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if self.pending.swap(true, SeqCst) {
            // The kicker before us has done all that is below, and the vCPU has not taken it yet.
            return;
        }
        self.hold();
        if let Some(thread) = *thread {
            signal(thread);
        }
    }
}

/// Signals a thread of this process that is alive.
fn signal(thread: libc::pid_t) {
    // The user's queue of real-time signals can be full (RLIMIT_SIGPENDING counts all their processes); others drain it.
    const TRIES: u32 = 10_000;
    for _ in 0..TRIES {
        // SAFETY: cannot fail, no argument.
        let process = unsafe { libc::getpid() };
        // SAFETY: plain numbers.
        if unsafe { libc::syscall(libc::SYS_tgkill, process, thread, libc::SIGRTMIN()) } == 0 {
            return;
        }
        std::thread::yield_now();
    }
}

/// Lets SIGRTMIN interrupt this thread's system calls and do nothing else.
fn receive_signal() {
    static HANDLER: Once = Once::new();
    HANDLER.call_once(|| {
        // SAFETY: all-zero is a valid `sigaction`: empty mask, no flags (so no SA_RESTART: the call must return).
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
        // SAFETY: a valid action whose handler touches nothing.
        unsafe { libc::sigaction(libc::SIGRTMIN(), &action, std::ptr::null_mut()) };
    });
    // SAFETY: all-zero is storage for a set; both calls get valid pointers.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    unsafe { libc::sigemptyset(&mut set) };
    // SAFETY: as above.
    unsafe { libc::sigaddset(&mut set, libc::SIGRTMIN()) };
    // SAFETY: as above. A thread made by one that blocks all signals would never be interrupted.
    unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut()) };
}

extern "C" fn nothing(_signal: libc::c_int) {}
