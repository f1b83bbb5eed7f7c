//! The session socket: what speakers and listeners send (`Request`) and are sent (`Event`).
//!
//! Source: docs/PROTOCOL.md, "Session socket". Decoding borrows nothing: audio stays in the
//! received frame as a shared slice, the rest is small.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::error::{DecodeError, ErrorCode};
use super::ids::{JobId, Lang, NodeId, SessionId};
use super::job::{FeatureFlags, Pipeline};
use super::node::JobResult;
use super::passed::{Extra, Passed};
use super::room::{self, InRoom, RoomRequest, Signal};
use super::trace::TraceParent;
use super::{lenient, limits, splice};

/// One more than there may be, to see that there are too many.
const AUTO_LANGS_READ: usize = limits::AUTO_LANGS_MAX + 1;
/// Names of extensions that are looked at.
const EXTENSIONS_MAX: usize = 64;

/// A message from a client.
#[derive(Debug)]
pub enum Request {
    /// Opens a session on this connection.
    Init(Box<Init>),
    /// A piece of a stream, or its end.
    AudioChunk(AudioChunk),
    /// A whole recording.
    Utterance(Box<Utterance>),
    /// Asks for a sign of life.
    Heartbeat(OfSession),
    /// Ends the session in good order.
    Close(OfSession),
    /// The client began to play translated speech.
    TtsStarted(TtsMark),
    /// The client finished playing.
    TtsPlayEnded(TtsMark),
    /// The client is back on a new connection and goes on with its session.
    Resume(Box<Resume>),
    /// The client has processed results.
    Ack(Ack),
    /// A type that only the server sends: parsed, counted, without effect.
    WrongDirection(&'static str),
    /// About rooms.
    Room(RoomRequest),
    /// For another member of the room.
    Signal(Box<Signal>),
}

/// `session_init`.
#[derive(Debug, Deserialize)]
pub struct Init {
    /// Free text.
    pub client_version: String,
    /// `web`, `android`, `ios`, `api-gateway`, `cli`; free text.
    pub platform: String,
    /// Language spoken, or `auto`.
    pub src_lang: Lang,
    /// Language wanted.
    pub tgt_lang: Lang,
    /// Passed to nodes.
    #[serde(default)]
    pub dialect: Option<String>,
    /// Defaults for the session's utterances.
    #[serde(default)]
    pub features: Option<FeatureFlags>,
    /// Binds the session to one node.
    #[serde(default)]
    pub pairing_code: Option<String>,
    /// Who pays.
    #[serde(default)]
    pub tenant_id: Option<String>,
    /// `one_way` or `two_way_auto`.
    #[serde(default)]
    pub mode: Option<String>,
    /// First language of two-way mode.
    #[serde(default)]
    pub lang_a: Option<Lang>,
    /// Second language of two-way mode.
    #[serde(default)]
    pub lang_b: Option<Lang>,
    /// Candidates when `src_lang` is `auto`.
    #[serde(default, deserialize_with = "lenient::opt_list::<_, _, AUTO_LANGS_READ>")]
    pub auto_langs: Option<Vec<Lang>>,
    /// Whether partial transcripts are wanted; default yes.
    #[serde(default)]
    pub enable_streaming_asr: Option<bool>,
    /// How often, in milliseconds; default 1,000.
    #[serde(default, deserialize_with = "lenient::opt_int")]
    pub partial_update_interval_ms: Option<u64>,
    /// Trace of the whole session; made here when absent.
    #[serde(default)]
    pub trace_id: Option<String>,
    /// Extension: where in the client's trace the session stands.
    #[serde(default, deserialize_with = "lenient::opt_any")]
    pub traceparent: Option<TraceParent>,
    /// Extension: form of the chunk stream, `opus` or `pcm16`; sniffed when absent.
    #[serde(default)]
    pub audio_format: Option<String>,
    /// Extension: sample rate of a `pcm16` stream, in hertz.
    #[serde(default, deserialize_with = "lenient::opt_int")]
    pub sample_rate: Option<u32>,
    /// Extension: stages wanted for the session's chunk streams.
    #[serde(default)]
    pub pipeline: Option<Pipeline>,
    /// Extension: what else the client understands (docs/PROTOCOL.md, "Extensions").
    #[serde(default, deserialize_with = "lenient::opt_list::<_, _, EXTENSIONS_MAX>")]
    pub extensions: Option<Vec<String>>,
}

/// `session_resume` (docs/PROTOCOL.md, "Coming back").
#[derive(Deserialize)]
pub struct Resume {
    /// Text of the session id.
    pub session_id: String,
    /// The epoch its results had.
    #[serde(deserialize_with = "lenient::int")]
    pub epoch: u32,
    /// The secret told when it opened: 64 hex digits.
    pub resume_secret: String,
    /// Number of the last result the client has processed; 0 is none.
    #[serde(deserialize_with = "lenient::int")]
    pub last_seq: u64,
}

impl std::fmt::Debug for Resume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The secret stays out of logs.
        write!(f, "Resume({}, epoch {}, {})", self.session_id, self.epoch, self.last_seq)
    }
}

/// `ack`: everything up to `seq` has been processed.
#[derive(Debug, Deserialize)]
pub struct Ack {
    /// Text of the session id.
    pub session_id: String,
    /// Number of the last result processed.
    #[serde(deserialize_with = "lenient::int")]
    pub seq: u64,
}

/// `audio_chunk`, its payload decoded.
#[derive(Debug)]
pub struct AudioChunk {
    /// Text of the session id, to be compared with the connection's.
    pub session_id: String,
    /// The client's counter.
    pub seq: u64,
    /// Whether the utterance ends here.
    pub is_final: bool,
    /// Audio bytes; empty for a bare end.
    pub audio: Bytes,
    /// Client clock, Unix milliseconds.
    pub client_timestamp_ms: Option<i64>,
}

/// The one type that a `ChunkHead` has.
#[derive(Deserialize)]
enum ChunkType {
    #[serde(rename = "audio_chunk")]
    AudioChunk,
}

#[derive(Deserialize)]
struct ChunkHead {
    #[serde(rename = "type")]
    _kind: ChunkType,
    session_id: String,
    #[serde(deserialize_with = "lenient::int")]
    seq: u64,
    is_final: bool,
    #[serde(default)]
    payload: Option<String>,
    #[serde(default, deserialize_with = "lenient::opt_int")]
    client_timestamp_ms: Option<i64>,
}

/// `utterance`; the audio is base64 text, alphabet checked, never decoded here.
#[derive(Debug)]
pub struct Utterance {
    /// The fields around the audio.
    pub head: UtteranceHead,
    /// Base64 text.
    pub audio: Bytes,
}

/// The one type that an `UtteranceHead` has.
#[derive(Debug, Deserialize)]
enum UtteranceType {
    #[serde(rename = "utterance")]
    Utterance,
}

/// The fields of `utterance` around its audio.
#[derive(Debug, Deserialize)]
#[allow(missing_docs, reason = "the wire's own names; see docs/PROTOCOL.md, \"utterance\"")]
pub struct UtteranceHead {
    #[serde(rename = "type")]
    _kind: UtteranceType,
    pub session_id: String,
    #[serde(deserialize_with = "lenient::int")]
    pub utterance_index: u64,
    pub manual_cut: bool,
    pub src_lang: Lang,
    pub tgt_lang: Lang,
    #[serde(default)]
    pub dialect: Option<String>,
    #[serde(default)]
    pub features: Option<FeatureFlags>,
    pub audio_format: String,
    #[serde(deserialize_with = "lenient::int")]
    pub sample_rate: u32,
    #[serde(default)]
    pub mode: Option<String>,
    #[serde(default)]
    pub lang_a: Option<Lang>,
    #[serde(default)]
    pub lang_b: Option<Lang>,
    #[serde(default, deserialize_with = "lenient::opt_list::<_, _, AUTO_LANGS_READ>")]
    pub auto_langs: Option<Vec<Lang>>,
    #[serde(default)]
    pub trace_id: Option<String>,
    /// Extension: where in the client's trace it stands.
    #[serde(default, deserialize_with = "lenient::opt_any")]
    pub traceparent: Option<TraceParent>,
    #[serde(default)]
    pub pipeline: Option<Pipeline>,
    /// Extension: the client's own name for it; sent again, it finds the job that exists.
    #[serde(default)]
    pub idempotency_key: Option<String>,
    /// Only there to refuse a frame without audio.
    audio: String,
}

/// A message that carries only its session: `client_heartbeat`, `session_close`.
#[derive(Debug, Deserialize)]
pub struct OfSession {
    /// Text of the session id.
    pub session_id: String,
    /// Why, for the log (`session_close`).
    #[serde(default)]
    pub reason: Option<String>,
}

/// `tts_started`, `tts_play_ended`.
#[derive(Debug, Deserialize)]
pub struct TtsMark {
    /// Text of the session id.
    pub session_id: String,
    /// Group of the last result the client received.
    #[serde(default)]
    pub group_id: Option<String>,
}

#[derive(Deserialize)]
struct Tag {
    #[serde(rename = "type")]
    kind: String,
}

/// Types of the session socket that only the server sends.
const SERVER_TYPES: [&str; 16] = [
    "session_init_ack",
    "session_resume_ack",
    "utterance_accepted",
    "audio_ack",
    "translation_result",
    "asr_partial",
    "server_heartbeat",
    "session_close_ack",
    "error",
    "missing_result",
    "ui_event",
    "room_create_ack",
    "room_members",
    "room_error",
    "room_expired",
    "go_away",
];

/// Decodes one text frame.
pub fn decode(frame: &Bytes) -> Result<Request, DecodeError> {
    // A frame is either small, or long because of its one audio field; the field's name differs
    // by type.
    if let Some(hole) = super::scan::top_level_string(frame, "audio") {
        let rest = super::scan::without(frame, &hole);
        if let Some(head) = parse_as(&rest, "utterance")? {
            return checked_utterance(head, frame.slice(hole));
        }
    } else if let Some(hole) = super::scan::top_level_string(frame, "payload") {
        let rest = super::scan::without(frame, &hole);
        if let Some(head) = parse_as(&rest, "audio_chunk")? {
            return chunk(head, &frame[hole]);
        }
    }
    match kind(frame)?.as_str() {
        "session_init" => init(lenient::parse(frame)?),
        "audio_chunk" => {
            let mut head: ChunkHead = lenient::parse(frame)?;
            let payload = head.payload.take().unwrap_or_default();
            chunk(head, payload.as_bytes())
        }
        "utterance" => {
            let mut head: UtteranceHead = lenient::parse(frame)?;
            let audio = Bytes::from(std::mem::take(&mut head.audio));
            checked_utterance(head, audio)
        }
        "client_heartbeat" => Ok(Request::Heartbeat(lenient::parse(frame)?)),
        "session_close" => Ok(Request::Close(lenient::parse(frame)?)),
        "tts_started" => Ok(Request::TtsStarted(lenient::parse(frame)?)),
        "tts_play_ended" => Ok(Request::TtsPlayEnded(lenient::parse(frame)?)),
        "session_resume" => Ok(Request::Resume(Box::new(lenient::parse(frame)?))),
        "ack" => Ok(Request::Ack(lenient::parse(frame)?)),
        other => {
            if frame.len() > limits::HEAD_BYTES_MAX {
                return Err(DecodeError::TooLong { field: "message", max: limits::HEAD_BYTES_MAX });
            }
            if let Some(request) = room::decode(other, frame)? {
                return Ok(Request::Room(request));
            }
            if let Some(signal) = room::decode_signal(other, frame)? {
                return Ok(Request::Signal(signal));
            }
            match SERVER_TYPES.iter().find(|kind| **kind == other) {
                Some(kind) => Ok(Request::WrongDirection(kind)),
                None => Err(DecodeError::UnknownType(limits::clip(other, 64).to_owned())),
            }
        }
    }
}

fn kind(json: &[u8]) -> Result<String, DecodeError> {
    Ok(lenient::parse::<Tag>(json)?.kind)
}

/// Reads a message of the type `name`; none if it is of another type. `T` reads no other, so that
/// a message with speech is parsed once.
fn parse_as<'a, T: Deserialize<'a>>(json: &'a [u8], name: &str) -> Result<Option<T>, DecodeError> {
    match lenient::parse(json) {
        Ok(message) => Ok(Some(message)),
        Err(fault) if kind(json)? == name => Err(fault),
        Err(_) => Ok(None),
    }
}

fn bounded(field: &'static str, text: Option<&String>, max: usize) -> Result<(), DecodeError> {
    match text {
        Some(text) if text.len() > max => Err(DecodeError::TooLong { field, max }),
        _ => Ok(()),
    }
}

fn init(init: Init) -> Result<Request, DecodeError> {
    bounded("client_version", Some(&init.client_version), limits::ID_BYTES_MAX)?;
    bounded("platform", Some(&init.platform), limits::ID_BYTES_MAX)?;
    bounded("dialect", init.dialect.as_ref(), limits::ID_BYTES_MAX)?;
    bounded("tenant_id", init.tenant_id.as_ref(), limits::ID_BYTES_MAX)?;
    bounded("mode", init.mode.as_ref(), limits::ID_BYTES_MAX)?;
    bounded("trace_id", init.trace_id.as_ref(), limits::ID_BYTES_MAX)?;
    bounded("pairing_code", init.pairing_code.as_ref(), limits::ID_BYTES_MAX)?;
    auto_langs(init.auto_langs.as_ref())?;
    Ok(Request::Init(Box::new(init)))
}

fn auto_langs(langs: Option<&Vec<Lang>>) -> Result<(), DecodeError> {
    match langs {
        Some(langs) if langs.len() > limits::AUTO_LANGS_MAX => {
            Err(DecodeError::TooLong { field: "auto_langs", max: limits::AUTO_LANGS_MAX })
        }
        _ => Ok(()),
    }
}

fn chunk(head: ChunkHead, payload: &[u8]) -> Result<Request, DecodeError> {
    let audio = base64_simd::STANDARD
        .decode_to_vec(payload)
        .map_err(|_| DecodeError::Audio("payload is not base64"))?;
    Ok(Request::AudioChunk(AudioChunk {
        session_id: head.session_id,
        seq: head.seq,
        is_final: head.is_final,
        audio: Bytes::from(audio),
        client_timestamp_ms: head.client_timestamp_ms,
    }))
}

fn checked_utterance(head: UtteranceHead, audio: Bytes) -> Result<Request, DecodeError> {
    if audio.is_empty() {
        return Err(DecodeError::Audio("audio is empty"));
    }
    if base64_simd::STANDARD.check(&audio).is_err() {
        return Err(DecodeError::Audio("audio is not base64"));
    }
    let pcm_bytes =
        audio.len() / 4 * 3 - audio.iter().rev().take(2).filter(|b| **b == b'=').count();
    if head.audio_format == "pcm16" && pcm_bytes % 2 == 1 {
        return Err(DecodeError::Audio("pcm16 has an odd number of bytes"));
    }
    if head.sample_rate == 0 || head.sample_rate > limits::SAMPLE_RATE_MAX {
        return Err(DecodeError::Malformed(format!(
            "sample_rate {} is out of range",
            head.sample_rate
        )));
    }
    bounded("idempotency_key", head.idempotency_key.as_ref(), limits::ID_BYTES_MAX)?;
    bounded("audio_format", Some(&head.audio_format), limits::ID_BYTES_MAX)?;
    bounded("dialect", head.dialect.as_ref(), limits::ID_BYTES_MAX)?;
    bounded("mode", head.mode.as_ref(), limits::ID_BYTES_MAX)?;
    bounded("trace_id", head.trace_id.as_ref(), limits::ID_BYTES_MAX)?;
    auto_langs(head.auto_langs.as_ref())?;
    Ok(Request::Utterance(Box::new(Utterance { head, audio })))
}

/// What a client needs to come back to its session.
#[derive(Clone, Serialize)]
#[allow(missing_docs, reason = "the wire's own names; see docs/PROTOCOL.md, \"Coming back\"")]
pub struct Resumable {
    pub epoch: u32,
    pub resume_secret: String,
    pub resume_window_ms: u64,
    pub extensions: Vec<&'static str>,
}

impl std::fmt::Debug for Resumable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The secret stays out of logs.
        write!(f, "Resumable(epoch {})", self.epoch)
    }
}

/// `session_resume_ack`. Without `from_seq` there is no such session to go on with.
#[derive(Debug, Clone, Default, Serialize)]
#[allow(missing_docs, reason = "the wire's own names; see docs/PROTOCOL.md, \"Coming back\"")]
pub struct ResumeAck {
    pub session_id: String,
    pub recovered: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_seq: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chunks_through: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub utterances: Vec<Unfinished>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
}

/// An utterance that has a job and no last word yet.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs, reason = "the wire's own names; see docs/PROTOCOL.md, \"Coming back\"")]
pub struct Unfinished {
    pub utterance_index: u64,
    pub job_id: JobId,
}

/// The frame, which is a JSON object, with further fields (`"a":1,"b":2`) at its end.
pub fn with_fields(frame: &Bytes, fields: &str) -> Bytes {
    let Some(object) = frame.strip_suffix(b"}") else { return frame.clone() };
    Bytes::from([object, b",", fields.as_bytes(), b"}"].concat())
}

/// A message to a client. Optional fields without a value are left out, never null.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[allow(missing_docs, reason = "the wire's own names; see docs/PROTOCOL.md, \"Session socket\"")]
pub enum Event {
    SessionInitAck {
        session_id: SessionId,
        #[serde(skip_serializing_if = "Option::is_none")]
        assigned_node_id: Option<NodeId>,
        message: &'static str,
        trace_id: String,
        protocol_version: &'static str,
        use_binary_frame: bool,
        negotiated_codec: &'static str,
        negotiated_audio_format: &'static str,
        negotiated_sample_rate: u32,
        negotiated_channel_count: u32,
        #[serde(flatten)]
        resumable: Option<Resumable>,
    },
    SessionResumeAck(Box<ResumeAck>),
    UtteranceAccepted {
        session_id: SessionId,
        utterance_index: u64,
        job_id: JobId,
    },
    AudioAck {
        session_id: SessionId,
        through: u64,
    },
    AsrPartial {
        session_id: SessionId,
        utterance_index: u64,
        job_id: JobId,
        text: String,
        is_final: bool,
        trace_id: String,
    },
    UiEvent {
        trace_id: String,
        session_id: SessionId,
        job_id: String,
        utterance_index: u64,
        event: UiEvent,
        #[serde(skip_serializing_if = "Option::is_none")]
        elapsed_ms: Option<u64>,
        status: UiStatus,
        #[serde(skip_serializing_if = "Option::is_none")]
        error_code: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        hint: Option<String>,
    },
    MissingResult {
        session_id: SessionId,
        utterance_index: u64,
        reason: &'static str,
        created_at_ms: u64,
        trace_id: String,
    },
    Error {
        code: String,
        message: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        retryable: Option<bool>,
        #[serde(skip_serializing_if = "Option::is_none")]
        retry_after_ms: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        phase: Option<&'static str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        trace_id: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        job_id: Option<JobId>,
    },
    ServerHeartbeat {
        session_id: SessionId,
        timestamp: u64,
    },
    SessionCloseAck {
        session_id: SessionId,
    },
    Backpressure {
        action: &'static str,
        resume_after_ms: u64,
    },
    GoAway {
        reason: &'static str,
        reconnect_after_ms: u64,
        deadline_ms: u64,
    },
}

/// What a `ui_event` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs, reason = "the wire's own names; see docs/PROTOCOL.md, \"ui_event\"")]
pub enum UiEvent {
    AsrPartial,
    AsrFinal,
    Dispatched,
    NodeAccepted,
    NmtDone,
    Error,
}

/// Whether a `ui_event` is good news.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the wire's own names; see docs/PROTOCOL.md, \"ui_event\"")]
pub enum UiStatus {
    Ok,
    Error,
}

impl Event {
    /// The refusal of a frame or of an utterance.
    pub fn error(code: ErrorCode, message: impl Into<String>, trace_id: Option<String>) -> Self {
        Event::Error {
            code: code.as_str().to_owned(),
            message: message.into(),
            retryable: Some(code.retryable()),
            retry_after_ms: None,
            phase: None,
            trace_id,
            job_id: None,
        }
    }

    /// The frame, as UTF-8 JSON.
    pub fn encode(&self) -> Bytes {
        Bytes::from(serde_json::to_vec(self).unwrap_or_default())
    }
}

/// `translation_result` around its audio.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "type", rename = "translation_result")]
#[allow(
    missing_docs,
    reason = "the wire's own names; see docs/PROTOCOL.md, \"translation_result\""
)]
pub struct TranslationResult<'a> {
    pub session_id: SessionId,
    pub utterance_index: u64,
    pub job_id: JobId,
    pub text_asr: &'a str,
    pub text_translated: &'a str,
    pub tts_format: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extra: Option<&'a Extra>,
    pub trace_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part_index: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_timings: Option<Passed>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_timings: Option<NetworkTimings>,
    pub scheduler_sent_at_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asr_quality_level: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason_codes: Option<&'a Passed>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quality_score: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rerun_count: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segments_meta: Option<&'a Passed>,
    /// Extension: true when the gap policy had already let later results pass.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub late: bool,
    /// Extension: where it was said, for those who listen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room: Option<InRoom>,
}

/// Where the time went outside the node, in milliseconds; values that are not positive are left
/// out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[allow(
    missing_docs,
    reason = "the wire's own names; see docs/PROTOCOL.md, \"translation_result\""
)]
pub struct NetworkTimings {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub web_to_scheduler_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler_to_node_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_to_scheduler_ms: Option<u64>,
}

impl<'a> TranslationResult<'a> {
    /// What the node answered, without anything a session adds.
    pub fn plain(
        job_id: JobId,
        (session_id, utterance_index): (SessionId, u64),
        trace_id: &'a str,
        result: &'a JobResult,
        sent_at_ms: u64,
    ) -> Self {
        let told = result.extra.as_ref().and_then(|e| e.0.get("service_timings").cloned());
        let total = || Passed::of(&serde_json::json!({"total_ms": result.processing_time_ms?}));
        Self {
            session_id,
            utterance_index,
            job_id,
            text_asr: &result.text_asr,
            text_translated: &result.text_translated,
            tts_format: &result.tts_format,
            extra: result.extra.as_ref(),
            trace_id,
            group_id: None,
            part_index: None,
            service_timings: told.or_else(total),
            network_timings: None,
            scheduler_sent_at_ms: sent_at_ms,
            asr_quality_level: result.asr_quality_level.as_deref(),
            reason_codes: result.reason_codes.as_ref(),
            quality_score: result.quality_score,
            rerun_count: result.rerun_count,
            segments_meta: result.segments_meta.as_ref(),
            late: false,
            room: None,
        }
    }

    /// The frame; `tts_audio` is base64 text, moved in as it is.
    pub fn encode(&self, tts_audio: &[u8]) -> Bytes {
        let mut frame = Vec::with_capacity(1_024 + tts_audio.len());
        splice::write(&mut frame, self, "tts_audio", tts_audio.len(), |out| {
            out.extend_from_slice(tts_audio)
        });
        Bytes::from(frame)
    }
}

#[cfg(test)]
mod tests;
