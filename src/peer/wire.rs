//! The messages these two peers read and write, and nothing of what they do with them.
//!
//! Read leniently: unknown types and fields are passed over, and whatever a peer can do without may
//! be missing.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::client::Request;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::http::header::AUTHORIZATION;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Error as WsError, Message, error::UrlError};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use super::brake::Brake;
use super::dial::{Stream, Trust};

/// A connection this side opened.
pub(super) type Socket = WebSocketStream<Stream>;

/// What a scheduler says to a node.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum ToNode {
    NodeRegisterAck {
        node_id: String,
        #[serde(default)]
        extensions: Vec<String>,
        /// What becomes of each attempt the node has.
        #[serde(default)]
        jobs: Vec<Instruction>,
    },
    /// A result need not be kept any longer.
    ResultAck(Attempt),
    JobAssign(Box<Assign>),
    JobCancel {
        job_id: String,
    },
    Error {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    },
    #[serde(other)]
    Unknown,
}

/// One attempt at a job.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub(super) struct Attempt {
    pub(super) job_id: String,
    #[serde(default = "first_attempt")]
    pub(super) attempt_id: u32,
}

/// What becomes of an attempt.
#[derive(Debug, Deserialize)]
pub(super) struct Instruction {
    #[serde(flatten)]
    pub(super) attempt: Attempt,
    pub(super) action: Action,
}

/// What the scheduler wants of an attempt that it was told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Action {
    Keep,
    Cancel,
    Send,
    #[serde(other)]
    Unknown,
}

/// The parts of a job that come back with its answer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Ident {
    pub(super) job_id: String,
    #[serde(default = "first_attempt")]
    pub(super) attempt_id: u32,
    #[serde(default)]
    pub(super) session_id: String,
    #[serde(default)]
    pub(super) utterance_index: u64,
    #[serde(default)]
    pub(super) trace_id: String,
}

impl Ident {
    pub(super) fn attempt(&self) -> Attempt {
        Attempt { job_id: self.job_id.clone(), attempt_id: self.attempt_id }
    }
}

/// One job. A MaxDuration slice looks like any other: each is answered by itself.
#[derive(Debug, Deserialize)]
pub(super) struct Assign {
    #[serde(flatten)]
    pub(super) ident: Ident,
    #[serde(default)]
    pub(super) src_lang: String,
    #[serde(default)]
    pub(super) tgt_lang: String,
    pub(super) lang_a: Option<String>,
    pub(super) lang_b: Option<String>,
    pub(super) auto_langs: Option<Vec<String>>,
    pub(super) pipeline: Option<Pipeline>,
    #[serde(default)]
    pub(super) audio: String,
    #[serde(default)]
    pub(super) audio_format: String,
    #[serde(default = "wire_rate")]
    pub(super) sample_rate: u32,
    pub(super) enable_streaming_asr: Option<bool>,
}

/// Steps wanted of a job.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct Pipeline {
    #[serde(default = "yes")]
    pub(super) use_asr: bool,
    #[serde(default = "yes")]
    pub(super) use_nmt: bool,
    #[serde(default = "yes")]
    pub(super) use_tts: bool,
}

fn yes() -> bool {
    true
}

fn first_attempt() -> u32 {
    1
}

fn wire_rate() -> u32 {
    super::wav::RATE_HZ
}

/// What a scheduler says to a speaker.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum ToSpeaker {
    SessionInitAck(Box<Opened>),
    SessionResumeAck(Box<Reopened>),
    UtteranceAccepted {
        utterance_index: u64,
    },
    AudioAck {
        through: u64,
    },
    GoAway {
        reconnect_after_ms: Option<u64>,
    },
    TranslationResult(Box<Translation>),
    AsrPartial {
        utterance_index: u64,
        text: String,
        #[serde(default)]
        is_final: bool,
    },
    UiEvent {
        utterance_index: u64,
        #[serde(default)]
        job_id: String,
        event: String,
        error_code: Option<String>,
    },
    MissingResult {
        utterance_index: u64,
        #[serde(default)]
        reason: String,
    },
    Error {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    },
    Backpressure {
        action: String,
        resume_after_ms: Option<u64>,
    },
    ServerHeartbeat {},
    SessionCloseAck {},
    #[serde(other)]
    Unknown,
}

/// A session, and what it takes to come back to it.
#[derive(Debug, Deserialize)]
pub(super) struct Opened {
    pub(super) session_id: String,
    /// Extensions granted.
    #[serde(default)]
    pub(super) extensions: Vec<String>,
    pub(super) epoch: Option<u64>,
    pub(super) resume_secret: Option<String>,
    pub(super) resume_window_ms: Option<u64>,
}

/// The answer to coming back.
#[derive(Debug, Deserialize)]
pub(super) struct Reopened {
    #[serde(default)]
    pub(super) recovered: bool,
    /// Number of the next result; none if the session is not there any more.
    pub(super) from_seq: Option<u64>,
    /// Chunks that need not be sent again.
    pub(super) chunks_through: Option<u64>,
    /// Utterances that will still be answered.
    #[serde(default)]
    pub(super) utterances: Vec<Unfinished>,
    #[serde(default)]
    pub(super) reason: String,
}

/// An utterance that was accepted and is not answered.
#[derive(Debug, Deserialize)]
pub(super) struct Unfinished {
    pub(super) utterance_index: u64,
}

/// One answered utterance.
#[derive(Debug, Deserialize)]
pub(super) struct Translation {
    pub(super) utterance_index: u64,
    #[serde(default)]
    pub(super) job_id: String,
    #[serde(default)]
    pub(super) text_asr: String,
    #[serde(default)]
    pub(super) text_translated: String,
    #[serde(default)]
    pub(super) tts_audio: String,
    pub(super) tts_format: Option<String>,
    pub(super) group_id: Option<String>,
}

/// Audio as text.
pub(super) fn base64(bytes: &[u8]) -> String {
    base64_simd::STANDARD.encode_to_string(bytes)
}

/// Text as audio; `None` where it is not base64.
pub(super) fn from_base64(text: &str) -> Option<Vec<u8>> {
    base64_simd::STANDARD.decode_to_vec(text).ok()
}

/// `job_ack` and `job_started` differ in nothing but the name.
pub(super) fn job_step(kind: &str, node_id: &str, ident: &Ident) -> Value {
    json!({
        "type": kind,
        "job_id": ident.job_id,
        "attempt_id": ident.attempt_id,
        "node_id": node_id,
        "session_id": ident.session_id,
        "trace_id": ident.trace_id,
    })
}

/// Adds the fields of one object to another.
pub(super) fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}

/// Where to connect, and how.
#[derive(Debug, Clone)]
pub(super) struct Dial {
    request: Request,
    /// `HOST:PORT`.
    authority: String,
    encrypted: bool,
    trust: Trust,
    brake: Option<Brake>,
}

impl Dial {
    /// To a `ws://` or `wss://` address; one that nobody can dial is an error now and not at every
    /// attempt.
    /// With a key, it is shown.
    pub(super) fn to(url: &str, trust: &Trust, key: Option<&str>) -> Result<Self, WsError> {
        let mut request = url.into_client_request()?;
        if let Some(key) = key {
            let value = HeaderValue::try_from(format!("Bearer {key}"));
            let mut value = value.map_err(tungstenite::http::Error::from)?;
            value.set_sensitive(true);
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        let (encrypted, usual) = match request.uri().scheme_str() {
            Some("ws") => (false, 80),
            Some("wss") if trust.is_some() => (true, 443),
            Some("wss") => return Err(Trust::missing().into()),
            _ => return Err(WsError::Url(UrlError::UnsupportedUrlScheme)),
        };
        let host = request.uri().host().ok_or(WsError::Url(UrlError::NoHostName))?;
        let authority = format!("{host}:{}", request.uri().port_u16().unwrap_or(usual));
        Ok(Self { request, authority, encrypted, trust: trust.clone(), brake: None })
    }

    /// The same, with a brake on what is read, if there is one.
    pub(super) fn braked(self, brake: Option<Brake>) -> Self {
        Self { brake, ..self }
    }

    /// Opens a socket.
    pub(super) async fn open(&self, config: WebSocketConfig) -> Result<Socket, WsError> {
        let stream = Box::pin(self.trust.connect(&self.authority, self.encrypted)).await?;
        let stream = match &self.brake {
            Some(brake) => stream.slowed(brake.clone()),
            None => stream,
        };
        let upgrade = client_async_with_config(self.request.clone(), stream, Some(config));
        Ok(Box::pin(upgrade).await?.0)
    }
}

/// The text of a message; peers may send JSON in binary frames too.
pub(super) fn text_of(message: &Message) -> Option<&str> {
    match message {
        Message::Text(text) => Some(text.as_str()),
        Message::Binary(bytes) => std::str::from_utf8(bytes).ok(),
        _ => None,
    }
}

/// Milliseconds since 1970 by this machine's clock.
pub(super) fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_with_only_a_name_is_read_and_nulls_are_nothing() {
        let bare = r#"{"type":"job_assign","job_id":"j","lang_a":null,"pipeline":{},"x":1}"#;
        let Ok(ToNode::JobAssign(job)) = serde_json::from_str(bare) else { panic!("not read") };
        assert_eq!((job.ident.job_id.as_str(), job.ident.attempt_id), ("j", 1));
        assert_eq!(job.sample_rate, 16_000);
        assert!(job.pipeline.is_some_and(|p| p.use_asr && p.use_nmt && p.use_tts));
    }

    #[test]
    fn unknown_types_are_known_to_be_unknown() {
        let odd = r#"{"type":"node_control","command":"dance"}"#;
        assert!(matches!(serde_json::from_str(odd), Ok(ToNode::Unknown)));
        let odd = r#"{"type":"language_detected","lang":"en"}"#;
        assert!(matches!(serde_json::from_str(odd), Ok(ToSpeaker::Unknown)));
        assert!(serde_json::from_str::<ToNode>("[]").is_err());
    }

    #[test]
    fn only_websocket_addresses_can_be_dialled_and_encrypted_ones_with_certificates() {
        let dial = |url| Dial::to(url, &Trust::default(), None);
        assert_eq!(dial("ws://127.0.0.1:1/ws/node").unwrap().authority, "127.0.0.1:1");
        assert_eq!(dial("ws://[::1]/ws/node").unwrap().authority, "[::1]:80");
        assert!(dial("wss://127.0.0.1:1/ws/node").is_err());
        assert!(dial("http://127.0.0.1:1/").is_err());
        assert!(dial("not an address").is_err());
    }
}
