//! The speaker: sends one recording through a scheduler and collects what comes back.
//!
//! Knows when its last utterance is answered, and comes back to its session when the connection is
//! lost; does not know Opus (such answers are kept as bytes) and does not play anything.

mod outgoing;
mod resume;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde::Deserialize as _;
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message};

use self::outgoing::{Known, Outgoing};
use self::resume::{Claim, Numbered};
use super::dial::Trust;
use super::wav::{self, RATE_HZ};
use super::wire::{self, Dial, Opened, Socket, ToSpeaker, Translation};

/// Time for the connection, the acknowledgement of the session, and that of its end.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// Longest time for an old connection to end.
const GOODBYE_TIME: Duration = Duration::from_secs(1);
/// How often a speaker says that it is there.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// Silence of a scheduler, which pings and answers heartbeats, after which it is taken for gone.
const GONE: Duration = Duration::from_secs(75);
/// Wait asked for by a pause that names none.
const PAUSE_MS: u64 = 5_000;

/// How a recording is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// As a stream of chunks and a final marker; the scheduler cuts it.
    Chunks {
        /// At the pace it was spoken, else as fast as it goes.
        realtime: bool,
    },
    /// As one message.
    Utterance,
}

/// What to say to whom.
#[derive(Debug, Clone)]
pub struct SpeakOptions {
    /// Where the scheduler listens: `ws://127.0.0.1:5010/ws/session`.
    pub url: String,
    /// Shown to the scheduler, if it asks for one.
    pub key: Option<String>,
    /// Certificates, for a `wss://` address.
    pub trust: Trust,
    /// Language spoken, or `auto`.
    pub src: String,
    /// Language wanted.
    pub tgt: String,
    /// How to send.
    pub mode: Mode,
    /// Speech in one chunk, in ms.
    pub chunk_ms: u32,
    /// Longest wait for the answers, counted from the end of the recording.
    pub result_timeout: Duration,
    /// With all known utterances answered, how long another may still turn up after the end of the
    /// recording.
    pub settle: Duration,
    /// Tears its own connection once, this long after the session was opened, to show that nothing
    /// is lost by it.
    pub drop_after: Option<Duration>,
}

impl SpeakOptions {
    /// Chunks of 256 ms at the pace of speech; answers within 60 s.
    pub fn new(url: impl Into<String>, src: impl Into<String>, tgt: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            key: None,
            trust: Trust::default(),
            src: src.into(),
            tgt: tgt.into(),
            mode: Mode::Chunks { realtime: true },
            chunk_ms: 256,
            result_timeout: Duration::from_secs(60),
            settle: Duration::from_secs(2),
            drop_after: None,
        }
    }
}

/// What happens while speaking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SpeakEvent {
    /// The session is open.
    Ready {
        /// Its name.
        session_id: String,
    },
    /// The whole recording was sent.
    Sent,
    /// A step of an utterance's way: `DISPATCHED`, `ASR_FINAL`, `ERROR` and so on.
    Step {
        /// Which utterance.
        utterance_index: u64,
        /// Its job; may be empty.
        job_id: String,
        /// The step.
        event: String,
        /// For `ERROR`.
        error_code: Option<String>,
    },
    /// Words recognised so far.
    Partial {
        /// Which utterance.
        utterance_index: u64,
        /// The words.
        text: String,
        /// No more will come.
        is_final: bool,
    },
    /// An answer; the audio itself is in [`Spoken::results`].
    Result {
        /// Which utterance.
        utterance_index: u64,
        /// What was understood.
        text_asr: String,
        /// The translation.
        text_translated: String,
        /// Size of the spoken translation.
        audio_bytes: usize,
        /// Its encoding.
        tts_format: String,
    },
    /// An utterance has no answer.
    Missing {
        /// Which utterance.
        utterance_index: u64,
        /// Why, in the scheduler's words.
        reason: String,
    },
    /// The scheduler reports an error.
    Error {
        /// Its code.
        code: String,
        /// Its text.
        message: String,
    },
    /// The scheduler asks to hold the audio back.
    Paused {
        /// For how long.
        pause: Duration,
    },
    /// The scheduler is going to stop; the session goes on with the next one.
    GoingAway,
    /// The connection is gone; the session may still be there.
    Lost {
        /// What was seen of it.
        why: String,
    },
    /// The session goes on over a new connection.
    Resumed {
        /// Every result since the last one is still there.
        recovered: bool,
        /// The first result that comes now.
        from_result: u64,
        /// The first chunk that is sent now; none where no stream is sent.
        from_chunk: Option<u64>,
    },
}

/// One answered utterance.
#[derive(Debug, Clone, PartialEq)]
pub struct ResultMessage {
    /// Its place in the session.
    pub utterance_index: u64,
    /// The job that answered it.
    pub job_id: String,
    /// What was understood.
    pub text_asr: String,
    /// The translation.
    pub text_translated: String,
    /// The spoken translation in `tts_format`.
    pub tts_audio: Vec<u8>,
    /// `pcm16` or `opus`.
    pub tts_format: String,
    /// Group of consecutive utterances, if the scheduler made one.
    pub group_id: Option<String>,
    /// The message as it came.
    pub raw: Value,
}

/// All that came back.
#[derive(Debug, Clone, Default)]
pub struct Spoken {
    /// Name of the session.
    pub session_id: String,
    /// Answers in the order they came.
    pub results: Vec<ResultMessage>,
    /// Utterances without an answer, with the reason given.
    pub missing: BTreeMap<u64, String>,
    /// Utterances still open when the wait was over.
    pub unanswered: BTreeSet<u64>,
    /// The wait ended by time and not by the last answer.
    pub timed_out: bool,
    /// Everything that happened, in order.
    pub events: Vec<SpeakEvent>,
}

impl Spoken {
    /// The spoken answers one after another in the order of their utterances, and how many could
    /// not be decoded.
    pub fn pcm16(&self) -> (Vec<i16>, usize) {
        let mut sorted: Vec<&ResultMessage> = self.results.iter().collect();
        sorted.sort_by_key(|result| result.utterance_index);
        let (plain, coded): (Vec<_>, Vec<_>) = sorted
            .into_iter()
            .filter(|result| !result.tts_audio.is_empty())
            .partition(|result| result.tts_format == "pcm16");
        let samples = plain.iter().flat_map(|r| wav::pcm16_samples(&r.tts_audio)).collect();
        (samples, coded.len())
    }
}

/// Speaking came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum SpeakError {
    /// The connection could not be made or broke.
    #[error("{url}: {source}")]
    Socket {
        /// The address.
        url: String,
        /// Why.
        source: Box<tungstenite::Error>,
    },
    /// The scheduler closed the connection before everything was answered.
    #[error("the scheduler closed the connection with {open} utterances unanswered")]
    Closed {
        /// Utterances known to be open.
        open: usize,
    },
    /// The scheduler did not answer in time.
    #[error("no {0} from the scheduler")]
    NoAnswer(&'static str),
    /// The connection was lost and could not be made again while the session was kept.
    #[error("no connection within the {} s for which the session is kept", window.as_secs())]
    Gone {
        /// How long it is kept.
        window: Duration,
    },
    /// The scheduler does not have the session any more.
    #[error("the session cannot be resumed: {reason}")]
    Forgotten {
        /// Why, in the scheduler's words.
        reason: String,
    },
    /// The scheduler refused the session.
    #[error("the scheduler refused: {code}: {message}")]
    Refused {
        /// Its code.
        code: String,
        /// Its text.
        message: String,
    },
}

/// Says 16 kHz mono samples to a scheduler and waits for every answer.
///
/// A lost connection is made again for as long as the scheduler keeps the session, if it does; what
/// it has not got is sent again, and what it sends again is dropped.
pub async fn speak(
    pcm: Vec<i16>,
    options: SpeakOptions,
    on_event: impl FnMut(SpeakEvent),
) -> Result<Spoken, SpeakError> {
    let url = options.url.clone();
    let fault = |e| SpeakError::Socket { url: url.clone(), source: Box::new(e) };
    let key = options.key.as_deref();
    let dial = Dial::to(&options.url, &options.trust, key).map_err(fault)?;
    let opening = dial.open(WebSocketConfig::default());
    let opened = tokio::time::timeout(HANDSHAKE_TIME, opening).await;
    let socket = opened.map_err(|_| SpeakError::NoAnswer("connection"))?.map_err(fault)?;
    let mut call = Call {
        outgoing: Outgoing::new(pcm, &options),
        options,
        dial,
        socket,
        on_event,
        known: Known::default(),
        spoken: Spoken::default(),
        claim: None,
        all_sent: false,
        drop_at: None,
    };
    call.open().await?;
    loop {
        let why = match Box::pin(call.talk()).await {
            Ok(Ending::Answered) => break,
            Ok(Ending::Torn) => "torn on request",
            Err(error) if call.claim.is_some() && error.is_loss() => {
                tracing::debug!(%error, "connection lost");
                error.cause()
            }
            Err(error) => return Err(error),
        };
        Box::pin(call.come_back(why.to_owned())).await?;
    }
    call.close().await;
    Ok(call.spoken)
}

impl SpeakError {
    /// Whether another connection may help.
    fn is_loss(&self) -> bool {
        matches!(self, Self::Socket { .. } | Self::Closed { .. } | Self::NoAnswer(_))
    }

    /// What was seen of a lost connection, in words that do not depend on the system.
    fn cause(&self) -> &'static str {
        match self {
            Self::Closed { .. } => "closed by the scheduler",
            Self::NoAnswer(_) => "no sign of life",
            _ => "broken off",
        }
    }
}

struct Call<F> {
    options: SpeakOptions,
    dial: Dial,
    socket: Socket,
    on_event: F,
    outgoing: Outgoing,
    known: Known,
    spoken: Spoken,
    /// What the session can be resumed with; none if the scheduler does not keep it.
    claim: Option<Claim>,
    /// The end of the recording was reached and told.
    all_sent: bool,
    /// When to tear the connection.
    drop_at: Option<Instant>,
}

/// Why there is no more talk on a connection.
enum Ending {
    /// Everything is answered, or was waited for long enough.
    Answered,
    /// It is to be torn.
    Torn,
}

/// One thing that happened while talking.
enum Turn {
    Heard(Option<Result<Message, tungstenite::Error>>),
    Due,
    Beat,
    Over,
    Tear,
}

impl<F: FnMut(SpeakEvent)> Call<F> {
    fn tell(&mut self, event: SpeakEvent) {
        self.spoken.events.push(event.clone());
        (self.on_event)(event);
    }

    fn fault(&self, source: tungstenite::Error) -> SpeakError {
        SpeakError::Socket { url: self.options.url.clone(), source: Box::new(source) }
    }

    async fn send(&mut self, message: &Value) -> Result<(), SpeakError> {
        let sent = self.socket.send(Message::text(message.to_string())).await;
        sent.map_err(|e| self.fault(e))
    }

    async fn open(&mut self) -> Result<(), SpeakError> {
        let init = json!({
            "type": "session_init",
            "client_version": concat!("utterd-", env!("CARGO_PKG_VERSION")),
            "platform": "cli",
            "src_lang": self.options.src,
            "tgt_lang": self.options.tgt,
            "mode": "one_way",
            "trace_id": uuid::Uuid::new_v4().to_string(),
            "audio_format": "pcm16",
            "sample_rate": RATE_HZ,
            "extensions": ["resume", "accepted", "audio_ack", "go_away"],
        });
        self.send(&init).await?;
        let ack = tokio::time::timeout(HANDSHAKE_TIME, self.await_ack()).await;
        let opened = ack.map_err(|_| SpeakError::NoAnswer("session_init_ack"))??;
        self.spoken.session_id.clone_from(&opened.session_id);
        self.claim = Claim::of(&opened);
        if self.claim.is_some() && opened.extensions.iter().any(|word| word == "audio_ack") {
            self.outgoing.count_from(1);
        }
        self.drop_at = self.options.drop_after.take().map(|after| Instant::now() + after);
        self.tell(SpeakEvent::Ready { session_id: opened.session_id });
        Ok(())
    }

    async fn await_ack(&mut self) -> Result<Opened, SpeakError> {
        while let Some(message) = self.socket.next().await {
            let message = message.map_err(|e| self.fault(e))?;
            if message.is_close() {
                break;
            }
            match read(&message).map(|(message, _)| message) {
                Some(ToSpeaker::SessionInitAck(opened)) => return Ok(*opened),
                Some(ToSpeaker::Error { code, message }) => {
                    return Err(SpeakError::Refused { code, message });
                }
                _ => {}
            }
        }
        Err(SpeakError::Closed { open: 0 })
    }

    /// Sends and listens until everything is answered or the connection is to be torn.
    async fn talk(&mut self) -> Result<Ending, SpeakError> {
        self.outgoing.due = Instant::now();
        let mut quiet_since = Instant::now();
        let mut heard_at = Instant::now();
        let mut beat = tokio::time::interval(HEARTBEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        beat.reset();
        loop {
            let due = match self.outgoing.done {
                None => self.outgoing.due,
                Some(done) => self.over_at(done, quiet_since),
            };
            let drop_at = self.drop_at.filter(|_| self.claim.is_some());
            let turn = tokio::select! {
                message = self.socket.next() => Turn::Heard(message),
                () = tokio::time::sleep_until(drop_at.unwrap_or(due)), if drop_at.is_some() => {
                    Turn::Tear
                }
                () = tokio::time::sleep_until(due) => match self.outgoing.done {
                    None => Turn::Due,
                    Some(_) => Turn::Over,
                },
                _ = beat.tick() => Turn::Beat,
            };
            match turn {
                Turn::Over => {
                    self.give_up();
                    return Ok(Ending::Answered);
                }
                Turn::Tear => {
                    self.drop_at = None;
                    return Ok(Ending::Torn);
                }
                Turn::Heard(None | Some(Ok(Message::Close(_)))) => {
                    return Err(SpeakError::Closed { open: self.known.open.len() });
                }
                Turn::Heard(Some(Err(e))) => return Err(self.fault(e)),
                Turn::Heard(Some(Ok(message))) => {
                    heard_at = Instant::now();
                    if self.hear(&message) {
                        quiet_since = heard_at;
                    }
                    self.acknowledge().await?;
                }
                Turn::Due => self.send_next().await?,
                Turn::Beat if self.claim.is_some() && heard_at.elapsed() > GONE => {
                    return Err(SpeakError::NoAnswer("sign of life"));
                }
                Turn::Beat => {
                    let session_id = &self.spoken.session_id;
                    let now = wire::now_ms();
                    let beat = json!({
                        "type": "client_heartbeat", "session_id": session_id, "timestamp": now,
                    });
                    self.send(&beat).await?;
                }
            }
        }
    }

    /// When to stop waiting, given that nothing more is heard.
    ///
    /// While answers are open, or none was ever announced, only the timeout ends the wait. With
    /// everything answered, another utterance may still be announced: the last cut is made a moment
    /// after the final marker. One announced since the marker is most likely that last one, so then
    /// a fraction of the wait is enough.
    fn over_at(&self, done: Instant, quiet_since: Instant) -> Instant {
        let latest = done + self.options.result_timeout;
        if !self.known.open.is_empty() || self.known.closed.is_empty() {
            return latest;
        }
        let settle = match (self.options.mode, self.known.opened_late) {
            (Mode::Utterance, _) => Duration::ZERO,
            (Mode::Chunks { .. }, true) => self.options.settle / 4,
            (Mode::Chunks { .. }, false) => self.options.settle,
        };
        latest.min(done.max(quiet_since) + settle)
    }

    fn give_up(&mut self) {
        self.spoken.unanswered.clone_from(&self.known.open);
        self.spoken.timed_out = !self.known.open.is_empty() || self.known.closed.is_empty();
    }

    /// Says how far the results were taken, so that the scheduler need not keep them.
    async fn acknowledge(&mut self) -> Result<(), SpeakError> {
        let Some(seq) = self.claim.as_mut().and_then(Claim::take_unacknowledged) else {
            return Ok(());
        };
        let session_id = &self.spoken.session_id;
        let ack = json!({"type": "ack", "session_id": session_id, "seq": seq});
        self.send(&ack).await
    }

    async fn send_next(&mut self) -> Result<(), SpeakError> {
        let session_id = &self.spoken.session_id;
        let message = self.outgoing.next(session_id, &self.options, Instant::now());
        if self.options.mode == Mode::Utterance {
            self.known.open(0, true);
        }
        self.send(&message).await?;
        if self.outgoing.done.is_some() && !self.all_sent {
            self.all_sent = true;
            self.tell(SpeakEvent::Sent);
        }
        Ok(())
    }

    /// Takes one message in; whether it said anything of an utterance.
    fn hear(&mut self, message: &Message) -> bool {
        let sent = self.outgoing.done.is_some();
        let Some((message, raw)) = read(message) else { return false };
        if let (Some(claim), Some(numbered)) = (&mut self.claim, Numbered::of(&raw))
            && !claim.is_news(numbered)
        {
            return true;
        }
        match message {
            ToSpeaker::TranslationResult(translation) => self.take_result(*translation, raw),
            ToSpeaker::AsrPartial { utterance_index, text, is_final } => {
                self.known.open(utterance_index, sent);
                self.tell(SpeakEvent::Partial { utterance_index, text, is_final });
            }
            ToSpeaker::UiEvent { utterance_index, job_id, event, error_code } => {
                if event == "ERROR" {
                    self.known.close(utterance_index, sent);
                    let reason = error_code.clone().unwrap_or_else(|| "ERROR".to_owned());
                    self.spoken.missing.entry(utterance_index).or_insert(reason);
                } else {
                    self.known.open(utterance_index, sent);
                }
                self.tell(SpeakEvent::Step { utterance_index, job_id, event, error_code });
            }
            ToSpeaker::MissingResult { utterance_index, reason } => {
                self.known.close(utterance_index, sent);
                self.spoken.missing.insert(utterance_index, reason.clone());
                self.tell(SpeakEvent::Missing { utterance_index, reason });
            }
            ToSpeaker::Error { code, message } => {
                if self.options.mode == Mode::Utterance && sent {
                    // Errors name no utterance, but here there is only one.
                    self.known.close(0, sent);
                    self.spoken.missing.entry(0).or_insert_with(|| code.clone());
                }
                self.tell(SpeakEvent::Error { code, message });
            }
            ToSpeaker::Backpressure { action, resume_after_ms } => {
                tracing::debug!(action, "the scheduler asks for a pause");
                let pause = Duration::from_millis(resume_after_ms.unwrap_or(PAUSE_MS));
                self.outgoing.due = self.outgoing.due.max(Instant::now() + pause);
                self.tell(SpeakEvent::Paused { pause });
            }
            ToSpeaker::UtteranceAccepted { utterance_index } => {
                self.known.open(utterance_index, sent);
                self.outgoing.accepted = true;
            }
            ToSpeaker::AudioAck { through } => self.outgoing.acknowledged(through),
            ToSpeaker::GoAway { reconnect_after_ms } => {
                if let Some(claim) = &mut self.claim {
                    claim.hold = reconnect_after_ms.map(Duration::from_millis);
                }
                self.tell(SpeakEvent::GoingAway);
            }
            ToSpeaker::SessionInitAck(_)
            | ToSpeaker::SessionResumeAck(_)
            | ToSpeaker::ServerHeartbeat {}
            | ToSpeaker::SessionCloseAck {}
            | ToSpeaker::Unknown => return false,
        }
        true
    }

    fn take_result(&mut self, translation: Translation, raw: Value) {
        let utterance_index = translation.utterance_index;
        self.known.close(utterance_index, self.outgoing.done.is_some());
        self.spoken.missing.remove(&utterance_index);
        let tts_audio = wire::from_base64(&translation.tts_audio).unwrap_or_default();
        let tts_format = translation.tts_format.unwrap_or_else(|| "pcm16".to_owned());
        self.tell(SpeakEvent::Result {
            utterance_index,
            text_asr: translation.text_asr.clone(),
            text_translated: translation.text_translated.clone(),
            audio_bytes: tts_audio.len(),
            tts_format: tts_format.clone(),
        });
        self.spoken.results.push(ResultMessage {
            utterance_index,
            job_id: translation.job_id,
            text_asr: translation.text_asr,
            text_translated: translation.text_translated,
            tts_audio,
            tts_format,
            group_id: translation.group_id,
            raw,
        });
    }

    /// Ends the session; answers that the scheduler still holds come before its acknowledgement.
    async fn close(&mut self) {
        let session_id = &self.spoken.session_id;
        let bye = json!({
            "type": "session_close", "session_id": session_id, "reason": "client_disconnect",
        });
        let ended = tokio::time::timeout(HANDSHAKE_TIME, async {
            self.send(&bye).await?;
            while let Some(Ok(message)) = self.socket.next().await {
                let acknowledged =
                    matches!(read(&message), Some((ToSpeaker::SessionCloseAck {}, _)));
                if acknowledged || message.is_close() {
                    break;
                }
                self.hear(&message);
                self.acknowledge().await?;
            }
            self.socket.close(None).await.map_err(|e| self.fault(e))
        });
        if !matches!(ended.await, Ok(Ok(()))) {
            tracing::debug!("the session did not end politely");
        }
        self.spoken.unanswered.retain(|index| self.known.open.contains(index));
    }
}

/// The message and the JSON it was read from.
fn read(message: &Message) -> Option<(ToSpeaker, Value)> {
    let raw: Value = serde_json::from_str(wire::text_of(message)?).ok()?;
    match ToSpeaker::deserialize(&raw) {
        Ok(message) => Some((message, raw)),
        Err(e) => {
            tracing::warn!(error = %e, "a message that cannot be read");
            None
        }
    }
}
