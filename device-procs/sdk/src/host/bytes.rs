//! A bounded ring of bytes between two threads of a worker: one puts, one takes, neither ever waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

#[derive(Debug)]
struct Shared {
    bytes: Box<[AtomicU8]>,
    /// Bytes ever put; written by the producer alone. Wraps.
    put: AtomicUsize,
    /// Bytes ever taken; written by the consumer alone. Wraps.
    taken: AtomicUsize,
}

/// The end that puts.
#[derive(Debug)]
pub struct Producer {
    shared: Arc<Shared>,
}

/// The end that takes.
#[derive(Debug)]
pub struct Consumer {
    shared: Arc<Shared>,
}

/// A ring that holds at least `capacity` bytes: the next power of two, at most 1 MiB.
pub fn ring(capacity: usize) -> (Producer, Consumer) {
    let size = capacity.clamp(1, 1 << 20).next_power_of_two();
    let bytes = (0..size).map(|_| AtomicU8::new(0)).collect();
    let shared = Arc::new(Shared { bytes, put: AtomicUsize::new(0), taken: AtomicUsize::new(0) });
    (Producer { shared: Arc::clone(&shared) }, Consumer { shared })
}

impl Shared {
    fn cell(&self, position: usize) -> Option<&AtomicU8> {
        self.bytes.get(position & (self.bytes.len() - 1))
    }
}

impl Producer {
    /// How many more bytes fit.
    pub fn room(&self) -> usize {
        // SYNC POINT: Acquire pairs with the consumer's Release in `consume`: its reads of the cells are done.
        let taken = self.shared.taken.load(Ordering::Acquire);
        self.shared.bytes.len() - self.shared.put.load(Ordering::Relaxed).wrapping_sub(taken)
    }

    /// Puts one byte; false = full, the byte is not in the ring.
    pub fn put(&mut self, byte: u8) -> bool {
        let put = self.shared.put.load(Ordering::Relaxed);
        let (true, Some(cell)) = (self.room() > 0, self.shared.cell(put)) else { return false };
        cell.store(byte, Ordering::Relaxed);
        // SYNC POINT: Release pairs with the consumer's Acquire in `peek`: the byte goes before its count.
        self.shared.put.store(put.wrapping_add(1), Ordering::Release);
        true
    }

    /// Whether half of the room is used.
    pub fn is_half_full(&self) -> bool {
        self.room() <= self.shared.bytes.len() / 2
    }

    /// Whether the consumer has taken all.
    pub fn is_empty(&self) -> bool {
        self.room() == self.shared.bytes.len()
    }
}

impl Consumer {
    /// Copies as many bytes as there are and `space` holds; they stay in the ring until [`Consumer::consume`].
    pub fn peek(&self, space: &mut [u8]) -> usize {
        let taken = self.shared.taken.load(Ordering::Relaxed);
        // SYNC POINT: Acquire pairs with the producer's Release in `put`.
        let waiting = self.shared.put.load(Ordering::Acquire).wrapping_sub(taken);
        let count = waiting.min(space.len());
        for (index, byte) in space.iter_mut().take(count).enumerate() {
            if let Some(cell) = self.shared.cell(taken.wrapping_add(index)) {
                *byte = cell.load(Ordering::Relaxed);
            }
        }
        count
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.peek(&mut [0]) == 0
    }

    /// Lets go of the oldest `count` bytes, which were peeked at.
    pub fn consume(&mut self, count: usize) {
        let taken = self.shared.taken.load(Ordering::Relaxed);
        let waiting = self.shared.put.load(Ordering::Relaxed).wrapping_sub(taken);
        // SYNC POINT: Release pairs with the producer's Acquire in `room`: the cells may be used again.
        self.shared.taken.store(taken.wrapping_add(count.min(waiting)), Ordering::Release);
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

    #[test]
    fn a_full_ring_refuses_and_keeps_what_it_has() {
        let (mut producer, mut consumer) = ring(3);
        for byte in 0..4 {
            assert!(producer.put(byte), "rounded up to four");
        }
        assert!(!producer.put(9));
        let mut space = [0; 8];
        assert_eq!(consumer.take(&mut space), 4);
        assert_eq!(space[..4], [0, 1, 2, 3]);
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
}
