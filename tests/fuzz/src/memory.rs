//! Shared memory whose other side writes whenever it likes: each load may find another value than the one before.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::Ordering;

use cellblock_ring::Deadline;
use cellblock_ring::memory::{Plain, PlainKick};
use cellblock_ring::words::{KickCell, Slept, Wait, Wake, Words, WordsMut};

/// Words over [`Plain`] of which some loads, as many as were planned, give something else, and leave it there or not.
#[derive(Debug, Clone)]
pub struct Shifting {
    words: Plain,
    planned: Rc<RefCell<Vec<Shift>>>,
    loads: Rc<Cell<u32>>,
}

/// What becomes of one load.
#[derive(Debug, Clone, Copy)]
pub struct Shift {
    /// Loads before it that are left alone.
    pub after: u8,
    /// It gives this.
    pub value: u64,
    /// And so will the next ones.
    pub stays: bool,
}

impl Shifting {
    /// `words` zeroes.
    pub fn zeroed(words: usize) -> Self {
        Shifting { words: Plain::zeroed(words), planned: Rc::default(), loads: Rc::default() }
    }

    /// Has loads go wrong from now on, the last one of `shifts` first.
    pub fn plan(&self, shifts: Vec<Shift>) {
        *self.planned.borrow_mut() = shifts;
    }

    /// Loads since the last call: each word of a message may be read once.
    pub fn take_loads(&self) -> u32 {
        self.loads.replace(0)
    }
}

impl Words for Shifting {
    fn len(&self) -> usize {
        self.words.len()
    }

    fn load(&self, index: usize) -> u64 {
        self.loads.set(self.loads.get() + 1);
        let mut planned = self.planned.borrow_mut();
        let Some(next) = planned.last_mut() else { return self.words.load(index) };
        if next.after > 0 {
            next.after -= 1;
            return self.words.load(index);
        }
        let Shift { value, stays, .. } = *next;
        planned.pop();
        if stays {
            self.words.store(index, value);
        }
        value
    }

    fn fence(_: Ordering) {}
}

impl WordsMut for Shifting {
    fn store(&self, index: usize, value: u64) {
        self.words.store(index, value);
    }

    fn publish(&self, index: usize, value: u64) {
        self.words.store(index, value);
    }
}

impl Wake for Shifting {
    fn wake(&self, index: usize) {
        self.words.wake(index);
    }
}

impl Wait for Shifting {
    type Kick = PlainKick;

    fn wait(&self, index: usize, expected: u32, kick: &PlainKick, expected_kick: u32, _: Deadline) -> Slept {
        // The kernel's own look.
        if self.load(index) as u32 != expected || kick.load() != expected_kick {
            return Slept::LookAgain;
        }
        Slept::TimedOut
    }

    fn now(&self) -> u64 {
        self.words.now()
    }

    fn relax(&self) {}
}
