//! What a driver may ask of a disk, and what it must not: the same for a device in this process and one in a worker.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub)] // Helpers beside the tests; not all tests use all.

pub mod images;

use cellblock_block::spec::{HEADER_BYTES, QUEUE_SIZE, feature as block, request, status};
use cellblock_sdk::testing::Host;
use cellblock_sdk::testing::conformance;
use cellblock_sdk::testing::virtio::{DATA, Driver, INDIRECT, NEXT, RAM_BYTES, Segment};
use cellblock_sdk::virtio::spec::{feature, register, status as device_status};
use cellblock_wire::device::{BlockConfig, CacheMode, Format, Limits};

/// A disk of 2048 sectors.
pub const SECTORS: u64 = 2048;
/// All that a driver could accept.
pub const ALL: u64 = u64::MAX;

const HEADER: u64 = DATA;
const STATUS: u64 = DATA + 0x100;
const PAYLOAD: u64 = DATA + 0x1000;

pub fn config() -> BlockConfig {
    BlockConfig {
        sectors: SECTORS,
        block_size: 512,
        read_only: false,
        cache: CacheMode::Writeback,
        queues: 1,
        id: "a disk".into(),
        format: Format::Raw,
        backing: 0,
        limits: Limits::default(),
    }
}

/// What a driver finds of `config`.
pub fn conforming() -> conformance::Device<'static> {
    let features = block::SEG_MAX
        | block::BLK_SIZE
        | block::FLUSH
        | block::TOPOLOGY
        | block::CONFIG_WCE
        | block::DISCARD
        | block::WRITE_ZEROES;
    conformance::Device { id: 2, features, queues: 1, queue_size: QUEUE_SIZE, eager: &[0] }
}

pub fn pattern(seed: u8, length: usize) -> Vec<u8> {
    (0..length).map(|i| seed.wrapping_add((i / 7) as u8) ^ i as u8).collect()
}

/// A request's header in guest memory.
fn header<H: Host>(driver: &mut Driver<H>, kind: u32, sector: u64) -> Segment {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend(0u32.to_le_bytes());
    bytes.extend(sector.to_le_bytes());
    driver.poke(HEADER, &bytes);
    driver.poke(STATUS, &[0xee]);
    Segment::read(HEADER, HEADER_BYTES as u32)
}

/// Sends one request and waits: status and used length.
pub fn ask<H: Host>(driver: &mut Driver<H>, kind: u32, sector: u64, middle: &[Segment]) -> (u8, u32) {
    let mut chain = vec![header(driver, kind, sector)];
    chain.extend(middle);
    chain.push(Segment::write(STATUS, 1));
    let head = driver.push(0, &chain);
    driver.kick(0);
    let (id, length) = driver.wait_used(0);
    assert_eq!(id, u32::from(head));
    (driver.peek(STATUS, 1)[0], length)
}

pub fn write<H: Host>(driver: &mut Driver<H>, sector: u64, bytes: &[u8]) -> u8 {
    driver.poke(PAYLOAD, bytes);
    let middle = [Segment::read(PAYLOAD, bytes.len() as u32)];
    let (status, length) = ask(driver, request::OUT, sector, &middle);
    assert_eq!(length, 1, "of a write only the status is written");
    status
}

pub fn read<H: Host>(driver: &mut Driver<H>, sector: u64, length: usize) -> (u8, Vec<u8>) {
    driver.poke(PAYLOAD, &vec![0xaa; length]);
    let (status, used) = ask(driver, request::IN, sector, &[Segment::write(PAYLOAD, length as u32)]);
    if status == status::OK {
        assert_eq!(used as usize, length + 1);
    }
    (status, driver.peek(PAYLOAD, length))
}

fn ranges<H: Host>(driver: &mut Driver<H>, kind: u32, list: &[(u64, u32, u32)]) -> u8 {
    let mut bytes = vec![];
    for (sector, sectors, flags) in list {
        bytes.extend(sector.to_le_bytes());
        bytes.extend(sectors.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
    }
    driver.poke(PAYLOAD, &bytes);
    ask(driver, kind, 0, &[Segment::read(PAYLOAD, bytes.len() as u32)]).0
}

/// §3.1.1: registers, negotiation, configuration space.
pub fn negotiation<H: Host>(driver: &mut Driver<H>) {
    assert_eq!(driver.get(register::MAGIC_VALUE), 0x7472_6976);
    assert_eq!((driver.get(register::VERSION), driver.get(register::DEVICE_ID)), (2, 2));
    let offered = driver.offered();
    for wanted in [
        feature::VERSION_1,
        feature::EVENT_IDX,
        feature::INDIRECT_DESC,
        block::SEG_MAX,
        block::BLK_SIZE,
        block::FLUSH,
        block::TOPOLOGY,
        block::DISCARD,
        block::WRITE_ZEROES,
    ] {
        assert_ne!(offered & wanted, 0, "{wanted:#x} is not offered");
    }
    assert_eq!(offered & block::RO, 0);
    assert!(!driver.negotiate(offered & !feature::VERSION_1), "a legacy driver");
    assert!(!driver.negotiate(offered | 1 << 40), "a feature that was not offered");
    assert!(!driver.negotiate(offered | block::RO), "a feature that was not offered");
    assert!(driver.negotiate(offered));
    driver.set(register::DRIVER_FEATURES_SEL, 0);
    driver.set(register::DRIVER_FEATURES, 0);
    assert!(driver.add_queue(QUEUE_SIZE), "features are fixed by now");
    driver.run();
    assert_eq!(driver.status(), 15);

    assert_eq!(driver.host.read(0, 0x100, 8), SECTORS);
    assert_eq!(driver.host.read(0, 0x100, 2), SECTORS & 0xffff);
    assert_eq!(driver.host.read(0, 0x100 + 12, 4), 254, "seg_max");
    assert_eq!(driver.host.read(0, 0x100 + 20, 4), 512, "blk_size");
    assert_eq!(driver.host.read(0, 0x100 + 24, 1), 3, "physical_block_exp");
    assert_eq!(driver.host.read(0, 0x100 + 34, 2), 1, "num_queues");
    assert_eq!(driver.host.read(0, 0x100 + 36, 4), 1 << 21, "max_discard_sectors");
    assert_eq!(driver.host.read(0, 0x100 + 56, 1), 1, "write_zeroes_may_unmap");
    assert_eq!(driver.host.read(0, 0xfff, 1), 0, "past its end");
}

/// §2.1: bits are set in order, and only a reset clears them.
pub fn status_order<H: Host>(driver: &mut Driver<H>) {
    driver.reset();
    driver.set(register::STATUS, 15);
    assert_eq!(driver.status() & device_status::DRIVER_OK, 0, "without negotiation");
    assert!(driver.negotiate(feature::VERSION_1));
    driver.set(register::STATUS, 1);
    assert_eq!(driver.status(), 11, "bits are not cleared");
    // No register of a queue before FEATURES_OK.
    driver.reset();
    assert!(!driver.place_queue(0, 8, Driver::<H>::areas(0)));
    assert_eq!(driver.status() & device_status::DEVICE_NEEDS_RESET, 0);
}

/// Odd widths and places are answered, and do nothing.
pub fn odd_accesses<H: Host>(driver: &mut Driver<H>) {
    driver.begin(ALL, 1, 16);
    for (offset, size) in [(0x70, 1), (0x70, 2), (0x70, 8), (0x71, 4), (0xfe, 4), (0xff0, 8)] {
        driver.host.write(0, offset, size, 0);
        driver.host.read(0, offset, size);
    }
    driver.host.write(1, 0x70, 4, 0);
    assert_eq!(driver.host.read(1, 0x70, 4), 0xffff_ffff);
    assert_eq!(driver.status(), 15);
    assert_eq!(write(driver, 0, &pattern(1, 512)), status::OK);
}

/// Each kind of request does what it says.
pub fn every_request<H: Host>(driver: &mut Driver<H>) {
    driver.begin(ALL, 1, 64);
    let (small, large) = (pattern(3, 512), pattern(5, 600 << 10));
    assert_eq!(write(driver, 7, &small), status::OK);
    assert_eq!(write(driver, 100, &large), status::OK);
    assert_eq!(read(driver, 7, 512), (status::OK, small.clone()));
    assert_eq!(read(driver, 100, large.len()), (status::OK, large.clone()), "more than the bounce buffer");
    assert_eq!(read(driver, 8, 512), (status::OK, vec![0; 512]));
    assert_eq!(read(driver, SECTORS - 1, 512).0, status::OK);
    assert_eq!(ask(driver, request::FLUSH, 0, &[]), (status::OK, 1));
    assert_eq!(ask(driver, request::GET_ID, 0, &[Segment::write(PAYLOAD, 20)]), (status::OK, 21));
    assert_eq!(driver.peek(PAYLOAD, 20), b"a disk\0\0\0\0\0\0\0\0\0\0\0\0\0\0");

    assert_eq!(ranges(driver, request::WRITE_ZEROES, &[(100, 2, 0), (104, 2, 1)]), status::OK);
    let mut expected = large.clone();
    expected[..1024].fill(0);
    expected[4 * 512..6 * 512].fill(0);
    assert_eq!(read(driver, 100, large.len()), (status::OK, expected.clone()));
    assert_eq!(ranges(driver, request::DISCARD, &[(200, 8, 0)]), status::OK);
    let kept = read(driver, 100, 100 * 512).1;
    assert_eq!(kept, expected[..100 * 512], "beside the discarded range");
    assert_eq!(write(driver, 200, &small), status::OK, "a discarded range can be written again");
    assert_eq!(read(driver, 200, 512), (status::OK, small));
}

/// Buffers in odd pieces, and without the any-layout rules of old.
pub fn scattered_buffers<H: Host>(driver: &mut Driver<H>) {
    driver.begin(ALL, 1, 64);
    let bytes = pattern(9, 1024);
    driver.poke(PAYLOAD, &bytes);
    header(driver, request::OUT, 20);
    let pieces = [
        Segment::read(HEADER, 3),
        Segment::read(HEADER + 3, 13),
        Segment::read(PAYLOAD, 1),
        Segment::read(PAYLOAD + 1, 0),
        Segment::read(PAYLOAD + 1, 1023),
        Segment::write(STATUS, 1),
    ];
    driver.push(0, &pieces);
    driver.kick(0);
    driver.wait_used(0);
    assert_eq!(driver.peek(STATUS, 1), [status::OK]);
    // Status in the same buffer as the data.
    header(driver, request::IN, 20);
    driver.push(0, &[Segment::read(HEADER, 16), Segment::write(PAYLOAD + 0x2000, 1025)]);
    driver.kick(0);
    assert_eq!(driver.wait_used(0).1, 1025);
    assert_eq!(driver.peek(PAYLOAD + 0x2000, 1024), bytes);
    assert_eq!(driver.peek(PAYLOAD + 0x2000 + 1024, 1), [status::OK]);
}

/// §2.7.5.3: an indirect table.
pub fn indirect<H: Host>(driver: &mut Driver<H>) {
    driver.begin(feature::INDIRECT_DESC, 1, 16);
    assert_eq!(write(driver, 3, &pattern(2, 512)), status::OK);
    let first = header(driver, request::IN, 3);
    let table = DATA + 0x400;
    driver.descriptor(table, 0, first, NEXT, 2);
    driver.descriptor(table, 2, Segment::write(PAYLOAD, 512), NEXT, 1);
    driver.descriptor(table, 1, Segment::write(STATUS, 1), 0, 0);
    let ring = Driver::<H>::areas(0)[0];
    driver.descriptor(ring, 9, Segment::read(table, 48), INDIRECT, 0);
    driver.make_available(0, 9);
    driver.kick(0);
    assert_eq!(driver.wait_used(0), (9, 513));
    assert_eq!(driver.peek(PAYLOAD, 512), pattern(2, 512));
}

/// Requests that make no sense, in chains that do.
pub fn bad_requests<H: Host>(driver: &mut Driver<H>) {
    driver.begin(ALL, 1, 64);
    let buffer = |length| [Segment::write(PAYLOAD, length)];
    let source = |length| [Segment::read(PAYLOAD, length)];
    for (sector, length) in [
        (SECTORS, 512),
        (SECTORS - 1, 1024),
        (u64::MAX, 512),
        (u64::MAX >> 9, 512),
        (0, 511),
        (0, 513),
        (1, 1),
    ] {
        assert_eq!(ask(driver, request::IN, sector, &buffer(length)).0, status::IOERR, "{sector} {length}");
        assert_eq!(ask(driver, request::OUT, sector, &source(length)).0, status::IOERR, "{sector} {length}");
    }
    assert_eq!(ask(driver, request::IN, 0, &[]), (status::OK, 1), "nothing of it");
    for kind in [2, 3, 5, 6, 7, 9, 10, 12, 14, 99, u32::MAX] {
        assert_eq!(ask(driver, kind, 0, &buffer(512)).0, status::UNSUPP, "type {kind}");
    }
    assert_eq!(ask(driver, request::GET_ID, 0, &buffer(19)).0, status::IOERR);
    for kind in [request::DISCARD, request::WRITE_ZEROES] {
        assert_eq!(ranges(driver, kind, &[]), status::IOERR);
        assert_eq!(ask(driver, kind, 0, &source(15)).0, status::IOERR);
        assert_eq!(ranges(driver, kind, &[(0, 1, 0); 17]), status::IOERR, "more than announced");
        assert_eq!(ranges(driver, kind, &[(SECTORS - 1, 2, 0)]), status::IOERR);
        assert_eq!(ranges(driver, kind, &[(u64::MAX, u32::MAX, 0)]), status::IOERR);
        assert_eq!(ranges(driver, kind, &[(0, 1, 2)]), status::UNSUPP, "an unknown flag");
        assert_eq!(ranges(driver, kind, &[(0, 0, 0)]), status::OK);
    }
    assert_eq!(ranges(driver, request::DISCARD, &[(0, 1, 1)]), status::UNSUPP, "unmap is not for discard");
    assert_eq!(write(driver, 0, &pattern(4, 512)), status::OK);
    // One bad range, and none is done.
    assert_eq!(ranges(driver, request::WRITE_ZEROES, &[(0, 1, 0), (SECTORS, 1, 0)]), status::IOERR);
    assert_eq!(read(driver, 0, 512), (status::OK, pattern(4, 512)));
}

/// Buffers that are not in guest memory, or too small.
pub fn bad_buffers<H: Host>(driver: &mut Driver<H>) {
    driver.begin(ALL, 1, 64);
    for address in [RAM_BYTES, RAM_BYTES - 100, 1 << 40, u64::MAX - 511, u64::MAX] {
        assert_eq!(ask(driver, request::IN, 0, &[Segment::write(address, 512)]).0, status::IOERR);
        assert_eq!(ask(driver, request::OUT, 0, &[Segment::read(address, 512)]).0, status::IOERR);
    }
    assert_eq!(ask(driver, request::IN, 0, &[Segment::write(PAYLOAD, 0x8000_0000)]).0, status::IOERR, "huge");
    // No status, a status outside, half a header, no buffer at all: given back, nothing written.
    let first = header(driver, request::IN, 0);
    let outside = Segment::write(RAM_BYTES, 1);
    let empty = Segment::write(PAYLOAD, 0);
    for chain in [&[first][..], &[first, outside], &[empty], &[first, empty]] {
        let head = driver.push(0, chain);
        driver.kick(0);
        assert_eq!(driver.wait_used(0), (head.into(), 0), "{chain:?}");
    }
    let short = Segment::read(HEADER, 15);
    driver.push(0, &[short, Segment::write(STATUS, 1)]);
    driver.kick(0);
    driver.wait_used(0);
    assert_eq!(driver.peek(STATUS, 1), [status::IOERR]);
    assert_eq!(driver.status(), 15, "the queue itself is in order");
    assert_eq!(write(driver, 0, &pattern(4, 512)), status::OK);
}

/// Chains and rings that make no sense: the device needs a reset, and after it works.
pub fn broken_queues<H: Host>(driver: &mut Driver<H>) {
    type Break<H> = fn(&mut Driver<H>, u64);
    let breaks: [(&str, Break<H>); 10] = [
        ("a loop", |driver, table| {
            driver.descriptor(table, 0, Segment::read(HEADER, 16), NEXT, 1);
            driver.descriptor(table, 1, Segment::read(HEADER, 16), NEXT, 0);
            driver.make_available(0, 0);
        }),
        ("a descriptor that follows itself", |driver, table| {
            driver.descriptor(table, 0, Segment::read(HEADER, 0), NEXT, 0);
            driver.make_available(0, 0);
        }),
        ("a head outside", |driver, _| driver.make_available(0, 16)),
        ("a next outside", |driver, table| {
            driver.descriptor(table, 0, Segment::read(HEADER, 16), NEXT, 16);
            driver.make_available(0, 0);
        }),
        ("a readable buffer after a writable one", |driver, _| {
            driver.push(0, &[Segment::write(STATUS, 1), Segment::read(HEADER, 16)]);
        }),
        ("more than 2^32 bytes", |driver, _| {
            driver.push(0, &[Segment::read(HEADER, u32::MAX), Segment::read(HEADER, 2)]);
        }),
        ("an available index that jumps", |driver, _| driver.set_available(0, 17)),
        ("an indirect table inside another", |driver, table| {
            driver.descriptor(DATA, 0, Segment::read(DATA, 16), INDIRECT, 0);
            driver.descriptor(table, 0, Segment::read(DATA, 16), INDIRECT, 0);
            driver.make_available(0, 0);
        }),
        ("an indirect table of odd length, or outside", |driver, table| {
            driver.descriptor(table, 0, Segment::read(DATA, 17), INDIRECT, 0);
            driver.make_available(0, 0);
        }),
        ("an indirect table outside", |driver, table| {
            driver.descriptor(table, 0, Segment::read(RAM_BYTES, 16), INDIRECT, 0);
            driver.make_available(0, 0);
        }),
    ];
    for (what, broken) in breaks {
        driver.begin(ALL, 1, 16);
        broken(driver, Driver::<H>::areas(0)[0]);
        driver.kick(0);
        driver.wait_needs_reset();
        assert_ne!(driver.get(register::INTERRUPT_STATUS) & 2, 0, "{what}: the driver is told");
        assert_eq!(driver.used(0), None, "{what}");
        driver.kick(0);
        driver.reset();
        assert_eq!(driver.get(register::INTERRUPT_STATUS), 0, "{what}");
        driver.begin(ALL, 1, 16);
        assert_eq!(write(driver, 0, &pattern(4, 512)), status::OK, "after {what}");
    }
}

/// Queues whose registers make no sense do not become ready; a ready one does not change.
pub fn queue_registers<H: Host>(driver: &mut Driver<H>) {
    let good = Driver::<H>::areas(0);
    let [desc, drv, dev] = good;
    for (size, areas) in [
        (0, good),
        (3, good),
        (QUEUE_SIZE * 2, good),
        (16, [desc + 8, drv, dev]),
        (16, [desc, drv + 1, dev]),
        (16, [desc, drv, dev + 2]),
        (16, [0, drv, dev]),
        (16, [RAM_BYTES - 255, drv, dev]),
        (16, [desc, RAM_BYTES - 4, dev]),
        (16, [desc, drv, RAM_BYTES]),
        (16, [desc, drv, u64::MAX - 3]),
    ] {
        assert!(driver.negotiate(feature::VERSION_1));
        assert!(!driver.place_queue(0, size, areas), "{size} {areas:x?}");
        driver.wait_needs_reset();
    }
    assert!(driver.negotiate(feature::VERSION_1));
    assert!(!driver.place_queue(1, 16, good), "there is no queue 1");
    assert_eq!(driver.get(register::QUEUE_SIZE_MAX), 0);
    driver.begin(ALL, 1, 16);
    driver.set(register::QUEUE_SEL, 0);
    driver.set(register::QUEUE_DESC_LOW, 0x7000);
    driver.set(register::QUEUE_DEVICE_HIGH, 7);
    driver.set(register::QUEUE_SIZE, 1);
    assert_eq!(write(driver, 0, &pattern(4, 512)), status::OK, "it is where it was");
    // Made unready it can be placed anew.
    driver.set(register::QUEUE_READY, 0);
    assert_eq!(driver.get(register::QUEUE_READY), 0);
    assert!(driver.place_queue(0, 16, [desc, drv, dev]));
}

/// §2.7.7: with an event index there are only the interrupts that are asked for.
pub fn event_index<H: Host>(driver: &mut Driver<H>, mut edges: impl FnMut(&mut Driver<H>) -> u64) {
    driver.begin(feature::EVENT_IDX, 1, 64);
    edges(driver);
    driver.set_interrupts(0, 1, 2); // the flag means nothing now; at the third
    for number in 0..4 {
        assert_eq!(write(driver, number, &pattern(1, 512)), status::OK);
        // The interrupt comes after the used entry: answer an access first, behind which it is.
        let expected = u64::from(number == 2);
        let mut seen = edges(driver);
        for _ in 0..200 {
            if seen >= expected && expected > 0 {
                break;
            }
            std::thread::sleep(std::time::Duration::from_micros(100));
            seen += edges(driver);
        }
        assert_eq!(seen, expected, "at request {number}");
    }
    // Without it, the flag holds.
    driver.begin(0, 1, 64);
    edges(driver);
    driver.set_interrupts(0, 1, 0);
    assert_eq!(write(driver, 0, &pattern(1, 512)), status::OK);
    std::thread::sleep(std::time::Duration::from_millis(5));
    assert_eq!(edges(driver), 0);
    driver.set_interrupts(0, 0, 0);
    assert_eq!(write(driver, 0, &pattern(1, 512)), status::OK);
    let mut seen = edges(driver);
    for _ in 0..2000 {
        if seen > 0 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
        seen += edges(driver);
    }
    assert_eq!(seen, 1);
    assert_eq!(driver.get(register::INTERRUPT_STATUS), 1);
    driver.set(register::INTERRUPT_ACK, 1);
    assert_eq!(driver.get(register::INTERRUPT_STATUS), 0);
}

/// Many at once, and as many rounds that all indices wrap.
pub fn many_requests<H: Host>(driver: &mut Driver<H>, rounds: u64) {
    driver.begin(ALL, 1, 64);
    for round in 0..rounds {
        let slot = |i: u64| DATA + 0x1_0000 + 0x1000 * i;
        for i in 0..16 {
            let at = slot(i);
            let kind = if round % 2 == 0 { request::OUT } else { request::IN };
            let mut bytes = kind.to_le_bytes().to_vec();
            bytes.extend([0; 4]);
            bytes.extend((8 * i).to_le_bytes());
            driver.poke(at, &bytes);
            if round % 2 == 0 {
                driver.poke(at + 0x200, &[(round / 2 + i) as u8; 1024]);
            } else {
                driver.poke(at + 0x200, &[0; 1024]);
            }
            driver.poke(at + 0x100, &[0xee]);
            let data = Segment { address: at + 0x200, length: 1024, writable: round % 2 == 1 };
            driver.push(0, &[Segment::read(at, 16), data, Segment::write(at + 0x100, 1)]);
        }
        driver.kick(0);
        for i in 0..16 {
            driver.wait_used(0);
            assert_eq!(driver.peek(slot(i) + 0x100, 1), [status::OK]);
            assert_eq!(driver.peek(slot(i) + 0x200, 1024), [(round / 2 + i) as u8; 1024]);
        }
    }
}
