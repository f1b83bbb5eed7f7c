//! One speaker's task, as in `server/session.rs`: a connection, a session, or both.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use super::Life;
use super::journal::Then;
use super::perform::meant;
use crate::job::{self, Job, Speaker, Submission, Submitted};
use crate::protocol::session::{Event as Said, Init, Request, Resume, ResumeAck, decode};
use crate::protocol::{ErrorCode, JobId, SessionId, limits};
use crate::session::{Cutting, Effects, GoAway, Input, News, Profile, Refusal, Session};
use crate::sim::env::{Env, Event, TaskId};
use crate::sim::net::{ConnId, Msg, Tag};
use crate::store::{SessionRow, Write};
use crate::telemetry::Now;
use crate::tenant::Denied;

/// What a task hears from its connection.
#[derive(Debug)]
pub(super) enum Arrival {
    Msg(Msg),
    Written(Tag),
    Closed,
}

/// Mail for a session's task.
#[derive(Debug)]
pub(super) enum Mail {
    News(News),
    Settled(Arc<Job>, News),
    Replayed { after: u64, frames: Vec<(u64, JobId, Bytes)> },
}

/// A client that comes back to its session over a new connection.
#[derive(Debug)]
struct Newcomer {
    conn: ConnId,
    last_seq: u64,
    session_id: String,
}

/// Clients that come back to one session at the same time; of more, the older are dropped.
const NEWCOMERS_MAX: usize = 4;

/// The way to a session's task.
#[derive(Debug)]
pub(super) struct Handle {
    task: TaskId,
    profile: Profile,
    /// Epoch and secret; the real one keeps the secret's hash.
    key: Option<(u32, [u8; 32])>,
    mail: VecDeque<Mail>,
    newcomers: VecDeque<Newcomer>,
    opened_unix_ms: u64,
}

impl Handle {
    /// Whether the session wants to hear when a job of it is on disk.
    pub(super) fn wants_kept(&self) -> bool {
        self.profile.accepted || self.profile.audio_ack
    }
}

/// A session and what the shell keeps beside it.
pub(super) struct Open {
    pub(super) session: Session,
    pub(super) speaker: Arc<Speaker>,
    /// The session as it is to be stored, until it is: with its first job.
    pub(super) unstored: Option<SessionRow>,
    /// Settled jobs whose last word is not on its way to the disk yet.
    pub(super) settled: BTreeMap<JobId, Arc<Job>>,
    /// Up to where the client has confirmed, where the store could not be told yet.
    pub(super) confirmed: Option<u64>,
}

/// One speaker.
pub(super) struct Task {
    pub(super) line: Option<ConnId>,
    pub(super) farewell: Option<(SessionId, u64)>,
    pub(super) open: Option<Open>,
    pub(super) effects: Effects,
    job_effects: job::Effects,
    inbox: VecDeque<Arrival>,
    stepping: bool,
    /// The tick that is awaited, in the world's time.
    tick_at: Option<u64>,
}

impl Task {
    fn of(line: Option<ConnId>, open: Option<Open>) -> Self {
        Self {
            line,
            farewell: None,
            open,
            effects: Effects::new(),
            job_effects: job::Effects::new(),
            inbox: VecDeque::new(),
            stepping: false,
            tick_at: None,
        }
    }

    pub(super) fn name(&self) -> String {
        self.open.as_ref().map_or_else(|| "no session".into(), |o| o.session.id.to_string())
    }
}

impl Life {
    pub(super) fn accept_client(&mut self, conn: ConnId) {
        let id = self.add_task(Task::of(Some(conn), None));
        self.readers.insert(conn, id);
    }

    fn add_task(&mut self, task: Task) -> TaskId {
        self.next_task += 1;
        self.tasks.insert(self.next_task, task);
        self.next_task
    }

    /// A session of an earlier life, whose client is not here.
    pub(super) fn add_restored(&mut self, open: Open, effects: Effects, env: &mut Env) {
        let session = open.session.id;
        let id = self.add_task(Task { effects, ..Task::of(None, Some(open)) });
        if let Some(handle) = self.handles.get_mut(&session) {
            handle.task = id;
        }
        let now = self.now(env);
        self.perform_session(id, now, env);
        self.look_at_clock(id, env);
    }

    pub(super) fn client_arrived(&mut self, conn: ConnId, arrival: Arrival, env: &mut Env) {
        let Some(id) = self.readers.get(&conn).copied() else {
            // A connection that was replaced.
            if let Arrival::Closed | Arrival::Msg(Msg::Close) = arrival {
                env.server_end(conn);
            }
            return;
        };
        if let Some(task) = self.tasks.get_mut(&id) {
            task.inbox.push_back(arrival);
        }
        self.wake(id, env);
    }

    /// Leaves mail for a session, if it is there.
    pub(super) fn deliver(&mut self, session: SessionId, mail: Mail, env: &mut Env) {
        let Some(handle) = self.handles.get_mut(&session) else { return };
        handle.mail.push_back(mail);
        let task = handle.task;
        self.wake(task, env);
    }

    fn wake(&mut self, id: TaskId, env: &mut Env) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        if !std::mem::replace(&mut task.stepping, true) {
            let us = if env.fault(10) { env.between(1_000, 80_000) } else { env.skewed(2, 500) };
            env.after(us, Event::Step(self.number, id));
        }
    }

    /// One turn of the task's loop.
    pub(in crate::sim) fn step(&mut self, id: TaskId, env: &mut Env) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        task.stepping = false;
        let behind = task
            .open
            .as_ref()
            .is_some_and(|o| o.session.undurable() >= self.config.session.jobs_max);
        let readable = |a: &Arrival| !behind || !matches!(a, Arrival::Msg(_));
        if behind {
            env.counts.reached("reading_paused");
        }
        if let Some(at) = task.inbox.iter().position(readable)
            && let Some(arrival) = task.inbox.remove(at)
        {
            self.take_arrival(id, arrival, env);
        }
        self.read_mail(id, env);
        self.take_newcomers(id, env);
        self.look_at_clock(id, env);
        let Some(task) = self.tasks.get(&id) else { return };
        if task.line.is_none() && task.open.is_none() {
            self.tasks.remove(&id);
        } else if task.inbox.iter().any(|a| !behind || !matches!(a, Arrival::Msg(_))) {
            self.wake(id, env);
        }
    }

    /// The tick that the task awaited, or one that is not awaited any more.
    pub(in crate::sim) fn tick(&mut self, id: TaskId, env: &mut Env) {
        let now = self.now(env);
        let Some(task) = self.tasks.get_mut(&id) else { return };
        if task.tick_at.is_some_and(|at| at > env.now) {
            return;
        }
        task.tick_at = None;
        let due = task.open.as_ref().and_then(|o| o.session.next_tick());
        if due.is_some_and(|due| due <= now.us) {
            self.input(id, Input::Tick, env);
            self.read_mail(id, env);
            self.take_newcomers(id, env);
        }
        self.look_at_clock(id, env);
        if self.tasks.get(&id).is_some_and(|t| t.line.is_none() && t.open.is_none()) {
            self.tasks.remove(&id);
        }
    }

    fn look_at_clock(&mut self, id: TaskId, env: &mut Env) {
        let number = self.number;
        let due = self.tasks.get(&id).and_then(|t| t.open.as_ref()?.session.next_tick());
        // What is beyond the world's end is not awaited.
        let at = due.map(|due| self.world_us(due)).filter(|at| *at < env.now + 3_600_000_000);
        let Some(task) = self.tasks.get_mut(&id) else { return };
        if let Some(at) = at.map(|at| at.max(env.now + 1))
            && task.tick_at.is_none_or(|known| at < known)
        {
            task.tick_at = Some(at);
            env.at(at, Event::Tick(number, id));
        }
        if at.is_none() {
            task.tick_at = None;
        }
    }

    fn take_arrival(&mut self, id: TaskId, arrival: Arrival, env: &mut Env) {
        match arrival {
            Arrival::Msg(Msg::Text(text, _)) => self.text(id, &text, env),
            Arrival::Msg(Msg::Pong(payload)) => self.ponged(id, &payload, env),
            Arrival::Msg(Msg::Ping(_)) => {}
            Arrival::Msg(Msg::Close) | Arrival::Closed => self.lost(id, env),
            Arrival::Written(tag) => self.client_written(id, tag, env),
        }
    }

    /// The connection is over. The session may go on without it.
    fn lost(&mut self, id: TaskId, env: &mut Env) {
        let Some(conn) = self.tasks.get_mut(&id).and_then(|t| t.line.take()) else { return };
        self.hang_up(id, conn, env);
        self.input(id, Input::Lost, env);
    }

    fn hang_up(&mut self, id: TaskId, conn: ConnId, env: &mut Env) {
        env.server_end(conn);
        self.readers.remove(&conn);
        if let Some(task) = self.tasks.get_mut(&id) {
            task.inbox.clear();
            task.farewell = None;
        }
    }

    fn text(&mut self, id: TaskId, frame: &Bytes, env: &mut Env) {
        let request = match decode(frame) {
            Ok(request) => request,
            Err(fault) => return self.refuse(id, &fault.to_string(), env),
        };
        let open = self.tasks.get(&id).is_some_and(|t| t.open.is_some());
        match request {
            Request::WrongDirection(_) | Request::Room(_) | Request::Signal(_) => {}
            Request::Init(init) => self.init(id, *init, frame, env),
            Request::Resume(resume) => self.resume(id, *resume, env),
            request if open => self.input(id, Input::Request(request), env),
            _ => {
                let text = "Session does not exist on this connection";
                self.send(id, &Said::error(ErrorCode::InvalidSession, text, None), env);
            }
        }
    }

    fn refuse(&mut self, id: TaskId, text: &str, env: &mut Env) {
        self.send(id, &Said::error(ErrorCode::InvalidMessage, text, None), env);
    }

    pub(super) fn send(&mut self, id: TaskId, event: &Said, env: &mut Env) {
        self.push_frame(id, meant(event.encode()), Tag::Plain, env);
    }

    fn init(&mut self, id: TaskId, init: Init, frame: &[u8], env: &mut Env) {
        let trace = format!("{:016x}", env.rng.u64(..));
        let profile = match Profile::new(init, trace) {
            Ok(profile) => profile,
            Err(fault) => return self.refuse(id, &fault.to_string(), env),
        };
        if self.draining {
            env.counts.reached("refused_draining");
            return self.send(
                id,
                &Said::Error {
                    code: ErrorCode::ShuttingDown.as_str().to_owned(),
                    message: "The server is going down".to_owned(),
                    retryable: Some(true),
                    retry_after_ms: Some(limits::reconnect_after_ms()),
                    phase: None,
                    trace_id: Some(profile.trace_id),
                    job_id: None,
                },
                env,
            );
        }
        // A connection has one session; a new one takes the place of the old.
        if self.tasks.get(&id).is_some_and(|t| t.open.is_some()) {
            self.input(id, Input::Over, env);
        }
        if self.sessions_open >= self.config.session.sessions_max {
            let text = "The server has as many sessions as it may";
            let event = Said::error(ErrorCode::Overloaded, text, Some(profile.trace_id));
            return self.send(id, &event, env);
        }
        let now = self.now(env);
        let secret: Option<[u8; 32]> =
            profile.resume.then(|| std::array::from_fn(|_| env.rng.u8(..)));
        let key = secret.map(|secret| (self.boot_epoch, secret));
        let session = self.fresh_id();
        let mut open = self.open_session(session, profile, self.boot_epoch, key, now);
        let text = secret.map(|secret| hex(&secret));
        let ack = open.session.ack(text);
        open.unstored = Some(self.row_of(&open, frame));
        if let Some(handle) = self.handles.get_mut(&session) {
            handle.task = id;
        }
        if let Some(task) = self.tasks.get_mut(&id) {
            task.open = Some(open);
        }
        self.send(id, &ack, env);
    }

    fn fresh_id(&self) -> SessionId {
        loop {
            let id = SessionId(fastrand::u64(1..));
            if !self.handles.contains_key(&id) {
                return id;
            }
        }
    }

    /// A session and its place among the others.
    pub(super) fn open_session(
        &mut self,
        id: SessionId,
        profile: Profile,
        epoch: u32,
        key: Option<(u32, [u8; 32])>,
        now: Now,
    ) -> Open {
        let (mail, newcomers) = Default::default();
        let (profile_kept, opened_unix_ms) = (profile.clone(), now.unix_ms);
        let handle =
            Handle { task: 0, profile: profile_kept, key, mail, newcomers, opened_unix_ms };
        self.handles.insert(id, handle);
        self.sessions_open += 1;
        let own = (self.config.session.clone(), self.config.segmenter.clone());
        let account = self.scheduler.accounts().of(profile.tenant.as_deref());
        Open {
            session: Session::new(id, profile, epoch, false, own),
            speaker: self.scheduler.speaker(id, account),
            unstored: None,
            settled: BTreeMap::new(),
            confirmed: None,
        }
    }

    fn row_of(&self, open: &Open, init: &[u8]) -> SessionRow {
        let profile = &open.session.profile;
        let handle = self.handles.get(&open.session.id);
        SessionRow {
            id: open.session.id,
            trace_id: profile.trace_id.clone(),
            tenant: profile.tenant.clone(),
            platform: profile.platform.clone(),
            client_version: profile.client_version.clone(),
            src: profile.src,
            tgt: profile.tgt,
            opened_unix_ms: handle.map_or(0, |h| h.opened_unix_ms),
            epoch: open.session.epoch,
            resume_hash: handle.and_then(|h| h.key).map(|(_, secret)| secret),
            paired: None,
            init: init.to_vec(),
        }
    }

    /// The client goes on with a session: its connection goes to that session's task.
    fn resume(&mut self, id: TaskId, resume: Resume, env: &mut Env) {
        if self.tasks.get(&id).is_some_and(|t| t.open.is_some()) {
            return self.refuse(id, "this connection has a session", env);
        }
        let Some(session) = self.resumable(&resume) else {
            return self.unknown_session(id, &resume.session_id, env);
        };
        let Some(conn) = self.tasks.get_mut(&id).and_then(|t| t.line.take()) else { return };
        let Resume { session_id, last_seq, .. } = resume;
        let Some(handle) = self.handles.get_mut(&session) else { return };
        let owner = handle.task;
        handle.newcomers.push_back(Newcomer { conn, last_seq, session_id });
        let dropped = match handle.newcomers.len() > NEWCOMERS_MAX {
            true => handle.newcomers.pop_front(),
            false => None,
        };
        // What the connection still has to say goes with it.
        let rest = self.tasks.get_mut(&id).map(|t| std::mem::take(&mut t.inbox));
        self.readers.insert(conn, owner);
        if let Some(task) = self.tasks.get_mut(&owner) {
            let own = task.line == Some(conn) || task.line.is_none();
            if own {
                task.inbox.extend(rest.into_iter().flatten());
            }
        }
        if let Some(Newcomer { conn, .. }) = dropped {
            self.readers.remove(&conn);
            env.break_conn(conn);
            env.server_end(conn);
        }
        self.wake(owner, env);
    }

    fn resumable(&self, resume: &Resume) -> Option<SessionId> {
        let id: SessionId = resume.session_id.parse().ok()?;
        let (epoch, secret) = self.handles.get(&id)?.key?;
        (epoch == resume.epoch && hex(&secret) == resume.resume_secret).then_some(id)
    }

    fn unknown_session(&mut self, id: TaskId, session_id: &str, env: &mut Env) {
        env.counts.reached("resume_unknown");
        let reason = Some("unknown_session");
        let session_id = limits::clip(session_id, 64).to_owned();
        let ack = ResumeAck { session_id, reason, ..ResumeAck::default() };
        self.send(id, &Said::SessionResumeAck(Box::new(ack)), env);
    }

    /// Clients that came back: the newest gets the session.
    fn take_newcomers(&mut self, id: TaskId, env: &mut Env) {
        loop {
            let now = self.now(env);
            let Some(task) = self.tasks.get_mut(&id) else { return };
            let Some(open) = &mut task.open else { return };
            let Some(handle) = self.handles.get_mut(&open.session.id) else { return };
            let Some(newcomer) = handle.newcomers.pop_front() else { return };
            let Newcomer { conn, last_seq, session_id } = newcomer;
            let mut effects = Effects::new();
            if !open.session.attach(last_seq, now, &mut effects) {
                self.stranger(conn, &session_id, env);
                continue;
            }
            env.counts.reached("resumed");
            let old = task.line.replace(conn);
            task.farewell = None;
            task.effects.append(&mut effects);
            if let Some(old) = old {
                env.counts.reached("taken_over");
                // What the old connection has still to say is not heard.
                task.inbox.clear();
                self.readers.remove(&old);
                env.request_close(old);
            }
            self.readers.insert(conn, id);
            self.perform_session(id, now, env);
        }
    }

    /// A client whose session is not there; it may open another on the same connection.
    fn stranger(&mut self, conn: ConnId, session_id: &str, env: &mut Env) {
        let id = self.add_task(Task::of(Some(conn), None));
        self.readers.insert(conn, id);
        self.unknown_session(id, session_id, env);
    }

    /// Gives the session an input and performs what comes of it.
    pub(super) fn input(&mut self, id: TaskId, input: Input, env: &mut Env) {
        let now = self.now(env);
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let Some(open) = &mut task.open else { return };
        open.session.apply(input, now, &mut task.effects);
        self.perform_session(id, now, env);
        let Some(task) = self.tasks.get_mut(&id) else { return };
        if let Some(open) = &mut task.open {
            open.session.end_if_done(&mut task.effects);
            self.perform_session(id, now, env);
        }
    }

    pub(super) fn perform_session(&mut self, id: TaskId, now: Now, env: &mut Env) {
        loop {
            let Some(task) = self.tasks.get_mut(&id) else { return };
            if task.effects.is_empty() {
                return;
            }
            for effect in std::mem::take(&mut task.effects) {
                self.perform_session_effect(id, effect, now, env);
            }
        }
    }

    pub(super) fn submit(&mut self, id: TaskId, cutting: Cutting, now: Now, env: &mut Env) {
        let index = cutting.spec.utterance_index;
        let ending = cutting.spec.cut.closes_turn().then_some(cutting.spec.turn);
        let outcome = self.try_submit(id, cutting, now, env);
        let stored = outcome.is_err() && self.store_session(id, env);
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let Some(open) = &mut task.open else { return };
        match outcome {
            Ok(Submitted::New(job)) => open.session.submitted(index, job.id),
            Ok(Submitted::Repeated(job)) => {
                env.counts.reached("submitted_again");
                open.session.repeated(index, job, &mut task.effects);
            }
            Err(Denied::Conflict) => {
                env.counts.reached("refused_conflict");
                open.session.conflicting(index, &mut task.effects);
            }
            Err(denied) => {
                env.counts.reached(match denied {
                    Denied::ServerFull => "refused_server_full",
                    Denied::QueueFull => "refused_queue_full",
                    Denied::SessionFull => "refused_session_full",
                    Denied::StoreFull => "refused_store_full",
                    Denied::Unacknowledged => "refused_unacknowledged",
                    Denied::Conflict => "refused_conflict",
                    _ => "refused_otherwise",
                });
                if let Some(turn) = ending {
                    open.speaker.end_turn(turn);
                }
                let refusal = Refusal {
                    stored,
                    code: denied.code(),
                    why: denied.to_string(),
                    retry_after_ms: denied.retry_after_ms(),
                };
                open.session.refused(index, refusal, now, &mut task.effects);
            }
        }
        let mut effects = std::mem::take(&mut task.job_effects);
        self.perform(&mut effects, now, env);
    }

    fn try_submit(
        &mut self,
        id: TaskId,
        cutting: Cutting,
        now: Now,
        env: &mut Env,
    ) -> Result<Submitted, Denied> {
        let Cutting { spec, audio, received_us, chunks, key, for_others: _ } = cutting;
        let key = key.map(|key| job::ClientKey { text: key.text, digest: key.digest });
        let submission = Submission { spec, audio, received_us, cut_us: now.us, chunks, key };
        if let Some(job) = self.scheduler.known(&submission)? {
            return Ok(Submitted::Repeated(job));
        }
        let room = self.journal.has_room_for_accepts();
        let task = self.tasks.get_mut(&id).ok_or(Denied::SessionFull)?;
        let open = task.open.as_mut().ok_or(Denied::SessionFull)?;
        if open.session.owes_acks() {
            return Err(Denied::Unacknowledged);
        }
        if !room {
            return Err(Denied::StoreFull);
        }
        let speaker = Arc::clone(&open.speaker);
        if !self.store_session(id, env) {
            return Err(Denied::StoreFull);
        }
        let mut effects = job::Effects::new();
        let outcome = self.scheduler.submit(&speaker, submission, now, &mut effects);
        if let Some(task) = self.tasks.get_mut(&id) {
            task.job_effects.append(&mut effects);
        }
        outcome
    }

    /// Has the session stored, if it is not: with its first job.
    fn store_session(&mut self, id: TaskId, env: &mut Env) -> bool {
        let Some(open) = self.tasks.get_mut(&id).and_then(|t| t.open.as_mut()) else {
            return false;
        };
        let Some(row) = open.unstored.take() else { return true };
        let write = Write::OpenSession(row.clone());
        let taken = self.submit_write(write, Then::Nothing, env).is_ok();
        if let (false, Some(open)) = (taken, self.tasks.get_mut(&id).and_then(|t| t.open.as_mut()))
        {
            open.unstored = Some(row);
        }
        taken
    }

    pub(super) fn cancel(&mut self, jobs: Vec<JobId>, now: Now, env: &mut Env) {
        let mut effects = job::Effects::new();
        for job in jobs.into_iter().filter_map(|id| self.scheduler.job(id)) {
            self.scheduler.cancel(&job, "the session is over", now, &mut effects);
        }
        // Whether the session is still there decides who hears of the outcomes.
        self.perform(&mut effects, now, env);
    }

    fn read_mail(&mut self, id: TaskId, env: &mut Env) {
        loop {
            let Some(task) = self.tasks.get_mut(&id) else { return };
            let Some(open) = &mut task.open else { return };
            let Some(handle) = self.handles.get_mut(&open.session.id) else { return };
            match handle.mail.pop_front() {
                None => return,
                Some(Mail::News(news)) => self.input(id, Input::News(news), env),
                Some(Mail::Settled(job, news)) => {
                    open.settled.insert(job.id, job);
                    self.input(id, Input::News(news), env);
                }
                Some(Mail::Replayed { after, frames }) => {
                    self.input(id, Input::Replayed { after, frames }, env);
                }
            }
        }
    }

    /// The session is not here any more; `over` if it will not come back either.
    pub(super) fn forget(&mut self, id: TaskId, over: bool, env: &mut Env) {
        let Some(open) = self.tasks.get_mut(&id).and_then(|t| t.open.take()) else { return };
        let session = open.session.id;
        self.sessions_open -= 1;
        let Some(handle) = self.handles.remove(&session) else { return };
        for mail in handle.mail {
            if let Mail::Settled(job, News::Settled { answer, .. }) = mail {
                self.keep_unheard(&job, &answer, env);
            }
        }
        for Newcomer { conn, session_id, .. } in handle.newcomers {
            self.stranger(conn, &session_id, env);
        }
        if open.unstored.is_none() && over {
            let closed = self.submit_write(Write::CloseSession(session), Then::Nothing, env);
            if closed.is_err() {
                env.counts.reached("close_not_noted");
            }
        }
    }

    /// The server begins to stop: it takes no new sessions and no speech that begins now.
    pub(in crate::sim) fn drain(&mut self, env: &mut Env) {
        self.draining = true;
        self.scheduler.close(self.now(env));
        let ids: Vec<TaskId> = self.tasks.keys().copied().collect();
        for id in ids {
            let notice =
                GoAway { reconnect_after_ms: limits::reconnect_after_ms(), deadline_ms: 2_000 };
            self.input(id, Input::Drain(Some(notice)), env);
        }
    }

    /// The server stops in good order: sessions that go on after the start are left as they are.
    pub(in crate::sim) fn go_down(&mut self, env: &mut Env) {
        self.going_down = true;
        let ids: Vec<TaskId> = self.tasks.keys().copied().collect();
        for id in ids {
            // What was said since the drain began is refused, or taken if there was no drain.
            self.input(id, Input::Drain(None), env);
            let goes_on = self.tasks.get(&id).and_then(|t| t.open.as_ref()).is_some_and(|o| {
                let s = &o.session;
                s.profile.resume || s.open_jobs() + s.undurable() > 0
            });
            self.forget(id, !goes_on, env);
        }
    }
}

fn hex(secret: &[u8; 32]) -> String {
    secret.iter().map(|byte| format!("{byte:02x}")).collect()
}
