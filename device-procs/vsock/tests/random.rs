//! Random guests, hosts and fronts, against the socket device in this process.
#![allow(clippy::unwrap_used, clippy::panic, unreachable_pub)] // Tests; clippy knows only #[test] functions as such.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use cellblock_sdk::device::SECOND;
use cellblock_vsock::spec::{
    BUFFER_BYTES, FIRST_PORT, HOST_CID, Header, MAX_CONNECTIONS, STREAM, op, shutdown,
};
use cellblock_wire::vsock::{Stream, Wanted};
use proptest::prelude::*;
use proptest::sample::select;

mod probes;
use probes::*;

#[derive(Debug, Clone)]
enum Step {
    Packet(Header, Vec<u8>),
    /// A client writes this as its first bytes.
    Client(&'static str),
    /// What the front answers to what is wanted.
    Answer(bool),
    /// A host program of those that there are: which, and what it does.
    Host(usize, u8, usize),
    /// Nanoseconds pass.
    Wait(u64),
    Receive,
}

fn header() -> impl Strategy<Value = Header> {
    let cids = (select(vec![17, 17, 17, 17, 17, 16, u64::MAX]), select(vec![2, 2, 2, 2, 2, 3, 1 << 40]));
    let ports = (select(vec![1, 2, FIRST_PORT, FIRST_PORT + 1, FIRST_PORT + 2]), select(vec![1, 2, 52]));
    let kinds =
        (select(vec![STREAM, STREAM, STREAM, STREAM, 2, 0]), 0u16..9, select(vec![0, 1, 2, 3, u32::MAX]));
    let counts = (
        select(vec![0, 1, 100, 4000, 60_000, u32::MAX]),
        select(vec![0, 1, 1000, 1 << 20, u32::MAX]),
        select(vec![0, 1, 100, u32::MAX]),
    );
    (cids, ports, kinds, counts).prop_map(|(cids, ports, (kind, op, flags), (len, buf_alloc, fwd_cnt))| {
        Header {
            src_cid: cids.0,
            dst_cid: cids.1,
            src_port: ports.1,
            dst_port: ports.0,
            len,
            kind,
            op,
            flags,
            buf_alloc,
            fwd_cnt,
        }
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (header(), select(vec![0, 0, 1, 100, 4000, 60_000]))
            .prop_map(|(header, bytes)| Step::Packet(header, vec![7; bytes])),
        // Of an honest length.
        3 => (header(), 0usize..5000).prop_map(|(header, bytes)| {
            Step::Packet(Header { len: bytes as u32, op: op::RW, ..header }, vec![7; bytes])
        }),
        2 => select(vec!["CONNECT 52\n", "CONNECT 1\nxyz", "CONN", "", "CONNECT 99999999999\n", "\n"]).prop_map(Step::Client),
        2 => any::<bool>().prop_map(Step::Answer),
        4 => (0usize..8, 0u8..5, 0usize..100_000).prop_map(|(which, what, count)| Step::Host(which, what, count)),
        1 => (0u64..40 * SECOND).prop_map(Step::Wait),
        4 => Just(Step::Receive),
    ]
}

/// What the guest gets, whatever it may be; checks what must hold of all.
fn receive(guest: &mut InProcess) -> Vec<Header> {
    let mut all = Vec::new();
    while let Some((header, bytes)) = guest.poll_any() {
        assert!((op::REQUEST..=op::CREDIT_REQUEST).contains(&header.op), "{header:?}");
        assert_eq!(header.dst_cid, u64::from(CID));
        assert!(header.op == op::RW || bytes.is_empty(), "{header:?}");
        assert!(header.op == op::SHUTDOWN || header.flags == 0, "{header:?}");
        assert!(header.kind == STREAM && header.src_cid == HOST_CID || header.op == op::RST, "{header:?}");
        all.push(header);
    }
    all
}

/// Whatever `what` is, the program does it without blocking.
fn act(host: &mut UnixStream, what: u8, count: usize) {
    let _ = match what {
        0 => host.write(&vec![3; count]),
        1 => host.read(&mut vec![0; count]),
        2 => host.shutdown(Shutdown::Write).map(|()| 0),
        3 => host.shutdown(Shutdown::Read).map(|()| 0),
        _ => host.shutdown(Shutdown::Both).map(|()| 0),
    };
}

/// The guest begins as many connections as there may be.
fn every_place_is_free(guest: &mut InProcess) {
    for number in 0..MAX_CONNECTIONS as u32 {
        guest.send((4000, 10_000 + number), op::REQUEST);
        guest.wanted();
    }
    guest.quiet();
    for number in 0..MAX_CONNECTIONS as u32 {
        guest.send((4000, 10_000 + number), op::RST);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Whatever a guest sends, the device stays whole: what it sends is well-formed, and once all is over every place is free.
    #[test]
    fn any_packets_are_survived(steps in proptest::collection::vec(step(), 1..120)) {
        let (mut guest, clock) = in_process();
        guest.begin(ALL);
        let mut hosts: Vec<UnixStream> = Vec::new();
        let mut named = BTreeSet::new();
        for step in steps {
            match step {
                Step::Packet(header, bytes) => guest.send_raw(&header, &bytes),
                Step::Client(line) => {
                    let mut client = guest.client();
                    client.write_all(line.as_bytes()).unwrap();
                    hosts.push(client);
                }
                Step::Answer(yes) => {
                    let mut room = [0; 16];
                    let Ok((length, _)) = guest.front.try_recv(&mut room, 0) else { continue };
                    let Wanted { id, .. } = Wanted::decode(&room[..length]).unwrap();
                    if yes {
                        hosts.push(guest.serve(id));
                    } else {
                        guest.front.send(&Stream::Refused { id }.encode(), &[]).unwrap();
                    }
                }
                Step::Host(which, what, count) => {
                    if let Some(host) = hosts.get_mut(which) {
                        act(host, what, count);
                    }
                }
                Step::Wait(time) => clock.advance(time),
                Step::Receive => named.extend(receive(&mut guest).iter().map(|header| (header.src_port, header.dst_port))),
            }
        }
        // All programs end, and the guest resets what it knows or might know.
        drop(hosts);
        named.extend(receive(&mut guest).iter().map(|header| (header.src_port, header.dst_port)));
        for host in [1, 2, FIRST_PORT, FIRST_PORT + 1, FIRST_PORT + 2] {
            named.extend([1, 2, 52].map(|port| (host, port)));
        }
        for ports in named {
            guest.send(ports, op::RST);
        }
        clock.advance(100 * SECOND);
        receive(&mut guest);
        let mut rest = [0; 16];
        while guest.front.try_recv(&mut rest, 0).is_ok() {}
        every_place_is_free(&mut guest);
        hosts_connect(&mut guest);
        guests_connect(&mut guest);
    }

    /// Honest streams arrive whole in both directions, however they are cut, and whoever rests in between.
    #[test]
    fn streams_arrive_whole(
        buffers in proptest::collection::vec(select(vec![1u32, 100, 4096, 70_000]), 1..4),
        steps in proptest::collection::vec((0usize..5, 0u8..4, 1usize..30_000), 1..60),
    ) {
        let mut guest = ready_in_process();
        let mut all: Vec<Honest> = Vec::new();
        for (number, buffer) in (0..).zip(buffers) {
            all.push(Honest::connect(&mut guest, number, buffer));
        }
        let total = all.len();
        for (which, what, count) in steps {
            let one = &mut all[which % total];
            match what {
                0 => one.host_writes(count),
                1 => one.guest_writes(&mut guest, count),
                2 => one.host_reads(count),
                _ => deliver(&mut guest, &mut all),
            }
        }
        for turn in 0.. {
            deliver(&mut guest, &mut all);
            all.iter_mut().for_each(|one| one.host_reads(1 << 20));
            // Each has its turn.
            if all.iter_mut().filter_map(|one| (!one.finish(&mut guest)).then_some(())).count() == 0 {
                break;
            }
            prop_assert!(turn < 100_000, "it does not end: {:?}", all);
        }
        for one in &all {
            prop_assert!(one.guest_got == one.host_wrote, "to the guest");
            prop_assert!(one.host_got == one.guest_wrote, "to the host");
        }
    }
}

/// A connection whose both ends keep to the rules.
#[derive(Debug)]
struct Honest {
    ports: Ports,
    host: UnixStream,
    buffer: u32,
    host_wrote: Vec<u8>,
    host_got: Vec<u8>,
    host_ended: bool,
    guest_wrote: Vec<u8>,
    guest_got: Vec<u8>,
    guest_ended: bool,
    /// What of the guest's has left the device's buffer, as it knows.
    known: u32,
    ends: (bool, bool),
}

impl Honest {
    fn connect(guest: &mut InProcess, number: u32, buffer: u32) -> Self {
        let ports = (7000, number);
        guest.send_raw(&Header { buf_alloc: buffer, ..guest.header(ports, op::REQUEST) }, &[]);
        let wanted = guest.wanted();
        let host = guest.serve(wanted.id);
        guest.expect(ports, op::RESPONSE);
        Honest {
            ports,
            host,
            buffer,
            host_wrote: vec![],
            host_got: vec![],
            host_ended: false,
            guest_wrote: vec![],
            guest_got: vec![],
            guest_ended: false,
            known: 0,
            ends: (false, false),
        }
    }

    fn host_writes(&mut self, count: usize) {
        // Each packet of a small buffer takes as long as one of a large one.
        let count = count.min(100 * self.buffer as usize);
        let bytes =
            pattern(self.ports.1 as u8, self.host_wrote.len() + count).split_off(self.host_wrote.len());
        if let Ok(count) = self.host.write(&bytes) {
            self.host_wrote.extend(&bytes[..count]);
        }
    }

    fn host_reads(&mut self, count: usize) {
        let mut chunk = vec![0; count];
        match self.host.read(&mut chunk) {
            Ok(0) => self.host_ended = true,
            Ok(count) => self.host_got.extend(&chunk[..count]),
            Err(_) => {}
        }
    }

    fn header(&self, op: u16) -> Header {
        Header {
            src_cid: CID.into(),
            dst_cid: HOST_CID,
            src_port: self.ports.1,
            dst_port: self.ports.0,
            kind: STREAM,
            op,
            buf_alloc: self.buffer,
            fwd_cnt: self.guest_got.len() as u32,
            ..Header::default()
        }
    }

    fn guest_writes(&mut self, guest: &mut InProcess, count: usize) {
        let sent = self.guest_wrote.len();
        let room = BUFFER_BYTES as usize - (sent - self.known as usize);
        let bytes = pattern(!self.ports.1 as u8, sent + count.min(room).min(60_000)).split_off(sent);
        if !bytes.is_empty() {
            guest.send_raw(&Header { len: bytes.len() as u32, ..self.header(op::RW) }, &bytes);
            self.guest_wrote.extend(bytes);
        }
    }

    /// A packet of the device's.
    fn hear(&mut self, guest: &mut InProcess, header: &Header, bytes: &[u8]) {
        assert!(header.fwd_cnt as usize <= self.guest_wrote.len());
        assert!(header.fwd_cnt >= self.known, "it takes back what it said");
        self.known = header.fwd_cnt;
        match header.op {
            op::RW => {
                assert!(bytes.len() <= self.buffer as usize, "more than there is room for");
                self.guest_got.extend(bytes);
            }
            op::CREDIT_REQUEST => guest.send_raw(&self.header(op::CREDIT_UPDATE), &[]),
            op::SHUTDOWN => self.guest_ended |= header.flags & shutdown::SEND != 0,
            op::CREDIT_UPDATE => {}
            other => panic!("an honest guest gets {other}"),
        }
    }

    /// Both ends say that they have said all; whether both have heard.
    fn finish(&mut self, guest: &mut InProcess) -> bool {
        if !std::mem::replace(&mut self.ends.0, true) {
            self.host.shutdown(Shutdown::Write).unwrap();
        }
        if !std::mem::replace(&mut self.ends.1, true) {
            guest.send_raw(&Header { flags: shutdown::SEND, ..self.header(op::SHUTDOWN) }, &[]);
        }
        self.host_ended && self.guest_ended
    }
}

fn deliver(guest: &mut InProcess, all: &mut [Honest]) {
    while let Some((header, bytes)) = guest.poll() {
        let one = all.iter_mut().find(|one| one.ports == (header.src_port, header.dst_port));
        one.unwrap().hear(guest, &header, &bytes);
    }
}
