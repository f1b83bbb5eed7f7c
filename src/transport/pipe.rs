//! What a WebSocket runs over: a socket, or a pipe whose two ends are in this process.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use futures_util::{SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::DuplexStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Utf8Bytes;
use tokio_tungstenite::tungstenite::error::Error;
use tokio_tungstenite::tungstenite::protocol::{Message, Role, WebSocketConfig};
use tokio_util::either::Either;

use super::socket::WebSocket;
use super::websocket::{Limits, server_socket};

/// What the server's end of a WebSocket runs over.
pub type Stream = Either<TokioIo<Upgraded>, DuplexStream>;

/// Bytes on their way in each direction of a pipe.
const PIPE_BYTES: usize = 64 * 1024;

/// What comes to a client's end of a pipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// A message from the server.
    Text(Utf8Bytes),
    /// The server's end has what was said.
    Taken,
    /// The end, with the server's close code if it gave one.
    Closed(Option<u16>),
}

/// A client's end of a pipe.
pub struct Client {
    socket: WebSocketStream<DuplexStream>,
    said: Option<Message>,
    flushing: bool,
}

/// The two ends of a WebSocket within this process: the server's, which keeps `limits`, and its
/// client's, which takes messages of up to `answer_bytes_max` bytes. There is no handshake.
pub async fn pipe(limits: &Limits, answer_bytes_max: usize) -> (WebSocket<Stream>, Client) {
    let (far, near) = tokio::io::duplex(PIPE_BYTES);
    let config = WebSocketConfig::default()
        .max_message_size(Some(answer_bytes_max))
        .max_frame_size(Some(answer_bytes_max));
    let socket = WebSocketStream::from_raw_socket(near, Role::Client, Some(config)).await;
    let client = Client { socket, said: None, flushing: false };
    (server_socket(Stream::Right(far), limits), client)
}

impl Client {
    /// Sends a message. False if there is nobody any more.
    pub async fn send(&mut self, text: String) -> bool {
        self.say(text);
        let sent = poll_fn(|cx| self.poll_say(cx)).await;
        self.flushing = false;
        sent.is_ok()
    }

    /// Has a message sent while `next` is awaited, which reports when it was taken. One at a time.
    pub fn say(&mut self, text: String) {
        debug_assert!(!self.is_busy(), "what was said before is not taken yet");
        self.said = Some(Message::text(text));
    }

    /// Whether what was said last is still on its way.
    pub fn is_busy(&self) -> bool {
        self.said.is_some() || self.flushing
    }

    /// What comes next. Dropping the future loses nothing; after `Closed` there is only `Closed`.
    pub async fn next(&mut self) -> Heard {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Heard> {
        match self.poll_say(cx) {
            Poll::Ready(Ok(())) if self.flushing => {
                self.flushing = false;
                return Poll::Ready(Heard::Taken);
            }
            Poll::Ready(Err(_)) => return Poll::Ready(Heard::Closed(None)),
            _ => {}
        }
        loop {
            match ready!(self.socket.poll_next_unpin(cx)) {
                Some(Ok(Message::Text(text))) => return Poll::Ready(Heard::Text(text)),
                Some(Ok(Message::Close(frame))) => {
                    let code = frame.map(|frame| frame.code.into());
                    return Poll::Ready(Heard::Closed(code));
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Poll::Ready(Heard::Closed(None)),
            }
        }
    }

    fn poll_say(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if self.said.is_some() {
            ready!(self.socket.poll_ready_unpin(cx))?;
            if let Some(message) = self.said.take() {
                self.socket.start_send_unpin(message)?;
                self.flushing = true;
            }
        }
        match self.flushing {
            true => self.socket.poll_flush_unpin(cx),
            false => Poll::Ready(Ok(())),
        }
    }
}
