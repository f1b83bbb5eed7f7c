//! A node that dies, refuses, or says nothing: the job goes elsewhere, or its end is told.

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::{
    FakeNode, Peer, TestServer, attempt_of, fault, heartbeat_message, hello_message, opus,
};

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

/// As `scene`, but the busy node can say what it has.
async fn able_scene() -> Scene {
    let server = TestServer::start(|c| c.session.result_gap_wait_ms = 60_000).await;
    let (mut busy, _) = server.able_node("busy", "run 1", &[], &[]).await;
    let (mut client, id) = server.session("zh", "en").await;
    client.sentence(&id).await;
    let job = busy.assignment_of(0).await;
    server.job_at(&job["job_id"], "written").await;
    let idle = server.node("idle", &ZH_EN).await;
    Scene { server, client, id, busy, job, idle }
}

/// The node's connection breaks; the server has noticed.
async fn breaks(server: &TestServer, node: FakeNode) {
    let path = node.path();
    drop(node);
    server.until(|b| b["state"] == "offline", &path).await;
}

fn told(job: &Value, action: &str) -> Value {
    json!([{"job_id": job["job_id"], "attempt_id": job["attempt_id"], "action": action}])
}

const HELLO: &str = "utterd_hello_jobs_total";

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_back_in_time_keeps_its_job() {
    let Scene { server, mut client, id, busy, job, mut idle } = able_scene().await;
    breaks(&server, busy).await;
    server.advance(seconds(2));
    // It is out of the pools meanwhile.
    client.sentence(&id).await;
    let other = idle.assignment_of(1).await;
    idle.answer(&other, "second").await;
    let (mut busy, jobs) = server.able_node("busy", "run 1", &[&job], &[]).await;
    assert_eq!(jobs, told(&job, "keep"));
    server.advance(seconds(4));
    idle.has_nothing().await;
    busy.answer(&job, "first").await;
    assert_eq!(busy.acked(&job).await, "committed");
    for text in ["first", "second"] {
        assert_eq!(client.told().await["text_asr"], text);
    }
    busy.has_nothing().await;
    assert_eq!(server.metric_sum("utterd_attempts_ended_total", &[]).await, 0.0);
    server.until(|b| b["slots_used"] == 0, &busy.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_went_down_with_its_connection_is_sent_again_and_delivered_once() {
    let Scene { server, mut client, busy, job, mut idle, .. } = able_scene().await;
    breaks(&server, busy).await;
    let (mut busy, jobs) = server.able_node("busy", "run 1", &[], &[&job]).await;
    assert_eq!(jobs, told(&job, "send"));
    busy.answer(&job, "text").await;
    assert_eq!(busy.acked(&job).await, "committed");
    is_told_once(&mut client, "text").await;
    // The acknowledgement may be lost as well.
    breaks(&server, busy).await;
    let (mut busy, jobs) = server.able_node("busy", "run 1", &[], &[&job]).await;
    assert_eq!(jobs, told(&job, "cancel"));
    busy.answer(&job, "text").await;
    assert_eq!(busy.acked(&job).await, "duplicate");
    idle.has_nothing().await;
    for (action, n) in [("keep", 0.0), ("send", 1.0), ("cancel", 1.0), ("requeued", 0.0)] {
        assert_eq!(server.metric_sum(HELLO, &[action]).await, n, "{action}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_assignment_that_did_not_arrive_is_given_out_at_once() {
    let Scene { server, mut client, busy, job, idle, .. } = able_scene().await;
    breaks(&server, idle).await;
    breaks(&server, busy).await;
    let (mut busy, jobs) = server.able_node("busy", "run 1", &[], &[]).await;
    assert_eq!(jobs, json!([]));
    // The same node has not seen it.
    let next = again(&mut busy, &job).await;
    busy.answer(&job, "of the first attempt").await;
    assert_eq!(busy.acked(&job).await, "stale");
    busy.answer(&next, "text").await;
    is_told_once(&mut client, "text").await;
    assert_eq!(server.metric(&format!("{HELLO}{{action=\"requeued\"}}")).await, 1.0);
    assert_eq!(server.metric("utterd_attempts_ended_total{why=\"not_arrived\"}").await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_run_of_a_node_had_is_given_out_at_once() {
    let Scene { server, mut client, busy, job, idle, .. } = able_scene().await;
    breaks(&server, idle).await;
    breaks(&server, busy).await;
    let (mut busy, _) = server.able_node("busy", "run 2", &[], &[]).await;
    let next = again(&mut busy, &job).await;
    busy.answer(&next, "text").await;
    is_told_once(&mut client, "text").await;
    assert_eq!(server.metric("utterd_attempts_ended_total{why=\"node_restarted\"}").await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stays_away_loses_its_jobs() {
    let Scene { server, mut client, busy, job, mut idle, .. } = able_scene().await;
    breaks(&server, busy).await;
    server.advance(seconds(2));
    idle.has_nothing().await;
    server.advance(seconds(1));
    let next = again(&mut idle, &job).await;
    let (mut busy, jobs) = server.able_node("busy", "run 1", &[&job], &[]).await;
    assert_eq!(jobs, told(&job, "cancel"));
    busy.answer(&job, "late").await;
    assert_eq!(busy.acked(&job).await, "stale");
    idle.answer(&next, "text").await;
    is_told_once(&mut client, "text").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_late_goes_on_with_a_job_that_nobody_else_has() {
    let Scene { server, mut client, busy, job, idle, .. } = able_scene().await;
    breaks(&server, idle).await;
    breaks(&server, busy).await;
    server.advance(seconds(8));
    server.until(|b| b["jobs"]["waiting"] == 1, "/api/v1/stats").await;
    let (mut busy, jobs) = server.able_node("busy", "run 1", &[&job], &[]).await;
    assert_eq!(jobs, told(&job, "keep"));
    server.advance(seconds(10));
    busy.answer(&job, "text").await;
    is_told_once(&mut client, "text").await;
    busy.has_nothing().await;
    assert_eq!(server.metric("utterd_jobs_adopted_total").await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_would_not_outlive_the_grace_is_moved_at_once() {
    let Scene { server, mut client, busy, job, mut idle, .. } = able_scene().await;
    server.advance(seconds(28));
    server.beat(&mut idle).await;
    drop(busy);
    let next = again(&mut idle, &job).await;
    idle.answer(&next, "text").await;
    is_told_once(&mut client, "text").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_grace_jobs_are_moved_at_once() {
    let server = TestServer::start(|c| c.node.resume_grace_ms = 0).await;
    let (mut busy, _) = server.able_node("busy", "run 1", &[], &[]).await;
    let (mut client, id) = server.session("zh", "en").await;
    client.sentence(&id).await;
    let job = busy.assignment_of(0).await;
    let mut idle = server.node("idle", &ZH_EN).await;
    drop(busy);
    again(&mut idle, &job).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_connection_takes_over_what_it_names_and_a_heartbeat_says_nothing_of_it() {
    for heartbeat_first in [false, true] {
        let Scene { server, mut client, id, busy, job, mut idle } = able_scene().await;
        client.sentence(&id).await;
        server.until_metric("utterd_jobs_submitted_total", 2.0).await;
        let mut peer = server.raw_node().await;
        if heartbeat_first {
            peer.send(heartbeat_message("busy", &ZH_EN)).await;
            let newer = |b: &Value| b["generation"].as_u64() > Some(2);
            server.until(newer, &busy.path()).await;
        }
        let (mut new, jobs) =
            FakeNode::hello(peer, hello_message("busy", "run 1", &[&job], &[])).await;
        assert_eq!(jobs, told(&job, "keep"));
        drop(busy);
        // The second sentence went out over the old connection, and was not named.
        let next = new.assignment_of(1).await;
        assert_eq!(attempt_of(&next), 2);
        server.advance(seconds(4));
        idle.has_nothing().await;
        new.answer(&job, "first").await;
        new.answer(&next, "second").await;
        for text in ["first", "second"] {
            assert_eq!(client.told().await["text_asr"], text);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slice_that_was_kept_draws_the_rest_of_its_turn_to_its_node() {
    let server = TestServer::start(|_| {}).await;
    let (mut busy, _) = server.able_node("busy", "run 1", &[], &[]).await;
    let (mut client, id) = server.session("zh", "en").await;
    for seq in 0..11 {
        client.chunk(&id, seq, &opus(50, 60), false).await;
    }
    let slice = busy.assignment_of(0).await;
    let mut idle = server.node("idle", &ZH_EN).await;
    breaks(&server, busy).await;
    client.chunk(&id, 11, &[], true).await;
    server.until(|b| b["jobs"]["waiting"] == 1, "/api/v1/stats").await;
    let (mut busy, _) = server.able_node("busy", "run 1", &[&slice], &[]).await;
    let last = busy.assignment_of(1).await;
    assert_eq!(last["turn_id"], slice["turn_id"]);
    busy.answer(&slice, "one").await;
    busy.answer(&last, "two").await;
    for text in ["one", "two"] {
        assert_eq!(client.told().await["text_asr"], text);
    }
    idle.has_nothing().await;
    server.until(|b| b["slots_used"] == 0, &busy.path()).await;
}
