//! The control socket: a `SEQPACKET` pair that carries whole messages, with descriptors beside them.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use cellblock_wire::control::{self, Checked, CodecError, MAX_MESSAGE};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The most descriptors with one message.
pub const MAX_DESCRIPTORS: usize = 40;

/// A message that cannot be sent or received.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SocketError {
    /// The peer has closed its end or is dead.
    #[error("the peer has closed the control socket")]
    Closed,
    /// Nothing to read, or no room to write, on a non-blocking socket.
    #[error("the control socket is not ready")]
    NotReady,
    /// A system call failed.
    #[error("control socket: {call} failed: {errno}")]
    Call {
        /// Which call.
        call: &'static str,
        /// Why.
        errno: Errno,
    },
    /// A message longer than the room for it; it is lost, its descriptors are closed.
    #[error("control message is longer than {room} bytes")]
    Truncated {
        /// Bytes there were.
        room: usize,
    },
    /// More descriptors than allowed; all are closed, the message is lost.
    #[error("control message brings more than the {allowed} descriptors allowed")]
    Descriptors {
        /// How many there may be.
        allowed: usize,
    },
    /// The bytes are no valid message.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

impl SocketError {
    fn call(call: &'static str, errno: Errno) -> SocketError {
        match errno {
            Errno::AGAIN => SocketError::NotReady,
            Errno::PIPE | Errno::CONNRESET => SocketError::Closed,
            errno => SocketError::Call { call, errno },
        }
    }
}

/// One end of a control socket.
#[derive(Debug)]
pub struct Control(OwnedFd);

/// Both ends of a new control socket, blocking, closed on exec.
///
/// # Errors
/// No descriptors are left.
pub fn pair() -> std::io::Result<(Control, Control)> {
    let (one, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    Ok((Control(one), Control(other)))
}

impl Control {
    /// An end that was inherited or received.
    pub fn from_fd(fd: OwnedFd) -> Control {
        Control(fd)
    }

    /// Sends `bytes` as one message with copies of `descriptors`; never blocks and never raises `SIGPIPE`.
    ///
    /// # Errors
    /// The peer is gone, does not read ([`SocketError::NotReady`]), or there are too many descriptors.
    pub fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), SocketError> {
        if descriptors.len() > MAX_DESCRIPTORS {
            return Err(SocketError::Descriptors { allowed: MAX_DESCRIPTORS });
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(SocketError::Descriptors { allowed: MAX_DESCRIPTORS });
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        loop {
            match sendmsg(&self.0, &[IoSlice::new(bytes)], &mut ancillary, flags) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(SocketError::call("sendmsg", errno)),
            }
        }
    }

    /// Receives one message into `room`, with at most `allowed` (up to [`MAX_DESCRIPTORS`]) descriptors, which close on
    /// exec. Blocks until there is one.
    ///
    /// # Errors
    /// The peer is gone; or the message or its descriptors are more than allowed: then it is lost and nothing leaks.
    pub fn recv(&self, room: &mut [u8], allowed: usize) -> Result<(usize, Vec<OwnedFd>), SocketError> {
        self.recv_with(room, allowed, RecvFlags::empty())
    }

    /// As [`Control::recv`], but returns [`SocketError::NotReady`] instead of blocking.
    ///
    /// # Errors
    /// As [`Control::recv`].
    pub fn try_recv(&self, room: &mut [u8], allowed: usize) -> Result<(usize, Vec<OwnedFd>), SocketError> {
        self.recv_with(room, allowed, RecvFlags::DONTWAIT)
    }

    /// Encodes `message` and sends it with `descriptors`.
    ///
    /// # Errors
    /// As [`Control::send`], or it is too long.
    pub fn send_message<T: Serialize>(
        &self,
        message: &T,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), SocketError> {
        self.send(&control::encode(message)?, descriptors)
    }

    /// Receives and decodes one message with at most `allowed` descriptors. Blocks until there is one.
    ///
    /// # Errors
    /// As [`Control::recv`], or it does not decode.
    pub fn recv_message<T>(&self, allowed: usize) -> Result<(T, Vec<OwnedFd>), SocketError>
    where
        T: for<'de> Deserialize<'de> + Checked,
    {
        let mut room = [0; MAX_MESSAGE];
        let (length, descriptors) = self.recv(&mut room, allowed)?;
        Ok((control::decode(&room[..length])?, descriptors))
    }

    /// As [`Control::recv_message`], but returns [`SocketError::NotReady`] instead of blocking.
    ///
    /// # Errors
    /// As [`Control::recv_message`].
    pub fn try_recv_message<T>(&self, allowed: usize) -> Result<(T, Vec<OwnedFd>), SocketError>
    where
        T: for<'de> Deserialize<'de> + Checked,
    {
        let mut room = [0; MAX_MESSAGE];
        let (length, descriptors) = self.try_recv(&mut room, allowed)?;
        Ok((control::decode(&room[..length])?, descriptors))
    }

    fn recv_with(
        &self,
        room: &mut [u8],
        allowed: usize,
        flags: RecvFlags,
    ) -> Result<(usize, Vec<OwnedFd>), SocketError> {
        let size = room.len();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = flags | RecvFlags::CMSG_CLOEXEC;
        let mut reset = false;
        let message = loop {
            match recvmsg(&self.0, &mut [IoSliceMut::new(room)], &mut ancillary, flags) {
                Err(Errno::INTR) => {}
                // A peer that has closed its end without reading all is told once, and before what it had sent.
                Err(Errno::CONNRESET) if !reset => reset = true,
                result => break result.map_err(|errno| SocketError::call("recvmsg", errno))?,
            }
        };
        // Taken out at once: whatever is wrong below, dropping them closes them.
        let descriptors: Vec<OwnedFd> = ancillary
            .drain()
            .filter_map(|item| match item {
                RecvAncillaryMessage::ScmRights(rights) => Some(rights),
                _ => None,
            })
            .flatten()
            .collect();
        if message.flags.contains(ReturnFlags::TRUNC) {
            return Err(SocketError::Truncated { room: size });
        }
        if message.flags.contains(ReturnFlags::CTRUNC) || descriptors.len() > allowed {
            return Err(SocketError::Descriptors { allowed: allowed.min(MAX_DESCRIPTORS) });
        }
        // No message of ours is empty: a length of zero is the end of the connection.
        if message.bytes == 0 {
            return Err(SocketError::Closed);
        }
        Ok((message.bytes, descriptors))
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Control> for OwnedFd {
    fn from(control: Control) -> OwnedFd {
        control.0
    }
}
