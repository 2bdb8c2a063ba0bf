//! The supervisor's side against a worker that writes what it likes, and the worker's side against broken requests: typed
//! errors, never a panic, never more than the deadline.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

use std::time::Duration;

use cellblock_ring::memory::{Plain, PlainKick};
use cellblock_ring::words::{Slept, Wait, Words, WordsMut};
use cellblock_ring::{
    Access, Deadline, Kick, LaneId, Outcome, Requester, Responder, Stance, Succeeding, Succession, Violation,
    answer, layout,
};
use cellblock_wire::slot::{Action, Op, Space, mask, next_sequence, stamp};
use proptest::prelude::*;

const LANES: u32 = 2;
const READ: Access = Access { space: Space::Mmio, op: Op::Read, size: 4, region: 1, offset: 8, data: 0 };

struct Pair {
    requests: Plain,
    replies: Plain,
    requester: Requester<Plain, Plain>,
}

fn pair() -> Pair {
    let requests = Plain::zeroed(layout::request_words(LANES));
    let replies = Plain::zeroed(layout::reply_words(LANES));
    let requester = Requester::new(requests.clone(), replies.clone(), 1, 5).unwrap();
    Pair { requests, replies, requester }
}

fn write_reply(replies: &Plain, stamp: u64, action: u64, data: u64) {
    let base = layout::reply_slot(1);
    replies.store(base, stamp);
    replies.store(base + 1, action);
    replies.store(base + 2, data);
}

#[test]
fn the_right_sequence_of_the_wrong_generation_is_named() {
    let mut pair = pair();
    assert!(!pair.requester.post(&READ));
    write_reply(&pair.replies, stamp(1, 4), 0, 0);
    let violation = pair.requester.poll().unwrap_err();
    assert_eq!(violation, Violation::Generation { lane: 1, value: 4, expected: 5 });
    assert_eq!(violation.to_string(), "reply in lane 1: field generation has the value 0x4, expected is 0x5");
    assert!(pair.requester.outstanding().is_some());
}

#[test]
fn an_unknown_action_is_named() {
    let mut pair = pair();
    assert!(!pair.requester.post(&READ));
    write_reply(&pair.replies, stamp(1, 5), 3, 0);
    let violation = pair.requester.poll().unwrap_err();
    assert_eq!((violation.field(), violation.value()), ("action", 3));
    assert_eq!(violation.to_string(), "reply in lane 1: slot field action has the value 0x3");
}

#[test]
fn a_future_sequence_is_named_and_the_previous_one_is_not_yet() {
    let mut pair = pair();
    assert!(!pair.requester.post(&READ));
    write_reply(&pair.replies, stamp(1, 5), 0, 0);
    assert!(pair.requester.poll().unwrap().is_some());
    assert!(!pair.requester.post(&READ));
    assert_eq!(pair.requester.poll(), Ok(None));
    write_reply(&pair.replies, stamp(3, 5), 0, 0);
    assert_eq!(pair.requester.poll(), Err(Violation::Sequence { lane: 1, value: 3, expected: 2 }));
}

#[test]
fn a_reply_written_in_advance_answers_nothing_else() {
    let mut pair = pair();
    write_reply(&pair.replies, stamp(7, 5), 0, 0);
    assert_eq!(pair.requester.poll(), Ok(None));
    assert!(!pair.requester.post(&READ));
    assert_eq!(pair.requester.poll(), Err(Violation::Sequence { lane: 1, value: 7, expected: 1 }));
}

#[test]
fn data_is_cut_to_the_size_and_ignored_for_writes() {
    let mut pair = pair();
    assert!(!pair.requester.post(&Access { size: 2, ..READ }));
    write_reply(&pair.replies, stamp(1, 5), 0, u64::MAX);
    assert_eq!(pair.requester.poll().unwrap().unwrap().data, 0xffff);
    assert!(!pair.requester.post(&Access { op: Op::Write, data: u64::MAX, size: 1, ..READ }));
    assert_eq!(pair.requests.load(layout::request_slot(1) + 3), 0xff);
    write_reply(&pair.replies, stamp(2, 5), 0, u64::MAX);
    assert_eq!(pair.requester.poll().unwrap().unwrap().data, 0);
}

#[test]
fn any_value_but_zero_in_the_sleeping_flag_rings_and_the_waiting_flag_falls_again() {
    let mut pair = pair();
    pair.replies.store(layout::SLEEPING, u64::MAX);
    assert!(pair.requester.post(&READ));
    let (_kick, mut kicks) = Kick::new(PlainKick::default());
    let outcome = pair.requester.wait(&mut kicks, Duration::from_millis(3), Deadline::at(1));
    assert_eq!(outcome, Ok(Outcome::Deadline));
    assert_eq!(pair.requests.load(layout::waiting_flag(1)), 0);
    write_reply(&pair.replies, 1, 0, 0);
    pair.requester.wait(&mut kicks, Duration::ZERO, Deadline::NEVER).unwrap_err();
    assert_eq!(pair.requests.load(layout::waiting_flag(1)), 0);
}

/// Replies in which the futex word always differs when the kernel compares, and never when the supervisor looks.
struct Flickering(Plain);

impl Words for Flickering {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn load(&self, index: usize) -> u64 {
        self.0.load(index)
    }

    fn fence(_: std::sync::atomic::Ordering) {}
}

impl Wait for Flickering {
    type Kick = PlainKick;

    fn wait(&self, _: usize, _: u32, _: &PlainKick, _: u32, _: Deadline) -> Slept {
        Slept::LookAgain
    }

    fn now(&self) -> u64 {
        self.0.now()
    }

    fn relax(&self) {}
}

#[test]
fn a_word_that_flickers_cannot_outlive_the_deadline() {
    let Pair { requests, replies, .. } = pair();
    let mut requester = Requester::new(requests, Flickering(replies), 1, 5).unwrap();
    assert!(!requester.post(&READ));
    let (_kick, mut kicks) = Kick::new(PlainKick::default());
    let deadline = Deadline::at(50_000_000);
    assert_eq!(requester.wait(&mut kicks, Duration::ZERO, deadline), Ok(Outcome::Deadline));
}

#[test]
fn kicks_and_replies_are_both_delivered_replies_first() {
    let mut pair = pair();
    let (kick, mut kicks) = Kick::new(PlainKick::default());
    kick.bump();
    kick.clone().bump();
    assert!(!pair.requester.post(&READ));
    write_reply(&pair.replies, stamp(1, 5), 2, 9);
    let outcome = pair.requester.wait(&mut kicks, Duration::ZERO, Deadline::NEVER).unwrap();
    assert!(matches!(outcome, Outcome::Replied(reply) if reply.action == Action::Reset && reply.data == 9));
    assert!(!pair.requester.post(&READ));
    assert_eq!(pair.requester.wait(&mut kicks, Duration::ZERO, Deadline::NEVER), Ok(Outcome::Kicked));
    assert!(!kicks.take());
}

#[test]
fn what_a_hostile_predecessor_left_calls_for_fresh_memory() {
    let mut pair = pair();
    assert!(!pair.requester.post(&READ));
    write_reply(&pair.replies, stamp(1, 6), 0, 0); // the successor's answer, forged
    let again = pair.requester.succeed(pair.requests.clone(), pair.replies.clone(), 6);
    let Err(Succeeding::Leftover { violation, answered: None }) = again else { panic!("{again:?}") };
    assert_eq!((violation.field(), violation.value()), ("stamp", stamp(1, 6)));
    let (requests, replies) =
        (Plain::zeroed(layout::request_words(LANES)), Plain::zeroed(layout::reply_words(LANES)));
    let fresh = pair.requester.succeed(requests.clone(), replies.clone(), 6);
    assert_eq!(fresh, Ok(Succession::Reposted { ring: false }));
    let mut responder = Responder::new(requests, replies, LANES, 6).unwrap();
    let (lane, request) = responder.next().unwrap().unwrap();
    assert_eq!((lane.index(), request.sequence, request.generation), (1, 1, 6));
    responder.reply(lane, &answer(&request, Action::None, 3));
    assert_eq!(pair.requester.poll().unwrap().unwrap().data, 3);
}

#[test]
fn a_successor_of_an_idle_or_abandoned_lane_is_sent_nothing() {
    let mut pair = pair();
    let idle = pair.requester.succeed(pair.requests.clone(), pair.replies.clone(), 6);
    assert_eq!(idle, Ok(Succession::Idle));
    assert!(!pair.requester.post(&READ));
    assert_eq!(pair.requester.abandon().map(|request| request.generation), Some(6));
    assert_eq!(pair.requester.succeed(pair.requests.clone(), pair.replies.clone(), 7), Ok(Succession::Idle));
}

#[test]
fn memory_that_is_too_small_is_refused() {
    let small = Plain::zeroed(layout::request_words(1) - 1);
    let fits = Plain::zeroed(layout::request_words(1));
    let error = Requester::new(small, fits.clone(), 0, 1).unwrap_err();
    assert_eq!(error.to_string(), "the requests memory has 15 words of 8 bytes, needed are 16");
    assert!(Requester::new(fits.clone(), fits.clone(), 1, 1).is_err());
    assert!(Requester::new(fits.clone(), fits.clone(), u32::MAX, 1).is_err());
    assert!(Responder::new(fits.clone(), fits, 2, 1).is_err());
}

#[test]
fn a_responder_reports_a_broken_slot_once_and_serves_the_other_lanes() {
    let requests = Plain::zeroed(layout::request_words(LANES));
    let replies = Plain::zeroed(layout::reply_words(LANES));
    let mut responder = Responder::new(requests.clone(), replies.clone(), LANES, 5).unwrap();
    requests.store(layout::request_slot(0), stamp(1, 5));
    let mut requester = Requester::new(requests, replies.clone(), 1, 5).unwrap();
    assert!(!requester.post(&READ));
    assert_eq!(responder.next().unwrap().unwrap_err().field, "space");
    assert_eq!(responder.next().unwrap().unwrap().0, LaneId::new(1));
    assert!(responder.next().is_none());
    let reply = answer(requester.outstanding().unwrap(), Action::None, 0);
    responder.reply(LaneId::new(LANES), &reply); // no such lane: ignored
    assert_eq!(requester.poll(), Ok(None));
    assert_eq!(replies.wakes(), 0);
}

#[test]
fn lanes_take_turns() {
    let requests = Plain::zeroed(layout::request_words(LANES));
    let replies = Plain::zeroed(layout::reply_words(LANES));
    let mut responder = Responder::new(requests.clone(), replies.clone(), LANES, 1).unwrap();
    let mut requesters: Vec<_> =
        (0..LANES).map(|lane| Requester::new(requests.clone(), replies.clone(), lane, 1).unwrap()).collect();
    let mut served = Vec::new();
    for _ in 0..6 {
        for requester in &mut requesters {
            if requester.poll().unwrap().is_some() || requester.outstanding().is_none() {
                assert!(!requester.post(&READ));
            }
        }
        let (lane, request) = responder.next().unwrap().unwrap();
        responder.reply(lane, &answer(&request, Action::None, 0));
        served.push(lane.index());
    }
    assert_eq!(served, [0, 1, 0, 1, 0, 1]);
}

#[test]
fn a_worker_does_not_sleep_while_a_request_waits() {
    let mut pair = pair();
    let mut responder = Responder::new(pair.requests.clone(), pair.replies.clone(), LANES, 5).unwrap();
    assert!(responder.prepare_sleep());
    assert!(pair.requester.post(&READ), "it sleeps, so it must be rung");
    responder.awake();
    assert!(!responder.prepare_sleep());
    assert_eq!(pair.replies.load(layout::SLEEPING), 0);
    assert!(responder.next().is_some());
    assert!(responder.prepare_sleep());
}

#[test]
fn each_side_says_where_it_is() {
    let mut pair = pair();
    let mut responder = Responder::new(pair.requests.clone(), pair.replies.clone(), LANES, 5).unwrap();
    assert_eq!((responder.home(), pair.requester.stance()), (None, Stance::Anywhere));
    for cpu in [Some(0), Some(7), Some(u32::MAX - 1), None] {
        pair.requester.set_home(cpu);
        assert!(!pair.requester.post(&READ));
        let (lane, request) = responder.next().unwrap().unwrap();
        assert_eq!(responder.home(), cpu);
        for stance in cpu.map_or([Stance::Anywhere; 2], |cpu| [Stance::SpinsOn(cpu), Stance::SleepsOn(cpu)]) {
            responder.announce(stance);
            assert_eq!(pair.requester.stance(), stance);
        }
        responder.reply(lane, &answer(&request, Action::None, 0));
        assert!(pair.requester.poll().unwrap().is_some());
    }
    // A successor finds nothing of it.
    responder.announce(Stance::SpinsOn(3));
    Responder::new(pair.requests.clone(), pair.replies.clone(), LANES, 6).unwrap();
    assert_eq!(pair.requester.stance(), Stance::Anywhere);
}

proptest! {
    #[test]
    fn no_reply_memory_breaks_the_supervisor(
        sequence: u32, size in prop::sample::select(vec![1u8, 2, 4, 8]), write: bool,
        words: [u64; 3], near in 0u32..4, kicked: bool,
    ) {
        let Pair { replies, requester, .. } = pair();
        let mut requester = requester.continuing_after(sequence);
        let _ = requester.post(&Access { size, op: if write { Op::Write } else { Op::Read }, ..READ });
        // Mostly random words are refused at the stamp: let some of them come near.
        let expected = next_sequence(sequence);
        let word = match near { 0 => words[0], 1 => stamp(expected, words[0] as u32), 2 => stamp(words[0] as u32, 5), _ => stamp(expected, 5) };
        write_reply(&replies, word, if near == 3 { words[1] % 4 } else { words[1] }, words[2]);
        let (kick, mut kicks) = Kick::new(PlainKick::default());
        if kicked { kick.bump(); }
        match requester.wait(&mut kicks, Duration::ZERO, Deadline::at(1)) {
            Ok(Outcome::Replied(reply)) => {
                prop_assert_eq!(word, stamp(expected, 5));
                prop_assert_eq!(reply.data, if write { 0 } else { mask(words[2], size) });
            }
            Ok(Outcome::Kicked) => prop_assert!(kicked && word == 0),
            Ok(Outcome::Deadline) => prop_assert!(!kicked && word == 0),
            Err(violation) => prop_assert!(["sequence", "generation", "action"].contains(&violation.field())),
        }
    }

    #[test]
    fn no_request_memory_breaks_the_worker(words in prop::collection::vec(any::<u64>(), layout::request_words(LANES))) {
        let requests = Plain::zeroed(layout::request_words(LANES));
        let replies = Plain::zeroed(layout::reply_words(LANES));
        for (index, word) in words.iter().enumerate() {
            requests.store(index, *word);
        }
        let generation = (words[layout::request_slot(1)] >> 32) as u32;
        let mut responder = Responder::new(requests, replies, LANES, generation).unwrap();
        let mut rounds = 0;
        while let Some(next) = responder.next() {
            rounds += 1;
            if let Ok((lane, request)) = next {
                responder.reply(lane, &answer(&request, Action::None, 0));
            }
        }
        prop_assert!(rounds <= LANES);
    }
}
