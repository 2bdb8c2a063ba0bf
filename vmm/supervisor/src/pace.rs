//! How a vCPU's thread waits for one worker: where that one is to sleep, and whether to spin for its reply, to let it run on this CPU, or
//! to sleep at once. The worker says where it is ([`Stance`]); what it says may be a lie, and costs only its own device.
//!
//! A worker that sleeps on this thread's CPU is woken there, and runs as soon as this thread lets it: by a yield, after which the reply
//! is there. Were this thread to sleep instead, the scheduler would wake it on another CPU, if one is idle, at many times the price.

use std::time::Duration;

use cellblock_channel::clock;
use cellblock_ring::Stance;
use cellblock_ring::pacing::{Habit, Placement};
use rustix::thread::{sched_getcpu, sched_yield};

/// How often the worker is let run before this thread sleeps. Once does, unless others want the CPU too.
const TURNS: u32 = 3;
/// Turns that took longer, in ns, were others'.
const LONG_TURNS: u64 = 500_000;

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
    /// For a worker that spins, and for one that must be woken first.
    spinning: [Habit; 2],
    yielding: Habit,
    placement: Placement,
    /// Where this thread was when it posted last.
    here: u32,
    /// Of the running wait, from here on. It woke the worker: when, in ns of `CLOCK_MONOTONIC`.
    woken: Option<u64>,
    stance: Stance,
    spins: bool,
    yields: bool,
}

impl Pace {
    pub(crate) fn new(means: Means) -> Pace {
        Pace {
            means,
            spinning: Default::default(),
            yielding: Habit::default(),
            placement: Placement::default(),
            here: 0,
            woken: None,
            stance: Stance::Anywhere,
            spins: false,
            yields: false,
        }
    }

    /// A request is about to be posted: where its worker is to sleep afterwards.
    pub(crate) fn home(&mut self) -> Option<u32> {
        if self.means.longest.is_zero() {
            return None;
        }
        self.here = sched_getcpu() as u32;
        self.placement.at_home().then_some(self.here)
    }

    /// The request was posted at `now`; its worker sleeps and is being `woken`, or is awake, and has said where it waits.
    pub(crate) fn posted(&mut self, woken: bool, stance: Stance, now: u64) {
        let Means { longest, one_cpu } = self.means;
        self.woken = woken.then_some(now);
        self.stance = stance;
        // With one CPU it is here wherever it sleeps.
        let here = one_cpu || (!longest.is_zero() && stance == Stance::SleepsOn(self.here));
        self.yields = woken && here && self.yielding.pays();
        let elsewhere = matches!(stance, Stance::SpinsOn(cpu) if cpu != self.here);
        self.spins = elsewhere && !longest.is_zero() && self.spins_for(woken).pays();
    }

    const fn spins_for(&mut self, woken: bool) -> &mut Habit {
        let [awake, asleep] = &mut self.spinning;
        if woken { asleep } else { awake }
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
            self.spins_for(self.woken.is_some()).learn(way == Way::Spin);
        }
        let Some(woken) = self.woken.take() else { return };
        let took = clock::now().saturating_sub(woken);
        if self.yields {
            self.yielding.learn(way == Way::Turns && took < LONG_TURNS);
        }
        match self.stance {
            _ if self.means.longest.is_zero() => {}
            Stance::Anywhere => self.placement.learn(took, false),
            Stance::SleepsOn(cpu) if cpu == self.here => self.placement.learn(took, true),
            // This thread has moved since, or the worker spins.
            Stance::SleepsOn(_) | Stance::SpinsOn(_) => {}
        }
    }

    /// Something else than the reply ended the wait: what is left of it is slept.
    pub(crate) const fn interrupted(&mut self) {
        (self.spins, self.yields) = (false, false);
    }

    /// The request has gone to another worker.
    pub(crate) const fn succeeded(&mut self) {
        self.interrupted();
        self.woken = None;
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
        let (here, elsewhere) = (pace.here, pace.here.wrapping_add(1));
        for (stance, spins) in [
            (Stance::SpinsOn(elsewhere), true),
            (Stance::SpinsOn(here), false),
            (Stance::SleepsOn(elsewhere), false),
            (Stance::SleepsOn(here), false),
            (Stance::Anywhere, false),
        ] {
            for woken in [false, true] {
                pace.posted(woken, stance, 0);
                assert_eq!(!pace.spin().is_zero(), spins, "{woken} {stance:?}");
            }
        }
    }

    #[test]
    fn spins_for_sleepers_that_do_not_pay_end_none_for_those_awake() {
        let mut pace = pace();
        pace.home();
        let stance = Stance::SpinsOn(pace.here.wrapping_add(1));
        let spins = |pace: &mut Pace, woken, way| {
            pace.posted(woken, stance, 0);
            let spins = !pace.spin().is_zero();
            pace.replied(way);
            spins
        };
        let tries = (0..1000).filter(|_| spins(&mut pace, true, Way::Sleep)).count();
        assert!(tries < 12, "{tries}");
        assert!((0..100).all(|_| spins(&mut pace, false, Way::Spin)));
    }

    #[test]
    fn without_spins_no_worker_is_asked_to_be_anywhere() {
        for one_cpu in [true, false] {
            let mut pace = Pace::new(Means { longest: Duration::ZERO, one_cpu });
            for _ in 0..1000 {
                assert_eq!(pace.home(), None);
                pace.posted(true, Stance::Anywhere, clock::now());
                // With one CPU it runs as soon as it is let.
                assert_eq!(pace.turns() > 0, one_cpu);
                pace.replied(if one_cpu { Way::Turns } else { Way::Sleep });
                pace.home();
                pace.posted(false, Stance::SpinsOn(1), 0);
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
        let mut wait = |from: fn(u32) -> Stance| {
            // The thread may move in between, as any thread may.
            let asked = pace.home().is_some();
            pace.posted(true, from(pace.here), 0);
            pace.replied(Way::Sleep);
            asked
        };
        // Where it is not there yet says nothing.
        assert!((0..9).all(|_| wait(|_| Stance::Anywhere) && wait(|here| Stance::SleepsOn(here + 1))));
        assert!((0..2).all(|_| wait(Stance::SleepsOn)));
        assert!(!wait(Stance::SleepsOn));
    }

    #[test]
    fn it_lets_a_worker_run_that_sleeps_here() {
        let mut pace = pace();
        pace.home();
        let (here, elsewhere) = (pace.here, pace.here.wrapping_add(1));
        for (woken, stance, turns) in [
            (true, Stance::SleepsOn(here), TURNS),
            (false, Stance::SleepsOn(here), 0),
            (true, Stance::SleepsOn(elsewhere), 0),
            (true, Stance::SpinsOn(elsewhere), 0),
            (true, Stance::Anywhere, 0),
        ] {
            pace.posted(woken, stance, 0);
            assert_eq!(pace.turns(), turns, "{woken} {stance:?}");
        }
        // Where that takes long, others want the CPU: it sleeps.
        let mut turns = 0;
        for _ in 0..1000 {
            pace.posted(true, Stance::SleepsOn(here), 0);
            turns += u32::from(pace.turns() > 0);
            pace.replied(Way::Turns);
        }
        assert!(turns < 12, "{turns}");
    }
}
