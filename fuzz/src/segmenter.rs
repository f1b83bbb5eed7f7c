//! The segmenter beside a twin that keeps every packet by itself.
//!
//! Of any stream: what comes out is what went in, each byte once and in order, as a piece, as
//! silence, or as silence trimmed; what is left is held. Of Opus streams the twin also knows each
//! cut: when, why and how long.

use std::collections::VecDeque;

use utterd::config;
use utterd::protocol::audio::{Format, OpusPackets};
use utterd::protocol::job::Cut;
use utterd::protocol::limits::OPUS_PACKET_MS;
use utterd::session::{Out, Segmenter};
use utterd::telemetry::Now;

use super::script::Script;

pub fn run(input: &[u8]) {
    let mut script = Script::new(input);
    let config = config::Segmenter {
        pause_ms: script.of(&[0, 1_000, 3_000]),
        max_duration_ms: script.of(&[0, 200, 60_000]),
        max_bytes: script.of(&[100, 4_096, 1 << 20]),
        hangover_manual_ms: script.of(&[0, 200]),
        leading_silence_ms: script.of(&[0, 100, 60_000]),
        playing_timeout_ms: 2_000,
        opus_silence_packet_bytes: 4,
        ..config::Segmenter::default()
    };
    let format = script.of(&[Some(Format::Opus), Some(Format::Pcm16), None]);
    let rate = script.of(&[16_000, 8_000, 1, 192_000]);
    let mut world = World {
        real: Segmenter::new(config.clone(), format, rate),
        twin: (format == Some(Format::Opus)).then(|| Twin::new(config)),
        came: VecDeque::new(),
        now: Now { us: 1, unix_ms: 0 },
    };
    while !script.is_over() {
        world.step(&mut script);
    }
    let mut out = Vec::new();
    world.real.close(&mut out);
    world.account(out);
    assert_eq!(world.real.held(), 0, "a session that closes holds nothing");
    assert!(world.came.is_empty(), "bytes that came to nothing");
}

struct World {
    real: Segmenter,
    twin: Option<Twin>,
    /// Bytes that were taken in and have not come out.
    came: VecDeque<u8>,
    now: Now,
}

impl World {
    fn step(&mut self, script: &mut Script<'_>) {
        let mut out = Vec::new();
        let (now, twin) = (self.now, &mut self.twin);
        let mut wanted = Vec::new();
        match script.pick(8) {
            0..=2 => {
                let chunk = chunk(script);
                let taken = self.real.push(&chunk, None, now, &mut out);
                if taken.is_ok() {
                    self.came.extend(&chunk);
                }
                if let Some(twin) = twin {
                    assert_eq!(taken.is_ok(), OpusPackets(&chunk).all(|p| p.is_ok()));
                    if taken.is_ok() {
                        twin.push(&chunk, now.us, &mut wanted);
                    }
                }
            }
            3 => {
                self.real.end(now, &mut out);
                twin.iter_mut().for_each(|twin| twin.end(now.us, &mut wanted));
            }
            4 => match script.pick(4) {
                0 => {
                    self.real.start_playing(now);
                    twin.iter_mut().for_each(|twin| twin.playing_until = Some(now.us + 2_000_000));
                }
                1 => {
                    self.real.stop_playing(now);
                    twin.iter_mut().for_each(|twin| twin.stop_playing(now.us));
                }
                2 => {
                    self.real.suspend();
                    twin.iter_mut().for_each(|twin| twin.suspended = true);
                }
                _ => {
                    self.real.resume(now);
                    twin.iter_mut().for_each(|twin| twin.resume(now.us));
                }
            },
            5 => {
                // To the very moment at which something is due: then nothing may be left due.
                if let Some(at) = self.real.next_tick() {
                    self.now.us = self.now.us.max(at);
                }
                self.real.tick(self.now, &mut out);
                let us = self.now.us;
                twin.iter_mut().for_each(|twin| twin.tick(us, &mut wanted));
                let due = self.real.next_tick();
                assert!(due.is_none_or(|due| due > us), "{due:?} is due for ever");
            }
            _ => self.now.us += u64::from(script.any::<u16>()) * 100,
        }
        if self.twin.is_some() {
            let cuts: Vec<_> = out.iter().map(Cutting::of).collect();
            assert_eq!(cuts, wanted, "the cuts");
        }
        self.account(out);
    }

    /// What came out is the first of what went in.
    fn account(&mut self, out: Vec<Out>) {
        for out in out {
            let (bytes, audio) = match out {
                Out::Piece(piece) => {
                    assert!(!piece.audio.is_empty(), "a piece of nothing");
                    (piece.audio.len(), Some(piece.audio))
                }
                Out::Silence { bytes, .. } | Out::Trimmed(bytes) => (bytes, None),
            };
            assert!(bytes <= self.came.len(), "more came out than went in");
            let first: Vec<u8> = self.came.drain(..bytes).collect();
            assert!(audio.is_none_or(|audio| audio == first), "not what was said");
        }
        assert_eq!(self.real.held(), self.came.len(), "what is held");
    }
}

/// Packets of chosen lengths, or bytes as they are.
fn chunk(script: &mut Script<'_>) -> Vec<u8> {
    if script.seldom(4) {
        return script.bytes(700).to_vec();
    }
    let mut chunk = Vec::new();
    for _ in 0..script.pick(5) {
        let len = script.of(&[3_u16, 4, 5, 20, 60, 300]);
        chunk.extend_from_slice(&len.to_le_bytes());
        chunk.extend((0..len).map(|at| at as u8));
    }
    chunk
}

#[derive(Debug, PartialEq)]
enum Cutting {
    Piece(usize, u32, Cut),
    Silence(usize, Cut),
    Trimmed(usize),
}

impl Cutting {
    fn of(out: &Out) -> Self {
        match out {
            Out::Piece(piece) => Self::Piece(piece.audio.len(), piece.audio_ms, piece.cut),
            Out::Silence { cut, bytes } => Self::Silence(*bytes, *cut),
            Out::Trimmed(bytes) => Self::Trimmed(*bytes),
        }
    }
}

/// An Opus stream as a list of packets, each with its length on the wire and whether it speaks.
struct Twin {
    config: config::Segmenter,
    packets: Vec<(usize, bool)>,
    /// When the last audio came, as far as a pause is counted from it.
    last_us: u64,
    closing_at: Option<u64>,
    turn_open: bool,
    playing_until: Option<u64>,
    suspended: bool,
}

impl Twin {
    fn new(config: config::Segmenter) -> Self {
        let (packets, last_us, closing_at, playing_until) = (Vec::new(), 0, None, None);
        let (turn_open, suspended) = (false, false);
        Self { config, packets, last_us, closing_at, turn_open, playing_until, suspended }
    }

    fn bytes(&self) -> usize {
        self.packets.iter().map(|(len, _)| len).sum()
    }

    fn ms(&self) -> u64 {
        self.packets.len() as u64 * u64::from(OPUS_PACKET_MS)
    }

    fn push(&mut self, chunk: &[u8], now_us: u64, out: &mut Vec<Cutting>) {
        if chunk.is_empty() {
            return;
        }
        self.tick(now_us, out);
        self.last_us = now_us;
        for packet in OpusPackets(chunk).flatten() {
            let speaks = packet.len() > self.config.opus_silence_packet_bytes;
            self.packets.push((packet.len() + 2, speaks));
        }
        self.trim(out);
        let too_long = self.config.max_duration_ms > 0 && self.ms() >= self.config.max_duration_ms;
        if !too_long && self.bytes() <= self.config.max_bytes {
            return;
        }
        if self.closing_at.is_some() {
            self.cut(Cut::Manual, out);
        } else if self.packets.len() > 1 {
            // Whether the packet that stays behind speaks is counted with the slice.
            let speaks = self.packets.iter().any(|(_, speaks)| *speaks);
            let last = self.packets.pop();
            self.packets.iter_mut().for_each(|(_, of)| *of |= speaks);
            self.cut(if too_long { Cut::MaxDuration } else { Cut::MaxBytes }, out);
            self.packets.extend(last.map(|(len, _)| (len, false)));
        }
    }

    /// Of silence before speech only so much is kept.
    fn trim(&mut self, out: &mut Vec<Cutting>) {
        if self.turn_open || self.packets.iter().any(|(_, speaks)| *speaks) {
            return;
        }
        let mut dropped = 0;
        while self.ms() > self.config.leading_silence_ms && self.packets.len() > 1 {
            dropped += self.packets.remove(0).0;
        }
        if dropped > 0 {
            out.push(Cutting::Trimmed(dropped));
        }
    }

    fn end(&mut self, now_us: u64, out: &mut Vec<Cutting>) {
        self.tick(now_us, out);
        if !self.packets.is_empty() && self.closing_at.is_none() {
            self.closing_at = Some(now_us + self.config.hangover_manual_ms * 1_000);
            self.tick(now_us, out);
        }
    }

    fn tick(&mut self, now_us: u64, out: &mut Vec<Cutting>) {
        if self.playing_until.is_some_and(|until| until <= now_us) {
            self.stop_playing(now_us);
        }
        let counts = self.config.pause_ms > 0 && self.playing_until.is_none() && !self.suspended;
        let paused = counts && now_us > self.last_us + self.config.pause_ms * 1_000;
        match self.closing_at {
            Some(at) if at <= now_us => self.cut(Cut::Manual, out),
            None if paused => self.cut(Cut::Pause, out),
            _ => {}
        }
    }

    fn stop_playing(&mut self, now_us: u64) {
        if self.playing_until.take().is_some() {
            self.last_us = self.last_us.max(now_us);
        }
    }

    fn resume(&mut self, now_us: u64) {
        self.suspended = false;
        self.last_us = self.last_us.max(now_us);
    }

    fn cut(&mut self, cut: Cut, out: &mut Vec<Cutting>) {
        self.closing_at = None;
        if self.packets.is_empty() {
            return;
        }
        let (bytes, ms) = (self.bytes(), self.ms() as u32);
        let speaks = self.packets.drain(..).any(|(_, speaks)| speaks);
        if speaks || self.turn_open {
            self.turn_open = !cut.closes_turn();
            out.push(Cutting::Piece(bytes, ms, cut));
        } else {
            out.push(Cutting::Silence(bytes, cut));
        }
    }
}
