//! A token bucket in one word.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use super::stage::Now;

/// Units that come in at a steady rate and are saved up to a bound.
///
/// It is kept as the moment at which the bucket will be full again (the generic cell rate
/// algorithm): one word is all of it, and nobody has to fill it.
#[derive(Debug)]
pub struct Bucket {
    /// Units that come in within `span_us`, and the most that are saved.
    units: u64,
    span_us: u64,
    /// When it will be full, monotonic microseconds; in the past if it is.
    full_at_us: AtomicU64,
}

impl Bucket {
    /// A full bucket, into which `units` come each `span_ms` milliseconds. Neither is 0.
    pub fn new(units: u64, span_ms: u64) -> Self {
        Self { units, span_us: span_ms * 1_000, full_at_us: AtomicU64::new(0) }
    }

    /// Takes so many units if they are there; else says in how many milliseconds they will be.
    /// More than it ever holds are taken when it is full, and leave it in debt.
    pub fn take(&self, units: u64, now: Now) -> Result<(), u64> {
        let cost = self.time_of(units);
        let fits = |full_at: u64| {
            let from = full_at.max(now.us);
            (from == now.us || from + cost <= now.us + self.span_us).then_some(from + cost)
        };
        let taken = self.full_at_us.fetch_update(SeqCst, SeqCst, fits);
        taken.map(drop).map_err(|full_at| self.wait_ms(full_at, cost, now))
    }

    /// In how many milliseconds so many units are there; 0 if they are. Nothing is taken.
    pub fn wait_for(&self, units: u64, now: Now) -> u64 {
        self.wait_ms(self.full_at_us.load(SeqCst).max(now.us), self.time_of(units), now)
    }

    /// Whether nothing is missing.
    pub fn is_full(&self, now: Now) -> bool {
        self.full_at_us.load(SeqCst) <= now.us
    }

    /// Takes so many units, there or not; says in how many milliseconds as many are there again,
    /// which is 0 if they are.
    pub fn overdraw(&self, units: u64, now: Now) -> u64 {
        let cost = self.time_of(units);
        let owe = |full_at: u64| Some(full_at.max(now.us) + cost);
        let before = self.full_at_us.fetch_update(SeqCst, SeqCst, owe).unwrap_or(0);
        self.wait_ms(before.max(now.us) + cost, cost, now)
    }

    /// The most it holds.
    pub fn units(&self) -> u64 {
        self.units
    }

    /// Units that can be taken now, and in how many milliseconds it will be full.
    pub fn left(&self, now: Now) -> (u64, u64) {
        let owed_us = self.full_at_us.load(SeqCst).saturating_sub(now.us);
        let held_us = self.span_us.saturating_sub(owed_us);
        let units = u128::from(held_us) * u128::from(self.units) / u128::from(self.span_us);
        (units as u64, owed_us.div_ceil(1_000))
    }

    /// How long so many units take to come in, in microseconds.
    fn time_of(&self, units: u64) -> u64 {
        units.saturating_mul(self.span_us) / self.units
    }

    /// Milliseconds until what takes `cost` to come in can be taken, begun ones counted whole.
    fn wait_ms(&self, full_at: u64, cost: u64, now: Now) -> u64 {
        let room_at = full_at - self.span_us.saturating_sub(cost).min(full_at);
        room_at.saturating_sub(now.us).div_ceil(1_000)
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
        let bucket = Bucket::new(4, 1_000);
        assert_eq!([0; 4].map(|_| bucket.take(1, at(0))), [Ok(()); 4]);
        assert_eq!(bucket.take(1, at(0)), Err(250));
        assert_eq!(bucket.take(1, at(249)), Err(1));
        assert_eq!(bucket.take(1, at(250)), Ok(()));
        assert_eq!(bucket.take(4, at(250)), Err(1_000), "told when all of it is there");
        assert_eq!(bucket.take(4, at(1_250)), Ok(()));
    }

    #[test]
    fn idle_time_is_saved_up_to_one_burst() {
        let bucket = Bucket::new(10, 1_000);
        assert_eq!(bucket.take(10, at(0)), Ok(()));
        assert_eq!(bucket.take(10, at(3_600_000)), Ok(()));
        assert_eq!(bucket.take(1, at(3_600_000)), Err(100));
    }

    #[test]
    fn more_than_it_holds_is_taken_when_it_is_full_and_paid_back() {
        let bucket = Bucket::new(10, 1_000);
        assert_eq!(bucket.take(1, at(0)), Ok(()));
        assert_eq!(bucket.take(30, at(0)), Err(100));
        assert_eq!(bucket.take(30, at(100)), Ok(()));
        assert_eq!(bucket.take(1, at(100)), Err(2_100));
        assert_eq!(bucket.take(1, at(2_200)), Ok(()));
    }

    proptest! {
        /// Against a bucket that is filled before each look at it. Its content is told in the time
        /// that it takes to come in.
        #[test]
        fn it_holds_what_a_bucket_would(
            units in prop_oneof![Just(1_u64), Just(4), Just(10), Just(1_000)],
            steps in proptest::collection::vec((0_u64..400_000, 0_u64..15, any::<bool>()), 1..200)
        ) {
            let (bucket, mut now) = (Bucket::new(units, 1_000), at(0));
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
                    prop_assert_eq!(bucket.overdraw(taken, now), wait_ms);
                } else if missing_us(held) == 0 {
                    held -= cost;
                    prop_assert_eq!(bucket.take(taken, now), Ok(()));
                } else {
                    let wait_ms = missing_us(held).div_ceil(1_000);
                    prop_assert_eq!(bucket.take(taken, now), Err(wait_ms));
                }
            }
        }
    }

    #[test]
    fn what_is_left_is_what_can_be_taken() {
        let bucket = Bucket::new(4, 1_000);
        assert_eq!(bucket.left(at(0)), (4, 0));
        assert_eq!(bucket.take(3, at(0)), Ok(()));
        assert_eq!(bucket.left(at(0)), (1, 750));
        assert_eq!(bucket.left(at(249)), (1, 501));
        assert_eq!(bucket.left(at(250)), (2, 500));
        bucket.overdraw(5, at(250));
        assert_eq!(bucket.left(at(250)), (0, 1_750));
        assert_eq!(bucket.left(at(60_000)), (4, 0));
    }

    #[test]
    fn what_is_overdrawn_is_owed() {
        let bucket = Bucket::new(2, 1_000);
        assert_eq!([0; 4].map(|_| bucket.overdraw(1, at(0))), [0, 500, 1_000, 1_500]);
        assert_eq!(bucket.take(1, at(1_499)), Err(1));
        assert_eq!(bucket.take(1, at(1_500)), Ok(()));
    }
}
