//! How a vCPU's thread waits for one worker: where that one is to sleep, and whether to spin for its reply, to let it run on this CPU, or
//! to sleep at once.
//!
//! A worker that sleeps on this thread's CPU is woken there, and runs as soon as this thread lets it: by a yield, after which the reply
//! is there. Were this thread to sleep instead, the scheduler would wake it on another CPU, if one is idle, at many times the price.

use std::time::Duration;

use cellblock_channel::clock;
use cellblock_ring::pacing::{Habit, Placement};
use rustix::thread::{sched_getcpu, sched_yield};

/// How often the worker is let run before this thread sleeps. Once does, unless others want the CPU too.
const TURNS: u32 = 3;
/// Turns that took longer, in ns, were others'.
const LONG_TURNS: u64 = 100_000;

/// How a reply was waited for in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Turns,
    Spin,
    Sleep,
}

/// What one lane has learned.
#[derive(Debug)]
pub(crate) struct Pace {
    /// `false` = this process has one CPU.
    several: bool,
    /// The longest spin; zero = never.
    longest: Duration,
    spinning: Habit,
    yielding: Habit,
    placement: Placement,
    /// Where this thread was when it posted last.
    here: u32,
    /// Where the worker was last asked to sleep.
    asked: Option<u32>,
    /// It has slept where it was asked to, as far as is known.
    settled: bool,
    /// The outstanding request woke the worker: when, in ns of `CLOCK_MONOTONIC`.
    woken: Option<u64>,
    /// Of the running wait.
    spins: bool,
    yields: bool,
}

impl Pace {
    /// Spins for up to `longest`; zero = never, as with one CPU.
    pub(crate) fn new(longest: Duration) -> Pace {
        Pace {
            several: std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1),
            longest,
            spinning: Habit::default(),
            yielding: Habit::default(),
            placement: Placement::default(),
            here: 0,
            asked: None,
            settled: false,
            woken: None,
            spins: false,
            yields: false,
        }
    }

    /// A request is about to be posted: where its worker is to sleep afterwards.
    pub(crate) fn home(&mut self) -> Option<u32> {
        if self.several {
            self.here = sched_getcpu() as u32;
        }
        let home = self.placement.at_home().then_some(self.here);
        self.settled = self.asked.is_none_or(|cpu| cpu == self.here);
        // With one CPU it is there anyway.
        self.yields = self.asked == Some(self.here);
        self.asked = home;
        home
    }

    /// The request was posted at `now`; its worker sleeps and is being `woken`, or is awake. It says that it spins on the CPU
    /// `spinner` when it does not sleep.
    pub(crate) fn posted(&mut self, woken: bool, spinner: Option<u32>, now: u64) {
        let home = woken && spinner.is_none();
        self.woken = home.then_some(now);
        self.yields &= home && self.yielding.pays();
        let elsewhere = self.several && !woken && spinner.is_some_and(|cpu| cpu != self.here);
        self.spins = elsewhere && !self.longest.is_zero() && self.spinning.pays();
    }

    /// How often to let the worker run before anything else.
    pub(crate) fn turns(&self) -> u32 {
        if self.yields { TURNS } else { 0 }
    }

    /// Lets the worker run.
    pub(crate) fn give_turn(&self) {
        sched_yield();
    }

    /// How long to spin for the reply. A worker that sleeps, runs here, or does something else first is not spun for.
    pub(crate) fn spin(&self) -> Duration {
        if self.spins { self.longest } else { Duration::ZERO }
    }

    /// The reply is there.
    pub(crate) fn replied(&mut self, way: Way) {
        if self.spins {
            self.spinning.learn(way == Way::Spin);
        }
        let Some(woken) = self.woken.take() else { return };
        let took = clock::now().saturating_sub(woken);
        if self.yields {
            self.yielding.learn(way == Way::Turns && took < LONG_TURNS);
        }
        if self.settled && self.several {
            self.placement.learn(took);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace() -> Pace {
        Pace { several: true, ..Pace::new(Duration::from_micros(50)) }
    }

    #[test]
    fn it_spins_only_for_a_worker_that_spins_elsewhere() {
        let mut pace = pace();
        pace.home();
        let elsewhere = Some(pace.here.wrapping_add(1));
        for (woken, spinner, spins) in [
            (false, elsewhere, true),
            (false, Some(pace.here), false),
            (false, None, false),
            (true, elsewhere, false),
        ] {
            pace.posted(woken, spinner, 0);
            assert_eq!(!pace.spin().is_zero(), spins, "{woken} {spinner:?}");
        }
        let mut never = Pace { longest: Duration::ZERO, ..pace };
        never.posted(false, elsewhere, 0);
        assert!(never.spin().is_zero());
        let mut one = Pace { several: false, longest: Duration::from_micros(50), ..never };
        one.posted(false, elsewhere, 0);
        assert!(one.spin().is_zero());
    }

    #[test]
    fn it_lets_a_worker_run_that_was_asked_to_sleep_here() {
        let mut pace = pace();
        // The thread may move in between, as any thread may.
        let asked_here = |pace: &mut Pace| {
            pace.placement = Placement::default();
            pace.home();
            (pace.asked, pace.yields) = (Some(pace.here), true);
        };
        asked_here(&mut pace);
        pace.posted(true, None, 0);
        assert_eq!(pace.turns(), TURNS);
        // It is awake, or elsewhere.
        for (woken, spinner) in [(false, None), (true, Some(pace.here.wrapping_add(1)))] {
            asked_here(&mut pace);
            pace.posted(woken, spinner, 0);
            assert_eq!(pace.turns(), 0);
        }
        // Where that takes long, others want the CPU: it sleeps.
        let mut turns = 0;
        for _ in 0..1000 {
            asked_here(&mut pace);
            pace.posted(true, None, 0);
            turns += u32::from(pace.turns() > 0);
            pace.replied(Way::Turns);
        }
        assert!(turns < 12, "{turns}");
    }
}
