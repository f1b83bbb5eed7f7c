//! One client's connection: owns the socket and, while one is open, the session.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tracing::{debug, info, warn};

use super::perform::{bury, perform, record, when_kept};
use super::shared::{Mail, SessionHandle, SessionSlot, SessionTag, Shared, going_down};
use crate::job::{self, Scheduler, Speaker, Submission, Submitted};
use crate::protocol::session::{Event, Init, Request, decode};
use crate::protocol::{ErrorCode, JobId, SessionId};
use crate::session::{Cutting, Effect, Effects, Input, News, Profile, Session};
use crate::store::SessionRow;
use crate::store::{Done, Write};
use crate::telemetry::{Now, Stage};
use crate::tenant::Denied;
use crate::transport::{Connection, Event as Arrival, Frame, Gone, Outbox};

/// How long a full store lane is waited for before it is tried again.
const STORE_RETRY: Duration = Duration::from_millis(2);
/// How long the peer is given to take what is queued when the server closes the connection.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);

/// A session and what the shell keeps beside it.
struct Open {
    session: Session,
    handle: Arc<SessionHandle>,
    speaker: Arc<Speaker>,
    /// Outbox numbers of last words that are durable and not yet flushed to the client.
    undelivered: BTreeMap<JobId, u64>,
    _slot: SessionSlot,
}

/// One client's connection.
pub(super) struct SessionTask<S> {
    shared: Arc<Shared>,
    peer: SocketAddr,
    connection: Connection<S, SessionTag>,
    outbox: Arc<Outbox<SessionTag>>,
    open: Option<Open>,
    effects: Effects,
    job_effects: job::Effects,
}

impl<S: AsyncRead + AsyncWrite + Unpin> SessionTask<S> {
    pub(super) fn new(
        shared: Arc<Shared>,
        peer: SocketAddr,
        connection: Connection<S, SessionTag>,
        outbox: Arc<Outbox<SessionTag>>,
    ) -> Self {
        let (effects, job_effects) = (Effects::new(), job::Effects::new());
        Self { shared, peer, connection, outbox, open: None, effects, job_effects }
    }

    /// Lives as long as the connection.
    pub(super) async fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let gauge = shared.metrics.connections.with_label_values(&["session"]);
        gauge.inc();
        let mut closing = shared.closing.subscribe();
        let gone = loop {
            let tick = self.open.as_ref().and_then(|open| open.session.next_tick());
            let handle = self.open.as_ref().map(|open| Arc::clone(&open.handle));
            let jobs_max = shared.config.session.jobs_max;
            let behind = self.open.as_ref().is_some_and(|o| o.session.undurable() >= jobs_max);
            self.connection.pause_reading(behind);
            tokio::select! {
                arrival = self.connection.next() => match arrival {
                    Arrival::Text(text) => self.text(text.into()).await,
                    Arrival::Binary(_) => self.refuse("binary", None),
                    Arrival::Written(Some(job)) => self.delivered(job),
                    Arrival::Written(None) | Arrival::Pong(_) => {}
                    Arrival::Closed(gone) => break Some(gone),
                },
                () = mail_for(handle.as_ref()) => {}
                () = shared.clock.sleep_until(tick) => self.input(Input::Tick).await,
                () = going_down(&mut closing) => break None,
            }
            self.read_mail().await;
        };
        gauge.dec();
        self.finish(gone).await;
    }

    /// The connection is over, or the server is: the session ends with it.
    async fn finish(mut self, gone: Option<Gone>) {
        match gone {
            Some(gone) => {
                let why = gone.as_str();
                self.shared.metrics.connections_closed.with_label_values(&["session", why]).inc();
                debug!(peer = %self.peer, why, "session connection closed");
                self.outbox.close();
                self.input(Input::Lost).await;
            }
            None => {
                // Jobs are left alone: they are on disk and go on after the restart.
                self.forget_session();
                self.outbox.close();
                self.connection.close(1001, "server is going down", CLOSE_WITHIN).await;
            }
        }
    }

    async fn text(&mut self, frame: bytes::Bytes) {
        let request = match decode(&frame) {
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
            Request::WrongDirection(kind) => {
                debug!(kind, "a client sent what only the server sends");
                return self.refuse("wrong_direction", None);
            }
            Request::NotOffered(kind) => {
                if kind.starts_with("room_") {
                    let message = "rooms are not offered by this server";
                    self.send(&Event::RoomError { code: "UNSUPPORTED_FEATURE", message });
                }
                return self.refuse("not_offered", None);
            }
        };
        self.shared.metrics.frames_in.with_label_values(&["session", kind]).inc();
        match request {
            Request::Init(init) => self.init(*init).await,
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

    fn send(&mut self, event: &Event) {
        self.push(Frame { text: event.encode(), tag: None });
    }

    fn push(&mut self, frame: Frame<SessionTag>) {
        if self.outbox.push(frame).is_err() && !self.outbox.is_closed() {
            // The client does not read; what it was owed is on disk.
            warn!(peer = %self.peer, "a client is too slow: closing its connection");
            self.shared.metrics.progress_dropped.with_label_values(&["outbox_full"]).inc();
            self.outbox.request_close(4408, "too slow");
        }
    }

    async fn init(&mut self, init: Init) {
        let profile = match Profile::new(init, uuid::Uuid::new_v4().to_string()) {
            Ok(profile) => profile,
            Err(fault) => return self.refuse(fault.kind(), Some(fault.to_string())),
        };
        // A connection has one session; a new one takes the place of the old.
        if self.open.is_some() {
            self.input(Input::Lost).await;
        }
        let now = self.shared.now();
        let Some(slot) = SessionSlot::take(&self.shared) else {
            let text = "The server has as many sessions as it may";
            return self.send(&Event::error(ErrorCode::Overloaded, text, Some(profile.trace_id)));
        };
        let id = self.fresh_id();
        let config = &self.shared.config;
        let handle = Arc::new(SessionHandle::new(
            id,
            profile.clone(),
            self.peer,
            now.unix_ms,
            config.session.jobs_max,
        ));
        let session = Session::new(id, profile, config.session.clone(), config.segmenter.clone());
        info!(session = %id, trace_id = %session.profile.trace_id, peer = %self.peer,
            src = %session.profile.src, tgt = %session.profile.tgt,
            platform = %session.profile.platform, "session opened");
        self.remember(&session.profile, id, now);
        self.shared.sessions.pin().insert(id, Arc::clone(&handle));
        self.shared.metrics.sessions_opened.inc();
        let ack = session.ack();
        let speaker = self.shared.scheduler.speaker(id);
        let undelivered = BTreeMap::new();
        self.open = Some(Open { session, handle, speaker, undelivered, _slot: slot });
        self.send(&ack);
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

    fn remember(&self, profile: &Profile, id: SessionId, now: Now) {
        let Some(store) = &self.shared.store else { return };
        let row = SessionRow {
            id,
            trace_id: profile.trace_id.clone(),
            tenant: profile.tenant.clone(),
            platform: profile.platform.clone(),
            client_version: profile.client_version.clone(),
            src: profile.src,
            tgt: profile.tgt,
            opened_unix_ms: now.unix_ms,
            epoch: self.shared.boot_epoch,
            next_seq: 1,
        };
        if store.submit(Write::OpenSession(row), None).is_err() {
            warn!(session = %id, "the store is behind: the session was not noted");
        }
    }

    /// Gives the session an input and performs what comes of it.
    async fn input(&mut self, input: Input) {
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
                self.perform_one(effect, now).await;
            }
        }
        if let Some(open) = &self.open {
            // In this order, so that an outcome between the two is not overlooked.
            open.handle.untold.store(open.session.undurable(), SeqCst);
            open.handle.open_jobs.store(open.session.open_jobs(), SeqCst);
            open.handle.utterances.store(open.session.utterances(), SeqCst);
        }
    }

    async fn perform_one(&mut self, effect: Effect, now: Now) {
        let metrics = &self.shared.metrics;
        match effect {
            Effect::Send(text, tag) => {
                let kind = match tag {
                    Some(_) if text.starts_with(b"{\"type\":\"translation_result\"") => "result",
                    Some(_) => "missing",
                    None => "",
                };
                if !kind.is_empty() {
                    metrics.results_out.with_label_values(&[kind]).inc();
                }
                self.push(Frame { text, tag });
            }
            Effect::Submit(cutting) => self.submit(*cutting, now),
            Effect::Record { index, job, frame } => self.record(index, job, frame, now).await,
            Effect::Cancel(jobs) => self.cancel(jobs, now),
            Effect::Silence(cut, bytes) => {
                metrics.silences.with_label_values(&[cut.as_str()]).inc();
                metrics.audio_dropped.with_label_values(&["silence"]).inc_by(bytes as u64);
            }
            Effect::Dropped(why, bytes) => {
                metrics.audio_dropped.with_label_values(&[why]).inc_by(bytes as u64);
            }
            Effect::WasCut(cut) => {
                metrics.cuts.with_label_values(&[cut.as_str()]).inc();
                let earlier =
                    if cut == crate::protocol::job::Cut::Manual { "send" } else { "timeout" };
                metrics.finalized.with_label_values(&[earlier]).inc();
            }
            Effect::Foreign => metrics.foreign.with_label_values(&["session"]).inc(),
            Effect::Ended => self.forget_session(),
        }
    }

    fn submit(&mut self, cutting: Cutting, now: Now) {
        let Some(open) = &mut self.open else { return };
        let index = cutting.spec.utterance_index;
        let Cutting { spec, audio, received_us } = cutting;
        let submission = Submission { spec, audio, received_us, cut_us: now.us };
        let scheduler = &self.shared.scheduler;
        let outcome = if store_has_room(&self.shared) {
            scheduler.submit(&open.speaker, submission, now, &mut self.job_effects)
        } else {
            Err(Denied::StoreFull)
        };
        match outcome {
            Ok(Submitted::New(job)) => open.session.submitted(index, job.id),
            Ok(Submitted::Repeated(job)) => {
                debug!(%job, session = %open.handle.id, utterance = index, "submitted again");
                open.session.repeated(index);
            }
            Err(denied) => {
                self.shared.metrics.jobs_refused.with_label_values(&[denied.as_str()]).inc();
                warn!(session = %open.handle.id, utterance = index, %denied, "utterance refused");
                let (why, retry) = (denied.to_string(), denied.retry_after_ms());
                open.session.refused(index, &why, retry, now, &mut self.effects);
            }
        }
        perform(&self.shared, &mut self.job_effects, now);
    }

    fn cancel(&mut self, jobs: Vec<JobId>, now: Now) {
        let scheduler: &Scheduler = &self.shared.scheduler;
        for job in jobs.into_iter().filter_map(|id| scheduler.job(id)) {
            scheduler.cancel(&job, "the session is over", now, &mut self.job_effects);
        }
        // Whether the session is still there decides who hears of the outcomes.
        perform(&self.shared, &mut self.job_effects, now);
    }

    /// Keeps the last word on a job; tells the client now or when it is durable.
    async fn record(&mut self, index: u64, id: JobId, frame: bytes::Bytes, now: Now) {
        let (Some(job), Some(open)) = (self.shared.scheduler.job(id), &mut self.open) else {
            return;
        };
        if self.shared.tells_at_once() {
            open.session.apply(Input::News(News::Durable(index)), now, &mut self.effects);
        }
        let told = self.shared.tells_at_once();
        let mailbox = Arc::clone(&open.handle);
        let mut done: Option<Done> = Some(when_kept(&self.shared, &job, move |committed| {
            mailbox.deliver(Mail::Durable { index, job: id, seq: committed.outbox_seq });
        }));
        // A full lane means that results come faster than the disk takes them: this session waits.
        while let Err(back) = record(&self.shared, &job, Some(frame.clone()), done.take()) {
            done = back;
            tokio::time::sleep(STORE_RETRY).await;
        }
        debug!(job = %id, index, told, "outcome recorded");
    }

    async fn read_mail(&mut self) {
        let now = self.shared.now();
        while let Some(mail) = self.open.as_ref().and_then(|open| open.handle.take()) {
            match mail {
                Mail::News(news) => self.input(Input::News(news)).await,
                Mail::Durable { index, job, seq } => {
                    if let Some(job) = self.shared.scheduler.job(job) {
                        job.stamps.mark(Stage::Durable, now.us);
                    }
                    if let (Some(seq), Some(open)) = (seq, &mut self.open) {
                        open.undelivered.insert(job, seq);
                    }
                    self.input(Input::News(News::Durable(index))).await;
                }
            }
        }
    }

    /// The last word on a job was flushed to the client.
    fn delivered(&mut self, id: JobId) {
        let now = self.shared.now();
        if let Some(job) = self.shared.scheduler.job(id) {
            job.stamps.mark(Stage::Delivered, now.us);
            if let Some(us) = job.stamps.between(Stage::Settled, Stage::Delivered) {
                self.shared.metrics.deliver_seconds.observe(us as f64 / 1e6);
            }
        }
        let Some(open) = &mut self.open else { return };
        let Some(seq) = open.undelivered.remove(&id) else { return };
        let session = open.handle.id;
        if let Some(store) = &self.shared.store {
            // Kept if it cannot be noted: it is then told again, or expires.
            let noted = store.submit(Write::Delivered { session, through_seq: seq }, None);
            if noted.is_err() {
                open.undelivered.insert(id, seq);
            }
        }
    }

    fn forget_session(&mut self) {
        let Some(open) = self.open.take() else { return };
        self.shared.sessions.pin().remove(&open.handle.id);
        open.handle.end();
        bury(&self.shared, &open.handle);
        if let Some(store) = &self.shared.store
            && store.submit(Write::CloseSession(open.handle.id), None).is_err()
        {
            warn!(session = %open.handle.id, "the end of a session was not noted");
        }
        info!(session = %open.handle.id, trace_id = %open.session.profile.trace_id,
            utterances = open.session.utterances(), "session closed");
    }
}

fn store_has_room(shared: &Shared) -> bool {
    shared.store.as_ref().is_none_or(|store| store.has_room_for_accepts())
}

async fn mail_for(handle: Option<&Arc<SessionHandle>>) {
    match handle {
        Some(handle) => handle.wake.notified().await,
        None => std::future::pending().await,
    }
}
