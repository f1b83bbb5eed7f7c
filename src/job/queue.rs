//! Jobs that found no slot, first come first served per pair.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use super::place::Placed;
use super::state::Phase;
use super::table::Job;
use super::{Effects, Scheduler};
use crate::protocol::Pair;
use crate::telemetry::Now;

/// Waiting jobs that one pass looks at per pair, after the first that found no slot: enough to get
/// past a few bound to a busy node, few enough that a long queue costs no more than a short one.
const LOOK_AHEAD: usize = 64;

/// The waiting jobs, owned by one task.
#[derive(Debug, Default)]
pub struct WaitQueue {
    by_pair: BTreeMap<Pair, VecDeque<Arc<Job>>>,
}

impl WaitQueue {
    /// Takes in what was parked and gives every pair's queue a try, oldest first.
    pub fn drain(&mut self, scheduler: &Scheduler, now: Now, effects: &mut Effects) {
        while let Some(job) = scheduler.parked.pop() {
            self.by_pair.entry(job.pairs[0]).or_default().push_back(job);
        }
        self.by_pair.retain(|_, queue| {
            Self::try_each(queue, scheduler, now, effects);
            !queue.is_empty()
        });
        scheduler.metrics.jobs_waiting.set(scheduler.waiting() as i64);
    }

    fn try_each(
        queue: &mut VecDeque<Arc<Job>>,
        scheduler: &Scheduler,
        now: Now,
        effects: &mut Effects,
    ) {
        // Who was cancelled or expired while waiting is no longer in anyone's way.
        queue.retain(|job| {
            let waits = job.state().phase == Phase::Queued;
            if !waits {
                scheduler.waiting.fetch_sub(1, SeqCst);
            }
            waits
        });
        let (mut at, mut failures) = (0, 0);
        while at < queue.len() && failures < LOOK_AHEAD {
            match scheduler.try_place(&queue[at], now, effects) {
                Placed::Done => {
                    queue.remove(at);
                    scheduler.waiting.fetch_sub(1, SeqCst);
                }
                Placed::Wait => {
                    at += 1;
                    failures += 1;
                }
            }
        }
    }
}
