//! Sleeping on a shared reply word and a private kick word at once: `futex_waitv` (Linux 5.16 and later).
//!
//! The shared futex goes without `FUTEX_PRIVATE_FLAG`, for the waker is another process; the kernel then finds it by memfd
//! and offset, and a read-only mapping suffices to wait on it. No `unsafe` here: the kernel only compares the words.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Release};

use cellblock_ring::Deadline;
use cellblock_ring::words::{KickCell, Slept};
use rustix::io::Errno;
use rustix::thread::ClockId;
use rustix::thread::futex::{self, Flags, Wait, WaitFlags, WaitPtr, WaitvFlags};

use crate::clock;

/// A kick word: private to this process, never in shared memory, so that no worker can touch it.
#[derive(Debug, Default)]
pub struct PrivateWord(AtomicU32);

impl KickCell for PrivateWord {
    fn load(&self) -> u32 {
        self.0.load(Acquire)
    }

    fn bump(&self) {
        self.0.fetch_add(1, Release);
    }

    fn wake(&self) {
        // Waking can fail only for an address that is no futex: this one is aligned and mapped.
        let _ = futex::wake(&self.0, Flags::PRIVATE, 1);
    }
}

/// Sleeps until `word` differs from `expected`, `kick` differs from `expected_kick`, either is woken, or `deadline`.
pub(crate) fn wait(
    word: *const u32,
    expected: u32,
    kick: &PrivateWord,
    expected_kick: u32,
    deadline: Deadline,
) -> Slept {
    let waiters = [
        waiter(word, expected, WaitFlags::SIZE_U32),
        waiter(kick.0.as_ptr(), expected_kick, WaitFlags::SIZE_U32 | WaitFlags::PRIVATE),
    ];
    let timeout = clock::timespec(deadline);
    match futex::waitv(&waiters, WaitvFlags::empty(), timeout.as_ref(), ClockId::Monotonic) {
        Err(Errno::TIMEDOUT) => Slept::TimedOut,
        // Woken; EAGAIN: a word had changed already; EINTR: a signal.
        Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Slept::LookAgain,
        // A kernel without futex_waitv, or a filter that refuses it: sleep in small pieces rather than spin.
        Err(_) => {
            std::thread::sleep(std::time::Duration::from_micros(50));
            Slept::LookAgain
        }
    }
}

fn waiter(word: *const u32, expected: u32, flags: WaitFlags) -> Wait {
    let mut wait = Wait::new();
    wait.val = expected.into();
    wait.uaddr = WaitPtr::new(word.cast_mut().cast());
    wait.flags = flags;
    wait
}

/// Wakes one sleeper on a word that other processes share.
pub(crate) fn wake_shared(word: &AtomicU32) {
    // Waking can fail only for an address that is no futex: mapped words are aligned and stay mapped.
    let _ = futex::wake(word, Flags::empty(), 1);
}

/// Whether this kernel has `futex_waitv`, without which waits are coarse (for `cellblock doctor`).
pub fn available() -> bool {
    let word = AtomicU32::new(1);
    let wait = waiter(word.as_ptr(), 0, WaitFlags::SIZE_U32 | WaitFlags::PRIVATE);
    matches!(futex::waitv(&[wait], WaitvFlags::empty(), None, ClockId::Monotonic), Err(Errno::AGAIN))
}
