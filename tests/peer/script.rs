//! The scheduler that follows a script.

use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

/// Longest wait for something that must happen.
pub(crate) const SOON: Duration = Duration::from_secs(10);
/// Long enough for something that must not happen to show.
pub(crate) const QUIET: Duration = Duration::from_millis(80);

/// The scheduler's side of one connection.
pub(crate) struct Script {
    pub(crate) socket: WebSocketStream<TcpStream>,
}

impl Script {
    pub(crate) async fn accept(listener: &TcpListener) -> Self {
        let accepted = tokio::time::timeout(SOON, listener.accept()).await;
        let (stream, _) = accepted.expect("nobody connects").unwrap();
        Self { socket: tokio_tungstenite::accept_async(stream).await.unwrap() }
    }

    pub(crate) async fn say(&mut self, message: Value) {
        self.socket.send(Message::text(message.to_string())).await.unwrap();
    }

    /// The next JSON message, or nothing once the peer has closed.
    pub(crate) async fn hear(&mut self) -> Option<Value> {
        loop {
            let next = tokio::time::timeout(SOON, self.socket.next()).await;
            match next.expect("the peer says nothing") {
                Some(Ok(Message::Text(text))) => return Some(serde_json::from_str(&text).unwrap()),
                Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
                Some(Ok(_)) => {}
            }
        }
    }

    /// The next message, which must be of this type; heartbeats are passed over unless asked for.
    #[track_caller]
    pub(crate) fn expect<'a>(&'a mut self, kind: &'a str) -> impl Future<Output = Value> + 'a {
        let at = std::panic::Location::caller();
        async move {
            loop {
                let message = self.hear().await.unwrap_or_else(|| panic!("{at}: closed"));
                let said = message["type"].as_str().unwrap().to_owned();
                if said == kind {
                    return message;
                }
                assert_eq!(said, "node_heartbeat", "{at}: wanted {kind}, got {message}");
            }
        }
    }

    /// Nothing but heartbeats and pings for a while.
    pub(crate) async fn assert_quiet(&mut self) {
        let until = Instant::now() + QUIET;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            match tokio::time::timeout(left, self.socket.next()).await {
                Err(_) => return,
                Ok(Some(Ok(Message::Text(text)))) => {
                    assert!(text.contains("\"node_heartbeat\""), "not quiet: {text}");
                }
                Ok(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => {}
                Ok(other) => panic!("not quiet: {other:?}"),
            }
        }
    }

    /// Takes a registration as a scheduler that acknowledges results, which wants this of what the
    /// node has.
    pub(crate) async fn welcome(&mut self, jobs: Value) -> Value {
        let register = self.expect("node_register").await;
        let ack = json!({"type": "node_register_ack", "node_id": "node-7",
            "extensions": ["result_ack"], "jobs": jobs});
        self.say(ack).await;
        register
    }

    pub(crate) async fn register(&mut self) -> Value {
        let register = self.expect("node_register").await;
        let ack =
            json!({"type": "node_register_ack", "node_id": "node-7", "status": "registering"});
        self.say(ack).await;
        register
    }
}

pub(crate) fn base64(bytes: &[u8]) -> String {
    base64_simd::STANDARD.encode_to_string(bytes)
}

pub(crate) fn unbase64(text: &Value) -> Vec<u8> {
    base64_simd::STANDARD.decode_to_vec(text.as_str().unwrap()).unwrap()
}
