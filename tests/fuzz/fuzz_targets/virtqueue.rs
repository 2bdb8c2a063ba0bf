//! A virtio device whose driver does what it likes to registers and memory, and whose record of requests in flight anybody may
//! have altered before a successor takes it over: it goes on, or needs a reset, after which it works.
#![no_main]

use cellblock_channel::memory;
use cellblock_sdk::device::Device;
use cellblock_sdk::testing::holder::{self, Holder};
use cellblock_sdk::testing::virtio::{DATA, Driver, Edges, RAM_BYTES, Segment, shared_ram};
use cellblock_sdk::testing::{Harness, Host};
use cellblock_sdk::virtio::inflight::Pages;
use cellblock_sdk::virtio::spec::status;
use cellblock_sdk::virtio::{Inline, Interrupt, Ram, Transport};
use cellblock_wire::device::IN_FLIGHT_BYTES;
use libfuzzer_sys::fuzz_target;

/// Descriptors in each queue.
const SIZE: u16 = 8;
/// Where the rings of both queues are, and some more.
const RINGS: u64 = 0x4_0000;

fn device(ram: &Ram, pages: &Pages) -> Transport<Inline<Holder>> {
    let interrupt = Interrupt::new(Edges::default());
    let engine = Inline::new(vec![(Holder::default(), vec![0, 1])], interrupt.clone());
    holder::device(engine.with_pages(pages.clone()), ram.clone(), interrupt)
}

fuzz_target!(|steps: Vec<(u8, u32, u64, Vec<u8>)>| {
    let ram = shared_ram().0;
    let record = memory::create_replies("in flight", 2 * IN_FLIGHT_BYTES).unwrap().fd;
    let pages = Pages::open(&record, 2).unwrap();
    let mut driver = Driver::new(Harness::new(device(&ram, &pages)), ram.clone());
    driver.begin(u64::MAX, 2, SIZE);
    for (kind, place, value, bytes) in steps.into_iter().take(64) {
        match kind % 8 {
            0 => drop(driver.host.write(0, u64::from(place) % 0x200, 1 << (kind / 8 % 4), value)),
            1 => drop(driver.host.read(0, u64::from(place), 1 << (kind / 8 % 4))),
            2 => {
                let at = u64::from(place) % RINGS;
                let length = bytes.len().min((RAM_BYTES - at) as usize);
                driver.poke(at, &bytes[..length]);
            }
            3 => {
                // A descriptor that could be one.
                let table = Driver::<Harness<Transport<Inline<Holder>>>>::areas(u16::from(kind >> 7))[0];
                let segment = Segment { address: value, length: place, writable: kind & 8 != 0 };
                driver.descriptor(table, u16::from(kind >> 4 & 7), segment, bytes.len() as u16 & 7, place as u16 % 9);
            }
            4 => driver.kick(u16::from(kind >> 3)),
            5 => drop(rustix::io::pwrite(&record, &bytes, u64::from(place) % (2 * IN_FLIGHT_BYTES as u64 - bytes.len() as u64))),
            6 => {
                let saved = driver.host.saved();
                let mut successor = device(&ram, &pages);
                successor.restore(&saved).unwrap();
                driver.host = Harness::new(successor);
            }
            _ => {
                driver.descriptor(0x1_0000, 0, Segment::write(DATA, 1), 0, 0);
                driver.poke(0x1_4000 + 4, &[0; 16]);
                driver.poke(0x1_4000 + 2, &(value as u16).to_le_bytes());
                driver.kick(0);
            }
        }
    }
    driver.begin(u64::MAX, 2, SIZE);
    let head = driver.push(0, &[Segment::write(DATA, 1)]);
    driver.kick(0);
    driver.poke(DATA + 0x100, &head.to_le_bytes());
    driver.push(1, &[Segment::read(DATA + 0x100, 2)]);
    driver.kick(1);
    assert_eq!(driver.used(0), Some((head.into(), 1)));
    assert_eq!(driver.status() & status::DEVICE_NEEDS_RESET, 0);
});
