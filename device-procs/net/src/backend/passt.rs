//! passt's stream: each frame behind its length, 4 bytes, big-endian (QEMU's `-netdev stream` has the same). Frames have no header
//! there, so nothing is left to either side.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use cellblock_sdk::virtio::{Gather, Scatter};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::{Backend, Received, Sent};
use crate::spec::{ETHERNET_BYTES, LARGEST_FRAME, header};

/// Bytes of a length.
const LENGTH_BYTES: usize = 4;
/// Bytes that are read, or kept back, at a time: the largest frame fits.
const BUFFER_BYTES: usize = 128 << 10;

/// The far end of the one queue pair.
#[derive(Debug)]
pub struct Passt {
    socket: Arc<OwnedFd>,
    input: Buffer,
    output: Buffer,
    /// What came is not what it should be, or is at its end.
    dead: bool,
}

/// Bytes on their way: those from `start` to `end`.
#[derive(Debug)]
struct Buffer {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Buffer {
    fn new() -> Self {
        Buffer { bytes: vec![0; BUFFER_BYTES].into(), start: 0, end: 0 }
    }

    fn held(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    fn len(&self) -> usize {
        self.end - self.start
    }

    /// The first `count` bytes are done with.
    fn leave(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Room for `count` bytes behind those that are held, if there is so much.
    fn room(&mut self, count: usize) -> Option<&mut [u8]> {
        if self.bytes.len() - self.end < count && self.bytes.len() - self.len() >= count {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.len());
        }
        self.bytes.get_mut(self.end..).filter(|room| room.len() >= count)
    }
}

impl Passt {
    /// Over a connected stream socket.
    pub fn new(socket: Arc<OwnedFd>) -> Self {
        Passt { socket, input: Buffer::new(), output: Buffer::new(), dead: false }
    }

    /// The length of the frame at the front of the input, if it is known.
    fn length(&self) -> Option<u64> {
        let length = self.input.held().first_chunk::<LENGTH_BYTES>()?;
        Some(u32::from_be_bytes(*length).into())
    }

    /// Whether the frame at the front of the input is there whole.
    fn is_whole(&self) -> bool {
        self.length().is_some_and(|length| self.input.len() as u64 >= LENGTH_BYTES as u64 + length)
    }

    /// Reads once. After a length that no frame has, nothing makes sense any more.
    fn read(&mut self) {
        let Some(room) = self.input.room(1) else { return };
        match recv(&*self.socket, room, RecvFlags::DONTWAIT) {
            Ok((0, _)) => self.dead = true,
            Ok((count, _)) => self.input.end += count,
            Err(Errno::AGAIN | Errno::INTR | Errno::NOMEM | Errno::NOBUFS) => {}
            Err(_) => self.dead = true,
        }
        self.dead |= self.length().is_some_and(|length| !(1..=LARGEST_FRAME).contains(&length));
    }
}

impl Backend for Passt {
    fn begin(&mut self, _features: u64, stale: bool) {
        if stale {
            // A frame that has come in part must be read to its end; those before it are for nobody.
            while let Some(length) = self.length().filter(|_| self.is_whole()) {
                self.input.leave(LENGTH_BYTES + length as usize);
            }
        }
    }

    fn wanted(&mut self) -> Option<u64> {
        if !self.is_whole() && !self.dead {
            self.read();
        }
        // Of one that is dead `receive` tells.
        if self.is_whole() {
            self.length().map(|length| header::BYTES + length)
        } else {
            self.dead.then_some(1)
        }
    }

    fn receive(&mut self, room: &Scatter) -> Received {
        let Some(length) = self.length().filter(|_| self.is_whole() && !self.dead) else {
            return if self.dead { Received::Dead } else { Received::Nothing };
        };
        let (frame, end) = (LENGTH_BYTES, LENGTH_BYTES + length as usize);
        let bytes = self.input.held().get(frame..end).unwrap_or_default();
        let fits = length >= ETHERNET_BYTES
            && room.write_at(0, &[0; header::BYTES as usize]).is_ok()
            && room.write_at(header::BYTES, bytes).is_ok();
        self.input.leave(end);
        if fits { Received::Frame(header::BYTES + length) } else { Received::Dropped }
    }

    fn send(&mut self, chain: &Gather) -> Sent {
        let length = chain.bytes().saturating_sub(header::BYTES) as usize;
        if self.output.room(LENGTH_BYTES + length).is_none() {
            match self.flush() {
                Sent::Gone => {}
                other => return other,
            }
        }
        let Some(room) = self.output.room(LENGTH_BYTES + length) else { return Sent::Later };
        let (prefix, rest) = room.split_at_mut(LENGTH_BYTES);
        prefix.copy_from_slice(&(length as u32).to_be_bytes());
        let frame = rest.get_mut(..length).unwrap_or_default();
        if chain.read_at(header::BYTES, frame).is_ok() {
            self.output.end += LENGTH_BYTES + length;
        }
        Sent::Gone
    }

    fn flush(&mut self) -> Sent {
        while self.output.len() > 0 {
            match send(&*self.socket, self.output.held(), SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(0) => return Sent::Later,
                Ok(count) => self.output.leave(count),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN | Errno::NOMEM | Errno::NOBUFS) => return Sent::Later,
                Err(_) => return Sent::Dead,
            }
        }
        Sent::Gone
    }
}
