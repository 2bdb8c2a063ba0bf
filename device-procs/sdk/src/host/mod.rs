//! Byte streams between a device and the host: what a serial port or console has at its far end.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

mod bytes;
mod pipes;

pub use bytes::{Consumer, Producer, ring};
pub(crate) use pipes::start_thread;
pub use pipes::{Pipes, WakeLine};

/// The far end of a byte device.
pub trait Port {
    /// Gives one byte to the host. Never blocks; a byte for which there is no room is dropped and counted.
    fn put(&mut self, byte: u8);

    /// The next byte that the host gave, if there is one. It is the device's from then on.
    fn take(&mut self) -> Option<u8>;

    /// A byte of the guest was lost before it came here; to be counted.
    fn lose(&mut self) {}

    /// The guest was made to wait, for the sake of a limit; to be counted.
    fn hold(&mut self) {}

    /// Called after the vCPU has its answer: passes on what `put` and `take` changed.
    fn settle(&mut self) {}

    /// Waits at most `limit` until the host has all bytes; whether it has. Only at the orderly end.
    fn flush(&mut self, _limit: Duration) -> bool {
        true
    }
}

/// A count that threads share. It orders nothing.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds `more`.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// The count.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a worker's parts count.
#[derive(Debug, Default)]
pub struct Tally {
    /// Bytes taken from the host.
    pub host_in: Count,
    /// Bytes given to the host.
    pub host_out: Count,
    /// Bytes that the host did not take in time.
    pub dropped: Count,
    /// How often a limit was reached.
    pub limited: Count,
    /// Interrupts raised.
    pub interrupts: Count,
}
