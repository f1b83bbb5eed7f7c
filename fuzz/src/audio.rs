//! Sound in the two forms of the wire: chains of length-prefixed Opus packets, and PCM.

use utterd::protocol::audio::{Format, OpusPackets, estimate_ms, pcm16_ms, rms};
use utterd::protocol::limits::{OPUS_PACKET_BYTES_MAX, SAMPLE_RATE_MAX};

use super::bounded::bounded;
use super::script::Script;

pub fn run(input: &[u8]) {
    let twin = chain(input);
    let packets: Vec<_> = bounded(input.len() * 16, || OpusPackets(input).collect());
    let (good, bad) = packets.split_at(twin.len());
    for (packet, wanted) in good.iter().zip(&twin) {
        assert_eq!(packet.as_ref().ok(), Some(wanted), "the packets of a chain");
    }
    let used: usize = twin.iter().map(|packet| packet.len() + 2).sum();
    assert_eq!(bad.len(), usize::from(used < input.len()), "what is left over is one fault");
    assert!(bad.iter().all(Result::is_err));
    let is_chain = !input.is_empty() && used == input.len();
    let sniffed = bounded(input.len(), || Format::sniff(input));
    assert_eq!(sniffed, if is_chain { Format::Opus } else { Format::Pcm16 });
    let loud = rms(input);
    assert!((0.0..=1.0).contains(&loud), "loudness {loud}");
    let mut script = Script::new(input);
    let (len, rate) = (script.any::<u32>() as usize, script.any::<u32>() % (SAMPLE_RATE_MAX + 1));
    let ms = pcm16_ms(len, rate);
    let exact = (len as u128 / 2) * 1_000 / u128::from(rate.max(1));
    assert_eq!(u128::from(ms), exact.min(u32::MAX.into()));
    assert!(pcm16_ms(len + 2, rate) >= ms, "more sound is not shorter");
    let formats = ["pcm16", "opus", "flac", ""];
    let format = script.of(&formats);
    assert!(estimate_ms(format, rate, len + 80) >= estimate_ms(format, rate, len));
}

/// The packets of the chain up to its first fault, each cut off with what the two bytes before it
/// say.
fn chain(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut packets = Vec::new();
    while bytes.len() >= 2 {
        let len = usize::from(bytes[0]) + 256 * usize::from(bytes[1]);
        if len == 0 || len > OPUS_PACKET_BYTES_MAX || bytes.len() < 2 + len {
            break;
        }
        packets.push(&bytes[2..2 + len]);
        bytes = &bytes[2 + len..];
    }
    packets
}
