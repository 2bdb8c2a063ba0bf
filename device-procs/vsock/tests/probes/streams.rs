//! What holds of every socket device.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use cellblock_sdk::testing::Host;
use cellblock_sdk::testing::virtio::Segment;
use cellblock_sdk::virtio::spec::{feature, register};
use cellblock_vsock::spec::{
    self, BUFFER_BYTES, FIRST_PORT, HEADER_BYTES, HOST_CID, Header, MAX_CONNECTIONS, STREAM, op, shutdown,
};
use cellblock_wire::vsock::Stream;

use super::*;

/// Its number, features, configuration.
pub fn is_found<H: Host>(guest: &mut Guest<H>) {
    assert_eq!(guest.driver.get(register::DEVICE_ID), 19);
    let transport = feature::VERSION_1 | feature::EVENT_IDX | feature::INDIRECT_DESC;
    let offered = guest.driver.offered();
    assert_eq!(offered, transport | spec::feature::STREAM | spec::feature::NO_IMPLIED_STREAM);
    assert_eq!(guest.driver.get(register::CONFIG), CID);
    assert_eq!(guest.driver.get(register::CONFIG + 4), 0);
    for (queue, there) in [(0, true), (2, true), (3, false)] {
        guest.driver.set(register::QUEUE_SEL, queue);
        assert_eq!(guest.driver.get(register::QUEUE_SIZE_MAX) != 0, there);
    }
}

/// A host program connects, bytes go both ways, and it closes.
pub fn hosts_connect<H: Host>(guest: &mut Guest<H>) {
    let mut client = guest.client();
    // What follows the line is the guest's.
    client.write_all(b"Connect  52\r\nhello").unwrap();
    let (request, _) = guest.recv();
    assert_eq!((request.op, request.dst_port, request.len, request.flags), (op::REQUEST, 52, 0, 0));
    assert!(request.src_port >= FIRST_PORT);
    assert_eq!((request.buf_alloc, request.fwd_cnt), (BUFFER_BYTES, 0));
    let ports = (request.src_port, 52);
    guest.send(ports, op::RESPONSE);
    assert_eq!(guest.line(&mut client), format!("OK {}", request.src_port));
    assert_eq!(guest.read(ports, 5), b"hello");
    guest.write(ports, b"and hello");
    assert_eq!(guest.take(&mut client, 9), b"and hello");
    drop(client);
    let end = guest.expect(ports, op::SHUTDOWN);
    assert_eq!((end.flags, end.fwd_cnt), (shutdown::BOTH, 9));
    guest.send(ports, op::RST);
    guest.quiet();
}

/// A guest connects, bytes go both ways, and it closes.
pub fn guests_connect<H: Host>(guest: &mut Guest<H>) {
    let ports = (1234, 77);
    guest.send(ports, op::REQUEST);
    let wanted = guest.wanted();
    assert_eq!(wanted.port, 1234);
    guest.quiet();
    let mut server = guest.serve(wanted.id);
    let response = guest.expect(ports, op::RESPONSE);
    assert_eq!((response.buf_alloc, response.fwd_cnt, response.kind), (BUFFER_BYTES, 0, STREAM));
    guest.write(ports, b"question");
    assert_eq!(guest.take(&mut server, 8), b"question");
    server.write_all(b"answer").unwrap();
    assert_eq!(guest.read(ports, 6), b"answer");
    guest.write(ports, b"bye");
    close(guest, ports);
    assert_eq!(guest.rest(&mut server), b"bye");
    // The same ports at once again, and nothing of the old connection in the new one's counters.
    let mut server = guest.connect(ports);
    guest.write(ports, b"again");
    assert_eq!(guest.take(&mut server, 5), b"again");
    guest.drop_connection(server, ports);
}

/// What is not accepted is closed or reset.
pub fn refusals<H: Host>(guest: &mut Guest<H>) {
    for line in [
        "CONNECT\n",
        "CONNECT x\n",
        "CONNECT 1 2\n",
        "CONNECT 4294967296\n",
        "CONNECT +1\n",
        "GET / HTTP/1.0\r\n\r\n",
        "\n",
        "CONNECT -1\n",
    ] {
        let mut client = guest.client();
        client.write_all(line.as_bytes()).unwrap();
        assert_eq!(guest.rest(&mut client), b"", "{line:?}");
    }
    let mut endless = guest.client();
    endless.write_all(&[b' '; 100]).unwrap();
    assert_eq!(guest.rest(&mut endless), b"");
    let mut cut = guest.client();
    cut.write_all(b"CONNECT 1").unwrap();
    cut.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.rest(&mut cut), b"");
    guest.quiet();
    // The guest says no.
    let mut client = guest.client();
    client.write_all(b"CONNECT 99\n").unwrap();
    let (request, _) = guest.recv();
    guest.send((request.src_port, 99), op::RST);
    assert_eq!(guest.rest(&mut client), b"");
    // The client does not wait.
    let mut client = guest.client();
    client.write_all(b"CONNECT 98\n").unwrap();
    let (request, _) = guest.recv();
    drop(client);
    guest.send((request.src_port, 98), op::RESPONSE);
    guest.expect((request.src_port, 98), op::SHUTDOWN);
    guest.send((request.src_port, 98), op::RST);
    // The host says no.
    guest.send((5, 6), op::REQUEST);
    let wanted = guest.wanted();
    guest.front.send(&Stream::Refused { id: wanted.id }.encode(), &[]).unwrap();
    guest.expect((5, 6), op::RST);
    // Answers to what nobody asked, or without what they speak of; a stream that would block.
    let (near, far) = UnixStream::pair().unwrap();
    for id in [wanted.id, 0, u64::MAX] {
        guest.front.send(&Stream::Connected { id }.encode(), &[far.as_fd()]).unwrap();
        guest.front.send(&Stream::Refused { id }.encode(), &[]).unwrap();
    }
    guest.front.send(&Stream::Accepted.encode(), &[]).unwrap();
    guest.front.send(&Stream::Accepted.encode(), &[far.as_fd()]).unwrap();
    guest.front.send(&[7; 40], &[far.as_fd()]).unwrap();
    guest.front.send(&[1], &[]).unwrap();
    drop(far);
    guest.quiet();
    let mut near = near;
    near.set_nonblocking(true).unwrap();
    assert_eq!(guest.rest(&mut near), b"", "nobody keeps it");
    guest.send((5, 6), op::REQUEST);
    let wanted = guest.wanted();
    guest.front.send(&Stream::Connected { id: wanted.id }.encode(), &[]).unwrap();
    guest.expect((5, 6), op::RST);
    hosts_connect(guest);
}

/// Packets that are wrong in some way, and what becomes of them.
pub fn strays<H: Host>(guest: &mut Guest<H>) {
    for op in [op::RESPONSE, op::SHUTDOWN, op::RW, op::CREDIT_UPDATE, op::CREDIT_REQUEST, 0, 8, u16::MAX] {
        guest.send((4000, 5000), op);
        let answer = guest.expect((4000, 5000), op::RST);
        assert_eq!((answer.kind, answer.buf_alloc, answer.flags), (STREAM, 0, 0));
    }
    guest.send((4000, 5000), op::RST);
    guest.quiet();
    // Another's context: none of ours to answer.
    for src_cid in [0, 1, 2, u64::from(CID) + 1, u64::from(CID) | 1 << 32, u64::MAX] {
        guest.send_raw(&Header { src_cid, ..guest.header((1, 1), op::REQUEST) }, &[]);
    }
    guest.quiet();
    // To another's context, or of another type: refused as what it is.
    for (dst_cid, kind) in
        [(3, STREAM), (HOST_CID | 1 << 32, STREAM), (HOST_CID, 2), (HOST_CID, 0), (HOST_CID, 9)]
    {
        guest.send_raw(&Header { dst_cid, kind, ..guest.header((1, 2), op::REQUEST) }, &[]);
        let (head, length) = wait_raw(guest);
        let answer = Header::decode(&head);
        assert_eq!((length, answer.op, answer.kind), (HEADER_BYTES as u32, op::RST, kind));
        assert_eq!((answer.src_cid, answer.dst_cid), (dst_cid, CID.into()));
        guest.send_raw(&Header { dst_cid, kind, ..guest.header((1, 2), op::RST) }, &[]);
    }
    guest.quiet();
    // Packets that are too short for what they are, and for what they say.
    for length in [0, 1, HEADER_BYTES as u32 - 1] {
        guest.driver.push(1, &[Segment::read(DATA, length)]);
        guest.driver.kick(1);
        guest.driver.wait_used(1);
    }
    guest.driver.push(1, &[Segment::write(DATA, 100)]);
    guest.driver.kick(1);
    guest.driver.wait_used(1);
    guest.send_raw(&Header { len: 1, ..guest.header((3, 4), op::REQUEST) }, &[]);
    guest.expect((3, 4), op::RST);
    guest.quiet();
    hosts_connect(guest);
}

/// The next packet, which may be from any context: its header and length.
fn wait_raw<H: Host>(guest: &mut Guest<H>) -> ([u8; HEADER_BYTES], u32) {
    let (head, length) = guest.driver.wait_used(0);
    let place = guest.places.remove(&head).unwrap();
    let header = guest.driver.peek(place, HEADER_BYTES).try_into().unwrap();
    guest.give(place, ROOM);
    (header, length)
}

/// What breaks the rules of one connection resets it, and no other.
pub fn broken_rules<H: Host>(guest: &mut Guest<H>) {
    let (mut other, others) = guest.accept(60);
    let long = |header: Header| Header { len: 100, ..header };
    let breaks: [fn(&mut Guest<H>, Ports); 8] = [
        |guest, ports| guest.send(ports, op::REQUEST),
        |guest, ports| guest.send(ports, op::RESPONSE),
        |guest, ports| guest.send(ports, 0),
        |guest, ports| guest.send(ports, 77),
        // Bytes after the end.
        |guest, ports| {
            guest.shut(ports, shutdown::SEND);
            guest.write(ports, b"more");
        },
        // Bytes that are not there.
        |guest, ports| guest.send_raw(&Header { len: 5, ..guest.header(ports, op::RW) }, b"four"),
        |guest, ports| guest.send_raw(&Header { len: u32::MAX, ..guest.header(ports, op::RW) }, b"four"),
        // Bytes that are nowhere.
        |guest, ports| {
            let header = Header { len: 16, ..guest.header(ports, op::RW) };
            guest.driver.poke(DATA + 0x20_0000, &header.encode());
            guest.driver.push(
                1,
                &[Segment::read(DATA + 0x20_0000, HEADER_BYTES as u32), Segment::read(u64::MAX - 8, 16)],
            );
            guest.driver.kick(1);
            guest.driver.wait_used(1);
        },
    ];
    for (number, break_rule) in breaks.into_iter().enumerate() {
        let ports = (4000, 5000 + number as u32);
        let mut server = guest.connect(ports);
        break_rule(guest, ports);
        guest.expect(ports, op::RST);
        assert_eq!(guest.rest(&mut server), b"", "break {number}");
        // It is gone.
        guest.send(ports, op::CREDIT_UPDATE);
        guest.expect(ports, op::RST);
    }
    // Before it is open.
    for early in [op::RW, op::RESPONSE, op::SHUTDOWN, op::CREDIT_REQUEST, op::REQUEST] {
        guest.send((4000, 1), op::REQUEST);
        let wanted = guest.wanted();
        guest.send_raw(&long(guest.header((4000, 1), early)), &[0; 100]);
        guest.expect((4000, 1), op::RST);
        let mut late = guest.serve(wanted.id);
        assert_eq!(guest.rest(&mut late), b"", "nobody waits for it");
    }
    let mut client = guest.client();
    writeln!(client, "CONNECT 3").unwrap();
    let (request, _) = guest.recv();
    guest.send((request.src_port, 3), op::CREDIT_UPDATE);
    guest.expect((request.src_port, 3), op::RST);
    assert_eq!(guest.rest(&mut client), b"");
    guest.write(others, b"still here");
    assert_eq!(guest.take(&mut other, 10), b"still here");
    guest.drop_connection(other, others);
}

/// A host program that does not read: the guest gets its credit and no more, and then all arrives.
pub fn guests_credit<H: Host>(guest: &mut Guest<H>) {
    let (mut client, ports) = guest.accept(52);
    let bytes = pattern(1, 4 << 20);
    let (mut sent, mut known, mut stuck) = (0, 0, false);
    // As much as the device tells of room for.
    while !stuck {
        let free = BUFFER_BYTES as usize - (sent - known);
        let now = free.min(10_000);
        guest.write(ports, &bytes[sent..sent + now]);
        sent += now;
        stuck = now == 0;
        while let Some((header, _)) = guest.poll() {
            assert_eq!(header.op, op::CREDIT_UPDATE);
            known = header.fwd_cnt as usize;
            stuck = false;
        }
        if stuck {
            // It might not have come to it yet.
            guest.quiet_or(|header| {
                known = header.fwd_cnt as usize;
                stuck = false;
            });
        }
    }
    assert!(sent < bytes.len(), "a program that does not read takes everything");
    assert!(sent - known == BUFFER_BYTES as usize);
    guest.send(ports, op::CREDIT_REQUEST);
    let told = guest.expect(ports, op::CREDIT_UPDATE);
    assert!(told.fwd_cnt as usize >= known && (told.fwd_cnt as usize) < sent, "what waits is not forwarded");
    // Not a byte more than it was told of; it comes in order.
    known = told.fwd_cnt as usize;
    let mut got = Vec::new();
    while sent < bytes.len() {
        let mut chunk = vec![0; 50_000];
        let count = client.read(&mut chunk).unwrap_or(0);
        got.extend(&chunk[..count]);
        while let Some((header, _)) = guest.poll() {
            known = header.fwd_cnt as usize;
        }
        let now = (BUFFER_BYTES as usize - (sent - known)).min(bytes.len() - sent).min(60_000);
        if now > 0 {
            guest.write(ports, &bytes[sent..sent + now]);
            sent += now;
        }
    }
    guest.shut(ports, shutdown::SEND);
    got.extend(guest.rest(&mut client));
    assert!(got == bytes, "{} of {} bytes, or others", got.len(), bytes.len());
    while guest.poll().is_some() {}
    drop(client);
    guest.expect(ports, op::SHUTDOWN);
    guest.send(ports, op::RST);
    // More than there was credit for.
    let (mut client, ports) = guest.accept(53);
    let mut sent = 0;
    let reset = loop {
        guest.write(ports, &pattern(2, 60_000));
        sent += 60_000;
        assert!(sent < 8 << 20, "credit has no end");
        if let Some((header, _)) = guest.poll()
            && header.op == op::RST
        {
            break header;
        }
    };
    assert_eq!(reset.dst_port, 53);
    assert!(guest.rest(&mut client).len() < sent);
    guest.quiet();
}

/// The guest's own credit: nothing comes for which it said to have no room.
pub fn hosts_credit<H: Host>(guest: &mut Guest<H>) {
    let ports = (80, 1);
    let small =
        |guest: &Guest<H>, op, buf_alloc, fwd_cnt| Header { buf_alloc, fwd_cnt, ..guest.header(ports, op) };
    guest.send_raw(&small(guest, op::REQUEST, 1000, 0), &[]);
    let wanted = guest.wanted();
    let mut server = guest.serve(wanted.id);
    guest.expect(ports, op::RESPONSE);
    let bytes = pattern(3, 20_000);
    server.write_all(&bytes).unwrap();
    assert_eq!(guest.read(ports, 1000), bytes[..1000]);
    guest.expect(ports, op::CREDIT_REQUEST);
    guest.quiet();
    // Half of it.
    guest.send_raw(&small(guest, op::CREDIT_UPDATE, 1000, 500), &[]);
    assert_eq!(guest.read(ports, 500), bytes[1000..1500]);
    guest.expect(ports, op::CREDIT_REQUEST);
    // It takes room away, and says to have got what it did not: nothing comes.
    for (buf_alloc, fwd_cnt) in [(500, 600), (0, 0), (1000, 1600), (u32::MAX, 1500 + 1)] {
        guest.send_raw(&small(guest, op::CREDIT_UPDATE, buf_alloc, fwd_cnt), &[]);
        let nothing = guest.recv().0;
        assert_eq!(nothing.op, op::CREDIT_REQUEST, "room of {buf_alloc} after {fwd_cnt}");
    }
    guest.send_raw(&small(guest, op::CREDIT_UPDATE, 1 << 20, 1500), &[]);
    assert_eq!(guest.read(ports, 18_500), bytes[1500..]);
    guest.drop_connection(server, ports);
}

/// Each direction ends on its own, behind its last byte.
pub fn halves<H: Host>(guest: &mut Guest<H>) {
    let (mut client, ports) = guest.accept(52);
    let bytes = pattern(4, 30_000);
    client.write_all(&bytes).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.read(ports, bytes.len()), bytes);
    assert_eq!(guest.expect(ports, op::SHUTDOWN).flags, shutdown::SEND);
    guest.quiet();
    guest.write(ports, b"the other half");
    assert_eq!(guest.take(&mut client, 14), b"the other half");
    guest.shut(ports, shutdown::SEND);
    assert_eq!(guest.rest(&mut client), b"");
    close(guest, ports);
    // The guest's end first.
    let mut server = guest.connect(ports);
    guest.write(ports, &bytes);
    guest.shut(ports, shutdown::SEND);
    assert_eq!(guest.rest(&mut server), bytes);
    server.write_all(b"answer").unwrap();
    assert_eq!(guest.read(ports, 6), b"answer");
    drop(server);
    guest.expect(ports, op::SHUTDOWN);
    guest.send(ports, op::RST);
    // It takes no more: the program finds out when it writes.
    let mut server = guest.connect(ports);
    guest.shut(ports, shutdown::RECEIVE);
    assert_eq!(server.write_all(b"x").unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
    guest.write(ports, b"but it gives");
    guest.shut(ports, shutdown::SEND);
    guest.expect(ports, op::RST);
    assert_eq!(guest.rest(&mut server), b"but it gives");
    // The program takes no more.
    let server = guest.connect(ports);
    server.shutdown(Shutdown::Read).unwrap();
    guest.write(ports, b"in vain");
    assert_eq!(guest.expect(ports, op::SHUTDOWN).flags, shutdown::RECEIVE);
    guest.write(ports, b"as well");
    (&server).write_all(b"hear").unwrap();
    assert_eq!(guest.read(ports, 4), b"hear");
    drop(server);
    assert_eq!(guest.expect(ports, op::SHUTDOWN).flags, shutdown::BOTH);
    guest.send(ports, op::RST);
    guest.quiet();
}

/// A guest that closes while its bytes wait: its ports are free at once, and the bytes arrive.
pub fn last_bytes<H: Host>(guest: &mut Guest<H>) {
    let ports = (4000, 5000);
    let bytes = pattern(5, 4 << 20);
    let mut server = guest.connect(ports);
    let sent = fill(guest, ports, &bytes);
    close(guest, ports);
    let mut second = guest.connect(ports);
    guest.write(ports, b"second");
    assert_eq!(guest.take(&mut second, 6), b"second");
    assert!(guest.rest(&mut server) == bytes[..sent], "the first one's bytes");
    // A reset throws away.
    let sent = 6 + fill(guest, ports, &bytes);
    guest.send(ports, op::RST);
    assert!(guest.rest(&mut second).len() < sent);
    guest.quiet();
}

/// Writes until credit is used up, for a program that does not read; how many bytes.
pub fn fill<H: Host>(guest: &mut Guest<H>, ports: Ports, bytes: &[u8]) -> usize {
    let start = guest.sent.get(&ports).copied().unwrap_or(0);
    guest.send(ports, op::CREDIT_REQUEST);
    let mut known = guest.expect(ports, op::CREDIT_UPDATE).fwd_cnt.wrapping_sub(start) as usize;
    let mut sent = 0;
    loop {
        let now = (BUFFER_BYTES as usize - (sent - known)).min(bytes.len() - sent).min(20_000);
        if now > 0 {
            guest.write(ports, &bytes[sent..sent + now]);
            sent += now;
            while guest.poll().is_some() {}
            continue;
        }
        guest.send(ports, op::CREDIT_REQUEST);
        let mut told = guest.recv().0;
        while let Some((header, _)) = guest.poll() {
            told = header;
        }
        let told = told.fwd_cnt.wrapping_sub(start) as usize;
        if told == known || sent == bytes.len() {
            assert!(sent < bytes.len(), "a program that does not read takes everything");
            return sent;
        }
        known = told;
    }
}

/// Only so many, and each place is free again in the end.
pub fn bounds<H: Host>(guest: &mut Guest<H>) {
    for _ in 0..2 {
        let mut clients: Vec<_> = (0..MAX_CONNECTIONS as u32 - 1).map(|port| guest.accept(port)).collect();
        let mut ports: Vec<_> = clients.iter().map(|(_, ports)| ports.0).collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), clients.len(), "each has a port of its own");
        // The last place: a program that has said nothing yet.
        let mut silent = guest.client();
        guest.quiet();
        let mut refused = guest.client();
        assert_eq!(guest.rest(&mut refused), b"");
        guest.send((1, 1), op::REQUEST);
        guest.expect((1, 1), op::RST);
        assert!(guest.front.try_recv(&mut [0; 64], 1).is_err(), "the front is not asked");
        writeln!(silent, "CONNECT 5").unwrap();
        let (request, _) = guest.recv();
        guest.send((request.src_port, 5), op::RST);
        assert_eq!(guest.rest(&mut silent), b"");
        let last = guest.connect((1, 1));
        guest.drop_connection(last, (1, 1));
        // All of them still work.
        for (client, ports) in &mut clients {
            guest.write(*ports, b"x");
            assert_eq!(guest.take(client, 1), b"x");
            client.write_all(b"y").unwrap();
            assert_eq!(guest.read(*ports, 1), b"y");
        }
        for (client, ports) in clients {
            drop(client);
            guest.expect(ports, op::SHUTDOWN);
            guest.send(ports, op::RST);
        }
        guest.quiet();
    }
}

/// Nobody waits for another: not for a program that does not read, nor for one that writes without end.
pub fn fairness<H: Host>(guest: &mut Guest<H>) {
    let deaf = (4000, 5000);
    let _deaf_server = guest.connect(deaf);
    fill(guest, deaf, &pattern(6, 4 << 20));
    let (mut loud, loud_ports) = guest.accept(70);
    let (mut soft, soft_ports) = guest.accept(71);
    // 42 packets, and as much as a socket's buffers hold.
    let flood = pattern(7, 170_000);
    loud.write_all(&flood).unwrap();
    soft.write_all(b"me too").unwrap();
    let (mut before, mut heard) = (0, 0);
    while heard < 6 {
        let (header, bytes) = guest.recv();
        match header.dst_port {
            70 => before += 1,
            71 => heard += bytes.len(),
            other => panic!("a packet for port {other}: {header:?}"),
        }
    }
    // All buffers may have been full of it before the second wrote, and some more before that was seen.
    assert!(before < 34 + 6, "{before} packets of the first before one of the second");
    guest.write(soft_ports, b"go on");
    assert_eq!(guest.take(&mut soft, 5), b"go on");
    guest.drop_connection(soft, soft_ports);
    guest.send(loud_ports, op::RST);
    guest.send(deaf, op::RST);
    while guest.poll().is_some() {}
}

/// A guest that gives no buffers is owed so many answers; what it sends beyond waits in its queue.
pub fn no_buffers<H: Host>(guest: &mut Guest<H>) {
    guest.begin_without_buffers(ALL);
    let stray = |guest: &Guest<H>, number: u32| guest.header((4000, number), op::CREDIT_UPDATE).encode();
    for number in 0..100 {
        let place = DATA + 0x30_0000 + 64 * u64::from(number);
        let header = stray(guest, number);
        guest.driver.poke(place, &header);
        guest.driver.push(1, &[Segment::read(place, HEADER_BYTES as u32)]);
    }
    guest.driver.kick(1);
    for _ in 0..64 {
        guest.driver.wait_used(1);
    }
    assert_eq!(guest.driver.used(1), None, "the device keeps no more");
    // A buffer too small for a header is given back, one without room for bytes does for an answer.
    let head = guest.driver.push(0, &[Segment::write(DATA, 43)]);
    guest.driver.kick(0);
    assert_eq!(guest.driver.wait_used(0), (head.into(), 0));
    for number in 0..100u32 {
        guest.give(DATA + 0x2000, 0);
        let (head, length) = guest.driver.wait_used(0);
        let place = guest.places.remove(&head).unwrap();
        let header = Header::decode(&guest.driver.peek(place, HEADER_BYTES).try_into().unwrap());
        assert_eq!((length, header.op, header.dst_port), (HEADER_BYTES as u32, op::RST, number));
    }
    for _ in 64..100 {
        guest.driver.wait_used(1);
    }
}

/// §5.10.3: without any feature there are streams; where they are not implied, only if they are agreed on.
pub fn implied_streams<H: Host>(guest: &mut Guest<H>) {
    let (streams, not_implied) = (spec::feature::STREAM, spec::feature::NO_IMPLIED_STREAM);
    for (features, there) in
        [(0, true), (streams, true), (streams | not_implied, true), (not_implied, false), (0, true)]
    {
        guest.begin(features);
        guest.send((1, 2), op::REQUEST);
        if there {
            let wanted = guest.wanted();
            let server = guest.serve(wanted.id);
            guest.expect((1, 2), op::RESPONSE);
            guest.drop_connection(server, (1, 2));
        } else {
            guest.expect((1, 2), op::RST);
            assert!(guest.front.try_recv(&mut [0; 64], 1).is_err());
            let mut client = guest.client();
            // It may be closed already.
            let _ = writeln!(client, "CONNECT 3");
            assert_eq!(guest.rest(&mut client), b"", "nor for the host");
        }
    }
}

/// A driver's reset closes all; the next one starts afresh.
pub fn resets<H: Host>(guest: &mut Guest<H>) {
    for features in [ALL, 0] {
        guest.begin(features);
        let (mut client, ports) = guest.accept(52);
        let mut server = guest.connect((4000, 5000));
        let mut silent = guest.client();
        guest.send((4000, 5001), op::REQUEST);
        let late = guest.wanted();
        guest.quiet();
        guest.driver.reset();
        for stream in [&mut client, &mut server, &mut silent] {
            assert_eq!(guest.rest(stream), b"");
        }
        guest.begin(features);
        let mut late = guest.serve(late.id);
        assert_eq!(guest.rest(&mut late), b"");
        guest.send(ports, op::CREDIT_UPDATE);
        guest.expect(ports, op::RST);
        hosts_connect(guest);
        guests_connect(guest);
    }
}

impl<H: Host> Guest<H> {
    /// As [`quiet`](Guest::quiet), but other packets may come, and `on` sees them.
    pub fn quiet_or(&mut self, mut on: impl FnMut(&Header)) {
        for stray in [(9, 1), (9, 2)] {
            self.send(stray, op::CREDIT_UPDATE);
            loop {
                let (header, _) = self.recv();
                if (header.src_port, header.dst_port) == stray {
                    break;
                }
                on(&header);
            }
        }
    }
}
