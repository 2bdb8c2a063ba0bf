//! A device without processes: for unit tests, benches and fuzzers.
//!
//! The pieces are handles on shared cells, so that a test keeps one while the device owns the other.

pub mod conformance;
#[cfg(feature = "fail-points")]
pub mod ends;
pub mod holder;
pub mod process;
pub mod vhost_user;
pub mod virtio;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use crate::device::{Access, Action, Clock, Device, Event, Trigger, mask};
use crate::host::Port;
use crate::state::{StateBuffer, StateError};

/// A clock that stands until it is moved.
#[derive(Debug, Clone, Default)]
pub struct ManualClock {
    monotonic: Rc<Cell<u64>>,
    wall: Rc<Cell<i64>>,
}

impl ManualClock {
    /// A clock whose wall time is `wall` ns after 1970.
    pub fn at(wall: i64) -> Self {
        let clock = ManualClock::default();
        clock.wall.set(wall);
        clock
    }

    /// Both times go on by `ns`.
    pub fn advance(&self, ns: u64) {
        self.monotonic.set(self.monotonic.get().saturating_add(ns));
        self.step_wall(ns as i64);
    }

    /// The wall time alone jumps by `ns`.
    pub fn step_wall(&self, ns: i64) {
        self.wall.set(self.wall.get().saturating_add(ns));
    }
}

impl Clock for ManualClock {
    fn monotonic(&self) -> u64 {
        self.monotonic.get()
    }

    fn wall(&self) -> i64 {
        self.wall.get()
    }
}

/// An interrupt line that counts.
#[derive(Debug, Clone, Default)]
pub struct Pulses(Rc<Cell<u64>>);

impl Pulses {
    /// Pulses since the last call.
    pub fn take(&self) -> u64 {
        self.0.replace(0)
    }
}

impl Trigger for Pulses {
    fn pulse(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

/// A far end in memory.
#[derive(Debug, Clone, Default)]
pub struct Desk {
    /// What the device gave.
    pub output: Rc<RefCell<Vec<u8>>>,
    /// What it will get.
    pub input: Rc<RefCell<VecDeque<u8>>>,
}

impl Port for Desk {
    fn put(&mut self, byte: u8) {
        self.output.borrow_mut().push(byte);
    }

    fn take(&mut self) -> Option<u8> {
        self.input.borrow_mut().pop_front()
    }
}

/// Somewhere a device answers: in this process, in a worker, or in one that was restored. The same tests run on all.
pub trait Host {
    /// A read of `size` bytes.
    fn read(&mut self, region: u32, offset: u64, size: u8) -> u64;

    /// A write of `size` bytes.
    fn write(&mut self, region: u32, offset: u64, size: u8, data: u64) -> Action;

    /// The byte at `offset` of region 0.
    fn inb(&mut self, offset: u64) -> u8 {
        self.read(0, offset, 1) as u8
    }

    /// Writes a byte at `offset` of region 0.
    fn outb(&mut self, offset: u64, value: u8) {
        self.write(0, offset, 1, value.into());
    }
}

/// A device in this process, driven as the worker's main loop drives it.
#[derive(Debug)]
pub struct Harness<D> {
    /// The device.
    pub device: D,
    state: StateBuffer,
}

impl<D: Device> Harness<D> {
    /// `device`, as new.
    pub fn new(device: D) -> Self {
        Harness { device, state: StateBuffer::default() }
    }

    /// An event; the timer fires only when it is due on `clock`.
    pub fn event(&mut self, event: Event) {
        self.device.event(event);
    }

    /// Fires the timer as often as it is due by `clock`, at most `limit` times. How often it fired.
    pub fn run_timers(&mut self, clock: &impl Clock, limit: usize) -> usize {
        let due = |device: &D| device.deadline().is_some_and(|deadline| deadline <= clock.monotonic());
        (0..limit)
            .take_while(|_| due(&self.device).then(|| self.device.event(Event::Timer)).is_some())
            .count()
    }

    /// What the device saves now.
    pub fn saved(&mut self) -> Vec<u8> {
        self.device.save(&mut self.state.start());
        assert!(!self.state.overflowed(), "state of more than {} bytes", crate::state::CAPACITY);
        self.state.bytes().to_vec()
    }

    /// Saves, hands the state to `successor`, checks that it saves the same, and goes on with it.
    ///
    /// # Errors
    /// The successor refuses the state.
    pub fn replace(&mut self, mut successor: D) -> Result<D, StateError> {
        let saved = self.saved();
        successor.restore(&saved)?;
        let old = std::mem::replace(&mut self.device, successor);
        assert_eq!(self.saved(), saved, "a restored device saves what it was given");
        Ok(old)
    }
}

impl<D: Device> Host for Harness<D> {
    fn read(&mut self, region: u32, offset: u64, size: u8) -> u64 {
        let data = mask(self.device.read(Access { region, offset, size }), size);
        self.device.save(&mut self.state.start());
        self.device.committed();
        self.device.settle();
        data
    }

    fn write(&mut self, region: u32, offset: u64, size: u8, data: u64) -> Action {
        let action = self.device.write(Access { region, offset, size }, mask(data, size));
        self.device.save(&mut self.state.start());
        self.device.committed();
        self.device.settle();
        action
    }
}
