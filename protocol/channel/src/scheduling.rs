//! How a thread that wakes up takes its turn on a CPU that somebody else has: `sched(7)`.
//!
//! `unsafe` because: neither rustix nor nix has `sched_setscheduler(2)`.
#![allow(unsafe_code)]

use std::io;

/// What a thread that wakes up does to who runs on its CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waking {
    /// `SCHED_OTHER`: it may have the CPU at once.
    AtOnce,
    /// `SCHED_BATCH`: it waits until they sleep, or their turn is over (a few ms).
    InTurn,
}

/// The calling thread's; `None` = somebody gave it another policy (real time, idle), which is theirs to change.
pub fn waking() -> Option<Waking> {
    // SAFETY: 0 is the calling thread; nothing is passed by address.
    match unsafe { libc::sched_getscheduler(0) } {
        libc::SCHED_OTHER => Some(Waking::AtOnce),
        libc::SCHED_BATCH => Some(Waking::InTurn),
        _ => None,
    }
}

/// Changes the calling thread's. Needs no privilege.
///
/// # Errors
/// The host's: a filter that refuses it.
pub fn set_waking(waking: Waking) -> io::Result<()> {
    let policy = match waking {
        Waking::AtOnce => libc::SCHED_OTHER,
        Waking::InTurn => libc::SCHED_BATCH,
    };
    let param = libc::sched_param { sched_priority: 0 };
    // SAFETY: 0 is the calling thread; the kernel reads `param`, which outlives the call.
    if unsafe { libc::sched_setscheduler(0, policy, &param) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_changes_its_own_and_may_change_back() {
        let others = std::thread::spawn(|| {
            for waking in [Waking::InTurn, Waking::AtOnce, Waking::InTurn] {
                set_waking(waking).unwrap();
                assert_eq!(super::waking(), Some(waking));
            }
        });
        others.join().unwrap();
        assert_eq!(waking(), Some(Waking::AtOnce), "no other thread's");
    }
}
