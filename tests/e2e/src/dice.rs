//! What a test leaves to chance, and how a run of it is had again.

use std::env;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

/// The number in the environment variable `name`, if it is set.
///
/// # Errors
/// It is no number.
pub fn setting(name: &str) -> Result<Option<u64>> {
    env::var(name)
        .ok()
        .map(|value| value.parse().with_context(|| format!("{name}={value} is no number")))
        .transpose()
}

/// A row of numbers that look like chance.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    /// From the seed in the environment variable `name`, else from the time; prints it.
    ///
    /// # Errors
    /// The seed is no number.
    pub fn seeded(name: &str) -> Result<Dice> {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_nanos() as u64);
        let seed = setting(name)?.unwrap_or_else(now) | 1;
        println!("{name}={seed}");
        Ok(Dice(seed))
    }

    /// The next, below `sides`.
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) % sides.max(1)
    }
}
