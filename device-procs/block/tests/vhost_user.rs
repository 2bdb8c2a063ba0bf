//! A disk whose front end is another VMM: in a real worker process, over vhost-user, under the serve program of that mode.
#![allow(clippy::unwrap_used, clippy::panic, unreachable_pub)] // Helpers beside the tests.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;

use cellblock_block::spec::{QUEUE_SIZE, feature as block, status};
use cellblock_sdk::testing::process::{Program, Supervised, Wanted};
use cellblock_sdk::testing::vhost_user::{Remote, connection, driver, in_flight};
use cellblock_sdk::testing::virtio::{Driver, Edges, RAM_BYTES, shared_ram};
use cellblock_sdk::testing::{Harness, Host};
use cellblock_sdk::virtio::engine::Engine;
use cellblock_sdk::virtio::queue::{Layout, Position, Virtqueue};
use cellblock_sdk::virtio::spec::{device_id, feature};
use cellblock_sdk::virtio::{Interrupt, Piece, Ram, Transport};
use cellblock_wire::control::FromWorker;
use cellblock_wire::device::{BlockConfig, DeviceConfig, Role};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::process::Signal;

mod probes;
use probes::*;

fn start(config: &BlockConfig) -> (Supervised, UnixStream) {
    let image = tempfile::tempfile().unwrap();
    image.set_len(config.sectors * 512).unwrap();
    start_on(config, image)
}

/// A disk's worker on `image`, and its front end's end of the connection.
fn start_on(config: &BlockConfig, image: File) -> (Supervised, UnixStream) {
    let (stream, role, theirs) = connection();
    let extras = vec![(role, theirs), (Role::Image, image.into()), in_flight()];
    let program = include_bytes!(concat!(env!("OUT_DIR"), "/worker.start.bpf"));
    let program = Program::find("block", env!("CARGO_BIN_EXE_block"), program);
    let config = DeviceConfig::Block(config.clone());
    let wanted = Wanted { config, lanes: 1, poll_max_us: 0, pipes: false, nonblocking: false };
    (Supervised::start_with(&program, &wanted, extras).unwrap(), stream)
}

type Disk = Driver<Harness<Transport<Remote>>>;

fn disk(config: &BlockConfig) -> (Disk, Edges, Supervised, OwnedFd) {
    let (worker, stream) = start(config);
    let (ram, _, memory) = shared_ram();
    let (driver, edges) = driver(stream, device_id::BLOCK, QUEUE_SIZE, (ram, &memory));
    (driver, edges, worker, memory)
}

#[test]
fn every_request_does_what_it_says() {
    let (mut driver, _, _worker, _) = disk(&config());
    every_request(&mut driver);
    driver.reset();
    scattered_buffers(&mut driver);
    driver.reset();
    indirect(&mut driver);
}

#[test]
fn requests_that_make_no_sense_fail_alone() {
    let (mut driver, _, _worker, _) = disk(&config());
    bad_requests(&mut driver);
    driver.reset();
    bad_buffers(&mut driver);
}

#[test]
fn queues_that_make_no_sense_are_told() {
    let (mut driver, _, _worker, _) = disk(&config());
    broken_queues(&mut driver);
}

#[test]
fn signals_come_when_they_are_wanted() {
    let (mut driver, edges, _worker, _) = disk(&config());
    event_index(&mut driver, |_| edges.take());
}

#[test]
fn a_crowd_of_requests_is_served_in_order() {
    many_requests(&mut disk(&config()).0, 200);
}

#[test]
fn the_configuration_is_the_disks() {
    let (mut driver, _, _worker, _) = disk(&BlockConfig { queues: 3, ..config() });
    assert_eq!(driver.offered() & (block::MQ | feature::VERSION_1), block::MQ | feature::VERSION_1);
    assert_eq!(driver.host.read(0, 0x100, 8), SECTORS);
    assert_eq!(driver.host.read(0, 0x100 + 34, 2), 3);
}

#[test]
fn it_ends_with_its_front_end() {
    let (driver, _, mut worker, _) = disk(&config());
    drop(driver);
    assert_eq!(worker.ended().unwrap().code(), Some(0));
}

#[test]
fn a_front_end_that_makes_no_sense_is_told_off() {
    let (mut worker, mut stream) = start(&config());
    stream.write_all(&[0xff; 12]).unwrap();
    let FromWorker::Refused { reason } = worker.message().unwrap() else { panic!("no reason") };
    assert!(reason.contains("broke the protocol"), "{reason}");
    assert_eq!(worker.ended().unwrap().code(), Some(1));
}

#[test]
fn a_front_end_that_goes_in_mid_message_is_gone() {
    let (mut worker, mut stream) = start(&config());
    stream.write_all(&[1, 0, 0, 0, 1]).unwrap();
    drop(stream);
    assert!(worker.ended().unwrap().code().is_some());
}

#[test]
fn memory_that_shrinks_ends_the_worker_alone() {
    let (mut worker, stream) = start(&config());
    let memory = memfd_create("ram", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&memory, RAM_BYTES).unwrap();
    let piece = Piece { address: 0, bytes: RAM_BYTES, offset: 0 };
    let ram = Ram::lent(vec![(piece, memory.try_clone().unwrap())]).unwrap();
    let mut remote = Remote::connect(stream, &memory, Interrupt::new(Edges::default()));
    let layout = Layout { size: 16, desc: 0x1_0000, driver: 0x1_4000, device: 0x1_8000 };
    let queue = Virtqueue::new(&layout, 16, ram, feature::VERSION_1, Position::Start).unwrap();
    remote.describe(0, &queue, 0).unwrap();
    ftruncate(&memory, 0).unwrap();
    remote.kick(0);
    assert_eq!(worker.ended().unwrap().signal(), Some(Signal::BUS.as_raw()));
}

#[test]
fn memory_may_change_and_queues_stop_and_go_on() {
    let image = tempfile::tempfile().unwrap();
    image.set_len(SECTORS * 512).unwrap();
    let (_worker, stream) = start_on(&config(), image.try_clone().unwrap());
    let (ram, _, memory) = shared_ram();
    let (mut driver, _) = driver(stream, device_id::BLOCK, QUEUE_SIZE, (ram, &memory));
    driver.begin(ALL, 1, 16);
    for round in 0..20 {
        assert_eq!(write(&mut driver, round, &pattern(round as u8, 512)), status::OK);
        let remote = driver.host.device.engine();
        match round % 3 {
            0 => remote.lend(&memory),
            1 => remote.pause(0),
            _ => assert_eq!(remote.restart(0), round as u32 + 1, "its position is what was done"),
        }
    }
    for sector in 0..20 {
        let mut bytes = [0; 512];
        image.read_exact_at(&mut bytes, sector * 512).unwrap();
        assert_eq!(bytes[..], pattern(sector as u8, 512));
    }
}

#[test]
fn a_reset_forgets_all_queues() {
    let (mut driver, _, _worker, _) = disk(&config());
    driver.begin(ALL, 1, 16);
    for sector in 0..3 {
        assert_eq!(write(&mut driver, sector, &pattern(1, 512)), status::OK);
    }
    assert_eq!(driver.host.device.engine().restart(0), 3);
    assert_eq!(driver.host.device.engine().reset(0), 0);
    driver.reset();
    driver.begin(ALL, 1, 16);
    assert_eq!(write(&mut driver, 0, &pattern(2, 512)), status::OK);
}

/// The record says where the queue was, not the front end, which has lost count.
#[test]
fn a_successor_goes_on_with_what_its_predecessor_recorded() {
    let image = tempfile::tempfile().unwrap();
    image.set_len(SECTORS * 512).unwrap();
    let (ram, _, memory) = shared_ram();
    let (first, stream) = start_on(&config(), image.try_clone().unwrap());
    let (mut before, _) = driver(stream, device_id::BLOCK, QUEUE_SIZE, (ram.clone(), &memory));
    let (inflight, record) = before.host.device.engine().record();
    before.begin(ALL, 1, 16);
    for sector in 0..5 {
        assert_eq!(write(&mut before, sector, &pattern(sector as u8, 512)), status::OK);
    }
    drop(first);
    let (_second, stream) = start_on(&config(), image.try_clone().unwrap());
    let mut remote = Remote::connect(stream, &memory, Interrupt::new(Edges::default()));
    remote.go_on_with(&inflight, &record);
    let areas = Driver::<Harness<Transport<Remote>>>::areas(0);
    let [desc, driver_area, device_area] = areas;
    let layout = Layout { size: 16, desc, driver: driver_area, device: device_area };
    let queue = Virtqueue::new(&layout, 16, ram, feature::VERSION_1, Position::Start).unwrap();
    remote.describe(0, &queue, 0).unwrap();
    assert_eq!(remote.restart(0), 5, "nothing was done again");
}
