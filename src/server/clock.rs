//! The one clock. Everything below the shell is told the time; tests move it instead of sleeping.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::telemetry::Now;

/// Monotonic and wall time since the process began, both moved by the same skew.
#[derive(Debug)]
pub struct Clock {
    origin: Instant,
    origin_unix_ms: u64,
    skew_us: AtomicU64,
    moved: Notify,
}

impl Clock {
    /// A clock that begins now.
    #[allow(clippy::new_without_default, reason = "one is made on purpose, at start")]
    pub fn new() -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::starting_at(u64::try_from(unix.as_millis()).unwrap_or(u64::MAX))
    }

    /// A clock that begins at that Unix time in milliseconds and goes on with the runtime's.
    pub fn starting_at(origin_unix_ms: u64) -> Self {
        Self {
            origin: Instant::now(),
            origin_unix_ms,
            skew_us: AtomicU64::new(0),
            moved: Notify::new(),
        }
    }

    /// The time.
    pub fn now(&self) -> Now {
        let elapsed = u64::try_from(self.origin.elapsed().as_micros()).unwrap_or(u64::MAX);
        // Zero means "never" in stamps.
        let us = elapsed + self.skew_us.load(SeqCst) + 1;
        Now { us, unix_ms: self.origin_unix_ms + us / 1_000 }
    }

    /// Moves time forward: what sleeps until a moment that is now past wakes at once.
    pub fn advance(&self, by: Duration) {
        self.skew_us.fetch_add(u64::try_from(by.as_micros()).unwrap_or(0), SeqCst);
        self.moved.notify_waiters();
    }

    /// Returns when the monotonic moment `us` is reached; never, without one.
    pub async fn sleep_until(&self, us: Option<u64>) {
        let Some(us) = us else { return std::future::pending().await };
        loop {
            // Registered before the clock is read, so that a move in between is not missed.
            let moved = self.moved.notified();
            let left = us.saturating_sub(self.now().us);
            if left == 0 {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_micros(left)) => {}
                () = moved => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn sleepers_wake_when_time_is_moved() {
        let clock = Clock::new();
        let until = clock.now().after_ms(3_600_000);
        let sleep = clock.sleep_until(Some(until));
        tokio::pin!(sleep);
        let early = tokio::time::timeout(Duration::ZERO, sleep.as_mut()).await;
        assert!(early.is_err());
        clock.advance(Duration::from_secs(3_601));
        tokio::time::timeout(Duration::from_secs(1), sleep).await.expect("did not wake");
    }
}
