//! What the supervisor's side of a lane learns of waiting: which ways of waiting pay, and where the worker sleeps best.
//!
//! Decisions only, of times that the caller has measured; no clock, no shared word.
//!
//! # What is guaranteed
//! 1. A way of waiting that never pays is given up but for one wait in 1024. ([`Habit`])
//! 2. If sleeping on the vCPU's CPU does not pay, it is given up, but for a try of two waits each time that the number of waits has
//!    grown fourfold; up to one try in 65,536. ([`Placement`])
//! 3. Two waits of 1 ms in a row with the worker on the vCPU's CPU, and it is given up for 4096 waits: a worker that is bound there
//!    waits behind whoever runs there. (`two_long_waits_end_it`)

/// Misses in a row after which the pause between two tries grows no more: 2^10 waits.
const MOST_MISSES: u32 = 10;

/// A way of waiting that is kept up as long as it pays: spinning, or letting the worker run and looking again.
#[derive(Debug, Clone, Default)]
pub struct Habit {
    /// In a row.
    misses: u32,
    /// Waits that go without.
    skip: u32,
}

impl Habit {
    /// Whether to do so in this wait, if it may pay. After a `true` tell [`Habit::learn`] how it went.
    pub const fn pays(&mut self) -> bool {
        match self.skip.checked_sub(1) {
            None => true,
            Some(rest) => {
                self.skip = rest;
                false
            }
        }
    }

    /// Whether it has paid.
    pub const fn learn(&mut self, paid: bool) {
        if paid {
            self.misses /= 2;
            return;
        }
        self.skip = 1 << self.misses;
        if self.misses < MOST_MISSES {
            self.misses += 1;
        }
    }
}

/// Waits until the first try of the other place.
const FIRST_TRY: u32 = 64;
/// The longest time between two tries, in waits.
const LAST_TRY: u32 = 1 << 16;
/// Waits in a try, once the worker is at the place.
const TRY: u32 = 2;
/// One wait counts as so many ns at most: a host that was busy elsewhere says nothing of the place.
const MOST: u64 = 1_000_000;
/// Waits of so long in a row, and the worker is bound to a CPU that others have.
const MOST_LATE: u32 = 2;
/// Waits for which it is not bound there then.
const RESPITE: u32 = 1 << 12;

/// Where a worker is asked to sleep: on the vCPU's CPU, or wherever the host's scheduler puts it.
#[derive(Debug, Clone)]
pub struct Placement {
    /// On the vCPU's CPU.
    at_home: bool,
    /// What a wait costs there, in ns, smoothed; 0 = not known yet.
    cost: u64,
    /// Waits until the next try.
    until_try: u32,
    between_tries: u32,
    /// Of the running try of the other place: waits left, and the best cost seen.
    trying: Option<(u32, u64)>,
    /// Long waits in a row on the vCPU's CPU.
    late: u32,
}

impl Default for Placement {
    fn default() -> Self {
        Placement {
            at_home: true,
            cost: 0,
            until_try: FIRST_TRY,
            between_tries: FIRST_TRY,
            trying: None,
            late: 0,
        }
    }
}

impl Placement {
    /// Whether the worker is to sleep on the vCPU's CPU.
    pub const fn at_home(&self) -> bool {
        self.at_home != self.trying.is_some()
    }

    /// A worker was woken, and its reply was there after `ns`; it had slept on the vCPU's CPU (`home`), or wherever the host's scheduler
    /// had put it.
    pub fn learn(&mut self, ns: u64, home: bool) {
        let ns = ns.min(MOST);
        self.late = if ns == MOST && home { self.late + 1 } else { 0 };
        if self.late == MOST_LATE {
            *self = Placement {
                at_home: false,
                until_try: RESPITE,
                between_tries: RESPITE,
                ..Placement::default()
            };
            return;
        }
        if home != self.at_home() {
            // It has been asked to move, and has not yet.
            return;
        }
        match self.trying.take() {
            None => self.settled(ns),
            Some((left, best)) if left > 1 => self.trying = Some((left - 1, best.min(ns))),
            Some((_, best)) => self.decide(best.min(ns)),
        }
    }

    fn settled(&mut self, ns: u64) {
        self.cost = if self.cost == 0 { ns } else { (self.cost * 7 + ns) / 8 };
        self.until_try -= 1;
        if self.until_try == 0 {
            self.until_try = self.between_tries;
            self.trying = Some((TRY, MOST));
        }
    }

    /// The other place must be better by a fifth.
    fn decide(&mut self, other: u64) {
        if other < self.cost - self.cost / 5 {
            self.at_home = !self.at_home;
            (self.cost, self.between_tries) = (0, FIRST_TRY);
        } else {
            self.between_tries = (self.between_tries * 4).min(LAST_TRY);
        }
        self.until_try = self.between_tries;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_pays_is_given_up() {
        let mut habit = Habit::default();
        let mut tries = 0;
        for _ in 0..100_000 {
            if habit.pays() {
                tries += 1;
                habit.learn(false);
            }
        }
        assert!((90..130).contains(&tries), "{tries}");
        // And taken up again, once it does.
        for _ in 0..=MOST_MISSES {
            while !habit.pays() {}
            habit.learn(true);
        }
        assert!((0..100).all(|_| habit.pays()));
    }

    /// What a wait costs at home and elsewhere; how many of `waits` were at home.
    fn at_home(placement: &mut Placement, home: u64, elsewhere: u64, waits: u32) -> u32 {
        let mut slept_at_home = placement.at_home();
        let mut count = 0;
        for _ in 0..waits {
            count += u32::from(slept_at_home);
            // The hint that goes with this request is for the sleep after it.
            let next = placement.at_home();
            placement.learn(if slept_at_home { home } else { elsewhere }, slept_at_home);
            slept_at_home = next;
        }
        count
    }

    #[test]
    fn the_cheaper_place_is_found_and_kept() {
        let mut placement = Placement::default();
        let count = at_home(&mut placement, 10_000, 60_000, 10_000);
        assert!(count >= 9_985, "{count}");
        let mut placement = Placement::default();
        let count = at_home(&mut placement, 60_000, 5_000, 10_000);
        assert!(count <= 90, "{count}");
        // Equal: it stays.
        let mut placement = Placement::default();
        assert!(at_home(&mut placement, 10_000, 9_000, 10_000) >= 9_985);
    }

    #[test]
    fn two_long_waits_end_it() {
        let mut placement = Placement::default();
        for _ in 0..10 {
            placement.learn(MOST, true);
            assert!(placement.at_home());
            placement.learn(MOST - 1, true);
        }
        placement.learn(MOST, true);
        placement.learn(u64::MAX, true);
        for _ in 0..RESPITE {
            assert!(!placement.at_home());
            placement.learn(MOST, false);
        }
        // It is tried then, and given up as fast.
        assert!(placement.at_home());
        placement.learn(MOST, true);
        placement.learn(MOST, true);
        assert!(!placement.at_home());
    }

    #[test]
    fn waits_before_it_is_there_say_nothing_of_the_place() {
        let mut placement = Placement::default();
        for _ in 0..10_000 {
            placement.learn(MOST, false);
        }
        assert!(placement.at_home());
        assert!(at_home(&mut placement, 10_000, 60_000, 1_000) >= 990);
    }

    #[test]
    fn a_place_that_becomes_bad_is_left() {
        let mut placement = Placement::default();
        at_home(&mut placement, 10_000, 60_000, 1_000);
        assert!(placement.at_home());
        at_home(&mut placement, u64::MAX, 0, 2_000);
        assert!(!placement.at_home());
    }
}
