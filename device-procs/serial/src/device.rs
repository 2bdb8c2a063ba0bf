//! The 16550A's behaviour.

use std::time::Duration;

use cellblock_sdk::device::{Access, Action, Clock, Device, Event, SECOND, Trigger};
use cellblock_sdk::host::Port;
use cellblock_sdk::state::{Encoder, StateError};
use cellblock_sdk::virtio::limit::Bucket;
use cellblock_wire::device::Bucket as Rate;

use crate::fifo::Fifo;
use crate::spec::{CLOCK_PER_SECOND, FIFO_BYTES, fcr, ier, iir, lcr, lsr, mcr, msr, offset};
use crate::state::State;

/// How long output may take to the host on the way to rest; what the host takes later waits here.
const QUIESCE_FLUSH: Duration = Duration::from_millis(20);

/// Causes of an interrupt as bits, in the order of their priority (§8.6, table IV).
mod cause {
    pub(super) const LINE_STATUS: u8 = 1 << 0;
    pub(super) const DATA_AVAILABLE: u8 = 1 << 1;
    pub(super) const TIMEOUT: u8 = 1 << 2;
    pub(super) const THR_EMPTY: u8 = 1 << 3;
    pub(super) const MODEM_STATUS: u8 = 1 << 4;
}

/// A 16550A with an interrupt line, a clock for its receive timeout, and a far end.
///
/// The transmitter is as fast as the guest, and THRE and TEMT read as set, unless it is [`limited`](Serial::limited). The
/// receiver takes from the far end only what its FIFO has room for.
///
/// The interrupt line is edge-triggered. It is pulsed when a cause becomes pending that was not (also by a mask or OUT2
/// being opened), and when reading IIR leaves another cause pending, so that a driver that handles one cause per
/// interrupt loses none.
#[derive(Debug)]
pub struct Serial<T, C, P> {
    trigger: T,
    clock: C,
    port: P,
    state: State,
    /// What the transmitter may send; `None` = all.
    limit: Option<Bucket>,
    /// Causes that the interrupt line has told the guest of.
    told: u8,
}

impl<T: Trigger, C: Clock, P: Port> Serial<T, C, P> {
    /// A port as firmware leaves it: 115200 baud, 8N1, FIFOs and interrupts off.
    pub fn new(trigger: T, clock: C, port: P) -> Self {
        Serial { trigger, clock, port, state: State::default(), limit: None, told: 0 }
    }

    /// As a port whose line is slow: once `limit` is used up, the transmitter stays busy until it is paid for. Its FIFO
    /// takes what a driver may still write then (§8.5: 16 characters, or one without FIFOs), so a driver that keeps to THRE
    /// loses nothing. What one writes beyond that is lost, as on a real port, and counted.
    #[must_use]
    pub fn limited(self, limit: Option<&Rate>) -> Self {
        Serial { limit: limit.map(Bucket::new), ..self }
    }

    fn read_register(&mut self, register: u64) -> u8 {
        let latch = self.state.lcr & lcr::DLAB != 0;
        match register {
            offset::RBR_THR_DLL if latch => self.state.divisor.to_le_bytes()[0],
            offset::IER_DLM if latch => self.state.divisor.to_le_bytes()[1],
            offset::RBR_THR_DLL => self.receive(),
            offset::IER_DLM => self.state.ier,
            offset::IIR_FCR => self.identify(),
            offset::LCR => self.state.lcr,
            offset::MCR => self.state.mcr,
            offset::LSR => self.line_status(),
            offset::MSR => self.modem_status(),
            offset::SCR => self.state.scr,
            _ => 0xff,
        }
    }

    fn write_register(&mut self, register: u64, value: u8) {
        let latch = self.state.lcr & lcr::DLAB != 0;
        let [low, high] = self.state.divisor.to_le_bytes();
        match register {
            offset::RBR_THR_DLL if latch => self.state.divisor = u16::from_le_bytes([value, high]),
            offset::IER_DLM if latch => self.state.divisor = u16::from_le_bytes([low, value]),
            offset::RBR_THR_DLL => self.transmit(value),
            offset::IER_DLM => self.enable_interrupts(value & ier::MASK),
            offset::IIR_FCR => self.control_fifos(value),
            offset::LCR => self.state.lcr = value,
            offset::MCR => self.control_modem(value & mcr::MASK),
            offset::SCR => self.state.scr = value,
            _ => {}
        }
    }

    fn looped(&self) -> bool {
        self.state.mcr & mcr::LOOP != 0
    }

    fn fifos_on(&self) -> bool {
        self.state.fcr & fcr::ENABLE != 0
    }

    /// RBR (§8.2): takes the oldest character. What stays below the trigger level times out anew.
    fn receive(&mut self) -> u8 {
        let Some(byte) = self.state.received.pop() else { return 0 };
        self.state.timeout = false;
        self.refill();
        self.state.timeout_at =
            self.below_trigger().then(|| self.clock.monotonic().saturating_add(self.timeout_after()));
        byte
    }

    fn below_trigger(&self) -> bool {
        let waiting = self.state.received.len();
        self.fifos_on() && waiting > 0 && waiting < self.trigger_level()
    }

    fn trigger_level(&self) -> usize {
        let index = usize::from(self.state.fcr >> fcr::TRIGGER_SHIFT);
        fcr::TRIGGER_LEVELS.get(index).map_or(1, |&level| level.into())
    }

    /// Four characters of ten bits (§8.11 A), in ns.
    fn timeout_after(&self) -> u64 {
        40 * SECOND * u64::from(self.state.divisor.max(1)) / CLOCK_PER_SECOND
    }

    /// Takes what the far end has, as far as there is room. Below the trigger level the timeout is due at once: the
    /// far end has no more now, and nobody gains by waiting for the four characters' time.
    fn refill(&mut self) {
        if self.looped() {
            return;
        }
        let capacity = self.fifo_bytes();
        let mut fresh = false;
        while self.state.received.len() < capacity {
            let Some(byte) = self.port.take() else { break };
            self.state.received.push(byte);
            fresh = true;
        }
        if fresh {
            self.state.timeout = self.below_trigger();
            self.state.timeout_at = None;
        }
    }

    /// THR (§8.2): the character leaves at once. If the limit is not used up, the register is empty again.
    fn transmit(&mut self, byte: u8) {
        self.expire();
        if self.looped() {
            self.loop_back(byte);
        } else if self.state.sent_at.is_some() && usize::from(self.state.sending) >= self.fifo_bytes() {
            self.port.lose();
            return;
        } else {
            self.port.put(byte);
            self.pay();
        }
        self.state.thr_emptied = self.state.sent_at.is_none();
        self.told &= !cause::THR_EMPTY;
    }

    /// Takes the last character from what the limit allows.
    fn pay(&mut self) {
        let Some(limit) = &mut self.limit else { return };
        let now = self.clock.monotonic();
        limit.take(1, now);
        let Some(at) = limit.ready_at(now) else { return };
        if self.state.sent_at.is_none() {
            self.port.hold();
        }
        self.state.sent_at = Some(at);
        self.state.sending = self.state.sending.saturating_add(1);
    }

    fn fifo_bytes(&self) -> usize {
        if self.fifos_on() { FIFO_BYTES } else { 1 }
    }

    /// Loopback (§8.8 bit 4): the character arrives at the receiver. Without room, the FIFO keeps what it has and
    /// RBR takes the newer (§8.4 bit 1).
    fn loop_back(&mut self, byte: u8) {
        if self.state.received.len() >= self.fifo_bytes() {
            self.state.overrun = true;
            self.told &= !cause::LINE_STATUS;
            if self.fifos_on() {
                return;
            }
            self.state.received = Fifo::default();
        }
        self.state.received.push(byte);
        self.state.timeout = self.below_trigger();
        self.state.timeout_at = None;
    }

    /// IER (§8.7). Enabling the transmitter's interrupt while THR is empty makes it pending: drivers start to send, and test
    /// for a well-known bug, by this.
    fn enable_interrupts(&mut self, enabled: u8) {
        if enabled & !self.state.ier & ier::ETBEI != 0 && self.state.sent_at.is_none() {
            self.state.thr_emptied = true;
        }
        self.state.ier = enabled;
    }

    /// FCR (§8.5). Switching the FIFOs on or off clears them.
    fn control_fifos(&mut self, value: u8) {
        let switched = (value ^ self.state.fcr) & fcr::ENABLE != 0;
        let on = value & fcr::ENABLE != 0;
        if switched || (on && value & fcr::RESET_RX != 0) {
            self.state.received = Fifo::default();
            self.state.timeout = false;
            self.state.timeout_at = None;
        }
        self.state.fcr = if on { value & !(fcr::RESET_RX | fcr::RESET_TX) } else { 0 };
        self.refill();
        self.state.timeout &= self.below_trigger();
    }

    /// MCR (§8.8). In loopback the modem's inputs are this register's outputs.
    fn control_modem(&mut self, value: u8) {
        let before = self.modem_inputs();
        self.state.mcr = value;
        let after = self.modem_inputs();
        let changed = (before ^ after) >> 4;
        let ring_fell = before & !after & msr::RI != 0;
        let deltas = if ring_fell { changed } else { changed & !msr::TERI };
        self.state.modem_deltas |= deltas;
        self.refill();
    }

    fn modem_inputs(&self) -> u8 {
        if !self.looped() {
            return msr::CONNECTED;
        }
        let wires = [(mcr::DTR, msr::DSR), (mcr::RTS, msr::CTS), (mcr::OUT1, msr::RI), (mcr::OUT2, msr::DCD)];
        wires
            .into_iter()
            .filter(|(output, _)| self.state.mcr & output != 0)
            .fold(0, |all, (_, input)| all | input)
    }

    fn line_status(&mut self) -> u8 {
        let ready = if !self.state.received.is_empty() { lsr::DR } else { 0 };
        let overrun = if std::mem::take(&mut self.state.overrun) { lsr::OE } else { 0 };
        self.expire();
        let sent = if self.state.sent_at.is_none() { lsr::THRE | lsr::TEMT } else { 0 };
        ready | overrun | sent
    }

    fn modem_status(&mut self) -> u8 {
        self.modem_inputs() | (std::mem::take(&mut self.state.modem_deltas) & msr::DELTA_MASK)
    }

    /// IIR (§8.6): the most urgent cause. Reading it clears the transmitter's, if that is the one.
    fn identify(&mut self) -> u8 {
        let pending = self.pending();
        let code = match pending & pending.wrapping_neg() {
            cause::LINE_STATUS => iir::LINE_STATUS,
            cause::DATA_AVAILABLE => iir::DATA_AVAILABLE,
            cause::TIMEOUT => iir::TIMEOUT,
            cause::THR_EMPTY => {
                self.state.thr_emptied = false;
                iir::THR_EMPTY
            }
            cause::MODEM_STATUS => iir::MODEM_STATUS,
            _ => iir::NONE,
        };
        // Causes behind the reported one are told again: a driver may handle one per interrupt.
        self.told &= pending & pending.wrapping_neg();
        if self.fifos_on() { code | iir::FIFOS_ON } else { code }
    }

    /// The causes that are pending and enabled.
    fn pending(&self) -> u8 {
        let state = &self.state;
        let waiting = state.received.len();
        let enough = if self.fifos_on() { self.trigger_level() } else { 1 };
        let causes = [
            (cause::LINE_STATUS, ier::ELSI, state.overrun),
            (cause::DATA_AVAILABLE, ier::ERBFI, waiting >= enough),
            (cause::TIMEOUT, ier::ERBFI, state.timeout),
            (cause::THR_EMPTY, ier::ETBEI, state.thr_emptied),
            (cause::MODEM_STATUS, ier::EDSSI, state.modem_deltas != 0),
        ];
        causes
            .into_iter()
            .filter(|&(_, enable, holds)| holds && state.ier & enable != 0)
            .fold(0, |all, (cause, ..)| all | cause)
    }

    /// Pulses the line if a cause is pending that the guest was not told of. OUT2 gates the line, and is off in
    /// loopback, whatever MCR says (§8.8).
    fn tell(&mut self) {
        let open = self.state.mcr & (mcr::OUT2 | mcr::LOOP) == mcr::OUT2;
        let pending = if open { self.pending() } else { 0 };
        if pending & !self.told != 0 {
            self.trigger.pulse();
        }
        self.told = pending;
    }

    fn expire(&mut self) {
        let due = |at: u64| at <= self.clock.monotonic();
        if self.state.timeout_at.is_some_and(due) {
            self.state.timeout_at = None;
            self.state.timeout = self.below_trigger();
        }
        if self.state.sent_at.is_some_and(due) {
            (self.state.sent_at, self.state.sending) = (None, 0);
            self.state.thr_emptied = true;
            self.told &= !cause::THR_EMPTY;
        }
    }
}

impl<T: Trigger, C: Clock, P: Port> Device for Serial<T, C, P> {
    fn read(&mut self, access: Access) -> u64 {
        let data = access.read_bytes(|register| self.read_register(register));
        self.tell();
        data
    }

    fn write(&mut self, access: Access, data: u64) -> Action {
        access.write_bytes(data, |register, value| {
            self.write_register(register, value);
            Action::None
        });
        self.tell();
        Action::None
    }

    fn committed(&mut self) {
        self.port.commit();
    }

    fn settle(&mut self) {
        self.port.settle();
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Host => self.refill(),
            Event::Timer => self.expire(),
            _ => {}
        }
        self.tell();
    }

    fn finish(&mut self, limit: Duration) -> bool {
        self.port.flush(limit)
    }

    fn quiesce(&mut self) {
        self.port.flush(QUIESCE_FLUSH);
    }

    fn deadline(&self) -> Option<u64> {
        [self.state.timeout_at, self.state.sent_at].into_iter().flatten().min()
    }

    fn save(&self, out: &mut Encoder<'_>) {
        self.state.save(out);
    }

    /// A successor does not know what the guest was told of last, so it tells it of all that is pending.
    fn restore(&mut self, saved: &[u8]) -> Result<(), StateError> {
        self.state = State::restore(saved)?;
        self.told = 0;
        self.refill();
        self.tell();
        Ok(())
    }
}
