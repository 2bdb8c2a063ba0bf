//! A guest and a front that are just big enough, and what a socket device must do, wherever it is.
#![allow(clippy::unwrap_used, dead_code)] // Each test binary uses a part of it.

use std::collections::{HashMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use cellblock_channel::socket::{Control, pair};
use cellblock_sdk::testing::Host;
use cellblock_sdk::testing::conformance;
use cellblock_sdk::testing::virtio::{DATA, Driver, Segment};
use cellblock_vsock::spec::{HEADER_BYTES, HOST_CID, Header, QUEUE_SIZE, STREAM, feature, op, shutdown};
use cellblock_wire::device::VsockConfig;
use cellblock_wire::vsock::{Stream, Wanted};

mod local;
mod streams;
#[allow(unused_imports)] // Not every test has use for all.
pub use local::*;
#[allow(unused_imports)] // As above.
pub use streams::*;

pub const CID: u32 = 17;
pub const ALL: u64 = u64::MAX;
pub const CONFIG: VsockConfig = VsockConfig { cid: CID };
/// Room for bytes in each of the guest's buffers.
pub const ROOM: u32 = 4096;
/// The guest's buffers.
const BUFFERS: u64 = 32;
/// What the guest says of its own buffer.
pub const GUEST_BUFFER: u32 = 1 << 20;
const BUFFER_STRIDE: u64 = 0x2000;
const SENDING: u64 = DATA + BUFFERS * BUFFER_STRIDE;
/// Where packets are that wait.
const POSTING: u64 = DATA + 0x30_0000;
/// The guest's buffer for events.
pub const EVENT_PLACE: u64 = DATA + 0x40_0000;
const PATIENCE: Duration = Duration::from_secs(10);

/// What a driver finds.
pub const CONFORMING: conformance::Device<'static> = conformance::Device {
    id: 19,
    features: feature::STREAM | feature::NO_IMPLIED_STREAM,
    queues: 3,
    queue_size: QUEUE_SIZE,
    eager: &[1],
};

/// A guest's driver with its buffers, and the front's end of the worker's socket.
pub struct Guest<H> {
    pub driver: Driver<H>,
    pub front: Control,
    /// Where the chains of the receive queue lie.
    places: HashMap<u32, u64>,
    /// Packets that came while others were waited for.
    early: VecDeque<(Header, Vec<u8>)>,
    /// Bytes written and got, by connection.
    pub sent: HashMap<(u32, u32), u32>,
    got: HashMap<(u32, u32), u32>,
}

/// Ports of one connection: the host's, the guest's.
pub type Ports = (u32, u32);

/// Both ends of the front's socket: the front's, the worker's.
pub fn broker() -> (Control, OwnedFd) {
    let (ours, theirs) = pair().unwrap();
    (ours, theirs.into())
}

impl<H: Host> Guest<H> {
    pub fn new(driver: Driver<H>, front: Control) -> Self {
        Guest {
            driver,
            front,
            places: HashMap::new(),
            early: VecDeque::new(),
            sent: HashMap::new(),
            got: HashMap::new(),
        }
    }

    /// Sets the device up and gives it buffers.
    pub fn begin(&mut self, features: u64) {
        self.begin_without_buffers(features);
        (0..BUFFERS).for_each(|number| self.give(DATA + number * BUFFER_STRIDE, ROOM));
    }

    pub fn begin_without_buffers(&mut self, features: u64) {
        self.driver.begin(features, 3, 256);
        self.places.clear();
        self.early.clear();
        (self.sent, self.got) = Default::default();
    }

    /// Gives the device a buffer at `place` with room for `room` bytes of a stream.
    pub fn give(&mut self, place: u64, room: u32) {
        let chain = [Segment::write(place, HEADER_BYTES as u32), Segment::write(place + 0x100, room)];
        let head = self.driver.push(0, &chain[..1 + usize::from(room > 0)]);
        self.places.insert(head.into(), place);
        self.driver.kick(0);
    }

    /// Sends a packet without bytes, of which the device is not told.
    pub fn post(&mut self, ports: Ports, op: u16) {
        let place = POSTING + u64::from(op) * HEADER_BYTES as u64;
        self.driver.poke(place, &self.header(ports, op).encode());
        self.driver.push(1, &[Segment::read(place, HEADER_BYTES as u32)]);
    }

    /// Sends what `header` says, behind it `bytes`.
    pub fn send_raw(&mut self, header: &Header, bytes: &[u8]) {
        self.driver.poke(SENDING, &header.encode());
        self.driver.poke(SENDING + HEADER_BYTES as u64, bytes);
        let chain = [
            Segment::read(SENDING, HEADER_BYTES as u32),
            Segment::read(SENDING + HEADER_BYTES as u64, bytes.len() as u32),
        ];
        self.driver.push(1, &chain[..1 + usize::from(!bytes.is_empty())]);
        self.driver.kick(1);
        self.driver.wait_used(1);
    }

    /// A header as an honest guest has it.
    pub fn header(&self, ports: Ports, op: u16) -> Header {
        Header {
            src_cid: CID.into(),
            dst_cid: HOST_CID,
            src_port: ports.1,
            dst_port: ports.0,
            kind: STREAM,
            op,
            buf_alloc: GUEST_BUFFER,
            fwd_cnt: self.got.get(&ports).copied().unwrap_or(0),
            ..Header::default()
        }
    }

    /// Sends a packet without bytes.
    pub fn send(&mut self, ports: Ports, op: u16) {
        self.send_raw(&self.header(ports, op), &[]);
    }

    /// Ends what `flags` say.
    pub fn shut(&mut self, ports: Ports, flags: u32) {
        self.send_raw(&Header { flags, ..self.header(ports, op::SHUTDOWN) }, &[]);
    }

    /// Sends bytes, with no look at the credit.
    pub fn write(&mut self, ports: Ports, bytes: &[u8]) {
        self.send_raw(&Header { len: bytes.len() as u32, ..self.header(ports, op::RW) }, bytes);
        let sent = self.sent.entry(ports).or_default();
        *sent = sent.wrapping_add(bytes.len() as u32);
    }

    /// A packet of the host's, if there is one now.
    pub fn poll(&mut self) -> Option<(Header, Vec<u8>)> {
        let packet = self.poll_any();
        packet.inspect(|(header, _)| assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, CID.into())))
    }

    /// A packet, if there is one now.
    pub fn poll_any(&mut self) -> Option<(Header, Vec<u8>)> {
        if let Some(early) = self.early.pop_front() {
            return Some(early);
        }
        self.driver.kick(0);
        let (head, length) = self.driver.used(0)?;
        let place = self.places.remove(&head).unwrap();
        assert!(length >= HEADER_BYTES as u32, "a packet of {length} bytes");
        let header = Header::decode(&self.driver.peek(place, HEADER_BYTES).try_into().unwrap());
        let bytes = self.driver.peek(place + 0x100, length as usize - HEADER_BYTES);
        assert_eq!(header.len as usize, bytes.len());
        let got = self.got.entry((header.src_port, header.dst_port)).or_default();
        *got = got.wrapping_add(header.len);
        self.give(place, ROOM);
        Some((header, bytes))
    }

    /// The next packet.
    #[track_caller]
    pub fn recv(&mut self) -> (Header, Vec<u8>) {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(packet) = self.poll() {
                return packet;
            }
            assert!(Instant::now() < end, "no packet comes");
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// The next packet, which is without bytes, of this connection, and an `op`.
    #[track_caller]
    pub fn expect(&mut self, ports: Ports, op: u16) -> Header {
        let (header, bytes) = self.recv();
        assert_eq!((header.op, header.src_port, header.dst_port), (op, ports.0, ports.1), "{header:?}");
        assert!(bytes.is_empty());
        header
    }

    /// Receives until `count` bytes of the connection have come; other packets of it are dropped.
    #[track_caller]
    pub fn read(&mut self, ports: Ports, count: usize) -> Vec<u8> {
        let mut got = Vec::new();
        while got.len() < count {
            let (header, bytes) = self.recv();
            assert_eq!((header.src_port, header.dst_port), ports);
            assert_ne!(header.op, op::RST);
            got.extend(bytes);
        }
        assert_eq!(got.len(), count);
        got
    }

    /// Nothing has come, and nothing will for what was done so far: the answer to a stray packet, of no kind that there is, comes next. Sent twice, for
    /// answers to strays overtake what else is owed.
    #[track_caller]
    pub fn quiet(&mut self) {
        for stray in [(9, 1), (9, 2)] {
            self.send_raw(&Header { kind: 9, ..self.header(stray, op::CREDIT_UPDATE) }, &[]);
            self.expect(stray, op::RST);
        }
    }

    /// A host program that the front passes on.
    pub fn client(&mut self) -> UnixStream {
        let (near, far) = stream();
        self.front.send(&Stream::Accepted.encode(), &[far.as_fd()]).unwrap();
        near
    }

    /// A host program's connection to the guest's port, accepted.
    #[track_caller]
    pub fn accept(&mut self, port: u32) -> (UnixStream, Ports) {
        let mut client = self.client();
        writeln!(client, "CONNECT {port}").unwrap();
        let (header, _) = self.recv();
        assert_eq!((header.op, header.dst_port, header.kind), (op::REQUEST, port, STREAM));
        let ports = (header.src_port, header.dst_port);
        self.send(ports, op::RESPONSE);
        assert_eq!(self.line(&mut client), format!("OK {}", ports.0));
        (client, ports)
    }

    /// What the worker wants of the front.
    #[track_caller]
    pub fn wanted(&mut self) -> Wanted {
        let end = Instant::now() + PATIENCE;
        let mut room = [0; 64];
        loop {
            if let Ok((length, descriptors)) = self.front.try_recv(&mut room, 1) {
                assert!(descriptors.is_empty());
                return Wanted::decode(&room[..length]).unwrap();
            }
            assert!(Instant::now() < end, "nothing is wanted");
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// The front has connected.
    pub fn serve(&mut self, id: u64) -> UnixStream {
        let (near, far) = stream();
        self.front.send(&Stream::Connected { id }.encode(), &[far.as_fd()]).unwrap();
        near
    }

    /// The guest's own connection to the host's port, accepted.
    #[track_caller]
    pub fn connect(&mut self, ports: Ports) -> UnixStream {
        // A new connection counts anew.
        self.sent.remove(&ports);
        self.got.remove(&ports);
        self.send(ports, op::REQUEST);
        let wanted = self.wanted();
        assert_eq!(wanted.port, ports.0);
        let server = self.serve(wanted.id);
        self.expect(ports, op::RESPONSE);
        server
    }

    /// Bytes of a host's stream until `done` with what there is and whether it has ended, while the device has its turns. A far
    /// end that closes with unread bytes ends with an error, which is an end, too.
    #[track_caller]
    fn read_host(
        &mut self,
        stream: &mut UnixStream,
        most: usize,
        done: impl Fn(&[u8], bool) -> bool,
    ) -> Vec<u8> {
        let (mut all, end) = (Vec::new(), Instant::now() + PATIENCE);
        loop {
            let mut chunk = vec![0; (most - all.len()).min(1 << 16)];
            let ended = match stream.read(&mut chunk) {
                Ok(count) => {
                    all.extend(&chunk[..count]);
                    count == 0
                }
                Err(error) if error.kind() == ErrorKind::ConnectionReset => true,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock);
                    assert!(Instant::now() < end, "nothing more comes after {} bytes", all.len());
                    std::thread::sleep(Duration::from_micros(100));
                    self.driver.kick(0);
                    false
                }
            };
            if done(&all, ended) {
                return all;
            }
            assert!(!ended, "it ends after {} bytes", all.len());
        }
    }

    /// All until the end.
    #[track_caller]
    pub fn rest(&mut self, stream: &mut UnixStream) -> Vec<u8> {
        self.read_host(stream, usize::MAX, |_, ended| ended)
    }

    /// `count` bytes.
    #[track_caller]
    pub fn take(&mut self, stream: &mut UnixStream, count: usize) -> Vec<u8> {
        self.read_host(stream, count, |all, _| all.len() == count)
    }

    /// One line, its newline cut off.
    #[track_caller]
    pub fn line(&mut self, stream: &mut UnixStream) -> String {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            line.extend(self.take(stream, 1));
        }
        line.pop();
        String::from_utf8(line).unwrap()
    }

    /// Resets a connection that the device must still know.
    #[track_caller]
    pub fn drop_connection(&mut self, mut host: UnixStream, ports: Ports) {
        self.send(ports, op::RST);
        assert_eq!(self.rest(&mut host), b"");
    }
}

/// A host program's end, and the front's, which does not block.
pub fn stream() -> (UnixStream, OwnedFd) {
    let (near, far) = UnixStream::pair().unwrap();
    far.set_nonblocking(true).unwrap();
    near.set_nonblocking(true).unwrap();
    (near, far.into())
}

/// Bytes that tell where they belong.
pub fn pattern(seed: u8, count: usize) -> Vec<u8> {
    (0..count as u32).map(|i| (i.wrapping_mul(0x9e37_79b1) >> 24) as u8 ^ seed ^ i as u8).collect()
}

/// Ends both directions of the guest's side, which the device confirms.
#[track_caller]
pub fn close<H: Host>(guest: &mut Guest<H>, ports: Ports) {
    guest.shut(ports, shutdown::BOTH);
    guest.expect(ports, op::RST);
}
