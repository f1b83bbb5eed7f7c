//! Utterances are dispatched in the order of their indices, and what comes of them is told in it.

mod support;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{Peer, TestServer, opus, speech};

/// Longer than any test waits for something to happen by itself.
const LONG_MS: u64 = 30_000;

fn indices(messages: &[Value]) -> Vec<u64> {
    messages.iter().map(|m| m["utterance_index"].as_u64().unwrap()).collect()
}

/// A sentence of half a second, ended by hand.
async fn sentence(client: &mut Peer, id: &str, seq: u64) {
    client.chunk(id, seq, &speech(512), false).await;
    client.chunk(id, seq + 1, &[], true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn recordings_are_dispatched_by_index_however_they_arrive() {
    let server = TestServer::start(|c| c.session.utterance_gap_wait_ms = LONG_MS).await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    for order in [[0, 1, 2], [2, 0, 1]] {
        let (mut client, id) = server.session("zh", "en").await;
        for index in order {
            client.utterance(&id, index, "zh", "en").await;
        }
        let mut jobs = Vec::new();
        for _ in order {
            jobs.push(node.assignment().await);
        }
        assert_eq!(indices(&jobs), [0, 1, 2], "sent as {order:?}");
        for job in &jobs {
            node.answer(job, "text").await;
        }
        for index in 0..3 {
            let told = client.told().await;
            assert_eq!(
                (&told["type"], &told["utterance_index"]),
                (&json!("translation_result"), &json!(index))
            );
        }
    }
    assert_eq!(server.metric("utterd_jobs_submitted_total").await, 6.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_goes_on_counting_is_waited_for_once() {
    let server = TestServer::start(|c| c.session.utterance_gap_wait_ms = LONG_MS).await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    let (mut client, id) = server.session("zh", "en").await;
    client.utterance(&id, 7, "zh", "en").await;
    client.utterance(&id, 9, "zh", "en").await;
    assert!(node.peer.all("job_assign").await.is_empty(), "the ones before may still come");
    server.advance(Duration::from_millis(LONG_MS + 1));
    // Both have waited long enough.
    for index in [7, 9] {
        let job = node.assignment().await;
        assert_eq!(job["utterance_index"], index);
        node.answer(&job, "text").await;
        assert_eq!(client.told().await["utterance_index"], index);
    }
    // From here on the order is known: the next one goes out at once, and so does one that is late.
    for index in [10, 8] {
        client.utterance(&id, index, "zh", "en").await;
        let job = node.assignment().await;
        assert_eq!(job["utterance_index"], index);
        node.answer(&job, "text").await;
        assert_eq!(client.told().await["utterance_index"], index);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_utterance_sent_twice_is_one_job_and_one_result() {
    let server = TestServer::start(|c| c.session.utterance_gap_wait_ms = LONG_MS).await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    let (mut client, id) = server.session("zh", "en").await;
    // Held, twice; sent, twice; and once more when it is answered.
    for index in [1, 1, 0, 0] {
        client.utterance(&id, index, "zh", "en").await;
    }
    for index in 0..2 {
        let job = node.assignment().await;
        assert_eq!(job["utterance_index"], index);
        node.answer(&job, "text").await;
        assert_eq!(client.told().await["utterance_index"], index);
    }
    client.utterance(&id, 1, "zh", "en").await;
    assert!(node.peer.all("job_assign").await.is_empty());
    assert!(client.all("translation_result").await.is_empty());
    assert!(client.all("error").await.is_empty());
    assert_eq!(server.metric("utterd_jobs_submitted_total").await, 2.0);
    assert_eq!(server.metric("utterd_jobs_repeated_total").await, 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_waits_for_the_one_before_it() {
    let server = TestServer::start(|c| c.session.result_gap_wait_ms = LONG_MS).await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    let (mut client, id) = server.session("zh", "en").await;
    sentence(&mut client, &id, 0).await;
    sentence(&mut client, &id, 2).await;
    let (first, second) = (node.assignment().await, node.assignment().await);
    node.answer(&second, "second").await;
    server.job_at(&second["job_id"], "settled").await;
    assert!(client.all("translation_result").await.is_empty(), "overtook the one before it");
    node.answer(&first, "first").await;
    for (index, text) in ["first", "second"].into_iter().enumerate() {
        let told = client.told().await;
        assert_eq!((&told["utterance_index"], &told["text_asr"]), (&json!(index), &json!(text)));
        assert!(told.get("late").is_none(), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_is_missing_too_long_is_told_as_a_gap_and_delivered_late() {
    let server = TestServer::start(|_| {}).await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    let (mut client, id) = server.session("zh", "en").await;
    sentence(&mut client, &id, 0).await;
    sentence(&mut client, &id, 2).await;
    let (first, second) = (node.assignment().await, node.assignment().await);
    node.answer(&second, "second").await;
    server.job_at(&second["job_id"], "settled").await;
    server.advance(Duration::from_millis(5_001));
    let gap = client.told().await;
    assert_eq!(gap["type"], "missing_result");
    assert_eq!((&gap["utterance_index"], &gap["reason"]), (&json!(0), &json!("gap_timeout")));
    let told = client.told().await;
    assert_eq!((&told["utterance_index"], &told["text_asr"]), (&json!(1), &json!("second")));
    node.answer(&first, "first").await;
    let told = client.told().await;
    assert_eq!(told["type"], "translation_result");
    assert_eq!((&told["utterance_index"], &told["text_asr"]), (&json!(0), &json!("first")));
    assert_eq!(told["late"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recording_may_not_take_the_place_of_streamed_speech() {
    let server = TestServer::start(|c| c.session.utterance_gap_wait_ms = LONG_MS).await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    let (mut client, id) = server.session("zh", "en").await;
    sentence(&mut client, &id, 0).await;
    let streamed = node.assignment().await;
    client.utterance(&id, 0, "zh", "en").await;
    assert_eq!(client.expect("error").await["code"], "INVALID_MESSAGE");
    assert!(node.peer.all("job_assign").await.is_empty());
    // The next free place is not waited for.
    client.utterance(&id, 1, "zh", "en").await;
    let recorded = node.assignment().await;
    assert_eq!(recorded["utterance_index"], 1);
    // Nor does streamed speech take a recording's place, be it out or held.
    client.utterance(&id, 3, "zh", "en").await;
    sentence(&mut client, &id, 2).await;
    let between = node.assignment().await;
    assert_eq!(between["utterance_index"], 2);
    let held = node.assignment().await;
    assert_eq!(held["utterance_index"], 3);
    for (index, job) in [streamed, recorded, between, held].iter().enumerate() {
        node.answer(job, &format!("text {index}")).await;
        let told = client.told().await;
        assert_eq!(told["utterance_index"], index);
        assert_eq!(told["text_asr"], format!("text {index}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_after_a_sentence_makes_no_jobs_and_no_delay() {
    for hangover_ms in [0, 200] {
        let server = TestServer::start(|c| c.segmenter.hangover_manual_ms = hangover_ms).await;
        let mut node = server.node("n1", &["zh", "en"]).await;
        let (mut client, id) = server.session("zh", "en").await;
        let mut seq = 0..;
        let mut seq = move || seq.next().unwrap();
        for index in 0..2 {
            // A sentence, and what the page sends while it waits for the next one.
            client.chunk(&id, seq(), &opus(13, 60), false).await;
            client.chunk(&id, seq(), &opus(13, 60), false).await;
            let ended = Instant::now();
            client.chunk(&id, seq(), &[], true).await;
            let job = node.assignment().await;
            assert!(ended.elapsed() < Duration::from_secs(2), "{:?}", ended.elapsed());
            assert_eq!(job["utterance_index"], index);
            assert_eq!(job["audio_format"], "opus");
            for _ in 0..7 {
                client.chunk(&id, seq(), &opus(13, 8), false).await;
                client.chunk(&id, seq(), &[], true).await;
            }
            node.answer(&job, "text").await;
            assert_eq!(client.told().await["utterance_index"], index);
        }
        assert!(node.peer.all("job_assign").await.is_empty());
        assert_eq!(server.metric("utterd_jobs_submitted_total").await, 2.0);
        server.advance(Duration::from_millis(hangover_ms));
        let (_, listed) = server.get("/api/v1/sessions").await;
        assert_eq!(listed["sessions"][0]["utterances"], 2);
        assert_eq!(client.all("missing_result").await, [Value::Null; 0]);
        if hangover_ms == 0 {
            let dropped = "utterd_silences_dropped_total{reason=\"manual\"}";
            assert_eq!(server.metric(dropped).await, 14.0);
            let bytes = "utterd_audio_dropped_bytes_total{why=\"silence\"}";
            assert_eq!(server.metric(bytes).await, (14 * 13 * 10) as f64);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn recordings_that_come_far_too_early_are_refused_before_they_fill_the_memory() {
    let server = TestServer::start(|c| c.session.utterance_gap_wait_ms = LONG_MS).await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    let (mut client, id) = server.session("zh", "en").await;
    let audio = base64_simd::STANDARD.encode_to_string(support::speech(20_000));
    let message = |index: u64| {
        json!({"type": "utterance", "session_id": id, "utterance_index": index, "manual_cut": true,
            "src_lang": "zh", "tgt_lang": "en", "audio": audio, "audio_format": "pcm16",
            "sample_rate": 16000})
    };
    for index in 1..=8 {
        client.send(message(index)).await;
    }
    // Five of 853 kB are just beyond the bound.
    for _ in 5..8 {
        assert_eq!(client.expect("error").await["code"], "OVERLOADED");
    }
    assert!(client.all("error").await.is_empty());
    client.send(message(0)).await;
    for index in 0..4 {
        let job = node.assignment().await;
        assert_eq!(job["utterance_index"], index);
    }
}
