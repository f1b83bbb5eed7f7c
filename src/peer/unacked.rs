//! Results that the scheduler has not said it has taken, kept within bounds until it does.

use std::collections::VecDeque;

use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::wire::Attempt;

/// Results kept, and the bytes they may take together.
const RESULTS_MAX: usize = 1_024;
const BYTES_MAX: usize = 64 * 1_024 * 1_024;

/// The results, oldest first.
#[derive(Default)]
pub(super) struct Unacked {
    results: VecDeque<Kept>,
    bytes: usize,
}

struct Kept {
    attempt: Attempt,
    message: Utf8Bytes,
    /// When it was last sent; none if it never was.
    sent: Option<Instant>,
}

impl Unacked {
    /// Whether no further work is to be begun until some of it is taken.
    pub(super) fn is_full(&self) -> bool {
        self.results.len() >= RESULTS_MAX || self.bytes >= BYTES_MAX
    }

    pub(super) fn keep(&mut self, attempt: Attempt, message: Utf8Bytes) {
        self.forget(&attempt);
        self.bytes += message.len();
        self.results.push_back(Kept { attempt, message, sent: None });
    }

    pub(super) fn forget(&mut self, attempt: &Attempt) {
        self.results.retain(|kept| kept.attempt != *attempt);
        self.bytes = self.results.iter().map(|kept| kept.message.len()).sum();
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn holds(&self, attempt: &Attempt) -> bool {
        self.results.iter().any(|kept| kept.attempt == *attempt)
    }

    pub(super) fn attempts(&self) -> impl Iterator<Item = &Attempt> {
        self.results.iter().map(|kept| &kept.attempt)
    }

    /// The message about an attempt, to be sent now.
    pub(super) fn take_turn(&mut self, attempt: &Attempt) -> Option<Utf8Bytes> {
        let kept = self.results.iter_mut().find(|kept| kept.attempt == *attempt)?;
        kept.sent = Some(Instant::now());
        Some(kept.message.clone())
    }

    /// Whether it waits for its first time.
    pub(super) fn is_unsent(&self, attempt: &Attempt) -> bool {
        self.results.iter().any(|kept| kept.attempt == *attempt && kept.sent.is_none())
    }

    /// The one whose acknowledgement is overdue longest: sent before `since`.
    pub(super) fn overdue(&self, since: Instant) -> Option<Attempt> {
        let late = self.results.iter().filter(|kept| kept.sent.is_some_and(|at| at < since));
        late.min_by_key(|kept| kept.sent).map(|kept| kept.attempt.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(n: usize) -> Attempt {
        Attempt { job_id: format!("job-{n}"), attempt_id: 1 }
    }

    #[test]
    fn it_is_full_by_number_and_by_size_and_has_room_again() {
        let mut unacked = Unacked::default();
        for n in 0..RESULTS_MAX {
            assert!(!unacked.is_full());
            unacked.keep(attempt(n), "x".into());
        }
        assert!(unacked.is_full());
        unacked.forget(&attempt(7));
        assert!(!unacked.is_full());
        unacked.clear();
        unacked.keep(attempt(0), "x".repeat(BYTES_MAX - 1).into());
        assert!(!unacked.is_full());
        unacked.keep(attempt(1), "x".into());
        assert!(unacked.is_full());
        unacked.forget(&attempt(0));
        assert_eq!((unacked.is_full(), unacked.bytes), (false, 1));
    }

    #[test]
    fn the_longest_overdue_comes_first_and_the_unsent_are_not_overdue() {
        let mut unacked = Unacked::default();
        (0..3).for_each(|n| unacked.keep(attempt(n), "x".into()));
        assert!(unacked.is_unsent(&attempt(1)));
        for n in [2, 1] {
            assert!(unacked.take_turn(&attempt(n)).is_some());
        }
        assert!(!unacked.is_unsent(&attempt(1)));
        let later = Instant::now() + std::time::Duration::from_secs(1);
        assert_eq!(unacked.overdue(later), Some(attempt(2)));
        unacked.forget(&attempt(2));
        assert_eq!(unacked.overdue(later), Some(attempt(1)));
        assert!(unacked.take_turn(&attempt(9)).is_none());
    }
}
