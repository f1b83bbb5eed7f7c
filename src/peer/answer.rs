//! The end of a job in the wire's words: what an engine made of it, or why it made nothing.

use std::time::Duration;

use serde_json::{Value, json};

use super::engine::{EngineError, JobOutput};
use super::wire::{self, Ident, merge};

/// Longest error text sent, in bytes.
const MESSAGE_BYTES_MAX: usize = 500;

/// A failed job in the wire's words.
pub(super) struct Failure {
    pub(super) code: &'static str,
    pub(super) message: String,
    details: Option<Value>,
}

impl Failure {
    pub(super) fn processing(message: String) -> Self {
        Self { code: "PROCESSING_ERROR", message: shorten(message), details: None }
    }

    /// Another node should have it.
    pub(super) fn overloaded(message: String) -> Self {
        Self { code: "NODE_OVERLOADED", message: shorten(message), details: None }
    }
}

impl From<&EngineError> for Failure {
    fn from(error: &EngineError) -> Self {
        match error {
            EngineError::NotAvailable { service_id, service_version, reason } => Self {
                code: "MODEL_NOT_AVAILABLE",
                message: shorten(error.to_string()),
                details: Some(json!({
                    "service_id": service_id,
                    "service_version": service_version,
                    "reason": reason,
                })),
            },
            EngineError::Unsupported(_)
            | EngineError::Program { .. }
            | EngineError::Audio { .. }
            | EngineError::Scratch(_) => Self::processing(error.to_string()),
        }
    }
}

/// Keeps the start, which says what failed, and the end, which is where programs say why.
fn shorten(message: String) -> String {
    if message.len() <= MESSAGE_BYTES_MAX {
        return message;
    }
    const GAP: &str = " ... ";
    let fits = |at: &usize| message.is_char_boundary(*at);
    let head = (0..=MESSAGE_BYTES_MAX / 4).rev().find(fits).unwrap_or(0);
    let end_bytes_max = MESSAGE_BYTES_MAX - head - GAP.len();
    let tail = (message.len() - end_bytes_max..message.len()).find(fits).unwrap_or(message.len());
    format!("{}{GAP}{}", &message[..head], &message[tail..])
}

/// How a job ended, as it is told.
pub(super) fn job_result(
    node_id: &str,
    ident: &Ident,
    outcome: Result<JobOutput, Failure>,
    took: Duration,
) -> Value {
    let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    let mut message = json!({
        "type": "job_result",
        "job_id": ident.job_id,
        "attempt_id": ident.attempt_id,
        "node_id": node_id,
        "session_id": ident.session_id,
        "utterance_index": ident.utterance_index,
        "success": outcome.is_ok(),
        "processing_time_ms": took_ms,
        "node_completed_at_ms": wire::now_ms(),
        "trace_id": ident.trace_id,
    });
    let rest = match outcome {
        Ok(output) => {
            let mut extra = json!({ "service_timings": {
                "asr_ms": output.asr_ms,
                "nmt_ms": output.nmt_ms,
                "tts_ms": output.tts_ms,
                "total_ms": took_ms,
            }});
            if output.text_asr.is_empty() {
                extra["reason"] = json!("ASR_EMPTY");
            }
            json!({
                "text_asr": output.text_asr,
                "text_translated": output.text_translated,
                "tts_audio": wire::base64(&output.tts_audio),
                "tts_format": output.tts_format,
                "extra": extra,
            })
        }
        Err(Failure { code, message, details: None }) => {
            json!({ "error": { "code": code, "message": message } })
        }
        Err(Failure { code, message, details }) => {
            json!({ "error": { "code": code, "message": message, "details": details } })
        }
    };
    merge(&mut message, rest);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_messages_keep_both_ends_and_whole_letters() {
        assert_eq!(shorten("short".to_owned()), "short");
        for filler in ["x", "é", "語", "🎤"] {
            let long = format!("nmt: a: {}the end", filler.repeat(600));
            let short = shorten(long);
            assert!(short.len() <= MESSAGE_BYTES_MAX, "{}", short.len());
            assert!(short.starts_with("nmt: a: ") && short.ends_with("the end"), "{short}");
        }
    }
}
