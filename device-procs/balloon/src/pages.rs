//! Giving pages back to the host.

use std::io;

use cellblock_sdk::virtio::{Chain, Ram};
use rustix::io::Errno;

use crate::spec::PAGE;

/// Page numbers taken at a time: four times what Linux puts into one request. Neighbours among them are given back together.
const BATCH: usize = 1024;
/// Page numbers of one request that are looked at; the guest keeps what lies in the others.
pub const MAX_PAGES: usize = 4 * BATCH;
/// Bytes of a page number.
const NUMBER: usize = 4;

/// What became of pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Released {
    /// Bytes that the host has back.
    pub bytes: u64,
    /// Pages, or pieces of a report, that are not guest memory, or that the host would not take.
    pub refused: u64,
}

/// Guest memory, in units that can be given back.
#[derive(Debug, Clone)]
pub struct Pages {
    ram: Ram,
    /// Bytes of the host's page; a power of two.
    unit: u64,
}

impl Pages {
    /// `ram`, of which only aligned pieces of `unit` bytes, a power of two, can be given back.
    pub fn new(ram: Ram, unit: u64) -> Self {
        Pages { ram, unit }
    }

    /// How many pages of 4 KiB there are.
    pub fn count(&self) -> u32 {
        u32::try_from(self.ram.bytes() / PAGE).unwrap_or(u32::MAX)
    }

    /// Gives back the pages whose numbers (§5.5.6.1: 32 bits, little-endian) `chain` holds, the first [`MAX_PAGES`] of them.
    pub fn release_numbered(&self, chain: &mut Chain<'_>) -> Released {
        let mut released = Released::default();
        for _ in 0..MAX_PAGES / BATCH {
            let (mut bytes, mut numbers) = ([0; BATCH * NUMBER], [0; BATCH]);
            let count = (chain.readable() / NUMBER as u64).min(BATCH as u64) as usize;
            let (Some(bytes), Some(numbers)) = (bytes.get_mut(..count * NUMBER), numbers.get_mut(..count))
            else {
                break;
            };
            if count == 0 {
                break;
            }
            if chain.read(bytes).is_err() {
                released.refused += count as u64;
                break;
            }
            for (number, bytes) in numbers.iter_mut().zip(bytes.chunks_exact(NUMBER)) {
                *number = bytes.try_into().map_or(0, u32::from_le_bytes);
            }
            numbers.sort_unstable();
            self.release_sorted(numbers, &mut released);
        }
        released
    }

    fn release_sorted(&self, numbers: &[u32], released: &mut Released) {
        for run in numbers.chunk_by(|one, next| next - one <= 1) {
            if let (Some(first), Some(last)) = (run.first(), run.last()) {
                self.release_run(u64::from(*first), u64::from(*last) + 1, released);
            }
        }
    }

    /// Pages `first..end`. If they are not all guest memory, those that are.
    fn release_run(&self, first: u64, end: u64, released: &mut Released) {
        match self.release(first * PAGE, (end - first) * PAGE) {
            Ok(bytes) => released.bytes += bytes,
            Err(_) if end - first == 1 => released.refused += 1,
            Err(_) => (first..end).for_each(|page| self.release_run(page, page + 1, released)),
        }
    }

    /// Gives back the memory that the writable part of `chain` is (§5.5.6.7).
    pub fn release_reported(&self, chain: &mut Chain<'_>) -> Released {
        let mut released = Released::default();
        while let Some(piece) = chain.next_writable() {
            match self.release(piece.address, piece.length.into()) {
                Ok(bytes) => released.bytes += bytes,
                Err(_) => released.refused += 1,
            }
        }
        released
    }

    /// Gives back the whole units of a piece of memory; how many bytes that is.
    fn release(&self, address: u64, length: u64) -> io::Result<u64> {
        if !self.ram.holds(address, length) {
            return Err(Errno::FAULT.into());
        }
        // What is in memory does not reach the top of the address space.
        let first = address.next_multiple_of(self.unit);
        let end = address + length;
        match (end - end % self.unit).saturating_sub(first) {
            0 => Ok(0),
            whole => self.ram.release(first, whole),
        }
    }
}
