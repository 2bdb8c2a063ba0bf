//! What of the clock survives its process.

use cellblock_sdk::state::{Decoder, Encoder, StateError};

use crate::calendar::{Fields, RANGE};
use crate::device::OFFSET_LIMIT;
use crate::spec::{BASE_MEMORY, MEMORY_BYTES, a, b, c};

const TAG: u8 = 2;
const VERSION: u8 = 1;

/// Registers, memory, and how far the guest's time is from the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    /// What the data port means.
    pub index: u8,
    /// Register A without UIP.
    pub a: u8,
    /// Register B.
    pub b: u8,
    /// Register C.
    pub c: u8,
    /// Guest time minus host time, in seconds.
    pub offset: i64,
    /// The time that the guest is setting, while SET is set.
    pub setting: Option<Fields>,
    /// Up to when the flags of register C are gathered, as the host's wall time in ns.
    pub flags_seen: i64,
    /// Plain memory. Where a register is, unused; the alarm's bytes are here.
    pub memory: [u8; MEMORY_BYTES],
}

impl Default for State {
    fn default() -> Self {
        let mut memory = [0; MEMORY_BYTES];
        for (index, value) in BASE_MEMORY {
            if let Some(byte) = memory.get_mut(index) {
                *byte = value;
            }
        }
        State { index: 0, a: a::DEFAULT, b: b::HOURS_24, c: 0, offset: 0, setting: None, flags_seen: 0, memory }
    }
}

impl State {
    /// Appends all fields.
    pub fn save(&self, out: &mut Encoder<'_>) {
        out.head(TAG, VERSION);
        out.bytes(&[self.index, self.a, self.b, self.c]);
        out.i64(self.offset);
        out.i64(self.setting.map_or(0, |fields| fields.seconds()));
        out.i64(self.flags_seen);
        out.bytes(&self.memory);
    }

    /// The state in `saved`.
    ///
    /// # Errors
    /// Bytes that [`State::save`] never writes.
    pub fn restore(saved: &[u8]) -> Result<State, StateError> {
        let mut fields = Decoder::new(saved, TAG, VERSION)?;
        let index = fields.u8_where("index", "0 to 0x7f", |value| usize::from(value) < MEMORY_BYTES)?;
        let a = fields.u8_where("a", "bit 7 clear", |value| value & a::UIP == 0)?;
        let b = fields.u8_where("b", "not both SET and UIE", |value| value & (b::SET | b::UIE) != b::SET | b::UIE)?;
        let c = fields.u8_where("c", "bits 4 to 7", |value| value & !(c::FLAGS | c::IRQF) == 0)?;
        let offset = fields.i64_within("offset", "a distance within the calendar", OFFSET_LIMIT)?;
        let limit = RANGE.start().unsigned_abs().max(RANGE.end().unsigned_abs());
        let seconds = fields.i64_within("setting", "a moment of the calendar", limit)?;
        let flags_seen = fields.bytes("flags_seen").map(i64::from_le_bytes)?;
        let memory = fields.bytes("memory")?;
        fields.end()?;
        let setting = (b & b::SET != 0).then(|| Fields::at(seconds));
        Ok(State { index, a, b, c, offset, setting, flags_seen, memory })
    }
}
