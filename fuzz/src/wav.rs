//! WAV files of any kind, as peers read them, and what they write.

use utterd::peer::wav::{decode_wav, encode_wav, pcm16_bytes, pcm16_samples, rms};

use super::bounded::bounded_by;

pub fn run(input: &[u8]) {
    // Sound at 1 kHz in one byte a sample becomes sound at 16 kHz, by way of floats; and changing
    // the rate takes tables.
    let read = bounded_by(512, 64 << 20, input.len(), || decode_wav(input.to_vec()));
    if let Ok(samples) = read {
        let written = encode_wav(&samples).expect("sound can be written");
        assert_eq!(decode_wav(written).expect("what was written can be read"), samples);
        assert!((0.0..=32_768.0).contains(&rms(&samples)));
    }
    let samples = pcm16_samples(input);
    assert_eq!(pcm16_bytes(&samples), input[..input.len() / 2 * 2], "sound as the wire has it");
}
