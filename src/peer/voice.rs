//! A voice for demonstrations.

use std::f32::consts::TAU;

use super::wav::RATE_HZ;

/// A made-up utterance for demonstrations: a wandering voice of a few harmonics, four syllables a
/// second.
///
/// No recogniser finds words in it, but a level meter and an ear take it for someone speaking.
pub fn sine_speech(seconds: f32) -> Vec<i16> {
    let rate = RATE_HZ as f32;
    let count = (seconds.max(0.0) * rate).round() as usize;
    let mut phase = 0.0_f32;
    let mut voice = |n: usize| {
        let at = n as f32 / rate;
        let pitch_hz = 120.0 + 25.0 * (TAU * 0.4 * at).sin() + 6.0 * (TAU * 5.0 * at).sin();
        phase = (phase + pitch_hz / rate).fract();
        let vowel = 0.5 + 0.5 * (TAU * 0.9 * at).sin();
        let harmonics = [1.0, 0.7, 0.3 + 0.5 * vowel, 0.6 - 0.4 * vowel, 0.25, 0.15];
        let tone: f32 =
            (1..).zip(harmonics).map(|(k, gain)| gain * (TAU * phase * k as f32).sin()).sum();
        let syllable = (1.25 * (TAU * 2.0 * at).sin().abs() - 0.25).max(0.0).sqrt();
        0.2 * tone * syllable
    };
    // `as` saturates, which is the clipping wanted here.
    (0..count).map(|n| (voice(n) * 32_768.0).round() as i16).collect()
}

#[cfg(test)]
mod tests {
    use super::super::wav::rms;
    use super::*;

    #[test]
    fn the_made_up_voice_is_loud_but_never_clips_and_has_pauses() {
        let voice = sine_speech(2.0);
        assert_eq!(voice.len(), 32_000);
        assert!(rms(&voice) > 1_500.0, "{}", rms(&voice));
        assert!(voice.iter().all(|s| s.unsigned_abs() < 30_000));
        let parts: Vec<f64> = voice.chunks(320).map(rms).collect();
        let quiet = parts.iter().filter(|r| **r < 1_000.0).count();
        assert!((5..60).contains(&quiet), "{quiet} quiet frames of {}", parts.len());
    }
}
