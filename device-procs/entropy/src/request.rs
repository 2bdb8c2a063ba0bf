//! One request after the other.

use std::io;

use cellblock_sdk::virtio::{Chain, Serve};
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
#[derive(Debug, Default)]
pub struct Requests<R>(R);

impl<R: Random> Requests<R> {
    /// From `source`.
    pub fn new(source: R) -> Self {
        Requests(source)
    }
}

impl<R: Random> Serve for Requests<R> {
    fn begin(&mut self, _features: u64) {}

    /// A source that fails, or buffers that are not there, end the request early: the driver sees how much it got.
    fn serve(&mut self, chain: &mut Chain<'_>) -> u32 {
        let mut bytes = [0; 256];
        let mut left = chain.writable().min(MAX_BYTES);
        while left > 0 {
            let count = left.min(bytes.len() as u64) as usize;
            let Some(piece) = bytes.get_mut(..count) else { break };
            if self.0.fill(piece).is_err() || chain.write(piece).is_err() {
                break;
            }
            left -= count as u64;
        }
        bytes.fill(0);
        chain.written()
    }
}
