//! One speaker: cuts audio into utterances, gives results back in order.
//!
//! It refuses to know nodes and jobs: what it cuts is submitted by the shell, and of a job it knows
//! the id. `apply` takes one input, the time, and a list to put effects in; it never waits.

mod group;
mod profile;
mod segmenter;
mod sequencer;

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;

use crate::config;
use crate::protocol::audio::{self, Format};
use crate::protocol::job::{Audio, Cut, JobSpec};
use crate::protocol::node::JobResult;
use crate::protocol::session::{
    AudioChunk, Event, NetworkTimings, Request, TranslationResult, UiEvent, UiStatus, Utterance,
};
use crate::protocol::{ErrorCode, JobId, SessionId, TurnId};
use crate::telemetry::Now;

use group::Groups;
use profile::boxed;
use segmenter::{Out, Piece, Segmenter};
use sequencer::{Release, Sequencer};

/// Largest utterance index a client may choose: beyond it JSON numbers lose their last digit.
const INDEX_MAX: u64 = (1 << 53) - 1;
/// Audio of recordings that wait for the ones before them, in bytes, beyond which no further one is
/// taken early; one more may be held than fits.
const HELD_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Shortest time between two requests to pause, in microseconds: clients ignore the second.
const PAUSE_APART_US: u64 = 500_000;

pub use profile::Profile;

/// What reaches a session.
#[derive(Debug)]
pub enum Input {
    /// A message of the client.
    Request(Request),
    /// News of one of its jobs.
    News(News),
    /// Time has passed.
    Tick,
    /// The connection is gone for good.
    Lost,
}

/// News of a job.
#[derive(Debug)]
pub enum News {
    /// It is with a node.
    Dispatched(u64, JobId),
    /// The node said so.
    Accepted(u64, JobId),
    /// A transcript so far.
    Partial {
        /// Utterance.
        index: u64,
        /// Its job.
        job: JobId,
        /// The transcript.
        text: String,
        /// Whether it will not change.
        is_final: bool,
    },
    /// It ended.
    Settled {
        /// Utterance.
        index: u64,
        /// Its job.
        job: JobId,
        /// How.
        answer: Answer,
        /// Milliseconds since the job was made.
        elapsed_ms: u64,
        /// Where the time went.
        network: NetworkTimings,
    },
    /// What was recorded about the utterance may now be told.
    Durable(u64),
}

/// How a job ended, in the session's terms.
#[derive(Debug)]
pub enum Answer {
    /// There is something to hear or read.
    Result(Box<JobResult>),
    /// There is nothing, and nothing is wrong.
    Nothing(&'static str),
    /// It could not be done.
    Failed {
        /// Code, one of ours or the node's own.
        code: String,
        /// Ours, if it is.
        known: Option<ErrorCode>,
        /// For the log and for clients that asked for it.
        message: String,
        /// Word for `missing_result.reason`.
        reason: &'static str,
    },
}

/// What the shell has to do.
#[derive(Debug)]
pub enum Effect {
    /// Send the client this frame; with a job if it is the last word on it.
    Send(Bytes, Option<JobId>),
    /// Submit this utterance and tell the session what became of it (`submitted`, `refused`).
    Submit(Box<Cutting>),
    /// Keep the last word on this job until it is delivered; `News::Durable` when that is done.
    Record {
        /// Utterance.
        index: u64,
        /// Its job.
        job: JobId,
        /// The frame owed to the client.
        frame: Bytes,
    },
    /// Nobody wants these jobs any more.
    Cancel(Vec<JobId>),
    /// A cut in which nothing was said made no utterance.
    Silence(Cut, usize),
    /// Audio went without becoming an utterance.
    Dropped(&'static str, usize),
    /// An utterance was cut.
    WasCut(Cut),
    /// The message named an id of someone else.
    Foreign,
    /// The session is over.
    Ended,
}

/// Effects in the order they were caused.
pub type Effects = Vec<Effect>;

/// An utterance to submit.
#[derive(Debug)]
pub struct Cutting {
    /// What is asked.
    pub spec: JobSpec,
    /// The speech.
    pub audio: Audio,
    /// When its first audio was read, monotonic microseconds.
    pub received_us: u64,
}

/// A whole recording that waits for the ones before it.
#[derive(Debug)]
struct Held {
    cutting: Box<Cutting>,
    since_us: u64,
}

/// One speaker's session.
#[derive(Debug)]
pub struct Session {
    /// Its name.
    pub id: SessionId,
    /// What the client said about itself.
    pub profile: Profile,
    config: config::Session,
    padding_manual_ms: u32,
    padding_auto_ms: u32,
    segmenter: Segmenter,
    cuts: Vec<Out>,
    sequencer: Sequencer<(JobId, Bytes)>,
    releases: Vec<Release<(JobId, Bytes)>>,
    groups: Groups,
    /// The turn that has begun and is not over.
    turn: Option<TurnId>,
    /// Index of the next utterance cut from the stream.
    next_index: u64,
    /// Indices given to utterances cut from the stream: a client's own may not collide with them.
    stream_indices: Vec<Range<u64>>,
    /// Index of the client's next whole recording.
    expected: u64,
    held: BTreeMap<u64, Held>,
    /// Unsettled jobs.
    open: BTreeMap<u64, JobId>,
    /// Traces of recordings that brought their own.
    traces: BTreeMap<u64, String>,
    /// Last words recorded and not yet durable.
    recorded: BTreeMap<u64, (JobId, Bytes)>,
    /// The client asked to end; what is open then is waited for until this moment.
    closing_until: Option<u64>,
    paused_us: u64,
}

impl Session {
    /// A session that begins now.
    pub fn new(
        id: SessionId,
        profile: Profile,
        config: config::Session,
        segmenter: config::Segmenter,
    ) -> Self {
        Self {
            id,
            sequencer: Sequencer::new(config.result_gap_wait_ms),
            groups: Groups::new(id, config.group_window_ms),
            padding_manual_ms: segmenter.padding_manual_ms,
            padding_auto_ms: segmenter.padding_auto_ms,
            segmenter: Segmenter::new(segmenter, profile.audio_format, profile.sample_rate),
            profile,
            config,
            cuts: Vec::new(),
            releases: Vec::new(),
            turn: None,
            next_index: 0,
            stream_indices: Vec::new(),
            expected: 0,
            held: BTreeMap::new(),
            open: BTreeMap::new(),
            traces: BTreeMap::new(),
            recorded: BTreeMap::new(),
            closing_until: None,
            paused_us: 0,
        }
    }

    /// The answer to `session_init`.
    pub fn ack(&self) -> Event {
        let format = self.profile.audio_format.unwrap_or(Format::Opus).as_str();
        Event::SessionInitAck {
            session_id: self.id,
            assigned_node_id: None,
            message: "session created",
            trace_id: self.profile.trace_id.clone(),
            protocol_version: "1.0",
            use_binary_frame: false,
            negotiated_codec: format,
            negotiated_audio_format: format,
            negotiated_sample_rate: self.profile.sample_rate,
            negotiated_channel_count: 1,
        }
    }

    /// Takes one input.
    pub fn apply(&mut self, input: Input, now: Now, effects: &mut Effects) {
        match input {
            Input::Request(request) => self.request(request, now, effects),
            Input::News(news) => self.news(news, now, effects),
            Input::Tick => self.tick(now, effects),
            Input::Lost => self.lost(effects),
        }
    }

    /// When `Input::Tick` is due, monotonic microseconds.
    pub fn next_tick(&self) -> Option<u64> {
        let held =
            self.held.values().map(|h| h.since_us + self.config.utterance_gap_wait_ms * 1_000);
        let timers = [self.segmenter.next_tick(), self.sequencer.gap_over_at(), self.closing_until];
        timers.into_iter().flatten().chain(held).min()
    }

    /// Utterances that are with the scheduler.
    pub fn open_jobs(&self) -> usize {
        self.open.len()
    }

    /// Utterances settled and waiting for the disk: while they are many, no more speech is read.
    pub fn undurable(&self) -> usize {
        self.recorded.len()
    }

    /// Utterances cut so far.
    pub fn utterances(&self) -> u64 {
        self.next_index
    }

    fn request(&mut self, request: Request, now: Now, effects: &mut Effects) {
        match request {
            Request::AudioChunk(chunk) => self.audio_chunk(chunk, now, effects),
            Request::Utterance(utterance) => self.utterance(*utterance, now, effects),
            Request::Heartbeat(of) if self.owns(&of.session_id, effects) => {
                let event = Event::ServerHeartbeat { session_id: self.id, timestamp: now.unix_ms };
                self.send(&event, effects);
            }
            Request::Close(of) if self.owns(&of.session_id, effects) => self.close(now, effects),
            Request::TtsStarted(mark) if self.owns(&mark.session_id, effects) => {
                self.segmenter.start_playing(now);
            }
            Request::TtsPlayEnded(mark) if self.owns(&mark.session_id, effects) => {
                self.segmenter.stop_playing(now);
                self.groups.played(mark.group_id.as_deref(), now);
            }
            // Foreign ids were answered by `owns`; a second init makes a new session in the shell.
            _ => {}
        }
    }

    /// Whether the message is about this session; if not it is answered and never acted upon.
    fn owns(&self, session_id: &str, effects: &mut Effects) -> bool {
        let ours = session_id.parse() == Ok(self.id);
        if !ours {
            effects.push(Effect::Foreign);
            let text = "Session does not exist on this connection";
            self.error(ErrorCode::InvalidSession, text, effects);
        }
        ours
    }

    fn audio_chunk(&mut self, chunk: AudioChunk, now: Now, effects: &mut Effects) {
        if !self.owns(&chunk.session_id, effects) || !self.takes_speech(effects) {
            return;
        }
        let AudioChunk { audio, client_timestamp_ms, is_final, .. } = chunk;
        let taken = self.segmenter.push(&audio, client_timestamp_ms, now, &mut self.cuts);
        if is_final {
            self.segmenter.end(now, &mut self.cuts);
        }
        self.cut(now, effects);
        if let Err(fault) = taken {
            effects.push(Effect::Dropped("invalid", audio.len()));
            self.error(ErrorCode::InvalidMessage, &fault.to_string(), effects);
        }
    }

    fn takes_speech(&self, effects: &mut Effects) -> bool {
        if self.closing_until.is_some() {
            self.error(ErrorCode::SessionClosed, "The session is closing", effects);
        }
        self.closing_until.is_none()
    }

    /// Turns what the segmenter gave out into submissions.
    fn cut(&mut self, now: Now, effects: &mut Effects) {
        for out in std::mem::take(&mut self.cuts) {
            match out {
                Out::Silence { cut, bytes } => effects.push(Effect::Silence(cut, bytes)),
                Out::Trimmed(bytes) => effects.push(Effect::Dropped("leading_silence", bytes)),
                Out::Piece(piece) => {
                    effects.push(Effect::WasCut(piece.cut));
                    let cutting = self.cutting_of(piece);
                    effects.push(Effect::Submit(Box::new(cutting)));
                }
            }
        }
        self.submit_held(effects);
        self.release(now, effects);
    }

    fn cutting_of(&mut self, piece: Piece) -> Cutting {
        // A recording that waits for its turn has its place already.
        while self.held.contains_key(&self.next_index) {
            self.next_index += 1;
        }
        let index = self.next_index;
        self.next_index += 1;
        match self.stream_indices.last_mut() {
            Some(range) if range.end == index => range.end += 1,
            _ => self.stream_indices.push(index..index + 1),
        }
        let turn = self.turn.take().unwrap_or_else(fresh_turn);
        if !piece.cut.closes_turn() {
            self.turn = Some(turn);
        }
        let padding_ms = match piece.cut {
            Cut::Manual => self.padding_manual_ms,
            Cut::MaxBytes => 0,
            _ => self.padding_auto_ms,
        };
        let spec = JobSpec {
            audio_format: piece.format.as_str().into(),
            sample_rate: self.profile.sample_rate,
            audio_ms: piece.audio_ms,
            padding_ms: Some(padding_ms),
            cut: piece.cut,
            client_sent_ms: piece.client_sent_ms,
            ..self.spec(index, turn)
        };
        Cutting { spec, audio: Audio::Raw(piece.audio), received_us: piece.received_us }
    }

    /// A job description with the session's own values.
    fn spec(&self, utterance_index: u64, turn: TurnId) -> JobSpec {
        let p = &self.profile;
        JobSpec {
            session: self.id,
            utterance_index,
            turn,
            tenant: boxed(p.tenant.as_ref()),
            src: p.src,
            tgt: p.tgt,
            dialect: boxed(p.dialect.as_ref()),
            mode: boxed(p.mode.as_ref()),
            lang_a: p.lang_a,
            lang_b: p.lang_b,
            auto_langs: p.auto_langs.clone(),
            features: p.features,
            pipeline: p.pipeline,
            audio_format: "".into(),
            sample_rate: p.sample_rate,
            audio_ms: 0,
            trace_id: p.trace_id.as_str().into(),
            padding_ms: None,
            cut: Cut::Whole,
            streaming_asr: p.streaming_asr,
            partial_interval_ms: p.partial_interval_ms,
            client_sent_ms: None,
        }
    }

    fn utterance(&mut self, utterance: Utterance, now: Now, effects: &mut Effects) {
        let index = utterance.head.utterance_index;
        if !self.owns(&utterance.head.session_id, effects) || !self.takes_speech(effects) {
            return;
        }
        if index > INDEX_MAX || self.stream_indices.iter().any(|r| r.contains(&index)) {
            let text = format!("utterance_index {index} cannot be used");
            return self.error(ErrorCode::InvalidMessage, &text, effects);
        }
        let held_bytes: usize = self.held.values().map(|h| h.cutting.audio.held_len()).sum();
        let full = self.held.len() >= self.config.jobs_max || held_bytes > HELD_BYTES_MAX;
        if full && index > self.expected && !self.held.contains_key(&index) {
            let text = "Too many utterances wait for the ones before them";
            return self.error(ErrorCode::Overloaded, text, effects);
        }
        let cutting = Box::new(self.cutting_of_whole(utterance, now));
        if index > self.expected {
            self.held.entry(index).or_insert(Held { cutting, since_us: now.us });
            return;
        }
        effects.push(Effect::WasCut(cutting.spec.cut));
        effects.push(Effect::Submit(cutting));
        self.advance(index, effects);
    }

    fn cutting_of_whole(&mut self, utterance: Utterance, now: Now) -> Cutting {
        let Utterance { head, audio } = utterance;
        if let Some(trace) = head.trace_id.clone() {
            self.traces.entry(head.utterance_index).or_insert(trace);
        }
        let own = self.spec(head.utterance_index, fresh_turn());
        let audio_ms = audio::estimate_ms(&head.audio_format, head.sample_rate, audio.len());
        let spec = JobSpec {
            src: head.src_lang,
            tgt: head.tgt_lang,
            dialect: boxed(head.dialect.as_ref()).or(own.dialect),
            mode: boxed(head.mode.as_ref()).or(own.mode),
            lang_a: head.lang_a.or(own.lang_a),
            lang_b: head.lang_b.or(own.lang_b),
            auto_langs: head.auto_langs.or(own.auto_langs),
            features: head.features.or(own.features),
            pipeline: head.pipeline.unwrap_or(own.pipeline),
            audio_format: head.audio_format.as_str().into(),
            sample_rate: head.sample_rate,
            audio_ms,
            trace_id: head.trace_id.map_or(own.trace_id, |t| t.as_str().into()),
            cut: if head.manual_cut { Cut::Manual } else { Cut::Whole },
            ..own
        };
        Cutting { spec, audio: Audio::Base64(audio), received_us: now.us }
    }

    /// The recording `index` went out: what waited for it follows.
    fn advance(&mut self, index: u64, effects: &mut Effects) {
        self.expected = self.expected.max(index + 1);
        self.submit_held(effects);
    }

    /// Submits the recordings whose turn it is; places that streamed speech took are passed over.
    fn submit_held(&mut self, effects: &mut Effects) {
        loop {
            let streamed = self.stream_indices.iter().find(|r| r.contains(&self.expected));
            if let Some(range) = streamed {
                self.expected = range.end;
            } else if let Some(held) = self.held.remove(&self.expected) {
                effects.push(Effect::WasCut(held.cutting.spec.cut));
                effects.push(Effect::Submit(held.cutting));
                self.expected += 1;
            } else {
                break;
            }
        }
        self.next_index = self.next_index.max(self.expected);
    }

    /// What is still missing before the oldest held recording will not be waited for any longer.
    fn skip_to_held(&mut self, effects: &mut Effects) {
        if let Some(index) = self.held.keys().next().copied() {
            self.expected = index;
            if let Some(held) = self.held.remove(&index) {
                effects.push(Effect::WasCut(held.cutting.spec.cut));
                effects.push(Effect::Submit(held.cutting));
                self.advance(index, effects);
            }
        }
    }

    /// The submission of `index` made a job.
    pub fn submitted(&mut self, index: u64, job: JobId) {
        self.sequencer.open(index);
        self.open.insert(index, job);
    }

    /// The submission of `index` found the job that exists: nothing new is owed.
    pub fn repeated(&mut self, index: u64) {
        if !self.open.contains_key(&index) && !self.recorded.contains_key(&index) {
            self.traces.remove(&index);
        }
    }

    /// The submission of `index` was refused: the client is told, in order, and asked to pause if
    /// it is speaking. Nothing was kept.
    pub fn refused(
        &mut self,
        index: u64,
        why: &str,
        retry_after_ms: u64,
        now: Now,
        effects: &mut Effects,
    ) {
        self.sequencer.open(index);
        self.ui(UiEvent::Error, index, None, Some(ErrorCode::Overloaded.as_str()), None, effects);
        if self.profile.typed_errors {
            let event = Event::Error {
                code: ErrorCode::Overloaded.as_str().to_owned(),
                message: why.to_owned(),
                retryable: Some(true),
                retry_after_ms: Some(retry_after_ms),
                phase: Some("submit"),
                trace_id: Some(self.profile.trace_id.clone()),
                job_id: None,
            };
            self.send(&event, effects);
        }
        let frame = self.missing(index, "overloaded", now);
        self.traces.remove(&index);
        self.sequencer.settle(index, (JobId(0), frame), now.us, &mut self.releases);
        let speaking = self.segmenter.next_tick().is_some();
        if speaking && now.us.saturating_sub(self.paused_us) > PAUSE_APART_US {
            self.paused_us = now.us;
            let event = Event::Backpressure { action: "PAUSE", resume_after_ms: retry_after_ms };
            self.send(&event, effects);
        }
        self.release(now, effects);
    }

    fn news(&mut self, news: News, now: Now, effects: &mut Effects) {
        match news {
            News::Dispatched(index, job) => {
                self.ui(UiEvent::Dispatched, index, Some(job), None, None, effects);
            }
            News::Accepted(index, job) => {
                self.ui(UiEvent::NodeAccepted, index, Some(job), None, None, effects);
            }
            News::Partial { index, job, text, is_final } => {
                let event = Event::AsrPartial {
                    session_id: self.id,
                    utterance_index: index,
                    job_id: job,
                    text,
                    is_final,
                    trace_id: self.trace(index).to_owned(),
                };
                self.send(&event, effects);
                self.ui(UiEvent::AsrPartial, index, Some(job), None, None, effects);
            }
            News::Settled { index, job, answer, elapsed_ms, network } => {
                if self.open.get(&index) == Some(&job) {
                    self.open.remove(&index);
                    let timing = (elapsed_ms, network);
                    let frame = self.last_word(index, job, answer, timing, now, effects);
                    self.recorded.insert(index, (job, frame.clone()));
                    effects.push(Effect::Record { index, job, frame });
                }
            }
            News::Durable(index) => {
                if let Some(item) = self.recorded.remove(&index) {
                    self.traces.remove(&index);
                    self.sequencer.settle(index, item, now.us, &mut self.releases);
                    self.release(now, effects);
                }
            }
        }
    }

    /// The frame that ends an utterance, after the events that announce it.
    fn last_word(
        &mut self,
        index: u64,
        job: JobId,
        answer: Answer,
        (elapsed_ms, network): (u64, NetworkTimings),
        now: Now,
        effects: &mut Effects,
    ) -> Bytes {
        let elapsed = Some(elapsed_ms);
        match answer {
            Answer::Result(result) => {
                if !result.text_asr.trim().is_empty() {
                    self.ui(UiEvent::AsrFinal, index, Some(job), None, elapsed, effects);
                }
                if !result.text_translated.trim().is_empty() {
                    self.ui(UiEvent::NmtDone, index, Some(job), None, elapsed, effects);
                }
                self.translation(index, job, &result, network, now)
            }
            Answer::Nothing(reason) => self.missing(index, reason, now),
            Answer::Failed { code, known, message, reason } => {
                self.ui(UiEvent::Error, index, Some(job), Some(&code), elapsed, effects);
                if self.profile.typed_errors {
                    let event = Event::Error {
                        retryable: Some(known.is_none_or(ErrorCode::retryable)),
                        code,
                        message,
                        retry_after_ms: None,
                        phase: Some("job"),
                        trace_id: Some(self.profile.trace_id.clone()),
                        job_id: Some(job),
                    };
                    self.send(&event, effects);
                }
                self.missing(index, reason, now)
            }
        }
    }

    fn translation(
        &mut self,
        index: u64,
        job: JobId,
        result: &JobResult,
        network: NetworkTimings,
        now: Now,
    ) -> Bytes {
        let has_text = !result.text_asr.trim().is_empty();
        let (group_id, part_index) = has_text.then(|| self.groups.place(now)).unzip();
        let told = result.extra.as_ref().and_then(|e| e.get("service_timings").cloned());
        let total = || result.processing_time_ms.map(|ms| serde_json::json!({"total_ms": ms}));
        let frame = TranslationResult {
            session_id: self.id,
            utterance_index: index,
            job_id: job,
            text_asr: &result.text_asr,
            text_translated: &result.text_translated,
            tts_format: &result.tts_format,
            extra: result.extra.as_ref(),
            trace_id: self.traces.get(&index).unwrap_or(&self.profile.trace_id),
            group_id,
            part_index,
            service_timings: told.or_else(total),
            network_timings: (network != NetworkTimings::default()).then_some(network),
            scheduler_sent_at_ms: now.unix_ms,
            asr_quality_level: result.asr_quality_level.as_deref(),
            reason_codes: result.reason_codes.as_deref(),
            quality_score: result.quality_score,
            rerun_count: result.rerun_count,
            segments_meta: result.segments_meta.as_ref(),
            late: false,
        };
        frame.encode(&result.tts_audio)
    }

    fn missing(&self, index: u64, reason: &'static str, now: Now) -> Bytes {
        let event = Event::MissingResult {
            session_id: self.id,
            utterance_index: index,
            reason,
            created_at_ms: now.unix_ms,
            trace_id: self.trace(index).to_owned(),
        };
        event.encode()
    }

    /// Sends what the sequencer lets go.
    fn release(&mut self, now: Now, effects: &mut Effects) {
        self.sequencer.release(now.us, &mut self.releases);
        for release in std::mem::take(&mut self.releases) {
            let of = |job: JobId| (job != JobId(0)).then_some(job);
            match release {
                Release::InOrder(_, (job, frame)) => effects.push(Effect::Send(frame, of(job))),
                Release::Late(_, (job, frame)) => {
                    effects.push(Effect::Send(marked_late(&frame), of(job)));
                }
                Release::Gap(index) => {
                    let frame = self.missing(index, "gap_timeout", now);
                    effects.push(Effect::Send(frame, None));
                }
            }
        }
    }

    fn tick(&mut self, now: Now, effects: &mut Effects) {
        self.segmenter.tick(now, &mut self.cuts);
        self.cut(now, effects);
        let wait = self.config.utterance_gap_wait_ms * 1_000;
        while self.held.values().next().is_some_and(|h| h.since_us + wait <= now.us) {
            self.skip_to_held(effects);
        }
        if self.closing_until.is_some_and(|until| until <= now.us) {
            // Settled jobs come back as news; the session ends when the last one has.
            self.closing_until = Some(u64::MAX);
            effects.push(Effect::Cancel(self.open.values().copied().collect()));
        }
    }

    /// The client ends the session: what was said is still done and told, within bounds.
    fn close(&mut self, now: Now, effects: &mut Effects) {
        if self.closing_until.is_some() {
            return;
        }
        self.segmenter.close(&mut self.cuts);
        self.cut(now, effects);
        while !self.held.is_empty() {
            self.skip_to_held(effects);
        }
        self.closing_until = Some(now.after_ms(self.config.close_wait_ms));
    }

    /// Ends a closing session once everything has been told. To be called when all effects of an
    /// input were performed: a submission among them keeps the session open.
    pub fn end_if_done(&mut self, effects: &mut Effects) {
        let done = self.open.is_empty() && self.recorded.is_empty() && self.sequencer.is_empty();
        if self.closing_until.is_some() && done {
            self.closing_until = None;
            self.send(&Event::SessionCloseAck { session_id: self.id }, effects);
            effects.push(Effect::Ended);
        }
    }

    fn lost(&mut self, effects: &mut Effects) {
        if self.segmenter.held() > 0 {
            effects.push(Effect::Dropped("session_lost", self.segmenter.held()));
        }
        for held in self.held.values() {
            effects.push(Effect::Dropped("session_lost", held.cutting.audio.held_len()));
        }
        // Ended first: what becomes of the jobs is then nobody's news any more.
        effects.push(Effect::Ended);
        effects.push(Effect::Cancel(self.open.values().copied().collect()));
    }

    fn trace(&self, index: u64) -> &str {
        self.traces.get(&index).unwrap_or(&self.profile.trace_id)
    }

    fn send(&self, event: &Event, effects: &mut Effects) {
        effects.push(Effect::Send(event.encode(), None));
    }

    fn error(&self, code: ErrorCode, message: &str, effects: &mut Effects) {
        let trace = Some(self.profile.trace_id.clone());
        self.send(&Event::error(code, message, trace), effects);
    }

    fn ui(
        &self,
        event: UiEvent,
        index: u64,
        job: Option<JobId>,
        code: Option<&str>,
        elapsed_ms: Option<u64>,
        effects: &mut Effects,
    ) {
        let hint = code.map(|c| ErrorCode::parse(c).unwrap_or(ErrorCode::ProcessingError).hint());
        let event = Event::UiEvent {
            trace_id: self.trace(index).to_owned(),
            session_id: self.id,
            job_id: job.map(|j| j.to_string()).unwrap_or_default(),
            utterance_index: index,
            event,
            elapsed_ms,
            status: if code.is_some() { UiStatus::Error } else { UiStatus::Ok },
            error_code: code.map(str::to_owned),
            hint: hint.map(str::to_owned),
        };
        self.send(&event, effects);
    }
}

fn fresh_turn() -> TurnId {
    TurnId(uuid::Builder::from_random_bytes(fastrand::u128(..).to_be_bytes()).into_uuid().as_u128())
}

/// The frame with `"late":true` as its last field.
fn marked_late(frame: &Bytes) -> Bytes {
    let Some(object) = frame.strip_suffix(b"}") else { return frame.clone() };
    Bytes::from([object, b",\"late\":true}"].concat())
}
