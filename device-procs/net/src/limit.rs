//! The limit of one direction, which all queue pairs share.

use std::sync::{Arc, Mutex, PoisonError};

use cellblock_sdk::device::Clock;
use cellblock_sdk::virtio::Limiter;
use cellblock_wire::device::Limits;

/// Bytes and frames of one direction; clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Flow<C> {
    limiter: Option<Arc<Mutex<Limiter>>>,
    clock: C,
}

impl<C: Clock> Flow<C> {
    /// At most `limits`.
    pub(crate) fn new(limits: &Limits, clock: C) -> Self {
        let limiter = Limiter::new(limits);
        let limited = !limiter.is_unlimited();
        Flow { limiter: limited.then(|| Arc::new(Mutex::new(limiter))), clock }
    }

    /// When the next frame may pass; `None` = now.
    pub(crate) fn not_before(&self) -> Option<u64> {
        let limiter = self.limiter.as_ref()?;
        // Nothing panics while it holds the lock, and what it guards is whole at any time.
        limiter.lock().unwrap_or_else(PoisonError::into_inner).ready_at(self.clock.monotonic())
    }

    /// A frame of `bytes` bytes has passed.
    pub(crate) fn take(&self, bytes: u64) {
        if let Some(limiter) = &self.limiter {
            limiter.lock().unwrap_or_else(PoisonError::into_inner).take(bytes, self.clock.monotonic());
        }
    }
}
