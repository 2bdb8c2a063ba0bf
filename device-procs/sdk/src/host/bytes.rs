//! A bounded ring of bytes between two threads of a worker: one puts, one takes, neither ever waits.
//!
//! It may lie in memory that outlives the process: what was put is then taken by a successor. There it is a stranger's: counts
//! that cannot be are those of an empty ring.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU64, fence};

use cellblock_channel::memory::{Mapping, Writable};
use cellblock_ring::words::{Words, WordsMut};
use cellblock_wire::device::HOST_BYTES_HEADER;

/// Bytes ever put; written by the producer alone. Wraps.
const PUT: usize = 0;
/// Bytes ever taken; written by the consumer alone. Wraps.
const TAKEN: usize = 1;
/// Input bytes that the guest has for good; written by the register thread alone. Wraps.
pub(super) const SETTLED: usize = 2;
/// Of these, those that have left the host's socket, or are just leaving it; written by the input's thread alone. Wraps.
pub(super) const LEFT: usize = 3;

const WORD: usize = size_of::<u64>();

/// Words that threads share, in the process or beyond it.
#[derive(Debug, Clone)]
pub(super) enum Shared {
    Own(Arc<[AtomicU64]>),
    Kept(Mapping<Writable>),
}

impl Shared {
    /// In the process, for `capacity` bytes: the next power of two, at most 1 MiB.
    pub(super) fn own(capacity: usize) -> Self {
        let room = capacity.clamp(WORD, 1 << 20).next_power_of_two();
        Shared::Own((0..HOST_BYTES_HEADER + room / WORD).map(|_| AtomicU64::new(0)).collect())
    }

    /// How many bytes fit: a power of two.
    fn room(&self) -> u64 {
        let words = match self {
            Shared::Own(words) => words.len(),
            Shared::Kept(map) => map.len(),
        };
        (words.saturating_sub(HOST_BYTES_HEADER) * WORD) as u64
    }

    /// Relaxed; zero beyond the end.
    fn load(&self, index: usize) -> u64 {
        match self {
            Shared::Own(words) => words.get(index).map_or(0, |word| word.load(Relaxed)),
            Shared::Kept(map) => map.load(index),
        }
    }

    /// A load that sees what was stored before it was published.
    pub(super) fn look(&self, index: usize) -> u64 {
        let value = self.load(index);
        fence(Acquire);
        value
    }

    /// Relaxed; nothing beyond the end.
    fn store(&self, index: usize, value: u64) {
        match self {
            Shared::Own(words) => words.get(index).into_iter().for_each(|word| word.store(value, Relaxed)),
            Shared::Kept(map) => map.store(index, value),
        }
    }

    /// A store that shows what was stored before it.
    pub(super) fn publish(&self, index: usize, value: u64) {
        match self {
            Shared::Own(words) => words.get(index).into_iter().for_each(|word| word.store(value, Release)),
            Shared::Kept(map) => map.publish(index, value),
        }
    }

    /// The word of the byte at `position`, and how far to shift it.
    fn cell(&self, position: u64) -> (usize, u32) {
        let at = (position & (self.room() - 1)) as usize;
        (HOST_BYTES_HEADER + at / WORD, 8 * (at % WORD) as u32)
    }

    /// Bytes that were put and not taken.
    fn waiting(&self) -> u64 {
        // SYNC POINT: Acquire pairs with the Release of whichever of the two is the other thread's.
        self.look(PUT).wrapping_sub(self.look(TAKEN)).min(self.room())
    }
}

/// The end that puts.
#[derive(Debug)]
pub struct Producer {
    shared: Shared,
}

/// The end that takes.
#[derive(Debug)]
pub struct Consumer {
    shared: Shared,
}

/// A ring that holds at least `capacity` bytes: the next power of two, at least 8 and at most 1 MiB.
pub fn ring(capacity: usize) -> (Producer, Consumer) {
    ring_in(Shared::own(capacity))
}

/// A ring in `shared`, with what a predecessor left there.
pub(super) fn ring_in(shared: Shared) -> (Producer, Consumer) {
    if shared.load(PUT).wrapping_sub(shared.load(TAKEN)) > shared.room() {
        shared.store(TAKEN, shared.load(PUT));
    }
    (Producer { shared: shared.clone() }, Consumer { shared })
}

impl Producer {
    /// How many more bytes fit.
    pub fn room(&self) -> usize {
        (self.shared.room() - self.shared.waiting()) as usize
    }

    /// Puts one byte; false = full, the byte is not in the ring.
    pub fn put(&mut self, byte: u8) -> bool {
        if self.room() == 0 {
            return false;
        }
        let put = self.shared.load(PUT);
        let (index, shift) = self.shared.cell(put);
        let others = self.shared.load(index) & !(0xff << shift);
        self.shared.store(index, others | u64::from(byte) << shift);
        // SYNC POINT: Release pairs with the consumer's Acquire in `waiting`: the byte goes before its count.
        self.shared.publish(PUT, put.wrapping_add(1));
        true
    }

    /// Whether half of the room is used.
    pub fn is_half_full(&self) -> bool {
        self.shared.waiting() >= self.shared.room() / 2
    }

    /// Whether the consumer has taken all.
    pub fn is_empty(&self) -> bool {
        self.shared.waiting() == 0
    }
}

impl Consumer {
    /// Copies as many bytes as there are and `space` holds; they stay in the ring until [`Consumer::consume`].
    pub fn peek(&self, space: &mut [u8]) -> usize {
        let count = (self.shared.waiting() as usize).min(space.len());
        let taken = self.shared.load(TAKEN);
        for (byte, position) in space.iter_mut().take(count).zip(0..) {
            let (index, shift) = self.shared.cell(taken.wrapping_add(position));
            *byte = (self.shared.load(index) >> shift) as u8;
        }
        count
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.shared.waiting() == 0
    }

    /// Lets go of the oldest `count` bytes, which were peeked at.
    pub fn consume(&mut self, count: usize) {
        let gone = (count as u64).min(self.shared.waiting());
        // SYNC POINT: Release pairs with the producer's Acquire in `waiting`: the cells may be used again.
        self.shared.publish(TAKEN, self.shared.load(TAKEN).wrapping_add(gone));
    }

    /// Takes as many bytes as there are and `space` holds.
    pub fn take(&mut self, space: &mut [u8]) -> usize {
        let count = self.peek(space);
        self.consume(count);
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cellblock_channel::memory;
    use cellblock_wire::device::host_bytes;
    use std::os::fd::OwnedFd;

    #[test]
    fn a_full_ring_refuses_and_keeps_what_it_has() {
        let (mut producer, mut consumer) = ring(3);
        for byte in 0..8 {
            assert!(producer.put(byte), "eight is the least");
        }
        assert!(!producer.put(9));
        let mut space = [0; 16];
        assert_eq!(consumer.take(&mut space), 8);
        assert_eq!(space[..8], [0, 1, 2, 3, 4, 5, 6, 7]);
        assert!(producer.is_empty());
        assert!(producer.put(9));
    }

    #[test]
    fn bytes_keep_their_order_across_threads() {
        let (mut producer, mut consumer) = ring(16);
        let taker = std::thread::spawn(move || {
            let (mut got, mut space) = (vec![], [0; 5]);
            while got.len() < 10_000 {
                let count = consumer.take(&mut space);
                got.extend_from_slice(&space[..count]);
            }
            got
        });
        for number in 0..10_000u32 {
            while !producer.put(number as u8) {
                std::hint::spin_loop();
            }
        }
        assert!(taker.join().unwrap().iter().zip(0..10_000u32).all(|(&byte, number)| byte == number as u8));
    }

    fn kept(fd: &OwnedFd, buffer: u32) -> Shared {
        Shared::Kept(memory::open_write(fd, host_bytes(buffer)).unwrap())
    }

    #[test]
    fn what_was_put_outlives_its_process() {
        let memory = memory::create_replies("bytes", host_bytes(100)).unwrap();
        let (mut producer, mut consumer) = ring_in(kept(&memory.fd, 100));
        // Past the end of the room, which is 128 bytes.
        for round in 0..3 {
            (0..100).for_each(|byte| assert!(producer.put(byte + round)));
            assert_eq!(consumer.take(&mut [0; 99]), 99);
            consumer.consume(1);
        }
        b"left".iter().for_each(|byte| assert!(producer.put(*byte)));
        drop((producer, consumer));
        let (mut producer, mut consumer) = ring_in(kept(&memory.fd, 100));
        assert!(producer.put(b'!'));
        let mut space = [0; 16];
        let count = consumer.take(&mut space);
        assert_eq!(&space[..count], b"left!");
    }

    #[test]
    fn a_strangers_counts_are_an_empty_ring() {
        let memory = memory::create_replies("bytes", host_bytes(64)).unwrap();
        for (put, taken) in [(65, 0), (0, 1), (u64::MAX, 0), (7, u64::MAX - 100)] {
            let shared = kept(&memory.fd, 64);
            shared.store(PUT, put);
            shared.store(TAKEN, taken);
            let (mut producer, mut consumer) = ring_in(shared);
            assert!(consumer.is_empty(), "{put} {taken}");
            assert!(producer.put(5) && consumer.take(&mut [0; 64]) == 1);
        }
    }
}
