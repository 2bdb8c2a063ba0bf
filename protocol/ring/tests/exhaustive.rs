//! Index arithmetic and the reply validator, not sampled but enumerated: every lane and shape there can be, and every way in which a
//! reply's words can differ from the right ones.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use cellblock_ring::memory::Plain;
use cellblock_ring::state_page::{MAX_DEVICE_BYTES, Shape, Writer, read};
use cellblock_ring::words::{Words, WordsMut};
use cellblock_ring::{Access, LaneId, Requester, Violation, layout};
use cellblock_wire::control::MAX_LANES;
use cellblock_wire::slot::{
    Action, Op, REPLY_WORDS, REQUEST_WORDS, Reply, Space, mask, next_sequence, stamp,
};

#[test]
fn no_two_words_of_the_rings_are_the_same_and_all_are_inside() {
    for lanes in 1..=MAX_LANES {
        let (mut requests, mut replies) = (BTreeSet::new(), BTreeSet::new());
        let take = |set: &mut BTreeSet<usize>, word: usize, end: usize| {
            assert!(word < end && set.insert(word), "word {word} of {end}, {lanes} lanes");
        };
        let header = layout::LAST_WORDS.chain([layout::SLEEPING, layout::TAKEN]);
        header.for_each(|word| take(&mut replies, word, layout::reply_words(lanes)));
        for lane in 0..lanes {
            for word in 0..REQUEST_WORDS {
                take(&mut requests, layout::request_slot(lane) + word, layout::request_words(lanes));
            }
            take(&mut requests, layout::waiting_flag(lane), layout::request_words(lanes));
            for word in 0..REPLY_WORDS {
                take(&mut replies, layout::reply_slot(lane) + word, layout::reply_words(lanes));
            }
        }
    }
}

/// Words that tell which of them were stored to, and let nobody store past their end.
#[derive(Clone)]
struct Watched {
    words: Plain,
    stored: Rc<RefCell<BTreeSet<usize>>>,
}

impl Words for Watched {
    fn len(&self) -> usize {
        self.words.len()
    }

    fn load(&self, index: usize) -> u64 {
        assert!(index < self.len(), "a load of word {index} of {}", self.len());
        self.words.load(index)
    }

    fn fence(_: Ordering) {}
}

impl WordsMut for Watched {
    fn store(&self, index: usize, value: u64) {
        assert!(index < self.len(), "a store to word {index} of {}", self.len());
        self.stored.borrow_mut().insert(index);
        self.words.store(index, value);
    }

    fn publish(&self, index: usize, value: u64) {
        self.store(index, value);
    }
}

#[test]
fn the_two_copies_of_a_state_page_share_no_word_whatever_their_shape() {
    let rooms = (0..=72).chain(MAX_DEVICE_BYTES - 9..=MAX_DEVICE_BYTES);
    for (lanes, room) in rooms.flat_map(|room| (1..=MAX_LANES).map(move |lanes| (lanes, room))) {
        let shape = Shape::new(lanes, room);
        let page = Watched { words: Plain::zeroed(shape.words()), stored: Rc::default() };
        let mut writer = Writer::format(page.clone(), shape, 1).unwrap();
        let header = page.stored.take();
        let mut copies = vec![];
        for sequence in 1..=2 {
            let reply = Reply { sequence, generation: 1, action: Action::None, data: sequence.into() };
            let device = vec![sequence as u8; room];
            writer.commit(&device, Some((LaneId::new(lanes - 1), &reply))).unwrap();
            copies.push(&page.stored.take() - &header);
            let committed = read(&page.words, shape, 1).unwrap().unwrap();
            assert_eq!((committed.device, committed.replies[lanes as usize - 1]), (device, Some(reply)));
        }
        assert!(copies[0].is_disjoint(&copies[1]), "{lanes} lanes, {room} bytes");
    }
}

/// What may stand in a stamp's half where `right` should.
fn near(right: u32) -> Vec<u32> {
    let bits = (0..32).map(|bit| right ^ 1 << bit);
    bits.chain([right, 0, u32::MAX, right.wrapping_sub(1), right.wrapping_add(1)]).collect()
}

/// What may stand in the word of the action: those that there are, and every one that differs from none in one bit.
fn actions() -> impl Iterator<Item = u64> {
    (0..64).map(|bit| 1 << bit).chain([0, 2, 3, u64::MAX])
}

#[test]
fn a_reply_is_taken_if_and_only_if_all_of_it_is_right() {
    const PREVIOUS: u64 = 0;
    for (before, generation) in [(0, 1), (1, 2), (0x7fff_fffe, 3), (u32::MAX - 1, u32::MAX), (u32::MAX, 7)] {
        let right = next_sequence(before);
        let stamps: Vec<_> = near(right)
            .into_iter()
            .flat_map(|sequence| near(generation).into_iter().map(move |generation| (sequence, generation)))
            .collect();
        for (op, size) in [Op::Read, Op::Write].into_iter().flat_map(|op| [1, 2, 4, 8].map(|size| (op, size)))
        {
            let (requests, replies) =
                (Plain::zeroed(layout::request_words(1)), Plain::zeroed(layout::reply_words(1)));
            let make = || {
                let fresh = Requester::new(requests.clone(), replies.clone(), 0, generation).unwrap();
                let mut requester = fresh.continuing_after(before);
                let access = Access { space: Space::Mmio, op, size, region: 0, offset: 0, data: 0 };
                assert!(!requester.post(&access));
                requester
            };
            let mut requester = make();
            let mut look = |sequence: u32, found: u32, action: u64| {
                let data = 0x8877_6655_4433_2211;
                let words = [stamp(sequence, found), action, data];
                words.into_iter().zip(layout::reply_slot(0)..).for_each(|(word, at)| replies.store(at, word));
                let looked = requester.poll();
                let expected = if words[0] == PREVIOUS {
                    Ok(None)
                } else if sequence != right {
                    Err(Violation::Sequence { lane: 0, value: sequence, expected: right })
                } else if found != generation {
                    Err(Violation::Generation { lane: 0, value: found, expected: generation })
                } else {
                    match Reply::decode(&[words[0], action, data, 0]) {
                        Err(error) => Err(Violation::Slot { lane: 0, error }),
                        Ok(reply) => {
                            assert!(action <= 2);
                            let data = if op == Op::Read { mask(data, size) } else { 0 };
                            Ok(Some(Reply { data, ..reply }))
                        }
                    }
                };
                assert_eq!(looked, expected, "{sequence:#x} {found:#x} {action:#x}");
                assert_eq!(requester.outstanding().is_none(), matches!(looked, Ok(Some(_))));
                if requester.outstanding().is_none() {
                    requester = make();
                }
            };
            stamps.iter().for_each(|(sequence, found)| look(*sequence, *found, 0));
            actions().for_each(|action| look(right, generation, action));
        }
    }
}

#[test]
fn data_is_cut_to_every_size_at_every_bit() {
    for (size, bit) in [1u8, 2, 4, 8].into_iter().flat_map(|size| (0..64).map(move |bit| (size, bit))) {
        let kept = bit < 8 * u32::from(size);
        assert_eq!(mask(1 << bit, size), if kept { 1 << bit } else { 0 });
    }
}
