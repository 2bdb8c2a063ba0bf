//! Saved device state as bytes: little-endian fields in a fixed order behind a two-byte head (tag, version).
//!
//! Written into the state page before each reply, so encoding is plain stores into a fixed buffer; read by a successor
//! that trusts nothing in it.

use thiserror::Error;

/// The most bytes that one device's state may have.
pub const CAPACITY: usize = 512;

/// A buffer for one device's state.
#[derive(Debug, Clone)]
pub struct StateBuffer {
    bytes: [u8; CAPACITY],
    used: usize,
    overflow: bool,
}

impl Default for StateBuffer {
    fn default() -> Self {
        StateBuffer { bytes: [0; CAPACITY], used: 0, overflow: false }
    }
}

impl StateBuffer {
    /// Empties the buffer and starts the state of a device whose format has this `tag` and `version`.
    pub fn start(&mut self) -> Encoder<'_> {
        self.used = 0;
        self.overflow = false;
        Encoder { buffer: self }
    }

    /// What was saved.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.used).unwrap_or(&[])
    }

    /// Whether a device saved more than [`CAPACITY`] bytes; the rest is cut, so that a successor refuses it.
    pub fn overflowed(&self) -> bool {
        self.overflow
    }
}

/// Appends fields to a [`StateBuffer`].
#[derive(Debug)]
pub struct Encoder<'a> {
    buffer: &'a mut StateBuffer,
}

impl Encoder<'_> {
    /// The head, which [`Decoder::new`] checks.
    pub fn head(&mut self, tag: u8, version: u8) {
        self.bytes(&[tag, version]);
    }

    /// Raw bytes of a known length.
    pub fn bytes(&mut self, value: &[u8]) {
        let end = self.buffer.used.saturating_add(value.len());
        match self.buffer.bytes.get_mut(self.buffer.used..end) {
            Some(space) => {
                space.copy_from_slice(value);
                self.buffer.used = end;
            }
            None => self.buffer.overflow = true,
        }
    }

    /// One byte.
    pub fn u8(&mut self, value: u8) {
        self.bytes(&[value]);
    }

    /// A yes or no.
    pub fn bool(&mut self, value: bool) {
        self.u8(value.into());
    }

    /// Four bytes.
    pub fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    /// Eight bytes.
    pub fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    /// Eight bytes, signed.
    pub fn i64(&mut self, value: i64) {
        self.bytes(&value.to_le_bytes());
    }
}

/// Saved state that no device of this kind and version wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum StateError {
    /// It ends inside a field.
    #[error("saved state ends before the field {field}")]
    Short {
        /// The field's name.
        field: &'static str,
    },
    /// A field has a value that it never has.
    #[error("saved state field {field} has the value {value:#x}, allowed is {allowed}")]
    Field {
        /// The field's name.
        field: &'static str,
        /// What it held.
        value: u64,
        /// What it may hold.
        allowed: &'static str,
    },
    /// A queue that the driver has set up cannot be gone on with.
    #[error(
        "queue {index} cannot be gone on with: its rings or its record of requests in flight make no sense"
    )]
    Queue {
        /// Which.
        index: u16,
    },
    /// Bytes follow the last field.
    #[error("saved state goes on for {extra} bytes after its last field")]
    Trailing {
        /// How many.
        extra: usize,
    },
}

/// Takes fields off saved state.
#[derive(Debug)]
pub struct Decoder<'a> {
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    /// Checks the head.
    ///
    /// # Errors
    /// Another device's state, or another version's.
    pub fn new(saved: &'a [u8], tag: u8, version: u8) -> Result<Self, StateError> {
        let mut decoder = Decoder { rest: saved };
        decoder.exactly("tag", tag, "this device's tag")?;
        decoder.exactly("version", version, "this build's version")?;
        Ok(decoder)
    }

    fn exactly(&mut self, field: &'static str, wanted: u8, allowed: &'static str) -> Result<(), StateError> {
        self.u8_where(field, allowed, |value| value == wanted).map(|_| ())
    }

    /// `N` raw bytes.
    ///
    /// # Errors
    /// The state is too short.
    pub fn bytes<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], StateError> {
        let (value, rest) = self.rest.split_first_chunk().ok_or(StateError::Short { field })?;
        self.rest = rest;
        Ok(*value)
    }

    /// One byte of any value.
    ///
    /// # Errors
    /// The state is too short.
    pub fn u8(&mut self, field: &'static str) -> Result<u8, StateError> {
        self.bytes::<1>(field).map(|[value]| value)
    }

    /// One byte for which `legal` holds.
    ///
    /// # Errors
    /// The state is too short, or the value is another.
    pub fn u8_where(
        &mut self,
        field: &'static str,
        allowed: &'static str,
        legal: impl Fn(u8) -> bool,
    ) -> Result<u8, StateError> {
        let value = self.u8(field)?;
        if legal(value) { Ok(value) } else { Err(StateError::Field { field, value: value.into(), allowed }) }
    }

    /// A yes or no.
    ///
    /// # Errors
    /// The state is too short, or the byte is neither.
    pub fn bool(&mut self, field: &'static str) -> Result<bool, StateError> {
        self.u8_where(field, "0 or 1", |value| value <= 1).map(|value| value == 1)
    }

    /// Four bytes.
    ///
    /// # Errors
    /// The state is too short.
    pub fn u32(&mut self, field: &'static str) -> Result<u32, StateError> {
        self.bytes(field).map(u32::from_le_bytes)
    }

    /// Eight bytes.
    ///
    /// # Errors
    /// The state is too short.
    pub fn u64(&mut self, field: &'static str) -> Result<u64, StateError> {
        self.bytes(field).map(u64::from_le_bytes)
    }

    /// Eight bytes, signed, of a magnitude of at most `limit`.
    ///
    /// # Errors
    /// The state is too short, or the value too large.
    pub fn i64_within(
        &mut self,
        field: &'static str,
        allowed: &'static str,
        limit: u64,
    ) -> Result<i64, StateError> {
        let value = self.bytes(field).map(i64::from_le_bytes)?;
        if value.unsigned_abs() <= limit {
            Ok(value)
        } else {
            Err(StateError::Field { field, value: value as u64, allowed })
        }
    }

    /// Nothing may follow.
    ///
    /// # Errors
    /// Something does.
    pub fn end(self) -> Result<(), StateError> {
        if self.rest.is_empty() { Ok(()) } else { Err(StateError::Trailing { extra: self.rest.len() }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_back_in_order() {
        let mut buffer = StateBuffer::default();
        let mut out = buffer.start();
        out.head(7, 1);
        out.bool(true);
        out.u32(5);
        out.i64(-3);
        let mut state = Decoder::new(buffer.bytes(), 7, 1).unwrap();
        assert_eq!(state.bool("a"), Ok(true));
        assert_eq!(state.u32("b"), Ok(5));
        assert_eq!(state.i64_within("c", "at most 3", 3), Ok(-3));
        assert_eq!(state.end(), Ok(()));
    }

    #[test]
    fn a_strangers_bytes_are_named() {
        assert_eq!(Decoder::new(&[], 7, 1).unwrap_err(), StateError::Short { field: "tag" });
        let error = Decoder::new(&[7, 2], 7, 1).unwrap_err();
        assert_eq!(
            error.to_string(),
            "saved state field version has the value 0x2, allowed is this build's version"
        );
        assert_eq!(Decoder::new(&[7, 1, 9], 7, 1).unwrap().end(), Err(StateError::Trailing { extra: 1 }));
    }

    #[test]
    fn too_much_state_is_cut_and_said() {
        let mut buffer = StateBuffer::default();
        buffer.start().bytes(&[0; CAPACITY + 1]);
        assert!(buffer.overflowed());
        assert!(buffer.bytes().is_empty());
        buffer.start().u8(1);
        assert!(!buffer.overflowed());
    }
}
