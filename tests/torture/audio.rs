//! Speech that says where it comes from: every 20 ms packet names its voice and its number, and all
//! its other samples follow from these, so that a single wrong, missing or repeated byte shows.

/// 20 ms of pcm16 at 16 kHz.
pub const PACKET_BYTES: usize = 640;
/// Bytes at the begin of a packet: voice and number.
const NAME_BYTES: usize = 8;

/// What a node was given to hear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    pub voice: u32,
    /// First packet.
    pub first: u32,
    /// The packet after the last.
    pub end: u32,
}

/// Packets `first..end` of a voice.
pub fn speech(voice: u32, first: u32, end: u32) -> Vec<u8> {
    (first..end).flat_map(|number| packet(voice, number)).collect()
}

/// Reads what `speech` made, every byte of it.
pub fn hear(audio: &[u8]) -> Result<Heard, String> {
    if audio.is_empty() || !audio.len().is_multiple_of(PACKET_BYTES) {
        return Err(format!("{} bytes are no whole packets", audio.len()));
    }
    let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| audio[at + i]));
    let (voice, first) = (word(0), word(4));
    let mut end = first;
    for given in audio.chunks(PACKET_BYTES) {
        if given != packet(voice, end) {
            return Err(format!("packet {end} of voice {voice} is not what was said"));
        }
        end += 1;
    }
    Ok(Heard { voice, first, end })
}

fn packet(voice: u32, number: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(PACKET_BYTES);
    bytes.extend(voice.to_le_bytes());
    bytes.extend(number.to_le_bytes());
    let mut state = u64::from(voice) << 32 | u64::from(number);
    for i in 0..(PACKET_BYTES - NAME_BYTES) / 2 {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let loud = 4_000 + (state >> 51) as i16 % 4_000;
        let sample = if i % 40 < 20 { loud } else { -loud };
        bytes.extend(sample.to_le_bytes());
    }
    bytes
}

#[test]
fn what_is_said_is_heard_and_damage_is_noticed() {
    let mut audio = speech(7, 3, 6);
    assert_eq!(hear(&audio), Ok(Heard { voice: 7, first: 3, end: 6 }));
    let swapped = [speech(7, 4, 5), speech(7, 3, 4)].concat();
    assert!(hear(&swapped).is_err() && hear(&audio[2..]).is_err() && hear(&[]).is_err());
    audio[1_000] ^= 1;
    assert!(hear(&audio).is_err());
}
