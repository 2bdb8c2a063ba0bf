//! One stream of bytes between a device's pipe and socket and its sink on the host: the serial port's, or a console port's.
//!
//! Nothing here blocks, and little is kept: what a sink does not take stays in the pipe, and so with the worker.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use cellblock_config::StreamSink;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, shutdown, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};

use super::sink::{Input, Sink};
use super::terminal::{Escape, TerminalSize};

/// Bytes in flight in either direction.
const BUFFER: usize = 4096;

/// The ends of a socket and a pipe that the front keeps.
#[derive(Default)]
pub(crate) struct StreamPipes {
    /// To the guest; closed when the host's side ends.
    pub input: Option<OwnedFd>,
    /// From the guest; closed when the worker is gone and all was read.
    pub output: Option<OwnedFd>,
}

/// The worker's ends of a stream's pipes.
#[derive(Default)]
pub(crate) struct WorkerEnds {
    /// Bytes to the guest.
    pub input: Option<OwnedFd>,
    /// Bytes from the guest.
    pub output: Option<OwnedFd>,
}

/// The pipe and the socket of a stream that leads to `sink`: as many as it has use for. What goes to the guest goes by a socket, in
/// which it stays until the guest has it, whatever becomes of a worker. The front's ends do not block, the worker's only
/// where it has a thread for each (`blocking`).
///
/// # Errors
/// A pipe or socket cannot be made.
pub(crate) fn pipes(sink: &StreamSink, blocking: bool) -> Result<(WorkerEnds, StreamPipes), Errno> {
    let from_guest = || pipe_with(PipeFlags::CLOEXEC);
    let to_guest = || -> Result<_, Errno> {
        let flags = SocketFlags::CLOEXEC;
        let (worker, front) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // One way only: a worker has nothing to say there.
        shutdown(&front, Shutdown::Read)?;
        Ok((worker, front))
    };
    let ready = |(worker, front): (OwnedFd, OwnedFd)| -> Result<_, Errno> {
        ioctl_fionbio(&front, true)?;
        ioctl_fionbio(&worker, !blocking)?;
        Ok((Some(worker), Some(front)))
    };
    let (takes, gives) = match sink {
        StreamSink::Null => (false, false),
        StreamSink::File { .. } => (true, false),
        StreamSink::Stdio | StreamSink::Socket { .. } => (true, true),
    };
    let swapped = |(read, write)| (write, read);
    let (worker_output, output) = if takes { ready(swapped(from_guest()?))? } else { (None, None) };
    let (worker_input, input) = if gives { ready(to_guest()?)? } else { (None, None) };
    Ok((WorkerEnds { input: worker_input, output: worker_output }, StreamPipes { input, output }))
}

/// What of a stream can be waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// The host has bytes for the guest, or is a client that wants in.
    Source,
    /// The pipe to the guest has room.
    PipeIn,
    /// The pipe from the guest has bytes.
    PipeOut,
    /// The host has room.
    Destination,
}

/// A stream while its VM runs.
pub(crate) struct Stream<'a> {
    pipes: StreamPipes,
    sink: &'a mut Sink,
    is_console: bool,
    to_guest: Vec<u8>,
    to_host: Vec<u8>,
}

impl<'a> Stream<'a> {
    /// Between `pipes` and `sink`; `is_console` = the guest wants to know the terminal's size.
    pub(crate) fn new(pipes: StreamPipes, sink: &'a mut Sink, is_console: bool) -> Self {
        Stream { pipes, sink, is_console, to_guest: Vec::new(), to_host: Vec::new() }
    }

    /// The size of the terminal that the console is on.
    pub(crate) fn console_size(&self) -> Option<TerminalSize> {
        self.sink.terminal_size().filter(|_| self.is_console)
    }

    /// What it waits for now.
    pub(crate) fn watched(&self) -> impl Iterator<Item = (Side, BorrowedFd<'_>, PollFlags)> {
        let hungry = self.to_guest.is_empty() && self.pipes.input.is_some();
        let room = self.to_host.is_empty();
        let pipe_in = self.pipes.input.as_ref().map(AsFd::as_fd).filter(|_| !hungry);
        let pipe_out = self.pipes.output.as_ref().map(AsFd::as_fd).filter(|_| room);
        [
            (Side::Source, self.sink.source().filter(|_| hungry), PollFlags::IN),
            (Side::PipeIn, pipe_in, PollFlags::OUT),
            (Side::PipeOut, pipe_out, PollFlags::IN),
            (Side::Destination, self.sink.destination().filter(|_| !room), PollFlags::OUT),
        ]
        .into_iter()
        .filter_map(|(side, fd, flags)| Some((side, fd?, flags)))
    }

    /// Whether all that the worker has written is with the sink.
    pub(crate) fn is_drained(&self) -> bool {
        self.pipes.output.is_none() && self.to_host.is_empty()
    }

    /// Moves what `side`, which is ready, lets it move. Returns what the user asked for by the escape key.
    pub(crate) fn advance(&mut self, side: Side) -> Option<Escape> {
        match side {
            Side::Source => return self.take_from_host(),
            Side::PipeIn => self.give_to_guest(),
            Side::PipeOut => self.take_from_guest(),
            Side::Destination => self.give_to_host(),
        }
        None
    }

    fn take_from_host(&mut self) -> Option<Escape> {
        match self.sink.read() {
            Input::Bytes(bytes, escape) => {
                self.to_guest.extend(bytes);
                escape
            }
            // The worker sees the end of its input; the guest sees a line gone quiet.
            Input::End => {
                self.pipes.input = None;
                None
            }
        }
    }

    fn give_to_guest(&mut self) {
        match self.pipes.input.as_ref().map(|fd| rustix::io::write(fd, &self.to_guest)) {
            Some(Ok(written)) => drop(self.to_guest.drain(..written)),
            Some(Err(Errno::AGAIN | Errno::INTR)) => {}
            _ => {
                self.pipes.input = None;
                self.to_guest.clear();
            }
        }
    }

    fn take_from_guest(&mut self) {
        let mut buffer = [0; BUFFER];
        match self.pipes.output.as_ref().map(|fd| rustix::io::read(fd, &mut buffer)) {
            Some(Ok(length)) if length > 0 => self.to_host.extend(&buffer[..length]),
            Some(Err(Errno::AGAIN | Errno::INTR)) => {}
            _ => self.pipes.output = None,
        }
        self.give_to_host();
    }

    fn give_to_host(&mut self) {
        if !self.to_host.is_empty() && self.can_take() {
            let written = self.sink.write(&self.to_host);
            self.to_host.drain(..written);
        }
    }

    /// Whether the sink takes bytes without blocking, right now.
    fn can_take(&self) -> bool {
        // A sink with nothing to poll takes everything at once.
        let Some(fd) = self.sink.destination() else { return true };
        let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(poll(&mut fds, Some(&now)), Ok(count) if count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    /// What `stream` waits for.
    fn sides(stream: &Stream<'_>) -> Vec<Side> {
        stream.watched().map(|(side, ..)| side).collect()
    }

    /// Advances what is ready until nothing is.
    fn run(stream: &mut Stream<'_>) {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        loop {
            let ready: Vec<Side> = {
                let watched: Vec<_> = stream.watched().collect();
                let is_ready = |fd: &BorrowedFd<'_>, flags: PollFlags| {
                    poll(&mut [PollFd::from_borrowed_fd(*fd, flags)], Some(&now)) == Ok(1)
                };
                watched.iter().filter(|(_, fd, flags)| is_ready(fd, *flags)).map(|(side, ..)| *side).collect()
            };
            if ready.is_empty() {
                return;
            }
            ready.into_iter().for_each(|side| assert_eq!(stream.advance(side), None));
        }
    }

    #[test]
    fn a_sink_has_the_pipes_that_it_has_use_for() {
        let ends = |sink: StreamSink| {
            let (worker, front) = pipes(&sink, true).unwrap();
            assert_eq!(
                (worker.input.is_some(), worker.output.is_some()),
                (front.input.is_some(), front.output.is_some())
            );
            (worker.input.is_some(), worker.output.is_some())
        };
        assert_eq!(ends(StreamSink::Null), (false, false));
        assert_eq!(ends(StreamSink::File { path: "/f".into(), limit: 1 }), (false, true));
        assert_eq!(ends(StreamSink::Stdio), (true, true));
    }

    #[test]
    fn a_sink_that_is_full_leaves_the_pipe_full() {
        let path = std::env::temp_dir().join(format!("cellblock-stream-{}", std::process::id()));
        let leads_to = StreamSink::Socket { path: path.clone() };
        let mut sink = Sink::open(&leads_to, "console").unwrap();
        let (WorkerEnds { input, output }, ours) = pipes(&leads_to, false).unwrap();
        let (guest_input, guest_output) = (input.unwrap(), output.unwrap());
        let mut stream = Stream::new(ours, &mut sink, true);
        let mut client = UnixStream::connect(&path).unwrap();
        run(&mut stream);
        // Far more than a socket and two buffers hold.
        let (mut sent, chunk) = (0, [7; 4096]);
        while let Ok(count) = rustix::io::write(&guest_output, &chunk) {
            sent += count;
            run(&mut stream);
            assert!(sent < 64 << 20, "what nobody reads is taken without end");
        }
        assert!(!sides(&stream).contains(&Side::PipeOut) && !stream.is_drained());
        // The other direction goes on.
        std::io::Write::write_all(&mut client, b"hi").unwrap();
        run(&mut stream);
        let mut got = [0; 8];
        assert_eq!(rustix::io::read(&guest_input, &mut got), Ok(2));
        drop(guest_output);
        let mut all = 0;
        while !stream.is_drained() {
            let mut chunk = [0; 8192];
            all += client.read(&mut chunk).unwrap();
            run(&mut stream);
        }
        client.set_nonblocking(true).unwrap();
        let mut rest = vec![];
        let _ = client.read_to_end(&mut rest);
        assert_eq!(all + rest.len(), sent, "every byte arrives once");
    }
}
