//! A token bucket in one word.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use super::stage::Now;

/// How fast units come in, and the most that are saved.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    /// Units that come in within `span_us`, and the most that are saved. Not 0.
    units: u64,
    span_us: u64,
}

impl Rate {
    /// So many units each `span_ms` milliseconds. Neither is 0.
    pub fn new(units: u64, span_ms: u64) -> Self {
        Self { units, span_us: span_ms * 1_000 }
    }

    /// The most that are saved.
    pub fn units(self) -> u64 {
        self.units
    }

    /// How long so many units take to come in, in microseconds.
    fn time_of(self, units: u64) -> u64 {
        units.saturating_mul(self.span_us) / self.units
    }

    /// Milliseconds until what takes `cost` to come in can be taken, begun ones counted whole.
    fn wait_ms(self, full_at: u64, cost: u64, now: Now) -> u64 {
        let room_at = full_at - self.span_us.saturating_sub(cost).min(full_at);
        room_at.saturating_sub(now.us).div_ceil(1_000)
    }
}

/// Units that come in at a steady rate and are saved up to a bound.
///
/// It is kept as the moment at which the bucket will be full again (the generic cell rate
/// algorithm): one word is all of it, and nobody has to fill it. The rate may be another at each
/// use: what is owed is owed as time.
#[derive(Debug, Default)]
pub struct Bucket {
    /// When it will be full, monotonic microseconds; in the past if it is.
    full_at_us: AtomicU64,
}

impl Bucket {
    /// Takes so many units if they are there; else says in how many milliseconds they will be.
    /// More than it ever holds are taken when it is full, and leave it in debt.
    pub fn take(&self, rate: Rate, units: u64, now: Now) -> Result<(), u64> {
        let cost = rate.time_of(units);
        let fits = |full_at: u64| {
            let from = full_at.max(now.us);
            (from == now.us || from + cost <= now.us + rate.span_us).then_some(from + cost)
        };
        let taken = self.full_at_us.fetch_update(SeqCst, SeqCst, fits);
        taken.map(drop).map_err(|full_at| rate.wait_ms(full_at, cost, now))
    }

    /// In how many milliseconds so many units are there; 0 if they are. Nothing is taken.
    pub fn wait_for(&self, rate: Rate, units: u64, now: Now) -> u64 {
        rate.wait_ms(self.full_at_us.load(SeqCst).max(now.us), rate.time_of(units), now)
    }

    /// Whether nothing is missing.
    pub fn is_full(&self, now: Now) -> bool {
        self.full_at_us.load(SeqCst) <= now.us
    }

    /// Takes so many units, there or not; says in how many milliseconds as many are there again,
    /// which is 0 if they are.
    pub fn overdraw(&self, rate: Rate, units: u64, now: Now) -> u64 {
        let cost = rate.time_of(units);
        let owe = |full_at: u64| Some(full_at.max(now.us) + cost);
        let before = self.full_at_us.fetch_update(SeqCst, SeqCst, owe).unwrap_or(0);
        rate.wait_ms(before.max(now.us) + cost, cost, now)
    }

    /// Units that can be taken now, and in how many milliseconds it will be full.
    pub fn left(&self, rate: Rate, now: Now) -> (u64, u64) {
        let owed_us = self.full_at_us.load(SeqCst).saturating_sub(now.us);
        let held_us = rate.span_us.saturating_sub(owed_us);
        let units = u128::from(held_us) * u128::from(rate.units) / u128::from(rate.span_us);
        (units as u64, owed_us.div_ceil(1_000))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(ms: u64) -> Now {
        Now { us: 5_000_000 + ms * 1_000, unix_ms: 0 }
    }

    #[test]
    fn a_burst_is_taken_at_once_and_what_follows_at_the_rate() {
        let (bucket, rate) = (Bucket::default(), Rate::new(4, 1_000));
        assert_eq!([0; 4].map(|_| bucket.take(rate, 1, at(0))), [Ok(()); 4]);
        assert_eq!(bucket.take(rate, 1, at(0)), Err(250));
        assert_eq!(bucket.take(rate, 1, at(249)), Err(1));
        assert_eq!(bucket.take(rate, 1, at(250)), Ok(()));
        assert_eq!(bucket.take(rate, 4, at(250)), Err(1_000), "told when all of it is there");
        assert_eq!(bucket.take(rate, 4, at(1_250)), Ok(()));
    }

    #[test]
    fn idle_time_is_saved_up_to_one_burst() {
        let (bucket, rate) = (Bucket::default(), Rate::new(10, 1_000));
        assert_eq!(bucket.take(rate, 10, at(0)), Ok(()));
        assert_eq!(bucket.take(rate, 10, at(3_600_000)), Ok(()));
        assert_eq!(bucket.take(rate, 1, at(3_600_000)), Err(100));
    }

    #[test]
    fn more_than_it_holds_is_taken_when_it_is_full_and_paid_back() {
        let (bucket, rate) = (Bucket::default(), Rate::new(10, 1_000));
        assert_eq!(bucket.take(rate, 1, at(0)), Ok(()));
        assert_eq!(bucket.take(rate, 30, at(0)), Err(100));
        assert_eq!(bucket.take(rate, 30, at(100)), Ok(()));
        assert_eq!(bucket.take(rate, 1, at(100)), Err(2_100));
        assert_eq!(bucket.take(rate, 1, at(2_200)), Ok(()));
    }

    proptest! {
        /// Against a bucket that is filled before each look at it. Its content is told in the time
        /// that it takes to come in.
        #[test]
        fn it_holds_what_a_bucket_would(
            units in prop_oneof![Just(1_u64), Just(4), Just(10), Just(1_000)],
            steps in proptest::collection::vec((0_u64..400_000, 0_u64..15, any::<bool>()), 1..200)
        ) {
            let (bucket, rate, mut now) = (Bucket::default(), Rate::new(units, 1_000), at(0));
            let (unit, full) = (1_000_000 / units as i64, 1_000_000_i64);
            let mut held = full;
            for (passed_us, taken, owed) in steps {
                now.us += passed_us;
                held = (held + passed_us as i64).min(full);
                let cost = taken as i64 * unit;
                let missing_us = |held: i64| u64::try_from(cost.min(full) - held).unwrap_or(0);
                if owed {
                    held -= cost;
                    let wait_ms = missing_us(held).div_ceil(1_000);
                    prop_assert_eq!(bucket.overdraw(rate, taken, now), wait_ms);
                } else if missing_us(held) == 0 {
                    held -= cost;
                    prop_assert_eq!(bucket.take(rate, taken, now), Ok(()));
                } else {
                    let wait_ms = missing_us(held).div_ceil(1_000);
                    prop_assert_eq!(bucket.take(rate, taken, now), Err(wait_ms));
                }
            }
        }
    }

    #[test]
    fn what_is_left_is_what_can_be_taken() {
        let (bucket, rate) = (Bucket::default(), Rate::new(4, 1_000));
        assert_eq!(bucket.left(rate, at(0)), (4, 0));
        assert_eq!(bucket.take(rate, 3, at(0)), Ok(()));
        assert_eq!(bucket.left(rate, at(0)), (1, 750));
        assert_eq!(bucket.left(rate, at(249)), (1, 501));
        assert_eq!(bucket.left(rate, at(250)), (2, 500));
        bucket.overdraw(rate, 5, at(250));
        assert_eq!(bucket.left(rate, at(250)), (0, 1_750));
        assert_eq!(bucket.left(rate, at(60_000)), (4, 0));
    }

    #[test]
    fn what_is_overdrawn_is_owed() {
        let (bucket, rate) = (Bucket::default(), Rate::new(2, 1_000));
        assert_eq!([0; 4].map(|_| bucket.overdraw(rate, 1, at(0))), [0, 500, 1_000, 1_500]);
        assert_eq!(bucket.take(rate, 1, at(1_499)), Err(1));
        assert_eq!(bucket.take(rate, 1, at(1_500)), Ok(()));
    }

    #[test]
    fn a_debt_is_paid_back_at_the_rate_that_holds_then() {
        let (bucket, slow) = (Bucket::default(), Rate::new(2, 1_000));
        assert_eq!(bucket.take(slow, 2, at(0)), Ok(()));
        assert_eq!(bucket.take(slow, 1, at(0)), Err(500));
        let fast = Rate::new(10, 1_000);
        assert_eq!(bucket.take(fast, 1, at(0)), Err(100));
        assert_eq!(bucket.take(fast, 1, at(100)), Ok(()));
    }
}
