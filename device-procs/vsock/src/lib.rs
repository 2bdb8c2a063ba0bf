//! A virtio socket device (Virtio 1.3 §5.10): streams between ports of the guest and Unix sockets of the host. Registers
//! (region 0), interrupt line 0, one thread for its three queues.
//!
//! The convention is Firecracker's. A host program connects to the device's path and writes `CONNECT port` and a newline; once
//! the guest has accepted it reads `OK hostport` and a newline, and then the stream is the guest's; if not, it is closed. A
//! guest that connects to port N of context 2 reaches whoever listens at the device's path with `_N` behind it.
//!
//! Guarantees:
//! 1. The worker opens, connects and accepts nothing: streams come from the front, ready, over one socket
//!    ([`cellblock_wire::vsock`]). What it can do to one is read, write, shut down and close.
//! 2. At most [`spec::MAX_CONNECTIONS`] connections at a time, beginning and ending ones among them; one more is refused (RST) or
//!    closed at once. For each, [`spec::BUFFER_BYTES`] of the guest are kept for a host program that does not read: the credit
//!    that the guest gets. Nothing else is kept: the host's bytes stay in their socket until the guest has credit and
//!    buffers. All memory is there from the start.
//! 3. A guest that sends more than it has credit for, or what makes no sense in the connection's state, has that connection reset,
//!    and no other. A packet of no connection is answered with a RST; one that does not come from the guest's own context is
//!    dropped. While [`device`]'s few waiting RSTs find no buffer, no packet is looked at (§5.10.6.1).
//! 4. Connections have their turns one packet at a time, so none holds up another: not one whose program does not read, nor
//!    one whose program writes without end, nor one whose guest never reads.
//! 5. Halves end on their own: what came before an end is delivered before it. A guest that has closed both gets its RST at once,
//!    and what it sent still goes to the host for as long as that reads.
//! 6. Nothing pends for ever: a client's first line may take 30 s, the guest's answer 10 s, the front's 5 s; a guest that does not
//!    confirm an end is reset after 8 s; a host program that does not read what a closed guest left is closed after 30 s.
//! 7. Across a restart no stream survives: host programs find theirs closed, and the guest is sent
//!    `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`, upon which its driver resets every socket. Until that has heard, what it sends by
//!    the old ones is dropped. Bytes in flight may be lost then, and nothing is delivered twice. New connections work at once.
//! 8. A driver's reset closes every stream. While no driver is there, host programs that connect wait for one in the front's
//!    socket, which holds some hundred; those beyond are closed.
//!
//! Bytes move between guest memory and a stream by one `preadv2` or `pwritev2`, so the state machine is not apart from the
//! descriptors: [`connection`] and [`credit`] have the protocol and no input or output, [`streams`] moves the bytes. The
//! `virtio-vsock` crate was looked at: it parses headers over another kind of chain, and has none of the rest.
#![forbid(unsafe_code)]

pub mod backlog;
pub mod connection;
pub mod credit;
pub mod device;
pub mod host;
pub mod spec;
pub mod state;
pub mod streams;
pub mod table;

pub use device::{Vsock, identity};
pub use host::Host;
