//! A guest that does to a virtio device what a script says.

use cellblock_sdk::device::{Access, Device};
use cellblock_sdk::testing::{Harness, Host};
use cellblock_sdk::virtio::spec::{feature, register, status};
use cellblock_sdk::virtio::{Inline, Ram, Transport, Work};
use cellblock_wire::device::{DriverQueue, DriverRegisters};
use vm_memory::{Bytes, GuestAddress};

use crate::Script;
use crate::host::{self, meddle_later};
use crate::registers::event;

/// Descriptors in each queue.
pub const SIZE: u16 = 8;
/// Bytes between two queues' rings.
const STRIDE: u64 = 0x400;
/// Buffers lie from here on.
const DATA: u64 = 0x8000;
/// What is between two buffers that lie where they should.
const BUFFER: u64 = 0x800;
/// Steps of one script.
const STEPS: u32 = 64;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Registers that a driver writes.
const REGISTERS: [u64; 18] = [
    register::DEVICE_FEATURES_SEL,
    register::DRIVER_FEATURES,
    register::DRIVER_FEATURES_SEL,
    register::QUEUE_SEL,
    register::QUEUE_SIZE,
    register::QUEUE_READY,
    register::QUEUE_NOTIFY,
    register::INTERRUPT_ACK,
    register::STATUS,
    register::QUEUE_DESC_LOW,
    register::QUEUE_DESC_HIGH,
    register::QUEUE_DRIVER_LOW,
    register::QUEUE_DRIVER_HIGH,
    register::QUEUE_DEVICE_LOW,
    register::QUEUE_DEVICE_HIGH,
    register::CONFIG,
    register::CONFIG + 8,
    register::CONFIG_GENERATION,
];

/// Lengths that requests' parts have.
const LENGTHS: [u32; 16] = [1, 2, 4, 8, 12, 16, 24, 44, 64, 100, 512, 600, 1024, 2048, 0, u32::MAX];

/// How many chains were made available, and where the next one begins.
#[derive(Debug, Clone, Copy, Default)]
struct Ring {
    available: u16,
    next: u16,
}

/// The guest with its device.
pub struct Guest<W: Work, M> {
    host: Harness<Transport<Inline<W>>>,
    ram: Ram,
    make: M,
    queues: u16,
    rings: Vec<Ring>,
}

impl<W: Work, M: FnMut() -> Transport<Inline<W>>> Guest<W, M> {
    /// A guest of the device that `make` makes, and its successors; it has `queues` queues.
    pub fn new(ram: Ram, queues: u16, mut make: M) -> Self {
        let host = Harness::new(make());
        Guest { host, ram, make, queues, rings: vec![Ring::default(); queues.into()] }
    }

    /// Does all that the script says; `outside` is a step of the host's.
    ///
    /// # Panics
    /// The device does, or it does not work any more after a reset.
    pub fn run(&mut self, script: &mut Script<'_>, mut outside: impl FnMut(&mut Script<'_>)) {
        if !script.flag() {
            self.begin(u64::MAX);
        }
        for _ in 0..STEPS {
            if script.is_over() {
                break;
            }
            self.step(script, &mut outside);
        }
        // The other vCPUs are at rest: what they write into a ring while it is set up would break it again.
        meddle_later(vec![]);
        self.host.device.resume();
        self.begin(u64::MAX);
        assert_eq!(self.get(register::STATUS) as u8, 15, "after a reset it works");
    }

    fn step(&mut self, script: &mut Script<'_>, outside: &mut impl FnMut(&mut Script<'_>)) {
        let kind = script.u8();
        let queue = u16::from(kind >> 4) % self.queues;
        match kind & 15 {
            0..=3 => self.push(queue, script),
            4 => self.set(register::QUEUE_NOTIFY, queue.into()),
            5 => {
                let offset = script.pick(&REGISTERS);
                self.set(offset, script.value() as u32);
            }
            6 => drop(self.host.write(script.u8().into(), script.value(), script.size(), script.value())),
            7 => drop(self.host.read(script.u8().into(), script.value(), script.size())),
            8 => {
                let at = script.u16().into();
                let count = script.u8().into();
                self.poke(at, script.bytes(count));
            }
            9 => self.offer(queue, script.value() as u16),
            10 => {
                self.rings[usize::from(queue)].available = script.u16();
                self.offer(queue, 0);
            }
            11 => {
                outside(script);
                self.host.device.engine().poll();
            }
            12 => self.succeed(script),
            13 => match kind >> 4 & 3 {
                0 => self.host.device.quiesce(),
                1 => self.host.device.resume(),
                2 => self.host.event(event(script)),
                _ => {
                    host::advance(script.value() << (script.u8() % 40));
                    self.host.device.engine().poll();
                }
            },
            14 => {
                let count = script.u8() % 4;
                meddle_later((0..count).map(|_| (script.u16().into(), script.value())).collect());
            }
            _ => self.begin(if kind >> 4 & 1 == 0 { u64::MAX } else { script.u64() }),
        }
        let _ = (self.host.device.complaint(), self.host.device.answer(), self.host.device.is_quiet());
    }

    fn get(&mut self, offset: u64) -> u32 {
        self.host.read(0, offset, 4) as u32
    }

    fn set(&mut self, offset: u64, value: u32) {
        self.host.write(0, offset, 4, value.into());
    }

    /// A write after which nothing is saved: a third of all time would be for what the next write saves again.
    fn set_unsaved(&mut self, offset: u64, value: u32) {
        let device = &mut self.host.device;
        device.write(Access { region: 0, offset, size: 4 }, value.into());
        device.committed();
        device.settle();
    }

    fn poke(&mut self, at: u64, bytes: &[u8]) {
        // What is no memory takes nothing.
        let _ = self.ram.memory().write(bytes, GuestAddress(at));
    }

    fn areas(queue: u16) -> [u64; 3] {
        let base = STRIDE * (u64::from(queue) + 1);
        [base, base + 0x100, base + 0x200]
    }

    /// Resets the device and sets all queues up, with what is offered of `features`.
    fn begin(&mut self, features: u64) {
        self.set_unsaved(register::STATUS, 0);
        self.set_unsaved(register::STATUS, (status::ACKNOWLEDGE | status::DRIVER).into());
        for half in 0..2 {
            self.set_unsaved(register::DEVICE_FEATURES_SEL, half);
            let offered = self.get(register::DEVICE_FEATURES);
            self.set_unsaved(register::DRIVER_FEATURES_SEL, half);
            let wanted = (features | feature::VERSION_1) >> (32 * half);
            self.set_unsaved(register::DRIVER_FEATURES, offered & wanted as u32);
        }
        let agreed = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        self.set_unsaved(register::STATUS, agreed.into());
        for queue in 0..self.queues {
            let [desc, driver, device] = Self::areas(queue);
            self.poke(desc, &[0; STRIDE as usize]);
            self.set_unsaved(register::QUEUE_SEL, queue.into());
            self.set_unsaved(register::QUEUE_SIZE, SIZE.into());
            for (low, address) in [
                (register::QUEUE_DESC_LOW, desc),
                (register::QUEUE_DRIVER_LOW, driver),
                (register::QUEUE_DEVICE_LOW, device),
            ] {
                self.set_unsaved(low, address as u32);
                self.set_unsaved(low + 4, (address >> 32) as u32);
            }
            self.set_unsaved(register::QUEUE_READY, 1);
        }
        self.rings.fill(Ring::default());
        self.set(register::STATUS, (agreed | status::DRIVER_OK).into());
    }

    /// Makes a chain of one to four buffers, most of them where they should be, and kicks.
    fn push(&mut self, queue: u16, script: &mut Script<'_>) {
        let shape = script.u8();
        let (count, odd) = (u64::from(shape & 3) + 1, shape & 0x80 != 0);
        let indirect = shape & 0x40 != 0;
        let Ring { next, .. } = self.rings[usize::from(queue)];
        let [own, ..] = Self::areas(queue);
        let buffers = DATA + 4 * BUFFER * u64::from(queue % 4);
        let (table, first) = if indirect { (buffers + 3 * BUFFER + 0x400, 0) } else { (own, next) };
        for at in 0..count {
            let part = script.u8();
            let (mut address, mut length) = (buffers + at * BUFFER, LENGTHS[usize::from(part & 15)]);
            if odd && part & 0x20 != 0 {
                (address, length) = (script.value(), script.value() as u32);
            }
            let mut flags = if at + 1 < count { NEXT } else { 0 };
            if part & 0x10 != 0 {
                flags |= WRITE;
            } else {
                let content = script.bytes(length.min(u32::from(part >> 6) * 21 + 1) as usize);
                self.poke(address, content);
            }
            let mut next = (first + at as u16 + 1) % SIZE;
            if odd && part & 0x40 != 0 {
                (flags, next) = (script.u8().into(), script.u8().into());
            }
            self.descriptor(table, (first + at as u16) % SIZE, address, length, flags, next);
        }
        let mut used = count as u16;
        if indirect {
            self.descriptor(own, next, table, 16 * count as u32, INDIRECT, 0);
            used = 1;
        }
        self.rings[usize::from(queue)].next = (next + used) % SIZE;
        self.offer(queue, next);
        if shape & 0x20 == 0 {
            self.set(register::QUEUE_NOTIFY, queue.into());
        }
    }

    fn descriptor(&mut self, table: u64, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.poke(table + 16 * u64::from(index), &bytes);
    }

    /// Puts `head` into the available ring, whatever it is.
    fn offer(&mut self, queue: u16, head: u16) {
        let [_, driver, _] = Self::areas(queue);
        let ring = &mut self.rings[usize::from(queue)];
        let slot = u64::from(ring.available % SIZE);
        ring.available = ring.available.wrapping_add(1);
        let index = ring.available;
        self.poke(driver + 4 + 2 * slot, &head.to_le_bytes());
        self.poke(driver + 2, &index.to_le_bytes());
    }

    /// Another process takes over: with what the old one saved or with some of it changed, and the registers as the supervisor
    /// noted them, or as it never would.
    fn succeed(&mut self, script: &mut Script<'_>) {
        let how = script.u8();
        let mut saved = self.host.saved();
        if how & 1 != 0 {
            let place = usize::from(script.u8()) % (saved.len() + 1);
            match saved.get_mut(place) {
                Some(byte) => *byte ^= script.u8(),
                None => saved.truncate(script.u8().into()),
            }
        }
        let mut successor = (self.make)();
        if how & 2 == 0 {
            let taken = successor.restore(&saved);
            assert!(taken.is_ok() || how & 1 != 0, "what it saved is refused: {taken:?}");
            if taken.is_ok() {
                self.host = Harness::new(successor);
            }
            return;
        }
        let registers = self.registers(how & 4 != 0, script);
        if successor.reconstruct(&registers, (how & 8 == 0).then_some(&saved)).is_ok() {
            self.host = Harness::new(successor);
        }
    }

    fn registers(&mut self, odd: bool, script: &mut Script<'_>) -> DriverRegisters {
        let queue = |number| {
            let [desc, driver, device] = Self::areas(number);
            if odd && script.flag() {
                let (desc, driver, device) = (script.value(), script.value(), script.value());
                return DriverQueue {
                    size: script.value() as u32,
                    desc,
                    driver,
                    device,
                    ready: script.flag(),
                };
            }
            DriverQueue { size: SIZE.into(), desc, driver, device, ready: true }
        };
        let queues = (0..self.queues).map(queue).collect();
        let mut registers = DriverRegisters {
            status: 15,
            driver_features: feature::VERSION_1,
            queues,
            ..DriverRegisters::default()
        };
        if odd {
            registers.status = script.u8();
            registers.driver_features = script.u64();
            registers.queue_sel = script.value() as u32;
            registers.config = vec![(script.u8() % 64, script.u8())];
        }
        registers
    }
}
