//! Chains that one call fills or sends: against a model that is a run of bytes.

use std::os::fd::AsFd;

use proptest::prelude::*;

use super::rings::{driver, queue};
use crate::testing::virtio::{DATA, RAM_BYTES, Segment};
use crate::virtio::queue::Position;
use crate::virtio::{ChainError, Gather, Scatter, Taken};

#[test]
fn what_is_of_no_use_is_told_apart() {
    let mut driver = driver(16);
    let outside = Segment::write(RAM_BYTES - 1, 2);
    let heads = [
        driver.push(0, &[Segment::write(DATA, 11)]),
        driver.push(0, &[Segment::write(DATA, 100), outside]),
        driver.push(0, &[Segment::read(DATA, 100)]),
        driver.push(0, &[Segment::write(DATA, 12)]),
    ];
    let mut queue = queue(&driver, 16, Position::Start, None).unwrap();
    let mut room = Scatter::new(driver.ram.clone(), 16);
    for head in &heads[..3] {
        assert_eq!(room.take(&mut queue, 12).unwrap(), Taken::Useless(*head));
    }
    assert_eq!(room.take(&mut queue, 12).unwrap(), Taken::Chain);
    assert_eq!(room.take(&mut queue, 12).unwrap(), Taken::None);
    assert_eq!((room.bytes(), room.chains()), (12, 1));
    let short = ChainError::Short { what: "writable", left: 2, wanted: 3 };
    assert_eq!(room.write_at(10, &[0; 3]), Err(short));
    let mut used = vec![];
    room.give(1, &mut used);
    assert_eq!((used, room.bytes()), (vec![(heads[3], 1)], 0));
}

#[test]
fn a_chain_outside_is_not_whole() {
    let mut driver = driver(16);
    driver.push(0, &[Segment::read(DATA, 4), Segment::read(u64::MAX, 4)]);
    driver.push(0, &[Segment::write(DATA, 4)]);
    let mut queue = queue(&driver, 16, Position::Start, None).unwrap();
    let mut chain = Gather::new(driver.ram.clone(), 16);
    chain.pop(&mut queue).unwrap();
    assert!(!chain.is_whole());
    assert!(matches!(chain.read_at(0, &mut [0; 8]), Err(ChainError::Outside { .. })));
    chain.pop(&mut queue).unwrap();
    assert_eq!((chain.is_whole(), chain.bytes()), (true, 0), "there is nothing of it");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Chains of any pieces, filled by frames of any lengths, are the run of bytes that was sent.
    #[test]
    fn frames_fill_chains_in_their_order(
        chains in proptest::collection::vec(proptest::collection::vec(1u32..40, 1..4), 1..10),
        frames in proptest::collection::vec(1u64..80, 1..8),
    ) {
        let (mut driver, (read, write)) = (driver(64), rustix::pipe::pipe().unwrap());
        let mut at = DATA;
        let mut run = vec![];
        for pieces in &chains {
            let segment = |length: &u32| {
                let segment = Segment::write(at, *length);
                at += u64::from(*length) + 3;
                segment
            };
            let segments: Vec<_> = pieces.iter().map(segment).collect();
            let head = driver.push(0, &segments);
            run.push((head, segments));
        }
        let mut queue = queue(&driver, 64, Position::Start, None).unwrap();
        let mut room = Scatter::new(driver.ram.clone(), 64);
        while room.take(&mut queue, 1).unwrap() == Taken::Chain {}
        prop_assert_eq!(room.chains(), chains.len());
        for (seed, length) in (1u8..).zip(frames) {
            let total: u64 = run.iter().flat_map(|(_, s)| s).map(|s| u64::from(s.length)).sum();
            prop_assert_eq!(room.bytes(), total);
            if length + 2 > total {
                break;
            }
            let bytes: Vec<u8> = (0..length).map(|i| seed ^ i as u8).collect();
            rustix::io::write(&write, &bytes).unwrap();
            prop_assert_eq!(room.fill_from(read.as_fd()).unwrap() as u64, length);
            room.write_at(length, &[seed; 2]).unwrap();
            let count = room.chains_of(length + 2);
            let mut used = vec![];
            room.give(length + 2, &mut used);
            prop_assert_eq!(used.len(), count);
            let mut got: Vec<u8> = vec![];
            for ((head, segments), (given, filled)) in run.drain(..count).zip(used) {
                prop_assert_eq!(head, given);
                let all: Vec<u8> = segments.iter().flat_map(|s| driver.peek(s.address, s.length as usize)).collect();
                got.extend(&all[..filled as usize]);
            }
            let mut expected = bytes;
            expected.extend([seed; 2]);
            prop_assert_eq!(got, expected);
        }
    }

    /// What is sent and what is copied are the chain's bytes.
    #[test]
    fn a_chain_is_sent_whole(lengths in proptest::collection::vec(1u32..50, 1..8), skip in 0u64..400) {
        let (mut driver, (read, write)) = (driver(16), rustix::pipe::pipe().unwrap());
        let (mut at, mut expected) = (DATA, vec![]);
        let mut segments = vec![];
        for length in lengths {
            let bytes: Vec<u8> = (0..length).map(|i| (at as u8) ^ i as u8).collect();
            driver.poke(at, &bytes);
            expected.extend(bytes);
            segments.push(Segment::read(at, length));
            at += u64::from(length) + 5;
        }
        driver.push(0, &segments);
        let mut queue = queue(&driver, 16, Position::Start, None).unwrap();
        let mut chain = Gather::new(driver.ram.clone(), 16);
        prop_assert_eq!(chain.pop(&mut queue).unwrap(), Some(0));
        prop_assert_eq!(chain.bytes(), expected.len() as u64);
        prop_assert_eq!(chain.send_to(write.as_fd()).unwrap(), expected.len());
        let mut got = vec![0; expected.len()];
        rustix::io::read(&read, &mut got).unwrap();
        prop_assert_eq!(&got, &expected);
        let skip = (skip as usize).min(expected.len());
        let mut tail = vec![0; expected.len() - skip];
        chain.read_at(skip as u64, &mut tail).unwrap();
        prop_assert_eq!(&tail[..], &expected[skip..]);
        prop_assert!(chain.read_at(skip as u64 + 1, &mut tail).is_err() || tail.is_empty());
    }
}
