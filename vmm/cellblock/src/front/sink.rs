//! Where the guest's serial port, or a port of its console, leads on the host: the far ends of a worker's two pipes.
//!
//! The worker never holds the terminal, the file or the socket itself. Nothing here blocks: a sink that takes nothing lets the
//! pipe fill up. Then the serial worker drops and counts, as a serial line does; the console's holds the guest's buffers.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use cellblock_config::StreamSink;
use rustix::net::{SocketFlags, accept_with};

use super::paths::open_log;
use super::socket_path::{Access, NamedSocket};
use super::terminal::{Escape, Keys, RawTerminal, TerminalSize};

/// The host's side of a stream of bytes.
pub(crate) enum Sink {
    /// Standard input and output.
    Stdio {
        /// Restores the terminal on drop.
        terminal: Option<RawTerminal>,
        /// The escape key, watched for on a terminal only.
        keys: Keys,
        /// Whether standard input may still yield something.
        open: bool,
    },
    /// Nothing.
    Null,
    /// A file, up to a limit.
    File {
        /// Opened for appending.
        file: File,
        /// Bytes that may still be written.
        left: u64,
        /// Bytes not written for the limit's sake.
        dropped: u64,
    },
    /// Whoever is connected to a Unix socket.
    Socket {
        /// Accepts one client at a time.
        listener: NamedSocket,
        /// The client.
        client: Option<UnixStream>,
    },
}

/// What the host's side yielded.
pub(crate) enum Input {
    /// Bytes, perhaps none, and what the user asked for.
    Bytes(Vec<u8>, Option<Escape>),
    /// No more will come.
    End,
}

impl Sink {
    /// Opens what `sink` names, for the stream `what`.
    ///
    /// # Errors
    /// The file or socket cannot be made; the path is in the error's text.
    pub(crate) fn open(sink: &StreamSink, what: &str) -> Result<Self, String> {
        let named =
            |path: &Path, error: io::Error| format!("{what}: {} cannot be opened: {error}", path.display());
        Ok(match sink {
            StreamSink::Stdio => {
                let terminal = RawTerminal::enter(io::stdin())
                    .map_err(|error| format!("{what}: the terminal cannot be put into raw mode: {error}"))?;
                Sink::Stdio { terminal, keys: Keys::default(), open: true }
            }
            StreamSink::Null => Sink::Null,
            StreamSink::File { path, limit } => {
                let file = open_log(path).map_err(|e| named(path, e))?;
                Sink::File { file, left: *limit, dropped: 0 }
            }
            StreamSink::Socket { path } => {
                let listened = NamedSocket::listen(path, Access::Umask);
                let listener = listened.map_err(|error| format!("{what}: {} {error}", path.display()))?;
                Sink::Socket { listener, client: None }
            }
        })
    }

    /// Whether the user sits at a terminal, whose keys are the guest's.
    pub(crate) fn is_terminal(&self) -> bool {
        matches!(self, Sink::Stdio { terminal: Some(_), .. })
    }

    /// The terminal's size, if there is one.
    pub(crate) fn terminal_size(&self) -> Option<TerminalSize> {
        if let Sink::Stdio { terminal: Some(terminal), .. } = self { terminal.size() } else { None }
    }

    /// Gives a terminal back to its owner.
    pub(crate) fn restore_terminal(&mut self) {
        if let Sink::Stdio { terminal, .. } = self {
            *terminal = None;
        }
    }

    /// What to watch for input from the host: bytes, or a client.
    pub(crate) fn source(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Sink::Stdio { open: true, .. } => Some(rustix::stdio::stdin()),
            Sink::Socket { client: Some(client), .. } => Some(client.as_fd()),
            Sink::Socket { listener, .. } => Some(listener.as_fd()),
            Sink::Stdio { .. } | Sink::Null | Sink::File { .. } => None,
        }
    }

    /// What to watch for room for output; `None` = it takes everything, now.
    pub(crate) fn destination(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Sink::Stdio { .. } => Some(rustix::stdio::stdout()),
            Sink::Socket { client: Some(client), .. } => Some(client.as_fd()),
            Sink::Socket { .. } | Sink::Null | Sink::File { .. } => None,
        }
    }

    /// Reads what `source` has, once.
    pub(crate) fn read(&mut self) -> Input {
        let mut buffer = [0; 1024];
        match self {
            Sink::Stdio { terminal, keys, open } => {
                match rustix::io::read(rustix::stdio::stdin(), &mut buffer) {
                    Ok(0) => {
                        *open = false;
                        Input::End
                    }
                    Ok(length) if terminal.is_some() => {
                        let mut guest = Vec::with_capacity(length);
                        let escape = keys.sort(&buffer[..length], &mut guest);
                        Input::Bytes(guest, escape)
                    }
                    Ok(length) => Input::Bytes(buffer[..length].to_vec(), None),
                    Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Input::Bytes(Vec::new(), None),
                    Err(_) => {
                        *open = false;
                        Input::End
                    }
                }
            }
            Sink::Socket { client: slot @ Some(_), .. } => {
                match slot.as_mut().map(|client| client.read(&mut buffer)) {
                    Some(Ok(length)) if length > 0 => Input::Bytes(buffer[..length].to_vec(), None),
                    Some(Err(error)) if would_block(&error) => Input::Bytes(Vec::new(), None),
                    _ => {
                        *slot = None;
                        Input::Bytes(Vec::new(), None)
                    }
                }
            }
            Sink::Socket { listener, client, .. } => {
                let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                *client = accept_with(listener, flags).ok().map(UnixStream::from);
                Input::Bytes(Vec::new(), None)
            }
            Sink::Null | Sink::File { .. } => Input::End,
        }
    }

    /// Takes some of `bytes`; returns how many. A sink that is gone takes them all.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> usize {
        match self {
            // At most PIPE_BUF, which a descriptor reported writable takes without blocking.
            Sink::Stdio { .. } => {
                match rustix::io::write(
                    rustix::stdio::stdout(),
                    &bytes[..bytes.len().min(rustix::pipe::PIPE_BUF)],
                ) {
                    Ok(written) => written,
                    Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => 0,
                    Err(_) => bytes.len(),
                }
            }
            Sink::Null => bytes.len(),
            Sink::File { file, left, dropped } => {
                let fits = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                let written = if file.write_all(&bytes[..fits]).is_ok() { fits } else { 0 };
                *left -= written as u64;
                *dropped += (bytes.len() - written) as u64;
                bytes.len()
            }
            Sink::Socket { client, .. } => match client.as_mut().map(|client| client.write(bytes)) {
                Some(Ok(written)) => written,
                Some(Err(error)) if would_block(&error) => 0,
                _ => {
                    *client = None;
                    bytes.len()
                }
            },
        }
    }

    /// Bytes that the file's limit kept out.
    pub(crate) fn dropped(&self) -> u64 {
        if let Sink::File { dropped, .. } = self { *dropped } else { 0 }
    }
}

fn would_block(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;

    fn scratch(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("cellblock-sink-{}-{name}", std::process::id()))
    }

    #[test]
    fn a_file_takes_its_limit_and_counts_the_rest() {
        let path = scratch("file");
        let mut sink = Sink::open(&StreamSink::File { path: path.clone(), limit: 5 }, "serial").unwrap();
        assert_eq!((sink.write(b"abc"), sink.write(b"defg")), (3, 4));
        assert_eq!((std::fs::read(&path).unwrap(), sink.dropped()), (b"abcde".to_vec(), 2));
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_socket_serves_one_client_after_another_and_leaves_no_path() {
        let path = scratch("socket");
        std::mem::forget(UnixListener::bind(&path).unwrap().try_clone().map(drop));
        let mut sink = match Sink::open(&StreamSink::Socket { path: path.clone() }, "serial") {
            Ok(sink) => sink,
            Err(error) => panic!("{error}"),
        };
        for _ in 0..2 {
            let mut client = UnixStream::connect(&path).unwrap();
            sink.read();
            assert_eq!(sink.write(b"hi"), 2);
            let mut got = [0; 2];
            client.read_exact(&mut got).unwrap();
            client.write_all(b"yo").unwrap();
            assert!(matches!(sink.read(), Input::Bytes(bytes, None) if bytes == b"yo"));
            drop(client);
            sink.read();
            assert_eq!(sink.write(b"nobody"), 6);
        }
        drop(sink);
        assert!(!path.exists());
    }
}
