//! Nodes that come again and say what they have: what is left with them, what they lost, and what
//! they had from before the server knew.
//!
//! A node that can say what it has keeps its jobs for a grace when its connection is lost. What it
//! then names and still counts stays with it; what it does not name was lost on the way. An
//! attempt is never in two places for that: whoever moves the state word decides, and an
//! assignment that is on its way over the new connection is known by that connection's number.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use super::settle::Cause;
use super::state::{Event, Phase, State, transition};
use super::table::{Job, Placement};
use super::{Deadline, Effect, Effects, Scheduler};
use crate::node::{Attached, Node, NodeIndex, Reasons};
use crate::protocol::hello::{AckStatus, Action, Attempt, Hello, Instruction};
use crate::telemetry::{Now, Stage};

/// What a node that said hello is answered, and what is to be done once it can be reached.
#[derive(Debug)]
pub struct Welcome {
    /// What becomes of each attempt it named.
    pub jobs: Vec<Instruction>,
    /// Whether it is the same run of its program as before.
    same_run: bool,
    /// Attempts it has answered whose outcome was not on disk yet.
    unkept: Vec<(Arc<Job>, u32)>,
}

impl Scheduler {
    /// The attempt before the first one of this boot.
    pub(super) fn floor(&self) -> u32 {
        State::queued(self.boot_epoch).attempt
    }

    /// The connection of a node that can say what it has was lost. Its jobs wait for it for a
    /// grace, but for those that would not outlive it.
    pub fn node_away(&self, attached: &Attached, now: Now, effects: &mut Effects) {
        let node = attached.node.index;
        let until = now.after_ms(self.nodes.config().with(|node| node.resume_grace_ms));
        if until <= now.us {
            return self.node_lost(node, now, effects);
        }
        let urgent = self.unsettled_of(node, |job, state| {
            let deadline = match state.phase {
                Phase::Assigned => &job.pending_until,
                _ => &job.lease_until,
            };
            deadline.load(SeqCst) <= until && !self.may_be_silent(job)
        });
        self.fail_over(urgent, Cause::NodeLost, now, effects);
        effects.push(Effect::Arm(until, Deadline::Away(node, attached.generation)));
    }

    /// What went out over a connection that is no more, and is not known to have reached a newer
    /// one, goes to other nodes.
    pub(super) fn carried_away(
        &self,
        node: NodeIndex,
        through: u64,
        now: Now,
        effects: &mut Effects,
    ) {
        let lost = self.unsettled_of(node, |job, state| job.went_out_by(state.attempt, through));
        self.fail_over(lost, Cause::NodeLost, now, effects);
    }

    /// A node says what it has, over a connection on which it cannot be reached yet. To be followed
    /// by `welcomed` once it can.
    pub fn hello(
        &self,
        attached: &Attached,
        hello: &Hello,
        now: Now,
        effects: &mut Effects,
    ) -> Welcome {
        let same_run = attached.node.runs_as(&hello.boot_id);
        let (mut jobs, mut unkept) = (Vec::new(), Vec::new());
        let works_on = hello.inflight.iter().map(|attempt| (attempt, Action::Keep));
        let has_answered = hello.unacked.iter().map(|attempt| (attempt, Action::Send));
        for (attempt, wanted) in works_on.chain(has_answered) {
            let action = match self.claimed(attached, attempt, now, effects) {
                Claimed::Counts => wanted,
                Claimed::Taken(job) if wanted == Action::Send => {
                    unkept.push((job, attempt.attempt_id));
                    Action::Keep
                }
                Claimed::Taken(_) | Claimed::Void => Action::Cancel,
            };
            self.metrics.hello_jobs.with_label_values(&[action.as_str()]).inc();
            jobs.push(Instruction { attempt: *attempt, action });
        }
        self.metrics.hello_jobs.with_label_values(&["ignored"]).inc_by(hello.ignored as u64);
        Welcome { jobs, same_run, unkept }
    }

    /// The node that said hello can be reached, and its older connections take nothing any more:
    /// what went out over those and was not named is lost.
    pub fn welcomed(&self, attached: &Attached, welcome: Welcome, now: Now, effects: &mut Effects) {
        let (node, before) = (attached.node.index, attached.generation - 1);
        let lost = self.unsettled_of(node, |job, state| job.went_out_by(state.attempt, before));
        self.metrics.hello_jobs.with_label_values(&["requeued"]).inc_by(lost.len() as u64);
        let cause = if welcome.same_run { Cause::NotArrived } else { Cause::Restarted };
        let lost = lost.into_iter().map(|(job, state)| (job, state, cause)).collect();
        self.move_on(lost, now, effects);
        for (job, attempt) in welcome.unkept {
            // Kept meanwhile, it was told over a connection that is no more.
            if job.kept.load(SeqCst) {
                let (job, attempt, status) = (job.id, Some(attempt), AckStatus::Duplicate);
                effects.push(Effect::AckResult { job, node, attempt, status });
            }
        }
    }

    fn claimed(
        &self,
        attached: &Attached,
        claim: &Attempt,
        now: Now,
        effects: &mut Effects,
    ) -> Claimed {
        let Some(job) = self.job(claim.job_id) else { return Claimed::Void };
        let (node, attempt) = (attached.node.index, claim.attempt_id);
        let state = job.state();
        if state.in_flight() && state.node == node && state.attempt == attempt {
            job.carry(attempt, attached.generation);
            if state.phase == Phase::Assigned {
                // That the whole of it was flushed is known from the node only.
                self.written(&job, attempt, now, effects);
            }
            self.prolong(&job, now);
            return Claimed::Counts;
        }
        if state.phase == Phase::Queued && self.adopt(&job, attached, attempt, now, effects) {
            return Claimed::Counts;
        }
        let taken = job.is_answered_by(node, Some(attempt)) && !job.kept.load(SeqCst);
        if taken { Claimed::Taken(job) } else { Claimed::Void }
    }

    /// Leaves a waiting job with the node that already has it; whether it may be left there.
    fn adopt(
        &self,
        job: &Arc<Job>,
        attached: &Attached,
        attempt: u32,
        now: Now,
        effects: &mut Effects,
    ) -> bool {
        let node = &attached.node;
        let event = Event::Adopt { node: node.index, attempt, floor: self.floor() };
        let refused = matches!(job.last_cause(), Cause::Refused | Cause::ModelMissing);
        if refused || transition(job.state(), event).is_none() || !join_there(job, node) {
            return false;
        }
        let Some((before, _)) = job.word.on(event) else {
            self.leave_turn(job, node.index);
            return false;
        };
        job.held.store(0, SeqCst);
        job.carry_back(attempt, attached.generation);
        if before.attempt == attempt {
            // It was given up for lost, and did not die of it.
            let undone = u32::from(job.last_cause().is_death());
            job.deaths.store(job.deaths.load(SeqCst).saturating_sub(undone), SeqCst);
        } else {
            job.tries.fetch_add(1, SeqCst);
            job.stamps.mark(Stage::Placed, now.us);
            job.stamps.mark(Stage::Written, now.us);
        }
        job.speaker.sticky.store(node.index.0, SeqCst);
        let chosen = Some((node.id.clone(), Arc::from("adopted"), attempt));
        job.remember(Placement { at_us: now.us, chosen, reasons: Reasons::default() });
        self.begin_lease(job, attempt, now, effects);
        self.metrics.jobs_adopted.inc();
        // It may have waited in the queue, and others of its turn go where it is.
        effects.push(Effect::WakeQueue);
        true
    }

    /// The nodes of the earlier life have come, or were waited for long enough: what none of them
    /// has is given out, in the order it was accepted.
    pub fn release_restored(&self, now: Now, effects: &mut Effects) {
        let mut held = Vec::new();
        self.for_each(|job| {
            let place = job.held.swap(0, SeqCst);
            if place != 0 {
                held.push((place, Arc::clone(job)));
            }
        });
        held.sort_unstable_by_key(|(place, _)| *place);
        for (_, job) in held {
            if job.state().phase == Phase::Queued {
                self.enqueue(&job, now, effects);
            }
        }
    }
}

/// What an attempt that a node named is worth.
enum Claimed {
    /// It is the current one.
    Counts,
    /// It has settled the job, and that is not on disk yet.
    Taken(Arc<Job>),
    /// Nobody waits for it.
    Void,
}

/// A place for the job in its turn on that node, in a slot of it, free or not: the node has the job
/// already. False if the turn is on another node.
fn join_there(job: &Job, node: &Node) -> bool {
    loop {
        let bound = job.turn.bound();
        let (index, in_flight) = bound;
        if in_flight > 0 && index != node.index {
            return false;
        }
        if in_flight == 0 {
            node.claim_held();
        }
        if job.turn.rebind(bound, (node.index, in_flight + 1)) {
            return true;
        }
        if in_flight == 0 {
            node.release();
        }
    }
}
