//! Whether a post's thread takes the CPU from the vCPU that kicks it.
//!
//! Where both share a CPU, the scheduler gives it to whoever wakes up: at each kick the vCPU leaves the guest, and comes back when one
//! buffer has gone its way. That is what a guest wants that waits for the buffer. One that sends or receives a stream wants the opposite:
//! that the thread waits until the vCPU sleeps or its turn is over, and then passes all there is, for one change of address space, one
//! interrupt and one wake-up of whoever is at the other end. On one CPU a stream over TCP is up to twice as fast so.
//!
//! Which is better depends on what else the guest does: one that also computes does not sleep. So a thread whose turns pass much
//! ([`LARGE`]) tries both ways and keeps the one that passed more, with a preference for waking at once. Where the CPUs are
//! not shared there is no difference.
//!
//! # What is guaranteed
//! 1. A thread that passes little wakes at once: two windows (of [`LONGEST`] at most) after a stream has ended, too. (`what_is_no_stream_wakes_at_once`)
//! 2. A way that passes less is left after one trial, and tried ever more seldom while the stream goes on.
//!    (`the_way_that_passes_more_is_kept`)
//! 3. A thread with another scheduling policy keeps it. (`somebody_elses_policy_stays`)

use std::sync::Arc;
use std::time::Duration;

use cellblock_channel::clock;
use cellblock_channel::scheduling::{self, Waking};

use super::engine::Wait;
use crate::host::Traffic;

/// Bytes that a turn of a stream's passes, on average over a window.
const LARGE: u64 = 4096;
/// What is measured at once lasts so long at least, in ns,
const WINDOW: u64 = Duration::from_millis(20).as_nanos() as u64;
/// has so many turns,
const TURNS: u64 = 16;
/// and lasts so long at most, in ns.
const LONGEST: u64 = Duration::from_millis(100).as_nanos() as u64;
/// Windows of a stream before the first trial.
const FIRST: u32 = 4;
/// Between a trial and the next at least,
const LEAST: u32 = 16;
/// and at most.
const MOST: u32 = 128;
/// How many eighths of what waking at once passes the other way must exceed.
const WORTH: u64 = 9;

/// What was passed since it began.
#[derive(Debug, Clone, Copy)]
struct Window {
    began: u64,
    bytes: u64,
    turns: u64,
}

/// A trial of the other way.
#[derive(Debug, Clone, Copy)]
enum Trial {
    /// In its first window, which has the change in it.
    Begun,
    /// In its second.
    Counted,
    /// In its last; the second passed so much.
    Half(u64),
}

/// What was learned, without the means to act on it.
#[derive(Debug)]
struct Learned {
    now: Waking,
    window: Option<Window>,
    /// Bytes per ms that waking at once passes, and waking in turn; 0 = not known.
    rates: [u64; 2],
    trial: Option<Trial>,
    /// Windows until the next trial, and how many there were before this one.
    left: u32,
    pause: u32,
}

impl Learned {
    const fn new() -> Learned {
        Learned { now: Waking::AtOnce, window: None, rates: [0; 2], trial: None, left: FIRST, pause: LEAST }
    }

    /// A turn that ended at `now` has passed `bytes`. How to wake up from now on, if that changes.
    fn turned(&mut self, bytes: u64, now: u64) -> Option<Waking> {
        let window = self.window.get_or_insert(Window { began: now, bytes: 0, turns: 0 });
        window.bytes = window.bytes.saturating_add(bytes);
        window.turns += 1;
        let (time, Window { bytes, turns, .. }) = (now.saturating_sub(window.began), *window);
        if time < WINDOW || (turns < TURNS && time < LONGEST) {
            return None;
        }
        self.window = Some(Window { began: now, bytes: 0, turns: 0 });
        if turns < TURNS || time > LONGEST || bytes / turns < LARGE {
            return self.no_stream();
        }
        self.measured(bytes.saturating_mul(1_000_000) / time)
    }

    fn no_stream(&mut self) -> Option<Waking> {
        let before = self.now;
        *self = Learned { window: self.window, ..Learned::new() };
        (before != self.now).then_some(self.now)
    }

    fn change(&mut self) -> Option<Waking> {
        self.now = match self.now {
            Waking::AtOnce => Waking::InTurn,
            Waking::InTurn => Waking::AtOnce,
        };
        Some(self.now)
    }

    /// The stream has passed `rate` bytes per ms for a window.
    fn measured(&mut self, rate: u64) -> Option<Waking> {
        let [at_once, in_turn] = &mut self.rates;
        let known = if self.now == Waking::AtOnce { &mut *at_once } else { &mut *in_turn };
        match self.trial {
            None => {
                // Something has changed that waiting may be the reason for, or not.
                let fell = self.now == Waking::InTurn && rate < *known / 2;
                *known =
                    if *known == 0 || fell { rate } else { known.saturating_mul(3).saturating_add(rate) / 4 };
                self.left = self.left.saturating_sub(1);
                if self.left > 0 && !fell {
                    return None;
                }
                self.trial = Some(Trial::Begun);
                self.change()
            }
            Some(Trial::Begun) => {
                self.trial = Some(Trial::Counted);
                None
            }
            Some(Trial::Counted) => {
                self.trial = Some(Trial::Half(rate));
                None
            }
            Some(Trial::Half(first)) => {
                *known = first.saturating_add(rate) / 2;
                let better = if *in_turn > (*at_once / 8).saturating_mul(WORTH) {
                    Waking::InTurn
                } else {
                    Waking::AtOnce
                };
                self.trial = None;
                self.pause = if better == self.now { LEAST } else { (self.pause * 2).min(MOST) };
                self.left = self.pause;
                if better == self.now { None } else { self.change() }
            }
        }
    }
}

/// How one post's thread wakes up. Used by that thread.
#[derive(Debug)]
pub(super) struct Wakes {
    learned: Learned,
    traffic: Arc<Traffic>,
    /// Bytes of that at the last turn.
    passed: u64,
    /// It carries streams, and nobody else has a say in it.
    learns: bool,
}

impl Wakes {
    /// Of a post whose queues count in `traffic`; where `streams`, it learns how to wake up for them.
    pub(super) fn new(traffic: Arc<Traffic>, streams: bool) -> Self {
        Wakes { learned: Learned::new(), traffic, passed: 0, learns: streams }
    }

    /// A turn has ended that wants to wait for `wait`. One that wakes in turn waits no longer than until it is known that there is no
    /// stream any more.
    pub(super) fn turned(&mut self, wait: Wait) -> Wait {
        if !self.learns {
            return wait;
        }
        let passed = self.traffic.to_guest.get().saturating_add(self.traffic.from_guest.get());
        let (bytes, now) = (passed.saturating_sub(self.passed), clock::now());
        self.passed = passed;
        let before = self.learned.now;
        if let Some(waking) = self.learned.turned(bytes, now) {
            self.learns = scheduling::waking() == Some(before) && scheduling::set_waking(waking).is_ok();
        }
        if self.learns && self.learned.now == Waking::InTurn {
            let until = now.saturating_add(LONGEST + 1);
            return Wait { until: Some(wait.until.map_or(until, |time| time.min(until))), ..wait };
        }
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// A host on which a stream passes so much in a ms.
    struct Host {
        at_once: u64,
        in_turn: u64,
        now: u64,
    }

    impl Host {
        fn new(at_once: u64, in_turn: u64) -> Self {
            Host { at_once, in_turn, now: 1 }
        }

        /// A stream for `ms`, a turn each ms; how many of them it woke in turn.
        fn run(&mut self, learned: &mut Learned, ms: u64) -> u64 {
            let one = |_| {
                self.now += MS;
                let bytes = if learned.now == Waking::AtOnce { self.at_once } else { self.in_turn };
                let before = learned.now;
                let told = learned.turned(bytes, self.now);
                assert_eq!(told, (before != learned.now).then_some(learned.now), "each change is told");
                u64::from(learned.now == Waking::InTurn)
            };
            (0..ms).map(one).sum()
        }
    }

    #[test]
    fn the_way_that_passes_more_is_kept() {
        for (at_once, in_turn, most, least) in [
            (20_000, 40_000, 10_000, 9_400),
            (20_000, 24_000, 10_000, 9_400),
            (20_000, 22_000, 500, 60),
            (20_000, 20_000, 500, 60),
            (40_000, 20_000, 500, 60),
        ] {
            let (mut host, mut learned) = (Host::new(at_once, in_turn), Learned::new());
            let ms = host.run(&mut learned, 10_000);
            assert!((least..=most).contains(&ms), "{at_once} against {in_turn}: {ms} of 10000 ms in turn");
        }
    }

    #[test]
    fn a_host_that_changes_is_found_out() {
        let (mut host, mut learned) = (Host::new(20_000, 40_000), Learned::new());
        host.run(&mut learned, 20_000);
        assert_eq!(learned.now, Waking::InTurn);
        // The guest computes from now on: found out at once, for it falls to less than half.
        host.in_turn = 10_000;
        assert!(host.run(&mut learned, 1_000) < 200);
        assert_eq!(learned.now, Waking::AtOnce);
        host.in_turn = 40_000;
        host.run(&mut learned, 3_000);
        assert_eq!(learned.now, Waking::InTurn);
        // It falls to less than half, but to more than half of what waking at once passes.
        (host.at_once, host.in_turn) = (20_000, 15_000);
        assert!(host.run(&mut learned, 1_000) < 200);
        assert_eq!(learned.now, Waking::AtOnce);
        host.in_turn = 40_000;
        host.run(&mut learned, 3_000);
        assert_eq!(learned.now, Waking::InTurn);
        // Less than before, but more than half: by the next trial.
        host.at_once = 60_000;
        host.run(&mut learned, 3_000);
        assert_eq!(learned.now, Waking::AtOnce);
    }

    #[test]
    fn what_is_no_stream_wakes_at_once() {
        let (mut host, mut learned) = (Host::new(1500, 1_000_000), Learned::new());
        assert_eq!(host.run(&mut learned, 10_000), 0, "small frames");
        host.at_once = 20_000;
        host.run(&mut learned, 1_000);
        assert_eq!(learned.now, Waking::InTurn);
        host.in_turn = 1500;
        assert!(host.run(&mut learned, 100) < 50, "small frames after a stream");
        host.in_turn = 40_000;
        host.run(&mut learned, 1_000);
        assert_eq!(learned.now, Waking::InTurn);
        // Nothing for long, as the thread wakes up to see.
        assert_eq!(learned.turned(0, host.now + LONGEST + 1), Some(Waking::AtOnce));
        // A large frame now and then is no stream either.
        for frame in 0..1000 {
            assert_eq!(learned.turned(60_000, host.now + frame * 50 * MS), None);
        }
    }

    #[test]
    fn odd_figures_overflow_nothing() {
        let mut learned = Learned::new();
        for (bytes, now) in [(u64::MAX, 0), (u64::MAX, u64::MAX), (0, 0), (u64::MAX, 5)] {
            for _ in 0..100 {
                learned.turned(bytes, now);
            }
        }
        learned.rates = [u64::MAX; 2];
        for _ in 0..1000 {
            learned.measured(u64::MAX);
        }
    }

    /// Passes a stream through `wakes` for `ms`; how it wakes up then.
    fn stream(wakes: &mut Wakes, ms: u64) -> (Option<Waking>, Wait) {
        let end = clock::now() + ms * MS;
        let mut wait = Wait::default();
        while clock::now() < end {
            wakes.traffic.from_guest.add(60_000);
            std::thread::sleep(Duration::from_micros(100));
            wait = wakes.turned(Wait::default());
        }
        (scheduling::waking(), wait)
    }

    #[test]
    fn a_thread_wakes_as_it_has_learned() {
        let thread = std::thread::spawn(|| {
            let mut wakes = Wakes::new(Arc::default(), true);
            let end = clock::now() + 20_000 * MS;
            // Until the first trial.
            while stream(&mut wakes, 1).0 != Some(Waking::InTurn) && clock::now() < end {}
            // A machine that stops this thread for long ends the stream.
            let mut wait = wakes.turned(Wait::default());
            while wait.until.is_none() && clock::now() < end {
                wait = stream(&mut wakes, 1).1;
            }
            assert!(wait.until.is_some_and(|until| until <= clock::now() + LONGEST + 1), "{wait:?}");
            std::thread::sleep(Duration::from_nanos(LONGEST + 1));
            assert_eq!(wakes.turned(Wait::default()), Wait::default());
            assert_eq!(scheduling::waking(), Some(Waking::AtOnce));
        });
        thread.join().unwrap();
    }

    #[test]
    fn somebody_elses_policy_stays() {
        let thread = std::thread::spawn(|| {
            let mut wakes = Wakes::new(Arc::default(), true);
            scheduling::set_waking(Waking::InTurn).unwrap();
            let end = clock::now() + 20_000 * MS;
            while wakes.learns && clock::now() < end {
                assert_eq!(stream(&mut wakes, 1).1, Wait::default());
            }
            assert_eq!((wakes.learns, scheduling::waking()), (false, Some(Waking::InTurn)));
            let mut wakes = Wakes::new(Arc::default(), false);
            scheduling::set_waking(Waking::AtOnce).unwrap();
            assert_eq!(stream(&mut wakes, 300), (Some(Waking::AtOnce), Wait::default()), "it carries none");
        });
        thread.join().unwrap();
    }
}
