//! Pools can be replaced while work flows, and the work is placed by one of them, whole.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use serde_json::{Value, json};
use support::{FakeNode, Http, Peer, TestServer, http, http_with, register_message, speech};

/// Replacements of the configuration under load.
const REPLACEMENTS: usize = 1_000;
/// Replacements written ahead of their answers.
const AHEAD: usize = 8;
/// Jobs done meanwhile: replacing goes on until there were as many.
const JOBS: usize = 100;

async fn put(server: &TestServer, pools: &Value) -> (u16, Value) {
    let (status, body) = http(server.addr(), "PUT", "/api/v1/pools", &pools.to_string()).await;
    (status, serde_json::from_str(&body).unwrap_or(Value::Null))
}

async fn opened(server: &TestServer, more: Value) -> (Peer, String) {
    let mut init = json!({"type": "session_init", "client_version": "t", "platform": "web",
        "src_lang": "zh", "tgt_lang": "en"});
    init.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let mut client = server.client().await;
    client.send(init).await;
    let ack = client.expect("session_init_ack").await;
    (client, ack["session_id"].as_str().unwrap().to_owned())
}

/// Answers every job until the server closes the connection.
async fn work(mut node: FakeNode) {
    while let Some(message) = node.peer.next().await {
        if message["type"] == "job_assign" {
            node.answer(&message, "text").await;
        }
    }
}

/// What the speakers of a test share.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    answered: AtomicUsize,
}

/// Speaks until told to stop; the ids of the jobs, all of them answered.
async fn speak(mut client: Peer, id: String, load: Arc<Load>) -> Vec<String> {
    let (audio, mut jobs) = (speech(100), Vec::new());
    while !load.stop.load(SeqCst) {
        client.chunk(&id, 0, &audio, true).await;
        let told = client.told().await;
        assert_eq!(told["type"], "translation_result", "{told}");
        jobs.push(told["job_id"].as_str().unwrap().to_owned());
        load.answered.fetch_add(1, SeqCst);
        client.seen_of("ui_event");
    }
    jobs
}

#[tokio::test(flavor = "multi_thread")]
async fn work_flows_on_while_the_pools_are_replaced() {
    let server = TestServer::start(|_| {}).await;
    let mut workers = Vec::new();
    for id in ["n1", "n2"] {
        let node = server.node(id, &["zh", "en"]).await;
        workers.push(tokio::spawn(work(node)));
    }
    let load = Arc::new(Load::default());
    let mut speakers = Vec::new();
    for _ in 0..3 {
        let (client, id) = server.session("zh", "en").await;
        speakers.push(tokio::spawn(speak(client, id, Arc::clone(&load))));
    }

    let left = json!([{"name": "left", "pairs": ["zh:en"], "weight": 3}]).to_string();
    let right = json!([{"name": "none", "pairs": ["fr:de"]},
        {"name": "right", "pairs": ["*:en"], "required_services": ["nmt"]}])
    .to_string();
    let mut admin = Http::connect(server.addr()).await;
    let (mut asked, mut answered, mut last_answer, mut last_gauge) = (0, 0, 0, 0.0);
    while answered < asked || answered < REPLACEMENTS {
        let enough = asked >= REPLACEMENTS && load.answered.load(SeqCst) >= JOBS;
        while !enough && asked < answered + AHEAD {
            admin.ask("PUT", "/api/v1/pools", if asked % 2 == 0 { &left } else { &right }).await;
            asked += 1;
        }
        let (status, body) = admin.answer().await;
        assert_eq!(status, 200, "{body}");
        let version = serde_json::from_str::<Value>(&body).unwrap()["version"].as_u64().unwrap();
        assert!(version > last_answer, "{version} after {last_answer}");
        last_answer = version;
        answered += 1;
        if answered % 10 == 0 {
            let gauge = server.metric("utterd_pool_version").await;
            assert!(gauge >= last_gauge && gauge >= version as f64);
            last_gauge = gauge;
        }
    }
    load.stop.store(true, SeqCst);
    let mut jobs = Vec::new();
    for speaker in speakers {
        jobs.extend(speaker.await.unwrap());
    }

    let (_, pools) = server.get("/api/v1/pools").await;
    assert_eq!(pools["config_version"], 1 + asked);
    assert_eq!(pools["version"], last_answer);
    // Every job found a node at its first look, in a pool of one of the configurations.
    let mut found = [0, 0];
    for id in &jobs {
        let (_, job) = server.get(&format!("/api/v1/jobs/{id}")).await;
        let placements = job["placements"].as_array().unwrap();
        assert_eq!((placements.len(), &job["ended"]["attempts"]), (1, &json!(1)), "{job}");
        match placements[0]["pool"].as_str().unwrap() {
            "left" => found[0] += 1,
            "right" => found[1] += 1,
            "zh:en" => {}
            other => panic!("a pool of no configuration: {other}"),
        }
    }
    assert!(found.iter().all(|n| *n > 0), "{found:?}");
    assert_eq!(server.metric_sum("scheduler_no_available_node_total", &[]).await, 0.0);
    assert_eq!(server.metric_sum("utterd_jobs_refused_total", &[]).await, 0.0);
    let succeeded = server.metric("utterd_jobs_settled_total{outcome=\"succeeded\"}").await;
    assert_eq!(succeeded, jobs.len() as f64);
    assert_eq!(server.metric_sum("utterd_jobs_settled_total", &[]).await, succeeded);
    server.until_nothing_is_left().await;
    workers.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_faulty_configuration_is_refused_whole() {
    let server = TestServer::start(|_| {}).await;
    let good = json!([{"name": "good", "pairs": ["zh:en"]}]);
    assert_eq!(put(&server, &good).await.0, 200);
    let (_, before) = server.get("/api/v1/pools").await;
    let fine = json!({"name": "fine", "pairs": ["*:*"]});
    for (faulty, status) in [
        (json!([fine, {"name": "fine", "pairs": ["*:*"]}]), 422),
        (json!([fine, {"name": "", "pairs": ["*:*"]}]), 422),
        (json!([fine, {"name": "a name", "pairs": ["*:*"]}]), 422),
        (json!([fine, {"name": "\u{6c60}", "pairs": ["*:*"]}]), 422),
        (json!([fine, {"name": "none"}]), 422),
        (json!([fine, {"name": "none", "pairs": []}]), 422),
        (json!([fine, {"name": "light", "pairs": ["*:*"], "weight": 0}]), 422),
        (json!([fine, {"name": "often", "pairs": ["*:*"], "attempts_max": 0}]), 422),
        (json!([fine, {"name": "slow", "pairs": ["*:*"], "pending_ms": 99_000_000_u64}]), 422),
        (json!([fine, {"name": "void", "pairs": ["*:*"], "tenants": [" "]}]), 422),
        (json!([fine, {"name": "odd", "pairs": ["zh-en"]}]), 400),
        (json!([fine, {"name": "odd", "pairs": ["*:*"], "colour": "red"}]), 400),
        (json!([fine, {"name": 7, "pairs": ["*:*"]}]), 400),
        (json!([fine, null]), 400),
        (json!({"pools": [fine]}), 400),
        (Value::Null, 400),
    ] {
        let (answer, body) = put(&server, &faulty).await;
        assert_eq!(answer, status, "{faulty}: {body}");
        assert!(body["error"].as_str().is_some_and(|text| !text.is_empty()), "{body}");
    }
    let (status, _) = http(server.addr(), "PUT", "/api/v1/pools", "[{").await;
    assert_eq!(status, 400);
    assert_eq!(server.get("/api/v1/pools").await.1, before);
    // An empty list is a configuration: every pair by itself.
    assert_eq!(put(&server, &json!([])).await.0, 200);
    assert_eq!(server.get("/api/v1/pools").await.1["config"], json!([]));
}

/// Registers a node that has one service more.
async fn special_node(server: &TestServer, id: &str, service: &str) -> FakeNode {
    let mut message = register_message(Some(id), &["zh", "en"]);
    let more = json!({"service_id": service, "type": "nmt", "status": "running"});
    message["installed_services"].as_array_mut().unwrap().push(more);
    let mut peer = server.raw_node().await;
    peer.send(message).await;
    peer.expect("node_register_ack").await;
    server.until(|b| b["pairs"].to_string().contains(&format!("\"{id}\"")), "/api/v1/pools").await;
    FakeNode { peer, id: id.to_owned() }
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_use_their_own_pools() {
    let server = TestServer::start(|_| {}).await;
    let pools = json!([
        {"name": "common", "pairs": ["*:*"], "required_services": ["plain"]},
        {"name": "acme", "pairs": ["zh:en"], "tenants": ["acme", "\u{963f}"], "pending_ms": 1234,
            "required_services": ["law"]}]);
    assert_eq!(put(&server, &pools).await.0, 200);
    let mut law = special_node(&server, "n-law", "law").await;
    let mut plain = special_node(&server, "n-plain", "plain").await;
    for (tenant, own) in [
        (json!("acme"), true),
        (json!("other"), false),
        (Value::Null, false),
        (json!(""), false),
        (json!("\u{963f}"), true),
    ] {
        let (mut client, id) = opened(&server, json!({"tenant_id": tenant})).await;
        client.chunk(&id, 0, &speech(300), true).await;
        let node = if own { &mut law } else { &mut plain };
        let job = node.assignment().await;
        node.answer(&job, "text").await;
        client.told().await;
        let kept = server.job_at(&job["job_id"], "delivered").await;
        let pool = if own { "acme" } else { "common" };
        assert_eq!(kept["placements"][0]["pool"], pool, "{tenant}");
        let pending = if own { 1_234 } else { 10_000 };
        assert_eq!(kept["pending_ms"], pending, "{tenant}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replaced_pools_are_there_after_a_restart() {
    let server = TestServer::start(|_| {}).await;
    let pools = json!([{"name": "kept", "pairs": ["zh:*"], "tenants": ["acme"], "weight": 7,
        "required_services": ["nmt"], "pending_ms": 900, "lease_base_ms": 800,
        "attempts_max": 2}]);
    assert_eq!(put(&server, &json!([{"name": "first", "pairs": ["*:*"]}])).await.0, 200);
    assert_eq!(put(&server, &pools).await.0, 200);
    let (_, before) = server.get("/api/v1/pools").await;
    // The file says something else.
    let server = server
        .restart(|c| {
            let of_file = json!([{"name": "file", "pairs": ["*:*"]}]);
            c.pools = serde_json::from_value(of_file).unwrap();
        })
        .await;
    let (_, after) = server.get("/api/v1/pools").await;
    assert_eq!(after["config"], before["config"]);
    assert_eq!(after["config"][0]["name"], "kept");
    assert_eq!(after["config_version"], before["config_version"]);
    let mut node = server.node("n1", &["zh", "en"]).await;
    let (mut client, id) = opened(&server, json!({"tenant_id": "acme"})).await;
    client.chunk(&id, 0, &speech(300), true).await;
    let job = node.assignment().await;
    let (_, row) = server.get(&format!("/api/v1/jobs/{}", job["job_id"].as_str().unwrap())).await;
    assert_eq!(row["placements"][0]["pool"], "kept");
}

/// Registers a node with these languages to hear and to speak.
async fn directed_node(server: &TestServer, id: &str, from: &[&str], to: &[&str]) -> FakeNode {
    let mut message = register_message(Some(id), from);
    message["language_capabilities"]["tts_languages"] = json!(to);
    message["language_capabilities"]["semantic_languages"] = json!(to);
    let mut peer = server.raw_node().await;
    peer.send(message).await;
    peer.expect("node_register_ack").await;
    server.until(|b| b["pairs"].to_string().contains(&format!("\"{id}\"")), "/api/v1/pools").await;
    FakeNode { peer, id: id.to_owned() }
}

#[tokio::test(flavor = "multi_thread")]
async fn speech_of_unknown_language_goes_to_nodes_that_know_all_candidates() {
    let two_way = json!({"src_lang": "auto", "tgt_lang": "en", "mode": "two_way_auto",
        "lang_a": "zh", "lang_b": "en", "auto_langs": ["zh", "en"]});
    let many = json!({"src_lang": "auto", "tgt_lang": "en", "auto_langs": ["zh", "ja", "en"]});
    for (init, needs, able) in [
        (two_way, json!(["zh:en", "en:zh"]), (["zh", "en"], ["zh", "en"])),
        (many, json!(["zh:en", "ja:en"]), (["zh", "ja"], ["en", "ko"])),
    ] {
        let server = TestServer::start(|_| {}).await;
        let mut one_way = directed_node(&server, "one", &["zh"], &["en"]).await;
        let (mut client, id) = opened(&server, init).await;
        client.chunk(&id, 0, &speech(300), true).await;
        server.until(|b| b["jobs"] == json!({"live": 1, "waiting": 1}), "/api/v1/stats").await;
        let (_, jobs) = server.get("/api/v1/jobs").await;
        let path = format!("/api/v1/jobs/{}", jobs["jobs"][0]["job_id"].as_str().unwrap());
        let waiting = server.until(|b| b["placements_made"] != 0, &path).await;
        assert_eq!((&waiting["state"], &waiting["needs_pairs"]), (&json!("queued"), &needs));
        let looked = &waiting["placements"][0];
        assert_eq!(looked["considered"], json!([{"node": "one", "verdict": "wrong_pair"}]));
        assert_eq!((&looked["node"], &looked["why_none"]), (&Value::Null, &json!("wrong_pair")));
        let counted = "scheduler_no_available_node_total{reason=\"wrong_pair\"}";
        assert_eq!(server.metric(counted).await, 1.0);

        let mut all = directed_node(&server, "all", &able.0, &able.1).await;
        let job = all.assignment().await;
        assert_eq!((&job["src_lang"], &job["tgt_lang"]), (&json!("auto"), &json!("en")));
        all.answer(&job, "text").await;
        assert_eq!(client.told().await["text_asr"], "text");
        assert!(one_way.peer.all("job_assign").await.is_empty());
        let (_, done) = server.get(&path).await;
        let last = done["placements"].as_array().unwrap().last().unwrap();
        assert_eq!(last["node"], "all");
    }
}

/// Status, tag and body of a request with a tag of its own.
async fn ask(server: &TestServer, of: (&str, &str), tag: &str, body: &str) -> (u16, Value) {
    let tag = if tag.is_empty() { String::new() } else { format!("if-match: \"{tag}\"\r\n") };
    let (status, body) = http_with(server.addr(), of.0, of.1, &tag, body).await;
    (status, serde_json::from_str(&body).unwrap_or(Value::Null))
}

/// What stands above an answer.
async fn head_of(server: &TestServer, path: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(server.addr()).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer.split_once("\r\n\r\n").unwrap().0.to_owned()
}

async fn names(server: &TestServer) -> Vec<String> {
    let (_, pools) = server.get("/api/v1/pools").await;
    let config = pools["config"].as_array().unwrap().iter();
    config.map(|pool| pool["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn pools_are_changed_by_name_and_nobody_undoes_what_he_has_not_seen() {
    let file = json!([{"name": "file", "pairs": ["*:*"]}]);
    let of_file = file.clone();
    let server =
        TestServer::start(move |c| c.pools = serde_json::from_value(of_file).unwrap()).await;
    let (_, before) = server.get("/api/v1/pools").await;
    let seen = before["tag"].as_str().unwrap().to_owned();
    let acme = ("PUT", "/api/v1/pools/acme");
    let (status, now) = ask(&server, acme, &seen, r#"{"pairs": ["zh:en"], "weight": 2}"#).await;
    assert_eq!(
        (status, &now["on_disk"], &now["overriding_file"]),
        (200, &json!(true), &json!(true))
    );
    assert_eq!(names(&server).await, ["file", "acme"]);
    let tag = format!("etag: \"{}\"", now["tag"].as_str().unwrap());
    for path in ["/api/v1/pools", "/api/v1/pools/acme"] {
        assert!(head_of(&server, path).await.contains(&tag), "{path} has another tag");
    }
    // Whoever saw what was before has to look again.
    let (status, answer) = ask(&server, acme, &seen, r#"{"pairs": ["*:en"]}"#).await;
    assert_eq!(status, 412, "{answer}");
    for of in [("DELETE", "/api/v1/pools/acme"), ("DELETE", "/api/v1/pools")] {
        assert_eq!(ask(&server, of, &seen, "").await.0, 412);
    }
    assert_eq!(ask(&server, ("PUT", "/api/v1/pools"), &seen, "[]").await.0, 412);
    let seen = now["tag"].as_str().unwrap().to_owned();
    let (status, _) = ask(&server, acme, &seen, r#"{"name": "acme", "pairs": ["*:en"]}"#).await;
    assert_eq!((status, names(&server).await.len()), (200, 2));
    let (_, one) = server.get("/api/v1/pools/acme").await;
    assert_eq!((&one["pairs"], &one["weight"]), (&json!(["*:en"]), &json!(1)), "replaced whole");
    for (body, status) in [
        (r#"{"name": "other", "pairs": ["*:en"]}"#, 400),
        (r#"{"pairs": []}"#, 422),
        (r#"{"pairs": ["zh-en"]}"#, 400),
        ("[]", 400),
    ] {
        assert_eq!(ask(&server, acme, "", body).await.0, status, "{body}");
    }
    assert_eq!(ask(&server, ("DELETE", "/api/v1/pools/none"), "", "").await.0, 404);
    assert_eq!(server.get("/api/v1/pools/none").await.0, 404);
    assert_eq!(ask(&server, ("DELETE", "/api/v1/pools/file"), "*", "").await.0, 200);
    assert_eq!(names(&server).await, ["acme"]);

    // So it is after a restart; and back to the file's, which is remembered as well.
    let of_file = file.clone();
    let set = move |c: &mut utterd::config::Config| {
        c.pools = serde_json::from_value(of_file.clone()).unwrap();
    };
    let server = server.restart(set.clone()).await;
    assert_eq!(names(&server).await, ["acme"]);
    // A reading of the file must know that it is outranked.
    assert_eq!(server.get("/api/v1/pools").await.1["overriding_file"], json!(true));
    let (_, now) = ask(&server, ("DELETE", "/api/v1/pools"), "", "").await;
    assert_eq!(now["overriding_file"], json!(false));
    assert_eq!(names(&server).await, ["file"]);
    let version = now["config_version"].as_u64().unwrap();
    let server = server.restart(set).await;
    assert_eq!(names(&server).await, ["file"]);
    let (_, after) = server.get("/api/v1/pools").await;
    assert!(after["config_version"].as_u64().unwrap() > version, "{after}");
    assert_eq!(after["overriding_file"], json!(false));
}
