//! Guest memory, as a worker that does DMA has it: mapped whole from the sealed memfd of the grant.
//!
//! This process' own access copies: in or out of private buffers, with volatile or atomic loads and stores (vm-memory's), for
//! the guest's vCPUs write the same bytes at any moment. No reference to guest bytes leaves vm-memory. The kernel may be told
//! to move bytes between guest memory and a file without a copy in between ([`Ram::readv`], [`Ram::writev`]).
//!
//! `unsafe` because: vectored I/O by address, and giving pages back.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{SealFlags, fcntl_get_seals, fstat};
use rustix::io::Errno;
use rustix::mm::{Advice, madvise};
use rustix::param::page_size;
use smallvec::SmallVec;
use thiserror::Error;
use vm_memory::mmap::MmapRegion;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, Permissions,
};

/// The most pieces of guest memory that one call moves; what is left takes another.
const MAX_VECTORS: usize = 256;
/// On the stack, which is touched as far as there are some.
type Few = SmallVec<[libc::iovec; MAX_VECTORS]>;

/// Seals that keep a peer from shrinking it under us (`SIGBUS`).
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// One contiguous piece of guest memory, as the grant names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Guest-physical address of the first byte.
    pub address: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// Where it begins in the memfd.
    pub offset: u64,
}

/// Guest memory that is not as it should be.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RamError {
    /// The descriptor is no memfd, or could shrink.
    #[error("guest memory at {address:#x} has the seals {found:#x}, needed are {needed:#x}")]
    Seals {
        /// Guest-physical address of the piece.
        address: u64,
        /// `F_SEAL_*` bits.
        found: u32,
        /// `F_SEAL_*` bits.
        needed: u32,
    },
    /// The piece does not lie in its file.
    #[error(
        "guest memory at {address:#x} of {bytes:#x} bytes at {offset:#x} exceeds its file of {file:#x} bytes"
    )]
    Bounds {
        /// Guest-physical address of the piece.
        address: u64,
        /// Its length.
        bytes: u64,
        /// Where it would begin in the file.
        offset: u64,
        /// The file's size.
        file: u64,
    },
    /// It cannot be mapped.
    #[error("guest memory at {address:#x} cannot be mapped: {reason}")]
    Map {
        /// Guest-physical address of the piece.
        address: u64,
        /// Why.
        reason: String,
    },
    /// A system call failed.
    #[error("guest memory: {call} failed: {errno}")]
    Call {
        /// Which.
        call: &'static str,
        /// Why.
        errno: Errno,
    },
}

/// A piece of guest memory that a driver offers. Nothing about it is checked until it is touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Guest-physical address of the first byte.
    pub address: u64,
    /// Bytes.
    pub length: u32,
}

/// What [`Ram::writev`] promises of the bytes that went to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// They are where other readers of the file find them.
    Visible,
    /// They are on stable storage (`RWF_DSYNC`).
    Stable,
}

/// A guest's memory; clones share it.
#[derive(Debug, Clone)]
pub struct Ram(Arc<GuestMemoryMmap>);

impl Ram {
    /// Maps the granted pieces, each with its descriptor, in any order.
    ///
    /// # Errors
    /// See [`RamError`]; also if pieces overlap in the guest's address space.
    pub fn open(pieces: Vec<(Piece, OwnedFd)>) -> Result<Ram, RamError> {
        for (piece, fd) in &pieces {
            check_seals(piece, fd)?;
        }
        Ram::lent(pieces)
    }

    /// As [`open`](Self::open), of memory whose owner may shrink it: a touch is then the end of this process.
    ///
    /// # Errors
    /// As there, but for the seals.
    pub fn lent(pieces: Vec<(Piece, OwnedFd)>) -> Result<Ram, RamError> {
        let mut regions = pieces.into_iter().map(open_piece).collect::<Result<Vec<_>, _>>()?;
        regions.sort_by_key(vm_memory::GuestMemoryRegion::start_addr);
        let all = GuestMemoryMmap::from_regions(regions);
        all.map(Ram::from).map_err(|error| RamError::Map { address: 0, reason: error.to_string() })
    }

    /// No memory.
    pub fn none() -> Ram {
        Ram::from(GuestMemoryMmap::default())
    }

    /// Whether this is `other`, and not just like it.
    pub fn is(&self, other: &Ram) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// What vm-memory and virtio-queue work on.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.0
    }

    /// Fills guest memory from `fd`, one call of `preadv2`: from offset `at` on, or from where the descriptor stands. Returns
    /// how many bytes came; fewer than `into` holds if it is in more than 256 pieces. 0 = the end.
    ///
    /// # Errors
    /// The host's; `EFAULT` if a piece is not in guest memory, and nothing is touched.
    pub fn readv(
        &self,
        fd: BorrowedFd<'_>,
        into: impl IntoIterator<Item = Buffer>,
        at: Option<u64>,
    ) -> io::Result<usize> {
        let mut vectors = Few::new();
        let count = self.look_up(into, Permissions::Write, &mut vectors)?;
        let at = offset(at)?;
        moved(|| {
            // SAFETY: the `count` vectors lie in mappings that live as long as `self`. They are shared with the guest's
            // vCPUs anyway, and nothing in this process has a reference to what is in them.
            unsafe { libc::preadv2(fd.as_raw_fd(), vectors.as_ptr(), count, at, 0) }
        })
    }

    /// Gives guest memory to `fd`, one call of `pwritev2`: at offset `at`, or where the descriptor stands. Returns how many
    /// bytes went; fewer than `from` holds if it is in more than 256 pieces.
    ///
    /// # Errors
    /// As [`readv`](Self::readv).
    pub fn writev(
        &self,
        fd: BorrowedFd<'_>,
        from: impl IntoIterator<Item = Buffer>,
        at: Option<u64>,
        durability: Durability,
    ) -> io::Result<usize> {
        let mut vectors = Few::new();
        let count = self.look_up(from, Permissions::Read, &mut vectors)?;
        let at = offset(at)?;
        let flags = match durability {
            Durability::Visible => 0,
            Durability::Stable => libc::RWF_DSYNC,
        };
        moved(|| {
            // SAFETY: as in `readv`; the kernel only reads them.
            unsafe { libc::pwritev2(fd.as_raw_fd(), vectors.as_ptr(), count, at, flags) }
        })
    }

    /// How many bytes there are.
    pub fn bytes(&self) -> u64 {
        self.memory().iter().map(GuestMemoryRegion::len).sum()
    }

    /// Whether all of a range of addresses is guest memory. No bytes are, anywhere.
    pub fn holds(&self, address: u64, length: u64) -> bool {
        let Ok(bytes) = usize::try_from(length) else { return false };
        GuestMemory::check_range(self.memory(), GuestAddress(address), bytes, Permissions::Write)
    }

    /// Gives the host back what lies in whole pages of the guest memory from `address` on: it reads as zeroes next time.
    /// Returns how many bytes that were.
    ///
    /// # Errors
    /// It is not guest memory (nothing is released), or the kernel refuses.
    pub fn release(&self, address: u64, length: u64) -> io::Result<u64> {
        let page = page_size() as u64;
        let first = address.checked_next_multiple_of(page).ok_or(Errno::FAULT)?;
        let end = address.checked_add(length).ok_or(Errno::FAULT)? / page * page;
        let whole = end.saturating_sub(first);
        let bytes = usize::try_from(whole).map_err(|_| Errno::FAULT)?;
        if !GuestMemory::check_range(self.memory(), GuestAddress(first), bytes, Permissions::Write) {
            return Err(Errno::FAULT.into());
        }
        let slices = GuestMemory::get_slices(self.memory(), GuestAddress(first), bytes, Permissions::Write);
        for slice in slices.map_err(|_| Errno::FAULT)? {
            let slice = slice.map_err(|_| Errno::FAULT)?;
            let start = slice.ptr_guard_mut();
            // SAFETY: the range lies in a shared mapping of guest memory, which stays mapped; that its bytes become zeroes
            // is as if the guest had written them.
            unsafe { madvise(start.as_ptr().cast(), slice.len(), Advice::LinuxRemove) }?;
        }
        Ok(whole)
    }

    /// Puts the vectors of `pieces` into `vectors`, as many as there is room for; how many these are.
    fn look_up(
        &self,
        pieces: impl IntoIterator<Item = Buffer>,
        access: Permissions,
        vectors: &mut Few,
    ) -> io::Result<libc::c_int> {
        for Buffer { address, length } in pieces {
            let slices =
                GuestMemory::get_slices(self.memory(), GuestAddress(address), length as usize, access);
            for slice in slices.map_err(|_| Errno::FAULT)? {
                let slice = slice.map_err(|_| Errno::FAULT)?;
                // What does not fit is still looked at: a bad piece is an error wherever it is.
                if vectors.len() < MAX_VECTORS {
                    let start = slice.ptr_guard_mut();
                    vectors.push(libc::iovec { iov_base: start.as_ptr().cast(), iov_len: slice.len() });
                }
            }
        }
        Ok(vectors.len() as libc::c_int)
    }
}

/// As the system calls take it.
fn offset(at: Option<u64>) -> io::Result<i64> {
    at.map_or(Ok(-1), |at| i64::try_from(at).map_err(|_| Errno::FBIG.into()))
}

/// The outcome of a call that is made again while signals interrupt it; a worker gets none.
fn moved(call: impl Fn() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(count) => return Ok(count),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
}

impl From<GuestMemoryMmap> for Ram {
    fn from(memory: GuestMemoryMmap) -> Ram {
        Ram(Arc::new(memory))
    }
}

fn check_seals(piece: &Piece, fd: &OwnedFd) -> Result<(), RamError> {
    let seals = fcntl_get_seals(fd).unwrap_or(SealFlags::empty());
    if seals.contains(SEALS) {
        return Ok(());
    }
    Err(RamError::Seals { address: piece.address, found: seals.bits(), needed: SEALS.bits() })
}

fn open_piece((piece, fd): (Piece, OwnedFd)) -> Result<GuestRegionMmap, RamError> {
    let Piece { address, bytes, offset } = piece;
    let file = fstat(&fd).map_err(|errno| RamError::Call { call: "fstat", errno })?.st_size as u64;
    if bytes == 0 || offset.checked_add(bytes).is_none_or(|end| end > file) {
        return Err(RamError::Bounds { address, bytes, offset, file });
    }
    let refused = |reason: String| RamError::Map { address, reason };
    let length = usize::try_from(bytes).map_err(|error| refused(error.to_string()))?;
    let mapping = MmapRegion::from_file(FileOffset::new(File::from(fd), offset), length)
        .map_err(|error| refused(error.to_string()))?;
    GuestRegionMmap::new(mapping, GuestAddress(address))
        .ok_or_else(|| refused("its end exceeds 64 bits".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, fcntl_add_seals, ftruncate, memfd_create};
    use std::os::fd::AsFd;
    use vm_memory::Bytes;

    const MIB: u64 = 1 << 20;

    fn memfd(bytes: u64, seals: SealFlags) -> OwnedFd {
        let fd = memfd_create("ram", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&fd, bytes).unwrap();
        fcntl_add_seals(&fd, seals).unwrap();
        fd
    }

    #[test]
    fn pieces_lie_where_the_grant_says() {
        let fd = memfd(2 * MIB, SEALS);
        let high = (Piece { address: 4 << 30, bytes: MIB, offset: MIB }, fd.try_clone().unwrap());
        let low = (Piece { address: 0, bytes: MIB, offset: 0 }, fd.try_clone().unwrap());
        let ram = Ram::open(vec![high, low]).unwrap();
        ram.memory().write_obj(7u64, GuestAddress(4 << 30)).unwrap();
        let mut bytes = [0; 8];
        rustix::io::pread(&fd, &mut bytes, MIB).unwrap();
        assert_eq!(u64::from_le_bytes(bytes), 7);
        assert!(ram.memory().write_obj(7u64, GuestAddress(MIB - 4)).is_err(), "it leaves the piece");
    }

    #[test]
    fn what_could_shrink_or_is_too_small_is_refused() {
        let piece = Piece { address: 0, bytes: MIB, offset: 0 };
        let open = |piece, fd| Ram::open(vec![(piece, fd)]).map(|_| ()).unwrap_err();
        assert!(matches!(open(piece, memfd(MIB, SealFlags::GROW)), RamError::Seals { .. }));
        for offset in [1, MIB, u64::MAX] {
            let error = open(Piece { offset, ..piece }, memfd(MIB, SEALS));
            assert!(matches!(error, RamError::Bounds { .. }), "{error}");
        }
        assert!(matches!(open(Piece { bytes: 0, ..piece }, memfd(MIB, SEALS)), RamError::Bounds { .. }));
    }

    /// 1 MiB at 0 and, as another mapping, right behind it.
    fn two_mappings() -> Ram {
        let fd = memfd(2 * MIB, SEALS);
        let piece = |number| {
            (Piece { address: number * MIB, bytes: MIB, offset: (1 - number) * MIB }, fd.try_clone().unwrap())
        };
        Ram::open(vec![piece(0), piece(1)]).unwrap()
    }

    fn buffer(address: u64, length: u32) -> Buffer {
        Buffer { address, length }
    }

    #[test]
    fn bytes_move_over_borders_of_buffers_and_mappings() {
        let (ram, file) = (two_mappings(), memfd(MIB, SealFlags::empty()));
        rustix::io::pwrite(&file, b"0123456789abcdef", 100).unwrap();
        let into = [buffer(5, 3), buffer(MIB - 2, 4), buffer(0x2000, 9)];
        assert_eq!(ram.readv(file.as_fd(), into, Some(100)).unwrap(), 16);
        let mut got = [0; 9];
        ram.memory().read_slice(&mut got[..4], GuestAddress(MIB - 2)).unwrap();
        assert_eq!(&got[..4], b"3456");
        ram.memory().read_slice(&mut got, GuestAddress(0x2000)).unwrap();
        assert_eq!(&got, b"789abcdef");
        let from = [buffer(0x2000, 2), buffer(MIB - 2, 4)];
        for durability in [Durability::Visible, Durability::Stable] {
            rustix::io::pwrite(&file, &[0; 6], 50).unwrap();
            assert_eq!(ram.writev(file.as_fd(), from, Some(50), durability).unwrap(), 6);
            let mut got = [0; 7];
            rustix::io::pread(&file, &mut got, 50).unwrap();
            assert_eq!(&got, b"783456\0");
        }
    }

    #[test]
    fn streams_move_from_where_they_stand() {
        let (ram, (read, write)) = (two_mappings(), rustix::pipe::pipe().unwrap());
        ram.memory().write_slice(b"a stream", GuestAddress(0)).unwrap();
        let visible = Durability::Visible;
        assert_eq!(ram.writev(write.as_fd(), [buffer(0, 8)], None, visible).unwrap(), 8);
        assert_eq!(ram.readv(read.as_fd(), [buffer(0x100, 2), buffer(0x200, 100)], None).unwrap(), 8);
        let mut got = [0; 6];
        ram.memory().read_slice(&mut got, GuestAddress(0x200)).unwrap();
        assert_eq!(&got, b"stream");
        drop(write);
        assert_eq!(ram.readv(read.as_fd(), [buffer(0, 8)], None).unwrap(), 0, "the end");
    }

    #[test]
    fn what_is_not_guest_memory_is_not_moved() {
        let (ram, file) = (two_mappings(), memfd(MIB, SealFlags::empty()));
        rustix::io::pwrite(&file, &[7; 64], 0).unwrap();
        for bad in [(2 * MIB, 1), (2 * MIB - 1, 2), (u64::MAX, 1), (u64::MAX, 2), (0, u32::MAX)] {
            let list = [buffer(0, 8), buffer(bad.0, bad.1)];
            let error = ram.readv(file.as_fd(), list, Some(0)).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(Errno::FAULT.raw_os_error()));
            assert!(ram.writev(file.as_fd(), list, Some(1000), Durability::Visible).is_err());
        }
        let mut untouched = [1; 8];
        ram.memory().read_slice(&mut untouched, GuestAddress(0)).unwrap();
        assert_eq!(untouched, [0; 8]);
        rustix::io::pread(&file, &mut untouched, 1000).unwrap();
        assert_eq!(untouched, [0; 8]);
        assert!(ram.readv(file.as_fd(), [buffer(0, 8)], Some(u64::MAX)).is_err());
    }

    #[test]
    fn one_call_moves_so_many_pieces_and_no_more() {
        let (ram, file) = (two_mappings(), memfd(MIB, SealFlags::empty()));
        let mut many = vec![buffer(0, 2); MAX_VECTORS + 1];
        let visible = Durability::Visible;
        assert_eq!(
            ram.writev(file.as_fd(), many.iter().copied(), Some(0), visible).unwrap(),
            2 * MAX_VECTORS
        );
        many.push(buffer(u64::MAX, 2));
        assert!(
            ram.writev(file.as_fd(), many.iter().copied(), Some(0), visible).is_err(),
            "a bad one is found nevertheless"
        );
        assert_eq!(ram.writev(file.as_fd(), [], Some(0), visible).unwrap(), 0);
    }

    #[test]
    fn whole_pages_are_given_back() {
        let fd = memfd(2 * MIB, SEALS);
        let ram = Ram::open(vec![(Piece { address: 0, bytes: 2 * MIB, offset: 0 }, fd.try_clone().unwrap())])
            .unwrap();
        let page = page_size() as u64;
        ram.memory().write_slice(&vec![9; 2 * MIB as usize], GuestAddress(0)).unwrap();
        let blocks = || fstat(&fd).unwrap().st_blocks as u64 * 512;
        let before = blocks();
        assert_eq!(ram.release(page + 1, 3 * page).unwrap(), 2 * page);
        assert_eq!(before - blocks(), 2 * page);
        let byte = |at| ram.memory().read_obj::<u8>(GuestAddress(at)).unwrap();
        assert_eq!((byte(2 * page - 1), byte(2 * page), byte(4 * page - 1), byte(4 * page)), (9, 0, 0, 9));
        assert_eq!(ram.release(1, page).unwrap(), 0, "not a whole page");
        for (address, length) in
            [(2 * MIB, page), (2 * MIB - page, 2 * page), (u64::MAX, 1), (page, u64::MAX)]
        {
            assert!(ram.release(address, length).is_err(), "{address:#x}, {length:#x}");
        }
    }

    #[test]
    fn pieces_that_overlap_are_refused() {
        let fd = memfd(MIB, SEALS);
        let piece = |address| (Piece { address, bytes: MIB, offset: 0 }, fd.try_clone().unwrap());
        assert!(Ram::open(vec![piece(0), piece(4096)]).is_err());
    }
}
