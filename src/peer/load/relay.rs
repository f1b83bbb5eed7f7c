//! The floor: what the same frames cost on the same sockets when nobody thinks about them.
//!
//! A speaker's frame goes to the next node in turn as it came, audio and all; what a node says of a
//! session goes to that session as it came. Transport and outboxes are the server's own, so that
//! the difference between the two is what the server does for an utterance. It refuses to know
//! order, failures, and languages.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use tokio::net::TcpListener;

use super::head;
use crate::transport::{
    Body, Connection, Entrance, Event, Frame, House, HttpLimits, Limits, Outbox, Rates, Service,
    Stream, VisitorLimits, answer, serve, upgrade,
};

/// Sockets open at once.
const CONNECTIONS_MAX: usize = 20_000;
/// Frames that may wait for one peer, as in a server with its default settings.
const OUTBOX_FRAMES: usize = 4_096;
/// Bytes that may wait for one peer.
const OUTBOX_BYTES: usize = 64 * 1_024 * 1_024;

/// Nothing to be told when a frame has left.
type Line = Connection<Stream, ()>;

/// A relay that listens.
pub struct Relay {
    listener: TcpListener,
    addr: SocketAddr,
}

#[derive(Default)]
struct Switchboard {
    /// By the number in a session's id.
    sessions: RwLock<Vec<Arc<Outbox<()>>>>,
    nodes: RwLock<Vec<Arc<Outbox<()>>>>,
    /// Whose turn it is.
    turn: AtomicUsize,
}

impl Relay {
    /// Listens on any free port of this machine.
    pub async fn bind() -> std::io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let addr = listener.local_addr()?;
        Ok(Self { listener, addr })
    }

    /// Where.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Relays until told to stop.
    pub async fn run(self, stop: impl Future) {
        let board = Arc::new(Switchboard::default());
        let house = House::new(CONNECTIONS_MAX, VisitorLimits::default());
        let entrance = Entrance { house, limits: HttpLimits::default(), tls: None };
        serve(self.listener, board, entrance, stop).await;
    }
}

impl Service for Switchboard {
    async fn call(
        self: Arc<Self>,
        mut request: Request<Incoming>,
        _peer: SocketAddr,
    ) -> Response<Body> {
        match request.uri().path() {
            "/ws/session" => self.join(&mut request, 4 * 1_024, Self::session),
            "/ws/node" => self.join(&mut request, 64 * 1_024, Self::node),
            "/readyz" => answer(StatusCode::OK, "ready"),
            _ => answer(StatusCode::NOT_FOUND, "not here"),
        }
    }
}

impl Switchboard {
    fn join<F: Future<Output = ()> + Send + 'static>(
        self: Arc<Self>,
        request: &mut Request<Incoming>,
        read_buffer_bytes: usize,
        run: impl FnOnce(Arc<Self>, Line, Arc<Outbox<()>>) -> F + Send + 'static,
    ) -> Response<Body> {
        let limits = limits(read_buffer_bytes);
        let (response, socket) = match upgrade(request, &limits) {
            Ok(agreed) => agreed,
            Err(refusal) => return refusal,
        };
        let outbox = Outbox::new(OUTBOX_FRAMES, OUTBOX_BYTES);
        tokio::spawn(async move {
            match socket.await {
                Ok(socket) => {
                    let line = Connection::new(socket, limits, Arc::clone(&outbox));
                    run(self, line, outbox).await;
                }
                Err(error) => tracing::debug!(%error, "a peer left during the upgrade"),
            }
        });
        response
    }

    async fn session(self: Arc<Self>, mut line: Line, outbox: Arc<Outbox<()>>) {
        let number = {
            let mut sessions = self.sessions.write().unwrap_or_else(PoisonError::into_inner);
            sessions.push(Arc::clone(&outbox));
            sessions.len() - 1
        };
        loop {
            let frame = match line.next().await {
                Event::Text(text) => text,
                Event::Closed(_) => break,
                _ => continue,
            };
            match head::kind(&frame) {
                Some("utterance") => self.to_node(frame.into()),
                Some("session_init") => push(
                    &outbox,
                    format!("{{\"type\":\"session_init_ack\",\"session_id\":\"s-{number}\"}}")
                        .into(),
                ),
                _ => {}
            }
        }
    }

    fn to_node(&self, frame: Bytes) {
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        let turn = self.turn.fetch_add(1, SeqCst);
        if let Some(node) = nodes.get(turn % nodes.len().max(1)) {
            push(node, frame);
        }
    }

    async fn node(self: Arc<Self>, mut line: Line, outbox: Arc<Outbox<()>>) {
        loop {
            let frame = match line.next().await {
                Event::Text(text) => text,
                Event::Closed(_) => break,
                _ => continue,
            };
            match head::kind(&frame) {
                Some("job_result") => self.to_session(frame.into()),
                Some("node_register") => {
                    let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
                    nodes.push(Arc::clone(&outbox));
                    let ack = "{\"type\":\"node_register_ack\"}";
                    push(&outbox, Bytes::from_static(ack.as_bytes()));
                }
                _ => {}
            }
        }
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        nodes.retain(|node| !Arc::ptr_eq(node, &outbox));
    }

    fn to_session(&self, frame: Bytes) {
        let number = std::str::from_utf8(&frame)
            .ok()
            .and_then(|text| head::number(text, "\"session_id\":\"s-"));
        let sessions = self.sessions.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(session) = number.and_then(|number| sessions.get(number as usize)) {
            push(session, frame);
        }
    }
}

/// A frame that finds no room is lost, and the load will say so.
fn push(outbox: &Outbox<()>, text: Bytes) {
    if let Err(refused) = outbox.push(Frame { text, tag: () }) {
        tracing::debug!(why = ?refused.why, "a frame was not relayed");
    }
}

/// A server's, with its default settings.
fn limits(read_buffer_bytes: usize) -> Limits {
    let patience = Duration::from_secs(20);
    Limits {
        message_bytes_max: 16 * 1_024 * 1_024,
        read_buffer_bytes,
        write_buffer_bytes: 0,
        outbox_bytes_max: OUTBOX_BYTES,
        rates: Rates::default(),
        ping_interval: patience,
        pong_timeout: patience,
        write_progress_timeout: patience,
        first_message_timeout: patience,
        close_timeout: patience,
    }
}
