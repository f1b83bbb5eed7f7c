//! One speaker's task: owns the session, and the connection while there is one.
//!
//! A session outlives its connection. When the socket is lost the task stays; a client that comes
//! back knocks with a task of its own, which hands its socket over and ends.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use tracing::{debug, info, warn};

use super::credentials::Admitted;
use super::perform::{bury, perform, tell_rooms};
use super::shared::{
    Line, Mail, Newcomer, ResumeKey, SessionHandle, SessionSlot, SessionTag, Shared, Socket,
    drain_begins, going_down, parting,
};
use crate::job::{self, Job, Scheduler, Speaker, Submission, Submitted};
use crate::protocol::session::{Event, Init, Request, Resume, ResumeAck, decode};
use crate::protocol::{DecodeError, ErrorCode, JobId, Lang, NodeId, SessionId, limits};
use crate::session::{Cutting, Effects, GoAway, Input, Profile, Refusal, RoomInput, Session};
use crate::store::{SessionRow, Store, Write};
use crate::telemetry::{Now, Stage};
use crate::tenant::{Denied, NotPaired};
use crate::transport::{Connection, Event as Arrival, Frame, Gone, Outbox};

/// How long the peer is given to take what is queued when the server closes the connection.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);

/// A session and what the shell keeps beside it.
pub(super) struct Open {
    pub(super) session: Session,
    pub(super) handle: Arc<SessionHandle>,
    pub(super) speaker: Arc<Speaker>,
    /// Its accounts for further languages, for others alone.
    pub(super) lanes: BTreeMap<Lang, Arc<Speaker>>,
    /// The session as it is to be stored, until it is: with its first job.
    pub(super) unstored: Option<SessionRow>,
    /// Settled jobs whose last word is not on its way to the disk yet.
    pub(super) settled: BTreeMap<JobId, Arc<Job>>,
    /// Results on their way to the client that it has not confirmed: number and job.
    pub(super) unconfirmed: VecDeque<(u64, JobId)>,
    /// The last number that the client has confirmed.
    pub(super) confirmed_through: u64,
    /// Up to where the client has confirmed, where the store could not be told yet.
    pub(super) confirmed: Option<u64>,
    pub(super) _slot: SessionSlot,
}

/// One speaker: a session, a connection, or both.
pub(super) struct SessionTask {
    pub(super) shared: Arc<Shared>,
    pub(super) line: Option<Line>,
    pub(super) open: Option<Open>,
    pub(super) effects: Effects,
    job_effects: job::Effects,
    /// Until when no message is read, because the tenant sends too many; monotonic microseconds.
    unread_until_us: u64,
}

impl Open {
    /// Has the session stored, if it is not: with its first job, so that an idle session costs the
    /// disk nothing. False if there is no store, or no room.
    pub(super) fn store_session(&mut self, store: Option<&Store>) -> bool {
        let Some(store) = store else { return false };
        let Some(row) = self.unstored.take() else { return true };
        let taken = store.submit(Write::OpenSession(row.clone()), None);
        if let Err(refused) = &taken {
            debug!(?refused, "a session could not be stored");
            self.unstored = Some(row);
        }
        taken.is_ok()
    }
}

impl SessionTask {
    /// For a client that just connected.
    pub(super) fn new(
        shared: Arc<Shared>,
        peer: SocketAddr,
        admitted: Option<Box<Admitted>>,
        connection: Connection<Socket, SessionTag>,
        outbox: Arc<Outbox<SessionTag>>,
    ) -> Self {
        let (late, farewell) = (BTreeMap::new(), None);
        let line = Line { peer, admitted, connection, outbox, late, farewell };
        shared.metrics.connections.with_label_values(&["session"]).inc();
        Self::of(shared, Some(line), None)
    }

    /// For a session of an earlier life of the server, whose client is not here.
    pub(super) fn restored(shared: Arc<Shared>, open: Open, effects: Effects) -> Self {
        Self { effects, ..Self::of(shared, None, Some(open)) }
    }

    fn of(shared: Arc<Shared>, line: Option<Line>, open: Option<Open>) -> Self {
        let (effects, job_effects) = (Effects::new(), job::Effects::new());
        Self { shared, line, open, effects, job_effects, unread_until_us: 0 }
    }

    /// Lives as long as its connection or its session.
    #[allow(clippy::manual_async_fn, reason = "an async fn that takes itself holds itself twice")]
    pub(super) fn run(mut self) -> impl Future<Output = ()> + Send {
        async move { self.live().await }
    }

    /// What happens seldom is boxed here and below: a session at rest does not pay for it.
    async fn live(&mut self) {
        let shared = Arc::clone(&self.shared);
        let mut closing = shared.closing.subscribe();
        let (mut drain, mut draining) = (shared.drain.subscribe(), false);
        // What became of a session when it was restored.
        self.perform(shared.now()).await;
        while self.line.is_some() || self.open.is_some() {
            let until = self.unread_until_us;
            let unread = (until > 0 && until > shared.now().us).then_some(until);
            let tick = self.open.as_ref().and_then(|open| open.session.next_tick());
            let tick = tick.into_iter().chain(unread).min();
            let handle = self.open.as_ref().map(|open| Arc::clone(&open.handle));
            let jobs_max = shared.settings.with(|v| v.config.session.jobs_max);
            let behind = self.open.as_ref().is_some_and(|o| o.session.undurable() >= jobs_max);
            if let Some(line) = &mut self.line {
                line.connection.pause_reading(behind || unread.is_some());
            }
            tokio::select! {
                arrival = next_of(&mut self.line) => self.arrived(arrival).await,
                () = mail_for(handle.as_ref()) => {}
                () = shared.clock.sleep_until(tick) => self.input(Input::Tick).await,
                until = drain_begins(&mut drain), if !draining => {
                    draining = true;
                    self.drain(until).await;
                }
                () = going_down(&mut closing) => return Box::pin(self.go_down()).await,
            }
            self.read_mail().await;
            self.look_round();
            if self.open.as_ref().is_some_and(|open| open.handle.has_newcomer()) {
                Box::pin(self.take_newcomers()).await;
            }
        }
    }

    async fn arrived(&mut self, arrival: Arrival<SessionTag>) {
        match arrival {
            Arrival::Text(text) => self.text(text.into()).await,
            Arrival::Binary(_) => self.refuse("binary", None),
            Arrival::Written(tag) => self.written(tag).await,
            Arrival::Pong(payload) => self.ponged(&payload).await,
            Arrival::Closed(gone) => Box::pin(self.lost(&gone)).await,
        }
    }

    /// The connection is over. The session may go on without it.
    async fn lost(&mut self, gone: &Gone) {
        let Some(line) = self.line.take() else { return };
        let why = gone.as_str();
        self.shared.metrics.connections_closed.with_label_values(&["session", why]).inc();
        debug!(peer = %line.peer, why, "session connection closed");
        self.hang_up(&line);
        self.input(Input::Lost).await;
    }

    /// Nothing more goes over this connection.
    fn hang_up(&self, line: &Line) {
        line.outbox.close();
        self.shared.metrics.connections.with_label_values(&["session"]).dec();
        if let Some(open) = &self.open {
            self.shared.peers.pin().remove(&open.handle.id);
        }
    }

    /// The server is going down. Jobs are left alone: they are on disk and go on after the restart,
    /// and so does a session that has any, or whose client can come back.
    async fn go_down(&mut self) {
        // What was said since the drain began is refused, or taken if there was no drain.
        self.input(Input::Drain(None)).await;
        if let Some(open) = self.open.take() {
            let goes_on = open.session.profile.resume || open.handle.is_owed();
            self.forget(open, !goes_on);
        }
        if let Some(line) = self.line.take() {
            self.hang_up(&line);
            line.connection.close(1001, &parting(), CLOSE_WITHIN).await;
        }
    }

    /// The server begins to go down, and closes this connection at `until` or before.
    async fn drain(&mut self, until: tokio::time::Instant) {
        let left = until.saturating_duration_since(tokio::time::Instant::now());
        let notice = GoAway {
            reconnect_after_ms: limits::reconnect_after_ms(),
            deadline_ms: left.as_millis() as u64,
        };
        self.input(Input::Drain(Some(notice))).await;
        if let Some(open) = &self.open {
            open.handle.drained.store(true, SeqCst);
        }
    }

    async fn text(&mut self, frame: bytes::Bytes) {
        let decoded = decode(&frame);
        if !self.charge(&decoded) {
            return;
        }
        let request = match decoded {
            Ok(request) => request,
            Err(fault) => return self.refuse(fault.kind(), Some(fault.to_string())),
        };
        let kind = match &request {
            Request::Init(_) => "session_init",
            Request::AudioChunk(chunk) => {
                self.shared.metrics.audio_bytes.inc_by(chunk.audio.len() as u64);
                "audio_chunk"
            }
            Request::Utterance(utterance) => {
                let bytes = utterance.audio.len() as u64 / 4 * 3;
                self.shared.metrics.audio_bytes.inc_by(bytes);
                "utterance"
            }
            Request::Heartbeat(_) => "client_heartbeat",
            Request::Close(_) => "session_close",
            Request::TtsStarted(_) => "tts_started",
            Request::TtsPlayEnded(_) => "tts_play_ended",
            Request::Resume(_) => "session_resume",
            Request::Ack(_) => "ack",
            Request::WrongDirection(kind) => {
                debug!(kind, "a client sent what only the server sends");
                return self.refuse("wrong_direction", None);
            }
            Request::Room(_) => "room",
            Request::Signal(_) => "webrtc",
        };
        self.shared.metrics.frames_in.with_label_values(&["session", kind]).inc();
        match request {
            Request::Init(init) => Box::pin(self.init(*init, &frame)).await,
            Request::Resume(resume) => self.resume(*resume),
            Request::Room(request) => self.room(request),
            Request::Signal(signal) => self.signal(&signal),
            request if self.open.is_some() => self.input(Input::Request(request)).await,
            _ => {
                self.shared.metrics.foreign.with_label_values(&["session"]).inc();
                let text = "Session does not exist on this connection";
                self.send(&Event::error(ErrorCode::InvalidSession, text, None));
            }
        }
    }

    /// Counts a frame that was not understood; answers it if there is something to say.
    fn refuse(&mut self, kind: &str, answer: Option<String>) {
        self.shared.metrics.frames_refused.with_label_values(&["session", kind]).inc();
        if let Some(text) = answer {
            let trace = self.open.as_ref().map(|open| open.session.profile.trace_id.clone());
            self.send(&Event::error(ErrorCode::InvalidMessage, text, trace));
        }
    }

    /// Counts and answers what is not taken now and may be later.
    fn deny(&mut self, denied: Denied, trace_id: Option<String>) {
        let label = ["session", denied.as_str()];
        self.shared.metrics.frames_refused.with_label_values(&label).inc();
        self.send(&Event::Error {
            code: denied.code().as_str().to_owned(),
            message: denied.to_string(),
            retryable: Some(true),
            retry_after_ms: Some(denied.retry_after_ms()),
            phase: None,
            trace_id,
            job_id: None,
        });
    }

    /// Charges a message to the session's tenant; whether it is to be acted upon. One that comes
    /// too soon is answered, but for speech, of which none is lost, and what only lets go of
    /// something. In either case nothing more is read until there is room for it.
    fn charge(&mut self, message: &Result<Request, DecodeError>) -> bool {
        let Some(open) = &mut self.open else { return true };
        if !open.speaker.account.limits_messages() {
            return true;
        }
        let now = self.shared.now();
        let speech = matches!(message, Ok(Request::AudioChunk(_)));
        let taken = speech || matches!(message, Ok(Request::Ack(_) | Request::Close(_)));
        let charged = match taken {
            true => open.speaker.account.owe_message(now),
            false => open.speaker.account.charge_message(now),
        };
        let Err(denied) = charged else { return true };
        let wait_ms = denied.retry_after_ms();
        self.unread_until_us = now.after_ms(wait_ms);
        if speech {
            open.session.pause(wait_ms, now, &mut self.effects);
        }
        if !taken {
            let trace_id = open.session.profile.trace_id.clone();
            self.deny(denied, Some(trace_id));
        }
        taken
    }

    fn send(&mut self, event: &Event) {
        self.push(Frame { text: event.encode(), tag: SessionTag::Plain });
    }

    async fn init(&mut self, mut init: Init, frame: &[u8]) {
        let code = init.pairing_code.take().filter(|code| !code.is_empty());
        let profile = match Profile::new(init, uuid::Uuid::new_v4().to_string()) {
            Ok(profile) if self.shared.store.is_some() => profile,
            Ok(profile) => profile.without_store(),
            Err(fault) => return self.refuse(fault.kind(), Some(fault.to_string())),
        };
        if self.shared.is_draining() {
            return self.send(&Event::Error {
                code: ErrorCode::ShuttingDown.as_str().to_owned(),
                message: "The server is going down".to_owned(),
                retryable: Some(true),
                retry_after_ms: Some(limits::reconnect_after_ms()),
                phase: None,
                trace_id: Some(profile.trace_id),
                job_id: None,
            });
        }
        let profile = match self.as_admitted(profile) {
            Ok(profile) => profile,
            Err(trace_id) => {
                let text = "The credential is for another tenant";
                return self.send(&Event::error(ErrorCode::Forbidden, text, Some(trace_id)));
            }
        };
        let profile = match self.pair(code.as_deref()) {
            Ok(node) => profile.paired_with(node),
            Err(refused) => return self.not_paired(refused, profile.trace_id),
        };
        // A connection has one session; a new one takes the place of the old.
        if self.open.is_some() {
            self.input(Input::Over).await;
        }
        if self.shared.store.as_ref().is_some_and(|store| !store.takes_sessions()) {
            let text = "The server's disk has no room for new sessions";
            return self.send(&Event::error(ErrorCode::Overloaded, text, Some(profile.trace_id)));
        }
        let now = self.shared.now();
        let slot = match SessionSlot::take(&self.shared, profile.tenant.as_deref()) {
            Ok(slot) => slot,
            Err(denied) => return self.deny(denied, Some(profile.trace_id)),
        };
        let epoch = self.shared.boot_epoch;
        let key = if profile.resume { ResumeKey::fresh(epoch) } else { None };
        let (key, secret) = key.unzip();
        let mut open = Open::new(&self.shared, self.fresh_id(), profile, epoch, key, now, slot);
        let ack = open.session.ack(secret);
        open.unstored = Some(open.row(frame));
        if let Some(line) = &self.line {
            self.shared.peers.pin().insert(open.handle.id, line.peer);
        }
        info!(session = %open.handle.id, trace_id = %open.session.profile.trace_id,
            peer = ?self.line.as_ref().map(|line| line.peer), src = %open.session.profile.src,
            tgt = %open.session.profile.tgt, platform = %open.session.profile.platform,
            "session opened");
        self.shared.metrics.sessions_opened.inc();
        self.open = Some(open);
        self.send(&ack);
    }

    /// The session as one of the tenant whose key was shown; the error is the session's trace.
    fn as_admitted(&self, profile: Profile) -> Result<Profile, String> {
        let admitted = self.line.as_ref().and_then(|line| line.admitted.as_ref());
        let Some(Admitted { pass, .. }) = admitted.map(Box::as_ref) else { return Ok(profile) };
        match (&profile.tenant, &pass.tenant) {
            (Some(named), Some(tenant)) if named != tenant => Err(profile.trace_id),
            (_, tenant) => {
                let tenant = tenant.clone();
                Ok(profile.of_tenant(tenant))
            }
        }
    }

    /// The node that the client's code is for, if it offers one.
    fn pair(&self, code: Option<&str>) -> Result<Option<NodeId>, NotPaired> {
        let (Some(code), Some(line)) = (code, &self.line) else { return Ok(None) };
        let from = line.peer.ip().to_canonical();
        let outcome = self.shared.pairings.redeem(code, from, self.shared.now());
        let label = match &outcome {
            Ok(_) => "paired",
            Err(NotPaired::Invalid) => "invalid",
            Err(NotPaired::TooMany(_)) => "too_many",
        };
        self.shared.metrics.pairings.with_label_values(&[label]).inc();
        outcome.map(Some)
    }

    fn not_paired(&mut self, refused: NotPaired, trace_id: String) {
        let (code, retry_after_ms) = match refused {
            NotPaired::Invalid => (ErrorCode::InvalidPairingCode, None),
            NotPaired::TooMany(wait_ms) => (ErrorCode::RateLimited, Some(wait_ms)),
        };
        self.send(&Event::Error {
            code: code.as_str().to_owned(),
            message: refused.to_string(),
            retryable: Some(retry_after_ms.is_some()),
            retry_after_ms,
            phase: None,
            trace_id: Some(trace_id),
            job_id: None,
        });
    }

    fn fresh_id(&self) -> SessionId {
        let sessions = self.shared.sessions.pin();
        loop {
            let id = SessionId(fastrand::u64(1..));
            if !sessions.contains_key(&id) {
                return id;
            }
        }
    }

    /// The client goes on with a session: its socket goes to that session's task.
    fn resume(&mut self, resume: Resume) {
        if self.open.is_some() {
            let text = "this connection has a session".to_owned();
            return self.refuse("resume_in_session", Some(text));
        }
        let Some(handle) = self.resumable(&resume) else {
            return self.unknown_session(resume.session_id);
        };
        let Some(line) = self.line.take() else { return };
        let Resume { session_id, last_seq, .. } = resume;
        handle.welcome(Newcomer { line, last_seq, session_id });
        if handle.is_over() {
            turn_away(&self.shared, &handle);
        }
    }

    fn resumable(&self, resume: &Resume) -> Option<Arc<SessionHandle>> {
        let id: SessionId = resume.session_id.parse().ok()?;
        let handle = self.shared.sessions.pin().get(&id).map(Arc::clone)?;
        let admitted = self.line.as_ref().and_then(|line| line.admitted.as_ref());
        if admitted.is_some_and(|admitted| admitted.pass.tenant != handle.profile.tenant) {
            return None;
        }
        let key = handle.key.filter(|key| key.opens(resume.epoch, &resume.resume_secret));
        key.map(|_| handle)
    }

    fn unknown_session(&mut self, session_id: String) {
        self.shared.metrics.resumes.with_label_values(&["unknown_session"]).inc();
        let reason = Some("unknown_session");
        let session_id = crate::protocol::limits::clip(&session_id, 64).to_owned();
        let ack = ResumeAck { session_id, reason, ..ResumeAck::default() };
        self.send(&Event::SessionResumeAck(Box::new(ack)));
    }

    /// Clients that came back: the newest gets the session.
    async fn take_newcomers(&mut self) {
        while let Some(open) = &mut self.open
            && let Some(newcomer) = open.handle.newcomer()
        {
            let Newcomer { line, last_seq, session_id } = newcomer;
            let now = self.shared.now();
            let mut effects = Effects::new();
            if !open.session.attach(last_seq, now, &mut effects) {
                spawn_stranger(&self.shared, line, session_id);
                continue;
            }
            self.shared.peers.pin().insert(open.handle.id, line.peer);
            let (owed, session) = (open.session.owed().0, open.handle.id);
            info!(%session, peer = %line.peer, last_seq, owed, "session resumed");
            self.shared.metrics.resumes.with_label_values(&["resumed"]).inc();
            if let Some(old) = self.line.replace(line) {
                old.outbox.close();
                self.shared.metrics.connections.with_label_values(&["session"]).dec();
                let why = "replaced by a newer connection";
                tokio::spawn(old.connection.close(4409, why, CLOSE_WITHIN));
            }
            self.effects.append(&mut effects);
            self.perform(now).await;
            if let Some(open) = &self.open {
                open.handle.room.look_again();
            }
        }
    }

    /// Gives the session an input and performs what comes of it.
    pub(super) async fn input(&mut self, input: Input) {
        let now = self.shared.now();
        let Some(open) = &mut self.open else { return };
        open.session.apply(input, now, &mut self.effects);
        self.perform(now).await;
        if let Some(open) = &mut self.open {
            open.session.end_if_done(&mut self.effects);
            self.perform(now).await;
        }
    }

    async fn perform(&mut self, now: Now) {
        while !self.effects.is_empty() {
            for effect in std::mem::take(&mut self.effects) {
                if let Some(wait) = self.perform_one(effect, now) {
                    wait.await;
                }
            }
        }
        if let Some(open) = &self.open {
            // In this order, so that an outcome between the two is not overlooked.
            open.handle.untold.store(open.session.undurable(), SeqCst);
            open.handle.open_jobs.store(open.session.open_jobs(), SeqCst);
            open.handle.utterances.store(open.session.utterances(), SeqCst);
            open.handle.owed.store(open.session.owed().0, SeqCst);
        }
    }

    pub(super) fn submit(&mut self, mut cutting: Cutting, now: Now) {
        self.submit_for_others(&mut cutting, now);
        let index = cutting.spec.utterance_index;
        let ending = cutting.spec.cut.closes_turn().then_some(cutting.spec.turn);
        let Cutting { spec, audio, received_us, chunks, key, for_others: _ } = cutting;
        let key = key.map(|key| job::ClientKey { text: key.text, digest: key.digest });
        let submission = Submission { spec, audio, received_us, cut_us: now.us, chunks, key };
        let Some(speaker) = self.open.as_ref().map(|open| Arc::clone(&open.speaker)) else {
            return;
        };
        let outcome = self.try_submit(&speaker, submission, now);
        let Some(open) = &mut self.open else { return };
        match outcome {
            Ok(Submitted::New(job)) => open.session.submitted(index, job.id),
            Ok(Submitted::Repeated(job)) => {
                debug!(%job, session = %open.handle.id, utterance = index, "submitted again");
                open.session.repeated(index, job, &mut self.effects);
            }
            Err(denied) => {
                self.shared.metrics.jobs_refused.with_label_values(&[denied.as_str()]).inc();
                warn!(session = %open.handle.id, utterance = index, %denied, "utterance refused");
                if let Some(turn) = ending {
                    open.speaker.end_turn(turn);
                }
                if denied == Denied::Conflict {
                    open.session.conflicting(index, &mut self.effects);
                } else {
                    let stored = open.session.profile.resume
                        && open.store_session(self.shared.store.as_ref());
                    let refusal = Refusal {
                        stored,
                        code: denied.code(),
                        why: denied.to_string(),
                        retry_after_ms: denied.retry_after_ms(),
                    };
                    open.session.refused(index, refusal, now, &mut self.effects);
                }
            }
        }
        perform(&self.shared, &mut self.job_effects, now);
    }

    /// Submits for one of the session's accounts with the scheduler.
    pub(super) fn try_submit(
        &mut self,
        speaker: &Arc<Speaker>,
        submission: Submission,
        now: Now,
    ) -> Result<Submitted, Denied> {
        let Some(open) = &mut self.open else { return Err(Denied::SessionFull) };
        if let Some(job) = self.shared.scheduler.known(&submission)? {
            return Ok(Submitted::Repeated(job));
        }
        if open.session.owes_acks() {
            return Err(Denied::Unacknowledged);
        }
        if let Some(store) = &self.shared.store
            && !(store.has_room_for_accepts() && open.store_session(Some(store)))
        {
            return Err(Denied::StoreFull);
        }
        self.shared.scheduler.submit(speaker, submission, now, &mut self.job_effects)
    }

    pub(super) fn cancel(&mut self, jobs: Vec<JobId>, now: Now) {
        let scheduler: &Scheduler = &self.shared.scheduler;
        for job in jobs.into_iter().filter_map(|id| scheduler.job(id)) {
            scheduler.cancel(&job, "the session is over", now, &mut self.job_effects);
        }
        // Whether the session is still there decides who hears of the outcomes.
        perform(&self.shared, &mut self.job_effects, now);
    }

    async fn read_mail(&mut self) {
        while let Some(mail) = self.open.as_ref().and_then(|open| open.handle.take()) {
            match mail {
                Mail::News(news) => {
                    if let crate::session::News::Durable { job, .. } = &news
                        && let Some(job) = self.shared.scheduler.job(*job)
                    {
                        job.stamps.mark(Stage::Durable, self.shared.now().us);
                        if let Some(us) = job.stamps.between(Stage::Settled, Stage::Durable) {
                            self.shared.metrics.journal_seconds.observe(us as f64 / 1e6);
                        }
                    }
                    self.input(Input::News(news)).await;
                }
                Mail::Settled(job, news) => {
                    if let Some(open) = &mut self.open {
                        open.settled.insert(job.id, job);
                    }
                    self.input(Input::News(news)).await;
                }
                Mail::Reopened(job) => {
                    if let Some(open) = &mut self.open {
                        let (index, lang) = (job.spec.utterance_index, job.spec.tgt);
                        match job.spec.is_primary() {
                            true => open.session.reopened(index, job.id),
                            false => open.session.reopened_for_others(index, lang, job.id),
                        }
                    }
                }
                Mail::Replayed { after, frames } => {
                    self.input(Input::Replayed { after, frames }).await;
                }
                Mail::Frame(frame) => self.send_frame(frame),
                Mail::Heard(news) => self.input(Input::News(news)).await,
            }
        }
    }

    pub(super) fn forget_session(&mut self) {
        if let Some(open) = self.open.take() {
            self.forget(open, true);
        }
    }

    /// The session is not here any more; `over` if it will not come back either.
    fn forget(&self, open: Open, over: bool) {
        let handle = &open.handle;
        self.shared.sessions.pin().remove(&handle.id);
        self.shared.peers.pin().remove(&handle.id);
        handle.end();
        if over && handle.knows_rooms.load(SeqCst) {
            tell_rooms(&self.shared, RoomInput::Gone(handle.id));
        }
        bury(&self.shared, handle);
        turn_away(&self.shared, handle);
        let stored = open.unstored.is_none();
        if let Some(store) = &self.shared.store
            && stored
            && over
            && store.submit(Write::CloseSession(handle.id), None).is_err()
        {
            warn!(session = %handle.id, "the end of a session was not noted");
        }
        info!(session = %handle.id, trace_id = %open.session.profile.trace_id, over,
            utterances = open.session.utterances(), "session closed");
    }
}

impl Open {
    /// A session and its place among the others.
    pub(super) fn new(
        shared: &Arc<Shared>,
        id: SessionId,
        profile: Profile,
        epoch: u32,
        key: Option<ResumeKey>,
        now: Now,
        slot: SessionSlot,
    ) -> Self {
        let (own, jobs_max, tells_at_once) = shared.settings.with(|version| {
            let config = &version.config;
            let own = (config.session.clone(), config.segmenter.clone());
            let jobs_max = (config.session.jobs_max, config.room.languages_max);
            (own, jobs_max, shared.tells_at_once(&config.session))
        });
        let handle = Arc::new(SessionHandle::new(id, profile.clone(), now.unix_ms, key, jobs_max));
        shared.sessions.pin().insert(id, Arc::clone(&handle));
        Self {
            session: Session::new(id, profile, epoch, tells_at_once, own),
            handle,
            speaker: shared.scheduler.speaker(id, Arc::clone(&slot.account)),
            lanes: BTreeMap::new(),
            unstored: None,
            unconfirmed: VecDeque::new(),
            confirmed_through: 0,
            settled: BTreeMap::new(),
            confirmed: None,
            _slot: slot,
        }
    }

    /// Nobody will speak on.
    pub(super) fn close_turns(&self) {
        self.speaker.close_turn();
        self.lanes.values().for_each(|lane| lane.close_turn());
    }

    /// The session as it is kept, with the message it began with.
    fn row(&self, init: &[u8]) -> SessionRow {
        let profile = &self.session.profile;
        SessionRow {
            id: self.handle.id,
            trace_id: profile.trace_id.clone(),
            tenant: profile.tenant.clone(),
            platform: profile.platform.clone(),
            client_version: profile.client_version.clone(),
            src: profile.src,
            tgt: profile.tgt,
            opened_unix_ms: self.handle.opened_unix_ms,
            epoch: self.session.epoch,
            resume_hash: self.handle.key.map(|key| key.hash),
            paired: profile.paired.clone(),
            init: init.to_vec(),
        }
    }
}

/// Tells clients that came back to a session that is over.
fn turn_away(shared: &Arc<Shared>, handle: &SessionHandle) {
    while let Some(Newcomer { line, session_id, .. }) = handle.newcomer() {
        spawn_stranger(shared, line, session_id);
    }
}

/// A client whose session is not there; it may open another on the same connection.
fn spawn_stranger(shared: &Arc<Shared>, line: Line, session_id: String) {
    let mut task = SessionTask::of(Arc::clone(shared), Some(line), None);
    task.unknown_session(session_id);
    tokio::spawn(task.run());
}

async fn next_of(line: &mut Option<Line>) -> Arrival<SessionTag> {
    match line {
        Some(line) => line.connection.next().await,
        None => std::future::pending().await,
    }
}

async fn mail_for(handle: Option<&Arc<SessionHandle>>) {
    match handle {
        Some(handle) => handle.wake.notified().await,
        None => std::future::pending().await,
    }
}
