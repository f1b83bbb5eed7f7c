//! What people say, and what opens their sessions, is in no log, no metric and on no page for
//! operators (of traces: tests/traces.rs).

mod support;

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

use serde_json::json;
use support::{FakeNode, Peer, http, http_with, register_message, speech};

/// Said, translated, and refused: words that occur nowhere else.
const CANARIES: [&str; 3] = ["quetzalcoatl", "axolotlish", "chinchillada"];

/// A server whose log is as loud as it can be; where it is, and its log once it has ended.
fn start(data: &Path) -> (Child, SocketAddr, JoinHandle<std::io::Result<String>>) {
    let mut server = Command::new(env!("CARGO_BIN_EXE_utterd"))
        .args(["serve", "--listen", "127.0.0.1:0", "--data"])
        .arg(data)
        .env("UTTERD_LOG_LEVEL", "trace")
        .env("UTTERD_SEGMENTER_HANGOVER_MANUAL_MS", "0")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = server.stderr.take().unwrap();
    let log = std::thread::spawn(move || {
        let mut text = String::new();
        stderr.read_to_string(&mut text).map(|_| text)
    });
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let addr = line.trim().rsplit(' ').next().unwrap().parse().unwrap();
    (server, addr, log)
}

/// What operators read of a session and its job, asked for with a key.
async fn pages(addr: SocketAddr, session: &str, job: &str) -> String {
    let key = "authorization: Bearer uk_ocelotl\r\n";
    let mut pages = String::new();
    for page in [
        "sessions",
        &format!("sessions/{session}"),
        "jobs",
        &format!("jobs/{job}"),
        "explain?from=zh&to=en",
    ] {
        let path = format!("/api/v1/{page}");
        let (status, body) = http_with(addr, "GET", &path, key, "").await;
        assert_eq!(status, 200, "{path}");
        pages += &body;
    }
    pages
}

#[tokio::test(flavor = "multi_thread")]
async fn speech_texts_and_secrets_stay_out_of_the_log_at_its_loudest() {
    let data = tempfile::tempdir().unwrap();
    let (mut server, addr, log) = start(data.path());

    make_it_louder(addr).await;
    let node = Peer::connect(addr, "/ws/node").await;
    let node = FakeNode::register(node, "n1", &["zh", "en"]);
    let mut node = node.await;
    let mut client = Peer::connect(addr, "/ws/session").await;
    client
        .send(json!({"type": "session_init", "client_version": "t", "platform": "web",
            "src_lang": "zh", "tgt_lang": "en", "extensions": ["resume", "accepted"]}))
        .await;
    let ack = client.expect("session_init_ack").await;
    let session = ack["session_id"].as_str().unwrap().to_owned();
    let secret = ack["resume_secret"].as_str().unwrap().to_owned();
    // A heartbeat has it in the pools for certain.
    node.peer.send(register_message(Some("n1"), &["zh", "en"])).await;
    client.sentence(&session).await;
    let job = node.assignment().await;
    node.peer
        .send(json!({"type": "asr_partial", "job_id": job["job_id"], "text": CANARIES[0],
            "is_final": false}))
        .await;
    let mut result = node.result(&job, CANARIES[1]);
    result["tts_audio"] = base64_simd::STANDARD.encode_to_string(CANARIES[2]).into();
    node.peer.send(result).await;
    client.expect("translation_result").await;
    // Not understood: whatever is said about it may not repeat it.
    client.send_text(&format!("{{\"type\":\"utterance\",\"audio\":\"{}\"}}", CANARIES[0])).await;
    client.expect("error").await;
    for wrong in [false, true] {
        let tried = if wrong { secret.replace(|_| true, "f") } else { secret.clone() };
        let mut back = Peer::connect(addr, "/ws/session").await;
        back.send(json!({"type": "session_resume", "session_id": session, "epoch": 0,
            "resume_secret": tried, "last_seq": 0}))
            .await;
        back.expect("session_resume_ack").await;
    }
    let (_, metrics) = http(addr, "GET", "/metrics", "").await;
    let pages = pages(addr, &session, job["job_id"].as_str().unwrap()).await;
    server.kill().unwrap();
    server.wait().unwrap();

    let log = log.join().unwrap().unwrap();
    assert!(log.contains(&session), "the log is as loud as it can be");
    let speech = base64_simd::STANDARD.encode_to_string(speech(256));
    let spoken = base64_simd::STANDARD.encode_to_string(CANARIES[2]);
    let secrets = [&*secret, &speech[..64], &spoken, "ocelotl"];
    for canary in CANARIES.iter().copied().chain(secrets) {
        assert!(!log.contains(canary), "`{canary}` is in the log");
        assert!(!metrics.contains(canary), "`{canary}` is in the metrics");
        assert!(!pages.contains(canary), "`{canary}` is on a page for operators");
    }
}

/// Those who show what passes through them are not let by the most particular filter either; then
/// a credential passes.
async fn make_it_louder(addr: std::net::SocketAddr) {
    let loudest = "trace,hyper::proto=trace,hyper::proto::h1=trace,tungstenite::protocol=trace,\
        tungstenite::protocol::frame=trace,tokio_tungstenite::compat=trace";
    assert_eq!(http(addr, "PUT", "/api/v1/log-level", loudest).await.0, 200);
    let authorization = format!("authorization: Bearer {}\r\n", CANARIES[2]);
    http_with(addr, "GET", "/api/v1/keys", &authorization, "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_peers_call_themselves_cannot_forge_a_line_of_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let (mut server, addr, log) = start(dir.path());
    let name = "web\x1b[31m\r\n2026-01-01T00:00:00Z ERROR utterd: forged";
    let mut client = Peer::connect(addr, "/ws/session").await;
    client
        .send(json!({"type": "session_init", "client_version": name, "platform": name,
            "src_lang": "zh", "tgt_lang": "en", "trace_id": name}))
        .await;
    client.expect("session_init_ack").await;
    let mut node = Peer::connect(addr, "/ws/node").await;
    let mut hello = register_message(Some(name), &["zh", "en"]);
    hello["platform"] = name.into();
    node.send(hello).await;
    node.send(json!({"type": "node_error", "code": name, "message": name})).await;
    let (status, _) = http_with(addr, "GET", "/health", "user-agent: a\x1b[2Jb\r\n", "").await;
    assert!(status == 200 || status == 400, "{status}");
    server.kill().unwrap();
    server.wait().unwrap();
    let log = log.join().unwrap().unwrap();
    assert!(log.contains("forged"), "what they said is in it, or this shows nothing");
    let escaped: Vec<&str> = log.lines().filter(|line| line.contains('\x1b')).collect();
    assert!(escaped.is_empty(), "{escaped:?}");
    let forged = log.lines().find(|line| line.starts_with("2026-01-01"));
    assert_eq!(forged, None);
}
