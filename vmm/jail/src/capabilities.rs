//! Dropping capabilities (capabilities(7)).

use std::io;

use crate::sys;

/// The highest capability number that any kernel may have.
const MOST: u64 = 63;
/// Root is nothing special, setuid keeps and raises nothing, no ambient capability can be raised; all locked.
const SECUREBITS: u64 = 0xef;

/// Send signals to processes of other uids.
pub const KILL: u64 = 1 << 5;
/// Change gids and groups.
pub const SETGID: u64 = 1 << 6;
/// Change uids.
pub const SETUID: u64 = 1 << 7;
/// Drop from the bounding set, set securebits.
pub const SETPCAP: u64 = 1 << 8;
/// Make namespaces.
pub const SYS_ADMIN: u64 = 1 << 21;

/// Takes everything out of the bounding set (but `kept`, a bit per capability) and out of the ambient set. Needs
/// [`SETPCAP`].
///
/// # Errors
/// The kernel's.
pub fn bound(kept: u64) -> io::Result<()> {
    for capability in (0..=MOST).filter(|number| kept & (1 << number) == 0) {
        match sys::prctl(libc::PR_CAPBSET_DROP, capability, 0) {
            Ok(_) => {}
            // Past the last one that this kernel has.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            Err(error) => return Err(error),
        }
    }
    sys::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0).map(drop)
}

/// Sets and locks the securebits. Needs [`SETPCAP`].
///
/// # Errors
/// The kernel's.
pub fn lock_securebits() -> io::Result<()> {
    sys::prctl(libc::PR_SET_SECUREBITS, SECUREBITS, 0).map(drop)
}

/// Keeps only `kept` in the effective and permitted sets, nothing in the inheritable one.
///
/// # Errors
/// The kernel's.
pub fn keep(kept: u64) -> io::Result<()> {
    sys::keep_capabilities(kept)
}
