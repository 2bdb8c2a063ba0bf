//! What of the power registers survives its process.

use cellblock_sdk::state::{Decoder, Encoder, StateError};

use crate::spec::{REPEATS, event, sleep_control};

const TAG: u8 = 4;
const VERSION: u8 = 1;

/// The registers, and the interrupt that is to be repeated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct State {
    /// Sleep control's type, in place.
    pub sleep_type: u8,
    /// Event status.
    pub events: u8,
    /// When the interrupt is raised again, in ns of the monotonic clock.
    pub repeat_at: Option<u64>,
    /// How often that has been.
    pub repeats: u8,
}

impl State {
    /// Appends all fields.
    pub fn save(&self, out: &mut Encoder<'_>) {
        out.head(TAG, VERSION);
        out.bytes(&[self.sleep_type, self.events, self.repeats]);
        out.bool(self.repeat_at.is_some());
        out.u64(self.repeat_at.unwrap_or(0));
    }

    /// The state in `saved`.
    ///
    /// # Errors
    /// Bytes that [`State::save`] never writes.
    pub fn restore(saved: &[u8]) -> Result<State, StateError> {
        let mut fields = Decoder::new(saved, TAG, VERSION)?;
        let types = |value| value & !sleep_control::SLP_TYP_MASK == 0;
        let sleep_type = fields.u8_where("sleep_type", "bits 2 to 4", types)?;
        let events = fields.u8_where("events", "0 or 1", |value| value & !event::POWER_BUTTON == 0)?;
        let repeats = fields.u8_where("repeats", "at most 240", |value| value <= REPEATS)?;
        let armed = fields.bool("repeat_armed")?;
        let at = fields.u64("repeat_at")?;
        fields.end()?;
        Ok(State { sleep_type, events, repeat_at: armed.then_some(at), repeats })
    }
}
