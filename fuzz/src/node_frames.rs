//! Text frames of the node socket: `protocol::node::decode`.
//!
//! The twin is a tree of values, as for the session socket. Of a result, the sound is passed over
//! by the decoder; a frame whose sound has to be parsed must mean the same.

use bytes::Bytes;
use serde_json::Value;
use utterd::protocol::limits::{
    HEAD_BYTES_MAX, HELLO_ENTRIES_MAX, LANGUAGES_MAX, PAIRS_PER_NODE_MAX, RESULT_TEXT_BYTES_MAX,
    SERVICES_MAX,
};
use utterd::protocol::node::{Message, Report, decode};

use super::bounded::bounded;
use super::twin::{base64, canonical, escaped, has_floats};

pub fn run(input: &[u8]) {
    let frame = Bytes::copy_from_slice(input);
    let decoded = bounded(input.len(), || decode(&frame));
    let Ok(value) = serde_json::from_slice::<Value>(input) else { return };
    if let Ok(message) = &decoded {
        agrees(message, &value);
    }
    let plain = canonical(&value);
    if plain.len() > HEAD_BYTES_MAX {
        return;
    }
    let of_plain = decode(&plain);
    if decoded.is_ok() && !has_floats(&value) {
        assert!(of_plain.is_ok(), "taken, but not when written plainly: {of_plain:?}");
    }
    if value["type"] == "job_result" {
        let of_escaped = decode(&escaped(&value, "tts_audio"));
        match (&of_plain, &of_escaped) {
            (Ok(a), Ok(b)) => assert_eq!(format!("{a:?}"), format!("{b:?}"), "by both ways"),
            (a, b) => assert_eq!(a.is_ok(), b.is_ok(), "by both ways: {a:?}, {b:?}"),
        }
    }
}

fn agrees(message: &Message, value: &Value) {
    let kind = value["type"].as_str().expect("nothing is taken without a type");
    let named = |id: String| assert_eq!(Some(id), value["job_id"].as_str().map(lower));
    match message {
        Message::Register(report) => {
            assert_eq!(kind, "node_register");
            within_bounds(report);
        }
        Message::Heartbeat(report) => {
            assert_eq!(kind, "node_heartbeat");
            within_bounds(report);
        }
        Message::JobResult(result) => {
            assert_eq!(kind, "job_result");
            named(result.job_id.to_string());
            assert_eq!(value["success"].as_bool(), Some(result.success));
            assert_eq!(value["text_asr"].as_str().unwrap_or_default(), result.text_asr);
            let sound = value["tts_audio"].as_str().unwrap_or_default();
            let kept = if base64(sound).is_some() { sound } else { "" };
            assert_eq!(kept.as_bytes(), &*result.tts_audio, "a sound that is none is left out");
            assert!(result.text_translated.len() <= RESULT_TEXT_BYTES_MAX);
            let passed = |text: &str| serde_json::from_str::<Value>(text).expect("it is readable");
            let extra = result.extra.iter().flat_map(|extra| &extra.0);
            extra.for_each(|(key, of)| assert_eq!(value["extra"][key], passed(of.get())));
            let meta = result.segments_meta.iter();
            meta.for_each(|meta| assert_eq!(value["segments_meta"], passed(meta.get())));
        }
        Message::AsrPartial(partial) => {
            assert_eq!(kind, "asr_partial");
            named(partial.job_id.to_string());
            assert!(value["text"].as_str().unwrap().starts_with(&partial.text));
        }
        Message::JobAck(mark) | Message::JobStarted(mark) => named(mark.job_id.to_string()),
        Message::NodeError(_) => assert_eq!(kind, "node_error"),
        Message::PairingCodeRequest => assert_eq!(kind, "pairing_code_request"),
        Message::WrongDirection(of) => assert_eq!(kind, *of),
    }
}

/// As an id is written back.
fn lower(id: &str) -> String {
    id.trim().to_ascii_lowercase()
}

fn within_bounds(report: &Report) {
    assert!(report.services.len() <= SERVICES_MAX);
    assert!(report.sources.len() <= LANGUAGES_MAX && report.targets.len() <= LANGUAGES_MAX);
    assert!(report.pairs.as_ref().is_none_or(|pairs| pairs.len() <= PAIRS_PER_NODE_MAX));
    if let Some(hello) = &report.hello {
        assert!(!hello.boot_id.is_empty());
        assert!(hello.inflight.len() <= HELLO_ENTRIES_MAX);
        assert!(hello.unacked.len() <= HELLO_ENTRIES_MAX);
    }
}
