//! Cuts a stream of audio into utterances.
//!
//! ```text
//!   chunk ─▶ pause over before it? ─▶ cut what there is, the chunk begins the next utterance
//!        └─▶ append ─▶ too long or too large? ─▶ cut a slice, the turn goes on
//!   end marker ─▶ wait out the hangover, still taking chunks in ─▶ cut
//!   nothing for pause_ms ─▶ cut
//! ```
//! Everything taken in ends in a cut or is counted as dropped: a cut in which nothing was said
//! makes no utterance, unless a node holds earlier slices of the same turn and waits for its end.

use bytes::{Bytes, BytesMut};

use crate::config;
use crate::protocol::audio::{self, Format, OpusPackets};
use crate::protocol::job::Cut;
use crate::protocol::{DecodeError, limits};
use crate::telemetry::Now;

/// Length of a frame whose loudness is judged, in milliseconds.
const FRAME_MS: usize = 20;

/// A piece of speech, ready to become a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The audio.
    pub audio: Bytes,
    /// Its form.
    pub format: Format,
    /// Its length, in milliseconds.
    pub audio_ms: u32,
    /// Why it ends.
    pub cut: Cut,
    /// When its first audio was read, monotonic microseconds.
    pub received_us: u64,
    /// Client clock at its first chunk, if told.
    pub client_sent_ms: Option<i64>,
}

/// What a cut came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Out {
    /// An utterance.
    Piece(Piece),
    /// Nothing was said; so many bytes went.
    Silence {
        /// Why it was cut.
        cut: Cut,
        /// Bytes dropped.
        bytes: usize,
    },
    /// Silence before speech, beyond what is kept of it.
    Trimmed(usize),
}

/// One speaker's stream.
#[derive(Debug)]
pub struct Segmenter {
    config: config::Segmenter,
    format: Option<Format>,
    sample_rate: u32,
    buffer: BytesMut,
    /// Length of the buffer, in milliseconds.
    ms: u32,
    /// Whether anything in the buffer was said.
    voiced: bool,
    /// Bytes of the last packet or frame in the buffer: what stays behind when a slice is cut.
    tail: usize,
    received_us: u64,
    client_sent_ms: Option<i64>,
    /// When the last audio came.
    last_audio_us: Option<u64>,
    /// The speaker ended the utterance; it is cut at this moment.
    closing_at: Option<u64>,
    /// A slice of the turn went out, and its end has not.
    turn_open: bool,
    /// While translated speech plays, silence is no pause; until this moment at most.
    playing_until: Option<u64>,
    /// The speaker is not connected: silence is no pause.
    suspended: bool,
}

impl Segmenter {
    /// A stream of `format`, or of the form its first chunk shows.
    pub fn new(config: config::Segmenter, format: Option<Format>, sample_rate: u32) -> Self {
        Self {
            config,
            format,
            sample_rate,
            buffer: BytesMut::new(),
            ms: 0,
            voiced: false,
            tail: 0,
            received_us: 0,
            client_sent_ms: None,
            last_audio_us: None,
            closing_at: None,
            turn_open: false,
            playing_until: None,
            suspended: false,
        }
    }

    /// Goes on after a restart; `turn_open` if slices of a turn wait at a node for its end.
    pub fn restore(&mut self, turn_open: bool) {
        self.turn_open = turn_open;
    }

    /// The speaker is gone and may come back in the middle of a word.
    pub fn suspend(&mut self) {
        self.suspended = true;
    }

    /// The speaker is back: a pause is counted from here.
    pub fn resume(&mut self, now: Now) {
        self.suspended = false;
        self.last_audio_us = self.last_audio_us.map(|last| last.max(now.us));
    }

    /// Takes in a chunk. On an error nothing of it was kept.
    pub fn push(
        &mut self,
        chunk: &[u8],
        client_sent_ms: Option<i64>,
        now: Now,
        out: &mut Vec<Out>,
    ) -> Result<(), DecodeError> {
        if chunk.is_empty() {
            return Ok(());
        }
        let format = *self.format.get_or_insert_with(|| Format::sniff(chunk));
        let heard = Heard::of(chunk, format, self.sample_rate, &self.config)?;
        self.tick(now, out);
        if self.buffer.is_empty() {
            self.received_us = now.us;
            self.client_sent_ms = client_sent_ms;
        }
        self.last_audio_us = Some(now.us);
        self.buffer.extend_from_slice(chunk);
        self.ms = self.ms.saturating_add(heard.ms);
        self.tail = heard.tail;
        self.voiced |= heard.voiced;
        self.trim_leading_silence(format, out);
        self.slice(format, out);
        Ok(())
    }

    /// The speaker ended the utterance: it is cut when the hangover is over, which may be now.
    pub fn end(&mut self, now: Now, out: &mut Vec<Out>) {
        self.tick(now, out);
        if self.buffer.is_empty() || self.closing_at.is_some() {
            return;
        }
        self.closing_at = Some(now.after_ms(self.config.hangover_manual_ms));
        self.tick(now, out);
    }

    /// The session closes: what there is is cut at once.
    pub fn close(&mut self, out: &mut Vec<Out>) {
        let cut = if self.closing_at.is_some() { Cut::Manual } else { Cut::Close };
        self.cut(cut, out);
    }

    /// Lets time act: a hangover or a pause may be over.
    pub fn tick(&mut self, now: Now, out: &mut Vec<Out>) {
        if self.playing_until.is_some_and(|until| until <= now.us) {
            self.stop_playing(now);
        }
        if self.closing_at.is_some_and(|at| at <= now.us) {
            self.cut(Cut::Manual, out);
        } else if self.closing_at.is_none() && self.pause_at().is_some_and(|at| at <= now.us) {
            self.cut(Cut::Pause, out);
        }
    }

    /// When `tick` has something to do, monotonic microseconds.
    pub fn next_tick(&self) -> Option<u64> {
        let pending = self.closing_at.or_else(|| self.pause_at());
        pending.into_iter().chain(self.playing_until).min()
    }

    /// When the pause that ends the utterance is over: later than `pause_ms` after the last audio.
    fn pause_at(&self) -> Option<u64> {
        let off = self.config.pause_ms == 0
            || self.buffer.is_empty()
            || self.playing_until.is_some()
            || self.suspended;
        let last = self.last_audio_us?;
        (!off).then(|| last + self.config.pause_ms * 1_000 + 1)
    }

    /// The client plays speech: what it does not send meanwhile is no pause.
    pub fn start_playing(&mut self, now: Now) {
        self.playing_until = Some(now.after_ms(self.config.playing_timeout_ms));
    }

    /// The client stopped playing: a pause is counted from here.
    pub fn stop_playing(&mut self, now: Now) {
        if self.playing_until.take().is_some() {
            self.last_audio_us = self.last_audio_us.map(|last| last.max(now.us));
        }
    }

    /// Bytes held.
    pub fn held(&self) -> usize {
        self.buffer.len()
    }

    /// Bytes of silence kept before the first speech: dropping the rest keeps slices for speech.
    fn trim_leading_silence(&mut self, format: Format, out: &mut Vec<Out>) {
        let keep_ms = self.config.leading_silence_ms;
        if self.voiced || self.turn_open || u64::from(self.ms) <= keep_ms {
            return;
        }
        let mut dropped = 0;
        while u64::from(self.ms) > keep_ms && self.buffer.len() > self.tail {
            let (bytes, ms) = match format {
                Format::Opus => {
                    let len = u16::from_le_bytes([self.buffer[0], self.buffer[1]]);
                    (2 + usize::from(len), limits::OPUS_PACKET_MS)
                }
                Format::Pcm16 => {
                    let bytes = frame_bytes(self.sample_rate).min(self.buffer.len() - self.tail);
                    (bytes, audio::pcm16_ms(bytes, self.sample_rate).max(1))
                }
            };
            drop(self.buffer.split_to(bytes));
            self.ms = self.ms.saturating_sub(ms);
            dropped += bytes;
        }
        if dropped > 0 {
            out.push(Out::Trimmed(dropped));
        }
    }

    /// Cuts a slice when the buffer is too long or too large. The last packet stays behind, so that
    /// the job that ends the turn always has audio to carry.
    fn slice(&mut self, format: Format, out: &mut Vec<Out>) {
        let too_long =
            |s: &Self| s.config.max_duration_ms > 0 && u64::from(s.ms) >= s.config.max_duration_ms;
        let cut = match () {
            () if too_long(self) => Cut::MaxDuration,
            () if self.buffer.len() > self.config.max_bytes => Cut::MaxBytes,
            () => return,
        };
        if self.closing_at.is_some() {
            // The speaker already ended it; no more than this comes.
            return self.cut(Cut::Manual, out);
        }
        let keep = self.tail.min(self.buffer.len());
        if keep == self.buffer.len() {
            return;
        }
        let tail = self.buffer.split_off(self.buffer.len() - keep);
        let tail_ms = match format {
            Format::Opus => limits::OPUS_PACKET_MS,
            Format::Pcm16 => audio::pcm16_ms(keep, self.sample_rate),
        };
        self.ms = self.ms.saturating_sub(tail_ms);
        let (received_us, client, last) = (
            self.last_audio_us.unwrap_or(self.received_us),
            self.client_sent_ms,
            self.last_audio_us,
        );
        self.cut(cut, out);
        self.buffer = tail;
        self.ms = tail_ms;
        self.voiced = false;
        self.tail = keep;
        self.received_us = received_us;
        self.client_sent_ms = client;
        self.last_audio_us = last;
    }

    fn cut(&mut self, cut: Cut, out: &mut Vec<Out>) {
        self.closing_at = None;
        if self.buffer.is_empty() {
            return;
        }
        let audio = std::mem::take(&mut self.buffer).freeze();
        let audio_ms = std::mem::take(&mut self.ms);
        let voiced = std::mem::take(&mut self.voiced);
        self.tail = 0;
        if !voiced && !self.turn_open {
            out.push(Out::Silence { cut, bytes: audio.len() });
            return;
        }
        self.turn_open = !cut.closes_turn();
        let format = self.format.unwrap_or(Format::Pcm16);
        let (received_us, client_sent_ms) = (self.received_us, self.client_sent_ms.take());
        out.push(Out::Piece(Piece { audio, format, audio_ms, cut, received_us, client_sent_ms }));
    }
}

fn frame_bytes(sample_rate: u32) -> usize {
    (sample_rate as usize * FRAME_MS / 1_000).max(1) * 2
}

/// What a chunk is, judged before it is taken in.
struct Heard {
    ms: u32,
    voiced: bool,
    tail: usize,
}

impl Heard {
    fn of(
        chunk: &[u8],
        format: Format,
        sample_rate: u32,
        config: &config::Segmenter,
    ) -> Result<Self, DecodeError> {
        match format {
            Format::Opus => Self::of_opus(chunk, config.opus_silence_packet_bytes),
            Format::Pcm16 if chunk.len() % 2 == 1 => {
                Err(DecodeError::Audio("pcm16 has an odd number of bytes"))
            }
            Format::Pcm16 => {
                let frame = frame_bytes(sample_rate);
                Ok(Self {
                    ms: audio::pcm16_ms(chunk.len(), sample_rate),
                    voiced: chunk.chunks(frame).any(|f| audio::rms(f) >= config.pcm_silence_rms),
                    tail: frame.min(chunk.len()),
                })
            }
        }
    }

    fn of_opus(chunk: &[u8], silence_max: usize) -> Result<Self, DecodeError> {
        let mut heard = Self { ms: 0, voiced: false, tail: 0 };
        for packet in OpusPackets(chunk) {
            let len = packet?.len();
            heard.ms += limits::OPUS_PACKET_MS;
            heard.voiced |= len > silence_max;
            heard.tail = len + 2;
        }
        Ok(heard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(ms: u64) -> Now {
        Now { us: ms * 1_000, unix_ms: ms }
    }

    fn config() -> config::Segmenter {
        config::Segmenter { hangover_manual_ms: 0, ..config::Segmenter::default() }
    }

    fn opus(lens: &[u16]) -> Vec<u8> {
        let packet = |n: u16| [n.to_le_bytes().to_vec(), vec![7; n.into()]].concat();
        lens.iter().flat_map(|n| packet(*n)).collect()
    }

    fn speech() -> Vec<u8> {
        opus(&[70; 13])
    }

    fn silence() -> Vec<u8> {
        opus(&[8; 13])
    }

    struct Run {
        segmenter: Segmenter,
        out: Vec<Out>,
    }

    impl Run {
        fn new(config: config::Segmenter) -> Self {
            Self { segmenter: Segmenter::new(config, None, 16_000), out: Vec::new() }
        }

        fn push(&mut self, ms: u64, chunk: &[u8]) {
            self.segmenter.push(chunk, None, at(ms), &mut self.out).unwrap();
        }

        fn end(&mut self, ms: u64) {
            self.segmenter.end(at(ms), &mut self.out);
        }

        fn tick(&mut self, ms: u64) {
            self.segmenter.tick(at(ms), &mut self.out);
        }

        fn cuts(&self) -> Vec<(Cut, u32)> {
            let pieces = self.out.iter().filter_map(|o| match o {
                Out::Piece(p) => Some((p.cut, p.audio_ms)),
                _ => None,
            });
            pieces.collect()
        }
    }

    #[test]
    fn an_end_marker_cuts_what_was_said() {
        let mut run = Run::new(config());
        run.push(0, &speech());
        run.push(256, &speech());
        run.end(300);
        run.end(310);
        assert_eq!(run.cuts(), [(Cut::Manual, 520)]);
    }

    #[test]
    fn the_hangover_takes_in_what_still_comes() {
        let mut run = Run::new(config::Segmenter { hangover_manual_ms: 200, ..config() });
        run.push(0, &speech());
        run.end(10);
        run.push(100, &speech());
        assert!(run.out.is_empty());
        assert_eq!(run.segmenter.next_tick(), Some(210_000));
        run.tick(210);
        assert_eq!(run.cuts(), [(Cut::Manual, 520)]);
    }

    #[test]
    fn a_late_chunk_belongs_to_the_next_utterance() {
        let mut run = Run::new(config());
        run.push(0, &speech());
        run.push(3_300, &speech());
        run.end(3_400);
        assert_eq!(run.cuts(), [(Cut::Pause, 260), (Cut::Manual, 260)]);
    }

    #[test]
    fn a_pause_cuts_by_itself() {
        let mut run = Run::new(config());
        run.push(0, &speech());
        run.tick(3_000);
        assert!(run.out.is_empty(), "exactly pause_ms is not longer than it");
        run.tick(3_001);
        assert_eq!(run.cuts(), [(Cut::Pause, 260)]);
    }

    #[test]
    fn bursts_of_ends_after_silence_make_nothing() {
        let mut run = Run::new(config());
        run.push(0, &speech());
        run.end(100);
        for i in 1..8 {
            run.push(i * 256, &silence());
            run.end(i * 256 + 5);
        }
        assert_eq!(run.cuts().len(), 1);
        assert_eq!(run.out.len(), 8, "each dropped silence is told: {:?}", run.out);
    }

    #[test]
    fn long_speech_is_sliced_and_its_last_piece_closes_the_turn() {
        let mut run = Run::new(config());
        for i in 0..136 {
            run.push(i * 256, &speech());
        }
        run.tick(136 * 256 + 3_001);
        let cuts = run.cuts();
        let total: u32 = cuts.iter().map(|(_, ms)| ms).sum();
        assert_eq!(total, 136 * 260);
        let (last, slices) = cuts.split_last().unwrap();
        assert_eq!(slices.len(), 3);
        assert!(slices.iter().all(|(cut, ms)| *cut == Cut::MaxDuration && *ms <= 10_260));
        assert_eq!(last.0, Cut::Pause);
    }

    #[test]
    fn a_turn_is_closed_even_if_its_end_is_silent() {
        let mut run = Run::new(config());
        for i in 0..39 {
            run.push(i * 256, &speech());
        }
        assert_eq!(run.cuts().len(), 1);
        run.tick(60_000);
        assert_eq!(run.cuts().last().map(|c| c.0), Some(Cut::Pause));
    }

    #[test]
    fn one_huge_chunk_leaves_something_to_close_with() {
        let mut run = Run::new(config());
        run.push(0, &opus(&[70; 900]));
        run.end(1);
        assert_eq!(run.cuts(), [(Cut::MaxDuration, 17_980), (Cut::Manual, 20)]);
    }

    #[test]
    fn too_many_bytes_are_a_slice_too() {
        let mut run = Run::new(config::Segmenter { max_bytes: 2_000, ..config() });
        run.push(0, &speech());
        run.push(1, &speech());
        run.push(2, &speech());
        assert_eq!(run.cuts(), [(Cut::MaxBytes, 760)]);
    }

    #[test]
    fn closing_gives_out_what_is_there() {
        let mut run = Run::new(config());
        run.push(0, &speech());
        run.segmenter.close(&mut run.out);
        assert_eq!(run.cuts(), [(Cut::Close, 260)]);
        assert_eq!(run.segmenter.held(), 0);
    }

    #[test]
    fn playing_suspends_the_pause() {
        let mut run = Run::new(config());
        run.push(0, &speech());
        run.segmenter.start_playing(at(1_000));
        run.tick(20_000);
        assert!(run.out.is_empty());
        run.segmenter.stop_playing(at(20_000));
        run.tick(22_900);
        assert!(run.out.is_empty());
        run.tick(23_001);
        assert_eq!(run.cuts(), [(Cut::Pause, 260)]);
    }

    #[test]
    fn playing_that_is_never_ended_ends_by_itself() {
        let mut run = Run::new(config());
        run.push(0, &speech());
        run.segmenter.start_playing(at(0));
        run.tick(60_000);
        run.tick(63_001);
        assert_eq!(run.cuts(), [(Cut::Pause, 260)]);
    }

    #[test]
    fn long_silence_before_speech_is_trimmed_not_sliced() {
        let mut run = Run::new(config());
        for i in 0..60 {
            run.push(i * 256, &silence());
        }
        run.push(60 * 256, &speech());
        run.end(60 * 256 + 1);
        let cuts = run.cuts();
        assert_eq!(cuts.len(), 1);
        assert!((1_200..=1_300).contains(&cuts[0].1), "{cuts:?}");
    }

    #[test]
    fn pcm_is_judged_by_loudness() {
        let tone = |amplitude: i16| -> Vec<u8> {
            let wave = |i: i16| if i % 16 < 8 { amplitude } else { -amplitude };
            (0..4_096_i16).flat_map(|i| wave(i).to_le_bytes()).collect()
        };
        let mut run = Run::new(config());
        run.push(0, &tone(20));
        run.end(1);
        assert_eq!(run.out, [Out::Silence { cut: Cut::Manual, bytes: 8_192 }]);
        run.push(500, &tone(3_000));
        run.end(501);
        assert_eq!(run.cuts(), [(Cut::Manual, 256)]);
        assert_eq!(run.segmenter.format, Some(Format::Pcm16));
    }

    #[test]
    fn a_bad_chunk_takes_nothing_with_it() {
        let mut run = Run::new(config());
        run.push(0, &speech());
        let refused = run.segmenter.push(&[9, 0, 1], None, at(10), &mut run.out);
        assert!(refused.is_err());
        run.end(20);
        assert_eq!(run.cuts(), [(Cut::Manual, 260)]);
    }

    proptest! {
        /// Bytes in = bytes cut + bytes dropped + bytes held, whatever comes.
        #[test]
        fn nothing_is_lost_or_made_up(
            steps in proptest::collection::vec((0_u64..4_000, 0_u8..6, 1_usize..40), 1..80)
        ) {
            let mut run = Run::new(config::Segmenter {
                max_duration_ms: 1_500, max_bytes: 3_000, hangover_manual_ms: 120, ..config()
            });
            let (mut now, mut taken) = (0, 0);
            for (step, kind, packets) in steps {
                now += step;
                match kind {
                    0 => run.end(now),
                    1 => run.tick(now),
                    2 => run.segmenter.start_playing(at(now)),
                    3 => run.segmenter.stop_playing(at(now)),
                    _ => {
                        let len = if kind == 4 { 8 } else { 60 };
                        let chunk = opus(&vec![len; packets]);
                        taken += chunk.len();
                        run.push(now, &chunk);
                    }
                }
            }
            let out: usize = run.out.iter().map(|o| match o {
                Out::Piece(p) => p.audio.len(),
                Out::Silence { bytes, .. } | Out::Trimmed(bytes) => *bytes,
            }).sum();
            prop_assert_eq!(taken, out + run.segmenter.held());
            let chains = run.out.iter().all(|o| match o {
                Out::Piece(p) => OpusPackets(&p.audio).all(|p| p.is_ok()),
                _ => true,
            });
            prop_assert!(chains, "a cut went through a packet");
        }
    }
}
