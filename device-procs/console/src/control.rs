//! The control queues (Virtio 1.3 §5.3.6.2): who has said what of which port, and what is still to be said.
//!
//! What the device has to say is kept as bits, not as a list: however often a driver asks, there is no more than one message
//! of each kind for each port.

use cellblock_sdk::virtio::{Chain, ChainError};
use cellblock_wire::device::{ConsoleConfig, PORT_NAME_BYTES};

use crate::spec::{MESSAGE_BYTES, RESIZE_BYTES, event};
use crate::state::{PortState, Standing};

/// The longest message to a driver.
const LONGEST: usize =
    MESSAGE_BYTES + if PORT_NAME_BYTES > RESIZE_BYTES { PORT_NAME_BYTES } else { RESIZE_BYTES };

/// A control message without what may follow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// The port's number.
    pub port: u32,
    /// One of [`event`].
    pub event: u16,
    /// What it says.
    pub value: u16,
}

impl Message {
    /// The message at the beginning of `chain`'s readable part; what follows it there is not looked at.
    ///
    /// # Errors
    /// The chain is too short, or not in guest memory.
    pub fn read(chain: &mut Chain<'_>) -> Result<Message, ChainError> {
        let mut bytes = [0; MESSAGE_BYTES];
        chain.read(&mut bytes)?;
        let [p0, p1, p2, p3, e0, e1, v0, v1] = bytes;
        Ok(Message {
            port: u32::from_le_bytes([p0, p1, p2, p3]),
            event: u16::from_le_bytes([e0, e1]),
            value: u16::from_le_bytes([v0, v1]),
        })
    }

    /// As it lies in guest memory.
    pub fn bytes(self) -> [u8; MESSAGE_BYTES] {
        let ([p0, p1, p2, p3], [e0, e1]) = (self.port.to_le_bytes(), self.event.to_le_bytes());
        let [v0, v1] = self.value.to_le_bytes();
        [p0, p1, p2, p3, e0, e1, v0, v1]
    }
}

/// What is to be told of a port, as bits in the order in which it is told.
mod due {
    pub(super) const ADD: u8 = 1 << 0;
    pub(super) const CONSOLE: u8 = 1 << 1;
    pub(super) const NAME: u8 = 1 << 2;
    pub(super) const SIZE: u8 = 1 << 3;
    pub(super) const OPEN: u8 = 1 << 4;
}

/// A console's size in characters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    /// Width; 0 = not known.
    pub columns: u16,
    /// Height; 0 = not known.
    pub rows: u16,
}

impl Size {
    /// Whether it is known.
    pub fn is_known(self) -> bool {
        self != Size::default()
    }
}

/// The device's end of the control queues.
#[derive(Debug)]
pub struct Control {
    names: Vec<String>,
    standing: Standing,
    due: Vec<u8>,
    size: Size,
}

impl Control {
    /// As after a reset.
    pub fn new(config: &ConsoleConfig) -> Self {
        let size = Size { columns: config.columns, rows: config.rows };
        Control {
            names: config.ports.clone(),
            standing: Standing::default(),
            due: vec![0; config.ports.len()],
            size,
        }
    }

    /// The driver has let go of the control queues: it knows of no port any more.
    pub fn reset(&mut self) {
        self.standing = Standing::default();
        self.due.fill(0);
    }

    /// Goes on where a predecessor stood: what it may not have got round to say is said again, but for what must not be
    /// said twice (`DEVICE_ADD`).
    pub fn resume(&mut self, standing: Standing) {
        self.standing = standing;
        for port in 0..self.due.len() {
            let state = standing.port(port);
            let again = if state.ready { self.introduction(port) } else { 0 };
            let add = if standing.device_ready() && !state.added { due::ADD } else { 0 };
            self.set_due(port, again | add);
        }
    }

    /// What is to survive this process.
    pub fn standing(&self) -> Standing {
        self.standing
    }

    /// Whether the driver's end of `port` is open.
    pub fn is_open(&self, port: usize) -> bool {
        self.standing.port(port).open
    }

    /// The terminal has this size.
    pub fn resize(&mut self, size: Size) {
        if self.size == size {
            return;
        }
        self.size = size;
        if self.standing.port(0).ready {
            self.add_due(0, due::SIZE);
        }
    }

    /// Takes a driver's message. One that makes no sense, or is of a port that is not there, changes nothing.
    pub fn take(&mut self, message: Message) {
        let yes = match message.value {
            0 => false,
            1 => true,
            _ => return,
        };
        if message.event == event::DEVICE_READY {
            return self.device_ready(yes);
        }
        let Some(port) = usize::try_from(message.port).ok().filter(|port| *port < self.due.len()) else {
            return;
        };
        let state = self.standing.port(port);
        match message.event {
            event::PORT_READY if state.added => {
                self.standing.set_port(port, PortState { ready: yes, ..state });
                self.set_due(port, if yes { self.introduction(port) } else { 0 });
            }
            event::PORT_OPEN if state.added => self.standing.set_port(port, PortState { open: yes, ..state }),
            _ => {}
        }
    }

    /// §5.3.6.2.1: each port is added once.
    fn device_ready(&mut self, yes: bool) {
        self.standing.set_device_ready(yes);
        for port in 0..self.due.len() {
            if !yes {
                self.set_due(port, 0);
            } else if !self.standing.port(port).added {
                self.add_due(port, due::ADD);
            }
        }
    }

    /// All that is told of a port that is ready.
    fn introduction(&self, port: usize) -> u8 {
        let console = if port == 0 { due::CONSOLE } else { 0 };
        let size = if port == 0 && self.size.is_known() { due::SIZE } else { 0 };
        let named = self.names.get(port).is_some_and(|name| !name.is_empty());
        console | size | due::OPEN | if named { due::NAME } else { 0 }
    }

    fn set_due(&mut self, port: usize, bits: u8) {
        if let Some(due) = self.due.get_mut(port) {
            *due = bits;
        }
    }

    fn add_due(&mut self, port: usize, bits: u8) {
        if let Some(due) = self.due.get_mut(port) {
            *due |= bits;
        }
    }

    /// Whether there is something to say.
    pub fn has_next(&self) -> bool {
        self.due.iter().any(|due| *due != 0)
    }

    /// Says the next thing into the writable part of `chain`; how many bytes were written. What does not fit stays to be
    /// said.
    pub fn say(&mut self, chain: &mut Chain<'_>) -> u32 {
        let Some((port, bit)) = self.next() else { return 0 };
        let mut bytes = [0; LONGEST];
        let length = self.compose(port, bit, &mut bytes);
        let whole = bytes.get(..length).unwrap_or_default();
        if chain.write(whole).is_err() {
            // A used length of a message that is none: the driver finds nothing in its buffer.
            return 0;
        }
        if let Some(due) = self.due.get_mut(port) {
            *due &= !bit;
        }
        if bit == due::ADD {
            let state = self.standing.port(port);
            self.standing.set_port(port, PortState { added: true, ..state });
        }
        length as u32
    }

    fn next(&self) -> Option<(usize, u8)> {
        let (port, due) = self.due.iter().enumerate().find(|(_, due)| **due != 0)?;
        Some((port, due & due.wrapping_neg()))
    }

    /// Writes the message of `bit` for `port` to the beginning of `into`; its length.
    fn compose(&self, port: usize, bit: u8, into: &mut [u8; LONGEST]) -> usize {
        let (event, value) = match bit {
            due::ADD => (event::DEVICE_ADD, 1),
            due::CONSOLE => (event::CONSOLE_PORT, 1),
            due::NAME => (event::PORT_NAME, 1),
            due::SIZE => (event::RESIZE, 0),
            _ => (event::PORT_OPEN, 1),
        };
        let head = Message { port: port as u32, event, value }.bytes();
        let size = [self.size.columns.to_le_bytes(), self.size.rows.to_le_bytes()];
        let tail: &[u8] = match bit {
            due::NAME => self.names.get(port).map_or(&[], String::as_bytes),
            due::SIZE => size.as_flattened(),
            _ => &[],
        };
        let length = head.len() + tail.len().min(LONGEST - MESSAGE_BYTES);
        into.iter_mut().zip(head.iter().chain(tail)).for_each(|(to, from)| *to = *from);
        length
    }
}
