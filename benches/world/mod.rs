//! What the benches and ratchets measure in: a scheduler with registered nodes, and no sockets.
//!
//! Nodes register with real frames, so that what is measured was decoded from the wire.

#![allow(dead_code, reason = "each bench uses its part")]

use std::sync::Arc;

use bytes::Bytes;
use serde_json::json;
use utterd::config;
use utterd::job::{Effect, Effects, Job, Scheduler, Speaker, Submission, Submitted};
use utterd::node::pool::{Pools, Publisher};
use utterd::node::{Attached, NodeIndex, Registry};
use utterd::protocol::job::{Audio, JobSpec, Outcome};
use utterd::protocol::node::{JobResult, Message, Report, decode};
use utterd::protocol::{JobId, NodeId, Pair, SessionId, TurnId};
use utterd::telemetry::{Metrics, Now};
use utterd::tenant::{Accounts, Admission};

/// Bytes of one second of PCM at 16 kHz: as base64 the usual utterance, 43 KB.
pub const SECOND_BYTES: usize = 32_000;
/// Five languages, each into each of the others: twenty pairs.
pub const LANGUAGES: [&str; 5] = ["zh", "en", "ja", "de", "fr"];

/// Whether this run is only to see that everything works: `cargo bench` alone says `--bench`.
pub fn is_smoke() -> bool {
    !std::env::args().any(|arg| arg == "--bench")
}

/// Base64 of so many bytes that are not all the same.
pub fn base64_of(bytes: usize) -> String {
    let noise: Vec<u8> = (0..bytes).map(|i| ((i * 131) >> 3) as u8).collect();
    base64_simd::STANDARD.encode_to_string(noise)
}

/// The twenty pairs.
pub fn all_pairs() -> Vec<Pair> {
    let of = |src: &'static str| LANGUAGES.iter().filter(move |tgt| **tgt != src);
    let text = |src, tgt| format!("{src}:{tgt}").parse().expect("a pair");
    LANGUAGES.iter().flat_map(|src| of(src).map(move |tgt| text(src, tgt))).collect()
}

/// What a node tells that serves exactly these pairs.
pub fn report(pairs: &[Pair], slots: u32) -> Report {
    let ready = |kind| json!({"type": kind, "ready": true});
    let pairs: Vec<String> = pairs.iter().map(Pair::to_string).collect();
    let wire = json!({"type": "node_register", "version": "2.0.0", "platform": "linux",
        "capability_schema_version": "2.0", "hardware": {}, "installed_models": [],
        "installed_services": [],
        "capability_by_type": [ready("asr"), ready("nmt"), ready("tts")],
        "language_capabilities": {"asr_languages": LANGUAGES, "tts_languages": LANGUAGES,
            "semantic_languages": LANGUAGES, "pairs": pairs},
        "max_concurrent_jobs": slots});
    match decode(&Bytes::from(wire.to_string())) {
        Ok(Message::Register(report)) => *report,
        other => panic!("not a registration: {other:?}"),
    }
}

/// Nodes, and the scheduler that places jobs on them.
pub struct World {
    pub registry: Arc<Registry>,
    pub publisher: Publisher,
    pub pools: Arc<Pools>,
    pub scheduler: Scheduler,
    pub nodes: Vec<Attached>,
}

impl World {
    /// So many nodes, all of which serve `pairs` with `slots` slots each.
    pub fn new(nodes: usize, pairs: &[Pair], slots: u32, job: config::Job) -> Self {
        let (mut publisher, pools) = Publisher::new(Vec::new(), 1);
        let registry = Arc::new(Registry::new(config::Node::default()));
        let report = report(pairs, slots);
        let join = |number: usize| {
            let id = NodeId::from(format!("node-{number:04}").as_str());
            let attached = registry.attach(id, Now::default()).expect("there is room");
            registry.report(&attached, &report, Now::default());
            publisher.node_changed(&attached.node);
            attached
        };
        let nodes: Vec<Attached> = (0..nodes).map(join).collect();
        let (shared, metrics) = (Arc::clone(&registry), Arc::new(Metrics::new()));
        let accounts = Accounts::new(config::TenantDefaults::default(), &[], &metrics);
        let admission = Admission::new(job.clone(), 10_000, accounts);
        let scheduler = Scheduler::new(job, admission, 1, shared, Arc::clone(&pools), metrics);
        pools.with(|s| {
            let served = s.route(pairs[0]).map_or(0, |route| route.pools[0].nodes.len());
            assert_eq!(served, nodes.len(), "every node is in the pool of its pair");
        });
        Self { registry, publisher, pools, scheduler, nodes }
    }
}

/// What one second of speech asks for.
pub fn spec(session: SessionId, utterance_index: u64, pair: Pair) -> JobSpec {
    JobSpec {
        session,
        utterance_index,
        turn: TurnId(fastrand::u128(..)),
        trace_id: "trace-2f1c8a90".into(),
        padding_ms: Some(280),
        ..JobSpec::plain(pair.src, pair.tgt)
    }
}

/// The frame of a node's answer.
pub fn result_frame(job: JobId, attempt: u32, tts_audio: &str) -> String {
    let head = json!({"type": "job_result", "job_id": job, "attempt_id": attempt,
        "node_id": "node-0001", "success": true, "text_asr": "今天天气很好。",
        "text_translated": "The weather is fine today.", "tts_format": "opus",
        "processing_time_ms": 412.5, "extra": {"emotion": "calm", "speech_rate": 4.2}});
    let head = head.to_string();
    format!("{},\"tts_audio\":\"{tts_audio}\"}}", &head[..head.len() - 1])
}

/// The decoded answer of a node, for a job that is filled in later.
pub fn result() -> Box<JobResult> {
    match decode(&Bytes::from(result_frame(JobId(1), 1, ""))) {
        Ok(Message::JobResult(result)) => result,
        other => panic!("not a result: {other:?}"),
    }
}

/// A job that is with a node.
pub struct InFlight {
    pub job: Arc<Job>,
    pub node: NodeIndex,
    pub attempt: u32,
}

/// Submits jobs of many sessions and answers them, by the scheduler's calls alone.
pub struct Load {
    pub world: World,
    pub speakers: Vec<(Arc<Speaker>, u64)>,
    pub effects: Effects,
    pairs: Vec<Pair>,
    audio: Audio,
    answer: Box<JobResult>,
    now: Now,
    next: usize,
}

impl Load {
    /// With so many sessions, spread over the pairs.
    pub fn new(world: World, sessions: usize, pairs: Vec<Pair>) -> Self {
        let account = world.scheduler.accounts().of(None);
        let speaker =
            |n: usize| (world.scheduler.speaker(SessionId(n as u64 + 1), Arc::clone(&account)), 0);
        let speakers = (0..sessions).map(speaker).collect();
        let audio = Audio::Base64(Bytes::from(base64_of(SECOND_BYTES)));
        let (effects, answer, now) = (Effects::new(), result(), Now { us: 1, unix_ms: 1 });
        Self { world, speakers, effects, pairs, audio, answer, now, next: 0 }
    }

    /// The next session's next utterance.
    pub fn submission(&mut self) -> (usize, Submission) {
        let at = self.next % self.speakers.len();
        self.next += 1;
        self.now.us += 100;
        let (speaker, index) = &mut self.speakers[at];
        let spec = spec(speaker.session, *index, self.pairs[at % self.pairs.len()]);
        *index += 1;
        let (received_us, cut_us) = (self.now.us, self.now.us);
        let audio = self.audio.clone();
        (at, Submission { spec, audio, received_us, cut_us, chunks: None, key: None })
    }

    /// Submits it. Its assignment is what `placed` then finds among the effects.
    pub fn submit(&mut self, (speaker, submission): (usize, Submission)) {
        let speaker = &self.speakers[speaker].0;
        let submitted =
            self.world.scheduler.submit(speaker, submission, self.now, &mut self.effects);
        assert!(matches!(submitted, Ok(Submitted::New(_))), "{submitted:?}");
    }

    /// The assignments among the effects, which are all taken.
    pub fn placed(&mut self) -> Vec<InFlight> {
        let assigned = |effect| match effect {
            Effect::Assign { job, node, attempt } => Some(InFlight { job, node, attempt }),
            _ => None,
        };
        self.effects.drain(..).filter_map(assigned).collect()
    }

    /// The node's socket took it, the node answers, and the disk keeps the outcome.
    pub fn answer(&mut self, InFlight { job, node, attempt }: &InFlight) {
        let (scheduler, now) = (&self.world.scheduler, self.now);
        scheduler.written(job, *attempt, now, &mut self.effects);
        let mut result = self.answer.clone();
        (result.job_id, result.attempt_id) = (job.id, Some(*attempt));
        scheduler.answer(*node, result, now, &mut self.effects);
        scheduler.kept(job, &mut self.effects);
    }

    /// Takes all effects, of which so many must be of settled jobs that succeeded.
    pub fn settled(&mut self, jobs: usize) {
        let succeeded = |effect: &Effect| match effect {
            Effect::Settled { job, result } => {
                result.is_some() && job.ended().is_some_and(|e| e.outcome == Outcome::Succeeded)
            }
            _ => false,
        };
        let settled = self.effects.drain(..).filter(succeeded).count();
        assert_eq!(settled, jobs, "a job did not end as it should");
    }

    /// Has so many jobs with nodes.
    pub fn fill(&mut self, jobs: usize) -> Vec<InFlight> {
        let mut all = Vec::with_capacity(jobs);
        for _ in 0..jobs {
            let submission = self.submission();
            self.submit(submission);
            all.append(&mut self.placed());
        }
        assert_eq!((all.len(), self.world.scheduler.live()), (jobs, jobs), "all were placed");
        all
    }
}
