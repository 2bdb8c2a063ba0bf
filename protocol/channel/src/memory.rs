//! Sealed memfds and their mappings.
//!
//! Every memfd is sealed `SHRINK | GROW | SEAL` before anybody else sees it: its size is fixed (nobody faults on it by
//! `SIGBUS`), and no peer can add a seal that would stop its successor. Requests also get `FUTURE_WRITE` once they are
//! mapped, so that nobody but their creator can ever write them.
//!
//! `unsafe` because: mapping memory, and loading and storing through the mapping. All access is by relaxed or release
//! atomics on whole aligned words; no reference to plain bytes is ever made.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::marker::PhantomData;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering::{self, AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64, fence};

use cellblock_ring::Deadline;
use cellblock_ring::words::{Slept, Wait, Wake, Words, WordsMut};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use thiserror::Error;

use crate::{clock, futex};

const WORD: usize = size_of::<u64>();
/// Seals that every memfd of ours carries.
const FIXED: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// Memory that cannot be made or is not what it should be.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// A system call failed.
    #[error("shared memory {name}: {call} failed: {errno}")]
    Call {
        /// Whose memory.
        name: String,
        /// Which call.
        call: &'static str,
        /// Why.
        errno: Errno,
    },
    /// A memfd that was received has another size.
    #[error("shared memory received has {bytes} bytes, expected are {expected}")]
    Size {
        /// Its size.
        bytes: u64,
        /// As agreed.
        expected: u64,
    },
    /// A memfd that was received lacks a seal (or is no memfd).
    #[error("shared memory received has the seals {found:#x}, needed are {needed:#x}")]
    Seals {
        /// `F_SEAL_*` bits.
        found: u32,
        /// `F_SEAL_*` bits.
        needed: u32,
    },
}

/// Marks a mapping that can only be read.
#[derive(Debug)]
pub enum ReadOnly {}
/// Marks a mapping that can also be written.
#[derive(Debug)]
pub enum Writable {}

/// A memfd with its creator's mapping.
#[derive(Debug)]
pub struct Sealed<A> {
    /// To be sent to the worker. Readable and, unless sealed against it, writable by whoever has it.
    pub fd: OwnedFd,
    /// The creator's mapping.
    pub map: Mapping<A>,
}

/// Bytes that `words` 64-bit words take.
pub const fn bytes(words: usize) -> usize {
    words * WORD
}

/// Memory that only its creator can write: sealed `SHRINK | GROW | FUTURE_WRITE | SEAL`, mapped for writing here.
///
/// # Errors
/// A system call fails; nothing is left behind.
pub fn create_requests(name: &str, bytes: usize) -> Result<Sealed<Writable>, MemoryError> {
    let fd = create(name, bytes)?;
    // Mapped first: FUTURE_WRITE refuses every later writable mapping, our own too.
    let map = Mapping::new(name, &fd, bytes, ProtFlags::READ | ProtFlags::WRITE)?;
    seal(name, &fd, FIXED | SealFlags::FUTURE_WRITE)?;
    Ok(Sealed { fd, map })
}

/// Memory that the receiver writes: sealed `SHRINK | GROW | SEAL`, mapped read-only here.
///
/// # Errors
/// As [`create_requests`].
pub fn create_replies(name: &str, bytes: usize) -> Result<Sealed<ReadOnly>, MemoryError> {
    let fd = create(name, bytes)?;
    seal(name, &fd, FIXED)?;
    let map = Mapping::new(name, &fd, bytes, ProtFlags::READ)?;
    Ok(Sealed { fd, map })
}

/// Memory that both sides write: sealed `SHRINK | GROW | SEAL`, mapped for writing here.
///
/// # Errors
/// As [`create_requests`].
pub fn create_shared(name: &str, bytes: usize) -> Result<Sealed<Writable>, MemoryError> {
    let fd = create(name, bytes)?;
    seal(name, &fd, FIXED)?;
    let map = Mapping::new(name, &fd, bytes, ProtFlags::READ | ProtFlags::WRITE)?;
    Ok(Sealed { fd, map })
}

/// A state page: as [`create_replies`].
///
/// # Errors
/// As [`create_requests`].
pub fn create_state(name: &str, bytes: usize) -> Result<Sealed<ReadOnly>, MemoryError> {
    create_replies(name, bytes)
}

/// Maps memory that was received, for reading.
///
/// # Errors
/// It is not of exactly `bytes` bytes, lacks a seal, or cannot be mapped.
pub fn open_read(fd: impl AsFd, bytes: usize) -> Result<Mapping<ReadOnly>, MemoryError> {
    check(&fd, bytes)?;
    Mapping::new("received", &fd, bytes, ProtFlags::READ)
}

/// Maps memory that was received, for writing.
///
/// # Errors
/// As [`open_read`].
pub fn open_write(fd: impl AsFd, bytes: usize) -> Result<Mapping<Writable>, MemoryError> {
    check(&fd, bytes)?;
    Mapping::new("received", &fd, bytes, ProtFlags::READ | ProtFlags::WRITE)
}

fn create(name: &str, bytes: usize) -> Result<OwnedFd, MemoryError> {
    // NOEXEC_SEAL is newer (6.3) than the oldest kernel that we run on; older ones refuse unknown flags.
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL)
        .or_else(|_| memfd_create(name, flags))
        .map_err(|errno| failed(name, "memfd_create", errno))?;
    ftruncate(&fd, bytes as u64).map_err(|errno| failed(name, "ftruncate", errno))?;
    Ok(fd)
}

fn seal(name: &str, fd: &OwnedFd, seals: SealFlags) -> Result<(), MemoryError> {
    fcntl_add_seals(fd, seals).map_err(|errno| failed(name, "F_ADD_SEALS", errno))
}

fn check(fd: impl AsFd, bytes: usize) -> Result<(), MemoryError> {
    let seals = fcntl_get_seals(&fd).unwrap_or(SealFlags::empty());
    if !seals.contains(FIXED) {
        return Err(MemoryError::Seals { found: seals.bits(), needed: FIXED.bits() });
    }
    let size = fstat(&fd).map_err(|errno| failed("received", "fstat", errno))?.st_size as u64;
    if size != bytes as u64 {
        return Err(MemoryError::Size { bytes: size, expected: bytes as u64 });
    }
    Ok(())
}

fn failed(name: &str, call: &'static str, errno: Errno) -> MemoryError {
    MemoryError::Call { name: name.to_owned(), call, errno }
}

/// A mapping of shared words; clones share it, the last one unmaps. Threads and processes may write at any moment.
pub struct Mapping<A> {
    region: Arc<Region>,
    access: PhantomData<fn() -> A>,
}

impl<A> Clone for Mapping<A> {
    fn clone(&self) -> Self {
        Mapping { region: Arc::clone(&self.region), access: PhantomData }
    }
}

impl<A> std::fmt::Debug for Mapping<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // No address: workers' logs must not tell any.
        f.debug_struct("Mapping").field("words", &self.region.words).finish_non_exhaustive()
    }
}

impl<A> Mapping<A> {
    fn new(name: &str, fd: impl AsFd, bytes: usize, protection: ProtFlags) -> Result<Self, MemoryError> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let start = unsafe { mmap(std::ptr::null_mut(), bytes, protection, MapFlags::SHARED, fd, 0) }
            .map_err(|errno| failed(name, "mmap", errno))?;
        let Some(start) = NonNull::new(start.cast()) else { return Err(failed(name, "mmap", Errno::FAULT)) };
        let region = Region { start, words: bytes / WORD, bytes };
        Ok(Mapping { region: Arc::new(region), access: PhantomData })
    }

    /// Bytes mapped.
    pub fn bytes(&self) -> usize {
        self.region.bytes
    }

    fn word(&self, index: usize) -> Option<&AtomicU64> {
        self.region.word(index)
    }

    /// The low half of a word: its first four bytes on a little-endian machine.
    fn low_half(&self, index: usize) -> Option<&AtomicU32> {
        let word = self.word(index)?.as_ptr().cast::<u32>();
        // SAFETY: the four bytes lie inside the word's eight, which live and stay mapped as long as `self`, and are
        // aligned to four. Only the kernel looks at them this way, for the futex.
        Some(unsafe { AtomicU32::from_ptr(word) })
    }
}

/// The mapping itself.
struct Region {
    start: NonNull<u64>,
    words: usize,
    bytes: usize,
}

// SAFETY: the memory is only accessed through atomics, from whichever thread.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    fn word(&self, index: usize) -> Option<&AtomicU64> {
        if index >= self.words {
            return None;
        }
        // SAFETY: `index` is inside the mapping.
        let word = unsafe { self.start.add(index) };
        // SAFETY: page-aligned start plus whole words is aligned; the mapping lives as long as `self`; in this process and
        // by the protocol in others all access is atomic. A read-only mapping is never stored to: only
        // `Mapping<Writable>` stores.
        Some(unsafe { AtomicU64::from_ptr(word.as_ptr()) })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: made by `Mapping::new` with this length; no reference outlives the last clone.
        let _ = unsafe { munmap(self.start.as_ptr().cast::<c_void>(), self.bytes) };
    }
}

impl<A> Words for Mapping<A> {
    fn len(&self) -> usize {
        self.region.words
    }

    #[inline]
    fn load(&self, index: usize) -> u64 {
        self.word(index).map_or(0, |word| word.load(Relaxed))
    }

    #[inline]
    fn fence(order: Ordering) {
        fence(order);
    }
}

impl WordsMut for Mapping<Writable> {
    #[inline]
    fn store(&self, index: usize, value: u64) {
        if let Some(word) = self.word(index) {
            word.store(value, Relaxed);
        }
    }

    #[inline]
    fn publish(&self, index: usize, value: u64) {
        if let Some(word) = self.word(index) {
            word.store(value, Release);
        }
    }
}

impl Mapping<Writable> {
    /// Word `index`, for the register page; 0 past the end.
    pub(crate) fn get(&self, index: usize) -> u64 {
        // SYNC POINT: pairs with the Release of whoever changed it last.
        self.word(index).map_or(0, |word| word.load(Acquire))
    }

    /// Stores word `index`, unless it is so already: the reader's line stays where it is.
    pub(crate) fn store_if_changed(&self, index: usize, value: u64) {
        if let Some(word) = self.word(index).filter(|word| word.load(Relaxed) != value) {
            // SYNC POINT: Release orders what the guest is told of before it; the guest reads the page as it reads its RAM.
            word.store(value, Release);
        }
    }

    /// Sets `bits` of word `index`.
    pub(crate) fn set_bits(&self, index: usize, bits: u64) {
        if let Some(word) = self.word(index) {
            // SYNC POINT: as above: the used ring comes before the interrupt's cause.
            word.fetch_or(bits, AcqRel);
        }
    }

    /// Clears `bits` of word `index`.
    pub(crate) fn clear_bits(&self, index: usize, bits: u64) {
        if let Some(word) = self.word(index) {
            // SYNC POINT: as above.
            word.fetch_and(!bits, AcqRel);
        }
    }
}

impl Wake for Mapping<Writable> {
    fn wake(&self, index: usize) {
        if let Some(word) = self.low_half(index) {
            futex::wake_shared(word);
        }
    }
}

impl Wait for Mapping<ReadOnly> {
    type Kick = futex::PrivateWord;

    fn wait(
        &self,
        index: usize,
        expected: u32,
        kick: &futex::PrivateWord,
        expected_kick: u32,
        deadline: Deadline,
    ) -> Slept {
        match self.low_half(index) {
            Some(word) => futex::wait(word.as_ptr(), expected, kick, expected_kick, deadline),
            None => Slept::TimedOut,
        }
    }

    fn now(&self) -> u64 {
        clock::now()
    }

    fn relax(&self) {
        std::hint::spin_loop();
    }
}
