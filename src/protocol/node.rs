//! The node socket: what workers send (`Message`) and are sent (`Command`).
//!
//! Source: docs/PROTOCOL.md, "Node socket". Reading is as tolerant as a parser can be: one
//! unknown device, service type or odd key never costs a node its registration or a job its
//! result.

use std::borrow::Cow;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::error::DecodeError;
use super::hello::{AckStatus, Hello, HelloWire, Instruction};
use super::ids::{JobId, Lang, Pair, SessionId, TurnId};
use super::job::{Audio, FeatureFlags, JobSpec, Pipeline};
use super::passed::{AnyObject, Extra, Passed};
use super::trace::TraceParent;
use super::{lenient, limits, splice};

/// A message from a node.
#[derive(Debug)]
pub enum Message {
    /// What the node is and can do.
    Register(Box<Report>),
    /// The same, later, with its load.
    Heartbeat(Box<Report>),
    /// The end of a job on that node.
    JobResult(Box<JobResult>),
    /// A transcript on the way.
    AsrPartial(AsrPartial),
    /// The node has the job.
    JobAck(JobMark),
    /// The node works on the job.
    JobStarted(JobMark),
    /// The node is in trouble; logged and counted.
    NodeError(NodeTrouble),
    /// Asks for a code by which a session is served by this node alone.
    PairingCodeRequest,
    /// A type that only the server sends.
    WrongDirection(&'static str),
}

/// Kinds of service, as bits of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the wire's own names; see docs/PROTOCOL.md, \"Shared objects\"")]
pub enum ServiceType {
    Asr,
    Nmt,
    Tts,
    Tone,
    Semantic,
    Phonetic,
    Punctuation,
}

impl ServiceType {
    /// All of them, in wire order.
    pub const ALL: [ServiceType; 7] = [
        ServiceType::Asr,
        ServiceType::Nmt,
        ServiceType::Tts,
        ServiceType::Tone,
        ServiceType::Semantic,
        ServiceType::Phonetic,
        ServiceType::Punctuation,
    ];

    /// Name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            ServiceType::Asr => "asr",
            ServiceType::Nmt => "nmt",
            ServiceType::Tts => "tts",
            ServiceType::Tone => "tone",
            ServiceType::Semantic => "semantic",
            ServiceType::Phonetic => "phonetic",
            ServiceType::Punctuation => "punctuation",
        }
    }

    /// The type a peer named, if it is known.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.as_str() == name)
    }
}

/// A set of service types.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct ServiceSet(pub u8);

impl ServiceSet {
    /// With `service` in it.
    #[must_use]
    pub fn with(self, service: ServiceType) -> Self {
        Self(self.0 | (1 << service as u8))
    }

    /// Whether `service` is in it.
    pub fn has(self, service: ServiceType) -> bool {
        self.0 & (1 << service as u8) != 0
    }

    /// What of `wanted` is not in it.
    #[must_use]
    pub fn lacks(self, wanted: ServiceSet) -> ServiceSet {
        ServiceSet(wanted.0 & !self.0)
    }

    /// Whether nothing is in it.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The types in it.
    pub fn iter(self) -> impl Iterator<Item = ServiceType> {
        ServiceType::ALL.into_iter().filter(move |t| self.has(*t))
    }

    /// The types a pipeline needs.
    pub fn of(pipeline: &Pipeline) -> Self {
        let wanted = [
            (pipeline.use_asr, ServiceType::Asr),
            (pipeline.use_nmt, ServiceType::Nmt),
            (pipeline.use_tts, ServiceType::Tts),
            (pipeline.use_semantic, ServiceType::Semantic),
            (pipeline.use_tone, ServiceType::Tone),
        ];
        wanted.into_iter().filter(|(on, _)| *on).fold(Self::default(), |set, (_, t)| set.with(t))
    }
}

impl std::fmt::Debug for ServiceSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.iter().map(ServiceType::as_str)).finish()
    }
}

impl Serialize for ServiceSet {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(self.iter())
    }
}

/// One service of a node.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[allow(missing_docs, reason = "the wire's own names; see docs/PROTOCOL.md, \"Shared objects\"")]
pub struct Service {
    pub service_id: String,
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default)]
    pub device: String,
    #[serde(default)]
    pub status: String,
    #[serde(default)]
    pub version: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Capability {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    ready: bool,
}

#[derive(Debug, Default, Deserialize)]
struct LanguageLists {
    #[serde(default, deserialize_with = "lenient::entries::<_, _, { limits::LANGUAGES_MAX }>")]
    asr_languages: Vec<Lang>,
    #[serde(default, deserialize_with = "lenient::entries::<_, _, { limits::LANGUAGES_MAX }>")]
    tts_languages: Vec<Lang>,
    #[serde(default, deserialize_with = "lenient::entries::<_, _, { limits::LANGUAGES_MAX }>")]
    semantic_languages: Vec<Lang>,
    #[serde(
        default,
        deserialize_with = "lenient::entries::<_, _, { limits::PAIRS_PER_NODE_MAX }>"
    )]
    pairs: Vec<String>,
}

/// Load as the node measures it, in percent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize, Serialize)]
#[allow(missing_docs, reason = "the wire's own names; see docs/PROTOCOL.md, \"node_heartbeat\"")]
pub struct ResourceUsage {
    #[serde(default)]
    pub cpu_percent: f32,
    #[serde(default, deserialize_with = "lenient::opt_any")]
    pub gpu_percent: Option<f32>,
    #[serde(default, deserialize_with = "lenient::opt_any")]
    pub gpu_mem_percent: Option<f32>,
    #[serde(default)]
    pub mem_percent: f32,
    #[serde(default, deserialize_with = "lenient::opt_int")]
    pub running_jobs: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
struct Hardware {
    #[serde(default, deserialize_with = "lenient::entries::<_, _, 64>")]
    gpus: Vec<AnyObject>,
}

#[derive(Deserialize)]
struct ReportWire {
    #[serde(default)]
    node_id: Option<String>,
    #[serde(default, deserialize_with = "lenient::opt_any")]
    version: Option<String>,
    #[serde(default, deserialize_with = "lenient::opt_any")]
    capability_schema_version: Option<String>,
    #[serde(default, deserialize_with = "lenient::opt_any")]
    platform: Option<String>,
    #[serde(default, deserialize_with = "lenient::opt_any")]
    hardware: Option<Hardware>,
    #[serde(default, deserialize_with = "lenient::entries::<_, _, { limits::SERVICES_MAX }>")]
    installed_services: Vec<Service>,
    #[serde(default, deserialize_with = "lenient::entries::<_, _, 64>")]
    capability_by_type: Vec<Capability>,
    #[serde(default, deserialize_with = "lenient::opt_any")]
    accept_public_jobs: Option<bool>,
    #[serde(default, deserialize_with = "lenient::opt_any")]
    language_capabilities: Option<LanguageLists>,
    #[serde(default, deserialize_with = "lenient::opt_any")]
    resource_usage: Option<ResourceUsage>,
    #[serde(default, deserialize_with = "lenient::opt_any")]
    max_concurrent_jobs: Option<u32>,
}

/// What `node_register` and `node_heartbeat` tell, in one form.
#[derive(Debug, Clone)]
pub struct Report {
    /// The id the node goes by; none the first time.
    pub node_id: Option<String>,
    /// Software version (registration only).
    pub version: String,
    /// Schema of the capability fields (registration only).
    pub schema: Option<String>,
    /// Operating system (registration only).
    pub platform: String,
    /// GPUs the node found (registration only; absent without a driver or when the probe is late).
    pub gpus: usize,
    /// Its services, as reported.
    pub services: Vec<Service>,
    /// Types of which a service is ready (by capability) or running (by service list).
    pub ready: ServiceSet,
    /// Types ready on a GPU by its own word.
    pub ready_on_gpu: ServiceSet,
    /// Languages it understands.
    pub sources: Vec<Lang>,
    /// Languages it answers in.
    pub targets: Vec<Lang>,
    /// Extension: the exact pairs, where they are fewer than sources × targets.
    pub pairs: Option<Vec<Pair>>,
    /// Load, in heartbeats.
    pub load: Option<ResourceUsage>,
    /// Extension: jobs it takes at a time.
    pub max_concurrent_jobs: Option<u32>,
    /// Whether it serves everyone.
    pub accept_public_jobs: bool,
    /// Extension: what it has from before (registration only).
    pub hello: Option<Box<Hello>>,
    /// Extension: it wants to know where in a trace its jobs stand (registration only).
    pub traces: bool,
}

impl From<ReportWire> for Report {
    fn from(wire: ReportWire) -> Self {
        let mut ready_on_gpu = ServiceSet::default();
        for capability in wire.capability_by_type.iter().filter(|c| c.ready) {
            ready_on_gpu =
                ServiceType::parse(&capability.kind).map_or(ready_on_gpu, |t| ready_on_gpu.with(t));
        }
        let mut ready = ready_on_gpu;
        for service in wire.installed_services.iter().filter(|s| s.status == "running") {
            ready = ServiceType::parse(&service.kind).map_or(ready, |t| ready.with(t));
        }
        let languages = wire.language_capabilities.unwrap_or_default();
        let targets = if languages.semantic_languages.is_empty() {
            languages.tts_languages
        } else {
            languages.semantic_languages
        };
        let pairs: Vec<Pair> = languages.pairs.iter().filter_map(|p| p.parse().ok()).collect();
        let text = |t: Option<String>| {
            limits::clip(&t.unwrap_or_default(), limits::ID_BYTES_MAX).to_owned()
        };
        Report {
            node_id: wire.node_id,
            version: text(wire.version),
            schema: wire.capability_schema_version,
            platform: text(wire.platform),
            gpus: wire.hardware.unwrap_or_default().gpus.len(),
            services: wire.installed_services,
            ready,
            ready_on_gpu,
            sources: languages.asr_languages,
            targets,
            pairs: (!pairs.is_empty()).then_some(pairs),
            load: wire.resource_usage,
            max_concurrent_jobs: wire.max_concurrent_jobs,
            accept_public_jobs: wire.accept_public_jobs.unwrap_or(true),
            hello: None,
            traces: false,
        }
    }
}

/// `job_result`.
#[derive(Debug, Clone)]
pub struct JobResult {
    /// The job.
    pub job_id: JobId,
    /// The attempt it answers; absent from nodes that were not told one.
    pub attempt_id: Option<u32>,
    /// The id the node goes by.
    pub node_id: Option<String>,
    /// Whether it worked.
    pub success: bool,
    /// Transcript; empty when absent.
    pub text_asr: String,
    /// Translation; empty when absent.
    pub text_translated: String,
    /// Speech as base64 text, alphabet checked; empty when absent or not base64.
    pub tts_audio: Bytes,
    /// Form of the speech.
    pub tts_format: String,
    /// The keys of `extra` that clients are given.
    pub extra: Option<Extra>,
    /// Time on the node, in milliseconds.
    pub processing_time_ms: Option<u64>,
    /// Why it did not work.
    pub error: Option<NodeFault>,
    /// Node clock at the end, Unix milliseconds.
    pub node_completed_at_ms: Option<i64>,
    /// `good`, `suspect`, `bad`.
    pub asr_quality_level: Option<String>,
    /// Passed through.
    pub reason_codes: Option<Passed>,
    /// 0 to 1.
    pub quality_score: Option<f64>,
    /// Passed through.
    pub rerun_count: Option<u32>,
    /// Passed through.
    pub segments_meta: Option<Passed>,
}

impl JobResult {
    /// `extra.reason`: why there is no text.
    pub fn reason(&self) -> Option<Cow<'_, str>> {
        self.extra.as_ref()?.0.get("reason")?.as_str()
    }

    /// Whether there is nothing in it to hear or read.
    pub fn is_empty(&self) -> bool {
        self.text_asr.trim().is_empty()
            && self.text_translated.trim().is_empty()
            && self.tts_audio.is_empty()
    }
}

/// `job_result.error`.
#[derive(Debug, Clone, Default, Deserialize)]
#[allow(missing_docs, reason = "the wire's own names; see docs/PROTOCOL.md, \"job_result\"")]
pub struct NodeFault {
    #[serde(default)]
    pub code: String,
    #[serde(default)]
    pub message: String,
    #[serde(default, deserialize_with = "lenient::opt_any")]
    pub details: Option<FaultDetails>,
}

/// What of `job_result.error.details` is looked at.
#[derive(Debug, Clone, Default, Deserialize)]
#[allow(missing_docs, reason = "the wire's own names; see docs/PROTOCOL.md, \"job_result\"")]
pub struct FaultDetails {
    #[serde(default, deserialize_with = "lenient::opt_any")]
    pub service_id: Option<String>,
    #[serde(default, deserialize_with = "lenient::opt_any")]
    pub model_id: Option<String>,
}

#[derive(Deserialize)]
struct ResultHead {
    job_id: String,
    #[serde(default, deserialize_with = "lenient::opt_int")]
    attempt_id: Option<u32>,
    #[serde(default, deserialize_with = "lenient::opt_any")]
    node_id: Option<String>,
    success: bool,
    #[serde(default)]
    text_asr: Option<String>,
    #[serde(default)]
    text_translated: Option<String>,
    #[serde(default)]
    tts_audio: Option<String>,
    #[serde(default, deserialize_with = "lenient::opt_any")]
    tts_format: Option<String>,
    #[serde(default, deserialize_with = "lenient::opt_any")]
    extra: Option<Extra>,
    #[serde(default, deserialize_with = "lenient::opt_any")]
    processing_time_ms: Option<f64>,
    #[serde(default, deserialize_with = "lenient::opt_any")]
    error: Option<NodeFault>,
    #[serde(default, deserialize_with = "lenient::opt_any")]
    node_completed_at_ms: Option<i64>,
    #[serde(default, deserialize_with = "lenient::opt_any")]
    asr_quality_level: Option<String>,
    #[serde(default, deserialize_with = "lenient::opt_any")]
    reason_codes: Option<Passed>,
    #[serde(default, deserialize_with = "lenient::opt_any")]
    quality_score: Option<f64>,
    #[serde(default, deserialize_with = "lenient::opt_any")]
    rerun_count: Option<u32>,
    #[serde(default, deserialize_with = "lenient::opt_any")]
    segments_meta: Option<Passed>,
}

/// `asr_partial`.
#[derive(Debug, Clone)]
pub struct AsrPartial {
    /// The job.
    pub job_id: JobId,
    /// Transcript so far.
    pub text: String,
    /// Whether it will not change.
    pub is_final: bool,
}

#[derive(Deserialize)]
struct PartialWire {
    job_id: String,
    text: String,
    #[serde(default)]
    is_final: bool,
}

/// `job_ack`, `job_started`.
#[derive(Debug, Clone)]
pub struct JobMark {
    /// The job.
    pub job_id: JobId,
    /// The attempt.
    pub attempt_id: Option<u32>,
}

#[derive(Deserialize)]
struct MarkWire {
    job_id: String,
    #[serde(default, deserialize_with = "lenient::opt_int")]
    attempt_id: Option<u32>,
}

/// `node_error`.
#[derive(Debug, Clone, Deserialize)]
#[allow(missing_docs, reason = "the wire's own names; see docs/PROTOCOL.md, \"node_error\"")]
pub struct NodeTrouble {
    #[serde(default)]
    pub code: String,
    #[serde(default)]
    pub message: String,
}

#[derive(Deserialize)]
struct Tag {
    #[serde(rename = "type")]
    kind: String,
}

const SERVER_TYPES: [&str; 7] = [
    "node_register_ack",
    "job_assign",
    "job_cancel",
    "result_ack",
    "pairing_code",
    "node_control",
    "error",
];

/// Decodes one text frame.
pub fn decode(frame: &Bytes) -> Result<Message, DecodeError> {
    if let Some(hole) = super::scan::top_level_string(frame, "tts_audio") {
        let rest = super::scan::without(frame, &hole);
        if lenient::parse::<Tag>(&rest)?.kind == "job_result" {
            return job_result(lenient::parse(&rest)?, frame.slice(hole));
        }
    }
    match lenient::parse::<Tag>(frame)?.kind.as_str() {
        "node_register" => {
            let offer = lenient::parse::<HelloWire>(frame)?;
            let traces = offer.offers(TraceParent::NAME);
            let hello = offer.read().map(Box::new);
            let report = Report { hello, traces, ..*report(frame)? };
            Ok(Message::Register(Box::new(report)))
        }
        "node_heartbeat" => report(frame).map(Message::Heartbeat),
        "job_result" => {
            let mut head: ResultHead = lenient::parse(frame)?;
            let audio = Bytes::from(head.tts_audio.take().unwrap_or_default());
            job_result(head, audio)
        }
        "asr_partial" => partial(lenient::parse(frame)?),
        "job_ack" => mark(lenient::parse(frame)?).map(Message::JobAck),
        "job_started" => mark(lenient::parse(frame)?).map(Message::JobStarted),
        "node_error" => Ok(Message::NodeError(lenient::parse(frame)?)),
        "pairing_code_request" => Ok(Message::PairingCodeRequest),
        other => match SERVER_TYPES.iter().find(|t| **t == other) {
            Some(known) => Ok(Message::WrongDirection(known)),
            None => Err(DecodeError::UnknownType(limits::clip(other, 64).to_owned())),
        },
    }
}

fn report(frame: &[u8]) -> Result<Box<Report>, DecodeError> {
    let wire: ReportWire = lenient::parse(frame)?;
    if wire.node_id.as_ref().is_some_and(|id| id.len() > limits::ID_BYTES_MAX) {
        return Err(DecodeError::TooLong { field: "node_id", max: limits::ID_BYTES_MAX });
    }
    Ok(Box::new(wire.into()))
}

fn job_id(text: &str) -> Result<JobId, DecodeError> {
    text.parse().map_err(|_| DecodeError::Malformed("`job_id` is not a job id".into()))
}

fn job_result(head: ResultHead, tts_audio: Bytes) -> Result<Message, DecodeError> {
    let too_long =
        |t: &Option<String>| t.as_ref().is_some_and(|t| t.len() > limits::RESULT_TEXT_BYTES_MAX);
    if too_long(&head.text_asr) || too_long(&head.text_translated) {
        return Err(DecodeError::TooLong { field: "text", max: limits::RESULT_TEXT_BYTES_MAX });
    }
    // A result without its sound is worth more than none.
    let tts_audio =
        if base64_simd::STANDARD.check(&tts_audio).is_ok() { tts_audio } else { Bytes::new() };
    Ok(Message::JobResult(Box::new(JobResult {
        job_id: job_id(&head.job_id)?,
        attempt_id: head.attempt_id,
        node_id: head.node_id,
        success: head.success,
        text_asr: head.text_asr.unwrap_or_default(),
        text_translated: head.text_translated.unwrap_or_default(),
        tts_audio,
        tts_format: head.tts_format.unwrap_or_else(|| "pcm16".to_owned()),
        extra: head.extra,
        processing_time_ms: head.processing_time_ms.filter(|ms| *ms >= 0.0).map(|ms| ms as u64),
        error: head.error,
        node_completed_at_ms: head.node_completed_at_ms,
        asr_quality_level: head.asr_quality_level,
        reason_codes: head.reason_codes.filter(Passed::is_strings),
        quality_score: head.quality_score,
        rerun_count: head.rerun_count,
        segments_meta: head.segments_meta,
    })))
}

fn partial(wire: PartialWire) -> Result<Message, DecodeError> {
    let text = limits::clip(&wire.text, limits::RESULT_TEXT_BYTES_MAX).to_owned();
    Ok(Message::AsrPartial(AsrPartial {
        job_id: job_id(&wire.job_id)?,
        text,
        is_final: wire.is_final,
    }))
}

fn mark(wire: MarkWire) -> Result<JobMark, DecodeError> {
    Ok(JobMark { job_id: job_id(&wire.job_id)?, attempt_id: wire.attempt_id })
}

/// A short message to a node.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[allow(missing_docs, reason = "the wire's own names; see docs/PROTOCOL.md, \"Node socket\"")]
pub enum Command {
    NodeRegisterAck {
        node_id: String,
        message: &'static str,
        status: &'static str,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        extensions: Vec<&'static str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        jobs: Option<Vec<Instruction>>,
    },
    ResultAck {
        job_id: JobId,
        #[serde(skip_serializing_if = "Option::is_none")]
        attempt_id: Option<u32>,
        status: AckStatus,
    },
    JobCancel {
        job_id: JobId,
        #[serde(skip_serializing_if = "Option::is_none")]
        trace_id: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<&'static str>,
    },
    PairingCode {
        pairing_code: String,
        expires_in_ms: u64,
    },
    Error {
        code: &'static str,
        message: String,
    },
}

impl Command {
    /// The frame, as UTF-8 JSON.
    pub fn encode(&self) -> Bytes {
        Bytes::from(serde_json::to_vec(self).unwrap_or_default())
    }
}

#[derive(Serialize)]
#[serde(tag = "type", rename = "job_assign")]
struct JobAssign<'a> {
    job_id: JobId,
    attempt_id: u32,
    session_id: Spoken,
    utterance_index: u64,
    src_lang: Lang,
    tgt_lang: Lang,
    #[serde(skip_serializing_if = "Option::is_none")]
    dialect: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    features: Option<&'a FeatureFlags>,
    pipeline: Pipeline,
    audio_format: &'a str,
    sample_rate: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lang_a: Option<Lang>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lang_b: Option<Lang>,
    #[serde(skip_serializing_if = "Option::is_none")]
    auto_langs: Option<&'a [Lang]>,
    enable_streaming_asr: bool,
    partial_update_interval_ms: u64,
    trace_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<TraceParent>,
    #[serde(skip_serializing_if = "Option::is_none")]
    padding_ms: Option<u32>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    is_manual_cut: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    is_timeout_triggered: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    is_max_duration_triggered: bool,
    turn_id: TurnId,
}

/// A session as nodes know it. A node does one utterance of a session once, so where it is said in
/// several languages each but the one the session asked for has a session of its own there, the
/// same for all utterances.
struct Spoken {
    session: SessionId,
    derived: Option<Lang>,
}

impl std::fmt::Display for Spoken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.session)?;
        self.derived.map_or(Ok(()), |lang| write!(f, ".{lang}"))
    }
}

impl Serialize for Spoken {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The language that tells a session apart on its nodes, if it is not the session's own.
fn derived_lang(spec: &JobSpec) -> Option<Lang> {
    spec.audience.as_ref().filter(|audience| !audience.wanted).map(|_| spec.tgt)
}

/// The frame of `job_assign`: the fields as JSON, the audio moved in as base64. `traceparent` only
/// to nodes that know it.
pub fn encode_job_assign(
    job_id: JobId,
    attempt_id: u32,
    spec: &JobSpec,
    audio: &Audio,
    traceparent: Option<TraceParent>,
) -> Bytes {
    use super::job::Cut;
    let head = JobAssign {
        job_id,
        attempt_id,
        session_id: Spoken { session: spec.session, derived: derived_lang(spec) },
        utterance_index: spec.utterance_index,
        src_lang: spec.src,
        tgt_lang: spec.tgt,
        dialect: spec.dialect.as_deref(),
        features: spec.features.as_ref(),
        pipeline: spec.pipeline,
        audio_format: &spec.audio_format,
        sample_rate: spec.sample_rate,
        mode: spec.mode.as_deref(),
        lang_a: spec.lang_a,
        lang_b: spec.lang_b,
        auto_langs: spec.auto_langs.as_deref(),
        enable_streaming_asr: spec.streaming_asr,
        partial_update_interval_ms: spec.partial_interval_ms,
        trace_id: &spec.trace_id,
        traceparent,
        padding_ms: spec.padding_ms,
        is_manual_cut: spec.cut == Cut::Manual,
        is_timeout_triggered: spec.cut.closes_turn() && spec.cut != Cut::Manual,
        is_max_duration_triggered: !spec.cut.closes_turn(),
        turn_id: spec.turn,
    };
    let audio_len = audio.base64_len();
    let mut frame = Vec::with_capacity(1_024 + audio_len);
    splice::write(&mut frame, &head, "audio", audio_len, |out| audio.write_base64(out));
    Bytes::from(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(json: &str) -> Result<Message, DecodeError> {
        decode(&Bytes::copy_from_slice(json.as_bytes()))
    }

    #[test]
    fn one_odd_entry_does_not_cost_the_registration() {
        let json = r#"{"type":"node_register","node_id":null,"version":"2.0.0","platform":"linux",
            "hardware":null,
            "installed_models":[],"installed_services":[
              {"service_id":"a","type":"asr","device":"auto","status":"running"},
              {"service_id":"b","type":"levitation","device":"gpu","status":"running"},
              {"service_id":7},{"service_id":"c","type":"nmt","device":"gpu","status":"sleeping"}],
            "capability_by_type":[{"type":"tts","ready":true,"devices":["gpu"]},{"type":"tone"},9],
            "language_capabilities":{"asr_languages":["zh",3,"en"],"tts_languages":["en"],
              "semantic_languages":null}}"#;
        let Ok(Message::Register(r)) = decoded(json) else { panic!("refused") };
        assert_eq!(r.ready, ServiceSet::default().with(ServiceType::Asr).with(ServiceType::Tts));
        assert_eq!((r.sources.len(), r.targets.len(), r.services.len()), (2, 1, 3));
    }

    #[test]
    fn results_survive_wrong_typed_extras() {
        let job = JobId(9);
        let json = format!(
            r#"{{"type":"job_result","job_id":"{job}","attempt_id":1.0,"node_id":"n","success":true,
            "text_asr":null,"tts_audio":"QUJD",
            "extra":{{"reason":"ASR_EMPTY","emotion":4,"other":[],"speech_rate":1.5}},
            "processing_time_ms":12.5,"trace_id":"t","segments_meta":{{"count":1}}}}"#
        );
        let Ok(Message::JobResult(r)) = decoded(&json) else { panic!("refused") };
        assert_eq!(
            (r.job_id, r.attempt_id, r.reason().as_deref()),
            (job, Some(1), Some("ASR_EMPTY"))
        );
        assert_eq!((&r.tts_audio[..], r.extra.as_ref().unwrap().0.len()), (&b"QUJD"[..], 2));
        assert_eq!((r.processing_time_ms, r.tts_format.as_str()), (Some(12), "pcm16"));
    }

    #[test]
    fn audio_that_is_not_base64_is_left_out_of_the_result() {
        let json = format!(
            r#"{{"type":"job_result","job_id":"{}","success":true,"tts_audio":"a b"}}"#,
            JobId(1)
        );
        let Ok(Message::JobResult(r)) = decoded(&json) else { panic!("refused") };
        assert!(r.tts_audio.is_empty());
    }

    #[test]
    fn faults_are_typed() {
        let fault = |json: &str| decoded(json).map(|_| ()).unwrap_err().kind();
        assert_eq!(fault("nonsense"), "malformed");
        assert_eq!(fault(r#"{"type":"job_result","job_id":"x","success":true}"#), "malformed");
        assert_eq!(fault(r#"{"type":"hello"}"#), "unknown_type");
        let long = format!(r#"{{"type":"node_register","node_id":"{}"}}"#, "x".repeat(300));
        assert_eq!(fault(&long), "too_long");
    }
}
