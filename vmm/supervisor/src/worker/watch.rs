//! Whether a worker that does not answer hangs, or is kept from running by a busy host.
//!
//! One that is late with something is looked at, again and again while it stays late, through the spawner, which sees the
//! host's /proc. It hangs if it is stopped; if it sleeps in several looks in a row; if it has had so much CPU time since the first
//! look that it could have answered; or if it has waited in the kernel for too long. One that wants to run and does not (a full
//! machine, a throttled cgroup) is not to blame, and waited for without an end: a successor would have no more CPU.

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
/// CPU time, in ms, that a worker has had since the first look: it loops.
const LOOPS_MS: u64 = 250;
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
    /// When it was first looked at, and what CPU time it had had.
    first: Option<(Instant, u64)>,
    /// Looks in a row at which it slept.
    sleeps: u32,
    /// The log knows that it is starved.
    told: bool,
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
        let Activity { state, cpu_ms } = activity.unwrap_or(Activity { state: b'?', cpu_ms: 0 });
        let (since, cpu) = *self.first.get_or_insert((now, cpu_ms));
        let waited = now.saturating_duration_since(since);
        self.sleeps = if matches!(state, b'R' | b'D' | b'?') { 0 } else { self.sleeps + 1 };
        match state {
            b'R' if cpu_ms.saturating_sub(cpu) >= LOOPS_MS => hangs("it runs and does not answer"),
            b'?' if waited >= BLIND_PATIENCE => hangs("and the host does not say what it does"),
            b'D' if waited >= DISK_PATIENCE => hangs("it waits for the kernel, and nothing can wake it"),
            b'R' | b'D' if !waited.is_zero() && !std::mem::replace(&mut self.told, true) => {
                let why = if state == b'R' { "a CPU" } else { "the kernel" };
                Judgement::Starved(format!("{}: it waits for {why}, and is waited for", self.what))
            }
            b'R' | b'D' | b'?' => Judgement::Wait,
            b'T' | b't' => hangs("it is stopped"),
            _ if self.sleeps >= SLEEPS => hangs("it sleeps"),
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
        let (first, what) = (None, what.to_owned());
        let case = open.unwrap_or(Case { debt, what, first, sleeps: 0, told: false });
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

    /// The judgement on so many looks at a row of states, with the CPU time at each.
    fn judge(looks: impl IntoIterator<Item = (u8, u64)>) -> (usize, Judgement) {
        let what = "no answer".to_owned();
        let mut case = Case { debt: Debt::Sign, what, first: None, sleeps: 0, told: true };
        let start = Instant::now();
        let mut count = 0;
        for (state, cpu_ms) in looks {
            let activity = Some(Activity { state, cpu_ms });
            let judgement = case.judge(activity, start + LOOKS * count as u32);
            count += 1;
            if judgement != Judgement::Wait {
                return (count, judgement);
            }
        }
        (count, Judgement::Wait)
    }

    fn hangs(how: &str) -> Judgement {
        Judgement::Hangs(format!("no answer: {how}"))
    }

    #[test]
    fn one_that_waits_for_a_cpu_is_not_to_blame() {
        // An hour, in which it gets a thousandth of a CPU but for the last look.
        let hour = (0..3600 * 8).map(|look| (b'R', 5000 + look / 80));
        assert_eq!(judge(hour).1, hangs("it runs and does not answer"));
        assert_eq!(judge((0..10_000).map(|_| (b'R', 70))).1, Judgement::Wait);
        // Now and then it is seen just when it sleeps.
        assert_eq!(
            judge((0..10_000).map(|look| (if look % 3 == 0 { b'R' } else { b'S' }, 70))).1,
            Judgement::Wait
        );
    }

    #[test]
    fn one_that_loops_sleeps_or_is_stopped_hangs() {
        assert_eq!(
            judge((0..).map(|look| (b'R', 1000 + look * 125))),
            (3, hangs("it runs and does not answer"))
        );
        assert_eq!(judge((0..).map(|_| (b'S', 1))), (3, hangs("it sleeps")));
        assert_eq!(judge((0..).map(|_| (b'T', 1))), (1, hangs("it is stopped")));
    }

    #[test]
    fn one_that_waits_for_a_disk_has_its_time() {
        let (looks, judgement) = judge((0..).map(|_| (b'D', 1)));
        assert_eq!(judgement, hangs("it waits for the kernel, and nothing can wake it"));
        assert_eq!(LOOKS * (looks as u32 - 1), DISK_PATIENCE);
    }

    #[test]
    fn people_are_told_once_that_it_is_starved() {
        let mut case =
            Case { debt: Debt::Sign, what: "no answer".into(), first: None, sleeps: 0, told: false };
        let (start, waits) = (Instant::now(), Some(Activity { state: b'R', cpu_ms: 0 }));
        assert_eq!(case.judge(waits, start), Judgement::Wait);
        assert!(matches!(case.judge(waits, start + LOOKS), Judgement::Starved(_)));
        assert_eq!(case.judge(waits, start + 2 * LOOKS), Judgement::Wait);
        assert_eq!(case.judge(None, start + 3 * LOOKS), Judgement::Wait);
        assert!(matches!(case.judge(None, start + BLIND_PATIENCE), Judgement::Hangs(_)));
    }
}
