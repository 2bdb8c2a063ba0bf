//! A disk in a real worker process: behind the ring, with its own threads, kicked by eventfds as KVM does it, under its
//! serve program.
#![allow(clippy::unwrap_used, unreachable_pub)] // Helpers beside the tests.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::{Duration, Instant};

use cellblock_block::spec::{feature as block, request, status};
use cellblock_sdk::testing::conformance::conforms;
use cellblock_sdk::testing::process::{Noise, Program, Supervised, Wanted};
use cellblock_sdk::testing::virtio::{DATA, Driver, Segment, shared_ram};
use cellblock_sdk::virtio::spec::register;
use cellblock_wire::control::{Fallback, ToWorker};
use cellblock_wire::device::{
    BlockConfig, Bucket, CacheMode, DeviceConfig, DriverQueue, DriverRegisters, Format, IN_FLIGHT_BYTES,
    Limits, Role,
};
use rustix::event::{EventfdFlags, eventfd};

mod probes;
use probes::images::{ImageFile, open};
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
    start_with(config, image, vec![]).unwrap()
}

/// With a disk in `image`, which is based on `backing`.
fn start_with(config: &BlockConfig, image: File, backing: Vec<OwnedFd>) -> std::io::Result<Disk> {
    let (ram, memory, fd) = shared_ram();
    let kicks: Vec<_> = (0..config.queues).map(|_| eventfd(0, EventfdFlags::CLOEXEC).unwrap()).collect();
    let mut extras = vec![(memory, fd), (Role::Image, image.try_clone().unwrap().into())];
    extras.extend((0..).zip(&kicks).map(|(n, kick)| (Role::QueueKick(n), kick.try_clone().unwrap())));
    extras.extend((0..).map(Role::Backing).zip(backing));
    let worker = Supervised::start_with(&program(), &wanted(config), extras)?;
    Ok(Disk { driver: Driver::new(worker, ram), image, kicks })
}

fn qcow2() -> BlockConfig {
    BlockConfig { format: Format::Qcow2, ..config() }
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
fn it_conforms() {
    conforms(&mut fresh(), &conforming());
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

/// All of what a driver may do to a disk in a qcow2 image, under the worker's policy.
#[test]
fn a_qcow2_image_is_served() {
    let file = ImageFile::fresh(SECTORS * 512);
    let mut disk = start_with(&qcow2(), file.open().into(), vec![]).unwrap();
    negotiation(&mut disk.driver);
    disk.driver.reset();
    every_request(&mut disk.driver);
    disk.driver.reset();
    scattered_buffers(&mut disk.driver);
    disk.driver.reset();
    bad_requests(&mut disk.driver);
    bad_buffers(&mut disk.driver);
    many_requests(&mut disk.driver, 50);
    // No driver that flushes: each write is stable.
    disk.driver.begin(0, 1, 16);
    assert_eq!(write(&mut disk.driver, 900, &pattern(7, 512)), status::OK);
    disk.driver.host.replace().unwrap();
    assert_eq!(read(&mut disk.driver, 900, 512), (status::OK, pattern(7, 512)));
    drop(disk);
    file.check(0);
}

/// Past the page cache, where whole blocks are wanted; also of the base, in which the last block is not whole.
#[test]
fn a_qcow2_image_is_served_past_the_page_cache() {
    let size = (SECTORS * 512).to_string();
    let Some(file) = ImageFile::created(&[&size]) else { return };
    std::fs::write(file.beside("base.raw"), pattern(1, 66_000)).unwrap();
    file.make("disk.qcow2", &["-b", "base.raw", "-F", "raw", &size]);
    let direct = |path: &std::path::Path, writable| {
        let flags = rustix::fs::OFlags::DIRECT.bits() as i32;
        File::options().read(true).write(writable).custom_flags(flags).open(path)
    };
    let (Ok(image), Ok(base)) = (direct(&file.path, true), direct(&file.beside("base.raw"), false)) else {
        eprintln!("SKIP: the file system of {} has no O_DIRECT", file.path.display());
        return;
    };
    let config = BlockConfig { backing: 1, cache: CacheMode::Direct, ..qcow2() };
    let mut disk = start_with(&config, image, vec![base.into()]).unwrap();
    disk.driver.begin(ALL, 1, 16);
    let mut expected = pattern(1, 66_000);
    expected.resize(70_144, 0);
    assert_eq!(read(&mut disk.driver, 0, expected.len()), (status::OK, expected.clone()));
    assert_eq!(write(&mut disk.driver, 127, &pattern(2, 1024)), status::OK);
    expected[127 * 512..129 * 512].copy_from_slice(&pattern(2, 1024));
    assert_eq!(read(&mut disk.driver, 0, expected.len()), (status::OK, expected));
    assert_eq!(ask(&mut disk.driver, request::FLUSH, 0, &[]).0, status::OK);
    drop(disk);
    file.check(0);
}

/// Four queues write at a time, in clusters that none of them has written before.
#[test]
fn queues_share_a_qcow2_image() {
    let config = BlockConfig { queues: 4, ..qcow2() };
    let file = ImageFile::fresh(SECTORS * 512);
    let mut disk = start_with(&config, file.open().into(), vec![]).unwrap();
    disk.driver.begin(ALL, 4, 16);
    let at = |queue: u16| DATA + 0x1_0000 * u64::from(queue);
    for round in 0..30u64 {
        for queue in 0..4u16 {
            let sector = (round * 4 + u64::from(queue)) * 16;
            let mut header = request::OUT.to_le_bytes().to_vec();
            header.extend([0; 4]);
            header.extend(sector.to_le_bytes());
            disk.driver.poke(at(queue), &header);
            disk.driver.poke(at(queue) + 0x1000, &pattern(sector as u8, 8192));
            let data = Segment::read(at(queue) + 0x1000, 8192);
            let chain = [Segment::read(at(queue), 16), data, Segment::write(at(queue) + 0x100, 1)];
            disk.driver.push(queue, &chain);
        }
        (0..4).for_each(|queue| disk.kick(queue));
        for queue in 0..4u16 {
            disk.driver.wait_used(queue);
            assert_eq!(disk.driver.peek(at(queue) + 0x100, 1), [status::OK]);
        }
    }
    for sector in (0..30 * 4 * 16).step_by(16) {
        assert_eq!(
            read(&mut disk.driver, sector, 8192),
            (status::OK, pattern(sector as u8, 8192)),
            "{sector}"
        );
    }
    drop(disk);
    file.check(0);
}

/// Killed while it allocates clusters: what was completed is there, what was not is done again, and the image is whole.
#[test]
fn killed_at_any_time_a_qcow2_image_stays_whole() {
    let file = ImageFile::fresh(SECTORS * 512);
    let mut disk = start_with(&qcow2(), file.open().into(), vec![]).unwrap();
    for round in 0..10u64 {
        disk.driver.begin(ALL, 1, 64);
        let place = |i: u64| (round * 16 + i) * 12 % (SECTORS - 2);
        for i in 0..16u64 {
            let at = DATA + 0x1_0000 + 0x1000 * i;
            let mut header = request::OUT.to_le_bytes().to_vec();
            header.extend([0; 4]);
            header.extend(place(i).to_le_bytes());
            disk.driver.poke(at, &header);
            disk.driver.poke(at + 0x200, &pattern((round * 16 + i) as u8, 1024));
            let data = Segment::read(at + 0x200, 1024);
            disk.driver.push(0, &[Segment::read(at, 16), data, Segment::write(at + 0x100, 1)]);
        }
        disk.kick(0);
        std::thread::sleep(Duration::from_micros(100 * round));
        disk.driver.host.replace().unwrap();
        for i in 0..16u64 {
            disk.driver.wait_used(0);
            assert_eq!(disk.driver.peek(DATA + 0x1_0000 + 0x1000 * i + 0x100, 1), [status::OK], "{i}");
        }
        for i in 0..16u64 {
            let expected = pattern((round * 16 + i) as u8, 1024);
            assert_eq!(read(&mut disk.driver, place(i), 1024), (status::OK, expected), "round {round}, {i}");
        }
    }
    drop(disk);
    // A cluster may be counted and not yet used when it dies, once each time.
    file.check(20);
}

#[test]
fn what_is_granted_must_be_what_was_told() {
    let size = (SECTORS * 512).to_string();
    let Some(file) = ImageFile::created(&[&size]) else { return };
    let base = file.beside("base.raw");
    std::fs::write(&base, pattern(1, 4096)).unwrap();
    let refused = |config: BlockConfig, backing: Vec<OwnedFd>| {
        start_with(&config, file.open().into(), backing).map(|_| ()).unwrap_err().to_string()
    };
    assert!(refused(BlockConfig { sectors: 8, ..qcow2() }, vec![]).contains("announced were 4096"));
    assert!(refused(BlockConfig { backing: 1, ..qcow2() }, vec![]).contains("lacks a backing file"));
    assert!(refused(qcow2(), vec![open(&base, false)]).contains("Backing(0)"), "no more than it needs");
    let config = || BlockConfig { backing: 1, ..qcow2() };
    assert!(refused(config(), vec![open(&base, true)]).contains("not open for reading alone"));
    assert!(refused(config(), vec![open(&base, false)]).contains("is not backed by another"));
    assert!(
        refused(BlockConfig { backing: 1, ..self::config() }, vec![open(&base, false)])
            .contains("a raw image has no")
    );
    file.make("disk.qcow2", &["-b", "base.raw", "-F", "raw", &size]);
    let message = refused(qcow2(), vec![]);
    assert!(message.contains("is backed by") && message.contains("base.raw"), "{message}");
    let mut disk = start_with(&config(), file.open().into(), vec![open(&base, false)]).unwrap();
    disk.driver.begin(ALL, 1, 16);
    assert_eq!(write(&mut disk.driver, 1, &pattern(2, 512)), status::OK);
    let expected = [&pattern(1, 512)[..], &pattern(2, 512), &pattern(1, 4096)[1024..]].concat();
    assert_eq!(read(&mut disk.driver, 0, 4096), (status::OK, expected));
}

/// The real clock: a third of a second's requests, less the burst, take that long.
#[test]
fn limits_are_kept_on_the_hosts_clock() {
    let operations = Some(Bucket { per_second: 300, burst: 10 });
    let limits = Limits { bytes: None, operations };
    let mut disk = start(&BlockConfig { limits, ..config() });
    disk.driver.begin(ALL, 1, 256);
    let flush = |disk: &mut Disk| {
        disk.driver.poke(DATA, &request::FLUSH.to_le_bytes());
        disk.driver.push(0, &[Segment::read(DATA, 16), Segment::write(DATA + 0x100, 1)]);
    };
    for _ in 0..110 {
        flush(&mut disk);
    }
    let before = Instant::now();
    disk.kick(0);
    for _ in 0..110 {
        disk.driver.wait_used(0);
    }
    // 100 at 300 a second. A busy host may take longer, but never less.
    let took = before.elapsed();
    assert!(took >= Duration::from_millis(300), "{took:?}");
}

/// What the guest reads from the page is what the worker would have answered, for every register and all of configuration space.
fn compare_page(disk: &mut Disk, when: &str) {
    let page = disk.driver.host.registers.clone().unwrap();
    for offset in (0..register::CONFIG + 128).step_by(4) {
        let (shown, told) = (page.get(offset), disk.driver.get(offset));
        assert_eq!(shown, told, "{when}: register {offset:#x}");
    }
}

#[test]
fn registers_can_be_read_without_asking_it() {
    let mut disk = start(&config());
    let page = disk.driver.host.registers.clone().unwrap();
    let cause = || page.get(register::INTERRUPT_STATUS);
    compare_page(&mut disk, "at power-on");
    for select in [1, 7, 0] {
        disk.driver.set(register::DEVICE_FEATURES_SEL, select);
        disk.driver.set(register::QUEUE_SEL, select);
        compare_page(&mut disk, "after a selection");
    }
    disk.driver.begin(ALL, 1, 16);
    compare_page(&mut disk, "once the driver has begun");
    assert_eq!(cause(), 0);
    assert_eq!(write(&mut disk.driver, 1, &pattern(1, 512)), status::OK);
    let end = Instant::now() + Duration::from_secs(10);
    while disk.driver.host.pulses() == 0 {
        assert!(Instant::now() < end);
    }
    compare_page(&mut disk, "after a request");
    assert_eq!(cause(), 1);
    // By the supervisor, as the guest acknowledges it.
    page.clear_bits(register::INTERRUPT_STATUS, 1);
    assert_eq!((cause(), disk.driver.get(register::INTERRUPT_STATUS)), (0, 0));
    // A broken queue: the other cause, and the page tells that a reset is needed; and a reset takes it all back.
    disk.driver.make_available(0, 99);
    disk.driver.kick(0);
    disk.driver.wait_needs_reset();
    assert_eq!(cause() & 2, 2);
    compare_page(&mut disk, "when it needs a reset");
    disk.driver.reset();
    assert_eq!(cause(), 0);
    compare_page(&mut disk, "after a reset");
    // A successor's driver is told that an interrupt may have been lost.
    disk.driver.begin(ALL, 1, 16);
    disk.driver.host.replace().unwrap();
    assert_eq!(cause(), 1);
    compare_page(&mut disk, "after a restart");
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

/// What a supervisor has seen a driver write that has begun with queue 0.
fn seen(driver: &Driver<Supervised>, size: u16) -> DriverRegisters {
    let [desc, available, used] = Driver::<Supervised>::areas(0);
    DriverRegisters {
        status: 15,
        driver_features: driver.features,
        queues: vec![DriverQueue { size: size.into(), desc, driver: available, device: used, ready: true }],
        ..DriverRegisters::default()
    }
}

/// Not even a reset: the registers are the supervisor's, and the queue is in order.
#[test]
fn a_poisoned_state_page_costs_a_disk_nothing() {
    let (mut disk, mut noise, mut lost) = (start(&config()), Noise(1), 0);
    disk.driver.begin(u64::MAX, 1, 16);
    disk.driver.host.fallback = Fallback::Registers(seen(&disk.driver, 16));
    for round in 0..40u8 {
        assert_eq!(write(&mut disk.driver, 3, &[round; 512]), status::OK);
        disk.driver.host.poison_at_random(&mut noise).unwrap();
        disk.driver.host.replace().unwrap();
        lost += u32::from(disk.driver.host.state_lost.is_some());
        assert_eq!(read(&mut disk.driver, 3, 512), (status::OK, vec![round; 512]));
    }
    assert!(lost > 10, "{lost} of 40");
}

/// What a record says of a request with which two workers have ended: design's poison.
#[test]
fn a_request_during_which_two_workers_ended_is_an_io_error_and_the_disk_goes_on() {
    let config = config();
    let (ram, memory, fd) = shared_ram();
    let image = tempfile::tempfile().unwrap();
    image.set_len(config.sectors * 512).unwrap();
    let kick = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let record = cellblock_channel::memory::create_replies("in flight", IN_FLIGHT_BYTES).unwrap().fd;
    let extras = vec![
        (memory, fd),
        (Role::Image, image.into()),
        (Role::QueueKick(0), kick),
        (Role::InFlight, record.try_clone().unwrap()),
    ];
    let mut driver = Driver::new(Supervised::start_with(&program(), &wanted(&config), extras).unwrap(), ram);
    driver.begin(u64::MAX, 1, 16);
    // The first descriptor is in flight, and was begun with twice.
    rustix::io::pwrite(&record, &[1, 2], 16).unwrap();
    driver.poke(DATA, &[0; 16]);
    driver.poke(DATA + 0x100, &[0xee]);
    let chain = [Segment::read(DATA, 16), Segment::write(DATA + 0x200, 512), Segment::write(DATA + 0x100, 1)];
    assert_eq!(driver.push(0, &chain), 0);
    driver.host.replace().unwrap();
    assert_eq!((driver.wait_used(0), driver.peek(DATA + 0x100, 1)), ((0, 0), vec![status::IOERR]));
    assert_eq!(driver.host.counters().unwrap().failed, 1);
    assert_eq!(write(&mut driver, 3, &[5; 512]), status::OK);
    assert_eq!(read(&mut driver, 3, 512), (status::OK, vec![5; 512]));
}
