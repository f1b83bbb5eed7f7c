//! The server's end of a WebSocket, whose codec is there only while something passes.
//!
//! The codec keeps a buffer as large as the longest of the last messages, in each direction, for as
//! long as it lives, and most sockets rest most of the time. So a socket at rest has none: the next
//! byte of the peer, or the next frame for it, makes one. If that is all there is, a ping, a few
//! short messages, it is a small one that goes at once. The beginning of a long message makes one
//! of full size, that stays until the owner finds the connection quiet.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::{FutureExt, Sink, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::Error;
use tokio_tungstenite::tungstenite::protocol::{Message, Role, WebSocketConfig};

use super::counted::Counted;

/// What is read into while there is no codec, and the read buffer of a small one: what is not
/// speech is shorter, and comes whole.
const SMALL_BYTES: usize = 1024;

/// A WebSocket whose handshake is done.
pub struct WebSocket<S> {
    state: State<S>,
    config: WebSocketConfig,
    /// The codec has looked at every byte that came.
    drained: bool,
    /// Nothing waits in the codec for the peer to take it.
    flushed: bool,
    /// A close frame was sent or received: from now on the codec remembers what another could not.
    closing: bool,
}

enum State<S> {
    Awake(Box<WebSocketStream<Counted<S>>>, Size),
    Resting(Counted<S>),
    /// Between the two, while one becomes the other, and never seen from outside.
    Moving,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Size {
    Small,
    Full,
}

impl<S> WebSocket<S> {
    /// Whether there is a codec that stays until it is told to rest.
    pub(super) fn is_awake(&self) -> bool {
        matches!(self.state, State::Awake(_, Size::Full))
    }
}

impl<S> WebSocket<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    /// Takes a byte stream over after its handshake, at rest.
    pub(super) fn new(io: S, config: WebSocketConfig) -> Self {
        let state = State::Resting(Counted::new(io));
        Self { state, config, drained: true, flushed: true, closing: false }
    }

    /// The byte stream below.
    pub(super) fn io(&self) -> &Counted<S> {
        match &self.state {
            State::Awake(codec, _) => codec.get_ref(),
            State::Resting(io) => io,
            State::Moving => unreachable!("a socket does not stay on the move"),
        }
    }

    /// The byte stream below.
    pub(super) fn io_mut(&mut self) -> &mut Counted<S> {
        match &mut self.state {
            State::Awake(codec, _) => codec.get_mut(),
            State::Resting(io) => io,
            State::Moving => unreachable!("a socket does not stay on the move"),
        }
    }

    /// Gives the codec and its buffers back, if nothing is in them. Whoever waits for the socket is
    /// to poll it again.
    pub(super) fn rest(&mut self) {
        let is_idle = self.drained && self.flushed && self.io().is_between_messages();
        if is_idle && !self.closing {
            self.state = match std::mem::replace(&mut self.state, State::Moving) {
                State::Awake(codec, _) => State::Resting(codec.into_inner()),
                other => other,
            };
        }
    }

    /// The same for a small codec only: whether there was one and it is gone.
    pub(super) fn rest_if_small(&mut self) -> bool {
        let small = matches!(self.state, State::Awake(_, Size::Small));
        if small {
            self.rest();
        }
        small && matches!(self.state, State::Resting(_))
    }

    /// The codec, made if there is none; `read` is what has come for it.
    fn wake(&mut self, read: &[u8]) -> &mut WebSocketStream<Counted<S>> {
        if let State::Resting(_) = self.state
            && let State::Resting(io) = std::mem::replace(&mut self.state, State::Moving)
        {
            let full = self.config;
            let (size, config) = if io.is_between_messages() {
                (Size::Small, full.read_buffer_size(full.read_buffer_size.min(SMALL_BYTES)))
            } else {
                (Size::Full, full)
            };
            let read = read.to_vec();
            let made = WebSocketStream::from_partially_read(io, read, Role::Server, Some(config));
            let codec = made.now_or_never().expect("without a handshake nothing is waited for");
            self.state = State::Awake(Box::new(codec), size);
        }
        match &mut self.state {
            State::Awake(codec, _) => codec,
            State::Resting(_) | State::Moving => unreachable!("it was just woken"),
        }
    }

    /// Waits for the first bytes after a rest, or their end, and wakes.
    fn poll_wake(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut space = [0; SMALL_BYTES];
        let mut read = ReadBuf::new(&mut space);
        ready!(Pin::new(self.io_mut()).poll_read(context, &mut read))?;
        self.wake(read.filled());
        Poll::Ready(Ok(()))
    }
}

impl<S> Stream for WebSocket<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    type Item = Result<Message, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if matches!(self.state, State::Resting(_))
                && let Err(error) = ready!(self.poll_wake(context))
            {
                return Poll::Ready(Some(Err(error.into())));
            }
            let message = Pin::new(self.wake(&[])).poll_next(context);
            self.drained = message.is_pending();
            if let Poll::Ready(Some(Ok(message))) = &message {
                self.closing |= message.is_close();
                // To these the codec has put an answer into its buffer.
                self.flushed &= !(message.is_ping() || message.is_close());
            }
            if message.is_ready() || !self.rest_if_small() {
                return message;
            }
        }
    }
}

impl<S> Sink<Message> for WebSocket<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    type Error = Error;

    fn poll_ready(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        match &mut self.state {
            State::Awake(codec, _) => Pin::new(&mut **codec).poll_ready(context),
            State::Resting(_) | State::Moving => Poll::Ready(Ok(())),
        }
    }

    fn start_send(mut self: Pin<&mut Self>, message: Message) -> Result<(), Error> {
        self.flushed = false;
        self.closing |= message.is_close();
        Pin::new(self.wake(&[])).start_send(message)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if let State::Awake(codec, _) = &mut self.state {
            ready!(Pin::new(&mut **codec).poll_flush(context))?;
            self.flushed = true;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Pin::new(self.wake(&[])).poll_close(context)
    }
}
