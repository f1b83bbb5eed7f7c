//! One utterance from the frame that brings it to the frame that ends it, on one thread, without
//! sockets and without a disk.
//!
//! The parts are the product's; only the hands that carry effects from one to the other are
//! here, in place of `server`. What a store answers is answered at once, what a socket takes is
//! taken at once. The two frames that come in lie in memory that is written over for the next
//! utterance: that this is possible proves that nobody holds on to the speech of a job that is
//! over, and it keeps the making of frames out of what is measured.

use std::io::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::json;
use utterd::config;
use utterd::job::{self, Answered, Deadline, Job, Progress, Speaker, Submission, Submitted, Wheel};
use utterd::node::NodeIndex;
use utterd::protocol::job::Outcome;
use utterd::protocol::node::{Message, encode_job_assign};
use utterd::protocol::session::{NetworkTimings, Request};
use utterd::protocol::{JobId, SessionId};
use utterd::session::{Answer, Cutting, Effect, Effects, Input, News, Profile, Session};
use utterd::telemetry::Now;

use super::world::{self, World};

/// Time between two utterances, in milliseconds: short against every deadline that is awaited.
const APART_MS: u64 = 100;
/// Digits of an utterance's index in a frame.
const INDEX_WIDTH: usize = 8;

/// A frame of which some bytes differ each time.
struct Frame {
    bytes: Bytes,
    /// Where the bytes are that differ.
    at: usize,
}

impl Frame {
    /// `mark` stands where the bytes are to be filled in.
    fn new(text: String, mark: &str) -> Self {
        let at = text.find(mark).expect("the mark is in the frame");
        Self { bytes: Bytes::from(text.into_bytes()), at }
    }

    /// The frame with this at its place.
    fn with(&mut self, what: std::fmt::Arguments<'_>) -> Bytes {
        let own = std::mem::take(&mut self.bytes).try_into_mut();
        let mut own = own.expect("nobody holds on to what came for a job that is over");
        let mut place = &mut own[self.at..];
        place.write_fmt(what).expect("there is room");
        self.bytes = own.freeze();
        self.bytes.clone()
    }
}

/// What was made of one utterance.
pub struct Said {
    /// The frame to the node.
    pub assignment: Bytes,
    /// The frame to the client.
    pub last_word: Bytes,
}

/// A session with one node.
pub struct Journey {
    world: World,
    session: Session,
    speaker: Arc<Speaker>,
    wheel: Wheel<Deadline>,
    utterance: Frame,
    answer: Frame,
    effects: Effects,
    job_effects: job::Effects,
    now: Now,
    index: u64,
    /// Numbers given to last words so far, as a store gives them.
    seq: u64,
    assignment: Bytes,
    last_word: Bytes,
}

impl Journey {
    /// Whose utterances and whose answers have so many bytes of audio before base64.
    pub fn new(speech_bytes: usize, voice_bytes: usize) -> Self {
        fastrand::seed(7);
        let pairs = ["zh:en".parse().expect("a pair")];
        // Small memories, so that they are full, and what is measured repeats, after a few jobs.
        let memory =
            config::Job { history_max: 32, idempotency_ms: 2_000, ..config::Job::default() };
        let world = World::new(4, &pairs, 4, memory);
        let id = SessionId(0x00C0_FFEE);
        let session = open(id);
        let head = json!({"type": "utterance", "session_id": id, "manual_cut": true,
            "src_lang": "zh", "tgt_lang": "en", "audio_format": "pcm16", "sample_rate": 16_000});
        let (head, audio) = (head.to_string(), world::base64_of(speech_bytes));
        let index = " ".repeat(INDEX_WIDTH - 1) + "0";
        let text = format!(
            "{},\"utterance_index\":{index},\"audio\":\"{audio}\"}}",
            &head[..head.len() - 1]
        );
        let utterance = Frame::new(text, &index);
        // The scheduler counts attempts from its boot, 1, and each job needs one.
        let some = JobId(1);
        let text = world::result_frame(some, 0x101, &world::base64_of(voice_bytes));
        let answer = Frame::new(text.replace("node-0001", "the-node!"), &some.to_string());
        Self {
            speaker: world.scheduler.speaker(id, world.scheduler.accounts().of(None)),
            world,
            session,
            wheel: Wheel::new(0),
            utterance,
            answer,
            effects: Effects::new(),
            job_effects: job::Effects::new(),
            now: Now { us: 1_000_000, unix_ms: 1_700_000_000_000 },
            index: 0,
            seq: 0,
            assignment: Bytes::new(),
            last_word: Bytes::new(),
        }
    }

    /// The next utterance, from beginning to end.
    pub fn go(&mut self) -> Said {
        self.now.us += APART_MS * 1_000;
        self.now.unix_ms += APART_MS;
        let (scheduler, now) = (&self.world.scheduler, self.now);
        self.wheel.expire(now.us, |due| scheduler.due(due, now, &mut self.job_effects));
        let index = self.index;
        self.index += 1;
        let frame = self.utterance.with(format_args!("{index:>INDEX_WIDTH$}"));
        let request = utterd::protocol::session::decode(&frame).expect("a good frame");
        drop(frame);
        self.tell(Input::Request(request));
        while !(self.effects.is_empty() && self.job_effects.is_empty()) {
            for effect in std::mem::take(&mut self.effects) {
                self.perform(effect);
            }
            for effect in std::mem::take(&mut self.job_effects) {
                self.perform_for_job(effect);
            }
        }
        let assignment = std::mem::take(&mut self.assignment);
        let last_word = std::mem::take(&mut self.last_word);
        assert!(!assignment.is_empty() && !last_word.is_empty(), "utterance {index} got lost");
        assert_eq!((self.session.open_jobs(), self.world.scheduler.live()), (0, 0));
        Said { assignment, last_word }
    }

    /// One utterance, of which it is shown that its audio and the answer's came through.
    pub fn go_and_show(&mut self) {
        let (speech, voice) = (audio_in(&self.utterance.bytes), audio_in(&self.answer.bytes));
        let (speech, voice) = (speech.to_vec(), voice.to_vec());
        let said = self.go();
        assert!(audio_in(&said.assignment) == speech, "the speech did not get to the node");
        assert!(audio_in(&said.last_word) == voice, "the voice did not get to the client");
    }

    fn tell(&mut self, input: Input) {
        self.session.apply(input, self.now, &mut self.effects);
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Submit(cutting) => self.submit(*cutting),
            Effect::Record { job, frame, .. } => {
                self.last_word = frame.expect("its speaker hears of it");
                self.seq += 1;
                let known = self.world.scheduler.job(job).expect("it has only just ended");
                self.world.scheduler.kept(&known, &mut self.job_effects);
                self.tell(Input::News(News::Durable { job, seq: Some(self.seq) }));
            }
            Effect::Deliver { frame, job, seq } => {
                assert_eq!((frame.len(), seq), (self.last_word.len(), self.seq));
                self.tell(Input::Flushed(job, Some(seq)));
            }
            Effect::Barrier(seq) => self.tell(Input::Ponged(seq)),
            Effect::WasCut(_) | Effect::Remark(_) | Effect::Acknowledged(_) => {}
            other => panic!("not on the way of an utterance: {other:?}"),
        }
    }

    fn submit(&mut self, cutting: Cutting) {
        let Cutting { spec, audio, received_us, chunks, .. } = cutting;
        let index = spec.utterance_index;
        let cut_us = self.now.us;
        let submission = Submission { spec, audio, received_us, cut_us, chunks, key: None };
        let known = self.world.scheduler.known(&submission);
        assert!(matches!(known, Ok(None)), "{known:?}");
        let (scheduler, effects) = (&self.world.scheduler, &mut self.job_effects);
        match scheduler.submit(&self.speaker, submission, self.now, effects) {
            Ok(Submitted::New(job)) => self.session.submitted(index, job.id),
            other => panic!("utterance {index} was not taken: {other:?}"),
        }
    }

    fn perform_for_job(&mut self, effect: job::Effect) {
        match effect {
            job::Effect::Assign { job, node, attempt } => self.assign(&job, node, attempt),
            job::Effect::Arm(at, deadline) => self.wheel.arm(at, deadline),
            job::Effect::Progress(job, Progress::Dispatched) => {
                self.tell(Input::News(News::Dispatched(job.spec.utterance_index, job.id)));
            }
            job::Effect::Settled { job, result } => {
                assert_eq!(job.ended().map(|e| e.outcome), Some(Outcome::Succeeded));
                let answer = Answer::Result(result.expect("it succeeded"));
                let network = NetworkTimings::default();
                let (index, job, elapsed_ms) = (job.spec.utterance_index, job.id, 400);
                let news = News::Settled { index, job, answer, elapsed_ms, network, others: None };
                self.tell(Input::News(news));
            }
            job::Effect::Accept(..) | job::Effect::AckResult { .. } => {}
            other => panic!("not on the way of an utterance: {other:?}"),
        }
    }

    /// To the node's socket, and back with its answer.
    fn assign(&mut self, job: &Arc<Job>, node: NodeIndex, attempt: u32) {
        let audio = job.audio().expect("it has not ended");
        self.assignment = encode_job_assign(job.id, attempt, &job.spec, &audio, None);
        drop(audio);
        let (scheduler, effects) = (&self.world.scheduler, &mut self.job_effects);
        job.carry(attempt, 1);
        scheduler.written(job, attempt, self.now, effects);
        let frame = self.answer.with(format_args!("{}", job.id));
        let message = utterd::protocol::node::decode(&frame);
        let Ok(Message::JobResult(result)) = message else { panic!("{message:?}") };
        let answered = scheduler.answer(node, result, self.now, effects);
        assert_eq!(answered, Answered::Settled);
    }
}

/// A session as existing clients open it.
fn open(id: SessionId) -> Session {
    let init = json!({"type": "session_init", "client_version": "1.0", "platform": "web",
        "src_lang": "zh", "tgt_lang": "en", "trace_id": "trace-2f1c8a90"});
    let request = utterd::protocol::session::decode(&Bytes::from(init.to_string()));
    let Ok(Request::Init(init)) = request else { panic!("{request:?}") };
    let profile = Profile::new(*init, "unused".into()).expect("a good profile");
    let config = (config::Session::default(), config::Segmenter::default());
    Session::new(id, profile, 1, false, config)
}

/// The audio of a frame, which is the last of its fields.
fn audio_in(frame: &[u8]) -> &[u8] {
    let from = frame.windows(8).rposition(|w| w == b"audio\":\"").expect("it has audio");
    &frame[from + 8..frame.len() - 2]
}
