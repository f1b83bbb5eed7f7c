//! The sessions of a load: each says what is due, hears the answers, and checks that they are its
//! own.
//!
//! It refuses to know who decides when it is its turn, and what becomes of what it finds.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Instant;

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::{self, Message};

use super::ledger::Ledger;
use super::pace::Schedule;
use super::speech::Speech;
use super::{LoadError, Mode, Options, dial, head};
use crate::peer::wire::{Dial, Socket};

/// Read buffer of one session's connection, in bytes.
const READ_BUFFER_BYTES: usize = 8 * 1_024;

/// What the sessions are to do in a round.
#[derive(Debug, Clone, Copy)]
pub(super) enum Round {
    /// Speak on schedule.
    Open(Schedule),
    /// Speak when answered, until then.
    Closed(Instant),
}

/// An open session.
pub(super) struct Speaker {
    pub(super) socket: Socket,
    pub(super) id: String,
    pub(super) number: usize,
}

impl Speaker {
    /// Opens the session with this number.
    pub(super) async fn open(
        url: &str,
        number: usize,
        options: &Options,
    ) -> Result<Self, LoadError> {
        let url = format!("{url}/ws/session");
        let to = Dial::to(&url, &options.trust, None)?.braked(options.brake.clone());
        let mut socket = dial(to, READ_BUFFER_BYTES).await?;
        let extensions = if options.resume { vec!["resume"] } else { vec![] };
        let (src, tgt) = options.languages;
        let mut init = json!({"type": "session_init", "client_version": "load", "platform": "cli",
            "src_lang": src, "tgt_lang": tgt, "enable_streaming_asr": false,
            "extensions": extensions});
        if options.mode == Mode::Chunks {
            init["audio_format"] = json!("pcm16");
            init["sample_rate"] = json!(16_000);
        }
        socket.send(Message::text(init.to_string())).await?;
        while let Some(message) = socket.next().await {
            let message = message?;
            let Message::Text(text) = &message else { continue };
            if head::kind(text) == Some("session_init_ack")
                && let Some(id) = head::text(text, "\"session_id\":\"")
            {
                let id = id.to_owned();
                return Ok(Self { socket, id, number });
            }
            if head::kind(text) == Some("error") {
                return Err(LoadError::Refused(text.to_string()));
            }
        }
        Err(LoadError::Refused("the connection was closed".to_owned()))
    }

    /// Speaks and listens until there are no more rounds, or the connection is lost.
    pub(super) async fn run(
        self,
        speech: Arc<Speech>,
        ledger: Arc<Ledger>,
        rounds: mpsc::Receiver<Round>,
    ) {
        let (sink, stream) = self.socket.split();
        let (id, number) = (self.id, self.number);
        let mouth = Mouth { sink, speech: &speech, ledger: &ledger, id: &id, number, next: 0 };
        let ear = Ear { stream, speech: &speech, ledger: &ledger, id: &id, number };
        let lost = tokio::select! {
            said = mouth.speak(rounds) => said.is_err(),
            () = ear.listen() => true,
        };
        if lost {
            ledger.counts.disconnected.fetch_add(1, SeqCst);
        }
    }
}

/// The half that says.
struct Mouth<'a> {
    sink: SplitSink<Socket, Message>,
    speech: &'a Speech,
    ledger: &'a Ledger,
    id: &'a str,
    number: usize,
    /// Index of the next utterance.
    next: u64,
}

impl Mouth<'_> {
    async fn speak(mut self, mut rounds: mpsc::Receiver<Round>) -> Result<(), tungstenite::Error> {
        let (ledger, number) = (self.ledger, self.number);
        let mut round = Round::Closed(Instant::now());
        let (mut turns, mut seq) = (0, 0);
        loop {
            tokio::select! {
                biased;
                next = rounds.recv() => match next {
                    Some(next) => (round, turns) = (next, 0),
                    None => return self.close().await,
                },
                last = ledger.to_ack(number) => self.ack(last).await?,
                () = ledger.turn(number) => {
                    let due = match round {
                        Round::Open(schedule) => {
                            schedule.due(turns * ledger.sessions() as u64 + number as u64)
                        }
                        Round::Closed(until) if Instant::now() >= until => continue,
                        Round::Closed(_) => Instant::now(),
                    };
                    turns += 1;
                    self.say(due, &mut seq).await?;
                }
            }
        }
    }

    /// One utterance. Its chunks go out in one go.
    async fn say(&mut self, due: Instant, seq: &mut u64) -> Result<(), tungstenite::Error> {
        self.ledger.room(self.number).await;
        let at = (self.number, self.next);
        self.next += 1;
        let mut frames = self.speech.frames(self.id, at, seq);
        let last = frames.pop();
        for frame in frames {
            self.sink.feed(whole(frame)).await?;
        }
        self.ledger.sent(at, due, Instant::now());
        match last {
            Some(frame) => self.sink.send(whole(frame)).await,
            None => Ok(()),
        }
    }

    async fn ack(&mut self, seq: u64) -> Result<(), tungstenite::Error> {
        let ack = format!("{{\"type\":\"ack\",\"session_id\":\"{}\",\"seq\":{seq}}}", self.id);
        self.sink.send(Message::text(ack)).await
    }

    /// Leaves nothing behind that would wait for this session to come back.
    async fn close(&mut self) -> Result<(), tungstenite::Error> {
        let close = json!({"type": "session_close", "session_id": self.id});
        self.sink.send(Message::text(close.to_string())).await?;
        self.sink.close().await
    }
}

/// A text frame as it is: `Message::text` would look through all of it for what is not UTF-8.
fn whole(frame: Bytes) -> Message {
    Message::Frame(Frame::message(frame, OpCode::Data(Data::Text), true))
}

/// The half that hears.
struct Ear<'a> {
    stream: SplitStream<Socket>,
    speech: &'a Speech,
    ledger: &'a Ledger,
    id: &'a str,
    number: usize,
}

impl Ear<'_> {
    async fn listen(mut self) {
        while let Some(Ok(message)) = self.stream.next().await {
            let now = Instant::now();
            if let Message::Text(frame) = message {
                self.hear(&frame, now);
            }
        }
    }

    fn hear(&self, frame: &str, now: Instant) {
        let kind = head::kind(frame);
        match kind {
            // A bare relay passes on what the node said.
            Some("translation_result" | "job_result") => {}
            Some("missing_result") => {}
            Some("error") => return self.ledger.error(frame),
            _ => return,
        }
        let Some(index) = head::number(frame, "\"utterance_index\":") else {
            self.ledger.counts.unreadable.fetch_add(1, SeqCst);
            return;
        };
        let at = (self.number, index);
        if head::text(frame, "\"session_id\":\"") != Some(self.id) {
            self.ledger.foreign();
        } else if kind == Some("missing_result") {
            self.ledger.missing(at, now, frame);
        } else {
            let proof = head::text(frame, "\"text_asr\":\"");
            self.ledger.answered(at, now, proof == Some(self.speech.proof(at).as_str()));
        }
        if let Some(seq) = head::last_number(frame, "\"seq\":") {
            self.ledger.processed(self.number, seq);
        }
    }
}
