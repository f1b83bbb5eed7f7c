//! Recordings: any WAV in, the wire's own sound out (16 kHz, mono, signed 16 bit), and back.
//!
//! Does not decode Opus.

use std::io::{self, Cursor};
use std::path::Path;

use hound::{SampleFormat, WavReader, WavSpec, WavWriter};
use rubato::audioadapter_buffers::owned::InterleavedOwned;
use rubato::{Fft, FixedSync, Resampler};

/// Samples per second of `pcm16` on the wire.
pub const RATE_HZ: u32 = 16_000;
/// Rates outside this range are taken for a broken header.
const RATES_READ_HZ: std::ops::RangeInclusive<u32> = 1_000..=768_000;
/// Input frames the resampler takes per step; a hint, it rounds to the ratio.
const RESAMPLE_FRAMES: usize = 1024;

/// A recording could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum WavError {
    /// Not a WAV file this reader knows.
    #[error("not a readable WAV: {0}")]
    Format(#[from] hound::Error),
    /// The file itself.
    #[error("WAV file: {0}")]
    File(#[from] io::Error),
    /// A sample rate nothing records at.
    #[error("a sample rate of {0} Hz is not supported")]
    Rate(u32),
    /// More samples than are wanted would come of it.
    #[error("the recording is too long")]
    TooLong,
    /// The resampler refused.
    #[error("resampling failed: {0}")]
    Resample(String),
}

/// Reads a WAV file of any rate, width and channel count as 16 kHz mono.
pub fn read_wav(path: &Path) -> Result<Vec<i16>, WavError> {
    decode_wav(std::fs::read(path)?)
}

/// The same for a file already in memory.
pub fn decode_wav(bytes: Vec<u8>) -> Result<Vec<i16>, WavError> {
    decode_wav_within(bytes, usize::MAX)
}

/// The same, unless more than `samples_max` would come of it: a slow rate and few bits make much of
/// little.
///
/// Programs that stream a WAV to a pipe cannot know its length and write a made-up one, so lengths
/// that reach past the end are cut to what is there.
pub fn decode_wav_within(mut bytes: Vec<u8>, samples_max: usize) -> Result<Vec<i16>, WavError> {
    mend_lengths(&mut bytes);
    let mut reader = WavReader::new(Cursor::new(bytes))?;
    let spec = reader.spec();
    if !RATES_READ_HZ.contains(&spec.sample_rate) {
        return Err(WavError::Rate(spec.sample_rate));
    }
    let frames = u128::from(reader.duration());
    let becomes = frames * u128::from(RATE_HZ) / u128::from(spec.sample_rate);
    if becomes > samples_max as u128 {
        return Err(WavError::TooLong);
    }
    let samples = read_floats(&mut reader, spec)?;
    let mono = mix_down(&samples, usize::from(spec.channels));
    Ok(to_pcm16(&resample(mono, spec.sample_rate)?))
}

/// Writes 16 kHz mono samples as a WAV file.
pub fn write_wav(path: &Path, samples: &[i16]) -> Result<(), WavError> {
    std::fs::write(path, encode_wav(samples)?)?;
    Ok(())
}

/// The bytes of such a file.
pub fn encode_wav(samples: &[i16]) -> Result<Vec<u8>, WavError> {
    let spec = WavSpec {
        channels: 1,
        sample_rate: RATE_HZ,
        bits_per_sample: 16,
        sample_format: SampleFormat::Int,
    };
    let mut bytes = Cursor::new(Vec::with_capacity(44 + samples.len() * 2));
    let mut writer = WavWriter::new(&mut bytes, spec)?;
    for &sample in samples {
        writer.write_sample(sample)?;
    }
    writer.finalize()?;
    Ok(bytes.into_inner())
}

/// Samples as the wire carries them: little-endian, two bytes each.
pub fn pcm16_bytes(samples: &[i16]) -> Vec<u8> {
    samples.iter().flat_map(|sample| sample.to_le_bytes()).collect()
}

/// The way back; a last odd byte is dropped.
pub fn pcm16_samples(bytes: &[u8]) -> Vec<i16> {
    bytes.as_chunks().0.iter().map(|pair| i16::from_le_bytes(*pair)).collect()
}

/// Brings wire samples of another rate to 16 kHz.
pub fn pcm16_at_16k(samples: Vec<i16>, from_hz: u32) -> Result<Vec<i16>, WavError> {
    if from_hz == RATE_HZ {
        return Ok(samples);
    }
    let floats = samples.iter().map(|&s| f32::from(s) / 32_768.0).collect();
    Ok(to_pcm16(&resample(floats, from_hz)?))
}

/// Loudness: root mean square of the samples, 0 for none, at most 32768.
pub fn rms(samples: &[i16]) -> f64 {
    if samples.is_empty() {
        return 0.0;
    }
    let sum: f64 = samples.iter().map(|&s| f64::from(s) * f64::from(s)).sum();
    (sum / samples.len() as f64).sqrt()
}

fn read_floats(
    reader: &mut WavReader<Cursor<Vec<u8>>>,
    spec: WavSpec,
) -> Result<Vec<f32>, WavError> {
    match spec.sample_format {
        SampleFormat::Float => Ok(reader.samples::<f32>().collect::<Result<_, _>>()?),
        SampleFormat::Int => {
            let full = (1_u64 << (spec.bits_per_sample.clamp(1, 32) - 1)) as f32;
            let scaled = |s: Result<i32, _>| s.map(|s| s as f32 / full);
            Ok(reader.samples::<i32>().map(scaled).collect::<Result<_, _>>()?)
        }
    }
}

fn mix_down(samples: &[f32], channels: usize) -> Vec<f32> {
    let channels = channels.max(1);
    let mean = |frame: &[f32]| frame.iter().sum::<f32>() / channels as f32;
    samples.chunks_exact(channels).map(mean).collect()
}

fn resample(mono: Vec<f32>, from_hz: u32) -> Result<Vec<f32>, WavError> {
    if !RATES_READ_HZ.contains(&from_hz) {
        return Err(WavError::Rate(from_hz));
    }
    if from_hz == RATE_HZ || mono.is_empty() {
        return Ok(mono);
    }
    let fault = |e: &dyn std::fmt::Display| WavError::Resample(e.to_string());
    let (from, to) = (from_hz as usize, RATE_HZ as usize);
    let mut resampler =
        Fft::<f32>::new(from, to, RESAMPLE_FRAMES, 1, FixedSync::Both).map_err(|e| fault(&e))?;
    let frames = mono.len();
    let input = InterleavedOwned::new_from(mono, 1, frames).map_err(|e| fault(&e))?;
    let output = resampler.process_all(&input, frames, None).map_err(|e| fault(&e))?;
    Ok(output.take_data())
}

fn to_pcm16(floats: &[f32]) -> Vec<i16> {
    // `as` saturates, which is the clipping wanted here.
    floats.iter().map(|f| (f * 32_768.0).round() as i16).collect()
}

/// Cuts the RIFF and data lengths down to the bytes that exist, in whole frames.
fn mend_lengths(bytes: &mut [u8]) {
    let total = bytes.len();
    if total < 12 || &bytes[..4] != b"RIFF" {
        return;
    }
    let mut frame_bytes = 1;
    let mut at = 12;
    while at + 8 <= total {
        let said = u32_at(bytes, at + 4) as usize;
        let there = total - at - 8;
        if &bytes[at..at + 4] == b"fmt " && there >= 14 {
            let align = [bytes[at + 20], bytes[at + 21]];
            frame_bytes = usize::from(u16::from_le_bytes(align)).max(1);
        }
        if &bytes[at..at + 4] == b"data" && said > there {
            let whole = there - there % frame_bytes;
            put_u32(bytes, at + 4, whole);
            put_u32(bytes, 4, at + whole);
            return;
        }
        at = at.saturating_add(8).saturating_add(said).saturating_add(said % 2);
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |four| u32::from_le_bytes(*four))
}

fn put_u32(bytes: &mut [u8], at: usize, value: usize) {
    let value = u32::try_from(value).unwrap_or(u32::MAX);
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use std::f32::consts::TAU;

    use super::*;

    /// A 300 Hz tone of half full scale in any shape of WAV.
    fn tone(spec: WavSpec, seconds: f32) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        let mut writer = WavWriter::new(&mut bytes, spec).unwrap();
        let full = 2_f32.powi(i32::from(spec.bits_per_sample) - 1) - 1.0;
        for n in 0..(seconds * spec.sample_rate as f32) as usize {
            let value = 0.5 * (TAU * 300.0 * n as f32 / spec.sample_rate as f32).sin();
            for _ in 0..spec.channels {
                match spec.sample_format {
                    SampleFormat::Float => writer.write_sample(value).unwrap(),
                    SampleFormat::Int => writer.write_sample((value * full) as i32).unwrap(),
                }
            }
        }
        writer.finalize().unwrap();
        bytes.into_inner()
    }

    fn spec(sample_rate: u32, channels: u16, bits_per_sample: u16) -> WavSpec {
        WavSpec { channels, sample_rate, bits_per_sample, sample_format: SampleFormat::Int }
    }

    /// Rising zero crossings: the pitch survives only if rate and channels were understood.
    fn pitch_hz(samples: &[i16]) -> f64 {
        let rises = samples.windows(2).filter(|w| w[0] < 0 && w[1] >= 0).count();
        rises as f64 * f64::from(RATE_HZ) / samples.len() as f64
    }

    #[track_caller]
    fn assert_same_tone(samples: &[i16], seconds: f64) {
        let want = seconds * f64::from(RATE_HZ);
        let off = (samples.len() as f64 - want).abs() / want;
        assert!(off < 0.01, "{} samples, wanted about {want}", samples.len());
        assert!((pitch_hz(samples) - 300.0).abs() < 6.0, "{} Hz", pitch_hz(samples));
        let loud = rms(samples) / (16_384.0 / 2_f64.sqrt());
        assert!((loud - 1.0).abs() < 0.03, "loudness is off by the factor {loud}");
    }

    #[test]
    fn every_rate_becomes_16k_with_the_same_length_pitch_and_loudness() {
        for rate in [8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000] {
            let got = decode_wav(tone(spec(rate, 1, 16), 1.3)).unwrap();
            assert_same_tone(&got, 1.3);
        }
    }

    #[test]
    fn every_width_and_channel_count_is_read() {
        for bits in [8, 16, 24, 32] {
            for channels in [1, 2, 6] {
                let got = decode_wav(tone(spec(44_100, channels, bits), 0.5)).unwrap();
                assert_same_tone(&got, 0.5);
            }
        }
        let float = WavSpec { sample_format: SampleFormat::Float, ..spec(48_000, 2, 32) };
        assert_same_tone(&decode_wav(tone(float, 0.5)).unwrap(), 0.5);
    }

    #[test]
    fn our_own_files_come_back_sample_for_sample() {
        let samples = decode_wav(tone(spec(16_000, 1, 16), 0.3)).unwrap();
        assert_eq!(decode_wav(encode_wav(&samples).unwrap()).unwrap(), samples);
        assert_eq!(pcm16_samples(&pcm16_bytes(&samples)), samples);
        assert_eq!(pcm16_samples(&[1, 0, 9]), [1]);
    }

    #[test]
    fn a_made_up_length_is_cut_to_what_is_there() {
        let mut bytes = tone(spec(22_050, 1, 16), 0.4);
        put_u32(&mut bytes, 4, 0x7fff_f024);
        put_u32(&mut bytes, 40, 0x7fff_f000);
        bytes.push(0);
        assert_same_tone(&decode_wav(bytes).unwrap(), 0.4);
    }

    #[test]
    fn what_would_become_too_long_is_refused_before_it_is_made() {
        let slow = tone(spec(1_000, 1, 8), 2.0);
        assert!(matches!(decode_wav_within(slow.clone(), 31_999), Err(WavError::TooLong)));
        assert_eq!(decode_wav_within(slow, 32_000).unwrap().len(), 32_000);
    }

    #[test]
    fn rubbish_is_an_error_and_never_a_panic() {
        let good = tone(spec(16_000, 1, 16), 0.01);
        for cut in 0..60 {
            decode_wav(good[..cut.min(good.len())].to_vec()).ok();
        }
        assert!(matches!(decode_wav(b"no wav at all".to_vec()), Err(WavError::Format(_))));
        let odd = tone(spec(999, 1, 16), 0.1);
        assert!(matches!(decode_wav(odd), Err(WavError::Rate(999))));
    }
}
