//! One port's bytes: between its two queues, and a pipe to and a socket from the host, without a buffer in between.
//!
//! Either way there is back-pressure. What a full pipe does not take stays in the driver's buffer, which is held until the
//! pipe has all of it; and nothing is taken from the host before the driver has it in a buffer that was given back: until then it
//! stays in the socket, where a successor finds it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use cellblock_sdk::host::{Tally, consume, peek};
use cellblock_sdk::virtio::{Chain, QueueError, Queues, Wait};
use rustix::io::Errno;

/// Reads or writes for one direction of a port in one turn; then it is the others'.
const TURNS: usize = 16;
/// The most bytes in one buffer to the guest.
const PIECE: usize = 4096;

/// One end of a pipe, and its bit among the sources that are waited for.
#[derive(Debug, Clone)]
pub struct End {
    /// It does not block.
    pub fd: Arc<OwnedFd>,
    /// One bit.
    pub bit: u32,
}

impl End {
    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The host's ends of a port. Either may be missing: nothing ever comes then, and all that goes is taken.
#[derive(Debug, Clone, Default)]
pub struct Pipes {
    /// Bytes to the guest: a stream socket.
    pub input: Option<End>,
    /// Bytes from the guest.
    pub output: Option<End>,
}

/// A port with what it holds of the driver's.
#[derive(Debug)]
pub(crate) struct Port {
    pipes: Pipes,
    receive: usize,
    transmit: usize,
    /// The buffer that waits for bytes from the host.
    filling: Option<u16>,
    /// The buffer that waits for room in the pipe, and how much of it went.
    sending: Option<(u16, u64)>,
    tally: Arc<Tally>,
}

/// What became of a buffer in one turn.
enum Turn {
    /// So many bytes of it went or came.
    Moved(u64),
    /// The pipe is not ready.
    Blocked,
    /// The pipe is of no use any more, or the buffer is none.
    Refused,
}

impl Port {
    /// Between the queue `receive` and the one after it, and `pipes`.
    pub(crate) fn new(receive: usize, pipes: Pipes, tally: Arc<Tally>) -> Self {
        Port { pipes, receive, transmit: receive + 1, filling: None, sending: None, tally }
    }

    /// Queue `slot` is taken away.
    pub(crate) fn forget(&mut self, slot: usize) {
        if slot == self.receive {
            self.filling = None;
        }
        if slot == self.transmit {
            self.sending = None;
        }
    }

    /// Moves what can be moved from the guest to the host.
    pub(crate) fn send(&mut self, queues: &mut Queues, wait: &mut Wait) -> Result<(), QueueError> {
        let Some(queue) = queues.get(self.transmit) else { return Ok(()) };
        queue.silence()?;
        let mut used = false;
        for turn in 0..=TURNS {
            if turn == TURNS {
                wait.again = true;
                break;
            }
            let held = match self.sending.take() {
                Some(held) => Some(held),
                None => queue.pop()?.map(|head| (head, 0)),
            };
            let Some((head, sent)) = held else {
                wait.again |= queue.listen()?;
                break;
            };
            let mut chain = queue.chain();
            // As much of it went before.
            let _ = chain.skip_readable(sent);
            let left = chain.readable();
            match write_some(self.pipes.output.as_ref(), &mut chain, &self.tally) {
                Turn::Blocked => {
                    self.sending = Some((head, sent));
                    wait.writable |= self.pipes.output.as_ref().map_or(0, |end| end.bit);
                    break;
                }
                Turn::Moved(count) if count < left => self.sending = Some((head, sent + count)),
                Turn::Moved(_) | Turn::Refused => {
                    queue.push(head, 0)?;
                    used = true;
                }
            }
        }
        if used { queues.signal(self.transmit) } else { Ok(()) }
    }

    /// Moves what can be moved from the host to the guest.
    pub(crate) fn receive(&mut self, queues: &mut Queues, wait: &mut Wait) -> Result<(), QueueError> {
        let (Some(queue), Some(input)) = (queues.get(self.receive), &self.pipes.input) else { return Ok(()) };
        queue.silence()?;
        let (mut used, mut ended) = (false, false);
        for turn in 0..=TURNS {
            if turn == TURNS {
                wait.again = true;
                break;
            }
            let held = match self.filling.take() {
                Some(held) => Some(held),
                None => queue.pop()?,
            };
            let Some(head) = held else {
                wait.again |= queue.listen()?;
                break;
            };
            let mut chain = queue.chain();
            match read_some(input, &mut chain) {
                Turn::Blocked => {
                    self.filling = Some(head);
                    wait.readable |= input.bit;
                    break;
                }
                Turn::Moved(0) => {
                    (self.filling, ended) = (Some(head), true);
                    break;
                }
                Turn::Moved(count) => {
                    // It has at most `PIECE` bytes.
                    queue.push(head, count as u32)?;
                    consume(input.fd(), count as usize);
                    used = true;
                }
                Turn::Refused => {
                    queue.push(head, 0)?;
                    used = true;
                }
            }
        }
        if ended {
            self.pipes.input = None;
        }
        if used { queues.signal(self.receive) } else { Ok(()) }
    }
}

/// Writes once. Without a pipe everything is taken.
fn write_some(output: Option<&End>, chain: &mut Chain<'_>, tally: &Tally) -> Turn {
    let left = chain.readable();
    let Some(end) = output.filter(|_| left > 0) else { return Turn::Moved(left) };
    match chain.send_to(end.fd(), None, left) {
        Ok(count) => Turn::Moved(count as u64),
        Err(error) if waits(&error) => Turn::Blocked,
        // Nobody reads the pipe any more, or the buffer is not in guest memory.
        Err(_) => {
            tally.dropped.add(left);
            Turn::Refused
        }
    }
}

/// Fills the buffer once with what waits. `Moved(0)` is the end of what comes from the host.
fn read_some(input: &End, chain: &mut Chain<'_>) -> Turn {
    let mut piece = [0; PIECE];
    let room = usize::try_from(chain.writable()).unwrap_or(PIECE).min(PIECE);
    let Some(space) = piece.get_mut(..room).filter(|space| !space.is_empty()) else { return Turn::Refused };
    match peek(input.fd(), space) {
        Ok(count) => match chain.write(space.get(..count).unwrap_or_default()) {
            Ok(()) => Turn::Moved(count as u64),
            // The buffer is not in guest memory.
            Err(_) => Turn::Refused,
        },
        Err(Errno::AGAIN | Errno::INTR) => Turn::Blocked,
        // As of a socket whose end has come.
        Err(_) => Turn::Moved(0),
    }
}

fn waits(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
