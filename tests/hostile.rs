//! What strangers send: seventy-five rows of input, what the server answers, what becomes of the
//! connection, and that it serves everybody else as before, in the same memory.

mod hostile {
    pub mod frames;
    pub mod rows;
}
mod support;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use support::{Peer, TestServer, http};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use utterd::config::Config;

use hostile::frames::{Wire, read_outcome};
use hostile::rows::{ROWS, Row, Way};

/// For what must happen.
const SOON: Duration = Duration::from_secs(10);
/// What all of it together may leave behind, in bytes of resident memory.
const LEFT_BEHIND_MAX: usize = 64 * 1024 * 1024;

/// Servers for all that is asked of one.
struct World {
    /// Small limits, no keys.
    open: TestServer,
    /// Keys for every door.
    closed: TestServer,
    /// Two connections from one address.
    narrow: TestServer,
}

fn small(config: &mut Config) {
    let t = &mut config.transport;
    t.header_timeout_ms = 300;
    t.session_message_bytes_max = 8 * 1024;
    t.node_message_bytes_max = 16 * 1024;
    t.ping_interval_ms = 400;
    t.pong_timeout_ms = 400;
    t.session_frames_per_second = 500;
    t.session_controls_per_second = 50;
    t.allowed_origins = vec!["https://ours.example".into()];
    config.session.jobs_max = 4;
}

impl World {
    async fn begin() -> Self {
        Self {
            open: TestServer::start(small).await,
            closed: TestServer::start(|c| {
                c.auth.session_keys_required = true;
                c.auth.node_keys_required = true;
            })
            .await,
            narrow: TestServer::start(|c| {
                c.transport.address_connections_max = 2;
                c.transport.unlimited_addresses.clear();
            })
            .await,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::print_stdout, reason = "the table with what came out is the point")]
async fn every_row_is_answered_as_it_says_and_hurts_nobody() {
    let world = World::begin().await;
    // What the tests themselves need.
    assert_eq!(session(world.open.addr(), |_| Vec::new()).await, "ignored, open");
    world.open.get("/api/v1/stats").await;
    let before = resident();
    let (mut wrong, mut told) = (String::new(), String::new());
    for row in ROWS {
        let came = outcome(&world, row).await;
        writeln!(told, "{:>2}  {:<58} {came}", row.number, row.input).unwrap();
        if !row.wanted.split(" or ").any(|wanted| wanted == came) {
            writeln!(wrong, "{} {}: {came}, not {}", row.number, row.input, row.wanted).unwrap();
        }
        for server in [&world.open, &world.closed] {
            assert_eq!(http(server.addr(), "GET", "/health", "").await.0, 200, "{}", row.number);
        }
    }
    println!("{told}");
    assert!(wrong.is_empty(), "\n{wrong}");
    let numbers: Vec<u32> = ROWS.iter().map(|row| row.number).collect();
    assert_eq!(numbers, (1..=75).collect::<Vec<_>>(), "each row once");
    let grown = resident().saturating_sub(before);
    assert!(grown < LEFT_BEHIND_MAX, "{grown} bytes are left behind");
    // Who behaves is served: a session, its utterance, its result.
    let mut node = world.open.node("n9", &["zh", "en"]).await;
    let (mut client, id) = world.open.session("zh", "en").await;
    client.chunk(&id, 0, &support::speech(100), true).await;
    let job = node.assignment().await;
    node.answer(&job, "well").await;
    assert_eq!(client.told().await["text_asr"], "well");
}

/// Bytes of memory that the process has.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

async fn outcome(world: &World, row: &Row) -> String {
    let open = world.open.addr();
    match row.way {
        Way::Bytes(bytes) => raw(open, &bytes()).await,
        Way::Slowly(bytes) => slowly(open, bytes).await,
        Way::Frames(frames) => {
            let mut wire = Wire::upgraded(open, "/ws/session").await;
            wire.send(&frames()).await;
            read_outcome(&mut wire).await
        }
        Way::Session(messages) => session(open, messages).await,
        Way::Node(messages) => node(&world.open, messages).await,
        Way::Closed(path, credential) => {
            let head = upgrade(path, &format!("authorization: Bearer {credential}\r\n"));
            raw(world.closed.addr(), head.as_bytes()).await
        }
        Way::Crowd => {
            let addr = world.narrow.addr();
            let _two = (TcpStream::connect(addr).await, TcpStream::connect(addr).await);
            raw(addr, b"GET /health HTTP/1.1\r\nhost: h\r\n\r\n").await
        }
        Way::Shown(place, test) => shown(place, test),
        Way::Without(reason) => {
            assert!(reason.len() > 20, "a reason");
            "does not apply".to_owned()
        }
    }
}

/// A request for a WebSocket.
fn upgrade(path: &str, more: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n"
    )
}

/// Sends bytes to the port; the status, or that it was closed without one.
async fn raw(addr: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    // Who is refused half way is reset.
    stream.write_all(bytes).await.ok();
    status(&mut stream).await
}

/// The same, a byte at a time, for ever.
async fn slowly(addr: SocketAddr, bytes: &[u8]) -> String {
    let (mut reader, mut writer) = TcpStream::connect(addr).await.unwrap().into_split();
    let bytes = bytes.to_vec();
    let drip = tokio::spawn(async move {
        for byte in bytes.iter().cycle() {
            if writer.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        std::future::pending::<()>().await;
    });
    let mut answer = Vec::new();
    let read = tokio::time::timeout(SOON, reader.read_to_end(&mut answer)).await;
    drip.abort();
    assert!(read.is_ok(), "it is waited for without end");
    said(&answer)
}

async fn status(stream: &mut TcpStream) -> String {
    let mut answer = vec![0; 4096];
    match tokio::time::timeout(SOON, stream.read(&mut answer)).await.expect("an answer") {
        Ok(n) => said(&answer[..n]),
        Err(_) => said(&[]),
    }
}

fn said(answer: &[u8]) -> String {
    let text = String::from_utf8_lossy(answer);
    match text.strip_prefix("HTTP/1.1 ").or_else(|| text.strip_prefix("HTTP/1.0 ")) {
        Some(rest) => rest[..3].to_owned(),
        None if answer.is_empty() => "closed".to_owned(),
        None => format!("{text:?}"),
    }
}

/// Opens a session and says something; the first thing that is told of it, and that it stays open.
async fn session(addr: SocketAddr, messages: fn(&str) -> Vec<Value>) -> String {
    let mut peer = Peer::connect(addr, "/ws/session").await;
    peer.send(json!({"type": "session_init", "client_version": "t", "platform": "web",
        "src_lang": "zh", "tgt_lang": "en", "extensions": ["typed_errors"]}))
        .await;
    let id = peer.expect("session_init_ack").await["session_id"].as_str().unwrap().to_owned();
    for message in messages(&id) {
        match message.as_str() {
            // As it is, for what is not JSON.
            Some(text) => peer.send_text(text).await,
            None => peer.send(message).await,
        }
    }
    peer.send(json!({"type": "client_heartbeat", "session_id": id})).await;
    let told = peer.next_of(&["error", "server_heartbeat", "session_resume_ack"]).await;
    let first = match told["type"].as_str() {
        Some("error") => told["code"].as_str().unwrap().to_owned(),
        Some("session_resume_ack") => told["reason"].as_str().unwrap().to_owned(),
        _ => return "ignored, open".to_owned(),
    };
    peer.expect("server_heartbeat").await;
    format!("{first}, open")
}

/// Registers a node and says something more; how many slots it has then, or how it was closed.
async fn node(server: &TestServer, messages: fn() -> Vec<Value>) -> String {
    let mut peer = server.raw_node().await;
    for message in messages() {
        peer.send(message).await;
    }
    match peer.next_within().await {
        Some(ack) if ack["type"] == "node_register_ack" => {
            let path = format!("/api/v1/nodes/{}", ack["node_id"].as_str().unwrap());
            let (_, node) = server.get(&path).await;
            format!("{} slots", node["slots_max"])
        }
        Some(other) => other["code"].as_str().unwrap_or_default().to_owned(),
        None => "closed".to_owned(),
    }
}

/// Another test shows it, and is there.
fn shown(place: &str, test: &str) -> String {
    let text = std::fs::read_to_string(format!("{}/{place}", env!("CARGO_MANIFEST_DIR")));
    let there = text.is_ok_and(|text| text.contains(&format!("fn {test}(")));
    if there { "shown elsewhere".to_owned() } else { format!("{place} has no test {test}") }
}
