//! A disk's image: opened, locked and measured by the front, so that the worker needs no path and no question.

use std::fs::{File, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::{Duration, Instant};

use cellblock_config::Disk;
use cellblock_wire::device::{BlockConfig, CacheMode, SECTOR};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::OFlags;

/// How long the processes of a VM that has just ended may still hold an image.
const PATIENCE: Duration = Duration::from_secs(1);
/// The largest logical block that a host's disk has, and what `O_DIRECT` wants at most of a buffer's address.
const LARGEST_BLOCK: usize = 4096;

/// A disk, ready to be granted.
pub(crate) struct OpenDisk {
    /// What the worker is told.
    pub config: BlockConfig,
    /// The image. Its lock lives as long as any copy of the descriptor.
    pub image: OwnedFd,
}

/// Opens and locks the image of `disk`.
///
/// # Errors
/// A sentence: it cannot be opened, is in use, or is no disk.
pub(crate) fn open(disk: &Disk) -> Result<OpenDisk, String> {
    let path = disk.path.display();
    let direct = disk.cache == CacheMode::Direct;
    let flags = if direct { OFlags::DIRECT } else { OFlags::empty() };
    let mut image = File::options()
        .read(true)
        .write(!disk.read_only)
        .custom_flags(flags.bits() as i32)
        .open(&disk.path)
        .map_err(|error| {
            let hint = if direct { "; cache=direct needs a file system with O_DIRECT" } else { "" };
            format!("the disk image {path} cannot be opened: {error}{hint}")
        })?;
    lock(&image, disk.read_only).map_err(|error| match error {
        TryLockError::WouldBlock if disk.read_only => {
            format!("the disk image {path} is in use: another VM or program has it open for writing")
        }
        TryLockError::WouldBlock => {
            format!(
                "the disk image {path} is in use by another VM or program; only readonly disks can be shared"
            )
        }
        TryLockError::Error(error) => format!("the disk image {path} cannot be locked: {error}"),
    })?;
    let failed = |error: io::Error| format!("the disk image {path} cannot be read: {error}");
    let bytes = image.seek(SeekFrom::End(0)).map_err(failed)?;
    let block_size = if direct { direct_block(&image).map_err(failed)? } else { SECTOR };
    if bytes == 0 || !bytes.is_multiple_of(block_size) {
        return Err(format!(
            "the disk image {path} has {bytes} bytes; a raw image has a whole number of blocks of {block_size} bytes, and \
             at least one"
        ));
    }
    let config = BlockConfig {
        sectors: bytes / SECTOR,
        block_size: block_size as u32,
        read_only: disk.read_only,
        cache: disk.cache,
        queues: disk.queues,
        id: disk.id.clone(),
        format: disk.format,
        backing: 0,
        limits: disk.limits,
    };
    Ok(OpenDisk { config, image: image.into() })
}

/// An open-file-description lock on the whole image: shared for readers, exclusive for a writer. It belongs to the open file,
/// not to a process, so it goes with the descriptor to the worker and its successors.
fn lock(image: &File, shared: bool) -> Result<(), TryLockError> {
    let kind = if shared { libc::F_RDLCK } else { libc::F_WRLCK };
    let whole = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    let give_up = Instant::now() + PATIENCE;
    loop {
        match fcntl(image, FcntlArg::F_OFD_SETLK(&whole)) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN | Errno::EACCES) if Instant::now() >= give_up => {
                return Err(TryLockError::WouldBlock);
            }
            Err(Errno::EAGAIN | Errno::EACCES) => std::thread::sleep(PATIENCE / 50),
            Err(errno) => return Err(TryLockError::Error(errno.into())),
        }
    }
}

/// The smallest block that `O_DIRECT` takes here, found by trying.
fn direct_block(image: &File) -> io::Result<u64> {
    let mut space = vec![0; 2 * LARGEST_BLOCK];
    let start = space.as_ptr().align_offset(LARGEST_BLOCK).min(LARGEST_BLOCK);
    let mut refused = None;
    for size in [SECTOR as usize, LARGEST_BLOCK] {
        let block = space.get_mut(start..start + size).unwrap_or_default();
        match image.read_at(block, 0) {
            Ok(_) => return Ok(size as u64),
            Err(error) => refused = Some(error),
        }
    }
    Err(refused.unwrap_or_else(|| io::ErrorKind::InvalidInput.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cellblock_wire::device::{Format, Limits};

    fn disk(path: &std::path::Path, read_only: bool) -> Disk {
        let limits = Limits::default();
        let (cache, format) = (CacheMode::Writeback, Format::Raw);
        Disk { path: path.to_owned(), read_only, id: "a".into(), queues: 1, cache, format, limits }
    }

    #[test]
    fn writers_exclude_and_readers_share() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4096).unwrap();
        let writer = open(&disk(file.path(), false)).unwrap();
        assert_eq!(writer.config.sectors, 8);
        let refused = open(&disk(file.path(), true)).map(|_| ()).unwrap_err();
        assert!(refused.contains("in use"), "{refused}");
        // The lock is the open file's: it outlives this process's own copy.
        let elsewhere = writer.image.try_clone().unwrap();
        drop(writer);
        assert!(open(&disk(file.path(), false)).is_err());
        drop(elsewhere);
        let readers = [open(&disk(file.path(), true)).unwrap(), open(&disk(file.path(), true)).unwrap()];
        let refused = open(&disk(file.path(), false)).map(|_| ()).unwrap_err();
        assert!(refused.contains("only readonly disks can be shared"), "{refused}");
        drop(readers);
        assert!(open(&disk(file.path(), false)).is_ok());
    }

    #[test]
    fn what_is_no_disk_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let refused = |bytes: u64| {
            file.as_file().set_len(bytes).unwrap();
            open(&disk(file.path(), false)).map(|_| ()).unwrap_err()
        };
        assert!(refused(0).contains("has 0 bytes"));
        assert!(refused(513).contains("has 513 bytes"));
        assert!(open(&disk("/nonexistent".as_ref(), true)).is_err());
    }
}
