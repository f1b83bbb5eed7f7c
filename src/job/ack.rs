//! What a node is told about the result it sent, and when: not before the outcome is on disk.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use super::settle::Answered;
use super::table::Job;
use super::{Effect, Effects, Scheduler};
use crate::node::NodeIndex;
use crate::protocol::JobId;
use crate::protocol::hello::AckStatus;

/// Who answered, as one word: the attempt that the answer named, 0 if it named none, under the
/// node.
fn by(node: NodeIndex, attempt: Option<u32>) -> u64 {
    (u64::from(node.0) << 32) | u64::from(attempt.unwrap_or(0))
}

impl Scheduler {
    /// The outcome of the job is on disk, or there is no disk: whoever answered it may forget. The
    /// second call does nothing.
    pub fn kept(&self, job: &Arc<Job>, effects: &mut Effects) {
        if job.kept.swap(true, SeqCst) {
            return;
        }
        let by = job.answered_by.load(SeqCst);
        let (node, attempt) = (NodeIndex((by >> 32) as u32), by as u32);
        if node != NodeIndex(0) {
            let attempt = (attempt != 0).then_some(attempt);
            let status = AckStatus::Committed;
            effects.push(Effect::AckResult { job: job.id, node, attempt, status });
        }
    }

    /// Says what became of a result as soon as that is certain. What settled its job is
    /// acknowledged by `kept`, and until then no copy of it is either: the node is to keep it.
    pub(super) fn acknowledge(
        &self,
        node: NodeIndex,
        job: JobId,
        attempt: Option<u32>,
        answered: Answered,
        effects: &mut Effects,
    ) {
        let status = match answered {
            Answered::Settled => {
                if let Some(job) = self.job(job) {
                    // The effects that make the outcome durable are performed after this.
                    job.answered_by.store(by(node, attempt), SeqCst);
                }
                return;
            }
            // Nothing of it has to be kept.
            Answered::Refused => AckStatus::Committed,
            Answered::Unknown => AckStatus::Unknown,
            Answered::Stale => match self.job(job) {
                Some(job) if job.is_answered_by(node, attempt) => match job.kept.load(SeqCst) {
                    true => AckStatus::Duplicate,
                    false => return,
                },
                _ => AckStatus::Stale,
            },
        };
        effects.push(Effect::AckResult { job, node, attempt, status });
    }
}

impl Job {
    /// Whether it was that answer that ended it.
    pub(super) fn is_answered_by(&self, node: NodeIndex, attempt: Option<u32>) -> bool {
        self.answered_by.load(SeqCst) == by(node, attempt)
    }
}
