//! The scheduler's decisions made to happen, as `server/perform.rs` does.

use std::sync::Arc;

use bytes::Bytes;

use super::Life;
use super::journal::{Full, Then};
use super::session::Mail;
use crate::job::{Effect, Effects, Ended, Job, Progress};
use crate::node::NodeIndex;
use crate::protocol::ErrorCode;
use crate::protocol::hello::AckStatus;
use crate::protocol::job::{Audio, Outcome};
use crate::protocol::node::{Command, JobResult, encode_job_assign};
use crate::protocol::session::NetworkTimings;
use crate::session::{Answer, News, unheard};
use crate::sim::env::Env;
use crate::sim::net::{ConnId, Msg, Refusal, Tag};
use crate::store::{IdemRow, JobRow, TerminalRow, Write};
use crate::telemetry::{Now, Stage};

impl Life {
    /// Performs all effects, and those that performing them causes.
    pub(super) fn perform(&mut self, effects: &mut Effects, now: Now, env: &mut Env) {
        while !effects.is_empty() {
            for effect in std::mem::take(effects) {
                self.perform_one(effect, effects, now, env);
            }
        }
    }

    fn perform_one(&mut self, effect: Effect, more: &mut Effects, now: Now, env: &mut Env) {
        match effect {
            Effect::Accept(job, audio) => self.accept_job(&job, &audio, now, env),
            Effect::Assign { job, node, attempt } => {
                self.assign(job, node, attempt, more, now, env);
            }
            Effect::CancelOn { job, node, reason } => {
                env.counts.reached("cancel_told");
                let trace_id = Some(job.spec.trace_id.to_string());
                let command = Command::JobCancel { job_id: job.id, trace_id, reason: Some(reason) };
                self.tell_node(node, &command, env);
            }
            Effect::AckResult { job, node, attempt, status } => {
                if self.links.get(&node).is_some_and(|link| link.acks) {
                    env.counts.reached(match status {
                        AckStatus::Committed => "ack_committed",
                        AckStatus::Duplicate => "ack_duplicate",
                        AckStatus::Stale => "ack_stale",
                        AckStatus::Unknown => "ack_unknown",
                    });
                    let command = Command::ResultAck { job_id: job, attempt_id: attempt, status };
                    self.tell_node(node, &command, env);
                }
            }
            Effect::Arm(at, deadline) => self.arms.push_back((at, deadline)),
            Effect::Progress(job, progress) => self.tell_progress(&job, progress, env),
            Effect::Settled { job, result } => self.settled(&job, result, env),
            Effect::WakeQueue => self.wake_control(env),
            Effect::NodeChanged(node) => {
                self.changed.push_back(node);
                self.wake_control(env);
            }
        }
    }

    fn accept_job(&mut self, job: &Arc<Job>, audio: &Audio, now: Now, env: &mut Env) {
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
        let expires_unix_ms = now.unix_ms + self.config.job.idempotency_ms;
        let (key, digest) = job.key();
        let idempotency = Some(IdemRow { key, job: job.id, digest, expires_unix_ms });
        let audio = audio.clone();
        let write = Write::AcceptJob { row: Box::new(row), audio, idempotency };
        let session = job.spec.session;
        let then = match self.handles.get(&session).is_some_and(|handle| handle.wants_kept()) {
            true => Then::Kept(session, job.spec.utterance_index, job.id),
            false => Then::Nothing,
        };
        if self.submit_write(write, then, env).is_err() {
            env.counts.reached("accept_not_kept");
        }
    }

    fn assign(
        &mut self,
        job: Arc<Job>,
        node: NodeIndex,
        attempt: u32,
        more: &mut Effects,
        now: Now,
        env: &mut Env,
    ) {
        let (Some(audio), Some(link)) = (job.audio(), self.links.get(&node).copied()) else {
            return self.scheduler.not_sent(&job, attempt, true, now, more);
        };
        // Taken back meanwhile, it is not to overtake the attempt that follows.
        if !job.is_at(attempt) {
            return;
        }
        job.carry(attempt, link.generation);
        let text = encode_job_assign(job.id, attempt, &job.spec, &audio, None);
        let msg = meant(text);
        if let Err(refused) = env.push(link.conn, msg, Tag::Assign(Arc::clone(&job), attempt)) {
            env.counts.reached("assign_not_sent");
            // Closed because a newer connection took its place, it is no sign that the node is
            // gone; here the link is looked up in the same step, so it is the newest.
            let gone = refused == Refusal::Closed;
            self.scheduler.not_sent(&job, attempt, gone, now, more);
        }
    }

    pub(super) fn tell_node(&self, node: NodeIndex, command: &Command, env: &mut Env) {
        let told = self.links.get(&node).map(|link| {
            let msg = meant(command.encode());
            env.push(link.conn, msg, Tag::Plain)
        });
        if told.is_none_or(|told| told.is_err()) {
            env.counts.reached("node_not_told");
        }
    }

    fn tell_progress(&mut self, job: &Arc<Job>, progress: Progress, env: &mut Env) {
        let index = job.spec.utterance_index;
        let news = match progress {
            Progress::Dispatched => News::Dispatched(index, job.id),
            Progress::Accepted => News::Accepted(index, job.id),
            Progress::Partial { text, is_final } => {
                News::Partial { index, job: job.id, text, is_final }
            }
        };
        self.deliver(job.spec.session, Mail::News(news), env);
    }

    fn settled(&mut self, job: &Arc<Job>, result: Option<Box<JobResult>>, env: &mut Env) {
        let Some(ended) = job.ended() else { return };
        if ended.code == Some(ErrorCode::PoisonJob) {
            env.counts.reached("poison");
        }
        env.counts.reached(match ended.outcome {
            Outcome::Succeeded => "job_succeeded",
            Outcome::Empty => "job_empty",
            Outcome::Merged => "job_merged",
            Outcome::Failed => "job_failed",
            Outcome::Expired => "job_expired",
            Outcome::Cancelled => "job_cancelled",
        });
        let answer = answer(ended, result);
        if !self.handles.contains_key(&job.spec.session) {
            return self.keep_unheard(job, &answer, env);
        }
        let elapsed_ms = job.stamps.between(Stage::Queued, Stage::Settled).unwrap_or(0) / 1_000;
        let news = News::Settled {
            index: job.spec.utterance_index,
            job: job.id,
            answer,
            elapsed_ms,
            network: NetworkTimings::default(),
            others: None,
        };
        self.deliver(job.spec.session, Mail::Settled(Arc::clone(job), news), env);
    }

    /// Nobody is there to hear how the job ended; it is kept all the same.
    pub(super) fn keep_unheard(&mut self, job: &Arc<Job>, answer: &Answer, env: &mut Env) {
        env.counts.reached("outcome_unheard");
        let (comes_back, unix_ms) = (self.going_down, self.now(env).unix_ms);
        let place = (job.spec.session, job.spec.utterance_index);
        let frame = unheard(answer, job.id, place, &job.spec.trace_id, comes_back, unix_ms);
        if self.record_job(job, frame, None, env).is_err() {
            env.counts.reached("outcome_not_kept");
        }
    }

    /// Hands the outcome of a job to the store, with the frame owed to the client if there is one.
    pub(super) fn record_job(
        &mut self,
        job: &Arc<Job>,
        outbox: Option<Bytes>,
        session: Option<crate::protocol::SessionId>,
        env: &mut Env,
    ) -> Result<(), Full> {
        let Some(ended) = job.ended() else { return Ok(()) };
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
            explanation: Vec::new(),
        };
        let dead = ended.code.is_some_and(speaks_of_nodes);
        if dead {
            env.counts.reached("dead_letter_failed");
        }
        let write = Write::SettleJob {
            terminal: Box::new(terminal),
            outbox,
            heard: Vec::new(),
            dead,
            refused: None,
        };
        self.submit_write(write, Then::Recorded(Arc::clone(job), session), env)
    }

    /// The outcome of the job is on disk: its node may forget it.
    pub(super) fn kept(&mut self, job: &Arc<Job>, env: &mut Env) {
        let mut effects = Effects::new();
        self.scheduler.kept(job, &mut effects);
        let now = self.now(env);
        self.perform(&mut effects, now, env);
    }

    pub(super) fn send_command(&self, conn: ConnId, command: &Command, env: &mut Env) {
        if env.push(conn, meant(command.encode()), Tag::Plain).is_err() {
            env.counts.reached("node_not_told");
        }
    }
}

/// A frame with its meaning, for whoever gets it.
pub(super) fn meant(text: Bytes) -> Msg {
    let value = serde_json::from_slice(&text).ok().map(Arc::new);
    Msg::Text(text, value)
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

/// Whether a job that ended so might end well another time: its speech is kept.
fn speaks_of_nodes(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::PoisonJob | ErrorCode::JobTimeout | ErrorCode::NodeUnavailable)
}
