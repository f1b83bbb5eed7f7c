//! A session when the server goes down, and what is said of utterances that are not taken.

use super::{Effects, Session};
use crate::protocol::ErrorCode;
use crate::protocol::session::Event;
use crate::telemetry::Now;

/// The server begins to go down.
#[derive(Debug, Clone, Copy)]
pub struct GoAway {
    /// When the client may come back, milliseconds from now; others are told other times.
    pub reconnect_after_ms: u64,
    /// When the connection is closed at the latest, milliseconds from now.
    pub deadline_ms: u64,
}

/// Why an utterance was not taken.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// What the client is told.
    pub code: ErrorCode,
    /// The reason in words.
    pub why: String,
    /// When to try again, in milliseconds.
    pub retry_after_ms: u64,
    /// Whether the session is on disk, so that a last word of it can be.
    pub stored: bool,
}

impl Refusal {
    /// Word for `missing_result.reason`.
    pub(super) fn reason(&self) -> &'static str {
        match self.code {
            ErrorCode::ShuttingDown => "shutting_down",
            ErrorCode::RateLimited => "rate_limited",
            _ => "overloaded",
        }
    }
}

impl Session {
    /// Cuts all that was said, so that it becomes jobs now: there may be no later. Who listens is
    /// told what is coming: who asked to be by `go_away`, who is speaking by a request to pause.
    pub(super) fn drain(&mut self, notice: Option<GoAway>, now: Now, effects: &mut Effects) {
        self.draining = true;
        if let Some(GoAway { reconnect_after_ms, deadline_ms }) = notice {
            if self.profile.go_away {
                let reason = "shutdown";
                self.send(&Event::GoAway { reason, reconnect_after_ms, deadline_ms }, effects);
            }
            if self.segmenter.next_tick().is_some() {
                self.pause(reconnect_after_ms, now, effects);
            }
        }
        self.cut_all(now, effects);
    }

    /// Whether speech that comes now is better not taken than refused: the client sees that it is
    /// not acknowledged, and sends it to the next server.
    pub(super) fn comes_again_with_speech(&self) -> bool {
        self.draining && self.says_again()
    }

    /// Whether the client sends chunks again that were not acknowledged.
    pub(super) fn says_again(&self) -> bool {
        self.profile.audio_ack && self.profile.resume
    }
}
