//! Who may be given work: connections that come and go, slots, load, failures, and operators.

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::{
    FakeNode, Peer, TestServer, attempt_of, fault, heartbeat_message, http, register_message,
};

const ZH_EN: [&str; 2] = ["zh", "en"];

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// The node is given the session's next sentence, answers it, and the speaker hears that.
async fn works(node: &mut FakeNode, client: &mut Peer, id: &str, index: u64) {
    client.sentence(id).await;
    let job = node.assignment_of(index).await;
    node.answer(&job, "text").await;
    let told = client.told().await;
    assert_eq!((&told["utterance_index"], &told["text_asr"]), (&json!(index), &json!("text")));
}

/// A session of one sentence.
async fn speaker(server: &TestServer) -> (Peer, String) {
    let (mut client, id) = server.session("zh", "en").await;
    client.sentence(&id).await;
    (client, id)
}

async fn waiting(server: &TestServer, n: u64) {
    server.until(|b| b["jobs"]["waiting"] == n, "/api/v1/stats").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_connection_speaks_for_a_node() {
    let server = TestServer::start(|_| {}).await;
    let mut old = server.node("n1", &ZH_EN).await;
    let (mut client, id) = server.session("zh", "en").await;
    works(&mut old, &mut client, &id, 0).await;
    // The old connection is still there, and nobody reads from it.
    let mut new = server.node("n1", &ZH_EN).await;
    works(&mut new, &mut client, &id, 1).await;
    let (_, before) = server.get("/api/v1/nodes/n1").await;
    old.has_nothing().await;
    assert!(old.peer.ends().await, "the server ends it");
    drop(old);
    server.until_metric("utterd_connections{socket=\"node\"}", 1.0).await;
    works(&mut new, &mut client, &id, 2).await;
    let (_, after) = server.get("/api/v1/nodes/n1").await;
    assert_eq!((&after["state"], &after["generation"]), (&json!("ready"), &before["generation"]));
    let (_, nodes) = server.get("/api/v1/nodes").await;
    assert_eq!(nodes["total"], 1);
    assert_eq!(server.metric("utterd_attempts_ended_total{why=\"node_lost\"}").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_may_be_answered_over_the_newer_connection() {
    let server = TestServer::start(|_| {}).await;
    let mut old = server.node("n1", &ZH_EN).await;
    let (mut client, _) = speaker(&server).await;
    let job = old.assignment().await;
    let mut new = server.node("n1", &ZH_EN).await;
    drop(old);
    new.answer(&job, "text").await;
    assert_eq!(client.told().await["text_asr"], "text");
    new.has_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_went_down_with_an_older_connection_is_moved() {
    let server = TestServer::start(|_| {}).await;
    let mut old = server.node("n1", &ZH_EN).await;
    let (mut client, _) = speaker(&server).await;
    let job = old.assignment().await;
    let mut new = server.node("n1", &ZH_EN).await;
    let mut other = server.node("n2", &ZH_EN).await;
    other.has_nothing().await;
    server.advance(seconds(4));
    let again = other.assignment_of(0).await;
    assert_eq!((&again["job_id"], attempt_of(&again)), (&job["job_id"], 2));
    other.answer(&again, "text").await;
    assert_eq!(client.told().await["text_asr"], "text");
    // It may be at work on the job, but is well otherwise.
    new.has_nothing().await;
    assert_eq!(server.get("/api/v1/nodes/n1").await.1["state"], "ready");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_may_come_before_the_registration() {
    let server = TestServer::start(|_| {}).await;
    drop(server.node("known", &ZH_EN).await);
    server.until(|b| b["state"] == "offline", "/api/v1/nodes/known").await;
    for (index, id) in ["known", "never seen"].into_iter().enumerate() {
        let mut peer = server.raw_node().await;
        peer.send(heartbeat_message(id, &ZH_EN)).await;
        server.until(|b| ready(b).contains(&id), "/api/v1/nodes").await;
        peer.send(register_message(Some(id), &ZH_EN)).await;
        let first = peer.next().await.unwrap();
        assert_eq!((&first["type"], &first["node_id"]), (&json!("node_register_ack"), &json!(id)));
        let mut node = FakeNode { peer, id: id.to_owned() };
        let (mut client, session) = server.session("zh", "en").await;
        works(&mut node, &mut client, &session, 0).await;
        assert!(node.peer.all("error").await.is_empty());
        assert_eq!(server.get("/api/v1/nodes").await.1["total"], index + 1);
    }
    assert_eq!(server.metric_sum("utterd_frames_refused_total", &["node"]).await, 0.0);
}

/// The names of the nodes that are ready.
fn ready(nodes: &Value) -> Vec<&str> {
    let all = nodes["nodes"].as_array().unwrap().iter();
    all.filter(|n| n["state"] == "ready").map(|n| n["node_id"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_comes_while_a_job_waits_gets_it_after_its_answer() {
    let server = TestServer::start(|_| {}).await;
    let (mut client, _) = speaker(&server).await;
    waiting(&server, 1).await;
    let mut peer = server.raw_node().await;
    peer.send(register_message(Some("n1"), &ZH_EN)).await;
    let came = [peer.next().await.unwrap(), peer.next().await.unwrap()];
    assert_eq!(came[0]["type"], "node_register_ack");
    assert_eq!(came[1]["type"], "job_assign");
    let mut node = FakeNode { peer, id: "n1".to_owned() };
    node.answer(&came[1], "text").await;
    assert_eq!(client.told().await["text_asr"], "text");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_comes_again_under_load_hears_its_answer_first() {
    let server = TestServer::start(|c| c.session.jobs_max = 1_000).await;
    let node = server.node("n1", &ZH_EN).await;
    let mut client = server.session("zh", "en").await;
    let talk = tokio::spawn(async move {
        for index in 0.. {
            client.0.utterance(&client.1, index, "zh", "en").await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    let mut old = vec![node.peer];
    for _ in 0..100 {
        let mut peer = server.raw_node().await;
        let mut register = register_message(Some("n1"), &ZH_EN);
        register["max_concurrent_jobs"] = 1_000.into();
        peer.send(register).await;
        assert_eq!(peer.next().await.unwrap()["type"], "node_register_ack");
        old.push(peer);
    }
    talk.abort();
    // An assignment that met the old connection's end goes out over the new one.
    if server.metric("utterd_attempts_ended_total{why=\"node_lost\"}").await == 0.0 {
        let excluded = "scheduler_no_available_node_total{reason=\"excluded\"}";
        assert_eq!(server.metric(excluded).await, 0.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_never_given_more_than_it_has_slots_and_who_waits_is_served_in_order() {
    let server = TestServer::start(|c| c.node.slots_default = 2).await;
    let mut node = server.node("n1", &ZH_EN).await;
    let mut sessions = Vec::new();
    for n in 0..6_u64 {
        sessions.push(speaker(&server).await);
        server.until_metric("utterd_jobs_submitted_total", (n + 1) as f64).await;
    }
    waiting(&server, 4).await;
    let mut open = Vec::new();
    for (_, id) in &sessions {
        let job = node.assignment().await;
        assert_eq!(job["session_id"], id.as_str(), "first come, first served");
        open.push(job);
        if open.len() == 2 {
            node.has_nothing().await;
            let (_, told) = server.get(&node.path()).await;
            assert_eq!((&told["slots_used"], &told["slots_max"]), (&json!(2), &json!(2)));
            let job = open.remove(0);
            node.answer(&job, "text").await;
        }
    }
    let job = open.remove(0);
    node.answer(&job, "text").await;
    for (mut client, _) in sessions {
        assert_eq!(client.told().await["text_asr"], "text");
    }
    server.until(|b| b["slots_used"] == 0, &node.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_may_say_how_many_jobs_it_takes() {
    let server = TestServer::start(|_| {}).await;
    let mut peer = server.raw_node().await;
    let mut register = register_message(Some("n1"), &ZH_EN);
    register["max_concurrent_jobs"] = 1.into();
    peer.send(register).await;
    peer.expect("node_register_ack").await;
    let mut node = FakeNode { peer, id: "n1".to_owned() };
    server.until_node_is(&node, "ready").await;
    let mut sessions = [speaker(&server).await, speaker(&server).await];
    waiting(&server, 1).await;
    let first = node.assignment().await;
    node.has_nothing().await;
    node.fail(&first, fault("NMT_TIMEOUT", "a failure frees the slot too")).await;
    let second = node.assignment().await;
    assert_ne!(first["session_id"], second["session_id"]);
    for (client, id) in &mut sessions {
        if first["session_id"] == id.as_str() {
            assert_eq!(client.failure().await, "NMT_TIMEOUT");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_in_a_row_take_a_node_out_and_time_brings_it_back() {
    let server = TestServer::start(|_| {}).await;
    let mut node = server.node("n1", &ZH_EN).await;
    let (mut client, id) = server.session("zh", "en").await;
    for index in 0..3 {
        server.until_node_is(&node, "ready").await;
        client.sentence(&id).await;
        let job = node.assignment_of(index).await;
        node.fail(&job, fault("PROCESSING_ERROR", "no")).await;
        assert_eq!(client.failure().await, "PROCESSING_ERROR");
    }
    server.until_node_is(&node, "degraded").await;
    assert_eq!(server.metric("utterd_node_quarantines_total{why=\"failures\"}").await, 1.0);
    // That it says it is well does not help.
    server.advance(seconds(20));
    server.beat(&mut node).await;
    server.advance(seconds(6));
    client.sentence(&id).await;
    waiting(&server, 1).await;
    node.has_nothing().await;
    server.until_node_is(&node, "degraded").await;
    server.advance(seconds(5));
    let job = node.assignment_of(3).await;
    node.answer(&job, "text").await;
    server.until_node_is(&node, "ready").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_too_busy_by_its_own_word_is_left_out_until_its_next_report() {
    let server = TestServer::start(|_| {}).await;
    let mut node = server.node("n1", &ZH_EN).await;
    let mut busy = heartbeat_message("n1", &ZH_EN);
    busy["resource_usage"]["mem_percent"] = 96.into();
    node.peer.send(busy).await;
    server.until_node_is(&node, "degraded").await;
    let (mut client, _) = speaker(&server).await;
    waiting(&server, 1).await;
    node.has_nothing().await;
    server.beat(&mut node).await;
    let job = node.assignment_of(0).await;
    node.answer(&job, "text").await;
    assert_eq!(client.told().await["text_asr"], "text");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_loses_its_languages_or_services_is_left_out_at_once() {
    let server = TestServer::start(|_| {}).await;
    let mut node = server.node("n1", &ZH_EN).await;
    let no_services = |mut message: Value| {
        message["installed_services"] = json!([]);
        message["capability_by_type"] = json!([]);
        message
    };
    for poor in [heartbeat_message("n1", &[]), no_services(heartbeat_message("n1", &ZH_EN))] {
        node.peer.send(poor).await;
        server.until_node_is(&node, "degraded").await;
        server.beat(&mut node).await;
        server.until_node_is(&node, "ready").await;
    }
    node.peer.send(heartbeat_message("n1", &["ja", "en"])).await;
    let routes = |b: &Value| b["pairs"].to_string();
    server.until(|b| !routes(b).contains("zh") && routes(b).contains("ja"), "/api/v1/pools").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_stays_with_its_node_while_that_has_room() {
    let server = TestServer::start(|c| c.node.slots_default = 1).await;
    let mut first = server.node("first", &ZH_EN).await;
    let (mut client, id) = server.session("zh", "en").await;
    works(&mut first, &mut client, &id, 0).await;
    let mut others = [server.node("b", &ZH_EN).await, server.node("c", &ZH_EN).await];
    for index in 1..6 {
        works(&mut first, &mut client, &id, index).await;
    }
    // Two sentences at a time are more than it has room for.
    client.sentence(&id).await;
    let job = first.assignment_of(6).await;
    client.sentence(&id).await;
    waiting(&server, 0).await;
    server.until_metric("utterd_jobs_submitted_total", 8.0).await;
    let mut given = 0;
    for other in &mut others {
        given += other.peer.all("job_assign").await.len();
    }
    assert_eq!(given, 1);
    first.answer(&job, "text").await;
    assert_eq!(client.told().await["utterance_index"], 6);
}

async fn post(server: &TestServer, path: &str) -> Value {
    let (status, body) = http(server.addr(), "POST", path, "").await;
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_node_ends_what_it_has_and_gets_nothing_new() {
    let server = TestServer::start(|_| {}).await;
    let mut node = server.node("n1", &ZH_EN).await;
    let (mut client, id) = server.session("zh", "en").await;
    client.sentence(&id).await;
    let job = node.assignment_of(0).await;
    assert_eq!(post(&server, "/api/v1/nodes/n1/drain").await["state"], "draining");
    server.until_node_is(&node, "draining").await;
    // Neither a report nor a repetition changes that.
    server.beat(&mut node).await;
    assert_eq!(post(&server, "/api/v1/nodes/n1/drain").await["changed"], false);
    client.sentence(&id).await;
    waiting(&server, 1).await;
    node.answer(&job, "text").await;
    assert_eq!(client.told().await["text_asr"], "text");
    node.has_nothing().await;
    let mut other = server.node("n2", &ZH_EN).await;
    let job = other.assignment_of(1).await;
    other.answer(&job, "text").await;
    client.told().await;
    drop(other);
    server.until(|b| b["state"] == "offline", "/api/v1/nodes/n2").await;
    assert_eq!(post(&server, "/api/v1/nodes/n1/undrain").await["changed"], true);
    server.until_node_is(&node, "ready").await;
    works(&mut node, &mut client, &id, 2).await;
    let (status, _) = http(server.addr(), "POST", "/api/v1/nodes/nobody/drain", "").await;
    assert_eq!(status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_asked_is_told_what_became_of_each_result() {
    let server = TestServer::start(|_| {}).await;
    let (mut node, jobs) = server.able_node("n1", "boot", &[], &[]).await;
    assert_eq!(jobs, json!([]));
    let (mut client, _) = speaker(&server).await;
    let job = node.assignment().await;
    node.answer(&job, "text").await;
    assert_eq!(node.acked(&job).await, "committed");
    assert_eq!(client.told().await["text_asr"], "text");
    node.answer(&job, "twice").await;
    assert_eq!(node.acked(&job).await, "duplicate");
    let mut other = job.clone();
    other["attempt_id"] = (job["attempt_id"].as_u64().unwrap() + 1).into();
    node.answer(&other, "of no attempt").await;
    assert_eq!(node.acked(&other).await, "stale");
    other["job_id"] = "job-01234567-89ab-4def-8123-456789abcdef".into();
    node.answer(&other, "of no job").await;
    assert_eq!(node.acked(&other).await, "unknown");
    for status in ["committed", "duplicate", "stale", "unknown"] {
        let name = format!("utterd_result_acks_total{{status=\"{status}\"}}");
        assert_eq!(server.metric(&name).await, 1.0, "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_store_refusals_and_failures_are_acknowledged_too() {
    let server = TestServer::start(|c| c.store.enabled = false).await;
    let (mut node, _) = server.able_node("n1", "boot", &[], &[]).await;
    let mut other = None;
    for (code, told) in [("NODE_OVERLOADED", false), ("PROCESSING_ERROR", true)] {
        let (mut client, _) = speaker(&server).await;
        let job = node.assignment().await;
        if !told {
            other = Some(server.node("other", &ZH_EN).await);
        }
        node.fail(&job, fault(code, "no")).await;
        assert_eq!(node.acked(&job).await, "committed");
        if told {
            assert_eq!(client.failure().await, code);
        } else if let Some(mut other) = other.take() {
            let job = other.assignment().await;
            other.answer(&job, "text").await;
            assert_eq!(client.told().await["text_asr"], "text");
            drop(other);
            server.until(|b| b["state"] == "offline", "/api/v1/nodes/other").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_did_not_ask_is_sent_nothing_it_does_not_know() {
    let server = TestServer::start(|_| {}).await;
    let mut peer = server.raw_node().await;
    let mut register = register_message(Some("n1"), &ZH_EN);
    // Without the name of its run it cannot be told apart from the next one.
    register["extensions"] = json!(["result_ack"]);
    peer.send(register).await;
    let ack = peer.expect("node_register_ack").await;
    assert!(ack.get("extensions").is_none() && ack.get("jobs").is_none(), "{ack}");
    let mut node = FakeNode { peer, id: "n1".to_owned() };
    server.until_node_is(&node, "ready").await;
    let (mut client, _) = speaker(&server).await;
    let job = node.assignment().await;
    for text in ["text", "twice"] {
        node.answer(&job, text).await;
    }
    client.told().await;
    assert!(node.peer.all("result_ack").await.is_empty());
}
