//! What can be known of audio without decoding it: form, length and whether anything was said.
//!
//! Sources: docs/PROTOCOL.md, "Audio". Two forms are streamed: `opus`, a chain of records (`u16`
//! little-endian length, then one raw 20 ms packet), and `pcm16`, signed 16-bit little-endian
//! mono.

use super::error::DecodeError;
use super::limits;

/// Form of a chunk stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Length-prefixed Opus packets.
    Opus,
    /// Signed 16-bit little-endian mono samples.
    Pcm16,
}

impl Format {
    /// Name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Format::Opus => "opus",
            Format::Pcm16 => "pcm16",
        }
    }

    /// The form a peer named, if it is one of the two.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "opus" => Some(Format::Opus),
            "pcm16" => Some(Format::Pcm16),
            _ => None,
        }
    }

    /// Guesses the form of a stream from its first chunk: a chain of Opus records that ends
    /// exactly with the chunk is Opus, anything else is PCM (silence in PCM is zeros, and no
    /// record is empty).
    pub fn sniff(chunk: &[u8]) -> Self {
        if !chunk.is_empty() && OpusPackets(chunk).all(|p| p.is_ok()) {
            Format::Opus
        } else {
            Format::Pcm16
        }
    }
}

/// The packets of an Opus record chain; an error ends the iteration.
pub struct OpusPackets<'a>(pub &'a [u8]);

impl<'a> Iterator for OpusPackets<'a> {
    type Item = Result<&'a [u8], DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let bad = Err(DecodeError::Audio("not a chain of length-prefixed Opus packets"));
        let Some((head, rest)) = self.0.split_first_chunk::<2>() else {
            self.0 = &[];
            return Some(bad);
        };
        let len = usize::from(u16::from_le_bytes(*head));
        if len == 0 || len > limits::OPUS_PACKET_BYTES_MAX || len > rest.len() {
            self.0 = &[];
            return Some(bad);
        }
        let (packet, rest) = rest.split_at(len);
        self.0 = rest;
        Some(Ok(packet))
    }
}

/// Root mean square of PCM samples, as a fraction of full scale.
pub fn rms(pcm: &[u8]) -> f32 {
    let samples =
        pcm.chunks_exact(2).map(|s| f64::from(i16::from_le_bytes([s[0], s[1]])) / 32_768.0);
    let (sum, n) = samples.fold((0.0, 0_u32), |(sum, n), s| (sum + s * s, n + 1));
    if n == 0 { 0.0 } else { (sum / f64::from(n)).sqrt() as f32 }
}

/// Length of `bytes` of 16-bit mono at `sample_rate`, in milliseconds.
pub fn pcm16_ms(bytes: usize, sample_rate: u32) -> u32 {
    let samples = (bytes / 2) as u64;
    u32::try_from(samples * 1_000 / u64::from(sample_rate.max(1))).unwrap_or(u32::MAX)
}

/// Estimates the length of a whole recording from the length of its base64 text alone, in
/// milliseconds: exact for `pcm16`; for Opus at the 24 kbit/s of its senders one 20 ms packet is
/// about 60 bytes; unknown forms count zero.
pub fn estimate_ms(format: &str, sample_rate: u32, base64_len: usize) -> u32 {
    let bytes = base64_len / 4 * 3;
    match Format::parse(format) {
        Some(Format::Pcm16) => pcm16_ms(bytes, sample_rate),
        Some(Format::Opus) => (bytes / 60) as u32 * limits::OPUS_PACKET_MS,
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(lens: &[usize]) -> Vec<u8> {
        lens.iter()
            .flat_map(|&n| (n as u16).to_le_bytes().into_iter().chain(std::iter::repeat_n(7, n)))
            .collect()
    }

    #[test]
    fn tells_opus_chains_from_samples() {
        assert_eq!(Format::sniff(&chain(&[65, 79, 8])), Format::Opus);
        assert_eq!(Format::sniff(&[0; 640]), Format::Pcm16);
        assert_eq!(Format::sniff(&chain(&[65, 79])[..100]), Format::Pcm16);
        assert_eq!(Format::sniff(&[]), Format::Pcm16);
    }

    #[test]
    fn a_broken_chain_ends_with_one_error() {
        let bytes = [chain(&[3]), vec![200]].concat();
        let packets: Vec<_> = OpusPackets(&bytes).collect();
        assert_eq!(packets.len(), 2);
        assert!(packets[0].is_ok() && packets[1].is_err());
    }

    #[test]
    fn loudness_is_a_fraction_of_full_scale() {
        assert_eq!(rms(&[0; 64]), 0.0);
        let square: Vec<u8> = (0..64)
            .flat_map(|i| (if i % 2 == 0 { 16_384_i16 } else { -16_384 }).to_le_bytes())
            .collect();
        assert!((rms(&square) - 0.5).abs() < 1e-6);
        assert_eq!(pcm16_ms(32_000, 16_000), 1_000);
    }
}
