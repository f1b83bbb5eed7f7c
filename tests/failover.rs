//! A node that dies, refuses, or says nothing: the job goes elsewhere, or its end is told.

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::{FakeNode, Peer, TestServer, attempt_of, fault, opus};

const ZH_EN: [&str; 2] = ["zh", "en"];
const LATE: &str = "utterd_stale_events_total{event=\"result_late\"}";
const FOREIGN: &str = "utterd_stale_events_total{event=\"result_foreign\"}";
const UNKNOWN: &str = "utterd_stale_events_total{event=\"result_unknown\"}";

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// A server, a node that has the first sentence of a session, and one that has nothing.
struct Scene {
    server: TestServer,
    client: Peer,
    id: String,
    busy: FakeNode,
    job: Value,
    idle: FakeNode,
}

async fn scene() -> Scene {
    let server = TestServer::start(|_| {}).await;
    let mut busy = server.node("busy", &ZH_EN).await;
    let (mut client, id) = server.session("zh", "en").await;
    client.sentence(&id).await;
    let job = busy.assignment_of(0).await;
    server.job_at(&job["job_id"], "written").await;
    let idle = server.node("idle", &ZH_EN).await;
    Scene { server, client, id, busy, job, idle }
}

/// The next assignment is another attempt of `job`.
async fn again(node: &mut FakeNode, job: &Value) -> Value {
    let next = node.assignment().await;
    for key in ["job_id", "utterance_index", "turn_id", "audio", "session_id"] {
        assert_eq!(next[key], job[key], "{key}");
    }
    assert_eq!(attempt_of(&next), attempt_of(job) + 1);
    next
}

/// The next last word is this text, and no further one comes.
async fn is_told_once(client: &mut Peer, text: &str) {
    let told = client.told().await;
    assert_eq!((&told["type"], &told["text_asr"]), (&json!("translation_result"), &json!(text)));
    assert!(client.all("translation_result").await.is_empty());
    assert!(client.seen_of("missing_result").is_empty());
}

async fn ends_with(client: &mut Peer, code: &str, reason: &str) {
    assert_eq!(client.failure().await, code);
    let told = client.told().await;
    assert_eq!((&told["type"], &told["reason"]), (&json!("missing_result"), &json!(reason)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_a_node_that_dies_is_done_by_another_once() {
    let Scene { server, mut client, id, busy, job, mut idle } = scene().await;
    drop(busy);
    let next = again(&mut idle, &job).await;
    idle.answer(&next, "text").await;
    is_told_once(&mut client, "text").await;
    client.sentence(&id).await;
    idle.assignment_of(1).await;
    assert_eq!(server.metric("utterd_attempts_ended_total{why=\"node_lost\"}").await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_jobs_of_a_node_that_dies_are_moved_in_order() {
    let server = TestServer::start(|_| {}).await;
    let mut lost = server.node("lost", &ZH_EN).await;
    let (mut one, one_id) = server.session("zh", "en").await;
    let (mut other, other_id) = server.session("zh", "en").await;
    for index in 0..3 {
        one.sentence(&one_id).await;
        lost.assignment_of(index).await;
    }
    other.sentence(&other_id).await;
    lost.assignment_of(0).await;
    let mut next = server.node("next", &ZH_EN).await;
    drop(lost);
    let mut indices = Vec::new();
    for _ in 0..4 {
        let job = next.assignment().await;
        assert_eq!(attempt_of(&job), 2);
        next.answer(&job, job["session_id"].as_str().unwrap()).await;
        if job["session_id"] == one_id.as_str() {
            indices.push(job["utterance_index"].as_u64().unwrap());
        }
    }
    assert_eq!(indices, [0, 1, 2]);
    for _ in 0..3 {
        assert_eq!(one.told().await["text_asr"], one_id.as_str());
    }
    assert_eq!(other.told().await["text_asr"], other_id.as_str());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_node_died_waits_for_another_like_a_new_one() {
    let Scene { server, mut client, id, busy, job, idle } = scene().await;
    drop(idle);
    server.until(|b| b["state"] == "offline", "/api/v1/nodes/idle").await;
    drop(busy);
    server.until(|b| b["jobs"]["waiting"] == 1, "/api/v1/stats").await;
    server.advance(seconds(8));
    let mut late = server.node("late", &ZH_EN).await;
    let next = again(&mut late, &job).await;
    late.answer(&next, "text").await;
    is_told_once(&mut client, "text").await;
    client.sentence(&id).await;
    late.assignment_of(1).await;
    drop(late);
    server.until(|b| b["jobs"]["waiting"] == 1, "/api/v1/stats").await;
    server.advance(seconds(11));
    ends_with(&mut client, "NODE_UNAVAILABLE", "no_available_node").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_ends_two_nodes_is_not_given_to_a_third() {
    let Scene { server, mut client, busy, job, mut idle, .. } = scene().await;
    drop(busy);
    again(&mut idle, &job).await;
    let mut third = server.node("third", &ZH_EN).await;
    drop(idle);
    ends_with(&mut client, "POISON_JOB", "job_failed").await;
    third.has_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_the_model_is_left_out_for_a_minute() {
    let Scene { server, mut client, id, mut busy, job, mut idle } = scene().await;
    let mut missing = fault("MODEL_NOT_AVAILABLE", "not loaded");
    missing["details"] = json!({"service_id": "nmt-m2m100"});
    busy.fail(&job, missing).await;
    let next = again(&mut idle, &job).await;
    idle.answer(&next, "text").await;
    is_told_once(&mut client, "text").await;
    assert_eq!(server.metric("scheduler_model_na_marked_total").await, 1.0);
    // Alone, it would be asked if it were asked at all.
    drop(idle);
    server.until(|b| b["state"] == "offline", "/api/v1/nodes/idle").await;
    for step in [30, 25] {
        server.advance(seconds(step));
        server.beat(&mut busy).await;
    }
    client.sentence(&id).await;
    busy.has_nothing().await;
    // The waiting sentence has some seconds left when the minute is over.
    server.advance(seconds(6));
    busy.assignment_of(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_another_node_a_missing_model_is_told() {
    let server = TestServer::start(|_| {}).await;
    let mut node = server.node("n1", &ZH_EN).await;
    let (mut client, id) = server.session("zh", "en").await;
    client.sentence(&id).await;
    let job = node.assignment().await;
    node.fail(&job, fault("MODEL_NOT_AVAILABLE", "not loaded")).await;
    ends_with(&mut client, "MODEL_NOT_AVAILABLE", "job_failed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_nobody_answers_ends_when_its_time_is_over() {
    let server = TestServer::start(|_| {}).await;
    let mut node = server.node("n1", &ZH_EN).await;
    let (mut client, id) = server.session("zh", "en").await;
    // 8 s of speech give the node 34 s.
    for seq in 0..8 {
        client.chunk(&id, seq, &opus(50, 60), seq == 7).await;
    }
    let job = node.assignment().await;
    server.job_at(&job["job_id"], "written").await;
    server.advance(seconds(31));
    assert!(node.peer.all("job_cancel").await.is_empty(), "its time is not over");
    server.advance(seconds(4));
    let cancel = node.peer.expect("job_cancel").await;
    assert_eq!((&cancel["job_id"], &cancel["reason"]), (&job["job_id"], &json!("job_timeout")));
    ends_with(&mut client, "JOB_TIMEOUT", "job_timeout").await;
    client.chunk(&id, 8, &opus(50, 60), true).await;
    let job = node.assignment_of(1).await;
    node.answer(&job, "next").await;
    is_told_once(&mut client, "next").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_nobody_answers_is_tried_elsewhere() {
    let Scene { server, mut client, mut busy, job, mut idle, .. } = scene().await;
    server.advance(seconds(31));
    assert_eq!(busy.peer.expect("job_cancel").await["job_id"], job["job_id"]);
    let next = again(&mut idle, &job).await;
    // The first one answers after all.
    busy.answer(&job, "late").await;
    server.until_metric(FOREIGN, 1.0).await;
    idle.answer(&next, "text").await;
    is_told_once(&mut client, "text").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transcript_on_the_way_is_a_sign_of_life() {
    let Scene { server, mut client, mut busy, job, mut idle, .. } = scene().await;
    for words in ["one", "one two"] {
        server.advance(seconds(20));
        busy.peer
            .send(json!({"type": "asr_partial", "job_id": job["job_id"], "node_id": busy.id,
                "session_id": job["session_id"], "utterance_index": 0, "text": words,
                "is_final": false, "trace_id": job["trace_id"]}))
            .await;
        assert_eq!(client.expect("asr_partial").await["text"], words);
        server.beat(&mut busy).await;
        server.beat(&mut idle).await;
    }
    server.advance(seconds(20));
    assert!(busy.peer.all("job_cancel").await.is_empty());
    // Silence counts from the last one.
    server.advance(seconds(11));
    busy.peer.expect("job_cancel").await;
    again(&mut idle, &job).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn results_nobody_waits_for_change_nothing() {
    let Scene { server, mut client, id, mut busy, job, mut idle } = scene().await;
    let mut wrong = busy.result(&job, "wrong attempt");
    wrong["attempt_id"] = (job["attempt_id"].as_u64().unwrap() + 1).into();
    busy.peer.send(wrong).await;
    server.until_metric(FOREIGN, 1.0).await;
    idle.answer(&job, "from another node").await;
    server.until_metric(FOREIGN, 2.0).await;
    let mut unknown = busy.result(&job, "of no job");
    unknown["job_id"] = "job-01234567-89ab-4def-8123-456789abcdef".into();
    busy.peer.send(unknown).await;
    server.until_metric(UNKNOWN, 1.0).await;
    busy.answer(&job, "text").await;
    busy.answer(&job, "twice").await;
    server.until_metric(LATE, 1.0).await;
    busy.fail(&job, fault("PROCESSING_ERROR", "thrice")).await;
    server.until_metric(LATE, 2.0).await;
    is_told_once(&mut client, "text").await;
    client.sentence(&id).await;
    let job = busy.assignment_of(1).await;
    busy.answer(&job, "next").await;
    is_told_once(&mut client, "next").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_after_its_time_is_counted_and_not_told() {
    let server = TestServer::start(|_| {}).await;
    let mut node = server.node("n1", &ZH_EN).await;
    let (mut client, id) = server.session("zh", "en").await;
    client.sentence(&id).await;
    let job = node.assignment().await;
    server.job_at(&job["job_id"], "written").await;
    server.advance(seconds(31));
    ends_with(&mut client, "JOB_TIMEOUT", "job_timeout").await;
    node.answer(&job, "late").await;
    server.until_metric(LATE, 1.0).await;
    assert!(client.all("translation_result").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_that_is_about_the_node_sends_the_job_elsewhere() {
    for (code, message) in [
        ("PROCESSING_ERROR", "DUPLICATE_JOB_ID: seen before"),
        ("PROCESSING_ERROR", "DUPLICATE_UTTERANCE_INDEX"),
        ("NODE_OVERLOADED", "busy"),
    ] {
        let Scene { server, mut client, mut busy, job, mut idle, .. } = scene().await;
        busy.fail(&job, fault(code, message)).await;
        let next = again(&mut idle, &job).await;
        idle.answer(&next, "text").await;
        is_told_once(&mut client, "text").await;
        assert_eq!(server.metric("utterd_attempts_ended_total{why=\"refused\"}").await, 1.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_that_is_about_the_speech_is_told_and_not_tried_elsewhere() {
    let Scene { mut client, mut busy, job, mut idle, .. } = scene().await;
    busy.fail(&job, fault("NMT_TIMEOUT", "too long")).await;
    ends_with(&mut client, "NMT_TIMEOUT", "job_failed").await;
    idle.has_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_falls_silent_loses_its_jobs() {
    let server = TestServer::start(|_| {}).await;
    let mut silent = server.node("silent", &ZH_EN).await;
    server.advance(seconds(30));
    let (mut client, id) = server.session("zh", "en").await;
    client.sentence(&id).await;
    let job = silent.assignment().await;
    let mut idle = server.node("idle", &ZH_EN).await;
    server.advance(seconds(16));
    let next = again(&mut idle, &job).await;
    idle.answer(&next, "text").await;
    is_told_once(&mut client, "text").await;
    server.until_node_is(&silent, "offline").await;
    assert!(silent.peer.ends().await, "it is told to come again");
}
