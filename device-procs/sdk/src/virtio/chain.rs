//! A descriptor chain as a device sees it: bytes that it may take, then bytes that it may fill. By copying, or by having the
//! kernel move them between guest memory and a file.

use std::io;
use std::os::fd::BorrowedFd;

use cellblock_channel::ram::{Buffer, Durability, Ram};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress};

/// The most pieces of a chain that one system call is told of.
const MAX_PIECES: usize = 256;

/// One chain's buffers; kept from chain to chain for its memory.
#[derive(Debug, Default)]
pub struct Buffers {
    pub(super) readable: Vec<Buffer>,
    pub(super) writable: Vec<Buffer>,
}

impl Buffers {
    /// Room for the longest chain of a queue of `size` descriptors, so that serving allocates nothing.
    pub fn for_chains_of(size: u16) -> Self {
        let room = || Vec::with_capacity(size.into());
        Buffers { readable: room(), writable: room() }
    }

    pub(super) fn clear(&mut self) {
        self.readable.clear();
        self.writable.clear();
    }
}

/// What a driver's buffers do not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ChainError {
    /// The chain is too short for the request.
    #[error("the chain has {left} {what} bytes left, needed are {wanted}")]
    Short {
        /// `readable` or `writable`.
        what: &'static str,
        /// Bytes left.
        left: u64,
        /// Bytes needed.
        wanted: u64,
    },
    /// A buffer is not guest memory.
    #[error("the buffer of {length:#x} bytes at {address:#x} is not in guest memory")]
    Outside {
        /// Guest-physical address.
        address: u64,
        /// Bytes.
        length: u64,
    },
}

/// A chain while it is served.
#[derive(Debug)]
pub struct Chain<'a> {
    ram: &'a Ram,
    readable: Cursor<'a>,
    writable: Cursor<'a>,
    written: u32,
    failed: bool,
}

/// The address of the one byte that [`Chain::reserve_last`] set apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastByte(u64);

impl<'a> Chain<'a> {
    pub(super) fn new(ram: &'a Ram, buffers: &'a Buffers) -> Self {
        let readable = Cursor::new("readable", &buffers.readable);
        let writable = Cursor::new("writable", &buffers.writable);
        Chain { ram, readable, writable, written: 0, failed: false }
    }

    /// Bytes that can still be read.
    pub fn readable(&self) -> u64 {
        self.readable.left
    }

    /// Bytes that can still be written.
    pub fn writable(&self) -> u64 {
        self.writable.left
    }

    /// Bytes written from the beginning of the writable part on, without the last byte that was set apart.
    pub fn written(&self) -> u32 {
        self.written
    }

    /// Takes the next bytes, all of `into`.
    ///
    /// # Errors
    /// There are fewer, or they are not in guest memory; `into` may then hold a part of them.
    pub fn read(&mut self, into: &mut [u8]) -> Result<(), ChainError> {
        self.readable.need(into.len() as u64)?;
        let mut rest = into;
        while !rest.is_empty() {
            let (address, length) = self.readable.next(rest.len());
            let (now, later) = rest.split_at_mut_checked(length).unwrap_or_default();
            self.ram.memory().read_slice(now, GuestAddress(address)).map_err(|_| outside(address, length))?;
            rest = later;
        }
        Ok(())
    }

    /// Fills the next bytes with all of `from`.
    ///
    /// # Errors
    /// There is less room, or it is not in guest memory; a part may then be written.
    pub fn write(&mut self, from: &[u8]) -> Result<(), ChainError> {
        self.writable.need(from.len() as u64)?;
        let mut rest = from;
        while !rest.is_empty() {
            let (address, length) = self.writable.next(rest.len());
            let (now, later) = rest.split_at_checked(length).unwrap_or_default();
            self.ram
                .memory()
                .write_slice(now, GuestAddress(address))
                .map_err(|_| outside(address, length))?;
            self.count_written(length as u64);
            rest = later;
        }
        Ok(())
    }

    /// Passes the next `bytes` readable ones over.
    ///
    /// # Errors
    /// There are fewer; nothing is passed over.
    pub fn skip_readable(&mut self, bytes: u64) -> Result<(), ChainError> {
        self.readable.need(bytes)?;
        self.readable.advance(bytes);
        Ok(())
    }

    /// Passes the next `bytes` writable ones over, which then count as written.
    ///
    /// # Errors
    /// There are fewer; nothing is passed over.
    pub fn skip_writable(&mut self, bytes: u64) -> Result<(), ChainError> {
        self.writable.need(bytes)?;
        self.writable.advance(bytes);
        self.count_written(bytes);
        Ok(())
    }

    /// Has the kernel give at most `most` of the next readable bytes to `fd`, at offset `at` or where the descriptor stands,
    /// with one system call. Returns how many went; those are taken. Fewer than wanted if the chain has more than 256 pieces.
    ///
    /// # Errors
    /// The host's; `EFAULT` if a buffer is not in guest memory. Nothing is taken.
    pub fn send_to(&mut self, fd: BorrowedFd<'_>, at: Option<u64>, most: u64) -> io::Result<usize> {
        self.send(fd, at, most, Durability::Visible)
    }

    /// As [`send_to`](Self::send_to); what went is on stable storage.
    ///
    /// # Errors
    /// As [`send_to`](Self::send_to).
    pub fn send_stable(&mut self, fd: BorrowedFd<'_>, at: Option<u64>, most: u64) -> io::Result<usize> {
        self.send(fd, at, most, Durability::Stable)
    }

    fn send(
        &mut self,
        fd: BorrowedFd<'_>,
        at: Option<u64>,
        most: u64,
        durability: Durability,
    ) -> io::Result<usize> {
        let sent = self.ram.writev(fd, self.readable.pieces(most), at, durability)?;
        self.readable.advance(sent as u64);
        Ok(sent)
    }

    /// Has the kernel fill at most `most` of the next writable bytes from `fd`, from offset `at` on or from where the
    /// descriptor stands, with one system call. Returns how many came; those are written. 0 = the end, or no room.
    ///
    /// # Errors
    /// As [`send_to`](Self::send_to).
    pub fn fill_from(&mut self, fd: BorrowedFd<'_>, at: Option<u64>, most: u64) -> io::Result<usize> {
        let filled = self.ram.readv(fd, self.writable.pieces(most), at)?;
        self.writable.advance(filled as u64);
        self.count_written(filled as u64);
        Ok(filled)
    }

    /// Takes the next writable buffer, or what is left of it, and says where it lies: for a device to which the place is what
    /// matters. Nothing is written.
    pub fn next_writable(&mut self) -> Option<Buffer> {
        let left = usize::try_from(self.writable.left).unwrap_or(usize::MAX);
        if left == 0 {
            return None;
        }
        let (address, length) = self.writable.next(left);
        // No buffer is larger than 32 bits can say.
        Some(Buffer { address, length: length as u32 })
    }

    /// The request has failed, whatever the driver is told: to be counted.
    pub fn fail(&mut self) {
        self.failed = true;
    }

    /// Whether it has.
    pub fn is_failed(&self) -> bool {
        self.failed
    }

    fn count_written(&mut self, bytes: u64) {
        // A chain has less than 2^32 bytes.
        self.written = self.written.saturating_add(bytes as u32);
    }

    /// Sets the chain's last writable byte apart, so that [`write`](Self::write) does not reach it: a request's status.
    ///
    /// # Errors
    /// Nothing is writable.
    pub fn reserve_last(&mut self) -> Result<LastByte, ChainError> {
        let last = self.writable.buffers.last().filter(|_| self.writable.left > 0);
        let last = last.ok_or(ChainError::Short { what: "writable", left: 0, wanted: 1 })?;
        self.writable.left -= 1;
        // Past the top of the address space there is no guest memory, which the access will find.
        Ok(LastByte(last.address.saturating_add(u64::from(last.length) - 1)))
    }

    /// Writes the byte that was set apart.
    ///
    /// # Errors
    /// It is not in guest memory.
    pub fn write_last(&mut self, LastByte(address): LastByte, value: u8) -> Result<(), ChainError> {
        self.ram.memory().write_obj(value, GuestAddress(address)).map_err(|_| outside(address, 1))
    }
}

fn outside(address: u64, length: usize) -> ChainError {
    ChainError::Outside { address, length: length as u64 }
}

/// A position in a list of buffers, none of which is empty.
#[derive(Debug)]
struct Cursor<'a> {
    what: &'static str,
    buffers: &'a [Buffer],
    index: usize,
    offset: u32,
    left: u64,
}

impl<'a> Cursor<'a> {
    fn new(what: &'static str, buffers: &'a [Buffer]) -> Self {
        let left = buffers.iter().map(|buffer| u64::from(buffer.length)).sum();
        Cursor { what, buffers, index: 0, offset: 0, left }
    }

    fn need(&self, wanted: u64) -> Result<(), ChainError> {
        if wanted > self.left {
            return Err(ChainError::Short { what: self.what, left: self.left, wanted });
        }
        Ok(())
    }

    /// The next piece of at most `most` bytes, which must not exceed what is left. Never empty while there is some.
    fn next(&mut self, most: usize) -> (u64, usize) {
        let Some(buffer) = self.buffers.get(self.index) else { return (0, most) };
        let length = u32::try_from(most).unwrap_or(u32::MAX).min(buffer.length - self.offset);
        // Past the top of the address space there is no guest memory, which the access will find.
        let address = buffer.address.saturating_add(self.offset.into());
        self.offset += length;
        self.left -= u64::from(length);
        if self.offset == buffer.length {
            (self.index, self.offset) = (self.index + 1, 0);
        }
        (address, length as usize)
    }

    /// Takes the next `bytes`, or all that is left.
    fn advance(&mut self, bytes: u64) {
        let mut rest = bytes.min(self.left);
        while rest > 0 {
            // No buffer is empty, and there are as many as `left` says.
            rest -= self.next(usize::try_from(rest).unwrap_or(usize::MAX)).1 as u64;
        }
    }

    /// The next pieces of at most `most` bytes together. Takes nothing.
    fn pieces(&self, most: u64) -> impl Iterator<Item = Buffer> {
        let buffers = self.buffers.get(self.index..).unwrap_or_default();
        let pieces = buffers.iter().scan((most.min(self.left), self.offset), |(rest, offset), buffer| {
            let length = u32::try_from(*rest).unwrap_or(u32::MAX).min(buffer.length - *offset);
            // Past the top of the address space there is no guest memory, which the access will find.
            let piece = Buffer { address: buffer.address.saturating_add((*offset).into()), length };
            (*rest, *offset) = (*rest - u64::from(length), 0);
            (length > 0).then_some(piece)
        });
        pieces.take(MAX_PIECES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rustix::fs::{MemfdFlags, memfd_create};
    use std::os::fd::{AsFd, OwnedFd};
    use vm_memory::GuestMemoryMmap;

    fn ram() -> Ram {
        Ram::from(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap())
    }

    fn file() -> OwnedFd {
        memfd_create("file", MemfdFlags::CLOEXEC).unwrap()
    }

    fn buffers(readable: &[(u64, u32)], writable: &[(u64, u32)]) -> Buffers {
        let list =
            |of: &[(u64, u32)]| of.iter().map(|&(address, length)| Buffer { address, length }).collect();
        Buffers { readable: list(readable), writable: list(writable) }
    }

    #[test]
    fn bytes_run_over_the_borders_of_buffers() {
        let (ram, buffers) = (ram(), buffers(&[(0, 3), (0x10, 2)], &[(0x20, 1), (0x30, 4)]));
        ram.memory().write_slice(b"abc", GuestAddress(0)).unwrap();
        ram.memory().write_slice(b"de", GuestAddress(0x10)).unwrap();
        let mut chain = Chain::new(&ram, &buffers);
        let mut got = [0; 5];
        chain.read(&mut got[..1]).unwrap();
        chain.read(&mut got[1..]).unwrap();
        assert_eq!(&got, b"abcde");
        assert_eq!(chain.read(&mut [0]), Err(ChainError::Short { what: "readable", left: 0, wanted: 1 }));
        let status = chain.reserve_last().unwrap();
        chain.write(b"wxyz").unwrap();
        assert_eq!((chain.writable(), chain.written()), (0, 4));
        assert!(chain.write(b"!").is_err(), "the last byte is set apart");
        chain.write_last(status, 7).unwrap();
        let mut tail = [0; 4];
        ram.memory().read_slice(&mut tail, GuestAddress(0x30)).unwrap();
        assert_eq!(&tail, b"xyz\x07");
    }

    #[test]
    fn buffers_outside_of_memory_are_named() {
        for address in [0x1000, 0xffe, u64::MAX, u64::MAX - 1] {
            let (ram, buffers) = (ram(), buffers(&[(address, 4)], &[(address, 4)]));
            let mut chain = Chain::new(&ram, &buffers);
            assert!(matches!(chain.read(&mut [0; 4]), Err(ChainError::Outside { .. })), "{address:#x}");
            assert!(matches!(chain.write(&[0; 4]), Err(ChainError::Outside { .. })), "{address:#x}");
            let mut chain = Chain::new(&ram, &buffers);
            let last = chain.reserve_last().unwrap();
            assert!(matches!(chain.write_last(last, 0), Err(ChainError::Outside { .. })), "{address:#x}");
        }
    }

    #[test]
    fn writable_buffers_are_told_one_by_one() {
        let (ram, buffers) = (ram(), buffers(&[(5, 1)], &[(0x20, 4), (u64::MAX, 3)]));
        let mut chain = Chain::new(&ram, &buffers);
        chain.skip_writable(1).unwrap();
        assert_eq!(chain.next_writable(), Some(Buffer { address: 0x21, length: 3 }));
        chain.reserve_last().unwrap();
        assert_eq!(chain.next_writable(), Some(Buffer { address: u64::MAX, length: 2 }));
        assert_eq!((chain.next_writable(), chain.writable(), chain.written()), (None, 0, 1));
    }

    #[test]
    fn an_empty_chain_has_no_last_byte() {
        let (ram, buffers) = (ram(), buffers(&[], &[]));
        assert!(Chain::new(&ram, &buffers).reserve_last().is_err());
    }

    #[test]
    fn files_are_filled_and_read_without_a_copy() {
        let (ram, file) = (ram(), file());
        let buffers = buffers(&[(0, 3), (0x10, 5)], &[(0x20, 4), (0x30, 6)]);
        ram.memory().write_slice(b"abc", GuestAddress(0)).unwrap();
        ram.memory().write_slice(b"defgh", GuestAddress(0x10)).unwrap();
        let mut chain = Chain::new(&ram, &buffers);
        chain.skip_readable(1).unwrap();
        assert_eq!(chain.send_to(file.as_fd(), Some(10), 4).unwrap(), 4);
        assert_eq!(chain.send_stable(file.as_fd(), Some(14), u64::MAX).unwrap(), 3);
        assert_eq!(chain.readable(), 0);
        assert!(chain.skip_readable(1).is_err());
        let status = chain.reserve_last().unwrap();
        chain.skip_writable(2).unwrap();
        assert_eq!(chain.fill_from(file.as_fd(), Some(10), 3).unwrap(), 3);
        assert_eq!(chain.fill_from(file.as_fd(), Some(13), u64::MAX).unwrap(), 4, "not the last byte");
        assert_eq!((chain.written(), chain.writable()), (9, 0));
        chain.write_last(status, b'!').unwrap();
        let mut got = [0; 6];
        ram.memory().read_slice(&mut got, GuestAddress(0x30)).unwrap();
        assert_eq!(&got, b"defgh!");
        assert_eq!(chain.fill_from(file.as_fd(), Some(0), 8).unwrap(), 0, "no room");
    }

    #[test]
    fn a_file_that_ends_fills_a_part() {
        let (ram, file, buffers) = (ram(), file(), buffers(&[], &[(0, 4), (0x10, 8)]));
        rustix::io::pwrite(&file, b"12345", 0).unwrap();
        let mut chain = Chain::new(&ram, &buffers);
        assert_eq!(chain.fill_from(file.as_fd(), Some(0), 8).unwrap(), 5);
        assert_eq!((chain.written(), chain.writable()), (5, 7));
        assert_eq!(chain.fill_from(file.as_fd(), Some(5), 8).unwrap(), 0);
    }

    #[test]
    fn a_bad_buffer_moves_nothing() {
        let (ram, file, buffers) = (ram(), file(), buffers(&[(0, 8), (0xfff, 2)], &[(0, 8), (u64::MAX, 2)]));
        rustix::io::pwrite(&file, &[7; 32], 0).unwrap();
        let mut chain = Chain::new(&ram, &buffers);
        let fault = Some(rustix::io::Errno::FAULT.raw_os_error());
        assert_eq!(chain.send_to(file.as_fd(), Some(0), 10).unwrap_err().raw_os_error(), fault);
        assert_eq!(chain.fill_from(file.as_fd(), Some(0), 10).unwrap_err().raw_os_error(), fault);
        assert_eq!((chain.readable(), chain.writable(), chain.written()), (10, 10, 0));
        assert_eq!(ram.memory().read_obj::<u64>(GuestAddress(0)).unwrap(), 0);
        assert_eq!(chain.send_to(file.as_fd(), Some(0), 8).unwrap(), 8, "up to it is fine");
    }

    proptest! {
        /// Whatever way the bytes of a chain are taken, they are the same.
        #[test]
        fn cursors_agree(
            lengths in proptest::collection::vec(1u32..40, 1..300),
            steps in proptest::collection::vec((0u8..3, 0u64..600), 1..20),
        ) {
            let (ram, file) = (ram(), file());
            let all: Vec<u8> = (0..0x1000).map(|i| (i * 7 + i / 251) as u8).collect();
            ram.memory().write_slice(&all, GuestAddress(0)).unwrap();
            let list: Vec<_> = lengths.iter().enumerate().map(|(i, l)| ((i as u64 * 37) % 0xf00, *l)).collect();
            let wanted: Vec<u8> =
                list.iter().flat_map(|&(at, l)| all[at as usize..at as usize + l as usize].to_vec()).collect();
            let buffers = buffers(&list, &[]);
            let mut chain = Chain::new(&ram, &buffers);
            let mut at = 0;
            for (kind, most) in steps {
                let count = (most as usize).min(wanted.len() - at);
                let taken = match kind {
                    0 => chain.skip_readable(count as u64).map(|()| count).unwrap(),
                    1 => {
                        let mut got = vec![0; count];
                        chain.read(&mut got).unwrap();
                        prop_assert_eq!(&got, &wanted[at..at + count]);
                        count
                    }
                    _ => {
                        let sent = chain.send_to(file.as_fd(), Some(0), most).unwrap();
                        let mut got = vec![0; sent];
                        rustix::io::pread(&file, &mut got, 0).unwrap();
                        prop_assert_eq!(&got, &wanted[at..at + sent]);
                        prop_assert!(sent == count || lengths.len() > MAX_PIECES);
                        sent
                    }
                };
                at += taken;
                prop_assert_eq!(chain.readable(), (wanted.len() - at) as u64);
            }
        }
    }
}
