//! Recordings as users have them, made into what nodes take, and back.

use std::io::Cursor;

use bytes::Bytes;
use ogg::PacketReader;

use super::answer::Refused;
use crate::protocol::audio::OpusPackets;
use crate::protocol::gateway::{Terms, Translation};
use crate::protocol::limits::{OPUS_PACKET_BYTES_MAX, SAMPLE_RATE, SAMPLE_RATE_MAX};
use crate::protocol::wav::{WavError, decode_wav_within, encode_wav, pcm16_bytes, pcm16_samples};

/// A recording in a form that nodes take.
pub(super) struct Recording {
    /// In base64.
    pub(super) audio: String,
    /// `pcm16` or `opus`.
    pub(super) format: &'static str,
    /// In hertz.
    pub(super) sample_rate: u32,
}

/// Understands a recording that may become `bytes_max` long. It may take a while: a long WAV of
/// another rate is made into one of 16 kHz.
pub(super) fn read(audio: Bytes, terms: &Terms, bytes_max: usize) -> Result<Recording, Refused> {
    if let Some(wanted) = terms.answer_format.as_deref().filter(|f| !["wav", "pcm16"].contains(f)) {
        return Err(Refused::malformed(format!("`answer_format` is wav or pcm16, not {wanted}")));
    }
    let of = |audio: &[u8], format, sample_rate| {
        let audio = base64_simd::STANDARD.encode_to_string(audio);
        Recording { audio, format, sample_rate }
    };
    match terms.audio_format.as_deref().unwrap_or_else(|| seen(&audio)) {
        "wav" => {
            let samples = decode_wav_within(audio.into(), bytes_max / 2).map_err(unread)?;
            if samples.is_empty() {
                return Err(Refused::malformed("the recording is empty"));
            }
            Ok(of(&pcm16_bytes(&samples), "pcm16", SAMPLE_RATE))
        }
        "opus" => {
            let chain = if audio.starts_with(b"OggS") { unpacked(audio)? } else { audio.into() };
            let fits = |packet: &[u8]| packet_us(packet) == Some(20_000);
            match OpusPackets(&chain).all(|packet| packet.is_ok_and(fits)) {
                true if !chain.is_empty() => Ok(of(&chain, "opus", SAMPLE_RATE)),
                _ => Err(Refused::malformed("Opus is taken in packets of 20 ms")),
            }
        }
        "pcm16" => {
            let sample_rate = terms.sample_rate.unwrap_or(SAMPLE_RATE);
            if !(1..=SAMPLE_RATE_MAX).contains(&sample_rate) {
                return Err(Refused::malformed(format!("`sample_rate` is 1 to {SAMPLE_RATE_MAX}")));
            }
            match audio.len() % 2 {
                0 => Ok(of(&audio, "pcm16", sample_rate)),
                _ => Err(Refused::malformed("pcm16 has an odd number of bytes")),
            }
        }
        other => {
            let other = crate::protocol::limits::clip(other, 32);
            Err(Refused::unsupported(format!("`audio_format` is wav, opus or pcm16, not {other}")))
        }
    }
}

/// The form that a recording shows by its first bytes.
fn seen(audio: &[u8]) -> &'static str {
    match audio {
        [b'R', b'I', b'F', b'F', ..] => "wav",
        [b'O', b'g', b'g', b'S', ..] => "opus",
        _ => "pcm16",
    }
}

fn unread(error: WavError) -> Refused {
    match error {
        WavError::TooLong => Refused::too_long(error.to_string()),
        _ => Refused::malformed(error.to_string()),
    }
}

/// The packets of an Ogg file with Opus in it, each behind its length. Head and tags are left out.
fn unpacked(audio: Bytes) -> Result<Vec<u8>, Refused> {
    let wrong = |what: &dyn std::fmt::Display| Refused::malformed(format!("not Ogg Opus: {what}"));
    let mut chain = Vec::with_capacity(audio.len());
    let mut file = PacketReader::new(Cursor::new(audio));
    let head = file.read_packet_expected().map_err(|error| wrong(&error))?;
    if !head.data.starts_with(b"OpusHead") {
        return Err(wrong(&"no OpusHead"));
    }
    let serial = head.stream_serial();
    while let Some(packet) = file.read_packet().map_err(|error| wrong(&error))? {
        let other = packet.stream_serial() != serial;
        if other || packet.data.is_empty() || packet.data.starts_with(b"OpusTags") {
            continue;
        }
        if packet.data.len() > OPUS_PACKET_BYTES_MAX {
            return Err(wrong(&"a packet is too long"));
        }
        // Bounded just above.
        chain.extend_from_slice(&(packet.data.len() as u16).to_le_bytes());
        chain.extend_from_slice(&packet.data);
    }
    Ok(chain)
}

/// How long an Opus packet sounds, in microseconds (RFC 6716, section 3.1).
fn packet_us(packet: &[u8]) -> Option<u32> {
    let toc = *packet.first()?;
    let config = toc >> 3;
    let frame_us: u32 = match config {
        0..=11 => [10_000, 20_000, 40_000, 60_000][usize::from(config % 4)],
        12..=15 => [10_000, 20_000][usize::from(config % 2)],
        _ => [2_500, 5_000, 10_000, 20_000][usize::from(config % 4)],
    };
    let frames = match toc & 3 {
        0 => 1,
        1 | 2 => 2,
        _ => u32::from(packet.get(1)? & 0x3f),
    };
    Some(frame_us * frames)
}

/// Makes speech in the wire's samples a WAV file, which anything plays.
pub(super) fn as_wav(translation: &mut Translation) {
    if translation.audio_format != "pcm16" || translation.audio.is_empty() {
        return;
    }
    let Ok(bytes) = base64_simd::STANDARD.decode_to_vec(&translation.audio) else { return };
    if let Ok(wav) = encode_wav(&pcm16_samples(&bytes)) {
        translation.audio = base64_simd::STANDARD.encode_to_string(wav);
        translation.audio_format = "wav".to_owned();
    }
}

#[cfg(test)]
mod tests {
    use ogg::{PacketWriteEndInfo, PacketWriter};

    use super::*;

    fn refused(audio: &[u8], terms: &Terms) -> bool {
        read(Bytes::copy_from_slice(audio), terms, 1_000).is_err()
    }

    /// An Ogg file with these packets, as other programs write them.
    fn ogg(packets: &[&[u8]]) -> Bytes {
        let mut file = PacketWriter::new(Cursor::new(Vec::new()));
        let all: Vec<&[u8]> = [&b"OpusHead\x01"[..], b"OpusTags"]
            .into_iter()
            .chain(packets.iter().copied())
            .collect();
        for (n, packet) in all.iter().enumerate() {
            let end = match n {
                0 | 1 => PacketWriteEndInfo::EndPage,
                _ if n + 1 == all.len() => PacketWriteEndInfo::EndStream,
                _ => PacketWriteEndInfo::NormalPacket,
            };
            file.write_packet(packet.to_vec(), 7, end, n as u64 * 960).unwrap();
        }
        file.into_inner().into_inner().into()
    }

    #[test]
    fn an_ogg_file_becomes_the_chain_that_nodes_know() {
        // Config 1 (SILK, 20 ms), one frame.
        let recording = read(ogg(&[b"\x08abc", b"\x08de"]), &Terms::default(), 1_000).ok();
        let recording = recording.expect("an Ogg file is read");
        let chain = base64_simd::STANDARD.decode_to_vec(&recording.audio).unwrap();
        assert_eq!((recording.format, &chain[..]), ("opus", &b"\x04\0\x08abc\x03\0\x08de"[..]));
        let again = Terms { audio_format: Some("opus".into()), ..Terms::default() };
        assert!(!refused(&chain, &again));
    }

    #[test]
    fn packets_of_another_length_are_not_taken() {
        assert_eq!(packet_us(b"\x00"), Some(10_000));
        assert_eq!(packet_us(b"\x01"), Some(20_000));
        assert_eq!(packet_us(b"\x78"), Some(20_000));
        assert_eq!(packet_us(b"\xe3\x08"), Some(20_000));
        assert_eq!(packet_us(b"\xe3"), None);
        assert!(refused(&ogg(&[b"\x18abc"]), &Terms::default()), "60 ms");
        assert!(refused(&ogg(&[]), &Terms::default()), "no speech at all");
        assert!(refused(b"OggS and nothing more", &Terms::default()));
    }

    #[test]
    fn what_cannot_be_right_is_refused() {
        let of = |format: &str| Terms { audio_format: Some(format.into()), ..Terms::default() };
        assert!(refused(b"abc", &of("pcm16")));
        assert!(refused(b"abcd", &Terms { sample_rate: Some(0), ..of("pcm16") }));
        assert!(refused(b"abcd", &Terms { answer_format: Some("mp3".into()), ..of("pcm16") }));
        assert!(refused(b"abcd", &of("wav")));
        assert!(refused(b"abcd", &of("mp3")));
        assert!(!refused(b"abcd", &of("pcm16")));
        let long = encode_wav(&[1; 501]).unwrap();
        assert!(refused(&long, &Terms::default()), "1,002 bytes of samples");
    }
}
