//! A session that ends, however and whenever, leaves nothing behind.

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::{FakeNode, Peer, TestServer, speech};
use tokio_tungstenite::tungstenite::Message;

/// Longer than any test waits for something to happen by itself, shorter than a node may be silent.
const LONG_MS: u64 = 30_000;

async fn server() -> TestServer {
    TestServer::start(|c| {
        c.session.utterance_gap_wait_ms = LONG_MS;
        c.session.result_gap_wait_ms = LONG_MS;
        c.session.close_wait_ms = LONG_MS;
        c.job.pending_ms = LONG_MS;
    })
    .await
}

async fn sentence(client: &mut Peer, id: &str, seq: u64) {
    client.chunk(id, seq, &speech(512), false).await;
    client.chunk(id, seq + 1, &[], true).await;
}

/// The end of a client, in each of the ways there are.
#[derive(Clone, Copy, Debug)]
enum Exit {
    /// The connection breaks.
    Breaks,
    /// The tab is closed.
    TabCloses,
    /// A new session takes its place, and then that one's connection breaks.
    Replaced,
}

const EXITS: [Exit; 3] = [Exit::Breaks, Exit::TabCloses, Exit::Replaced];

async fn leave(mut client: Peer, exit: Exit) {
    match exit {
        Exit::Breaks => {}
        Exit::TabCloses => client.send_raw(Message::Close(None)).await,
        Exit::Replaced => {
            client
                .send(json!({"type": "session_init", "client_version": "t", "platform": "web",
                    "src_lang": "zh", "tgt_lang": "en"}))
                .await;
            client.expect("session_init_ack").await;
        }
    }
}

/// The ids of the jobs a node is told to drop, in the order of `jobs`.
async fn cancelled(node: &mut FakeNode, jobs: &[&Value]) {
    let mut told = Vec::new();
    for _ in jobs {
        told.push(node.peer.expect("job_cancel").await["job_id"].to_string());
    }
    let mut wanted: Vec<_> = jobs.iter().map(|job| job["job_id"].to_string()).collect();
    told.sort();
    wanted.sort();
    assert_eq!(told, wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_speech_is_collected() {
    let server = server().await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    for exit in EXITS {
        let (mut client, id) = server.session("zh", "en").await;
        client.chunk(&id, 0, &speech(512), false).await;
        leave(client, exit).await;
        server.until_nothing_is_left().await;
    }
    assert!(node.peer.all("job_assign").await.is_empty(), "speech of someone who left");
    let dropped = "utterd_audio_dropped_bytes_total{why=\"session_lost\"}";
    assert_eq!(server.metric(dropped).await, (3 * speech(512).len()) as f64);
}

#[tokio::test(flavor = "multi_thread")]
async fn during_the_hangover() {
    let server = TestServer::start(|c| c.segmenter.hangover_manual_ms = 10_000).await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    for exit in EXITS {
        let (mut client, id) = server.session("zh", "en").await;
        sentence(&mut client, &id, 0).await;
        leave(client, exit).await;
        server.until_nothing_is_left().await;
    }
    server.advance(Duration::from_millis(10_001));
    assert!(node.peer.all("job_assign").await.is_empty(), "speech of someone who left");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_recording_waits_for_the_one_before_it() {
    let server = server().await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    for exit in EXITS {
        let (mut client, id) = server.session("zh", "en").await;
        client.utterance(&id, 3, "zh", "en").await;
        leave(client, exit).await;
        server.until_nothing_is_left().await;
    }
    server.advance(Duration::from_millis(LONG_MS + 1));
    assert!(node.peer.all("job_assign").await.is_empty(), "speech of someone who left");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_job_waits_for_a_node() {
    let server = server().await;
    for exit in EXITS {
        let (mut client, id) = server.session("zh", "en").await;
        sentence(&mut client, &id, 0).await;
        server.until(|b| b["jobs"]["waiting"] == 1, "/api/v1/stats").await;
        leave(client, exit).await;
        server.until_nothing_is_left().await;
    }
    let mut node = server.node("n1", &["zh", "en"]).await;
    assert!(node.peer.all("job_assign").await.is_empty(), "speech of someone who left");
    assert_eq!(server.metric("utterd_jobs_settled_total{outcome=\"cancelled\"}").await, 3.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_node_works() {
    let server = server().await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    for exit in EXITS {
        let (mut client, id) = server.session("zh", "en").await;
        sentence(&mut client, &id, 0).await;
        let job = node.assignment().await;
        leave(client, exit).await;
        cancelled(&mut node, &[&job]).await;
        server.until_nothing_is_left().await;
        // The node did not hear in time: its answer harms nobody.
        node.answer(&job, "too late").await;
    }
    let late = "utterd_stale_events_total{event=\"result_late\"}";
    server.until_metric(late, 3.0).await;
    server.until_nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_slice_of_long_speech_waits_for_the_rest() {
    let server = TestServer::start(|c| c.segmenter.max_duration_ms = 1_000).await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    for exit in EXITS {
        let (mut client, id) = server.session("zh", "en").await;
        for seq in 0..6 {
            client.chunk(&id, seq, &speech(400), false).await;
        }
        let (first, second) = (node.assignment().await, node.assignment().await);
        assert_eq!(first["turn_id"], second["turn_id"]);
        leave(client, exit).await;
        cancelled(&mut node, &[&first, &second]).await;
        server.until_nothing_is_left().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_result_waits_for_the_one_before_it() {
    let server = server().await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    for exit in EXITS {
        let (mut client, id) = server.session("zh", "en").await;
        sentence(&mut client, &id, 0).await;
        sentence(&mut client, &id, 2).await;
        let (first, second) = (node.assignment().await, node.assignment().await);
        node.answer(&second, "second").await;
        server.job_at(&second["job_id"], "settled").await;
        leave(client, exit).await;
        cancelled(&mut node, &[&first]).await;
        server.until_nothing_is_left().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_its_node_is_gone_too() {
    let server = server().await;
    for exit in EXITS {
        let mut node = server.node("n1", &["zh", "en"]).await;
        let (mut client, id) = server.session("zh", "en").await;
        sentence(&mut client, &id, 0).await;
        node.assignment().await;
        drop(node);
        server.until(|b| b["jobs"]["waiting"] == 1, "/api/v1/stats").await;
        leave(client, exit).await;
        server.until_nothing_is_left().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_session_gets_its_answers_first() {
    let server = server().await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    let (mut client, id) = server.session("zh", "en").await;
    sentence(&mut client, &id, 0).await;
    client.utterance(&id, 2, "zh", "en").await;
    client.chunk(&id, 2, &speech(512), false).await;
    client.send(json!({"type": "session_close", "session_id": id, "reason": "done"})).await;
    let mut jobs = Vec::new();
    for _ in 0..3 {
        jobs.push(node.assignment().await);
    }
    jobs.sort_by_key(|job| job["utterance_index"].as_u64());
    // What was being said is cut, and its turn is over for the node.
    assert_eq!(jobs[1]["is_timeout_triggered"], true);
    assert!(jobs[1].get("is_manual_cut").is_none());
    // The session takes no more speech, and is not over yet.
    client.chunk(&id, 3, &speech(512), false).await;
    assert_eq!(client.expect("error").await["code"], "SESSION_CLOSED");
    assert!(client.all("session_close_ack").await.is_empty(), "closed with jobs open");
    for job in &jobs {
        node.answer(job, "text").await;
    }
    let kinds = ["translation_result", "session_close_ack"];
    for index in 0..3 {
        assert_eq!(client.next_of(&kinds).await["utterance_index"], index);
    }
    assert_eq!(
        client.next_of(&kinds).await,
        json!({"type": "session_close_ack",
        "session_id": id})
    );
    server.until(|b| b["total"] == 0, "/api/v1/sessions").await;

    // The connection is good for another session.
    client
        .send(json!({"type": "session_init", "client_version": "t", "platform": "web",
            "src_lang": "zh", "tgt_lang": "en"}))
        .await;
    let second = client.expect("session_init_ack").await["session_id"].clone();
    assert_ne!(second, id.as_str());
    let second = second.as_str().unwrap();
    sentence(&mut client, second, 0).await;
    let job = node.assignment().await;
    assert_eq!(job["utterance_index"], 0);
    node.answer(&job, "again").await;
    assert_eq!(client.told().await["text_asr"], "again");
    drop(client);
    server.until_nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closing_session_does_not_wait_for_ever() {
    let server = server().await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    let (mut client, id) = server.session("zh", "en").await;
    sentence(&mut client, &id, 0).await;
    let job = node.assignment().await;
    client.send(json!({"type": "session_close", "session_id": id})).await;
    client.send(json!({"type": "client_heartbeat", "session_id": id, "timestamp": 1})).await;
    client.expect("server_heartbeat").await;
    server.advance(Duration::from_millis(LONG_MS + 1));
    cancelled(&mut node, &[&job]).await;
    let kinds = ["missing_result", "session_close_ack"];
    assert_eq!(client.next_of(&kinds).await["reason"], "cancelled");
    client.expect("session_close_ack").await;
    drop(client);
    server.until_nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_session_on_a_connection_takes_the_place_of_the_old() {
    let server = server().await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    let (mut client, first) = server.session("zh", "en").await;
    sentence(&mut client, &first, 0).await;
    let abandoned = node.assignment().await;
    let mut ids = vec![first];
    for _ in 0..3 {
        client
            .send(json!({"type": "session_init", "client_version": "t", "platform": "web",
                "src_lang": "zh", "tgt_lang": "en"}))
            .await;
        let ack = client.expect("session_init_ack").await;
        ids.push(ack["session_id"].as_str().unwrap().to_owned());
    }
    let mut distinct = ids.clone();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), 4);
    cancelled(&mut node, &[&abandoned]).await;
    let (_, listed) = server.get("/api/v1/sessions").await;
    assert_eq!(
        (&listed["total"], &listed["sessions"][0]["session_id"]),
        (&json!(1), &json!(ids[3]))
    );
    assert_eq!(server.metric("utterd_sessions").await, 1.0);
    // The old ids mean nothing any more, the new one works from the start.
    sentence(&mut client, &ids[0], 0).await;
    assert_eq!(client.expect("error").await["code"], "INVALID_SESSION");
    sentence(&mut client, &ids[3], 0).await;
    let job = node.assignment().await;
    assert_eq!((&job["session_id"], &job["utterance_index"]), (&json!(ids[3]), &json!(0)));
    node.answer(&job, "text").await;
    assert_eq!(client.told().await["session_id"], ids[3].as_str());
    drop(client);
    server.until_nothing_is_left().await;
}
