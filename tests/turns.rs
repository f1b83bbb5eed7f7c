//! Speech longer than a slice: its slices are jobs of one turn, on one node, told in order.

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::{FakeNode, Peer, TestServer, attempt_of, audio_of, opus};

/// 260 ms of speech, as a browser sends it.
fn chunk() -> Vec<u8> {
    opus(13, 70)
}

/// So many chunks without a pause, and the end by hand.
async fn speak(client: &mut Peer, id: &str, chunks: u64) {
    speak_on(client, id, chunks).await;
    client.chunk(id, chunks, &[], true).await;
}

/// So many chunks without a pause, and no end.
async fn speak_on(client: &mut Peer, id: &str, chunks: u64) {
    for seq in 0..chunks {
        client.chunk(id, seq, &chunk(), false).await;
    }
}

async fn assignments(node: &mut FakeNode, n: u64) -> Vec<Value> {
    let mut jobs = Vec::new();
    for index in 0..n {
        jobs.push(node.assignment_of(index).await);
    }
    jobs
}

/// Slices of one second, for tests in which their length is of no interest.
async fn server_of_short_slices() -> TestServer {
    TestServer::start(|c| c.segmenter.max_duration_ms = 1_000).await
}

/// Lets the moment pass in which answers to the earlier slices of a turn may still come.
async fn grace_is_over(server: &TestServer) {
    server.until_metric("utterd_jobs_settled_total{outcome=\"succeeded\"}", 1.0).await;
    server.advance(Duration::from_millis(1_001));
}

/// The last words on the utterances from 0 are these: a text, or a reason for none.
async fn is_told(client: &mut Peer, words: &[&str]) {
    for (index, word) in words.iter().enumerate() {
        let told = client.told().await;
        let said = if told["type"] == "missing_result" { "reason" } else { "text_asr" };
        assert_eq!((&told["utterance_index"], &told[said]), (&json!(index), &json!(word)));
    }
    assert!(client.all("translation_result").await.is_empty());
    assert!(client.seen_of("missing_result").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn long_speech_is_cut_into_slices_of_one_turn_on_one_node() {
    let server = TestServer::start(|_| {}).await;
    let mut a = server.node("a", &["zh", "en"]).await;
    let (mut client, id) = server.session("zh", "en").await;
    // 10 s of 35: the first slice goes out while the speaker goes on.
    speak_on(&mut client, &id, 39).await;
    let first = a.assignment_of(0).await;
    // Someone who has nothing to do would be chosen for anything else.
    let mut b = server.node("b", &["zh", "en"]).await;
    speak(&mut client, &id, 135 - 39).await;
    let mut jobs = vec![first];
    for index in 1..4 {
        jobs.push(a.assignment_of(index).await);
    }
    b.has_nothing().await;
    let (last, slices) = jobs.split_last().unwrap();
    for slice in slices {
        assert_eq!(slice["is_max_duration_triggered"], true);
        assert_eq!(
            (&slice["is_manual_cut"], &slice["is_timeout_triggered"]),
            (&Value::Null, &Value::Null)
        );
        assert_eq!(slice["turn_id"], last["turn_id"]);
        let ms = audio_of(slice).len() / 72 * 20;
        assert!((9_900..=10_200).contains(&ms), "{ms}");
    }
    assert_eq!(last["is_manual_cut"], true);
    assert_eq!(last["is_max_duration_triggered"], Value::Null);
    let whole: Vec<u8> = jobs.iter().flat_map(audio_of).collect();
    assert!(whole == chunk().repeat(135), "every packet once, in order");
    // Answered as a node may: not in order.
    for at in [1, 0, 3, 2] {
        a.answer(&jobs[at], &format!("part {at}")).await;
    }
    is_told(&mut client, &["part 0", "part 1", "part 2", "part 3"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slices_a_node_keeps_to_itself_end_with_the_turn() {
    let server = TestServer::start(|_| {}).await;
    let mut node = server.node("a", &["zh", "en"]).await;
    let (mut client, id) = server.session("zh", "en").await;
    speak(&mut client, &id, 135).await;
    let jobs = assignments(&mut node, 4).await;
    // Not even a lease that runs out in the middle of the turn ends a slice.
    server.advance(Duration::from_secs(29));
    node.answer(&jobs[3], "all of it").await;
    grace_is_over(&server).await;
    is_told(&mut client, &["merged", "merged", "merged", "all of it"]).await;
    server.until(|b| b["slots_used"] == 0, &node.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slice_is_not_given_up_while_its_turn_goes_on() {
    let server = TestServer::start(|c| c.segmenter.pause_ms = 0).await;
    let mut node = server.node("a", &["zh", "en"]).await;
    let (mut client, id) = server.session("zh", "en").await;
    speak_on(&mut client, &id, 39).await;
    let slice = node.assignment_of(0).await;
    for _ in 0..3 {
        server.advance(Duration::from_secs(30));
        server.beat(&mut node).await;
    }
    assert!(node.peer.all("job_cancel").await.is_empty());
    client.chunk(&id, 0, &chunk(), true).await;
    let last = node.assignment_of(1).await;
    assert_eq!(last["turn_id"], slice["turn_id"]);
    node.answer(&last, "all of it").await;
    grace_is_over(&server).await;
    is_told(&mut client, &["merged", "all of it"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slices_may_be_closed_in_the_name_of_the_job_that_took_their_audio() {
    let server = server_of_short_slices().await;
    let mut lost = server.node("lost", &["zh", "en"]).await;
    let (mut client, id) = server.session("zh", "en").await;
    speak_on(&mut client, &id, 8).await;
    assignments(&mut lost, 2).await;
    let mut node = server.node("a", &["zh", "en"]).await;
    drop(lost);
    let slices = assignments(&mut node, 2).await;
    client.chunk(&id, 8, &[], true).await;
    let last = node.assignment_of(2).await;
    // The slices were moved, the last job was not: their attempts differ.
    assert_ne!(last["attempt_id"], slices[0]["attempt_id"]);
    node.answer(&last, "all of it").await;
    for slice in &slices {
        let mut closed = node.result(slice, "");
        closed["attempt_id"] = last["attempt_id"].clone();
        closed["text_translated"] = "".into();
        closed["tts_audio"] = "".into();
        closed["extra"] = json!({"reason": "NO_TEXT_ASSIGNED"});
        node.peer.send(closed).await;
    }
    // Told without waiting for anything.
    is_told(&mut client, &["merged", "merged", "all of it"]).await;
    assert_eq!(server.metric("utterd_stale_events_total{event=\"result_foreign\"}").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_of_more_slices_than_slots_is_not_stuck() {
    let server = server_of_short_slices().await;
    let mut node = server.node("a", &["zh", "en"]).await;
    server.until(|b| b["slots_max"] == 4, &node.path()).await;
    let (mut client, id) = server.session("zh", "en").await;
    speak(&mut client, &id, 26).await;
    let jobs = assignments(&mut node, 7).await;
    server.until(|b| b["slots_used"] == 1, &node.path()).await;
    node.answer(&jobs[6], "all of it").await;
    grace_is_over(&server).await;
    is_told(&mut client, &[["merged"; 6].as_slice(), &["all of it"]].concat()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_moves_whole_and_in_order() {
    let server = server_of_short_slices().await;
    let mut lost = server.node("lost", &["zh", "en"]).await;
    let (mut client, id) = server.session("zh", "en").await;
    speak_on(&mut client, &id, 12).await;
    let jobs = assignments(&mut lost, 3).await;
    // What is answered stays answered.
    lost.answer(&jobs[0], "first").await;
    assert_eq!(client.told().await["text_asr"], "first");
    let mut next = server.node("next", &["zh", "en"]).await;
    drop(lost);
    let moved = [next.assignment_of(1).await, next.assignment_of(2).await];
    for (now, before) in moved.iter().zip(&jobs[1..]) {
        assert_eq!((&now["job_id"], &now["audio"]), (&before["job_id"], &before["audio"]));
        assert_eq!((attempt_of(before), attempt_of(now)), (1, 2));
    }
    client.chunk(&id, 12, &[], true).await;
    let last = next.assignment_of(3).await;
    for (at, job) in moved.iter().chain([&last]).enumerate() {
        assert_eq!(job["turn_id"], jobs[0]["turn_id"]);
        next.answer(job, &format!("part {at}")).await;
    }
    for at in 0..3 {
        assert_eq!(client.told().await["text_asr"], format!("part {at}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_whose_last_job_fails_fails_whole() {
    let server = server_of_short_slices().await;
    let mut node = server.node("a", &["zh", "en"]).await;
    let (mut client, id) = server.session("zh", "en").await;
    speak(&mut client, &id, 9).await;
    let jobs = assignments(&mut node, 3).await;
    node.fail(&jobs[2], support::fault("PROCESSING_ERROR", "no")).await;
    is_told(&mut client, &["job_failed"; 3]).await;
    server.until(|b| b["slots_used"] == 0, &node.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slice_that_is_refused_takes_its_turn_along() {
    let server = server_of_short_slices().await;
    let mut first = server.node("first", &["zh", "en"]).await;
    let (mut client, id) = server.session("zh", "en").await;
    speak(&mut client, &id, 12).await;
    let jobs = assignments(&mut first, 4).await;
    let mut next = server.node("next", &["zh", "en"]).await;
    first.fail(&jobs[1], support::fault("NODE_OVERLOADED", "busy")).await;
    let moved = assignments(&mut next, 4).await;
    for (at, job) in moved.iter().enumerate() {
        assert_eq!((attempt_of(job), &job["turn_id"]), (2, &jobs[0]["turn_id"]));
        // What the first node still says of them is not theirs any more.
        first.answer(&jobs[at], "stale").await;
        next.answer(job, &format!("part {at}")).await;
    }
    is_told(&mut client, &["part 0", "part 1", "part 2", "part 3"]).await;
    server.until(|b| b["slots_used"] == 0, &first.path()).await;
}
