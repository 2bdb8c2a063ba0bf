//! What every virtio device has to stand, whatever it is for: the same for one in this process and one in a worker.
//!
//! A device's tests call [`conforms`] with a [`Device`] that says what it is. Nothing here knows what its requests mean; so that
//! it still works after each abuse means that it can be found, negotiated with and set up again.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "part of the tests: what goes wrong here fails the test"
)]

use super::Host;
use super::virtio::{DATA, Driver, INDIRECT, NEXT, RAM_BYTES, Segment, WRITE};
use crate::virtio::spec::{MAGIC, feature, interrupt, register, status};

/// Buffers: above the areas of all queues.
const BUFFERS: u64 = DATA + 0x10_0000;
/// Queues are made of so many descriptors.
const SIZE: u16 = 16;
/// Rounds of arbitrary bytes, and of resets.
const ROUNDS: u32 = 20;
/// Features of every device.
const OWN: u64 = feature::VERSION_1 | feature::EVENT_IDX | feature::INDIRECT_DESC;

/// What a driver should find.
#[derive(Debug, Clone, Copy)]
pub struct Device<'a> {
    /// Device id (§5).
    pub id: u32,
    /// All features that it offers, without those of every device.
    pub features: u64,
    /// Queues.
    pub queues: u16,
    /// Descriptors in each, at most.
    pub queue_size: u16,
    /// Queues from which it takes each chain as soon as it is there, whatever it is: there a bad one is found at once.
    pub eager: &'a [u16],
}

/// All of it.
///
/// # Panics
/// The device does not conform.
pub fn conforms<H: Host>(driver: &mut Driver<H>, device: &Device<'_>) {
    identity(driver, device);
    negotiation(driver, device);
    status_order(driver, device);
    registers(driver, device);
    queue_registers(driver, device);
    broken_chains(driver, device);
    odd_chains(driver, device);
    resets(driver, device);
    arbitrary_bytes(driver, device);
}

/// It can be found, and set up.
fn works<H: Host>(driver: &mut Driver<H>, device: &Device<'_>) {
    driver.begin(u64::MAX, device.queues, SIZE.min(device.queue_size));
}

fn identity<H: Host>(driver: &mut Driver<H>, device: &Device<'_>) {
    assert_eq!(driver.get(register::MAGIC_VALUE), MAGIC);
    assert_eq!(driver.get(register::VERSION), 2);
    assert_eq!(driver.get(register::DEVICE_ID), device.id);
    for queue in 0..=device.queues {
        driver.set(register::QUEUE_SEL, queue.into());
        let expected = if queue < device.queues { device.queue_size.into() } else { 0 };
        assert_eq!(driver.get(register::QUEUE_SIZE_MAX), expected, "queue {queue}");
    }
    assert_eq!(driver.offered(), device.features | OWN, "features");
    driver.set(register::DEVICE_FEATURES_SEL, 2);
    assert_eq!(driver.get(register::DEVICE_FEATURES), 0, "there are 64");
}

/// §2.2, §3.1.
fn negotiation<H: Host>(driver: &mut Driver<H>, device: &Device<'_>) {
    let offered = driver.offered();
    assert!(!driver.negotiate(offered & !feature::VERSION_1), "a legacy driver");
    assert!(!driver.negotiate(0), "a driver of nothing");
    for bit in (0..64).filter(|bit| offered >> bit & 1 == 0) {
        assert!(!driver.negotiate(offered | 1 << bit), "feature {bit}, which was not offered");
    }
    assert!(driver.negotiate(feature::VERSION_1), "the least");
    assert!(driver.negotiate(offered), "the most");
    driver.set(register::DRIVER_FEATURES_SEL, 0);
    driver.set(register::DRIVER_FEATURES, 0);
    assert!(driver.add_queue(device.queue_size), "features are fixed by now");
    works(driver, device);
}

/// §2.1: bits are set in order, and only a reset clears them.
fn status_order<H: Host>(driver: &mut Driver<H>, device: &Device<'_>) {
    driver.reset();
    driver.set(register::STATUS, 15);
    assert_eq!(driver.status() & status::DRIVER_OK, 0, "without negotiation");
    driver.reset();
    driver.set(register::STATUS, status::DRIVER.into());
    assert_eq!(driver.status(), 0, "a driver that has not found it");
    assert!(driver.negotiate(feature::VERSION_1));
    driver.set(register::STATUS, 1);
    assert_eq!(driver.status(), 11, "bits are not cleared");
    driver.set(register::STATUS, u32::from(11 | status::FAILED));
    assert_eq!(driver.status(), 11 | status::FAILED);
    driver.reset();
    assert!(!driver.place_queue(0, SIZE, Driver::<H>::areas(0)), "no queue before FEATURES_OK");
    assert_eq!(driver.status() & status::DEVICE_NEEDS_RESET, 0);
    // Kicks before it is ready, and of queues that are not there.
    driver.kick(0);
    works(driver, device);
    for queue in [device.queues, u16::MAX] {
        driver.kick(queue);
    }
    assert_eq!(driver.status(), 15);
}

/// Every place in every width is answered, and what is not a register's does nothing.
fn registers<H: Host>(driver: &mut Driver<H>, device: &Device<'_>) {
    works(driver, device);
    for offset in 0..0x200u64 {
        for size in [1, 2, 4, 8] {
            driver.host.read(0, offset, size);
            driver.host.read(1, offset, size);
            driver.host.write(1, offset, size, 0);
            let whole = size == 4 && offset.is_multiple_of(4);
            // The configuration space may be the driver's to write.
            if !whole && offset < register::CONFIG {
                driver.host.write(0, offset, size, 0);
            }
        }
    }
    assert_eq!(driver.host.read(1, register::STATUS, 4), 0xffff_ffff);
    assert_eq!(driver.host.read(0, 0xff8, 8), 0, "past the configuration space");
    for offset in [register::MAGIC_VALUE, register::DEVICE_FEATURES, register::QUEUE_SIZE_MAX, 0x0fc, 0x0ac] {
        driver.set(offset, 0xffff_ffff);
    }
    assert_eq!(driver.status(), 15);
    assert_eq!(driver.get(register::MAGIC_VALUE), MAGIC);
}

/// Queues whose registers make no sense do not become ready; a ready one does not change.
fn queue_registers<H: Host>(driver: &mut Driver<H>, device: &Device<'_>) {
    let good = Driver::<H>::areas(0);
    let [desc, available, used] = good;
    for (size, areas) in [
        (0, good),
        (3, good),
        (device.queue_size.saturating_mul(2), good),
        (SIZE, [desc + 8, available, used]),
        (SIZE, [desc, available + 1, used]),
        (SIZE, [desc, available, used + 2]),
        (SIZE, [0, available, used]),
        (SIZE, [RAM_BYTES - 255, available, used]),
        (SIZE, [desc, RAM_BYTES - 4, used]),
        (SIZE, [desc, available, RAM_BYTES]),
        (SIZE, [desc, available, u64::MAX - 3]),
        (SIZE, [u64::MAX - 15, available, used]),
    ] {
        assert!(driver.negotiate(feature::VERSION_1));
        assert!(!driver.place_queue(0, size, areas), "{size} {areas:x?}");
        driver.wait_needs_reset();
    }
    assert!(driver.negotiate(feature::VERSION_1));
    assert!(!driver.place_queue(device.queues, SIZE, good), "there is no such queue");
    works(driver, device);
    driver.set(register::QUEUE_SEL, 0);
    driver.set(register::QUEUE_DESC_LOW, 0x7000);
    driver.set(register::QUEUE_DEVICE_HIGH, 7);
    driver.set(register::QUEUE_SIZE, 3);
    assert_eq!(driver.get(register::QUEUE_READY), 1);
    assert_eq!(driver.status(), 15);
    // Made unready it can be placed anew.
    for queue in 0..device.queues {
        driver.set(register::QUEUE_SEL, queue.into());
        driver.set(register::QUEUE_READY, 0);
        assert_eq!(driver.get(register::QUEUE_READY), 0, "queue {queue}");
        driver.rewind(queue);
        let areas = Driver::<H>::areas(queue);
        areas.iter().for_each(|area| driver.poke(*area, &[0; 0x400]));
        assert!(driver.place_queue(queue, SIZE.min(device.queue_size), areas), "queue {queue}");
    }
    assert_eq!(driver.status(), 15);
}

/// Puts something wrong into queue `.1`, whose descriptor table is at `.2`.
type Break<H> = fn(&mut Driver<H>, u16, u64);

/// Chains and rings that make no sense: the device needs a reset, says so, and works after it.
fn broken_chains<H: Host>(driver: &mut Driver<H>, device: &Device<'_>) {
    let breaks: [(&str, Break<H>); 12] = [
        ("a loop", |driver, queue, table| {
            driver.descriptor(table, 0, Segment::read(BUFFERS, 1), NEXT, 1);
            driver.descriptor(table, 1, Segment::read(BUFFERS, 1), NEXT, 0);
            driver.make_available(queue, 0);
        }),
        ("a loop of nothing", |driver, queue, table| {
            driver.descriptor(table, 0, Segment::read(BUFFERS, 0), NEXT, 0);
            driver.make_available(queue, 0);
        }),
        ("a head outside", |driver, queue, _| driver.make_available(queue, SIZE)),
        ("a head far outside", |driver, queue, _| driver.make_available(queue, u16::MAX)),
        ("a next outside", |driver, queue, table| {
            driver.descriptor(table, 0, Segment::read(BUFFERS, 16), NEXT, SIZE);
            driver.make_available(queue, 0);
        }),
        ("a readable buffer after a writable one", |driver, queue, _| {
            driver.push(queue, &[Segment::write(BUFFERS, 1), Segment::read(BUFFERS, 16)]);
        }),
        ("more than 2^32 bytes", |driver, queue, _| {
            driver.push(queue, &[Segment::read(BUFFERS, u32::MAX), Segment::read(BUFFERS, 2)]);
        }),
        ("an available index that jumps", |driver, queue, _| driver.set_available(queue, SIZE + 1)),
        ("an indirect table inside another", |driver, queue, table| {
            driver.descriptor(BUFFERS, 0, Segment::read(BUFFERS, 16), INDIRECT, 0);
            driver.descriptor(table, 0, Segment::read(BUFFERS, 16), INDIRECT, 0);
            driver.make_available(queue, 0);
        }),
        ("an indirect table of odd length", |driver, queue, table| {
            driver.descriptor(table, 0, Segment::read(BUFFERS, 17), INDIRECT, 0);
            driver.make_available(queue, 0);
        }),
        ("an indirect table outside", |driver, queue, table| {
            driver.descriptor(table, 0, Segment::read(RAM_BYTES, 16), INDIRECT, 0);
            driver.make_available(queue, 0);
        }),
        ("an indirect table longer than the queue", |driver, queue, table| {
            for index in 0..40 {
                driver.descriptor(BUFFERS, index, Segment::read(BUFFERS + 0x1000, 1), NEXT, index + 1);
            }
            driver.descriptor(BUFFERS, 40, Segment::read(BUFFERS + 0x1000, 1), 0, 0);
            driver.descriptor(table, 0, Segment::read(BUFFERS, 41 * 16), INDIRECT, 0);
            driver.make_available(queue, 0);
        }),
    ];
    for queue in device.eager {
        for (what, broken) in breaks {
            works(driver, device);
            broken(driver, *queue, Driver::<H>::areas(*queue)[0]);
            driver.kick(*queue);
            driver.wait_needs_reset();
            let cause = driver.get(register::INTERRUPT_STATUS);
            assert_ne!(cause & interrupt::CONFIG_CHANGE, 0, "{what}: the driver is told");
            assert_eq!(driver.used(*queue), None, "{what} in queue {queue}");
            driver.kick(*queue);
            driver.reset();
            assert_eq!(driver.get(register::INTERRUPT_STATUS), 0, "after {what}");
        }
    }
    works(driver, device);
}

/// Chains that are chains, but hardly what the device wants. It may serve them, hold them or need a reset; it goes on answering.
fn odd_chains<H: Host>(driver: &mut Driver<H>, device: &Device<'_>) {
    let (read, write) = (Segment::read, Segment::write);
    let [table, available, used] = Driver::<H>::areas(0);
    let odd: [&[Segment]; 20] = [
        // Buffers over each other, and over the rings of a queue.
        &[read(BUFFERS, 64), write(BUFFERS, 64)],
        &[read(BUFFERS, 64), read(BUFFERS + 16, 64), write(BUFFERS + 32, 64), write(BUFFERS + 48, 64)],
        &[write(table, 16 * u32::from(SIZE))],
        &[read(BUFFERS, 64), write(available, 64)],
        &[read(used, 64), write(used, 64)],
        &[read(table, 64), write(table, 64)],
        &[read(BUFFERS, 0)],
        &[write(BUFFERS, 0)],
        &[read(BUFFERS, 0), write(BUFFERS, 0)],
        &[read(BUFFERS, 1)],
        &[write(BUFFERS, 1)],
        &[read(RAM_BYTES, 64)],
        &[write(RAM_BYTES, 64)],
        &[read(RAM_BYTES - 8, 64), write(RAM_BYTES - 8, 64)],
        &[read(u64::MAX, 64)],
        &[write(u64::MAX - 63, 64)],
        &[read(u64::MAX, u32::MAX)],
        &[write(0, u32::MAX)],
        &[read(BUFFERS, 0x10_0000), write(BUFFERS, 0x10_0000)],
        &[read(BUFFERS, 16), write(1 << 40, 16), write(BUFFERS + 0x1000, 1)],
    ];
    for queue in 0..device.queues {
        for chain in odd {
            works(driver, device);
            driver.push(queue, chain);
            driver.kick(queue);
            while driver.used(queue).is_some() {}
            let now = driver.status() & !status::DEVICE_NEEDS_RESET;
            assert_eq!(now, 15, "queue {queue}: {chain:x?}");
        }
        // All at once, without a reset in between.
        works(driver, device);
        for chain in odd.iter().filter(|chain| chain.len() == 1) {
            driver.push(queue, chain);
        }
        driver.kick(queue);
        driver.status();
    }
    works(driver, device);
}

/// §2.4: a reset comes to its end, whatever is in flight, and leaves nothing.
fn resets<H: Host>(driver: &mut Driver<H>, device: &Device<'_>) {
    for round in 0..ROUNDS {
        works(driver, device);
        for queue in 0..device.queues {
            for at in 0..u64::from(SIZE / 2) {
                let at = BUFFERS + 0x100 * at;
                let chain = [Segment::read(at, 64), Segment::write(at + 64, 64)];
                match round % 3 {
                    0 => driver.push(queue, &chain),
                    1 => driver.push(queue, &chain[..1]),
                    _ => driver.push(queue, &chain[1..]),
                };
            }
            driver.kick(queue);
        }
        driver.reset();
        assert_eq!(driver.get(register::INTERRUPT_STATUS), 0);
        let memory = |driver: &Driver<H>| -> Vec<Vec<u8>> {
            let rings = (0..device.queues).map(|queue| driver.peek(Driver::<H>::areas(queue)[2], 0x100));
            rings.chain([driver.peek(BUFFERS, 0x1000)]).collect()
        };
        let before = memory(driver);
        std::thread::sleep(std::time::Duration::from_micros(200));
        assert_eq!(memory(driver), before, "rings and buffers are the driver's again");
    }
    works(driver, device);
}

/// Bytes of which none means anything in all rings and tables, the same in each run.
fn arbitrary_bytes<H: Host>(driver: &mut Driver<H>, device: &Device<'_>) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        // xorshift64, so that a failure comes again.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..ROUNDS {
        works(driver, device);
        for queue in 0..device.queues {
            let [table, available, used] = Driver::<H>::areas(queue);
            for index in 0..u64::from(SIZE) {
                // Mostly plausible, so that something is behind the first check.
                let address = if next() % 4 == 0 { next() } else { BUFFERS + next() % 0x10_0000 };
                let length = if next() % 4 == 0 { next() as u32 } else { next() as u32 % 5000 };
                let flags = next() as u16 & (NEXT | WRITE | if next() % 8 == 0 { INDIRECT } else { 0 });
                let segment = Segment::read(address, length);
                driver.descriptor(table, index as u16, segment, flags, next() as u16 % (SIZE + 1));
                driver.poke(available + 4 + 2 * index, &(next() as u16 % (SIZE + 1)).to_le_bytes());
            }
            let contents: Vec<u8> = (0..64).map(|_| next() as u8).collect();
            driver.poke(BUFFERS + next() % 0x10_0000, &contents);
            if next() % 2 == 0 {
                driver.poke(used, &contents);
            }
            driver.set_available(queue, next() as u16 % (SIZE + 2));
            driver.kick(queue);
        }
        let now = driver.status() & !status::DEVICE_NEEDS_RESET;
        assert_eq!(now, 15);
    }
    works(driver, device);
}
