//! The connections with their streams and backlogs: bytes on their way from guest to host and from host to guest.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use cellblock_sdk::virtio::Chain;
use cellblock_wire::vsock::Wanted;
use rustix::io::Errno;
use rustix::net::{Shutdown, shutdown};

use crate::backlog::Backlogs;
use crate::connection::{
    Connection, GREETING_TIME, LINE_BYTES, Next, OPENING_TIME, Ports, State, Verdict, parse_line,
};
use crate::host::Host;
use crate::spec::{HEADER_BYTES, Header, MAX_CONNECTIONS, MAX_PAYLOAD, op};
use crate::table::Table;

/// Streams that are attended to between two packets' batches.
const STIRRED: usize = 64;

/// What became of a turn in the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// So many bytes were written to the guest's buffer, which is used.
    Packet(u32),
    /// There was nothing to send.
    Nothing,
}

/// All streams.
#[derive(Debug)]
pub struct Streams {
    /// Who brings them and tells of them.
    pub host: Host,
    /// What is known of them.
    pub table: Table,
    backlogs: Backlogs,
    next_id: u64,
    /// Those to attend to; kept for its memory.
    stirred: Vec<usize>,
}

impl Streams {
    /// None yet. The front's answers are known by ids from `first_id` on, and ports are given from some place on that goes with
    /// it: what a predecessor's were may still be in the front's or the guest's memory.
    pub fn new(host: Host, first_id: u64) -> Self {
        Streams {
            host,
            // Of nanoseconds, those that change from one start to the next and not much faster than ports are given.
            table: Table::new((first_id >> 20) as u32),
            backlogs: Backlogs::default(),
            next_id: first_id,
            stirred: Vec::with_capacity(STIRRED),
        }
    }

    /// Attends to the streams that something has happened to; whether there may be more.
    pub fn look(&mut self, now: u64) -> bool {
        let mut stirred = std::mem::take(&mut self.stirred);
        stirred.clear();
        let table = &mut self.table;
        let more = self.host.look(|stir| stirred.extend(table.stir(stir)));
        for slot in &stirred {
            self.attend(*slot, now);
        }
        self.stirred = stirred;
        more
    }

    fn attend(&mut self, slot: usize, now: u64) {
        let Some(seat) = self.table.get(slot) else { return };
        match seat.connection.state {
            State::Greeting { .. } => self.read_line(slot, now),
            _ => self.flush(slot, now),
        }
        self.table.line_up(slot);
    }

    /// A host program has connected.
    pub fn accepted(&mut self, stream: OwnedFd, now: u64) {
        let greeting = State::Greeting { line: [0; LINE_BYTES], length: 0 };
        // One too many is closed, which is its answer.
        let Some(slot) = self.table.add(Connection::new(greeting, None, now + GREETING_TIME)) else { return };
        if !self.give_stream(slot, stream) {
            self.remove(slot);
        }
    }

    /// The guest wants to connect to `ports.host`; whether that was begun.
    pub fn open(&mut self, header: &Header, ports: Ports, now: u64) -> bool {
        let id = self.next_id;
        let mut connection = Connection::new(State::Opening { id }, Some(ports), now + OPENING_TIME);
        connection.credit.hear(header);
        let Some(slot) = self.table.add(connection) else { return false };
        self.next_id = self.next_id.wrapping_add(1);
        let asked = self.host.ask(Wanted { id, port: ports.host });
        if !asked {
            self.remove(slot);
        }
        asked
    }

    /// The front has connected for the guest.
    pub fn connected(&mut self, id: u64, stream: OwnedFd, now: u64) {
        // Nobody waits for it any more: it is closed.
        let Some(slot) = self.table.opening(id) else { return };
        if !self.give_stream(slot, stream) {
            return self.kill(slot);
        }
        if let Some(seat) = self.table.get(slot) {
            seat.connection.respond();
        }
        self.attend(slot, now);
    }

    /// The front has not.
    pub fn refused(&mut self, id: u64) {
        if let Some(slot) = self.table.opening(id) {
            self.kill(slot);
        }
    }

    fn give_stream(&mut self, slot: usize, stream: OwnedFd) -> bool {
        let watched = self.host.watch(&stream, self.table.token(slot));
        if let Some(seat) = self.table.get(slot) {
            seat.stream = Some(stream);
        }
        watched
    }

    /// The client's first line, byte by byte: what follows is the guest's.
    fn read_line(&mut self, slot: usize, now: u64) {
        let Some(seat) = self.table.get(slot) else { return };
        let (connection, Some(stream)) = (&mut seat.connection, &seat.stream) else { return };
        let State::Greeting { line, length } = &mut connection.state else { return };
        let mut ended = None;
        while let Some(place) = line.get_mut(*length..=*length) {
            match rustix::io::read(stream, &mut *place) {
                Ok(1..) if place == b"\n" => {
                    ended = line.get(..*length).and_then(parse_line);
                    break;
                }
                Ok(1..) => *length += 1,
                Err(Errno::AGAIN) => {
                    connection.readable = false;
                    return;
                }
                Err(Errno::INTR) => {}
                Ok(0) | Err(_) => break,
            }
        }
        let Some(guest) = ended else { return self.remove(slot) };
        let ports = Ports { host: self.table.free_port(), guest };
        self.table.name(slot, ports);
        if let Some(seat) = self.table.get(slot) {
            seat.connection.request(ports, now);
        }
    }

    /// The guest has accepted the client's connection.
    pub fn greet(&mut self, slot: usize, now: u64) {
        let Some(seat) = self.table.get(slot) else { return };
        let Some(ports) = seat.connection.ports else { return };
        let answer = answer(ports.host);
        seat.connection.uncounted = answer.len();
        let mut rest = answer.as_bytes();
        self.backlogs.append(slot, answer.len(), |piece| {
            let (now, later) = rest.split_at_checked(piece.len()).unwrap_or_default();
            piece.iter_mut().zip(now).for_each(|(to, from)| *to = *from);
            rest = later;
            true
        });
        self.flush(slot, now);
        self.table.line_up(slot);
    }

    /// What a packet of the guest means.
    pub fn hear(&mut self, slot: usize, header: &Header, whole: bool, now: u64) -> Verdict {
        let Some(seat) = self.table.get(slot) else { return Verdict::Noted };
        if whole || header.op == op::RST { seat.connection.hear(header, now) } else { Verdict::Broken }
    }

    /// `length` bytes of the guest: to the stream as far as it takes them, the rest to the backlog.
    pub fn to_host(&mut self, slot: usize, chain: &mut Chain<'_>, length: u32, now: u64) {
        let Some(seat) = self.table.get(slot) else { return };
        let (connection, Some(stream)) = (&mut seat.connection, &seat.stream) else { return };
        let mut left = length;
        // What waits already goes first.
        while left > 0 && connection.writable && !connection.is_deaf() && self.backlogs.length(slot) == 0 {
            match chain.send_to(stream.as_fd(), None, left.into()) {
                Ok(sent @ 1..) => {
                    left -= sent as u32;
                    connection.forwarded(sent, now);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => connection.writable = false,
                Ok(0) => return self.kill(slot),
                Err(error) if is_guests_fault(&error) => return self.kill(slot),
                Err(_) => connection.deafen_host(now),
            }
        }
        if connection.is_deaf() {
            connection.forwarded(left as usize, now);
        } else if !self.backlogs.append(slot, left as usize, |piece| chain.read(piece).is_ok()) {
            return self.kill(slot);
        }
        self.table.line_up(slot);
    }

    /// The guest has ended a direction or both.
    pub fn end_guest(&mut self, slot: usize, now: u64) {
        if let Some(seat) = self.table.get(slot)
            && seat.connection.is_guest_deaf()
            && let Some(stream) = &seat.stream
        {
            // The far end finds out when it writes.
            let _ = shutdown(stream, Shutdown::Read);
        }
        self.flush(slot, now);
        self.table.line_up(slot);
    }

    /// The guest has reset the connection, or answered its end.
    pub fn guest_is_gone(&mut self, slot: usize) {
        let drains = self.table.get(slot).is_some_and(|seat| seat.connection.state == State::Draining);
        if !drains {
            return self.remove(slot);
        }
        // What it sent before still goes to the host.
        self.paid_reset(slot);
    }

    /// Gives the host what waits for it, and then the guest's end.
    fn flush(&mut self, slot: usize, now: u64) {
        let Some(seat) = self.table.get(slot) else { return };
        let (connection, Some(stream)) = (&mut seat.connection, &seat.stream) else { return };
        // A ring is two pieces at most, and a piece may go in parts.
        while connection.writable && !connection.is_deaf() && self.backlogs.length(slot) > 0 {
            match rustix::io::write(stream, self.backlogs.front(slot)) {
                Ok(count) => {
                    self.backlogs.drop_front(slot, count);
                    connection.forwarded(count, now);
                }
                Err(Errno::AGAIN) => connection.writable = false,
                Err(Errno::INTR) => {}
                Err(_) => connection.deafen_host(now),
            }
        }
        if connection.is_deaf() {
            let lost = self.backlogs.length(slot);
            connection.forwarded(lost, now);
            self.backlogs.clear(slot);
        }
        if self.backlogs.length(slot) > 0 || !connection.is_guest_silent() {
            return;
        }
        let _ = shutdown(stream, Shutdown::Write);
        if connection.state == State::Draining {
            self.close_stream(slot);
            self.remove_if_paid(slot);
        }
    }

    /// One packet of the connection in `slot`, whose turn it is, into the buffer that `chain` gives. `header` is blank but for
    /// the contexts.
    pub fn to_guest<'q>(
        &mut self,
        slot: usize,
        chain: impl Fn() -> Chain<'q>,
        mut header: Header,
        now: u64,
    ) -> Sent {
        // The host's bytes, or that there are none; its end; and what else is owed.
        for _ in 0..4 {
            let Some(seat) = self.table.get(slot) else { return Sent::Nothing };
            let (connection, stream) = (&mut seat.connection, &seat.stream);
            let Some(ports) = connection.ports else { return Sent::Nothing };
            (header.src_port, header.dst_port) = (ports.host, ports.guest);
            match (connection.next(), stream) {
                (Next::Nothing, _) => return Sent::Nothing,
                (Next::Control { op, flags }, _) => {
                    (header.op, header.flags, header.len) = (op, flags, 0);
                }
                (Next::Bytes(_), None) => return Sent::Nothing,
                (Next::Bytes(most), Some(stream)) => {
                    let mut payload = chain();
                    let most = most.min(MAX_PAYLOAD);
                    if payload.skip_writable(HEADER_BYTES as u64).is_err() || payload.writable() == 0 {
                        // No room for bytes: the buffer goes back, and the next may be larger.
                        self.table.line_up(slot);
                        return Sent::Packet(0);
                    }
                    match payload.fill_from(stream.as_fd(), None, most.into()) {
                        Ok(0) => {
                            connection.end_host(now);
                            continue;
                        }
                        Ok(count) => (header.op, header.len) = (op::RW, count as u32),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            connection.readable = false;
                            continue;
                        }
                        Err(error) if is_guests_fault(&error) => {
                            self.table.line_up(slot);
                            return Sent::Packet(0);
                        }
                        Err(_) => {
                            connection.deafen_host(now);
                            connection.end_host(now);
                            continue;
                        }
                    }
                }
            }
            connection.tell(&mut header);
            // A header that the guest gave no memory for is lost, and so is the connection's order: its own doing.
            let written = chain().write(&header.encode()).map_or(0, |()| HEADER_BYTES as u32 + header.len);
            if header.op == op::RST {
                self.paid_reset(slot);
            }
            self.table.line_up(slot);
            return Sent::Packet(written);
        }
        Sent::Nothing
    }

    /// The guest knows that the connection has ended: it may use the ports anew.
    fn paid_reset(&mut self, slot: usize) {
        self.table.unname(slot);
        if let Some(seat) = self.table.get(slot) {
            seat.connection.absolve();
        }
        self.remove_if_paid(slot);
    }

    fn remove_if_paid(&mut self, slot: usize) {
        let done =
            self.table.get(slot).is_some_and(|seat| seat.connection.ports.is_none() && seat.stream.is_none());
        if done {
            self.remove(slot);
        }
    }

    /// Resets the connection: the stream is closed now, the guest is told when it has a buffer for it.
    pub fn kill(&mut self, slot: usize) {
        self.close_stream(slot);
        if let Some(seat) = self.table.get(slot) {
            seat.connection.kill();
        }
        self.remove_if_paid(slot);
        self.table.line_up(slot);
    }

    /// What has lasted too long ends.
    pub fn expire(&mut self, now: u64) {
        for _ in 0..MAX_CONNECTIONS {
            let Some(slot) = self.table.late(now) else { return };
            let drains = self.table.get(slot).is_some_and(|seat| seat.connection.state == State::Draining);
            if !drains {
                self.kill(slot);
                continue;
            }
            self.close_stream(slot);
            if let Some(seat) = self.table.get(slot) {
                // Its RST has no deadline.
                seat.connection.deadline = None;
            }
            self.remove_if_paid(slot);
        }
    }

    /// Every stream is closed, and the guest is told nothing.
    pub fn close_all(&mut self) {
        for slot in 0..MAX_CONNECTIONS {
            self.remove(slot);
        }
    }

    fn remove(&mut self, slot: usize) {
        self.close_stream(slot);
        self.table.remove(slot);
    }

    fn close_stream(&mut self, slot: usize) {
        self.backlogs.clear(slot);
        let stream = self.table.get(slot).and_then(|seat| seat.stream.take());
        if let Some(stream) = stream {
            self.host.forget(stream.as_fd());
        }
    }
}

/// What a client is told once the guest has accepted: `OK` and the host's port, in the room that a backlog has for it.
fn answer(port: u32) -> String {
    format!("OK {port}\n")
}

/// Whether a transfer failed for the guest's buffers, not for the stream.
fn is_guests_fault(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::FAULT.raw_os_error())
}
