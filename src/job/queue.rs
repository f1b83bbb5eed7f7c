//! Jobs that found no slot: first come first served within a tenant, in weighted fair order between
//! tenants.
//!
//! What a tenant takes is counted in audio (start-time fair queueing, `shares.rs`), once for each
//! pair and once for all. Within a pair the jobs of the tenant go first that has taken least of
//! that pair, by its weight; between pairs, which may share nodes, the one goes first in which the
//! tenant waits that has taken least of all. So whoever sends more than its share waits behind
//! itself only, in whatever pairs it does so.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::sync::Arc;

use super::place::Placed;
use super::shares::Shares;
use super::state::Phase;
use super::table::Job;
use super::{Effects, Scheduler};
use crate::protocol::Pair;
use crate::telemetry::Now;

/// Waiting jobs that one pass looks at per pair, after the first that found no slot, divided among
/// the tenants that wait for it; one of each at least. Enough to get past a few bound to a busy
/// node, few enough that a long queue costs no more than a short one.
const LOOK_AHEAD: usize = 64;
/// How often jobs that were cancelled or expired while waiting are looked for, in microseconds: one
/// that a pass comes upon leaves at once.
const SWEEP_US: u64 = 100_000;

/// The waiting jobs, owned by one task.
#[derive(Debug, Default)]
pub struct WaitQueue {
    by_pair: BTreeMap<Pair, PairQueue>,
    /// What each tenant has taken of all pairs.
    shares: Shares,
    /// Jobs that came so far.
    arrivals: u64,
    swept_us: u64,
}

/// The jobs that wait for one pair.
#[derive(Debug, Default)]
struct PairQueue {
    /// By the tenant's number; none is empty between passes.
    lanes: BTreeMap<u32, Lane>,
    /// What each tenant has taken of this pair.
    shares: Shares,
}

/// The jobs of one tenant that wait for one pair, oldest first; each with its place among all
/// arrivals.
#[derive(Debug, Default)]
struct Lane {
    jobs: VecDeque<(u64, Arc<Job>)>,
    /// Where this pass looks next.
    at: usize,
    /// How many more of them it looks at.
    looks: usize,
}

impl WaitQueue {
    /// Takes in what was parked and gives waiting jobs a try, in fair order.
    pub fn drain(&mut self, scheduler: &Scheduler, now: Now, effects: &mut Effects) {
        while let Some(job) = scheduler.parked.pop() {
            let lanes = &mut self.by_pair.entry(job.pairs[0]).or_default().lanes;
            let lane = lanes.entry(job.speaker.account.number()).or_default();
            lane.jobs.push_back((self.arrivals, job));
            self.arrivals += 1;
        }
        if now.us >= self.swept_us + SWEEP_US {
            self.swept_us = now.us;
            self.sweep(scheduler);
        }
        self.pass(scheduler, now, effects);
        self.by_pair.retain(|_, queue| queue.tidy());
        // When nobody waits everyone has had what they asked for.
        self.shares.tidy(self.by_pair.is_empty());
        scheduler.metrics.jobs_waiting.set(scheduler.waiting() as i64);
    }

    /// Who was cancelled or expired while waiting is no longer in anyone's way.
    fn sweep(&mut self, scheduler: &Scheduler) {
        for lane in self.by_pair.values_mut().flat_map(|queue| queue.lanes.values_mut()) {
            lane.jobs.retain(|(_, job)| {
                let waits = job.state().phase == Phase::Queued;
                if !waits {
                    scheduler.admission.end_wait(&job.speaker.account);
                }
                waits
            });
        }
    }

    fn pass(&mut self, scheduler: &Scheduler, now: Now, effects: &mut Effects) {
        let mut turns = BinaryHeap::with_capacity(self.by_pair.len());
        for (pair, queue) in &mut self.by_pair {
            queue.begin_pass();
            turns.extend(queue.rank(&self.shares).map(|rank| Reverse((rank, *pair))));
        }
        while let Some(Reverse((rank, pair))) = turns.pop() {
            let Some(queue) = self.by_pair.get_mut(&pair) else { continue };
            let Some(current) = queue.rank(&self.shares) else { continue };
            // Another pair had its turn since: ranks fall behind, never rise.
            if current > rank {
                turns.push(Reverse((current, pair)));
                continue;
            }
            if let Some((tenant, audio_ms, weight)) = queue.try_next(scheduler, now, effects) {
                self.shares.charge(current.0, tenant, audio_ms, weight);
            }
            turns.extend(queue.rank(&self.shares).map(|rank| Reverse((rank, pair))));
        }
    }
}

impl PairQueue {
    fn begin_pass(&mut self) {
        let looks = (LOOK_AHEAD / self.lanes.len().max(1)).max(1);
        for lane in self.lanes.values_mut() {
            (lane.at, lane.looks) = (0, looks);
        }
    }

    /// The lanes that this pass has not done with.
    fn open_lanes(&self) -> impl Iterator<Item = (u32, &Lane)> {
        let open = |lane: &Lane| lane.looks > 0 && lane.at < lane.jobs.len();
        self.lanes.iter().filter(move |(_, lane)| open(lane)).map(|(tenant, lane)| (*tenant, lane))
    }

    /// Where the pair stands among the pairs: by what its most modest tenant has taken of all, then
    /// by age. None if this pass is done with it.
    fn rank(&self, shares: &Shares) -> Option<(u64, u64)> {
        let rank = |(tenant, lane): (u32, &Lane)| (shares.start(tenant), lane.jobs[lane.at].0);
        self.open_lanes().map(rank).min()
    }

    /// Tries the next job of the tenant that has taken least of the pair. If it was placed: the
    /// tenant's number, the milliseconds of audio, and the tenant's weight.
    fn try_next(
        &mut self,
        scheduler: &Scheduler,
        now: Now,
        effects: &mut Effects,
    ) -> Option<(u32, u32, u32)> {
        let rank = |(tenant, lane): (u32, &Lane)| {
            (self.shares.start(tenant), lane.jobs[lane.at].0, tenant)
        };
        let (turn, _, tenant) = self.open_lanes().map(rank).min()?;
        let lane = self.lanes.get_mut(&tenant)?;
        let job = &lane.jobs[lane.at].1;
        let placed = scheduler.try_place(job, now, effects);
        if placed == Placed::Wait {
            lane.at += 1;
            lane.looks -= 1;
            return None;
        }
        let (audio_ms, weight) = (job.spec.audio_ms, job.speaker.account.weight());
        scheduler.admission.end_wait(&job.speaker.account);
        lane.jobs.remove(lane.at);
        (placed == Placed::Done).then(|| {
            self.shares.charge(turn, tenant, audio_ms, weight);
            (tenant, audio_ms, weight)
        })
    }

    /// Forgets what is empty; whether anything is left.
    fn tidy(&mut self) -> bool {
        self.lanes.retain(|_, lane| !lane.jobs.is_empty());
        self.shares.tidy(self.lanes.is_empty());
        !self.lanes.is_empty()
    }
}
