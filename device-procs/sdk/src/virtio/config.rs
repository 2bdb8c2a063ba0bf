//! A device's configuration space (Virtio 1.3 §2.5), shared by the register thread and those who serve the queues.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cellblock_channel::RegisterPage;
use cellblock_channel::register_page::WORD;

use super::interrupt::Interrupt;
use super::spec::register;

/// The most bytes of configuration space that a driver may write: they are saved with the registers.
pub const MAX_WRITABLE: usize = 16;
/// Bits of `ConfigGeneration` that count changes; those above are the incarnation's, so that what one process shows is never taken
/// for what another does (within 65536 of them).
const CHANGES: u32 = 0xffff;
/// Bytes of configuration space that a register page shows: more than any device here has.
const SHOWN: u64 = 256;

/// Configuration space; clones are the same.
#[derive(Debug, Clone)]
pub struct Space(Arc<Mutex<Contents>>);

#[derive(Debug)]
struct Contents {
    bytes: Vec<u8>,
    writable: Range<usize>,
    /// What the writable bytes are after a reset.
    initial: Vec<u8>,
    /// A process may die before it has told of a change, or saved one.
    asked: bool,
    generation: u32,
}

impl Space {
    /// What follows is shown by the device's process number `incarnation`, counted from 1.
    pub(super) fn begin(&self, incarnation: u32) {
        self.contents().generation = incarnation.wrapping_sub(1) << CHANGES.count_ones();
    }

    /// Bytes that no driver writes.
    pub fn fixed(bytes: Vec<u8>) -> Self {
        Self::with_writable(bytes, 0..0)
    }

    /// Bytes of which the driver may write `writable`: at most [`MAX_WRITABLE`]. What it wrote survives the process, and a reset
    /// undoes it.
    pub fn with_writable(bytes: Vec<u8>, writable: Range<usize>) -> Self {
        let end = writable.end.min(bytes.len()).min(writable.start.saturating_add(MAX_WRITABLE));
        let writable = writable.start.min(end)..end;
        let initial = bytes.get(writable.clone()).unwrap_or_default().to_vec();
        Space(Arc::new(Mutex::new(Contents { bytes, writable, initial, asked: false, generation: 0 })))
    }

    /// Somebody asks for changes, who counts one as told once it is granted to successors too: each of them tells of it.
    #[must_use]
    pub fn changed_on_request(self) -> Self {
        self.contents().asked = true;
        self
    }

    fn contents(&self) -> MutexGuard<'_, Contents> {
        // Nothing panics while it holds the lock, and what it guards is whole at any time.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the bytes from `offset` on, all at once, and tells the driver: by `ConfigGeneration` and an interrupt. What lies
    /// past the end is not taken. If nothing changes nothing is told.
    pub fn set(&self, offset: usize, bytes: &[u8], interrupt: &Interrupt) {
        if self.contents().replace(offset, bytes) {
            interrupt.page().into_iter().for_each(|page| self.show(page));
            interrupt.config_changed();
        }
    }

    /// Fills `into` with the bytes from `offset` on, all at once; past the end there are zeroes.
    pub fn get(&self, offset: usize, into: &mut [u8]) {
        let contents = self.contents();
        let bytes = contents.bytes.get(offset..).unwrap_or_default();
        let padded = bytes.iter().copied().chain(std::iter::repeat(0));
        into.iter_mut().zip(padded).for_each(|(to, from)| *to = from);
    }

    /// The word of a register page that holds `ConfigGeneration`.
    pub(super) const GENERATION_WORD: u64 = register::CONFIG_GENERATION / WORD * WORD;

    /// Has the guest find it in `page`, all at once as far as that goes: fields of up to 32 bits are never torn, and no device here
    /// changes larger ones.
    pub(super) fn show(&self, page: &RegisterPage) {
        let contents = self.contents();
        // Past the end there are zeroes, whatever another device had there.
        let words = contents.bytes.chunks(WORD as usize).chain(std::iter::repeat(&[][..]));
        for (at, bytes) in (register::CONFIG..register::CONFIG + SHOWN).step_by(WORD as usize).zip(words) {
            let mut word = [0; WORD as usize];
            word.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
            page.set(at, u64::from_le_bytes(word));
        }
        page.set(Self::GENERATION_WORD, u64::from(contents.generation) << 32 | u64::from(u32::MAX));
    }

    /// `ConfigGeneration`.
    pub(super) fn generation(&self) -> u32 {
        self.contents().generation
    }

    /// The driver writes `bytes` at `offset`: all of them, if all are writable; whether that changed something.
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) -> bool {
        let mut contents = self.contents();
        let inside = contents.allows(offset, bytes.len());
        // The driver knows what it wrote: no new generation.
        let generation = contents.generation;
        let changed = inside && contents.replace(offset, bytes);
        contents.generation = generation;
        changed
    }

    /// Whether the driver may write `length` bytes at `offset`.
    pub(crate) fn allows(&self, offset: usize, length: usize) -> bool {
        self.contents().allows(offset, length)
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.contents().bytes.is_empty()
    }

    /// As after a reset.
    pub(super) fn reset(&self) {
        let mut contents = self.contents();
        let (start, initial) = (contents.writable.start, contents.initial.clone());
        contents.replace(start, &initial);
    }

    /// What survives the process: the generation, and the bytes that the driver may have written.
    pub(super) fn saved(&self) -> (u32, [u8; MAX_WRITABLE], usize) {
        let contents = self.contents();
        let written = contents.bytes.get(contents.writable.clone()).unwrap_or_default();
        let mut bytes = [0; MAX_WRITABLE];
        bytes.iter_mut().zip(written).for_each(|(to, from)| *to = *from);
        (contents.generation, bytes, written.len())
    }

    /// Bytes that the driver may write.
    pub(super) fn writable(&self) -> usize {
        self.contents().writable.len()
    }

    /// Tells the driver of a change that may have been lost.
    pub(super) fn renew(&self, interrupt: &Interrupt) {
        let mut contents = self.contents();
        contents.advance();
        drop(contents);
        interrupt.page().into_iter().for_each(|page| self.show(page));
        interrupt.config_changed();
    }

    /// What a predecessor left. Whether the driver may have found other bytes than it finds now: there were changes, or processes
    /// between that one and this, or there may be a change that the predecessor was asked for and did not save.
    pub(super) fn restore(&self, generation: u32, written: &[u8]) -> bool {
        let mut contents = self.contents();
        let (start, own) = (contents.writable.start, contents.generation & !CHANGES);
        contents.replace(start, written);
        contents.generation = own | generation & CHANGES;
        let next = (generation & !CHANGES).wrapping_add(CHANGES + 1);
        let another = own != generation & !CHANGES;
        generation & CHANGES != 0 || another && (contents.asked || own != next)
    }
}

impl Contents {
    fn allows(&self, offset: usize, length: usize) -> bool {
        offset >= self.writable.start
            && offset.checked_add(length).is_some_and(|end| end <= self.writable.end)
    }

    fn replace(&mut self, offset: usize, bytes: &[u8]) -> bool {
        let old = self.bytes.get_mut(offset..).unwrap_or_default();
        let changed = old.iter().zip(bytes).any(|(old, new)| old != new);
        if changed {
            old.iter_mut().zip(bytes).for_each(|(old, new)| *old = *new);
            self.advance();
        }
        changed
    }

    /// To the next generation. Never back to that of no changes.
    fn advance(&mut self) {
        let changes = (self.generation & CHANGES) % CHANGES + 1;
        self.generation = self.generation & !CHANGES | changes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::virtio::Edges;
    use crate::virtio::spec::interrupt::CONFIG_CHANGE;

    #[test]
    fn what_changes_is_told() {
        let edges = Edges::default();
        let interrupt = Interrupt::new(edges.clone());
        let space = Space::fixed(vec![1, 2, 3, 4]);
        space.set(1, &[2, 3], &interrupt);
        assert_eq!((space.generation(), edges.take(), interrupt.status()), (0, 0, 0), "nothing changed");
        space.set(2, &[9, 9, 9], &interrupt);
        assert_eq!((space.generation(), edges.take(), interrupt.status()), (1, 1, CONFIG_CHANGE));
        let mut got = [7; 6];
        space.get(1, &mut got);
        assert_eq!(got, [2, 9, 9, 0, 0, 0]);
        space.set(usize::MAX, &[1], &interrupt);
        space.get(usize::MAX, &mut got);
        assert_eq!((space.generation(), got), (1, [0; 6]));
    }

    #[test]
    fn drivers_write_what_they_may() {
        let space = Space::with_writable(vec![0; 8], 2..6);
        for (offset, length) in [(0, 4), (1, 1), (5, 2), (6, 1), (usize::MAX, 2)] {
            assert!(!space.write(offset, &vec![7; length]), "{length} bytes at {offset}");
        }
        assert!(space.write(2, &[1, 2, 3, 4]));
        assert!(!space.write(3, &[2]), "it is so already");
        assert_eq!(space.generation(), 0);
        let (generation, bytes, length) = space.saved();
        let successor = Space::with_writable(vec![5; 8], 2..6);
        successor.restore(generation, &bytes[..length]);
        let mut got = [0; 8];
        successor.get(0, &mut got);
        assert_eq!(got, [5, 5, 1, 2, 3, 4, 5, 5]);
        successor.reset();
        successor.get(0, &mut got);
        assert_eq!(got, [5; 8]);
    }

    #[test]
    fn no_two_processes_show_the_same_generation() {
        let space = |incarnation, left| {
            let space = Space::fixed(vec![0; 4]);
            space.begin(incarnation);
            let told = space.restore(left, &[]);
            (space, told)
        };
        let (first, told) = space(1, 0);
        assert_eq!((first.generation(), told), (0, false));
        let (second, told) = space(2, first.generation());
        assert_eq!((second.generation(), told), (0x1_0000, false), "the same bytes");
        let (asked, told) = (Space::fixed(vec![0; 4]).changed_on_request(), first.generation());
        asked.begin(1);
        assert!(!asked.restore(told, &[]), "it is the same process's");
        asked.begin(2);
        assert!(asked.restore(told, &[]), "a change may not have been saved");
        // The third died before it said anything, or was a tombstone.
        let (fourth, told) = space(4, second.generation());
        assert_eq!((fourth.generation(), told), (0x3_0000, true));
        fourth.set(0, &[1], &Interrupt::new(Edges::default()));
        let (fifth, told) = space(5, fourth.generation());
        assert_eq!((fifth.generation(), told), (0x4_0001, true));
        let (last, told) = space(u32::MAX, u32::MAX);
        assert_eq!((last.generation(), told), (0xfffe_ffff, true));
        last.renew(&Interrupt::new(Edges::default()));
        assert_eq!(last.generation(), 0xfffe_0001, "that of no changes does not come again");
    }

    #[test]
    fn what_is_writable_is_bounded() {
        assert_eq!(Space::with_writable(vec![0; 100], 4..90).writable(), MAX_WRITABLE);
        assert_eq!(Space::with_writable(vec![0; 8], 4..90).writable(), 4);
        assert_eq!(Space::with_writable(vec![0; 8], 40..90).writable(), 0);
    }
}
