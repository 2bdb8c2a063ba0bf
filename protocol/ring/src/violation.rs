//! What can be wrong with the other side, or with the memory.

use cellblock_wire::slot::SlotError;
use thiserror::Error;

/// A reply that no honest worker writes. The worker is to be killed; the request stays outstanding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Violation {
    /// It answers a request that is not the outstanding one (nor repeats the one before).
    #[error("reply in lane {lane}: field sequence has the value {value:#x}, outstanding is {expected:#x}")]
    Sequence {
        /// The lane.
        lane: u32,
        /// What it held.
        value: u32,
        /// The outstanding sequence.
        expected: u32,
    },
    /// It answers the outstanding sequence for another incarnation of the worker.
    #[error("reply in lane {lane}: field generation has the value {value:#x}, expected is {expected:#x}")]
    Generation {
        /// The lane.
        lane: u32,
        /// What it held.
        value: u32,
        /// The incarnation that was asked.
        expected: u32,
    },
    /// Another field does not decode.
    #[error("reply in lane {lane}: {error}")]
    Slot {
        /// The lane.
        lane: u32,
        /// The field and its value.
        error: SlotError,
    },
    /// A successor's reply memory holds what neither the supervisor's record nor fresh memory explains. Give the successor
    /// fresh memory.
    #[error(
        "reply in lane {lane}: stamp {value:#x} was left behind, expected is {expected:#x} or fresh memory"
    )]
    Leftover {
        /// The lane.
        lane: u32,
        /// Word 0 of the reply.
        value: u64,
        /// Word 0 of the last reply that was accepted.
        expected: u64,
    },
}

impl Violation {
    /// The field's name.
    pub const fn field(&self) -> &'static str {
        match self {
            Violation::Sequence { .. } => "sequence",
            Violation::Generation { .. } => "generation",
            Violation::Slot { error, .. } => error.field,
            Violation::Leftover { .. } => "stamp",
        }
    }

    /// What the field held.
    pub const fn value(&self) -> u64 {
        match self {
            Violation::Sequence { value, .. } | Violation::Generation { value, .. } => *value as u64,
            Violation::Slot { error, .. } => error.value,
            Violation::Leftover { value, .. } => *value,
        }
    }
}

/// Memory too small for what it shall hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the {memory} memory has {words} words of 8 bytes, needed are {needed}")]
pub struct TooSmall {
    /// Which memory.
    pub memory: &'static str,
    /// Words there are.
    pub words: usize,
    /// Words needed.
    pub needed: usize,
}

impl TooSmall {
    pub(crate) fn check(memory: &'static str, words: usize, needed: usize) -> Result<(), TooSmall> {
        if words >= needed { Ok(()) } else { Err(TooSmall { memory, words, needed }) }
    }
}
