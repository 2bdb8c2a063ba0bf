//! A model of the machine for loom: shared words, the kernel's futexes, a doorbell, a clock that a thread moves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]
#![allow(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "this is the door, with loom behind it"
)]

use std::sync::Arc;
use std::sync::atomic::Ordering::{self, Acquire, Relaxed, Release};

use cellblock_ring::words::{KickCell, Slept, Wait, Wake, Words, WordsMut};
use cellblock_ring::{Access, Deadline, Kick, KickWatch, Requester, Responder, layout, state_page::Shape};
use cellblock_wire::slot::{Op, Space};
use loom::sync::atomic::{AtomicU32, AtomicU64, fence};
use loom::sync::{Condvar, Mutex};

/// The kernel: its lock makes comparing and falling asleep one step, as the futex's hash bucket does, and promises no more.
#[derive(Debug)]
pub(crate) struct Kernel {
    expired: Mutex<bool>,
    sleepers: Condvar,
}

impl Kernel {
    /// The deadline passes.
    pub(crate) fn expire(&self) {
        *self.expired.lock().unwrap() = true;
        self.sleepers.notify_all();
    }

    fn wake(&self) {
        drop(self.expired.lock().unwrap());
        self.sleepers.notify_all();
    }
}

/// Shared words. `FENCED = false` leaves the SeqCst fences out, to show that the models can fail.
#[derive(Debug)]
pub(crate) struct Shared<const FENCED: bool = true> {
    words: Arc<Vec<AtomicU64>>,
    kernel: Arc<Kernel>,
    clock: Arc<std::sync::atomic::AtomicU64>,
}

impl<const FENCED: bool> Clone for Shared<FENCED> {
    fn clone(&self) -> Self {
        Shared {
            words: Arc::clone(&self.words),
            kernel: Arc::clone(&self.kernel),
            clock: Arc::clone(&self.clock),
        }
    }
}

impl<const FENCED: bool> Shared<FENCED> {
    pub(crate) fn zeroed(words: usize, kernel: &Arc<Kernel>) -> Self {
        let words = (0..words).map(|_| AtomicU64::new(0)).collect();
        Shared { words: Arc::new(words), kernel: Arc::clone(kernel), clock: Arc::default() }
    }
}

impl<const FENCED: bool> Shared<FENCED> {
    fn seen_with<const OTHER: bool>(&self) -> Shared<OTHER> {
        let Shared { words, kernel, clock } = self.clone();
        Shared { words, kernel, clock }
    }
}

impl<const FENCED: bool> Words for Shared<FENCED> {
    fn len(&self) -> usize {
        self.words.len()
    }

    fn load(&self, index: usize) -> u64 {
        self.words[index].load(Relaxed)
    }

    fn fence(order: Ordering) {
        if FENCED || order != Ordering::SeqCst {
            fence(order);
        }
    }
}

impl<const FENCED: bool> WordsMut for Shared<FENCED> {
    fn store(&self, index: usize, value: u64) {
        self.words[index].store(value, Relaxed);
    }

    fn publish(&self, index: usize, value: u64) {
        self.words[index].store(value, Release);
    }
}

impl<const FENCED: bool> Wake for Shared<FENCED> {
    fn wake(&self, _: usize) {
        self.kernel.wake();
    }
}

impl<const FENCED: bool> Wait for Shared<FENCED> {
    type Kick = Cell;

    fn wait(
        &self,
        index: usize,
        expected: u32,
        kick: &Cell,
        expected_kick: u32,
        deadline: Deadline,
    ) -> Slept {
        let expired = self.kernel.expired.lock().unwrap();
        if self.load(index) as u32 != expected || kick.word.load(Relaxed) != expected_kick {
            return Slept::LookAgain;
        }
        if *expired && deadline != Deadline::NEVER {
            return Slept::TimedOut;
        }
        let expired = self.kernel.sleepers.wait(expired).unwrap();
        if *expired && deadline != Deadline::NEVER { Slept::TimedOut } else { Slept::LookAgain }
    }

    fn now(&self) -> u64 {
        // Not shared between threads, so no choice for loom.
        self.clock.fetch_add(1, Relaxed)
    }

    fn relax(&self) {
        loom::thread::yield_now();
    }
}

/// A kick word.
#[derive(Debug)]
pub(crate) struct Cell {
    word: AtomicU32,
    kernel: Arc<Kernel>,
}

impl KickCell for Cell {
    fn load(&self) -> u32 {
        self.word.load(Acquire)
    }

    fn bump(&self) {
        self.word.fetch_add(1, Release);
    }

    fn wake(&self) {
        self.kernel.wake();
    }
}

/// A doorbell: rings add up to one, and stay until silenced.
pub(crate) struct Bell {
    rung: Mutex<bool>,
    heard: Condvar,
}

impl Bell {
    pub(crate) fn new() -> Arc<Bell> {
        Arc::new(Bell { rung: Mutex::new(false), heard: Condvar::new() })
    }

    pub(crate) fn ring(&self) {
        *self.rung.lock().unwrap() = true;
        self.heard.notify_all();
    }

    pub(crate) fn sleep_and_silence(&self) {
        let mut rung = self.rung.lock().unwrap();
        while !*rung {
            rung = self.heard.wait(rung).unwrap();
        }
        *rung = false;
    }
}

/// The state page of the models: one lane, one word of device bytes.
pub(crate) const SHAPE: Shape = Shape::new(1, 8);

/// The memories of one lane.
#[derive(Clone)]
pub(crate) struct Lane<const FENCED: bool = true> {
    pub(crate) kernel: Arc<Kernel>,
    pub(crate) requests: Shared<FENCED>,
    pub(crate) replies: Shared<FENCED>,
    pub(crate) state: Shared<FENCED>,
}

impl<const FENCED: bool> Lane<FENCED> {
    /// A lane and the kick of its vCPU thread.
    pub(crate) fn new() -> (Self, Kick<Cell>, KickWatch<Cell>) {
        let kernel = Arc::new(Kernel { expired: Mutex::new(false), sleepers: Condvar::new() });
        let (kick, kicks) = Kick::new(Cell { word: AtomicU32::new(0), kernel: Arc::clone(&kernel) });
        let lane = Lane {
            requests: Shared::zeroed(layout::request_words(1), &kernel),
            replies: Shared::zeroed(layout::reply_words(1), &kernel),
            state: Shared::zeroed(SHAPE.words(), &kernel),
            kernel,
        };
        (lane, kick, kicks)
    }

    /// The same memories, seen by a side that fences or does not.
    pub(crate) fn seen_with<const OTHER: bool>(&self) -> Lane<OTHER> {
        Lane {
            kernel: Arc::clone(&self.kernel),
            requests: self.requests.seen_with(),
            replies: self.replies.seen_with(),
            state: self.state.seen_with(),
        }
    }

    pub(crate) fn requester(&self) -> Requester<Shared<FENCED>, Shared<FENCED>> {
        Requester::new(self.requests.clone(), self.replies.clone(), 0, 1).unwrap()
    }

    pub(crate) fn responder(&self, generation: u32) -> Responder<Shared<FENCED>, Shared<FENCED>> {
        Responder::new(self.requests.clone(), self.replies.clone(), 1, generation).unwrap()
    }
}

/// A 4-byte read at `offset`.
pub(crate) fn read_at(offset: u64) -> Access {
    Access { space: Space::Mmio, op: Op::Read, size: 4, region: 0, offset, data: 0 }
}
