//! The device as its driver finds it, and who serves its queues: packets of the guest to streams of the host and back.

use std::collections::VecDeque;

use cellblock_sdk::device::{Clock, SECOND};
use cellblock_sdk::virtio::spec::device_id;
use cellblock_sdk::virtio::{Chain, Identity, QueueError, Queues, Space, Virtqueue, Wait, Work};
use cellblock_wire::device::VsockConfig;

use crate::connection::{Ports, Verdict};
use crate::host::{Host, News};
use crate::spec::{
    EVENT, HEADER_BYTES, HOST_CID, Header, MAX_CONNECTIONS, QUEUE_SIZE, QUEUES, RX, STREAM, TRANSPORT_RESET,
    TX, feature, op,
};
use crate::streams::{Sent, Streams};

/// Packets of each direction between two looks at the host.
const BATCH: usize = 64;
/// RSTs that wait for the guest's buffers. While there are so many, no packet of the guest is looked at (§5.10.6.1).
const MAX_REPLIES: usize = 64;

/// How long a guest may take to hear that all streams are gone: 5 s.
const HEARING_TIME: u64 = 5 * SECOND;

/// What the driver is told of the device that `config` describes.
pub fn identity(config: &VsockConfig) -> Identity {
    Identity {
        id: device_id::VSOCK,
        features: feature::STREAM | feature::NO_IMPLIED_STREAM,
        queues: QUEUES,
        queue_size: QUEUE_SIZE,
        config: Space::fixed(u64::from(config.cid).to_le_bytes().to_vec()),
    }
}

/// Serves the device's queues.
#[derive(Debug)]
pub struct Vsock<C> {
    cid: u64,
    clock: C,
    streams: Streams,
    replies: VecDeque<Header>,
    /// Which queues are the device's.
    live: [bool; QUEUES as usize],
    /// Stream sockets are agreed on.
    agreed: bool,
    /// Queues that have come, and were not looked at yet.
    fresh: [bool; QUEUES as usize],
    /// The guest has yet to be told that all streams are gone.
    owes_event: bool,
    /// The guest has not heard of it yet, as far as is known.
    unheard: Option<Unheard>,
}

/// The guest still uses connections that ended with this process' predecessor. A RST would end them for its programs as an orderly
/// end does (Linux has no other use for one), so what it sends by them is dropped until the event has reset them.
#[derive(Debug)]
struct Unheard {
    /// Buffers in the event queue when it was told: one more, and it has taken the event.
    left: Option<u16>,
    /// Until then; a driver need not give its buffers back.
    until: u64,
}

impl<C: Clock> Vsock<C> {
    /// The device of `config`, with the streams that `host` brings.
    pub fn new(config: &VsockConfig, host: Host, clock: C) -> Self {
        // An answer to a predecessor's question must not be taken for one to ours.
        let first_id = clock.monotonic();
        Vsock {
            cid: config.cid.into(),
            clock,
            streams: Streams::new(host, first_id),
            replies: VecDeque::with_capacity(MAX_REPLIES),
            live: [false; QUEUES as usize],
            agreed: false,
            fresh: [false; QUEUES as usize],
            owes_event: false,
            unheard: None,
        }
    }

    /// Whether packets can go both ways.
    fn is_up(&self) -> bool {
        self.live[RX] && self.live[TX]
    }

    /// Packets of the guest; whether there may be more.
    fn transmit(&mut self, queues: &mut Queues, now: u64) -> Result<bool, QueueError> {
        let Some(queue) = queues.get(TX) else { return Ok(false) };
        let mut taken = 0;
        while taken < BATCH && self.replies.len() < MAX_REPLIES {
            let Some(head) = queue.pop()? else { break };
            self.take(&mut queue.chain(), now);
            queue.push(head, 0)?;
            taken += 1;
        }
        let more = taken == BATCH;
        if taken > 0 {
            queues.signal(TX)?;
        }
        Ok(more)
    }

    /// One packet of the guest.
    fn take(&mut self, chain: &mut Chain<'_>, now: u64) {
        let mut bytes = [0; HEADER_BYTES];
        if chain.read(&mut bytes).is_err() {
            return;
        }
        let header = Header::decode(&bytes);
        if header.src_cid != self.cid {
            // Nobody could be answered.
            return;
        }
        if header.dst_cid != HOST_CID || header.kind != STREAM || !self.agreed {
            return self.refuse(&header);
        }
        let whole = u64::from(header.len) <= chain.readable();
        let ports = Ports { host: header.dst_port, guest: header.src_port };
        let Some(slot) = self.streams.table.find(ports) else {
            let opened = header.op == op::REQUEST && whole && self.streams.open(&header, ports, now);
            if !opened && (header.op == op::REQUEST || self.unheard.is_none()) {
                self.refuse(&header);
            }
            return;
        };
        match self.streams.hear(slot, &header, whole, now) {
            Verdict::Noted => self.streams.table.line_up(slot),
            Verdict::Take => self.streams.to_host(slot, chain, header.len, now),
            Verdict::Accepted => self.streams.greet(slot, now),
            Verdict::Ended => self.streams.end_guest(slot, now),
            Verdict::Gone => self.streams.guest_is_gone(slot),
            Verdict::Broken => self.streams.kill(slot),
        }
    }

    /// Answers a packet of no connection with a RST, unless it is one.
    fn refuse(&mut self, header: &Header) {
        if header.op != op::RST {
            self.replies.push_back(Header {
                src_cid: header.dst_cid,
                dst_cid: header.src_cid,
                src_port: header.dst_port,
                dst_port: header.src_port,
                kind: header.kind,
                op: op::RST,
                ..Header::default()
            });
        }
    }

    /// Packets to the guest, as far as it has buffers; whether there may be more.
    fn receive(&mut self, queues: &mut Queues, now: u64) -> Result<bool, QueueError> {
        let mut sent = 0;
        while sent < BATCH && !(self.replies.is_empty() && self.streams.table.is_row_empty()) {
            let Some(queue) = queues.get(RX) else { return Ok(false) };
            let Some(head) = queue.pop()? else { break };
            // A buffer too small for a header is no use; it goes back as it came.
            let written = if queue.chain().writable() < HEADER_BYTES as u64 {
                Some(0)
            } else if let Some(reply) = self.replies.pop_front() {
                let mut chain = queue.chain();
                Some(chain.write(&reply.encode()).map_or(0, |()| chain.written()))
            } else {
                self.first_packet(|| queue.chain(), now)
            };
            match written {
                Some(written) => queue.push(head, written)?,
                None => queue.unpop(1),
            }
            sent += usize::from(written.is_some());
        }
        if sent > 0 {
            queues.signal(RX)?;
        }
        Ok(sent == BATCH)
    }

    /// Makes a packet of the first in the row that has one to send; how many bytes it takes.
    fn first_packet<'q>(&mut self, chain: impl Fn() -> Chain<'q>, now: u64) -> Option<u32> {
        // Each turn takes one from the row or makes a packet.
        for _ in 0..MAX_CONNECTIONS {
            let slot = self.streams.table.first_of_row()?;
            let blank = Header { src_cid: HOST_CID, dst_cid: self.cid, kind: STREAM, ..Header::default() };
            match self.streams.to_guest(slot, &chain, blank, now) {
                Sent::Packet(bytes) => return Some(bytes),
                Sent::Nothing => {}
            }
        }
        None
    }

    /// Whether the guest relies on streams of a predecessor. Its queues come one after the other, and the event queue last: what it
    /// has sent may be there before it can be told.
    fn look_at_fresh(&mut self, queues: &mut Queues, now: u64) {
        for slot in [RX, TX, EVENT] {
            let fresh = self.fresh.get_mut(slot).is_some_and(std::mem::take);
            if fresh && queues.get(slot).is_some_and(|queue| queue.is_resumed()) {
                self.owes_event |= slot == EVENT;
                self.unheard = Some(Unheard { left: None, until: now.saturating_add(HEARING_TIME) });
            }
        }
        if self.unheard.as_ref().is_some_and(|unheard| now >= unheard.until) {
            self.unheard = None;
        }
    }

    /// Tells a guest whose streams have ended with this process' predecessor (§5.10.6.7); whether to look again.
    fn tell_event(&mut self, queues: &mut Queues) -> Result<bool, QueueError> {
        let Some(queue) = queues.get(EVENT) else { return Ok(false) };
        if let Some(left) = self.unheard.as_ref().and_then(|unheard| unheard.left)
            && queue.waiting()? > left
        {
            self.unheard = None;
        }
        if !self.owes_event {
            queue.silence()?;
            return Ok(false);
        }
        let Some(head) = queue.pop()? else { return queue.listen() };
        let mut chain = queue.chain();
        // One too small for an event goes back, and the next may do.
        self.owes_event = chain.write(&TRANSPORT_RESET.to_le_bytes()).is_err();
        let written = chain.written();
        if let Some(unheard) = self.unheard.as_mut().filter(|_| !self.owes_event) {
            unheard.left = Some(queue.waiting()?);
        }
        queue.push(head, written)?;
        queues.signal(EVENT)?;
        Ok(self.owes_event)
    }

    /// Asks for kicks of the queues that are waited for; whether one has something already.
    fn listen(&self, queues: &mut Queues) -> Result<bool, QueueError> {
        let owes = !(self.replies.is_empty() && self.streams.table.is_row_empty());
        let wants = [(RX, owes), (TX, self.replies.len() < MAX_REPLIES)];
        for (slot, _) in wants.into_iter().filter(|(_, wanted)| *wanted) {
            if queues.get(slot).map_or(Ok(false), Virtqueue::listen)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What the host has to say; whether there may be more.
    fn look_at_host(&mut self, now: u64) -> bool {
        let mut more = self.streams.look(now);
        // Without a driver there is nobody to connect to: what the front says waits in its socket.
        let turns = if self.is_up() { BATCH } else { 0 };
        for turn in 0..turns {
            let Some(news) = self.streams.host.hear() else { break };
            more |= turn + 1 == BATCH;
            match news {
                News::Connected(id, stream) => self.streams.connected(id, stream, now),
                News::Refused(id) => self.streams.refused(id),
                News::Accepted(stream) if self.agreed => self.streams.accepted(stream, now),
                News::Accepted(_) => {}
            }
        }
        more
    }
}

impl<C: Clock> Work for Vsock<C> {
    fn begin(&mut self, slot: usize, features: u64) {
        if let Some(live) = self.live.get_mut(slot) {
            *live = true;
        }
        if let Some(fresh) = self.fresh.get_mut(slot) {
            *fresh = true;
        }
        // §5.10.3: without a feature there are streams, too, unless they are not implied.
        self.agreed = features & feature::STREAM != 0 || features & feature::NO_IMPLIED_STREAM == 0;
    }

    /// A driver that takes back a queue of packets has forgotten all connections.
    fn end(&mut self, slot: usize) {
        if let (Some(live), Some(fresh)) = (self.live.get_mut(slot), self.fresh.get_mut(slot)) {
            (*live, *fresh) = (false, false);
        }
        if slot == EVENT {
            (self.owes_event, self.unheard) = (false, None);
        } else {
            self.streams.close_all();
            self.replies.clear();
        }
    }

    fn work(&mut self, queues: &mut Queues) -> Result<Wait, QueueError> {
        let now = self.clock.monotonic();
        let mut again = self.look_at_host(now);
        self.streams.expire(now);
        self.look_at_fresh(queues, now);
        again |= self.tell_event(queues)?;
        if self.is_up() {
            for slot in [RX, TX] {
                queues.get(slot).map_or(Ok(()), Virtqueue::silence)?;
            }
            again |= self.transmit(queues, now)?;
            again |= self.receive(queues, now)?;
            again = again || self.listen(queues)?;
        }
        Ok(Wait { readable: 1, writable: 0, until: self.streams.table.deadline(), again })
    }
}
