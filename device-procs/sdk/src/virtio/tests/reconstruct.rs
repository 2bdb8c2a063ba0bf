//! A device that goes on from what its driver wrote, where its own state is lost.

use std::os::fd::OwnedFd;

use cellblock_wire::device::{DriverQueue, DriverRegisters};
use proptest::prelude::*;

use super::rings::pages;
use crate::device::Device;
use crate::testing::Harness;
use crate::testing::virtio::{DATA, Driver, Edges, Segment, shared_ram};
use crate::virtio::inflight::Pages;
use crate::virtio::queue::{Layout, Position, Virtqueue};
use crate::virtio::spec::status;
use crate::virtio::{Chain, Identity, Inline, Interrupt, Kept, OneByOne, Ram, Serve, Space, Transport};

const SIZE: u16 = 8;

/// Writes a 7.
struct Sevens;

impl Serve for Sevens {
    fn begin(&mut self, _features: u64) {}

    fn serve(&mut self, chain: &mut Chain<'_>) -> u32 {
        chain.write(&[7]).map_or(0, |()| 1)
    }
}

type Device0 = Transport<Inline<OneByOne<Sevens>>>;

fn device(ram: &Ram, pages: &Pages) -> Device0 {
    let interrupt = Interrupt::new(Edges::default());
    let engine = Inline::servers(vec![Sevens], interrupt.clone()).with_pages(pages.clone());
    let config = Space::with_writable(vec![0; 4], 0..4);
    let identity = Identity { id: 42, features: 1, queues: 1, queue_size: 16, config };
    Transport::new(identity, engine, ram.clone(), interrupt)
}

struct Bench {
    driver: Driver<Harness<Device0>>,
    record: OwnedFd,
    pages: Pages,
}

/// A driver that has had one request served.
fn bench() -> Bench {
    let (ram, (record, pages)) = (shared_ram().0, pages(1));
    let mut driver = Driver::new(Harness::new(device(&ram, &pages)), ram);
    driver.begin(u64::MAX, 1, SIZE);
    driver.host.device.write(crate::device::Access { region: 0, offset: 0x101, size: 1 }, 9);
    driver.push(0, &[Segment::write(DATA, 1)]);
    driver.kick(0);
    assert_eq!(driver.used(0), Some((0, 1)));
    Bench { driver, record, pages }
}

/// What a supervisor has seen of it.
fn seen(features: u64) -> DriverRegisters {
    let [desc, driver, device] = Driver::<Harness<Device0>>::areas(0);
    DriverRegisters {
        status: 15,
        driver_features: features,
        queues: vec![DriverQueue { size: SIZE.into(), desc, driver, device, ready: true }],
        config: vec![(1, 9)],
        ..DriverRegisters::default()
    }
}

impl Bench {
    fn succeed(&mut self, successor: Device0, registers: &DriverRegisters) {
        let mut successor = successor;
        successor.reconstruct(registers, None).unwrap();
        self.driver.host = Harness::new(successor);
    }

    fn device(&self) -> Device0 {
        device(&self.driver.ram, &self.pages)
    }
}

#[test]
fn the_registers_are_enough_to_go_on() {
    let mut bench = bench();
    let saved = bench.driver.host.saved();
    bench.driver.push(0, &[Segment::write(DATA + 1, 1)]);
    let features = bench.driver.features;
    bench.succeed(bench.device(), &seen(features));
    assert_eq!(bench.driver.used(0), Some((1, 1)), "what came meanwhile, and nothing twice");
    assert_eq!((bench.driver.used(0), bench.driver.status()), (None, 15));
    // Status, features and the queue are as they were.
    let registers = |bytes: &[u8]| (bytes[2], bytes[11..19].to_vec(), bytes[bytes.len() - 28..].to_vec());
    assert_eq!(registers(&bench.driver.host.saved()), registers(&saved));
    let written = bench.driver.host.device.read(crate::device::Access { region: 0, offset: 0x100, size: 4 });
    assert_eq!(written, 9 << 8);
}

/// Whatever a predecessor says of them; but what only it knew is still known.
#[test]
fn registers_go_before_what_was_saved() {
    let mut bench = bench();
    let features = bench.driver.features;
    let mut saved = bench.driver.host.saved();
    let end = saved.len();
    // The queue's descriptor table, and that it is ready; the device's own word before them.
    saved[end - 26..end - 18].copy_from_slice(&u64::MAX.to_le_bytes());
    saved[end - 2] = 0;
    saved[end - 37] = 1;
    bench.driver.push(0, &[Segment::write(DATA + 1, 1)]);
    let kept = Kept::new(1);
    let mut successor = bench.device().keeping(kept.clone());
    successor.reconstruct(&seen(features), Some(&saved)).unwrap();
    bench.driver.host = Harness::new(successor);
    assert_eq!((bench.driver.used(0), bench.driver.status(), kept.get()), (Some((1, 1)), 15, 1));
    let error = bench.device().reconstruct(&seen(features), Some(&saved)).unwrap_err();
    assert!(error.to_string().contains("kept"), "{error}");
}

#[test]
fn a_driver_that_is_not_ready_yet_goes_on_too() {
    let mut bench = bench();
    let features = bench.driver.features;
    let registers = DriverRegisters { status: 11, ..seen(features) };
    bench.driver.rewind(0);
    for area in Driver::<Harness<Device0>>::areas(0) {
        bench.driver.poke(area, &[0; 256]);
    }
    bench.succeed(bench.device(), &registers);
    bench.driver.push(0, &[Segment::write(DATA, 1)]);
    assert_eq!((bench.driver.used(0), bench.driver.status()), (None, 11));
    bench.driver.run();
    assert_eq!((bench.driver.used(0), bench.driver.status()), (Some((0, 1)), 15));
}

#[test]
fn what_the_device_refused_it_refuses_again() {
    let mut bench = bench();
    bench.succeed(bench.device(), &seen(1 << 60));
    assert_eq!(bench.driver.status(), 3, "features that were not offered");
    let registers =
        DriverRegisters { queues: vec![DriverQueue { desc: 1 << 60, ..seen(0).queues[0] }], ..seen(1 << 32) };
    bench.succeed(bench.device(), &registers);
    assert_eq!(bench.driver.status(), 15 | status::DEVICE_NEEDS_RESET, "a queue outside memory");
}

#[test]
fn what_only_the_device_knew_costs_a_reset() {
    let mut bench = bench();
    let features = bench.driver.features;
    bench.succeed(bench.device().keeping(Kept::new(1)), &seen(features));
    assert_eq!(bench.driver.status(), 15 | status::DEVICE_NEEDS_RESET);
    assert!(bench.driver.host.device.complaint().unwrap().contains("is lost"));
    bench.driver.begin(u64::MAX, 1, SIZE);
}

/// A worker that takes the request that is next, and ends.
fn dies_with_the_next(bench: &Bench) -> u8 {
    let [desc, driver, device] = Driver::<Harness<Device0>>::areas(0);
    let layout = Layout { size: SIZE, desc, driver, device };
    let (ram, record) = (bench.driver.ram.clone(), bench.pages.region(0));
    let features = bench.driver.features;
    let mut queue = Virtqueue::recorded(&layout, 16, ram, features, Position::Resume, record).unwrap();
    queue.pop().unwrap().unwrap();
    queue.died()
}

#[test]
fn a_request_during_which_two_workers_ended_is_refused_and_the_next_is_served() {
    for deaths in 0..4 {
        let mut bench = bench();
        let features = bench.driver.features;
        for at in [1, 2] {
            bench.driver.push(0, &[Segment::write(DATA + at, 1)]);
        }
        for before in 0..deaths {
            assert_eq!(dies_with_the_next(&bench), before);
        }
        bench.succeed(bench.device(), &seen(features));
        let refused = deaths >= 2;
        assert_eq!(bench.driver.used(0), Some((1, u32::from(!refused))), "{deaths}");
        assert_eq!(bench.driver.used(0), Some((2, 1)));
        assert_eq!(bench.driver.peek(DATA + 1, 2), [if refused { 0 } else { 7 }, 7]);
        // The same descriptors again, and nothing is held against them.
        bench.driver.rewind(0);
        bench.driver.begin(u64::MAX, 1, SIZE);
        for _ in 0..2 * SIZE {
            bench.driver.push(0, &[Segment::write(DATA, 1)]);
            bench.driver.kick(0);
            assert_eq!(bench.driver.used(0).map(|(_, length)| length), Some(1));
        }
    }
}

#[test]
fn a_queue_in_order_needs_no_record() {
    for (in_order, wanted) in [(false, 15 | status::DEVICE_NEEDS_RESET), (true, 15)] {
        let mut bench = bench();
        let (saved, features) = (bench.driver.host.saved(), bench.driver.features);
        for resumed in [false, true] {
            rustix::io::pwrite(&bench.record, &[0x5a; 64], 0).unwrap();
            bench.driver.push(0, &[Segment::write(DATA, 1)]);
            let mut successor = bench.device();
            if in_order {
                successor = successor.in_order();
            }
            if resumed {
                successor.reconstruct(&seen(features), None).unwrap();
            } else {
                successor.restore(&saved).unwrap();
            }
            bench.driver.host = Harness::new(successor);
            assert_eq!(bench.driver.status(), wanted);
            assert_eq!(bench.driver.used(0).is_some(), in_order);
        }
    }
}

prop_compose! {
    fn any_queue()(size: u32, desc: u64, driver: u64, device: u64, ready: bool, sane: bool) -> DriverQueue {
        if sane { DriverQueue { ready, ..seen(0).queues[0] } } else { DriverQueue { size, desc, driver, device, ready } }
    }
}

proptest! {
    /// The guest's own word, but a guest may write what it likes: nothing panics, and after a reset all is well.
    #[test]
    fn any_registers_are_survived(
        status: u8,
        selectors: [u32; 3],
        driver_features in prop_oneof![any::<u64>(), Just(1 << 32)],
        queues in proptest::collection::vec(any_queue(), 0..4),
        config in proptest::collection::vec(any::<(u8, u8)>(), 0..64),
    ) {
        let mut bench = bench();
        let [device_features_sel, driver_features_sel, queue_sel] = selectors;
        let registers = DriverRegisters {
            status, device_features_sel, driver_features_sel, driver_features, queue_sel, queues, config,
        };
        bench.succeed(bench.device(), &registers);
        let saved = bench.driver.host.saved();
        prop_assert!(bench.device().restore(&saved).is_ok(), "its own successor takes over");
        bench.driver.begin(u64::MAX, 1, SIZE);
        let head = bench.driver.push(0, &[Segment::write(DATA, 1)]);
        bench.driver.kick(0);
        prop_assert_eq!(bench.driver.used(0), Some((head.into(), 1)));
    }
}
