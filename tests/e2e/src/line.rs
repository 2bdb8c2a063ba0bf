//! A stream of bytes to and from a guest, under deadlines.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::vm::patience;

/// What a stream has said so far.
#[derive(Default)]
pub(crate) struct Heard {
    pub(crate) bytes: Mutex<(Vec<u8>, bool)>,
    more: Condvar,
}

impl Heard {
    /// Listens to `stream` from now on.
    pub(crate) fn listen(mut stream: impl Read + Send + 'static) -> Arc<Self> {
        let heard = Arc::new(Heard::default());
        let ours = Arc::clone(&heard);
        thread::spawn(move || {
            let mut chunk = [0; 4096];
            loop {
                let count = stream.read(&mut chunk).unwrap_or(0);
                let mut bytes = ours.bytes.lock().unwrap_or_else(PoisonError::into_inner);
                bytes.0.extend_from_slice(&chunk[..count]);
                bytes.1 = count == 0;
                ours.more.notify_all();
                if count == 0 {
                    return;
                }
            }
        });
        heard
    }

    /// All of it.
    pub(crate) fn text(&self) -> String {
        let bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes.0).into_owned()
    }

    /// Waits until `done` says yes of what was heard, the stream ends, or the deadline passes.
    pub(crate) fn wait(&self, deadline: Instant, done: impl Fn(&[u8]) -> bool) -> bool {
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if done(&bytes.0) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if bytes.1 || left.is_zero() {
                return false;
            }
            bytes = self.more.wait_timeout(bytes, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// A client of a serial or console port.
pub struct Line {
    heard: Arc<Heard>,
    writer: Box<dyn Write + Send>,
    read_to: usize,
}

impl Line {
    /// Over `reader` and `writer`.
    pub fn new(reader: impl Read + Send + 'static, writer: impl Write + Send + 'static) -> Self {
        Line { heard: Heard::listen(reader), writer: Box::new(writer), read_to: 0 }
    }

    /// Connects to the Unix socket at `path`, once it is there.
    ///
    /// # Errors
    /// It is not within [`patience`].
    pub fn connect(path: &Path) -> Result<Self> {
        let end = Instant::now() + patience();
        loop {
            match UnixStream::connect(path) {
                Ok(stream) => return Ok(Self::new(stream.try_clone()?, stream)),
                Err(error) if Instant::now() > end => return Err(error).context(path.display().to_string()),
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Sends `text`.
    ///
    /// # Errors
    /// Nobody takes it.
    pub fn send(&mut self, text: &str) -> Result<()> {
        Ok(self.writer.write_all(text.as_bytes())?)
    }

    /// Waits for `text`, after what an earlier call found.
    ///
    /// # Errors
    /// It does not come within [`patience`]; the error holds all that came.
    pub fn expect(&mut self, text: &str) -> Result<()> {
        let (from, wanted) = (self.read_to, text.as_bytes());
        let found = |bytes: &[u8]| position(bytes.get(from..).unwrap_or_default(), wanted);
        if !self.heard.wait(Instant::now() + patience(), |bytes| found(bytes).is_some()) {
            bail!("there is no {text:?}, only {:?}", self.heard.text());
        }
        let bytes = self.heard.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        self.read_to = from + found(&bytes.0).unwrap_or(0) + wanted.len();
        Ok(())
    }

    /// Waits for a line with `start` in it, and returns the rest of that line.
    ///
    /// # Errors
    /// As [`expect`](Self::expect).
    pub fn expect_line(&mut self, start: &str) -> Result<String> {
        self.expect(start)?;
        let from = self.read_to;
        self.expect("\n")?;
        let bytes = self.heard.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(String::from_utf8_lossy(bytes.0.get(from..self.read_to).unwrap_or_default()).trim_end().to_owned())
    }

    /// Waits until so many bytes came in all, and returns those after what an earlier call found.
    ///
    /// # Errors
    /// They do not come within [`patience`].
    pub fn expect_bytes(&mut self, count: usize) -> Result<Vec<u8>> {
        let wanted = self.read_to + count;
        if !self.heard.wait(Instant::now() + patience(), |bytes| bytes.len() >= wanted) {
            bail!("{wanted} bytes are not there, only {}", self.heard.text().len());
        }
        let bytes = self.heard.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let from = std::mem::replace(&mut self.read_to, wanted);
        Ok(bytes.0.get(from..wanted).unwrap_or_default().to_vec())
    }

    /// All that came so far.
    pub fn text(&self) -> String {
        self.heard.text()
    }
}

/// Where `needle` begins in `haystack`.
pub(crate) fn position(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len().max(1)).position(|window| window == needle)
}
