//! From a node to an outcome: results, lost nodes, leases, cancellation, and who tries next.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use super::state::{Event, Phase, State};
use super::table::{Ended, Job};
use super::{Deadline, Effect, Effects, Progress, Scheduler, Verdict};
use crate::node::NodeIndex;
use crate::protocol::job::Outcome;
use crate::protocol::limits::{TEXT_BYTES_MAX, clip};
use crate::protocol::node::{AsrPartial, JobMark, JobResult, NodeFault, ServiceType};
use crate::protocol::{ErrorCode, Pair};
use crate::telemetry::{Now, Stage};

/// Time a job has at least to find another node when its assignment could not be sent.
const RESEND_PATIENCE_MS: u64 = 1_000;

/// What a result did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answered {
    /// It ended its job.
    Settled,
    /// The node said that it cannot; the job goes on elsewhere, or ended for want of another.
    Refused,
    /// It came too late, twice, or from another node than the one that has the job.
    Stale,
    /// No such job is known.
    Unknown,
}

/// Why an attempt came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Cause {
    None,
    NotSent,
    NodeLost,
    /// Its node is there again as another run of its program.
    Restarted,
    /// Its node is there again and never had it.
    NotArrived,
    LeaseOver,
    ModelMissing,
    Refused,
    /// Another job of its turn was refused there, and a turn is on one node.
    TurnMoved,
}

impl Cause {
    fn of_number(number: u32) -> Self {
        let all = [
            Cause::None,
            Cause::NotSent,
            Cause::NodeLost,
            Cause::Restarted,
            Cause::NotArrived,
            Cause::LeaseOver,
            Cause::ModelMissing,
            Cause::Refused,
            Cause::TurnMoved,
        ];
        all[number as usize]
    }

    fn as_str(self) -> &'static str {
        match self {
            Cause::None => "none",
            Cause::NotSent => "not_sent",
            Cause::NodeLost => "node_lost",
            Cause::Restarted => "node_restarted",
            Cause::NotArrived => "not_arrived",
            Cause::LeaseOver => "lease_over",
            Cause::ModelMissing => "model_missing",
            Cause::Refused => "refused",
            Cause::TurnMoved => "turn_moved",
        }
    }

    /// The code of a job for which this was the last word.
    fn code(self) -> ErrorCode {
        match self {
            Cause::None => ErrorCode::NoAvailableNode,
            Cause::NotSent
            | Cause::NodeLost
            | Cause::Restarted
            | Cause::NotArrived
            | Cause::TurnMoved => ErrorCode::NodeUnavailable,
            Cause::LeaseOver => ErrorCode::JobTimeout,
            Cause::ModelMissing => ErrorCode::ModelNotAvailable,
            Cause::Refused => ErrorCode::ProcessingError,
        }
    }

    /// Whether the node as it is now may have seen the job.
    fn may_have_seen_it(self) -> bool {
        !matches!(self, Cause::Restarted | Cause::NotArrived)
    }

    /// What it is to the other jobs of the turn, which are moved too.
    fn for_the_turn(self) -> Self {
        match self {
            Cause::ModelMissing | Cause::Refused => Cause::TurnMoved,
            other => other,
        }
    }

    /// Why the node, which still has the job, is told to let it go; none where it is gone or has
    /// let go by itself.
    fn cancelled_for(self) -> Option<&'static str> {
        match self {
            Cause::LeaseOver => Some("job_timeout"),
            Cause::TurnMoved => Some("cancelled"),
            _ => None,
        }
    }

    /// Whether the job may have been what ended the node.
    pub(super) fn is_death(self) -> bool {
        matches!(self, Cause::NodeLost | Cause::Restarted)
    }
}

impl Scheduler {
    /// The assignment was flushed to the node's socket: the lease begins.
    pub fn written(&self, job: &Arc<Job>, attempt: u32, now: Now, effects: &mut Effects) {
        let Some((_, after)) = job.word.on(Event::Written(attempt)) else {
            return self.stale("written");
        };
        job.stamps.mark(Stage::Written, now.us);
        if after.attempts() == 1 {
            self.observe(&self.metrics.dispatch_seconds, job, Stage::Cut, Stage::Written);
        }
        job.tries.fetch_add(1, SeqCst);
        self.begin_lease(job, attempt, now, effects);
        effects.push(Effect::Progress(Arc::clone(job), Progress::Dispatched));
    }

    pub(super) fn begin_lease(
        &self,
        job: &Arc<Job>,
        attempt: u32,
        now: Now,
        effects: &mut Effects,
    ) {
        let until = self.lease_from(job, now);
        job.lease_until.store(until, SeqCst);
        effects.push(Effect::Arm(until, Deadline::Lease(job.id, attempt)));
    }

    /// A sign of life prolongs the lease.
    pub(super) fn prolong(&self, job: &Job, now: Now) {
        job.lease_until.fetch_max(self.lease_from(job, now), SeqCst);
    }

    /// When a lease that begins now is over. However often it is prolonged, it is not for ever.
    fn lease_from(&self, job: &Job, now: Now) -> u64 {
        let lease_max_ms = self.config.with(|job| job.lease_max_ms);
        let utmost = job.stamps.at(Stage::Written) + 2_000 * lease_max_ms;
        now.after_ms(job.lease_ms).min(utmost)
    }

    /// The assignment could not be put into the node's outbox: the node never saw it. `gone` if its
    /// connection has ended, else it is behind.
    pub fn not_sent(
        &self,
        job: &Arc<Job>,
        attempt: u32,
        gone: bool,
        now: Now,
        effects: &mut Effects,
    ) {
        let Some((before, _)) = job.word.on(Event::Requeue(attempt)) else {
            return self.stale("not_sent");
        };
        self.leave_turn(job, before.node);
        self.metrics.attempts.with_label_values(&[Cause::NotSent.as_str()]).inc();
        if gone {
            job.exclude(before.node);
        }
        if before.attempts() >= 0xFF {
            let verdict = Verdict::of(ErrorCode::NodeUnavailable, "no node took the assignment");
            self.end(job, Event::GiveUp(Outcome::Failed), verdict, None, now, effects);
            return;
        }
        // Its patience may have run out unnoticed while it was assigned: it has a little left.
        let until = job.pending_until.load(SeqCst).max(now.after_ms(RESEND_PATIENCE_MS));
        job.pending_until.store(until, SeqCst);
        effects.push(Effect::Arm(until, Deadline::Pending(job.id)));
        // By way of the queue, never straight back: the outbox that was full still is.
        self.park(job);
    }

    /// The node says that it has the job, or works on it.
    pub fn started(&self, node: NodeIndex, mark: &JobMark, now: Now, effects: &mut Effects) {
        let Some((job, state)) = self.in_flight_on(mark.job_id, node) else {
            return self.stale("started");
        };
        self.heard_of(&job, state, now, effects);
        if job.word.on(Event::Started(mark.attempt_id.unwrap_or(state.attempt))).is_some() {
            job.stamps.mark(Stage::Acked, now.us);
            effects.push(Effect::Progress(job, Progress::Accepted));
        }
    }

    /// A transcript on the way: a sign of life, and news for the speaker.
    pub fn partial(&self, node: NodeIndex, partial: AsrPartial, now: Now, effects: &mut Effects) {
        let Some((job, state)) = self.in_flight_on(partial.job_id, node) else {
            return self.stale("partial");
        };
        self.heard_of(&job, state, now, effects);
        self.prolong(&job, now);
        let AsrPartial { text, is_final, .. } = partial;
        effects.push(Effect::Progress(job, Progress::Partial { text, is_final }));
    }

    /// A node that speaks of an attempt has it: its assignment was written, though the socket may
    /// not have said so yet. Without a lease a node that then falls silent would keep the job.
    fn heard_of(&self, job: &Arc<Job>, state: State, now: Now, effects: &mut Effects) {
        if state.phase == Phase::Assigned {
            self.written(job, state.attempt, now, effects);
        }
    }

    fn in_flight_on(
        &self,
        id: crate::protocol::JobId,
        node: NodeIndex,
    ) -> Option<(Arc<Job>, State)> {
        let job = self.job(id)?;
        let state = job.state();
        (state.in_flight() && state.node == node).then_some((job, state))
    }

    /// A node's answer. Of several for one job the first from its current attempt counts.
    pub fn answer(
        &self,
        node: NodeIndex,
        result: Box<JobResult>,
        now: Now,
        effects: &mut Effects,
    ) -> Answered {
        let (job, attempt) = (result.job_id, result.attempt_id);
        let answered = self.take_answer(node, result, now, effects);
        self.acknowledge(node, job, attempt, answered, effects);
        answered
    }

    fn take_answer(
        &self,
        node: NodeIndex,
        result: Box<JobResult>,
        now: Now,
        effects: &mut Effects,
    ) -> Answered {
        let Some(job) = self.job(result.job_id) else {
            self.stale("result_unknown");
            return Answered::Unknown;
        };
        let state = job.state();
        // The empty close of an earlier slice carries the attempt of the job that took its audio.
        let merged = result.success && result.reason().as_deref() == Some("NO_TEXT_ASSIGNED");
        let current = merged || result.attempt_id.is_none_or(|a| a == state.attempt);
        if !state.in_flight() || state.node != node || !current {
            self.stale(if state.outcome().is_some() { "result_late" } else { "result_foreign" });
            return Answered::Stale;
        }
        self.heard_of(&job, state, now, effects);
        if !result.success {
            return self.answered_no(&job, state, &result, now, effects);
        }
        let outcome = match () {
            () if merged => Outcome::Merged,
            () if result.is_empty() => Outcome::Empty,
            () => Outcome::Succeeded,
        };
        let event = Event::Answer(state.attempt, outcome);
        if !self.end(&job, event, Verdict::plain(), Some(result), now, effects) {
            self.stale("result_late");
            return Answered::Stale;
        }
        self.node_did(node, false, now, effects);
        Answered::Settled
    }

    fn answered_no(
        &self,
        job: &Arc<Job>,
        state: State,
        result: &JobResult,
        now: Now,
        effects: &mut Effects,
    ) -> Answered {
        let fault = result.error.clone().unwrap_or_default();
        if fault.code == ErrorCode::ModelNotAvailable.as_str() {
            self.mark_missing(state.node, &fault, now);
            self.fail_over(vec![(Arc::clone(job), state)], Cause::ModelMissing, now, effects);
            return Answered::Refused;
        }
        if cannot_take_it(&fault) {
            self.fail_over(vec![(Arc::clone(job), state)], Cause::Refused, now, effects);
            return Answered::Refused;
        }
        let code = ErrorCode::parse(&fault.code);
        let foreign_code =
            (code.is_none() && !fault.code.is_empty()).then(|| clip(&fault.code, 64).to_owned());
        let message = clip(&fault.message, TEXT_BYTES_MAX).to_owned();
        let fallback = foreign_code.is_none().then_some(ErrorCode::ProcessingError);
        let verdict = Verdict { code: code.or(fallback), foreign_code, message };
        let event = Event::Answer(state.attempt, Outcome::Failed);
        if !self.end(job, event, verdict, None, now, effects) {
            self.stale("result_late");
            return Answered::Stale;
        }
        self.node_did(state.node, true, now, effects);
        Answered::Settled
    }

    fn mark_missing(&self, node: NodeIndex, fault: &NodeFault, now: Now) {
        self.metrics.model_na_received.inc();
        let Some(node) = self.nodes.by_index(node) else { return };
        let details = fault.details.as_ref();
        let named = details.and_then(|d| d.service_id.as_deref().or(d.model_id.as_deref()));
        let service = named.unwrap_or_default();
        let capability = node.capability();
        let by_list = capability.services.iter().find(|s| s.service_id == service);
        let kind = by_list.and_then(|s| ServiceType::parse(&s.kind));
        // A service the node never listed is recognised by the type in its name, if any.
        let kind =
            kind.or_else(|| ServiceType::ALL.into_iter().find(|t| service.contains(t.as_str())));
        if let Some(kind) = kind {
            let out_ms = self.nodes.config().with(|node| node.model_unavailable_ms);
            node.mark_missing(kind, now, out_ms);
            self.metrics.model_na_marked.inc();
        }
    }

    /// Feeds the node's health; a quarantine changes the pools.
    fn node_did(&self, index: NodeIndex, failed: bool, now: Now, effects: &mut Effects) {
        let Some(node) = self.nodes.by_index(index) else { return };
        if self.nodes.config().with(|config| node.finished(failed, now, config)) {
            self.metrics.quarantines.with_label_values(&["failures"]).inc();
            effects.push(Effect::NodeChanged(index));
        }
    }

    /// The node is gone, with all it was given.
    pub fn node_lost(&self, node: NodeIndex, now: Now, effects: &mut Effects) {
        let had = self.unsettled_of(node, |_, _| true);
        self.fail_over(had, Cause::NodeLost, now, effects);
    }

    /// The jobs in flight on the node of which `which` holds, in the order of their sessions.
    pub(super) fn unsettled_of(
        &self,
        node: NodeIndex,
        mut which: impl FnMut(&Job, State) -> bool,
    ) -> Vec<(Arc<Job>, State)> {
        let mut had = Vec::new();
        self.for_each(|job| {
            let state = job.state();
            if state.in_flight() && state.node == node && which(job, state) {
                had.push((Arc::clone(job), state));
            }
        });
        had.sort_by_key(|(job, _)| (job.spec.session, job.spec.utterance_index));
        had
    }

    /// Moves attempts, and with each its whole turn, to other nodes, in order; or ends what has had
    /// its tries.
    pub(super) fn fail_over(
        &self,
        jobs: Vec<(Arc<Job>, State)>,
        cause: Cause,
        now: Now,
        effects: &mut Effects,
    ) {
        let mut moving: Vec<(Arc<Job>, State, Cause)> = Vec::new();
        for (job, state) in &jobs {
            for (member, at) in self.turn_in_flight(job, state.node) {
                if !moving.iter().any(|(known, ..)| known.id == member.id) {
                    let own = jobs.iter().any(|(job, _)| job.id == member.id);
                    moving.push((member, at, if own { cause } else { cause.for_the_turn() }));
                }
            }
        }
        self.move_on(moving, now, effects);
    }

    /// Moves these attempts and no others, each for its cause.
    pub(super) fn move_on(
        &self,
        mut moving: Vec<(Arc<Job>, State, Cause)>,
        now: Now,
        effects: &mut Effects,
    ) {
        // All leave before any is placed, so that the turn is free to bind elsewhere.
        moving.retain(|(job, state, cause)| {
            let moved = job.word.on(Event::Requeue(state.attempt)).is_some();
            if moved {
                self.leave_turn(job, state.node);
                if cause.may_have_seen_it() {
                    job.exclude(state.node);
                }
                job.last_cause.store(*cause as u32, SeqCst);
                job.deaths.fetch_add(u32::from(cause.is_death()), SeqCst);
                self.metrics.attempts.with_label_values(&[cause.as_str()]).inc();
                if let Some(reason) = cause.cancelled_for() {
                    let (job, node) = (Arc::clone(job), state.node);
                    effects.push(Effect::CancelOn { job, node, reason });
                }
            }
            moved
        });
        for (job, _, cause) in &moving {
            self.try_again(job, *cause, now, effects);
        }
        effects.push(Effect::WakeQueue);
    }

    /// The unsettled jobs of the job's turn that are on `node`, in order.
    fn turn_in_flight(&self, job: &Job, node: NodeIndex) -> Vec<(Arc<Job>, State)> {
        let ids = job.turn.jobs.load();
        ids.iter().filter_map(|id| self.in_flight_on(*id, node)).collect()
    }

    fn try_again(&self, job: &Arc<Job>, cause: Cause, now: Now, effects: &mut Effects) {
        let poison = job.deaths.load(SeqCst) >= self.config.with(|job| job.node_deaths_max);
        let spent = job.tries.load(SeqCst) >= job.attempts_max;
        // After a timeout or a refusal more waiting helps nobody unless there is someone else;
        // after a loss another node may be on its way, or the same one.
        let lost = cause.is_death() || cause == Cause::NotArrived;
        let hopeless = !lost && !self.has_alternative(job, now);
        if poison || spent || hopeless {
            let code = if poison { ErrorCode::PoisonJob } else { cause.code() };
            let message = match () {
                () if poison => "the nodes that had the job were lost",
                () if spent => "all attempts came to nothing",
                () => "no other node can take the job",
            };
            let verdict = Verdict::of(code, message);
            self.end(job, Event::GiveUp(Outcome::Failed), verdict, None, now, effects);
            return;
        }
        self.enqueue(job, now, effects);
    }

    pub(super) fn waited_too_long(&self, job: &Arc<Job>, now: Now, effects: &mut Effects) {
        if job.pending_until.load(SeqCst) > now.us {
            return;
        }
        let cause = job.last_cause();
        let verdict = Verdict::of(cause.code(), "no node was free in time");
        self.end(job, Event::Expire, verdict, None, now, effects);
    }

    pub(super) fn lease_over(&self, job: &Arc<Job>, attempt: u32, now: Now, effects: &mut Effects) {
        let state = job.state();
        if !state.in_flight() || state.attempt != attempt {
            return;
        }
        let until = job.lease_until.load(SeqCst);
        let silent_slice = self.may_be_silent(job);
        if until > now.us || silent_slice {
            let at = if silent_slice { now.after_ms(job.lease_ms) } else { until };
            effects.push(Effect::Arm(at, Deadline::Lease(job.id, attempt)));
            return;
        }
        self.fail_over(vec![(Arc::clone(job), state)], Cause::LeaseOver, now, effects);
        self.node_did(state.node, true, now, effects);
    }

    /// A slice may stay unanswered for as long as its turn is not over.
    pub(super) fn may_be_silent(&self, job: &Job) -> bool {
        !job.spec.cut.closes_turn() && self.turn_is_open(job)
    }

    /// Whether more of the turn is to come, or the job that ends it is not settled yet. A turn
    /// whose end was refused is over without such a job.
    fn turn_is_open(&self, job: &Job) -> bool {
        let ids = job.turn.jobs.load();
        let last = ids.last().and_then(|id| self.job(*id));
        let ending =
            |last: Arc<Job>| last.spec.cut.closes_turn() && last.state().outcome().is_none();
        !job.turn.is_closed() || last.is_some_and(ending)
    }

    /// Ends a live job because nobody wants it any more; whether it was live.
    pub fn cancel(&self, job: &Arc<Job>, why: &str, now: Now, effects: &mut Effects) -> bool {
        let before = job.state();
        let verdict = Verdict::of(ErrorCode::Cancelled, why);
        if !self.end(job, Event::Cancel, verdict, None, now, effects) {
            return false;
        }
        if before.in_flight() {
            let (job, node) = (Arc::clone(job), before.node);
            effects.push(Effect::CancelOn { job, node, reason: "cancelled" });
        }
        true
    }

    /// Ends the job if `event` still applies; whether it did. Everything that ends a job comes
    /// here.
    pub(super) fn end(
        &self,
        job: &Arc<Job>,
        event: Event,
        verdict: Verdict,
        result: Option<Box<JobResult>>,
        now: Now,
        effects: &mut Effects,
    ) -> bool {
        let Some((before, after)) = job.word.on(event) else { return false };
        let Some(outcome) = after.outcome() else { return false };
        job.stamps.mark(Stage::Settled, now.us);
        self.observe(&self.metrics.node_seconds, job, Stage::Written, Stage::Settled);
        if before.in_flight() {
            self.leave_turn(job, before.node);
        }
        let node = self.nodes.by_index(before.node).map(|n| n.id.clone());
        job.set_ended(Ended {
            outcome,
            code: verdict.code,
            foreign_code: verdict.foreign_code.clone(),
            message: verdict.message.clone(),
            node,
            attempts: before.attempts(),
            unix_ms: now.unix_ms,
        });
        self.let_go(job);
        let asked = Pair { src: job.spec.src, tgt: job.spec.tgt };
        let (account, used) = (&job.speaker.account, (outcome, job.spec.audio_ms));
        self.admission.release(account, &job.speaker.open, asked, used);
        self.metrics.jobs_live.dec();
        self.metrics.jobs_settled.with_label_values(&[outcome.as_str()]).inc();
        if let Some(oldest) = self.history.force_push(job.id) {
            self.jobs.pin().remove(&oldest);
        }
        // Its keys outlive the memory of the job: a client may send it again after a long absence.
        let forget_at = now.after_ms(self.config.with(|job| job.idempotency_ms));
        for key in [Some(job.key), job.named.map(|(key, _)| key)].into_iter().flatten() {
            effects.push(Effect::Arm(forget_at, Deadline::Forget(key)));
        }
        effects.push(Effect::Settled { job: Arc::clone(job), result });
        if job.spec.cut.closes_turn() {
            self.turn_ended(job, outcome, &verdict, now, effects);
        }
        if self.waiting() > 0 {
            effects.push(Effect::WakeQueue);
        }
        true
    }

    /// The last job of a turn is settled: slices the node kept to itself follow, after a moment for
    /// answers on their way; if the turn failed, they failed with it.
    fn turn_ended(
        &self,
        last: &Arc<Job>,
        outcome: Outcome,
        verdict: &Verdict,
        now: Now,
        effects: &mut Effects,
    ) {
        let ids = last.turn.jobs.load_full();
        let slices = ids.iter().filter(|id| **id != last.id).filter_map(|id| self.job(*id));
        for slice in slices.filter(|slice| slice.state().outcome().is_none()) {
            match outcome {
                Outcome::Succeeded | Outcome::Empty | Outcome::Merged => {
                    let at = now.after_ms(self.config.with(|job| job.turn_merge_grace_ms));
                    effects.push(Effect::Arm(at, Deadline::Merge(slice.id)));
                }
                Outcome::Failed | Outcome::Expired | Outcome::Cancelled => {
                    let event = Event::GiveUp(outcome);
                    self.end(&slice, event, verdict.clone(), None, now, effects);
                }
            }
        }
    }
}

impl Job {
    /// Why its last attempt came to nothing.
    pub(super) fn last_cause(&self) -> Cause {
        Cause::of_number(self.last_cause.load(SeqCst))
    }
}

/// Whether the failure says something about the node and not about the speech: another may do it.
fn cannot_take_it(fault: &NodeFault) -> bool {
    const CODES: [&str; 4] =
        ["NODE_OVERLOADED", "MODEL_VERIFY_FAILED", "MODEL_CORRUPTED", "WS_DISCONNECTED"];
    const TEXTS: [&str; 2] = ["DUPLICATE_JOB_ID", "DUPLICATE_UTTERANCE_INDEX"];
    CODES.contains(&fault.code.as_str()) || TEXTS.iter().any(|t| fault.message.starts_with(t))
}
