//! Words of the public API over HTTP, and what its side of a session understands.
//!
//! Source: docs/PROTOCOL.md, "Gateway".

use serde::{Deserialize, Serialize};

use super::lenient;

/// Language spoken that is taken where none is named.
pub const SRC_LANG: &str = "zh";
/// Language wanted that is taken where none is named.
pub const TGT_LANG: &str = "en";

/// What a recording is recorded and to be translated as.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Terms {
    /// Language spoken, or `auto`; Chinese if absent.
    pub src_lang: Option<String>,
    /// Language wanted; English if absent.
    pub tgt_lang: Option<String>,
    /// Candidates when `src_lang` is `auto`.
    pub auto_langs: Option<Vec<String>>,
    /// `wav`, `opus` or `pcm16`; seen from the recording if absent.
    pub audio_format: Option<String>,
    /// Of `pcm16`, in hertz; 16,000 if absent.
    pub sample_rate: Option<u32>,
    /// `wav` or `pcm16`: how speech in `pcm16` is answered.
    pub answer_format: Option<String>,
    /// Names the request in logs and traces.
    pub trace_id: Option<String>,
}

impl Terms {
    /// Language spoken.
    pub fn src(&self) -> &str {
        self.src_lang.as_deref().unwrap_or(SRC_LANG)
    }

    /// Language wanted.
    pub fn tgt(&self) -> &str {
        self.tgt_lang.as_deref().unwrap_or(TGT_LANG)
    }
}

/// The answer of `POST /v1/speech/translate`.
#[derive(Debug, Serialize)]
pub struct Translation {
    /// What was said.
    pub text: String,
    /// The same in the language wanted.
    pub translation: String,
    /// The translation spoken, in base64; empty if the node gave none.
    pub audio: String,
    /// `wav`, `pcm16` (16 kHz, mono) or `opus`; empty where there is none.
    pub audio_format: String,
    /// From the end of the request to the answer, in milliseconds.
    pub duration_ms: u64,
    /// By which operators find it.
    pub job_id: Option<String>,
    /// Of the request.
    pub trace_id: Option<String>,
}

/// What a client of `/v1/stream` sends.
#[derive(Debug)]
pub enum StreamRequest {
    /// Opens a session.
    Start(Box<Start>),
    /// A whole recording, in base64.
    Audio(String),
}

/// `start`.
#[derive(Debug, Default)]
pub struct Start {
    /// Languages and form of the recordings.
    pub terms: Terms,
    /// Whether transcripts are wanted while the node works; default no.
    pub partials: Option<bool>,
}

/// Why a message of `/v1/stream` was not understood; the text is what its clients know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StreamFault {
    /// Not JSON, no object, or a field of another type.
    #[error("Invalid JSON")]
    Json,
    /// The `type` is none of these.
    #[error("Unknown message type")]
    UnknownType,
    /// `audio` without `chunk`.
    #[error("Missing audio chunk")]
    NoChunk,
    /// The `chunk` is not base64, or empty.
    #[error("Invalid base64 audio")]
    Base64,
}

/// Understands a message of a client of `/v1/stream`.
pub fn decode_stream(frame: &str) -> Result<StreamRequest, StreamFault> {
    #[derive(Deserialize)]
    struct Message<'a> {
        #[serde(rename = "type", borrow)]
        kind: Option<std::borrow::Cow<'a, str>>,
        chunk: Option<String>,
    }
    #[derive(Deserialize)]
    struct Wish {
        partials: Option<bool>,
    }
    fn read<'a, T: Deserialize<'a>>(frame: &'a str) -> Result<T, StreamFault> {
        lenient::object(frame.as_bytes()).map_err(|_| StreamFault::Json)
    }
    let message: Message<'_> = read(frame)?;
    match message.kind.as_deref() {
        Some("start") => {
            // Not flattened into one: what is flattened is read from a copy of all fields.
            let Wish { partials } = read(frame)?;
            Ok(StreamRequest::Start(Box::new(Start { terms: read(frame)?, partials })))
        }
        Some("audio") => match message.chunk {
            None => Err(StreamFault::NoChunk),
            Some(chunk) if chunk.is_empty() => Err(StreamFault::Base64),
            Some(chunk) if base64_simd::STANDARD.check(chunk.as_bytes()).is_err() => {
                Err(StreamFault::Base64)
            }
            Some(chunk) => Ok(StreamRequest::Audio(chunk)),
        },
        _ => Err(StreamFault::UnknownType),
    }
}

/// What a client of `/v1/stream` is told.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum StreamEvent {
    /// There is a session.
    Started {
        /// Its id.
        session_id: String,
    },
    /// What was understood so far, for who asked for it.
    Partial {
        /// Of which recording, from 0.
        index: u64,
        /// The words so far.
        text: String,
    },
    /// A recording is translated.
    Final {
        /// Of which recording, from 0.
        index: u64,
        /// The translation.
        text: String,
        /// What was said.
        transcript: String,
        /// The translation spoken, in base64; empty if there is none.
        audio: String,
        /// Form of `audio`.
        audio_format: String,
    },
    /// Something was not understood, or a recording not translated.
    Error {
        /// For people; begins as clients know it.
        message: String,
        /// One of the protocol's codes.
        code: String,
        /// Which recording, if it is about one.
        #[serde(skip_serializing_if = "Option::is_none")]
        index: Option<u64>,
        /// When the same may succeed, in milliseconds.
        #[serde(skip_serializing_if = "Option::is_none")]
        retry_after_ms: Option<u64>,
    },
}

/// What a session says that its gateway acts upon.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Told {
    /// It is open.
    SessionInitAck {
        /// Its id.
        session_id: String,
    },
    /// A transcript on the way.
    AsrPartial {
        /// Of which utterance.
        utterance_index: u64,
        /// The words so far.
        text: String,
    },
    /// An utterance is done.
    TranslationResult(Box<Done>),
    /// An utterance ended in nothing.
    MissingResult {
        /// Which.
        utterance_index: u64,
        /// Why.
        reason: String,
    },
    /// Something was refused, or failed.
    Error(Box<Failed>),
    /// It is closed.
    SessionCloseAck,
    /// Anything else.
    #[serde(other)]
    Other,
}

/// `translation_result`.
#[derive(Debug, Default, Deserialize)]
pub struct Done {
    /// Of which utterance.
    pub utterance_index: u64,
    /// Of which job.
    pub job_id: Option<String>,
    /// What was said.
    pub text_asr: String,
    /// The translation.
    pub text_translated: String,
    /// The translation spoken, in base64.
    pub tts_audio: String,
    /// Form of that.
    pub tts_format: String,
    /// Of the utterance.
    pub trace_id: Option<String>,
}

/// `error`.
#[derive(Debug, Clone, Deserialize)]
pub struct Failed {
    /// One of the protocol's codes, or a node's.
    pub code: String,
    /// For people.
    pub message: String,
    /// When the same may succeed.
    pub retry_after_ms: Option<u64>,
    /// Of the utterance or the session.
    pub trace_id: Option<String>,
    /// `submit` or `job` where `missing_result` follows.
    pub phase: Option<String>,
}

impl Failed {
    /// Where only the reason of a `missing_result` is known.
    pub fn without_code(reason: &str) -> Self {
        let code = reason.to_uppercase();
        let message = format!("no result: {reason}");
        Self { code, message, retry_after_ms: None, trace_id: None, phase: None }
    }
}

/// `session_init` of a gateway.
pub fn session_init(terms: &Terms, partials: bool) -> String {
    let init = serde_json::json!({
        "type": "session_init",
        "client_version": env!("CARGO_PKG_VERSION"),
        "platform": "api-gateway",
        "src_lang": terms.src(),
        "tgt_lang": terms.tgt(),
        "auto_langs": terms.auto_langs,
        "enable_streaming_asr": partials,
        "trace_id": terms.trace_id,
        "extensions": ["typed_errors"],
    });
    init.to_string()
}

/// `utterance` of a gateway: a whole recording, `audio` in base64.
pub fn utterance(
    session_id: &str,
    index: u64,
    terms: &Terms,
    (format, sample_rate): (&str, u32),
    audio: &str,
) -> String {
    let head = serde_json::json!({
        "type": "utterance",
        "session_id": session_id,
        "utterance_index": index,
        "manual_cut": true,
        "src_lang": terms.src(),
        "tgt_lang": terms.tgt(),
        "audio_format": format,
        "sample_rate": sample_rate,
        "trace_id": terms.trace_id,
    });
    let mut text = head.to_string();
    // The audio is long and needs no escapes: it is put in as it is.
    text.pop();
    text.reserve(audio.len() + 16);
    text.push_str(",\"audio\":\"");
    text.push_str(audio);
    text.push_str("\"}");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::session::{Request, decode};

    #[test]
    fn the_session_understands_what_the_gateway_says() {
        let terms = Terms {
            src_lang: Some("en".into()),
            trace_id: Some("\"audio\":\\".into()),
            ..Terms::default()
        };
        let Ok(Request::Init(init)) = decode(&session_init(&terms, false).into()) else {
            panic!("no session_init");
        };
        assert_eq!((init.src_lang.as_str(), init.tgt_lang.as_str()), ("en", "en"));
        assert_eq!(init.extensions.as_deref(), Some(&["typed_errors".to_owned()][..]));
        let text = utterance("s-1", 3, &terms, ("pcm16", 16_000), "AAA=");
        let Ok(Request::Utterance(utterance)) = decode(&text.into()) else {
            panic!("no utterance");
        };
        assert_eq!((utterance.head.utterance_index, &utterance.audio[..]), (3, &b"AAA="[..]));
        assert_eq!(utterance.head.trace_id, terms.trace_id);
    }

    #[test]
    fn a_stream_says_what_is_wrong_in_the_words_its_clients_know() {
        let fault = |text: &str| decode_stream(text).unwrap_err().to_string();
        assert_eq!(fault("{"), "Invalid JSON");
        assert_eq!(fault("[1]"), "Invalid JSON");
        assert_eq!(fault(r#"["audio","AAAA"]"#), "Invalid JSON");
        assert_eq!(fault(r#"{"type":7}"#), "Invalid JSON");
        assert_eq!(fault(r#"{"type":"start","sample_rate":"x"}"#), "Invalid JSON");
        assert_eq!(fault(r#"{"type":"stop"}"#), "Unknown message type");
        assert_eq!(fault("{}"), "Unknown message type");
        assert_eq!(fault(r#"{"type":"audio"}"#), "Missing audio chunk");
        assert_eq!(fault(r#"{"type":"audio","chunk":"?"}"#), "Invalid base64 audio");
        assert_eq!(fault(r#"{"type":"audio","chunk":""}"#), "Invalid base64 audio");
    }

    #[test]
    fn a_stream_starts_with_what_its_client_names() {
        let text = r#"{"type":"start","src_lang":"en","more":[1],"partials":true}"#;
        let Ok(StreamRequest::Start(start)) = decode_stream(text) else { panic!("no start") };
        assert_eq!(start.terms, Terms { src_lang: Some("en".into()), ..Terms::default() });
        assert_eq!(start.partials, Some(true));
    }
}
