//! What of a console survives its process beside the registers: how far driver and device have got on the control queues.
//!
//! It is one word, so that the post that serves the queues and the register thread that saves it share it without a lock.

use cellblock_wire::device::MAX_PORTS;

/// How driver and device stand: bit 0 the driver is ready; for port N bits 8 N + 8 up: added, ready, open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Standing(u64);

/// How they stand with a port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PortState {
    /// The driver was told that there is this port.
    pub added: bool,
    /// The driver said that it uses it.
    pub ready: bool,
    /// The driver has its end open.
    pub open: bool,
}

const DEVICE_READY: u64 = 1;
const ADDED: u64 = 1;
const READY: u64 = 2;
const OPEN: u64 = 4;

impl Standing {
    /// Whether the driver said that it is ready.
    pub fn device_ready(self) -> bool {
        self.0 & DEVICE_READY != 0
    }

    pub(crate) fn set_device_ready(&mut self, yes: bool) {
        self.0 = self.0 & !DEVICE_READY | if yes { DEVICE_READY } else { 0 };
    }

    /// Of port `port`; of one that cannot be, nothing.
    pub fn port(self, port: usize) -> PortState {
        let bits = if port < MAX_PORTS { self.0 >> (8 * port + 8) } else { 0 };
        PortState { added: bits & ADDED != 0, ready: bits & READY != 0, open: bits & OPEN != 0 }
    }

    pub(crate) fn set_port(&mut self, port: usize, state: PortState) {
        if port < MAX_PORTS {
            let bit = |yes: bool, bit| if yes { bit } else { 0 };
            let bits = bit(state.added, ADDED) | bit(state.ready, READY) | bit(state.open, OPEN);
            let shift = 8 * port + 8;
            self.0 = self.0 & !(0xff << shift) | bits << shift;
        }
    }

    /// As it is saved.
    pub fn to_word(self) -> u64 {
        self.0
    }

    /// What was saved: only bits of [`legal`](Self::legal) are.
    pub fn from_word(word: u64) -> Self {
        Standing(word)
    }

    /// The bits that a console of `ports` ports may save.
    pub fn legal(ports: usize) -> u64 {
        (0..ports.min(MAX_PORTS)).fold(DEVICE_READY, |legal, port| legal | 7 << (8 * port + 8))
    }
}
