//! Audio that says whose it is, so that a judge can tell what became of it.

use bytes::Bytes;

/// Bytes of an Opus packet in which something is said; shorter ones count as silence.
const VOICED: usize = 13;
/// Bytes of a silent packet.
const SILENT: usize = 2;

/// A recording: `pcm16` that no other client sends, and no other utterance of this one.
pub(in crate::sim) fn recording(client: usize, serial: u64, body: u64) -> Bytes {
    let word = ((client as u64) << 48) ^ (serial << 16) ^ body;
    Bytes::from(word.to_le_bytes().repeat(6))
}

/// One packet of a stream, as an Opus record.
pub(in crate::sim) fn packet(client: usize, counter: u64, silent: bool) -> Vec<u8> {
    if silent {
        return [&(SILENT as u16).to_le_bytes()[..], &[0; SILENT]].concat();
    }
    let mut record = (VOICED as u16).to_le_bytes().to_vec();
    record.extend_from_slice(&(client as u32).to_le_bytes());
    record.extend_from_slice(&counter.to_le_bytes());
    record.push(0x48);
    record
}

/// The packets in which something is said: whose, and which. None if it is no such stream.
pub(in crate::sim) fn packets(mut audio: &[u8]) -> Option<Vec<(usize, u64)>> {
    let mut found = Vec::new();
    while let Some((head, rest)) = audio.split_first_chunk::<2>() {
        let len = usize::from(u16::from_le_bytes(*head));
        let (packet, rest) = rest.split_at_checked(len)?;
        if len == VOICED {
            let client = u32::from_le_bytes(packet[..4].try_into().ok()?) as usize;
            found.push((client, u64::from_le_bytes(packet[4..12].try_into().ok()?)));
        }
        audio = rest;
    }
    audio.is_empty().then_some(found)
}

/// As the wire carries it.
pub(in crate::sim) fn base64(audio: &[u8]) -> String {
    base64_simd::STANDARD.encode_to_string(audio)
}

/// From the wire.
pub(in crate::sim) fn from_base64(text: &str) -> Vec<u8> {
    base64_simd::STANDARD.decode_to_vec(text).unwrap_or_default()
}
