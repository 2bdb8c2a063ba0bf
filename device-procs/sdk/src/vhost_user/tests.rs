//! A back end in this process, and what front ends may send it.
#![allow(clippy::unwrap_used)]

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vhost::vhost_user::BackendReqHandler;

use super::backend::Backend;
use super::calls::Calls;
use crate::testing::virtio::{Edges, shared_ram};
use crate::virtio::engine::OneByOne;
use crate::virtio::inline::Inline;
use crate::virtio::transport::Bare;
use crate::virtio::{Chain, Identity, Interrupt, Serve, Space};

/// Writes zeroes over all that it is given.
#[derive(Debug)]
struct Zeroes;

impl Serve for Zeroes {
    fn begin(&mut self, _features: u64) {}

    fn serve(&mut self, chain: &mut Chain<'_>) -> u32 {
        let mut left = chain.writable().min(1 << 16);
        while left > 0 && chain.write(&[0]).is_ok() {
            left -= 1;
        }
        chain.written()
    }
}

fn in_flight() -> std::fs::File {
    use cellblock_wire::device::{IN_FLIGHT_BYTES, MAX_QUEUES};
    let sealed =
        cellblock_channel::memory::create_replies("in flight", IN_FLIGHT_BYTES * MAX_QUEUES as usize);
    sealed.unwrap().fd.into()
}

type Handler = BackendReqHandler<Mutex<Backend<Inline<OneByOne<Zeroes>>>>>;

#[allow(clippy::arc_with_non_send_sync, reason = "the crate wants an Arc, and one thread has it")]
fn handler(stream: UnixStream) -> Handler {
    let interrupt = Interrupt::new(Edges::default());
    let posts = vec![(OneByOne(Zeroes), vec![0]), (OneByOne(Zeroes), vec![1])];
    let config = Space::with_writable(vec![1; 40], 8..12);
    let identity = Identity { id: 2, features: 1 << 32, queues: 2, queue_size: 64, config };
    let bare = Bare { identity, engine: Inline::new(posts, interrupt.clone()), interrupt, on_event: None };
    let backend = Backend::new(bare, Calls::new(Arc::default()), Some(in_flight().into()));
    BackendReqHandler::from_stream(stream, Arc::new(Mutex::new(backend)))
}

/// A message as the wire has it: request, flags, size, payload.
fn message(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = request.to_le_bytes().to_vec();
    bytes.extend(flags.to_le_bytes());
    bytes.extend((payload.len() as u32).to_le_bytes());
    bytes.extend(payload);
    bytes
}

fn send(stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(fds)));
    }
    // A back end that has gone away needs no more.
    let _ = sendmsg(stream, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL);
}

/// Words of the kinds that messages have: small numbers, addresses in and beside the lent memory, anything.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![0..8u64, (0..0x40_0000u64), Just(0x100), Just(1 << 32 | 1), Just(u64::MAX), any::<u64>()]
}

/// Well-formed beginnings, so that what follows them is looked at.
fn polite(memory: &OwnedFd) -> Vec<(Vec<u8>, Option<BorrowedFd<'_>>)> {
    let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    let mut table = vec![1, 0, 0, 0, 0, 0, 0, 0];
    table.extend(words(&[0, 0x40_0000, 0, 0]));
    vec![
        (message(1, 1, &[]), None),
        (message(2, 1, &words(&[1 << 32 | 1 << 30])), None),
        (message(16, 1, &words(&[0xb201])), None),
        (message(5, 1, &table), Some(memory.as_fd())),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_front_end_sends_ends_in_an_answer_or_the_session(
        messages in proptest::collection::vec((1..45u32, prop_oneof![Just(1u32), Just(9), any::<u32>()],
            proptest::collection::vec(word(), 0..6), 0..5usize, 0..3usize), 1..24),
        politely in any::<bool>(),
    ) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut handler = handler(theirs);
        let (_, _, memory) = shared_ram();
        let event = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        if politely {
            for (bytes, fd) in polite(&memory) {
                send(&ours, &bytes, fd.as_slice());
                prop_assert!(handler.handle_request().is_ok());
            }
        }
        for (request, flags, words, cut, fd) in messages {
            let payload: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            let payload = payload.get(..payload.len().saturating_sub(cut)).unwrap();
            let fds = [memory.as_fd(), event.as_fd(), file.as_fd()];
            let fds = fds.get(..fd).unwrap();
            send(&ours, &message(request, flags, payload), fds);
            if handler.handle_request().is_err() {
                return Ok(());
            }
        }
    }
}

#[test]
fn configuration_is_written_where_it_may_be() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut handler = handler(theirs);
    let (_, _, memory) = shared_ram();
    for (bytes, fd) in polite(&memory) {
        send(&ours, &bytes, fd.as_slice());
        handler.handle_request().unwrap();
    }
    let set = |offset: u32, value: &[u8]| {
        let mut payload = offset.to_le_bytes().to_vec();
        payload.extend((value.len() as u32).to_le_bytes());
        payload.extend(1u32.to_le_bytes());
        payload.extend(value);
        message(25, 1, &payload)
    };
    send(&ours, &set(8, &[7, 7, 7, 7]), &[]);
    assert!(handler.handle_request().is_ok());
    send(&ours, &set(9, &[7, 7, 7, 7]), &[]);
    assert!(handler.handle_request().is_err());
}
