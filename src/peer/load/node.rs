//! The nodes of a load: each answers at once, or after a fixed time, with the proof of what it was
//! given.
//!
//! It refuses to know speech. Under a bare relay it is given what a speaker sent, as it was sent.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use tokio::time::{Instant, sleep_until};
use tokio_tungstenite::tungstenite::{self, Message};

use super::ledger::Ledger;
use super::speech::proof_of;
use super::{LoadError, dial, head};
use crate::peer::dial::Trust;
use crate::peer::wire::{Dial, Socket};

/// Read buffer of one node's connection, in bytes.
const READ_BUFFER_BYTES: usize = 64 * 1_024;
/// Time between two heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// How the nodes work.
#[derive(Debug, Clone)]
pub(super) struct Work {
    /// Time for each job; several run side by side.
    pub(super) service: Duration,
    /// Jobs at once.
    pub(super) slots: u32,
    /// What is spoken, and what is heard.
    pub(super) languages: (&'static str, &'static str),
    /// Base64 of the speech that each answer carries.
    pub(super) tts_audio: Arc<str>,
}

/// A registered node.
pub(super) struct Node {
    socket: Socket,
    name: String,
    work: Work,
    /// Answers whose time has not come, the next one first.
    later: VecDeque<Later>,
}

struct Later {
    due: Instant,
    at: (usize, u64),
    job_id: String,
    answer: String,
}

impl Node {
    /// Registers, and waits until that is acknowledged.
    pub(super) async fn register(
        url: &str,
        name: String,
        work: Work,
        trust: &Trust,
    ) -> Result<Self, LoadError> {
        let to = Dial::to(&format!("{url}/ws/node"), trust, None)?;
        let mut socket = dial(to, READ_BUFFER_BYTES).await?;
        let hello = report("node_register", &name, &work);
        socket.send(Message::text(hello)).await?;
        while let Some(message) = socket.next().await {
            let message = message?;
            let Message::Text(text) = &message else { continue };
            match head::kind(text) {
                Some("node_register_ack") => {
                    return Ok(Self { socket, name, work, later: VecDeque::new() });
                }
                Some("error") => return Err(LoadError::Refused(text.to_string())),
                _ => {}
            }
        }
        Err(LoadError::Refused("the connection was closed".to_owned()))
    }

    /// Works until the connection is lost.
    pub(super) async fn run(mut self, ledger: Arc<Ledger>) {
        if let Err(error) = self.serve(&ledger).await {
            tracing::debug!(%error, node = self.name, "a node of the load ended");
        }
        ledger.counts.disconnected.fetch_add(1, SeqCst);
    }

    async fn serve(&mut self, ledger: &Ledger) -> Result<(), tungstenite::Error> {
        let mut beat = tokio::time::interval(HEARTBEAT);
        beat.reset();
        loop {
            let due = self.later.front().map(|later| later.due);
            tokio::select! {
                message = self.socket.next() => match message {
                    Some(message) => {
                        let message = message?;
                        if let Message::Text(frame) = &message {
                            self.heard(frame, ledger).await?;
                        }
                    }
                    None => return Ok(()),
                },
                () = wait(due) => {
                    if let Some(Later { at, answer, .. }) = self.later.pop_front() {
                        self.answer(at, answer, ledger).await?;
                    }
                }
                _ = beat.tick() => {
                    let beat = report("node_heartbeat", &self.name, &self.work);
                    self.socket.send(Message::text(beat)).await?;
                }
            }
        }
    }

    async fn heard(&mut self, frame: &str, ledger: &Ledger) -> Result<(), tungstenite::Error> {
        let now = std::time::Instant::now();
        match head::kind(frame) {
            Some("job_assign" | "utterance") => {}
            Some("job_cancel") => {
                let job_id = head::text(frame, "\"job_id\":\"").unwrap_or_default();
                self.later.retain(|later| later.job_id != job_id);
                ledger.counts.cancelled.fetch_add(1, SeqCst);
                return Ok(());
            }
            _ => return Ok(()),
        }
        let Some((session, index)) =
            head::text(frame, "\"session_id\":\"").zip(head::number(frame, "\"utterance_index\":"))
        else {
            ledger.counts.unreadable.fetch_add(1, SeqCst);
            return Ok(());
        };
        let Some(number) = ledger.dispatched(session, index, now) else { return Ok(()) };
        let at = (number, index);
        let job_id = head::text(frame, "\"job_id\":\"").unwrap_or_default();
        let answer = self.result(job_id, session, index, frame);
        if self.work.service.is_zero() {
            return self.answer(at, answer, ledger).await;
        }
        let due = Instant::from_std(now) + self.work.service;
        self.later.push_back(Later { due, at, job_id: job_id.to_owned(), answer });
        Ok(())
    }

    fn result(&self, job_id: &str, session: &str, index: u64, frame: &str) -> String {
        let proof = proof_of(head::text(frame, "\"audio\":\"").unwrap_or_default());
        let attempt = head::number(frame, "\"attempt_id\":").unwrap_or_default();
        format!(
            "{{\"type\":\"job_result\",\"job_id\":\"{job_id}\",\"attempt_id\":{attempt},\
             \"node_id\":\"{}\",\"session_id\":\"{session}\",\"utterance_index\":{index},\
             \"success\":true,\"text_asr\":\"{proof}\",\"text_translated\":\"as heard\",\
             \"tts_format\":\"pcm16\",\"tts_audio\":\"{}\"}}",
            self.name, self.work.tts_audio
        )
    }

    async fn answer(
        &mut self,
        at: (usize, u64),
        answer: String,
        ledger: &Ledger,
    ) -> Result<(), tungstenite::Error> {
        ledger.replied(at, std::time::Instant::now());
        self.socket.send(Message::text(answer)).await
    }
}

async fn wait(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => pending().await,
    }
}

/// What a node is, for its registration and for its heartbeats.
fn report(kind: &str, name: &str, work: &Work) -> String {
    let languages = json!(work.languages);
    let ready = |service| json!({"type": service, "ready": true});
    let rest = json!({"node_id": name, "version": "load",
        "capability_schema_version": "2.0", "platform": "linux", "hardware": {},
        "installed_models": [], "installed_services": [],
        "capability_by_type": [ready("asr"), ready("nmt"), ready("tts")],
        "features_supported": {}, "accept_public_jobs": true,
        "language_capabilities": {"asr_languages": languages, "tts_languages": languages,
            "semantic_languages": languages},
        "resource_usage": {"cpu_percent": 0.0, "mem_percent": 0.0, "running_jobs": 0},
        "max_concurrent_jobs": work.slots})
    .to_string();
    // The relay looks for the first thing that is called a type.
    format!("{{\"type\":\"{kind}\",{}", &rest[1..])
}
