//! A successor that cannot be started for want of something that comes back (processes, memory) is tried again, later and later.

use std::time::{Duration, Instant};

use super::Worker;
use crate::link::DeviceState;

/// Until the first new try; each next one takes twice as long, up to the longest.
const FIRST: Duration = Duration::from_millis(20);
const LONGEST: Duration = Duration::from_secs(1);
/// Tries in a row, after which it counts as a death: some 10 s.
const TRIES: u32 = 14;

/// The tries of one device's next worker.
#[derive(Debug, Default)]
pub(super) struct BackOff {
    /// That failed, in a row.
    tries: u32,
    at: Option<Instant>,
}

impl BackOff {
    /// One more has failed: how long to wait, if there is to be another.
    fn fail(&mut self, now: Instant) -> Option<Duration> {
        if self.tries >= TRIES {
            self.tries = 0;
            return None;
        }
        let pause = FIRST.saturating_mul(1 << self.tries.min(16)).min(LONGEST);
        (self.tries, self.at) = (self.tries + 1, Some(now + pause));
        Some(pause)
    }

    /// One has begun.
    pub(super) fn end(&mut self) {
        *self = BackOff::default();
    }
}

impl Worker {
    /// Its process was not started, which may be otherwise in a while: how long that is waited for, if it is, and whether that is
    /// news.
    pub(crate) fn try_later(&mut self) -> Option<(Duration, bool)> {
        let first = self.back_off.tries == 0;
        let pause = self.back_off.fail(Instant::now())?;
        (self.state, self.serve_by) = (DeviceState::Gone, None);
        Some((pause, first))
    }

    /// When it is to be started once more.
    pub(crate) fn start_at(&self) -> Option<Instant> {
        self.back_off.at
    }

    /// Whether that time has come, which it does once.
    pub(crate) fn is_to_start(&mut self, now: Instant) -> bool {
        self.back_off.at.take_if(|at| *at <= now).is_some() && !self.is_absent()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_become_rarer_and_come_to_an_end() {
        let (mut back_off, now) = (BackOff::default(), Instant::now());
        let pauses: Vec<_> = std::iter::from_fn(|| back_off.fail(now)).take(100).collect();
        assert_eq!(pauses.len(), TRIES as usize);
        assert!(pauses.is_sorted() && pauses[0] == FIRST && pauses.last() == Some(&LONGEST));
        assert_eq!(back_off.fail(now), Some(FIRST), "the next death begins anew");
        back_off.end();
        assert_eq!((back_off.tries, back_off.at), (0, None));
    }
}
