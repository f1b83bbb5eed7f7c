//! The client's end of a session within the process.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tracing::debug;

use super::answer::Refused;
use super::{Done, Failed, Guest, Told};
use crate::protocol::ErrorCode;
use crate::server::credentials::Admitted;
use crate::server::session::SessionTask;
use crate::transport::{Client, Connection, Heard, Limits, Outbox, pipe};

/// How long a session that was answered is listened to.
const PART_WITHIN: Duration = Duration::from_secs(1);
/// The server's code for a connection whose credential is no longer good.
const UNAUTHORIZED: u16 = 4401;

/// A client of a session.
pub(super) struct Inside {
    client: Client,
}

impl Inside {
    /// Connects; the session's task ends with the session, or when this is dropped.
    pub(super) async fn open(guest: &Guest, limits: Limits) -> Self {
        let (shared, peer) = (Arc::clone(&guest.shared), guest.peer);
        let (frames_max, answer_bytes_max) = shared.settings.with(|version| {
            let t = &version.config.transport;
            (t.session_outbox_frames_max, t.session_outbox_bytes_max)
        });
        let outbox = Outbox::within(&shared.outgoing, frames_max, answer_bytes_max);
        let (socket, client) = pipe(&limits, answer_bytes_max).await;
        let connection = Connection::new(socket, limits, Arc::clone(&outbox));
        let admitted = Admitted::session(&shared, guest.pass.clone(), &outbox);
        let task = SessionTask::new(shared, peer, admitted, connection, outbox);
        drop(tokio::spawn(task.run()));
        Self { client }
    }

    /// Sends a message.
    pub(super) async fn say(&mut self, text: String) -> Result<(), Refused> {
        match self.client.send(text).await {
            true => Ok(()),
            // Why is what comes next.
            false => match self.client.next().await {
                Heard::Closed(code) => Err(closed(code)),
                _ => Err(Refused::ours()),
            },
        }
    }

    /// Hands a message over; `next` says when it was taken.
    pub(super) fn begin_to_say(&mut self, text: String) {
        self.client.say(text);
    }

    /// Whether the last message is still on its way.
    pub(super) fn is_busy(&self) -> bool {
        self.client.is_busy()
    }

    /// What the session says next; none where only a message was taken.
    pub(super) async fn next(&mut self) -> Result<Option<Told>, Refused> {
        match self.client.next().await {
            Heard::Taken => Ok(None),
            Heard::Closed(code) => Err(closed(code)),
            Heard::Text(text) => match serde_json::from_str(&text) {
                Ok(told) => Ok(Some(told)),
                Err(error) => {
                    debug!(%error, "a session said what its gateway does not understand");
                    Err(Refused::ours())
                }
            },
        }
    }

    /// The id of the session that is being opened.
    pub(super) async fn session(&mut self) -> Result<String, Refused> {
        loop {
            match self.next().await? {
                Some(Told::SessionInitAck { session_id }) => return Ok(session_id),
                Some(Told::Error(failed)) => return Err(Refused::failed(*failed)),
                _ => {}
            }
        }
    }

    /// The last word on the session's only utterance. Silence is an answer.
    pub(super) async fn done(&mut self) -> Result<Done, Refused> {
        loop {
            match self.next().await? {
                Some(Told::TranslationResult(done)) => return Ok(*done),
                Some(Told::Error(failed)) => return Err(Refused::failed(*failed)),
                Some(Told::MissingResult { reason, .. }) if reason == "silence_detected" => {
                    return Ok(Done::default());
                }
                Some(Told::MissingResult { reason, .. }) => {
                    return Err(Refused::failed(Failed::without_code(&reason)));
                }
                _ => {}
            }
        }
    }

    /// Closes the session, in the background: it may still ask for proof that its result was heard,
    /// which is given for as long as this reads.
    pub(super) fn part(mut self, session_id: &str) {
        let close = serde_json::json!({"type": "session_close", "session_id": session_id});
        drop(tokio::spawn(timeout(PART_WITHIN, async move {
            self.say(close.to_string()).await?;
            loop {
                self.next().await?;
            }
            #[expect(unreachable_code, reason = "it says what the errors above are")]
            Ok::<(), Refused>(())
        })));
    }
}

fn closed(code: Option<u16>) -> Refused {
    match code {
        Some(UNAUTHORIZED) => Refused::unauthorized(),
        Some(1001) => Refused::of(ErrorCode::ShuttingDown, "the server goes down"),
        _ => Refused::ours(),
    }
}
