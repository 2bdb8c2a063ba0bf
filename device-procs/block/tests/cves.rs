//! What other monitors' disks and transports were caught at: a test for each, named after the entry. What code that a guest gets to run in
//! a worker comes to is tried by `tests/e2e/tests/cves.rs`.
#![allow(clippy::unwrap_used, clippy::panic, unreachable_pub, dead_code)] // Tests; clippy knows only #[test] functions as such.

use std::fs;

use cellblock_block::Disk;
use cellblock_block::image::{Qcow2Image, RawImage};
use cellblock_block::request::Requests;
use cellblock_block::spec::{request, status};
use cellblock_sdk::testing::virtio::{DATA, Driver, Edges, Segment, shared_ram};
use cellblock_sdk::testing::{Harness, ManualClock};
use cellblock_sdk::virtio::spec::register;
use cellblock_sdk::virtio::{Inline, Interrupt, OneByOne, Transport};

mod probes;
use probes::images::ImageFile;
use probes::*;

/// Where a board has the first virtio device's own registers.
const OWN_REGISTERS: u64 = 0xd000_0000;

type Rig = Driver<Harness<Transport<Inline<OneByOne<Requests<RawImage, ManualClock>>>>>>;

fn disk() -> Rig {
    let file = tempfile::tempfile().unwrap();
    file.set_len(SECTORS * 512).unwrap();
    let interrupt = Interrupt::new(Edges::default());
    let ram = shared_ram().0;
    let disk = Disk::new(&config(), &RawImage::new(file.into()), &ManualClock::default(), &interrupt);
    let engine = Inline::servers(disk.servers, interrupt.clone());
    Driver::new(Harness::new(Transport::new(disk.identity, engine, ram.clone(), interrupt)), ram)
}

/// Firecracker: a driver that moves a queue after the device was activated has it read and write beyond guest memory.
#[test]
fn cve_2026_5747_a_queue_that_is_ready_cannot_be_moved() {
    let mut driver = disk();
    driver.begin(ALL, 1, 16);
    let bytes = pattern(4, 512);
    for (register, value) in [
        (register::QUEUE_SIZE, 1 << 15),
        (register::QUEUE_DESC_LOW, 0xffff_f000),
        (register::QUEUE_DESC_HIGH, 0xffff_ffff),
        (register::QUEUE_DRIVER_LOW, 0xffff_fffe),
        (register::QUEUE_DRIVER_HIGH, 0xffff_ffff),
        (register::QUEUE_DEVICE_LOW, 0xffff_fffc),
        (register::QUEUE_DEVICE_HIGH, 0xffff_ffff),
        (register::QUEUE_READY, 1),
    ] {
        driver.set(register::QUEUE_SEL, 0);
        driver.set(register, value);
        assert_eq!(
            write(&mut driver, 0, &bytes),
            status::OK,
            "the queue is where it was, after {register:#x}"
        );
    }
    assert_eq!(driver.status(), 15, "and needs no reset");
}

/// QEMU: a request's buffer that is the device's own registers has it call itself while it is at work.
#[test]
fn cve_2024_3446_a_buffer_that_is_a_device_is_no_memory() {
    let mut driver = disk();
    driver.begin(ALL, 1, 16);
    for offset in [0, register::STATUS, register::QUEUE_NOTIFY] {
        let own = OWN_REGISTERS + offset;
        assert_eq!(ask(&mut driver, request::IN, 0, &[Segment::write(own, 512)]).0, status::IOERR);
        assert_eq!(ask(&mut driver, request::OUT, 0, &[Segment::read(own, 512)]).0, status::IOERR);
    }
    assert_eq!(driver.status(), 15, "no register was written");
    assert_eq!(write(&mut driver, 0, &pattern(4, 512)), status::OK);
}

/// QEMU's sound device: what a request says of its length is allocated, as often as the guest likes.
#[test]
fn cve_2026_3196_what_a_request_claims_is_not_allocated() {
    let mut driver = disk();
    driver.begin(ALL, 1, 16);
    let peak = || {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let before = peak();
    for _ in 0..64 {
        let huge = Segment::write(DATA, u32::MAX - 1024);
        assert_eq!(ask(&mut driver, request::IN, 0, &[huge]).0, status::IOERR);
    }
    // 64 times 4 GiB were claimed. Other tests of this process allocate beside.
    assert!(peak() - before < 1 << 20, "{} KiB more than {before}", peak() - before);
}

/// Cloud Hypervisor: an image names a file of the host's as what it is based on, and its guest reads that.
#[test]
fn cve_2026_27211_an_image_names_no_file_of_the_host() {
    let bytes = SECTORS * 512;
    let Some(file) = ImageFile::created(&["-u", "-b", "/etc/passwd", "-F", "raw", &bytes.to_string()]) else {
        return eprintln!("SKIP: no qemu-img to make such an image");
    };
    let refused = Qcow2Image::open(file.open(), vec![], true, bytes).map(drop).unwrap_err().to_string();
    assert!(refused.contains("is backed by \"/etc/passwd\""), "{refused}");
    // What it is told to be based on is what it reads, whatever the name in it.
    fs::write(file.beside("told"), pattern(9, 512)).unwrap();
    let told = fs::File::open(file.beside("told")).unwrap().into();
    let image = Qcow2Image::open(file.open(), vec![told], true, bytes).unwrap();
    let mut first = vec![0; 512];
    cellblock_block::image::Image::read(&image, 0, &mut first).unwrap();
    assert_eq!(first, pattern(9, 512));
}
