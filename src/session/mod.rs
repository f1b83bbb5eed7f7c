//! One speaker: cuts audio into utterances, gives results back in order.
//!
//! It refuses to know nodes and jobs: what it cuts is submitted by the shell, and of a job it knows
//! the id. `apply` takes one input, the time, and a list to put effects in; it never waits.

mod answers;
mod audience;
mod delivery;
mod drain;
mod group;
mod profile;
mod room;
mod segmenter;
mod sequencer;
mod speech;
mod stream;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

use bytes::Bytes;

use crate::config;
use crate::protocol::audio::Format;
use crate::protocol::job::{Audio, ChunkMark, Cut, Heard, JobSpec};
use crate::protocol::node::JobResult;
use crate::protocol::session::{
    Event, NetworkTimings, Request, Resumable, ResumeAck, UiEvent, UiStatus, Unfinished,
};
use crate::protocol::{ErrorCode, JobId, Lang, SessionId, TurnId};
use crate::telemetry::Now;

use answers::{Aside, Pending, Told};
use audience::{Lane, Word};
use group::Groups;
use stream::Stream;

/// Largest utterance index a client may choose: beyond it JSON numbers lose their last digit.
const INDEX_MAX: u64 = (1 << 53) - 1;
/// Audio of recordings that wait for the ones before them, in bytes, beyond which no further one is
/// taken early; one more may be held than fits.
const HELD_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Marks the numbers of proofs among those of pings: results never come to be that many.
const PROOF: u64 = 1 << 63;
/// Shortest time between two requests to pause, in microseconds: clients ignore the second.
const PAUSE_APART_US: u64 = 500_000;

pub use answers::unheard;
pub use audience::{ForOthers, Hearers, Said};
pub use delivery::{Acked, Delivery, Proof, Replay, Resumed};
pub use drain::{GoAway, Refusal};
pub use profile::Profile;
pub use room::{RoomEffect, RoomInput, RoomView, Rooms, Whereabouts};
#[doc(hidden)] // for fuzz/, which holds them beside naive twins
pub use {
    segmenter::{Out, Piece, Segmenter},
    sequencer::{Release, Sequencer},
};

/// What reaches a session.
#[derive(Debug)]
pub enum Input {
    /// A message of the client.
    Request(Request),
    /// News of one of its jobs.
    News(News),
    /// Time has passed.
    Tick,
    /// The socket took the last word on this job, and everything before it.
    Flushed(JobId, Option<u64>),
    /// The client's WebSocket stack has everything up to this number: it answered the barrier.
    Ponged(u64),
    /// What `Effect::Replay` asked for: number, job and frame, in order.
    Replayed {
        /// As it was asked for.
        after: u64,
        /// What is there.
        frames: Vec<(u64, JobId, Bytes)>,
    },
    /// The connection is gone. A client that can come back is waited for.
    Lost,
    /// Nobody will come back.
    Over,
    /// Who else is in its room now, if it is in one.
    Room(Option<Hearers>),
    /// The server goes down: with a notice when it begins to, without one just before it closes.
    Drain(Option<GoAway>),
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
        /// What of it is for others.
        others: Option<Box<ForOthers>>,
    },
    /// The utterance's job is on disk.
    Kept(u64, JobId),
    /// The last word on this job is on disk, under this number if it is owed at all.
    Durable {
        /// The job.
        job: JobId,
        /// Its place in what the client is owed.
        seq: Option<u64>,
    },
    /// Somebody else in the room said something.
    Heard {
        /// The job of another session.
        job: JobId,
        /// What the client is told.
        frame: Bytes,
        /// Its place in what the client is owed; none where nothing is kept.
        seq: Option<u64>,
    },
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
    /// Send the client this frame; with a job if it is the last word on it. It may be lost with
    /// the connection.
    Send(Bytes, Option<JobId>),
    /// Send the client this frame if it keeps up; nothing depends on it.
    Remark(Bytes),
    /// Send the client how this job is coming along: of several only the newest matters.
    Progress(JobId, Bytes),
    /// Send the client the last word on this job, which stays on disk until it is acknowledged.
    Deliver {
        /// The frame.
        frame: Bytes,
        /// The job.
        job: JobId,
        /// Its place in what the client is owed.
        seq: u64,
    },
    /// Read back what is owed and give it to `Input::Replayed`.
    Replay {
        /// What comes behind this number.
        after: u64,
        /// The most that there is room for.
        frames: usize,
    },
    /// Ping the client with this number; its answer is `Input::Ponged`.
    Barrier(u64),
    /// Send the client this frame, and ping it with this number behind it.
    Prove(Bytes, u64),
    /// The client has everything up to this number: it need not be kept.
    Acknowledged(u64),
    /// The client will not get what it is owed up to this number: it becomes a dead letter.
    Forfeit(u64),
    /// Submit this utterance and tell the session what became of it (`submitted`, `refused`).
    Submit(Box<Cutting>),
    /// Keep the last word on this job until it is acknowledged; `News::Durable` when that is done.
    Record {
        /// Utterance.
        index: u64,
        /// Its job.
        job: JobId,
        /// The frame owed to the client; none if the job was for others alone.
        frame: Option<Bytes>,
        /// The frames owed to others.
        heard: Vec<Heard>,
    },
    /// This was said in the room: for those who come later.
    Said(Box<Said>),
    /// As `Record`, for an utterance that never became a job.
    Refuse(Box<Refused>),
    /// Nobody wants these jobs any more.
    Cancel(Vec<JobId>),
    /// No job will end this turn: its jobs wait for none.
    EndTurn(TurnId),
    /// A cut in which nothing was said made no utterance.
    Silence(Cut, usize),
    /// Audio went without becoming an utterance.
    Dropped(&'static str, usize),
    /// An utterance was cut.
    WasCut(Cut),
    /// The message named an id of someone else.
    Foreign,
    /// The client is gone and may come back.
    Detached,
    /// Send the client this frame, the last one; what it was sent up to this number and did not
    /// confirm can then still be confirmed by a pong.
    Farewell(Bytes, Option<u64>),
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
    /// The same into further languages, for others alone. To be submitted first: when the job of
    /// `spec` is on disk, so are these.
    pub for_others: Vec<JobSpec>,
    /// The speech.
    pub audio: Audio,
    /// When its first audio was read, monotonic microseconds.
    pub received_us: u64,
    /// Which numbered chunks are in it and in those before it.
    pub chunks: Option<ChunkMark>,
    /// The client's own name for it.
    pub key: Option<ClientKey>,
}

/// A client's own name for an utterance.
#[derive(Debug)]
pub struct ClientKey {
    /// The name.
    pub text: String,
    /// What tells one utterance under this name from another.
    pub digest: u32,
}

/// The last word on an utterance that was refused and that its client cannot say again: its chunks
/// are not awaited any more when this is on disk.
#[derive(Debug)]
pub struct Refused {
    /// Utterance.
    pub index: u64,
    /// The name under which it is kept; there is no such job.
    pub job: JobId,
    /// What the client was told.
    pub code: ErrorCode,
    /// The reason in words.
    pub why: String,
    /// Which numbered chunks are in the utterance and in those before it.
    pub chunks: ChunkMark,
    /// The frame owed to the client.
    pub frame: Bytes,
}

/// What is known of a session that an earlier life of the server had.
#[derive(Debug, Default)]
pub struct Past {
    /// Unsettled jobs, by utterance.
    pub open: BTreeMap<u64, JobId>,
    /// Index behind the last utterance that became a job.
    pub next_index: u64,
    /// Which numbered chunks are in those jobs.
    pub chunks: Option<ChunkMark>,
    /// Number of the first frame that is owed, or will be.
    pub first_seq: u64,
    /// Lengths of the frames that are owed, in bytes.
    pub owed: Vec<u32>,
    /// A turn of which slices are unsettled and whose end was not cut.
    pub turn: Option<TurnId>,
    /// Who hears the rest of it.
    pub hearers: Option<Hearers>,
    /// Utterances of `open` that others hear as well.
    pub shared: BTreeSet<u64>,
    /// Unsettled jobs for others alone: language, utterance, job.
    pub for_others: Vec<(Lang, u64, JobId)>,
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
    /// Incarnation of its numbering.
    pub epoch: u32,
    config: config::Session,
    /// Last words are sent before they are on disk.
    tells_at_once: bool,
    padding_manual_ms: u32,
    padding_auto_ms: u32,
    segmenter: Segmenter,
    cuts: Vec<Out>,
    sequencer: Sequencer<Word>,
    releases: Vec<Release<Word>>,
    /// Who else is in its room.
    hearers: Option<Hearers>,
    /// Who hears the turn that has begun: those who were there then.
    turn_hearers: Option<Hearers>,
    /// Its utterances in further languages, for others alone.
    lanes: BTreeMap<Lang, Lane>,
    /// Open utterances that others hear as well: they are done though the speaker is gone.
    shared: BTreeSet<u64>,
    groups: Groups,
    /// The turn that has begun and is not over.
    turn: Option<TurnId>,
    /// That turn began in an earlier life of the server and nothing of its rest is held: until this
    /// moment the client may speak on, monotonic microseconds.
    turn_until: Option<u64>,
    pause_ms: u64,
    /// Index of the next utterance cut from the stream.
    next_index: u64,
    /// Indices given to utterances cut from the stream: a client's own may not collide with them.
    stream_indices: Vec<Range<u64>>,
    /// Index of the client's next whole recording.
    expected: u64,
    held: BTreeMap<u64, Held>,
    /// Unsettled jobs.
    open: BTreeMap<u64, JobId>,
    /// Those of them that are on disk, for clients that want to hear of it.
    kept: BTreeSet<JobId>,
    /// Traces of recordings that brought their own.
    traces: BTreeMap<u64, String>,
    /// Last words on their way to the disk, in order.
    pending: VecDeque<Pending>,
    asides: VecDeque<Aside>,
    /// Refusals that were said and that the client is not known to have heard, by the number of
    /// their proof, and the last such number.
    unproven: VecDeque<(u64, Aside)>,
    proof: u64,
    told: VecDeque<Told>,
    /// Refusals to be kept, until those before them let them go. Their frames are elsewhere.
    refusals: BTreeMap<JobId, Refused>,
    delivery: Delivery,
    stream: Stream,
    /// The client is gone; until this moment it may come back, monotonic microseconds.
    detached_until: Option<u64>,
    /// The client asked to end; what is open then is waited for until this moment.
    closing_until: Option<u64>,
    /// The server goes down.
    draining: bool,
    paused_us: u64,
}

impl Session {
    /// A session that begins now. `tells_at_once`: results leave before they are on disk, if the
    /// client cannot come back for them.
    pub fn new(
        id: SessionId,
        profile: Profile,
        epoch: u32,
        tells_at_once: bool,
        (config, segmenter): (config::Session, config::Segmenter),
    ) -> Self {
        let proof = if profile.resume { Proof::Ack } else { Proof::Pong };
        Self {
            id,
            epoch,
            tells_at_once: tells_at_once && !profile.resume,
            sequencer: Sequencer::new(config.result_gap_wait_ms),
            groups: Groups::new(id, config.group_window_ms),
            padding_manual_ms: segmenter.padding_manual_ms,
            padding_auto_ms: segmenter.padding_auto_ms,
            pause_ms: segmenter.pause_ms,
            segmenter: Segmenter::new(segmenter, profile.audio_format, profile.sample_rate),
            profile,
            config,
            cuts: Vec::new(),
            releases: Vec::new(),
            hearers: None,
            turn_hearers: None,
            lanes: BTreeMap::new(),
            shared: BTreeSet::new(),
            turn: None,
            turn_until: None,
            next_index: 0,
            stream_indices: Vec::new(),
            expected: 0,
            held: BTreeMap::new(),
            open: BTreeMap::new(),
            kept: BTreeSet::new(),
            traces: BTreeMap::new(),
            pending: VecDeque::new(),
            asides: VecDeque::new(),
            unproven: VecDeque::new(),
            proof: PROOF,
            told: VecDeque::new(),
            refusals: BTreeMap::new(),
            delivery: Delivery::new(proof),
            stream: Stream::default(),
            detached_until: None,
            closing_until: None,
            draining: false,
            paused_us: 0,
        }
    }

    /// Goes on with what an earlier life of the server knew of it, without a client for now.
    pub fn restore(&mut self, past: Past, now: Now, effects: &mut Effects) {
        // What ended had its turn: those before it had been passed over, or told, by then.
        let ended = (0..past.next_index).rev().find(|index| !past.open.contains_key(index));
        for index in past.open.keys() {
            match Some(*index) < ended {
                true => self.sequencer.expect_late(*index),
                false => self.sequencer.open(*index),
            }
        }
        let proof = if self.profile.resume { Proof::Ack } else { Proof::Pong };
        self.delivery = Delivery::restored(proof, past.first_seq.max(1), past.owed);
        self.kept = past.open.values().copied().collect();
        self.open = past.open;
        self.next_index = past.next_index;
        self.expected = past.next_index;
        self.stream = Stream::restored(past.chunks);
        self.turn = past.turn;
        self.turn_hearers = past.hearers;
        self.shared = past.shared;
        for (lang, index, job) in past.for_others {
            self.submitted_for_others(index, lang, job);
        }
        self.segmenter.restore(past.turn.is_some());
        self.detach(now, effects);
        if self.is_idle_orphan() {
            // Nothing will ever happen to it that could end it.
            effects.push(Effect::Ended);
        }
    }

    /// The answer to `session_init`; with the secret by which a client that offered to can come
    /// back.
    pub fn ack(&self, secret: Option<String>) -> Event {
        let format = self.profile.audio_format.unwrap_or(Format::Opus).as_str();
        let resumable = secret.map(|resume_secret| Resumable {
            epoch: self.epoch,
            resume_secret,
            resume_window_ms: self.config.resume_window_ms,
            extensions: self.profile.granted(),
        });
        Event::SessionInitAck {
            session_id: self.id,
            assigned_node_id: self.profile.paired.clone(),
            message: "session created",
            trace_id: self.profile.trace_id.clone(),
            protocol_version: "1.0",
            use_binary_frame: false,
            negotiated_codec: format,
            negotiated_audio_format: format,
            negotiated_sample_rate: self.profile.sample_rate,
            negotiated_channel_count: 1,
            resumable,
        }
    }

    /// Takes one input.
    pub fn apply(&mut self, input: Input, now: Now, effects: &mut Effects) {
        match input {
            Input::Request(request) => self.request(request, now, effects),
            Input::News(news) => self.news(news, now, effects),
            Input::Tick => self.tick(now, effects),
            Input::Flushed(job, seq) => self.flushed(job, seq),
            Input::Ponged(number) if number & PROOF != 0 => self.proven(number, effects),
            Input::Ponged(seq) => {
                let acked = self.delivery.ponged(seq);
                self.acknowledged(acked, effects);
            }
            Input::Replayed { after, frames } => self.replayed(after, frames, effects),
            Input::Lost if self.profile.resume => self.detach(now, effects),
            Input::Lost | Input::Over => self.over(effects),
            Input::Room(hearers) => self.surround(hearers),
            Input::Drain(notice) => self.drain(notice, now, effects),
        }
        if let Some((after, frames)) = self.delivery.wants() {
            effects.push(Effect::Replay { after, frames });
        }
        if let Some(seq) = self.delivery.barrier(now) {
            effects.push(Effect::Barrier(seq));
        }
    }

    /// A client came back that has everything up to `last_seq`: it is told where it goes on. False
    /// if it claims more than there is.
    pub fn attach(&mut self, last_seq: u64, now: Now, effects: &mut Effects) -> bool {
        let Some(resumed) = self.delivery.attach(last_seq) else { return false };
        self.say_again_what_is_unproven();
        self.detached_until = None;
        self.segmenter.resume(now);
        let rest_is_gone = self.turn.is_some() && self.segmenter.held() == 0;
        self.turn_until = (rest_is_gone && self.pause_ms > 0).then(|| now.after_ms(self.pause_ms));
        let utterances = self
            .open
            .iter()
            .map(|(index, job)| Unfinished { utterance_index: *index, job_id: *job });
        let ack = ResumeAck {
            session_id: self.id.to_string(),
            recovered: resumed.recovered,
            reason: (!resumed.recovered).then_some("gap"),
            epoch: Some(self.epoch),
            from_seq: Some(resumed.from),
            chunks_through: self.profile.audio_ack.then(|| self.stream.last()),
            utterances: utterances.collect(),
            trace_id: Some(self.profile.trace_id.clone()),
        };
        self.send(&Event::SessionResumeAck(Box::new(ack)), effects);
        self.stream.tell_again();
        self.tell_chunks(effects);
        if resumed.recovered && resumed.from > 1 {
            effects.push(Effect::Acknowledged(resumed.from - 1));
        }
        if let Some((after, frames)) = self.delivery.wants() {
            effects.push(Effect::Replay { after, frames });
        }
        self.say_asides(effects);
        true
    }

    /// The turn of an earlier life is over without a job that ends it.
    fn end_turn(&mut self, effects: &mut Effects) {
        self.turn_until = None;
        self.segmenter.restore(false);
        effects.extend(self.turn.take().map(Effect::EndTurn));
    }

    fn detach(&mut self, now: Now, effects: &mut Effects) {
        self.turn_until = None;
        self.say_again_what_is_unproven();
        self.delivery.detach();
        self.segmenter.suspend();
        let window_ms =
            if self.profile.resume { self.config.resume_window_ms } else { u64::MAX / 1_000 };
        self.detached_until = Some(now.after_ms(window_ms));
        effects.push(Effect::Detached);
    }

    /// When `Input::Tick` is due, monotonic microseconds.
    pub fn next_tick(&self) -> Option<u64> {
        let held =
            self.held.values().map(|h| h.since_us + self.config.utterance_gap_wait_ms * 1_000);
        let timers = [
            self.segmenter.next_tick(),
            self.sequencer.gap_over_at(),
            self.closing_until,
            self.detached_until,
            self.turn_until,
            self.delivery.barrier_due(),
        ];
        let lanes = self.lanes.values().filter_map(Lane::gap_over_at);
        timers.into_iter().flatten().chain(held).chain(lanes).min()
    }

    /// Utterances that are with the scheduler.
    pub fn open_jobs(&self) -> usize {
        self.open.len() + self.lanes.values().map(|lane| lane.open.len()).sum::<usize>()
    }

    /// Utterances settled that wait for earlier ones or for the disk: while they are many, no more
    /// speech is read.
    pub fn undurable(&self) -> usize {
        self.sequencer.ready() + self.pending.len() + self.asides.len()
    }

    /// Whether the client has to acknowledge results before it may say more.
    pub fn owes_acks(&self) -> bool {
        self.delivery.is_full(self.config.owed_frames_max, self.config.owed_bytes_max)
    }

    /// Whether a client is connected.
    pub fn is_attached(&self) -> bool {
        self.detached_until.is_none()
    }

    /// Whether nobody can come back to it, and nothing is left to be done.
    pub fn is_idle_orphan(&self) -> bool {
        let idle = self.open.is_empty() && self.undurable() == 0 && self.lanes_are_empty();
        !self.profile.resume && !self.is_attached() && idle
    }

    /// Frames kept for the client, and their bytes.
    pub fn owed(&self) -> (usize, usize) {
        self.delivery.owed()
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
            Request::Ack(ack) if self.owns(&ack.session_id, effects) => {
                self.ack_through(ack.seq, effects);
            }
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

    fn tick(&mut self, now: Now, effects: &mut Effects) {
        self.segmenter.tick(now, &mut self.cuts);
        self.cut(now, effects);
        if self.turn_until.is_some_and(|until| until <= now.us) {
            self.end_turn(effects);
        }
        let wait = self.config.utterance_gap_wait_ms * 1_000;
        while self.held.values().next().is_some_and(|h| h.since_us + wait <= now.us) {
            self.skip_to_held(effects);
        }
        if self.detached_until.is_some_and(|until| until <= now.us) {
            return self.over(effects);
        }
        if self.closing_until.is_some_and(|until| until <= now.us) {
            // Settled jobs come back as news; the session ends when the last one has.
            self.closing_until = Some(u64::MAX);
            let others = self.lanes.values().flat_map(|lane| lane.open.values());
            effects.push(Effect::Cancel(self.open.values().chain(others).copied().collect()));
        }
        self.release_lanes(now, effects);
    }

    fn lanes_are_empty(&self) -> bool {
        self.lanes.values().all(Lane::is_empty)
    }

    /// The client ends the session: what was said is still done and told, within bounds.
    fn close(&mut self, now: Now, effects: &mut Effects) {
        if self.closing_until.is_some() {
            return;
        }
        self.cut_all(now, effects);
        self.closing_until = Some(now.after_ms(self.config.close_wait_ms));
    }

    /// Nothing of what came is waited with any longer.
    fn cut_all(&mut self, now: Now, effects: &mut Effects) {
        self.segmenter.close(&mut self.cuts);
        self.cut(now, effects);
        while !self.held.is_empty() {
            self.skip_to_held(effects);
        }
    }

    /// Ends a closing session once everything has been told. To be called when all effects of an
    /// input were performed: a submission among them keeps the session open.
    pub fn end_if_done(&mut self, effects: &mut Effects) {
        let settled = self.open.is_empty() && self.sequencer.is_empty() && self.lanes_are_empty();
        let told = self.pending.is_empty() && self.asides.is_empty();
        let done = settled && told && !self.delivery.is_behind();
        if self.is_idle_orphan() {
            effects.push(Effect::Ended);
        } else if self.closing_until.is_some() && self.is_attached() && done {
            self.closing_until = None;
            let frame = Event::SessionCloseAck { session_id: self.id }.encode();
            effects.push(Effect::Farewell(frame, self.delivery.unproven()));
            effects.push(Effect::Ended);
        }
    }

    /// The session ends without its client: what is settled is kept, the rest is cancelled.
    fn over(&mut self, effects: &mut Effects) {
        if self.segmenter.held() > 0 {
            effects.push(Effect::Dropped("session_lost", self.segmenter.held()));
        }
        for held in self.held.values() {
            effects.push(Effect::Dropped("session_lost", held.cutting.audio.held_len()));
        }
        for (index, Word { job, frame, heard }) in self.sequencer.drain() {
            if job != JobId(0) {
                effects.push(Effect::Record { index, job, frame, heard });
            }
        }
        self.drain_lanes(effects);
        // Ended first: what becomes of the jobs is then nobody's news any more. What others wait
        // to hear is done all the same.
        effects.push(Effect::Ended);
        let own = self.open.iter().filter(|(index, _)| !self.shared.contains(index));
        effects.push(Effect::Cancel(own.map(|(_, job)| *job).collect()));
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
        effects.push(Effect::Remark(event.encode()));
    }
}
