//! Names of things on the wire, each with a size and a text form.
//!
//! Ids made by the server are numbers inside and text outside, so that they are copied, compared
//! and hashed without touching the heap. Text that peers choose (node ids, trace ids) is kept as
//! it came, bounded by `limits`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bincode::{Decode, Encode};

/// A text was not an id of the asked kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a valid {0}")]
pub struct BadId(pub &'static str);

macro_rules! text_form {
    ($name:ident) => {
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
    };
}

/// One speaker's connection to the service: `s-` and 16 upper-case hex digits.
///
/// Nodes remember (session, utterance) pairs for as long as they live, so an id is never used
/// twice (64 random bits).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct SessionId(pub u64);
text_form!(SessionId);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s-{:016X}", self.0)
    }
}

impl FromStr for SessionId {
    type Err = BadId;
    fn from_str(text: &str) -> Result<Self, BadId> {
        let hex = text.strip_prefix("s-").filter(|h| h.len() == 16).ok_or(BadId("session id"))?;
        u64::from_str_radix(hex, 16).map(Self).map_err(|_| BadId("session id"))
    }
}

/// The number by which a room is joined: six decimal digits, the first of them not 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct RoomCode(pub u32);
text_form!(RoomCode);

impl RoomCode {
    /// All codes there are.
    pub const ALL: std::ops::RangeInclusive<u32> = 100_000..=999_999;
}

impl fmt::Display for RoomCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:06}", self.0)
    }
}

impl FromStr for RoomCode {
    type Err = BadId;
    fn from_str(text: &str) -> Result<Self, BadId> {
        let digits = text.len() == 6 && text.bytes().all(|byte| byte.is_ascii_digit());
        let code = text.parse().ok().filter(|code| digits && Self::ALL.contains(code));
        code.map(Self).ok_or(BadId("room code"))
    }
}

/// One unit of work, the same through all its attempts: `job-` and a lower-case UUID.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct JobId(pub u128);
text_form!(JobId);

impl JobId {
    /// A new id, made of the time in Unix milliseconds and 74 random bits (UUID version 7): ids
    /// grow with time, so that rows that come together lie together.
    pub fn fresh(unix_ms: u64, random: u128) -> Self {
        let random = random.to_be_bytes();
        let tail = random.first_chunk().expect("sixteen bytes are more than ten");
        Self(uuid::Builder::from_unix_timestamp_millis(unix_ms, tail).into_uuid().as_u128())
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "job-{}", uuid::Uuid::from_u128(self.0).hyphenated())
    }
}

impl FromStr for JobId {
    type Err = BadId;
    fn from_str(text: &str) -> Result<Self, BadId> {
        let uuid = text.strip_prefix("job-").filter(|u| u.len() == 36).ok_or(BadId("job id"))?;
        uuid::Uuid::try_parse(uuid).map(|u| Self(u.as_u128())).map_err(|_| BadId("job id"))
    }
}

/// One speaking turn: the jobs cut from one uninterrupted stretch of speech share it, and one node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct TurnId(pub u128);
text_form!(TurnId);

impl TurnId {
    /// A new id (UUID version 4).
    pub fn fresh(random: u128) -> Self {
        Self(uuid::Builder::from_random_bytes(random.to_be_bytes()).into_uuid().as_u128())
    }

    /// The same stretch of speech for listeners of a language, where it is a turn of its own.
    pub fn into_lang(self, lang: Lang) -> Self {
        let mut bytes = [lang.len; 16];
        bytes[1..].copy_from_slice(&lang.bytes);
        // Not the bits that tell a random UUID.
        let mask = 0xffff_ffff_ffff_0fff_3fff_ffff_ffff_ffff;
        Self(self.0 ^ (u128::from_be_bytes(bytes) & mask))
    }
}

impl fmt::Display for TurnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", uuid::Uuid::from_u128(self.0).hyphenated())
    }
}

/// A node's own name for itself; free text, at most `limits::ID_BYTES_MAX` bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct NodeId(pub Arc<str>);
text_form!(NodeId);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for NodeId {
    fn from(text: &str) -> Self {
        Self(Arc::from(text))
    }
}

/// A language tag as the peer wrote it (`zh`, `en`, `auto`), held inline.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct Lang {
    len: u8,
    bytes: [u8; Lang::BYTES_MAX],
}
text_form!(Lang);
const _: () = assert!(size_of::<Lang>() == 16);

impl Lang {
    /// Longest tag, in bytes; registered tags with script and region stay under it.
    pub const BYTES_MAX: usize = 15;
    /// The source language is to be recognised by the node.
    pub const AUTO: Lang = Lang { len: 4, bytes: *b"auto\0\0\0\0\0\0\0\0\0\0\0" };

    /// The tag as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.len)]).unwrap_or("")
    }

    /// Whether the node is to find the language out.
    pub fn is_auto(&self) -> bool {
        *self == Self::AUTO
    }
}

impl fmt::Display for Lang {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Lang {
    type Err = BadId;
    fn from_str(text: &str) -> Result<Self, BadId> {
        let text = text.trim();
        let fine = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        if text.is_empty() || text.len() > Self::BYTES_MAX || !text.as_bytes().iter().all(fine) {
            return Err(BadId("language tag"));
        }
        let mut bytes = [0; Self::BYTES_MAX];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        Ok(Self { len: text.len() as u8, bytes })
    }
}

impl<'de> serde::Deserialize<'de> for Lang {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A directed language pair, written `src:tgt`; `zh:en` is not `en:zh`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct Pair {
    /// Language spoken.
    pub src: Lang,
    /// Language wanted.
    pub tgt: Lang,
}
text_form!(Pair);

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.src, self.tgt)
    }
}

impl FromStr for Pair {
    type Err = BadId;
    fn from_str(text: &str) -> Result<Self, BadId> {
        let (src, tgt) = text.split_once(':').ok_or(BadId("language pair"))?;
        let part = |t: &str| t.parse().map_err(|_| BadId("language pair"));
        Ok(Self { src: part(src)?, tgt: part(tgt)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_their_text_form() {
        let session = SessionId(0xE3E0_6DC9_0000_0001);
        assert_eq!(session.to_string(), "s-E3E06DC900000001");
        assert_eq!(session.to_string().parse(), Ok(session));
        let job = JobId(uuid::Uuid::new_v4().as_u128());
        assert_eq!(job.to_string().parse(), Ok(job));
        assert_eq!("zh:en".parse::<Pair>().unwrap().to_string(), "zh:en");
        assert_eq!("100000".parse::<RoomCode>().unwrap().to_string(), "100000");
    }

    #[test]
    fn a_turn_has_another_id_in_each_language() {
        let turn = TurnId::fresh(u128::MAX / 3);
        let ids = ["de", "ed", "d"].map(|tag| turn.into_lang(tag.parse().unwrap()));
        assert!(ids.iter().all(|id| *id != turn));
        assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2]);
        let uuid = uuid::Uuid::from_u128(ids[0].0);
        assert_eq!(uuid.get_version_num(), 4);
        assert_eq!(ids[0].into_lang("de".parse().unwrap()), turn);
    }

    #[test]
    fn foreign_text_is_refused_without_panic() {
        for text in [
            "",
            "s-",
            "s-1",
            "job-",
            "job-é",
            "\u{4f60}:\u{597d}",
            "s-GGGGGGGGGGGGGGGG",
            "s-+123456789ABCDE",
            "099999",
            "+12345",
            "1000000",
        ] {
            assert!(text.parse::<JobId>().is_err());
            assert!(text.parse::<Pair>().is_err());
            assert!(text.parse::<RoomCode>().is_err());
            assert!(text.parse::<SessionId>().is_err() || text.starts_with("s-+"));
        }
        assert!("a-tag-far-too-long".parse::<Lang>().is_err());
    }
}
