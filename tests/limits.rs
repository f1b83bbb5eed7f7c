//! What is not understood, too long or about someone else is refused, and harms nothing else.

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::{FakeNode, Peer, TestServer, heartbeat_message, register_message, speech};
use tokio_tungstenite::tungstenite::Message;

/// What a peer sends, what the counter of refused frames calls it, and the code of the answer.
struct Bad {
    what: &'static str,
    frame: Message,
    kind: &'static str,
    code: Option<&'static str>,
}

/// A text frame that is answered by an error, or not at all.
fn bad(what: &'static str, frame: impl Into<String>, kind: &'static str) -> Bad {
    Bad { what, frame: Message::text(frame.into()), kind, code: Some("INVALID_MESSAGE") }
}

fn unanswered(bad: Bad) -> Bad {
    Bad { code: None, ..bad }
}

fn binary(bytes: &[u8]) -> Bad {
    let frame = Message::binary(bytes.to_vec());
    Bad { what: "a binary frame", frame, kind: "binary", code: None }
}

/// Text in which every character takes three bytes, after `offset` bytes that take one.
fn wide(offset: usize, bytes: usize) -> String {
    "x".repeat(offset) + &"\u{4f60}".repeat((bytes - offset) / 3 + 1)
}

/// No JSON, or JSON that is no message, on either socket.
fn unreadable() -> Vec<Bad> {
    let deep = |n: usize| format!("{{\"type\":{}1{}}}", "[".repeat(n), "]".repeat(n));
    vec![
        bad("nothing", "", "malformed"),
        bad("no JSON", "hello", "malformed"),
        bad("cut off", "{\"type\":\"session_in", "malformed"),
        bad("two messages", "{\"type\":\"x\"}{\"type\":\"y\"}", "malformed"),
        bad("a list", "[]", "malformed"),
        bad("a list of a type", "[\"error\"]", "malformed"),
        bad("null", "null", "malformed"),
        bad("a number", "17", "malformed"),
        bad("an empty object", "{}", "malformed"),
        bad("a type that is a number", "{\"type\":1}", "malformed"),
        bad("a type that is null", "{\"type\":null}", "malformed"),
        bad("the type twice", "{\"type\":\"a\",\"type\":\"b\"}", "malformed"),
        bad("an unknown type", "{\"type\":\"dance\"}", "unknown_type"),
        bad("an empty type", "{\"type\":\"\"}", "unknown_type"),
        bad("a very long type", format!("{{\"type\":\"{}\"}}", wide(63, 200)), "unknown_type"),
        bad("deep nesting", deep(100_000), "malformed"),
        bad("a huge number", "{\"type\":\"x\",\"n\":1e999}", "unknown_type"),
        bad("a lone surrogate", "{\"type\":\"\\ud800\"}", "malformed"),
        bad("half a pair of surrogates", "{\"type\":\"\\udc00x\"}", "malformed"),
        bad("a NUL", "{\"type\":\"\u{0}\"}", "malformed"),
        bad("a head of 300 kB", format!("{{\"x\":\"{}\"}}", "y".repeat(300_000)), "too_long"),
        // Their five hundredth byte is inside a character.
        bad("no JSON, wide", wide(499, 1_500), "malformed"),
        bad("cut off, wide", format!("{{\"type\":\"{}", wide(489, 900)), "malformed"),
    ]
}

fn with(mut message: Value, key: &str, value: Value) -> String {
    message[key] = value;
    message.to_string()
}

fn without(mut message: Value, key: &str) -> String {
    message.as_object_mut().unwrap().remove(key);
    message.to_string()
}

fn init() -> Value {
    json!({"type": "session_init", "client_version": "t", "platform": "web", "src_lang": "zh",
        "tgt_lang": "en"})
}

fn chunk(session: &str) -> Value {
    json!({"type": "audio_chunk", "session_id": session, "seq": 0, "is_final": false,
        "payload": "QUJDRA=="})
}

fn utterance(session: &str) -> Value {
    json!({"type": "utterance", "session_id": session, "utterance_index": 50, "manual_cut": true,
        "src_lang": "zh", "tgt_lang": "en", "audio": "QUJDRA==", "audio_format": "pcm16",
        "sample_rate": 16000})
}

/// Fields without which a recording is refused.
const RECORDING_NEEDS: [&str; 8] = [
    "session_id",
    "utterance_index",
    "manual_cut",
    "src_lang",
    "tgt_lang",
    "audio",
    "audio_format",
    "sample_rate",
];

/// Types that clients are sent and do not send.
const SAID_BY_SERVERS: [&str; 8] = [
    "session_init_ack",
    "translation_result",
    "asr_partial",
    "server_heartbeat",
    "session_close_ack",
    "error",
    "missing_result",
    "ui_event",
];

fn refused_by_sessions(id: &str) -> Vec<Bad> {
    let mut cases = unreadable();
    cases.push(binary(b"\x01\x00\x00"));
    cases.push(binary(b"{\"type\":\"client_heartbeat\"}"));
    for key in ["client_version", "platform", "src_lang", "tgt_lang"] {
        cases.push(bad("an init without a field", without(init(), key), "malformed"));
        cases.push(bad("an init with a null", with(init(), key, Value::Null), "malformed"));
        cases.push(bad("an init with a number", with(init(), key, json!(7)), "malformed"));
    }
    for (key, value) in [
        ("src_lang", json!("")),
        ("tgt_lang", json!("a language that is too long")),
        ("src_lang", json!("\u{4e2d}\u{6587}")),
        ("auto_langs", json!("zh")),
        ("lang_a", json!(4)),
        ("enable_streaming_asr", json!("yes")),
        ("audio_format", json!("mp3")),
        ("audio_format", json!(wide(31, 90))),
        ("sample_rate", json!(1)),
        ("sample_rate", json!(1e12)),
        ("pipeline", json!(7)),
    ] {
        cases.push(bad("an init with a wrong value", with(init(), key, value), "malformed"));
    }
    for key in ["client_version", "platform", "dialect", "tenant_id", "mode", "trace_id"] {
        let long = with(init(), key, json!(wide(2, 129)));
        cases.push(bad("an init with a long field", long, "too_long"));
    }
    let many = with(init(), "auto_langs", json!(vec!["zh"; 17]));
    cases.push(bad("an init with many languages", many, "too_long"));
    for key in ["session_id", "seq", "is_final"] {
        cases.push(bad("a chunk without a field", without(chunk(id), key), "malformed"));
        cases.push(bad("a chunk with a null", with(chunk(id), key, Value::Null), "malformed"));
    }
    for (key, value) in [
        ("seq", json!(-1)),
        ("seq", json!(1.5)),
        ("seq", json!("0")),
        ("seq", json!(wide(1, 300))),
        ("is_final", json!("false")),
        ("payload", json!(7)),
        ("payload", json!(["QUJD"])),
        ("client_timestamp_ms", json!("now")),
    ] {
        cases.push(bad("a chunk with a wrong value", with(chunk(id), key, value), "malformed"));
    }
    for text in ["@@@@", "QUJ", "QUJD=", "QUJDR", "Q U J D", "\u{4f60}\u{597d}", "QUJD\n"] {
        let broken = with(chunk(id), "payload", json!(text));
        cases.push(bad("a chunk that is not base64", broken, "audio"));
        let broken = with(utterance(id), "audio", json!(text));
        cases.push(bad("a recording that is not base64", broken, "audio"));
    }
    for key in RECORDING_NEEDS {
        let less = without(utterance(id), key);
        cases.push(bad("a recording without a field", less, "malformed"));
        let null = with(utterance(id), key, Value::Null);
        cases.push(bad("a recording with a null", null, "malformed"));
    }
    for (key, value, kind) in [
        ("utterance_index", json!(-1), "malformed"),
        ("utterance_index", json!(1e300), "malformed"),
        ("utterance_index", json!("0"), "malformed"),
        ("sample_rate", json!(0), "malformed"),
        ("sample_rate", json!(200_000), "malformed"),
        ("sample_rate", json!(5_000_000_000_u64), "malformed"),
        ("audio", json!(""), "audio"),
        ("audio", json!("QUJD"), "audio"),
        ("trace_id", json!(wide(1, 129)), "too_long"),
        ("audio_format", json!(wide(0, 129)), "too_long"),
    ] {
        let wrong = with(utterance(id), key, value);
        cases.push(bad("a recording with a wrong value", wrong, kind));
    }
    for kind in ["client_heartbeat", "session_close", "tts_started", "tts_play_ended"] {
        let nobody = json!({"type": kind}).to_string();
        cases.push(bad("a message of no session", nobody, "malformed"));
        let odd = json!({"type": kind, "session_id": 5}).to_string();
        cases.push(bad("a message of a number", odd, "malformed"));
    }
    for kind in SAID_BY_SERVERS {
        let back = json!({"type": kind, "session_id": id}).to_string();
        cases.push(unanswered(bad("what only the server sends", back, "wrong_direction")));
    }
    cases
}

fn result(id: &str) -> Value {
    json!({"type": "job_result", "job_id": id, "attempt_id": 1, "node_id": "n1", "success": true,
        "text_asr": "x", "text_translated": "y", "tts_audio": "QUJD", "tts_format": "pcm16"})
}

fn refused_by_nodes(job: &str) -> Vec<Bad> {
    let mut cases = unreadable();
    cases.push(binary(b"\x01\x00\x00"));
    let report = || register_message(Some("n1"), &["zh", "en"]);
    cases.push(bad("a long name", with(report(), "node_id", json!(wide(2, 129))), "too_long"));
    cases.push(bad("a number for a name", with(report(), "node_id", json!(7)), "malformed"));
    let beat = with(heartbeat_message("n1", &["zh"]), "node_id", json!(wide(0, 200)));
    cases.push(bad("a heartbeat with a long name", beat, "too_long"));
    for (key, value, kind) in [
        ("job_id", json!("x"), "malformed"),
        ("job_id", Value::Null, "malformed"),
        ("job_id", json!(wide(3, 100)), "malformed"),
        ("attempt_id", json!("1"), "malformed"),
        ("attempt_id", json!(-1), "malformed"),
        ("attempt_id", json!(1e300), "malformed"),
        ("success", Value::Null, "malformed"),
        ("success", json!("yes"), "malformed"),
        ("text_asr", json!(7), "malformed"),
        ("text_asr", json!(wide(1, 66_000)), "too_long"),
        ("text_translated", json!(wide(2, 66_000)), "too_long"),
        ("tts_audio", json!(7), "malformed"),
    ] {
        cases.push(bad("a result with a wrong value", with(result(job), key, value), kind));
    }
    for kind in ["asr_partial", "job_ack", "job_started"] {
        let nothing = json!({"type": kind}).to_string();
        cases.push(bad("a word on no job", nothing, "malformed"));
        let odd = json!({"type": kind, "job_id": "job-1", "text": "x"}).to_string();
        cases.push(bad("a word on something else", odd, "malformed"));
    }
    for kind in ["node_register_ack", "job_assign", "job_cancel", "node_control", "error"] {
        let back = json!({"type": kind, "job_id": job}).to_string();
        cases.push(bad("what only the server sends", back, "wrong_direction"));
    }
    cases.into_iter().map(unanswered).collect()
}

/// How often the counter of a kind has to have moved.
fn expected(cases: &[Bad]) -> std::collections::BTreeMap<&'static str, f64> {
    let mut by_kind = std::collections::BTreeMap::new();
    cases.iter().for_each(|case| *by_kind.entry(case.kind).or_default() += 1.0);
    by_kind
}

async fn check_counters(server: &TestServer, socket: &str, cases: &[Bad]) {
    for (kind, times) in expected(cases) {
        let name = format!("utterd_frames_refused_total{{kind=\"{kind}\",socket=\"{socket}\"}}");
        server.until_metric(&name, times).await;
    }
}

/// A sentence goes all the way.
async fn all_is_well(client: &mut Peer, id: &str, node: &mut FakeNode, text: &str) {
    client.chunk(id, 0, &speech(300), false).await;
    client.chunk(id, 1, &[], true).await;
    let job = node.assignment().await;
    node.answer(&job, text).await;
    assert_eq!(client.told().await["text_asr"], text);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_told_what_was_not_understood_and_go_on() {
    let server = TestServer::start(|_| {}).await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    let (mut client, id) = server.session("zh", "en").await;
    client.chunk(&id, 0, &speech(300), false).await;
    client.chunk(&id, 1, &[], true).await;
    let accepted = node.assignment().await;
    let cases = refused_by_sessions(&id);
    for case in &cases {
        client.send_raw(case.frame.clone()).await;
        // Its answer is the last thing before the heartbeat's.
        client.send(json!({"type": "client_heartbeat", "session_id": id})).await;
        client.expect("server_heartbeat").await;
        let errors: Vec<Value> = client.seen_of("error");
        let codes: Vec<&str> = errors.iter().filter_map(|e| e["code"].as_str()).collect();
        let wanted: Vec<&str> = case.code.into_iter().collect();
        assert_eq!(codes, wanted, "{} {:?}", case.what, case.frame);
        let message = errors.first().and_then(|e| e["message"].as_str()).unwrap_or_default();
        assert!(message.len() < 400, "{}: {message}", case.what);
    }
    check_counters(&server, "session", &cases).await;
    // A refused frame is not half a frame: nothing was collected, nothing else was made of it.
    node.answer(&accepted, "before").await;
    assert_eq!(client.told().await["text_asr"], "before");
    all_is_well(&mut client, &id, &mut node, "after").await;
    assert_eq!(server.metric("utterd_jobs_submitted_total").await, 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_may_write_nonsense_and_keep_their_jobs() {
    let server = TestServer::start(|_| {}).await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    let (mut client, id) = server.session("zh", "en").await;
    client.chunk(&id, 0, &speech(300), false).await;
    client.chunk(&id, 1, &[], true).await;
    let accepted = node.assignment().await;
    let cases = refused_by_nodes(accepted["job_id"].as_str().unwrap());
    for case in &cases {
        node.peer.send_raw(case.frame.clone()).await;
    }
    check_counters(&server, "node", &cases).await;
    assert_eq!(node.peer.everything().await, [Value::Null; 0], "nodes are not argued with");
    node.answer(&accepted, "before").await;
    assert_eq!(client.told().await["text_asr"], "before");
    all_is_well(&mut client, &id, &mut node, "after").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pcm_chunk_of_half_a_sample_is_refused_alone() {
    let server = TestServer::start(|_| {}).await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    let (mut client, id) = server.session("zh", "en").await;
    client.chunk(&id, 0, &speech(300), false).await;
    client.chunk(&id, 1, &speech(300)[..333], false).await;
    assert_eq!(client.expect("error").await["code"], "INVALID_MESSAGE");
    client.chunk(&id, 2, &[], true).await;
    let job = node.assignment().await;
    let audio = base64_simd::STANDARD.decode_to_vec(job["audio"].as_str().unwrap()).unwrap();
    assert_eq!(audio, speech(300));
    let dropped = "utterd_audio_dropped_bytes_total{why=\"invalid\"}";
    assert_eq!(server.metric(dropped).await, 333.0);
    node.answer(&job, "text").await;
    assert_eq!(client.told().await["text_asr"], "text");
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_before_a_session_are_answered_and_not_acted_upon() {
    let server = TestServer::start(|_| {}).await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    let mut client = server.client().await;
    let early = messages_about("s-0000000000000001");
    for message in &early {
        client.send(message.clone()).await;
        let error = client.expect("error").await;
        assert_eq!(error["code"], "INVALID_SESSION", "{message}");
    }
    let foreign = "utterd_foreign_ids_total{socket=\"session\"}";
    assert_eq!(server.metric(foreign).await, early.len() as f64);
    client.send(init()).await;
    let ack = client.expect("session_init_ack").await;
    all_is_well(&mut client, ack["session_id"].as_str().unwrap(), &mut node, "text").await;
    assert_eq!(server.metric("utterd_jobs_submitted_total").await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_has_not_said_who_it_is_is_not_heard() {
    let server = TestServer::start(|_| {}).await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    let (mut client, id) = server.session("zh", "en").await;
    client.chunk(&id, 0, &speech(300), false).await;
    client.chunk(&id, 1, &[], true).await;
    let job = node.assignment().await;
    let mut stranger = server.raw_node().await;
    stranger.send(node.result(&job, "forged")).await;
    stranger.send(json!({"type": "asr_partial", "job_id": job["job_id"], "text": "forged"})).await;
    stranger.send(json!({"type": "node_heartbeat", "node_id": null})).await;
    let refused = |kind| format!("utterd_frames_refused_total{{kind=\"{kind}\",socket=\"node\"}}");
    server.until_metric(&refused("not_registered"), 2.0).await;
    server.until_metric(&refused("no_node_id"), 1.0).await;
    // It may still introduce itself.
    let other = FakeNode::register(stranger, "n2", &["zh", "en"]).await;
    assert_eq!(other.id, "n2");
    node.answer(&job, "true").await;
    assert_eq!(client.told().await["text_asr"], "true");
    assert!(client.all("asr_partial").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn too_large_a_message_costs_the_connection_and_nothing_else() {
    let server = TestServer::start(|c| {
        c.transport.session_message_bytes_max = 16 * 1024;
        c.transport.node_message_bytes_max = 32 * 1024;
    })
    .await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    let (mut client, id) = server.session("zh", "en").await;
    let (mut greedy, greedy_id) = server.session("zh", "en").await;
    greedy.send(with_audio(&greedy_id, 16 * 1024)).await;
    assert_eq!(greedy.close_code().await, Some(1009));
    drop(greedy);
    let mut boor = FakeNode::register(server.raw_node().await, "n2", &["fr"]).await;
    boor.peer.send_text(&"x".repeat(32 * 1024 + 1)).await;
    assert_eq!(boor.peer.close_code().await, Some(1009));
    drop(boor);
    for socket in ["session", "node"] {
        let closed =
            format!("utterd_connections_closed_total{{socket=\"{socket}\",why=\"too_large\"}}");
        server.until_metric(&closed, 1.0).await;
    }
    server.until(|b| b["total"] == 1, "/api/v1/sessions").await;
    server.until(|b| b["state"] == "offline", "/api/v1/nodes/n2").await;
    all_is_well(&mut client, &id, &mut node, "text").await;
}

fn with_audio(session: &str, bytes: usize) -> Value {
    let payload = base64_simd::STANDARD.encode_to_string(vec![1_u8; bytes]);
    json!({"type": "audio_chunk", "session_id": session, "seq": 0, "is_final": false,
        "payload": payload})
}

/// One of each message that names a session.
fn messages_about(session: &str) -> Vec<Value> {
    vec![
        chunk(session),
        utterance(session),
        json!({"type": "client_heartbeat", "session_id": session, "timestamp": 1}),
        json!({"type": "tts_started", "session_id": session, "trace_id": "t", "group_id": "g",
            "ts_start_ms": 1}),
        json!({"type": "tts_play_ended", "session_id": session, "trace_id": "t", "group_id": "g",
            "ts_end_ms": 2}),
        json!({"type": "session_close", "session_id": session}),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_speaks_for_another_session() {
    let server = TestServer::start(|_| {}).await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    let (mut victim, victim_id) = server.session("zh", "en").await;
    let (mut client, id) = server.session("zh", "en").await;
    victim.chunk(&victim_id, 0, &speech(300), false).await;
    let lower = victim_id.to_lowercase();
    let mut sent = 0;
    for stolen in [victim_id.as_str(), &lower, "", "s-", "\u{4f60}\u{597d}", &wide(1, 5_000)] {
        for message in messages_about(stolen) {
            client.send(message.clone()).await;
            assert_eq!(client.expect("error").await["code"], "INVALID_SESSION", "{message}");
            sent += 1;
        }
    }
    let foreign = "utterd_foreign_ids_total{socket=\"session\"}";
    assert_eq!(server.metric(foreign).await, f64::from(sent));
    assert_eq!(server.metric("utterd_jobs_submitted_total").await, 0.0);
    // Neither is any the worse for it.
    all_is_well(&mut client, &id, &mut node, "mine").await;
    victim.chunk(&victim_id, 1, &[], true).await;
    let job = node.assignment().await;
    let audio = base64_simd::STANDARD.decode_to_vec(job["audio"].as_str().unwrap()).unwrap();
    assert_eq!(audio, speech(300));
    node.answer(&job, "theirs").await;
    assert_eq!(victim.told().await["text_asr"], "theirs");
    assert!(victim.seen_of("error").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_speaks_for_another_node() {
    let server = TestServer::start(|_| {}).await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    let mut other = server.node("n2", &["fr", "de"]).await;
    let (mut client, id) = server.session("zh", "en").await;
    client.chunk(&id, 0, &speech(300), false).await;
    client.chunk(&id, 1, &[], true).await;
    let job = node.assignment().await;
    let foreign = "utterd_foreign_ids_total{socket=\"node\"}";

    // Under the other's name, from one's own connection.
    other.peer.send(node.result(&job, "forged")).await;
    let mut beat = heartbeat_message("n1", &[]);
    beat["resource_usage"]["cpu_percent"] = 99.0.into();
    other.peer.send(beat).await;
    server.until_metric(foreign, 2.0).await;
    other.peer.send(register_message(Some("n1"), &["fr", "de"])).await;
    server.until_metric(foreign, 3.0).await;
    assert_eq!(other.peer.expect("node_register_ack").await["node_id"], "n2");

    // Under one's own name, about the other's job.
    let stale = "utterd_stale_events_total";
    let forged = other.result(&job, "forged");
    other.peer.send(forged).await;
    let partial = json!({"type": "asr_partial", "node_id": "n2", "job_id": job["job_id"],
        "text": "forged", "is_final": false});
    other.peer.send(partial).await;
    let ack = json!({"type": "job_ack", "job_id": job["job_id"], "attempt_id": job["attempt_id"]});
    other.peer.send(ack).await;
    for event in ["result_foreign", "partial", "started"] {
        server.until_metric(&format!("{stale}{{event=\"{event}\"}}"), 1.0).await;
    }
    // The node is as it was, and has its job.
    let (_, row) = server.get("/api/v1/nodes/n1").await;
    assert_eq!(
        (&row["state"], &row["pairs_total"], &row["slots_used"]),
        (&json!("ready"), &json!(4), &json!(1))
    );
    assert_eq!(row["load"]["cpu_percent"], 0.0);
    let (_, nodes) = server.get("/api/v1/nodes").await;
    assert_eq!(nodes["total"], 2);
    node.answer(&job, "true").await;
    assert_eq!(client.told().await["text_asr"], "true");
    assert!(client.seen_of("asr_partial").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn names_may_have_wide_characters_up_to_their_bounds() {
    let server = TestServer::start(|_| {}).await;
    let name = "\u{e9}".repeat(64);
    let mut node = server.node_named(&name).await;
    for trace in
        ["\u{e9}".repeat(64), format!("xx{}", "\u{4f60}".repeat(42)), "\u{1f600}".repeat(32)]
    {
        assert_eq!(trace.len(), 128);
        let mut client = server.client().await;
        client.send_text(&with(init(), "trace_id", json!(trace))).await;
        let ack = client.expect("session_init_ack").await;
        assert_eq!(ack["trace_id"], trace.as_str());
        let id = ack["session_id"].as_str().unwrap().to_owned();
        client.chunk(&id, 0, &speech(300), false).await;
        client.chunk(&id, 1, &[], true).await;
        let job = node.assignment().await;
        assert_eq!(job["trace_id"], trace.as_str());
        node.answer(&job, "\u{4f60}\u{597d}").await;
        let told = client.told().await;
        assert_eq!(
            (&told["trace_id"], &told["text_asr"]),
            (&json!(trace), &json!("\u{4f60}\u{597d}"))
        );
        // A reason at its bound, and beyond.
        let reason = wide(1, 4_096);
        client.send(json!({"type": "session_close", "session_id": id, "reason": reason})).await;
        client.expect("session_close_ack").await;
    }
    node.peer
        .send(json!({"type": "node_error", "code": wide(1, 5_000), "message": wide(1, 5_000)}))
        .await;
    let mut client = server.client().await;
    client.send(init()).await;
    let ack = client.expect("session_init_ack").await;
    all_is_well(&mut client, ack["session_id"].as_str().unwrap(), &mut node, "text").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_may_be_told_at_any_length() {
    let server = TestServer::start(|c| {
        c.node.failure_count = 32;
        c.node.failure_window = 32;
        c.node.failure_consecutive = 32;
    })
    .await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    let mut client = server.client().await;
    client.send_text(&with(init(), "extensions", json!(["typed_errors"]))).await;
    let ack = client.expect("session_init_ack").await;
    let id = ack["session_id"].as_str().unwrap().to_owned();
    for offset in 0..3 {
        let (code, message) = (wide(offset, 100), wide(offset, 200_000));
        client.chunk(&id, 0, &speech(300), false).await;
        client.chunk(&id, 1, &[], true).await;
        let job = node.assignment().await;
        node.fail(&job, json!({"code": code, "message": message})).await;
        assert_eq!(client.told().await["reason"], "job_failed");
        let error = client.expect("error").await;
        let (told_code, told) =
            (error["code"].as_str().unwrap(), error["message"].as_str().unwrap());
        assert!(code.starts_with(told_code) && (62..=64).contains(&told_code.len()));
        assert!(message.starts_with(told) && (4_094..=4_096).contains(&told.len()));
        let path = format!("/api/v1/jobs/{}", job["job_id"].as_str().unwrap());
        assert_eq!(server.get(&path).await.1["ended"]["message"], told);
    }
    for offset in 0..3 {
        client.chunk(&id, 0, &speech(300), false).await;
        client.chunk(&id, 1, &[], true).await;
        let job = node.assignment().await;
        let reason = wide(offset, 60_000);
        let details = json!({"service_id": reason, "service_version": reason, "reason": reason});
        let error = json!({"code": "MODEL_NOT_AVAILABLE", "message": reason, "details": details});
        node.fail(&job, error).await;
        assert_eq!(client.told().await["reason"], "job_failed");
        assert_eq!(client.expect("error").await["code"], "MODEL_NOT_AVAILABLE");
    }
    for details in [json!({"service_id": 7}), json!([]), json!("nmt"), Value::Null] {
        client.chunk(&id, 0, &speech(300), false).await;
        client.chunk(&id, 1, &[], true).await;
        let job = node.assignment().await;
        node.fail(&job, json!({"code": "MODEL_NOT_AVAILABLE", "details": details})).await;
        assert_eq!(client.told().await["reason"], "job_failed");
    }
    for error in [json!("broken"), json!({"code": 7}), json!({}), Value::Null] {
        client.chunk(&id, 0, &speech(300), false).await;
        client.chunk(&id, 1, &[], true).await;
        let job = node.assignment().await;
        node.fail(&job, error).await;
        assert_eq!(client.told().await["reason"], "job_failed");
    }
    all_is_well(&mut client, &id, &mut node, "text").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_at_their_ends_are_taken() {
    let server = TestServer::start(|c| c.session.utterance_gap_wait_ms = 20_000).await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    let (mut client, id) = server.session("zh", "en").await;
    let mut odd = chunk(&id);
    odd["seq"] = u64::MAX.into();
    odd["client_timestamp_ms"] = i64::MIN.into();
    odd["payload"] = base64_simd::STANDARD.encode_to_string(speech(300)).into();
    odd["is_final"] = true.into();
    client.send(odd).await;
    let job = node.assignment().await;
    let mut result = node.result(&job, "text");
    result["node_completed_at_ms"] = i64::MIN.into();
    result["processing_time_ms"] = 1e300.into();
    result["quality_score"] = (-1e300).into();
    node.peer.send(result).await;
    assert_eq!(client.told().await["text_asr"], "text");
    // Beyond 2^53 - 1 two indices could be one number to another reader.
    for index in [1_u64 << 53, u64::MAX] {
        client.utterance(&id, index, "zh", "en").await;
        assert_eq!(client.expect("error").await["code"], "INVALID_MESSAGE");
    }
    client.utterance(&id, (1 << 53) - 1, "zh", "en").await;
    client.send(json!({"type": "client_heartbeat", "session_id": id})).await;
    client.expect("server_heartbeat").await;
    server.advance(Duration::from_millis(20_001));
    let job = node.assignment().await;
    assert_eq!(job["utterance_index"], (1_u64 << 53) - 1);
    node.answer(&job, "the last one").await;
    assert_eq!(client.told().await["text_asr"], "the last one");
    let mut beat = heartbeat_message("n1", &["zh", "en"]);
    beat["resource_usage"] = json!({"cpu_percent": -1e300, "mem_percent": 1e-300,
        "running_jobs": 4_294_967_295_u64});
    beat["max_concurrent_jobs"] = 0.into();
    node.peer.send(beat).await;
    server.until(|b| b["slots_max"] == 1, "/api/v1/nodes/n1").await;
    let (mut client, id) = server.session("zh", "en").await;
    all_is_well(&mut client, &id, &mut node, "after").await;
}
