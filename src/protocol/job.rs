//! What is asked of a node: the part of `job_assign` that stays the same through every attempt.

use std::borrow::Cow;

use bincode::{Decode, Encode};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::ids::{Lang, NodeId, RoomCode, SessionId, TurnId};
use super::trace::Traced;

/// Why an utterance ended where it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cut {
    /// The speaker said so (`is_final`, or `utterance` with `manual_cut`).
    Manual,
    /// Nothing came for `pause_ms`.
    Pause,
    /// The slice reached `max_duration_ms`; the turn goes on.
    MaxDuration,
    /// The slice reached `max_bytes`; the turn goes on.
    MaxBytes,
    /// The session closed.
    Close,
    /// A whole recording came in one message, without `manual_cut`.
    Whole,
}

impl Cut {
    /// Whether the node may translate what it has collected of the turn: the last job of every
    /// turn must say so, for a node keeps shorter pieces for itself (docs/PROTOCOL.md, "Jobs and
    /// turns").
    pub fn closes_turn(self) -> bool {
        !matches!(self, Cut::MaxDuration | Cut::MaxBytes)
    }

    /// Label of the metric and of the explanation.
    pub fn as_str(self) -> &'static str {
        match self {
            Cut::Manual => "manual",
            Cut::Pause => "pause",
            Cut::MaxDuration => "max_duration",
            Cut::MaxBytes => "max_bytes",
            Cut::Close => "close",
            Cut::Whole => "whole",
        }
    }
}

/// How far the audio stream of a session is inside jobs that are on the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct ChunkMark {
    /// Number of the last chunk that is wholly inside them.
    pub through: u64,
    /// Bytes of the next chunk that are inside them too.
    pub skip: u32,
}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode, Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Outcome {
    /// A node answered with text or speech.
    Succeeded,
    /// A node answered that nothing was said.
    Empty,
    /// The node put its audio into the answer of a later job of the turn.
    Merged,
    /// It could not be done.
    Failed,
    /// No node was free in time.
    Expired,
    /// Nobody wants it any more.
    Cancelled,
}

impl Outcome {
    /// All outcomes, in the order of their numbers.
    pub const ALL: [Outcome; 6] = [
        Outcome::Succeeded,
        Outcome::Empty,
        Outcome::Merged,
        Outcome::Failed,
        Outcome::Expired,
        Outcome::Cancelled,
    ];

    /// Name in explanations and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Succeeded => "succeeded",
            Outcome::Empty => "empty",
            Outcome::Merged => "merged",
            Outcome::Failed => "failed",
            Outcome::Expired => "expired",
            Outcome::Cancelled => "cancelled",
        }
    }
}

/// Optional features of a session; absent and null are left out again on output.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize,
)]
#[allow(missing_docs, reason = "the wire's own names; see docs/PROTOCOL.md, \"Shared objects\"")]
pub struct FeatureFlags {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub emotion_detection: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub voice_style_detection: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speech_rate_detection: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speech_rate_control: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speaker_identification: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persona_adaptation: Option<bool>,
}

impl FeatureFlags {
    /// The true flags as bits, in field order: stable across builds, so that it can be part of an
    /// idempotency key.
    pub fn bits(&self) -> u8 {
        let flags = [
            self.emotion_detection,
            self.voice_style_detection,
            self.speech_rate_detection,
            self.speech_rate_control,
            self.speaker_identification,
            self.persona_adaptation,
        ];
        flags.iter().enumerate().fold(0, |bits, (i, f)| bits | (u8::from(*f == Some(true)) << i))
    }
}

/// Which stages a job wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the wire's own names; see docs/PROTOCOL.md, \"Shared objects\"")]
pub struct Pipeline {
    pub use_asr: bool,
    pub use_nmt: bool,
    pub use_tts: bool,
    #[serde(default)]
    pub use_semantic: bool,
    #[serde(default)]
    pub use_tone: bool,
}

impl Default for Pipeline {
    fn default() -> Self {
        Self { use_asr: true, use_nmt: true, use_tts: true, use_semantic: false, use_tone: false }
    }
}

/// The unchanging description of one job.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct JobSpec {
    /// The speaker.
    pub session: SessionId,
    /// Place in the speaker's order, from 0.
    pub utterance_index: u64,
    /// The turn it belongs to.
    pub turn: TurnId,
    /// Tenant named by the session, if any.
    pub tenant: Option<Box<str>>,
    /// Language spoken, or `auto`.
    pub src: Lang,
    /// Language wanted.
    pub tgt: Lang,
    /// Passed through.
    pub dialect: Option<Box<str>>,
    /// `one_way` or `two_way_auto`; other strings are passed through.
    pub mode: Option<Box<str>>,
    /// First language of two-way mode.
    pub lang_a: Option<Lang>,
    /// Second language of two-way mode.
    pub lang_b: Option<Lang>,
    /// Candidates when `src` is `auto`.
    pub auto_langs: Option<Vec<Lang>>,
    /// Optional features.
    pub features: Option<FeatureFlags>,
    /// Stages wanted.
    pub pipeline: Pipeline,
    /// `opus` (length-prefixed packets), `pcm16`, or what an `utterance` said.
    pub audio_format: Box<str>,
    /// Samples per second.
    pub sample_rate: u32,
    /// Length of the audio, estimated where the format does not tell, in milliseconds.
    pub audio_ms: u32,
    /// Trace of the session or of the utterance.
    pub trace_id: Box<str>,
    /// Where in its client's trace it stands, if the client says.
    pub traced: Traced,
    /// Silence the node is to append, in milliseconds.
    pub padding_ms: Option<u32>,
    /// Why the utterance ended.
    pub cut: Cut,
    /// Whether the node is to send `asr_partial`.
    pub streaming_asr: bool,
    /// How often, in milliseconds.
    pub partial_interval_ms: u64,
    /// Client clock at the utterance's first chunk, Unix milliseconds, if the client said.
    pub client_sent_ms: Option<i64>,
    /// The node its session is paired with: no other may have it.
    pub paired: Option<NodeId>,
    /// Who hears the result beside the speaker, if it was said in a room.
    pub audience: Option<Box<Audience>>,
}

impl JobSpec {
    /// A second of speech from one language to another, with nothing special about it.
    pub fn plain(src: Lang, tgt: Lang) -> Self {
        Self {
            session: SessionId(1),
            utterance_index: 0,
            turn: TurnId(1),
            tenant: None,
            src,
            tgt,
            dialect: None,
            mode: None,
            lang_a: None,
            lang_b: None,
            auto_langs: None,
            features: None,
            pipeline: Pipeline::default(),
            audio_format: "pcm16".into(),
            sample_rate: 16_000,
            audio_ms: 1_000,
            trace_id: "t".into(),
            traced: Traced::default(),
            padding_ms: None,
            cut: Cut::Manual,
            streaming_asr: true,
            partial_interval_ms: 1_000,
            client_sent_ms: None,
            paired: None,
            audience: None,
        }
    }

    /// Whether its end is what the speaker waits for. Of an utterance that is said in several
    /// languages that is one job; the others are for listeners alone.
    pub fn is_primary(&self) -> bool {
        self.audience.as_ref().is_none_or(|audience| audience.primary)
    }
}

/// Who hears the result of a job, beside the speaker or instead.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Audience {
    /// The room it was said in.
    pub room: RoomCode,
    /// The speaker's seat in it, from 1: tells utterances of several speakers apart.
    pub seat: u32,
    /// Of the jobs of the utterance this is the one whose end the speaker waits for.
    pub primary: bool,
    /// The speaker's session asked for this language.
    pub wanted: bool,
    /// Who hears the translation.
    pub listeners: Vec<SessionId>,
    /// Who reads what was said, because it was said in their language.
    pub readers: Vec<SessionId>,
}

/// A frame about the end of a job, for others than its speaker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// Who.
    pub listeners: Vec<SessionId>,
    /// The frame.
    pub frame: Bytes,
}

/// The audio of one job: as it came (base64, untouched) or as it was cut (bytes).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Audio {
    /// Standard base64 text, alphabet and padding checked.
    Base64(Bytes),
    /// The bytes themselves.
    Raw(Bytes),
}

impl Audio {
    /// Bytes held.
    pub fn held_len(&self) -> usize {
        match self {
            Audio::Base64(b) | Audio::Raw(b) => b.len(),
        }
    }

    /// Length of the base64 text that `write_base64` appends.
    pub fn base64_len(&self) -> usize {
        match self {
            Audio::Base64(b) => b.len(),
            Audio::Raw(b) => base64_simd::STANDARD.encoded_length(b.len()),
        }
    }

    /// Appends the audio as base64 text.
    pub fn write_base64(&self, out: &mut Vec<u8>) {
        match self {
            Audio::Base64(b) => out.extend_from_slice(b),
            Audio::Raw(b) => base64_simd::STANDARD.encode_append(b, out),
        }
    }

    /// The audio as bytes; base64 that is not (which the decoder refused before) gives none.
    pub fn raw(&self) -> Cow<'_, [u8]> {
        match self {
            Audio::Base64(b) => {
                Cow::Owned(base64_simd::STANDARD.decode_to_vec(b).unwrap_or_default())
            }
            Audio::Raw(b) => Cow::Borrowed(b),
        }
    }
}

#[cfg(test)]
pub(crate) mod samples {
    //! Jobs for tests, here and elsewhere.

    use super::*;

    /// A second of speech.
    pub(crate) fn spec(src: &str, tgt: &str) -> JobSpec {
        JobSpec::plain(src.parse().unwrap(), tgt.parse().unwrap())
    }
}
