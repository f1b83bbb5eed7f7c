//! Rooms and the calls between their members: what clients send, and what they are told.
//!
//! Source: docs/PROTOCOL.md, "Rooms". What members say to each other to set up a call is passed on
//! as it is and never looked at.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::error::DecodeError;
use super::ids::{Lang, RoomCode, SessionId};
use super::{limits, terse};

/// A message about rooms, from a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RoomRequest {
    /// `room_create`.
    Create(Seat),
    /// `room_join`: the code as it was typed.
    Join(String, Seat),
    /// `room_leave`.
    Leave(String),
    /// `room_raw_voice_preference`.
    RawVoice {
        /// The room, as text.
        code: String,
        /// The other member, as text.
        target: String,
        /// Whether the other's own voice is wanted.
        receive: bool,
    },
    /// Extension, `room_preferred_lang`: another language from now on.
    Prefer {
        /// The room, as text.
        code: String,
        /// The language.
        lang: Lang,
    },
    /// Extension, `room_history`: the last results again, without their speech.
    History {
        /// The room, as text.
        code: String,
        /// How many.
        last: usize,
    },
}

/// How somebody comes into a room.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seat {
    /// As they call themselves.
    pub display_name: Option<String>,
    /// The language they want to hear; else it is their session's.
    pub preferred_lang: Option<Lang>,
}

/// What one member says to another to set up a call.
#[derive(Debug, Clone, Deserialize)]
pub struct Signal {
    #[serde(rename = "type")]
    kind: SignalKind,
    /// The room, as text.
    pub room_code: String,
    /// The other member, as text.
    pub to: String,
    /// What an offer or an answer says.
    #[serde(default)]
    sdp: Option<Box<RawValue>>,
    /// What `webrtc_ice` says.
    #[serde(default)]
    candidate: Option<Box<RawValue>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
enum SignalKind {
    #[serde(rename = "webrtc_offer")]
    Offer,
    #[serde(rename = "webrtc_answer")]
    Answer,
    #[serde(rename = "webrtc_ice")]
    Ice,
}

#[derive(Serialize)]
struct SignalOut<'a> {
    #[serde(rename = "type")]
    kind: SignalKind,
    room_code: &'a str,
    to: SessionId,
    #[serde(skip_serializing_if = "Option::is_none")]
    sdp: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    candidate: Option<&'a RawValue>,
}

impl Signal {
    /// Whether it begins a call.
    pub fn is_offer(&self) -> bool {
        self.kind == SignalKind::Offer
    }

    /// The frame for the one it is meant for, in which `to` names who sent it.
    pub fn relayed(&self, from: SessionId) -> Bytes {
        let out = SignalOut {
            kind: self.kind,
            room_code: &self.room_code,
            to: from,
            sdp: self.sdp.as_deref(),
            candidate: self.candidate.as_deref(),
        };
        Bytes::from(serde_json::to_vec(&out).unwrap_or_default())
    }
}

/// Somebody in a room, as all of them are told.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs, reason = "the wire's own names; see docs/PROTOCOL.md, \"Rooms\"")]
pub struct Participant {
    pub participant_id: SessionId,
    pub session_id: SessionId,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub display_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preferred_lang: Option<Lang>,
    pub raw_voice_preferences: std::collections::BTreeMap<String, bool>,
    /// RFC 3339, UTC.
    pub joined_at: String,
}

/// What a listener is told of an utterance of another, beside the result.
#[derive(Debug, Clone, Copy, Serialize)]
#[allow(missing_docs, reason = "the wire's own names; see docs/PROTOCOL.md, \"Rooms\"")]
pub struct InRoom {
    pub code: RoomCode,
    /// Place in the speaker's own order; the one beside it is told apart from other speakers'.
    pub utterance_index: u64,
    /// The language spoken.
    pub src_lang: Lang,
    /// The language of `text_translated`; the spoken one where that is not there.
    pub lang: Lang,
}

/// What rooms tell their members. Optional fields without a value are left out.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[allow(missing_docs, reason = "the wire's own names; see docs/PROTOCOL.md, \"Rooms\"")]
pub enum RoomEvent {
    RoomCreateAck { room_code: RoomCode, room_id: String },
    RoomMembers { room_code: RoomCode, members: Vec<Participant> },
    RoomError { code: RoomFault, message: &'static str },
    RoomExpired { room_code: RoomCode, message: &'static str },
    RoomHistory { room_code: RoomCode, results: Vec<Box<RawValue>> },
}

impl RoomEvent {
    /// Says what was wrong.
    pub fn fault(code: RoomFault) -> Self {
        RoomEvent::RoomError { code, message: code.message() }
    }

    /// The frame, as UTF-8 JSON.
    pub fn encode(&self) -> Bytes {
        Bytes::from(serde_json::to_vec(self).unwrap_or_default())
    }
}

/// What `room_expired` says. Clients show it to people, in the language of the existing page.
pub const EXPIRED: &str = "30分钟无人发言，房间已过期";

/// Why a message about rooms had no effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum RoomFault {
    /// There is no room of that code.
    RoomNotFound,
    /// The session is in that room already.
    AlreadyInRoom,
    /// The room has as many members, or they hear as many languages, as it may.
    RoomFull,
    /// Too many codes were wrong.
    RateLimited,
    /// There is no place for another room, or its state cannot be kept.
    Overloaded,
    /// There is no session yet.
    InternalError,
}

impl RoomFault {
    /// For people.
    pub fn message(self) -> &'static str {
        match self {
            RoomFault::RoomNotFound => "房间不存在",
            RoomFault::AlreadyInRoom => "已在房间中",
            RoomFault::RoomFull => "The room is full",
            RoomFault::RateLimited => "Too many wrong room codes; try again in a minute",
            RoomFault::Overloaded => "There is no place for this at the moment",
            RoomFault::InternalError => "Session not initialized",
        }
    }

    /// Label of the metric.
    pub fn as_str(self) -> &'static str {
        match self {
            RoomFault::RoomNotFound => "room_not_found",
            RoomFault::AlreadyInRoom => "already_in_room",
            RoomFault::RoomFull => "room_full",
            RoomFault::RateLimited => "rate_limited",
            RoomFault::Overloaded => "overloaded",
            RoomFault::InternalError => "internal_error",
        }
    }
}

#[derive(Deserialize)]
struct CreateBody {
    /// Not used, and still to be there.
    #[serde(rename = "client_ts", deserialize_with = "super::lenient::int")]
    _client_ts: u64,
    #[serde(default)]
    display_name: Option<String>,
    #[serde(default)]
    preferred_lang: Option<Lang>,
}

#[derive(Deserialize)]
struct JoinBody {
    room_code: String,
    #[serde(default)]
    display_name: Option<String>,
    #[serde(default)]
    preferred_lang: Option<Lang>,
}

#[derive(Deserialize)]
struct LeaveBody {
    room_code: String,
}

#[derive(Deserialize)]
struct RawVoiceBody {
    room_code: String,
    target_session_id: String,
    receive_raw_voice: bool,
}

#[derive(Deserialize)]
struct PreferBody {
    room_code: String,
    preferred_lang: Lang,
}

#[derive(Deserialize)]
struct HistoryBody {
    room_code: String,
    #[serde(deserialize_with = "super::lenient::int")]
    last: u64,
}

/// Decodes a message about rooms; none if `kind` is none of theirs.
pub(super) fn decode(kind: &str, json: &[u8]) -> Result<Option<RoomRequest>, DecodeError> {
    let request = match kind {
        "room_create" => {
            let body: CreateBody = terse::from_slice(json)?;
            RoomRequest::Create(seat(body.display_name, body.preferred_lang)?)
        }
        "room_join" => {
            let body: JoinBody = terse::from_slice(json)?;
            let seat = seat(body.display_name, body.preferred_lang)?;
            RoomRequest::Join(short(body.room_code)?, seat)
        }
        "room_leave" => {
            let body: LeaveBody = terse::from_slice(json)?;
            RoomRequest::Leave(short(body.room_code)?)
        }
        "room_raw_voice_preference" => {
            let body: RawVoiceBody = terse::from_slice(json)?;
            let (code, target) = (short(body.room_code)?, short(body.target_session_id)?);
            RoomRequest::RawVoice { code, target, receive: body.receive_raw_voice }
        }
        "room_preferred_lang" => {
            let body: PreferBody = terse::from_slice(json)?;
            RoomRequest::Prefer { code: short(body.room_code)?, lang: body.preferred_lang }
        }
        "room_history" => {
            let body: HistoryBody = terse::from_slice(json)?;
            let last = usize::try_from(body.last).unwrap_or(usize::MAX);
            RoomRequest::History { code: short(body.room_code)?, last }
        }
        _ => return Ok(None),
    };
    Ok(Some(request))
}

/// Decodes what members say to each other; none if `kind` is nothing of that.
pub(super) fn decode_signal(kind: &str, json: &[u8]) -> Result<Option<Box<Signal>>, DecodeError> {
    let field = match kind {
        "webrtc_offer" | "webrtc_answer" => "sdp",
        "webrtc_ice" => "candidate",
        _ => return Ok(None),
    };
    let mut signal: Signal = terse::from_slice(json)?;
    // Each has one of the two; the other is not passed on.
    if field == "sdp" {
        signal.candidate = None
    } else {
        signal.sdp = None
    }
    if signal.sdp.is_none() && signal.candidate.is_none() {
        return Err(DecodeError::Malformed(format!("missing field `{field}`")));
    }
    signal.room_code = short(signal.room_code)?;
    signal.to = short(signal.to)?;
    Ok(Some(Box::new(signal)))
}

fn short(text: String) -> Result<String, DecodeError> {
    if text.len() > limits::ID_BYTES_MAX {
        return Err(DecodeError::TooLong { field: "room_code", max: limits::ID_BYTES_MAX });
    }
    Ok(text)
}

fn seat(display_name: Option<String>, preferred_lang: Option<Lang>) -> Result<Seat, DecodeError> {
    match display_name {
        Some(name) if name.len() > limits::ID_BYTES_MAX => {
            Err(DecodeError::TooLong { field: "display_name", max: limits::ID_BYTES_MAX })
        }
        display_name => Ok(Seat { display_name, preferred_lang }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_the_existing_page_are_understood() {
        let request = |kind: &str, json: &str| decode(kind, json.as_bytes()).unwrap().unwrap();
        let created = request("room_create", r#"{"type":"room_create","client_ts":1795226605389}"#);
        assert_eq!(created, RoomRequest::Create(Seat::default()));
        let joined = request(
            "room_join",
            r#"{"type":"room_join","room_code":"298523","display_name":"Bob"}"#,
        );
        let seat = Seat { display_name: Some("Bob".into()), preferred_lang: None };
        assert_eq!(joined, RoomRequest::Join("298523".into(), seat));
        assert!(decode("room_create", br#"{"type":"room_create"}"#).is_err());
        assert_eq!(decode("session_init", b"{}").unwrap(), None);
    }

    #[test]
    fn a_call_is_passed_on_as_it_is_but_for_whom_it_names() {
        let offer = r#"{"type":"webrtc_offer","room_code":"298523","to":"s-0000000000000002",
            "sdp":{"sdp":"v=0 \u00e9","n":1.50},"candidate":7,"more":1}"#;
        let signal = decode_signal("webrtc_offer", offer.as_bytes()).unwrap().unwrap();
        let relayed = signal.relayed(SessionId(1));
        let wanted = concat!(
            r#"{"type":"webrtc_offer","room_code":"298523","to":"s-0000000000000001","#,
            r#""sdp":{"sdp":"v=0 \u00e9","n":1.50}}"#
        );
        assert_eq!(std::str::from_utf8(&relayed).unwrap(), wanted);
        let nothing = br#"{"type":"webrtc_ice","room_code":"1","to":"2"}"#;
        assert!(decode_signal("webrtc_ice", nothing).is_err());
        let null = br#"{"type":"webrtc_ice","room_code":"1","to":"2","candidate":null}"#;
        assert!(decode_signal("webrtc_ice", null).is_err());
    }
}
