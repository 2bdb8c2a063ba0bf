//! What the guest tells of its memory (Virtio 1.3 §5.5.6.3), and who asked for it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cellblock_sdk::virtio::Chain;
use cellblock_wire::control::BALLOON_STATISTICS;

use crate::spec::STATISTIC_BYTES;

/// Statistics of one request that are looked at.
const MOST: usize = 64;

/// Values by their tags.
pub type Statistics = [Option<u64>; BALLOON_STATISTICS];

/// The statistics in `chain`. Tags that have no meaning yet are passed over; of a tag that comes twice the last value counts.
pub fn read(chain: &mut Chain<'_>) -> Statistics {
    let mut statistics = Statistics::default();
    let mut one = [0; STATISTIC_BYTES];
    for _ in 0..MOST {
        if chain.read(&mut one).is_err() {
            break;
        }
        let [t0, t1, v0, v1, v2, v3, v4, v5, v6, v7] = one;
        if let Some(value) = statistics.get_mut(usize::from(u16::from_le_bytes([t0, t1]))) {
            *value = Some(u64::from_le_bytes([v0, v1, v2, v3, v4, v5, v6, v7]));
        }
    }
    statistics
}

/// Where the register thread's questions meet the post's answers; clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Desk(Arc<Mutex<Talk>>);

#[derive(Debug, Default)]
struct Talk {
    /// There is a queue to ask by.
    open: bool,
    question: Question,
    statistics: Statistics,
}

/// How far a question is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Question {
    #[default]
    None,
    Asked,
    /// The guest has been asked; it has until then.
    Open(u64),
    Answered {
        fresh: bool,
    },
}

impl Desk {
    fn talk(&self) -> MutexGuard<'_, Talk> {
        // Nothing panics while it holds the lock, and what it guards is whole at any time.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The register thread wants to know.
    pub fn ask(&self) {
        let mut talk = self.talk();
        let open = talk.open;
        talk.question = match talk.question {
            Question::Open(until) => Question::Open(until),
            _ if open => Question::Asked,
            _ => Question::Answered { fresh: false },
        };
    }

    /// What became of a question, once: the statistics, and whether they are of this moment.
    pub fn answer(&self) -> Option<(Statistics, bool)> {
        let mut talk = self.talk();
        let Question::Answered { fresh } = talk.question else { return None };
        talk.question = Question::None;
        Some((talk.statistics, fresh))
    }

    /// Whether the guest is to be asked: then it has until `until`.
    pub(crate) fn take_question(&self, until: u64) -> bool {
        let mut talk = self.talk();
        let asked = talk.question == Question::Asked;
        if asked {
            talk.question = Question::Open(until);
        }
        asked
    }

    /// Until when the guest has time; past `now` it has had it. Whether the register thread has an answer by that.
    pub(crate) fn patience(&self, now: u64) -> (Option<u64>, bool) {
        let mut talk = self.talk();
        match talk.question {
            Question::Open(until) if until <= now => {
                talk.question = Question::Answered { fresh: false };
                (None, true)
            }
            Question::Open(until) => (Some(until), false),
            _ => (None, false),
        }
    }

    /// The guest has told `statistics`. Whether that was the answer.
    pub(crate) fn told(&self, statistics: Statistics) -> bool {
        let mut talk = self.talk();
        talk.statistics = statistics;
        let answers = matches!(talk.question, Question::Open(_));
        if answers {
            talk.question = Question::Answered { fresh: true };
        }
        answers
    }

    /// The queue is there, or is there no more. Whether that answers a question.
    pub(crate) fn set_open(&self, open: bool) -> bool {
        let mut talk = self.talk();
        talk.open = open;
        let waits = matches!(talk.question, Question::Asked | Question::Open(_));
        if !open && waits {
            talk.question = Question::Answered { fresh: false };
        }
        if open {
            // Another driver's are no news.
            talk.statistics = Statistics::default();
        }
        !open && waits
    }
}
