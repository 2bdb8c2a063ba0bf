//! Ending a vCPU thread's wait from outside: pause, a worker's death, shutdown.

use std::sync::Arc;

use crate::words::KickCell;

/// The bumping end: cheap to clone, for any thread. One per vCPU thread, shared by all its requesters.
#[derive(Debug)]
pub struct Kick<C>(Arc<C>);

impl<C> Clone for Kick<C> {
    fn clone(&self) -> Self {
        Kick(Arc::clone(&self.0))
    }
}

impl<C: KickCell> Kick<C> {
    /// A kick on `cell`, and the watch that the vCPU's thread keeps.
    pub fn new(cell: C) -> (Kick<C>, KickWatch<C>) {
        let cell = Arc::new(cell);
        let seen = cell.load();
        (Kick(Arc::clone(&cell)), KickWatch { cell, seen })
    }

    /// Ends the present wait, or the next one. What was written before the bump is visible to the thread once its wait
    /// has returned `Kicked`: so write first, then bump. Never blocks.
    pub fn bump(&self) {
        // SYNC POINT: pairs with the Acquire load in `KickWatch::take`; publishes what the caller wrote to the mailbox.
        self.0.bump();
        // A bump between the watcher's last look and its sleep is caught by futex_waitv, which compares the kick word with
        // the value seen; so the wake needs no flag and no fence.
        self.0.wake();
    }
}

/// The watching end, one per vCPU thread. It remembers the last bump that it has seen, so that none is lost: neither one
/// before the post nor one between the last look and the sleep. Bumps between two looks count as one.
#[derive(Debug)]
pub struct KickWatch<C> {
    cell: Arc<C>,
    seen: u32,
}

impl<C: KickCell> KickWatch<C> {
    /// Whether there was a bump since the last look; if so it is now seen. Look into the mailbox after a `true`.
    pub fn take(&mut self) -> bool {
        // SYNC POINT: pairs with the Release bump in `Kick::bump`.
        let now = self.cell.load();
        let kicked = now != self.seen;
        self.seen = now;
        kicked
    }

    pub(crate) fn cell(&self) -> &C {
        &self.cell
    }

    pub(crate) const fn seen(&self) -> u32 {
        self.seen
    }
}
