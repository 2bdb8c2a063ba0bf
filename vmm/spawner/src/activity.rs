//! What a worker does, from the host's /proc: so that one that is kept from running is not taken for one that hangs.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use cellblock_jail::sys;

use crate::protocol::Activity;
use crate::slot::host_pid;

/// Of the process behind `pidfd`; `None` = `proc` does not show it.
pub(crate) fn of(proc: BorrowedFd, pidfd: &OwnedFd) -> Option<Activity> {
    let pid = host_pid(proc, pidfd)?;
    let mut buffer = [0; 1024];
    let state = state(read(proc, &format!("{pid}/stat"), &mut buffer)?)?;
    // A kernel may go without it.
    let [ran, waited, turns] =
        read(proc, &format!("{pid}/schedstat"), &mut buffer).and_then(times).unwrap_or_default();
    Some(Activity { state, ran_us: ran / 1000, waited_us: waited / 1000, turns })
}

/// This process, as `proc` numbers it.
pub(crate) fn own_pid(proc: BorrowedFd) -> Option<i32> {
    let mut buffer = [0; 32];
    let text = read(proc, "self/stat", &mut buffer)?;
    text.split_ascii_whitespace().next()?.parse().ok()
}

fn read<'b>(proc: BorrowedFd, path: &str, buffer: &'b mut [u8]) -> Option<&'b str> {
    let file = sys::open_at(proc, &CString::new(path).ok()?, 0).ok()?;
    let length = sys::read(file.as_fd(), buffer).ok()?;
    std::str::from_utf8(buffer.get(..length)?).ok()
}

/// Field 3 of a line whose second field is a name with whatever in it.
fn state(text: &str) -> Option<u8> {
    let (_, rest) = text.rsplit_once(')')?;
    rest.split_ascii_whitespace().next()?.bytes().next()
}

/// The three numbers of a `schedstat`: time on a CPU and time spent waiting for one, in ns, and turns.
fn times(text: &str) -> Option<[u64; 3]> {
    let mut numbers = text.split_ascii_whitespace().map(|word| word.parse().ok());
    Some([numbers.next()??, numbers.next()??, numbers.next()??])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_blanks_and_brackets_is_skipped() {
        assert_eq!(state("77 (a) R 1 (b) S 1 77 77 0 -1 4194560"), Some(b'S'));
        assert_eq!(state("77 (a)"), None);
        assert_eq!(state(""), None);
    }

    #[test]
    fn times_are_three_numbers() {
        assert_eq!(times("12345678 9 10\n"), Some([12_345_678, 9, 10]));
        assert_eq!(times("0 0 0"), Some([0, 0, 0]));
        assert_eq!(times("1 2"), None);
        assert_eq!(times("1 x 3"), None);
    }
}
