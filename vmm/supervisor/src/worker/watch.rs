//! Whether a worker that does not answer hangs, or is kept from running by a busy host.
//!
//! One that is late with something is looked at, again and again while it stays late, through the spawner, which sees the
//! host's /proc. It hangs if it is stopped; if it sleeps in several looks in a row; if it has had so much CPU time since the first
//! look that it could have answered; if it has had so much time of its own, in which nothing kept it from running; or if it has
//! waited in the kernel for too long. One that wants to run and does not (a full machine, a throttled cgroup) is not to blame, and
//! waited for without an end: a successor would have no more CPU.

use std::time::{Duration, Instant};

use cellblock_spawner::client::Client;
use cellblock_spawner::protocol::Activity;

use super::Worker;
use crate::link::DeviceState;

/// How long a worker may take for a sign of life, and between two looks at one that gives none.
const SIGN_PATIENCE: Duration = Duration::from_secs(1);
const SIGN_LOOKS: Duration = Duration::from_millis(125);
/// Looks in a row at which a worker slept.
const SLEEPS: u32 = 3;
/// CPU time that a worker has had since the first look: it loops. Where the host is a guest itself, what that is kept from running
/// counts as CPU time, too.
const LOOPS: Duration = Duration::from_secs(1);
/// Time since the first look in which it neither waited for a CPU nor for the kernel.
const OWN_TIME: Duration = Duration::from_secs(1);
/// How long a worker is waited for if the host does not say what it does (`hidepid`).
const BLIND_PATIENCE: Duration = Duration::from_secs(4);
/// How long a worker may wait in the kernel without being wakeable: for a disk, or for memory that was swapped out.
const DISK_PATIENCE: Duration = Duration::from_secs(10);

/// What a worker is late with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Debt {
    /// The answer to a vCPU, which had so many before.
    Access { vcpu: u32, answers: u64 },
    /// A sign of life.
    Sign,
}

/// What one incarnation is suspected of.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// When it was asked for its counters, if it has not told them: that is a sign of life.
    asked: Option<Instant>,
    /// When it is looked at next, for the lack of one.
    look_at: Option<Instant>,
    /// What it had answered at the last beat.
    answered: u64,
    case: Option<Case>,
}

#[derive(Debug)]
struct Case {
    debt: Debt,
    what: String,
    looks: Option<Looks>,
    /// Since when the host has not said what it does.
    unseen_since: Option<Instant>,
    /// Looks in a row at which it slept.
    sleeps: u32,
    /// The log knows that it is starved.
    told: bool,
}

/// What was seen of a suspect.
#[derive(Debug, Clone, Copy)]
struct Looks {
    first: (Instant, Activity),
    last: (Instant, Activity),
    /// The last time that it had a CPU was after that.
    ran_after: Instant,
    /// How long it was seen to wait in the kernel.
    in_kernel: Duration,
}

impl Looks {
    fn begin(now: Instant, activity: Activity) -> Self {
        let look = (now, activity);
        Looks { first: look, last: look, ran_after: now, in_kernel: Duration::ZERO }
    }

    fn add(&mut self, now: Instant, activity: Activity) {
        if activity.turns != self.last.1.turns {
            self.ran_after = self.last.0;
        }
        if activity.state == b'D' {
            self.in_kernel += now.saturating_duration_since(self.last.0);
        }
        self.last = (now, activity);
    }

    /// CPU time that it has had.
    fn ran(&self) -> Duration {
        Duration::from_micros(self.last.1.ran_us.saturating_sub(self.first.1.ran_us))
    }

    fn late(&self) -> Duration {
        self.last.0.saturating_duration_since(self.first.0)
    }

    /// The time in which nothing kept it from running, at least. What it waits for a CPU now is not counted by the kernel yet, and
    /// may have begun when it last had one.
    fn own_time(&self) -> Duration {
        let (now, activity) = self.last;
        let waited = Duration::from_micros(activity.waited_us.saturating_sub(self.first.1.waited_us));
        let waits = now.saturating_duration_since(self.ran_after);
        let waits = if activity.state == b'R' { waits } else { Duration::ZERO };
        self.late().saturating_sub(waited + waits + self.in_kernel)
    }
}

/// What is to be done with a suspect.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Judgement {
    /// Nothing yet.
    Wait,
    /// Nothing; but people are to know that it waits for a CPU.
    Starved(String),
    /// It is to be replaced: why.
    Hangs(String),
}

impl Watch {
    pub(super) fn asked(&mut self) {
        let now = Instant::now();
        self.asked.get_or_insert(now);
        self.look_at.get_or_insert(now + SIGN_PATIENCE);
    }

    pub(super) fn answered(&mut self) {
        (self.asked, self.look_at) = (None, None);
    }

    pub(super) fn owes_sign(&self) -> bool {
        self.asked.is_some()
    }
}

impl Case {
    fn judge(&mut self, activity: Option<Activity>, now: Instant) -> Judgement {
        let hangs = |how: &str| Judgement::Hangs(format!("{}: {how}", self.what));
        let Some(activity) = activity else {
            // It says nothing of the worker; what others say of it goes together without.
            self.sleeps = 0;
            let late = now.saturating_duration_since(*self.unseen_since.get_or_insert(now));
            return match late >= BLIND_PATIENCE {
                true => hangs("and the host does not say what it does"),
                false => Judgement::Wait,
            };
        };
        self.unseen_since = None;
        let looks = self.looks.get_or_insert_with(|| Looks::begin(now, activity));
        looks.add(now, activity);
        let late = looks.late();
        let state = activity.state;
        self.sleeps = if matches!(state, b'R' | b'D') { 0 } else { self.sleeps + 1 };
        match state {
            b'T' | b't' => hangs("it is stopped"),
            b'Z' | b'X' => hangs("its main thread has ended"),
            _ if looks.ran() >= LOOPS => hangs("it runs and does not answer"),
            _ if looks.in_kernel >= DISK_PATIENCE => {
                hangs("it waits for the kernel, and nothing can wake it")
            }
            _ if activity.turns > 0 && looks.own_time() >= OWN_TIME => {
                hangs("it has had a second in which nothing kept it from answering")
            }
            _ if self.sleeps >= SLEEPS => hangs("it sleeps"),
            b'R' | b'D' if !late.is_zero() && !std::mem::replace(&mut self.told, true) => {
                let why = if state == b'R' { "a CPU" } else { "the kernel" };
                Judgement::Starved(format!("{}: it waits for {why}, and is waited for", self.what))
            }
            _ => Judgement::Wait,
        }
    }
}

impl Worker {
    /// It is late with `debt`: has `spawner` look at it. `what` says with what, for people.
    pub(crate) fn look_at(&mut self, debt: Debt, what: &str, device: usize, spawner: &Client) {
        // One that is not there yet, or that is being relieved, has a patience of its own, and one that is not used any more needs
        // none.
        if self.state() != DeviceState::Serving || self.hand_over().is_some() {
            return;
        }
        let open = self.watch.case.take().filter(|case| self.owes(case.debt));
        let what = what.to_owned();
        let case =
            open.unwrap_or(Case { debt, what, looks: None, unseen_since: None, sleeps: 0, told: false });
        if case.debt == debt {
            // A spawner that is gone is seen by its socket.
            let _ = spawner.examine(device as u32, self.process.instance());
        }
        self.watch.case = Some(case);
    }

    fn owes(&self, debt: Debt) -> bool {
        match debt {
            Debt::Sign => self.watch.owes_sign(),
            Debt::Access { vcpu, answers } => self.answers_to(vcpu) == answers,
        }
    }

    /// How many answers vCPU `vcpu` has had.
    pub(crate) fn answers_to(&self, vcpu: u32) -> u64 {
        self.black_box.lanes.get(vcpu as usize).map_or(0, |lane| lane.count())
    }

    /// The spawner has looked at its process `instance`.
    pub(crate) fn judge(&mut self, instance: u32, activity: Option<Activity>) -> Judgement {
        let Some(mut case) = self.watch.case.take() else { return Judgement::Wait };
        // It may have answered meanwhile, or be another.
        if instance != self.process.instance() || !self.owes(case.debt) {
            return Judgement::Wait;
        }
        let judgement = case.judge(activity, Instant::now());
        self.watch.case = Some(case);
        judgement
    }

    /// When it is to be looked at for the lack of a sign of life.
    pub(crate) fn sign_by(&self) -> Option<Instant> {
        self.watch.look_at.filter(|_| self.state() == DeviceState::Serving)
    }

    /// Whether that time has come; the next look is later.
    pub(crate) fn lacks_sign(&mut self, now: Instant) -> bool {
        let lacks = self.sign_by().is_some_and(|at| at <= now);
        if lacks {
            self.watch.look_at = Some(now + SIGN_LOOKS);
        }
        lacks
    }

    /// Asks it for a sign of life, unless it has given one by answering since the last call.
    pub(crate) fn beat(&mut self) {
        let answered = self.exits();
        let gave = std::mem::replace(&mut self.watch.answered, answered) != answered;
        if self.state() == DeviceState::Serving && !gave {
            self.ask_counters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOKS: Duration = Duration::from_millis(125);

    /// A process in `state` that has run for so many ms and waited for a CPU for so many, in so many turns.
    fn seen(state: u8, ran_ms: u64, waited_ms: u64, turns: u64) -> Activity {
        Activity { state, ran_us: ran_ms * 1000, waited_us: waited_ms * 1000, turns }
    }

    /// The judgement on looks at a row.
    fn judge(looks: impl IntoIterator<Item = Activity>) -> (usize, Judgement) {
        let mut case = case(true);
        let start = Instant::now();
        let mut count = 0;
        for activity in looks {
            let judgement = case.judge(Some(activity), start + LOOKS * count as u32);
            count += 1;
            if judgement != Judgement::Wait {
                return (count, judgement);
            }
        }
        (count, Judgement::Wait)
    }

    fn case(told: bool) -> Case {
        Case {
            debt: Debt::Sign,
            what: "no answer".to_owned(),
            looks: None,
            unseen_since: None,
            sleeps: 0,
            told,
        }
    }

    fn hangs(how: &str) -> Judgement {
        Judgement::Hangs(format!("no answer: {how}"))
    }

    #[test]
    fn one_that_waits_for_a_cpu_is_not_to_blame() {
        // Half an hour, in which it gets a ten-thousandth of a CPU, and is never seen while it has it.
        let looks = 1800 * 8;
        assert_eq!(
            judge((0..looks).map(|look| seen(b'R', 5 + look / 80, look * 125, look))).1,
            Judgement::Wait
        );
        // It waits in one piece: the kernel counts that when it is over.
        assert_eq!(judge((0..looks).map(|_| seen(b'R', 70, 7, 9))).1, Judgement::Wait);
        let pieces = (0..looks).map(|look| seen(b'R', 70 + look / 400, look / 400 * 50_000, look / 400));
        assert_eq!(judge(pieces).1, Judgement::Wait);
        // Now and then it is seen just when it sleeps.
        let naps =
            (0..looks).map(|look| seen(if look % 3 == 0 { b'R' } else { b'S' }, 70, look * 124, look + 1));
        assert_eq!(judge(naps.take(800)).1, Judgement::Wait);
        // A kernel that counts neither turns nor waits.
        assert_eq!(judge((0..looks).map(|_| seen(b'R', 70, 0, 0))).1, Judgement::Wait);
    }

    #[test]
    fn one_that_loops_sleeps_or_is_stopped_hangs() {
        assert_eq!(
            judge((0..).map(|look| seen(b'R', 1000 + look * 125, 0, 1))),
            (9, hangs("it runs and does not answer"))
        );
        assert_eq!(judge((0..).map(|_| seen(b'S', 1, 1, 1))), (3, hangs("it sleeps")));
        assert_eq!(judge((0..).map(|_| seen(b'T', 1, 1, 1))), (1, hangs("it is stopped")));
    }

    /// One that sleeps and always happens to run when it is looked at would else have as long as its CPU time lasts.
    #[test]
    fn one_that_only_looks_busy_has_little_more_than_a_second() {
        let idle = "it has had a second in which nothing kept it from answering";
        assert_eq!(judge((0..).map(|look| seen(b'R', 1, 0, 1 + look))), (10, hangs(idle)));
        let alternating = (0..).map(|look| seen(if look % 3 == 2 { b'R' } else { b'S' }, 1, look, 1 + look));
        assert_eq!(judge(alternating).1, hangs(idle));
        // Nor does it help to wait in the kernel, but for so long as any may.
        let (looks, judgement) =
            judge((0..).map(|look| seen(if look % 2 == 0 { b'D' } else { b'S' }, 1, 0, 1 + look)));
        assert_eq!(judgement, hangs(idle));
        assert!(LOOKS * looks as u32 <= DISK_PATIENCE + 2 * OWN_TIME);
    }

    #[test]
    fn one_that_waits_for_a_disk_has_its_time() {
        let (looks, judgement) = judge((0..).map(|_| seen(b'D', 1, 1, 1)));
        assert_eq!(judgement, hangs("it waits for the kernel, and nothing can wake it"));
        assert_eq!(LOOKS * (looks as u32 - 1), DISK_PATIENCE);
    }

    #[test]
    fn people_are_told_once_that_it_is_starved() {
        let mut case = case(false);
        let (start, waits) = (Instant::now(), Some(seen(b'R', 0, 0, 1)));
        assert_eq!(case.judge(waits, start), Judgement::Wait);
        assert!(matches!(case.judge(waits, start + LOOKS), Judgement::Starved(_)));
        assert_eq!(case.judge(waits, start + 2 * LOOKS), Judgement::Wait);
    }

    #[test]
    fn a_look_that_sees_nothing_is_no_look_and_many_of_them_are_a_hang() {
        let mut case = case(true);
        let (start, runs) = (Instant::now(), Some(seen(b'R', 5000, 0, 9)));
        assert_eq!(case.judge(None, start), Judgement::Wait);
        assert_eq!(case.judge(runs, start + LOOKS), Judgement::Wait, "all that before was not seen");
        let blind = start + 2 * LOOKS;
        assert_eq!(case.judge(None, blind), Judgement::Wait);
        assert_eq!(case.judge(None, blind + BLIND_PATIENCE - LOOKS), Judgement::Wait);
        assert!(matches!(case.judge(None, blind + BLIND_PATIENCE), Judgement::Hangs(_)));
    }
}
