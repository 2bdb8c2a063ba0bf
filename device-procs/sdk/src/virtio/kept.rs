//! A word of a device's own that survives its process beside the registers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::host::WakeLine;
use crate::state::StateError;

/// What of a device's posts has to survive the process, in one word; clones are the same. A post sets it, the register thread
/// saves it: soon after, so what was set in the very last moment may be lost.
#[derive(Debug, Clone, Default)]
pub struct Kept {
    word: Arc<AtomicU64>,
    legal: u64,
    wake: Option<WakeLine>,
}

impl Kept {
    /// 0, of which only the bits of `legal` are ever set.
    pub fn new(legal: u64) -> Self {
        Kept { legal, ..Kept::default() }
    }

    /// The same; `wake` has the register thread save what is set.
    pub(crate) fn saved_by(legal: u64, wake: WakeLine) -> Self {
        Kept { wake: Some(wake), ..Kept::new(legal) }
    }

    /// The word: as it was set last, or as a predecessor left it.
    pub fn get(&self) -> u64 {
        // SYNC POINT: none; nothing but the word itself hangs on it.
        self.word.load(Ordering::Relaxed)
    }

    /// Sets the word.
    pub fn set(&self, word: u64) {
        let word = word & self.legal;
        if self.word.swap(word, Ordering::Relaxed) != word
            && let Some(wake) = &self.wake
        {
            wake.wake();
        }
    }

    /// Whether the device keeps anything.
    pub(super) fn is_used(&self) -> bool {
        self.legal != 0
    }

    /// Whether a predecessor can have left `word`.
    ///
    /// # Errors
    /// It cannot.
    pub(super) fn check(&self, word: u64) -> Result<(), StateError> {
        if word & !self.legal == 0 {
            return Ok(());
        }
        Err(StateError::Field { field: "kept", value: word, allowed: "bits that this device keeps" })
    }

    /// What a predecessor left.
    pub(super) fn restore(&self, word: u64) {
        self.word.store(word & self.legal, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_legal_bits_are_kept() {
        let kept = Kept::new(0b101);
        kept.set(0b111);
        assert_eq!(kept.get(), 0b101);
        assert!(kept.check(0b100).is_ok());
        let error = kept.check(0b10).unwrap_err();
        assert!(error.to_string().contains("kept"), "{error}");
        kept.restore(0b1);
        assert_eq!(kept.clone().get(), 1);
    }
}
