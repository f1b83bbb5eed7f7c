//! What the sessions say, and how an answer proves which utterance it answers.
//!
//! All utterances share one noise, but each begins with six samples that spell its session and its
//! index: sixteen hexadecimal digits, which are base64 too, so that they can be put into the frame
//! as they are. A node answers with what it finds there, the length, and a checksum of the rest. It
//! refuses to know sockets and times.

use bytes::Bytes;

use super::{Mode, Options};

/// Bytes of one millisecond of PCM16 at 16 kHz.
const BYTES_PER_MS: usize = 32;
/// The samples that spell the utterance, in bytes of PCM and of base64.
const TAG_PCM_BYTES: usize = 12;
const TAG_CHARS: usize = 16;
/// Audio in one chunk, in milliseconds.
const CHUNK_MS: usize = 200;
/// Largest amplitude of the noise: loud, and never clipped.
const AMPLITUDE: i16 = 8_000;

/// The audio of every utterance, but for its beginning.
pub(super) struct Speech {
    /// Base64 of the whole, or of each chunk, without the tag.
    parts: Vec<String>,
    /// Length and checksum of the whole as base64, as a node would tell them.
    rest: String,
    mode: Mode,
    languages: (&'static str, &'static str),
}

impl Speech {
    /// Noise of the length wanted, at least one chunk of a millisecond.
    pub(super) fn new(options: &Options) -> Self {
        let Options { audio_ms, mode, languages, .. } = *options;
        let mut rng = fastrand::Rng::with_seed(1);
        let samples = audio_ms.max(1) * BYTES_PER_MS / 2;
        let pcm: Vec<u8> =
            (0..samples).flat_map(|_| rng.i16(-AMPLITUDE..AMPLITUDE).to_le_bytes()).collect();
        let encode = |bytes: &[u8]| base64_simd::STANDARD.encode_to_string(bytes);
        let whole = encode(&pcm[TAG_PCM_BYTES..]);
        let parts = match mode {
            Mode::Utterance => vec![whole.clone()],
            Mode::Chunks => {
                let mut chunks = pcm.chunks(CHUNK_MS * BYTES_PER_MS);
                let first = chunks.next().map(|chunk| encode(&chunk[TAG_PCM_BYTES..]));
                first.into_iter().chain(chunks.map(encode)).collect()
            }
        };
        Self { parts, rest: rest_of(&whole), mode, languages }
    }

    /// The frames of one utterance. `seq` counts the chunks of the session, from 1.
    pub(super) fn frames(&self, session_id: &str, at: (usize, u64), seq: &mut u64) -> Vec<Bytes> {
        let last = self.parts.len() - 1;
        let parts = self.parts.iter().enumerate();
        let (src, tgt) = self.languages;
        let frames = parts.map(|(n, part)| {
            let head = match self.mode {
                Mode::Utterance => format!(
                    "{{\"type\":\"utterance\",\"session_id\":\"{session_id}\",\
                     \"utterance_index\":{},\"manual_cut\":true,\"src_lang\":\"{src}\",\
                     \"tgt_lang\":\"{tgt}\",\"audio_format\":\"pcm16\",\"sample_rate\":16000,\
                     \"audio\":\"",
                    at.1
                ),
                Mode::Chunks => {
                    *seq += 1;
                    format!(
                        "{{\"type\":\"audio_chunk\",\"session_id\":\"{session_id}\",\
                         \"seq\":{seq},\"is_final\":{},\"payload\":\"",
                        n == last
                    )
                }
            };
            let mut frame = Vec::with_capacity(head.len() + TAG_CHARS + part.len() + 2);
            frame.extend_from_slice(head.as_bytes());
            if n == 0 {
                frame.extend_from_slice(tag(at).as_bytes());
            }
            frame.extend_from_slice(part.as_bytes());
            frame.extend_from_slice(b"\"}");
            Bytes::from(frame)
        });
        frames.collect()
    }

    /// What a node must have answered.
    pub(super) fn proof(&self, at: (usize, u64)) -> String {
        format!("{} {}", tag(at), self.rest)
    }
}

/// Session and index as digits of base64 that stand for whole samples.
fn tag((session, index): (usize, u64)) -> String {
    format!("{:04x}{:012x}", session & 0xffff, index & 0xffff_ffff_ffff)
}

fn rest_of(base64: &str) -> String {
    format!("{} {:08x}", base64.len(), crc32c::crc32c(base64.as_bytes()))
}

/// What a node tells of the audio that it was given.
pub(super) fn proof_of(audio: &str) -> String {
    match (audio.get(..TAG_CHARS), audio.get(TAG_CHARS..)) {
        (Some(tag), Some(rest)) => format!("{tag} {}", rest_of(rest)),
        _ => format!("{} too short", audio.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload<'a>(frame: &'a Bytes, field: &str) -> &'a str {
        let text = std::str::from_utf8(frame).unwrap();
        let value: serde_json::Value = serde_json::from_str(text).unwrap();
        let length = value[field].as_str().unwrap().len();
        &text[text.len() - 2 - length..text.len() - 2]
    }

    #[test]
    fn what_a_node_tells_proves_which_utterance_it_had() {
        let speech = Speech::new(&Options::default());
        let frames = speech.frames("s-1", (3, 17), &mut 0);
        let audio = payload(&frames[0], "audio");
        assert_eq!(base64_simd::STANDARD.decode_to_vec(audio).unwrap().len(), 32_000);
        assert_eq!(proof_of(audio), speech.proof((3, 17)));
        assert_ne!(proof_of(audio), speech.proof((3, 18)));
        assert_ne!(proof_of(&audio[..audio.len() - 4]), speech.proof((3, 17)));
        let spoiled = audio.replacen(&audio[500..504], "AAAA", 1);
        assert_ne!(proof_of(&spoiled), speech.proof((3, 17)));
        assert_eq!(proof_of("é"), "2 too short");
    }

    #[test]
    fn chunks_put_together_are_the_same_utterance() {
        for audio_ms in [1, 199, 200, 201, 1_000] {
            let speech =
                Speech::new(&Options { audio_ms, mode: Mode::Chunks, ..Options::default() });
            let mut seq = 0;
            let frames = speech.frames("s-1", (3, 17), &mut seq);
            assert_eq!(frames.len(), audio_ms.div_ceil(200));
            assert_eq!(seq as usize, frames.len());
            let raw = frames.iter().flat_map(|frame| {
                base64_simd::STANDARD.decode_to_vec(payload(frame, "payload")).unwrap()
            });
            let whole = base64_simd::STANDARD.encode_to_string(raw.collect::<Vec<_>>());
            assert_eq!(proof_of(&whole), speech.proof((3, 17)), "{audio_ms} ms");
        }
    }
}
