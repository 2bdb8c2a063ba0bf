//! The register thread's timer: a timerfd that is touched only when the device's deadline moves forward.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use crate::device::SECOND;

/// A one-shot timer on `CLOCK_MONOTONIC`.
#[derive(Debug)]
pub(super) struct Timer {
    fd: OwnedFd,
    armed: Option<u64>,
}

impl Timer {
    pub(super) fn new() -> Result<Timer, Errno> {
        let fd = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        Ok(Timer { fd, armed: None })
    }

    /// Makes sure that the timer fires at `deadline` or before. One that fires early is cheaper than one that is moved.
    pub(super) fn arm(&mut self, deadline: Option<u64>) {
        let Some(deadline) = deadline else { return };
        if self.armed.is_some_and(|armed| armed <= deadline) {
            return;
        }
        // Zero would disarm it.
        let at = deadline.max(1);
        let it_value = Timespec { tv_sec: (at / SECOND) as i64, tv_nsec: (at % SECOND) as i64 };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
        if timerfd_settime(&self.fd, TimerfdTimerFlags::ABSTIME, &once).is_ok() {
            self.armed = Some(deadline);
        }
    }

    /// It fired.
    pub(super) fn fired(&mut self) {
        self.armed = None;
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
