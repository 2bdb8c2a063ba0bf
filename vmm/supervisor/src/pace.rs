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

/// What the host, and who started this, leave to wait with.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Means {
    /// The longest spin; zero = never, and no worker is asked to sleep anywhere.
    pub longest: Duration,
    /// This process has no other.
    pub one_cpu: bool,
}

impl Means {
    /// Spins for up to `longest`. To be asked before the sandbox closes.
    pub(crate) fn of_this_process(longest: Duration) -> Means {
        let one_cpu = std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() == 1);
        Means { longest: if one_cpu { Duration::ZERO } else { longest }, one_cpu }
    }
}

/// What one lane has learned.
#[derive(Debug)]
pub(crate) struct Pace {
    means: Means,
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
    pub(crate) fn new(means: Means) -> Pace {
        Pace {
            means,
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
        // With one CPU it is there anyway.
        self.yields = self.means.one_cpu;
        if self.means.longest.is_zero() {
            return None;
        }
        self.here = sched_getcpu() as u32;
        let home = self.placement.at_home().then_some(self.here);
        self.settled = self.asked.is_none_or(|cpu| cpu == self.here);
        self.yields |= self.asked == Some(self.here);
        self.asked = home;
        home
    }

    /// The request was posted at `now`; its worker sleeps and is being `woken`, or is awake. It says that it spins on the CPU
    /// `spinner` when it does not sleep.
    pub(crate) fn posted(&mut self, woken: bool, spinner: Option<u32>, now: u64) {
        let home = woken && spinner.is_none();
        self.woken = home.then_some(now);
        self.yields &= home && self.yielding.pays();
        let elsewhere = !woken && spinner.is_some_and(|cpu| cpu != self.here);
        self.spins = elsewhere && !self.means.longest.is_zero() && self.spinning.pays();
    }

    /// How often to let the worker run before anything else.
    pub(crate) fn turns(&self) -> u32 {
        if self.yields { TURNS } else { 0 }
    }

    /// Lets the worker run.
    pub(crate) fn give_turn(&self) {
        sched_yield();
    }

    /// Whether the turns have taken so long that others had them.
    pub(crate) fn turns_are_long(&self) -> bool {
        self.woken.is_none_or(|woken| clock::now().saturating_sub(woken) > LONG_TURNS)
    }

    /// How long to spin for the reply. A worker that sleeps, runs here, or does something else first is not spun for.
    pub(crate) fn spin(&self) -> Duration {
        if self.spins { self.means.longest } else { Duration::ZERO }
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
        if !self.means.longest.is_zero() {
            self.placement.learn(took, self.settled);
        }
    }

    /// Something else than the reply ended the wait: what is left of it is slept.
    pub(crate) const fn interrupted(&mut self) {
        (self.spins, self.yields) = (false, false);
    }

    /// The request has gone to another worker.
    pub(crate) const fn succeeded(&mut self) {
        self.interrupted();
        (self.woken, self.asked) = (None, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace() -> Pace {
        Pace::new(Means { longest: Duration::from_micros(50), one_cpu: false })
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
    }

    #[test]
    fn without_spins_no_worker_is_asked_to_be_anywhere() {
        for one_cpu in [true, false] {
            let mut pace = Pace::new(Means { longest: Duration::ZERO, one_cpu });
            for _ in 0..1000 {
                assert_eq!(pace.home(), None);
                pace.posted(true, None, clock::now());
                // With one CPU it runs as soon as it is let.
                assert_eq!(pace.turns() > 0, one_cpu);
                pace.replied(if one_cpu { Way::Turns } else { Way::Sleep });
                pace.home();
                pace.posted(false, Some(1), 0);
                assert!(pace.spin().is_zero());
                if one_cpu {
                    pace.yielding = Habit::default();
                }
            }
        }
    }

    #[test]
    fn a_wait_that_something_else_ends_is_slept() {
        let mut pace = pace();
        pace.home();
        (pace.spins, pace.yields) = (true, true);
        pace.interrupted();
        assert!(pace.spin().is_zero() && pace.turns() == 0);
    }

    #[test]
    fn a_worker_that_is_late_here_is_not_kept_here() {
        let mut pace = pace();
        for _ in 0..2 {
            assert!(pace.home().is_some());
            pace.posted(true, None, 0);
            pace.replied(Way::Sleep);
        }
        assert_eq!(pace.home(), None);
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
