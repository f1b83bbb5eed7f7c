//! The bytes of a stored value, and the refusal to believe them.
//!
//! The database below does not verify what it reads, so every value carries its own proof:
//!
//! ```text
//! version u8 | kind u8 | length u32 LE | payload | CRC-32C u32 LE over all before it
//! ```
//!
//! This module knows nothing of tables or keys. The payload codec (bincode) appears nowhere else
//! in the store, so it can be exchanged by raising a row's version.

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bincode::{Decode, Encode};

use crate::protocol::job::Audio;

/// Largest payload written, and the most memory one decode may ask for, in bytes.
pub const PAYLOAD_BYTES_MAX: usize = 64 << 20;
const HEADER_BYTES: usize = 6;
const CRC_BYTES: usize = 4;
/// Kind of a value that is audio and not a row.
const AUDIO_KIND: u8 = 0x41;
const AUDIO_VERSION: u8 = 1;
const _: () = assert!(PAYLOAD_BYTES_MAX < u32::MAX as usize);

/// Payloads up to this length are short, and what one asks for on being decoded is held to less.
const SHORT_BYTES: usize = 1_024;
/// The most memory a short payload may ask for, in bytes: no row is that much longer in memory.
const SHORT_ASKS_MAX: usize = 64 * SHORT_BYTES;
/// The same for those up to 64 KiB, as nearly all are.
const MEDIUM_BYTES: usize = 64 * 1_024;
const MEDIUM_ASKS_MAX: usize = 64 * MEDIUM_BYTES;

type Config<const ASKS_MAX: usize> = Configuration<LittleEndian, Varint, Limit<ASKS_MAX>>;

const fn config<const ASKS_MAX: usize>() -> Config<ASKS_MAX> {
    bincode::config::standard().with_limit::<ASKS_MAX>()
}

/// A row that can be stored.
///
/// `KIND` tells rows of different tables apart, so that a value found under the wrong key is seen.
/// `VERSION` goes up with every change of the fields or of their order.
pub trait Record: Encode + Decode<()> {
    /// What the row is; unique in the store.
    const KIND: u8;
    /// Which layout of it this build writes and reads.
    const VERSION: u8;
}

/// Why a stored value was not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Fewer bytes than a header and a checksum.
    #[error("{0} bytes are too few for a stored value")]
    Short(usize),
    /// The header's length is not the length at hand.
    #[error("the header says {said} payload bytes, there are {found}")]
    Length {
        /// From the header.
        said: u32,
        /// Bytes between header and checksum.
        found: usize,
    },
    /// At least one bit is not what was written.
    #[error("checksum does not match")]
    Checksum,
    /// A sound value of another table.
    #[error("a value of kind {found:#04x} where {wanted:#04x} belongs")]
    Kind {
        /// Kind asked for.
        wanted: u8,
        /// Kind found.
        found: u8,
    },
    /// A sound value that another release wrote.
    #[error("layout version {found} of kind {kind:#04x} is unknown to this release")]
    Version {
        /// Kind of the row.
        kind: u8,
        /// Version found.
        found: u8,
    },
    /// The checksum is right and the fields are not: a bug in a writer.
    #[error("the payload is not a row of kind {0:#04x}")]
    Payload(u8),
    /// A sound row under a key that is not its own: the key is what rotted.
    #[error("the row does not belong to its key")]
    Misplaced,
    /// The row ended before its payload did.
    #[error("{0} bytes are left over behind the row")]
    Trailing(usize),
}

/// The stored form of a row.
pub fn encode<T: Record>(row: &T) -> Vec<u8> {
    seal(T::KIND, T::VERSION, 256, |out| {
        let written = bincode::encode_into_std_write(row, out, config::<PAYLOAD_BYTES_MAX>());
        assert!(written.is_ok(), "a row is plain data and a Vec takes all of it");
    })
}

/// The row in a stored value, or why there is none.
pub fn decode<T: Record>(bytes: &[u8]) -> Result<T, CodecError> {
    let payload = unseal(bytes, T::KIND, T::VERSION)?;
    let (row, used) = match payload.len() {
        len if len <= SHORT_BYTES => asking::<T, SHORT_ASKS_MAX>(payload),
        len if len <= MEDIUM_BYTES => asking::<T, MEDIUM_ASKS_MAX>(payload),
        _ => asking::<T, PAYLOAD_BYTES_MAX>(payload),
    }?;
    match payload.len() - used {
        0 => Ok(row),
        left => Err(CodecError::Trailing(left)),
    }
}

/// Decodes a payload that may ask for so much memory: a length in it is believed that far, though
/// nothing follows.
fn asking<T: Record, const ASKS_MAX: usize>(payload: &[u8]) -> Result<(T, usize), CodecError> {
    bincode::decode_from_slice::<T, Config<ASKS_MAX>>(payload, config())
        .map_err(|_| CodecError::Payload(T::KIND))
}

/// Audio in its stored form, with what the job's row is to say of it.
#[derive(Debug)]
pub(super) struct SealedAudio {
    /// The stored value.
    pub(super) value: Vec<u8>,
    /// CRC-32C of the audio alone.
    pub(super) crc: u32,
    /// Length of the audio alone, in bytes.
    pub(super) bytes: u32,
}

/// The stored form of audio: always the bytes, for their base64 would double the pages they take.
/// None for base64 that is not, which the protocol's decoder refuses before it gets here.
pub(super) fn encode_audio(audio: &Audio) -> Option<SealedAudio> {
    let mut sound = true;
    let value = seal(AUDIO_KIND, AUDIO_VERSION, audio.held_len(), |out| match audio {
        Audio::Raw(raw) => out.extend_from_slice(raw),
        Audio::Base64(text) => sound = base64_simd::STANDARD.decode_append(text, out).is_ok(),
    });
    let raw = &value[HEADER_BYTES..value.len() - CRC_BYTES];
    let (crc, bytes) = (crc32c::crc32c(raw), raw.len() as u32);
    sound.then_some(SealedAudio { value, crc, bytes })
}

/// The audio in a stored value.
pub(super) fn decode_audio(bytes: &[u8]) -> Result<&[u8], CodecError> {
    unseal(bytes, AUDIO_KIND, AUDIO_VERSION)
}

fn seal(kind: u8, version: u8, room: usize, fill: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES + room + CRC_BYTES);
    out.extend_from_slice(&[version, kind, 0, 0, 0, 0]);
    fill(&mut out);
    let payload = out.len() - HEADER_BYTES;
    // What cannot be read back must not be acknowledged as written.
    assert!(payload <= PAYLOAD_BYTES_MAX, "the borders bound every row and frame");
    out[2..HEADER_BYTES].copy_from_slice(&(payload as u32).to_le_bytes());
    let crc = crc32c::crc32c(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    out
}

/// The checksum is judged before kind and version: "another release wrote this" is only said of
/// bytes that are certainly as they were written.
fn unseal(bytes: &[u8], kind: u8, version: u8) -> Result<&[u8], CodecError> {
    let short = CodecError::Short(bytes.len());
    let (body, crc) = bytes.split_last_chunk::<CRC_BYTES>().ok_or(short)?;
    let (header, payload) = body.split_first_chunk::<HEADER_BYTES>().ok_or(short)?;
    let [found_version, found_kind, l0, l1, l2, l3] = *header;
    if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
        return Err(CodecError::Checksum);
    }
    let said = u32::from_le_bytes([l0, l1, l2, l3]);
    if usize::try_from(said) != Ok(payload.len()) {
        return Err(CodecError::Length { said, found: payload.len() });
    }
    if found_kind != kind {
        return Err(CodecError::Kind { wanted: kind, found: found_kind });
    }
    if found_version != version {
        return Err(CodecError::Version { kind, found: found_version });
    }
    Ok(payload)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::super::record::samples::*;
    use super::super::record::*;
    use super::*;
    use crate::protocol::ids::{JobId, NodeId, SessionId};

    fn resealed(value: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut body = value[..value.len() - CRC_BYTES].to_vec();
        change(&mut body);
        let crc = crc32c::crc32c(&body);
        body.extend_from_slice(&crc.to_le_bytes());
        body
    }

    #[test]
    fn every_row_comes_back_as_it_went() {
        let outbox = OutboxRow {
            session: SessionId(1),
            seq: u64::MAX,
            job: JobId(u128::MAX),
            utterance_index: 3,
            created_unix_ms: 7,
            frame: vec![0, 255],
        };
        let idem = IdemRow { key: 1, job: JobId(2), digest: 5, expires_unix_ms: 3 };
        let pools = PoolConfigRow { version: 9, text: "[pools]".into() };
        for job in [plain_job(1), full_job(2)] {
            assert_eq!(decode::<JobRow>(&encode(&job)), Ok(job));
        }
        assert_eq!(decode(&encode(&full_session(3))), Ok(full_session(3)));
        assert_eq!(decode(&encode(&full_terminal(4))), Ok(full_terminal(4)));
        assert_eq!(decode(&encode(&outbox)), Ok(outbox.clone()));
        assert_eq!(decode(&encode(&idem)), Ok(idem.clone()));
        assert_eq!(decode(&encode(&pools)), Ok(pools.clone()));
        assert_eq!(decode(&encode(&full_room(6))), Ok(full_room(6)));
        assert_eq!(decode(&encode(&full_key(7))), Ok(full_key(7)));
        assert_eq!(decode(&encode(&full_dead_letter(5))), Ok(full_dead_letter(5)));
    }

    #[test]
    fn the_bytes_of_a_row_are_pinned() {
        let row = NodeRow {
            id: NodeId::from("n1"),
            platform: "linux".into(),
            version: "2".into(),
            first_seen_unix_ms: 5,
            last_seen_unix_ms: 300,
        };
        let value = encode(&row);
        let payload = b"\x02n1\x05linux\x012\x05\xfb\x2c\x01";
        assert_eq!(value[..6], [1, NodeRow::KIND, payload.len() as u8, 0, 0, 0]);
        assert_eq!(value[6..value.len() - 4], *payload);
    }

    #[test]
    fn one_flipped_bit_anywhere_is_seen() {
        let value = encode(&full_job(1));
        for bit in 0..value.len() * 8 {
            let mut bad = value.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode::<JobRow>(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_truncated_value_is_refused_at_every_length() {
        let value = encode(&full_terminal(1));
        for len in 0..value.len() {
            assert!(decode::<TerminalRow>(&value[..len]).is_err(), "length {len}");
        }
    }

    #[test]
    fn an_unknown_version_is_named() {
        let value = resealed(&encode(&full_job(1)), |body| body[0] = 9);
        let wanted = CodecError::Version { kind: JobRow::KIND, found: 9 };
        assert_eq!(decode::<JobRow>(&value), Err(wanted));
    }

    #[test]
    fn a_row_of_another_table_is_refused() {
        let wanted = CodecError::Kind { wanted: SessionRow::KIND, found: JobRow::KIND };
        assert_eq!(decode::<SessionRow>(&encode(&full_job(1))), Err(wanted));
    }

    #[test]
    fn bytes_left_over_behind_the_row_are_refused() {
        let value = resealed(&encode(&full_job(1)), |body| {
            body.push(0);
            let payload = (body.len() - HEADER_BYTES) as u32;
            body[2..HEADER_BYTES].copy_from_slice(&payload.to_le_bytes());
        });
        assert_eq!(decode::<JobRow>(&value), Err(CodecError::Trailing(1)));
    }

    #[test]
    fn a_length_claimed_inside_the_payload_cannot_ask_for_much_memory() {
        // A pool text that claims 2^60 bytes, under a checksum that is right.
        let value = seal(PoolConfigRow::KIND, PoolConfigRow::VERSION, 0, |out| {
            out.push(1);
            out.push(253);
            out.extend_from_slice(&(1u64 << 60).to_le_bytes());
        });
        let wanted = CodecError::Payload(PoolConfigRow::KIND);
        assert_eq!(decode::<PoolConfigRow>(&value), Err(wanted));
    }

    #[test]
    fn audio_is_stored_as_bytes_whatever_form_it_came_in() {
        let raw = encode_audio(&Audio::Raw(Bytes::from_static(b"hello"))).unwrap();
        let text = encode_audio(&Audio::Base64(Bytes::from_static(b"aGVsbG8="))).unwrap();
        assert_eq!(raw.value, text.value);
        assert_eq!((text.bytes, text.crc), (5, crc32c::crc32c(b"hello")));
        assert_eq!(decode_audio(&text.value), Ok(b"hello".as_slice()));
        assert!(encode_audio(&Audio::Base64(Bytes::from_static(b"!!"))).is_none());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode_audio(&bytes);
            prop_assert!(decode::<JobRow>(&bytes).is_err());
            prop_assert!(decode::<TerminalRow>(&bytes).is_err());
        }

        /// The checksum would hide the payload decoder from the test above.
        #[test]
        fn arbitrary_payloads_never_panic(payload in prop::collection::vec(any::<u8>(), 0..300)) {
            let value = |kind, version| seal(kind, version, 0, |out| out.extend(&payload));
            let _ = decode::<JobRow>(&value(JobRow::KIND, JobRow::VERSION));
            let _ = decode::<SessionRow>(&value(SessionRow::KIND, SessionRow::VERSION));
            let _ = decode::<TerminalRow>(&value(TerminalRow::KIND, TerminalRow::VERSION));
            let _ = decode::<OutboxRow>(&value(OutboxRow::KIND, OutboxRow::VERSION));
        }

        #[test]
        fn any_terminal_comes_back_as_it_went(
            id in any::<u128>(),
            index in any::<u64>(),
            code in ".*",
            node in prop::option::of(".*"),
            explanation in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let row = TerminalRow {
                id: JobId(id),
                utterance_index: index,
                code,
                node: node.as_deref().map(NodeId::from),
                explanation,
                ..full_terminal(0)
            };
            prop_assert_eq!(decode::<TerminalRow>(&encode(&row)), Ok(row));
        }
    }
}
