//! The loader's jail: it parses a stranger's kernel image, so it keeps two descriptors to read, the guest memory to write
//! and one socket to answer on.

use std::os::fd::BorrowedFd;

use crate::step::During;
use crate::supervisor::{self, Confinement};
use crate::{JailError, Step, programs, sys};

/// Confines the whole process as the supervisor's, closes every descriptor but `kept`, and installs the loader's seccomp
/// program. The process must be single-threaded, with guest memory mapped.
///
/// # Errors
/// The step that failed; the process must end.
pub fn confine(how: &Confinement, kept: &[BorrowedFd]) -> Result<(), JailError> {
    close_others(kept).during(Step::Descriptors)?;
    supervisor::confine(how)?;
    supervisor::install(how, programs::LOADER)
}

/// Closes every descriptor but `kept`: a forked process drops what its parent had open. Whoever owns one of the others
/// must forget it.
///
/// # Errors
/// The kernel's.
pub fn close_others(kept: &[BorrowedFd]) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;
    let mut numbers: Vec<u32> = kept.iter().map(|fd| fd.as_raw_fd() as u32).collect();
    numbers.sort_unstable();
    let mut first = 0;
    for number in numbers {
        if number > first {
            sys::close_range(first, number - 1)?;
        }
        first = number + 1;
    }
    sys::close_range(first, u32::MAX)
}
