//! The receiver's FIFO (PC16550D §8.0).

use crate::spec::FIFO_BYTES;

/// At most [`FIFO_BYTES`] characters, oldest first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fifo {
    bytes: [u8; FIFO_BYTES],
    first: u8,
    count: u8,
}

impl Fifo {
    /// Characters in it.
    pub fn len(&self) -> usize {
        self.count.into()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Takes the oldest.
    pub fn pop(&mut self) -> Option<u8> {
        if self.count == 0 {
            return None;
        }
        let byte = self.bytes.get(usize::from(self.first)).copied();
        self.first = (self.first + 1) % FIFO_BYTES as u8;
        self.count -= 1;
        byte
    }

    /// Adds one; a full FIFO drops it.
    pub fn push(&mut self, byte: u8) {
        let place = (usize::from(self.first) + self.len()) % FIFO_BYTES;
        if let (true, Some(space)) = (self.len() < FIFO_BYTES, self.bytes.get_mut(place)) {
            *space = byte;
            self.count += 1;
        }
    }

    /// The characters, oldest first, then zeroes.
    pub fn to_bytes(self) -> [u8; FIFO_BYTES] {
        let mut copy = self;
        std::array::from_fn(|_| copy.pop().unwrap_or(0))
    }

    /// A FIFO of the first `count` of `bytes`; what is over [`FIFO_BYTES`] is left out.
    pub fn from_bytes(bytes: [u8; FIFO_BYTES], count: usize) -> Self {
        let mut fifo = Fifo::default();
        bytes.into_iter().take(count).for_each(|byte| fifo.push(byte));
        fifo
    }
}
