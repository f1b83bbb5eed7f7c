//! The effects of a session on socket and disk, as in `server/delivery.rs`.

use bytes::Bytes;

use super::Life;
use super::journal::Then;
use super::perform::meant;
use super::session::Mail;
use crate::protocol::{JobId, SessionId};
use crate::session::{Effect, Input, Refused};
use crate::sim::env::{Env, Event, TaskId};
use crate::sim::net::{Msg, Refusal, Tag};
use crate::store::{TerminalRow, Write};
use crate::telemetry::Now;

impl Life {
    pub(super) fn perform_session_effect(
        &mut self,
        id: TaskId,
        effect: Effect,
        now: Now,
        env: &mut Env,
    ) {
        match effect {
            Effect::Send(text, None) => self.push_frame(id, meant(text), Tag::Plain, env),
            Effect::Send(text, Some(job)) => {
                self.push_frame(id, meant(text), Tag::Word(job, None), env);
            }
            Effect::Deliver { frame, job, seq } => {
                self.push_frame(id, meant(frame), Tag::Word(job, Some(seq)), env);
            }
            Effect::Remark(text) | Effect::Progress(_, text) => self.remark(id, text, env),
            Effect::Replay { after, frames } => self.replay(id, (after, frames), env),
            Effect::Barrier(seq) => self.ping(id, seq, env),
            Effect::Prove(text, number) => {
                self.push_frame(id, meant(text), Tag::Prove(number), env);
            }
            Effect::Acknowledged(through) => self.confirmed(id, through, env),
            Effect::Forfeit(through_seq) => self.forfeit(id, through_seq, env),
            Effect::Submit(cutting) => self.submit(id, *cutting, now, env),
            Effect::Record { job, frame, .. } => self.record(id, job, frame, env),
            // There are no rooms here.
            Effect::Said(_) => {}
            Effect::Refuse(refused) => self.keep_refusal(id, *refused, env),
            Effect::Cancel(jobs) => self.cancel(jobs, now, env),
            Effect::EndTurn(turn) => {
                env.counts.reached("turn_ended_without_job");
                if let Some(open) = self.tasks.get(&id).and_then(|t| t.open.as_ref()) {
                    open.speaker.end_turn(turn);
                }
            }
            Effect::Silence(..) => env.counts.reached("silence"),
            Effect::Dropped(..) | Effect::Foreign => {}
            Effect::WasCut(cut) => env.counts.reached(match cut.closes_turn() {
                true => "cut_closing",
                false => "cut_slice",
            }),
            Effect::Detached => env.counts.reached("detached"),
            Effect::Farewell(text, owed) => self.farewell(id, text, owed, env),
            Effect::Ended => self.forget(id, true, env),
        }
    }

    /// Sends what the client must have; one that does not read loses its connection.
    pub(super) fn push_frame(&mut self, id: TaskId, msg: Msg, tag: Tag, env: &mut Env) {
        let Some(conn) = self.tasks.get(&id).and_then(|t| t.line) else { return };
        if env.push(conn, msg, tag) == Err(Refusal::Full) {
            env.counts.reached("client_too_slow");
            env.request_close(conn);
        }
    }

    /// Sends what the client can do without, if it keeps up.
    fn remark(&mut self, id: TaskId, text: Bytes, env: &mut Env) {
        let Some(conn) = self.tasks.get(&id).and_then(|t| t.line) else { return };
        let max = self.config.transport.session_outbox_frames_max;
        if env.net.queued(conn) < max.div_ceil(2) {
            self.push_frame(id, meant(text), Tag::Plain, env);
        }
    }

    /// Reads back what the client is owed; the answer comes by mail.
    fn replay(&mut self, id: TaskId, wanted: (u64, usize), env: &mut Env) {
        let Some(session) = self.session_of(id) else { return };
        env.counts.reached("replayed");
        let us = env.skewed(50, 20_000);
        env.after(us, Event::ReadBack(self.number, session, wanted));
    }

    /// The read has an answer.
    pub(in crate::sim) fn read_back(
        &mut self,
        session: SessionId,
        wanted: (u64, usize),
        env: &mut Env,
    ) {
        if !self.handles.contains_key(&session) {
            return;
        }
        let (after, frames) = wanted;
        match self.journal.outbox(session, after, frames) {
            Ok(rows) => {
                let frames = rows.into_iter().map(|r| (r.seq, r.job, Bytes::from(r.frame)));
                let frames = frames.collect();
                self.deliver(session, Mail::Replayed { after, frames }, env);
            }
            Err(_) => {
                env.counts.reached("read_back_failed");
                env.after(1_000_000, Event::ReadBack(self.number, session, wanted));
            }
        }
    }

    fn session_of(&self, id: TaskId) -> Option<SessionId> {
        self.tasks.get(&id)?.open.as_ref().map(|open| open.session.id)
    }

    fn ping(&mut self, id: TaskId, seq: u64, env: &mut Env) {
        let payload = Bytes::copy_from_slice(&seq.to_be_bytes());
        self.push_frame(id, Msg::Ping(payload), Tag::Plain, env);
    }

    fn farewell(&mut self, id: TaskId, text: Bytes, owed: Option<u64>, env: &mut Env) {
        let Some(session) = self.session_of(id) else { return };
        let tag = owed.map_or(Tag::Plain, |seq| Tag::Farewell(session, seq));
        self.push_frame(id, meant(text), tag, env);
    }

    /// The client has everything up to this number.
    fn confirmed(&mut self, id: TaskId, through: u64, env: &mut Env) {
        if let Some(open) = self.tasks.get_mut(&id).and_then(|t| t.open.as_mut()) {
            open.confirmed = open.confirmed.max(Some(through));
        }
        self.note_confirmed(id, env);
    }

    fn note_confirmed(&mut self, id: TaskId, env: &mut Env) {
        let Some(open) = self.tasks.get_mut(&id).and_then(|t| t.open.as_mut()) else { return };
        let session = open.session.id;
        if let Some(through_seq) = open.confirmed.take() {
            let write = Write::Delivered { session, through_seq };
            if self.submit_write(write, Then::Nothing, env).is_err()
                && let Some(open) = self.tasks.get_mut(&id).and_then(|t| t.open.as_mut())
            {
                open.confirmed = Some(through_seq);
            }
        }
    }

    fn forfeit(&mut self, id: TaskId, through_seq: u64, env: &mut Env) {
        let Some(session) = self.session_of(id) else { return };
        env.counts.reached("forfeited");
        let write = Write::Forfeit { session, through_seq, why: "overflow" };
        if self.submit_write(write, Then::Nothing, env).is_err() {
            env.counts.reached("forfeit_not_noted");
        }
    }

    /// Keeps the last word on a job; the client is told when that is done.
    fn record(&mut self, id: TaskId, job: JobId, frame: Option<Bytes>, env: &mut Env) {
        let Some(open) = self.tasks.get_mut(&id).and_then(|t| t.open.as_mut()) else { return };
        let session = open.session.id;
        let Some(job) = open.settled.remove(&job) else { return };
        if self.record_job(&job, frame, Some(session), env).is_err() {
            env.counts.reached("outcome_not_kept");
        }
    }

    /// Keeps that an utterance was refused; the client is told when that is done.
    fn keep_refusal(&mut self, id: TaskId, refused: Refused, env: &mut Env) {
        let Some(session) = self.session_of(id) else { return };
        env.counts.reached("refusal_kept");
        let Refused { index, job, code, why, chunks, frame } = refused;
        let reason = (code.as_str(), why);
        let terminal = TerminalRow::refusal(job, (session, index), reason, self.now(env).unix_ms);
        let (terminal, refused) = (Box::new(terminal), Some(chunks));
        let write = Write::SettleJob {
            terminal,
            outbox: Some(frame),
            heard: Vec::new(),
            dead: false,
            refused,
        };
        if self.submit_write(write, Then::Told(session, job), env).is_err() {
            env.counts.reached("outcome_not_kept");
        }
    }

    /// The socket took a frame.
    pub(super) fn client_written(&mut self, id: TaskId, tag: Tag, env: &mut Env) {
        match tag {
            Tag::Plain | Tag::Assign(..) => {}
            Tag::Prove(number) => self.ping(id, number, env),
            Tag::Word(job, seq) => self.input(id, Input::Flushed(job, seq), env),
            Tag::Farewell(session, through) => {
                if let Some(task) = self.tasks.get_mut(&id) {
                    task.farewell = Some((session, through));
                }
                self.ping(id, through, env);
            }
        }
        self.note_confirmed(id, env);
    }

    /// The client's WebSocket stack answered a ping sent behind some result: it has that one.
    pub(super) fn ponged(&mut self, id: TaskId, payload: &[u8], env: &mut Env) {
        let Ok(bytes) = <[u8; 8]>::try_from(payload) else { return };
        let seq = u64::from_be_bytes(bytes);
        let farewell = self.tasks.get_mut(&id).and_then(|t| t.farewell.take_if(|f| f.1 == seq));
        if let Some((session, through_seq)) = farewell {
            let write = Write::Delivered { session, through_seq };
            if self.submit_write(write, Then::Nothing, env).is_err() {
                env.counts.reached("farewell_not_noted");
            }
        }
        self.input(id, Input::Ponged(seq), env);
    }
}
