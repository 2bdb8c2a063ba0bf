//! A disk byte for byte.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, fallocate, fdatasync};
use rustix::io::{Errno, ReadWriteFlags, preadv2, pwritev2};

use super::Image;

/// A raw image file or block device.
#[derive(Debug, Clone)]
pub struct RawImage(Arc<OwnedFd>);

impl RawImage {
    /// Over a descriptor that allows what will be asked of it.
    pub fn new(fd: OwnedFd) -> Self {
        RawImage(Arc::new(fd))
    }

    fn deallocate(&self, flags: FallocateFlags, offset: u64, length: u64) -> io::Result<bool> {
        loop {
            match fallocate(&*self.0, flags | FallocateFlags::KEEP_SIZE, offset, length) {
                Ok(()) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV) => return Ok(false),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl Image for RawImage {
    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let (mut at, mut rest) = (offset, into);
        while !rest.is_empty() {
            let count = match preadv2(&*self.0, &mut [io::IoSliceMut::new(rest)], at, ReadWriteFlags::empty())
            {
                // The file has shrunk under its guest.
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => count,
                Err(Errno::INTR) => 0,
                Err(errno) => return Err(errno.into()),
            };
            (at, rest) = (at + count as u64, rest.split_at_mut_checked(count).unwrap_or_default().1);
        }
        Ok(())
    }

    fn write(&self, offset: u64, from: &[u8], stable: bool) -> io::Result<()> {
        let flags = if stable { ReadWriteFlags::DSYNC } else { ReadWriteFlags::empty() };
        let (mut at, mut rest) = (offset, from);
        while !rest.is_empty() {
            let count = match pwritev2(&*self.0, &[io::IoSlice::new(rest)], at, flags) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => count,
                Err(Errno::INTR) => 0,
                Err(errno) => return Err(errno.into()),
            };
            (at, rest) = (at + count as u64, rest.get(count..).unwrap_or_default());
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        loop {
            match fdatasync(&*self.0) {
                Err(Errno::INTR) => {}
                done => return Ok(done?),
            }
        }
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.deallocate(FallocateFlags::PUNCH_HOLE, offset, length).map(|_| ())
    }

    fn zero(&self, offset: u64, length: u64, unmap: bool) -> io::Result<bool> {
        if unmap && self.deallocate(FallocateFlags::PUNCH_HOLE, offset, length)? {
            return Ok(true);
        }
        self.deallocate(FallocateFlags::ZERO_RANGE, offset, length)
    }

    fn file(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }
}
