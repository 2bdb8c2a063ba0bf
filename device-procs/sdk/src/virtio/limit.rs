//! How much a device may do in a time: token buckets that may go into debt, so that no request is too large for one.

use cellblock_wire::device::{Bucket as Rate, Limits};

use crate::device::SECOND;

/// Tokens are counted in parts of 10^-9, so that each nanosecond brings a whole number of them.
const PARTS: i128 = SECOND as i128;

/// Fills up by so much a second, up to a burst; what is taken beyond that is a debt, which the same flow pays.
#[derive(Debug, Clone)]
pub struct Bucket {
    per_second: u64,
    burst: u64,
    /// Parts of tokens; negative = debt.
    level: i128,
    /// When `level` was right, as `Clock::monotonic`; `None` = it is full and was never used.
    at: Option<u64>,
}

impl Bucket {
    /// A full one.
    pub fn new(rate: &Rate) -> Self {
        let (per_second, burst) = (rate.per_second.max(1), rate.burst);
        Bucket { per_second, burst, level: i128::from(burst) * PARTS, at: None }
    }

    fn level_at(&self, now: u64) -> i128 {
        let passed = now.saturating_sub(self.at.unwrap_or(now));
        let flow = i128::from(passed) * i128::from(self.per_second);
        self.level.saturating_add(flow).min(i128::from(self.burst) * PARTS)
    }

    /// Takes `amount` at the time `now`, whether it is there or not.
    pub fn take(&mut self, amount: u64, now: u64) {
        self.level = self.level_at(now).saturating_sub(i128::from(amount) * PARTS);
        self.at = Some(self.at.map_or(now, |at| at.max(now)));
    }

    /// When the debt is paid; `None` = there is none.
    pub fn ready_at(&self, now: u64) -> Option<u64> {
        let debt = self.level_at(now).min(0).unsigned_abs();
        let wait = debt.div_ceil(u128::from(self.per_second));
        (debt > 0).then(|| now.saturating_add(u64::try_from(wait).unwrap_or(u64::MAX)))
    }
}

/// Limits bytes and operations, each or neither.
#[derive(Debug, Clone, Default)]
pub struct Limiter {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
}

impl Limiter {
    /// As `limits` say.
    pub fn new(limits: &Limits) -> Self {
        let bucket = |rate: &Option<Rate>| rate.as_ref().map(Bucket::new);
        Limiter { bytes: bucket(&limits.bytes), operations: bucket(&limits.operations) }
    }

    /// Takes one operation of `bytes` bytes at the time `now`, whether they are there or not.
    pub fn take(&mut self, bytes: u64, now: u64) {
        if let Some(bucket) = &mut self.bytes {
            bucket.take(bytes, now);
        }
        if let Some(bucket) = &mut self.operations {
            bucket.take(1, now);
        }
    }

    /// When the next operation may begin; `None` = now.
    pub fn ready_at(&self, now: u64) -> Option<u64> {
        [&self.bytes, &self.operations].into_iter().flatten().filter_map(|bucket| bucket.ready_at(now)).max()
    }

    /// Whether it limits nothing.
    pub fn is_unlimited(&self) -> bool {
        self.bytes.is_none() && self.operations.is_none()
    }
}
