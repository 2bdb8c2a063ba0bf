//! A disk in this process, over a file, and over an image that fails.
#![allow(clippy::unwrap_used, clippy::panic, unreachable_pub)] // Tests; clippy knows only #[test] functions as such.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use cellblock_block::Disk;
use cellblock_block::image::{Image, RawImage};
use cellblock_block::request::Requests;
use cellblock_block::spec::{WRITEBACK, feature as block, request, status};
use cellblock_sdk::testing::conformance::conforms;
use cellblock_sdk::testing::virtio::{DATA, Driver, Edges, RAM_BYTES, Segment, shared_ram};
use cellblock_sdk::testing::{Harness, Host, ManualClock};
use cellblock_sdk::virtio::spec::{feature, register};
use cellblock_sdk::virtio::{Inline, Interrupt, OneByOne, Transport};
use cellblock_wire::device::{BlockConfig, Bucket, CacheMode, Limits};
use proptest::prelude::*;

mod probes;
use probes::*;

type Rig<I> = Driver<Harness<Transport<Inline<OneByOne<Requests<I, ManualClock>>>>>>;

fn disk<I: Image + Clone>(config: &BlockConfig, image: &I) -> (Rig<I>, Edges) {
    disk_at(config, image, &ManualClock::default())
}

fn disk_at<I: Image + Clone>(config: &BlockConfig, image: &I, clock: &ManualClock) -> (Rig<I>, Edges) {
    let edges = Edges::default();
    let interrupt = Interrupt::new(edges.clone());
    let ram = shared_ram().0;
    let disk = Disk::new(config, image, clock, &interrupt);
    let engine = Inline::servers(disk.servers, interrupt.clone());
    let device = Transport::new(disk.identity, engine, ram.clone(), interrupt);
    (Driver::new(Harness::new(device), ram), edges)
}

fn file() -> RawImage {
    let file = tempfile::tempfile().unwrap();
    file.set_len(SECTORS * 512).unwrap();
    RawImage::new(file.into())
}

fn fresh() -> Rig<RawImage> {
    disk(&config(), &file()).0
}

#[test]
fn it_conforms() {
    conforms(&mut fresh(), &conforming());
}

#[test]
fn it_is_found_and_negotiated_with() {
    negotiation(&mut fresh());
    status_order(&mut fresh());
    odd_accesses(&mut fresh());
}

#[test]
fn every_request_does_what_it_says() {
    every_request(&mut fresh());
    scattered_buffers(&mut fresh());
    indirect(&mut fresh());
}

#[test]
fn requests_that_make_no_sense_fail_alone() {
    bad_requests(&mut fresh());
    bad_buffers(&mut fresh());
}

#[test]
fn queues_that_make_no_sense_need_a_reset() {
    broken_queues(&mut fresh());
    queue_registers(&mut fresh());
}

#[test]
fn interrupts_come_when_they_are_wanted() {
    let (mut driver, edges) = disk(&config(), &file());
    event_index(&mut driver, move |_| edges.take());
}

#[test]
fn indices_wrap() {
    many_requests(&mut fresh(), 65_536 / 16 + 10);
}

#[test]
fn a_read_only_disk_is_never_written() {
    let config = BlockConfig { read_only: true, ..config() };
    let (mut driver, _) = disk(&config, &Log::default());
    assert_ne!(driver.offered() & block::RO, 0);
    assert_eq!(driver.offered() & (block::DISCARD | block::WRITE_ZEROES), 0);
    driver.begin(ALL, 1, 16);
    assert_eq!(write(&mut driver, 0, &[1; 512]), status::IOERR);
    for kind in [request::DISCARD, request::WRITE_ZEROES] {
        assert_eq!(ask(&mut driver, kind, 0, &[Segment::read(DATA, 16)]).0, status::IOERR);
    }
    assert_eq!(read(&mut driver, 0, 512).0, status::OK);
    assert_eq!(driver.status(), 15, "no reset is needed");
}

#[test]
fn several_queues_are_offered_and_served() {
    let (mut driver, _) = disk(&BlockConfig { queues: 3, ..config() }, &file());
    assert_ne!(driver.offered() & block::MQ, 0);
    driver.begin(ALL, 3, 16);
    for queue in [2, 0, 1] {
        driver.poke(DATA, &[0; 16]);
        driver.poke(DATA, &request::FLUSH.to_le_bytes());
        driver.poke(DATA + 0x100, &[0xee]);
        driver.push(queue, &[Segment::read(DATA, 16), Segment::write(DATA + 0x100, 1)]);
        driver.kick(queue);
        driver.wait_used(queue);
        assert_eq!(driver.peek(DATA + 0x100, 1), [status::OK]);
    }
}

/// Blocks of 4096 bytes: what is not whole blocks is refused.
#[test]
fn large_blocks_are_kept_whole() {
    let (mut driver, _) = disk(&BlockConfig { block_size: 4096, ..config() }, &file());
    driver.begin(ALL, 1, 16);
    assert_eq!(write(&mut driver, 8, &pattern(1, 4096)), status::OK);
    assert_eq!(write(&mut driver, 8, &pattern(1, 512)), status::IOERR);
    assert_eq!(write(&mut driver, 4, &pattern(1, 4096)), status::IOERR);
}

/// An image that notes what is done to it, and fails when told so.
#[derive(Debug, Clone, Default)]
struct Log {
    done: Rc<RefCell<Vec<String>>>,
    fail: Rc<RefCell<bool>>,
}

impl Log {
    fn note(&self, what: String) -> io::Result<()> {
        if *self.fail.borrow() {
            return Err(io::Error::other("as told"));
        }
        self.done.borrow_mut().push(what);
        Ok(())
    }

    fn take(&self) -> Vec<String> {
        self.done.take()
    }
}

impl Image for Log {
    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.note(format!("read {offset} {}", into.len()))
    }

    fn write(&self, offset: u64, from: &[u8], stable: bool) -> io::Result<()> {
        self.note(format!("write {offset} {}{}", from.len(), if stable { " stable" } else { "" }))
    }

    fn flush(&self) -> io::Result<()> {
        self.note("flush".into())
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.note(format!("discard {offset} {length}"))
    }

    fn zero(&self, offset: u64, length: u64, unmap: bool) -> io::Result<bool> {
        self.note(format!("zero {offset} {length} {unmap}")).map(|()| false)
    }
}

#[test]
fn a_flush_means_what_the_cache_mode_says() {
    for (cache, accepted, expected) in [
        (CacheMode::Writeback, true, &["write 0 512", "flush"][..]),
        (CacheMode::Writeback, false, &["write 0 512 stable", "flush"]),
        (CacheMode::Direct, true, &["write 0 512", "flush"]),
        (CacheMode::Unsafe, true, &["write 0 512"]),
        (CacheMode::Unsafe, false, &["write 0 512"]),
    ] {
        let image = Log::default();
        let (mut driver, _) = disk(&BlockConfig { cache, ..config() }, &image);
        driver.begin(if accepted { block::FLUSH } else { 0 }, 1, 16);
        assert_eq!(write(&mut driver, 0, &[1; 512]), status::OK);
        assert_eq!(ask(&mut driver, request::FLUSH, 0, &[]).0, status::OK);
        assert_eq!(image.take(), expected, "{cache:?} {accepted}");
    }
}

/// §5.2.5, `VIRTIO_BLK_F_CONFIG_WCE`: the driver chooses whether a completed write waits for a flush, at any time.
#[test]
fn the_driver_chooses_when_writes_are_stable() {
    let image = Log::default();
    let (mut driver, _) = disk(&config(), &image);
    assert_ne!(driver.offered() & block::CONFIG_WCE, 0);
    let at = register::CONFIG + WRITEBACK as u64;
    let choose = |driver: &mut Rig<Log>, choice| driver.host.write(0, at, 1, choice);
    driver.begin(block::FLUSH | block::CONFIG_WCE, 1, 16);
    assert_eq!(driver.host.read(0, at, 1), 1, "at first they wait");
    for (choice, expected) in [(1, "write 0 512"), (0, "write 0 512 stable"), (1, "write 0 512")] {
        choose(&mut driver, choice);
        assert_eq!(driver.host.read(0, at, 1), choice);
        assert_eq!(write(&mut driver, 0, &[1; 512]), status::OK);
        assert_eq!(image.take(), [expected], "{choice}");
    }
    // Discards, too.
    choose(&mut driver, 0);
    let mut segment = 0u64.to_le_bytes().to_vec();
    segment.extend([8, 0, 0, 0, 0, 0, 0, 0]);
    driver.poke(DATA + 0x1000, &segment);
    let (told, _) = ask(&mut driver, request::DISCARD, 0, &[Segment::read(DATA + 0x1000, 16)]);
    assert_eq!((told, image.take()), (status::OK, vec!["discard 0 4096".to_owned(), "flush".to_owned()]));
    // A reset undoes it; a driver without flushes has no choice (§5.2.5.2); one that did not ask for it neither.
    driver.begin(block::FLUSH | block::CONFIG_WCE, 1, 16);
    assert_eq!(driver.host.read(0, at, 1), 1);
    driver.begin(block::CONFIG_WCE, 1, 16);
    assert_eq!(driver.host.read(0, at, 1), 0);
    assert_eq!(write(&mut driver, 0, &[1; 512]), status::OK);
    assert_eq!(image.take(), ["write 0 512 stable"]);
    driver.begin(block::FLUSH, 1, 16);
    choose(&mut driver, 0);
    assert_eq!(write(&mut driver, 0, &[1; 512]), status::OK);
    assert_eq!(image.take(), ["write 0 512"]);
    // Where it would mean nothing it is not offered.
    for config in
        [BlockConfig { read_only: true, ..config() }, BlockConfig { cache: CacheMode::Unsafe, ..config() }]
    {
        assert_eq!(disk(&config, &image).0.offered() & block::CONFIG_WCE, 0);
    }
}

/// What a disk moves in ten seconds of its clock, in bytes and requests, when its driver always has four requests of
/// `length` bytes waiting in each of `queues` queues.
fn moved(limits: Limits, queues: u16, length: u32) -> (f64, f64) {
    const STEP: u64 = 5_000_000;
    let clock = ManualClock::default();
    let (mut driver, _) = disk_at(&BlockConfig { limits, queues, ..config() }, &Log::default(), &clock);
    driver.begin(ALL, queues, 16);
    driver.poke(DATA, &[0; 16]);
    let chain =
        [Segment::read(DATA, 16), Segment::write(DATA + 0x1000, length), Segment::write(DATA + 0x100, 1)];
    let (mut done, mut measured) = (0u64, 0u64);
    for queue in 0..queues {
        for _ in 0..4 {
            driver.push(queue, &chain);
        }
        driver.kick(queue);
    }
    // The burst is spent in the first seconds.
    for now in 0..4000 {
        for queue in 0..queues {
            while driver.used(queue).is_some() {
                done += 1;
                driver.push(queue, &chain);
            }
            driver.kick(queue);
        }
        if now == 2000 {
            measured = done;
        }
        clock.advance(STEP);
    }
    let requests = (done - measured) as f64;
    (requests * f64::from(length) / 10.0, requests / 10.0)
}

#[test]
fn limits_are_kept() {
    let bucket = |per_second, burst| Some(Bucket { per_second, burst });
    let near = |found: f64, wanted: f64| assert!((found / wanted - 1.0).abs() < 0.1, "{found}, not {wanted}");
    for (queues, length) in [(1, 4096), (3, 4096), (1, 512 << 10), (2, 1 << 20)] {
        // Also where one request is more than a second's bytes.
        let bytes = Limits { bytes: bucket(500_000, 100_000), operations: None };
        near(moved(bytes, queues, length).0, 500_000.0);
        let operations = Limits { bytes: None, operations: bucket(200, 50) };
        near(moved(operations, queues, length).1, 200.0);
    }
    // The lesser of both.
    let both = Limits { bytes: bucket(1 << 20, 4096), operations: bucket(100, 1) };
    near(moved(both, 1, 4096).1, 100.0);
    near(moved(both, 1, 128 << 10).0, f64::from(1 << 20));
}

/// What was saved up may go at once, and no more than that.
#[test]
fn a_burst_is_what_it_says() {
    let clock = ManualClock::default();
    let limits = Limits { bytes: None, operations: Some(Bucket { per_second: 10, burst: 5 }) };
    let (mut driver, _) = disk_at(&BlockConfig { limits, ..config() }, &Log::default(), &clock);
    driver.begin(ALL, 1, 64);
    driver.poke(DATA, &[0; 16]);
    driver.poke(DATA, &request::FLUSH.to_le_bytes());
    let burst = |driver: &mut Rig<Log>| {
        for _ in 0..8 {
            driver.push(0, &[Segment::read(DATA, 16), Segment::write(DATA + 0x100, 1)]);
        }
        driver.kick(0);
        (0..).take_while(|_| driver.used(0).is_some()).count()
    };
    // One more begins when nothing is left, but nothing is owed either.
    assert_eq!(burst(&mut driver), 6);
    assert_eq!(burst(&mut driver), 0);
    clock.advance(60_000_000_000);
    assert_eq!(burst(&mut driver), 6);
}

#[test]
fn a_host_that_cannot_zero_gets_zeroes_written() {
    let image = Log::default();
    let (mut driver, _) = disk(&config(), &image);
    driver.begin(ALL, 1, 16);
    let mut segment = 4u64.to_le_bytes().to_vec();
    segment.extend(1024u32.to_le_bytes());
    segment.extend(1u32.to_le_bytes());
    driver.poke(DATA + 0x1000, &segment);
    let (told, _) = ask(&mut driver, request::WRITE_ZEROES, 0, &[Segment::read(DATA + 0x1000, 16)]);
    assert_eq!(told, status::OK);
    assert_eq!(image.take(), ["zero 2048 524288 true", "write 2048 262144", "write 264192 262144"]);
}

#[test]
fn a_host_that_fails_is_an_io_error() {
    let image = Log::default();
    let (mut driver, _) = disk(&config(), &image);
    driver.begin(ALL, 1, 16);
    *image.fail.borrow_mut() = true;
    assert_eq!(write(&mut driver, 0, &[1; 512]), status::IOERR);
    assert_eq!(read(&mut driver, 0, 512).0, status::IOERR);
    assert_eq!(ask(&mut driver, request::FLUSH, 0, &[]).0, status::IOERR);
    *image.fail.borrow_mut() = false;
    assert_eq!(read(&mut driver, 0, 512).0, status::OK);
}

/// `O_DIRECT` wants aligned buffers, offsets and lengths, whatever the guest's are.
#[test]
fn a_direct_image_is_read_and_written() {
    use std::os::unix::fs::OpenOptionsExt;
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
    let path = folder.path().join("disk");
    let opened =
        std::fs::File::options().read(true).write(true).create_new(true).custom_flags(direct).open(&path);
    let Ok(file) = opened else {
        eprintln!("SKIP: the file system of {} has no O_DIRECT", path.display());
        return;
    };
    file.set_len(SECTORS * 512).unwrap();
    let config = BlockConfig { cache: CacheMode::Direct, block_size: 4096, ..config() };
    let (mut driver, _) = disk(&config, &RawImage::new(file.into()));
    driver.begin(ALL, 1, 16);
    let bytes = pattern(3, 520 << 10);
    assert_eq!(write(&mut driver, 8, &bytes), status::OK);
    assert_eq!(read(&mut driver, 8, bytes.len()), (status::OK, bytes.clone()));
    assert_eq!(ask(&mut driver, request::FLUSH, 0, &[]).0, status::OK);
    // Buffers of the guest that the host does not take as they lie.
    driver.poke(DATA, &request::IN.to_le_bytes());
    driver.poke(DATA + 8, &8u64.to_le_bytes());
    let odd = [
        Segment::write(DATA + 0x1004, 4096),
        Segment::write(DATA + 0x3001, 100),
        Segment::write(DATA + 0x5000, 3996),
    ];
    let chain = [&[Segment::read(DATA, 16)][..], &odd, &[Segment::write(DATA + 0x100, 1)]].concat();
    driver.push(0, &chain);
    driver.kick(0);
    assert_eq!(driver.wait_used(0).1, 8193);
    let found = odd.map(|piece| driver.peek(piece.address, piece.length as usize)).concat();
    assert_eq!(found, bytes[..8192]);
    assert_eq!(std::fs::read(&path).unwrap()[4096..4096 + bytes.len()], bytes);
}

/// A file that is shorter than the disk that it was: no signal, an error.
#[test]
fn an_image_that_shrinks_is_an_io_error() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(SECTORS * 512).unwrap();
    let image = RawImage::new(file.try_clone().unwrap().into());
    let (mut driver, _) = disk(&config(), &image);
    driver.begin(ALL, 1, 16);
    file.set_len(512).unwrap();
    assert_eq!(read(&mut driver, 0, 1024).0, status::IOERR);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever stands in the rings and descriptors, the device comes back, and works after a reset.
    #[test]
    fn any_descriptors_are_survived(
        table in proptest::collection::vec((0u64..RAM_BYTES + 4096, 0u32..10_000, 0u16..8, 0u16..10), 8),
        heads in proptest::collection::vec(0u16..10, 1..8),
        kind in 0u32..16,
    ) {
        let (mut driver, _) = disk(&config(), &Log::default());
        driver.begin(ALL, 1, 8);
        let base = Rig::<Log>::areas(0)[0];
        driver.poke(DATA, &kind.to_le_bytes());
        for (index, (address, length, flags, next)) in (0..).zip(table) {
            let segment = Segment { address, length, writable: flags & 2 != 0 };
            driver.descriptor(base, index, segment, flags & 5, next);
        }
        for head in heads {
            driver.make_available(0, head);
            driver.kick(0);
        }
        driver.begin(ALL, 1, 8);
        prop_assert_eq!(write(&mut driver, 0, &[1; 512]), status::OK);
    }

    /// Whatever is written to the registers, they answer.
    #[test]
    fn any_register_writes_are_survived(
        writes in proptest::collection::vec((0u64..0x120, any::<u32>(), 0u32..20), 1..200),
    ) {
        let (mut driver, _) = disk(&config(), &Log::default());
        for (offset, value, small) in writes {
            driver.set(offset & !3, if value & 1 == 0 { value } else { small });
            driver.get(offset & !3);
        }
        driver.begin(feature::VERSION_1, 1, 8);
        prop_assert_eq!(write(&mut driver, 0, &[1; 512]), status::OK);
    }
}

/// What a predecessor saved: registers come back, and what was not used is done.
#[test]
fn a_successor_goes_on() {
    let image = file();
    let (mut old, _) = disk(&config(), &image);
    old.begin(ALL, 1, 16);
    assert_eq!(write(&mut old, 5, &pattern(6, 512)), status::OK);
    let saved = old.host.saved();
    for bytes in [&saved[..saved.len() - 1], &[], &[0x56, 2], &[1, 1]] {
        assert!(restored(&image, &old, bytes).is_err());
    }
    let edges = restored(&image, &old, &saved).unwrap();
    assert_eq!(edges.take(), 1, "an interrupt that may have been lost");
}

fn restored(image: &RawImage, old: &Rig<RawImage>, saved: &[u8]) -> Result<Edges, String> {
    use cellblock_sdk::device::Device;
    let edges = Edges::default();
    let interrupt = Interrupt::new(edges.clone());
    let disk = Disk::new(&config(), image, &ManualClock::default(), &interrupt);
    let engine = Inline::servers(disk.servers, interrupt.clone());
    let mut device = Transport::new(disk.identity, engine, old.ram.clone(), interrupt);
    device.restore(saved).map_err(|error| error.to_string())?;
    Ok(edges)
}
