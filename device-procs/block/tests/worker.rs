//! A disk in a real worker process: behind the ring, with its own threads, kicked by eventfds as KVM does it, under its
//! serve program.
#![allow(clippy::unwrap_used, unreachable_pub)] // Helpers beside the tests.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use cellblock_block::spec::{feature as block, request, status};
use cellblock_sdk::testing::process::{Program, Supervised, Wanted};
use cellblock_sdk::testing::virtio::{DATA, Driver, Segment, shared_ram};
use cellblock_sdk::virtio::spec::register;
use cellblock_wire::control::ToWorker;
use cellblock_wire::device::{BlockConfig, DeviceConfig, Role};
use rustix::event::{EventfdFlags, eventfd};

mod probes;
use probes::*;

/// A disk's worker, its image, and its queues' kicks.
struct Disk {
    driver: Driver<Supervised>,
    image: File,
    kicks: Vec<OwnedFd>,
}

fn program() -> Program {
    let start = include_bytes!(concat!(env!("OUT_DIR"), "/worker.start.bpf"));
    Program::find("block", env!("CARGO_BIN_EXE_block"), start)
}

fn wanted(config: &BlockConfig) -> Wanted {
    Wanted {
        config: DeviceConfig::Block(config.clone()),
        lanes: 1,
        poll_max_us: 0,
        pipes: false,
        nonblocking: false,
    }
}

fn start(config: &BlockConfig) -> Disk {
    let image = tempfile::tempfile().unwrap();
    image.set_len(config.sectors * 512).unwrap();
    let (ram, memory, fd) = shared_ram();
    let kicks: Vec<_> = (0..config.queues).map(|_| eventfd(0, EventfdFlags::CLOEXEC).unwrap()).collect();
    let mut extras = vec![(memory, fd), (Role::Image, image.try_clone().unwrap().into())];
    extras.extend((0..).zip(&kicks).map(|(n, kick)| (Role::QueueKick(n), kick.try_clone().unwrap())));
    let worker = Supervised::start_with(&program(), &wanted(config), extras).unwrap();
    Disk { driver: Driver::new(worker, ram), image, kicks }
}

fn fresh() -> Driver<Supervised> {
    start(&config()).driver
}

impl Disk {
    /// As KVM does it.
    fn kick(&self, queue: usize) {
        rustix::io::write(&self.kicks[queue], &1u64.to_ne_bytes()).unwrap();
    }

    fn on_disk(&self, sector: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.image.read_exact_at(&mut bytes, sector * 512).unwrap();
        bytes
    }
}

#[test]
fn it_is_found_and_negotiated_with() {
    let mut driver = fresh();
    negotiation(&mut driver);
    status_order(&mut driver);
    odd_accesses(&mut driver);
}

#[test]
fn every_request_does_what_it_says() {
    let mut driver = fresh();
    every_request(&mut driver);
    driver.reset();
    scattered_buffers(&mut driver);
    driver.reset();
    indirect(&mut driver);
}

#[test]
fn requests_that_make_no_sense_fail_alone() {
    bad_requests(&mut fresh());
    bad_buffers(&mut fresh());
}

#[test]
fn queues_that_make_no_sense_need_a_reset() {
    let mut driver = fresh();
    broken_queues(&mut driver);
    queue_registers(&mut driver);
}

#[test]
fn interrupts_come_when_they_are_wanted() {
    event_index(&mut fresh(), |driver| driver.host.pulses());
}

#[test]
fn a_crowd_of_requests_is_served_in_order() {
    many_requests(&mut fresh(), 200);
}

#[test]
fn kicks_need_no_register() {
    let mut disk = start(&config());
    disk.driver.begin(ALL, 1, 16);
    let served = disk.driver.host.counters().unwrap().served;
    for number in 0..20u64 {
        let mut header = request::OUT.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(number.to_le_bytes());
        disk.driver.poke(DATA, &header);
        disk.driver.poke(DATA + 0x1000, &pattern(number as u8, 512));
        let chain =
            [Segment::read(DATA, 16), Segment::read(DATA + 0x1000, 512), Segment::write(DATA + 0x100, 1)];
        disk.driver.push(0, &chain);
        disk.kick(0);
        let end = Instant::now() + Duration::from_secs(10);
        while disk.driver.used(0).is_none() {
            assert!(Instant::now() < end);
        }
        assert_eq!(disk.on_disk(number, 512), pattern(number as u8, 512));
    }
    let counters = disk.driver.host.counters().unwrap();
    assert_eq!(counters.served, served, "the register thread had no part in it");
    assert!(counters.interrupts > 0);
}

#[test]
fn queues_are_served_beside_each_other() {
    let mut disk = start(&BlockConfig { queues: 4, ..config() });
    assert_ne!(disk.driver.offered() & block::MQ, 0);
    disk.driver.begin(ALL, 4, 16);
    for queue in 0..4u16 {
        let at = DATA + 0x4000 * u64::from(queue);
        let mut header = request::OUT.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(u64::from(queue).to_le_bytes());
        disk.driver.poke(at, &header);
        disk.driver.poke(at + 0x1000, &pattern(queue as u8, 512));
        let chain = [Segment::read(at, 16), Segment::read(at + 0x1000, 512), Segment::write(at + 0x100, 1)];
        disk.driver.push(queue, &chain);
    }
    (0..4).rev().for_each(|queue| disk.kick(queue));
    for queue in 0..4u16 {
        disk.driver.wait_used(queue);
        assert_eq!(disk.on_disk(queue.into(), 512), pattern(queue as u8, 512));
    }
}

/// Killed with requests in the ring that nobody has looked at: the successor needs no kick to do them.
#[test]
fn a_successor_does_what_was_left() {
    let mut disk = start(&config());
    disk.driver.begin(ALL, 1, 16);
    assert_eq!(write(&mut disk.driver, 1, &pattern(1, 512)), status::OK);
    for number in 0..3u64 {
        let at = DATA + 0x2000 * (number + 1);
        let mut header = request::OUT.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend((10 + number).to_le_bytes());
        disk.driver.poke(at, &header);
        disk.driver.poke(at + 0x1000, &pattern(number as u8, 512));
        disk.driver.push(
            0,
            &[Segment::read(at, 16), Segment::read(at + 0x1000, 512), Segment::write(at + 0x100, 1)],
        );
    }
    disk.driver.host.pulses();
    disk.driver.host.replace().unwrap();
    for number in 0..3u64 {
        disk.driver.wait_used(0);
        assert_eq!(disk.on_disk(10 + number, 512), pattern(number as u8, 512));
    }
    assert!(disk.driver.host.pulses() > 0);
    assert_ne!(disk.driver.get(register::INTERRUPT_STATUS) & 1, 0);
    assert_eq!(disk.driver.status(), 15);
    assert_eq!(read(&mut disk.driver, 1, 512), (status::OK, pattern(1, 512)));
    // A predecessor's broken queue stays broken, until the driver resets.
    disk.driver.make_available(0, 99);
    disk.driver.kick(0);
    disk.driver.wait_needs_reset();
    disk.driver.host.replace().unwrap();
    disk.driver.wait_needs_reset();
    disk.driver.begin(ALL, 1, 16);
    assert_eq!(read(&mut disk.driver, 1, 512), (status::OK, pattern(1, 512)));
}

#[test]
fn killed_at_any_time_it_loses_nothing() {
    let mut disk = start(&config());
    for round in 0..8u64 {
        disk.driver.begin(ALL, 1, 64);
        for i in 0..16u64 {
            let at = DATA + 0x1_0000 + 0x1000 * i;
            let mut header = request::OUT.to_le_bytes().to_vec();
            header.extend([0; 4]);
            header.extend((2 * i).to_le_bytes());
            disk.driver.poke(at, &header);
            disk.driver.poke(at + 0x200, &pattern((round * 16 + i) as u8, 1024));
            let data = Segment::read(at + 0x200, 1024);
            disk.driver.push(0, &[Segment::read(at, 16), data, Segment::write(at + 0x100, 1)]);
        }
        disk.kick(0);
        std::thread::sleep(Duration::from_micros(60 * round));
        disk.driver.host.replace().unwrap();
        for i in 0..16u64 {
            disk.driver.wait_used(0);
            assert_eq!(disk.driver.peek(DATA + 0x1_0000 + 0x1000 * i + 0x100, 1), [status::OK]);
            assert_eq!(disk.on_disk(2 * i, 1024), pattern((round * 16 + i) as u8, 1024));
        }
        assert_eq!(disk.driver.used(0), None, "nothing is used twice");
    }
}

/// Queues are made by the register thread and dropped by their own: all want the allocator at a time.
#[test]
fn resets_in_a_row_are_survived() {
    let mut disk = start(&BlockConfig { queues: 8, ..config() });
    for _ in 0..400 {
        disk.driver.begin(ALL, 8, 16);
    }
    assert_eq!(write(&mut disk.driver, 0, &pattern(1, 512)), status::OK);
}

#[test]
fn a_quit_ends_it_in_order() {
    let mut disk = start(&config());
    disk.driver.begin(ALL, 1, 16);
    disk.driver.host.control.send_message(&ToWorker::Quit, &[]).unwrap();
    assert_eq!(disk.driver.host.ended().unwrap().code(), Some(0));
}

#[test]
fn a_grant_that_lacks_something_is_refused() {
    let (_, memory, fd) = shared_ram();
    let image = || OwnedFd::from(tempfile::tempfile().unwrap());
    let kick = || eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let refused = |extras| {
        let error = Supervised::start_with(&program(), &wanted(&config()), extras).map(|_| ()).unwrap_err();
        error.to_string()
    };
    let all =
        || vec![(memory, fd.try_clone().unwrap()), (Role::Image, image()), (Role::QueueKick(0), kick())];
    let without = |role: Role| all().into_iter().filter(|(other, _)| *other != role).collect::<Vec<_>>();
    assert!(refused(without(memory)).contains("lacks guest memory"));
    assert!(refused(without(Role::Image)).contains("lacks the disk's image"));
    assert!(refused(without(Role::QueueKick(0))).contains("lacks the kicks of a queue"));
    let mut more = all();
    more.push((Role::QueueKick(1), kick()));
    assert!(refused(more).contains("QueueKick(1)"), "no more than it needs");
    let mut unsealed = without(memory);
    let open = rustix::fs::memfd_create("ram", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
    unsealed.push((memory, open));
    assert!(refused(unsealed).contains("seals"));
}
