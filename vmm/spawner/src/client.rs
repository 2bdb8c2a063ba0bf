//! The supervisor's side.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use cellblock_channel::socket::{Control, SocketError};

use crate::protocol::{Event, Offer, Program, Request};

/// Drives a spawner. Poll its descriptor for reading and call [`Client::next`] until it returns `None`.
#[derive(Debug)]
pub struct Client(Control);

impl Client {
    /// Over the socket of [`crate::Spawner`].
    pub fn new(socket: Control) -> Client {
        Client(socket)
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
        self.0.send_message(&Request::Start { worker, instance, program }, &[control])
    }

    /// What the front has offered for worker number `worker` is its binary from now on, or (not `adopt`) is forgotten. Never
    /// blocks.
    ///
    /// # Errors
    /// The spawner is gone, or does not read.
    pub fn settle(&self, worker: u32, adopt: bool) -> Result<(), SocketError> {
        self.0.send_message(&Request::Settle { worker, adopt }, &[])
    }

    /// Asks to kill a process, `instance`, of worker number `worker`. Never blocks.
    ///
    /// # Errors
    /// The spawner is gone, or does not read.
    pub fn kill(&self, worker: u32, instance: u32) -> Result<(), SocketError> {
        self.0.send_message(&Request::Kill { worker, instance }, &[])
    }

    /// Asks what a process, `instance`, of worker number `worker` does. Never blocks.
    ///
    /// # Errors
    /// The spawner is gone, or does not read.
    pub fn examine(&self, worker: u32, instance: u32) -> Result<(), SocketError> {
        self.0.send_message(&Request::Examine { worker, instance }, &[])
    }

    /// The next event, with the pidfd that comes with [`Event::Started`]; `None` if there is none yet.
    ///
    /// # Errors
    /// The spawner is gone ([`SocketError::Closed`]), or sends nonsense.
    pub fn next(&self) -> Result<Option<(Event, Option<OwnedFd>)>, SocketError> {
        match self.0.try_recv_message(1) {
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
        self.0.recv_message(1).map(|(event, mut descriptors)| (event, descriptors.pop()))
    }
}

/// The front's side: by this socket alone a binary gets in that the manifest does not name.
#[derive(Debug)]
pub struct Authority(Control);

impl Authority {
    /// Over the second socket of [`crate::Spawner`].
    pub fn new(socket: Control) -> Authority {
        Authority(socket)
    }

    /// Offers `files` for worker number `worker`: a binary, and perhaps its start program. Never blocks.
    ///
    /// # Errors
    /// The spawner is gone, or has not looked at what it was offered before.
    pub fn offer(&self, worker: u32, files: &[BorrowedFd]) -> Result<(), SocketError> {
        self.0.send_message(&Offer { worker }, files)
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
