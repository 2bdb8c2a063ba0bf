//! The memfd and its mappings.
#![allow(unsafe_code)] // Mappings made here are advised and aligned; nothing is dereferenced.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{Advice, MapFlags, ProtFlags};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::layout::{Region, UNIT, regions};
use crate::{Error, Result};

const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);
/// `statfs.f_type` of hugetlbfs (Linux `include/uapi/linux/magic.h`).
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

/// A guest's memory as a sealed memfd, not mapped. Cheap to clone.
#[derive(Debug, Clone)]
pub struct GuestRam {
    file: Arc<File>,
    bytes: u64,
    hugepages: bool,
}

impl GuestRam {
    /// Makes `bytes` of zeroed memory; see [`regions`] for the sizes allowed. With `hugepages` it comes from the host's pool of 2-MiB
    /// pages, all of it reserved by the first [`map`](Self::map).
    ///
    /// # Errors
    /// [`Error::Size`], or [`Error::Call`] naming the call that failed.
    pub fn create(bytes: u64, hugepages: bool) -> Result<Self> {
        regions(bytes)?;
        let call = |call, hint| {
            move |errno: rustix::io::Errno| Error::Call { call, bytes, hint, source: errno.into() }
        };
        let mut flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        if hugepages {
            flags |= MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
        }
        let hint = if hugepages { " (does this host have 2-MiB hugepages? see /proc/meminfo)" } else { "" };
        let fd =
            rustix::fs::memfd_create("cellblock-guest-ram", flags).map_err(call("memfd_create", hint))?;
        rustix::fs::ftruncate(&fd, bytes).map_err(call("ftruncate", hint))?;
        rustix::fs::fcntl_add_seals(&fd, SEALS).map_err(call("F_ADD_SEALS", ""))?;
        Ok(Self { file: Arc::new(File::from(fd)), bytes, hugepages })
    }

    /// Takes memory that another process made.
    ///
    /// # Errors
    /// [`Error::NotSealed`] or [`Error::Size`] if `fd` is not what [`create`](Self::create) makes.
    pub fn from_fd(fd: OwnedFd) -> Result<Self> {
        let call = |call| {
            move |errno: rustix::io::Errno| Error::Call { call, bytes: 0, hint: "", source: errno.into() }
        };
        let seals = rustix::fs::fcntl_get_seals(&fd).map_err(call("F_GET_SEALS (is this fd a memfd?)"))?;
        let missing = SEALS.difference(seals);
        if !missing.is_empty() {
            let names: Vec<_> = missing.iter_names().map(|(name, _)| name).collect();
            return Err(Error::NotSealed { missing: names.join(", ") });
        }
        let bytes = rustix::fs::fstat(&fd).map_err(call("fstat"))?.st_size as u64;
        regions(bytes)?;
        let kind = rustix::fs::fstatfs(&fd).map_err(call("fstatfs"))?.f_type as u64;
        Ok(Self { file: Arc::new(File::from(fd)), bytes, hugepages: kind == HUGETLBFS_MAGIC })
    }

    /// The memfd, for passing it on.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether it is made of 2-MiB pages.
    pub fn hugepages(&self) -> bool {
        self.hugepages
    }

    /// Maps all of it, shared and writable, each region aligned to [`UNIT`] where the host lets it. The mapping is left out of core dumps, and out of children: a fork need not copy its
    /// page tables, and a forked process has no guest memory unless it maps it.
    ///
    /// # Errors
    /// [`Error::Map`] or [`Error::Call`].
    pub fn map(&self) -> Result<GuestMemoryMmap> {
        let mapped: Result<Vec<_>> =
            regions(self.bytes)?.iter().map(|region| self.map_region(region)).collect();
        GuestMemoryMmap::from_regions(mapped?).map_err(|error| Error::Map {
            guest_addr: 0,
            bytes: self.bytes,
            reason: error.to_string(),
        })
    }

    fn map_region(&self, region: &Region) -> Result<GuestRegionMmap> {
        let refused =
            |reason: String| Error::Map { guest_addr: region.guest_addr, bytes: region.len, reason };
        let len =
            usize::try_from(region.len).map_err(|_| refused("it exceeds this host's addresses".into()))?;
        // Not MAP_NORESERVE for huge pages: a short pool must fail here, not as SIGBUS under the guest.
        let flags = mapping_flags(self.hugepages);
        let build = || {
            MmapRegionBuilder::new(len)
                .with_mmap_prot(ProtFlags::READ.union(ProtFlags::WRITE).bits() as i32)
                .with_mmap_flags(flags)
                .with_file_offset(FileOffset::from_arc(self.file.clone(), region.file_offset))
                .with_hugetlbfs(self.hugepages)
                .build()
                .map_err(|error| refused(error.to_string()))
        };
        let mapping = aligned(build()?, build)?;
        for advice in [Advice::LinuxDontFork, Advice::LinuxDontDump] {
            // SAFETY: the range is the mapping just made; neither advice changes its contents or validity here.
            unsafe { rustix::mm::madvise(mapping.as_ptr().cast(), len, advice) }.map_err(|errno| {
                Error::Call { call: "madvise", bytes: self.bytes, hint: "", source: io::Error::from(errno) }
            })?;
        }
        GuestRegionMmap::new(mapping, GuestAddress(region.guest_addr))
            .ok_or_else(|| refused("its end exceeds 64 bits".into()))
    }
}

/// `first`, or in its stead one that starts at a multiple of [`UNIT`], without which neither this process nor KVM can map
/// huge pages. The kernel lets mappings grow downwards: with what is too much for alignment taken at the old one's end, the
/// next one ends lower by just that. Where it does not, alignment is missed and nothing else.
fn aligned(first: MmapRegion, build: impl Fn() -> Result<MmapRegion>) -> Result<MmapRegion> {
    let excess = first.as_ptr() as usize % UNIT as usize;
    if excess == 0 {
        return Ok(first);
    }
    drop(first);
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a new mapping where the kernel likes, never accessed.
    let filler =
        unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), excess, ProtFlags::empty(), flags) };
    let second = build();
    if let Ok(filler) = filler {
        // SAFETY: the mapping made above, which nobody else knows of. A failure would leave unused addresses behind.
        let _ = unsafe { rustix::mm::munmap(filler, excess) };
    }
    second
}

fn mapping_flags(hugepages: bool) -> i32 {
    let flags = if hugepages { MapFlags::SHARED } else { MapFlags::SHARED | MapFlags::NORESERVE };
    flags.bits() as i32
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsRawFd;

    use vm_memory::{Bytes, GuestMemoryBackend};

    use super::*;
    use crate::{HIGH_BASE, LOW_LIMIT};

    #[test]
    fn two_mappings_of_the_same_fd_are_the_same_memory() {
        let made = GuestRam::create(UNIT, false).unwrap();
        let passed = GuestRam::from_fd(made.fd().try_clone_to_owned().unwrap()).unwrap();
        assert_eq!((passed.bytes(), passed.hugepages()), (UNIT, false));
        let (one, other) = (made.map().unwrap(), passed.map().unwrap());
        one.write_obj(0x1234_5678_u32, GuestAddress(UNIT - 4)).unwrap();
        assert_eq!(other.read_obj::<u32>(GuestAddress(UNIT - 4)).unwrap(), 0x1234_5678);
    }

    #[test]
    fn the_high_region_follows_the_low_one_in_the_file() {
        let ram = GuestRam::create(LOW_LIMIT + UNIT, false).unwrap();
        let map = ram.map().unwrap();
        map.write_obj(7_u64, GuestAddress(HIGH_BASE)).unwrap();
        let mut bytes = [0; 8];
        rustix::io::pread(ram.fd(), &mut bytes, LOW_LIMIT).unwrap();
        assert_eq!(u64::from_le_bytes(bytes), 7);
        assert!(map.read_obj::<u8>(GuestAddress(LOW_LIMIT)).is_err());
        assert_eq!(map.last_addr().0, HIGH_BASE + UNIT - 1);
    }

    #[test]
    fn nobody_can_resize_it_or_add_a_seal() {
        let ram = GuestRam::create(UNIT, false).unwrap();
        assert!(rustix::fs::ftruncate(ram.fd(), 0).is_err());
        assert!(rustix::fs::ftruncate(ram.fd(), 2 * UNIT).is_err());
        assert!(rustix::fs::fcntl_add_seals(ram.fd(), SealFlags::FUTURE_WRITE).is_err());
    }

    #[test]
    fn an_unsealed_fd_is_refused() {
        let fd = rustix::fs::memfd_create("x", MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&fd, UNIT).unwrap();
        let error = GuestRam::from_fd(fd).unwrap_err().to_string();
        assert!(error.contains("SHRINK") && error.contains("GROW") && error.contains("SEAL"), "{error}");
        assert!(GuestRam::from_fd(File::open("/dev/null").unwrap().into()).is_err());
    }

    #[test]
    fn the_mapping_stays_out_of_forks_and_dumps() {
        let ram = GuestRam::create(UNIT, false).unwrap();
        let map = ram.map().unwrap();
        let start = format!("{:x}-", map.get_host_address(GuestAddress(0)).unwrap() as usize);
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        let flags = smaps
            .lines()
            .skip_while(|line| !line.starts_with(&start))
            .find(|line| line.starts_with("VmFlags:"))
            .unwrap();
        assert!(flags.contains(" dc") && flags.contains(" dd"), "{flags}");
    }

    #[test]
    fn the_fd_does_not_survive_an_exec() {
        let ram = GuestRam::create(UNIT, false).unwrap();
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", ram.fd().as_raw_fd())).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
        assert_ne!(u32::from_str_radix(flags, 8).unwrap() & 0o2_000_000, 0, "{info}");
    }

    #[test]
    fn huge_pages_come_from_the_pool_or_fail_cleanly() {
        let free = fs::read_to_string("/proc/meminfo")
            .unwrap()
            .lines()
            .find_map(|line| {
                line.strip_prefix("HugePages_Free:").map(|rest| rest.trim().parse::<u64>().unwrap())
            })
            .unwrap_or(0);
        let made = GuestRam::create(UNIT, true);
        if free == 0 {
            eprintln!("SKIP: no free 2-MiB hugepages on this host; only the failure is tested");
            assert!(made.and_then(|ram| ram.map()).is_err());
            return;
        }
        let ram = made.unwrap();
        assert!(GuestRam::from_fd(ram.fd().try_clone_to_owned().unwrap()).unwrap().hugepages());
        ram.map().unwrap().write_obj(1_u8, GuestAddress(0)).unwrap();
    }
}
