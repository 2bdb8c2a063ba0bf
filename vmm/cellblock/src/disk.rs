//! A disk's image: opened, locked and measured by the front, so that the worker needs no path and no question.

use std::fs::{File, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cellblock_config::Disk;
use cellblock_wire::device::{BlockConfig, CacheMode, Format, SECTOR};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::OFlags;

use crate::front::paths;

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
    /// The files that it is based on, locked for reading.
    pub backing: Vec<OwnedFd>,
}

/// Opens and locks the image of `disk`, and what it is based on.
///
/// # Errors
/// A sentence: it cannot be opened, is in use, or is no disk.
pub(crate) fn open(disk: &Disk) -> Result<OpenDisk, String> {
    let direct = disk.cache == CacheMode::Direct;
    let image = open_file("disk image", &disk.path, disk.read_only, direct)?;
    let base = |path: &PathBuf| open_file("backing file", path, true, direct);
    let backing: Vec<File> = disk.backing.iter().map(base).collect::<Result<_, _>>()?;
    let (bytes, block_size) = match disk.format {
        Format::Raw => raw_size(&image, &disk.path, direct)?,
        // imago aligns requests to what the file wants.
        Format::Qcow2 => (qcow2_size(&image, &disk.path)?, SECTOR),
    };
    let config = BlockConfig {
        sectors: bytes / SECTOR,
        block_size: block_size as u32,
        read_only: disk.read_only,
        cache: disk.cache,
        queues: disk.queues,
        id: disk.id.clone(),
        format: disk.format,
        backing: backing.len() as u8,
        limits: disk.limits,
    };
    Ok(OpenDisk { config, image: image.into(), backing: backing.into_iter().map(OwnedFd::from).collect() })
}

/// Opens and locks one file of a disk.
fn open_file(what: &str, path: &Path, read_only: bool, direct: bool) -> Result<File, String> {
    let shown = path.display();
    let access = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
    let flags = if direct { OFlags::DIRECT } else { OFlags::empty() };
    let file = paths::open(path, access | flags).map_err(|error| {
        let hint = if direct { "; cache=direct needs a file system with O_DIRECT" } else { "" };
        format!("the {what} {shown} cannot be opened: {error}{hint}")
    })?;
    lock(&file, read_only).map_err(|error| match error {
        TryLockError::WouldBlock if read_only => {
            format!("the {what} {shown} is in use: another VM or program has it open for writing")
        }
        TryLockError::WouldBlock => {
            format!(
                "the {what} {shown} is in use by another VM or program; only readonly disks can be shared"
            )
        }
        TryLockError::Error(error) => format!("the {what} {shown} cannot be locked: {error}"),
    })?;
    Ok(file)
}

fn unreadable(path: &Path) -> impl Fn(io::Error) -> String {
    move |error| format!("the disk image {} cannot be read: {error}", path.display())
}

/// Bytes of the disk in a raw image, and of its blocks.
fn raw_size(mut image: &File, path: &Path, direct: bool) -> Result<(u64, u64), String> {
    let bytes = image.seek(SeekFrom::End(0)).map_err(unreadable(path))?;
    let block_size = if direct { direct_block(image).map_err(unreadable(path))? } else { SECTOR };
    if bytes == 0 || !bytes.is_multiple_of(block_size) {
        return Err(format!(
            "the disk image {} has {bytes} bytes; a raw image has a whole number of blocks of {block_size} bytes, and \
             at least one",
            path.display()
        ));
    }
    Ok((bytes, block_size))
}

/// Bytes of the disk in a qcow2 image. Of the image, which may be a stranger's, the front reads just this number, and that
/// it is one of the format; all else is read in the worker's sandbox.
fn qcow2_size(image: &File, path: &Path) -> Result<u64, String> {
    let mut space = AlignedBlock::new();
    let header = space.first(LARGEST_BLOCK);
    image.read_at(header, 0).map_err(unreadable(path))?;
    // docs/interop/qcow2.txt: magic and version in front, the disk's size in bytes at 24; big-endian.
    let size = header
        .get(24..32)
        .and_then(|bytes| bytes.first_chunk())
        .map_or(0, |bytes| u64::from_be_bytes(*bytes));
    let known = [2, 3].iter().any(|version| header.starts_with(&[b'Q', b'F', b'I', 0xfb, 0, 0, 0, *version]));
    if !known {
        return Err(format!("the disk image {} is no qcow2 image of version 2 or 3", path.display()));
    }
    if size == 0 || !size.is_multiple_of(SECTOR) || i64::try_from(size).is_err() {
        return Err(format!(
            "the disk image {} is of a disk of {size} bytes; it must be a multiple of {SECTOR}, and at least that",
            path.display()
        ));
    }
    Ok(size)
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
    let mut space = AlignedBlock::new();
    let mut refused = None;
    for size in [SECTOR as usize, LARGEST_BLOCK] {
        match image.read_at(space.first(size), 0) {
            Ok(_) => return Ok(size as u64),
            Err(error) => refused = Some(error),
        }
    }
    Err(refused.unwrap_or_else(|| io::ErrorKind::InvalidInput.into()))
}

/// A buffer at an address that `O_DIRECT` takes.
struct AlignedBlock(Vec<u8>);

impl AlignedBlock {
    fn new() -> Self {
        AlignedBlock(vec![0; 2 * LARGEST_BLOCK])
    }

    /// Its first `size` bytes, at most a block.
    fn first(&mut self, size: usize) -> &mut [u8] {
        let start = self.0.as_ptr().align_offset(LARGEST_BLOCK).min(LARGEST_BLOCK);
        self.0.get_mut(start..start + size.min(LARGEST_BLOCK)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cellblock_wire::device::Limits;

    fn disk(path: &std::path::Path, read_only: bool) -> Disk {
        let limits = Limits::default();
        let (cache, format) = (CacheMode::Writeback, Format::Raw);
        Disk {
            path: path.to_owned(),
            read_only,
            id: "a".into(),
            queues: 1,
            cache,
            format,
            backing: vec![],
            limits,
        }
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

    #[test]
    fn of_a_qcow2_image_its_size_is_read_and_its_base_is_locked() {
        let (image, base) =
            (tempfile::NamedTempFile::new().unwrap(), tempfile::NamedTempFile::new().unwrap());
        let mut header = b"QFI\xfb\0\0\0\x03".to_vec();
        header.resize(24, 0);
        header.extend((1u64 << 30).to_be_bytes());
        std::fs::write(image.path(), &header).unwrap();
        let backing = vec![base.path().to_owned()];
        let qcow2 = Disk { format: Format::Qcow2, backing, ..disk(image.path(), false) };
        let opened = open(&qcow2).unwrap();
        assert_eq!((opened.config.sectors, opened.config.backing), (1 << 21, 1));
        let refused = open(&disk(base.path(), false)).map(|_| ()).unwrap_err();
        assert!(refused.contains("only readonly disks can be shared"), "nobody writes below: {refused}");
        drop(opened);
        for (at, bytes, why) in [
            (7, &[4][..], "no qcow2 image"),
            (0, b"KDMV", "no qcow2 image"),
            (24, &[0xff; 8], "multiple of 512"),
            (24, &[0x80, 0, 0, 0, 0, 0, 0, 0], "of 9223372036854775808 bytes"),
            (24, &[0; 8], "of 0 bytes"),
        ] {
            let mut wrong = header.clone();
            wrong[at..at + bytes.len()].copy_from_slice(bytes);
            std::fs::write(image.path(), &wrong).unwrap();
            let refused = open(&qcow2).map(|_| ()).unwrap_err();
            assert!(refused.contains(why), "{refused}");
        }
        std::fs::write(image.path(), b"QFI").unwrap();
        assert!(open(&qcow2).is_err(), "a header that is cut short");
    }
}
