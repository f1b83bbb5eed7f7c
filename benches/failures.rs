//! What a failure costs: from the loss of a node to its job on another, from the end of a lease to
//! the same, and from a restart with unfinished jobs to a server that takes sessions.
//!
//! Real sockets on loopback, everything in one process. `cargo bench --bench failures` measures;
//! `cargo test --bench failures` only shows that it works.

use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};
use utterd::config::Config;
use utterd::server::Server;

const AUDIO_BYTES: usize = 32_000;
/// The lease of the jobs whose node stays silent, in milliseconds.
const LEASE_MS: u64 = 50;

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

fn config(data: &std::path::Path) -> Config {
    let mut config = Config::default();
    config.server.listen = "127.0.0.1:0".into();
    config.server.data = data.to_owned();
    config.server.drain_ms = 0;
    config.node.heartbeat_timeout_ms = 3_600_000;
    // Nodes that fail by the hundred are not to be taken out for it.
    config.node.failure_window = 32;
    config.node.failure_count = 32;
    config.node.failure_consecutive = 32;
    config
}

async fn connect(server: &Server, path: &str) -> Socket {
    let url = format!("ws://{}{path}", server.addr());
    connect_async_with_config(url, None, true).await.unwrap().0
}

async fn send(socket: &mut Socket, message: Value) {
    socket.send(Message::text(message.to_string())).await.unwrap();
}

/// The next message of that type.
async fn hear(socket: &mut Socket, kind: &str) -> Value {
    let heard = async {
        loop {
            let message = socket.next().await.unwrap().unwrap();
            let Ok(text) = message.into_text() else { continue };
            let value: Value = serde_json::from_str(&text).unwrap_or_default();
            if value["type"] == kind {
                return value;
            }
        }
    };
    let late = Duration::from_secs(30);
    tokio::time::timeout(late, heard).await.unwrap_or_else(|_| panic!("no {kind} came"))
}

/// A session from zh to en, and its id.
async fn session(server: &Server) -> (Socket, String) {
    let mut socket = connect(server, "/ws/session").await;
    let init = json!({"type": "session_init", "client_version": "b", "platform": "cli",
        "src_lang": "zh", "tgt_lang": "en", "extensions": ["resume"]});
    send(&mut socket, init).await;
    let ack = hear(&mut socket, "session_init_ack").await;
    (socket, ack["session_id"].as_str().unwrap().to_owned())
}

/// A node that does nothing by itself, in the pools.
async fn node(server: &Server, id: &str) -> Socket {
    let mut socket = connect(server, "/ws/node").await;
    let (languages, ready) = (json!(["zh", "en"]), |kind| json!({"type": kind, "ready": true}));
    let register = json!({"type": "node_register", "node_id": id, "version": "b",
        "capability_schema_version": "2.0", "platform": "linux", "hardware": {},
        "installed_models": [], "installed_services": [],
        "capability_by_type": [ready("asr"), ready("nmt"), ready("tts")],
        "features_supported": {}, "accept_public_jobs": true,
        "language_capabilities": {"asr_languages": languages, "tts_languages": languages,
            "semantic_languages": languages}});
    send(&mut socket, register).await;
    hear(&mut socket, "node_register_ack").await;
    tokio::time::sleep(Duration::from_millis(30)).await;
    socket
}

fn utterance(session: &str, index: u64, audio: &str) -> Value {
    json!({"type": "utterance", "session_id": session, "utterance_index": index,
        "manual_cut": true, "src_lang": "zh", "tgt_lang": "en", "audio": audio,
        "audio_format": "pcm16", "sample_rate": 16_000})
}

async fn answer(node: &mut Socket, id: &str, job: &Value) {
    let result = json!({"type": "job_result", "job_id": job["job_id"], "node_id": id,
        "attempt_id": job["attempt_id"], "success": true, "text_asr": "a",
        "text_translated": "b", "tts_audio": "", "tts_format": "pcm16"});
    send(node, result).await;
}

/// A job's node closes its socket, or says nothing until the lease is over; milliseconds until the
/// other one has read the job, less the lease.
async fn fail_over(times: u64, silently: bool) -> Vec<f64> {
    let data = tempfile::tempdir().unwrap();
    let mut config = config(data.path());
    if silently {
        (config.job.lease_base_ms, config.job.lease_min_ms) = (LEASE_MS, LEASE_MS);
        config.job.lease_per_audio_second_ms = 0;
    }
    let server = Server::start(config).await.unwrap();
    let (mut speaker, id) = session(&server).await;
    let audio = base64_simd::STANDARD.encode_to_string(vec![0x40; AUDIO_BYTES]);
    let (mut first, mut second) = (node(&server, "a").await, node(&server, "b").await);
    let mut names = ("a", "b");
    let mut taken = Vec::new();
    for index in 0..times {
        send(&mut speaker, utterance(&id, index, &audio)).await;
        // Whichever has it is the one to fail.
        let has_first = tokio::select! {
            _ = hear(&mut first, "job_assign") => true,
            _ = hear(&mut second, "job_assign") => false,
        };
        if !has_first {
            std::mem::swap(&mut first, &mut second);
            names = (names.1, names.0);
        }
        let mut began = Instant::now();
        if silently {
            began += Duration::from_millis(LEASE_MS);
        } else {
            first.close(None).await.unwrap();
        }
        let job = hear(&mut second, "job_assign").await;
        taken.push(began.elapsed().as_secs_f64() * 1e3);
        answer(&mut second, names.1, &job).await;
        let told = hear(&mut speaker, "translation_result").await;
        send(&mut speaker, json!({"type": "ack", "session_id": id, "seq": told["seq"]})).await;
        if !silently {
            first = node(&server, names.0).await;
        }
    }
    server.stop().await;
    taken
}

/// Seconds from the start of a server with so many unfinished jobs until it takes sessions.
async fn restart(jobs: usize) -> f64 {
    const SESSIONS: usize = 32;
    let data = tempfile::tempdir().unwrap();
    let limits = |config: &mut Config| {
        config.session.jobs_max = jobs.div_ceil(SESSIONS);
        (config.job.live_max, config.job.queue_max) = (2 * jobs, 2 * jobs);
        config.job.pending_ms = 600_000;
    };
    let mut first = config(data.path());
    limits(&mut first);
    let server = Server::start(first.clone()).await.unwrap();
    let audio = base64_simd::STANDARD.encode_to_string(vec![0x40; AUDIO_BYTES]);
    let mut speakers = Vec::new();
    for _ in 0..SESSIONS {
        speakers.push(session(&server).await);
    }
    for n in 0..jobs {
        let (socket, id) = &mut speakers[n % SESSIONS];
        send(socket, utterance(id, (n / SESSIONS) as u64, &audio)).await;
        if n % 512 == 511 {
            // No faster than the disk.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    server.stop().await;
    drop(speakers);
    let began = Instant::now();
    let server = Server::start(first).await.unwrap();
    let (mut speaker, _) = session(&server).await;
    let took = began.elapsed().as_secs_f64();
    speaker.close(None).await.unwrap();
    let had = live(&server).await;
    assert!(had >= jobs as u64 * 99 / 100, "only {had} of {jobs} jobs came back");
    server.stop().await;
    took
}

async fn live(server: &Server) -> u64 {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = TcpStream::connect(server.addr()).await.unwrap();
    let ask = b"GET /api/v1/stats HTTP/1.1\r\nhost: b\r\nconnection: close\r\n\r\n";
    stream.write_all(ask).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let body = text.split("\r\n\r\n").nth(1).unwrap_or_default();
    let stats: Value = serde_json::from_str(body).unwrap_or_default();
    stats["jobs"]["live"].as_u64().unwrap_or(0)
}

fn quantiles(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    let at = |q: f64| values[((values.len() - 1) as f64 * q) as usize];
    format!("p50 {:.2}, p99 {:.2}, max {:.2} of {}", at(0.5), at(0.99), at(1.0), values.len())
}

#[allow(clippy::print_stdout, reason = "it is what a benchmark is for")]
#[tokio::main]
async fn main() {
    let smoke = !std::env::args().any(|arg| arg == "--bench");
    let (times, jobs, starts) = if smoke { (3, 100, 1) } else { (300, 10_000, 5) };
    let closed = quantiles(fail_over(times, false).await);
    println!("node's socket closes → job read by another node, ms: {closed}");
    let silent = quantiles(fail_over(times, true).await);
    println!("node silent for its lease → the same, ms beyond the lease: {silent}");
    for _ in 0..starts {
        let seconds = restart(jobs).await;
        println!("start with {jobs} unfinished jobs → a session is opened: {seconds:.3} s");
    }
}
