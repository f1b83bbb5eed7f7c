//! The recording on its way out, and the utterances heard of.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Mode, SpeakOptions};
use crate::peer::wav::{self, RATE_HZ};
use crate::peer::wire;

/// The recording on its way out. Any chunk of it can be made again from its place.
pub(super) struct Outgoing {
    pcm: Vec<i16>,
    /// Chunks sent.
    at: usize,
    /// Chunks that were sent at some time; those before it are sent again without waiting.
    reached: usize,
    /// Chunks that the scheduler has for good.
    safe: usize,
    /// Number of the first chunk.
    first: u64,
    /// Samples in a chunk.
    step: usize,
    /// Time between two chunks.
    pace: Duration,
    /// When the next message may go.
    pub(super) due: Instant,
    /// When the last one went.
    pub(super) done: Option<Instant>,
    /// The whole recording was accepted, if it was sent as one message.
    pub(super) accepted: bool,
    /// Names the recording, so that sending it twice makes one job.
    key: String,
}

impl Outgoing {
    pub(super) fn new(pcm: Vec<i16>, options: &SpeakOptions) -> Self {
        let realtime = matches!(options.mode, Mode::Chunks { realtime: true });
        let chunk_ms = options.chunk_ms.max(1);
        Self {
            pcm,
            at: 0,
            reached: 0,
            safe: 0,
            first: 0,
            step: (RATE_HZ as usize * chunk_ms as usize / 1000).max(1),
            pace: Duration::from_millis(if realtime { chunk_ms.into() } else { 0 }),
            due: Instant::now(),
            done: None,
            accepted: false,
            key: uuid::Uuid::new_v4().to_string(),
        }
    }

    /// Numbers the chunks from here.
    pub(super) fn count_from(&mut self, first: u64) {
        self.first = first;
    }

    /// The next message; the one after the last audio is the final marker.
    pub(super) fn next(&mut self, session_id: &str, options: &SpeakOptions, now: Instant) -> Value {
        if options.mode == Mode::Utterance {
            self.done = Some(now);
            return json!({
                "type": "utterance",
                "session_id": session_id,
                "utterance_index": 0,
                "manual_cut": true,
                "src_lang": options.src,
                "tgt_lang": options.tgt,
                "audio": wire::base64(&wav::pcm16_bytes(&self.pcm)),
                "audio_format": "pcm16",
                "sample_rate": RATE_HZ,
                "idempotency_key": self.key,
            });
        }
        let from = self.pcm.len().min(self.at * self.step);
        let end = self.pcm.len().min(from + self.step);
        let is_final = from == self.pcm.len();
        let seq = self.first + self.at as u64;
        self.at += 1;
        if is_final {
            self.done = Some(now);
        }
        if self.at > self.reached {
            self.reached = self.at;
            // Counted from when it was due, so that small delays do not add up.
            self.due = self.due.max(now.checked_sub(self.pace).unwrap_or(now)) + self.pace;
        }
        json!({
            "type": "audio_chunk",
            "session_id": session_id,
            "seq": seq,
            "is_final": is_final,
            "payload": wire::base64(&wav::pcm16_bytes(&self.pcm[from..end])),
        })
    }

    /// Chunks up to that number, counted from 1, are safe and will not be asked for again.
    pub(super) fn acknowledged(&mut self, through: u64) {
        let safe = usize::try_from(through).unwrap_or(usize::MAX);
        self.safe = self.safe.max(safe.min(self.reached));
    }

    /// Whether the scheduler has promised anything of it.
    pub(super) fn is_kept(&self) -> bool {
        self.accepted || self.safe > 0
    }

    /// Goes to the first chunk the scheduler has not got now, and tells its number. It may ask for
    /// earlier ones another time, but not for those acknowledged. A recording sent as one message
    /// goes again unless it was accepted.
    pub(super) fn go_back(&mut self, through: Option<u64>, options: &SpeakOptions) -> Option<u64> {
        if options.mode == Mode::Utterance {
            self.done = self.done.filter(|_| self.accepted).map(|_| Instant::now());
            return None;
        }
        if self.first == 0 {
            // Chunks were not counted by the scheduler, so none can be asked for again.
            return None;
        }
        let held = usize::try_from(through.unwrap_or(0)).unwrap_or(usize::MAX);
        self.at = held.clamp(self.safe, self.reached);
        // The marker comes after all audio; what is safe with it need not be waited for anew.
        let marker = self.pcm.len().div_ceil(self.step);
        self.done = self.done.filter(|_| self.at > marker).map(|_| Instant::now());
        Some(self.first + self.at as u64)
    }
}

/// Utterances heard of.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) open: BTreeSet<u64>,
    pub(super) closed: BTreeSet<u64>,
    /// One was heard of for the first time after the recording was sent.
    pub(super) opened_late: bool,
}

impl Known {
    pub(super) fn open(&mut self, index: u64, sent: bool) {
        if !self.closed.contains(&index) && self.open.insert(index) {
            self.opened_late |= sent;
        }
    }

    pub(super) fn close(&mut self, index: u64, sent: bool) {
        self.open(index, sent);
        self.open.remove(&index);
        self.closed.insert(index);
    }
}
