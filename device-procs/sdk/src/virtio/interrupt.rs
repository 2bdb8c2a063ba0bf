//! How a device gets its driver's attention: `InterruptStatus`, `DEVICE_NEEDS_RESET`, and an interrupt line.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cellblock_channel::RegisterPage;

use super::queue::QueueError;
use super::spec::{interrupt, register, status};
use crate::fail_point::{Step, reach};

/// An edge-triggered interrupt line that threads share.
pub trait Raise: Send + Sync {
    /// Raises and drops the line. Never blocks; a pulse is delivered at least once.
    fn raise(&self);

    /// As [`raise`](Self::raise), for buffers of queue `index` alone, where the line is one of several.
    fn raise_queue(&self, _index: usize) {
        self.raise();
    }

    /// As [`raise`](Self::raise), for buffers of the queues with these numbers: once, where all share a line.
    fn raise_queues(&self, _numbers: &[u16]) {
        self.raise();
    }

    /// As [`raise`](Self::raise), because the device needs a reset.
    fn raise_broken(&self) {
        self.raise();
    }

    /// What the guest reads the registers from, if it reads them without asking the device.
    fn page(&self) -> Option<&RegisterPage> {
        None
    }
}

/// Shared by the transport and those who serve the queues; clones are the same.
#[derive(Clone)]
pub struct Interrupt(Arc<Shared>);

struct Shared {
    status: AtomicU32,
    needs_reset: AtomicBool,
    /// Why, for the log; until it is taken.
    complaint: Mutex<Option<String>>,
    line: Box<dyn Raise>,
}

impl std::fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Interrupt").field("status", &self.0.status).finish_non_exhaustive()
    }
}

impl Interrupt {
    /// Nothing pending, over `line`.
    pub fn new(line: impl Raise + 'static) -> Self {
        let (status, needs_reset) = (AtomicU32::new(0), AtomicBool::new(false));
        let complaint = Mutex::new(None);
        Interrupt(Arc::new(Shared { status, needs_reset, complaint, line: Box::new(line) }))
    }

    /// Buffers of queue `index` were used.
    pub fn used_buffer_of(&self, index: usize) {
        self.note(interrupt::USED_BUFFER);
        reach(Step::CauseNoted);
        self.0.line.raise_queue(index);
        reach(Step::Raised);
    }

    /// Buffers of the queues with these numbers were used.
    pub(super) fn used_buffers_of(&self, numbers: &[u16]) {
        self.note(interrupt::USED_BUFFER);
        reach(Step::CauseNoted);
        self.0.line.raise_queues(numbers);
        reach(Step::Raised);
    }

    /// Buffers were used, in whichever queue.
    pub fn used_buffer(&self) {
        self.raise(interrupt::USED_BUFFER);
    }

    /// Configuration space has changed.
    pub fn config_changed(&self) {
        self.raise(interrupt::CONFIG_CHANGE);
    }

    /// The device has met an error that only a reset mends (§2.1.2).
    pub fn needs_reset(&self) {
        // SYNC POINT: Release pairs with the Acquire in `asks_for_reset`; nothing else hangs on it.
        self.0.needs_reset.store(true, Ordering::Release);
        self.show_needs_reset();
        self.note(interrupt::CONFIG_CHANGE);
        self.0.line.raise_broken();
    }

    /// A queue, one of those with these `numbers`, makes no sense: the device needs a reset, and the log is told why.
    pub(super) fn broken(&self, numbers: &[u16], error: &QueueError) {
        self.complain(format!("virtqueue {numbers:?}: {error}; the device needs a reset"));
        self.needs_reset();
    }

    /// What the device knew is lost.
    pub(super) fn lost(&self) {
        self.complain("what it knew of its driver is lost; the device needs a reset".to_owned());
        self.needs_reset();
    }

    fn complain(&self, complaint: String) {
        // Nothing panics while it holds the lock.
        *self.0.complaint.lock().unwrap_or_else(PoisonError::into_inner) = Some(complaint);
    }

    /// Why the device needs a reset, once.
    pub(crate) fn complaint(&self) -> Option<String> {
        if !self.asks_for_reset() {
            return None;
        }
        self.0.complaint.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whether it has.
    pub fn asks_for_reset(&self) -> bool {
        self.0.needs_reset.load(Ordering::Acquire)
    }

    /// `InterruptStatus`.
    pub fn status(&self) -> u32 {
        self.page().map_or_else(
            || self.0.status.load(Ordering::Acquire),
            |page| page.get(register::INTERRUPT_STATUS),
        )
    }

    /// `InterruptACK`. A pulse is given for each cause, pending or not, so none is lost to an acknowledgement that comes late.
    pub fn acknowledge(&self, bits: u32) {
        self.0.status.fetch_and(!bits, Ordering::AcqRel);
        if let Some(page) = self.page() {
            page.clear_bits(register::INTERRUPT_STATUS, bits);
        }
    }

    /// What the guest reads the registers from, if it reads them without asking the device.
    pub(super) fn page(&self) -> Option<&RegisterPage> {
        self.0.line.page()
    }

    /// Has the guest see in its page that the device needs a reset, if it does; also after `Status` was set there.
    pub(super) fn show_needs_reset(&self) {
        if let Some(page) = self.page().filter(|_| self.asks_for_reset()) {
            page.set_bits(register::STATUS, status::DEVICE_NEEDS_RESET.into());
        }
    }

    fn raise(&self, bit: u32) {
        self.note(bit);
        reach(Step::CauseNoted);
        self.0.line.raise();
        reach(Step::Raised);
    }

    fn note(&self, bits: u32) {
        // SYNC POINT: Release orders the used ring before the bits; the driver reads them by a register access, which is
        // ordered by the exit, or in its page, for which `RegisterPage::set_bits` does the same.
        self.0.status.fetch_or(bits, Ordering::AcqRel);
        if let Some(page) = self.page() {
            page.set_bits(register::INTERRUPT_STATUS, bits);
        }
    }

    /// As after a reset. Nobody serves a queue now.
    pub(super) fn clear(&self) {
        self.acknowledge(u32::MAX);
        self.0.needs_reset.store(false, Ordering::Release);
    }

    /// What a predecessor left. What it raised since stands in the guest's page, and stays there: if this process does not get as
    /// far as serving, the predecessor goes on.
    pub(super) fn restore(&self, status: u32, needs_reset: bool) {
        self.0.status.store(0, Ordering::Release);
        self.note(status);
        self.0.needs_reset.store(needs_reset, Ordering::Release);
    }
}
