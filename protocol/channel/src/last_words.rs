//! What a worker notes as it dies, for the supervisor to find once it is gone: the kernel tells the signal alone.
//!
//! Five words in the replies, which only the worker writes: so they are its own word, to be shown to people and believed no
//! further than what the kernel says of the death agrees.

use std::sync::atomic::Ordering::Acquire;

use cellblock_ring::layout::LAST_WORDS;
use cellblock_ring::words::{Words, WordsMut};

use crate::memory::{Mapping, ReadOnly, Writable};

const SIGNAL: usize = LAST_WORDS.start;
const CODE: usize = SIGNAL + 1;
const CALL: usize = SIGNAL + 2;
const ADDRESS: usize = SIGNAL + 3;
const INSTRUCTION: usize = SIGNAL + 4;
const _: () = assert!(INSTRUCTION + 1 == LAST_WORDS.end);

/// What a worker says that it died of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastWords {
    /// The signal's number, not 0.
    pub signal: u32,
    /// The signal's `si_code`: not above zero = a process sent it.
    pub code: i32,
    /// The number of the system call that was refused.
    pub call: Option<u32>,
    /// The address at fault, or of a refused call.
    pub address: u64,
    /// The instruction, counted from where the binary's image begins.
    pub instruction: u64,
}

/// Notes `words`. Stores only: fit for a signal handler.
pub fn note(replies: &Mapping<Writable>, words: &LastWords) {
    replies.store(CODE, words.code as u32 as u64);
    replies.store(CALL, words.call.map_or(0, |call| u64::from(call) + 1));
    replies.store(ADDRESS, words.address);
    replies.store(INSTRUCTION, words.instruction);
    // SYNC POINT: pairs with the fence in `find`, where the process has not been waited for.
    replies.publish(SIGNAL, words.signal.into());
}

/// What the worker of these `replies` noted, if it did.
pub fn find(replies: &Mapping<ReadOnly>) -> Option<LastWords> {
    let signal = u32::try_from(replies.load(SIGNAL)).ok().filter(|signal| *signal != 0)?;
    // SYNC POINT: pairs with the Release in `note`.
    Mapping::<ReadOnly>::fence(Acquire);
    let call = replies.load(CALL).checked_sub(1).and_then(|call| u32::try_from(call).ok());
    Some(LastWords {
        signal,
        code: replies.load(CODE) as u32 as i32,
        call,
        address: replies.load(ADDRESS),
        instruction: replies.load(INSTRUCTION),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;

    #[test]
    fn what_is_noted_is_found() {
        let bytes = memory::bytes(cellblock_ring::layout::reply_words(1));
        let replies = memory::create_replies("replies", bytes).unwrap();
        assert_eq!(find(&replies.map), None);
        let worker = memory::open_write(&replies.fd, bytes).unwrap();
        let words = LastWords { signal: 31, code: -6, call: Some(0), address: u64::MAX, instruction: 7 };
        note(&worker, &words);
        assert_eq!(find(&replies.map), Some(words));
        // A stranger's words are numbers like any other.
        worker.store(SIGNAL, u64::MAX);
        assert_eq!(find(&replies.map), None);
        worker.store(SIGNAL, 11);
        worker.store(CALL, u64::MAX);
        assert_eq!(find(&replies.map).map(|words| (words.signal, words.call)), Some((11, None)));
    }
}
