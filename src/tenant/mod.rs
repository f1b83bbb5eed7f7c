//! Who may have how much: admits a job or refuses it, with a typed reason.
//!
//! It refuses to know scheduling. What it counts is given back when the job ends.

mod keys;
mod pairing;

use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst};

use crate::protocol::{ErrorCode, limits};

pub use keys::{Key, KeyKind, Keys, NoKey, Pass, Unauthorized};
pub use pairing::{CODE_MS, NotPaired, Pairings};

/// Why a job was not admitted. Nothing of it was kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The server holds as many unfinished jobs as it may.
    #[error("the server is at its limit of unfinished jobs")]
    ServerFull,
    /// Too many jobs wait for a node.
    #[error("too many utterances wait for a node")]
    QueueFull,
    /// The session has as many unfinished jobs as it may.
    #[error("the session is at its limit of unfinished utterances")]
    SessionFull,
    /// The store cannot take more for the moment.
    #[error("the store is behind")]
    StoreFull,
    /// The session has more results than it may that it did not acknowledge.
    #[error("too many results wait to be acknowledged")]
    Unacknowledged,
    /// The idempotency key was used for another utterance.
    #[error("the idempotency key was used for another utterance")]
    Conflict,
    /// The server is going down, and the speech began after that was said.
    #[error("the server is going down")]
    Draining,
}

impl Denied {
    /// Label of the metric.
    pub fn as_str(self) -> &'static str {
        match self {
            Denied::ServerFull => "server_full",
            Denied::QueueFull => "queue_full",
            Denied::SessionFull => "session_full",
            Denied::StoreFull => "store_full",
            Denied::Unacknowledged => "unacknowledged",
            Denied::Conflict => "conflict",
            Denied::Draining => "draining",
        }
    }

    /// What the client is told.
    pub fn code(self) -> ErrorCode {
        match self {
            Denied::Draining => ErrorCode::ShuttingDown,
            Denied::Conflict => ErrorCode::IdempotencyConflict,
            _ => ErrorCode::Overloaded,
        }
    }

    /// When to try again, in milliseconds: about the length of one utterance; at a restart, some
    /// time in which not everybody comes at once.
    pub fn retry_after_ms(self) -> u64 {
        match self {
            Denied::Draining => limits::reconnect_after_ms(),
            _ => 1_000,
        }
    }
}

/// Counts unfinished jobs against their limits.
#[derive(Debug)]
pub struct Admission {
    live: AtomicUsize,
    live_max: usize,
    session_max: u32,
    /// Speech that began after this is refused, monotonic microseconds.
    closed_us: AtomicU64,
}

impl Admission {
    /// With the given limits for the server and for one session.
    pub fn new(live_max: usize, session_max: usize) -> Self {
        let session_max = u32::try_from(session_max).unwrap_or(u32::MAX);
        let closed_us = AtomicU64::new(u64::MAX);
        Self { live: AtomicUsize::new(0), live_max, session_max, closed_us }
    }

    /// Takes no speech that begins after `now_us`, in monotonic microseconds.
    pub fn close(&self, now_us: u64) {
        self.closed_us.store(now_us, SeqCst);
    }

    /// Whether speech that began at `begun_us` is still taken.
    pub fn takes(&self, begun_us: u64) -> Result<(), Denied> {
        if begun_us > self.closed_us.load(SeqCst) { Err(Denied::Draining) } else { Ok(()) }
    }

    /// Counts one more job of the session whose count is `session`, or says why not.
    pub fn admit(&self, session: &AtomicU32) -> Result<(), Denied> {
        let below = |max| move |n: u32| (n < max).then_some(n + 1);
        session
            .fetch_update(SeqCst, SeqCst, below(self.session_max))
            .map_err(|_| Denied::SessionFull)?;
        let room = |n: usize| (n < self.live_max).then_some(n + 1);
        if self.live.fetch_update(SeqCst, SeqCst, room).is_err() {
            session.fetch_sub(1, SeqCst);
            return Err(Denied::ServerFull);
        }
        Ok(())
    }

    /// Counts a job that was accepted in an earlier life of the server; limits do not apply.
    pub fn readmit(&self, session: &AtomicU32) {
        session.fetch_add(1, SeqCst);
        self.live.fetch_add(1, SeqCst);
    }

    /// Gives back what `admit` counted.
    pub fn release(&self, session: &AtomicU32) {
        let (session, live) = (session.fetch_sub(1, SeqCst), self.live.fetch_sub(1, SeqCst));
        assert!(session > 0 && live > 0, "a job was given back twice");
    }

    /// Unfinished jobs.
    pub fn live(&self) -> usize {
        self.live.load(SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_house_takes_only_what_began_before() {
        let admission = Admission::new(2, 1);
        assert_eq!(admission.takes(u64::MAX), Ok(()));
        admission.close(5);
        assert_eq!((admission.takes(5), admission.takes(6)), (Ok(()), Err(Denied::Draining)));
        assert_eq!(Denied::Draining.code(), ErrorCode::ShuttingDown);
    }

    #[test]
    fn a_refusal_leaves_no_trace() {
        let admission = Admission::new(2, 1);
        let (a, b, c) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
        assert_eq!(admission.admit(&a), Ok(()));
        assert_eq!(admission.admit(&a), Err(Denied::SessionFull));
        assert_eq!(admission.admit(&b), Ok(()));
        assert_eq!(admission.admit(&c), Err(Denied::ServerFull));
        assert_eq!(c.load(SeqCst), 0);
        admission.release(&a);
        assert_eq!(admission.admit(&c), Ok(()));
    }
}
