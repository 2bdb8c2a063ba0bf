//! One request after the other.

use std::io;

use cellblock_sdk::device::Clock;
use cellblock_sdk::virtio::{Chain, Limiter, Serve};
use cellblock_wire::device::Limits;
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::spec::MAX_BYTES;

/// Where randomness comes from.
pub trait Random {
    /// Fills `into`.
    ///
    /// # Errors
    /// The host's.
    fn fill(&mut self, into: &mut [u8]) -> io::Result<()>;
}

/// The host kernel.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostRandom;

impl Random for HostRandom {
    fn fill(&mut self, into: &mut [u8]) -> io::Result<()> {
        let mut rest = into;
        while !rest.is_empty() {
            match getrandom(&mut *rest, GetRandomFlags::empty()) {
                Ok(count) => rest = rest.split_at_mut_checked(count).unwrap_or_default().1,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

/// Serves the device's queue.
#[derive(Debug)]
pub struct Requests<R, C> {
    source: R,
    clock: C,
    limiter: Limiter,
}

impl<R: Random, C: Clock> Requests<R, C> {
    /// From `source`, within `limits` by `clock`.
    pub fn new(source: R, clock: C, limits: &Limits) -> Self {
        Requests { source, clock, limiter: Limiter::new(limits) }
    }
}

impl<R: Random, C: Clock> Serve for Requests<R, C> {
    fn begin(&mut self, _features: u64) {}

    fn not_before(&self) -> Option<u64> {
        if self.limiter.is_unlimited() { None } else { self.limiter.ready_at(self.clock.monotonic()) }
    }

    /// A source that fails, or buffers that are not there, end the request early: the driver sees how much it got.
    fn serve(&mut self, chain: &mut Chain<'_>) -> u32 {
        let mut bytes = [0; 256];
        let mut left = chain.writable().min(MAX_BYTES);
        while left > 0 {
            let count = left.min(bytes.len() as u64) as usize;
            let Some(piece) = bytes.get_mut(..count) else { break };
            if self.source.fill(piece).is_err() || chain.write(piece).is_err() {
                break;
            }
            left -= count as u64;
        }
        bytes.fill(0);
        if !self.limiter.is_unlimited() {
            self.limiter.take(chain.written().into(), self.clock.monotonic());
        }
        chain.written()
    }
}
