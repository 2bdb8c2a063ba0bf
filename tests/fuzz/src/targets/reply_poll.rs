//! The supervisor against a worker that writes what it likes, when it likes: a script of stores, posts, waits, kicks and
//! successions. It accepts only the reply to its outstanding request, and every wait ends.

use std::time::Duration;

use cellblock_ring::memory::{Plain, PlainKick};
use cellblock_ring::words::{Words, WordsMut};
use cellblock_ring::{Access, Deadline, Kick, Outcome, Requester, Succession, layout};
use cellblock_wire::slot::{Op, Reply, Space, mask, stamp};

enum Step {
    Store {
        word: u8,
        value: u64,
    },
    /// Comes near to the right stamp.
    Stamp {
        sequence: i8,
        generation: i8,
    },
    Post {
        write: bool,
        size: u8,
        data: u64,
    },
    Poll,
    Wait {
        kick: bool,
        spin: bool,
    },
    Succeed {
        fresh: bool,
    },
    Abandon,
}

impl From<(u8, u8, u64)> for Step {
    fn from((kind, small, value): (u8, u8, u64)) -> Step {
        match kind % 8 {
            0 => Step::Store { word: small, value },
            // One time in two the very stamp.
            1 => Step::Stamp { sequence: 0, generation: 0 },
            2 => Step::Stamp { sequence: small as i8, generation: value as i8 },
            3 => Step::Post { write: small & 1 != 0, size: small >> 1, data: value },
            4 => Step::Poll,
            5 => Step::Wait { kick: small & 1 != 0, spin: small & 2 != 0 },
            6 => Step::Succeed { fresh: small & 1 != 0 },
            _ => Step::Abandon,
        }
    }
}

struct Lane {
    requests: Plain,
    replies: Plain,
    requester: Requester<Plain, Plain>,
}

/// Looks at one input.
pub(crate) fn run(bytes: &[u8]) {
    let Some(input) = crate::typed::<(u32, Vec<(u8, u8, u64)>)>(bytes) else { return };
    let (start, steps) = input;
    let requests = Plain::zeroed(layout::request_words(1));
    let replies = Plain::zeroed(layout::reply_words(1));
    let requester = Requester::new(requests.clone(), replies.clone(), 0, 1).unwrap().continuing_after(start);
    let mut lane = Lane { requests, replies, requester };
    let (kick, mut kicks) = Kick::new(PlainKick::default());
    for step in steps {
        match Step::from(step) {
            Step::Store { word, value } => lane.replies.store(usize::from(word) % lane.replies.len(), value),
            Step::Stamp { sequence, generation } => lane.stamp(sequence, generation),
            Step::Post { write, size, data } => lane.post(write, size, data),
            Step::Poll => {
                let before = lane.requester.outstanding().copied();
                if let Ok(Some(reply)) = lane.requester.poll() {
                    lane.accepted(before, reply);
                }
            }
            Step::Wait { kick: kicked, spin } => {
                if kicked {
                    kick.bump();
                }
                let before = lane.requester.outstanding().copied();
                let spin = Duration::from_millis(u64::from(spin) * 3);
                if let Ok(Outcome::Replied(reply)) = lane.requester.wait(&mut kicks, spin, Deadline::at(1)) {
                    lane.accepted(before, reply);
                }
                assert_eq!(lane.requests.load(layout::waiting_flag(0)), 0);
            }
            Step::Succeed { fresh } => lane.succeed(fresh),
            Step::Abandon => drop(lane.requester.abandon()),
        }
    }
}

impl Lane {
    fn stamp(&self, sequence: i8, generation: i8) {
        let sent = self.requests.load(layout::request_slot(0));
        let sequence = (sent as u32).wrapping_add_signed(sequence.into());
        let generation = ((sent >> 32) as u32).wrapping_add_signed(generation.into());
        self.replies.store(layout::reply_slot(0), stamp(sequence, generation));
    }

    fn post(&mut self, write: bool, size: u8, data: u64) {
        let op = if write { Op::Write } else { Op::Read };
        let access = Access { space: Space::Mmio, op, size: 1 << (size % 4), region: 0, offset: 0, data };
        let rings = self.requester.post(&access);
        assert_eq!(rings, self.replies.load(layout::SLEEPING) != 0);
    }

    fn succeed(&mut self, fresh: bool) {
        if fresh {
            self.requests = Plain::zeroed(layout::request_words(1));
            self.replies = Plain::zeroed(layout::reply_words(1));
        }
        let before = self.requester.outstanding().copied();
        let generation = self.requester.generation().wrapping_add(1);
        let result = self.requester.succeed(self.requests.clone(), self.replies.clone(), generation);
        match result {
            Ok(Succession::Idle) => assert!(before.is_none()),
            Ok(Succession::Answered(_)) => {
                assert!(before.is_some() && self.requester.outstanding().is_none())
            }
            Ok(Succession::Reposted { .. }) => {
                let again = self.requester.outstanding().unwrap();
                assert_eq!((again.sequence, again.generation), (before.unwrap().sequence, generation));
            }
            Err(_) => assert!(!fresh, "fresh memory is always accepted"),
        }
    }

    fn accepted(&self, before: Option<cellblock_wire::slot::Request>, reply: Reply) {
        let request = before.expect("a reply without a request");
        assert_eq!((reply.sequence, reply.generation), (request.sequence, request.generation));
        assert_eq!(self.replies.load(layout::reply_slot(0)), stamp(request.sequence, request.generation));
        let expected = self.replies.load(layout::reply_slot(0) + 2);
        assert_eq!(reply.data, if request.op == Op::Read { mask(expected, request.size) } else { 0 });
        assert!(self.requester.outstanding().is_none());
    }
}
