//! What an operator changes while the server runs: settings, pools one by one, what is logged, and
//! the stop.

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use support::{FakeNode, Http, Peer, SOON, TestServer, http, http_with, speech};
use utterd::config::Config;
use utterd::server::Stopped;

/// Readings under load.
const READINGS: usize = 1_000;
/// Jobs done meanwhile: reading goes on until there were as many.
const JOBS: usize = 100;

/// Writes a file so that a reader sees the old one or the new one.
fn write(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, path).unwrap();
}

/// A server that was started by a file, and the file.
async fn started(text: &str) -> (TestServer, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("utterd.toml");
    write(&path, text);
    let flags = [
        ("UTTERD_SERVER_LISTEN".to_owned(), "127.0.0.1:0".to_owned()),
        ("UTTERD_SERVER_DATA".to_owned(), dir.path().display().to_string()),
        ("UTTERD_SEGMENTER_HANGOVER_MANUAL_MS".to_owned(), "0".to_owned()),
    ];
    let file = path.clone();
    let source = move || Config::load_placed(Some(&file), flags.iter().cloned());
    let server = utterd::server::Server::start(source().unwrap()).await.unwrap();
    server.reload_from(Arc::new(source));
    (TestServer { server, dir }, path)
}

async fn reload(server: &TestServer) -> (u16, Value) {
    let (status, body) = http(server.addr(), "POST", "/api/v1/config/reload", "").await;
    (status, serde_json::from_str(&body).unwrap())
}

async fn setting(server: &TestServer, section: &str, key: &str) -> Value {
    server.get("/api/v1/config").await.1["settings"][section][key].clone()
}

/// A file whose values all follow from one number.
fn numbered(n: usize) -> String {
    format!(
        "[job]\npending_ms = {}\nlease_base_ms = {}\nlease_min_ms = 1\nlease_max_ms = 3_600_000\n\
         lease_per_audio_second_ms = 0\n[session]\nclose_wait_ms = {n}\n\
         [node]\nquarantine_ms = {}\n[transport]\nping_interval_ms = {}\n",
        20_000 + n,
        30_000 + n,
        n + 1,
        20_000 + n,
    )
}

async fn work(mut node: FakeNode) {
    while let Some(message) = node.peer.next().await {
        if message["type"] == "job_assign" {
            node.answer(&message, "text").await;
        }
    }
}

#[derive(Default)]
struct Load {
    stop: AtomicBool,
    answered: AtomicUsize,
}

/// Speaks until told to stop, in sessions of five utterances each; the ids of the jobs.
async fn speak(server: Arc<TestServer>, load: Arc<Load>) -> Vec<String> {
    let (audio, mut jobs) = (speech(100), Vec::new());
    while !load.stop.load(SeqCst) {
        let (mut client, id) = server.session("zh", "en").await;
        for _ in 0..5 {
            client.chunk(&id, 0, &audio, true).await;
            let told = client.told().await;
            assert_eq!(told["type"], "translation_result", "{told}");
            jobs.push(told["job_id"].as_str().unwrap().to_owned());
            load.answered.fetch_add(1, SeqCst);
        }
        client.send(json!({"type": "session_close", "session_id": id})).await;
        client.expect("session_close_ack").await;
    }
    jobs
}

#[tokio::test(flavor = "multi_thread")]
async fn work_flows_on_while_settings_are_read_again_and_each_job_goes_by_one_version() {
    let (server, path) = started(&numbered(0)).await;
    let server = Arc::new(server);
    let mut workers = Vec::new();
    for id in ["n1", "n2"] {
        workers.push(tokio::spawn(work(server.node(id, &["zh", "en"]).await)));
    }
    let load = Arc::new(Load::default());
    let speakers: Vec<_> =
        (0..3).map(|_| tokio::spawn(speak(Arc::clone(&server), Arc::clone(&load)))).collect();

    let mut admin = Http::connect(server.addr()).await;
    let mut reading = 0;
    while reading < READINGS || load.answered.load(SeqCst) < JOBS {
        reading += 1;
        write(&path, &numbered(reading));
        admin.ask("POST", "/api/v1/config/reload", "").await;
        let (status, body) = admin.answer().await;
        assert_eq!(status, 200, "{body}");
        let answer: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(answer["version"], reading + 1);
        assert_eq!(answer["changed"].as_array().unwrap().len(), 5, "{answer}");
        if reading % 10 == 0 {
            admin.ask("GET", "/api/v1/config", "").await;
            let (_, body) = admin.answer().await;
            let shown: Value = serde_json::from_str(&body).unwrap();
            let value = |section: &str, key: &str| &shown["settings"][section][key]["value"];
            assert_eq!(shown["version"], reading + 1);
            assert_eq!(value("session", "close_wait_ms"), reading);
            assert_eq!(value("node", "quarantine_ms"), reading + 1);
            assert_eq!(value("transport", "ping_interval_ms"), 20_000 + reading);
        }
    }
    load.stop.store(true, SeqCst);
    let mut jobs = Vec::new();
    for speaker in speakers {
        jobs.extend(speaker.await.unwrap());
    }

    let mut versions = std::collections::BTreeSet::new();
    for id in &jobs {
        let (_, job) = server.get(&format!("/api/v1/jobs/{id}")).await;
        let version = job["pending_ms"].as_u64().unwrap() - 20_000;
        assert_eq!(job["lease_ms"], 30_000 + version, "two versions in one job: {job}");
        assert_eq!(job["ended"]["attempts"], 1, "{job}");
        versions.insert(version);
    }
    assert!(versions.len() > 10, "{versions:?}");
    assert_eq!(server.metric_sum("utterd_jobs_refused_total", &[]).await, 0.0);
    let succeeded = server.metric("utterd_jobs_settled_total{outcome=\"succeeded\"}").await;
    assert_eq!(succeeded, jobs.len() as f64);
    assert_eq!(server.metric_sum("utterd_jobs_settled_total", &[]).await, succeeded);
    assert_eq!(server.metric("utterd_config_version").await, reading as f64 + 1.0);
    server.until_nothing_is_left().await;
    workers.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_file_changes_nothing_and_every_fault_is_told_with_its_line() {
    let (server, path) = started("[job]\nqueue_max = 11\n").await;
    let (_, before) = server.get("/api/v1/config").await;
    write(
        &path,
        "[job]\nqueue_max = 12\npending_ms = \"soon\"\n[sesion]\n\n[transport]\n\
         ping_interval_ms = 0\n[[tenants]]\nname = \"a\"\n[[tenants]]\nname = \"a\"\n\
         [log]\nlevel = \"loud\"\n",
    );
    let (status, answer) = reload(&server).await;
    assert_eq!(status, 422, "{answer}");
    let lines: Vec<_> = answer["faults"].as_array().unwrap().iter().collect();
    let told: Vec<_> = lines.iter().map(|f| (f["key"].as_str().unwrap(), &f["place"])).collect();
    let line = |n: u64| json!({"line": n});
    assert_eq!(
        told,
        [
            ("job.pending_ms", &line(3)),
            ("sesion", &line(4)),
            ("transport.ping_interval_ms", &line(7)),
            ("tenants[1].name", &line(11)),
            ("log.level", &line(13)),
        ]
    );
    let text = answer["error"].as_str().unwrap();
    assert_eq!(text.lines().count(), 5, "{text}");
    assert!(text.contains("(line 13)"), "{text}");
    assert_eq!(server.get("/api/v1/config").await.1, before);
    // What is no TOML is told with all that can be read besides.
    write(&path, "[job]\nqueue_max = = 3\nlive_max = [1\n\n[segmenter]\npause_ms = -1\n");
    let (status, answer) = reload(&server).await;
    assert_eq!(status, 422);
    assert!(answer["faults"].as_array().unwrap().len() > 1, "{answer}");
    std::fs::remove_file(&path).unwrap();
    let (status, answer) = reload(&server).await;
    assert_eq!((status, &answer["faults"][0]["key"]), (422, &json!(path.to_str().unwrap())));
    assert_eq!(server.get("/api/v1/config").await.1, before);
    assert_eq!(server.metric("utterd_config_reloads_total{outcome=\"refused\"}").await, 3.0);
    write(&path, "[job]\nqueue_max = 12\n");
    let (status, answer) = reload(&server).await;
    let changed = json!([{"setting": "job.queue_max", "from": "11", "to": "12"}]);
    assert_eq!((status, &answer["changed"]), (200, &changed));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_needs_a_restart_is_named_and_stays_as_it_is() {
    let (server, path) = started("[server]\ndrain_ms = 1\n").await;
    write(
        &path,
        "[server]\nnode_listen = \"127.0.0.1:1\"\ndrain_ms = 2\n[job]\nhistory_max = 5\n\
         [store]\ncache_bytes = 2_000_000\n",
    );
    let (status, answer) = reload(&server).await;
    assert_eq!(status, 200, "{answer}");
    let names = |list: &str| -> Vec<String> {
        let list = answer[list].as_array().unwrap().iter();
        list.map(|one| one["setting"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names("changed"), ["server.drain_ms"]);
    assert_eq!(
        names("needs_restart"),
        ["server.node_listen", "job.history_max", "store.cache_bytes"]
    );
    let drain = setting(&server, "server", "drain_ms").await;
    assert_eq!(drain, json!({"value": 2, "from": {"line": 3}, "changes": "live"}));
    assert_eq!(setting(&server, "job", "history_max").await["value"], 10_000);
    let listen = setting(&server, "server", "listen").await;
    assert_eq!(listen["from"], json!({"variable": "UTTERD_SERVER_LISTEN"}));
    assert_eq!(listen["changes"], "at a restart");
    // A new value that contradicts an old one which stays is a fault.
    write(
        &path,
        "[transport]\nnode_outbox_bytes_max = 200_000_000\n[segmenter]\nmax_bytes = 50_000_000\n",
    );
    let (status, answer) = reload(&server).await;
    assert_eq!(status, 422, "{answer}");
    assert!(answer["error"].as_str().unwrap().contains("segmenter.max_bytes"), "{answer}");
    assert_eq!(setting(&server, "segmenter", "max_bytes").await["value"], 512_000);
}

async fn denied(server: &TestServer, tenant: &str) -> Option<String> {
    let mut client = server.client().await;
    client
        .send(json!({"type": "session_init", "client_version": "t", "platform": "web",
            "src_lang": "zh", "tgt_lang": "en", "tenant_id": tenant}))
        .await;
    let answer = client.next_of(&["session_init_ack", "error"]).await;
    answer["code"].as_str().map(str::to_owned)
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_origins_and_doors_follow_the_file() {
    let (server, path) = started("").await;
    let origin = "origin: https://strange.example\r\n";
    let health = async || http_with(server.addr(), "GET", "/health", origin, "").await.0;
    assert_eq!((health().await, denied(&server, "acme").await), (200, None));
    write(
        &path,
        "[transport]\nallowed_origins = [\"https://talk.example\"]\n[auth]\n\
         session_keys_required = true\n",
    );
    assert_eq!(reload(&server).await.0, 200);
    assert_eq!(health().await, 403);
    let stream = tokio::net::TcpStream::connect(server.addr()).await.unwrap();
    assert!(Peer::over(stream, "/ws/session").await.is_err(), "a door that asks for a key");
    // A tenant that was not listed before, with limits and a share of its own.
    write(&path, "[[tenants]]\nname = \"acme\"\nsessions_max = 1\nweight = 7\n");
    let (_, answer) = reload(&server).await;
    assert!(answer["changed"].to_string().contains("\"tenants.acme\""), "{answer}");
    assert_eq!(health().await, 200);
    let (mut first, _) = (server.client().await, ());
    first
        .send(json!({"type": "session_init", "client_version": "t", "platform": "web",
            "src_lang": "zh", "tgt_lang": "en", "tenant_id": "acme"}))
        .await;
    first.expect("session_init_ack").await;
    assert_eq!(denied(&server, "acme").await.as_deref(), Some("RATE_LIMITED"));
    let (_, usage) = server.get("/api/v1/usage").await;
    let acme = usage["tenants"].as_array().unwrap().iter().find(|t| t["tenant"] == "acme");
    assert_eq!(acme.unwrap()["weight"], 7, "{usage}");
    write(&path, "[[tenants]]\nname = \"acme\"\nsessions_max = 5\n");
    let (_, answer) = reload(&server).await;
    let settings: Vec<_> =
        answer["changed"].as_array().unwrap().iter().map(|c| &c["setting"]).collect();
    assert_eq!(settings, ["tenants.acme.weight", "tenants.acme.sessions_max"]);
    assert_eq!(denied(&server, "acme").await, None);
}

const FILE_POOL: &str = "[[pools]]\nname = \"file\"\npairs = [\"*:*\"]\n";

#[tokio::test(flavor = "multi_thread")]
async fn the_files_pools_follow_it_unless_an_operator_set_others() {
    let (server, path) = started(FILE_POOL).await;
    let names = async || {
        let (_, pools) = server.get("/api/v1/pools").await;
        pools["config"].as_array().unwrap().iter().map(|p| p["name"].clone()).collect::<Vec<_>>()
    };
    let second = format!("{FILE_POOL}[[pools]]\nname = \"second\"\npairs = [\"zh:en\"]\n");
    write(&path, &second);
    let (_, answer) = reload(&server).await;
    assert_eq!(answer["changed"][0]["setting"], "pools.second");
    assert_eq!(names().await, ["file", "second"]);
    let own = json!([{"name": "own", "pairs": ["zh:en"]}]).to_string();
    let (status, body) = http(server.addr(), "PUT", "/api/v1/pools", &own).await;
    assert_eq!(status, 200, "{body}");
    write(&path, FILE_POOL);
    let (_, answer) = reload(&server).await;
    assert_eq!((&answer["changed"], names().await), (&json!([]), vec![json!("own")]));
    assert_eq!(answer["outranked"][0]["setting"], "pools.second", "{answer}");
    assert_eq!(http(server.addr(), "DELETE", "/api/v1/pools", "").await.0, 200);
    assert_eq!(names().await, ["file"], "as the file is by now");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_has_the_server_stopped_in_good_order() {
    let (server, _) = started("").await;
    let (status, _) = http(server.addr(), "POST", "/api/v1/drain", "").await;
    assert_eq!(status, 409, "nobody would do it");
    let asked = server.server.asked_to_stop();
    let mut node = server.node("n1", &["zh", "en"]).await;
    let (mut client, id) = server.session("zh", "en").await;
    client.chunk(&id, 0, &speech(300), true).await;
    let job = node.assignment().await;
    let (status, body) = http(server.addr(), "POST", "/api/v1/drain", "").await;
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &body["jobs"], &body["draining"]), (202, &json!(1), &json!(true)));
    asked.await;
    let addr = server.addr();
    let stopping = tokio::spawn(server.server.stop());
    loop {
        let (status, _) = http(addr, "GET", "/readyz", "").await;
        if status == 503 {
            break;
        }
    }
    // Asked again, it goes on as before.
    assert_eq!(http(addr, "POST", "/api/v1/drain", "").await.0, 202);
    node.answer(&job, "in time").await;
    assert_eq!(client.told().await["text_asr"], "in time");
    assert_eq!(stopping.await.unwrap(), Stopped::InOrder);
}

/// The program's own words for a running server.
fn run(args: &[&str], stdin: &str) -> (bool, String) {
    use std::io::Write;
    let mut command = Command::new(env!("CARGO_BIN_EXE_utterd"));
    command.args(args).env_remove("UTTERD_CONFIG");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

/// The answer to a request.
fn said_of(addr: &str, path: &str) -> String {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(http(addr.parse().unwrap(), "GET", path, "")).1
}

/// A process that does not outlive its test.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It has ended already, unless the test failed.
        if self.0.kill().is_ok() {
            self.0.wait().unwrap();
        }
    }
}

#[test]
fn the_verbs_of_an_operator_change_a_running_program() {
    use std::io::{BufRead, BufReader, Read};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("utterd.toml");
    write(&path, "[job]\nqueue_max = 11\n");
    let file = path.to_str().unwrap();
    let server = Command::new(env!("CARGO_BIN_EXE_utterd"))
        .args(["serve", "--config", file, "--listen", "127.0.0.1:0", "--data"])
        .arg(dir.path().join("data"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ended = Ended(server);
    let server = &mut ended.0;
    let mut line = String::new();
    let mut stdout = BufReader::new(server.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    let addr = line.trim().rsplit(' ').next().unwrap().to_owned();
    let ask = |args: &[&str], stdin: &str| run(&[args, &["--server", &addr]].concat(), stdin);

    write(&path, "[job]\nqueue_max = 12\nlive_max = 1\n");
    let (fine, text) = run(&["check", file], "");
    assert!(!fine && text.contains("(line 2)"), "{text}");
    let (fine, text) = ask(&["reload"], "");
    assert!(!fine && text.contains("job.queue_max: contradicts job.live_max"), "{text}");
    write(&path, "[job]\nqueue_max = 12\nhistory_max = 9\n");
    let (fine, text) = ask(&["reload"], "");
    assert!(fine && text.contains("job.queue_max 11 -> 12\n"), "{text}");
    assert!(text.contains("job.history_max 10_000 -> 9: needs a restart"), "{text}");

    let (fine, text) = ask(&["log-level"], "");
    assert!(fine && text.trim() == "info", "{text}");
    let (fine, text) = ask(&["log-level", "utterd=debug,verbose"], "");
    assert!(!fine && text.contains("levels off, error, warn"), "{text}");
    assert_eq!(ask(&["log-level"], "").1.trim(), "info", "a filter that is none changed it");
    let (fine, text) = ask(&["log-level", "warn,utterd=debug"], "");
    assert!(fine && text.contains("utterd=debug"), "{text}");
    // The file still says what it said: the level set by hand stays.
    assert!(ask(&["reload"], "").0);
    assert!(ask(&["log-level"], "").1.contains("utterd=debug"));

    let (fine, text) = ask(&["pools", "put", "acme", "-"], "{\"pairs\": [\"zh:en\"]}");
    assert!(fine && text.contains("\"on_disk\": true"), "{text}");
    let tag = serde_json::from_str::<Value>(&text).unwrap()["tag"].as_str().unwrap().to_owned();
    let (fine, text) = ask(&["pools", "remove", "acme", "--tag", "1-00000000"], "");
    assert!(!fine && text.contains("not those of If-Match"), "{text}");
    assert!(ask(&["pools", "remove", "acme", "--tag", &tag], "").0);
    assert!(ask(&["pools", "reset"], "").0);
    assert!(ask(&["pools"], "").1.contains("\"overriding_file\": false"));
    let (fine, text) = ask(&["drain", "--node", "nobody"], "");
    assert!(!fine && text.contains("no such node"), "{text}");
    assert!(!ask(&["undrain", "--node", "nobody"], "").0);

    // A signal does the same.
    write(&path, "[job]\nqueue_max = 13\n");
    kill_process(Pid::from_child(server), Signal::HUP).unwrap();
    let until = Instant::now() + SOON;
    while !said_of(&addr, "/api/v1/config").contains("\"value\":13") {
        assert!(Instant::now() < until, "the signal had no effect");
    }

    let (fine, text) = ask(&["drain"], "");
    assert!(fine && text.contains("\"draining\": true"), "{text}");
    assert_eq!(server.wait().unwrap().code(), Some(0), "stopped in good order");
    let mut log = String::new();
    server.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert!(log.contains("setting changed"), "{log}");
}
