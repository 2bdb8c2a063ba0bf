//! A state page that a stranger altered: it is read within its bounds or refused, and a successor that takes it over can
//! commit and be read.

use cellblock_ring::LaneId;
use cellblock_ring::memory::Plain;
use cellblock_ring::state_page::{Shape, Writer, read};
use cellblock_ring::words::WordsMut;
use cellblock_wire::slot::{Action, Reply};

/// Looks at one input.
pub(crate) fn run(bytes: &[u8]) {
    let Some(input) = crate::typed::<(u8, u8, bool, Vec<(u16, u64)>)>(bytes) else { return };
    let (lanes, room, honest, stores) = input;
    let shape = Shape::new(u32::from(lanes % 33).max(1), room.into());
    let words = Plain::zeroed(shape.words());
    if honest {
        let (mut writer, _) = Writer::open(words.clone(), shape, 1).unwrap();
        let reply = Reply { sequence: 1, generation: 1, action: Action::None, data: 1 };
        writer.commit(&vec![1; shape.device_bytes()], Some((LaneId::new(0), &reply))).unwrap();
        writer.commit(&[2][..shape.device_bytes().min(1)], None).unwrap();
    }
    for (word, value) in stores {
        words.store(usize::from(word) % shape.words(), value);
    }
    let Ok((mut writer, committed)) = Writer::open(words.clone(), shape, 2) else { return };
    if let Some(committed) = committed {
        assert!(committed.device.len() <= shape.device_bytes() && (1..=2).contains(&committed.generation));
        assert_eq!(committed.replies.len(), shape.lanes() as usize);
    }
    for sequence in 1..4 {
        let reply = Reply { sequence, generation: 2, action: Action::None, data: 7 };
        let lane = LaneId::new(sequence % shape.lanes());
        writer.commit(&[], Some((lane, &reply))).unwrap();
        let read = read(&words, shape, 2).unwrap().unwrap();
        assert_eq!((read.generation, read.replies[lane.index() as usize]), (2, Some(reply)));
    }
}
