//! The whole server over pipes: HTTP, the tasks of sessions and of nodes, the core, and the way
//! back, whoever says what and in whatever pieces.
//!
//! Up to four peers do what the bytes say: ask over HTTP, open a socket of either kind, send good
//! messages (with the ids that they were told), bad ones and chance bytes, stop reading, go away.
//! Whatever they do, what the server says is JSON of a known form, a stranger is served as before,
//! and the server stops when it is told to.

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use utterd::config::Config;
use utterd::server::{Opened, STOP_MAX, Server, Stopped};

use super::memory::{PEER, Street, door, runtime};
use super::script::Script;
use super::websocket::{client_frame, first_frame, raw_frame};

/// Longest frame that the server may send.
const FRAME_MAX: u64 = 1 << 20;
const PEERS: usize = 4;
/// Steps of one input.
const STEPS_MAX: usize = 150;

pub fn run(input: &[u8]) {
    fastrand::seed(7);
    let mut script = Script::new(input);
    runtime().block_on(converse(&mut script));
}

fn config(script: &mut Script<'_>) -> Config {
    let mut config = Config::default();
    config.session.sessions_max = 8;
    config.session.jobs_max = 4;
    config.job.live_max = 8;
    config.job.queue_max = 4;
    config.job.history_max = 8;
    config.node.nodes_max = 3;
    config.room.rooms_max = 2;
    config.transport.node_message_bytes_max = 16 * 1024;
    config.transport.connections_max = PEERS + 2;
    config.transport.session_message_bytes_max = 16 * 1024;
    config.segmenter.max_bytes = 2_000;
    config.server.drain_ms = script.of(&[0, 1_000]);
    config.tenant.messages_per_second = script.of(&[0, 0, 5]);
    config.auth.session_keys_required = script.seldom(16);
    config
}

async fn converse(script: &mut Script<'_>) {
    let (listener, street) = door();
    let config = config(script);
    let closed = config.auth.session_keys_required;
    let opened = Opened { listener, addr: PEER, store: None, secret: [7; 32], unix_ms: 1 };
    let server = Server::start_on(config, opened).await;
    let mut peers: [Option<Peer>; PEERS] = [None, None, None, None];
    let mut known = Known::default();
    let mut steps = 0;
    while !script.is_over() && steps < STEPS_MAX {
        steps += 1;
        let at = script.pick(PEERS);
        let Some(peer) = &mut peers[at] else {
            peers[at] = Some(Peer::connect(&street, script).await);
            continue;
        };
        peer.step(script, &mut known).await;
        if script.seldom(24) {
            peers[at] = None;
        }
        for peer in peers.iter_mut().flatten().filter(|peer| peer.reads) {
            peer.listen(&mut known).await;
            assert!(!closed || !peer.is_session(), "let in without a key");
        }
    }
    drop(peers);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut stranger = street.connect().await;
    stranger
        .write_all(b"GET /health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    let read = stranger.read_to_end(&mut answer);
    let read = tokio::time::timeout(Duration::from_secs(5), read).await;
    assert!(read.is_ok_and(|read| read.is_ok()), "a stranger is not answered");
    assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
    let stopped = tokio::time::timeout(STOP_MAX, server.stop()).await;
    assert_eq!(stopped.ok(), Some(Stopped::InOrder), "the server does not stop");
}

/// What peers were told, for those who come after them.
#[derive(Default)]
struct Known {
    session: String,
    job: String,
    attempt: u64,
    room: String,
    node: String,
    heard: u64,
}

#[derive(PartialEq)]
enum Kind {
    Http,
    Session,
    Node,
}

struct Peer {
    pipe: DuplexStream,
    kind: Kind,
    /// Whether it takes what it is sent.
    reads: bool,
    /// The answer to the upgrade has come whole.
    upgraded: bool,
    unread: Vec<u8>,
}

impl Peer {
    async fn connect(street: &Street, script: &mut Script<'_>) -> Self {
        let pipe = street.connect().await;
        let kind = match script.pick(8) {
            0 => Kind::Http,
            1..=4 => Kind::Session,
            _ => Kind::Node,
        };
        let mut peer = Self { pipe, kind, reads: true, upgraded: false, unread: Vec::new() };
        let path = match peer.kind {
            Kind::Http => return peer,
            Kind::Session => "session",
            Kind::Node => "node",
        };
        let ask = format!(
            "GET /ws/{path} HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        peer.send(ask.as_bytes(), script).await;
        let first = peer.says()[0];
        peer.send(&client_frame(1, first.as_bytes()), script).await;
        peer
    }

    /// The messages of such a peer.
    fn says(&self) -> Vec<&'static str> {
        if self.kind == Kind::Node { NODE } else { SESSION }.lines().collect()
    }

    fn is_session(&self) -> bool {
        self.kind == Kind::Session && self.upgraded
    }

    async fn step(&mut self, script: &mut Script<'_>, known: &mut Known) {
        match script.pick(12) {
            0 => {
                // The server looks at its clock every 2 ms: long waits are what takes time here.
                let ms = script.of(&[1, 5, 50, 300, 1_000, 3_000]);
                let ms = if script.seldom(32) { 20_000 } else { ms };
                tokio::time::sleep(Duration::from_millis(ms)).await;
            }
            1 => self.reads = !self.reads,
            2 => self.send(script.bytes(200), script).await,
            3 if self.kind == Kind::Http => self.ask(script, known).await,
            3 => {
                let frame = raw_frame(script.any(), !script.seldom(8), script.bytes(130));
                self.send(&frame, script).await;
            }
            4 => self.send(&client_frame(script.of(&[1, 2]), script.bytes(400)), script).await,
            _ if self.kind == Kind::Http => self.ask(script, known).await,
            _ => {
                let text = known.fill(script.of(&self.says()), script);
                self.send(&client_frame(1, text.as_bytes()), script).await;
            }
        }
    }

    async fn ask(&mut self, script: &mut Script<'_>, known: &Known) {
        let (method, path) = script.of(&ASKED);
        let path = known.fill(path, script);
        let body = script.bytes(120);
        let mut ask =
            format!("{method} {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n", body.len());
        if script.seldom(3) {
            ask += &format!("authorization: Bearer {}\r\n", script.of(&["x", "utk_", "utt_0", ""]));
        }
        let ask = [ask.as_bytes(), b"\r\n", body].concat();
        self.send(&ask, script).await;
    }

    /// Sends as much as is taken within a moment, now and then in two pieces.
    async fn send(&mut self, bytes: &[u8], script: &mut Script<'_>) {
        let cut = if script.seldom(3) { script.pick(bytes.len() + 1) } else { bytes.len() };
        for piece in [&bytes[..cut], &bytes[cut..]] {
            let write = self.pipe.write_all(piece);
            tokio::time::timeout(Duration::from_millis(1), write).await.ok();
        }
    }

    /// Reads what there is, and looks at it.
    async fn listen(&mut self, known: &mut Known) {
        let mut space = [0; 4_096];
        for _ in 0..16 {
            let read = self.pipe.read(&mut space);
            match tokio::time::timeout(Duration::from_millis(1), read).await {
                Ok(Ok(len)) if len > 0 => self.unread.extend_from_slice(&space[..len]),
                _ => break,
            }
        }
        if self.kind == Kind::Http {
            return self.unread.clear();
        }
        if !self.upgraded {
            let Some(end) = self.unread.windows(4).position(|four| four == b"\r\n\r\n") else {
                return;
            };
            self.upgraded = self.unread.starts_with(b"HTTP/1.1 101 ");
            self.unread.drain(..end + 4);
        }
        while self.upgraded {
            let Some((frame, len)) = first_frame(&self.unread, FRAME_MAX) else { break };
            self.unread.drain(..len);
            assert!(!frame.masked && frame.first & 0xF0 == 0x80, "{frame:?}");
            match frame.opcode() {
                1 => known.learn(&frame.payload),
                opcode => assert!((8..=10).contains(&opcode), "{frame:?}"),
            }
        }
    }
}

impl Known {
    fn learn(&mut self, text: &[u8]) {
        let message: Value = serde_json::from_slice(text).expect("what the server says is JSON");
        let kind = message["type"].as_str().expect("a message has a type");
        assert!(!kind.is_empty());
        self.heard += 1;
        let text = |field: &str| message[field].as_str().map(str::to_owned);
        let keep = |own: &mut String, told: Option<String>| *own = told.unwrap_or_default();
        match kind {
            "session_init_ack" => keep(&mut self.session, text("session_id")),
            "room_create_ack" => keep(&mut self.room, text("room_code")),
            "node_register_ack" => keep(&mut self.node, text("node_id")),
            "job_assign" => {
                keep(&mut self.job, text("job_id"));
                self.attempt = message["attempt_id"].as_u64().expect("an attempt");
                let audio = text("audio").expect("an assignment has audio");
                assert!(super::twin::base64(&audio).is_some_and(|audio| !audio.is_empty()));
            }
            _ => {}
        }
    }

    /// The template with what is known in its places.
    fn fill(&self, template: &str, script: &mut Script<'_>) -> String {
        let number = script.any::<u8>();
        let attempt = self.attempt.to_string();
        template
            .replace("$session", &self.session)
            .replace("$job", &self.job)
            .replace("$attempt", &attempt)
            .replace("$room", &self.room)
            .replace("$node", &self.node)
            .replace("$small", &(number % 6).to_string())
            .replace("$number", &number.to_string())
    }
}

/// What a client says, one message a line; words with `$` are filled in.
pub const SESSION: &str = include_str!("said/session.jsonl");

/// What a node says, the same way.
pub const NODE: &str = include_str!("said/node.jsonl");

const ASKED: [(&str, &str); 22] = [
    ("GET", "/health"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
    ("GET", "/api/v1/stats"),
    ("GET", "/api/v1/nodes"),
    ("GET", "/api/v1/nodes/$node"),
    ("POST", "/api/v1/nodes/$node/drain"),
    ("POST", "/api/v1/nodes/$node/undrain"),
    ("POST", "/api/v1/nodes/$node/pairing-codes"),
    ("GET", "/api/v1/pools"),
    ("PUT", "/api/v1/pools"),
    ("GET", "/api/v1/rooms"),
    ("GET", "/api/v1/sessions"),
    ("GET", "/api/v1/jobs"),
    ("GET", "/api/v1/jobs/$job"),
    ("GET", "/api/v1/usage"),
    ("GET", "/api/v1/keys"),
    ("POST", "/api/v1/keys"),
    ("POST", "/api/v1/session-tokens"),
    ("GET", "/api/v1/dead-letters?after=$number"),
    ("DELETE", "/api/v1/dead-letters/$number"),
    ("GET", "/ws/session"),
];
