//! One stream between a port of the guest and a Unix socket of the host: what the packets of the guest mean in its state, and
//! what packet it owes the guest. No input or output happens here.

use crate::credit::Credit;
use crate::spec::{Header, op, shutdown};

use cellblock_sdk::device::SECOND;

/// How long a client may take for its first line, in ns.
pub const GREETING_TIME: u64 = 30 * SECOND;
/// How long a guest may take to answer a REQUEST.
pub const REQUEST_TIME: u64 = 10 * SECOND;
/// How long the front may take to connect.
pub const OPENING_TIME: u64 = 5 * SECOND;
/// How long the guest may take to answer the end of both directions with a RST.
pub const CLOSING_TIME: u64 = 8 * SECOND;
/// How long a host program may rest while bytes of a guest that has closed wait for it.
pub const DRAINING_TIME: u64 = 30 * SECOND;
/// The longest first line, its newline among it: `CONNECT 4294967295` and some blanks.
pub const LINE_BYTES: usize = 32;

/// A connection's name; the contexts are always the host and the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ports {
    /// The host's.
    pub host: u32,
    /// The guest's.
    pub guest: u32,
}

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// A host program has connected; its first line is being read, so many bytes of which are there.
    Greeting {
        /// The line so far.
        line: [u8; LINE_BYTES],
        /// Its length.
        length: usize,
    },
    /// The guest was asked, or is about to be.
    Requested,
    /// The guest asks, and the front connects.
    Opening {
        /// What its answer is known by.
        id: u64,
    },
    /// Bytes go both ways.
    Open,
    /// The guest has ended both directions; what it sent before still goes to the host.
    Draining,
    /// Only its RST is still owed.
    Dead,
}

/// What a connection owes the guest next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// A packet without bytes.
    Control {
        /// See [`op`].
        op: u16,
        /// Its flags.
        flags: u32,
    },
    /// At most so many bytes of the host, of which there may be some.
    Bytes(u32),
    /// Nothing.
    Nothing,
}

/// What follows from a packet of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing more than was noted.
    Noted,
    /// The bytes of the packet are to be taken.
    Take,
    /// The guest has accepted.
    Accepted,
    /// The guest sends no more, receives no more, or both.
    Ended,
    /// The connection is no more; the guest knows.
    Gone,
    /// The guest breaks the rules: the connection is reset.
    Broken,
}

/// A connection. Its bytes lie in [`Backlogs`](crate::backlog::Backlogs), its stream with the [`Device`](crate::device::Vsock).
#[derive(Debug)]
pub struct Connection {
    /// How far it is.
    pub state: State,
    /// `None` before the first line is read, and once the guest may use the ports anew.
    pub ports: Option<Ports>,
    /// Who may send how much.
    pub credit: Credit,
    /// When its state has lasted too long, in ns of the monotonic clock.
    pub deadline: Option<u64>,
    /// The host's stream may have bytes, or its end.
    pub readable: bool,
    /// The host's stream may take bytes.
    pub writable: bool,
    /// Both directions of the host's stream are over.
    pub hung_up: bool,
    /// Bytes at the front of the backlog that are not the guest's.
    pub uncounted: usize,
    /// It stands in the row of those that owe the guest something.
    pub in_row: bool,
    /// The host's end was read.
    host_ended: bool,
    /// The host takes no more.
    host_deaf: bool,
    /// What the guest has ended ([`shutdown`]).
    guest_ended: u32,
    /// What the guest was told has ended.
    told: u32,
    owes_request: bool,
    owes_response: bool,
    owes_reset: bool,
    owes_credit: bool,
    /// The guest was asked for credit, and has not said anything since.
    asked_credit: bool,
}

impl Connection {
    /// A connection in `state`.
    pub fn new(state: State, ports: Option<Ports>, deadline: u64) -> Self {
        Connection {
            state,
            ports,
            credit: Credit::default(),
            deadline: Some(deadline),
            readable: false,
            writable: false,
            hung_up: false,
            uncounted: 0,
            in_row: false,
            host_ended: false,
            host_deaf: false,
            guest_ended: 0,
            told: 0,
            owes_request: false,
            owes_response: false,
            owes_reset: false,
            owes_credit: false,
            asked_credit: false,
        }
    }

    /// The first line has named the guest's port.
    pub fn request(&mut self, ports: Ports, now: u64) {
        (self.state, self.ports, self.owes_request) = (State::Requested, Some(ports), true);
        self.deadline = Some(now + REQUEST_TIME);
    }

    /// The host's listener has taken the connection that the guest wants.
    pub fn respond(&mut self) {
        (self.state, self.owes_response, self.deadline) = (State::Open, true, None);
    }

    /// It ends at once; the guest is told, if it knows of it.
    pub fn kill(&mut self) {
        // One that is still greeting, or drains and has paid what it owed, is none to the guest.
        (self.owes_reset, self.owes_request, self.owes_response) = (self.ports.is_some(), false, false);
        (self.state, self.deadline) = (State::Dead, None);
    }

    /// The guest knows of its end, or never heard of it.
    pub fn absolve(&mut self) {
        self.owes_reset = false;
    }

    /// A packet of the guest with these ports, whose `len` bytes are there.
    pub fn hear(&mut self, header: &Header, now: u64) -> Verdict {
        if header.op == op::RST {
            return Verdict::Gone;
        }
        if matches!(self.state, State::Draining | State::Dead) {
            // It does not know yet.
            return Verdict::Noted;
        }
        self.credit.hear(header);
        self.asked_credit = false;
        match (header.op, self.state) {
            (op::RESPONSE, State::Requested) if !self.owes_request => {
                (self.state, self.deadline) = (State::Open, None);
                Verdict::Accepted
            }
            (op::RW, State::Open) => {
                let may = self.guest_ended & shutdown::SEND == 0 && self.credit.receive(header.len);
                if may { Verdict::Take } else { Verdict::Broken }
            }
            (op::SHUTDOWN, State::Open) => self.hear_end(header.flags, now),
            (op::CREDIT_UPDATE, State::Open) => Verdict::Noted,
            (op::CREDIT_REQUEST, State::Open) => {
                self.owes_credit = true;
                Verdict::Noted
            }
            _ => Verdict::Broken,
        }
    }

    fn hear_end(&mut self, flags: u32, now: u64) -> Verdict {
        self.guest_ended |= flags & shutdown::BOTH;
        if self.guest_ended == shutdown::BOTH {
            (self.state, self.owes_reset) = (State::Draining, true);
            self.deadline = Some(now + DRAINING_TIME);
        }
        Verdict::Ended
    }

    /// `bytes` have gone to the host, or nowhere because it takes no more.
    pub fn forwarded(&mut self, bytes: usize, now: u64) {
        let greeting = bytes.min(self.uncounted);
        self.uncounted -= greeting;
        // No more is in a backlog than 32 bits count.
        self.credit.forward((bytes - greeting) as u32);
        if self.state == State::Draining && bytes > 0 {
            self.deadline = Some(now + DRAINING_TIME);
        }
    }

    /// The host sends no more.
    pub fn end_host(&mut self, now: u64) {
        self.host_ended = true;
        self.host_deaf |= self.hung_up;
        self.await_reset(now);
    }

    /// The host takes no more.
    pub fn deafen_host(&mut self, now: u64) {
        self.host_deaf = true;
        self.await_reset(now);
    }

    /// Both ends will have been told; the guest answers with a RST.
    fn await_reset(&mut self, now: u64) {
        if self.state == State::Open && self.ended() == shutdown::BOTH && self.deadline.is_none() {
            self.deadline = Some(now + CLOSING_TIME);
        }
    }

    /// What the host has ended, as the guest is told.
    fn ended(&self) -> u32 {
        let flag = |set, flag| if set { flag } else { 0 };
        flag(self.host_ended, shutdown::SEND) | flag(self.host_deaf, shutdown::RECEIVE)
    }

    /// Whether the host takes no more.
    pub fn is_deaf(&self) -> bool {
        self.host_deaf
    }

    /// Whether the guest sends no more.
    pub fn is_guest_silent(&self) -> bool {
        self.guest_ended & shutdown::SEND != 0
    }

    /// Whether the guest takes no more.
    pub fn is_guest_deaf(&self) -> bool {
        self.guest_ended & shutdown::RECEIVE != 0
    }

    /// What is owed next; the most urgent first.
    pub fn next(&self) -> Next {
        let control = |op| Next::Control { op, flags: 0 };
        if self.owes_reset {
            return control(op::RST);
        }
        if self.owes_request {
            return control(op::REQUEST);
        }
        if self.owes_response {
            return control(op::RESPONSE);
        }
        if self.state != State::Open {
            return Next::Nothing;
        }
        let wants = self.readable && !self.host_ended && !self.is_guest_deaf();
        match self.credit.room() {
            0 if wants && !self.asked_credit => control(op::CREDIT_REQUEST),
            room if wants && room > 0 => Next::Bytes(room),
            _ if self.owes_credit || self.credit.is_worth_telling() => control(op::CREDIT_UPDATE),
            _ if self.ended() & !self.told != 0 => Next::Control { op: op::SHUTDOWN, flags: self.ended() },
            _ => Next::Nothing,
        }
    }

    /// A packet goes to the guest now: fills in the credit, and takes it off what is owed.
    pub fn tell(&mut self, header: &mut Header) {
        self.credit.tell(header);
        self.owes_credit = false;
        match header.op {
            op::RST => self.owes_reset = false,
            op::REQUEST => self.owes_request = false,
            op::RESPONSE => self.owes_response = false,
            op::CREDIT_REQUEST => self.asked_credit = true,
            op::SHUTDOWN => self.told |= header.flags,
            op::RW => self.credit.send(header.len),
            _ => {}
        }
    }
}

/// The guest's port in the first line of a client, its newline cut off: `CONNECT 52`, in any case and with any blanks.
pub fn parse_line(line: &[u8]) -> Option<u32> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let connect = words.next()?.eq_ignore_ascii_case("connect");
    let port = words.next()?;
    // `parse` would take a plus sign.
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    if connect && digits && words.next().is_none() { port.parse().ok() } else { None }
}
