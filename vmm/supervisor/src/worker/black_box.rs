//! A device's black box: what is kept of its workers' deaths.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cellblock_channel::clock;
use cellblock_channel::last_words::{self, LastWords};
use cellblock_channel::memory::{Mapping, ReadOnly};
use cellblock_spawner::protocol::Cause;
use thiserror::Error;

use crate::death::{Death, EXITS, Exit, Fault, LINE_BYTES, LINES, Reason, Reasons};
use crate::exits::Exits;
use crate::link::cut_to;

/// Deaths kept of each device.
const DEATHS: usize = 8;
/// `SIGSYS`.
const REFUSED: i32 = 31;
/// `SIGKILL`.
const KILLED: i32 = 9;

/// Why a worker is not to be used any more, before its process has ended.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum Blame {
    /// Somebody wants another one.
    #[error("its worker was to be replaced")]
    Asked,
    /// It is silent.
    #[error("{0}")]
    Hung(String),
    /// It broke a rule, or gave up.
    #[error("{0}")]
    Violation(String),
    /// It cannot be started, or did not serve in time.
    #[error("{0}")]
    Unstarted(String),
}

impl Blame {
    fn reason(&self) -> Reason {
        match self {
            Blame::Asked => Reason::Asked,
            Blame::Hung(_) => Reason::Hung,
            Blame::Violation(_) => Reason::Violation,
            Blame::Unstarted(_) => Reason::Unstarted,
        }
    }
}

/// How a worker's process ended, if there was one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Reaped, as the kernel says, with what it noted itself.
    Reaped(Cause, Option<LastWords>),
    /// It did not start.
    Unstarted,
    /// There is nobody who would see that.
    Unseen,
}

impl Ending {
    /// A process that ended by `cause`, with its `replies`.
    pub(super) fn reaped(cause: Cause, replies: &Mapping<ReadOnly>) -> Self {
        let signal = match cause {
            Cause::Signaled { signal, .. } => signal,
            // As a shell counts them, and who ends for a signal that was sent to it.
            Cause::Exited(status) => status - 128,
        };
        // It is the worker's own word, which has to go with the kernel's.
        let words = last_words::find(replies).filter(|words| i64::from(words.signal) == i64::from(signal));
        Ending::Reaped(cause, words)
    }

    /// Whether it was the worker's own doing, which was condemned for `blame`: not somebody's kill.
    pub(super) fn is_its_own(&self, blame: Option<&Blame>) -> bool {
        match blame {
            // It had no process that could have been told anything.
            _ if *self == Ending::Unstarted => false,
            Some(blame) => *blame != Blame::Asked,
            None => !matches!(self, Ending::Reaped(Cause::Signaled { signal: KILLED, .. }, _)),
        }
    }

    fn reason(&self) -> Reason {
        match self {
            Ending::Reaped(Cause::Signaled { signal: REFUSED, .. }, _) => Reason::RefusedCall,
            Ending::Reaped(Cause::Exited(_), None) => Reason::Exited,
            Ending::Unseen => Reason::Exited,
            Ending::Reaped(..) => Reason::Signal,
            Ending::Unstarted => Reason::Unstarted,
        }
    }
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Ending::Reaped(cause, Some(words)) => write!(f, "{cause}: {}", Fault::new(words)),
            Ending::Reaped(cause, None) => write!(f, "{cause}"),
            Ending::Unstarted => f.write_str("did not start"),
            Ending::Unseen => f.write_str("has closed its socket"),
        }
    }
}

/// Who died, and how it stood.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deceased {
    pub generation: u32,
    pub pid: i32,
    pub served: Option<Duration>,
    pub answered: u64,
}

/// A death of which all is known but how the process ended.
#[derive(Debug)]
pub(super) struct Draft {
    who: Deceased,
    blame: Option<Blame>,
    at: Duration,
    exits: Vec<Exit>,
    log: Vec<String>,
}

/// What is kept of one device's workers.
#[derive(Debug, Default)]
pub(super) struct BlackBox {
    /// What each vCPU has sent.
    pub lanes: Vec<Arc<Exits>>,
    /// The last lines of the worker that there is.
    log: VecDeque<String>,
    deaths: VecDeque<Death>,
    pub reasons: Reasons,
}

impl BlackBox {
    pub(super) fn new(lanes: u32) -> Self {
        BlackBox { lanes: (0..lanes).map(|_| Arc::default()).collect(), ..BlackBox::default() }
    }

    /// The worker's log has one more line.
    pub(super) fn heard(&mut self, line: &str) {
        if self.log.len() == LINES {
            self.log.pop_front();
        }
        self.log.push_back(cut_to(line.to_owned(), LINE_BYTES));
    }

    /// A worker is gone, for `blame` if that was known before its end. What it leaves is its own, not its successor's.
    pub(super) fn draft(&mut self, who: Deceased, blame: Option<Blame>) -> Draft {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Draft { who, blame, at, exits: self.exits(), log: std::mem::take(&mut self.log).into() }
    }

    /// How it ended is known, too. Why, in one sentence.
    pub(super) fn note(&mut self, draft: Draft, ending: &Ending) -> String {
        let Draft { who, blame, at, exits, log } = draft;
        let reason = blame.as_ref().map_or_else(|| ending.reason(), Blame::reason);
        let cause = match &blame {
            Some(blame) => blame.to_string(),
            None => format!("its worker process {ending}"),
        };
        self.reasons.count(reason);
        let last_words = match ending {
            Ending::Reaped(_, Some(words)) => Some(Fault::new(words)),
            Ending::Reaped(..) | Ending::Unstarted | Ending::Unseen => None,
        };
        if self.deaths.len() == DEATHS {
            self.deaths.pop_front();
        }
        self.deaths.push_back(Death {
            generation: who.generation,
            pid: who.pid,
            at_ms: millis(at),
            reason,
            cause: cut_to(cause.clone(), LINE_BYTES),
            ended: blame.map(|_| cut_to(ending.to_string(), LINE_BYTES)),
            served_ms: who.served.map(millis),
            answered: who.answered,
            last_words,
            exits,
            log,
        });
        cause
    }

    /// The last exits of all vCPUs, the oldest first.
    fn exits(&self) -> Vec<Exit> {
        let now = clock::now();
        let mut exits: Vec<Exit> =
            self.lanes.iter().zip(0..).flat_map(|(lane, vcpu)| lane.look(vcpu, now)).collect();
        exits.sort_by_key(|exit| std::cmp::Reverse(exit.before_us));
        exits.split_off(exits.len().saturating_sub(EXITS))
    }

    /// The death of the worker of `generation`, if it is still known.
    pub(super) fn death(&self, generation: u32) -> Option<&Death> {
        self.deaths.iter().find(|death| death.generation == generation)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cellblock_channel::memory;
    use cellblock_ring::Access;
    use cellblock_wire::slot::{Op, Space};

    const WHO: Deceased = Deceased { generation: 1, pid: 7, served: None, answered: 0 };

    fn signaled(signal: i32) -> Cause {
        Cause::Signaled { signal, core: false }
    }

    #[test]
    fn a_workers_own_word_counts_only_with_the_kernels() {
        let bytes = memory::bytes(cellblock_ring::layout::reply_words(1));
        let replies = memory::create_replies("replies", bytes).unwrap();
        let worker = memory::open_write(&replies.fd, bytes).unwrap();
        let words = LastWords { signal: 31, code: 1, call: Some(41), address: 2, instruction: 0x99 };
        last_words::note(&worker, &words);
        let ending = Ending::reaped(signaled(31), &replies.map);
        assert_eq!(ending.reason(), Reason::RefusedCall);
        assert!(ending.to_string().contains("41), by the instruction at 0x99"), "{ending}");
        assert_eq!(Ending::reaped(signaled(9), &replies.map), Ending::Reaped(signaled(9), None));
        assert_eq!(Ending::reaped(Cause::Exited(0), &replies.map).reason(), Reason::Exited);
    }

    #[test]
    fn one_that_never_started_ended_on_nothing_that_it_was_told() {
        let blame = Blame::Unstarted("full".to_owned());
        assert!(!Ending::Unstarted.is_its_own(Some(&blame)) && !Ending::Unstarted.is_its_own(None));
        assert!(Ending::Reaped(signaled(11), None).is_its_own(None));
        assert!(!Ending::Reaped(signaled(9), None).is_its_own(None));
    }

    #[test]
    fn so_many_deaths_lines_and_exits_are_kept_and_no_more() {
        let mut black_box = BlackBox::new(4);
        for generation in 1..=20 {
            for (lane, at) in black_box.lanes.iter().zip(1..) {
                for offset in 0..10 {
                    let access =
                        Access { space: Space::Mmio, op: Op::Write, size: 4, region: 0, offset, data: 0 };
                    lane.sent(&access, at);
                }
            }
            (0..30).for_each(|line| black_box.heard(&format!("{line} {}", "ä".repeat(600))));
            let who = Deceased { generation, ..WHO };
            let blame = (generation % 2 == 0).then(|| Blame::Hung("x".repeat(9000)));
            let draft = black_box.draft(who, blame);
            black_box.heard("its successor's");
            black_box.note(draft, &Ending::Reaped(signaled(9), None));
        }
        assert!(black_box.death(12).is_none() && black_box.death(13).is_some());
        let death = black_box.death(20).unwrap();
        assert_eq!((death.exits.len(), death.log.len()), (EXITS, LINES));
        assert!(death.log.iter().all(|line| line.len() <= LINE_BYTES) && death.log[0].starts_with("22 "));
        assert!(death.exits.iter().all(|exit| exit.vcpu >= 2), "the last ones: {:?}", death.exits);
        assert_eq!(death.ended.as_deref(), Some("was killed by signal 9"));
        assert_eq!(black_box.reasons, Reasons { signal: 10, hung: 10, ..Reasons::default() });
        let event = crate::link::Event::Death { device: 1, generation: 20, death: Some(death.clone()) };
        let bytes = cellblock_wire::control::encode(&event).unwrap();
        assert_eq!(cellblock_wire::control::decode::<crate::link::Event>(&bytes).unwrap(), event);
    }
}
