//! What crosses between a vsock worker and the front, which opens and names host sockets for it: messages of
//! [`MESSAGE_BYTES`] over a `SEQPACKET` pair, some with one descriptor beside them.
//!
//! | bytes | worker to front ([`Wanted`]) | front to worker ([`Stream`]) |
//! |---|---|---|
//! | 0–3 | 1 | 1 accepted, 2 connected, 3 refused |
//! | 4–7 | port | zero |
//! | 8–15 | id | id; zero for an accepted one |
//!
//! Numbers are little-endian. A message of another length, kind, or with something else where zero is, is none.

/// Streams that a worker has at a time, at most.
pub const MAX_STREAMS: usize = 256;
/// What it keeps of the guest's bytes for each, at most.
pub const STREAM_BYTES: u32 = 128 << 10;
/// Every message's length.
pub const MESSAGE_BYTES: usize = 16;

/// The worker asks for a stream to the host's listener for `port`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Comes back with the answer. A worker never uses one twice, and no other than its predecessors used.
    pub id: u64,
    /// The vsock port that the guest connects to.
    pub port: u32,
}

/// What the front sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// A host process has connected. One descriptor: the stream, which does not block.
    Accepted,
    /// The stream that was asked for. One descriptor, likewise.
    Connected {
        /// [`Wanted::id`].
        id: u64,
    },
    /// Nobody listens for that port, or no more can be connected.
    Refused {
        /// [`Wanted::id`].
        id: u64,
    },
}

const WANTED: u32 = 1;
const ACCEPTED: u32 = 1;
const CONNECTED: u32 = 2;
const REFUSED: u32 = 3;

impl Wanted {
    /// As a message.
    pub fn encode(self) -> [u8; MESSAGE_BYTES] {
        message(WANTED, self.port, self.id)
    }

    /// From a message; `None` = it is none.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        match fields(bytes)? {
            (WANTED, port, id) => Some(Wanted { id, port }),
            _ => None,
        }
    }
}

impl Stream {
    /// As a message.
    pub fn encode(self) -> [u8; MESSAGE_BYTES] {
        match self {
            Stream::Accepted => message(ACCEPTED, 0, 0),
            Stream::Connected { id } => message(CONNECTED, 0, id),
            Stream::Refused { id } => message(REFUSED, 0, id),
        }
    }

    /// From a message; `None` = it is none.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        match fields(bytes)? {
            (ACCEPTED, 0, 0) => Some(Stream::Accepted),
            (CONNECTED, 0, id) => Some(Stream::Connected { id }),
            (REFUSED, 0, id) => Some(Stream::Refused { id }),
            _ => None,
        }
    }
}

fn message(kind: u32, port: u32, id: u64) -> [u8; MESSAGE_BYTES] {
    let ([k0, k1, k2, k3], [p0, p1, p2, p3]) = (kind.to_le_bytes(), port.to_le_bytes());
    let [i0, i1, i2, i3, i4, i5, i6, i7] = id.to_le_bytes();
    [k0, k1, k2, k3, p0, p1, p2, p3, i0, i1, i2, i3, i4, i5, i6, i7]
}

fn fields(bytes: &[u8]) -> Option<(u32, u32, u64)> {
    let bytes: &[u8; MESSAGE_BYTES] = bytes.try_into().ok()?;
    let (kind, rest) = bytes.split_first_chunk()?;
    let (port, id) = rest.split_first_chunk()?;
    Some((u32::from_le_bytes(*kind), u32::from_le_bytes(*port), u64::from_le_bytes(id.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_sent_arrives(id: u64, port: u32) {
            let wanted = Wanted { id, port };
            prop_assert_eq!(Wanted::decode(&wanted.encode()), Some(wanted));
            for stream in [Stream::Accepted, Stream::Connected { id }, Stream::Refused { id }] {
                prop_assert_eq!(Stream::decode(&stream.encode()), Some(stream));
            }
        }

        #[test]
        fn anything_else_is_none(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Some(wanted) = Wanted::decode(&bytes) {
                prop_assert_eq!(&wanted.encode()[..], &bytes[..]);
            }
            if let Some(stream) = Stream::decode(&bytes) {
                prop_assert_eq!(&stream.encode()[..], &bytes[..]);
            }
        }
    }

    #[test]
    fn lengths_kinds_and_zeroes_are_checked() {
        let mut accepted = Stream::Accepted.encode();
        assert_eq!(Stream::decode(&accepted[..15]), None);
        accepted[8] = 1;
        assert_eq!(Stream::decode(&accepted), None);
        assert_eq!(Stream::decode(&message(4, 0, 0)), None);
        assert_eq!(Stream::decode(&message(CONNECTED, 1, 0)), None);
        assert_eq!(Wanted::decode(&message(2, 0, 0)), None);
    }
}
