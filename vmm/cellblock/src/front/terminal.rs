//! The terminal: raw while the guest has it, restored however the front ends, with an escape key for its user.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::termios::{self, OptionalActions, Termios};

/// A terminal in raw mode; restored on drop.
pub(crate) struct RawTerminal {
    fd: OwnedFd,
    saved: Termios,
}

impl RawTerminal {
    /// Puts `fd` into raw mode if it is a terminal.
    ///
    /// # Errors
    /// The terminal's attributes cannot be read or set.
    pub(crate) fn enter(fd: impl AsFd) -> io::Result<Option<Self>> {
        if !termios::isatty(&fd) {
            return Ok(None);
        }
        let saved = termios::tcgetattr(&fd)?;
        let mut raw = saved.clone();
        raw.make_raw();
        // Output keeps its newline translation: what cellblock itself prints must stay legible beside the guest.
        raw.output_modes = saved.output_modes;
        termios::tcsetattr(&fd, OptionalActions::Now, &raw)?;
        Ok(Some(RawTerminal { fd: fd.as_fd().try_clone_to_owned()?, saved }))
    }
}

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct TerminalSize {
    /// Width; 0 = not known.
    pub columns: u16,
    /// Height; 0 = not known.
    pub rows: u16,
}

impl RawTerminal {
    /// Its size now.
    pub(crate) fn size(&self) -> Option<TerminalSize> {
        let size = termios::tcgetwinsize(&self.fd).ok()?;
        Some(TerminalSize { columns: size.ws_col, rows: size.ws_row })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(&self.fd, OptionalActions::Flush, &self.saved);
    }
}

/// What the user asked for with the escape key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Escape {
    /// End the VM now.
    Quit,
    /// Press the guest's power button.
    PowerButton,
}

const PREFIX: u8 = 0x01; // Ctrl-A

/// Finds the escape sequences among a user's keys.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    prefixed: bool,
}

impl Keys {
    /// Appends to `guest` what of `typed` is the guest's, and returns the first escape, dropping the keys after it.
    pub(crate) fn sort(&mut self, typed: &[u8], guest: &mut Vec<u8>) -> Option<Escape> {
        for &key in typed {
            if !std::mem::take(&mut self.prefixed) {
                match key {
                    PREFIX => self.prefixed = true,
                    key => guest.push(key),
                }
                continue;
            }
            match key {
                b'x' => return Some(Escape::Quit),
                b'p' => return Some(Escape::PowerButton),
                PREFIX => guest.push(PREFIX),
                key => guest.extend([PREFIX, key]),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(keys: &mut Keys, typed: &[u8]) -> (Vec<u8>, Option<Escape>) {
        let mut guest = Vec::new();
        let escape = keys.sort(typed, &mut guest);
        (guest, escape)
    }

    #[test]
    fn ctrl_a_escapes() {
        let mut keys = Keys::default();
        assert_eq!(sorted(&mut keys, b"ab\x01"), (b"ab".to_vec(), None));
        assert_eq!(sorted(&mut keys, b"x"), (vec![], Some(Escape::Quit)));
        assert_eq!(sorted(&mut keys, b"\x01\x01\x01p"), (b"\x01".to_vec(), Some(Escape::PowerButton)));
        assert_eq!(sorted(&mut keys, b"\x01zx"), (b"\x01zx".to_vec(), None));
    }
}
