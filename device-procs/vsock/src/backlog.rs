//! What the guest has sent and the host has not taken yet: a ring of bytes for each connection, in one piece of memory that
//! is there from the start, so that serving allocates nothing.

use crate::spec::{BUFFER_BYTES, MAX_CONNECTIONS};

/// Room beyond the guest's credit, for the answer to the client's first line.
pub const ANSWER_BYTES: usize = 32;
/// Bytes of one ring.
const RING_BYTES: usize = BUFFER_BYTES as usize + ANSWER_BYTES;

/// The rings of all connections, by their slots.
#[derive(Debug)]
pub struct Backlogs {
    /// Fresh zeroed memory: the host gives a page when it is first written.
    memory: Box<[u8]>,
    rings: Box<[Ring]>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Ring {
    start: usize,
    length: usize,
}

impl Default for Backlogs {
    fn default() -> Self {
        Backlogs {
            memory: vec![0; RING_BYTES * MAX_CONNECTIONS].into_boxed_slice(),
            rings: vec![Ring::default(); MAX_CONNECTIONS].into_boxed_slice(),
        }
    }
}

impl Backlogs {
    /// Bytes in ring `slot`.
    pub fn length(&self, slot: usize) -> usize {
        self.rings.get(slot).map_or(0, |ring| ring.length)
    }

    /// Empties ring `slot`.
    pub fn clear(&mut self, slot: usize) {
        if let Some(ring) = self.rings.get_mut(slot) {
            *ring = Ring::default();
        }
    }

    /// The oldest bytes of ring `slot`, as far as they lie in one piece. Empty only if there are none.
    pub fn front(&self, slot: usize) -> &[u8] {
        let Some(ring) = self.rings.get(slot) else { return &[] };
        let length = ring.length.min(RING_BYTES - ring.start);
        let at = slot * RING_BYTES + ring.start;
        self.memory.get(at..at + length).unwrap_or_default()
    }

    /// Drops the oldest `count` bytes of ring `slot`.
    pub fn drop_front(&mut self, slot: usize, count: usize) {
        if let Some(ring) = self.rings.get_mut(slot) {
            let count = count.min(ring.length);
            ring.length -= count;
            // An empty ring begins anew, so that few pages are ever touched.
            ring.start = if ring.length == 0 { 0 } else { (ring.start + count) % RING_BYTES };
        }
    }

    /// Has `fill` write `count` bytes behind those of ring `slot`, in at most two pieces; whether they fit and `fill` said yes
    /// each time. If not, they are not there.
    pub fn append(&mut self, slot: usize, count: usize, mut fill: impl FnMut(&mut [u8]) -> bool) -> bool {
        let Some(ring) = self.rings.get_mut(slot) else { return false };
        if count > RING_BYTES - ring.length {
            return false;
        }
        let mut left = count;
        while left > 0 {
            let at = (ring.start + ring.length + count - left) % RING_BYTES;
            let piece = left.min(RING_BYTES - at);
            let from = slot * RING_BYTES + at;
            if !self.memory.get_mut(from..from + piece).is_some_and(&mut fill) {
                return false;
            }
            left -= piece;
        }
        ring.length += count;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    proptest! {
        // Each moves megabytes.
        #![proptest_config(ProptestConfig::with_cases(30))]

        #[test]
        fn rings_are_queues(
            steps in proptest::collection::vec((0usize..3, any::<bool>(), 0..RING_BYTES + 2), 1..40),
        ) {
            let mut backlogs = Backlogs::default();
            let mut models = [VecDeque::new(), VecDeque::new(), VecDeque::new()];
            let mut next = 0u8;
            for (slot, append, count) in steps {
                let model = &mut models[slot];
                if append {
                    let fits = count <= RING_BYTES - model.len();
                    let mut fresh = Vec::new();
                    let done = backlogs.append(slot, count, |piece| {
                        piece.fill_with(|| { next = next.wrapping_mul(31).wrapping_add(7); next });
                        fresh.extend_from_slice(piece);
                        true
                    });
                    prop_assert_eq!(done, fits);
                    model.extend(fresh);
                } else {
                    backlogs.drop_front(slot, count);
                    model.drain(..count.min(model.len()));
                }
                prop_assert_eq!(backlogs.length(slot), model.len());
                let front = backlogs.front(slot);
                prop_assert_eq!(front.is_empty(), model.is_empty());
                prop_assert!(front.iter().eq(model.iter().take(front.len())));
            }
        }
    }

    #[test]
    fn a_fill_that_fails_leaves_nothing() {
        let mut backlogs = Backlogs::default();
        assert!(!backlogs.append(3, 10, |_| false));
        assert!(!backlogs.append(MAX_CONNECTIONS, 1, |_| true), "there is no such ring");
        assert_eq!((backlogs.length(3), backlogs.front(3)), (0, &[][..]));
    }
}
