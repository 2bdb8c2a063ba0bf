//! How the guest is continued: the reply to its last exit.

use crate::{Error, ExitData, Result, VmExit};

/// How to continue the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmEntry {
    /// Nothing is owed: the first entry, and after every exit that is not an access or hypercall.
    Resume,
    /// The bytes that a read exit waits for (or a hypercall's 8-byte return value), little-endian.
    Reply(ExitData),
    /// A write has taken effect.
    Done,
}

impl VmEntry {
    /// What kind of entry this is, for error texts.
    pub fn describe(&self) -> String {
        match self {
            Self::Resume => "Resume".into(),
            Self::Reply(data) => format!("Reply of {} bytes", data.len()),
            Self::Done => "Done".into(),
        }
    }
}

/// What a vCPU owes its guest. Back ends keep one and ask it before every entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pending {
    /// Nothing.
    #[default]
    Nothing,
    /// The guest waits for this many bytes.
    Read {
        /// 1 to 8.
        bytes: u8,
    },
    /// The guest waits for its write to take effect.
    Write,
}

impl Pending {
    /// What `exit` leaves pending.
    pub fn after(exit: &VmExit) -> Self {
        match exit {
            VmExit::Mmio { write: true, .. } | VmExit::Pio { write: true, .. } => Self::Write,
            VmExit::Mmio { data, .. } | VmExit::Pio { data, .. } => Self::Read { bytes: data.len() as u8 },
            VmExit::Hypercall { .. } => Self::Read { bytes: 8 },
            _ => Self::Nothing,
        }
    }

    /// Accepts `entry` if it answers exactly what is pending.
    ///
    /// # Errors
    /// [`Error::WrongEntry`] naming `vcpu`, what it waits for and what it was given.
    pub fn check(self, vcpu: u32, entry: &VmEntry) -> Result<()> {
        match (self, entry) {
            (Self::Nothing, VmEntry::Resume) | (Self::Write, VmEntry::Done) => Ok(()),
            (Self::Read { bytes }, VmEntry::Reply(data)) if data.len() == usize::from(bytes) => Ok(()),
            _ => Err(Error::WrongEntry { vcpu, pending: self.describe(), entry: entry.describe() }),
        }
    }

    fn describe(self) -> String {
        match self {
            Self::Nothing => "Resume".into(),
            Self::Read { bytes } => format!("Reply of {bytes} bytes"),
            Self::Write => "Done".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smallvec::smallvec;

    #[test]
    fn only_the_matching_entry_is_accepted() {
        let entries = [
            VmEntry::Resume,
            VmEntry::Done,
            VmEntry::Reply(smallvec![0; 3]),
            VmEntry::Reply(smallvec![0; 4]),
            VmEntry::Reply(smallvec![0; 5]),
        ];
        for (pending, right) in [(Pending::Nothing, 0), (Pending::Write, 1), (Pending::Read { bytes: 4 }, 3)]
        {
            for (index, entry) in entries.iter().enumerate() {
                assert_eq!(pending.check(0, entry).is_ok(), index == right, "{pending:?} {entry:?}");
            }
        }
    }

    #[test]
    fn a_refused_entry_says_what_was_awaited() {
        let error = Pending::Read { bytes: 2 }.check(3, &VmEntry::Resume).unwrap_err().to_string();
        assert!(error.contains("vCPU 3") && error.contains("Reply of 2 bytes"), "{error}");
    }
}
