//! The host's side of a vsock device: the front listens at the device's path and connects to its `path_port`s, because the
//! worker may neither. Connected streams are the worker's alone; the front keeps no copy.
//!
//! What the worker says is a stranger's: messages of a fixed size, of which so many are looked at in so much time. Nothing here
//! blocks, waits or queues: what the worker does not take is closed.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use cellblock_channel::socket::{Control, SocketError};
use cellblock_wire::vsock::{MESSAGE_BYTES, Stream, Wanted};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{SocketAddrUnix, SocketFlags, accept_with};

use super::socket_path::{Access, NamedSocket};

/// Connections made in a row; then the others of the front's loop have their turn.
const BATCH: usize = 16;
/// How long a side rests after a whole batch: 16 000 connections a second are enough for an honest worker.
const REST: Duration = Duration::from_millis(1);
/// How long it rests when the front can open nothing more.
const LONG_REST: Duration = Duration::from_millis(200);

/// Where host programs connect to the guest.
pub(crate) struct Listener(NamedSocket);

impl Listener {
    /// Listens at `path`, for its owner only. A socket that nobody listens at any more is replaced.
    ///
    /// # Errors
    /// A sentence: the path is in use, is no socket's, or is too long.
    pub(crate) fn open(path: &Path) -> Result<Self, String> {
        if SocketAddrUnix::new(with_port(path, u32::MAX)).is_err() {
            return Err(format!(
                "vsock: the path {} is too long: with _ and a port it may have 107 bytes",
                path.display()
            ));
        }
        let listened = NamedSocket::listen(path, Access::Owner);
        listened.map(Listener).map_err(|error| format!("vsock: {} {error}", path.display()))
    }
}

/// The path of the host program that listens for the guest at `port`.
fn with_port(path: &Path, port: u32) -> OsString {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix(port));
    path
}

fn suffix(port: u32) -> String {
    format!("_{port}")
}

/// What can be waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// A host program wants to connect.
    Listener,
    /// The worker wants something.
    Worker,
}

/// The device's connections while its VM runs.
pub(crate) struct Vsock<'a> {
    listener: &'a Listener,
    /// `None` once it is closed.
    worker: Option<Control>,
    /// Until then the sides rest.
    rests: [Option<Instant>; 2],
}

impl<'a> Vsock<'a> {
    /// Between what connects to `listener` and the worker at the other end of `worker`.
    pub(crate) fn new(listener: &'a Listener, worker: Control) -> Self {
        Vsock { listener, worker: Some(worker), rests: [None; 2] }
    }

    /// What it waits for at the time `now`.
    pub(crate) fn watched(&self, now: Instant) -> impl Iterator<Item = (Side, BorrowedFd<'_>, PollFlags)> {
        let worker = self.worker.as_ref();
        // Without a worker nobody is accepted.
        let listener = worker.map(|_| self.listener.0.as_fd());
        [(Side::Listener, listener), (Side::Worker, worker.map(AsFd::as_fd))]
            .into_iter()
            .filter(move |(side, _)| self.rests[*side as usize].is_none_or(|until| until <= now))
            .filter_map(|(side, fd)| Some((side, fd?, PollFlags::IN)))
    }

    /// When a side that rests is to be watched again.
    pub(crate) fn deadline(&self, now: Instant) -> Option<Instant> {
        self.rests.into_iter().flatten().filter(|until| *until > now).min()
    }

    /// Does what `side`, which is ready, wants.
    pub(crate) fn advance(&mut self, side: Side) {
        let mut rest = REST;
        for _ in 0..BATCH {
            let goes_on = match side {
                Side::Listener => self.accept(),
                Side::Worker => self.connect(),
            };
            match goes_on {
                Ok(true) => {}
                Ok(false) => return,
                Err(_) => {
                    rest = LONG_REST;
                    break;
                }
            }
        }
        self.rests[side as usize] = Some(Instant::now() + rest);
    }

    /// Accepts one host program and passes it on; whether there may be more.
    ///
    /// # Errors
    /// The front can accept no more for now.
    fn accept(&mut self) -> Result<bool, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        match accept_with(&self.listener.0, flags) {
            Ok(stream) => {
                self.say(Stream::Accepted, Some(stream.as_fd()));
                Ok(self.worker.is_some())
            }
            Err(Errno::INTR | Errno::CONNABORTED) => Ok(true),
            Err(Errno::AGAIN) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Does one thing that the worker wants; whether there may be more.
    ///
    /// # Errors
    /// The front can open no more for now.
    fn connect(&mut self) -> Result<bool, Errno> {
        let Some(worker) = &self.worker else { return Ok(false) };
        let mut room = [0; MESSAGE_BYTES];
        let Wanted { id, port } = match worker.try_recv(&mut room, 0) {
            Ok((length, _)) => match Wanted::decode(&room[..length]) {
                Some(wanted) => wanted,
                None => return Ok(true),
            },
            Err(SocketError::NotReady) => return Ok(false),
            // Too long, or with descriptors, which are closed: not a worker of ours, but it counts as a message.
            Err(SocketError::Truncated { .. } | SocketError::Descriptors { .. }) => return Ok(true),
            Err(_) => {
                self.worker = None;
                return Ok(false);
            }
        };
        let stream = self.listener.0.connect_beside(&suffix(port));
        match &stream {
            Ok(stream) if self.say(Stream::Connected { id }, Some(stream.as_fd())) => {}
            _ => {
                self.say(Stream::Refused { id }, None);
            }
        }
        match stream.map_err(|error| Errno::from_io_error(&error)) {
            Err(Some(error @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM))) => Err(error),
            _ => Ok(self.worker.is_some()),
        }
    }

    /// Tells the worker; whether it will hear of it. One that does not read finds its streams closed.
    fn say(&mut self, what: Stream, stream: Option<BorrowedFd<'_>>) -> bool {
        let streams: &[BorrowedFd<'_>] = stream.as_slice();
        match self.worker.as_ref().map(|worker| worker.send(&what.encode(), streams)) {
            Some(Ok(())) => true,
            Some(Err(SocketError::Closed)) => {
                self.worker = None;
                false
            }
            Some(Err(_)) | None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;
    use std::path::PathBuf;

    use cellblock_channel::socket::pair;
    use rustix::net::{AddressFamily, SocketType, bind, listen, socket};
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};

    fn scratch() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vsock");
        (folder, path)
    }

    /// The next message of the front, with what came beside it.
    fn heard(worker: &Control) -> Option<(Stream, Vec<OwnedFd>)> {
        let mut room = [0; 64];
        let (length, streams) = worker.try_recv(&mut room, 4).ok()?;
        Some((Stream::decode(&room[..length]).unwrap(), streams))
    }

    fn talk(host: &mut UnixStream, passed: OwnedFd) {
        let mut passed = UnixStream::from(passed);
        let mut got = [0; 2];
        assert_eq!(passed.read(&mut got).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        passed.write_all(b"hi").unwrap();
        host.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hi");
        drop(passed);
        assert_eq!(host.read(&mut got).unwrap(), 0, "the front has kept no copy");
    }

    #[test]
    fn a_path_that_leaves_no_room_for_a_port_is_refused() {
        let (folder, _) = scratch();
        let long = folder.path().join("x".repeat(100));
        assert!(Listener::open(&long).err().unwrap().contains("too long"));
    }

    #[test]
    fn host_programs_are_passed_to_the_worker() {
        let (_folder, path) = scratch();
        let listener = Listener::open(&path).unwrap();
        let (ours, worker) = pair().unwrap();
        let mut vsock = Vsock::new(&listener, ours);
        let mut hosts: Vec<_> = (0..3).map(|_| UnixStream::connect(&path).unwrap()).collect();
        vsock.advance(Side::Listener);
        for host in &mut hosts {
            let (what, mut streams) = heard(&worker).unwrap();
            assert_eq!((what, streams.len()), (Stream::Accepted, 1));
            talk(host, streams.remove(0));
        }
        assert!(heard(&worker).is_none());
    }

    #[test]
    fn the_worker_gets_the_port_that_it_wants_or_a_no() {
        let (folder, path) = scratch();
        let listener = Listener::open(&path).unwrap();
        let host = UnixListener::bind(folder.path().join("vsock_52")).unwrap();
        let (ours, worker) = pair().unwrap();
        let mut vsock = Vsock::new(&listener, ours);
        for (id, port) in [(7, 52), (8, 53)] {
            worker.send(&Wanted { id, port }.encode(), &[]).unwrap();
        }
        vsock.advance(Side::Worker);
        let (what, mut streams) = heard(&worker).unwrap();
        assert_eq!((what, streams.len()), (Stream::Connected { id: 7 }, 1));
        talk(&mut host.accept().unwrap().0, streams.remove(0));
        let (what, streams) = heard(&worker).unwrap();
        assert_eq!((what, streams.len()), (Stream::Refused { id: 8 }, 0));
    }

    /// A listener that does not accept fills up; the front does not wait for it.
    #[test]
    fn a_listener_that_is_full_is_a_no() {
        let (folder, path) = scratch();
        let listener = Listener::open(&path).unwrap();
        let address = SocketAddrUnix::new(folder.path().join("vsock_52")).unwrap();
        let host = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        bind(&host, &address).unwrap();
        listen(&host, 0).unwrap();
        let (ours, worker) = pair().unwrap();
        let mut vsock = Vsock::new(&listener, ours);
        (0..4).for_each(|id| worker.send(&Wanted { id, port: 52 }.encode(), &[]).unwrap());
        vsock.advance(Side::Worker);
        let answers: Vec<_> = std::iter::from_fn(|| heard(&worker)).map(|(what, _)| what).collect();
        assert_eq!(answers.len(), 4);
        assert_eq!(answers[0], Stream::Connected { id: 0 });
        assert_eq!(answers[3], Stream::Refused { id: 3 });
    }

    #[test]
    fn a_hostile_worker_gets_nowhere() {
        let (_folder, path) = scratch();
        let listener = Listener::open(&path).unwrap();
        let (ours, worker) = pair().unwrap();
        let mut vsock = Vsock::new(&listener, ours);
        let wanted = Wanted { id: 1, port: 1 }.encode();
        // Too short, too long, of no kind, with a descriptor.
        worker.send(&wanted[..15], &[]).unwrap();
        worker.send(&[1; 200], &[]).unwrap();
        worker.send(&[9; MESSAGE_BYTES], &[]).unwrap();
        worker.send(&wanted, &[worker.as_fd()]).unwrap();
        vsock.advance(Side::Worker);
        assert!(heard(&worker).is_none());
        assert_eq!(vsock.watched(Instant::now()).count(), 2, "it goes on nevertheless");
        // A flood: so many in a round, then a rest.
        (0..100).for_each(|id| worker.send(&Wanted { id, port: 1 }.encode(), &[]).unwrap());
        let start = Instant::now();
        vsock.advance(Side::Worker);
        assert_eq!(std::iter::from_fn(|| heard(&worker)).count(), BATCH);
        let watched: Vec<_> = vsock.watched(start).map(|(side, ..)| side).collect();
        assert_eq!(watched, [Side::Listener]);
        let until = vsock.deadline(start).unwrap();
        assert_eq!(vsock.watched(until).count(), 2);
        // One that reads nothing: streams are closed, and nothing blocks or grows.
        for _ in 0..2000 {
            let mut host = UnixStream::connect(&path).unwrap();
            vsock.advance(Side::Listener);
            host.set_nonblocking(true).unwrap();
            match host.read(&mut [0]) {
                Ok(0) => break,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => std::mem::forget(host),
                other => panic!("{other:?}"),
            }
        }
        assert!(heard(&worker).is_some());
        drop(worker);
        vsock.advance(Side::Listener);
        vsock.advance(Side::Worker);
        assert_eq!(vsock.watched(until).count(), 0, "without a worker nobody is waited for");
    }
}
