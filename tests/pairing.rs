//! Pairing: a code said by one person to another binds a session to one node.

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::{Peer, TestServer, http};

const LANGUAGES: [&str; 2] = ["zh", "en"];

async fn code_for(server: &TestServer, node: &str) -> String {
    let path = format!("/api/v1/nodes/{node}/pairing-codes");
    let (status, body) = http(server.addr(), "POST", &path, "").await;
    assert_eq!(status, 201, "{body}");
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body["node_id"], node);
    body["pairing_code"].as_str().unwrap().to_owned()
}

/// Opens a session with a code; the first answer.
async fn offer(server: &TestServer, code: &str, extensions: &[&str]) -> (Peer, Value) {
    let mut client = server.client().await;
    client
        .send(json!({"type": "session_init", "client_version": "t", "platform": "web",
            "src_lang": "zh", "tgt_lang": "en", "pairing_code": code, "extensions": extensions}))
        .await;
    let answer = client.next_of(&["session_init_ack", "error"]).await;
    (client, answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paired_session_is_served_by_its_node_alone() {
    let server = TestServer::start(|config| config.job.pending_ms = 5_000).await;
    let mut own = server.node("own", &LANGUAGES).await;
    let mut other = server.node("other", &LANGUAGES).await;
    let code = code_for(&server, "own").await;
    let (mut client, ack) = offer(&server, &code, &[]).await;
    assert_eq!(ack["assigned_node_id"], "own");
    let session = ack["session_id"].as_str().unwrap().to_owned();
    for index in 0..6 {
        client.utterance(&session, index, "zh", "en").await;
        let job = own.assignment_of(index).await;
        own.answer(&job, "mine").await;
        client.expect("translation_result").await;
    }
    // Without its node it waits, and is not given to another.
    drop(own);
    server.until(|body| body["state"] == "offline", "/api/v1/nodes/own").await;
    client.utterance(&session, 6, "zh", "en").await;
    other.has_nothing().await;
    server.advance(Duration::from_secs(6));
    let missing = client.expect("missing_result").await;
    assert_eq!(missing["reason"], "no_available_node");
    let (_, jobs) = server.get("/api/v1/jobs").await;
    let mut jobs = jobs["jobs"].as_array().unwrap().iter();
    let waited = jobs.find(|job| job["utterance_index"] == 6).unwrap();
    let path = format!("/api/v1/jobs/{}", waited["job_id"].as_str().unwrap());
    let explained = server.get(&path).await.1.to_string();
    assert!(explained.contains("unpaired"), "{explained}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_is_good_once_for_five_minutes_and_a_wrong_one_is_said_to_be() {
    let server = TestServer::start(|_| {}).await;
    let mut node = server.node("n1", &LANGUAGES).await;
    // A node can ask for a code itself.
    node.peer.send(json!({"type": "pairing_code_request"})).await;
    let made = node.peer.expect("pairing_code").await;
    assert_eq!(made["expires_in_ms"], 300_000);
    let used = made["pairing_code"].as_str().unwrap().to_owned();
    assert_eq!(offer(&server, &used, &[]).await.1["assigned_node_id"], "n1");
    let old = code_for(&server, "n1").await;
    server.advance(Duration::from_secs(301));
    for code in [used.as_str(), &old, "x"] {
        let (mut client, refused) = offer(&server, code, &[]).await;
        assert_eq!(
            (&refused["code"], &refused["retryable"]),
            (&json!("INVALID_PAIRING_CODE"), &json!(false))
        );
        assert_eq!(server.get("/api/v1/sessions").await.1["total"], 0);
        // The connection may open a session without one.
        client
            .send(json!({"type": "session_init", "client_version": "t", "platform": "web",
                "src_lang": "zh", "tgt_lang": "en", "pairing_code": ""}))
            .await;
        assert_eq!(client.expect("session_init_ack").await.get("assigned_node_id"), None);
        drop(client);
        server.until(|body| body["total"] == 0, "/api/v1/sessions").await;
    }
    for _ in 0..2 {
        offer(&server, "x", &[]).await;
    }
    let fresh = code_for(&server, "n1").await;
    let (_client, refused) = offer(&server, &fresh, &[]).await;
    assert_eq!(refused["code"], "RATE_LIMITED");
    assert!((1..=60_000).contains(&refused["retry_after_ms"].as_u64().unwrap()), "{refused}");
    let (status, _) = http(server.addr(), "POST", "/api/v1/nodes/n9/pairing-codes", "").await;
    assert_eq!(status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_stays_paired_across_a_restart() {
    let server = TestServer::start(|_| {}).await;
    let mut own = server.node("own", &LANGUAGES).await;
    let code = code_for(&server, "own").await;
    let (mut client, ack) = offer(&server, &code, &["resume"]).await;
    let session = ack["session_id"].as_str().unwrap().to_owned();
    client.utterance(&session, 0, "zh", "en").await;
    let job = own.assignment().await;
    own.answer(&job, "first").await;
    client.expect("translation_result").await;
    let server = server.restart(|_| {}).await;
    let mut other = server.node("other", &LANGUAGES).await;
    let mut client = server.client().await;
    client
        .send(json!({"type": "session_resume", "session_id": session, "epoch": ack["epoch"],
            "resume_secret": ack["resume_secret"], "last_seq": 1}))
        .await;
    client.expect("session_resume_ack").await;
    client.utterance(&session, 1, "zh", "en").await;
    other.has_nothing().await;
    let mut own = server.node("own", &LANGUAGES).await;
    let job = own.assignment_of(1).await;
    own.answer(&job, "second").await;
    assert_eq!(client.expect("translation_result").await["text_asr"], "second");
}
