//! What a client said about itself when it opened its session.

use crate::protocol::audio::Format;
use crate::protocol::job::{FeatureFlags, Pipeline};
use crate::protocol::session::Init;
use crate::protocol::trace::TraceParent;
use crate::protocol::{DecodeError, Lang, NodeId, limits};

/// What the client said about itself.
#[derive(Debug, Clone)]
pub struct Profile {
    /// Free text.
    pub client_version: String,
    /// Free text.
    pub platform: String,
    /// Who pays.
    pub tenant: Option<String>,
    /// Language spoken.
    pub src: Lang,
    /// Language wanted.
    pub tgt: Lang,
    /// Trace of the whole session.
    pub trace_id: String,
    /// Where in its client's trace it stands.
    pub(super) traceparent: Option<TraceParent>,
    pub(super) dialect: Option<String>,
    pub(super) features: Option<FeatureFlags>,
    pub(super) mode: Option<String>,
    pub(super) lang_a: Option<Lang>,
    pub(super) lang_b: Option<Lang>,
    pub(super) auto_langs: Option<Vec<Lang>>,
    pub(super) pipeline: Pipeline,
    pub(super) streaming_asr: bool,
    pub(super) partial_interval_ms: u64,
    pub(super) audio_format: Option<Format>,
    pub(super) sample_rate: u32,
    pub(super) typed_errors: bool,
    /// The node it is paired with: no other serves it.
    pub paired: Option<NodeId>,
    /// It can come back to its session, and acknowledges results.
    pub resume: bool,
    /// It wants to hear when an utterance is on disk.
    pub accepted: bool,
    /// It numbers its chunks and wants to hear which are on disk.
    pub audio_ack: bool,
    /// It wants to hear when the server begins to go down.
    pub(super) go_away: bool,
}

impl Profile {
    /// From `session_init`; `fresh_trace` is used when the client brought none.
    pub fn new(init: Init, fresh_trace: String) -> Result<Self, DecodeError> {
        let audio_format = match init.audio_format.as_deref() {
            None => None,
            Some(name) => Some(Format::parse(name).ok_or_else(|| {
                DecodeError::Malformed(format!("audio_format `{}`", limits::clip(name, 32)))
            })?),
        };
        let sample_rate = init.sample_rate.unwrap_or(limits::SAMPLE_RATE);
        if !(8_000..=limits::SAMPLE_RATE_MAX).contains(&sample_rate) {
            let fault = format!("sample_rate {sample_rate} is out of range");
            return Err(DecodeError::Malformed(fault));
        }
        let extensions = init.extensions.unwrap_or_default();
        let offers = |word: &str| extensions.iter().any(|e| e == word);
        Ok(Self {
            client_version: init.client_version,
            platform: init.platform,
            tenant: init.tenant_id.filter(|t| !t.is_empty()),
            src: init.src_lang,
            tgt: init.tgt_lang,
            trace_id: init.trace_id.filter(|t| !t.is_empty()).unwrap_or(fresh_trace),
            traceparent: init.traceparent,
            dialect: init.dialect,
            features: init.features,
            mode: init.mode,
            lang_a: init.lang_a,
            lang_b: init.lang_b,
            auto_langs: init.auto_langs,
            pipeline: init.pipeline.unwrap_or_default(),
            streaming_asr: init.enable_streaming_asr.unwrap_or(true),
            partial_interval_ms: init.partial_update_interval_ms.unwrap_or(1_000),
            audio_format,
            sample_rate,
            typed_errors: offers("typed_errors"),
            paired: None,
            resume: offers("resume"),
            accepted: offers("accepted"),
            audio_ack: offers("audio_ack"),
            go_away: offers("go_away"),
        })
    }

    /// The same, of that tenant.
    pub fn of_tenant(self, tenant: Option<String>) -> Self {
        Self { tenant, ..self }
    }

    /// The same, served by that node alone.
    pub fn paired_with(self, node: Option<NodeId>) -> Self {
        Self { paired: node, ..self }
    }

    /// Takes back what only a store can promise.
    pub fn without_store(self) -> Self {
        Self { resume: false, accepted: false, audio_ack: false, ..self }
    }

    /// The words of `session_init.extensions` that are granted.
    pub(super) fn granted(&self) -> Vec<&'static str> {
        let words = [
            ("typed_errors", self.typed_errors),
            ("resume", self.resume),
            ("accepted", self.accepted),
            ("audio_ack", self.audio_ack),
            ("go_away", self.go_away),
        ];
        words.into_iter().filter_map(|(word, granted)| granted.then_some(word)).collect()
    }
}

/// The text, as job descriptions hold it.
pub(super) fn boxed(text: Option<&String>) -> Option<Box<str>> {
    text.map(|t| t.as_str().into())
}
