//! Credit (Virtio 1.3 §5.10.6.3): each side tells the other how large its buffer is and how much has left it, and nobody
//! sends more than fits. Counters run modulo 2^32.

use crate::spec::{BUFFER_BYTES, Header};

/// Room that must have become free before the guest is told without its asking.
const WORTH_TELLING: u32 = BUFFER_BYTES / 4;

/// The counters of one connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Credit {
    /// Bytes sent to the guest.
    sent: u32,
    /// The guest's buffer.
    guest_buffer: u32,
    /// What the guest said has left it.
    guest_forwarded: u32,
    /// Bytes that came from the guest.
    received: u32,
    /// Those of them that have left our buffer.
    forwarded: u32,
    /// What the guest knows of that.
    told: u32,
}

impl Credit {
    /// What the guest says of its side, in any packet of the connection.
    pub fn hear(&mut self, header: &Header) {
        self.guest_buffer = header.buf_alloc;
        self.guest_forwarded = header.fwd_cnt;
    }

    /// Bytes that the guest has room for. A guest that says it has forwarded more than it got, or shrinks its buffer below
    /// what is under way, has none.
    pub fn room(&self) -> u32 {
        let under_way = self.sent.wrapping_sub(self.guest_forwarded);
        self.guest_buffer.saturating_sub(under_way)
    }

    /// `bytes` were sent to the guest.
    pub fn send(&mut self, bytes: u32) {
        self.sent = self.sent.wrapping_add(bytes);
    }

    /// Takes `bytes` from the guest; `false` = that is more than it had credit for, and nothing is taken.
    pub fn receive(&mut self, bytes: u32) -> bool {
        let kept = self.received.wrapping_sub(self.forwarded);
        if bytes > BUFFER_BYTES.saturating_sub(kept) {
            return false;
        }
        self.received = self.received.wrapping_add(bytes);
        true
    }

    /// `bytes` have left our buffer.
    pub fn forward(&mut self, bytes: u32) {
        self.forwarded = self.forwarded.wrapping_add(bytes);
    }

    /// Whether the guest should be told how much room there is again.
    pub fn is_worth_telling(&self) -> bool {
        self.forwarded.wrapping_sub(self.told) >= WORTH_TELLING
    }

    /// Our side, for a packet that goes to the guest now.
    pub fn tell(&mut self, header: &mut Header) {
        (header.buf_alloc, header.fwd_cnt) = (BUFFER_BYTES, self.forwarded);
        self.told = self.forwarded;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hears(credit: &mut Credit, buf_alloc: u32, fwd_cnt: u32) {
        credit.hear(&Header { buf_alloc, fwd_cnt, ..Header::default() });
    }

    #[test]
    fn a_guest_that_talks_nonsense_gets_nothing() {
        let mut credit = Credit::default();
        assert_eq!(credit.room(), 0, "it has said nothing yet");
        hears(&mut credit, 1000, 0);
        credit.send(600);
        assert_eq!(credit.room(), 400);
        hears(&mut credit, 500, 0);
        assert_eq!(credit.room(), 0, "it has shrunk its buffer");
        hears(&mut credit, 1000, 601);
        assert_eq!(credit.room(), 0, "it has forwarded what it never got");
        hears(&mut credit, 1000, 600);
        assert_eq!(credit.room(), 1000);
    }

    #[test]
    fn counters_wrap() {
        let mut credit = Credit { sent: u32::MAX - 1, guest_forwarded: u32::MAX - 1, ..Credit::default() };
        hears(&mut credit, 10, u32::MAX - 1);
        credit.send(5);
        assert_eq!((credit.sent, credit.room()), (3, 5));
        hears(&mut credit, 10, 3);
        assert_eq!(credit.room(), 10);
    }

    proptest! {
        /// A guest that keeps to its credit is never refused and never stuck: it sends as long as it knows of room, and once
        /// all is forwarded it has been told of three quarters of the buffer.
        #[test]
        fn an_honest_guest_always_goes_on(steps in proptest::collection::vec((0u32..200_000, 0u32..200_000), 1..60)) {
            let mut credit = Credit::default();
            let (mut sent, mut known) = (0u32, 0u32);
            for (send, forward) in steps {
                let send = send.min(BUFFER_BYTES - sent.wrapping_sub(known));
                prop_assert!(credit.receive(send));
                sent = sent.wrapping_add(send);
                let kept = credit.received.wrapping_sub(credit.forwarded);
                credit.forward(forward.min(kept));
                if credit.is_worth_telling() {
                    let mut header = Header::default();
                    credit.tell(&mut header);
                    known = header.fwd_cnt;
                }
                prop_assert!(credit.received.wrapping_sub(credit.forwarded) <= BUFFER_BYTES);
                if credit.received == credit.forwarded {
                    prop_assert!(BUFFER_BYTES - sent.wrapping_sub(known) > BUFFER_BYTES / 4 * 3);
                }
            }
        }

        #[test]
        fn a_byte_too_many_is_refused(sent in 0..=BUFFER_BYTES, forwarded in 0..=BUFFER_BYTES) {
            let mut credit = Credit::default();
            prop_assert!(credit.receive(sent));
            credit.forward(forwarded.min(sent));
            let room = BUFFER_BYTES - sent + forwarded.min(sent);
            prop_assert!(!credit.receive(room + 1));
            prop_assert!(!credit.receive(u32::MAX));
            prop_assert!(credit.receive(room));
        }
    }
}
