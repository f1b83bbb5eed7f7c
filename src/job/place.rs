//! From queued to a node: one look at the snapshot, one slot, one step of the state word.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use super::state::{Event, Phase};
use super::table::{Job, Placement};
use super::{Effect, Effects, Scheduler};
use crate::node::{
    Claim, Considered, Need, Node, NodeIndex, Reasons, State as NodeState, Verdict, fit, select,
};
use crate::protocol::node::ServiceSet;
use crate::telemetry::{Now, Stage};

/// What came of looking for a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Placed {
    /// It is on its way.
    Done,
    /// It waits no more: someone else placed or ended it.
    Gone,
    /// No one can take it now.
    Wait,
}

impl Scheduler {
    /// Places a queued job, or hands it to the wait queue. Whoever waits goes first.
    pub(super) fn place_or_park(&self, job: &Arc<Job>, now: Now, effects: &mut Effects) {
        if self.waiting() == 0 && self.try_place(job, now, effects) != Placed::Wait {
            return;
        }
        self.park(job);
        effects.push(Effect::WakeQueue);
    }

    /// Hands the job to the wait queue.
    pub(super) fn park(&self, job: &Arc<Job>) {
        // Counted before it is visible: a slot freed from here on wakes the queue.
        self.admission.begin_wait(&job.speaker.account);
        self.parked.push(Arc::clone(job));
    }

    pub(super) fn try_place(&self, job: &Arc<Job>, now: Now, effects: &mut Effects) -> Placed {
        if job.state().phase != Phase::Queued {
            return Placed::Gone;
        }
        let (claim, reasons) = self.claim_for(job, now);
        let Some(claim) = claim else {
            // A job that waits is looked at many times; what is told is when the reason changed.
            if job.why_waiting() != Some(reasons.why_none()) {
                self.metrics.no_node.with_label_values(&[reasons.why_none()]).inc();
                job.remember(Placement { at_us: now.us, chosen: None, reasons });
            }
            return Placed::Wait;
        };
        let Some((_, after)) =
            job.word.on(Event::Place { node: claim.node.index, floor: self.floor() })
        else {
            self.leave_turn(job, claim.node.index);
            return Placed::Gone;
        };
        job.stamps.mark(Stage::Placed, now.us);
        if after.attempts() == 1 {
            self.observe(&self.metrics.wait_seconds, job, Stage::Queued, Stage::Placed);
        }
        job.speaker.sticky.store(claim.node.index.0, SeqCst);
        let chosen = Some((claim.node.id.clone(), claim.pool, after.attempt));
        job.remember(Placement { at_us: now.us, chosen, reasons });
        let (node, attempt) = (claim.node.index, after.attempt);
        effects.push(Effect::Assign { job: Arc::clone(job), node, attempt });
        Placed::Done
    }

    /// A place for the job in its turn: with the others of the turn if they are in flight, else on
    /// the turn's node if it has room, else on a node chosen afresh.
    fn claim_for(&self, job: &Arc<Job>, now: Now) -> (Option<Claim>, Reasons) {
        let (excluded, n) = job.excluded();
        let sticky = job.speaker.sticky.load(SeqCst);
        let only = self.only_node(job);
        let need = Need {
            pairs: &job.pairs,
            services: ServiceSet::of(&job.spec.pipeline),
            tenant: job.spec.tenant.as_deref(),
            excluded: &excluded[..n],
            prefer: only.or((sticky != 0).then_some(NodeIndex(sticky))),
            only,
        };
        loop {
            let bound = job.turn.bound();
            if bound.0 != NodeIndex(0) {
                match self.join_turn(job, &need, bound, now) {
                    Join::Joined(claim) => {
                        let reasons = self.one_reason(&claim.node, Verdict::Chosen);
                        return (Some(claim), reasons);
                    }
                    Join::Wait(reasons) => return (None, reasons),
                    Join::Again => continue,
                }
            }
            let (claim, reasons) = self.pools.with(|snapshot| select(snapshot, &need, now));
            let Some(claim) = claim else { return (None, reasons) };
            if job.turn.rebind(bound, (claim.node.index, 1)) {
                return (Some(claim), reasons);
            }
            claim.node.release();
        }
    }

    fn join_turn(&self, job: &Job, need: &Need<'_>, bound: (NodeIndex, u32), now: Now) -> Join {
        let (index, in_flight) = bound;
        let node = self.nodes.by_index(index);
        let usable = node.as_ref().is_some_and(|node| {
            let excluded = need.excluded.contains(&index);
            // The rest of a turn goes where the turn is, even if no new turn would.
            let there = in_flight > 0 && node.state() != NodeState::Offline && !excluded;
            there || fit(node, need, now) == Verdict::Chosen
        });
        let node = match node {
            Some(node) if usable => node,
            _ if in_flight == 0 => {
                job.turn.rebind(bound, (NodeIndex(0), 0));
                return Join::Again;
            }
            // The others of the turn are still being moved away from there.
            Some(node) => return Join::Wait(self.one_reason(&node, Verdict::NotReady)),
            None => return Join::Wait(Reasons::default()),
        };
        if in_flight == 0 && !node.claim() {
            return Join::Wait(self.one_reason(&node, Verdict::Full));
        }
        if job.turn.rebind(bound, (index, in_flight + 1)) {
            return Join::Joined(Claim { node, pool: "turn".into() });
        }
        if in_flight == 0 {
            node.release();
        }
        Join::Again
    }

    fn one_reason(&self, node: &Node, verdict: Verdict) -> Reasons {
        Reasons {
            snapshot: self.pools.with(|s| s.version),
            considered: vec![Considered { node: node.id.clone(), verdict }],
            more: 0,
            routed: true,
            only_full: verdict == Verdict::Full,
        }
    }

    /// The node the job's session is paired with, if it is; one that has not come yet is nobody.
    fn only_node(&self, job: &Job) -> Option<NodeIndex> {
        let paired = job.spec.paired.as_ref()?;
        Some(self.nodes.get(paired).map_or(NodeIndex(u32::MAX), |node| node.index))
    }

    /// Gives up a place in the turn, and with the last one the node's slot.
    pub(super) fn leave_turn(&self, job: &Job, node: NodeIndex) {
        if job.turn.leave()
            && let Some(node) = self.nodes.by_index(node)
        {
            node.release();
        }
    }

    /// Whether another node than those it has been to could ever take the job, slots aside.
    pub(super) fn has_alternative(&self, job: &Job, now: Now) -> bool {
        let (excluded, n) = job.excluded();
        let need = Need {
            pairs: &job.pairs,
            services: ServiceSet::of(&job.spec.pipeline),
            tenant: job.spec.tenant.as_deref(),
            excluded: &excluded[..n],
            prefer: None,
            only: self.only_node(job),
        };
        self.pools.with(|snapshot| {
            let pools = snapshot.route(need.pairs[0]).into_iter().flat_map(|r| &r.pools);
            pools.flat_map(|p| &p.nodes).any(|n| fit(n, &need, now) == Verdict::Chosen)
        })
    }

    pub(super) fn observe(
        &self,
        histogram: &prometheus::Histogram,
        job: &Job,
        from: Stage,
        to: Stage,
    ) {
        if let Some(us) = job.stamps.between(from, to) {
            histogram.observe(us as f64 / 1e6);
        }
    }
}

enum Join {
    Joined(Claim),
    Wait(Reasons),
    Again,
}
