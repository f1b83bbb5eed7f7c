//! What was reached at all: a simulation that never meets a case proves nothing about it.

use std::collections::BTreeMap;

/// How often each case was met.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts(BTreeMap<&'static str, u64>);

/// Cases that a run over many seeds must meet.
pub const REQUIRED: &[&str] = &[
    "W1_or_W5_before_commit",
    "W1_or_W5_torn_commit",
    "W2_or_W6_committed_untold",
    "W7_sent_again",
    "W8_crash_in_recovery",
    "refused_server_full",
    "refused_queue_full",
    "refused_session_full",
    "refused_store_full",
    "refused_unacknowledged",
    "refused_conflict",
    "refusal_kept",
    "node_lost",
    "poison",
    "answer_stale",
    "answer_unknown",
    "answer_refused",
    "late_result",
    "result_twice",
    "resume_true",
    "resume_unknown",
    "gap_announced",
    "ack_committed",
    "ack_duplicate",
    "ack_stale",
    "ack_unknown",
    "silence",
    "cut_slice",
    "job_merged",
    "job_expired",
    "dead_letter_failed",
    "replayed",
    "taken_over",
    "forfeited",
    "session_restored",
    "job_restored",
    "submitted_again",
];

impl Counts {
    /// The case was met.
    pub(super) fn reached(&mut self, case: &'static str) {
        *self.0.entry(case).or_default() += 1;
    }

    /// Adds what another run met.
    pub fn add(&mut self, other: &Counts) {
        for (case, n) in &other.0 {
            *self.0.entry(case).or_default() += n;
        }
    }

    /// Cases and how often they were met, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.0.iter().map(|(case, n)| (*case, *n))
    }

    /// Required cases that were not met.
    pub fn missing(&self) -> Vec<&'static str> {
        REQUIRED.iter().copied().filter(|case| !self.0.contains_key(case)).collect()
    }
}
