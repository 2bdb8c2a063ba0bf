//! What of the keyboard controller survives its process.

use cellblock_sdk::state::{Decoder, Encoder, StateError};

use crate::spec::{command, config, output, status};

const TAG: u8 = 3;
const VERSION: u8 = 1;
/// The controller's memory, with the configuration byte at 0.
const MEMORY_BYTES: usize = 32;

/// A byte in the output buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// The byte.
    pub byte: u8,
    /// Status flags that come with it: second port, timeout.
    pub flags: u8,
}

/// Registers and memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    /// Configuration byte.
    pub config: u8,
    /// Output port.
    pub output: u8,
    /// What the data port gave last.
    pub last: u8,
    /// The last write was a command.
    pub after_command: bool,
    /// The output buffer.
    pub waiting: Option<Waiting>,
    /// The command whose data byte comes next.
    pub expects: Option<u8>,
    memory: [u8; MEMORY_BYTES],
}

impl Default for State {
    fn default() -> Self {
        State {
            config: config::DEFAULT,
            output: output::DEFAULT,
            last: 0,
            after_command: false,
            waiting: None,
            expects: None,
            memory: [0; MEMORY_BYTES],
        }
    }
}

impl State {
    /// The byte that the read command `code` means.
    pub fn memory(&self, code: u8) -> u8 {
        match usize::from(code) % MEMORY_BYTES {
            0 => self.config,
            index => self.memory.get(index).copied().unwrap_or(0),
        }
    }

    /// Writes the byte that the write command `code` means.
    pub fn set_memory(&mut self, code: u8, value: u8) {
        match usize::from(code) % MEMORY_BYTES {
            0 => self.config = value,
            index => {
                if let Some(byte) = self.memory.get_mut(index) {
                    *byte = value;
                }
            }
        }
    }

    /// Appends all fields.
    pub fn save(&self, out: &mut Encoder<'_>) {
        out.head(TAG, VERSION);
        out.bytes(&[self.config, self.output, self.last]);
        out.bool(self.after_command);
        out.bool(self.waiting.is_some());
        let waiting = self.waiting.unwrap_or(Waiting { byte: 0, flags: 0 });
        out.bytes(&[waiting.byte, waiting.flags, self.expects.unwrap_or(0)]);
        out.bytes(&self.memory);
    }

    /// The state in `saved`.
    ///
    /// # Errors
    /// Bytes that [`State::save`] never writes.
    pub fn restore(saved: &[u8]) -> Result<State, StateError> {
        let mut fields = Decoder::new(saved, TAG, VERSION)?;
        let config = fields.u8("config")?;
        let output = fields.u8_where("output", "bit 0 set", |value| value & output::NOT_RESET != 0)?;
        let last = fields.u8("last")?;
        let after_command = fields.bool("after_command")?;
        let full = fields.bool("waiting")?;
        let byte = fields.u8("waiting.byte")?;
        let known = |flags: u8| flags & !(status::AUXILIARY | status::TIMEOUT) == 0;
        let flags = fields.u8_where("waiting.flags", "bits 5 and 6", known)?;
        let takes_data = |code: u8| matches!(code, 0 | command::WRITE_MEMORY..0x80 | command::WRITE_OUTPUT..=command::TO_AUXILIARY);
        let code = fields.u8_where("expects", "0 or a command that takes a byte", takes_data)?;
        let memory = fields.bytes("memory")?;
        fields.end()?;
        let waiting = full.then_some(Waiting { byte, flags });
        let expects = (code != 0).then_some(code);
        Ok(State { config, output, last, after_command, waiting, expects, memory })
    }
}
