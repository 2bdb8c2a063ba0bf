//! The devices of the VMM that has them in its own process.
//!
//! `unsafe` because: a virtio device's model is made for one thread.
#![allow(unsafe_code)]

use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use cellblock_arch::layout;
use cellblock_bus::{Bus, Hit, Range, Target};
use cellblock_channel::clock;
use cellblock_channel::ram::Ram;
use cellblock_entropy::{HostRandom, Requests, identity};
use cellblock_i8042::I8042;
use cellblock_sdk::device::{Access, Action, Clock, Device, Trigger};
use cellblock_sdk::host::Port;
use cellblock_sdk::state::{Encoder, StateError};
use cellblock_sdk::virtio::{Inline, Interrupt, OneByOne, Raise, Transport};
use cellblock_serial::Serial;
use cellblock_wire::device::Limits;
use cellblock_wire::slot::Space;

use crate::json::Proxy;

/// What a guest's line status register says while nothing is to be sent (16550A): for who answers without a device.
const LINE_IDLE: u64 = 0x60;

/// What answers a guest's accesses.
pub(crate) enum Board {
    /// Nobody: the bus is not even asked.
    Nothing,
    /// The devices, in this process.
    Local(Devices),
    /// The devices, in another process that is spoken to by JSON over a socket.
    Json(Mutex<Proxy>),
}

/// The board's devices, each behind a lock, for vCPUs share them.
pub(crate) struct Devices {
    bus: Bus,
    devices: Vec<Mutex<Box<dyn Device + Send>>>,
}

/// A far end that takes all and gives nothing.
struct Nowhere;

impl Port for Nowhere {
    fn put(&mut self, _byte: u8) {}

    fn take(&mut self) -> Option<u8> {
        None
    }
}

/// A line that leads nowhere: what is measured interrupts nobody.
struct NoLine;

impl Trigger for NoLine {
    fn pulse(&mut self) {}
}

impl Raise for NoLine {
    fn raise(&self) {}
}

#[derive(Clone, Copy)]
struct HostClock;

impl Clock for HostClock {
    fn monotonic(&self) -> u64 {
        clock::now()
    }

    fn wall(&self) -> i64 {
        0
    }
}

impl Device for Movable {
    fn read(&mut self, access: Access) -> u64 {
        self.0.read(access)
    }

    fn write(&mut self, access: Access, data: u64) -> Action {
        self.0.write(access, data)
    }

    fn settle(&mut self) {
        self.0.settle();
    }

    fn save(&self, out: &mut Encoder<'_>) {
        self.0.save(out);
    }

    fn restore(&mut self, saved: &[u8]) -> Result<(), StateError> {
        self.0.restore(saved)
    }
}

/// A device that threads may share.
struct Movable(Entropy);

// SAFETY: what is not `Send` in a transport are its handlers of events and questions, and `entropy` gives it none.
unsafe impl Send for Movable {}

type Entropy = Transport<Inline<OneByOne<Requests<HostRandom, HostClock>>>>;

fn entropy() -> Movable {
    let interrupt = Interrupt::new(NoLine);
    let requests = Requests::new(HostRandom, HostClock, &Limits::default());
    let engine = Inline::servers(vec![requests], interrupt.clone());
    Movable(Transport::new(identity(), engine, Ram::none(), interrupt).in_order())
}

impl Devices {
    /// Serial port, keyboard controller and an entropy device, where the shipped board has them.
    ///
    /// # Errors
    /// The board's layout makes no sense.
    pub(crate) fn new() -> Result<Self> {
        let slot = layout::virtio_slot(0).context("no virtio slot")?;
        let pio = |base, length| Range { space: Space::Pio, base, length };
        let regions = [
            (0, pio(layout::SERIAL_PORT.into(), 8)),
            (1, pio(layout::I8042_DATA_PORT.into(), 1)),
            (1, pio(layout::I8042_COMMAND_PORT.into(), 1)),
            (2, Range { space: Space::Mmio, base: slot.address, length: layout::VIRTIO_SLOT_BYTES }),
        ];
        let mut bus = Bus::default();
        for (device, range) in regions {
            let region = u32::from(range.base == u64::from(layout::I8042_COMMAND_PORT));
            bus.insert(range, Target { device, region })?;
        }
        let all: [Box<dyn Device + Send>; 3] = [
            Box::new(Serial::new(NoLine, HostClock, Nowhere)),
            Box::new(I8042::new(NoLine)),
            Box::new(entropy()),
        ];
        Ok(Devices { bus, devices: all.into_iter().map(Mutex::new).collect() })
    }

    /// The answer to an access; all ones if it is nobody's.
    pub(crate) fn access(&self, space: Space, addr: u64, size: u8, write: Option<u64>) -> (u64, Action) {
        let Some(Hit { target, offset }) = self.bus.find(space, addr, size.into()) else {
            return (u64::MAX, Action::None);
        };
        let Some(device) = self.devices.get(target.device) else { return (u64::MAX, Action::None) };
        let mut device = device.lock().unwrap_or_else(PoisonError::into_inner);
        let access = Access { region: target.region, offset, size };
        let answer = match write {
            None => (device.read(access), Action::None),
            Some(data) => (0, device.write(access, data)),
        };
        device.settle();
        answer
    }
}

impl Board {
    /// The answer to an access.
    ///
    /// # Errors
    /// The other process is gone.
    pub(crate) fn access(
        &self,
        space: Space,
        addr: u64,
        size: u8,
        write: Option<u64>,
    ) -> Result<(u64, Action)> {
        match self {
            Board::Nothing => Ok((LINE_IDLE, Action::None)),
            Board::Local(devices) => Ok(devices.access(space, addr, size, write)),
            Board::Json(proxy) => {
                proxy.lock().unwrap_or_else(PoisonError::into_inner).access(space, addr, size, write)
            }
        }
    }
}
