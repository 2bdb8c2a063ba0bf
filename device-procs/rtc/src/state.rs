//! What of the clock survives its process.

use cellblock_sdk::state::{Decoder, Encoder, StateError};

use crate::calendar::Fields;
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
        State {
            index: 0,
            a: a::DEFAULT,
            b: b::HOURS_24,
            c: 0,
            offset: 0,
            setting: None,
            flags_seen: 0,
            memory,
        }
    }
}

impl State {
    /// Appends all fields.
    pub fn save(&self, out: &mut Encoder<'_>) {
        out.head(TAG, VERSION);
        out.bytes(&[self.index, self.a, self.b, self.c]);
        out.i64(self.offset);
        // As written, part by part: the guest may set the 31st before it sets the month.
        let setting = self.setting.unwrap_or(Fields::at(0));
        out.bytes(&setting.year.to_le_bytes());
        out.bytes(&[setting.month, setting.day, setting.hour, setting.minute, setting.second]);
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
        let b = fields
            .u8_where("b", "not both SET and UIE", |value| value & (b::SET | b::UIE) != b::SET | b::UIE)?;
        let c = fields.u8_where("c", "bits 4 to 7", |value| value & !(c::FLAGS | c::IRQF) == 0)?;
        let offset = fields.i64_within("offset", "a distance within the calendar", OFFSET_LIMIT)?;
        let moment = Self::restore_setting(&mut fields)?;
        let flags_seen = fields.bytes("flags_seen").map(i64::from_le_bytes)?;
        let memory = fields.bytes("memory")?;
        fields.end()?;
        let setting = (b & b::SET != 0).then_some(moment);
        Ok(State { index, a, b, c, offset, setting, flags_seen, memory })
    }

    fn restore_setting(fields: &mut Decoder<'_>) -> Result<Fields, StateError> {
        let year = fields.bytes("setting.year").map(u16::from_le_bytes)?;
        if year > 9999 {
            return Err(StateError::Field {
                field: "setting.year",
                value: year.into(),
                allowed: "0 to 9999",
            });
        }
        let month = fields.u8_where("setting.month", "1 to 12", |value| (1..=12).contains(&value))?;
        let day = fields.u8_where("setting.day", "1 to 31", |value| (1..=31).contains(&value))?;
        let hour = fields.u8_where("setting.hour", "0 to 23", |value| value < 24)?;
        let minute = fields.u8_where("setting.minute", "0 to 59", |value| value < 60)?;
        let second = fields.u8_where("setting.second", "0 to 59", |value| value < 60)?;
        Ok(Fields { year, month, day, hour, minute, second })
    }
}
