//! Numbers of the socket device (Virtio 1.3 §5.10), and the header of its packets.

/// Descriptors in each queue.
pub const QUEUE_SIZE: u16 = 256;
/// Packets to the guest.
pub const RX: usize = 0;
/// Packets of the guest.
pub const TX: usize = 1;
/// Events of the transport.
pub const EVENT: usize = 2;
/// Queues (§5.10.2).
pub const QUEUES: u16 = 3;

/// The host's context id (§5.10.4).
pub const HOST_CID: u64 = 2;

/// Bytes of a header (§5.10.6).
pub const HEADER_BYTES: usize = 44;
/// Bytes of an event (§5.10.6.7).
pub const EVENT_BYTES: usize = 4;
/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET: all streams are gone.
pub const TRANSPORT_RESET: u32 = 0;
/// VIRTIO_VSOCK_TYPE_STREAM (§5.10.6).
pub const STREAM: u16 = 1;

/// Feature bits (§5.10.3).
pub mod feature {
    /// VIRTIO_VSOCK_F_STREAM: stream sockets. Without any feature they are there, too.
    pub const STREAM: u64 = 1;
    /// VIRTIO_VSOCK_F_NO_IMPLIED_STREAM: there are no stream sockets unless they are agreed on.
    pub const NO_IMPLIED_STREAM: u64 = 1 << 2;
}

/// What a packet is (§5.10.6).
pub mod op {
    /// A connection is wanted.
    pub const REQUEST: u16 = 1;
    /// It is there.
    pub const RESPONSE: u16 = 2;
    /// It is no more, or never was.
    pub const RST: u16 = 3;
    /// One or both directions end.
    pub const SHUTDOWN: u16 = 4;
    /// Bytes of the stream.
    pub const RW: u16 = 5;
    /// Nothing but the sender's credit, as every packet has it.
    pub const CREDIT_UPDATE: u16 = 6;
    /// The receiver's credit is wanted.
    pub const CREDIT_REQUEST: u16 = 7;
}

/// Flags of [`op::SHUTDOWN`] (§5.10.6.6).
pub mod shutdown {
    /// The sender receives no more.
    pub const RECEIVE: u32 = 1;
    /// The sender sends no more.
    pub const SEND: u32 = 2;
    /// Neither.
    pub const BOTH: u32 = RECEIVE | SEND;
}

/// Connections at a time, both kinds and those that are beginning or ending among them.
pub const MAX_CONNECTIONS: usize = cellblock_wire::vsock::MAX_STREAMS;
/// What the guest may send on one connection before the host has read it: the credit that it is given, in bytes.
pub const BUFFER_BYTES: u32 = cellblock_wire::vsock::STREAM_BYTES;
/// Bytes of one packet to the guest at most: Linux's own bound, though a receive buffer seldom has as much room.
pub const MAX_PAYLOAD: u32 = 64 << 10;
/// Host-initiated connections get ports from here on, as with Firecracker; below are those that programs name.
pub const FIRST_PORT: u32 = 1 << 30;

/// A packet's header (§5.10.6, `struct virtio_vsock_hdr`), little-endian in memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Header {
    /// Sender's context id.
    pub src_cid: u64,
    /// Receiver's context id.
    pub dst_cid: u64,
    /// Sender's port.
    pub src_port: u32,
    /// Receiver's port.
    pub dst_port: u32,
    /// Bytes that follow.
    pub len: u32,
    /// [`STREAM`].
    pub kind: u16,
    /// See [`op`].
    pub op: u16,
    /// Depends on `op`.
    pub flags: u32,
    /// The sender's buffer for this connection, in bytes.
    pub buf_alloc: u32,
    /// How many bytes of this connection have left that buffer, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    /// From memory.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Self {
        let mut rest = &bytes[..];
        Header {
            src_cid: u64::from_le_bytes(take(&mut rest)),
            dst_cid: u64::from_le_bytes(take(&mut rest)),
            src_port: u32::from_le_bytes(take(&mut rest)),
            dst_port: u32::from_le_bytes(take(&mut rest)),
            len: u32::from_le_bytes(take(&mut rest)),
            kind: u16::from_le_bytes(take(&mut rest)),
            op: u16::from_le_bytes(take(&mut rest)),
            flags: u32::from_le_bytes(take(&mut rest)),
            buf_alloc: u32::from_le_bytes(take(&mut rest)),
            fwd_cnt: u32::from_le_bytes(take(&mut rest)),
        }
    }

    /// To memory.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut rest = &mut bytes[..];
        put(&mut rest, &self.src_cid.to_le_bytes());
        put(&mut rest, &self.dst_cid.to_le_bytes());
        put(&mut rest, &self.src_port.to_le_bytes());
        put(&mut rest, &self.dst_port.to_le_bytes());
        put(&mut rest, &self.len.to_le_bytes());
        put(&mut rest, &self.kind.to_le_bytes());
        put(&mut rest, &self.op.to_le_bytes());
        put(&mut rest, &self.flags.to_le_bytes());
        put(&mut rest, &self.buf_alloc.to_le_bytes());
        put(&mut rest, &self.fwd_cnt.to_le_bytes());
        bytes
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    // The fields' sizes add up to the header's: see the test.
    let Some((field, after)) = rest.split_first_chunk() else { return [0; N] };
    *rest = after;
    *field
}

fn put(rest: &mut &mut [u8], field: &[u8]) {
    if let Some((to, after)) = std::mem::take(rest).split_at_mut_checked(field.len()) {
        to.copy_from_slice(field);
        *rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_lies_in_memory_as_specified() {
        let bytes: [u8; HEADER_BYTES] = std::array::from_fn(|i| i as u8);
        let header = Header::decode(&bytes);
        assert_eq!((header.src_cid, header.dst_cid), (0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908));
        assert_eq!((header.src_port, header.dst_port, header.len), (0x1312_1110, 0x1716_1514, 0x1b1a_1918));
        assert_eq!((header.kind, header.op, header.flags), (0x1d1c, 0x1f1e, 0x2322_2120));
        assert_eq!((header.buf_alloc, header.fwd_cnt), (0x2726_2524, 0x2b2a_2928));
        assert_eq!(header.encode(), bytes);
    }

    #[test]
    fn the_device_is_linuxs() {
        assert_eq!(
            cellblock_sdk::virtio::spec::device_id::VSOCK,
            virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK
        );
    }
}
