//! What a device model finds around it: a clock that stands until the script moves it, an interrupt line, and memory that the
//! guest's other vCPUs change while the device is at work.

use std::cell::{Cell, RefCell};

use cellblock_channel::memory;
use cellblock_channel::ram::Piece;
use cellblock_sdk::device::{Clock, Trigger};
use cellblock_sdk::virtio::{Raise, Ram};
use vm_memory::{Bytes, GuestAddress};

/// Bytes of guest memory, from address 0 on.
pub const RAM_BYTES: u64 = 1 << 20;
/// What is as new for each input: rings, and buffers.
pub const USED_BYTES: u64 = 0x2_0000;

thread_local! {
    static RAM: Ram = ram();
    static NOW: Cell<u64> = const { Cell::new(0) };
    static MEDDLING: RefCell<Vec<(u64, u64)>> = const { RefCell::new(Vec::new()) };
}

fn ram() -> Ram {
    let sealed = memory::create_replies("ram", RAM_BYTES as usize).unwrap();
    Ram::open(vec![(Piece { address: 0, bytes: RAM_BYTES, offset: 0 }, sealed.fd)]).unwrap()
}

/// Guest memory, zeroed, and a clock at zero.
pub fn fresh() -> Ram {
    NOW.set(0);
    MEDDLING.take();
    let ram = RAM.with(Ram::clone);
    ram.memory().write_slice(&[0; USED_BYTES as usize], GuestAddress(0)).unwrap();
    ram
}

/// The clock goes on, for 292 years at most: it is the host's, and no stranger's word.
pub fn advance(ns: u64) {
    NOW.set(NOW.get().saturating_add(ns).min(i64::MAX as u64));
}

/// The next time that the device looks at its clock or raises its interrupt, which it does between requests and in the midst of
/// them, these words of guest memory change: (address, value).
pub fn meddle_later(words: Vec<(u64, u64)>) {
    MEDDLING.set(words);
}

fn meddle() {
    let Some((address, value)) = MEDDLING.with_borrow_mut(Vec::pop) else { return };
    // An address that is not memory is nobody's.
    let _ = RAM.with(|ram| ram.memory().write_obj(value, GuestAddress(address)));
}

/// The clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ticks;

impl Clock for Ticks {
    fn monotonic(&self) -> u64 {
        meddle();
        NOW.get()
    }

    fn wall(&self) -> i64 {
        NOW.get() as i64
    }
}

/// The interrupt line.
#[derive(Debug, Clone, Copy, Default)]
pub struct Line;

impl Raise for Line {
    fn raise(&self) {
        meddle();
    }
}

impl Trigger for Line {
    fn pulse(&mut self) {}
}
