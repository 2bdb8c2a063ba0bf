//! Where each word is, in 64-bit words from the start of its memory.
//!
//! A lane of the requests takes 128 bytes, so that the waiting flag's line is not the slot's, and neighbours do not share
//! the pair of lines that x86 fetches together.

/// Words in one lane of the requests.
const REQUEST_STRIDE: usize = 16;
/// The waiting flag in a lane of the requests.
const WAITING: usize = 8;
/// Words before the first lane of the replies.
const REPLY_HEADER: usize = 16;
/// Words in one lane of the replies.
const REPLY_STRIDE: usize = 8;

/// The worker's sleeping flag, in the replies: not zero = ring the doorbell.
pub const SLEEPING: usize = 0;

/// Where the worker waits for requests, and how, in the replies: see [`Stance`](crate::Stance). In the line of the sleeping flag: the
/// supervisor looks at both with each request.
pub const STANCE: usize = 1;

/// Which request the worker has taken last, in the replies: 0 = none. It tells whether a worker that died may have died of a request. Not in
/// the line of the sleeping flag, which the supervisor reads with each request.
pub const TAKEN: usize = 8;

/// Words of what a worker notes as it dies, in the header of the replies: see `cellblock_channel::last_words`.
pub const LAST_WORDS: std::ops::Range<usize> = TAKEN - 5..TAKEN;

/// What [`TAKEN`] holds for the request of `sequence` in `lane`: the sequence (low 32 bits), and the lane's number from 1 (high).
pub const fn taken_mark(lane: u32, sequence: u32) -> u64 {
    (lane as u64 + 1) << 32 | sequence as u64
}

/// Words in the requests of `lanes` lanes.
pub const fn request_words(lanes: u32) -> usize {
    REQUEST_STRIDE * lanes as usize
}

/// Words in the replies of `lanes` lanes.
pub const fn reply_words(lanes: u32) -> usize {
    REPLY_HEADER + REPLY_STRIDE * lanes as usize
}

/// Word 0 of a lane's request slot, in the requests.
pub const fn request_slot(lane: u32) -> usize {
    REQUEST_STRIDE * lane as usize
}

/// A lane's waiting flag, in the requests: not zero = wake the reply word's futex.
pub const fn waiting_flag(lane: u32) -> usize {
    request_slot(lane) + WAITING
}

/// Word 0 of a lane's reply slot, in the replies.
pub const fn reply_slot(lane: u32) -> usize {
    REPLY_HEADER + REPLY_STRIDE * lane as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_share_no_cache_line_and_stay_inside() {
        for lane in 0..31 {
            assert_eq!((request_slot(lane) % 16, reply_slot(lane) % 8), (0, 0));
            assert_ne!(waiting_flag(lane) / 8, request_slot(lane) / 8);
            assert!(
                waiting_flag(lane) < request_slot(lane + 1) && reply_slot(lane) + 4 <= reply_slot(lane + 1)
            );
        }
        assert!(waiting_flag(31) < request_words(32) && reply_slot(31) + 4 <= reply_words(32));
        assert_ne!(SLEEPING / 8, reply_slot(0) / 8);
        assert_eq!(SLEEPING / 8, STANCE / 8);
        assert!(LAST_WORDS.start > STANCE && LAST_WORDS.end <= reply_slot(0));
        assert!(LAST_WORDS.end <= TAKEN && TAKEN < reply_slot(0) && TAKEN / 8 != SLEEPING / 8);
    }
}
