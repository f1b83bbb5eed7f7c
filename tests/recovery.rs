//! What was accepted survives the server: a stop in good order, and a kill.

mod support;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{
    FakeNode, Peer, QUIET, SOON, TestServer, heartbeat_message, hello_message, http, speech,
};
use utterd::peer::engine::{EchoEngine, Engine};
use utterd::peer::node::NodeOptions;

const LANGUAGES: [&str; 2] = ["zh", "en"];

async fn sentence(client: &mut Peer, id: &str, seq: u64, audio: &[u8]) {
    client.chunk(id, seq, audio, false).await;
    client.chunk(id, seq + 1, &[], true).await;
}

/// A node that was known before: its heartbeat comes first.
async fn node_is_back(addr: SocketAddr, id: &str, slots: u32) -> FakeNode {
    let mut peer = Peer::connect(addr, "/ws/node").await;
    let mut beat = heartbeat_message(id, &LANGUAGES);
    beat["max_concurrent_jobs"] = slots.into();
    peer.send(beat).await;
    FakeNode { peer, id: id.to_owned() }
}

/// A session on a fresh connection.
/// A session that is told when an utterance is on disk.
async fn session(addr: SocketAddr) -> (Peer, String) {
    let mut client = Peer::connect(addr, "/ws/session").await;
    client
        .send(json!({"type": "session_init", "client_version": "t", "platform": "web",
            "src_lang": "zh", "tgt_lang": "en", "extensions": ["accepted"]}))
        .await;
    let ack = client.expect("session_init_ack").await;
    (client, ack["session_id"].as_str().unwrap().to_owned())
}

async fn assignments(node: &mut FakeNode, n: usize) -> Vec<Value> {
    let mut jobs = Vec::new();
    for _ in 0..n {
        jobs.push(node.assignment().await);
    }
    jobs
}

fn by_id(jobs: &[Value]) -> BTreeMap<String, Value> {
    let id = |job: &Value| job["job_id"].as_str().unwrap().to_owned();
    let map: BTreeMap<_, _> = jobs.iter().map(|job| (id(job), job.clone())).collect();
    assert_eq!(map.len(), jobs.len(), "a job was assigned twice");
    map
}

/// Asks until the answer is as wanted.
async fn until(addr: SocketAddr, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + SOON;
    loop {
        let (_, body) = http(addr, "GET", path, "").await;
        let body = serde_json::from_str(&body).unwrap_or_default();
        if wanted(&body) {
            return body;
        }
        assert!(Instant::now() < deadline, "{path} stays at {body}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn metric(addr: SocketAddr, name: &str) -> f64 {
    let (_, text) = http(addr, "GET", "/metrics", "").await;
    let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok();
    text.lines().find_map(value).unwrap_or(0.0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_lets_work_in_flight_finish() {
    let server = TestServer::start(|_| {}).await;
    let mut node = server.node("n1", &LANGUAGES).await;
    let (mut client, id) = server.session("zh", "en").await;
    sentence(&mut client, &id, 0, &speech(300)).await;
    let job = node.assignment().await;
    let began = Instant::now();
    let stopped = tokio::spawn(server.server.stop());
    // The stop waits for the job for as long as configured, which is longer than this test.
    tokio::time::sleep(QUIET).await;
    assert!(!stopped.is_finished());
    node.answer(&job, "in time").await;
    assert_eq!(client.told().await["text_asr"], "in time");
    assert_eq!(client.close_code().await, Some(1001));
    assert_eq!(node.peer.close_code().await, Some(1001));
    drop((client, node));
    stopped.await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_under_load_goes_on_where_it_was() {
    let server = TestServer::start(|c| c.server.drain_ms = 300).await;
    let addr = server.addr();
    let mut nodes = [server.node("n1", &LANGUAGES).await, server.node("n2", &LANGUAGES).await];
    let mut clients = Vec::new();
    for _ in 0..3 {
        let (mut client, id) = server.session("zh", "en").await;
        for seq in 0..4 {
            sentence(&mut client, &id, 2 * seq, &speech(300)).await;
        }
        clients.push(client);
    }
    // Two nodes of four slots each are full, four jobs wait.
    let mut held = Vec::new();
    for node in &mut nodes {
        held.extend(assignments(node, 4).await);
    }
    let held = by_id(&held);
    server.until(|b| b["jobs"] == json!({"live": 12, "waiting": 4}), "/api/v1/stats").await;
    let (_, all) = server.get("/api/v1/jobs").await;
    let ids: Vec<String> = all["jobs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|job| job["job_id"].as_str().unwrap().to_owned())
        .collect();

    let restarted = tokio::spawn(server.restart(|_| {}));
    for client in &mut clients {
        assert_eq!(client.close_code().await, Some(1001));
    }
    for node in &mut nodes {
        assert_eq!(node.peer.close_code().await, Some(1001));
    }
    drop((clients, nodes));
    let server = restarted.await.unwrap();
    assert_eq!(server.addr(), addr);

    let mut first = node_is_back(addr, "n1", 64).await;
    let again = by_id(&assignments(&mut first, 12).await);
    assert!(
        again.keys().eq(&{
            let mut ids = ids.clone();
            ids.sort();
            ids
        }),
        "other jobs"
    );
    for (id, before) in &held {
        assert!(again[id]["attempt_id"].as_u64() > before["attempt_id"].as_u64());
        assert_eq!(again[id]["audio"], before["audio"]);
    }
    // What a node answers to the attempt it was given before counts for nothing.
    for before in held.values() {
        first.answer(before, "of an earlier life").await;
    }
    let stale = "utterd_stale_events_total{event=\"result_foreign\"}";
    server.until_metric(stale, held.len() as f64).await;
    for job in again.values() {
        first.answer(job, "of this life").await;
        first.answer(job, "again").await;
    }
    for id in &ids {
        let ended = |b: &Value| b["state"] == "succeeded" && b["ended"]["attempts"] == 1;
        server.until(ended, &format!("/api/v1/jobs/{id}")).await;
    }
    server.until_metric("utterd_stale_events_total{event=\"result_late\"}", 12.0).await;
    assert_eq!(server.metric("utterd_jobs_settled_total{outcome=\"succeeded\"}").await, 12.0);

    // Clients begin anew, and the first thing they say is answered.
    for _ in 0..3 {
        let (mut client, id) = session(addr).await;
        sentence(&mut client, &id, 8, &speech(300)).await;
        let job = first.assignment().await;
        assert_eq!(job["utterance_index"], 0);
        first.answer(&job, "hello again").await;
        assert_eq!(client.told().await["text_asr"], "hello again");
    }
    server.until_nothing_is_left().await;
}

/// The program itself, in a process of its own.
struct Daemon {
    child: Child,
    addr: SocketAddr,
    /// Kept open, so that it has somewhere to write to.
    _stdout: BufReader<ChildStdout>,
}

/// The program with no settings but its defaults.
fn utterd() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_utterd"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("UTTERD_") {
            command.env_remove(name);
        }
    }
    command
}

impl Daemon {
    fn start(dir: &Path) -> Self {
        let mut child = utterd()
            .args(["serve", "--listen", "127.0.0.1:0", "--data"])
            .arg(dir)
            .env("UTTERD_SEGMENTER_HANGOVER_MANUAL_MS", "0")
            .env("UTTERD_SERVER_DRAIN_MS", "200")
            .env("UTTERD_LOG_LEVEL", "warn")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let addr = line.trim().strip_prefix("utterd listening on ").map(str::parse);
        let addr = addr.unwrap_or_else(|| panic!("said {line:?}")).unwrap();
        Self { child, addr, _stdout: stdout }
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn stop(mut self) {
        let process = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(process, rustix::process::Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It has ended already, unless the test failed.
        if self.child.kill().is_ok() {
            self.child.wait().unwrap();
        }
    }
}

fn inspect(dir: &Path, what: &[&str]) -> Value {
    let output =
        utterd().args(["inspect", "--json"]).args(what).arg("--data").arg(dir).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_loses_nothing_that_was_accepted_and_repeats_nothing_that_ended() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let mut node = node_is_back(daemon.addr, "n1", 3).await;
    until(daemon.addr, "/api/v1/pools", |b| b["pairs_total"] == 4).await;
    let (mut client, id) = session(daemon.addr).await;
    for seq in 0..7 {
        sentence(&mut client, &id, 2 * seq, &speech(300 + 20 * seq as usize)).await;
    }
    let mut held = assignments(&mut node, 3).await;
    until(daemon.addr, "/api/v1/stats", |b| b["jobs"] == json!({"live": 7, "waiting": 4})).await;
    for _ in 0..7 {
        client.expect("utterance_accepted").await;
    }
    // A result is told once it is on disk.
    let done = held.remove(0);
    node.answer(&done, "before the kill").await;
    assert_eq!(client.told().await["text_asr"], "before the kill");
    held.push(node.assignment().await);
    daemon.kill();

    let daemon = Daemon::start(dir.path());
    let addr = daemon.addr;
    let mut node = node_is_back(addr, "n1", 64).await;
    let jobs = assignments(&mut node, 6).await;
    let indices: Vec<_> = jobs.iter().filter_map(|job| job["utterance_index"].as_u64()).collect();
    assert!(indices.is_sorted(), "in another order: {indices:?}");
    let again = by_id(&jobs);
    assert!(!again.contains_key(done["job_id"].as_str().unwrap()), "it had ended");
    for before in &held {
        let after = &again[before["job_id"].as_str().unwrap()];
        assert!(after["attempt_id"].as_u64() > before["attempt_id"].as_u64());
        assert_eq!(after["turn_id"], before["turn_id"]);
    }
    for after in again.values() {
        let index = after["utterance_index"].as_u64().unwrap();
        let audio = base64_simd::STANDARD.decode_to_vec(after["audio"].as_str().unwrap()).unwrap();
        assert_eq!(audio, speech(300 + 20 * index as usize));
        assert_eq!(after["session_id"], id.as_str());
    }
    assert!(node.peer.all("job_assign").await.is_empty());
    for job in again.values() {
        node.answer(job, "after the kill").await;
        node.answer(job, "and again").await;
    }
    for job in again.keys() {
        until(addr, &format!("/api/v1/jobs/{job}"), |b| b["state"] == "succeeded").await;
    }
    let stale = "utterd_stale_events_total{event=\"result_late\"}";
    while metric(addr, stale).await < 6.0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(metric(addr, "utterd_jobs_settled_total{outcome=\"succeeded\"}").await, 6.0);
    drop(node);
    daemon.stop();

    for job in again.keys().map(String::as_str).chain(done["job_id"].as_str()) {
        let row = inspect(dir.path(), &["job", job]);
        assert_eq!(
            (&row["state"], &row["ended"]["outcome"]),
            (&json!("succeeded"), &json!("succeeded")),
            "{row}"
        );
        assert_eq!(row["ended"]["node"], "n1");
    }
    assert_eq!(inspect(dir.path(), &["jobs"]), json!([]));

    let daemon = Daemon::start(dir.path());
    let mut node = node_is_back(daemon.addr, "n1", 64).await;
    until(daemon.addr, "/api/v1/pools", |b| b["pairs_total"] == 4).await;
    assert!(node.peer.all("job_assign").await.is_empty(), "it had ended");
    let stats = until(daemon.addr, "/api/v1/stats", Value::is_object).await;
    assert_eq!((&stats["jobs"]["live"], &stats["boot_epoch"]), (&json!(0), &json!(2)));
    // The ends are still known, and nothing is in the way of what comes.
    let path = format!("/api/v1/jobs/{}", done["job_id"].as_str().unwrap());
    until(daemon.addr, &path, |b| b["state"] == "succeeded").await;
    let (mut client, id) = session(daemon.addr).await;
    sentence(&mut client, &id, 0, &speech(300)).await;
    let job = node.assignment().await;
    node.answer(&job, "hello again").await;
    assert_eq!(client.told().await["text_asr"], "hello again");
    drop((client, node));
    daemon.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn more_jobs_than_a_smaller_limit_allows_are_taken_back_and_done() {
    let server = TestServer::start(|c| c.server.drain_ms = 0).await;
    let (mut client, id) = server.session("zh", "en").await;
    for seq in 0..5 {
        sentence(&mut client, &id, 2 * seq, &speech(300)).await;
    }
    server.until(|b| b["jobs"]["live"] == 5, "/api/v1/stats").await;
    let restarted = tokio::spawn(server.restart(|c| {
        (c.job.live_max, c.job.queue_max, c.session.jobs_max) = (1, 1, 1);
    }));
    assert_eq!(client.close_code().await, Some(1001));
    drop(client);
    let server = restarted.await.unwrap();
    server.until(|b| b["jobs"] == json!({"live": 5, "waiting": 5}), "/api/v1/stats").await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    for _ in 0..5 {
        let job = node.assignment().await;
        node.answer(&job, "done").await;
    }
    server.until_nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_found_no_node_in_either_life_ends_by_its_deadline() {
    let server = TestServer::start(|c| c.server.drain_ms = 0).await;
    let (mut client, id) = server.session("zh", "en").await;
    sentence(&mut client, &id, 0, &speech(300)).await;
    let jobs = server.until(|b| b["total"] == 1, "/api/v1/jobs").await;
    let path = format!("/api/v1/jobs/{}", jobs["jobs"][0]["job_id"].as_str().unwrap());
    let restarted = tokio::spawn(server.restart(|c| c.server.drain_ms = 0));
    assert_eq!(client.close_code().await, Some(1001));
    drop(client);
    let server = restarted.await.unwrap();
    server.until(|b| b["jobs"] == json!({"live": 1, "waiting": 1}), "/api/v1/stats").await;
    server.advance(Duration::from_millis(10_001));
    server.until_nothing_is_left().await;
    let (_, job) = server.get(&path).await;
    assert_eq!(
        (&job["state"], &job["ended"]["code"]),
        (&json!("expired"), &json!("NO_AVAILABLE_NODE"))
    );
    let server = server.restart(|_| {}).await;
    server.until_nothing_is_left().await;
    let (_, job) = server.get(&path).await;
    assert_eq!(job["state"], "expired");
}

/// A node that can say what it has, and says it.
async fn able_node(
    addr: SocketAddr,
    id: &str,
    inflight: &[&Value],
    unacked: &[&Value],
) -> (FakeNode, Value) {
    let peer = Peer::connect(addr, "/ws/node").await;
    let mut hello = hello_message(id, "the same run", inflight, unacked);
    hello["max_concurrent_jobs"] = 64.into();
    FakeNode::hello(peer, hello).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_did_while_the_server_was_dead_is_not_done_again() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let (mut node, _) = able_node(daemon.addr, "able", &[], &[]).await;
    until(daemon.addr, "/api/v1/pools", |b| b["pairs_total"] == 4).await;
    let (mut client, id) = session(daemon.addr).await;
    for seq in 0..3 {
        sentence(&mut client, &id, 2 * seq, &speech(300)).await;
    }
    let jobs = assignments(&mut node, 3).await;
    for _ in 0..3 {
        client.expect("utterance_accepted").await;
    }
    daemon.kill();

    let daemon = Daemon::start(dir.path());
    let addr = daemon.addr;
    // Others get nothing of that before the node had a chance to come.
    let mut other = node_is_back(addr, "other", 4).await;
    until(addr, "/api/v1/pools", |b| b["pairs_total"] == 4).await;
    other.has_nothing().await;
    let (mut client, id) = session(addr).await;
    sentence(&mut client, &id, 0, &speech(300)).await;
    let new = other.assignment().await;
    assert_eq!(new["session_id"], id.as_str(), "what is new does not wait");
    let (mut node, told) = able_node(addr, "able", &[&jobs[1]], &[&jobs[0]]).await;
    let action = |n: usize| (&told[n]["job_id"], &told[n]["action"]);
    assert_eq!(action(0), (&jobs[1]["job_id"], &json!("keep")));
    assert_eq!(action(1), (&jobs[0]["job_id"], &json!("send")));
    for job in &jobs[..2] {
        node.answer(job, "of an earlier life").await;
        assert_eq!(node.acked(job).await, "committed");
        let path = format!("/api/v1/jobs/{}", job["job_id"].as_str().unwrap());
        let ended = until(addr, &path, |b| b["state"] == "succeeded").await;
        assert_eq!(ended["attempt_id"], job["attempt_id"]);
    }
    // What it did not name is given out now.
    let rest = other.assignment().await;
    assert_eq!(rest["job_id"], jobs[2]["job_id"]);
    assert!(rest["attempt_id"].as_u64() > jobs[2]["attempt_id"].as_u64());
    node.answer(&jobs[2], "too late").await;
    assert_eq!(node.acked(&jobs[2]).await, "stale");
    node.has_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_on_disk_whenever_the_server_is_killed() {
    for round in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        let daemon = Daemon::start(dir.path());
        let (mut node, _) = able_node(daemon.addr, "able", &[], &[]).await;
        until(daemon.addr, "/api/v1/pools", |b| b["pairs_total"] == 4).await;
        let (mut client, id) = session(daemon.addr).await;
        for seq in 0..12 {
            sentence(&mut client, &id, 2 * seq, &speech(300)).await;
        }
        let jobs = assignments(&mut node, 12).await;
        for job in &jobs {
            node.answer(job, "text").await;
        }
        let mut acked = Vec::new();
        for _ in 0..=round * 4 {
            let ack = node.peer.expect("result_ack").await;
            assert_eq!(ack["status"], "committed");
            acked.push(ack["job_id"].as_str().unwrap().to_owned());
        }
        daemon.kill();
        let daemon = Daemon::start(dir.path());
        for job in acked {
            let (_, told) = http(daemon.addr, "GET", &format!("/api/v1/jobs/{job}"), "").await;
            assert!(told.contains("\"state\":\"succeeded\""), "{told}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_before_do_not_wait_for_ever_for_a_node_of_before() {
    let server = TestServer::start(|c| c.server.drain_ms = 0).await;
    let mut gone = server.node("gone", &LANGUAGES).await;
    let (mut client, id) = server.session("zh", "en").await;
    sentence(&mut client, &id, 0, &speech(300)).await;
    let job = gone.assignment().await;
    let restarted = tokio::spawn(server.restart(|c| c.node.recovery_wait_ms = 60_000));
    assert_eq!(client.close_code().await, Some(1001));
    drop((client, gone));
    let server = restarted.await.unwrap();
    let mut other = server.node("other", &LANGUAGES).await;
    other.has_nothing().await;
    server.until(|b| b["jobs"] == json!({"live": 1, "waiting": 0}), "/api/v1/stats").await;
    server.beat(&mut other).await;
    server.advance(Duration::from_secs(40));
    server.beat(&mut other).await;
    other.has_nothing().await;
    server.advance(Duration::from_secs(21));
    let again = other.assignment().await;
    assert_eq!(again["job_id"], job["job_id"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn our_own_node_goes_on_with_its_job_while_the_server_is_started_again() {
    let server = TestServer::start(|c| c.server.drain_ms = 0).await;
    let languages = LANGUAGES.map(str::to_owned).into();
    let engine = EchoEngine { languages, delay: Duration::from_millis(1_500) };
    let url = format!("ws://{}/ws/node", server.addr());
    let options = NodeOptions::new(url, Engine::Echo(engine));
    let node = tokio::spawn(utterd::peer::node::run(options, std::future::pending::<()>(), None));
    server.until(|b| b["pairs_total"] == 2, "/api/v1/pools").await;
    let (mut client, id) = server.session("zh", "en").await;
    sentence(&mut client, &id, 0, &speech(300)).await;
    let jobs = server.until(|b| b["total"] == 1, "/api/v1/jobs").await;
    let job = server.job_at(&jobs["jobs"][0]["job_id"], "acked").await;
    let server = server.restart(|_| {}).await;
    let path = format!("/api/v1/jobs/{}", job["job_id"].as_str().unwrap());
    let ended = server.until(|b| b["state"] == "succeeded", &path).await;
    assert_eq!(ended["attempt_id"], job["attempt_id"], "it was not done again");
    assert_eq!(server.metric("utterd_jobs_adopted_total").await, 1.0);
    server.until_metric("utterd_result_acks_total{status=\"committed\"}", 1.0).await;
    node.abort();
}
