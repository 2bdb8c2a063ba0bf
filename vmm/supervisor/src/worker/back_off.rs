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

    /// One has been asked for. Whether it comes that far is not known yet, so those that failed still count.
    pub(super) fn begin(&mut self) {
        self.at = None;
    }

    /// One serves.
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

    /// Whether that time has come, which it does once. One that has a process already needs no other.
    pub(crate) fn is_to_start(&mut self, now: Instant) -> bool {
        let due = self.back_off.at.take_if(|at| *at <= now).is_some();
        due && !self.is_absent() && self.state == DeviceState::Gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::DevicePlan;
    use crate::worker::Ending;
    use cellblock_channel::socket;
    use cellblock_spawner::client::Client;
    use cellblock_spawner::protocol::Cause;
    use cellblock_wire::device::DeviceConfig;

    /// A worker that served and has crashed, and a spawner that does nothing.
    fn crashed() -> (Worker, Client, socket::Control) {
        let (ours, spawner) = socket::pair().unwrap();
        let plan = DevicePlan::bare(DeviceConfig::Rtc);
        let (mut worker, _, _theirs) = Worker::new(plan, 1, None, crate::pace::Means::default()).unwrap();
        worker.begin_service();
        let _ = worker.gone(&Ending::Reaped(Cause::Signaled { signal: 11, core: false }, None));
        (worker, Client::new(ours), spawner)
    }

    #[test]
    fn a_death_is_told_once_however_often_the_start_is_tried() {
        let (mut worker, client, _spawner) = crashed();
        worker.succeed(0, &client).unwrap();
        let first = worker.successor();
        assert!(first.died && !first.fell, "it had served");
        // The next one begins with the driver's registers, and ends on them.
        worker.on_registers = true;
        let _ = worker.gone(&Ending::Reaped(Cause::Signaled { signal: 11, core: false }, None));
        worker.succeed(0, &client).unwrap();
        assert!(worker.successor().fell);
        for _ in 0..3 {
            worker.try_later().unwrap();
            worker.succeed(0, &client).unwrap();
            let next = worker.successor();
            assert!(!next.died && !next.fell, "generation {}", next.generation);
        }
        // That it could not be started is nothing that it was told.
        let _ = worker.gone(&Ending::Unstarted);
        assert!(!worker.successor().fell);
    }

    #[test]
    fn a_start_for_another_reason_is_the_only_one() {
        let (mut worker, client, _spawner) = crashed();
        worker.succeed(0, &client).unwrap();
        worker.try_later().unwrap();
        assert!(worker.start_at().is_some());
        // A revival.
        worker.succeed(0, &client).unwrap();
        assert_eq!(worker.start_at(), None);
        assert!(!worker.is_to_start(Instant::now() + LONGEST));
        assert_eq!(worker.back_off.tries, 1, "those that failed still count");
        // One that is due nevertheless is let fall.
        worker.back_off.at = Some(Instant::now());
        assert!(!worker.is_to_start(Instant::now() + LONGEST));
        assert_eq!(worker.start_at(), None);
    }

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
