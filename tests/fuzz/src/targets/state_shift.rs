//! A state page that changes while it is read, as a worker does that is not as dead as it should be: what is taken is within its
//! bounds, and what is torn between the two ends of a copy is found out or whole.

use crate::Script;
use crate::memory::{Shift, Shifting};
use cellblock_ring::LaneId;
use cellblock_ring::state_page::{Shape, Writer, read};
use cellblock_wire::slot::{Action, Reply};

/// Looks at one input.
pub(crate) fn run(bytes: &[u8]) {
    let mut script = Script::new(bytes);
    let shape = Shape::new(u32::from(script.u8() % 4) + 1, usize::from(script.u8() % 64));
    let words = Shifting::zeroed(shape.words());
    let (mut writer, _) = Writer::open(words.clone(), shape, 1).unwrap();
    for sequence in 1..=u32::from(script.u8() % 4) {
        let reply = Reply { sequence, generation: 1, action: Action::None, data: sequence.into() };
        let answered = (LaneId::new(sequence % shape.lanes()), &reply);
        writer.commit(&vec![sequence as u8; shape.device_bytes()], Some(answered)).unwrap();
    }
    let count = script.u8() % 8;
    let shift =
        |script: &mut Script<'_>| Shift { after: script.u8(), value: script.value(), stays: script.flag() };
    words.plan((0..count).map(|_| shift(&mut script)).collect());
    let bounded = |committed: &cellblock_ring::state_page::Committed| {
        assert!(committed.device.len() <= shape.device_bytes() && (1..=2).contains(&committed.generation));
        assert_eq!(committed.replies.len(), shape.lanes() as usize);
    };
    if let Ok(Some(committed)) = read(&words, shape, 2) {
        bounded(&committed);
    }
    let Ok((mut writer, committed)) = Writer::open(words.clone(), shape, 2) else { return };
    committed.iter().for_each(bounded);
    words.plan(vec![]);
    for sequence in 1..4 {
        let reply = Reply { sequence, generation: 2, action: Action::None, data: 7 };
        let lane = LaneId::new(sequence % shape.lanes());
        writer.commit(&[], Some((lane, &reply))).unwrap();
        // A header that was changed after the successor had looked at it is found by the next one.
        let Ok(Some(found)) = read(&words, shape, 2) else { return };
        assert_eq!((found.generation, found.replies[lane.index() as usize]), (2, Some(reply)));
    }
}
