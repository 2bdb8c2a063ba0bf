//! The supervisor against a worker whose memory is another with each look: whatever a reply is made of, each of its words was read
//! once, so that what was checked is what is used; every wait ends.

use std::time::Duration;

use crate::Script;
use crate::memory::{Shift, Shifting};
use cellblock_ring::memory::{Plain, PlainKick};
use cellblock_ring::words::WordsMut;
use cellblock_ring::{Access, Deadline, Kick, Outcome, Requester, layout};
use cellblock_wire::slot::{Op, Reply, Request, Space, mask, stamp};

/// Words of a reply that the supervisor reads.
const READ: u32 = 3;

/// Looks at one input.
pub(crate) fn run(bytes: &[u8]) {
    let mut script = Script::new(bytes);
    let requests = Plain::zeroed(layout::request_words(1));
    let replies = Shifting::zeroed(layout::reply_words(1));
    let mut requester =
        Requester::new(requests, replies.clone(), 0, 1).unwrap().continuing_after(script.value() as u32);
    let (kick, mut kicks) = Kick::new(PlainKick::default());
    let mut steps = 0;
    while !script.is_over() && steps < 40 {
        steps += 1;
        let kind = script.u8();
        match kind & 7 {
            0 | 1 => {
                let op = if kind & 8 == 0 { Op::Read } else { Op::Write };
                let size = 1 << (kind >> 4 & 3);
                let access = Access { space: Space::Mmio, op, size, region: 0, offset: 0, data: 0 };
                let _ = requester.post(&access);
            }
            2 => replies.store(usize::from(script.u8()) % layout::reply_words(1), script.value()),
            3 => {
                // The right stamp, which a later look may find changed.
                if let Some(request) = requester.outstanding() {
                    let Request { sequence, generation, .. } = *request;
                    replies.store(layout::reply_slot(0), stamp(sequence, generation));
                }
            }
            4 => {
                let count = script.u8() % 4;
                let shift = |script: &mut Script<'_>| Shift {
                    after: script.u8() % 8,
                    value: right_or_other(&requester, script),
                    stays: kind & 8 != 0,
                };
                let shifts = (0..count).map(|_| shift(&mut script)).collect();
                replies.plan(shifts);
            }
            5 => {
                let before = requester.outstanding().copied();
                replies.take_loads();
                let polled = requester.poll();
                assert!(replies.take_loads() <= READ, "a word was read twice");
                if let Ok(Some(reply)) = polled {
                    accepted(before, reply);
                }
            }
            6 => {
                let before = requester.outstanding().copied();
                if kind & 8 != 0 {
                    kick.bump();
                }
                let spin = Duration::from_millis(u64::from(kind >> 4 & 1) * 2);
                if let Ok(Outcome::Replied(reply)) = requester.wait(&mut kicks, spin, Deadline::at(1)) {
                    accepted(before, reply);
                }
            }
            _ => drop(requester.is_taken()),
        }
    }
}

/// The stamp that is waited for, one time in two.
fn right_or_other(requester: &Requester<Plain, Shifting>, script: &mut Script<'_>) -> u64 {
    match requester.outstanding() {
        Some(request) if script.flag() => stamp(request.sequence, request.generation),
        _ => script.value(),
    }
}

fn accepted(before: Option<Request>, reply: Reply) {
    let request = before.expect("a reply without a request");
    assert_eq!((reply.sequence, reply.generation), (request.sequence, request.generation));
    assert_eq!(reply.data, if request.op == Op::Read { mask(reply.data, request.size) } else { 0 });
}
