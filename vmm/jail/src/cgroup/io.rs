//! What a group may ask of the disk that holds a file (`io.max`), in each direction.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// Limits on one block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoLimit {
    /// Its major and minor number. The kernel limits whole disks, not partitions.
    pub device: (u32, u32),
    /// Bytes a second.
    pub bytes: Option<u64>,
    /// Requests a second, as the disk sees them.
    pub operations: Option<u64>,
}

/// As the kernel shows it in `io.max`.
impl fmt::Display for IoLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let told = |limit: Option<u64>| limit.map_or("max".to_owned(), |limit| limit.to_string());
        let ((major, minor), bytes, operations) = (self.device, told(self.bytes), told(self.operations));
        write!(f, "{major}:{minor} rbps={bytes} wbps={bytes} riops={operations} wiops={operations}")
    }
}

/// The whole disk that holds `file`, or is it; `None` of a file system without a block device of its own (tmpfs, overlay, btrfs, network).
///
/// # Errors
/// The file or sysfs cannot be looked at.
pub fn disk_of(file: BorrowedFd<'_>) -> io::Result<Option<(u32, u32)>> {
    let found = File::from(file.try_clone_to_owned()?).metadata()?;
    let device = if found.file_type().is_block_device() { found.rdev() } else { found.dev() };
    whole_disk(Path::new("/sys/dev/block"), (libc::major(device), libc::minor(device)))
}

fn whole_disk(devices: &Path, (major, minor): (u32, u32)) -> io::Result<Option<(u32, u32)>> {
    let device = devices.join(format!("{major}:{minor}"));
    if !device.try_exists()? {
        return Ok(None);
    }
    if !device.join("partition").try_exists()? {
        return Ok(Some((major, minor)));
    }
    let numbers = fs::read_to_string(device.join("../dev"))?;
    let parsed = numbers.trim().split_once(':').and_then(|(major, minor)| {
        let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
        Some((major, minor))
    });
    parsed.map(Some).ok_or_else(|| io::Error::other(format!("its disk has the number {numbers:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;

    #[test]
    fn limits_are_told_as_the_kernel_tells_them() {
        let limit = IoLimit { device: (253, 16), bytes: Some(1 << 20), operations: None };
        assert_eq!(limit.to_string(), "253:16 rbps=1048576 wbps=1048576 riops=max wiops=max");
        let limit = IoLimit { device: (8, 0), bytes: None, operations: Some(100) };
        assert_eq!(limit.to_string(), "8:0 rbps=max wbps=max riops=100 wiops=100");
    }

    #[test]
    fn a_partition_is_its_disk_and_memory_is_none() {
        let sys = tempfile::tempdir().unwrap();
        let (disk, part) = (sys.path().join("sda"), sys.path().join("sda/sda1"));
        fs::create_dir_all(&part).unwrap();
        fs::write(disk.join("dev"), "8:0\n").unwrap();
        fs::write(part.join("partition"), "1\n").unwrap();
        symlink(&disk, sys.path().join("8:0")).unwrap();
        symlink(&part, sys.path().join("8:1")).unwrap();
        assert_eq!(whole_disk(sys.path(), (8, 0)).unwrap(), Some((8, 0)));
        assert_eq!(whole_disk(sys.path(), (8, 1)).unwrap(), Some((8, 0)));
        assert_eq!(whole_disk(sys.path(), (0, 40)).unwrap(), None);
        let proc = File::open("/proc/version").unwrap();
        assert_eq!(disk_of(proc.as_fd()).unwrap(), None);
    }
}
