//! virtio-mmio's registers (Virtio 1.3 §4.2.2), as region 0 of a [`Device`].

use std::time::Duration;

use cellblock_channel::ram::Ram;
use cellblock_channel::register_page::WORD;
use cellblock_wire::control::BalloonReport;
use cellblock_wire::device::DriverRegisters;

use super::config::Space;
use super::engine::Engine;
use super::interrupt::Interrupt;
use super::kept::Kept;
use super::queue::{Layout, Position, QueueError, Virtqueue};
use super::spec::{MAGIC, MMIO_VERSION, VENDOR, feature, register, status};
use super::state::{QueueRegisters, Registers, Restored};
use crate::device::{Access, Action, Device, Event};
use crate::fail_point::{Step, reach};
use crate::state::{Encoder, StateError};

mod reconstruct;

/// How long a reset holds the vCPU for requests in flight. Past it, `Status` keeps its value until they are done: the
/// specification has drivers wait for 0 (§2.1.1), but Linux's virtio-mmio does not.
const RESET_WAIT: Duration = Duration::from_millis(100);

/// What a driver is told about a device.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Device id (§5).
    pub id: u32,
    /// The features of its kind (bits 0 to 23). The transport adds its own.
    pub features: u64,
    /// Queues, 1 to [`MAX_QUEUES`](cellblock_wire::device::MAX_QUEUES).
    pub queues: u16,
    /// Descriptors in each, at most: a power of two.
    pub queue_size: u16,
    /// Configuration space.
    pub config: Space,
}

/// Features of every device.
const OWN_FEATURES: u64 = feature::VERSION_1 | feature::EVENT_IDX | feature::INDIRECT_DESC;

/// A virtio device, as found by a driver.
pub struct Transport<E> {
    identity: Identity,
    engine: E,
    ram: Ram,
    interrupt: Interrupt,
    registers: Registers,
    on_event: Option<Box<dyn FnMut(Event)>>,
    on_question: Option<Box<dyn FnMut() -> Option<BalloonReport>>>,
    kept: Kept,
    in_order: bool,
    /// It has begun with a predecessor's state.
    restored: bool,
    /// The driver is to look at the configuration space anew, once the device goes on.
    changed: bool,
    /// Its predecessor may still go on: what cannot be gone on with here is refused, and the driver not told of it.
    resting: bool,
}

/// A virtio device that has no registers.
pub(crate) struct Bare<E> {
    /// With the features of every device.
    pub(crate) identity: Identity,
    pub(crate) engine: E,
    pub(crate) interrupt: Interrupt,
    /// As [`Transport::on_event`] has it.
    pub(crate) on_event: Option<Box<dyn FnMut(Event)>>,
}

impl<E> std::fmt::Debug for Transport<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport").field("registers", &self.registers).finish_non_exhaustive()
    }
}

impl<E: Engine> Transport<E> {
    /// A device as after a reset. `engine` raises the same `interrupt`.
    pub fn new(identity: Identity, engine: E, ram: Ram, interrupt: Interrupt) -> Self {
        let registers = Registers::new(identity.queues, identity.queue_size);
        let identity = Identity { features: identity.features | OWN_FEATURES, ..identity };
        let (kept, in_order) = (Kept::default(), false);
        Transport {
            identity,
            engine,
            ram,
            interrupt,
            registers,
            on_event: None,
            on_question: None,
            kept,
            in_order,
            restored: false,
            changed: false,
            resting: false,
        }
    }

    /// Requests of a queue end in the order in which they were made available: then a record of requests in flight that makes
    /// no sense costs no reset, for the rings say the same.
    #[must_use]
    pub fn in_order(mut self) -> Self {
        self.in_order = true;
        self
    }

    /// Where a predecessor's queues are gone on with.
    fn going_on(&self) -> Position {
        if self.in_order { Position::InOrder } else { Position::Resume }
    }

    /// Has `handler` told of what happens to the device without an access: what the supervisor says, and
    /// [`Event::ConfigWritten`]. Called on the register thread.
    #[must_use]
    pub fn on_event(mut self, handler: impl FnMut(Event) + 'static) -> Self {
        self.on_event = Some(Box::new(handler));
        self
    }

    /// Has `handler` asked after each event for what the supervisor wants to know. Called on the register thread.
    #[must_use]
    pub fn on_question(mut self, handler: impl FnMut() -> Option<BalloonReport> + 'static) -> Self {
        self.on_question = Some(Box::new(handler));
        self
    }

    /// Has `kept` saved with the registers.
    #[must_use]
    pub fn keeping(mut self, kept: Kept) -> Self {
        self.kept = kept;
        self
    }

    /// Who serves the queues.
    pub fn engine(&mut self) -> &mut E {
        &mut self.engine
    }

    fn tell(&mut self, event: Event) {
        if let Some(handler) = &mut self.on_event {
            handler(event);
        }
        self.engine.nudge();
    }

    /// The device without its registers, for another transport.
    pub(crate) fn into_bare(self) -> Bare<E> {
        Bare {
            identity: self.identity,
            engine: self.engine,
            interrupt: self.interrupt,
            on_event: self.on_event,
        }
    }

    fn read_register(&mut self, offset: u64) -> u32 {
        let queue = self.selected();
        match offset {
            register::MAGIC_VALUE => MAGIC,
            register::VERSION => MMIO_VERSION,
            register::DEVICE_ID => self.identity.id,
            register::VENDOR_ID => VENDOR,
            register::DEVICE_FEATURES => half(self.identity.features, self.registers.device_features_sel),
            register::QUEUE_SIZE_MAX if queue.is_some() => self.identity.queue_size.into(),
            register::QUEUE_SIZE_MAX => 0,
            register::QUEUE_READY => queue.is_some_and(|queue| queue.ready).into(),
            register::INTERRUPT_STATUS => self.interrupt.status(),
            register::STATUS => self.status().into(),
            register::CONFIG_GENERATION => self.identity.config.generation(),
            // All ones in SHM_LEN: there is no such region. The rest is write-only or does not exist.
            _ => u32::MAX,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        if self.registers.resetting {
            return;
        }
        match offset {
            register::DEVICE_FEATURES_SEL => self.registers.device_features_sel = value,
            register::DRIVER_FEATURES_SEL => self.registers.driver_features_sel = value,
            register::DRIVER_FEATURES => self.accept_features(value),
            register::QUEUE_SEL => self.registers.queue_sel = value,
            register::QUEUE_NOTIFY => self.notify(value),
            register::INTERRUPT_ACK => self.interrupt.acknowledge(value),
            register::STATUS if value == 0 => self.reset(),
            register::STATUS => self.advance(value as u8 & !status::DEVICE_NEEDS_RESET),
            register::QUEUE_READY => self.make_ready(value & 1 != 0),
            _ => self.configure_queue(offset, value),
        }
    }

    fn selected(&self) -> Option<&QueueRegisters> {
        self.registers.queues.get(self.registers.queue_sel as usize)
    }

    fn status(&self) -> u8 {
        let needs_reset = if self.interrupt.asks_for_reset() { status::DEVICE_NEEDS_RESET } else { 0 };
        self.registers.status | needs_reset
    }

    fn accept_features(&mut self, value: u32) {
        let negotiating = self.registers.has(status::DRIVER) && !self.registers.has(status::FEATURES_OK);
        if negotiating {
            let all = &mut self.registers.driver_features;
            match self.registers.driver_features_sel {
                0 => *all = *all & !0xffff_ffff | u64::from(value),
                1 => *all = *all & 0xffff_ffff | u64::from(value) << 32,
                // Nothing is offered there; what is accepted nevertheless is refused with the rest.
                _ if value != 0 => *all |= !self.identity.features,
                _ => {}
            }
        }
    }

    /// Status bits are set in their order, and only a reset clears them (§2.1.1); other writes are ignored.
    fn advance(&mut self, value: u8) {
        let now = self.registers.status;
        if value & now != now {
            return;
        }
        let fresh = value & !now;
        self.registers.status |= fresh & (status::ACKNOWLEDGE | status::FAILED);
        if fresh & status::DRIVER != 0 && self.registers.has(status::ACKNOWLEDGE) {
            self.registers.status |= status::DRIVER;
        }
        if fresh & status::FEATURES_OK != 0 && self.registers.has(status::DRIVER) && self.features_fit() {
            self.registers.status |= status::FEATURES_OK;
        }
        if fresh & status::DRIVER_OK != 0 && self.registers.has(status::FEATURES_OK) {
            self.registers.status |= status::DRIVER_OK;
            // It does not rest, so nothing is refused.
            let _ = self.start_all(Position::Start);
        }
    }

    /// §2.2.2, §6.2: nothing that was not offered, and no legacy driver.
    fn features_fit(&self) -> bool {
        let wanted = self.registers.driver_features;
        wanted & !self.identity.features == 0 && wanted & feature::VERSION_1 != 0
    }

    /// A queue's registers, while it is not ready.
    fn configure_queue(&mut self, offset: u64, value: u32) {
        if !self.registers.has(status::FEATURES_OK) {
            return;
        }
        let selected = self.registers.queue_sel as usize;
        let Some(queue) = self.registers.queues.get_mut(selected).filter(|queue| !queue.ready) else {
            return;
        };
        let layout = &mut queue.layout;
        match offset {
            // A size that does not fit is as wrong as zero: the queue does not become ready.
            register::QUEUE_SIZE => layout.size = u16::try_from(value).unwrap_or(0),
            register::QUEUE_DESC_LOW => set_low(&mut layout.desc, value),
            register::QUEUE_DESC_HIGH => set_high(&mut layout.desc, value),
            register::QUEUE_DRIVER_LOW => set_low(&mut layout.driver, value),
            register::QUEUE_DRIVER_HIGH => set_high(&mut layout.driver, value),
            register::QUEUE_DEVICE_LOW => set_low(&mut layout.device, value),
            register::QUEUE_DEVICE_HIGH => set_high(&mut layout.device, value),
            _ => {}
        }
    }

    /// `QueueReady`. A queue that makes no sense does not become ready, and the device needs a reset.
    fn make_ready(&mut self, ready: bool) {
        let index = self.registers.queue_sel as usize;
        let Some(queue) = self.registers.queues.get(index) else { return };
        match (ready, queue.ready) {
            (true, false) if self.registers.has(status::FEATURES_OK) => {
                match self.virtqueue(index, &queue.layout, Position::Start) {
                    Ok(virtqueue) => {
                        if let Some(queue) = self.registers.queues.get_mut(index) {
                            queue.ready = true;
                        }
                        if self.registers.has(status::DRIVER_OK) {
                            self.engine.start(index, virtqueue, self.registers.driver_features);
                        }
                    }
                    Err(error) => self.interrupt.broken(&[index as u16], &error),
                }
            }
            (false, true) => self.make_unready(index),
            _ => {}
        }
    }

    fn make_unready(&mut self, index: usize) {
        if let Some(queue) = self.registers.queues.get_mut(index) {
            queue.stopping = true;
        }
        self.engine.stop(index);
        self.engine.settle(index, RESET_WAIT);
        self.settle();
    }

    fn virtqueue(&self, index: usize, layout: &Layout, from: Position) -> Result<Virtqueue, QueueError> {
        let (max_size, features) = (self.identity.queue_size, self.registers.driver_features);
        let record = self.engine.record(index);
        Virtqueue::recorded(layout, max_size, self.ram.clone(), features, from, record)
    }

    fn start_all(&mut self, from: Position) -> Result<(), StateError> {
        for (index, queue) in self.registers.queues.clone().into_iter().enumerate() {
            if !queue.ready || queue.stopping {
                continue;
            }
            match self.virtqueue(index, &queue.layout, from) {
                Ok(virtqueue) => self.engine.start(index, virtqueue, self.registers.driver_features),
                Err(_) if self.resting => return Err(StateError::Queue { index: index as u16 }),
                Err(error) => self.interrupt.broken(&[index as u16], &error),
            }
            if from != Position::Start {
                reach(Step::QueueResumed);
            }
        }
        Ok(())
    }

    /// `QueueNotify`, where KVM does not take it to the queue's thread itself.
    fn notify(&mut self, value: u32) {
        let index = value as usize;
        if self.registers.has(status::DRIVER_OK) && self.registers.queues.get(index).is_some_and(|q| q.ready)
        {
            self.engine.kick(index);
        }
    }

    fn reset(&mut self) {
        self.registers.resetting = true;
        for index in 0..self.registers.queues.len() {
            self.engine.stop(index);
        }
        if self.registers.has(status::DRIVER_OK) {
            // One wait for all: what is in flight goes on beside it.
            let slow = (0..self.registers.queues.len()).find(|index| self.engine.busy(*index));
            slow.map(|index| self.engine.settle(index, RESET_WAIT));
        }
        self.settle();
    }

    /// Brings to an end what waits for requests in flight, if they are done.
    fn settle(&mut self) {
        if self.registers.resetting && (0..self.registers.queues.len()).all(|index| !self.engine.busy(index))
        {
            self.registers = Registers::new(self.identity.queues, self.identity.queue_size);
            self.interrupt.clear();
            self.identity.config.reset();
        }
        for (index, queue) in self.registers.queues.iter_mut().enumerate() {
            if queue.stopping && !self.engine.busy(index) {
                (queue.ready, queue.stopping) = (false, false);
            }
        }
    }

    /// Has the guest find in its page what a read of each register gives now. `InterruptStatus` is there all the time, and
    /// configuration space is its own affair.
    fn show(&mut self) {
        let Some(page) = self.interrupt.page().cloned() else { return };
        for offset in (0..register::CONFIG).step_by(WORD as usize) {
            if !matches!(offset, register::INTERRUPT_STATUS | Space::GENERATION_WORD) {
                let (low, high) = (self.read_register(offset), self.read_register(offset + 4));
                page.set(offset, u64::from(low) | u64::from(high) << 32);
            }
        }
        // Another thread may have found meanwhile that the device needs one.
        self.interrupt.show_needs_reset();
        page.set_bits(register::INTERRUPT_ACK, u32::MAX);
        self.identity.config.show(&page);
    }

    /// At rest what the guest finds is the predecessor's, which may go on with it.
    fn show_unless_resting(&mut self) {
        if !self.resting {
            self.show();
        }
    }

    /// If there were `changes`, the driver is told of them anew, for that may have been lost; of one at rest, when it goes on.
    fn tell_changes(&mut self, changes: bool) {
        if self.resting {
            self.changed = changes;
        } else if changes {
            self.identity.config.renew(&self.interrupt);
        }
    }

    fn read_config(&self, offset: u64, size: u8) -> u64 {
        let mut bytes = [0; 8];
        let wanted = bytes.get_mut(..usize::from(size.min(8))).unwrap_or_default();
        self.identity.config.get(usize::try_from(offset).unwrap_or(usize::MAX), wanted);
        u64::from_le_bytes(bytes)
    }

    fn write_config(&mut self, offset: u64, size: u8, data: u64) {
        let bytes = data.to_le_bytes();
        let bytes = bytes.get(..usize::from(size.min(8))).unwrap_or_default();
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        if !self.registers.resetting && self.identity.config.write(offset, bytes) {
            self.tell(Event::ConfigWritten);
        }
    }

    /// Whether an access to a register is one (§4.2.2.2).
    fn is_whole(access: &Access) -> bool {
        access.region == 0 && access.size == 4 && access.offset.is_multiple_of(4)
    }
}

impl<E: Engine> Device for Transport<E> {
    fn read(&mut self, access: Access) -> u64 {
        self.settle();
        match access.offset.checked_sub(register::CONFIG) {
            Some(offset) if access.region == 0 => self.read_config(offset, access.size),
            None if Self::is_whole(&access) => self.read_register(access.offset).into(),
            _ => u64::MAX,
        }
    }

    fn write(&mut self, access: Access, data: u64) -> Action {
        self.settle();
        match access.offset.checked_sub(register::CONFIG) {
            Some(offset) if access.region == 0 => self.write_config(offset, access.size, data),
            None if Self::is_whole(&access) => self.write_register(access.offset, data as u32),
            _ => {}
        }
        self.show();
        Action::None
    }

    fn event(&mut self, event: Event) {
        self.settle();
        if event != Event::Host {
            self.tell(event);
        }
        self.show();
    }

    fn power_on(&mut self) {
        self.interrupt.clear();
        self.show();
    }

    fn complaint(&mut self) -> Option<String> {
        self.interrupt.complaint()
    }

    fn answer(&mut self) -> Option<BalloonReport> {
        self.on_question.as_mut().and_then(|handler| handler())
    }

    /// Requests in flight are finished; what is still in the rings is the driver's.
    fn finish(&mut self, limit: Duration) -> bool {
        let queues = 0..self.registers.queues.len();
        queues.clone().for_each(|index| self.engine.stop(index));
        let slow = queues.clone().find(|index| self.engine.busy(*index));
        slow.map(|index| self.engine.settle(index, limit));
        queues.into_iter().all(|index| !self.engine.busy(index))
    }

    fn quiesce(&mut self) {
        self.resting = true;
        self.engine.park(true);
    }

    fn is_quiet(&self) -> bool {
        self.engine.is_parked()
    }

    fn resume(&mut self) {
        // Another worker that was to take over may have been there meanwhile.
        self.resting = false;
        self.show();
        let changed = std::mem::take(&mut self.changed);
        self.tell_changes(changed);
        self.engine.park(false);
        // Restored at rest, it told of that when its predecessor might still have been asked what for.
        if std::mem::take(&mut self.restored) {
            self.interrupt.used_buffer();
        }
    }

    fn begin(&mut self, incarnation: u32) {
        self.identity.config.begin(incarnation);
    }

    fn save(&self, out: &mut Encoder<'_>) {
        let interrupt = (self.interrupt.status(), self.interrupt.asks_for_reset());
        self.registers.save(interrupt, &self.identity.config, self.kept.get(), out);
    }

    /// Also starts the queues where the predecessor left off. The driver gets an interrupt, for one may have been lost.
    fn restore(&mut self, saved: &[u8]) -> Result<(), StateError> {
        let Restored { registers, interrupt_status, needs_reset, generation, written, kept } =
            Registers::restore(saved, &self.identity)?;
        self.kept.check(kept)?;
        self.kept.restore(kept);
        self.registers = registers;
        let changes = self.identity.config.restore(generation, &written);
        self.interrupt.restore(interrupt_status, needs_reset);
        // What was in flight in the predecessor ended with it.
        self.settle();
        reach(Step::RegistersRestored);
        if self.registers.has(status::DRIVER_OK) && !needs_reset {
            self.start_all(self.going_on())?;
            self.interrupt.used_buffer();
            self.restored = true;
            self.tell_changes(changes);
        }
        self.show_unless_resting();
        Ok(())
    }

    fn reconstruct(&mut self, registers: &DriverRegisters, saved: Option<&[u8]>) -> Result<(), StateError> {
        self.begin_from(registers, saved)?;
        self.show_unless_resting();
        Ok(())
    }
}

/// 32 of 64 feature bits.
fn half(bits: u64, select: u32) -> u32 {
    match select {
        0 => bits as u32,
        1 => (bits >> 32) as u32,
        _ => 0,
    }
}

fn set_low(address: &mut u64, value: u32) {
    *address = *address & !0xffff_ffff | u64::from(value);
}

fn set_high(address: &mut u64, value: u32) {
    *address = *address & 0xffff_ffff | u64::from(value) << 32;
}
