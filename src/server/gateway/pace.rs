//! How fast jobs end, for saying when to come back.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Over how long the pace is taken, in microseconds: what was before counts less and less.
const OVER_US: u64 = 10_000_000;
/// What is said when nothing ends, and the longest that is said, in seconds.
const IDLE_S: u64 = 5;
const LONGEST_S: u64 = 60;

/// Jobs that end in a second, taken over the last ten seconds. The control task writes it.
#[derive(Debug, Default)]
pub(in crate::server) struct Pace {
    /// Jobs ended when it was last looked, and when that was, in monotonic microseconds.
    ended: AtomicU64,
    at_us: AtomicU64,
    /// Thousandths of a job in a second.
    milli: AtomicU64,
}

impl Pace {
    /// So many jobs have ended since the start.
    pub(in crate::server) fn look(&self, ended: u64, now_us: u64) {
        let (before, at_us) = (self.ended.load(Relaxed), self.at_us.load(Relaxed));
        let passed_us = now_us.saturating_sub(at_us);
        if passed_us == 0 {
            return;
        }
        let milli =
            u128::from(ended.saturating_sub(before)) * 1_000_000_000 / u128::from(passed_us);
        let weight = u128::from(passed_us.min(OVER_US));
        let old = u128::from(self.milli.load(Relaxed));
        let new = (old * (u128::from(OVER_US) - weight) + milli * weight) / u128::from(OVER_US);
        self.milli.store(new as u64, Relaxed);
        self.ended.store(ended, Relaxed);
        self.at_us.store(now_us, Relaxed);
    }

    /// In how many seconds those who wait now will have had their turn.
    pub(super) fn wait_s(&self, waiting: usize) -> u64 {
        match self.milli.load(Relaxed) {
            0 if waiting == 0 => 1,
            0 => IDLE_S,
            milli => (waiting as u64 * 1_000).div_ceil(milli).clamp(1, LONGEST_S),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_back_finds_the_queue_done() {
        let pace = Pace::default();
        assert_eq!((pace.wait_s(0), pace.wait_s(9)), (1, IDLE_S));
        for second in 1..=60_u64 {
            pace.look(second * 4, second * 1_000_000);
        }
        // Four a second, nearly: what was before the start still counts a little.
        assert_eq!((pace.wait_s(0), pace.wait_s(4), pace.wait_s(38)), (1, 2, 10));
        assert_eq!(pace.wait_s(100_000), LONGEST_S);
        for second in 61..=300_u64 {
            pace.look(240, second * 1_000_000);
        }
        assert_eq!(pace.wait_s(9), IDLE_S);
    }
}
