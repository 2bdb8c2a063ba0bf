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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BUCKET: Rate = Rate { per_second: 1000, burst: 100 };

    #[test]
    fn a_burst_is_free_and_a_debt_is_paid_in_time() {
        let mut bucket = Bucket::new(&BUCKET);
        bucket.take(100, 5);
        assert_eq!(bucket.ready_at(5), None, "no debt yet");
        bucket.take(50, 5);
        assert_eq!(bucket.ready_at(5), Some(5 + 50_000_000));
        assert_eq!(bucket.ready_at(5 + 49_999_999), Some(5 + 50_000_000));
        assert_eq!(bucket.ready_at(5 + 50_000_000), None);
        // A long rest fills it, and no further.
        bucket.take(101, SECOND * 1000);
        assert_eq!(bucket.ready_at(SECOND * 1000), Some(SECOND * 1000 + 1_000_000));
    }

    #[test]
    fn no_number_is_too_large() {
        for rate in [Rate { per_second: u64::MAX, burst: u64::MAX }, Rate { per_second: 0, burst: 0 }] {
            let mut bucket = Bucket::new(&rate);
            for now in [u64::MAX, 0, u64::MAX] {
                for _ in 0..20 {
                    bucket.take(u64::MAX, now);
                    bucket.ready_at(now);
                }
            }
        }
        let mut bucket = Bucket::new(&Rate { per_second: 1, burst: 1 });
        bucket.take(u64::MAX, 1);
        assert_eq!(bucket.ready_at(1), Some(u64::MAX));
    }

    #[test]
    fn a_limiter_waits_for_the_slower_of_two() {
        let limits = Limits {
            bytes: Some(Rate { per_second: 1000, burst: 10 }),
            operations: Some(Rate { per_second: 10, burst: 1 }),
        };
        let mut limiter = Limiter::new(&limits);
        limiter.take(5, 0);
        assert_eq!(limiter.ready_at(0), None);
        limiter.take(5, 0);
        assert_eq!(limiter.ready_at(0), Some(100_000_000), "operations");
        limiter.take(1000, 100_000_000);
        assert_eq!(limiter.ready_at(100_000_000), Some(1_090_000_000), "bytes");
        assert!(Limiter::default().is_unlimited());
        assert_eq!(Limiter::default().ready_at(7), None);
    }

    proptest! {
        /// Who always wants more gets the rate, the burst and one debt; whoever looks seldom too.
        #[test]
        fn the_flow_is_the_rate(
            per_second in 1u64..5_000_000_000,
            burst in 0u64..10_000_000,
            amounts in proptest::collection::vec(1u64..3_000_000, 1..200),
            lateness in proptest::collection::vec(0u64..3_000_000, 200),
        ) {
            let mut bucket = Bucket::new(&Rate { per_second, burst });
            let (mut now, mut taken, mut lost) = (1000u64, 0u128, 0u128);
            let largest = u128::from(*amounts.iter().max().unwrap());
            for (amount, late) in amounts.into_iter().zip(lateness) {
                if let Some(at) = bucket.ready_at(now) {
                    prop_assert!(at > now);
                    // What flows in while nobody looks is kept only up to the burst.
                    let spare = u128::from(late) * u128::from(per_second) / u128::from(SECOND);
                    lost += spare.saturating_sub(u128::from(burst));
                    now = at + late;
                    prop_assert_eq!(bucket.ready_at(now), None);
                }
                bucket.take(amount, now);
                taken += u128::from(amount);
                let flow = u128::from(now - 1000) * u128::from(per_second) / u128::from(SECOND);
                prop_assert!(taken <= flow + u128::from(burst) + largest + 1);
                if bucket.ready_at(now).is_some() {
                    let slack = 201 * (1 + u128::from(per_second) / u128::from(SECOND));
                    prop_assert!(taken + lost + slack >= flow, "too little: {} of {}", taken, flow);
                }
            }
        }
    }
}
