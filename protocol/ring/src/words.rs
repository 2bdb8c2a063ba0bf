//! What the algorithm asks of the machine: the one door through which it reaches memory, fences, futexes and clocks.

use std::sync::atomic::Ordering;

/// An array of 64-bit words that somebody else may write at any moment.
///
/// Loads are `Relaxed`; who needs more says so with [`Words::fence`]. That is not only for speed: an acquire *load* from
/// memory that is mapped read-only is not a guarantee of the language, a relaxed load with a fence is.
pub trait Words {
    /// How many words there are. Constant.
    fn len(&self) -> usize;

    /// The word at `index` (`Relaxed`); zero beyond the end.
    fn load(&self, index: usize) -> u64;

    /// A memory fence.
    fn fence(order: Ordering);

    /// Whether there is no word at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Words that this side writes (and nobody else, by the protocol's rule of one writer for each memory).
pub trait WordsMut: Words {
    /// Stores `Relaxed`; nothing beyond the end.
    fn store(&self, index: usize, value: u64);

    /// Stores `Release`; nothing beyond the end.
    fn publish(&self, index: usize, value: u64);
}

/// Wakes who sleeps on a shared word.
pub trait Wake: Words {
    /// Wakes the sleeper on the low half of the word at `index` (a futex that crosses processes).
    fn wake(&self, index: usize);
}

/// Sleeps on a shared word and a kick word together, and tells the time.
pub trait Wait: Words {
    /// The kick word's type.
    type Kick: KickCell;

    /// Sleeps until the low half of the word at `index` differs from `expected`, the kick word differs from
    /// `expected_kick`, somebody wakes either, or the deadline passes. The comparison and falling asleep are one atomic
    /// step. May return early for no reason.
    fn wait(
        &self,
        index: usize,
        expected: u32,
        kick: &Self::Kick,
        expected_kick: u32,
        deadline: Deadline,
    ) -> Slept;

    /// `CLOCK_MONOTONIC` now, in ns.
    fn now(&self) -> u64;

    /// A hint to the CPU that this is a spin loop.
    fn relax(&self);
}

/// A private 32-bit word that is bumped to end somebody's wait.
pub trait KickCell {
    /// The word (`Acquire`).
    fn load(&self) -> u32;

    /// Adds one, wrapping (`Release`).
    fn bump(&self);

    /// Wakes who sleeps on it.
    fn wake(&self);
}

/// How a sleep ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slept {
    /// Woken, a word had changed already, a signal came, or for no reason: look again.
    LookAgain,
    /// The deadline has passed.
    TimedOut,
}

/// When to give up waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(u64);

impl Deadline {
    /// Waits for ever.
    pub const NEVER: Deadline = Deadline(u64::MAX);

    /// At `ns` nanoseconds of `CLOCK_MONOTONIC`.
    pub const fn at(ns: u64) -> Deadline {
        Deadline(ns)
    }

    /// The moment in ns of `CLOCK_MONOTONIC`, or `None` for [`Deadline::NEVER`].
    pub const fn ns(self) -> Option<u64> {
        if self.0 == u64::MAX { None } else { Some(self.0) }
    }
}
