//! The connections there are: by slot, by ports, and in the row of those that owe the guest something.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;

use crate::connection::{Connection, Next, Ports, State};
use crate::host::Stir;
use crate::spec::{FIRST_PORT, MAX_CONNECTIONS};

/// A connection and its stream, which is not there yet while the front connects, and closed before the last RST is sent.
#[derive(Debug)]
pub struct Seat {
    /// What is known of it.
    pub connection: Connection,
    /// The host's stream.
    pub stream: Option<OwnedFd>,
    /// Which of those that sat here it is: news of an earlier one may still come.
    generation: u32,
}

/// All connections. What it needs of memory it has from the start.
#[derive(Debug)]
pub struct Table {
    seats: Box<[Option<Seat>]>,
    free: Vec<usize>,
    by_ports: HashMap<Ports, usize>,
    row: VecDeque<usize>,
    generation: u32,
    next_port: u32,
    /// No deadline is earlier; `u64::MAX` = there is none.
    earliest: u64,
}

impl Table {
    /// Nobody. Ports are given from [`FIRST_PORT`] and `offset` on.
    pub fn new(offset: u32) -> Self {
        Table {
            seats: (0..MAX_CONNECTIONS).map(|_| None).collect(),
            free: (0..MAX_CONNECTIONS).rev().collect(),
            by_ports: HashMap::with_capacity(MAX_CONNECTIONS),
            row: VecDeque::with_capacity(MAX_CONNECTIONS),
            generation: 0,
            next_port: FIRST_PORT + offset % FIRST_PORT,
            earliest: u64::MAX,
        }
    }

    /// Seats a connection, under its ports if it has some, which are nobody else's; its slot. `None` = there are
    /// [`MAX_CONNECTIONS`] already.
    pub fn add(&mut self, connection: Connection) -> Option<usize> {
        let slot = self.free.pop()?;
        self.generation = self.generation.wrapping_add(1);
        if let Some(ports) = connection.ports {
            self.by_ports.insert(ports, slot);
        }
        self.earliest = self.earliest.min(connection.deadline.unwrap_or(u64::MAX));
        let seat = Seat { connection, stream: None, generation: self.generation };
        if let Some(place) = self.seats.get_mut(slot) {
            *place = Some(seat);
        }
        Some(slot)
    }

    /// Who sits in `slot`.
    pub fn get(&mut self, slot: usize) -> Option<&mut Seat> {
        self.seats.get_mut(slot)?.as_mut()
    }

    /// Empties `slot`.
    pub fn remove(&mut self, slot: usize) -> Option<Seat> {
        let seat = self.seats.get_mut(slot)?.take()?;
        if let Some(ports) = seat.connection.ports {
            self.by_ports.remove(&ports);
        }
        if seat.connection.in_row {
            self.row.retain(|other| *other != slot);
        }
        self.free.push(slot);
        Some(seat)
    }

    /// Slots that are not empty.
    pub fn taken(&self) -> impl Iterator<Item = usize> {
        let taken = |(slot, seat): (usize, &Option<Seat>)| seat.is_some().then_some(slot);
        self.seats.iter().enumerate().filter_map(taken)
    }

    /// Who has these ports.
    pub fn find(&self, ports: Ports) -> Option<usize> {
        self.by_ports.get(&ports).copied()
    }

    /// Gives the connection in `slot`, which has none, its ports.
    pub fn name(&mut self, slot: usize, ports: Ports) {
        self.by_ports.insert(ports, slot);
    }

    /// Takes the ports of the connection in `slot`: the guest may use them anew.
    pub fn unname(&mut self, slot: usize) {
        let ports = self.get(slot).and_then(|seat| seat.connection.ports.take());
        ports.map(|ports| self.by_ports.remove(&ports));
    }

    /// A port of the host that no connection has, and that was not used lately.
    pub fn free_port(&mut self) -> u32 {
        let mut port = self.next_port;
        // As many have one as there are connections, so one of so many more is free.
        for _ in 0..MAX_CONNECTIONS {
            if !self.by_ports.keys().any(|ports| ports.host == port) {
                break;
            }
            port = after(port);
        }
        self.next_port = after(port);
        port
    }

    /// Who waits for the front's answer `id`.
    pub fn opening(&self, id: u64) -> Option<usize> {
        let waits = |seat: &Option<Seat>| {
            seat.as_ref().is_some_and(|seat| seat.connection.state == State::Opening { id })
        };
        self.seats.iter().position(waits)
    }

    /// What the stream of `slot` is watched under.
    pub fn token(&self, slot: usize) -> u64 {
        let generation = self.seats.get(slot).and_then(Option::as_ref).map_or(0, |seat| seat.generation);
        u64::from(generation) << 32 | slot as u64
    }

    /// Notes what has happened to a stream; whose it is.
    pub fn stir(&mut self, stir: Stir) -> Option<usize> {
        let slot = (stir.token & u64::from(u32::MAX)) as usize;
        if self.token(slot) != stir.token {
            return None;
        }
        let connection = &mut self.get(slot)?.connection;
        connection.readable |= stir.readable;
        connection.writable |= stir.writable;
        connection.hung_up |= stir.hung_up;
        Some(slot)
    }

    /// Puts `slot` into the row, if it owes the guest something.
    pub fn line_up(&mut self, slot: usize) {
        let Some(seat) = self.get(slot) else { return };
        let connection = &mut seat.connection;
        let earlier = connection.deadline.unwrap_or(u64::MAX);
        let joins = !connection.in_row && connection.next() != Next::Nothing;
        connection.in_row |= joins;
        self.earliest = self.earliest.min(earlier);
        if joins {
            self.row.push_back(slot);
        }
    }

    /// Whether nobody is in the row.
    pub fn is_row_empty(&self) -> bool {
        self.row.is_empty()
    }

    /// Takes the first of the row, who may line up again behind the others.
    pub fn first_of_row(&mut self) -> Option<usize> {
        let slot = self.row.pop_front()?;
        if let Some(seat) = self.get(slot) {
            seat.connection.in_row = false;
        }
        Some(slot)
    }

    /// When to look for those that have lasted too long.
    pub fn deadline(&self) -> Option<u64> {
        (self.earliest != u64::MAX).then_some(self.earliest)
    }

    /// One whose deadline has passed; `None` = there is none more.
    pub fn late(&mut self, now: u64) -> Option<usize> {
        if now < self.earliest {
            return None;
        }
        let mut earliest = u64::MAX;
        for (slot, seat) in self.seats.iter().enumerate() {
            match seat.as_ref().and_then(|seat| seat.connection.deadline) {
                Some(deadline) if deadline <= now => return Some(slot),
                Some(deadline) => earliest = earliest.min(deadline),
                None => {}
            }
        }
        self.earliest = earliest;
        None
    }
}

fn after(port: u32) -> u32 {
    // The last one is VMADDR_PORT_ANY.
    if port >= u32::MAX - 1 { FIRST_PORT } else { port + 1 }
}
