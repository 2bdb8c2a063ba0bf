//! Where and how the register thread waits for the next request.
//!
//! A thread that sleeps on the vCPU's own CPU is woken without an interrupt to another CPU, several times cheaper than across CPUs; the
//! scheduler does not put it there by itself. So it sleeps where the last request came from. When requests follow close upon each
//! other it moves to another CPU, says so, and spins for them; when too many are long in coming, or none comes for [`AWAY`], it goes back.
//!
//! A CPU that somebody else wants too is no place to spin: the thread yields after each reply, and if that takes long, the kernel's count
//! of its preemptions tells whether somebody ran: an interrupt, or the host of this host, takes time, too. Then it goes back at once, and
//! stays away from spinning for a while, longer each time.
//!
//! A thread that is bound to one CPU waits behind whoever runs there, although others may be idle: so it is bound only while requests
//! come, and belongs to the host's scheduler again when none has come for [`BOUND`]. Whoever else binds it has the last word.
//!
//! # What is guaranteed
//! 1. With one CPU, or a longest spin of 0, nothing spins.
//! 2. It spins no longer than the longest spin after the last reply. (`it_spins_while_requests_are_close`)
//! 3. On a CPU that is wanted it gives way after each reply, tries again after 50 ms, and at most every 2 s if that goes on, until
//!    nobody has wanted it for eight times as long. (`a_cpu_that_is_wanted_is_left_for_longer_each_time`)
//! 4. A burst too short to pay for the move makes the next one start later. (`short_bursts_do_not_pay`)
//! 5. Without requests it is bound to no CPU. (`it_is_bound_while_requests_come`)
//! 6. CPUs that somebody else has bound it to it does not leave. (`it_stays_where_somebody_else_puts_it`)

use std::mem;
use std::time::Duration;

use cellblock_channel::clock;
use cellblock_ring::Stance;
use nix::sys::resource::{UsageWho, getrusage};
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
/// A yield, or two looks at the clock, that took longer: somebody else may have run. In ns.
const LONG: u64 = 5_000;
/// When others have had so much of the CPU it is wanted. In ns.
const WANTED: u64 = 1_000_000;
/// One turn of another's counts as so much at most: the host's own threads have long ones, now and then. So one in 600 requests or
/// more, however long, is suffered. In ns.
const MOST_TURN: u64 = 600_000;
/// So much of that is forgotten with each request: a twelfth of the time that one takes at least. In ns.
const FORGOTTEN: u64 = 1_000;
/// How long not to spin again, in ns.
const FIRST_PAUSE: u64 = Duration::from_millis(50).as_nanos() as u64;
/// At most.
const LAST_PAUSE: u64 = Duration::from_secs(2).as_nanos() as u64;
/// So many times the pause since it ended, and what was the reason for it is over.
const LONG_AGO: u64 = 8;

/// How long it stays bound without a request. An idle guest's timer comes in less.
const BOUND: Duration = Duration::from_millis(100);
/// How long it stays where it has spun without a request: there it is woken at a high price.
const AWAY: Duration = Duration::from_millis(1);

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
    /// How much of the CPU others had, in ns.
    wanted: u64,
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
        self.wanted = self.wanted.saturating_sub(FORGOTTEN);
    }

    /// None did. Whether it spins again after the next one.
    fn missed(&mut self) -> bool {
        self.credit = self.credit.saturating_sub(MISS);
        self.credit > 0
    }

    /// Others have had the CPU for `ns` while it spun. Whether it is to stop.
    const fn gave_way(&mut self, ns: u64) -> bool {
        self.wanted = self.wanted.saturating_add(if ns < MOST_TURN { ns } else { MOST_TURN });
        self.wanted >= WANTED
    }

    /// It stops to spin, for no request came, or because the CPU is `wanted`.
    fn ended(&mut self, wanted: bool, now: u64) {
        let Some(spun) = self.spun.take() else { return };
        if wanted {
            let over = now.saturating_sub(self.not_before) >= LONG_AGO * self.pause;
            self.pause = if over { FIRST_PAUSE } else { (self.pause * 2).min(LAST_PAUSE) };
            self.not_before = now.saturating_add(self.pause);
        } else if spun < WORTH {
            self.needed = (self.needed * 2).min(MOST_CLOSE);
        } else {
            self.needed = (self.needed / 2).max(CLOSE);
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
    /// Times that others ran although it could have, when that was looked at last.
    preempted: i64,
}

/// Times that others ran although this thread could have: by preemption, or because it yielded.
fn preempted() -> i64 {
    getrusage(UsageWho::RUSAGE_THREAD).map_or(0, |usage| usage.involuntary_context_switches())
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
            preempted: 0,
        }
    }

    pub(super) const fn spins(&self) -> bool {
        self.spinning
    }

    /// How long it spins for the next request, in ns.
    pub(super) const fn longest(&self) -> u64 {
        self.learned.longest
    }

    /// A request came in a sleep, from a vCPU whose CPU is `home`, and was answered: it spins from now on, if they are close.
    pub(super) fn woken(&mut self, home: Option<u32>, woken: u64) {
        if !self.can_move || (self.learned.spun.is_none() && !self.learned.came(self.answered, woken)) {
            return;
        }
        let Some(home) = home else { return self.learned.ended(false, woken) };
        self.bind(Place::AwayFrom(home));
        self.on = sched_getcpu() as u32;
        if !self.can_move || self.on == home {
            return self.learned.ended(true, woken);
        }
        if self.learned.spun.is_none() {
            self.learned.began();
        }
        self.spinning = true;
        self.preempted = preempted();
    }

    /// A request came while it spun, from a vCPU whose CPU is `home`, and was answered. Lets others run; `false` = it is to
    /// stop.
    pub(super) fn give_way(&mut self, home: Option<u32>) -> bool {
        let before = clock::now();
        sched_yield();
        let took = self.taken_by_others(clock::now().saturating_sub(before));
        let wanted = self.learned.gave_way(took);
        self.learned.in_time();
        // The scheduler may have moved this thread or the vCPU.
        self.on = sched_getcpu() as u32;
        if !wanted && home == Some(self.on) {
            self.bind(Place::AwayFrom(self.on));
            self.on = sched_getcpu() as u32;
        }
        !wanted && home != Some(self.on)
    }

    /// Where it waits, as the supervisor is to know it.
    pub(super) const fn stance(&self) -> Stance {
        match self.place {
            _ if self.spinning || self.learned.spun.is_some() => Stance::SpinsOn(self.on),
            Place::At(cpu) => Stance::SleepsOn(cpu),
            Place::Anywhere | Place::AwayFrom(_) => Stance::Anywhere,
        }
    }

    /// Between two looks at the clock `ns` went by; `false` = it is to stop.
    pub(super) fn looked(&mut self, ns: u64) -> bool {
        let took = self.taken_by_others(ns);
        !self.learned.gave_way(took)
    }

    /// What of `ns` others may have had of this CPU: all, or nothing.
    fn taken_by_others(&mut self, ns: u64) -> u64 {
        if ns < LONG {
            return 0;
        }
        let before = mem::replace(&mut self.preempted, preempted());
        if self.preempted == before { 0 } else { ns }
    }

    /// It no longer spins: the CPU is `wanted`, or no request came. It sleeps where it is, to spin again, while that pays.
    pub(super) fn stop(&mut self, wanted: bool) {
        self.spinning = false;
        if wanted || !self.learned.missed() {
            self.learned.ended(wanted, clock::now());
        }
    }

    /// It is about to sleep after `served` replies in all; the last vCPU that asked is on the CPU `home`, as far as that matters.
    pub(super) fn settle(&mut self, home: Option<u32>, served: u64) {
        let news = served != self.served;
        if !self.can_move || !(news || self.is_bound()) {
            return;
        }
        let now = clock::now();
        let slept = now.saturating_sub(self.answered);
        let late = slept >= BOUND.as_nanos() as u64;
        if !news {
            if self.learned.spun.is_some() && slept >= AWAY.as_nanos() as u64 {
                self.learned.ended(false, now);
                self.bind(home.filter(|cpu| self.is_ours(*cpu)).map_or(Place::Anywhere, Place::At));
            } else if late {
                self.release();
            }
            return;
        }
        if late {
            self.asked = None;
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

    /// After what time without a request it is to settle again.
    pub(super) fn sleeps_for(&self) -> Option<Duration> {
        match self.learned.spun {
            Some(_) => Some(AWAY),
            None => self.is_bound().then_some(BOUND),
        }
    }

    fn is_bound(&self) -> bool {
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
            assert!(!learned.gave_way(u64::MAX) && learned.gave_way(u64::MAX));
            learned.ended(true, now);
            assert!(!learned.came(now, now + pause * 1_000_000 - 1));
            now += pause * 1_000_000;
        }
        // It was another's turn long ago.
        until_it_spins(&mut learned, 1000, &mut now);
        now += LONG_AGO * LAST_PAUSE;
        learned.ended(true, now);
        assert!(learned.not_before == now + FIRST_PAUSE);
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
    fn it_goes_home_when_a_burst_is_over() {
        let Some((mut pace, home)) = movable() else { return };
        pace.settle(Some(home), 1);
        pace.learned.began();
        pace.bind(Place::AwayFrom(home));
        assert_eq!(pace.sleeps_for(), Some(AWAY));
        pace.answered = u64::MAX;
        pace.settle(Some(home), 1);
        assert!(pace.learned.spun.is_some(), "in its time it stays");
        pace.answered = 0;
        pace.settle(Some(home), 1);
        assert!(pace.stance() == Stance::SleepsOn(home) && affinity().count() == 1);
        assert!(affinity().is_set(home as usize) && pace.sleeps_for() == Some(BOUND));
    }

    #[test]
    fn it_makes_room_for_a_vcpu_that_comes_and_spins_on() {
        let Some((mut pace, home)) = movable() else { return };
        pace.learned.began();
        pace.bind(Place::AwayFrom(home));
        let here = sched_getcpu() as u32;
        assert!(pace.give_way(Some(here)) && pace.learned.pause == 0);
        assert_ne!(pace.stance(), Stance::SpinsOn(here));
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
            pace.woken(Some(home), 1);
            assert!(affinity() == put && !pace.spins());
        }
    }

    #[test]
    fn now_and_then_somebody_may_run() {
        let mut learned = Learned::new(LONGEST);
        learned.began();
        // The host's own threads, however long, once in 1000 requests.
        for _ in 0..100 {
            assert!(!learned.gave_way(4_000_000));
            (0..1000).for_each(|_| learned.in_time());
        }
        // A vCPU that computes: 3 ms after every 200 requests.
        let turns = (1..100).find(|_| {
            let wanted = learned.gave_way(3_000_000);
            (0..200).for_each(|_| learned.in_time());
            wanted
        });
        assert!(turns.is_some_and(|turns| turns <= 3), "{turns:?}");
        learned.began();
        // Somebody who works 2 µs for each request.
        let mut requests = 0;
        while requests < 10_000 && !learned.gave_way(2 * FORGOTTEN) {
            learned.in_time();
            requests += 1;
        }
        assert!((900..1100).contains(&requests), "{requests}");
    }
}
