//! A queue without a device: chains held, put back and given back in batches, and what its record makes of that.

use std::collections::VecDeque;
use std::num::Wrapping;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use cellblock_channel::memory;
use cellblock_wire::device::IN_FLIGHT_BYTES;
use proptest::prelude::*;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::device::Action;
use crate::testing::Host;
use crate::testing::virtio::{DATA, Driver, Segment, shared_ram};
use crate::virtio::inflight::{Pages, Region};
use crate::virtio::queue::{Layout, Position};
use crate::virtio::spec::feature;
use crate::virtio::{Buffer, Buffers, QueueError, Virtqueue};

/// Takes every register write, and reads as one.
pub(super) struct Nobody;

impl Host for Nobody {
    fn read(&mut self, _region: u32, _offset: u64, _size: u8) -> u64 {
        1
    }

    fn write(&mut self, _region: u32, _offset: u64, _size: u8, _data: u64) -> Action {
        Action::None
    }
}

pub(super) fn driver(size: u16) -> Driver<Nobody> {
    let mut driver = Driver::new(Nobody, shared_ram().0);
    driver.add_queue(size);
    driver
}

pub(super) fn queue(
    driver: &Driver<Nobody>,
    size: u16,
    from: Position,
    record: Option<Region>,
) -> Result<Virtqueue, QueueError> {
    let [desc, available, device] = Driver::<Nobody>::areas(0);
    let layout = Layout { size, desc, driver: available, device };
    Virtqueue::recorded(&layout, size, driver.ram.clone(), feature::EVENT_IDX, from, record)
}

/// Memory for requests in flight of `queues` queues, as the supervisor makes it.
pub(super) fn pages(queues: u16) -> (OwnedFd, Pages) {
    let fd = memory::create_replies("in flight", IN_FLIGHT_BYTES * usize::from(queues)).unwrap().fd;
    let pages = Pages::open(&fd, queues).unwrap();
    (fd, pages)
}

fn take(queue: &mut Virtqueue) -> Option<u16> {
    queue.pop_into(&mut Buffers::default()).unwrap()
}

#[test]
fn several_chains_are_held_and_given_back_at_once() {
    let mut driver = driver(8);
    let mut queue = queue(&driver, 8, Position::Start, None).unwrap();
    for at in 0..4 {
        driver.push(0, &[Segment::write(DATA + at, 1)]);
    }
    let mut held = vec![];
    loop {
        let mut buffers = Buffers::for_chains_of(8);
        let Some(head) = queue.pop_into(&mut buffers).unwrap() else { break };
        held.push((head, buffers));
    }
    for (value, (_, buffers)) in (5..).zip(&held) {
        queue.chain_of(buffers).write(&[value]).unwrap();
    }
    assert_eq!(driver.used(0), None);
    queue.push_all(&[(held[2].0, 1), (held[0].0, 1)]).unwrap();
    queue.push_all(&[]).unwrap();
    assert_eq!([driver.used(0), driver.used(0), driver.used(0)], [Some((2, 1)), Some((0, 1)), None]);
    queue.push(held[3].0, 0).unwrap();
    assert_eq!(driver.used(0), Some((3, 0)));
    assert_eq!(driver.peek(DATA, 4), [5, 6, 7, 8]);
}

/// Who reads the used index sees a whole batch or nothing of it.
#[test]
fn a_batch_is_seen_at_once() {
    const BATCH: u16 = 3;
    let mut driver = driver(8);
    let mut queue = queue(&driver, 8, Position::Start, None).unwrap();
    let (ram, device) = (driver.ram.clone(), Driver::<Nobody>::areas(0)[2]);
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            while !end.load(Ordering::Relaxed) {
                let index: u16 = ram.memory().load(GuestAddress(device + 2), Ordering::Acquire).unwrap();
                // 65536 is no multiple of 3, so the test ends before the index wraps.
                assert!(index.is_multiple_of(BATCH), "a part of a batch is to be seen: {index}");
            }
        });
        for _ in 0..4000 {
            let heads: Vec<_> = (0..BATCH)
                .map(|_| {
                    driver.push(0, &[Segment::write(DATA, 1)]);
                    (take(&mut queue).unwrap(), 0)
                })
                .collect();
            queue.push_all(&heads).unwrap();
        }
        end.store(true, Ordering::Relaxed);
        watcher.join().unwrap();
    });
}

#[test]
fn what_is_put_back_comes_again() {
    let mut driver = driver(4);
    let mut queue = queue(&driver, 4, Position::Start, None).unwrap();
    for _ in 0..3 {
        driver.push(0, &[Segment::write(DATA, 1)]);
    }
    let heads: Vec<_> = (0..3).map(|_| take(&mut queue).unwrap()).collect();
    queue.unpop(2);
    assert_eq!(
        (take(&mut queue), take(&mut queue), take(&mut queue)),
        (Some(heads[1]), Some(heads[2]), None)
    );
    queue.unpop(3);
    queue.unpop(1);
    assert_eq!(take(&mut queue), Some(heads[0]), "nothing was popped before the first");
}

#[test]
fn chains_are_held_once() {
    let mut driver = driver(4);
    let mut queue = queue(&driver, 4, Position::Start, None).unwrap();
    let head = driver.push(0, &[Segment::write(DATA, 1)]);
    assert!(matches!(queue.push(head, 0), Err(QueueError::NotTaken { .. })));
    take(&mut queue).unwrap();
    driver.make_available(0, head);
    assert!(matches!(queue.pop(), Err(QueueError::Twice { head: 0 })));
    queue.push(head, 0).unwrap();
    for head in [head, 4, u16::MAX] {
        assert!(matches!(queue.push(head, 0), Err(QueueError::NotTaken { .. })), "{head}");
    }
}

#[test]
fn a_batch_interrupts_where_the_driver_wants_it() {
    let mut driver = driver(16);
    let mut queue = queue(&driver, 16, Position::Start, None).unwrap();
    let batch = |driver: &mut Driver<Nobody>, queue: &mut Virtqueue, count| {
        let heads: Vec<_> = (0..count)
            .map(|_| {
                driver.push(0, &[Segment::write(DATA, 1)]);
                (take(queue).unwrap(), 0)
            })
            .collect();
        queue.push_all(&heads).unwrap();
        queue.wants_interrupt().unwrap()
    };
    assert!(!queue.wants_interrupt().unwrap(), "nothing was pushed");
    driver.set_interrupts(0, 0, 0);
    assert!(batch(&mut driver, &mut queue, 4), "entry 0 is among them");
    assert!(!batch(&mut driver, &mut queue, 4));
    driver.set_interrupts(0, 0, 11);
    assert!(!batch(&mut driver, &mut queue, 3), "entries 8 to 10");
    assert!(batch(&mut driver, &mut queue, 2), "entries 11 and 12");
    assert!(!queue.wants_interrupt().unwrap());
}

/// §2.7.7, §2.7.10: how the device says whether it wants kicks.
#[test]
fn kicks_are_wanted_as_negotiated() {
    let mut driver = driver(8);
    let [desc, available, used] = Driver::<Nobody>::areas(0);
    let layout = Layout { size: 8, desc, driver: available, device: used };
    let queue = |features| Virtqueue::new(&layout, 8, driver.ram.clone(), features, Position::Start).unwrap();
    let (mut with, mut without) = (queue(feature::EVENT_IDX), queue(0));
    let word = |driver: &Driver<Nobody>, at| driver.peek(at, 2)[0];
    driver.push(0, &[Segment::write(DATA, 1)]);
    without.silence().unwrap();
    assert_eq!(word(&driver, used), 1, "VIRTQ_USED_F_NO_NOTIFY");
    assert!(without.listen().unwrap(), "there is something");
    assert_eq!(word(&driver, used), 0);
    assert_eq!(word(&driver, used + 4 + 8 * 8), 0, "no event index");
    take(&mut with).unwrap();
    with.silence().unwrap();
    assert_eq!(word(&driver, used), 0, "the flag means nothing");
    assert!(!with.listen().unwrap());
    assert_eq!(word(&driver, used + 4 + 8 * 8), 1, "at the entry after the first");
}

/// A descriptor that is mostly one.
fn descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let address = prop_oneof![8 => 0x10_0000u64..0x10_1000, 1 => any::<u64>()];
    // Of those in place, and those in the table that an indirect one names.
    let length = prop_oneof![4 => 0u32..64, 2 => (0u32..12).prop_map(|n| 16 * n), 1 => any::<u32>()];
    let flags = prop_oneof![6 => 0u16..4, 1 => 4u16..8];
    (address, length, flags, 0u16..9)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Chains are walked as `virtio-queue` does it, but for its silence about broken ones.
    #[test]
    fn chains_are_the_librarys(
        table in proptest::collection::vec(descriptor(), 8),
        indirect in proptest::collection::vec(descriptor(), 12),
        head in 0u16..9,
    ) {
        let mut driver = driver(8);
        let at = Driver::<Nobody>::areas(0);
        for (base, list) in [(at[0], &table), (0x10_0000, &indirect)] {
            for (index, (address, length, flags, next)) in (0..).zip(list) {
                // Indirect tables are where there is one.
                let address = if flags & 4 != 0 { 0x10_0000 } else { *address };
                driver.descriptor(base, index, Segment::read(address, *length), *flags, *next);
            }
        }
        driver.make_available(0, head);
        let mut library = Queue::new(8).unwrap();
        library.try_set_desc_table_address(GuestAddress(at[0])).unwrap();
        library.try_set_avail_ring_address(GuestAddress(at[1])).unwrap();
        library.try_set_used_ring_address(GuestAddress(at[2])).unwrap();
        library.set_ready(true);
        let chain: Vec<_> = library.iter(driver.ram.memory()).unwrap().next().unwrap().collect();
        let whole = chain.last().is_some_and(|last| !last.has_next());
        let ordered = chain.is_sorted_by_key(|part| part.is_write_only());
        let wanted = |writable| -> Vec<(u64, u32)> {
            let of = chain.iter().filter(|part| part.is_write_only() == writable && part.len() > 0);
            of.map(|part| (part.addr().0, part.len())).collect()
        };
        let mut buffers = Buffers::default();
        let ours = queue(&driver, 8, Position::Start, None).unwrap().pop_into(&mut buffers);
        if whole && ordered && chain.len() <= 8 {
            prop_assert_eq!(ours.unwrap(), Some(head));
            let list = |list: &[Buffer]| -> Vec<_> { list.iter().map(|b| (b.address, b.length)).collect() };
            prop_assert_eq!(list(&buffers.readable), wanted(false));
            prop_assert_eq!(list(&buffers.writable), wanted(true));
        } else {
            prop_assert!(ours.is_err(), "{:?}", chain);
        }
    }
}

/// What a test does with a queue.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// The driver makes a chain available.
    Offer,
    Pop,
    Unpop(u16),
    /// Gives back every chain held whose bit is set.
    Push(u16),
    /// The worker dies, and another goes on.
    Die,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Offer),
        4 => Just(Step::Pop),
        1 => (0u16..4).prop_map(Step::Unpop),
        2 => any::<u16>().prop_map(Step::Push),
        1 => Just(Step::Die),
    ]
}

proptest! {
    /// A queue and its record against a list of what is available and one of what is held.
    #[test]
    fn every_chain_is_served_and_given_back_once(
        steps in proptest::collection::vec(step(), 1..300),
        recorded: bool,
    ) {
        const SIZE: u16 = 8;
        let mut driver = driver(SIZE);
        let (_fd, pages) = pages(1);
        let record = || recorded.then(|| pages.region(0).unwrap());
        let mut queue = queue(&driver, SIZE, Position::Start, record()).unwrap();
        let (mut free, mut available): (Vec<u16>, VecDeque<u16>) = ((0..SIZE).collect(), VecDeque::new());
        let mut held: Vec<u16> = vec![];
        // Popped since the last push: those may be put back.
        let mut fresh = 0;
        let table = Driver::<Nobody>::areas(0)[0];
        for step in steps {
            match step {
                Step::Offer => {
                    let Some(head) = free.pop() else { continue };
                    driver.descriptor(table, head, Segment::write(DATA + u64::from(head), 1), 0, 0);
                    driver.make_available(0, head);
                    available.push_back(head);
                }
                Step::Pop => {
                    let next = available.pop_front();
                    prop_assert_eq!(take(&mut queue), next);
                    held.extend(next);
                    fresh += usize::from(next.is_some());
                }
                Step::Unpop(count) => {
                    let count = usize::from(count).min(fresh);
                    queue.unpop(count as u16);
                    let back = held.split_off(held.len() - count);
                    back.into_iter().rev().for_each(|head| available.push_front(head));
                    fresh -= count;
                }
                Step::Push(bits) => {
                    let (done, rest): (Vec<_>, Vec<_>) =
                        held.iter().enumerate().partition(|(i, _)| bits >> (i % 16) & 1 != 0);
                    let done: Vec<u16> = done.into_iter().map(|(_, head)| *head).collect();
                    held = rest.into_iter().map(|(_, head)| *head).collect();
                    fresh = 0;
                    let used: Vec<_> = done.iter().rev().map(|head| (*head, 0)).collect();
                    queue.push_all(&used).unwrap();
                    for head in done.into_iter().rev() {
                        prop_assert_eq!(driver.used(0), Some((head.into(), 0)));
                        free.push(head);
                    }
                    prop_assert_eq!(driver.used(0), None);
                }
                Step::Die if recorded => {
                    queue = self::queue(&driver, SIZE, Position::Resume, record()).unwrap();
                    held.drain(..).rev().for_each(|head| available.push_front(head));
                    fresh = 0;
                }
                // Without a record what is in flight is known only while chains are given back in order.
                Step::Die => {}
            }
        }
        let rest: Vec<_> = std::iter::from_fn(|| take(&mut queue)).collect();
        prop_assert_eq!(rest, Vec::from(available));
    }

    /// A worker dies at any moment of giving a batch back: each chain is in the used ring or is done again.
    #[test]
    fn a_batch_that_was_cut_off_is_whole(before in 0usize..4, batch in 1usize..5, at in 0usize..4) {
        const SIZE: u16 = 8;
        let mut driver = driver(SIZE);
        let (_fd, pages) = pages(1);
        let mut queue = queue(&driver, SIZE, Position::Start, pages.region(0)).unwrap();
        for _ in 0..SIZE {
            driver.push(0, &[Segment::write(DATA, 1)]);
        }
        let heads: Vec<_> = std::iter::from_fn(|| take(&mut queue)).collect();
        let used: Vec<_> = heads.iter().take(before).map(|head| (*head, 0)).collect();
        queue.push_all(&used).unwrap();
        // What the queue would do next, up to where it is killed.
        let mut record = pages.region(0).unwrap();
        let mut index = Wrapping(before as u16);
        record.resume(SIZE, index.0).unwrap();
        let done: Vec<_> = heads.iter().copied().skip(before).take(batch).collect();
        if at >= 1 {
            done.iter().for_each(|head| record.batch(*head));
        }
        if at >= 2 {
            index += done.len() as u16;
        }
        if at >= 3 {
            record.finish(done.iter().copied(), index.0);
        }
        let redone = pages.region(0).unwrap().resume(SIZE, index.0).unwrap();
        let finished = before + if at >= 2 { done.len() } else { 0 };
        prop_assert_eq!(redone, heads.split_at(finished).1);
    }
}
