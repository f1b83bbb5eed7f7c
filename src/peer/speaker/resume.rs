//! Coming back to a session after its connection was lost.

use std::time::Duration;

use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use super::outgoing::Known;
use super::{Call, GOODBYE_TIME, HANDSHAKE_TIME, SpeakError, SpeakEvent, read};
use crate::peer::wire::{Opened, Reopened, ToSpeaker};

/// Wait before the first new connection; it doubles with each that fails.
const FIRST_WAIT: Duration = Duration::from_millis(200);
/// Longest wait between two connections.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// What a session can be resumed with, and how far its results were taken.
#[derive(Debug)]
pub(super) struct Claim {
    epoch: u64,
    secret: String,
    /// How long the scheduler keeps the session without a connection.
    window: Duration,
    /// Number of the last result taken.
    taken: u64,
    /// Number of the last result acknowledged.
    acked: u64,
    /// Wait the scheduler asked for before it went away.
    pub(super) hold: Option<Duration>,
}

/// The number of a result.
#[derive(Debug, Clone, Copy)]
pub(super) struct Numbered {
    epoch: u64,
    seq: u64,
}

impl Numbered {
    pub(super) fn of(message: &Value) -> Option<Self> {
        Some(Self { epoch: message["epoch"].as_u64()?, seq: message["seq"].as_u64()? })
    }
}

impl Claim {
    /// None if the scheduler does not keep the session.
    pub(super) fn of(opened: &Opened) -> Option<Self> {
        if !opened.extensions.iter().any(|word| word == "resume") {
            return None;
        }
        Some(Self {
            epoch: opened.epoch?,
            secret: opened.resume_secret.clone()?,
            window: Duration::from_millis(opened.resume_window_ms?),
            taken: 0,
            acked: 0,
            hold: None,
        })
    }

    /// Takes the next result; false for one that was taken before.
    pub(super) fn is_news(&mut self, result: Numbered) -> bool {
        if result.epoch != self.epoch || result.seq <= self.taken {
            return false;
        }
        if result.seq > self.taken + 1 {
            tracing::warn!(taken = self.taken, seq = result.seq, "results are missing");
        }
        self.taken = result.seq;
        true
    }

    /// The number to acknowledge, if there is a new one.
    pub(super) fn take_unacknowledged(&mut self) -> Option<u64> {
        let new = self.taken > self.acked;
        self.acked = self.taken;
        new.then_some(self.taken)
    }
}

impl<F: FnMut(SpeakEvent)> Call<F> {
    /// Connects again until the session goes on, or is not there any more.
    pub(super) async fn come_back(&mut self, why: String) -> Result<(), SpeakError> {
        self.tell(SpeakEvent::Lost { why });
        // Over TLS it says goodbye first, which a peer that does not read holds up.
        let goodbye = self.socket.get_mut().shutdown();
        if !matches!(tokio::time::timeout(GOODBYE_TIME, goodbye).await, Ok(Ok(()))) {
            tracing::debug!("the old connection was gone");
        }
        let Some(claim) = &mut self.claim else { return Err(SpeakError::Closed { open: 0 }) };
        let window = claim.window;
        let gone = SpeakError::Gone { window };
        let until = Instant::now() + window;
        let mut wait = FIRST_WAIT;
        let mut next = claim.hold.take().unwrap_or(jittered(wait));
        loop {
            tokio::time::sleep_until(until.min(Instant::now() + next)).await;
            match tokio::time::timeout_at(until, self.resume()).await {
                Ok(Err(error)) if error.is_loss() && Instant::now() < until => {
                    tracing::debug!(%error, "not connected yet");
                }
                Err(_) => return Err(gone),
                Ok(Err(error)) if error.is_loss() => return Err(gone),
                Ok(result) => return result,
            }
            wait = (wait * 2).min(LONGEST_WAIT);
            next = jittered(wait);
        }
    }

    /// Tries once.
    async fn resume(&mut self) -> Result<(), SpeakError> {
        let opening = self.dial.open(WebSocketConfig::default());
        let opened = tokio::time::timeout(HANDSHAKE_TIME, opening).await;
        let opened = opened.map_err(|_| SpeakError::NoAnswer("connection"))?;
        self.socket = opened.map_err(|e| self.fault(e))?;
        let Some(claim) = &mut self.claim else { return Err(SpeakError::Closed { open: 0 }) };
        let resume = json!({
            "type": "session_resume",
            "session_id": self.spoken.session_id,
            "epoch": claim.epoch,
            "resume_secret": claim.secret,
            "last_seq": claim.taken,
        });
        claim.acked = claim.taken;
        self.send(&resume).await?;
        let answer = tokio::time::timeout(HANDSHAKE_TIME, self.await_reopened()).await;
        let answer = answer.map_err(|_| SpeakError::NoAnswer("session_resume_ack"))??;
        self.take_up(*answer).await
    }

    async fn await_reopened(&mut self) -> Result<Box<Reopened>, SpeakError> {
        while let Some(message) = self.socket.next().await {
            let message = message.map_err(|e| self.fault(e))?;
            if message.is_close() {
                break;
            }
            match read(&message) {
                Some((ToSpeaker::SessionResumeAck(answer), _)) => return Ok(answer),
                // It will take sessions again later.
                Some((ToSpeaker::Error { .. }, raw)) if raw["retryable"] == true => break,
                Some((ToSpeaker::Error { code, message }, _)) => {
                    return Err(SpeakError::Refused { code, message });
                }
                _ => {}
            }
        }
        Err(SpeakError::Closed { open: self.known.open.len() })
    }

    /// Goes on where the scheduler says. A session of which nothing was kept yet begins anew.
    async fn take_up(&mut self, answer: Reopened) -> Result<(), SpeakError> {
        let Some(from_result) = answer.from_seq else {
            let kept = self.claim.as_ref().is_some_and(|claim| claim.taken > 0);
            if kept || self.outgoing.is_kept() {
                return Err(SpeakError::Forgotten { reason: answer.reason });
            }
            self.known = Known::default();
            self.outgoing.go_back(None, &self.options);
            return self.open().await;
        };
        if let Some(claim) = &mut self.claim {
            claim.taken = claim.taken.max(from_result.saturating_sub(1));
            claim.acked = claim.taken;
        }
        let from_chunk = self.outgoing.go_back(answer.chunks_through, &self.options);
        let sent = self.outgoing.done.is_some();
        for unfinished in answer.utterances {
            self.known.open(unfinished.utterance_index, sent);
        }
        self.tell(SpeakEvent::Resumed { recovered: answer.recovered, from_result, from_chunk });
        Ok(())
    }
}

/// Half of it, and a part of the other half, so that many speakers do not come at once.
fn jittered(wait: Duration) -> Duration {
    wait / 2 + (wait / 2).mul_f64(fastrand::f64())
}
