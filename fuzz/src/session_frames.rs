//! Text frames of the session socket, rooms included: `protocol::session::decode`.
//!
//! The decoder passes over a long audio string without parsing it. Its twin parses the whole frame
//! into a tree of values. What both take must be the same; and a frame whose audio field is spelt
//! with an escape, so that the decoder has to parse all of it, must mean what the plain one means.

use bytes::Bytes;
use serde::de::IgnoredAny;
use serde_json::Value;
use utterd::protocol::SessionId;
use utterd::protocol::limits::HEAD_BYTES_MAX;
use utterd::protocol::session::{Request, decode};

use super::bounded::bounded;
use super::twin::{base64, canonical, escaped, has_floats, whole};

pub fn run(input: &[u8]) {
    let frame = Bytes::copy_from_slice(input);
    let decoded = bounded(input.len(), || decode(&frame));
    if let Ok(Request::Signal(signal)) = &decoded {
        let relayed: Value = serde_json::from_slice(&signal.relayed(SessionId(7))).unwrap();
        assert_eq!(relayed["to"], SessionId(7).to_string(), "the sender is named");
    }
    let Ok(value) = serde_json::from_slice::<Value>(input) else {
        // What is passed over, a number too large for any type in a field that nobody reads, may
        // be no value; but what is no JSON is not taken, for audio, which is not parsed, is base64.
        let is_json = serde_json::from_slice::<IgnoredAny>(input).is_ok();
        assert!(decoded.is_err() || is_json, "taken, and no JSON: {decoded:?}");
        return;
    };
    if let Ok(request) = &decoded {
        agrees(request, &value);
    }
    let plain = canonical(&value);
    if plain.len() > HEAD_BYTES_MAX {
        return;
    }
    let of_plain = decode(&plain);
    if decoded.is_ok() && !has_floats(&value) {
        assert!(of_plain.is_ok(), "taken, but not when written plainly: {of_plain:?}");
    }
    let key = match value["type"].as_str() {
        Some("audio_chunk") => "payload",
        Some("utterance") => "audio",
        _ => return,
    };
    let of_escaped = decode(&escaped(&value, key));
    match (&of_plain, &of_escaped) {
        (Ok(a), Ok(b)) => assert_eq!(format!("{a:?}"), format!("{b:?}"), "by both ways"),
        (a, b) => assert_eq!(a.is_ok(), b.is_ok(), "by both ways: {a:?}, {b:?}"),
    }
    if value["type"] == "audio_chunk" {
        assert_eq!(of_plain.is_ok(), is_good_chunk(&value), "{of_plain:?} of {value}");
    }
}

/// What was decoded is what the tree says.
fn agrees(request: &Request, value: &Value) {
    let kind = value["type"].as_str();
    match request {
        Request::AudioChunk(chunk) => {
            assert_eq!(kind, Some("audio_chunk"));
            assert_eq!(value["session_id"].as_str(), Some(&*chunk.session_id));
            assert_eq!(whole(&value["seq"]), Some(i128::from(chunk.seq)));
            assert_eq!(value["is_final"].as_bool(), Some(chunk.is_final));
            let payload = value["payload"].as_str().unwrap_or_default();
            assert_eq!(base64(payload).as_deref(), Some(&*chunk.audio), "the audio");
        }
        Request::Utterance(utterance) => {
            assert_eq!(kind, Some("utterance"));
            assert_eq!(value["audio"].as_str().map(str::as_bytes), Some(&*utterance.audio));
            let head = &utterance.head;
            assert_eq!(whole(&value["utterance_index"]), Some(i128::from(head.utterance_index)));
            let rate = whole(&value["sample_rate"]);
            assert_eq!(rate, Some(i128::from(head.sample_rate)));
            assert!(head.sample_rate > 0, "a rate by which lengths are divided");
            assert_eq!(value["audio_format"].as_str(), Some(&*head.audio_format));
        }
        Request::Ack(ack) => {
            assert_eq!(kind, Some("ack"));
            assert_eq!(whole(&value["seq"]), Some(i128::from(ack.seq)));
        }
        Request::Resume(resume) => {
            assert_eq!(whole(&value["last_seq"]), Some(i128::from(resume.last_seq)));
            assert_eq!(value["resume_secret"].as_str(), Some(&*resume.resume_secret));
        }
        Request::Init(_) => assert_eq!(kind, Some("session_init")),
        Request::Heartbeat(of) | Request::Close(of) => {
            assert!(matches!(kind, Some("client_heartbeat" | "session_close")));
            assert_eq!(value["session_id"].as_str(), Some(&*of.session_id));
        }
        Request::TtsStarted(_) => assert_eq!(kind, Some("tts_started")),
        Request::TtsPlayEnded(_) => assert_eq!(kind, Some("tts_play_ended")),
        Request::WrongDirection(named) => assert_eq!(kind, Some(*named)),
        Request::Room(_) => assert!(kind.is_some_and(|kind| kind.starts_with("room_"))),
        Request::Signal(_) => assert!(kind.is_some_and(|kind| kind.starts_with("webrtc_"))),
    }
}

/// Whether the tree is an `audio_chunk` as docs/PROTOCOL.md has it.
fn is_good_chunk(value: &Value) -> bool {
    let fits = |field: &str, low: i128, high: i128| {
        whole(&value[field]).is_some_and(|number| (low..=high).contains(&number))
    };
    let payload = match &value["payload"] {
        Value::Null => true,
        payload => payload.as_str().is_some_and(|text| base64(text).is_some()),
    };
    let clock = value["client_timestamp_ms"].is_null()
        || fits("client_timestamp_ms", i64::MIN.into(), i64::MAX.into());
    let named = value["session_id"].is_string() && value["is_final"].is_boolean();
    named && fits("seq", 0, u64::MAX.into()) && payload && clock
}
