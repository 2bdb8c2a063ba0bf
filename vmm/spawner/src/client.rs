//! The supervisor's side.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use cellblock_channel::socket::{Control, SocketError};

use crate::MAX_WORKERS;
use crate::protocol::{Event, Offer, Program, Request};

/// Requests that are kept for a spawner that does not read: some for each of the most workers.
const BACKLOG: usize = 8 * MAX_WORKERS;

/// Drives a spawner. Poll its descriptor for reading and call [`Client::next`] until it returns `None`.
#[derive(Debug)]
pub struct Client {
    socket: Control,
    /// What a spawner that does not read was to be sent, in its order.
    backlog: RefCell<VecDeque<(Request, Option<Control>)>>,
}

impl Client {
    /// Over the socket of [`crate::Spawner`].
    pub fn new(socket: Control) -> Client {
        Client { socket, backlog: RefCell::default() }
    }

    /// Asks to start a process, `instance`, of worker number `worker` of the manifest, which executes `program` and gets `control`
    /// as its only descriptor. Never blocks. It takes `control` as it is: a caller in a jail may make no copy to keep.
    ///
    /// # Errors
    /// The spawner is gone, or does not read.
    pub fn start(
        &self,
        worker: u32,
        instance: u32,
        program: Program,
        control: Control,
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
    fn send(&self, request: Request, control: Option<Control>) -> Result<(), SocketError> {
        let mut backlog = self.backlog.borrow_mut();
        let kills = matches!(request, Request::Kill { .. });
        if backlog.is_empty() {
            match self.post(&request, control.as_ref()) {
                Err(SocketError::NotReady) => {}
                // Nobody would kill it otherwise.
                Err(SocketError::Call { .. }) if kills => {}
                sent => return sent,
            }
        }
        // There is always room for an end.
        if backlog.len() >= if kills { 2 * BACKLOG } else { BACKLOG } {
            return Err(SocketError::NotReady);
        }
        backlog.push_back((request, control));
        Ok(())
    }

    fn post(&self, request: &Request, control: Option<&Control>) -> Result<(), SocketError> {
        let descriptors: Vec<_> = control.into_iter().map(AsFd::as_fd).collect();
        self.socket.send_message(request, &descriptors)
    }

    /// Whether requests wait for the spawner to read: then [`catch_up`](Self::catch_up) now and then.
    pub fn is_behind(&self) -> bool {
        !self.backlog.borrow().is_empty()
    }

    /// Sends what waits, as far as the spawner reads. Never blocks.
    pub fn catch_up(&self) {
        let mut backlog = self.backlog.borrow_mut();
        while let Some((request, control)) = backlog.front() {
            match self.post(request, control.as_ref()) {
                // One that is gone is seen by its socket.
                Ok(()) | Err(SocketError::Closed) => {}
                // What the kernel cannot do now (memory, descriptors in flight) it can do later.
                Err(_) => return,
            }
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

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cellblock_channel::socket;
    use std::os::fd::AsRawFd;

    /// A client whose spawner does not read, and how many requests that was sent.
    fn behind() -> (Client, Control, usize) {
        let (ours, theirs) = socket::pair().unwrap();
        let client = Client::new(ours);
        let mut sent = 0;
        while !client.is_behind() {
            client.settle(0, 1, false).unwrap();
            sent += 1;
        }
        (client, theirs, sent)
    }

    #[test]
    fn a_start_that_waits_keeps_the_very_socket_that_it_was_given() {
        let (client, spawner, sent) = behind();
        let (_ours, control) = socket::pair().unwrap();
        let number = control.as_fd().as_raw_fd();
        client.start(3, 7, Program::Own, control).unwrap();
        let kept = client
            .backlog
            .borrow()
            .back()
            .and_then(|(_, control)| Some(control.as_ref()?.as_fd().as_raw_fd()));
        assert_eq!(kept, Some(number));
        let mut got = Vec::new();
        for _ in 0..2 * sent {
            client.catch_up();
            while let Ok(message) = spawner.try_recv_message::<Request>(1) {
                got.push(message);
            }
        }
        assert_eq!((got.len(), client.is_behind()), (sent + 1, false));
        let (last, descriptors) = got.pop().unwrap();
        assert_eq!(last, Request::Start { worker: 3, instance: 7, program: Program::Own });
        assert_eq!(descriptors.len(), 1);
    }

    #[test]
    fn a_full_backlog_still_takes_kills() {
        let (client, _spawner, _) = behind();
        while client.settle(0, 1, false).is_ok() {}
        assert_eq!(client.backlog.borrow().len(), BACKLOG);
        client.kill(0, 7).unwrap();
        while client.kill(0, 7).is_ok() {}
        assert_eq!(client.backlog.borrow().len(), 2 * BACKLOG);
    }
}
