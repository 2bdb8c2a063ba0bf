//! Ranges of host uids that only one VM has. A range is a lock file in a directory that only root writes; the lock
//! (`flock`) is held by the open file, so it is freed when the last process that holds it is gone, whatever ended it.
//!
//! Default: 4096 ranges of 64 ids from 0x7000_0000 on (1879048192 to 1879310335), above what distributions give to users,
//! containers (systemd-nspawn ends at 0x6fff_ffff) and below the reserved upper half.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use thiserror::Error;

/// The first uid of the first range.
pub const BASE: u32 = 0x7000_0000;
/// Ids in a range: the spawner's, up to 62 workers', the supervisor's.
pub const COUNT: u32 = 64;
/// Ranges.
pub const RANGES: u32 = 4096;
/// Where the lock files are.
pub const DIRECTORY: &str = "/run/cellblock/uids";

/// No range could be had.
#[derive(Debug, Error)]
pub enum UidError {
    /// The directory or a lock file.
    #[error("uid ranges are locked in {path}, which fails: {source}")]
    Path {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// All are held.
    #[error("all {0} uid ranges are in use by other VMs; end one, or go without the layer uid")]
    Exhausted(u32),
}

/// A range held by this process and every process forked from it that keeps the file open.
#[derive(Debug)]
pub struct UidRange {
    /// The first uid (and gid).
    pub base: u32,
    /// How many.
    pub count: u32,
    /// Holds the lock.
    pub lock: File,
}

impl UidRange {
    /// The first free range, from [`DIRECTORY`].
    ///
    /// # Errors
    /// See [`UidError`].
    pub fn take() -> Result<UidRange, UidError> {
        UidRange::take_in(Path::new(DIRECTORY), BASE, RANGES)
    }

    /// The first free one of `ranges` ranges from `base` on, locked in `directory`.
    ///
    /// # Errors
    /// See [`UidError`].
    pub fn take_in(directory: &Path, base: u32, ranges: u32) -> Result<UidRange, UidError> {
        let failed = |path: &Path, source| UidError::Path { path: path.to_owned(), source };
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory)
            .and_then(|()| only_ours(directory))
            .map_err(|source| failed(directory, source))?;
        for number in 0..ranges {
            let path = directory.join(number.to_string());
            let lock = open_lock(&path).map_err(|source| failed(&path, source))?;
            match lock.try_lock() {
                Ok(()) => return Ok(UidRange { base: base + number * COUNT, count: COUNT, lock }),
                Err(fs::TryLockError::WouldBlock) => {}
                Err(fs::TryLockError::Error(source)) => return Err(failed(&path, source)),
            }
        }
        Err(UidError::Exhausted(ranges))
    }
}

/// Whoever else could write to `directory` could give two VMs one range.
fn only_ours(directory: &Path) -> io::Result<()> {
    let found = fs::symlink_metadata(directory)?;
    let (own, mode) = (crate::sys::own_ids().0, found.mode() & 0o7777);
    if found.is_dir() && found.uid() == own && mode & 0o022 == 0 {
        return Ok(());
    }
    let owner = found.uid();
    Err(io::Error::other(format!("others can change it (owner {owner}, mode {mode:o}); remove it")))
}

/// Lock files are never removed: one removed while another process waits on it would be held twice.
fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
}
