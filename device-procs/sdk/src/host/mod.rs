//! Byte streams between a device and the host: what a serial port or console has at its far end.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cellblock_wire::control::Counters;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

mod bytes;
mod crew;
mod pipes;

pub use bytes::{Consumer, Producer, ring};
pub use crew::Crew;
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

    /// Called right after the device's state is committed: what was taken is the device's for good. Stores only.
    fn commit(&mut self) {}

    /// Called after that: passes on what `put` and `take` changed.
    fn settle(&mut self) {}

    /// Waits at most `limit` until the host has all bytes; whether it has. Only at the orderly end.
    fn flush(&mut self, _limit: Duration) -> bool {
        true
    }
}

/// Copies what waits in `socket`, a stream socket, as much as `into` holds, and leaves it there. 0 = its end.
///
/// # Errors
/// The host's; nothing waits and it does not block.
pub fn peek(socket: impl AsFd, into: &mut [u8]) -> Result<usize, Errno> {
    // `into` is what is filled; the second count is the message's own length, which a stream does not have.
    recv(socket, into, RecvFlags::PEEK).map(|(filled, _)| filled)
}

/// Lets go of `count` bytes of `socket` that were looked at.
pub fn consume(socket: impl AsFd, mut count: usize) {
    let mut nowhere = [0; 256];
    while let Some(space) = nowhere.get_mut(..count.min(256)).filter(|space| !space.is_empty()) {
        match rustix::io::read(&socket, space) {
            Ok(0) => return,
            Ok(gone) => count -= gone.min(count),
            Err(Errno::INTR) => {}
            // They are there, so there is no socket any more.
            Err(_) => return,
        }
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

/// What one thread's virtqueues have passed; each thread counts for itself.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Chains given back.
    pub requests: Count,
    /// Bytes written to them.
    pub to_guest: Count,
    /// Bytes that there were to be read in them.
    pub from_guest: Count,
    /// Requests that failed.
    pub failed: Count,
    /// How often a limit made requests wait.
    pub limited: Count,
}

/// What a worker's parts count.
#[derive(Debug, Default)]
pub struct Tally {
    /// Bytes taken from the host, without virtqueues.
    pub host_in: Count,
    /// Bytes given to the host, without virtqueues.
    pub host_out: Count,
    /// Bytes that the host did not take in time.
    pub dropped: Count,
    /// How often a limit was reached.
    pub limited: Count,
    /// Interrupts raised.
    pub interrupts: Count,
    traffic: Mutex<Vec<Arc<Traffic>>>,
}

impl Tally {
    /// Counts one more thread's traffic, too.
    pub fn add_traffic(&self, traffic: Arc<Traffic>) {
        self.all_traffic().push(traffic);
    }

    fn all_traffic(&self) -> MutexGuard<'_, Vec<Arc<Traffic>>> {
        // Nothing panics while it holds the lock.
        self.traffic.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of it, of a worker that has answered `served` accesses.
    pub fn counters(&self, served: u64) -> Counters {
        let mut counters = Counters {
            served,
            requests: 0,
            host_in: self.host_in.get(),
            host_out: self.host_out.get(),
            dropped: self.dropped.get(),
            interrupts: self.interrupts.get(),
            failed: 0,
            limited: self.limited.get(),
        };
        for traffic in self.all_traffic().iter() {
            counters.requests += traffic.requests.get();
            counters.host_in += traffic.to_guest.get();
            counters.host_out += traffic.from_guest.get();
            counters.failed += traffic.failed.get();
            counters.limited += traffic.limited.get();
        }
        counters
    }
}
