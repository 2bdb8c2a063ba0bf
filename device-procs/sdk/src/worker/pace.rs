//! Where and how the register thread waits for the next request.
//!
//! A thread that sleeps on the vCPU's own CPU is woken without an interrupt to another CPU, several times cheaper than across CPUs; the
//! scheduler does not put it there by itself. So it sleeps where the last request came from. When requests follow close upon each
//! other it moves to another CPU, says so, and spins for them; when too many are long in coming it goes back.
//!
//! A CPU that somebody else wants too is no place to spin: the thread yields after each reply, and what that takes tells whether
//! somebody ran. Then it goes back at once, and stays away from spinning for a while, longer each time.
//!
//! A thread that is bound to one CPU waits behind whoever runs there, although others may be idle: so it is bound only while requests
//! come, and belongs to the host's scheduler again when none has come for [`BOUND`]. Whoever else binds it has the last word.
//!
//! # What is guaranteed
//! 1. With one CPU, or a longest spin of 0, nothing spins.
//! 2. It spins no longer than the longest spin after the last reply. (`it_spins_while_requests_are_close`)
//! 3. On a CPU that is wanted it gives way after each reply, tries again after 50 ms, and at most every 2 s if that goes on.
//!    (`a_cpu_that_is_wanted_is_left_for_longer_each_time`)
//! 4. A burst too short to pay for the move makes the next one start later. (`short_bursts_do_not_pay`)
//! 5. Without requests it is bound to no CPU. (`it_is_bound_while_requests_come`)
//! 6. CPUs that somebody else has bound it to it does not leave. (`it_stays_where_somebody_else_puts_it`)

use std::time::Duration;

use cellblock_channel::clock;
use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity, sched_yield};

/// Close requests in a row after which it moves away to spin, at first.
const CLOSE: u32 = 8;
/// At most.
const MOST_CLOSE: u32 = 512;
/// Replies while spinning that pay for the way there and back.
const WORTH: u32 = 64;
/// What a request that was long in coming weighs against those that came in time: it costs a wake-up across CPUs.
const MISS: u32 = 16;
/// As much weight is kept.
const MOST_CREDIT: u32 = 4 * MISS;
/// A yield, or two looks at the clock, that took longer: somebody else ran. In ns.
const LONG: u64 = 5_000;
/// So long that it need not happen twice.
const VERY_LONG: u64 = 400_000;
/// What a long one weighs against short ones.
const LONG_WEIGHT: u32 = 32;
/// From here on the CPU is wanted.
const WANTED: u32 = 3 * LONG_WEIGHT;
/// How long not to spin again, in ns.
const FIRST_PAUSE: u64 = Duration::from_millis(50).as_nanos() as u64;
/// At most.
const LAST_PAUSE: u64 = Duration::from_secs(2).as_nanos() as u64;

/// How long it stays bound without a request. An idle guest's timer comes in less.
pub(super) const BOUND: Duration = Duration::from_millis(100);

/// Where the thread is bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// To all CPUs that it has.
    Anywhere,
    /// To this one.
    At(u32),
    /// To all but this one.
    AwayFrom(u32),
}

/// What was learned, without the means to act on it.
#[derive(Debug)]
struct Learned {
    /// In ns; 0 = never spin.
    longest: u64,
    /// Requests in a row that came close to the reply before.
    close: u32,
    /// So many make it spin.
    needed: u32,
    /// Requests that came in time since it moved away to spin; `None` = it did not.
    spun: Option<u32>,
    /// How much of them is left.
    credit: u32,
    /// How much the CPU was wanted by others.
    wanted: u32,
    /// In ns of `CLOCK_MONOTONIC`.
    not_before: u64,
    pause: u64,
}

impl Learned {
    const fn new(longest: u64) -> Learned {
        Learned {
            longest,
            close: 0,
            needed: CLOSE,
            spun: None,
            credit: 0,
            wanted: 0,
            not_before: 0,
            pause: 0,
        }
    }

    /// A request was there at `now`, the one before was answered at `answered`. Whether to spin for the next.
    fn came(&mut self, answered: u64, now: u64) -> bool {
        // Sleep and wake-up are in the time too: what is twice as far off may just be close enough.
        let close = self.longest > 0 && now.saturating_sub(answered) <= 2 * self.longest;
        self.close = if close { self.close.saturating_add(1) } else { 0 };
        self.close >= self.needed && now >= self.not_before
    }

    fn began(&mut self) {
        (self.spun, self.credit, self.wanted, self.close) = (Some(0), MISS, 0, 0);
    }

    /// A request came while it spun.
    fn in_time(&mut self) {
        self.spun = self.spun.map(|spun| spun.saturating_add(1));
        self.credit = (self.credit + 1).min(MOST_CREDIT);
    }

    /// None did. Whether it spins again after the next one.
    fn missed(&mut self) -> bool {
        self.credit = self.credit.saturating_sub(MISS);
        self.credit > 0
    }

    /// What took `ns` while spinning should have taken next to nothing. Whether it is to stop.
    fn gave_way(&mut self, ns: u64) -> bool {
        self.wanted = match ns {
            VERY_LONG.. => WANTED,
            LONG.. => self.wanted + LONG_WEIGHT,
            _ => self.wanted.saturating_sub(1),
        };
        self.wanted >= WANTED
    }

    /// It stops to spin, for no request came, or because the CPU is `wanted`.
    fn ended(&mut self, wanted: bool, now: u64) {
        let Some(spun) = self.spun.take() else { return };
        if wanted {
            self.pause = (self.pause * 2).clamp(FIRST_PAUSE, LAST_PAUSE);
            self.not_before = now.saturating_add(self.pause);
        } else if spun < WORTH {
            self.needed = (self.needed * 2).min(MOST_CLOSE);
        } else {
            self.needed = (self.needed / 2).max(CLOSE);
            self.pause /= 2;
        }
        self.close = 0;
    }
}

/// The register thread's way of waiting.
#[derive(Debug)]
pub(super) struct Pace {
    /// The CPUs that it may use.
    cpus: CpuSet,
    learned: Learned,
    /// With one CPU, or if the host refuses to bind threads: `false`.
    can_move: bool,
    place: Place,
    /// The last home that it was asked to have, which it takes when it is asked again.
    asked: Option<u32>,
    /// When it slept after the last reply, in ns of `CLOCK_MONOTONIC`.
    answered: u64,
    /// The replies until then.
    served: u64,
    /// Where it spins.
    on: u32,
    /// It does, and not only will.
    spinning: bool,
}

impl Pace {
    /// Spins for up to `longest_us` µs; 0 = never.
    pub(super) fn new(longest_us: u32) -> Pace {
        let cpus = sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
        // Also so that the vDSO is found before the sandbox closes.
        let on = sched_getcpu() as u32;
        Pace {
            can_move: cpus.count() > 1,
            learned: Learned::new(u64::from(longest_us) * 1000),
            cpus,
            place: Place::Anywhere,
            asked: None,
            answered: 0,
            served: 0,
            on,
            spinning: false,
        }
    }

    pub(super) const fn spins(&self) -> bool {
        self.spinning
    }

    /// How long it spins for the next request, in ns.
    pub(super) const fn longest(&self) -> u64 {
        self.learned.longest
    }

    /// A request came in a sleep, from a vCPU whose CPU is `home`, and was answered. On which CPU it spins from now on; `None` =
    /// it does not.
    pub(super) fn woken(&mut self, home: Option<u32>, woken: u64) -> Option<u32> {
        if !self.can_move || (self.learned.spun.is_none() && !self.learned.came(self.answered, woken)) {
            return None;
        }
        let Some(home) = home else {
            self.learned.ended(false, woken);
            return None;
        };
        self.bind(Place::AwayFrom(home));
        self.on = sched_getcpu() as u32;
        if !self.can_move || self.on == home {
            self.learned.ended(true, woken);
            return None;
        }
        if self.learned.spun.is_none() {
            self.learned.began();
        }
        self.spinning = true;
        Some(self.on)
    }

    /// A request came while it spun, from a vCPU whose CPU is `home`, and was answered. Lets others run; `false` = it is to
    /// stop.
    pub(super) fn give_way(&mut self, home: Option<u32>) -> bool {
        let before = clock::now();
        sched_yield();
        let wanted = self.learned.gave_way(clock::now().saturating_sub(before));
        self.learned.in_time();
        // With more than two CPUs the scheduler may have moved it.
        self.on = sched_getcpu() as u32;
        !wanted && home != Some(self.on)
    }

    /// Where it spins.
    pub(super) const fn on(&self) -> u32 {
        self.on
    }

    /// Between two looks at the clock `ns` went by; `false` = it is to stop.
    pub(super) fn looked(&mut self, ns: u64) -> bool {
        ns < LONG || !self.learned.gave_way(ns)
    }

    /// It no longer spins: the CPU is `wanted`, or no request came. Whether it sleeps where it is, to spin again.
    pub(super) fn stop(&mut self, wanted: bool) -> bool {
        self.spinning = false;
        let stays = !wanted && self.learned.missed();
        if !stays {
            self.learned.ended(wanted, clock::now());
        }
        stays
    }

    /// It is about to sleep after `served` replies in all; the last vCPU that asked is on the CPU `home`, as far as that matters.
    pub(super) fn settle(&mut self, home: Option<u32>, served: u64) {
        let news = served != self.served;
        if !self.can_move || !(news || self.is_bound()) {
            return;
        }
        let now = clock::now();
        let late = now.saturating_sub(self.answered) >= BOUND.as_nanos() as u64;
        match home {
            _ if !news && !late => return,
            _ if !news => return self.release(),
            _ if late => self.asked = None,
            _ => {}
        }
        match home {
            _ if self.learned.spun.is_some() => {}
            None => self.bind(Place::Anywhere),
            Some(cpu) if self.place == Place::At(cpu) => {}
            // Twice, for it may be that two vCPUs ask in turn.
            Some(cpu) if self.asked == home && self.is_ours(cpu) => self.bind(Place::At(cpu)),
            Some(_) if matches!(self.place, Place::AwayFrom(_)) => self.bind(Place::Anywhere),
            Some(_) => {}
        }
        (self.asked, self.answered, self.served) = (home, now, served);
    }

    /// Whether a sleep is to end after [`BOUND`], to settle again.
    pub(super) fn is_bound(&self) -> bool {
        self.place != Place::Anywhere
    }

    /// No request has come for long, or none is answered.
    pub(super) fn release(&mut self) {
        self.learned.ended(false, clock::now());
        self.bind(Place::Anywhere);
    }

    fn is_ours(&self, cpu: u32) -> bool {
        (cpu as usize) < CpuSet::MAX_CPU && self.cpus.is_set(cpu as usize)
    }

    fn bind(&mut self, place: Place) {
        if self.place == place {
            return;
        }
        let ours = sched_getaffinity(None).is_ok_and(|cpus| cpus == self.set(self.place));
        if ours && sched_setaffinity(None, &self.set(place)).is_ok() {
            self.place = place;
        } else {
            // The host's administrator has bound it, or has taken CPUs away: it stays where it is from now on.
            self.learned.ended(false, 0);
            (self.can_move, self.place) = (false, Place::Anywhere);
        }
    }

    fn set(&self, place: Place) -> CpuSet {
        match place {
            Place::Anywhere => self.cpus,
            Place::At(cpu) => {
                let mut one = CpuSet::new();
                one.set(cpu as usize);
                one
            }
            Place::AwayFrom(cpu) => {
                let mut others = self.cpus;
                if self.is_ours(cpu) {
                    others.unset(cpu as usize);
                }
                others
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: u64 = 50_000;

    /// Requests `gap` ns apart, from `now` on, until it wants to spin.
    fn until_it_spins(learned: &mut Learned, gap: u64, now: &mut u64) -> u32 {
        for count in 1..10_000 {
            let answered = *now;
            *now += gap;
            if learned.came(answered, *now) {
                learned.began();
                return count;
            }
        }
        10_000
    }

    #[test]
    fn it_spins_while_requests_are_close() {
        let mut now = 0;
        assert_eq!(until_it_spins(&mut Learned::new(LONGEST), 2 * LONGEST, &mut now), CLOSE);
        assert_eq!(until_it_spins(&mut Learned::new(LONGEST), 2 * LONGEST + 1, &mut now), 10_000);
        assert_eq!(until_it_spins(&mut Learned::new(0), 0, &mut now), 10_000);
    }

    #[test]
    fn a_request_that_is_late_now_and_then_does_not_send_it_home() {
        let mut learned = Learned::new(LONGEST);
        learned.began();
        for _ in 0..100 {
            (0..MISS).for_each(|_| learned.in_time());
            assert!(learned.missed());
        }
        // Late ones only do.
        assert_eq!((0..100).take_while(|_| learned.missed()).count(), 0);
        (0..1000).for_each(|_| learned.in_time());
        assert_eq!((0..100).take_while(|_| learned.missed()).count(), 3);
    }

    #[test]
    fn short_bursts_do_not_pay() {
        let mut learned = Learned::new(LONGEST);
        let mut now = 0;
        for needed in [8, 16, 32, 64, 128, 256, 512, 512] {
            assert_eq!(until_it_spins(&mut learned, 1000, &mut now), needed);
            learned.spun = Some(WORTH - 1);
            learned.ended(false, now);
        }
        // Long ones do.
        for needed in [512, 256, 128, 64, 32, 16, 8, 8] {
            assert_eq!(until_it_spins(&mut learned, 1000, &mut now), needed);
            learned.spun = Some(WORTH);
            learned.ended(false, now);
        }
    }

    #[test]
    fn a_cpu_that_is_wanted_is_left_for_longer_each_time() {
        let mut learned = Learned::new(LONGEST);
        let mut now = 0;
        for pause in [50, 100, 200, 400, 800, 1600, 2000, 2000] {
            until_it_spins(&mut learned, 1000, &mut now);
            assert!(learned.gave_way(VERY_LONG));
            learned.ended(true, now);
            assert!(!learned.came(now, now + pause * 1_000_000 - 1));
            now += pause * 1_000_000;
        }
    }

    /// A thread that has two CPUs at least, which a test of binding needs.
    fn movable() -> Option<(Pace, u32)> {
        let pace = Pace::new(50);
        let home = (0..CpuSet::MAX_CPU as u32).find(|cpu| pace.is_ours(*cpu))?;
        if !pace.can_move {
            println!("SKIP: one CPU");
            return None;
        }
        Some((pace, home))
    }

    fn affinity() -> CpuSet {
        sched_getaffinity(None).unwrap()
    }

    #[test]
    fn it_is_bound_while_requests_come() {
        let Some((mut pace, home)) = movable() else { return };
        pace.settle(Some(home), 1);
        assert!(!pace.is_bound(), "one request");
        // The host's events are no requests.
        (0..9).for_each(|_| pace.settle(Some(home), 1));
        assert!(!pace.is_bound());
        // That the second comes in time is not in this thread's hands.
        pace.answered = u64::MAX;
        pace.settle(Some(home), 2);
        assert!(pace.is_bound() && affinity().count() == 1 && affinity().is_set(home as usize));
        pace.answered = u64::MAX;
        pace.settle(Some(home), 2);
        assert!(pace.is_bound());
        pace.answered = 0;
        pace.settle(Some(home), 2);
        assert!(!pace.is_bound() && affinity() == pace.cpus);
        // The first after long does not bind it.
        pace.settle(Some(home), 3);
        assert!(!pace.is_bound());
        // Nor does one that is not for a place.
        (pace.answered, pace.asked) = (u64::MAX, None);
        pace.settle(None, 4);
        assert!(!pace.is_bound() && affinity() == pace.cpus);
    }

    #[test]
    fn it_stays_where_somebody_else_puts_it() {
        let Some((mut pace, home)) = movable() else { return };
        let others = pace.set(Place::AwayFrom(home));
        for before in [Place::Anywhere, Place::At(home)] {
            (pace.can_move, pace.learned.spun) = (true, Some(1));
            sched_setaffinity(None, &pace.cpus).unwrap();
            pace.place = Place::Anywhere;
            pace.bind(before);
            let put = if before == Place::Anywhere { pace.set(Place::At(home)) } else { others };
            sched_setaffinity(None, &put).unwrap();
            pace.bind(Place::AwayFrom(u32::MAX));
            assert!(affinity() == put && !pace.is_bound() && pace.learned.spun.is_none());
            (pace.asked, pace.answered) = (Some(home), u64::MAX);
            pace.settle(Some(home), 7);
            assert!(affinity() == put && pace.woken(Some(home), 1).is_none());
        }
    }

    #[test]
    fn now_and_then_somebody_may_run() {
        let mut learned = Learned::new(LONGEST);
        learned.began();
        // A timer's interrupt every 4 ms, among requests every 20 µs.
        for _ in 0..100 {
            assert!(!learned.gave_way(LONG));
            assert!((0..200).all(|_| !learned.gave_way(200)));
        }
        assert!(!learned.gave_way(LONG) && !learned.gave_way(LONG) && learned.gave_way(LONG));
    }
}
