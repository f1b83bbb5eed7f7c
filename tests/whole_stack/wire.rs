//! One end of a WebSocket over the simulated network, JSON in and out.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};
use turmoil::net::TcpStream;

/// How long a connection may take to be made.
const DIAL: Duration = Duration::from_secs(4);
/// A peer from which nothing at all comes for so long is given up; the server pings sooner.
const SILENCE: Duration = Duration::from_secs(6);

pub struct Wire {
    socket: WebSocketStream<TcpStream>,
    /// When anything came last.
    heard: Instant,
}

/// What came.
pub enum Came {
    Said(Value),
    /// Closed in good order, with this code.
    Closed(u16),
    /// Torn, or silent for too long.
    Lost,
}

impl Wire {
    /// None if nobody answers.
    pub async fn dial(path: &str) -> Option<Self> {
        let dialled = async {
            let tcp = TcpStream::connect("server:80").await.ok()?;
            let (socket, _) = client_async(format!("ws://server{path}"), tcp).await.ok()?;
            Some(Self { socket, heard: Instant::now() })
        };
        timeout(DIAL, dialled).await.ok()?
    }

    /// False when the connection is gone.
    pub async fn say(&mut self, message: &Value) -> bool {
        let said = self.socket.send(Message::text(message.to_string()));
        matches!(timeout(SILENCE, said).await, Ok(Ok(())))
    }

    /// The next message.
    pub async fn next(&mut self) -> Came {
        loop {
            let came = timeout_at(self.heard + SILENCE, self.socket.next()).await;
            self.heard = Instant::now();
            match came {
                Ok(Some(Ok(Message::Text(text)))) => match serde_json::from_str(&text) {
                    Ok(message) => return Came::Said(message),
                    Err(_) => return Came::Lost,
                },
                Ok(Some(Ok(Message::Close(frame)))) => {
                    return Came::Closed(frame.map_or(1005, |frame| frame.code.into()));
                }
                Ok(Some(Ok(_))) => {}
                Ok(Some(Err(_)) | None) | Err(_) => return Came::Lost,
            }
        }
    }
}
