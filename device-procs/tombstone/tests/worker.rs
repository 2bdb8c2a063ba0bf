//! A tombstone in a real worker process, under its serve program.
#![allow(clippy::unwrap_used)] // Tests; clippy knows only #[test] functions as such.

use std::os::fd::OwnedFd;

use cellblock_sdk::testing::Host;
use cellblock_sdk::testing::process::{Noise, Program, Supervised, Wanted};
use cellblock_sdk::testing::virtio::{DATA, Driver, Segment, shared_ram};
use cellblock_sdk::virtio::spec::register;
use cellblock_wire::control::Fallback;
use cellblock_wire::device::{
    BlockConfig, CacheMode, DeviceConfig, DriverQueue, DriverRegisters, Format, Limits, Role,
};
use rustix::event::{EventfdFlags, eventfd};

fn start(config: DeviceConfig, extras: Vec<(Role, OwnedFd)>) -> Supervised {
    let start = include_bytes!(concat!(env!("OUT_DIR"), "/worker.start.bpf"));
    let program = Program::find("tombstone", env!("CARGO_BIN_EXE_tombstone"), start);
    let wanted = Wanted { config, lanes: 1, poll_max_us: 0, pipes: false, nonblocking: false };
    Supervised::start_with(&program, &wanted, extras).unwrap()
}

#[test]
fn it_answers_for_any_legacy_device() {
    for config in [DeviceConfig::Rtc, DeviceConfig::I8042, DeviceConfig::AcpiPower] {
        let mut worker = start(config, vec![]);
        worker.outb(0, 1);
        assert_eq!((worker.inb(0), worker.read(0, 0, 4)), (0xff, 0xffff_ffff));
        worker.replace().unwrap();
        assert_eq!(worker.inb(1), 0xff);
    }
}

#[test]
fn it_fails_the_requests_of_a_disk_whatever_was_left() {
    let config = BlockConfig {
        sectors: 64,
        block_size: 512,
        read_only: false,
        cache: CacheMode::Writeback,
        queues: 1,
        id: String::new(),
        format: Format::Raw,
        backing: 0,
        limits: Limits::default(),
    };
    let (ram, memory, fd) = shared_ram();
    let kick = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let worker = start(DeviceConfig::Block(config), vec![(memory, fd), (Role::QueueKick(0), kick)]);
    let mut driver = Driver::new(worker, ram);
    driver.begin(u64::MAX, 1, 16);
    let [desc, available, used] = Driver::<Supervised>::areas(0);
    driver.host.fallback = Fallback::Registers(DriverRegisters {
        status: 15,
        driver_features: driver.features,
        queues: vec![DriverQueue { size: 16, desc, driver: available, device: used, ready: true }],
        ..DriverRegisters::default()
    });
    let (mut noise, mut generations) = (Noise(3), vec![]);
    for round in 0..20 {
        driver.poke(DATA + 0x100, &[0xee]);
        driver.push(0, &[Segment::read(DATA, 16), Segment::write(DATA + 0x100, 1)]);
        if round % 2 == 0 {
            driver.kick(0);
        } else {
            // What came when nobody served, behind a state page that makes no sense.
            driver.host.poison_at_random(&mut noise).unwrap();
            driver.host.replace().unwrap();
            generations.push(driver.get(register::CONFIG_GENERATION));
        }
        assert_eq!((driver.wait_used(0).1, driver.peek(DATA + 0x100, 1)), (1, vec![1]));
    }
    // What it shows is never taken for what another did.
    generations.sort_unstable();
    generations.dedup();
    assert_eq!(generations.len(), 10, "{generations:x?}");
}
