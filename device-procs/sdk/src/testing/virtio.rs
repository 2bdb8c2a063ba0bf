//! A virtio driver that is just big enough for tests, and as wrong as they want it. It runs against a device in this process
//! and against one in a worker.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "part of the tests: what goes wrong here fails the test"
)]

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

use cellblock_channel::memory;
use cellblock_channel::ram::Piece;
use cellblock_wire::device::Role;
use vm_memory::{Bytes, GuestAddress};

use super::Host;
use crate::virtio::spec::{feature, register, status};
use crate::virtio::{Raise, Ram};

/// Bytes of guest memory, from address 0 on.
pub const RAM_BYTES: u64 = 8 << 20;
/// Buffers may lie from here on; rings are below.
pub const DATA: u64 = 1 << 20;
/// Descriptor flags (Virtio 1.3 §2.7.5).
pub const NEXT: u16 = 1;
/// As above.
pub const WRITE: u16 = 2;
/// As above.
pub const INDIRECT: u16 = 4;

const PATIENCE: Duration = Duration::from_secs(10);

/// Guest memory that a worker can be granted.
pub fn shared_ram() -> (Ram, Role, OwnedFd) {
    let sealed = memory::create_replies("ram", RAM_BYTES as usize).expect("a memfd");
    let piece = Piece { address: 0, bytes: RAM_BYTES, offset: 0 };
    let own = sealed.fd.try_clone().expect("a descriptor");
    let ram = Ram::open(vec![(piece, own)]).expect("the memfd can be mapped");
    (ram, Role::GuestMemory { address: 0, bytes: RAM_BYTES, offset: 0 }, sealed.fd)
}

/// An interrupt line that counts, for devices that share theirs between threads.
#[derive(Debug, Clone, Default)]
pub struct Edges(Arc<AtomicU64>);

impl Edges {
    /// Edges since the last call.
    pub fn take(&self) -> u64 {
        self.0.swap(0, Ordering::AcqRel)
    }
}

impl Raise for Edges {
    fn raise(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }
}

/// One descriptor of a chain to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Guest-physical address.
    pub address: u64,
    /// Bytes.
    pub length: u32,
    /// The device writes it.
    pub writable: bool,
}

impl Segment {
    /// For the device to read.
    pub fn read(address: u64, length: u32) -> Self {
        Segment { address, length, writable: false }
    }

    /// For the device to write.
    pub fn write(address: u64, length: u32) -> Self {
        Segment { address, length, writable: true }
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Ring {
    size: u16,
    next: u16,
    available: u16,
    used: u16,
}

/// A driver of the device in `host`, whose memory is `ram`.
#[derive(Debug)]
pub struct Driver<H> {
    /// The device.
    pub host: H,
    /// Guest memory.
    pub ram: Ram,
    rings: Vec<Ring>,
    /// What was negotiated.
    pub features: u64,
}

impl<H: Host> Driver<H> {
    /// Nothing is done yet.
    pub fn new(host: H, ram: Ram) -> Self {
        Driver { host, ram, rings: vec![], features: 0 }
    }

    /// A 32-bit register.
    pub fn get(&mut self, offset: u64) -> u32 {
        self.host.read(0, offset, 4) as u32
    }

    /// Writes a 32-bit register.
    pub fn set(&mut self, offset: u64, value: u32) {
        self.host.write(0, offset, 4, value.into());
    }

    /// `Status`.
    pub fn status(&mut self) -> u8 {
        self.get(register::STATUS) as u8
    }

    /// What the device offers.
    pub fn offered(&mut self) -> u64 {
        let mut half = |select| {
            self.set(register::DEVICE_FEATURES_SEL, select);
            u64::from(self.get(register::DEVICE_FEATURES))
        };
        half(0) | half(1) << 32
    }

    /// Resets, and says `features` are accepted; whether the device takes them.
    pub fn negotiate(&mut self, features: u64) -> bool {
        self.reset();
        self.set(register::STATUS, status::ACKNOWLEDGE.into());
        self.set(register::STATUS, (status::ACKNOWLEDGE | status::DRIVER).into());
        for select in [0, 1] {
            self.set(register::DRIVER_FEATURES_SEL, select);
            self.set(register::DRIVER_FEATURES, (features >> (32 * select)) as u32);
        }
        let wanted = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        self.set(register::STATUS, wanted.into());
        self.features = features;
        self.status() == wanted
    }

    /// Resets and waits for it.
    pub fn reset(&mut self) {
        self.set(register::STATUS, 0);
        let end = Instant::now() + PATIENCE;
        while self.status() != 0 {
            assert!(Instant::now() < end, "the reset does not end");
            std::thread::sleep(Duration::from_millis(1));
        }
        self.rings.clear();
    }

    /// Addresses of queue `queue`'s descriptor table, driver area and device area.
    pub fn areas(queue: u16) -> [u64; 3] {
        let base = 0x1_0000 * (u64::from(queue) + 1);
        [base, base + 0x4000, base + 0x8000]
    }

    /// Makes the next queue ready with `size` descriptors; whether the device takes it.
    pub fn add_queue(&mut self, size: u16) -> bool {
        let queue = self.rings.len() as u16;
        for area in Self::areas(queue) {
            self.ram.memory().write_slice(&[0; 0x4000], GuestAddress(area)).expect("in memory");
        }
        self.rings.push(Ring { size, ..Ring::default() });
        self.place_queue(queue, size, Self::areas(queue))
    }

    /// Writes a queue's registers and makes it ready; whether it then is.
    pub fn place_queue(&mut self, queue: u16, size: u16, [desc, driver, device]: [u64; 3]) -> bool {
        self.set(register::QUEUE_SEL, queue.into());
        self.set(register::QUEUE_SIZE, size.into());
        for (low, address) in [
            (register::QUEUE_DESC_LOW, desc),
            (register::QUEUE_DRIVER_LOW, driver),
            (register::QUEUE_DEVICE_LOW, device),
        ] {
            self.set(low, address as u32);
            self.set(low + 4, (address >> 32) as u32);
        }
        self.set(register::QUEUE_READY, 1);
        self.get(register::QUEUE_READY) == 1
    }

    /// The driver's own view of queue `queue` is as new; its areas are the caller's affair.
    pub fn rewind(&mut self, queue: u16) {
        let ring = &mut self.rings[usize::from(queue)];
        *ring = Ring { size: ring.size, ..Ring::default() };
    }

    /// Lets the device go.
    pub fn run(&mut self) {
        let now = self.status();
        self.set(register::STATUS, (now | status::DRIVER_OK).into());
    }

    /// All of it: negotiates what is offered of `features` and version 1, makes `queues` queues, and lets the device go.
    pub fn begin(&mut self, features: u64, queues: u16, size: u16) {
        let features = self.offered() & (features | feature::VERSION_1);
        assert!(self.negotiate(features), "the features {features:#x} are refused");
        for _ in 0..queues {
            assert!(self.add_queue(size), "the queue is refused");
        }
        self.run();
        assert_eq!(self.status(), 15);
    }

    /// Writes one descriptor.
    pub fn descriptor(&mut self, table: u64, index: u16, segment: Segment, flags: u16, next: u16) {
        let at = GuestAddress(table + 16 * u64::from(index));
        let flags = flags | if segment.writable { WRITE } else { 0 };
        let mut bytes = segment.address.to_le_bytes().to_vec();
        bytes.extend(segment.length.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.ram.memory().write_slice(&bytes, at).expect("in memory");
    }

    /// Writes a chain into the queue's table, makes it available, and returns its head. Does not kick.
    pub fn push(&mut self, queue: u16, segments: &[Segment]) -> u16 {
        let table = Self::areas(queue)[0];
        let Ring { size, next: head, .. } = self.rings[usize::from(queue)];
        for (at, segment) in (0..).zip(segments) {
            let last = usize::from(at) + 1 == segments.len();
            let (flags, following) = if last { (0, 0) } else { (NEXT, (head + at + 1) % size) };
            self.descriptor(table, (head + at) % size, *segment, flags, following);
        }
        self.rings[usize::from(queue)].next = (head + segments.len() as u16) % size;
        self.make_available(queue, head);
        head
    }

    /// Puts `head` into the available ring, whatever it is.
    pub fn make_available(&mut self, queue: u16, head: u16) {
        let driver = Self::areas(queue)[1];
        let ring = &mut self.rings[usize::from(queue)];
        let slot = u64::from(ring.available % ring.size);
        ring.available = ring.available.wrapping_add(1);
        let index = ring.available;
        self.ram.memory().write_obj(head, GuestAddress(driver + 4 + 2 * slot)).expect("in memory");
        self.set_available(queue, index);
    }

    /// Sets the available index, whatever it is.
    pub fn set_available(&mut self, queue: u16, index: u16) {
        let at = GuestAddress(Self::areas(queue)[1] + 2);
        self.ram.memory().store(index, at, Ordering::Release).expect("in memory");
    }

    /// Sets the available ring's flags, or with event indices `used_event`.
    pub fn set_interrupts(&mut self, queue: u16, flags: u16, used_event: u16) {
        let [_, driver, _] = Self::areas(queue);
        let size = u64::from(self.rings[usize::from(queue)].size);
        let memory = self.ram.memory();
        memory.store(flags, GuestAddress(driver), Ordering::SeqCst).expect("in memory");
        memory.store(used_event, GuestAddress(driver + 4 + 2 * size), Ordering::SeqCst).expect("in memory");
    }

    /// Asks for an interrupt for the next entry of the used ring; whoever then finds none in it may sleep.
    pub fn want_interrupt(&mut self, queue: u16) {
        let used = self.rings[usize::from(queue)].used;
        self.set_interrupts(queue, 0, used);
        // SYNC POINT: between the wish and the look at the used index, as the device has one between its index and the wish.
        fence(Ordering::SeqCst);
    }

    /// Kicks by the register, as where no ioeventfd takes it.
    pub fn kick(&mut self, queue: u16) {
        self.set(register::QUEUE_NOTIFY, queue.into());
    }

    /// The next entry of the used ring, (head, length), if there is one.
    pub fn used(&mut self, queue: u16) -> Option<(u32, u32)> {
        let device = Self::areas(queue)[2];
        let memory = self.ram.memory();
        let index: u16 = memory.load(GuestAddress(device + 2), Ordering::Acquire).expect("in memory");
        let ring = &mut self.rings[usize::from(queue)];
        if index == ring.used {
            return None;
        }
        let at = device + 4 + 8 * u64::from(ring.used % ring.size);
        ring.used = ring.used.wrapping_add(1);
        let id = memory.read_obj(GuestAddress(at)).expect("in memory");
        Some((id, memory.read_obj(GuestAddress(at + 4)).expect("in memory")))
    }

    /// Waits for the next entry of the used ring.
    pub fn wait_used(&mut self, queue: u16) -> (u32, u32) {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(used) = self.used(queue) {
                return used;
            }
            let status = self.status();
            assert!(Instant::now() < end, "nothing is used; the device's status is {status:#x}");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Waits until the device says that it needs a reset.
    pub fn wait_needs_reset(&mut self) {
        let end = Instant::now() + PATIENCE;
        while self.status() & status::DEVICE_NEEDS_RESET == 0 {
            assert!(Instant::now() < end, "the device does not complain");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Puts bytes into guest memory.
    pub fn poke(&mut self, address: u64, bytes: &[u8]) {
        self.ram.memory().write_slice(bytes, GuestAddress(address)).expect("in memory");
    }

    /// Takes bytes from guest memory.
    pub fn peek(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.ram.memory().read_slice(&mut bytes, GuestAddress(address)).expect("in memory");
        bytes
    }
}
