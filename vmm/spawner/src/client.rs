//! The supervisor's side.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use cellblock_channel::socket::{Control, SocketError};

use rustix::io::Errno;

use crate::MAX_WORKERS;
use crate::protocol::{Event, Offer, Program, Request};

/// Requests that are kept for a spawner that does not read: some for each of the most workers.
const BACKLOG: usize = 8 * MAX_WORKERS;

/// Drives a spawner. Poll its descriptor for reading and call [`Client::next`] until it returns `None`.
#[derive(Debug)]
pub struct Client {
    socket: Control,
    /// What a spawner that does not read was to be sent, in its order.
    backlog: RefCell<VecDeque<(Request, Option<OwnedFd>)>>,
}

impl Client {
    /// Over the socket of [`crate::Spawner`].
    pub fn new(socket: Control) -> Client {
        Client { socket, backlog: RefCell::default() }
    }

    /// Asks to start a process, `instance`, of worker number `worker` of the manifest, which executes `program` and gets `control`
    /// as its only descriptor. Never blocks.
    ///
    /// # Errors
    /// The spawner is gone, or does not read.
    pub fn start(
        &self,
        worker: u32,
        instance: u32,
        program: Program,
        control: BorrowedFd,
    ) -> Result<(), SocketError> {
        self.send(Request::Start { worker, instance, program }, Some(control))
    }

    /// What the front has offered for worker number `worker`, as its offer number `offer`, is its binary from now on, or (not
    /// `adopt`) is forgotten. Never blocks.
    ///
    /// # Errors
    /// The spawner is gone, or does not read.
    pub fn settle(&self, worker: u32, offer: u32, adopt: bool) -> Result<(), SocketError> {
        self.send(Request::Settle { worker, offer, adopt }, None)
    }

    /// Asks to kill a process, `instance`, of worker number `worker`. Never blocks.
    ///
    /// # Errors
    /// The spawner is gone, or does not read.
    pub fn kill(&self, worker: u32, instance: u32) -> Result<(), SocketError> {
        self.send(Request::Kill { worker, instance }, None)
    }

    /// Asks what a process, `instance`, of worker number `worker` does. Never blocks. The question is let fall while others wait:
    /// who is late is asked about again.
    ///
    /// # Errors
    /// The spawner is gone, or does not read.
    pub fn examine(&self, worker: u32, instance: u32) -> Result<(), SocketError> {
        if self.is_behind() {
            return Err(SocketError::NotReady);
        }
        self.socket.send_message(&Request::Examine { worker, instance }, &[])
    }

    /// Sends `request`, or keeps it for a spawner that does not read now.
    fn send(&self, request: Request, control: Option<BorrowedFd>) -> Result<(), SocketError> {
        let mut backlog = self.backlog.borrow_mut();
        if backlog.is_empty() {
            let descriptors: Vec<_> = control.into_iter().collect();
            match self.socket.send_message(&request, &descriptors) {
                Err(SocketError::NotReady) => {}
                sent => return sent,
            }
        }
        if backlog.len() >= BACKLOG {
            return Err(SocketError::NotReady);
        }
        let kept = control.map(|control| control.try_clone_to_owned()).transpose();
        let kept = kept.map_err(|error| SocketError::Call { call: "dup", errno: errno_of(&error) })?;
        backlog.push_back((request, kept));
        Ok(())
    }

    /// Whether requests wait for the spawner to read: then [`catch_up`](Self::catch_up) now and then.
    pub fn is_behind(&self) -> bool {
        !self.backlog.borrow().is_empty()
    }

    /// Sends what waits, as far as the spawner reads. Never blocks.
    pub fn catch_up(&self) {
        let mut backlog = self.backlog.borrow_mut();
        while let Some((request, control)) = backlog.front() {
            let descriptors: Vec<_> = control.iter().map(AsFd::as_fd).collect();
            if let Err(SocketError::NotReady) = self.socket.send_message(request, &descriptors) {
                return;
            }
            // One that is gone is seen by its socket.
            backlog.pop_front();
        }
    }

    /// The next event, with the pidfd that comes with [`Event::Started`]; `None` if there is none yet.
    ///
    /// # Errors
    /// The spawner is gone ([`SocketError::Closed`]), or sends nonsense.
    pub fn next(&self) -> Result<Option<(Event, Option<OwnedFd>)>, SocketError> {
        match self.socket.try_recv_message(1) {
            Ok((event, mut descriptors)) => Ok(Some((event, descriptors.pop()))),
            Err(SocketError::NotReady) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// As [`Client::next`], but waits for an event.
    ///
    /// # Errors
    /// As there.
    pub fn wait(&self) -> Result<(Event, Option<OwnedFd>), SocketError> {
        self.socket.recv_message(1).map(|(event, mut descriptors)| (event, descriptors.pop()))
    }
}

/// The front's side: by this socket alone a binary gets in that the manifest does not name.
#[derive(Debug)]
pub struct Authority {
    socket: Control,
    /// The last offer's number.
    last: u32,
}

impl Authority {
    /// Over the second socket of [`crate::Spawner`].
    pub fn new(socket: Control) -> Authority {
        Authority { socket, last: 0 }
    }

    /// Offers `files` for worker number `worker`: a binary, and perhaps its start program. Returns the offer's number. Never
    /// blocks.
    ///
    /// # Errors
    /// The spawner is gone, or has not looked at what it was offered before.
    pub fn offer(&mut self, worker: u32, files: &[BorrowedFd]) -> Result<u32, SocketError> {
        let number = self.last + 1;
        self.socket.send_message(&Offer { worker, number }, files)?;
        self.last = number;
        Ok(number)
    }
}

fn errno_of(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
