//! The main job: speech from a speaker to a node and back.

mod support;

use std::time::{Duration, Instant};

use serde_json::json;
use support::{TestServer, audio_of, opus, speech};
use utterd::config::{Config, Delivery};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread")]
async fn sentences_are_answered_in_order_and_dispatched_at_once() {
    let server = TestServer::start(|_| {}).await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    let (mut client, id) = server.session("zh", "en").await;
    let mut fastest = SECOND;
    for (index, text) in ["one", "two", "three", "four", "five"].into_iter().enumerate() {
        client.chunk(&id, 0, &speech(256), false).await;
        let marked = Instant::now();
        client.chunk(&id, 1, &[], true).await;
        let job = node.assignment().await;
        fastest = fastest.min(marked.elapsed());
        assert_eq!(job["utterance_index"], index);
        assert_eq!(job["is_manual_cut"], true);
        node.answer(&job, text).await;
        let result = client.expect("translation_result").await;
        assert_eq!(result["utterance_index"], index);
        assert_eq!(result["text_asr"], text);
        assert_eq!(result["session_id"], id.as_str());
    }
    // Of several, because a busy machine may be late by itself; a wait of ours is in each.
    assert!(fastest < Duration::from_millis(50), "{fastest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn by_default_the_end_of_a_sentence_is_waited_out_for_200_ms() {
    let hangover_ms = Config::default().segmenter.hangover_manual_ms;
    assert_eq!(hangover_ms, 200);
    let server = TestServer::start(|c| c.segmenter.hangover_manual_ms = hangover_ms).await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    let (mut client, id) = server.session("zh", "en").await;
    client.chunk(&id, 0, &speech(256), false).await;
    let marked = Instant::now();
    client.chunk(&id, 1, &[], true).await;
    let job = node.assignment().await;
    assert!(marked.elapsed() >= Duration::from_millis(hangover_ms), "{:?}", marked.elapsed());
    assert_eq!(job["is_manual_cut"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_during_the_hangover_belongs_to_the_sentence() {
    let server = TestServer::start(|c| c.segmenter.hangover_manual_ms = 10_000).await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    let (mut client, id) = server.session("zh", "en").await;
    client.chunk(&id, 0, &speech(256), false).await;
    client.chunk(&id, 1, &[], true).await;
    client.chunk(&id, 2, &speech(100), false).await;
    node.has_nothing().await;
    // A further marker neither cuts nor prolongs.
    server.advance(8 * SECOND);
    client.chunk(&id, 3, &[], true).await;
    node.has_nothing().await;
    server.advance(2 * SECOND);
    let moved = Instant::now();
    let job = node.assignment().await;
    assert!(moved.elapsed() < 5 * SECOND, "{:?}", moved.elapsed());
    assert_eq!(audio_of(&job).len(), speech(356).len());
    assert_eq!((&job["is_manual_cut"], &job["utterance_index"]), (&json!(true), &json!(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sentence_without_a_node_waits_for_one() {
    let server = TestServer::start(|_| {}).await;
    let (mut client, id) = server.session("zh", "en").await;
    client.sentence(&id).await;
    server.until(|b| b["jobs"]["waiting"] == 1, "/api/v1/stats").await;
    server.advance(8 * SECOND);
    let mut node = server.node("n1", &["zh", "en"]).await;
    for index in 0..2 {
        let job = node.assignment_of(index).await;
        node.answer(&job, "text").await;
        assert_eq!(client.told().await["type"], "translation_result");
        client.sentence(&id).await;
    }
    assert!(client.seen_of("ui_event").iter().all(|e| e["event"] != "ERROR"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sentence_for_which_no_node_comes_is_told_so_and_the_next_is_normal() {
    let server = TestServer::start(|_| {}).await;
    let (mut client, id) = server.session("zh", "en").await;
    client.sentence(&id).await;
    server.until(|b| b["jobs"]["waiting"] == 1, "/api/v1/stats").await;
    server.advance(8 * SECOND);
    assert!(client.all("missing_result").await.is_empty(), "its time is not over");
    server.advance(2 * SECOND);
    assert_eq!(client.failure().await, "NO_AVAILABLE_NODE");
    let told = client.told().await;
    assert_eq!(told["type"], "missing_result");
    assert_eq!(
        (&told["utterance_index"], &told["reason"]),
        (&json!(0), &json!("no_available_node"))
    );
    server.until(|b| b["jobs"]["waiting"] == 0, "/api/v1/stats").await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    client.sentence(&id).await;
    let job = node.assignment_of(1).await;
    node.answer(&job, "second").await;
    let told = client.told().await;
    assert_eq!((&told["utterance_index"], &told["text_asr"]), (&json!(1), &json!("second")));
}

#[tokio::test(flavor = "multi_thread")]
async fn speech_after_a_long_silence_is_whole() {
    let server = TestServer::start(|_| {}).await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    let (mut client, id) = server.session("zh", "en").await;
    client.chunk(&id, 0, &opus(13, 59), true).await;
    let job = node.assignment_of(0).await;
    node.answer(&job, "before").await;
    client.told().await;
    for _ in 0..3 {
        server.advance(30 * SECOND);
        server.beat(&mut node).await;
        client.send(json!({"type": "client_heartbeat", "session_id": id, "timestamp": 1})).await;
        client.expect("server_heartbeat").await;
    }
    // Chunks of different packets, so that each can be found again.
    let chunks: Vec<Vec<u8>> = (0..4).map(|n| opus(13, 60 + n)).collect();
    for (seq, chunk) in chunks.iter().enumerate() {
        client.chunk(&id, seq as u64, chunk, false).await;
    }
    client.chunk(&id, 4, &[], true).await;
    let job = node.assignment_of(1).await;
    assert!(audio_of(&job) == chunks.concat(), "all of it, in one utterance");
    node.answer(&job, "after").await;
    assert_eq!(client.told().await["text_asr"], "after");
    assert_eq!(server.metric("utterd_jobs_submitted_total").await, 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_after_a_pause_begins_the_next_sentence() {
    let server = TestServer::start(|_| {}).await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    let (mut client, id) = server.session("zh", "en").await;
    client.chunk(&id, 0, &opus(13, 60), false).await;
    server
        .until_metric("utterd_frames_received_total{socket=\"session\",type=\"audio_chunk\"}", 1.0)
        .await;
    server.advance(4 * SECOND);
    client.chunk(&id, 1, &opus(13, 61), false).await;
    client.chunk(&id, 2, &[], true).await;
    let (first, second) = (node.assignment_of(0).await, node.assignment_of(1).await);
    assert!(audio_of(&first) == opus(13, 60) && audio_of(&second) == opus(13, 61));
    assert_eq!(
        (&first["is_timeout_triggered"], &second["is_manual_cut"]),
        (&json!(true), &json!(true))
    );
    assert_ne!(first["turn_id"], second["turn_id"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn results_come_before_the_disk_or_without_one_where_that_is_configured() {
    let at_once = |config: &mut Config| config.session.delivery = Delivery::Fast;
    let without = |config: &mut Config| config.store.enabled = false;
    for change in [at_once as fn(&mut Config), without] {
        let server = TestServer::start(change).await;
        let mut node = server.node("n1", &["zh", "en"]).await;
        let (mut client, id) = server.session("zh", "en").await;
        for text in ["one", "two"] {
            client.chunk(&id, 0, &speech(256), true).await;
            let job = node.assignment().await;
            node.answer(&job, text).await;
            assert_eq!(client.expect("translation_result").await["text_asr"], text);
        }
        let kept = server.dir.path().join("utterd.redb").exists();
        let (_, stats) = server.get("/api/v1/stats").await;
        assert_eq!(stats["store"].is_object(), kept);
        assert_eq!(stats["jobs"]["live"], 0);
    }
}
