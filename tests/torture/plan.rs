//! What a client is going to say in one session, and how far it has come.

use std::collections::VecDeque;

use fastrand::Rng;
use serde_json::{Value, json};

use super::audio::speech;
use super::ledger::{Ledger, Verdict, broken};
use super::world::Broken;

/// Utterances in flight at most.
const WINDOW: u64 = 8;
/// Chunks sent and not acknowledged at most.
const CHUNKS_WINDOW: u64 = 48;
/// Packets between the begins of two recordings.
const STRIDE: u32 = 8;

/// How a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Each utterance is one message.
    Recordings,
    /// A stream of chunks that the server cuts.
    Stream,
}

pub enum Plan {
    Recordings { total: u64, next: u64, again: VecDeque<u64> },
    Stream { chunks: Vec<Chunk>, next: u64, acked: u64 },
}

/// Part of a stream; its number is its place, from 1.
#[derive(Debug, Clone, Copy)]
pub struct Chunk {
    first: u32,
    end: u32,
    is_final: bool,
}

impl Plan {
    pub fn new(kind: Kind, rng: &mut Rng) -> Self {
        match kind {
            Kind::Recordings => {
                Self::Recordings { total: rng.u64(1..=14), next: 0, again: VecDeque::new() }
            }
            Kind::Stream => Self::Stream { chunks: chunks(rng), next: 0, acked: 0 },
        }
    }

    /// Back to the beginning: nobody knows of the session any more.
    pub fn restart(&mut self) {
        match self {
            Self::Recordings { next, again, .. } => {
                *next = 0;
                again.clear();
            }
            Self::Stream { next, .. } => *next = 0,
        }
    }

    /// Chunks the server has for good.
    pub fn acked(&self) -> u64 {
        match self {
            Self::Recordings { .. } => 0,
            Self::Stream { acked, .. } => *acked,
        }
    }

    pub fn state(&self) -> String {
        match self {
            Self::Recordings { total, next, again } => {
                format!("{next} of {total} said, {} again", again.len())
            }
            Self::Stream { chunks, next, acked } => {
                format!("{next} of {} chunks said, {acked} acked", chunks.len())
            }
        }
    }

    /// The next thing to say, if it is time for one.
    pub fn next(&mut self, ledger: &Ledger) -> Option<Value> {
        match self {
            Self::Recordings { total, next, again } => {
                while let Some(index) = again.pop_front() {
                    if !ledger.has_ended(index) {
                        return Some(utterance(ledger, index));
                    }
                }
                let ended = (0..*next).filter(|index| ledger.has_ended(*index)).count() as u64;
                if *next == *total || *next - ended >= WINDOW {
                    return None;
                }
                *next += 1;
                Some(utterance(ledger, *next - 1))
            }
            Self::Stream { chunks, next, acked } => {
                if *next - *acked >= CHUNKS_WINDOW {
                    return None;
                }
                let chunk = *chunks.get(*next as usize)?;
                *next += 1;
                Some(chunk.message(ledger, *next))
            }
        }
    }

    /// The session goes on on another connection; `through` is what it has of the chunks. Returns
    /// how much is to be said again.
    pub fn resumed(&mut self, ledger: &Ledger, through: u64, all: bool) -> Verdict<u64> {
        match self {
            Self::Recordings { next, again, .. } => {
                // Saying again what was accepted already is allowed, and changes nothing.
                let open =
                    |index: &u64| !ledger.has_ended(*index) && (all || !ledger.is_accepted(*index));
                *again = (0..*next).filter(open).collect();
                Ok(again.len() as u64)
            }
            // What a living server holds in memory it need not be told again now, but it may be
            // asked for after a kill: only `audio_ack` makes a chunk safe.
            Self::Stream { next, acked, .. } => {
                let sent = std::mem::replace(next, through);
                match (*acked..=sent).contains(&through) {
                    true => Ok(sent - through),
                    false => broken(
                        Broken::Lost,
                        format!("asks for chunks after {through}, {acked} safe, {sent} sent"),
                    ),
                }
            }
        }
    }

    /// Chunks up to that one are safe.
    pub fn audio_ack(&mut self, through: u64) -> Verdict<()> {
        match self {
            Self::Stream { next, acked, .. } if (*acked..=*next).contains(&through) => {
                *acked = through;
                Ok(())
            }
            Self::Stream { next, acked, .. } => broken(
                Broken::Lost,
                format!("chunks acked through {through}, {acked} were before, {next} were sent"),
            ),
            Self::Recordings { .. } => broken(Broken::Rule, "chunks acked, none were sent"),
        }
    }

    /// Whether everything was said and every promise kept.
    pub fn is_done(&self, ledger: &Ledger) -> bool {
        match self {
            Self::Recordings { total, .. } => (0..*total).all(|index| ledger.has_ended(index)),
            // Whether the last chunks were said to be safe depends on where the server was killed;
            // that all of them were heard does not.
            Self::Stream { chunks, next, .. } => {
                *next == chunks.len() as u64
                    && ledger.owed().is_empty()
                    && self.audit(ledger).is_ok()
            }
        }
    }

    /// Whether what was heard is what was said: all of it, once, in order.
    pub fn audit(&self, ledger: &Ledger) -> Verdict<()> {
        if let unended @ [_, ..] = &ledger.unended()[..] {
            return broken(Broken::Lost, format!("no last words for {unended:?}"));
        }
        let (at, exact) = self.check(ledger)?;
        let Self::Stream { chunks, .. } = self else { return Ok(()) };
        let end = chunks.last().map_or(0, |chunk| chunk.end);
        match at == end || (!exact && at < end) {
            true => Ok(()),
            false => broken(Broken::Lost, format!("packets {at}..{end} were not heard")),
        }
    }

    /// Whether what was heard so far is what was said, up to which packet, and whether that is
    /// known exactly: what failed may be any number of them.
    pub fn check(&self, ledger: &Ledger) -> Verdict<(u32, bool)> {
        let (mut at, mut exact) = (0, true);
        for (index, heard) in (0..).zip(ledger.heard()) {
            let Some(heard) = heard else {
                exact = false;
                continue;
            };
            let fits = match self {
                Self::Recordings { .. } => (heard.first, heard.end) == recording(index),
                Self::Stream { .. } => heard.first == at || (!exact && heard.first > at),
            };
            if !fits {
                let how = format!("#{index} is {heard:?}, awaited was {at}");
                return broken(Broken::Audio, how);
            }
            (at, exact) = (heard.end, true);
        }
        Ok((at, exact))
    }
}

impl Chunk {
    fn message(&self, ledger: &Ledger, seq: u64) -> Value {
        let audio = speech(ledger.voice, self.first, self.end);
        json!({"type": "audio_chunk", "session_id": ledger.session, "seq": seq,
            "is_final": self.is_final, "payload": base64(&audio)})
    }
}

/// A few utterances, each of a few chunks.
fn chunks(rng: &mut Rng) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    let mut at = 0;
    for _ in 0..rng.usize(1..=6) {
        let marker = rng.bool();
        let parts = rng.usize(1..=8);
        for part in 1..=parts {
            let end = at + rng.u32(1..=4);
            chunks.push(Chunk { first: at, end, is_final: part == parts && !marker });
            at = end;
        }
        if marker {
            chunks.push(Chunk { first: at, end: at, is_final: true });
        }
    }
    chunks
}

/// The packets of a recording.
fn recording(index: u64) -> (u32, u32) {
    let first = index as u32 * STRIDE;
    (first, first + 1 + index as u32 % 3)
}

fn utterance(ledger: &Ledger, index: u64) -> Value {
    let (first, end) = recording(index);
    // Half of them rely on the number alone.
    let key = ledger.voice.is_multiple_of(2).then(|| format!("{}/{index}", ledger.voice));
    json!({"type": "utterance", "session_id": ledger.session, "utterance_index": index,
        "manual_cut": true, "src_lang": "zh", "tgt_lang": "en",
        "audio": base64(&speech(ledger.voice, first, end)), "audio_format": "pcm16",
        "sample_rate": 16_000, "idempotency_key": key})
}

fn base64(bytes: &[u8]) -> String {
    base64_simd::STANDARD.encode_to_string(bytes)
}
