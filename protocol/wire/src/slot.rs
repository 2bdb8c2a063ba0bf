//! The exit ring's request and reply, as values and as the words that cross.
//!
//! A request is eight 64-bit words (one cache line), a reply four. Words that are not named are zero and ignored.
//!
//! | word | request | reply |
//! |---|---|---|
//! | 0 | sequence (low 32 bits), generation (high) | sequence (low 32 bits), generation (high) |
//! | 1 | space (8 bits), op (8), size (8), zero (8), region (32) | action (8 bits), zero (56) |
//! | 2 | offset in the region | data |
//! | 3 | data | zero |
//! | 4 | where to wait for the next one: the vCPU's CPU plus one (low 32 bits), 0 = anywhere; a hint | |
//!
//! Word 0 is written last, with Release, by either side; its low half is the futex word.

use thiserror::Error;

/// Which address space the guest's access was in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Space {
    /// Memory-mapped I/O.
    Mmio = 1,
    /// Port I/O (x86 only).
    Pio = 2,
}

/// The direction of the access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Op {
    /// The guest reads; the reply's data goes back to it.
    Read = 1,
    /// The guest writes; the reply's data is ignored.
    Write = 2,
}

/// One guest access to one device, on its way to the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Counts the requests of one lane, from 1, wrapping past zero (zero is "none yet").
    pub sequence: u32,
    /// Which incarnation of the worker is meant; counts from 1.
    pub generation: u32,
    /// Address space.
    pub space: Space,
    /// Direction.
    pub op: Op,
    /// Width in bytes: 1, 2, 4 or 8.
    pub size: u8,
    /// Which of the device's regions.
    pub region: u32,
    /// Byte offset in the region.
    pub offset: u64,
    /// What a write writes, little-endian in the low `size` bytes; zero for a read.
    pub data: u64,
}

/// What the device asks the VM to do before the guest is re-entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Action {
    /// Nothing; re-enter the guest.
    #[default]
    None = 0,
    /// The guest powered the machine off.
    PowerOff = 1,
    /// The guest asked for a reset of the machine.
    Reset = 2,
}

/// The worker's answer to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// The request's sequence.
    pub sequence: u32,
    /// The request's generation.
    pub generation: u32,
    /// Takes effect before re-entry.
    pub action: Action,
    /// What a read reads, little-endian in the low `size` bytes.
    pub data: u64,
}

/// A slot that does not decode: the field and its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("slot field {field} has the value {value:#x}")]
pub struct SlotError {
    /// The field's name.
    pub field: &'static str,
    /// What it held.
    pub value: u64,
}

/// Words in a request.
pub const REQUEST_WORDS: usize = 8;
/// The word of a request with the hint where to wait for the next one.
pub const HOME_WORD: usize = 4;
/// Words in a reply.
pub const REPLY_WORDS: usize = 4;

/// Word 0 of either slot.
pub const fn stamp(sequence: u32, generation: u32) -> u64 {
    (generation as u64) << 32 | sequence as u64
}

/// The sequence that follows `sequence`: zero is skipped, for it means "none yet".
pub const fn next_sequence(sequence: u32) -> u32 {
    match sequence.wrapping_add(1) {
        0 => 1,
        next => next,
    }
}

/// `data` cut to the low `size` bytes.
pub const fn mask(data: u64, size: u8) -> u64 {
    if size >= 8 { data } else { data & ((1 << (size as u32 * 8)) - 1) }
}

impl Request {
    /// The words to publish; word 0 goes last.
    pub const fn encode(&self) -> [u64; REQUEST_WORDS] {
        let head =
            self.space as u64 | (self.op as u64) << 8 | (self.size as u64) << 16 | (self.region as u64) << 32;
        [stamp(self.sequence, self.generation), head, self.offset, self.data, 0, 0, 0, 0]
    }

    /// The request in `words`, each of which was read once.
    ///
    /// # Errors
    /// The first field that no sender of this protocol writes.
    pub const fn decode(words: &[u64; REQUEST_WORDS]) -> Result<Request, SlotError> {
        let head = words[1];
        let space = match head as u8 {
            1 => Space::Mmio,
            2 => Space::Pio,
            other => return Err(SlotError { field: "space", value: other as u64 }),
        };
        let op = match (head >> 8) as u8 {
            1 => Op::Read,
            2 => Op::Write,
            other => return Err(SlotError { field: "op", value: other as u64 }),
        };
        let size = (head >> 16) as u8;
        if !matches!(size, 1 | 2 | 4 | 8) {
            return Err(SlotError { field: "size", value: size as u64 });
        }
        Ok(Request {
            sequence: words[0] as u32,
            generation: (words[0] >> 32) as u32,
            space,
            op,
            size,
            region: (head >> 32) as u32,
            offset: words[2],
            data: words[3],
        })
    }
}

impl Reply {
    /// The words to publish; word 0 goes last.
    pub const fn encode(&self) -> [u64; REPLY_WORDS] {
        [stamp(self.sequence, self.generation), self.action as u64, self.data, 0]
    }

    /// The reply in `words`, each of which was read once.
    ///
    /// # Errors
    /// An action that this protocol does not have.
    pub const fn decode(words: &[u64; REPLY_WORDS]) -> Result<Reply, SlotError> {
        let action = match words[1] {
            0 => Action::None,
            1 => Action::PowerOff,
            2 => Action::Reset,
            other => return Err(SlotError { field: "action", value: other }),
        };
        Ok(Reply { sequence: words[0] as u32, generation: (words[0] >> 32) as u32, action, data: words[2] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_request_survives_the_crossing(
            sequence: u32, generation: u32, pio: bool, write: bool, log2 in 0u32..4, region: u32, offset: u64, data: u64,
        ) {
            let request = Request {
                sequence, generation,
                space: if pio { Space::Pio } else { Space::Mmio },
                op: if write { Op::Write } else { Op::Read },
                size: 1 << log2, region, offset, data,
            };
            prop_assert_eq!(Request::decode(&request.encode()), Ok(request));
        }

        #[test]
        fn any_words_decode_or_name_a_field(words: [u64; REQUEST_WORDS], reply: [u64; REPLY_WORDS]) {
            if let Ok(request) = Request::decode(&words) {
                prop_assert!(matches!(request.size, 1 | 2 | 4 | 8));
            }
            match Reply::decode(&reply) {
                Ok(_) => prop_assert!(reply[1] <= 2),
                Err(error) => prop_assert_eq!(error, SlotError { field: "action", value: reply[1] }),
            }
        }
    }

    #[test]
    fn sequences_wrap_past_zero() {
        assert_eq!(next_sequence(u32::MAX), 1);
        assert_eq!(next_sequence(0), 1);
    }

    #[test]
    fn masks_keep_the_low_bytes() {
        assert_eq!(mask(u64::MAX, 1), 0xff);
        assert_eq!(mask(u64::MAX, 4), 0xffff_ffff);
        assert_eq!(mask(u64::MAX, 8), u64::MAX);
    }
}
