//! Core scheduling (Linux `Documentation/admin-guide/hw-vuln/core-scheduling.rst`): the threads of one core run at the same time only
//! what has the same cookie. Children have their parent's.

use std::collections::BTreeSet;
use std::io;

use thiserror::Error;

use crate::sys;

/// Why a process has no cookie.
#[derive(Debug, Error)]
pub enum CoreError {
    /// The kernel has none.
    #[error("this kernel has no core scheduling: it takes Linux 5.14 or later, built with CONFIG_SCHED_CORE")]
    Missing,
    /// There is nobody to be kept apart from.
    #[error("each core of this host runs one thread at a time, so nobody shares one")]
    OneThread,
    /// Something else.
    #[error("the kernel refuses it: {0}")]
    Refused(#[source] io::Error),
}

fn told(error: io::Error) -> CoreError {
    match error.raw_os_error() {
        Some(libc::EINVAL) => CoreError::Missing,
        Some(libc::ENODEV) => CoreError::OneThread,
        _ => CoreError::Refused(error),
    }
}

/// Gives this process, which has one thread, a cookie that nobody else has.
///
/// # Errors
/// See [`CoreError`].
pub fn take_cookie() -> Result<(), CoreError> {
    sys::new_core_cookie().map_err(told)
}

/// Whether there is core scheduling here.
///
/// # Errors
/// See [`CoreError`].
pub fn probe() -> Result<(), CoreError> {
    sys::core_cookie(0).map(drop).map_err(told)
}

/// The cookies of the threads of process `pid` that have not ended meanwhile, 0 where one has none; nothing where there is no core
/// scheduling.
///
/// # Errors
/// `pid` has ended, or may not be looked at.
pub(crate) fn cookies(pid: i32) -> io::Result<BTreeSet<u64>> {
    let mut found = BTreeSet::new();
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let Some(thread) = thread?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        match sys::core_cookie(thread) {
            Ok(cookie) => drop(found.insert(cookie)),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            Err(error) => {
                return match told(error) {
                    CoreError::Refused(error) => Err(error),
                    CoreError::Missing | CoreError::OneThread => Ok(BTreeSet::new()),
                };
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_lacks_is_told_apart() {
        let told = |errno| told(io::Error::from_raw_os_error(errno));
        assert!(matches!(told(libc::EINVAL), CoreError::Missing));
        assert!(matches!(told(libc::ENODEV), CoreError::OneThread));
        assert!(matches!(told(libc::EPERM), CoreError::Refused(_)));
    }

    #[test]
    fn this_process_has_the_cookies_of_its_threads() {
        let found = cookies(std::process::id().cast_signed()).unwrap();
        match probe() {
            Ok(()) => assert!(!found.is_empty()),
            Err(why) => {
                eprintln!("SKIP: no cookie to be read: {why}");
                assert!(found.is_empty(), "{found:?}");
            }
        }
    }
}
