//! Pieces of guest memory in the order in which the kernel is to fill or take them, looked up once: for a device that has
//! the same pieces offered in one system call after the other.
//!
//! `unsafe` because: vectored I/O by address.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;
use vm_memory::{GuestAddress, GuestMemory, Permissions};

use crate::ram::Ram;

/// The most vectors of one system call: Linux's `UIO_MAXIOV` is more.
const MOST: usize = 512;

/// Pieces of a guest's memory. Those at the front leave first.
#[derive(Debug)]
pub struct Vectors {
    ram: Ram,
    vectors: Vec<libc::iovec>,
    /// Those before it have left.
    start: usize,
}

// SAFETY: the addresses are those of `ram`'s mappings, which all threads have, and which are only passed to the kernel.
unsafe impl Send for Vectors {}

impl Vectors {
    /// None yet, with room for `room`.
    pub fn new(ram: Ram, room: usize) -> Self {
        Vectors { ram, vectors: Vec::with_capacity(room), start: 0 }
    }

    /// From now on of `ram`; if that is another, all are taken away.
    pub fn lie_in(&mut self, ram: &Ram) {
        if !self.ram.is(ram) {
            self.clear();
            self.ram = ram.clone();
        }
    }

    /// Adds `length` bytes at guest-physical `address` at the end. Returns how many vectors these are: several where the
    /// mappings of guest memory meet.
    ///
    /// # Errors
    /// They are not in guest memory; nothing is added.
    pub fn push(&mut self, address: u64, length: u32) -> Result<usize, Errno> {
        if self.start > self.vectors.len() / 2 && self.vectors.len() == self.vectors.capacity() {
            self.vectors.drain(..self.start);
            self.start = 0;
        }
        let before = self.vectors.len();
        let (address, length) = (GuestAddress(address), length as usize);
        // What is written to, or read from, is both: guest memory has no other.
        let slices = GuestMemory::get_slices(self.ram.memory(), address, length, Permissions::ReadWrite);
        for slice in slices.map_err(|_| Errno::FAULT)? {
            let Ok(slice) = slice else {
                self.vectors.truncate(before);
                return Err(Errno::FAULT);
            };
            let start = slice.ptr_guard_mut();
            self.vectors.push(libc::iovec { iov_base: start.as_ptr().cast(), iov_len: slice.len() });
        }
        Ok(self.vectors.len() - before)
    }

    /// Takes the first `count` vectors away.
    pub fn leave(&mut self, count: usize) {
        self.start = self.start.saturating_add(count);
        if self.start >= self.vectors.len() {
            self.clear();
        }
    }

    /// Takes the last `count` vectors away.
    pub fn retract(&mut self, count: usize) {
        self.vectors.truncate(self.vectors.len().saturating_sub(count).max(self.start));
    }

    /// Takes all away.
    pub fn clear(&mut self) {
        self.vectors.clear();
        self.start = 0;
    }

    /// Whether one call does not take all.
    pub fn too_many(&self) -> bool {
        self.held().len() > MOST
    }

    fn held(&self) -> &[libc::iovec] {
        self.vectors.get(self.start..).unwrap_or_default()
    }

    /// Fills the first `most` vectors from `fd`, one call of `readv`; returns how many bytes came.
    ///
    /// # Errors
    /// The host's.
    pub fn fill_from(&self, fd: BorrowedFd<'_>, most: usize) -> io::Result<usize> {
        let vectors = self.held();
        let count = vectors.len().min(most).min(MOST) as libc::c_int;
        moved(|| {
            // SAFETY: the vectors lie in mappings that live as long as `self.ram`. They are shared with the guest's vCPUs
            // anyway, and nothing in this process has a reference to what is in them.
            unsafe { libc::readv(fd.as_raw_fd(), vectors.as_ptr(), count) }
        })
    }

    /// Gives all to `fd`, one call of `writev`; returns how many bytes went.
    ///
    /// # Errors
    /// The host's.
    pub fn send_to(&self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        let vectors = self.held();
        let count = vectors.len().min(MOST) as libc::c_int;
        moved(|| {
            // SAFETY: as in `fill_from`; the kernel only reads them.
            unsafe { libc::writev(fd.as_raw_fd(), vectors.as_ptr(), count) }
        })
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use vm_memory::{Bytes, GuestMemoryMmap};

    /// Two mappings that meet at 0x1000.
    fn ram() -> Ram {
        let ranges = [(GuestAddress(0), 0x1000), (GuestAddress(0x1000), 0x1000)];
        Ram::from(GuestMemoryMmap::from_ranges(&ranges).unwrap())
    }

    fn text(ram: &Ram, address: u64, length: usize) -> String {
        let mut bytes = vec![0; length];
        ram.memory().read_slice(&mut bytes, GuestAddress(address)).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn pieces_are_filled_and_taken_in_their_order() {
        let (ram, (read, write)) = (ram(), rustix::pipe::pipe().unwrap());
        let mut vectors = Vectors::new(ram.clone(), 2);
        assert_eq!(vectors.push(0x100, 2), Ok(1));
        assert_eq!(vectors.push(0xffe, 4), Ok(2), "where mappings meet");
        assert_eq!(vectors.push(0x200, 100), Ok(1));
        rustix::io::write(&write, b"abcdefgh").unwrap();
        assert_eq!(vectors.fill_from(read.as_fd(), usize::MAX).unwrap(), 8);
        assert_eq!([text(&ram, 0x100, 2), text(&ram, 0xffe, 4), text(&ram, 0x200, 2)], ["ab", "cdef", "gh"]);
        vectors.leave(1);
        rustix::io::write(&write, b"123456").unwrap();
        assert_eq!(vectors.fill_from(read.as_fd(), 2).unwrap(), 4, "two vectors only");
        assert_eq!(text(&ram, 0xffe, 4), "1234");
        vectors.leave(2);
        assert_eq!(vectors.fill_from(read.as_fd(), usize::MAX).unwrap(), 2);
        vectors.clear();
        vectors.push(0x200, 2).unwrap();
        vectors.push(0xffe, 4).unwrap();
        assert_eq!(vectors.send_to(write.as_fd()).unwrap(), 6);
        let mut got = [0; 6];
        rustix::io::read(&read, &mut got).unwrap();
        assert_eq!(&got, b"561234");
    }

    #[test]
    fn what_is_not_guest_memory_is_not_added() {
        let (mut vectors, (_, write)) = (Vectors::new(ram(), 4), rustix::pipe::pipe().unwrap());
        vectors.push(0x100, 3).unwrap();
        for (address, length) in [(0x2000, 1), (0x1fff, 2), (u64::MAX, 1), (u64::MAX, 2), (0, u32::MAX)] {
            assert_eq!(vectors.push(address, length), Err(Errno::FAULT), "{address:#x} {length}");
        }
        assert_eq!(vectors.send_to(write.as_fd()).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(vectors.held().len(), 1);
        vectors.push(0x200, 3).unwrap();
        vectors.leave(1);
        vectors.retract(5);
        assert_eq!(vectors.held().len(), 0);
        vectors.push(0x200, 3).unwrap();
        vectors.leave(usize::MAX);
        assert_eq!(vectors.held().len(), 0);
    }

    #[test]
    fn what_has_left_makes_room() {
        let mut vectors = Vectors::new(ram(), 8);
        let room = vectors.vectors.capacity();
        for round in 0..1000 {
            vectors.push(round, 1).unwrap();
            if round >= 3 {
                vectors.leave(1);
            }
        }
        assert_eq!((vectors.held().len(), vectors.vectors.capacity()), (3, room));
        assert_eq!(vectors.held().last().map(|vector| vector.iov_len), Some(1));
    }
}
