//! A descriptor chain as a device sees it: bytes that it may take, then bytes that it may fill. Always by copying.

use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// A piece of guest memory that the driver offers. Nothing about it is checked until it is touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Buffer {
    pub(super) address: u64,
    pub(super) length: u32,
}

/// One chain's buffers; kept from chain to chain for its memory.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    pub(super) readable: Vec<Buffer>,
    pub(super) writable: Vec<Buffer>,
}

impl Buffers {
    /// Room for the longest chain of a queue, so that serving allocates nothing.
    pub(super) fn for_chains_of(size: u16) -> Self {
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
    memory: &'a GuestMemoryMmap,
    readable: Cursor<'a>,
    writable: Cursor<'a>,
    written: u32,
}

/// The address of the one byte that [`Chain::reserve_last`] set apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastByte(u64);

impl<'a> Chain<'a> {
    pub(super) fn new(memory: &'a GuestMemoryMmap, buffers: &'a Buffers) -> Self {
        let readable = Cursor::new("readable", &buffers.readable);
        let writable = Cursor::new("writable", &buffers.writable);
        Chain { memory, readable, writable, written: 0 }
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
        self.readable.need(into.len())?;
        let mut rest = into;
        while !rest.is_empty() {
            let (address, length) = self.readable.next(rest.len());
            let (now, later) = rest.split_at_mut_checked(length).unwrap_or_default();
            self.memory.read_slice(now, GuestAddress(address)).map_err(|_| outside(address, length))?;
            rest = later;
        }
        Ok(())
    }

    /// Fills the next bytes with all of `from`.
    ///
    /// # Errors
    /// There is less room, or it is not in guest memory; a part may then be written.
    pub fn write(&mut self, from: &[u8]) -> Result<(), ChainError> {
        self.writable.need(from.len())?;
        let mut rest = from;
        while !rest.is_empty() {
            let (address, length) = self.writable.next(rest.len());
            let (now, later) = rest.split_at_checked(length).unwrap_or_default();
            self.memory.write_slice(now, GuestAddress(address)).map_err(|_| outside(address, length))?;
            // A chain has less than 2^32 bytes.
            self.written = self.written.saturating_add(length as u32);
            rest = later;
        }
        Ok(())
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
        self.memory.write_obj(value, GuestAddress(address)).map_err(|_| outside(address, 1))
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

    fn need(&self, bytes: usize) -> Result<(), ChainError> {
        let wanted = bytes as u64;
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestMemoryMmap;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap()
    }

    fn buffers(readable: &[(u64, u32)], writable: &[(u64, u32)]) -> Buffers {
        let list =
            |of: &[(u64, u32)]| of.iter().map(|&(address, length)| Buffer { address, length }).collect();
        Buffers { readable: list(readable), writable: list(writable) }
    }

    #[test]
    fn bytes_run_over_the_borders_of_buffers() {
        let (memory, buffers) = (memory(), buffers(&[(0, 3), (0x10, 2)], &[(0x20, 1), (0x30, 4)]));
        memory.write_slice(b"abc", GuestAddress(0)).unwrap();
        memory.write_slice(b"de", GuestAddress(0x10)).unwrap();
        let mut chain = Chain::new(&memory, &buffers);
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
        memory.read_slice(&mut tail, GuestAddress(0x30)).unwrap();
        assert_eq!(&tail, b"xyz\x07");
    }

    #[test]
    fn buffers_outside_of_memory_are_named() {
        for address in [0x1000, 0xffe, u64::MAX, u64::MAX - 1] {
            let (memory, buffers) = (memory(), buffers(&[(address, 4)], &[(address, 4)]));
            let mut chain = Chain::new(&memory, &buffers);
            assert!(matches!(chain.read(&mut [0; 4]), Err(ChainError::Outside { .. })), "{address:#x}");
            assert!(matches!(chain.write(&[0; 4]), Err(ChainError::Outside { .. })), "{address:#x}");
            let mut chain = Chain::new(&memory, &buffers);
            let last = chain.reserve_last().unwrap();
            assert!(matches!(chain.write_last(last, 0), Err(ChainError::Outside { .. })), "{address:#x}");
        }
    }

    #[test]
    fn an_empty_chain_has_no_last_byte() {
        let (memory, buffers) = (memory(), buffers(&[], &[]));
        assert!(Chain::new(&memory, &buffers).reserve_last().is_err());
    }
}
