//! The state page: what a worker leaves to its successor. Before each reply, and after each change of state without an
//! exit, the worker commits `{device bytes, per lane: its last reply}`; a reply that was committed but not delivered is
//! delivered by the successor, so each register access takes effect exactly once.
//!
//! A header, then two copies. A commit writes the copy that is not active and then makes it active with one Release store
//! of the commit's number, so a writer that dies anywhere leaves the commit before, whole.
//!
//! | word | header | | word | copy |
//! |---|---|---|---|---|
//! | 0 | magic | | 0 | commit number (head) |
//! | 1 | version (low 32 bits), lanes (high) | | 1 | length of the device bytes (low 32), generation (high) |
//! | 2 | room for device bytes | | 2… | device bytes, little-endian words, then per lane stamp, action, data |
//! | 3 | number of the active commit; 0 = none; copy = number & 1 | | last | commit number (tail) |
//!
//! What the numbers at head and tail detect: a copy that is half written (a reader beside a live writer, an active number
//! that was stored without its copy). What they do not detect: altered bytes between them. There is no checksum, for who
//! can alter bytes can alter a checksum: a successor treats device bytes as a stranger's snapshot.

use std::sync::atomic::Ordering::{Acquire, Release};

use cellblock_wire::control::MAX_LANES;
use cellblock_wire::slot::{self, REPLY_WORDS, Reply, Request, SlotError};
use thiserror::Error;

use crate::responder::LaneId;
use crate::violation::TooSmall;
use crate::words::{Words, WordsMut};

/// The most device bytes in one commit.
pub const MAX_DEVICE_BYTES: usize = 4096;

const MAGIC: u64 = u64::from_le_bytes(*b"CellSta1");
const VERSION: u32 = 1;
const HEADER_WORDS: usize = 8;
const ACTIVE: usize = 3;
const LANE_WORDS: usize = 3;
const COPY_HEAD_WORDS: usize = 2;
/// How often [`read`] looks again when a live writer overtakes it.
const READ_ATTEMPTS: usize = 16;

/// The size of a page's parts: fixed when it is made, known to both sides from elsewhere (the grant), never taken from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    lanes: u32,
    device_bytes: usize,
}

impl Shape {
    /// Room for `lanes` lanes (1 to [`MAX_LANES`]) and `device_bytes` device bytes (up to [`MAX_DEVICE_BYTES`]); more is
    /// cut to these.
    pub const fn new(lanes: u32, device_bytes: usize) -> Shape {
        let lanes = if lanes > MAX_LANES { MAX_LANES } else { lanes };
        let device_bytes = if device_bytes > MAX_DEVICE_BYTES { MAX_DEVICE_BYTES } else { device_bytes };
        Shape { lanes, device_bytes }
    }

    /// Words that a page of this shape takes.
    pub const fn words(self) -> usize {
        HEADER_WORDS + 2 * self.copy_words()
    }

    /// Lanes.
    pub const fn lanes(self) -> u32 {
        self.lanes
    }

    /// Room for device bytes.
    pub const fn device_bytes(self) -> usize {
        self.device_bytes
    }

    const fn copy_words(self) -> usize {
        (self.tail() + 1).next_multiple_of(8)
    }

    /// The tail, in words from the copy's start.
    const fn tail(self) -> usize {
        COPY_HEAD_WORDS + self.device_bytes.div_ceil(8) + LANE_WORDS * self.lanes as usize
    }

    const fn lane(self, lane: u32) -> usize {
        COPY_HEAD_WORDS + self.device_bytes.div_ceil(8) + LANE_WORDS * lane as usize
    }

    const fn copy(self, commit: u64) -> usize {
        HEADER_WORDS + (commit & 1) as usize * self.copy_words()
    }

    const fn header(self) -> [(&'static str, u64); 3] {
        [
            ("magic", MAGIC),
            ("version and lanes", (self.lanes as u64) << 32 | VERSION as u64),
            ("device bytes", self.device_bytes as u64),
        ]
    }
}

/// A page that does not validate: its device is to be reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum StateError {
    /// The memory is too small for the shape.
    #[error(transparent)]
    TooSmall(#[from] TooSmall),
    /// A field of the header or of the active copy holds what no honest writer puts there.
    #[error("state page field {field} has the value {value:#x}, expected is {expected:#x}")]
    Field {
        /// The field's name.
        field: &'static str,
        /// What it held.
        value: u64,
        /// What it should hold, or the most that it may hold.
        expected: u64,
    },
    /// The active copy is half written.
    #[error("state page commit {active} is torn: head {head}, tail {tail}")]
    Torn {
        /// The commit that the header calls active.
        active: u64,
        /// The number before the copy.
        head: u64,
        /// The number behind it.
        tail: u64,
    },
    /// A lane's reply does not decode.
    #[error("state page reply of lane {lane}: {error}")]
    Reply {
        /// The lane.
        lane: u32,
        /// The field and its value.
        error: SlotError,
    },
}

/// Device bytes that do not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the device's state takes {bytes} bytes, the state page has room for {room}")]
pub struct TooLong {
    /// Bytes to be committed.
    pub bytes: usize,
    /// Bytes there are.
    pub room: usize,
}

/// A validated commit, copied out of the page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// Its number, from 1.
    pub number: u64,
    /// The incarnation that wrote it.
    pub generation: u32,
    /// The device's bytes: still a stranger's.
    pub device: Vec<u8>,
    /// Per lane the last reply, if there was one.
    pub replies: Vec<Option<Reply>>,
}

impl Committed {
    /// The reply to `request`, if it was done already: the committed one, with the request's generation. `None` = the request
    /// is to be served.
    pub fn reply_to(&self, lane: LaneId, request: &Request) -> Option<Reply> {
        let reply = (*self.replies.get(lane.index() as usize)?)?;
        (reply.sequence == request.sequence).then_some(Reply { generation: request.generation, ..reply })
    }
}

/// The committed state in `words`, validated as a stranger's. `None` = nothing was committed yet. `generation` is the reader's
/// idea of the newest incarnation; a commit of a later one is refused, of an earlier one not (its successors may have died
/// before their first commit). A live writer is no obstacle, only a very fast one is.
///
/// # Errors
/// The first thing found wrong.
pub fn read(words: &impl Words, shape: Shape, generation: u32) -> Result<Option<Committed>, StateError> {
    let mut result = read_once(words, shape, generation);
    for _ in 1..READ_ATTEMPTS {
        if !matches!(result, Err(StateError::Torn { .. })) {
            break;
        }
        result = read_once(words, shape, generation);
    }
    result
}

fn read_once<W: Words>(words: &W, shape: Shape, generation: u32) -> Result<Option<Committed>, StateError> {
    TooSmall::check("state page", words.len(), shape.words())?;
    let active = words.load(ACTIVE);
    if active == 0 && words.load(0) == 0 {
        return Ok(None);
    }
    for (index, (field, expected)) in shape.header().into_iter().enumerate() {
        let value = words.load(index);
        if value != expected {
            return Err(StateError::Field { field, value, expected });
        }
    }
    if active == 0 {
        return Ok(None);
    }
    // SYNC POINT: pairs with the Release store of the active number in `Writer::commit`: the copy that it names is whole.
    W::fence(Acquire);
    let (head, copy, tail) = snapshot(words, shape, shape.copy(active));
    if head != active || tail != active {
        return Err(StateError::Torn { active, head, tail });
    }
    parse(&copy, shape, active, generation).map(Some)
}

/// The copy at `base`, each word read once, tail first and head last.
fn snapshot<W: Words>(words: &W, shape: Shape, base: usize) -> (u64, Vec<u64>, u64) {
    let tail = words.load(base + shape.tail());
    // SYNC POINT: pairs with the Release store of the tail in `Writer::commit`: if it is new, so is what we copy next.
    W::fence(Acquire);
    let copy = (0..shape.tail()).map(|index| words.load(base + index)).collect();
    // SYNC POINT: pairs with the Release fence behind the head in `Writer::commit`: if any word copied was from a later commit,
    // the head read now is that commit's too, and differs from the tail.
    W::fence(Acquire);
    (words.load(base), copy, tail)
}

fn parse(copy: &[u64], shape: Shape, number: u64, newest: u32) -> Result<Committed, StateError> {
    let at = |index: usize| copy.get(index).copied().unwrap_or(0);
    let (length, generation) = (at(1) as u32, (at(1) >> 32) as u32);
    at_most("device length", length.into(), shape.device_bytes as u64)?;
    if generation == 0 {
        return Err(StateError::Field { field: "generation", value: 0, expected: newest.into() });
    }
    at_most("generation", generation.into(), newest.into())?;
    let words = copy.iter().skip(COPY_HEAD_WORDS);
    let device = words.flat_map(|word| word.to_le_bytes()).take(length as usize).collect();
    let replies = (0..shape.lanes)
        .map(|lane| {
            let start = shape.lane(lane);
            parse_reply([at(start), at(start + 1), at(start + 2), 0], lane, generation)
        })
        .collect::<Result<_, _>>()?;
    Ok(Committed { number, generation, device, replies })
}

fn parse_reply(words: [u64; REPLY_WORDS], lane: u32, newest: u32) -> Result<Option<Reply>, StateError> {
    if words[0] == 0 {
        return Ok(None);
    }
    let reply = Reply::decode(&words).map_err(|error| StateError::Reply { lane, error })?;
    if reply.sequence == 0 {
        return Err(StateError::Reply { lane, error: SlotError { field: "sequence", value: 0 } });
    }
    if reply.generation == 0 || reply.generation > newest {
        let error = SlotError { field: "generation", value: reply.generation.into() };
        return Err(StateError::Reply { lane, error });
    }
    Ok(Some(reply))
}

fn at_most(field: &'static str, value: u64, most: u64) -> Result<(), StateError> {
    if value <= most { Ok(()) } else { Err(StateError::Field { field, value, expected: most }) }
}

/// The worker's end: the only writer of the page.
#[derive(Debug)]
pub struct Writer<W> {
    words: W,
    shape: Shape,
    generation: u32,
    /// The last commit's number.
    number: u64,
    /// Per lane the last reply's words; zero = none.
    replies: Vec<[u64; LANE_WORDS]>,
    /// Per copy, the lanes (one bit each) whose reply there is not the last one.
    stale: [u32; 2],
}

impl<W: WordsMut> Writer<W> {
    /// Takes the page over as incarnation `generation`, with what the predecessor committed; a fresh page is formatted.
    ///
    /// # Errors
    /// The page does not validate; it is unchanged. [`Writer::format`] then starts from nothing, with the device reset.
    pub fn open(words: W, shape: Shape, generation: u32) -> Result<(Self, Option<Committed>), StateError> {
        let committed = read(&words, shape, generation)?;
        let mut writer = Writer::format_over(words, shape, generation, committed.is_none())?;
        if let Some(committed) = &committed {
            writer.number = committed.number;
            for (own, reply) in writer.replies.iter_mut().zip(&committed.replies) {
                *own = reply.as_ref().map_or([0; LANE_WORDS], reply_words);
            }
        }
        Ok((writer, committed))
    }

    /// Empties the page, whatever it held.
    ///
    /// # Errors
    /// The memory is too small for the shape.
    pub fn format(words: W, shape: Shape, generation: u32) -> Result<Self, StateError> {
        Writer::format_over(words, shape, generation, true)
    }

    fn format_over(words: W, shape: Shape, generation: u32, empty: bool) -> Result<Self, StateError> {
        TooSmall::check("state page", words.len(), shape.words())?;
        if empty {
            words.store(ACTIVE, 0);
            for (index, (_, value)) in shape.header().into_iter().enumerate() {
                words.publish(index, value);
            }
        }
        let replies = vec![[0; LANE_WORDS]; shape.lanes as usize];
        Ok(Writer { words, shape, generation, number: 0, replies, stale: [u32::MAX; 2] })
    }

    /// The page's shape.
    pub const fn shape(&self) -> Shape {
        self.shape
    }

    /// Commits `device` and, for an access, the reply that is about to be published in its lane. When this returns, the
    /// commit survives the worker.
    ///
    /// # Errors
    /// `device` is longer than the shape's room; nothing is committed.
    pub fn commit(&mut self, device: &[u8], answered: Option<(LaneId, &Reply)>) -> Result<(), TooLong> {
        if device.len() > self.shape.device_bytes {
            return Err(TooLong { bytes: device.len(), room: self.shape.device_bytes });
        }
        if let Some((lane, reply)) = answered {
            self.note(lane, reply);
        }
        let number = next_number(self.number);
        let base = self.shape.copy(number);
        self.words.store(base, number);
        // SYNC POINT: pairs with the Acquire fence before the head's load in `snapshot`: who sees a word below sees this head.
        W::fence(Release);
        self.words.store(base + 1, u64::from(self.generation) << 32 | device.len() as u64);
        self.write_device(base + COPY_HEAD_WORDS, device);
        self.write_replies(base, number);
        // SYNC POINT: pairs with the Acquire fence after the tail's load in `snapshot`.
        self.words.publish(base + self.shape.tail(), number);
        // SYNC POINT: pairs with the Acquire fence after the active number's load in `read_once`.
        self.words.publish(ACTIVE, number);
        self.number = number;
        Ok(())
    }

    fn note(&mut self, lane: LaneId, reply: &Reply) {
        if let Some(own) = self.replies.get_mut(lane.index() as usize) {
            *own = reply_words(reply);
            self.stale = self.stale.map(|lanes| lanes | 1 << lane.index());
        }
    }

    fn write_device(&self, start: usize, device: &[u8]) {
        let (whole, rest) = device.as_chunks::<8>();
        for (index, bytes) in whole.iter().enumerate() {
            self.words.store(start + index, u64::from_le_bytes(*bytes));
        }
        if !rest.is_empty() {
            let mut bytes = [0; 8];
            bytes[..rest.len()].copy_from_slice(rest);
            self.words.store(start + whole.len(), u64::from_le_bytes(bytes));
        }
    }

    /// Writes the replies that have changed since this copy was last written.
    fn write_replies(&mut self, base: usize, number: u64) {
        let stale = std::mem::take(&mut self.stale[(number & 1) as usize]);
        for (lane, reply) in self.replies.iter().enumerate().filter(|(lane, _)| stale & 1 << lane != 0) {
            let start = base + self.shape.lane(lane as u32);
            for (offset, word) in reply.iter().enumerate() {
                self.words.store(start + offset, *word);
            }
        }
    }
}

const fn reply_words(reply: &Reply) -> [u64; LANE_WORDS] {
    [slot::stamp(reply.sequence, reply.generation), reply.action as u64, reply.data]
}

/// The number after `number`: it skips zero, which means "none", and alternates between odd and even (a hostile
/// predecessor may have left any number).
const fn next_number(number: u64) -> u64 {
    match number.wrapping_add(1) {
        0 => 2,
        next => next,
    }
}
