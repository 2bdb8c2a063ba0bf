//! The host's side: Unix streams that the front hands over, and one epoll descriptor that tells which of them to look at.
//!
//! Nothing is opened, connected or accepted here. The streams do not block; their far ends are any program's.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use cellblock_wire::vsock::{self, MESSAGE_BYTES, Wanted};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fs::{OFlags, fcntl_getfl};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendFlags,
    recvmsg, sendmsg,
};
use rustix::time::Timespec;

/// What the front's socket is called among the streams' tokens.
const BROKER: u64 = u64::MAX;
/// Events taken at a time.
const BATCH: usize = 64;

/// News of the host.
#[derive(Debug)]
pub enum News {
    /// A program has connected.
    Accepted(OwnedFd),
    /// The stream that was asked for under this id.
    Connected(u64, OwnedFd),
    /// There is none.
    Refused(u64),
}

/// What happened to a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stir {
    /// What [`Host::watch`] was told.
    pub token: u64,
    /// There is something to read, or the end.
    pub readable: bool,
    /// There is room to write, or an error to find.
    pub writable: bool,
    /// Both directions are over.
    pub hung_up: bool,
}

/// The front's socket, and what watches it and all streams.
#[derive(Debug)]
pub struct Host {
    broker: Option<OwnedFd>,
    epoll: Arc<OwnedFd>,
    /// The front has something to say.
    calls: bool,
}

impl Host {
    /// Over the front's socket.
    ///
    /// # Errors
    /// The kernel's: no descriptors, or the socket cannot be watched.
    pub fn new(broker: OwnedFd) -> std::io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &broker, EventData::new_u64(BROKER), EventFlags::IN | EventFlags::ET)?;
        Ok(Host { broker: Some(broker), epoll: Arc::new(epoll), calls: true })
    }

    /// What is readable when anything has stirred.
    pub fn source(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.epoll)
    }

    /// Looks what has stirred since the last call; whether there may be more. Never blocks.
    pub fn look(&mut self, mut on: impl FnMut(Stir)) -> bool {
        let none = epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(0) };
        let (mut stirs, now) = ([none; BATCH], Timespec { tv_sec: 0, tv_nsec: 0 });
        // An error is an interruption: the events stay.
        let count = epoll::wait(&*self.epoll, &mut stirs[..], Some(&now)).unwrap_or(0);
        for stir in stirs.into_iter().take(count) {
            // Copied out: the kernel's structure is packed.
            let (token, flags) = (stir.data.u64(), stir.flags);
            if token == BROKER {
                self.calls = true;
                continue;
            }
            let hung_up = flags.intersects(EventFlags::HUP | EventFlags::ERR);
            on(Stir {
                token,
                readable: hung_up || flags.intersects(EventFlags::IN | EventFlags::RDHUP),
                writable: hung_up || flags.contains(EventFlags::OUT),
                hung_up,
            });
        }
        count == BATCH
    }

    /// The next message of the front. Never blocks.
    pub fn hear(&mut self) -> Option<News> {
        for _ in 0..BATCH {
            if !self.calls {
                break;
            }
            match self.broker.as_ref().map(receive) {
                Some(Ok(Some(news))) => return Some(news),
                // A message that is none, or has lost its stream to the limit of descriptors.
                Some(Ok(None)) => {}
                Some(Err(Errno::AGAIN)) => self.calls = false,
                None | Some(Err(_)) => {
                    // The front is gone, and soon so is this process.
                    (self.calls, self.broker) = (false, None);
                }
            }
        }
        None
    }

    /// Asks the front to connect; whether that was sent.
    pub fn ask(&self, wanted: Wanted) -> bool {
        let Some(broker) = &self.broker else { return false };
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let message = wanted.encode();
        loop {
            match sendmsg(broker, &[IoSlice::new(&message)], &mut SendAncillaryBuffer::default(), flags) {
                Err(Errno::INTR) => {}
                done => return done.is_ok(),
            }
        }
    }

    /// Watches a stream under `token`; whether that can be done. One that blocks is refused: it would hold up all others.
    pub fn watch(&self, stream: &OwnedFd, token: u64) -> bool {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        fcntl_getfl(stream).is_ok_and(|flags| flags.contains(OFlags::NONBLOCK))
            && epoll::add(&*self.epoll, stream, EventData::new_u64(token), flags).is_ok()
    }

    /// Forgets a stream. The program at its far end cannot keep it, but the front might still.
    pub fn forget(&self, stream: BorrowedFd<'_>) {
        let _ = epoll::delete(&*self.epoll, stream);
    }
}

/// One message; `None` = one that says nothing.
fn receive(broker: &OwnedFd) -> Result<Option<News>, Errno> {
    let mut room = [0; MESSAGE_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let message = loop {
        match recvmsg(broker.as_fd(), &mut [IoSliceMut::new(&mut room)], &mut ancillary, flags) {
            Err(Errno::INTR) => {}
            done => break done?,
        }
    };
    if message.bytes == 0 {
        return Err(Errno::PIPE);
    }
    // A stream that is not taken is closed.
    let stream = ancillary.drain().find_map(|item| match item {
        RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
        _ => None,
    });
    let whole = !message.flags.contains(ReturnFlags::TRUNC);
    let said = room.get(..message.bytes).and_then(vsock::Stream::decode).filter(|_| whole);
    Ok(match (said, stream) {
        (Some(vsock::Stream::Accepted), Some(stream)) => Some(News::Accepted(stream)),
        (Some(vsock::Stream::Connected { id }), Some(stream)) => Some(News::Connected(id, stream)),
        // Its descriptor did not come: no more may be open (MSG_CTRUNC).
        (Some(vsock::Stream::Connected { id } | vsock::Stream::Refused { id }), None) => {
            Some(News::Refused(id))
        }
        _ => None,
    })
}
