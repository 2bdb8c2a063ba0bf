//! `CLOCK_MONOTONIC`, the clock of deadlines.

use std::time::Duration;

use cellblock_ring::Deadline;
use rustix::time::{ClockId, Timespec, clock_gettime};

const NS_PER_SECOND: u64 = 1_000_000_000;

/// Now, in ns of `CLOCK_MONOTONIC`. About 25 ns; no system call where the kernel offers the vDSO's clock.
pub fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    (now.tv_sec as u64).saturating_mul(NS_PER_SECOND).saturating_add(now.tv_nsec as u64)
}

/// The deadline `after` from now.
pub fn deadline_in(after: Duration) -> Deadline {
    Deadline::at(now().saturating_add(u64::try_from(after.as_nanos()).unwrap_or(u64::MAX)))
}

/// `deadline` as the kernel takes it; `None` = never.
pub(crate) fn timespec(deadline: Deadline) -> Option<Timespec> {
    deadline
        .ns()
        .map(|ns| Timespec { tv_sec: (ns / NS_PER_SECOND) as i64, tv_nsec: (ns % NS_PER_SECOND) as _ })
}
