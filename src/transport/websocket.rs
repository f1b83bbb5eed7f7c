//! The life of one WebSocket: frames out, messages in, pings, deadlines, and a proper end.
//!
//! One task owns the socket and nothing is split, so every decision about it is made in one place
//! and in order. The owner calls `Connection::next` inside its `select!`; everything half done
//! lives in the `Connection`, therefore dropping that future loses nothing.
//!
//! It refuses to know who the peer is and what a message means.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::coop;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_tungstenite::tungstenite::error::{Error, ProtocolError};
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{CloseFrame, Frame as WireFrame};
use tokio_tungstenite::tungstenite::protocol::{Message, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Utf8Bytes, error::CapacityError};

use super::outbox::Outbox;
use super::socket::WebSocket;
use super::toll::{Excess, Rates, Toll};

/// What one connection may cost and how long its peer may take.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Largest incoming message, and largest single frame of one, in bytes. Beyond it: close 1009.
    pub message_bytes_max: usize,
    /// Read buffer while the connection is not at rest, in bytes.
    pub read_buffer_bytes: usize,
    /// Outgoing bytes gathered before they are given to the socket without waiting for a flush.
    pub write_buffer_bytes: usize,
    /// Largest outgoing frame, in bytes: at least the byte bound of the connection's outbox.
    pub outbox_bytes_max: usize,
    /// What the peer may send in a second.
    pub rates: Rates,
    /// Silence from the peer after which a ping is sent.
    pub ping_interval: Duration,
    /// Further silence after that ping before the peer is given up.
    pub pong_timeout: Duration,
    /// How long the peer may let bytes wait without taking a single one.
    pub write_progress_timeout: Duration,
    /// How long the first text or binary message may take.
    pub first_message_timeout: Duration,
    /// How long an ending may take: our close sent, the peer's awaited, leftovers discarded.
    pub close_timeout: Duration,
}

/// What `Connection::next` reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<T> {
    /// A text message. It shares the read buffer: copy what is small and kept for long.
    Text(Utf8Bytes),
    /// A binary message. It shares the read buffer: copy what is small and kept for long.
    Binary(Bytes),
    /// The outbox frame with this tag, and all before it, has been taken by the socket.
    Written(T),
    /// The answer to an own `Connection::ping`, or an unasked-for pong with a payload.
    Pong(Bytes),
    /// The end, reported once; nothing follows. Frames without `Written` may not have arrived.
    Closed(Gone),
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gone {
    /// The peer closed: with a code, or without one, or by just ending the stream.
    ByPeer {
        /// The peer's close code, if it sent one.
        code: Option<u16>,
    },
    /// Bytes waited for `write_progress_timeout` and the peer took none of them.
    WriteStalled,
    /// Nothing at all came from the peer, not even after a ping.
    PongMissing,
    /// No message came within `first_message_timeout`.
    FirstMessageLate,
    /// The peer sent more frames than `Limits::rates` allow; it was told 1008.
    TooFast,
    /// A message or frame exceeded `message_bytes_max`; the peer was told 1009.
    TooLarge,
    /// The peer broke the protocol; it was told 1002, or 1007 for text that is not UTF-8.
    ProtocolError(String),
    /// The socket failed.
    Io(String),
    /// This side asked for the end, and all frames queued before it were sent.
    Requested {
        /// The code this side closed with.
        code: u16,
    },
}

impl Gone {
    /// One word for logs and metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::ByPeer { .. } => "by_peer",
            Self::WriteStalled => "write_stalled",
            Self::PongMissing => "pong_missing",
            Self::FirstMessageLate => "first_message_late",
            Self::TooFast => "too_fast",
            Self::TooLarge => "too_large",
            Self::ProtocolError(_) => "protocol_error",
            Self::Io(_) => "io",
            Self::Requested { .. } => "requested",
        }
    }
}

/// A connection on which nothing has passed for once to twice this gives its buffers back.
const REST_AFTER: Duration = Duration::from_secs(1);
/// Frames taken from the outbox before they are flushed; also bounds the tags waiting for
/// `Written`.
const BATCH_FRAMES: usize = 64;
/// Payload bytes taken from the outbox in one go, after which reading gets its turn.
const BATCH_BYTES: usize = 256 * 1024;
/// Messages looked at in one go without anything to report (pings, and leftovers while ending).
const SILENT_MESSAGES: usize = 64;
/// Room kept in the codec's buffer for frame headers and for control frames.
const CONTROL_MARGIN: usize = 512;
/// A control frame's payload, by protocol.
const PING_BYTES_MAX: usize = 125;
/// A close frame's reason, by protocol: a control payload less the two bytes of the code.
const CLOSE_REASON_BYTES_MAX: usize = PING_BYTES_MAX - 2;

/// The codec's settings, each stated.
pub fn websocket_config(limits: &Limits) -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(limits.read_buffer_bytes)
        .write_buffer_size(limits.write_buffer_bytes)
        .max_write_buffer_size(limits.write_buffer_bytes + limits.outbox_bytes_max + CONTROL_MARGIN)
        .max_message_size(Some(limits.message_bytes_max))
        .max_frame_size(Some(limits.message_bytes_max))
        .accept_unmasked_frames(false)
}

/// Wraps a byte stream whose handshake is done as the server's end of a WebSocket.
pub fn server_socket<S>(io: S, limits: &Limits) -> WebSocket<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    WebSocket::new(io, websocket_config(limits))
}

/// One WebSocket, owned by one task.
///
/// ```text
///          a close frame arrives, or ours is due    the peer answers, or leaves
///   Open ------------------------------------------> Handshake --------+
///     |    the peer breaks a rule                    the rest is read  v
///     +--------------------------------------------> Drain ---------> Done --> Over
///     |    silence, stall, or a dead socket                            ^
///     +----------------------------------------------------------------+
/// ```
/// `Handshake` and `Drain` give way to `Done` at the latest after `Limits::close_timeout`. `Done`
/// reports what is still to be reported; `Over` is silent for ever.
pub struct Connection<S, T> {
    stream: WebSocket<S>,
    limits: Limits,
    outbox: Arc<Outbox<T>>,
    phase: Phase,
    /// Tags of frames given to the codec, oldest first.
    in_flight: VecDeque<T>,
    /// How many at the front of `in_flight` have been flushed and not yet been reported.
    flushed: usize,
    /// Something given to the codec may not have reached the socket yet.
    flush_due: bool,
    /// The wait for the peer to take bytes, while there is one.
    stalled: Option<Stall>,
    /// Writing failed: what is still readable is read until then. The text is the error.
    broken: Option<(String, Option<Instant>)>,
    /// The owner's ping, not yet given to the codec.
    own_ping: Option<Bytes>,
    /// A ping of ours, because the peer is silent, not yet given to the codec.
    keepalive_due: bool,
    /// When bytes last came in, to the accuracy of our looking.
    heard_at: Instant,
    /// `Counted::bytes_in` at that time.
    heard_bytes: u64,
    /// When the silent peer was pinged.
    pinged_at: Option<Instant>,
    /// When to look whether anything has passed, if the socket is not at rest.
    rest_due: Instant,
    /// `Counted::bytes_in` and `bytes_out` when that was last looked at.
    passed: (u64, u64),
    /// When the first message must have come; none once it has.
    first_message_due: Option<Instant>,
    /// The owner wants no more messages for now.
    paused: bool,
    toll: Toll,
    begun: Instant,
    /// Nothing is read before, because too many bytes came.
    slow_until: Option<Instant>,
    /// Whose turn it is when both an incoming message and a `Written` could be reported.
    reads_first: bool,
    /// The end `Connection::close` asks for; goes before a request in the outbox.
    close_wanted: Option<(u16, Utf8Bytes)>,
    /// One timer for all deadlines. It may fire early, since most deadlines only ever move away.
    timer: Pin<Box<Sleep>>,
    /// When `timer` fires, if it is running.
    armed: Option<Instant>,
}

/// See the drawing over `Connection`.
enum Phase {
    Open,
    Ending { gone: Gone, step: Step, due: Option<Instant> },
    Over,
}

/// What an ending still has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Both close frames: ours must leave, the peer's must arrive (one of them already has).
    Handshake,
    /// Our close frame must leave. Then the peer's bytes, no longer understood, are read and
    /// dropped: closing a socket over unread bytes resets it, and the peer might never see our
    /// close frame.
    Drain,
    /// Nothing.
    Done,
}

/// The codec holds bytes that the socket does not take.
#[derive(Debug, Clone, Copy)]
struct Stall {
    /// When it last took some.
    since: Instant,
    /// `Counted::bytes_out` at that time.
    bytes_out: u64,
}

/// A reason to leave `Phase::Open`.
struct End {
    gone: Gone,
    /// The close frame to send first.
    farewell: Option<(u16, Utf8Bytes)>,
    step: Step,
}

impl End {
    fn silently(gone: Gone) -> Self {
        Self { gone, farewell: None, step: Step::Done }
    }

    /// The peer broke a rule: tell it which, and see that the message arrives.
    fn rule_broken(gone: Gone, code: u16, reason: &'static str) -> Self {
        let farewell = Some((code, Utf8Bytes::from_static(reason)));
        Self { gone, farewell, step: Step::Drain }
    }

    /// The peer is silent: a close frame is sent in case it listens, but not waited for.
    fn given_up(gone: Gone, code: u16, reason: &'static str) -> Self {
        let farewell = Some((code, Utf8Bytes::from_static(reason)));
        Self { gone, farewell, step: Step::Done }
    }

    fn from_read_error(error: Error) -> Self {
        match error {
            Error::Capacity(CapacityError::MessageTooLong { .. }) => {
                Self::rule_broken(Gone::TooLarge, 1009, "message too large")
            }
            Error::Utf8(text) => {
                Self::rule_broken(Gone::ProtocolError(text), 1007, "text is not UTF-8")
            }
            Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)
            | Error::ConnectionClosed
            | Error::AlreadyClosed => Self::silently(Gone::ByPeer { code: None }),
            Error::Protocol(broken) => {
                Self::rule_broken(Gone::ProtocolError(broken.to_string()), 1002, "protocol error")
            }
            other => Self::silently(Gone::Io(other.to_string())),
        }
    }
}

impl<S, T> Connection<S, T> {
    /// Takes over a socket. The time for the first message starts now.
    ///
    /// # Panics
    /// If the outbox can hold a frame that `Limits` have no room for, or outside a tokio runtime.
    pub fn new(stream: WebSocket<S>, limits: Limits, outbox: Arc<Outbox<T>>) -> Self {
        assert!(outbox.bytes_max() <= limits.outbox_bytes_max, "a frame might never fit");
        let now = Instant::now();
        Self {
            stream,
            outbox,
            phase: Phase::Open,
            in_flight: VecDeque::new(),
            flushed: 0,
            flush_due: false,
            stalled: None,
            broken: None,
            own_ping: None,
            keepalive_due: false,
            heard_at: now,
            heard_bytes: 0,
            pinged_at: None,
            rest_due: now,
            passed: (0, 0),
            first_message_due: now.checked_add(limits.first_message_timeout),
            paused: false,
            toll: Toll::new(limits.rates),
            begun: now,
            slow_until: None,
            reads_first: false,
            close_wanted: None,
            timer: Box::pin(sleep_until(now)),
            armed: None,
            limits,
        }
    }

    /// Queues a ping; the peer's answer arrives as `Event::Pong` with the same payload.
    ///
    /// A payload beyond 125 bytes is cut. A ping still unsent is replaced: only the newest matters.
    pub fn ping(&mut self, mut payload: Bytes) {
        payload.truncate(PING_BYTES_MAX);
        self.own_ping = Some(payload);
    }

    /// Stops taking messages, or starts again. Takes effect with the next call of `next`.
    ///
    /// While paused the peer's pings go unanswered and its close unnoticed, and it cannot be found
    /// silent or late; so a pause should stay well below the peer's own patience.
    pub fn pause_reading(&mut self, paused: bool) {
        if self.paused && !paused {
            // The silence so far was ours.
            self.heard_at = Instant::now();
            self.pinged_at = None;
        }
        self.paused = paused;
    }

    /// The moment from which the silent peer counts as gone, or is to be pinged.
    fn silence_due(&self) -> Option<Instant> {
        match self.pinged_at {
            Some(at) => at.checked_add(self.limits.pong_timeout),
            None => self.heard_at.checked_add(self.limits.ping_interval),
        }
    }

    /// The next moment at which something must happen although nobody moves.
    fn due(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Over => None,
            Phase::Ending { due, .. } => *due,
            Phase::Open => {
                let patience = self.limits.write_progress_timeout;
                let stall = self.stalled.and_then(|stall| stall.since.checked_add(patience));
                let broken = self.broken.as_ref().and_then(|(_, due)| *due);
                let (silence, first) = match (self.paused, self.slow_until) {
                    (true, _) => (None, None),
                    (false, Some(until)) => (Some(until), None),
                    (false, None) => (self.silence_due(), self.first_message_due),
                };
                let rest = self.stream.is_awake().then_some(self.rest_due);
                [stall, broken, silence, first, rest].into_iter().flatten().min()
            }
        }
    }

    /// Ready with the time once `due` has passed.
    fn poll_due(&mut self, context: &mut Context<'_>) -> Poll<Instant> {
        let Some(mut due) = self.due() else { return Poll::Pending };
        // Moving the timer costs more than an early wake-up now and then: only ever pull it closer.
        if self.armed.is_none_or(|armed| due < armed) {
            self.timer.as_mut().reset(due);
            self.armed = Some(due);
        }
        loop {
            ready!(self.timer.as_mut().poll(context));
            self.armed = None;
            let now = Instant::now();
            match self.due() {
                None => return Poll::Pending,
                Some(passed) if passed <= now => return Poll::Ready(now),
                Some(later) => due = later,
            }
            self.timer.as_mut().reset(due);
            self.armed = Some(due);
        }
    }

    fn take_written(&mut self) -> Option<Event<T>> {
        self.flushed = self.flushed.checked_sub(1)?;
        self.in_flight.pop_front().map(Event::Written)
    }

    /// Writing has failed: nothing more will leave, but what the peer sent before may still be
    /// read.
    fn break_off(&mut self, error: &Error) {
        self.outbox.close();
        self.flush_due = false;
        self.stalled = None;
        let due = Instant::now().checked_add(self.limits.close_timeout);
        self.broken = Some((error.to_string(), due));
    }
}

impl<S, T> Connection<S, T>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    /// The next event. Cancel-safe: dropping the future loses nothing.
    ///
    /// After `Event::Closed` it pends for ever.
    pub async fn next(&mut self) -> Event<T> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// Sends what is queued, closes, and waits for the peer's close; all at most for `within`.
    ///
    /// The outbox takes no more frames. Messages still arriving are dropped, as is every other
    /// event.
    pub async fn close(mut self, code: u16, reason: &str, within: Duration) {
        if matches!(self.phase, Phase::Over) {
            return;
        }
        self.outbox.close();
        self.close_wanted = Some((code, close_reason(reason)));
        self.limits.close_timeout = within;
        self.pause_reading(false);
        let end = async { while !matches!(self.next().await, Event::Closed(_)) {} };
        if tokio::time::timeout(within, end).await.is_err() {
            tracing::debug!(code, "peer did not finish the close in time");
        }
    }

    /// Bytes received so far, as the socket saw them.
    pub fn bytes_in(&self) -> u64 {
        self.stream.io().bytes_in()
    }

    /// Bytes the socket has taken so far.
    pub fn bytes_out(&self) -> u64 {
        self.stream.io().bytes_out()
    }

    /// `next` for those who poll.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Event<T>> {
        // Messages already buffered are free of the runtime's own accounting: count each event, so
        // that a talkative peer cannot keep a worker thread to itself.
        let budget = ready!(coop::poll_proceed(context));
        loop {
            match &self.phase {
                Phase::Over => return Poll::Pending,
                Phase::Open => match ready!(self.poll_open(context)) {
                    Ok(event) => {
                        budget.made_progress();
                        return Poll::Ready(event);
                    }
                    Err(end) => self.start_ending(end),
                },
                &Phase::Ending { step, .. } => {
                    if self.poll_ending(step, context).is_ready() {
                        return Poll::Ready(self.take_written().unwrap_or_else(|| self.finish()));
                    }
                    // The last flush may have completed more frames; they are still news.
                    return self.take_written().map_or(Poll::Pending, Poll::Ready);
                }
            }
        }
    }

    fn poll_open(&mut self, context: &mut Context<'_>) -> Poll<Result<Event<T>, End>> {
        loop {
            self.write_some(context)?;
            self.close_if_asked()?;
            self.reads_first = !self.reads_first;
            if !self.reads_first
                && let Some(written) = self.take_written()
            {
                return Poll::Ready(Ok(written));
            }
            if let Poll::Ready(event) = self.poll_read(context)? {
                return Poll::Ready(Ok(event));
            }
            // Reading may have left a pong to send.
            self.flush(context)?;
            if self.stream.rest_if_small() {
                continue;
            }
            if let Some(written) = self.take_written() {
                return Poll::Ready(Ok(written));
            }
            let now = ready!(self.poll_due(context));
            self.on_deadline(now)?;
        }
    }

    /// Moves frames from the outbox to the socket, as many as one batch allows.
    ///
    /// Nothing new is taken while there are `Written` to report: the next batch gathers meanwhile,
    /// and `in_flight` stays bounded.
    fn write_some(&mut self, context: &mut Context<'_>) -> Result<(), End> {
        let mut bytes = 0;
        while self.flushed == 0
            && self.broken.is_none()
            && self.in_flight.len() < BATCH_FRAMES
            && bytes < BATCH_BYTES
        {
            match Pin::new(&mut self.stream).poll_ready(context) {
                Poll::Pending => break,
                Poll::Ready(Err(error)) => {
                    self.break_off(&error);
                    break;
                }
                Poll::Ready(Ok(())) => {}
            }
            let wire = if let Some(payload) = self.own_ping.take() {
                Message::Ping(payload)
            } else if std::mem::take(&mut self.keepalive_due) {
                Message::Ping(Bytes::new())
            } else if let Poll::Ready(frame) = self.outbox.poll_pop(context) {
                bytes += frame.text.len();
                self.in_flight.push_back(frame.tag);
                // Built as a raw frame, since `Message::Text` would check again that it is UTF-8.
                Message::Frame(WireFrame::message(frame.text, OpCode::Data(Data::Text), true))
            } else {
                break;
            };
            self.flush_due = true;
            if let Err(error) = Pin::new(&mut self.stream).start_send(wire) {
                self.break_off(&error);
            }
        }
        self.flush(context)
    }

    /// Pushes what the codec holds into the socket and watches that the peer takes it.
    fn flush(&mut self, context: &mut Context<'_>) -> Result<(), End> {
        if !self.flush_due {
            return Ok(());
        }
        match Pin::new(&mut self.stream).poll_flush(context) {
            Poll::Ready(Ok(())) => {
                self.flush_due = false;
                self.stalled = None;
                self.flushed = self.in_flight.len();
            }
            Poll::Ready(Err(error)) => self.break_off(&error),
            Poll::Pending => {
                let bytes_out = self.bytes_out();
                let now = Instant::now();
                let waiting = self.stalled.filter(|stall| stall.bytes_out == bytes_out);
                let stall = waiting.unwrap_or(Stall { since: now, bytes_out });
                self.stalled = Some(stall);
                if now.duration_since(stall.since) >= self.limits.write_progress_timeout {
                    return Err(End::silently(Gone::WriteStalled));
                }
            }
        }
        Ok(())
    }

    /// The end this side asked for, once everything queued before it has been sent and reported.
    fn close_if_asked(&mut self) -> Result<(), End> {
        let sent = self.in_flight.is_empty() && !self.flush_due && self.broken.is_none();
        if !sent || !self.outbox.is_drained() {
            return Ok(());
        }
        let asked = self.close_wanted.take().or_else(|| {
            let request = self.outbox.close_requested()?;
            Some((request.code, close_reason(request.reason)))
        });
        match asked {
            None => Ok(()),
            Some((code, reason)) => Err(End {
                gone: Gone::Requested { code },
                farewell: Some((code, reason)),
                step: Step::Handshake,
            }),
        }
    }

    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<Result<Event<T>, End>> {
        if self.paused || self.slow_until.is_some() {
            return Poll::Pending;
        }
        for _ in 0..SILENT_MESSAGES {
            let message = Pin::new(&mut self.stream).poll_next(context);
            self.note_inbound()?;
            let event = match ready!(message) {
                Some(Ok(Message::Text(text))) => Event::Text(text),
                Some(Ok(Message::Binary(bytes))) => Event::Binary(bytes),
                Some(Ok(Message::Pong(payload))) if !payload.is_empty() => {
                    return Poll::Ready(Ok(Event::Pong(payload)));
                }
                Some(Ok(Message::Close(frame))) => {
                    let code = frame.map(|frame| frame.code.into());
                    let gone = Gone::ByPeer { code };
                    return Poll::Ready(Err(End { gone, farewell: None, step: Step::Handshake }));
                }
                Some(Ok(Message::Ping(_))) => {
                    // The codec has prepared the answer and counts on somebody to flush it.
                    self.flush_due |= self.broken.is_none();
                    continue;
                }
                Some(Ok(Message::Pong(_) | Message::Frame(_))) => continue,
                Some(Err(error)) => return Poll::Ready(Err(self.read_ended(error))),
                None => return Poll::Ready(Err(self.read_ended(Error::ConnectionClosed))),
            };
            self.first_message_due = None;
            return Poll::Ready(Ok(event));
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// Any byte is a sign of life, also one of a message that is not complete yet.
    fn note_inbound(&mut self) -> Result<(), End> {
        let bytes_in = self.bytes_in();
        if bytes_in == self.heard_bytes {
            return Ok(());
        }
        self.heard_bytes = bytes_in;
        self.heard_at = Instant::now();
        self.pinged_at = None;
        let (frames, controls) = self.stream.io().frames_in();
        let now_us = self.heard_at.duration_since(self.begun).as_micros() as u64;
        match self.toll.charge([bytes_in, frames, controls], now_us) {
            Ok(()) => Ok(()),
            Err(Excess::Frames) => Err(End::rule_broken(Gone::TooFast, 1008, "too many frames")),
            // What was read is still acted upon.
            Err(Excess::Bytes(wait)) => {
                self.slow_until = self.heard_at.checked_add(wait);
                Ok(())
            }
        }
    }

    fn read_ended(&mut self, error: Error) -> End {
        let end = End::from_read_error(error);
        match self.broken.take() {
            // The write failed first, and says more than the end of the stream that follows it.
            Some((text, _)) if end.step == Step::Done => End::silently(Gone::Io(text)),
            Some(_) => End::silently(end.gone),
            None => end,
        }
    }

    fn on_deadline(&mut self, now: Instant) -> Result<(), End> {
        let passed = |due: Option<Instant>| due.is_some_and(|due| due <= now);
        if let Some((text, due)) = &self.broken
            && passed(*due)
        {
            return Err(End::silently(Gone::Io(text.clone())));
        }
        if passed(Some(self.rest_due)) {
            self.rest_if_quiet(now);
        }
        if passed(self.slow_until) {
            // The silence so far was ours.
            self.slow_until = None;
            self.heard_at = now;
        }
        if self.paused || self.slow_until.is_some() {
            return Ok(());
        }
        if passed(self.first_message_due) {
            return Err(End::given_up(Gone::FirstMessageLate, 1008, "first message is late"));
        }
        if passed(self.silence_due()) {
            if self.pinged_at.is_some() {
                return Err(End::given_up(Gone::PongMissing, 1011, "no sign of life"));
            }
            self.pinged_at = Some(now);
            self.keepalive_due = true;
        }
        // A stalled write is judged where it is tried again, which is next.
        Ok(())
    }

    /// Gives the buffers back if nothing has passed since this was last asked.
    fn rest_if_quiet(&mut self, now: Instant) {
        let passed = (self.bytes_in(), self.bytes_out());
        if passed == self.passed {
            self.stream.rest();
        }
        self.passed = passed;
        self.rest_due = now + REST_AFTER;
    }

    fn start_ending(&mut self, end: End) {
        let End { gone, farewell, mut step } = end;
        self.outbox.close();
        if let Some((code, reason)) = farewell {
            let frame = CloseFrame { code: code.into(), reason };
            if let Err(error) = Pin::new(&mut self.stream).start_send(Message::Close(Some(frame))) {
                tracing::debug!(%error, code, "close frame could not be sent");
                step = Step::Done;
            }
        }
        let due = Instant::now().checked_add(self.limits.close_timeout);
        self.phase = Phase::Ending { gone, step, due };
    }

    /// Ready once `step` is complete, hopeless or late.
    fn poll_ending(&mut self, step: Step, context: &mut Context<'_>) -> Poll<()> {
        if step == Step::Done || self.poll_due(context).is_ready() {
            return Poll::Ready(());
        }
        let flushed = match Pin::new(&mut self.stream).poll_flush(context) {
            Poll::Ready(Err(_)) => return Poll::Ready(()),
            Poll::Ready(Ok(())) => {
                self.flushed = self.in_flight.len();
                true
            }
            Poll::Pending => false,
        };
        match step {
            Step::Done => Poll::Ready(()),
            Step::Handshake => self.poll_handshake(context),
            Step::Drain if flushed => self.poll_drain(context),
            Step::Drain => Poll::Pending,
        }
    }

    /// Drops messages until the codec has seen the end of the stream.
    fn poll_handshake(&mut self, context: &mut Context<'_>) -> Poll<()> {
        for _ in 0..SILENT_MESSAGES {
            match ready!(Pin::new(&mut self.stream).poll_next(context)) {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Poll::Ready(()),
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// Drops bytes until the peer has closed its side, having been told that ours is closed.
    fn poll_drain(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let io = self.stream.io_mut();
        if ready!(Pin::new(&mut *io).poll_shutdown(context)).is_err() {
            return Poll::Ready(());
        }
        let mut space = [0; 4096];
        loop {
            let mut buffer = ReadBuf::new(&mut space);
            let read = ready!(Pin::new(&mut *io).poll_read(context, &mut buffer));
            if read.is_err() || buffer.filled().is_empty() {
                return Poll::Ready(());
            }
        }
    }

    fn finish(&mut self) -> Event<T> {
        match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::Ending { gone, .. } => Event::Closed(gone),
            Phase::Open | Phase::Over => unreachable!("only an ending finishes"),
        }
    }
}

/// Whoever still holds the outbox learns from its next push that nobody sends any more.
impl<S, T> Drop for Connection<S, T> {
    fn drop(&mut self) {
        self.outbox.close();
    }
}

/// As much of `reason` as a close frame can carry.
fn close_reason(reason: &str) -> Utf8Bytes {
    let mut end = reason.len().min(CLOSE_REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    Utf8Bytes::from(&reason[..end])
}

#[cfg(test)]
mod tests;
