//! Chains whose bytes the kernel moves, looked up once: [`Gather`] for one chain that is given to a descriptor whole, [`Scatter`]
//! for several that are filled from one, by a call each. For devices that have the same buffers on offer in many calls.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;

use cellblock_channel::ram::{Buffer, Ram};
use cellblock_channel::vectors::Vectors;
use vm_memory::{Bytes, GuestAddress};

use super::chain::{Buffers, ChainError};
use super::queue::{QueueError, Virtqueue};

/// Pieces past which a [`Scatter`] takes no more chains. One chain may go past it.
const MOST_PIECES: usize = 256;

/// One chain's readable part.
#[derive(Debug)]
pub struct Gather {
    vectors: Vectors,
    buffers: Buffers,
    ram: Ram,
    whole: bool,
}

impl Gather {
    /// For chains of queues of at most `queue_size` descriptors.
    pub fn new(ram: Ram, queue_size: u16) -> Self {
        // Beside a vector for each descriptor, one for each border of guest memory's mappings.
        let vectors = Vectors::new(ram.clone(), usize::from(queue_size) + 8);
        Gather { vectors, buffers: Buffers::for_chains_of(queue_size), ram, whole: false }
    }

    /// Takes the next available chain off the ring: its head.
    ///
    /// # Errors
    /// The ring or the chain makes no sense.
    pub fn pop(&mut self, queue: &mut Virtqueue) -> Result<Option<u16>, QueueError> {
        let head = queue.pop_into(&mut self.buffers)?;
        self.vectors.clear();
        if !self.ram.is(queue.ram()) {
            // Another VMM has lent other memory.
            self.vectors.lie_in(queue.ram());
            self.ram = queue.ram().clone();
        }
        let readable = &self.buffers.readable;
        self.whole = readable.iter().all(|piece| self.vectors.push(piece.address, piece.length).is_ok());
        Ok(head)
    }

    /// Bytes of it.
    pub fn bytes(&self) -> u64 {
        self.buffers.readable.iter().map(|piece| u64::from(piece.length)).sum()
    }

    /// Whether all of it lies in guest memory, and one call moves it.
    pub fn is_whole(&self) -> bool {
        self.whole && !self.vectors.too_many()
    }

    /// Gives all of it to `fd` with one `writev`; returns how many bytes went.
    ///
    /// # Errors
    /// The host's.
    pub fn send_to(&self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        self.vectors.send_to(fd)
    }

    /// Copies its bytes from `offset` on, all of `into`.
    ///
    /// # Errors
    /// There are fewer, or they are not in guest memory.
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), ChainError> {
        let wanted = into.len() as u64;
        let mut rest = into;
        for (address, length) in parts(self.buffers.readable.iter(), offset, wanted) {
            let (now, later) = rest.split_at_mut_checked(length).unwrap_or_default();
            let outside = |_| ChainError::Outside { address, length: length as u64 };
            self.ram.memory().read_slice(now, GuestAddress(address)).map_err(outside)?;
            rest = later;
        }
        if rest.is_empty() {
            Ok(())
        } else {
            Err(ChainError::Short { what: "readable", left: self.bytes().saturating_sub(offset), wanted })
        }
    }
}

/// What became of a chain that a [`Scatter`] took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It is there to be filled.
    Chain,
    /// This head's chain has less room than wanted, or not in guest memory: it is to be given back.
    Useless(u16),
    /// There was none.
    None,
}

/// The writable parts of several chains, in the order of the ring: one run of bytes.
#[derive(Debug)]
pub struct Scatter {
    vectors: Vectors,
    buffers: Buffers,
    pieces: VecDeque<Buffer>,
    chains: VecDeque<Offered>,
    bytes: u64,
    ram: Ram,
}

#[derive(Debug, Clone, Copy)]
struct Offered {
    head: u16,
    bytes: u32,
    pieces: usize,
    vectors: usize,
}

impl Scatter {
    /// For chains of queues of at most `queue_size` descriptors.
    pub fn new(ram: Ram, queue_size: u16) -> Self {
        let pieces = MOST_PIECES + usize::from(queue_size);
        Scatter {
            vectors: Vectors::new(ram.clone(), 2 * pieces),
            buffers: Buffers::for_chains_of(queue_size),
            pieces: VecDeque::with_capacity(pieces),
            chains: VecDeque::with_capacity(MOST_PIECES + 1),
            bytes: 0,
            ram,
        }
    }

    /// Bytes that can be filled.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Chains that are held.
    pub fn chains(&self) -> usize {
        self.chains.len()
    }

    /// Whether no more should be taken, for they are in many pieces.
    pub fn is_full(&self) -> bool {
        self.pieces.len() >= MOST_PIECES
    }

    /// Takes the next available chain off the ring, which must have room for `least` bytes.
    ///
    /// # Errors
    /// The ring or the chain makes no sense.
    pub fn take(&mut self, queue: &mut Virtqueue, least: u64) -> Result<Taken, QueueError> {
        if !self.ram.is(queue.ram()) {
            // As above; what was taken before was that queue's.
            self.forget();
            self.vectors.lie_in(queue.ram());
            self.ram = queue.ram().clone();
        }
        let Some(head) = queue.pop_into(&mut self.buffers)? else { return Ok(Taken::None) };
        let pieces = &self.buffers.writable;
        let bytes: u64 = pieces.iter().map(|piece| u64::from(piece.length)).sum();
        // A chain has less than 2^32 bytes, which `pop_into` has seen to.
        let Some(bytes) = u32::try_from(bytes).ok().filter(|bytes| u64::from(*bytes) >= least.max(1)) else {
            return Ok(Taken::Useless(head));
        };
        let mut vectors = 0;
        for piece in pieces {
            match self.vectors.push(piece.address, piece.length) {
                Ok(count) => vectors += count,
                Err(_) => {
                    self.vectors.retract(vectors);
                    return Ok(Taken::Useless(head));
                }
            }
        }
        self.pieces.extend(pieces);
        self.chains.push_back(Offered { head, bytes, pieces: pieces.len(), vectors });
        self.bytes += u64::from(bytes);
        Ok(Taken::Chain)
    }

    /// Fills what there is from `fd` with one `readv`; returns how many bytes came.
    ///
    /// # Errors
    /// The host's.
    pub fn fill_from(&self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        self.vectors.fill_from(fd, usize::MAX)
    }

    /// Copies `from` to `offset`.
    ///
    /// # Errors
    /// There is less room; a part may then be written.
    pub fn write_at(&self, offset: u64, from: &[u8]) -> Result<(), ChainError> {
        let wanted = from.len() as u64;
        let mut rest = from;
        for (address, length) in parts(self.pieces.iter(), offset, wanted) {
            let (now, later) = rest.split_at_checked(length).unwrap_or_default();
            let outside = |_| ChainError::Outside { address, length: length as u64 };
            self.ram.memory().write_slice(now, GuestAddress(address)).map_err(outside)?;
            rest = later;
        }
        if rest.is_empty() {
            Ok(())
        } else {
            Err(ChainError::Short { what: "writable", left: self.bytes.saturating_sub(offset), wanted })
        }
    }

    /// In how many chains the first `bytes` are.
    pub fn chains_of(&self, bytes: u64) -> usize {
        let mut left = bytes;
        let within = |chain: &&Offered| {
            let more = left > 0;
            left = left.saturating_sub(u64::from(chain.bytes));
            more
        };
        self.chains.iter().take_while(within).count()
    }

    /// Takes away the chains that the first `bytes` are in; adds head and filled bytes of each to `used`.
    pub fn give(&mut self, bytes: u64, used: &mut Vec<(u16, u32)>) {
        let mut left = bytes;
        while left > 0 {
            let Some(chain) = self.chains.pop_front() else { return };
            let filled = left.min(u64::from(chain.bytes));
            used.push((chain.head, filled as u32));
            left -= filled;
            self.bytes -= u64::from(chain.bytes);
            self.vectors.leave(chain.vectors);
            self.pieces.drain(..chain.pieces.min(self.pieces.len()));
        }
    }

    /// Forgets all chains: they are the driver's again.
    pub fn forget(&mut self) {
        self.vectors.clear();
        self.pieces.clear();
        self.chains.clear();
        self.bytes = 0;
    }
}

/// The parts of `pieces` that bytes `offset` to `offset + count` lie in: address and length of each.
fn parts<'a>(
    pieces: impl Iterator<Item = &'a Buffer>,
    offset: u64,
    count: u64,
) -> impl Iterator<Item = (u64, usize)> {
    let parts = pieces.scan((offset, count), |(skip, left), piece| {
        if *left == 0 {
            return None;
        }
        let length = u64::from(piece.length);
        let skipped = (*skip).min(length);
        let now = (length - skipped).min(*left);
        (*skip, *left) = (*skip - skipped, *left - now);
        // Past the top of the address space there is no guest memory, which the access will find.
        Some((piece.address.saturating_add(skipped), now as usize))
    });
    parts.filter(|(_, length)| *length > 0)
}
