//! Ordinary memory as shared words, for one thread: unit tests of devices, examples, fuzzing.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::Ordering;

use crate::words::{Deadline, KickCell, Slept, Wait, Wake, Words, WordsMut};

/// Zeroed words in ordinary memory; clones share them. It cannot leave its thread, has no need of fences, and a sleep on
/// it times out at once, for nobody else can write. Its clock advances by 1 ms with each look.
#[derive(Debug, Clone)]
pub struct Plain {
    words: Rc<RefCell<Vec<u64>>>,
    wakes: Rc<Cell<u64>>,
    clock: Rc<Cell<u64>>,
}

impl Plain {
    /// `words` words, all zero.
    pub fn zeroed(words: usize) -> Plain {
        Plain { words: Rc::new(RefCell::new(vec![0; words])), wakes: Rc::default(), clock: Rc::default() }
    }

    /// How often a sleeper would have been woken.
    pub fn wakes(&self) -> u64 {
        self.wakes.get()
    }
}

impl Words for Plain {
    fn len(&self) -> usize {
        self.words.borrow().len()
    }

    fn load(&self, index: usize) -> u64 {
        self.words.borrow().get(index).copied().unwrap_or(0)
    }

    fn fence(_: Ordering) {}
}

impl WordsMut for Plain {
    fn store(&self, index: usize, value: u64) {
        if let Some(word) = self.words.borrow_mut().get_mut(index) {
            *word = value;
        }
    }

    fn publish(&self, index: usize, value: u64) {
        self.store(index, value);
    }
}

impl Wake for Plain {
    fn wake(&self, _: usize) {
        self.wakes.set(self.wakes.get() + 1);
    }
}

impl Wait for Plain {
    type Kick = PlainKick;

    fn wait(&self, index: usize, expected: u32, kick: &PlainKick, expected_kick: u32, _: Deadline) -> Slept {
        if self.load(index) as u32 != expected || kick.load() != expected_kick {
            return Slept::LookAgain;
        }
        Slept::TimedOut
    }

    fn now(&self) -> u64 {
        self.clock.set(self.clock.get() + 1_000_000);
        self.clock.get()
    }

    fn relax(&self) {}
}

/// A kick word in ordinary memory, for one thread.
#[derive(Debug, Default)]
pub struct PlainKick(Cell<u32>);

impl KickCell for PlainKick {
    fn load(&self) -> u32 {
        self.0.get()
    }

    fn bump(&self) {
        self.0.set(self.0.get().wrapping_add(1));
    }

    fn wake(&self) {}
}
