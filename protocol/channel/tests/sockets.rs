//! Control sockets against peers that send too much. One test, for it counts this process's descriptors.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};

use cellblock_channel::socket::{self, Control, MAX_DESCRIPTORS, SocketError};
use cellblock_wire::control::{FromWorker, LogLevel, MAX_MESSAGE, ToWorker};
use rustix::fs::Mode;
use rustix::io::{FdFlags, fcntl_getfd};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Sends as a hostile peer does, past the checks of `Control::send`.
fn send_raw(socket: &Control, bytes: &[u8], groups: &[&[BorrowedFd<'_>]]) {
    let mut space = [MaybeUninit::uninit(); 4096];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    for group in groups {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(group)));
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::empty()).unwrap();
}

#[test]
fn nothing_that_a_peer_sends_leaks_or_confuses() {
    let null = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDONLY, Mode::empty()).unwrap();
    let (here, there) = socket::pair().unwrap();
    let before = open_descriptors();

    messages_keep_their_bounds_and_descriptors(&here, &there, null.as_fd());
    assert_eq!(open_descriptors(), before);
    too_much_is_refused(&here, &there, null.as_fd());
    assert_eq!(open_descriptors(), before);
    typed_messages_cross(&here, &there, null.as_fd());
    assert_eq!(open_descriptors(), before);
    a_full_socket_does_not_block(&here, &there);
    the_end_is_seen(here, there);
    assert_eq!(open_descriptors(), before - 2);
    last_words_are_heard_by_one_who_was_not_listened_to();
    assert_eq!(open_descriptors(), before - 2);
}

fn messages_keep_their_bounds_and_descriptors(here: &Control, there: &Control, null: BorrowedFd<'_>) {
    let mut room = [0; 16];
    there.send(b"one", &[]).unwrap();
    there.send(b"two!", &[null; MAX_DESCRIPTORS]).unwrap();
    let (length, descriptors) = here.recv(&mut room, 0).unwrap();
    assert_eq!((&room[..length], descriptors.len()), (&b"one"[..], 0));
    let (length, descriptors) = here.recv(&mut room, MAX_DESCRIPTORS).unwrap();
    assert_eq!((&room[..length], descriptors.len()), (&b"two!"[..], MAX_DESCRIPTORS));
    assert!(descriptors.iter().all(|fd| fcntl_getfd(fd).unwrap().contains(FdFlags::CLOEXEC)));
    assert!(matches!(
        there.send(b"x", &[null; MAX_DESCRIPTORS + 1]),
        Err(SocketError::Descriptors { allowed: 40 })
    ));
    assert!(matches!(here.try_recv(&mut room, 0), Err(SocketError::NotReady)));
}

fn too_much_is_refused(here: &Control, there: &Control, null: BorrowedFd<'_>) {
    let mut room = [0; 16];
    send_raw(there, &[7; 17], &[&[null; 3]]);
    assert!(matches!(here.recv(&mut room, 3), Err(SocketError::Truncated { room: 16 })));
    send_raw(there, b"unasked", &[&[null]]);
    let error = here.recv(&mut room, 0).unwrap_err();
    assert_eq!(error.to_string(), "control message brings more than the 0 descriptors allowed");
    // More than there is room for: the kernel cuts them, and closes those itself.
    send_raw(there, b"flood", &[&[null; 250]]);
    assert!(matches!(here.recv(&mut room, MAX_DESCRIPTORS), Err(SocketError::Descriptors { allowed: 40 })));
    send_raw(there, b"after", &[]);
    assert_eq!(here.recv(&mut room, 0).unwrap().0, 5, "the next message is whole");
}

fn typed_messages_cross(here: &Control, there: &Control, null: BorrowedFd<'_>) {
    here.send_message(&ToWorker::Quit, &[null]).unwrap();
    let (message, descriptors) = there.recv_message::<ToWorker>(1).unwrap();
    assert_eq!((message, descriptors.len()), (ToWorker::Quit, 1));
    there.send(&[0xff; 64], &[null; 2]).unwrap();
    assert!(matches!(here.recv_message::<FromWorker>(2), Err(SocketError::Codec(_))));
    there.send(&[0; MAX_MESSAGE + 1], &[]).unwrap();
    assert!(matches!(
        here.try_recv_message::<FromWorker>(0),
        Err(SocketError::Truncated { room: MAX_MESSAGE })
    ));
    let log = FromWorker::Log { level: LogLevel::Info, text: "x".repeat(2 * MAX_MESSAGE) };
    assert!(matches!(there.send_message(&log, &[]), Err(SocketError::Codec(_))));
    assert!(matches!(here.try_recv_message::<FromWorker>(0), Err(SocketError::NotReady)));
}

fn a_full_socket_does_not_block(here: &Control, there: &Control) {
    let mut sent = 0;
    while let Ok(()) = here.send(&[1; 1024], &[]) {
        sent += 1;
        assert!(sent < 1_000_000, "the socket never fills");
    }
    assert!(matches!(here.send(&[1], &[]), Err(SocketError::NotReady)));
    for _ in 0..sent {
        there.recv(&mut [0; 1024], 0).unwrap();
    }
}

fn the_end_is_seen(here: Control, there: Control) {
    there.send(b"last", &[]).unwrap();
    drop(there);
    assert!(matches!(here.send(b"x", &[]), Err(SocketError::Closed)));
    assert_eq!(here.recv(&mut [0; 16], 0).unwrap().0, 4);
    assert!(matches!(here.recv(&mut [0; 16], 0), Err(SocketError::Closed)));
    assert!(matches!(here.try_recv(&mut [0; 16], 0), Err(SocketError::Closed)));
}

fn last_words_are_heard_by_one_who_was_not_listened_to() {
    let (here, there) = socket::pair().unwrap();
    here.send(b"question", &[]).unwrap();
    there.send(b"last", &[]).unwrap();
    there.send(b"very last", &[]).unwrap();
    drop(there);
    assert_eq!(here.try_recv(&mut [0; 16], 0).unwrap().0, 4);
    assert_eq!(here.recv(&mut [0; 16], 0).unwrap().0, 9);
    assert!(matches!(here.recv(&mut [0; 16], 0), Err(SocketError::Closed)));
}
