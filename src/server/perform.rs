//! Makes the scheduler's decisions happen: rows to the store, assignments to nodes' outboxes,
//! deadlines to the wheel, news to sessions. Nothing here waits.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use bytes::Bytes;
use tracing::{debug, warn};

use super::rooms::{present, tell_others};
use super::shared::{Mail, SessionHandle, Shared};
use crate::job::{Effect, Effects, Ended, Job, Phase, Progress};
use crate::node::NodeIndex;
use crate::protocol::hello::AckStatus;
use crate::protocol::job::{Audio, Heard, Outcome};
use crate::protocol::node::{Command, JobResult, encode_job_assign};
use crate::protocol::session::NetworkTimings;
use crate::protocol::trace::TraceParent;
use crate::protocol::{ErrorCode, JobId};
use crate::session::{Answer, ForOthers, News, RoomInput, unheard};
use crate::store::{Committed, Done, Refused, Why, Write};
use crate::store::{IdemRow, JobRow, TerminalRow};
use crate::telemetry::{Now, Stage};
use crate::transport::{Frame, Refusal};

/// Performs all effects, and those that performing them causes.
pub(super) fn perform(shared: &Arc<Shared>, effects: &mut Effects, now: Now) {
    while !effects.is_empty() {
        for effect in std::mem::take(effects) {
            perform_one(shared, effect, effects, now);
        }
    }
}

fn perform_one(shared: &Arc<Shared>, effect: Effect, more: &mut Effects, now: Now) {
    match effect {
        Effect::Accept(job, audio) => accept(shared, &job, &audio, now),
        Effect::Assign { job, node, attempt } => assign(shared, job, node, attempt, more, now),
        Effect::CancelOn { job, node, reason } => {
            let trace_id = Some(job.spec.trace_id.to_string());
            let command = Command::JobCancel { job_id: job.id, trace_id, reason: Some(reason) };
            tell_node(shared, node, &command);
        }
        Effect::AckResult { job, node, attempt, status } => {
            acknowledge(shared, node, job, attempt, status);
        }
        Effect::Arm(at, deadline) => shared.control.arms.push((at, deadline)),
        Effect::Progress(job, progress) => tell_progress(shared, &job, progress),
        Effect::Settled { job, result } => settled(shared, &job, result, now),
        Effect::WakeQueue => shared.control.wake.notify_one(),
        Effect::NodeChanged(node) => shared.control.node_changed(node),
    }
}

fn accept(shared: &Shared, job: &Arc<Job>, audio: &Audio, now: Now) {
    debug!(
        job = %job.id, session = %job.spec.session, trace_id = %job.spec.trace_id,
        utterance = job.spec.utterance_index, cut = job.spec.cut.as_str(),
        audio_ms = job.spec.audio_ms, "job accepted"
    );
    let Some(store) = &shared.store else { return };
    // A job whose end the store knows needs no row of its life; the store finds that out.
    let row = JobRow {
        id: job.id,
        spec: job.spec.clone(),
        accepted_unix_ms: now.unix_ms,
        attempts: 0,
        audio_crc: 0,
        audio_bytes: 0,
        chunks: job.chunks,
    };
    let expires_unix_ms = now.unix_ms + shared.settings.with(|v| v.config.job.idempotency_ms);
    let (key, digest) = job.key();
    let idempotency = Some(IdemRow { key, job: job.id, digest, expires_unix_ms });
    let audio = audio.clone();
    let write = Write::AcceptJob { row: Box::new(row), audio, idempotency };
    let session = shared.sessions.pin().get(&job.spec.session).map(Arc::clone);
    let wanted = |session: &Arc<SessionHandle>| session.wants_kept() && job.spec.is_primary();
    let done = session.filter(wanted).map(|session| -> Done {
        let news = News::Kept(job.spec.utterance_index, job.id);
        Box::new(move |_| session.deliver(Mail::News(news)))
    });
    // Waking the store's thread costs more than all the rest of this, and the node's task has yet
    // to write the assignment: that wakes it then, or the control task does.
    let left = store.leave(write, done);
    if job.state().phase != Phase::Assigned {
        store.wake();
    }
    if left.is_err() {
        // Admission looked before and left room in the lane for those who looked with it; but the
        // disk may have filled up since.
        warn!(job = %job.id, "the store is behind: this job would not survive a crash");
        shared.metrics.jobs_refused.with_label_values(&["store_race"]).inc();
    }
}

fn assign(
    shared: &Arc<Shared>,
    job: Arc<Job>,
    node: NodeIndex,
    attempt: u32,
    more: &mut Effects,
    now: Now,
) {
    let (Some(audio), Some(link)) = (job.audio(), shared.links.pin().get(&node).map(Arc::clone))
    else {
        return shared.scheduler.not_sent(&job, attempt, true, now, more);
    };
    // Taken back meanwhile, it is not to overtake the attempt that follows.
    if !job.is_at(attempt) {
        return;
    }
    job.carry(attempt, link.generation);
    debug!(job = %job.id, session = %job.spec.session, trace_id = %job.spec.trace_id, attempt,
        node = node.0, "job placed");
    let traceparent = link.traces.load(SeqCst).then(|| trace_of(shared, &job)).flatten();
    let text = encode_job_assign(job.id, attempt, &job.spec, &audio, traceparent);
    let frame = Frame { text, tag: Some((Arc::clone(&job), attempt)) };
    if let Err(refused) = link.outbox.push(frame) {
        // Closed because a newer connection took its place, it is no sign that the node is gone.
        let replaced = shared.links.pin().get(&node).is_some_and(|l| !Arc::ptr_eq(l, &link));
        let gone = refused.why == Refusal::Closed && !replaced;
        shared.scheduler.not_sent(&job, attempt, gone, now, more);
    }
}

/// Where in a trace the node's part of a job stands: under the job's own span if spans are made
/// here, else straight under the client's.
fn trace_of(shared: &Shared, job: &Job) -> Option<TraceParent> {
    match &shared.traces {
        Some(traces) => Some(traces.context(job)),
        None => job.spec.traced.0,
    }
}

/// Sends a node a short message, if it is there; it is told nothing it depends on.
pub(super) fn tell_node(shared: &Shared, node: NodeIndex, command: &Command) {
    let link = shared.links.pin().get(&node).map(Arc::clone);
    let frame = Frame { text: command.encode(), tag: None };
    if link.is_none_or(|link| link.outbox.push(frame).is_err()) {
        debug!(node = node.0, "a message to a node was dropped");
    }
}

/// Tells the node what became of its result, if it wants to know. What does not get through is
/// asked again by the node.
fn acknowledge(
    shared: &Shared,
    node: NodeIndex,
    job_id: JobId,
    attempt_id: Option<u32>,
    status: AckStatus,
) {
    let link = shared.links.pin().get(&node).map(Arc::clone);
    if link.is_some_and(|link| link.acks.load(SeqCst)) {
        shared.metrics.result_acks.with_label_values(&[status.as_str()]).inc();
        tell_node(shared, node, &Command::ResultAck { job_id, attempt_id, status });
    }
}

fn tell_progress(shared: &Shared, job: &Arc<Job>, progress: Progress) {
    let index = job.spec.utterance_index;
    if let Progress::Dispatched = progress {
        debug!(job = %job.id, session = %job.spec.session, trace_id = %job.spec.trace_id,
            attempt = job.state().attempt, "job dispatched");
    }
    if !job.spec.is_primary() {
        return;
    }
    let news = match progress {
        Progress::Dispatched => News::Dispatched(index, job.id),
        Progress::Accepted => News::Accepted(index, job.id),
        Progress::Partial { text, is_final } => {
            News::Partial { index, job: job.id, text, is_final }
        }
    };
    let session = shared.sessions.pin().get(&job.spec.session).map(Arc::clone);
    if session.is_some_and(|session| !session.offer(Mail::News(news))) {
        shared.metrics.progress_dropped.with_label_values(&["mailbox_full"]).inc();
    }
}

fn settled(shared: &Arc<Shared>, job: &Arc<Job>, result: Option<Box<JobResult>>, now: Now) {
    let Some(ended) = job.ended() else { return };
    debug!(
        job = %job.id, session = %job.spec.session, trace_id = %job.spec.trace_id,
        utterance = job.spec.utterance_index, outcome = ended.outcome.as_str(),
        code = ended.code_text(), attempts = ended.attempts,
        node = ended.node.as_ref().map(|n| &*n.0), "job settled"
    );
    if let Some(traces) = &shared.traces {
        traces.ended(job, &shared.metrics);
    }
    let session = shared.sessions.pin().get(&job.spec.session).map(Arc::clone);
    let network = network_timings(job, result.as_deref(), now);
    let answer = answer(ended, result);
    let Some(session) = session else { return keep_unheard(shared, job, &answer) };
    let elapsed_ms = job.stamps.between(Stage::Queued, Stage::Settled).unwrap_or(0) / 1_000;
    let (index, id) = (job.spec.utterance_index, job.id);
    let others = ForOthers::of(&job.spec);
    let news = News::Settled { index, job: id, answer, elapsed_ms, network, others };
    session.deliver(Mail::Settled(Arc::clone(job), news));
    if session.is_over() {
        bury(shared, &session);
    }
}

/// Nobody is there to hear how the job ended; it is kept all the same. A result becomes a dead
/// letter in time; when the server goes down its clients may come back to it, for all that it owes.
fn keep_unheard(shared: &Arc<Shared>, job: &Arc<Job>, answer: &Answer) {
    let (comes_back, unix_ms) = (*shared.closing.borrow(), shared.now().unix_ms);
    let (place, trace) = ((job.spec.session, job.spec.utterance_index), &job.spec.trace_id);
    let mut words = Words::default();
    if job.spec.is_primary() {
        words.outbox = unheard(answer, job.id, place, trace, comes_back, unix_ms);
    }
    if let Some(others) = ForOthers::of(&job.spec) {
        let (heard, said) = others.told(answer, job.id, place, trace, unix_ms);
        words.heard = present(shared, heard);
        for said in said {
            tell_rooms(shared, RoomInput::Said(Box::new(said)));
        }
    }
    let (at, id, heard) = (Arc::clone(shared), job.id, words.heard.clone());
    let done = when_kept(shared, job, move |committed| {
        tell_others(&at, id, &heard, Some(&committed.heard_seqs));
    });
    if shared.store.is_none() {
        tell_others(shared, job.id, &words.heard, None);
    }
    if record(shared, job, words, Some(done)).is_err() {
        warn!(job = %job.id, "the store is behind: an outcome nobody waits for was not kept");
    }
}

/// Takes the mail of a session that is over.
pub(super) fn bury(shared: &Arc<Shared>, session: &SessionHandle) {
    while let Some(mail) = session.take() {
        if let Mail::Settled(job, News::Settled { answer, .. }) = mail {
            keep_unheard(shared, &job, &answer);
        }
    }
}

fn answer(ended: &Ended, result: Option<Box<JobResult>>) -> Answer {
    let reason = match (ended.outcome, result) {
        (Outcome::Succeeded, Some(result)) => return Answer::Result(result),
        (Outcome::Succeeded | Outcome::Empty, _) => return Answer::Nothing("silence_detected"),
        (Outcome::Merged, _) => return Answer::Nothing("merged"),
        (Outcome::Failed, _) => match ended.code {
            Some(ErrorCode::JobTimeout) => "job_timeout",
            _ => "job_failed",
        },
        (Outcome::Expired, _) => "no_available_node",
        (Outcome::Cancelled, _) => "cancelled",
    };
    Answer::Failed {
        code: ended.code_text().unwrap_or("INTERNAL_ERROR").to_owned(),
        known: ended.code,
        message: ended.message.clone(),
        reason,
    }
}

fn network_timings(job: &Job, result: Option<&JobResult>, now: Now) -> NetworkTimings {
    let positive = |ms: i64| u64::try_from(ms).ok().filter(|ms| *ms > 0);
    let age_ms = now.us.saturating_sub(job.stamps.at(Stage::Queued)) / 1_000;
    let queued_unix_ms = now.unix_ms.saturating_sub(age_ms) as i64;
    let sent = job.spec.client_sent_ms;
    let completed = result.and_then(|r| r.node_completed_at_ms);
    NetworkTimings {
        web_to_scheduler_ms: sent.and_then(|at| positive(queued_unix_ms.saturating_sub(at))),
        scheduler_to_node_ms: job
            .stamps
            .between(Stage::Queued, Stage::Written)
            .and_then(|us| positive((us / 1_000) as i64)),
        node_to_scheduler_ms: completed
            .and_then(|at| positive((now.unix_ms as i64).saturating_sub(at))),
    }
}

/// Whether a job that ended so might end well another time: its speech is kept.
fn speaks_of_nodes(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::PoisonJob | ErrorCode::JobTimeout | ErrorCode::NodeUnavailable)
}

/// What follows when the outcome of the job is on disk: its node may forget it, then `more`.
pub(super) fn when_kept(
    shared: &Arc<Shared>,
    job: &Arc<Job>,
    more: impl FnOnce(Committed) + Send + 'static,
) -> Done {
    let (shared, job) = (Arc::clone(shared), Arc::clone(job));
    Box::new(move |committed| {
        kept(&shared, &job);
        more(committed);
    })
}

fn kept(shared: &Arc<Shared>, job: &Arc<Job>) {
    let mut effects = Effects::new();
    shared.scheduler.kept(job, &mut effects);
    perform(shared, &mut effects, shared.now());
}

/// What is told about the end of a job.
#[derive(Debug, Clone, Default)]
pub(super) struct Words {
    /// To its speaker.
    pub(super) outbox: Option<Bytes>,
    /// To others.
    pub(super) heard: Vec<Heard>,
}

/// Tells the rooms something. If it does not get there, who is gone is looked for, and what was
/// said cannot be asked for later.
pub(super) fn tell_rooms(shared: &Shared, input: RoomInput) {
    if shared.rooms.try_send(input).is_err() {
        shared.rooms_overrun.store(true, SeqCst);
    }
}

/// Hands the outcome of a job to the store, with the frames owed for it.
pub(super) fn record(
    shared: &Arc<Shared>,
    job: &Arc<Job>,
    words: Words,
    done: Option<Done>,
) -> Result<(), Option<Done>> {
    let Some(ended) = job.ended() else { return Ok(()) };
    let Some(store) = &shared.store else {
        kept(shared, job);
        return Ok(());
    };
    let terminal = TerminalRow {
        id: job.id,
        session: job.spec.session,
        utterance_index: job.spec.utterance_index,
        outcome: ended.outcome,
        code: ended.code_text().unwrap_or_default().to_owned(),
        message: ended.message.clone(),
        attempts: ended.attempts,
        node: ended.node.clone(),
        settled_unix_ms: ended.unix_ms,
        explanation: serde_json::to_vec(&job.explain()).unwrap_or_default(),
    };
    let dead = ended.code.is_some_and(speaks_of_nodes);
    let (terminal, Words { outbox, heard }) = (Box::new(terminal), words);
    let write = Write::SettleJob { terminal, outbox, heard, dead, refused: None };
    match store.submit(write, done) {
        Ok(()) => Ok(()),
        Err(Refused { done, why: Why::Full, .. }) => Err(done),
        // The store is shutting down: what it has not taken is done again after the start.
        Err(Refused { why: Why::Stopped, .. }) => Ok(()),
    }
}
