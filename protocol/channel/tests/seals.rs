//! What the seals promise, tried from the worker's side.
//!
//! `unsafe` because: trying forbidden mappings takes the raw calls.
#![allow(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use cellblock_channel::memory::{self, Mapping, MemoryError, ReadOnly};
use cellblock_ring::words::{Words, WordsMut};
use rustix::fs::{
    MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, ftruncate, memfd_create, open,
};
use rustix::io::{Errno, pwrite};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mprotect, munmap};

const BYTES: usize = 4096;

/// Maps and unmaps `fd`; `then` makes the mapping writable.
fn map(fd: BorrowedFd<'_>, protection: ProtFlags, then: Option<MprotectFlags>) -> Result<(), Errno> {
    // SAFETY: a new mapping, not touched before it is unmapped below.
    let start = unsafe { mmap(std::ptr::null_mut(), BYTES, protection, MapFlags::SHARED, fd, 0) }?;
    // SAFETY: the mapping just made.
    let result = then.map_or(Ok(()), |protection| unsafe { mprotect(start, BYTES, protection) });
    // SAFETY: the mapping just made; nobody holds a pointer into it.
    unsafe { munmap(start, BYTES) }.unwrap();
    result
}

fn reopen(fd: BorrowedFd<'_>, flags: OFlags) -> Result<std::os::fd::OwnedFd, Errno> {
    open(format!("/proc/self/fd/{}", fd.as_raw_fd()), flags, Mode::empty())
}

const WRITABLE: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

#[test]
fn requests_can_be_written_by_their_creator_only() {
    let sealed = memory::create_requests("requests", BYTES).unwrap();
    let here = memory::open_read(&sealed.fd, BYTES).unwrap();
    sealed.map.publish(7, 42);
    assert_eq!(here.load(7), 42, "the creator's mapping stays writable");

    let fd = sealed.fd.as_fd();
    assert_eq!(map(fd, WRITABLE, None), Err(Errno::PERM));
    assert_eq!(
        map(fd, ProtFlags::READ, Some(MprotectFlags::READ | MprotectFlags::WRITE)),
        Err(Errno::ACCESS)
    );
    assert_eq!(pwrite(fd, b"x", 0), Err(Errno::PERM));
    assert!(memory::open_write(fd, BYTES).is_err());
    match reopen(fd, OFlags::RDWR) {
        Err(_) => {}
        Ok(again) => {
            assert_eq!(map(again.as_fd(), WRITABLE, None), Err(Errno::PERM));
            assert_eq!(pwrite(&again, b"x", 0), Err(Errno::PERM));
        }
    }
    assert_eq!(here.load(0), 0);
}

#[test]
fn no_size_changes_and_no_seal_is_added() {
    let all = [
        memory::create_requests("requests", BYTES).unwrap().fd,
        memory::create_replies("replies", BYTES).unwrap().fd,
        memory::create_state("state", BYTES).unwrap().fd,
    ];
    for fd in all {
        assert_eq!(ftruncate(&fd, 0), Err(Errno::PERM));
        assert_eq!(ftruncate(&fd, 2 * BYTES as u64), Err(Errno::PERM));
        assert_eq!(pwrite(&fd, b"x", BYTES as u64), Err(Errno::PERM));
        for seal in [SealFlags::WRITE, SealFlags::FUTURE_WRITE] {
            assert_eq!(fcntl_add_seals(&fd, seal), Err(Errno::PERM));
        }
        assert!(
            fcntl_get_seals(&fd).unwrap().contains(SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
        );
    }
}

#[test]
fn a_memfd_without_the_last_seal_could_be_spoiled_for_successors() {
    // Why F_SEAL_SEAL is needed: without it this works.
    let fd = memfd_create("unsealed", MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, BYTES as u64).unwrap();
    fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW).unwrap();
    fcntl_add_seals(&fd, SealFlags::FUTURE_WRITE).unwrap();
    assert_eq!(map(fd.as_fd(), WRITABLE, None), Err(Errno::PERM));
}

#[test]
fn a_successor_can_write_replies_whatever_the_worker_tried() {
    let sealed = memory::create_replies("replies", BYTES).unwrap();
    let first = memory::open_write(&sealed.fd, BYTES).unwrap();
    let _ = fcntl_add_seals(&sealed.fd, SealFlags::FUTURE_WRITE);
    drop(first);
    let second = memory::open_write(&sealed.fd, BYTES).unwrap();
    second.store(1, 5);
    assert_eq!(sealed.map.load(1), 5);
}

#[test]
fn memory_received_is_checked() {
    let unsealed = memfd_create("unsealed", MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&unsealed, BYTES as u64).unwrap();
    let error = memory::open_read(&unsealed, BYTES).unwrap_err();
    assert_eq!(error.to_string(), "shared memory received has the seals 0x0, needed are 0x7");
    assert!(matches!(memory::open_write(&unsealed, BYTES), Err(MemoryError::Seals { .. })));

    let sealed = memory::create_replies("replies", BYTES).unwrap();
    let error = memory::open_read(&sealed.fd, 2 * BYTES).unwrap_err();
    assert_eq!(error.to_string(), "shared memory received has 4096 bytes, expected are 8192");

    let no_memfd = std::fs::File::open("/proc/self/exe").unwrap();
    assert!(matches!(memory::open_read(&no_memfd, BYTES), Err(MemoryError::Seals { found: 0, .. })));
}

#[test]
fn words_beyond_the_end_read_zero_and_store_nothing() {
    let sealed = memory::create_requests("small", memory::bytes(16)).unwrap();
    let map: &Mapping<_> = &sealed.map;
    assert_eq!((map.len(), map.bytes()), (16, 128));
    map.store(15, u64::MAX);
    map.store(16, 1);
    map.publish(usize::MAX, 1);
    assert_eq!((map.load(15), map.load(16), map.load(usize::MAX)), (u64::MAX, 0, 0));
}

#[test]
fn a_mapping_tells_no_address() {
    let sealed = memory::create_state("state", BYTES).unwrap();
    let map: &Mapping<ReadOnly> = &sealed.map;
    assert_eq!(format!("{map:?}"), "Mapping { words: 512, .. }");
}
