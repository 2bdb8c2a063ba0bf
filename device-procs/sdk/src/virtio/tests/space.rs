//! Configuration space by way of the registers, and events.

use std::cell::RefCell;
use std::rc::Rc;

use cellblock_channel::memory::create_shared;
use cellblock_channel::register_page::{self, RegisterPage};
use cellblock_wire::device::{DriverQueue, DriverRegisters};

use crate::device::{Device, Event};
use crate::testing::virtio::{Driver, Edges, shared_ram};
use crate::testing::{Harness, Host};
use crate::virtio::interrupt::Raise;
use crate::virtio::spec::{interrupt, register};
use crate::virtio::{Chain, Identity, Inline, Interrupt, OneByOne, Ram, Serve, Space, Transport};

struct Idle;

impl Serve for Idle {
    fn begin(&mut self, _features: u64) {}

    fn serve(&mut self, _chain: &mut Chain<'_>) -> u32 {
        0
    }
}

type Device0 = Transport<Inline<OneByOne<Idle>>>;

struct Bench {
    driver: Driver<Harness<Device0>>,
    space: Space,
    interrupt: Interrupt,
    events: Rc<RefCell<Vec<Event>>>,
}

fn device(ram: &Ram, space: &Space) -> (Device0, Interrupt, Rc<RefCell<Vec<Event>>>) {
    let interrupt = Interrupt::new(Edges::default());
    let engine = Inline::servers(vec![Idle], interrupt.clone());
    let identity = Identity { id: 42, features: 0, queues: 1, queue_size: 16, config: space.clone() };
    let events = Rc::new(RefCell::new(vec![]));
    let sink = Rc::clone(&events);
    let device = Transport::new(identity, engine, ram.clone(), interrupt.clone());
    (device.on_event(move |event| sink.borrow_mut().push(event)), interrupt, events)
}

fn space() -> Space {
    Space::with_writable((1..=16).collect(), 4..8)
}

fn bench() -> Bench {
    let (ram, space) = (shared_ram().0, space());
    let (device, interrupt, events) = device(&ram, &space);
    Bench { driver: Driver::new(Harness::new(device), ram), space, interrupt, events }
}

#[test]
fn it_is_read_in_any_width() {
    let mut bench = bench();
    let mut read = |offset, size| bench.driver.host.read(0, register::CONFIG + offset, size);
    assert_eq!(read(0, 1), 1);
    assert_eq!(read(1, 2), 0x0302);
    assert_eq!(read(8, 8), 0x100f_0e0d_0c0b_0a09);
    assert_eq!(read(14, 4), 0x100f);
    assert_eq!(read(u64::MAX - register::CONFIG, 8), 0);
}

#[test]
fn a_change_has_a_new_generation_and_interrupts() {
    let mut bench = bench();
    bench.driver.begin(u64::MAX, 1, 16);
    let before = bench.driver.get(register::CONFIG_GENERATION);
    bench.space.set(0, &[1, 2, 99], &bench.interrupt);
    assert_ne!(bench.driver.get(register::CONFIG_GENERATION), before);
    assert_eq!(bench.driver.get(register::INTERRUPT_STATUS), interrupt::CONFIG_CHANGE);
    assert_eq!(bench.driver.host.read(0, register::CONFIG, 4), 0x0463_0201);
}

#[test]
fn writes_reach_what_is_writable() {
    let mut bench = bench();
    bench.driver.begin(u64::MAX, 1, 16);
    let mut write = |offset, size, data| bench.driver.host.write(0, register::CONFIG + offset, size, data);
    write(4, 4, 0xddcc_bbaa);
    write(5, 1, 0x77);
    write(3, 2, 0xffff);
    write(7, 2, 0xffff);
    write(8, 8, u64::MAX);
    write(u64::MAX - register::CONFIG, 8, 0);
    assert_eq!(bench.driver.host.read(0, register::CONFIG, 8), 0xddcc_77aa_0403_0201);
    assert_eq!(*bench.events.borrow(), [Event::ConfigWritten, Event::ConfigWritten]);
    assert_eq!(bench.driver.get(register::CONFIG_GENERATION), 0, "the driver knows");
    bench.driver.reset();
    assert_eq!(bench.driver.host.read(0, register::CONFIG, 8), 0x0807_0605_0403_0201);
}

#[test]
fn events_are_passed_on() {
    let mut bench = bench();
    bench.driver.host.event(Event::Host);
    bench.driver.host.event(Event::Balloon { pages: 7 });
    bench.driver.host.event(Event::Resize { port: 1, columns: 80, rows: 25 });
    let expected = [Event::Balloon { pages: 7 }, Event::Resize { port: 1, columns: 80, rows: 25 }];
    assert_eq!(*bench.events.borrow(), expected, "the transport's own are not");
}

#[test]
fn a_successor_has_what_was_written_and_tells_of_changes() {
    let mut bench = bench();
    bench.driver.begin(u64::MAX, 1, 16);
    bench.driver.host.write(0, register::CONFIG + 4, 4, 0x4433_2211);
    for changed in [false, true] {
        if changed {
            bench.space.set(0, &[9], &bench.interrupt);
        }
        let before = bench.driver.get(register::CONFIG_GENERATION);
        bench.driver.set(register::INTERRUPT_ACK, 3);
        let saved = bench.driver.host.saved();
        let space = space();
        let (mut successor, interrupt, _) = device(&bench.driver.ram, &space);
        successor.restore(&saved).unwrap();
        (bench.space, bench.interrupt) = (space, interrupt);
        bench.driver.host = Harness::new(successor);
        assert_eq!(bench.driver.host.read(0, register::CONFIG + 4, 4), 0x4433_2211);
        let told = bench.driver.get(register::INTERRUPT_STATUS) & interrupt::CONFIG_CHANGE != 0;
        assert_eq!((told, bench.driver.get(register::CONFIG_GENERATION) != before), (changed, changed));
    }
}

/// One stood in its place that showed other bytes: that is told when it comes, and when it goes, even if the device itself never
/// changed any. What is read in two halves, before and after, is not taken for whole.
#[test]
fn a_stand_in_is_told_of_when_it_comes_and_when_it_goes() {
    let mut bench = bench();
    bench.driver.host.device.begin(1);
    bench.driver.begin(u64::MAX, 1, 16);
    let saved = bench.driver.host.saved();
    let [desc, driver, used] = Driver::<Harness<Device0>>::areas(0);
    let registers = DriverRegisters {
        status: 15,
        driver_features: bench.driver.features,
        queues: vec![DriverQueue { size: 16, desc, driver, device: used, ready: true }],
        ..DriverRegisters::default()
    };
    let mut seen = vec![bench.driver.get(register::CONFIG_GENERATION)];
    for (incarnation, bytes, saved) in
        [(6, vec![0; 16], None), (7, (1..=16).collect(), Some(&saved)), (8, vec![0; 16], None)]
    {
        let space = Space::with_writable(bytes, 4..8);
        let (mut successor, ..) = device(&bench.driver.ram, &space);
        successor.begin(incarnation);
        successor.reconstruct(&registers, saved.map(|saved| &saved[..])).unwrap();
        bench.driver.host = Harness::new(successor);
        let told = bench.driver.get(register::INTERRUPT_STATUS) & interrupt::CONFIG_CHANGE;
        assert_eq!(told, interrupt::CONFIG_CHANGE, "{incarnation}");
        let generation = bench.driver.get(register::CONFIG_GENERATION);
        assert!(!seen.contains(&generation), "{generation:#x} of {seen:x?}");
        seen.push(generation);
    }
}

/// A line without an end, and the guest's page.
struct Shown(RegisterPage);

impl Raise for Shown {
    fn raise(&self) {}

    fn page(&self) -> Option<&RegisterPage> {
        Some(&self.0)
    }
}

#[test]
fn what_the_guest_finds_is_the_predecessors_until_that_is_gone() {
    let (ram, map) = (shared_ram().0, create_shared("registers", register_page::BYTES).unwrap().map);
    let page = RegisterPage::new(map);
    let device = |incarnation, bytes: Vec<u8>| {
        let interrupt = Interrupt::new(Shown(page.clone()));
        let engine = Inline::servers(vec![Idle], interrupt.clone());
        let config = Space::fixed(bytes);
        let identity = Identity { id: 42, features: 0, queues: 1, queue_size: 16, config: config.clone() };
        let mut device = Transport::new(identity, engine, ram.clone(), interrupt.clone());
        device.begin(incarnation);
        (device, config, interrupt)
    };
    let shown = || (page.get(register::CONFIG), page.get(register::CONFIG_GENERATION));
    let (first, config, interrupt) = device(1, vec![1; 4]);
    let mut driver = Driver::new(Harness::new(first), ram.clone());
    driver.begin(u64::MAX, 1, 16);
    config.set(0, &[2; 4], &interrupt);
    assert_eq!(shown(), (0x0202_0202, 1));

    let (mut second, ..) = device(2, vec![3; 4]);
    second.quiesce();
    second.restore(&driver.host.saved()).unwrap();
    assert_eq!(shown(), (0x0202_0202, 1));
    page.clear_bits(register::INTERRUPT_STATUS, u32::MAX);
    second.resume();
    assert_eq!(shown(), (0x0303_0303, 0x1_0002));
    assert_ne!(page.get(register::INTERRUPT_STATUS) & interrupt::CONFIG_CHANGE, 0);
}

#[test]
fn the_largest_device_has_room_in_the_state_page() {
    let ram = shared_ram().0;
    let interrupt = Interrupt::new(Edges::default());
    let engine = Inline::servers((0..16).map(|_| Idle).collect(), interrupt.clone());
    let config = Space::with_writable(vec![0; 64], 0..16);
    let identity = Identity { id: 42, features: 0, queues: 16, queue_size: 16, config };
    let device = Transport::new(identity, engine, ram, interrupt);
    // Panics if it overflows.
    let saved = Harness::new(device).saved();
    assert!(saved.len() > 16 * 28);
}
