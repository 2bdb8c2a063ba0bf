//! Guest memory, as a worker that does DMA has it: mapped whole from the sealed memfd of the grant.
//!
//! All access copies: in or out of private buffers, with volatile or atomic loads and stores (vm-memory's), for the guest's
//! vCPUs write the same bytes at any moment. No reference to guest bytes leaves vm-memory.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{SealFlags, fcntl_get_seals, fstat};
use rustix::io::Errno;
use thiserror::Error;
use vm_memory::mmap::MmapRegion;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

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

/// A guest's memory; clones share it.
#[derive(Debug, Clone)]
pub struct Ram(Arc<GuestMemoryMmap>);

impl Ram {
    /// Maps the granted pieces, each with its descriptor, in any order.
    ///
    /// # Errors
    /// See [`RamError`]; also if pieces overlap in the guest's address space.
    pub fn open(pieces: Vec<(Piece, OwnedFd)>) -> Result<Ram, RamError> {
        let mut regions = pieces.into_iter().map(open_piece).collect::<Result<Vec<_>, _>>()?;
        regions.sort_by_key(vm_memory::GuestMemoryRegion::start_addr);
        let all = GuestMemoryMmap::from_regions(regions);
        all.map(Ram::from).map_err(|error| RamError::Map { address: 0, reason: error.to_string() })
    }

    /// What vm-memory and virtio-queue work on.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.0
    }
}

impl From<GuestMemoryMmap> for Ram {
    fn from(memory: GuestMemoryMmap) -> Ram {
        Ram(Arc::new(memory))
    }
}

fn open_piece((piece, fd): (Piece, OwnedFd)) -> Result<GuestRegionMmap, RamError> {
    let Piece { address, bytes, offset } = piece;
    let seals = fcntl_get_seals(&fd).unwrap_or(SealFlags::empty());
    if !seals.contains(SEALS) {
        return Err(RamError::Seals { address, found: seals.bits(), needed: SEALS.bits() });
    }
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

    #[test]
    fn pieces_that_overlap_are_refused() {
        let fd = memfd(MIB, SEALS);
        let piece = |address| (Piece { address, bytes: MIB, offset: 0 }, fd.try_clone().unwrap());
        assert!(Ram::open(vec![piece(0), piece(4096)]).is_err());
    }
}
