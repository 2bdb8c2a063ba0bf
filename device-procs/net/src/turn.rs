//! How much is done in one turn, and why a turn ended.

/// Frames in a turn, at most. The other queue, a reset and the register thread wait no longer than that takes.
const MOST_FRAMES: u32 = 64;
/// Bytes in a turn, but for the last frame.
const MOST_BYTES: u64 = 512 << 10;

/// What was done in one turn.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    frames: u32,
    bytes: u64,
    used: bool,
}

impl Turn {
    /// A frame of `bytes` bytes was dealt with; `used` = the driver got buffers back.
    pub(crate) fn count(&mut self, bytes: u64, used: bool) {
        self.frames += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        self.used |= used;
    }

    pub(crate) fn is_over(&self) -> bool {
        self.frames >= MOST_FRAMES || self.bytes >= MOST_BYTES
    }

    /// The turn ends with `rest`.
    pub(crate) fn rest(&self, rest: Rest) -> Rest {
        Rest { used: self.used, ..rest }
    }
}

/// Why one queue's turn ended. With none of these: for want of the driver's buffers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Rest {
    /// There may be more to do.
    pub(crate) again: bool,
    /// The far end has nothing, or takes nothing.
    pub(crate) source: bool,
    /// The limit is reached until then.
    pub(crate) until: Option<u64>,
    /// The far end is gone.
    pub(crate) dead: bool,
    /// The driver got buffers back.
    pub(crate) used: bool,
}
