//! The tombstone of each device in the test's process.
#![allow(clippy::unwrap_used)] // Tests; clippy knows only #[test] functions as such.

use cellblock_sdk::device::{Access, Device};
use cellblock_sdk::testing::Harness;
use cellblock_sdk::testing::virtio::{DATA, Driver, Edges, Segment, shared_ram};
use cellblock_sdk::virtio::spec::register;
use cellblock_sdk::virtio::{Inline, Interrupt, Ram, Transport};
use cellblock_tombstone::{Refusing, Silent, identity};
use cellblock_wire::device::{
    BalloonConfig, BlockConfig, CacheMode, ConsoleConfig, DeviceConfig, DriverQueue, DriverRegisters,
    EntropyConfig, Format, Limits, NetConfig, VsockConfig,
};
use proptest::prelude::*;

const SIZE: u16 = 16;

fn block(queues: u16) -> DeviceConfig {
    DeviceConfig::Block(BlockConfig {
        sectors: 1000,
        block_size: 512,
        read_only: false,
        cache: CacheMode::Writeback,
        queues,
        id: String::new(),
        format: Format::Raw,
        backing: 0,
        limits: Limits::default(),
    })
}

fn net(pairs: u16) -> DeviceConfig {
    DeviceConfig::Net(NetConfig {
        mac: [2, 0, 0, 0, 0, 7],
        mtu: 1400,
        pairs,
        offloads: false,
        receive: Limits::default(),
        transmit: Limits::default(),
    })
}

fn console(ports: usize) -> DeviceConfig {
    DeviceConfig::Console(ConsoleConfig { ports: vec!["port".into(); ports], columns: 80, rows: 25 })
}

fn every_device() -> Vec<DeviceConfig> {
    let balloon = BalloonConfig { reporting: true, statistics: true, ..BalloonConfig::default() };
    vec![
        block(3),
        net(2),
        console(2),
        DeviceConfig::Entropy(EntropyConfig::default()),
        DeviceConfig::Balloon(balloon),
        DeviceConfig::Vsock(VsockConfig { cid: 9 }),
    ]
}

type Tombstone = Transport<Inline<Refusing>>;

fn tombstone(config: &DeviceConfig, driver: &DriverRegisters, ram: &Ram) -> Tombstone {
    let (identity, interrupt) = (identity(config, driver).unwrap(), Interrupt::new(Edges::default()));
    let queues = (0..identity.queues).collect();
    let engine = Inline::new(vec![(Refusing::new(config), queues)], interrupt.clone());
    Transport::new(identity, engine, ram.clone(), interrupt).in_order()
}

/// A driver that had begun with all queues when the device failed, and had made these chains available in them.
fn taken_over(config: &DeviceConfig, before: &[(u16, Vec<Segment>)]) -> Driver<Harness<Tombstone>> {
    let ram = shared_ram().0;
    // Before that anything that takes queues is as good as the device itself.
    let unborn = tombstone(config, &DriverRegisters::default(), &ram);
    let mut driver = Driver::new(Harness::new(unborn), ram.clone());
    driver.begin(u64::MAX, config.queues(), SIZE);
    let queue = |number| {
        let [desc, available, used] = Driver::<Harness<Tombstone>>::areas(number);
        DriverQueue { size: SIZE.into(), desc, driver: available, device: used, ready: true }
    };
    let registers = DriverRegisters {
        status: 15,
        driver_features: driver.features,
        queues: (0..config.queues()).map(queue).collect(),
        ..DriverRegisters::default()
    };
    for (queue, segments) in before {
        driver.push(*queue, segments);
    }
    let mut successor = tombstone(config, &registers, &ram);
    successor.reconstruct(&registers, None).unwrap();
    driver.host = Harness::new(successor);
    assert_eq!(driver.status(), 15);
    driver
}

fn write(driver: &Driver<Harness<Tombstone>>, at: u64) -> u8 {
    driver.peek(DATA + at, 1)[0]
}

#[test]
fn a_port_floats_high() {
    let mut silent = Silent;
    for size in [1, 2, 4, 8] {
        let access = Access { region: 0, offset: 3, size };
        silent.write(access, 0);
        assert_eq!(silent.read(access), u64::MAX);
    }
    assert!(silent.restore(&[1, 2, 3]).is_ok());
    assert!(identity(&DeviceConfig::Rtc, &DriverRegisters::default()).is_none());
}

#[test]
fn a_disk_fails_what_is_in_flight_and_what_comes() {
    let request =
        |at| vec![Segment::read(DATA, 16), Segment::write(DATA + 512, 512), Segment::write(DATA + at, 1)];
    let mut driver = taken_over(&block(2), &[(0, request(1024)), (1, request(1025))]);
    for (queue, at) in [(0, 1024), (1, 1025)] {
        assert_eq!(driver.used(queue), Some((0, 0)), "of the data nothing was written");
        assert_eq!(write(&driver, at), 1, "VIRTIO_BLK_S_IOERR");
    }
    for at in 0..40 {
        driver.push(1, &[Segment::read(DATA, 16), Segment::write(DATA + at, 1)]);
        driver.kick(1);
        assert_eq!((driver.used(1).unwrap().1, write(&driver, at)), (1, 1));
    }
    // No room for a status.
    driver.push(0, &[Segment::read(DATA, 16)]);
    driver.kick(0);
    assert_eq!(driver.used(0).unwrap().1, 0);
    let mut sectors = [0; 8];
    for (at, byte) in (0..).zip(&mut sectors) {
        *byte = driver.host.device.read(Access { region: 0, offset: 0x100 + at, size: 1 }) as u8;
    }
    assert_eq!(u64::from_le_bytes(sectors), 1000);
}

#[test]
fn a_driver_that_begins_anew_finds_what_it_had_agreed_to() {
    for config in every_device() {
        let mut driver = taken_over(&config, &[]);
        let agreed = driver.features;
        assert_eq!(driver.offered(), agreed, "{config:?}");
        driver.set(register::QUEUE_SEL, 0);
        assert_eq!(driver.get(register::QUEUE_SIZE_MAX), u32::from(SIZE));
        driver.begin(u64::MAX, config.queues(), SIZE);
        driver.push(0, &[Segment::read(DATA, 16), Segment::write(DATA + 64, 1)]);
        driver.kick(0);
        assert_eq!(driver.status(), 15);
    }
}

#[test]
fn packets_and_output_are_dropped_and_buffers_stay() {
    for (config, dropped, left) in
        [(net(2), [1, 3], [0, 2]), (console(2), [1, 5], [0, 4]), (block(1), [0, 0], [9, 9])]
    {
        let mut driver = taken_over(&config, &[]);
        for queue in dropped {
            driver.push(queue, &[Segment::read(DATA, 100)]);
            driver.kick(queue);
            assert_eq!(driver.used(queue).map(|(_, length)| length), Some(0), "{config:?}");
        }
        for queue in left.into_iter().filter(|queue| *queue < config.queues()) {
            driver.push(queue, &[Segment::write(DATA, 100)]);
            driver.kick(queue);
            assert_eq!(driver.used(queue), None, "{config:?}");
        }
    }
}

#[test]
fn a_control_command_of_the_network_fails_and_its_link_is_down() {
    let mut driver = taken_over(&net(2), &[]);
    driver.push(4, &[Segment::read(DATA, 4), Segment::write(DATA + 64, 1)]);
    driver.kick(4);
    assert_eq!((driver.used(4).unwrap().1, write(&driver, 64)), (1, 1));
    let mut config =
        |offset: u64, size| driver.host.device.read(Access { region: 0, offset: 0x100 + offset, size });
    assert_eq!((config(5, 1), config(6, 2), config(8, 2), config(10, 2)), (7, 0, 2, 1400));
}

#[test]
fn an_entropy_request_brings_nothing_and_statistics_are_kept() {
    let mut driver = taken_over(&DeviceConfig::Entropy(EntropyConfig::default()), &[]);
    driver.push(0, &[Segment::write(DATA, 64)]);
    driver.kick(0);
    assert_eq!((driver.used(0), driver.peek(DATA, 64)), (Some((0, 0)), vec![0; 64]));
    let statistics = BalloonConfig { statistics: true, ..BalloonConfig::default() };
    let mut driver = taken_over(&DeviceConfig::Balloon(statistics), &[]);
    for (queue, used) in [(0, true), (1, true), (2, false)] {
        driver.push(queue, &[Segment::read(DATA, 4)]);
        driver.kick(queue);
        assert_eq!(driver.used(queue).is_some(), used);
    }
}

#[test]
fn a_socket_is_told_that_all_is_gone_and_what_wants_an_answer_gets_a_reset() {
    let events = (2, vec![Segment::write(DATA + 0x4000, 4)]);
    let mut driver = taken_over(&DeviceConfig::Vsock(VsockConfig { cid: 9 }), &[events.clone(), events]);
    driver.poke(DATA + 0x4000, &[0xff; 4]);
    assert_eq!(driver.used(2), Some((0, 4)), "the transport is reset");
    assert_eq!(driver.used(2), None, "once");
    let mut header: Vec<u8> = [9u64, 2].into_iter().flat_map(u64::to_le_bytes).collect();
    header.extend([1000u32, 80, 0].into_iter().flat_map(u32::to_le_bytes));
    header.extend([1u16, 1].into_iter().flat_map(u16::to_le_bytes));
    header.resize(44, 0);
    for room in [false, true] {
        if room {
            driver.push(0, &[Segment::write(DATA + 0x2000, 4096)]);
        }
        driver.poke(DATA, &header);
        driver.push(1, &[Segment::read(DATA, 44)]);
        driver.kick(1);
        assert_eq!(driver.used(1).unwrap().1, 0);
        assert_eq!(driver.used(0), room.then_some((0, 44)));
    }
    let answer = driver.peek(DATA + 0x2000, 44);
    assert_eq!(
        (answer[0], answer[8], &answer[16..20], &answer[20..24]),
        (2, 9, &80u32.to_le_bytes()[..], &1000u32.to_le_bytes()[..])
    );
    assert_eq!(answer[28..32], [1, 0, 3, 0]);
    // A reset is not answered, nor is what has no header.
    driver.push(0, &[Segment::write(DATA + 0x2000, 4096)]);
    driver.poke(DATA + 30, &[3, 0]);
    for length in [44, 43] {
        driver.push(1, &[Segment::read(DATA, length)]);
        driver.kick(1);
        assert_eq!((driver.used(1).unwrap().1, driver.used(0)), (0, None));
    }
}

prop_compose! {
    fn any_segment()(address in 0u64..0x90_0000, length in 0u32..5000, writable: bool) -> Segment {
        Segment { address, length, writable }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever a driver sends, it is answered, or the device needs a reset, after which it is as before.
    #[test]
    fn nothing_that_a_driver_sends_ends_it(
        which in 0usize..6,
        chains in proptest::collection::vec((0u16..7, proptest::collection::vec(any_segment(), 1..4)), 0..12),
    ) {
        let config = &every_device()[which];
        let mut driver = taken_over(config, &[]);
        for (queue, segments) in chains {
            let queue = queue % config.queues();
            driver.push(queue, &segments);
            driver.kick(queue);
        }
        driver.begin(u64::MAX, config.queues(), SIZE);
    }
}
