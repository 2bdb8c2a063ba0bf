//! What a worker's process does, from the host's /proc: so that one that is kept from running is not taken for one that hangs.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use cellblock_jail::sys;

use crate::protocol::Activity;
use crate::slot::host_pid;

/// A tick of `/proc/PID/stat`, in ms: `USER_HZ` is 100 on every architecture that there is a policy for.
const TICK_MS: u64 = 10;

/// Of the process behind `pidfd`; `None` = `proc` does not show it.
pub(crate) fn of(proc: BorrowedFd, pidfd: &OwnedFd) -> Option<Activity> {
    let path = CString::new(format!("{}/stat", host_pid(proc, pidfd)?)).ok()?;
    let file = sys::open_at(proc, &path, 0).ok()?;
    let mut buffer = [0; 1024];
    let length = sys::read(file.as_fd(), &mut buffer).ok()?;
    parse(std::str::from_utf8(buffer.get(..length)?).ok()?)
}

/// This process, as `proc` numbers it.
pub(crate) fn own_pid(proc: BorrowedFd) -> Option<i32> {
    let file = sys::open_at(proc, c"self/stat", 0).ok()?;
    let mut buffer = [0; 32];
    let length = sys::read(file.as_fd(), &mut buffer).ok()?;
    let text = std::str::from_utf8(buffer.get(..length)?).ok()?;
    text.split_ascii_whitespace().next()?.parse().ok()
}

/// Fields 3 (state), 14 and 15 (user and kernel time) of a line whose second field is a name with whatever in it.
fn parse(text: &str) -> Option<Activity> {
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.bytes().next()?;
    let mut times = fields.skip(10).map(|ticks| ticks.parse::<u64>().ok());
    let (user, kernel) = (times.next()??, times.next()??);
    Some(Activity { state, cpu_ms: user.saturating_add(kernel).saturating_mul(TICK_MS) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_blanks_and_brackets_is_skipped() {
        let line = "77 (a) R 1 (b) S 1 77 77 0 -1 4194560 100 0 0 0 12 30 0 0 20 0 2 0 1 2 3";
        assert_eq!(parse(line), Some(Activity { state: b'S', cpu_ms: 420 }));
        assert_eq!(parse("77 (a) R 1 2 3"), None);
        assert_eq!(parse(""), None);
    }
}
