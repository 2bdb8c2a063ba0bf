//! Loom runs the ring's own code through every interleaving and every answer that the memory model allows, up to a number
//! of preemptions. A lost wake-up shows as a deadlock. Run alone with `cargo test -p cellblock-ring --release --test loom`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]
#![allow(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "the models are the other side of the door"
)]

#[path = "loom/model.rs"]
mod model;

use std::sync::Arc;
use std::sync::atomic::Ordering::{self, Relaxed};
use std::time::Duration;

use cellblock_ring::words::{Words, WordsMut};
use cellblock_ring::{Deadline, LaneId, Outcome, Succession, answer, layout, state_page};
use cellblock_wire::slot::{Action, Reply, stamp};
use loom::sync::atomic::AtomicU32;
use loom::thread;
use model::{Bell, Lane, SHAPE, read_at};

const LANE: LaneId = LaneId::new(0);
/// The word of the state page that names the active commit.
const ACTIVE: usize = 3;

/// Every interleaving with up to `preemptions` switches away from a thread that could go on.
fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    // Unoptimized the whole takes a minute.
    builder.preemption_bound = Some(if cfg!(debug_assertions) { preemptions.min(2) } else { preemptions });
    builder.max_branches = 20_000;
    builder.check(model);
}

/// Takes the request that must be there and answers it with its offset.
fn serve_one<const FENCED: bool>(lane: &Lane<FENCED>, generation: u32) {
    let mut responder = lane.responder(generation);
    let (id, request) = responder.next().expect("the request was posted before").unwrap();
    responder.reply(id, &answer(&request, Action::None, request.offset));
}

fn replied(sequence: u32, generation: u32, data: u64) -> Outcome {
    Outcome::Replied(Reply { sequence, generation, action: Action::None, data })
}

fn reply_against_sleep<const SUPERVISOR_FENCES: bool, const WORKER_FENCES: bool>() {
    let (lane, _kick, mut kicks) = Lane::<SUPERVISOR_FENCES>::new();
    let mut requester = lane.requester();
    assert!(!requester.post(&read_at(7)));
    let there = lane.seen_with::<WORKER_FENCES>();
    let worker = thread::spawn(move || serve_one(&there, 1));
    let outcome = requester.wait(&mut kicks, Duration::ZERO, Deadline::NEVER).unwrap();
    assert_eq!(outcome, replied(1, 1, 7));
    worker.join().unwrap();
}

#[test]
fn no_reply_is_slept_through() {
    check(4, reply_against_sleep::<true, true>);
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_the_fence_in_sleep_a_reply_is_slept_through() {
    check(4, reply_against_sleep::<false, true>);
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_the_fence_in_reply_a_reply_is_slept_through() {
    check(4, reply_against_sleep::<true, false>);
}

fn request_against_sleep<const SUPERVISOR_FENCES: bool, const WORKER_FENCES: bool>() {
    let (lane, _kick, _kicks) = Lane::<SUPERVISOR_FENCES>::new();
    let mut requester = lane.requester();
    let lane = lane.seen_with::<WORKER_FENCES>();
    let bell = Bell::new();
    let ringer = Arc::clone(&bell);
    let worker = thread::spawn(move || {
        let mut responder = lane.responder(1);
        loop {
            if let Some(next) = responder.next() {
                assert_eq!(next.unwrap().1.offset, 7);
                return;
            }
            if responder.prepare_sleep() {
                bell.sleep_and_silence();
                responder.awake();
            }
        }
    });
    if requester.post(&read_at(7)) {
        ringer.ring();
    }
    worker.join().unwrap();
}

#[test]
fn no_request_is_slept_through() {
    check(4, request_against_sleep::<true, true>);
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_the_fence_in_publish_a_request_is_slept_through() {
    check(4, request_against_sleep::<false, true>);
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_the_fence_in_prepare_sleep_a_request_is_slept_through() {
    check(4, request_against_sleep::<true, false>);
}

#[test]
fn two_accesses_go_there_and_back_with_both_sides_sleeping() {
    check(2, || {
        let (lane, _kick, mut kicks) = Lane::<true>::new();
        let mut requester = lane.requester();
        let bell = Bell::new();
        let ringer = Arc::clone(&bell);
        let worker = thread::spawn(move || {
            let mut responder = lane.responder(1);
            let mut served = 0;
            while served < 2 {
                if let Some(next) = responder.next() {
                    let (id, request) = next.unwrap();
                    responder.reply(id, &answer(&request, Action::None, request.offset));
                    served += 1;
                } else if responder.prepare_sleep() {
                    bell.sleep_and_silence();
                    responder.awake();
                }
            }
        });
        for sequence in 1..=2 {
            if requester.post(&read_at(10 * u64::from(sequence))) {
                ringer.ring();
            }
            let outcome = requester.wait(&mut kicks, Duration::ZERO, Deadline::NEVER).unwrap();
            assert_eq!(outcome, replied(sequence, 1, 10 * u64::from(sequence)));
        }
        worker.join().unwrap();
    });
}

#[test]
fn sequences_wrap_past_zero_while_the_vcpu_sleeps() {
    check(2, || {
        let (lane, _kick, mut kicks) = Lane::<true>::new();
        let mut requester = lane.requester().continuing_after(u32::MAX - 1);
        for sequence in [u32::MAX, 1] {
            assert!(!requester.post(&read_at(3)));
            let there = lane.clone();
            let worker = thread::spawn(move || serve_one(&there, 1));
            let outcome = requester.wait(&mut kicks, Duration::ZERO, Deadline::NEVER).unwrap();
            assert_eq!(outcome, replied(sequence, 1, 3));
            worker.join().unwrap();
        }
    });
}

#[test]
fn a_spinning_wait_loses_nothing_when_it_turns_to_sleep() {
    check(2, || {
        let (lane, _kick, mut kicks) = Lane::<true>::new();
        let mut requester = lane.requester();
        assert!(!requester.post(&read_at(7)));
        let worker = thread::spawn(move || serve_one(&lane, 1));
        // The model's clock reads 1 ns more with each look, so this spins one round.
        let outcome = requester.wait(&mut kicks, Duration::from_nanos(1), Deadline::NEVER).unwrap();
        assert_eq!(outcome, replied(1, 1, 7));
        worker.join().unwrap();
    });
}

#[test]
fn a_kick_during_the_wait_ends_it_and_shows_the_mailbox() {
    check(4, || {
        let (lane, kick, mut kicks) = Lane::<true>::new();
        let mailbox = Arc::new(AtomicU32::new(0));
        let mut requester = lane.requester();
        assert!(!requester.post(&read_at(7)));
        let sender = Arc::clone(&mailbox);
        let kicker = thread::spawn(move || {
            sender.store(1, Relaxed);
            kick.bump();
        });
        let outcome = requester.wait(&mut kicks, Duration::ZERO, Deadline::NEVER).unwrap();
        assert_eq!((outcome, mailbox.load(Relaxed)), (Outcome::Kicked, 1));
        kicker.join().unwrap();
    });
}

#[test]
fn a_kick_before_the_post_or_before_the_wait_ends_the_wait() {
    check(4, || {
        let (lane, kick, mut kicks) = Lane::<true>::new();
        let mut requester = lane.requester();
        let kicker = thread::spawn(move || kick.bump());
        assert!(!requester.post(&read_at(7)));
        kicker.join().unwrap();
        let outcome = requester.wait(&mut kicks, Duration::ZERO, Deadline::NEVER).unwrap();
        assert_eq!(outcome, Outcome::Kicked);
        assert!(!kicks.take(), "a kick ends one wait only");
    });
}

#[test]
fn a_kick_beside_a_reply_is_delivered_once_and_so_is_the_reply() {
    check(3, || {
        let (lane, kick, mut kicks) = Lane::<true>::new();
        let mut requester = lane.requester();
        assert!(!requester.post(&read_at(7)));
        let worker = thread::spawn(move || serve_one(&lane, 1));
        let kicker = thread::spawn(move || kick.bump());
        let mut kicked = 0;
        loop {
            match requester.wait(&mut kicks, Duration::ZERO, Deadline::NEVER).unwrap() {
                Outcome::Kicked => kicked += 1,
                outcome => break assert_eq!(outcome, replied(1, 1, 7)),
            }
        }
        worker.join().unwrap();
        kicker.join().unwrap();
        assert_eq!(kicked + u32::from(kicks.take()), 1);
    });
}

#[test]
fn a_deadline_beside_a_reply_leaves_the_reply_to_be_found() {
    check(3, || {
        let (lane, _kick, mut kicks) = Lane::<true>::new();
        let mut requester = lane.requester();
        assert!(!requester.post(&read_at(7)));
        let (there, kernel) = (lane.clone(), Arc::clone(&lane.kernel));
        let worker = thread::spawn(move || serve_one(&there, 1));
        let clock = thread::spawn(move || kernel.expire());
        let outcome = requester.wait(&mut kicks, Duration::ZERO, Deadline::at(u64::MAX - 1)).unwrap();
        worker.join().unwrap();
        clock.join().unwrap();
        if outcome == Outcome::Deadline {
            assert_eq!(requester.poll().unwrap().unwrap().data, 7);
        } else {
            assert_eq!(outcome, replied(1, 1, 7));
        }
    });
}

/// Where the first worker dies.
#[derive(Clone, Copy)]
enum Death {
    Unanswered,
    /// The reply is published, the waiting flag not yet looked at: no wake comes.
    BetweenReplyAndWake,
}

/// A worker dies, its death is kicked, a successor takes the same memory over. The reply's data tells who answered.
fn restart(death: Death) {
    let (lane, kick, mut kicks) = Lane::<true>::new();
    let mut requester = lane.requester();
    assert!(!requester.post(&read_at(7)));
    let there = lane.clone();
    let first = thread::spawn(move || {
        let taken = there.responder(1).next();
        assert!(taken.is_some());
        if let Death::BetweenReplyAndWake = death {
            there.replies.store(layout::reply_slot(0) + 2, 1);
            there.replies.publish(layout::reply_slot(0), stamp(1, 1));
        }
        kick.bump();
    });
    let waited = requester.wait(&mut kicks, Duration::ZERO, Deadline::NEVER).unwrap();
    first.join().unwrap();
    if waited == replied(1, 1, 1) {
        return;
    }
    assert_eq!(waited, Outcome::Kicked);
    match (requester.succeed(lane.requests.clone(), lane.replies.clone(), 2).unwrap(), death) {
        (Succession::Answered(reply), Death::BetweenReplyAndWake) => assert_eq!(reply.data, 1),
        (Succession::Reposted { ring: false }, Death::Unanswered) => {
            let second = thread::spawn(move || {
                let mut responder = lane.responder(2);
                let (id, request) = responder.next().unwrap().unwrap();
                assert_eq!((request.sequence, request.generation), (1, 2));
                responder.reply(id, &answer(&request, Action::None, 2));
            });
            let outcome = requester.wait(&mut kicks, Duration::ZERO, Deadline::NEVER).unwrap();
            assert_eq!(outcome, replied(1, 2, 2));
            second.join().unwrap();
        }
        (other, _) => panic!("{other:?}"),
    }
}

#[test]
fn a_request_unanswered_at_death_is_sent_again() {
    check(3, || restart(Death::Unanswered));
}

#[test]
fn a_reply_published_at_death_counts() {
    check(3, || restart(Death::BetweenReplyAndWake));
}

#[test]
fn a_successor_ignores_the_old_slot_until_it_is_posted_again() {
    check(3, || {
        let (lane, _kick, mut kicks) = Lane::<true>::new();
        let mut requester = lane.requester();
        assert!(!requester.post(&read_at(7)));
        let bell = Bell::new();
        let ringer = Arc::clone(&bell);
        let there = lane.clone();
        let second = thread::spawn(move || {
            let mut responder = there.responder(2);
            loop {
                if let Some(next) = responder.next() {
                    let (id, request) = next.unwrap();
                    assert_eq!(request.generation, 2);
                    return responder.reply(id, &answer(&request, Action::None, 2));
                }
                if responder.prepare_sleep() {
                    bell.sleep_and_silence();
                    responder.awake();
                }
            }
        });
        let succession = requester.succeed(lane.requests.clone(), lane.replies.clone(), 2).unwrap();
        let Succession::Reposted { ring } = succession else { panic!("{succession:?}") };
        if ring {
            ringer.ring();
        }
        let outcome = requester.wait(&mut kicks, Duration::ZERO, Deadline::NEVER).unwrap();
        assert_eq!(outcome, replied(1, 2, 2));
        second.join().unwrap();
    });
}

#[test]
fn a_reply_committed_before_death_is_delivered_by_the_successor() {
    check(3, || {
        let (lane, kick, mut kicks) = Lane::<true>::new();
        let mut requester = lane.requester();
        assert!(!requester.post(&read_at(7)));
        let there = lane.clone();
        let first = thread::spawn(move || {
            let (id, request) = there.responder(1).next().unwrap().unwrap();
            let (mut writer, committed) = state_page::Writer::open(there.state.clone(), SHAPE, 1).unwrap();
            assert_eq!(committed, None);
            writer.commit(&[1; 8], Some((id, &answer(&request, Action::None, 41)))).unwrap();
            kick.bump();
        });
        assert_eq!(requester.wait(&mut kicks, Duration::ZERO, Deadline::NEVER), Ok(Outcome::Kicked));
        // Not joined: the kick alone makes the commit visible.
        let committed = state_page::read(&lane.state, SHAPE, 2).unwrap().unwrap();
        assert_eq!(committed.device, [1; 8]);
        first.join().unwrap();
        let _ = requester.succeed(lane.requests.clone(), lane.replies.clone(), 2).unwrap();
        let second = thread::spawn(move || {
            let mut responder = lane.responder(2);
            let (id, request) = responder.next().unwrap().unwrap();
            let reply = committed.reply_to(LANE, &request).expect("it was committed");
            responder.reply(id, &reply);
        });
        let outcome = requester.wait(&mut kicks, Duration::ZERO, Deadline::NEVER).unwrap();
        assert_eq!(outcome, replied(1, 2, 41));
        second.join().unwrap();
    });
}

#[test]
fn a_commit_read_beside_its_writer_is_whole() {
    check(if cfg!(debug_assertions) { 1 } else { 2 }, || {
        let (lane, _kick, _kicks) = Lane::<true>::new();
        let (mut writer, _) = state_page::Writer::open(lane.state.clone(), SHAPE, 1).unwrap();
        writer.commit(&[1; 8], None).unwrap();
        let writer = thread::spawn(move || {
            for number in 2..=3u8 {
                let reply = Reply {
                    sequence: number.into(),
                    generation: 1,
                    action: Action::None,
                    data: number.into(),
                };
                writer.commit(&[number; 8], Some((LANE, &reply))).unwrap();
            }
        });
        if let Ok(committed) = state_page::read(&lane.state, SHAPE, 1) {
            let committed = committed.expect("the first commit was there");
            let number = committed.number as u8;
            assert_eq!(committed.device, [number; 8]);
            let data = committed.replies[0].map(|reply| (reply.sequence, reply.data));
            assert_eq!(data, (number > 1).then_some((number.into(), number.into())));
        }
        writer.join().unwrap();
    });
}

/// The page as one sees it who read the active number two commits ago, and finds no other later.
struct Late {
    words: model::Shared,
    active: std::cell::Cell<u64>,
}

impl Words for Late {
    fn len(&self) -> usize {
        self.words.len()
    }

    fn load(&self, index: usize) -> u64 {
        if index == ACTIVE { self.active.take() } else { self.words.load(index) }
    }

    fn fence(order: Ordering) {
        <model::Shared>::fence(order);
    }
}

#[test]
fn a_copy_that_is_overwritten_while_it_is_read_is_torn() {
    check(4, || {
        let (lane, _kick, _kicks) = Lane::<true>::new();
        let (mut writer, _) = state_page::Writer::open(lane.state.clone(), SHAPE, 1).unwrap();
        for number in 1..=2 {
            writer.commit(&[number; 8], None).unwrap();
        }
        let writer = thread::spawn(move || writer.commit(&[3; 8], None).unwrap());
        let late = Late { words: lane.state, active: 1.into() };
        if let Some(committed) = state_page::read(&late, SHAPE, 1).unwrap() {
            assert_eq!((committed.number, committed.device), (1, vec![1; 8]));
        }
        writer.join().unwrap();
    });
}
