//! A successor's way with records that are not what they should be.

use std::os::fd::OwnedFd;

use proptest::prelude::*;

use super::rings::{driver, pages, queue};
use crate::device::Device;
use crate::testing::conformance::conforms;
use crate::testing::holder::{self, Holder};
use crate::testing::virtio::{DATA, Driver, Edges, Segment, shared_ram};
use crate::testing::{Harness, Host};
use crate::virtio::inflight::Pages;
use crate::virtio::queue::Position;
use crate::virtio::spec::status;
use crate::virtio::{Inline, Interrupt, QueueError, Ram, Transport};

const SIZE: u16 = 8;

fn poke(fd: &OwnedFd, at: u64, bytes: &[u8]) {
    rustix::io::pwrite(fd, bytes, at).unwrap();
}

/// The record of a queue of which chain 1 was given back, and 0 and 2 are in flight.
fn left() -> (OwnedFd, Pages, Driver<super::rings::Nobody>) {
    let mut driver = driver(SIZE);
    let (fd, pages) = pages(1);
    let mut queue = queue(&driver, SIZE, Position::Start, pages.region(0)).unwrap();
    for _ in 0..4 {
        driver.push(0, &[Segment::write(DATA, 1)]);
    }
    for _ in 0..3 {
        queue.pop().unwrap().unwrap();
    }
    queue.push(1, 0).unwrap();
    (fd, pages, driver)
}

/// As QEMU and others read it.
#[test]
fn the_layout_is_vhost_users() {
    let (fd, ..) = left();
    let mut bytes = [0; 16 * 4];
    rustix::io::pread(&fd, &mut bytes, 0).unwrap();
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let half = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap());
    assert_eq!(word(0), 0, "features");
    assert_eq!(
        [half(8), half(10), half(12), half(14)],
        [1, SIZE, 1, 1],
        "version, desc_num, last_batch_head, used_idx"
    );
    assert_eq!([bytes[16], bytes[32], bytes[48]], [1, 0, 1], "inflight");
    assert_eq!([word(24), word(40), word(56)], [0, 1, 2], "counter");
    assert_eq!(half(32 + 6), 0, "next of what was given back first");
}

#[test]
fn what_no_queue_leaves_is_an_error() {
    type Case = (&'static str, u64, &'static [u8]);
    const CASES: [Case; 7] = [
        ("version", 8, &[0, 0]),
        ("version", 8, &[2, 0]),
        ("desc_num", 10, &[4, 0]),
        ("desc_num", 10, &[0xff, 0xff]),
        ("used_idx", 14, &[7, 0]),
        ("inflight", 16, &[2]),
        ("inflight", 32, &[0xff]),
    ];
    for (field, at, bytes) in CASES {
        let (fd, pages, driver) = left();
        poke(&fd, at, bytes);
        match queue(&driver, SIZE, Position::Resume, pages.region(0)) {
            Err(QueueError::InFlight { field: found, .. }) => assert_eq!(found, field),
            other => panic!("{field}: {:?}", other.map(|_| ())),
        }
    }
    let (fd, pages, driver) = left();
    // The driver's used index says that one more was given back: which?
    poke(&fd, 12, &[9, 0]);
    poke(&fd, 14, &[0, 0]);
    let error = queue(&driver, SIZE, Position::Resume, pages.region(0)).map(|_| ()).unwrap_err();
    assert!(matches!(error, QueueError::InFlight { field: "last_batch_head", value: 9 }), "{error}");
    assert!(pages.region(1).is_none());
}

#[test]
fn a_queue_that_is_too_large_for_the_record_is_refused() {
    let driver = driver(2048);
    let (_fd, pages) = pages(1);
    assert!(queue(&driver, 2048, Position::Start, pages.region(0)).is_err());
    assert!(queue(&driver, 2048, Position::Start, None).is_ok());
}

type Device0 = Transport<Inline<Holder>>;

fn device(ram: &Ram, pages: &Pages) -> Device0 {
    let interrupt = Interrupt::new(Edges::default());
    let engine =
        Inline::new(vec![(Holder::default(), vec![0, 1])], interrupt.clone()).with_pages(pages.clone());
    holder::device(engine, ram.clone(), interrupt)
}

fn name(driver: &mut Driver<Harness<Device0>>, head: u16) {
    driver.poke(DATA + 0x1000, &head.to_le_bytes());
    driver.push(1, &[Segment::read(DATA + 0x1000, 2)]);
    driver.kick(1);
    driver.wait_used(1);
}

#[test]
fn the_device_of_these_tests_conforms() {
    let (ram, (_fd, pages)) = (shared_ram().0, pages(2));
    conforms(&mut Driver::new(Harness::new(device(&ram, &pages)), ram.clone()), &holder::CONFORMS);
}

/// One that is to relieve another refuses what it cannot go on with: the other can, and the driver is told nothing.
#[test]
fn who_is_to_relieve_another_asks_for_no_reset() {
    let (ram, (fd, pages)) = (shared_ram().0, pages(2));
    let mut driver = Driver::new(Harness::new(device(&ram, &pages)), ram.clone());
    driver.begin(u64::MAX, 2, SIZE);
    let saved = driver.host.saved();
    poke(&fd, 8, &[2, 0]);
    let mut candidate = device(&ram, &pages);
    candidate.quiesce();
    let refused = candidate.restore(&saved).unwrap_err();
    assert!(refused.to_string().starts_with("queue 0 cannot be gone on with"), "{refused}");
    let mut candidate = Harness::new(candidate);
    let needs_reset = |harness: &mut Harness<Device0>| {
        harness.read(0, 0x70, 4) & u64::from(status::DEVICE_NEEDS_RESET) != 0
    };
    assert!(!needs_reset(&mut candidate));
    // The successor of one that is dead says what it lacks.
    let mut successor = device(&ram, &pages);
    successor.restore(&saved).unwrap();
    assert!(needs_reset(&mut Harness::new(successor)));
}

#[test]
fn a_successor_has_what_was_held_and_nothing_else() {
    let (ram, (_fd, pages)) = (shared_ram().0, pages(2));
    let mut driver = Driver::new(Harness::new(device(&ram, &pages)), ram.clone());
    driver.begin(u64::MAX, 2, SIZE);
    let heads: Vec<_> = (0..5).map(|at| driver.push(0, &[Segment::write(DATA + at, 1)])).collect();
    driver.kick(0);
    for head in [heads[3], heads[1]] {
        name(&mut driver, head);
        assert_eq!(driver.used(0), Some((head.into(), 1)));
    }
    for order in [[0, 4, 2], [5, 6, 7]] {
        let saved = driver.host.saved();
        let mut successor = device(&ram, &pages);
        successor.restore(&saved).unwrap();
        driver.host = Harness::new(successor);
        assert_eq!(driver.used(0), None, "nothing is given back unasked");
        for at in order {
            // The second time what the first left, and that is nothing but these.
            let head = if at < 5 { heads[at] } else { driver.push(0, &[Segment::write(DATA, 1)]) };
            driver.kick(0);
            name(&mut driver, head);
            assert_eq!(driver.used(0), Some((head.into(), 1)));
        }
    }
    assert_eq!(driver.peek(DATA, 5), [7; 5]);
    assert_eq!(driver.status(), 15);
}

proptest! {
    /// A record of arbitrary bytes, also such that look like one: a successor takes no more than there can be, or refuses.
    #[test]
    fn any_record_is_survived(
        head in prop_oneof![Just(None), any::<(u16, u16)>().prop_map(Some)],
        noise in proptest::collection::vec(any::<u8>(), 16 * 9),
        mask: u8,
        used in 0u16..20,
    ) {
        let (fd, pages, driver) = left();
        let mut bytes: Vec<u8> = noise.iter().map(|byte| byte & mask).collect();
        if let Some((last, known)) = head {
            let plausible = [1, SIZE, last % 10, known % 20];
            bytes[8..16].copy_from_slice(&plausible.map(u16::to_le_bytes).concat());
            for descriptor in bytes[16..].chunks_mut(16) {
                descriptor[0] &= 1;
                descriptor[6] %= SIZE as u8 + 1;
                descriptor[7] = 0;
            }
        }
        poke(&fd, 0, &bytes);
        if let Ok(heads) = pages.region(0).unwrap().resume(SIZE, used) {
            let mut distinct = heads.clone();
            distinct.sort_unstable();
            distinct.dedup();
            prop_assert_eq!(distinct.len(), heads.len());
            prop_assert!(heads.iter().all(|head| *head < SIZE));
        }
        // And behind a queue: whatever it is, an error at worst.
        poke(&fd, 0, &bytes);
        if let Ok(mut queue) = queue(&driver, SIZE, Position::Resume, pages.region(0)) {
            let mut taken = 0;
            while let Ok(Some(head)) = queue.pop() {
                taken += 1;
                prop_assert!(queue.push(head, 0).is_ok());
                prop_assert!(taken <= 2 * SIZE, "it does not end");
            }
        }
    }

    /// And behind a device: it goes on, or needs a reset, after which it is as new.
    #[test]
    fn a_poisoned_record_costs_a_reset_at_worst(noise in proptest::collection::vec(any::<u8>(), 16 * 9), valid: bool) {
        let (ram, (fd, pages)) = (shared_ram().0, pages(2));
        let mut driver = Driver::new(Harness::new(device(&ram, &pages)), ram.clone());
        driver.begin(u64::MAX, 2, SIZE);
        driver.push(0, &[Segment::write(DATA, 1)]);
        driver.kick(0);
        let saved = driver.host.saved();
        poke(&fd, 0, &noise);
        if valid {
            poke(&fd, 8, &[1, 0, SIZE as u8, 0]);
        }
        let mut successor = device(&ram, &pages);
        successor.restore(&saved).unwrap();
        driver.host = Harness::new(successor);
        let now = driver.status();
        prop_assert!(now == 15 || now == 15 | status::DEVICE_NEEDS_RESET);
        driver.begin(u64::MAX, 2, SIZE);
        let head = driver.push(0, &[Segment::write(DATA + 1, 1)]);
        driver.kick(0);
        name(&mut driver, head);
        prop_assert_eq!(driver.used(0), Some((head.into(), 1)));
    }
}
