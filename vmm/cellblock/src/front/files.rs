//! Descriptors beside the bytes of a control socket.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// The most that come with one request.
pub(crate) const MOST: usize = 2;

const SPACE: usize = rustix::cmsg_space!(ScmRights(MOST));

/// Sends `bytes`, with `files` beside the first of them.
///
/// # Errors
/// The peer is gone, or does not read.
pub(crate) fn send(stream: &UnixStream, mut bytes: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::Error::other(format!("more than {MOST} files for one request")));
    }
    while !bytes.is_empty() {
        let sent = sendmsg(stream, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
        bytes = bytes.get(sent..).unwrap_or_default();
        ancillary.clear();
    }
    Ok(())
}

/// Receives what there is into `space`, and descriptors into `files`. Returns the length; 0 = the peer's end.
///
/// # Errors
/// Nothing is there, or more descriptors than may be.
pub(crate) fn receive(stream: &UnixStream, space: &mut [u8], files: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut room = [MaybeUninit::uninit(); SPACE];
    let mut ancillary = RecvAncillaryBuffer::new(&mut room);
    let got = recvmsg(stream, &mut [IoSliceMut::new(space)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(more) = message {
            files.extend(more);
        }
    }
    if files.len() > MOST {
        return Err(io::Error::other(format!("the request brings more than {MOST} files")));
    }
    Ok(got.bytes)
}
