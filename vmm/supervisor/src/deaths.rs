//! How often a device's worker may die.

use std::time::{Duration, Instant};

/// Deaths in a row without progress, after which the device has failed.
const MOST: u32 = 5;
/// A worker that has served so long has made progress, whether or not the guest asked it for anything.
const LONG_ENOUGH: Duration = Duration::from_millis(250);

/// The deaths of one device's workers.
#[derive(Debug, Default)]
pub(crate) struct Deaths {
    in_a_row: u32,
    /// How far the device had got by the last death.
    progress: u64,
}

/// What a death leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// A successor.
    Replace,
    /// None of its own any more: so many died in a row without progress.
    Failed(u32),
    /// The end of the VM: its first has never served, so it was never there.
    Stillborn,
}

impl Deaths {
    /// One more, of a worker that served since `since`, if it ever did, when the device had got as far as `progress`, a number that
    /// is another one whenever it gets further.
    pub(crate) fn note(&mut self, progress: u64, since: Option<Instant>, now: Instant) -> Verdict {
        let lived = since.is_some_and(|since| now.saturating_duration_since(since) >= LONG_ENOUGH);
        if lived || progress != self.progress {
            self.in_a_row = 0;
        }
        self.progress = progress;
        self.in_a_row = self.in_a_row.saturating_add(1);
        if self.in_a_row >= MOST { Verdict::Failed(self.in_a_row) } else { Verdict::Replace }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deaths_without_progress_end_it() {
        let (mut deaths, now) = (Deaths::default(), Instant::now());
        for _ in 1..MOST {
            assert_eq!(deaths.note(0, Some(now), now), Verdict::Replace);
        }
        assert_eq!(deaths.note(0, None, now), Verdict::Failed(MOST));
    }

    #[test]
    fn an_answer_or_a_while_of_service_is_progress() {
        let (mut deaths, now) = (Deaths::default(), Instant::now());
        for answered in 0..100 {
            assert_eq!(deaths.note(answered, None, now), Verdict::Replace);
        }
        for _ in 0..100 {
            assert_eq!(deaths.note(99, Some(now), now + LONG_ENOUGH), Verdict::Replace);
        }
    }
}
