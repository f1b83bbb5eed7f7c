//! `GET /v1/stream`: recordings one after the other on a WebSocket, in a session of their own.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::answer::Refused;
use super::inside::Inside;
use super::{Guest, recording};
use crate::protocol::ErrorCode;
use crate::protocol::gateway::{
    Failed, Start, StreamEvent, StreamFault, StreamRequest, Terms, Told, decode_stream,
    session_init, utterance,
};
use crate::server::shared::{going_down, parting};
use crate::transport::{Connection, Event, Frame, Limits, Outbox, Stream};

/// How long the peer is given to take what is queued when the server closes the connection.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);

/// One client: its connection, and its side of the session inside.
pub(super) struct StreamTask {
    guest: Guest,
    /// Of the connection to the session.
    limits: Limits,
    connection: Connection<Stream, ()>,
    outbox: Arc<Outbox<()>>,
    inside: Option<Session>,
}

/// A session that was asked for.
struct Session {
    inside: Inside,
    terms: Terms,
    partials: bool,
    /// Its id, once it is open.
    id: Option<String>,
    /// Number of the next recording.
    next: u64,
    /// Why recordings were refused, whose turn to be told of has not come.
    refused: VecDeque<Failed>,
    /// Why the one failed that is told of next.
    failed: Option<Failed>,
}

impl StreamTask {
    pub(super) fn new(
        guest: Guest,
        limits: Limits,
        connection: Connection<Stream, ()>,
        outbox: Arc<Outbox<()>>,
    ) -> Self {
        Self { guest, limits, connection, outbox, inside: None }
    }

    /// Lives as long as the connection.
    pub(super) async fn run(mut self) {
        let shared = Arc::clone(&self.guest.shared);
        let mut closing = shared.closing.subscribe();
        loop {
            // One message at a time: what cannot be passed on is not read.
            let full = self.inside.as_ref().is_some_and(|s| s.id.is_none() || s.inside.is_busy());
            self.connection.pause_reading(full);
            tokio::select! {
                arrival = self.connection.next() => match arrival {
                    Event::Text(text) => self.heard(&text).await,
                    Event::Binary(_) => self.fault(StreamFault::Json),
                    Event::Written(()) | Event::Pong(_) => {}
                    Event::Closed(_) => return,
                },
                told = told(&mut self.inside) => match told {
                    Ok(Some(told)) => self.told(told),
                    Ok(None) => {}
                    Err(refused) => self.over(&refused),
                },
                () = going_down(&mut closing) => {
                    self.outbox.close();
                    return self.connection.close(1001, &parting(), CLOSE_WITHIN).await;
                }
            }
        }
    }

    fn send(&self, event: &StreamEvent) {
        // Events are structs of texts and numbers.
        let text = serde_json::to_vec(event).unwrap_or_default();
        if self.outbox.push(Frame { text: text.into(), tag: () }).is_err() {
            self.outbox.request_close(1008, "results were not read");
        }
    }

    fn fault(&self, fault: StreamFault) {
        let code = ErrorCode::InvalidMessage;
        self.error(code.as_str(), fault.to_string(), None, None);
    }

    fn error(&self, code: &str, message: String, index: Option<u64>, retry_after_ms: Option<u64>) {
        self.send(&StreamEvent::Error { message, code: code.to_owned(), index, retry_after_ms });
    }

    async fn heard(&mut self, text: &str) {
        match decode_stream(text) {
            Ok(StreamRequest::Start(start)) => self.start(*start).await,
            Ok(StreamRequest::Audio(chunk)) => self.audio(&chunk).await,
            Err(fault) => self.fault(fault),
        }
    }

    /// Opens a session; one that was open ends.
    async fn start(&mut self, start: Start) {
        let Start { terms, partials } = start;
        let partials = partials.unwrap_or(false);
        let mut inside = Inside::open(&self.guest, self.limits.clone()).await;
        inside.begin_to_say(session_init(&terms, partials));
        let (refused, failed) = (VecDeque::new(), None);
        self.inside = Some(Session { inside, terms, partials, id: None, next: 0, refused, failed });
    }

    async fn audio(&mut self, chunk: &str) {
        let Some(session) = self.inside.as_mut() else {
            let code = ErrorCode::InvalidSession;
            return self.error(code.as_str(), "Session not started".to_owned(), None, None);
        };
        let Some(id) = &session.id else { return };
        // Seen to be base64 before.
        let audio = base64_simd::STANDARD.decode_to_vec(chunk).unwrap_or_default();
        let bytes_max = self.guest.config().recording_bytes_max;
        let terms = session.terms.clone();
        let read = tokio::task::spawn_blocking(move || {
            recording::read(Bytes::from(audio), &terms, bytes_max)
        });
        let recording = match read.await.unwrap_or_else(|_| Err(Refused::ours())) {
            Ok(recording) => recording,
            Err(refused) => {
                let message = format!("Translation failed: {}", refused.message());
                return self.error(refused.code(), message, None, None);
            }
        };
        let form = (recording.format, recording.sample_rate);
        let said = utterance(id, session.next, &session.terms, form, &recording.audio);
        session.next += 1;
        session.inside.begin_to_say(said);
    }

    /// The session is over, or never was.
    fn over(&mut self, refused: &Refused) {
        let was_open = self.inside.take().is_some_and(|session| session.id.is_some());
        if refused.is_unauthorized() {
            return self.outbox.request_close(4401, "the credential is no longer valid");
        }
        let what = if was_open { "Translation failed" } else { "Failed to create session" };
        let message = format!("{what}: {}", refused.message());
        self.error(refused.code(), message, None, refused.retry_after_ms());
    }

    fn told(&mut self, told: Told) {
        let Some(session) = self.inside.as_mut() else { return };
        match told {
            Told::SessionInitAck { session_id } => {
                session.id = Some(session_id.clone());
                self.send(&StreamEvent::Started { session_id });
            }
            Told::AsrPartial { utterance_index: index, text } if session.partials => {
                self.send(&StreamEvent::Partial { index, text });
            }
            Told::TranslationResult(done) => self.send(&StreamEvent::Final {
                index: done.utterance_index,
                text: done.text_translated,
                transcript: done.text_asr,
                audio: done.tts_audio,
                audio_format: done.tts_format,
            }),
            Told::Error(failed) if session.id.is_none() => self.over(&Refused::failed(*failed)),
            Told::Error(failed) => match failed.phase.as_deref() {
                Some("submit") => session.refused.push_back(*failed),
                Some(_) => session.failed = Some(*failed),
                // What was said was not taken at all.
                None => self.failed(*failed, None),
            },
            Told::MissingResult { utterance_index, reason } => {
                self.missing(utterance_index, &reason);
            }
            _ => {}
        }
    }

    /// A recording has no result.
    fn missing(&mut self, index: u64, reason: &str) {
        let Some(session) = self.inside.as_mut() else { return };
        let why = match reason {
            "silence_detected" | "merged" => {
                let empty = String::new;
                let (text, transcript, audio, audio_format) = (empty(), empty(), empty(), empty());
                let event = StreamEvent::Final { index, text, transcript, audio, audio_format };
                return self.send(&event);
            }
            // It may still come.
            "gap_timeout" => return,
            "overloaded" | "rate_limited" | "shutting_down" => session.refused.pop_front(),
            _ => session.failed.take(),
        };
        self.failed(why.unwrap_or_else(|| Failed::without_code(reason)), Some(index));
    }

    fn failed(&self, failed: Failed, index: Option<u64>) {
        let message = format!("Translation failed: {}", failed.message);
        self.error(&failed.code, message, index, failed.retry_after_ms);
    }
}

/// What the session says next; never, while there is none.
async fn told(session: &mut Option<Session>) -> Result<Option<Told>, Refused> {
    match session {
        Some(session) => session.inside.next().await,
        None => std::future::pending().await,
    }
}
