//! The state page against torn commits, poisoned fields and strangers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

use cellblock_ring::LaneId;
use cellblock_ring::memory::Plain;
use cellblock_ring::state_page::{Committed, MAX_DEVICE_BYTES, Shape, StateError, Writer, read};
use cellblock_ring::words::{Words, WordsMut};
use cellblock_wire::slot::{Action, Op, Reply, Request, Space, stamp};
use proptest::prelude::*;

const SHAPE: Shape = Shape::new(2, 20);
const HEADER_WORDS: usize = 8;
const ACTIVE: usize = 3;
/// Head, length, 3 words of device bytes, 2 lanes of 3 words; then the tail.
const TAIL: usize = 2 + 3 + 2 * 3;

fn reply(sequence: u32, generation: u32) -> Reply {
    Reply { sequence, generation, action: Action::None, data: sequence.into() }
}

/// A page with two commits of generation 3.
fn page() -> (Plain, Writer<Plain>) {
    let words = Plain::zeroed(SHAPE.words());
    let (mut writer, committed) = Writer::open(words.clone(), SHAPE, 3).unwrap();
    assert_eq!(committed, None);
    writer.commit(b"first", Some((LaneId::new(0), &reply(1, 3)))).unwrap();
    writer.commit(b"second, of 20 bytes.", Some((LaneId::new(1), &reply(9, 3)))).unwrap();
    (words, writer)
}

/// Where the copy of commit `number` starts.
fn copy(number: u64) -> usize {
    HEADER_WORDS + (number & 1) as usize * ((SHAPE.words() - HEADER_WORDS) / 2)
}

#[test]
fn a_successor_finds_the_last_commit_and_goes_on() {
    let (words, writer) = page();
    drop(writer);
    let (mut writer, committed) = Writer::open(words.clone(), SHAPE, 4).unwrap();
    let expected = Committed {
        number: 2,
        generation: 3,
        device: b"second, of 20 bytes.".to_vec(),
        replies: vec![Some(reply(1, 3)), Some(reply(9, 3))],
    };
    assert_eq!(committed, Some(expected));
    for (number, lane, sequence) in [(3, 0, 2), (4, 1, 10), (5, 0, 3)] {
        writer.commit(b"x", Some((LaneId::new(lane), &reply(sequence, 4)))).unwrap();
        assert_eq!(read(&words, SHAPE, 4).unwrap().unwrap().number, number);
    }
    let last = read(&words, SHAPE, 4).unwrap().unwrap();
    assert_eq!((last.device, last.replies), (b"x".to_vec(), vec![Some(reply(3, 4)), Some(reply(10, 4))]));
}

#[test]
fn a_commit_without_an_exit_keeps_the_replies() {
    let (words, mut writer) = page();
    writer.commit(b"", None).unwrap();
    let committed = read(&words, SHAPE, 3).unwrap().unwrap();
    assert_eq!(
        (committed.device, committed.replies),
        (Vec::new(), vec![Some(reply(1, 3)), Some(reply(9, 3))])
    );
}

#[test]
fn a_committed_reply_answers_its_own_request_only() {
    let (words, _writer) = page();
    let committed = read(&words, SHAPE, 3).unwrap().unwrap();
    let request = Request {
        sequence: 9,
        generation: 4,
        space: Space::Pio,
        op: Op::Read,
        size: 1,
        region: 0,
        offset: 0,
        data: 0,
    };
    assert_eq!(committed.reply_to(LaneId::new(1), &request), Some(Reply { generation: 4, ..reply(9, 3) }));
    assert_eq!(committed.reply_to(LaneId::new(0), &request), None);
    assert_eq!(committed.reply_to(LaneId::new(2), &request), None);
    assert_eq!(committed.reply_to(LaneId::new(1), &Request { sequence: 10, ..request }), None);
}

/// A writer whose memory stops taking stores after some of them, as a killed process does.
#[derive(Clone)]
struct Dying {
    words: Plain,
    left: std::rc::Rc<std::cell::Cell<usize>>,
}

impl Words for Dying {
    fn len(&self) -> usize {
        self.words.len()
    }

    fn load(&self, index: usize) -> u64 {
        self.words.load(index)
    }

    fn fence(_: std::sync::atomic::Ordering) {}
}

impl WordsMut for Dying {
    fn store(&self, index: usize, value: u64) {
        if let Some(left) = self.left.get().checked_sub(1) {
            self.left.set(left);
            self.words.store(index, value);
        }
    }

    fn publish(&self, index: usize, value: u64) {
        self.store(index, value);
    }
}

#[test]
fn a_writer_that_dies_after_any_store_leaves_the_commit_before_or_its_own() {
    for stores in 0..40 {
        let (words, writer) = page();
        drop(writer);
        let dying = Dying { words: words.clone(), left: std::rc::Rc::new(std::cell::Cell::new(stores)) };
        let (mut writer, _) = Writer::open(dying.clone(), SHAPE, 4).unwrap();
        writer.commit(b"third", Some((LaneId::new(1), &reply(10, 4)))).unwrap();
        let committed = read(&words, SHAPE, 4).unwrap().unwrap();
        if dying.left.get() == 0 && committed.number == 2 {
            assert_eq!(
                (committed.device.as_slice(), committed.replies[1]),
                (&b"second, of 20 bytes."[..], Some(reply(9, 3)))
            );
        } else {
            assert_eq!(
                (committed.number, committed.device.as_slice(), committed.replies[1]),
                (3, &b"third"[..], Some(reply(10, 4)))
            );
        }
    }
}

#[test]
fn a_page_formatted_by_one_who_died_is_empty_or_named() {
    for stores in 0..5 {
        let words = Plain::zeroed(SHAPE.words());
        let dying = Dying { words: words.clone(), left: std::rc::Rc::new(std::cell::Cell::new(stores)) };
        Writer::open(dying, SHAPE, 1).unwrap();
        match read(&words, SHAPE, 1) {
            Ok(found) => assert_eq!(found, None),
            Err(error) => assert!(matches!(error, StateError::Field { value: 0, .. }), "{error}"),
        }
    }
}

#[test]
fn a_torn_copy_is_named() {
    for (word, expected) in [
        (0, "state page commit 2 is torn: head 4, tail 2"),
        (TAIL, "state page commit 2 is torn: head 2, tail 4"),
    ] {
        let (words, _writer) = page();
        words.store(copy(2) + word, 4);
        assert_eq!(read(&words, SHAPE, 3).unwrap_err().to_string(), expected);
    }
}

#[test]
fn every_poisoned_field_is_named() {
    let generation = |value: u64| 20 | value << 32;
    let cases: [(usize, u64, &str); 11] = [
        (0, 1, "state page field magic has the value 0x1, expected is 0x316174536c6c6543"),
        (1, 1, "state page field version and lanes has the value 0x1, expected is 0x200000001"),
        (2, 21, "state page field device bytes has the value 0x15, expected is 0x14"),
        (ACTIVE, 3, "state page commit 3 is torn: head 1, tail 1"),
        (ACTIVE, u64::MAX, "state page commit 18446744073709551615 is torn: head 1, tail 1"),
        (
            copy(2) + 1,
            generation(3) + 1,
            "state page field device length has the value 0x15, expected is 0x14",
        ),
        (copy(2) + 1, generation(0), "state page field generation has the value 0x0, expected is 0x3"),
        (copy(2) + 1, generation(4), "state page field generation has the value 0x4, expected is 0x3"),
        (copy(2) + 5, stamp(0, 3), "state page reply of lane 0: slot field sequence has the value 0x0"),
        (copy(2) + 8, stamp(9, 4), "state page reply of lane 1: slot field generation has the value 0x4"),
        (copy(2) + 6, 3, "state page reply of lane 0: slot field action has the value 0x3"),
    ];
    for (word, value, expected) in cases {
        let (words, _writer) = page();
        words.store(word, value);
        let error = Writer::open(words.clone(), SHAPE, 3).unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert_eq!(words.load(word), value, "a refused page is left as it was");
        Writer::format(words.clone(), SHAPE, 3).unwrap();
        assert_eq!(read(&words, SHAPE, 3), Ok(None));
    }
}

#[test]
fn an_older_generation_is_accepted_and_shown() {
    let (words, _writer) = page();
    assert_eq!(read(&words, SHAPE, 9).unwrap().unwrap().generation, 3);
    assert!(read(&words, SHAPE, 2).is_err());
}

#[test]
fn another_shape_or_too_little_memory_is_refused() {
    let (words, _writer) = page();
    assert!(matches!(read(&words, Shape::new(1, 20), 3), Err(StateError::Field { .. })));
    assert!(matches!(read(&words, Shape::new(32, 4096), 3), Err(StateError::TooSmall(_))));
    assert!(Writer::format(Plain::zeroed(3), SHAPE, 1).is_err());
    assert_eq!(Shape::new(u32::MAX, usize::MAX), Shape::new(32, MAX_DEVICE_BYTES));
}

#[test]
fn state_that_does_not_fit_is_refused_and_nothing_committed() {
    let (words, mut writer) = page();
    let error = writer.commit(&[0; 21], None).unwrap_err();
    assert_eq!(error.to_string(), "the device's state takes 21 bytes, the state page has room for 20");
    assert_eq!(read(&words, SHAPE, 3).unwrap().unwrap().number, 2);
}

proptest! {
    #[test]
    fn what_is_committed_is_read(
        lanes in 1u32..=32, room in 0usize..=300,
        commits in prop::collection::vec((any::<u8>(), 0usize..=300, any::<u32>(), 1u32..), 1..20),
    ) {
        let shape = Shape::new(lanes, room);
        let words = Plain::zeroed(shape.words());
        let (mut writer, _) = Writer::open(words.clone(), shape, 1).unwrap();
        let mut replies = vec![None; lanes as usize];
        for (index, (byte, length, lane, sequence)) in commits.into_iter().enumerate() {
            let device = vec![byte; length.min(room)];
            let answered = (lane % 3 != 0).then_some((LaneId::new(lane % lanes), reply(sequence, 1)));
            if let Some((lane, reply)) = answered {
                replies[lane.index() as usize] = Some(reply);
            }
            writer.commit(&device, answered.as_ref().map(|(lane, reply)| (*lane, reply))).unwrap();
            let expected = Committed { number: index as u64 + 1, generation: 1, device, replies: replies.clone() };
            prop_assert_eq!(read(&words, shape, 1).unwrap(), Some(expected));
        }
    }

    #[test]
    fn a_page_altered_anywhere_is_read_or_refused(word in 0..SHAPE.words(), value: u64, bit in 0u32..64, flip: bool) {
        let (words, _writer) = page();
        words.store(word, if flip { words.load(word) ^ 1 << bit } else { value });
        if let Ok(Some(committed)) = read(&words, SHAPE, 3) {
            prop_assert!(committed.device.len() <= 20 && committed.replies.len() == 2 && committed.generation <= 3);
        }
        if let Ok((mut writer, _)) = Writer::open(words.clone(), SHAPE, 4) {
            writer.commit(b"goes on", None).unwrap();
            prop_assert_eq!(read(&words, SHAPE, 4).unwrap().unwrap().device, b"goes on".to_vec());
        }
    }
}
