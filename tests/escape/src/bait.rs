//! What a test lays on the host for hostile workers to find, by names that no other test has.

use std::ffi::CStr;

/// The names, by which process laid it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bait {
    name: [u8; NAME + 1],
    /// The number of a shared memory, a queue and a semaphore.
    pub ipc_key: i32,
}

const NAME: usize = 24;
const FRONT: usize = 14;

/// Where a test writes its [`Bait::mark`] in its copy of the binary.
pub const MARK: [u8; NAME] = *b"escape's bait 0000000000";

/// Read as if it could change, for in copies it does.
static WHOSE: [u8; NAME] = MARK;

impl Bait {
    /// Of the process `pid`.
    pub fn of(pid: u32) -> Bait {
        let mut name = [0; NAME + 1];
        name.iter_mut().zip(format!("escape's bait {pid:010}").bytes()).for_each(|(to, from)| *to = from);
        Bait { name, ipc_key: 0x0c00_0000 | pid.cast_signed() & 0x00ff_ffff }
    }

    /// Of the test that this binary was copied for.
    #[allow(unsafe_code)] // Reads what the compiler would take for constant.
    pub fn laid() -> Bait {
        // SAFETY: an ordinary read of a static, which the compiler is kept from knowing.
        let whose = unsafe { std::ptr::read_volatile(&raw const WHOSE) };
        let digits = whose.get(FRONT..).unwrap_or_default();
        Bait::of(std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()).unwrap_or(0))
    }

    /// What stands in the place of [`MARK`].
    pub fn mark(&self) -> &[u8] {
        self.name.strip_suffix(&[0]).unwrap_or_default()
    }

    /// Of an abstract socket that listens.
    pub fn listener(&self) -> &[u8] {
        self.mark()
    }

    /// Of a key in the session keyring of whoever starts the VM.
    pub fn key(&self) -> &CStr {
        CStr::from_bytes_with_nul(&self.name).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_whole_and_differ() {
        let (one, other) = (Bait::of(u32::MAX), Bait::of(7));
        assert_eq!(one.key().to_bytes(), b"escape's bait 4294967295");
        assert!(one.listener() != other.listener() && one.ipc_key != other.ipc_key && one.ipc_key > 0);
        assert_eq!((Bait::laid(), Bait::laid().mark()), (Bait::of(0), MARK.as_slice()));
    }
}
