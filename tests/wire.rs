//! What the peers in use write is understood, and what they read is what they are sent.

mod support;

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use support::{FakeNode, Peer, TestServer, heartbeat_message, http, register_message, speech};
use tokio_tungstenite::tungstenite::Message as Frame;
use utterd::protocol::node::{self, Message, ServiceType};
use utterd::protocol::session::{self, Request};

const SESSION: &str = "s-E3E06DC9A0B1C2D3";
const JOB: &str = "job-00000000-0000-4000-8000-000000000009";

fn request(message: &Value) -> Request {
    let text = message.to_string();
    session::decode(&Bytes::from(text)).unwrap_or_else(|e| panic!("{message}: {e}"))
}

fn of_node(message: &Value) -> Message {
    let text = message.to_string();
    node::decode(&Bytes::from(text)).unwrap_or_else(|e| panic!("{message}: {e}"))
}

#[test]
fn the_page_opens_sessions_in_two_ways() {
    let two_way = json!({"type": "session_init", "client_version": "web-client-v1.0",
        "platform": "web", "src_lang": "auto", "tgt_lang": "en", "dialect": null, "features": {},
        "pairing_code": null, "mode": "two_way_auto", "lang_a": "zh", "lang_b": "en",
        "auto_langs": ["zh", "en"], "trace_id": "1f0c6f2e-63f1-4f0e-9d3e-0c8a5d6e7f80",
        "tenant_id": null});
    let Request::Init(init) = request(&two_way) else { panic!("no init") };
    assert!(init.src_lang.is_auto());
    assert_eq!(init.tgt_lang.as_str(), "en");
    assert_eq!(init.mode.as_deref(), Some("two_way_auto"));
    assert_eq!(init.lang_a.map(|l| l.to_string()).as_deref(), Some("zh"));
    assert_eq!(init.lang_b.map(|l| l.to_string()).as_deref(), Some("en"));
    assert_eq!(init.auto_langs.map(|l| l.len()), Some(2));
    assert_eq!(init.trace_id.as_deref(), Some("1f0c6f2e-63f1-4f0e-9d3e-0c8a5d6e7f80"));
    assert!(init.tenant_id.is_none() && init.dialect.is_none() && init.pairing_code.is_none());

    let one_way = json!({"type": "session_init", "client_version": "web-client-v1.0",
        "platform": "web", "src_lang": "zh", "tgt_lang": "en", "dialect": null, "features": {},
        "pairing_code": null, "mode": "one_way", "trace_id": "t", "tenant_id": null});
    let Request::Init(init) = request(&one_way) else { panic!("no init") };
    assert_eq!((init.src_lang.as_str(), init.mode.as_deref()), ("zh", Some("one_way")));
    assert!(init.lang_a.is_none() && init.auto_langs.is_none());
}

#[test]
fn the_page_streams_and_ends_speech() {
    let piece = json!({"type": "audio_chunk", "session_id": SESSION, "seq": 0, "is_final": false,
        "payload": "CABISEhISEhISA=="});
    let Request::AudioChunk(chunk) = request(&piece) else { panic!("no chunk") };
    assert_eq!((chunk.session_id.as_str(), chunk.seq, chunk.is_final), (SESSION, 0, false));
    assert_eq!(&chunk.audio[..], b"\x08\x00HHHHHHHH");
    let end = json!({"type": "audio_chunk", "session_id": SESSION, "seq": 8, "is_final": true,
        "payload": ""});
    let Request::AudioChunk(chunk) = request(&end) else { panic!("no chunk") };
    assert_eq!((chunk.seq, chunk.is_final, chunk.audio.len()), (8, true, 0));
}

#[test]
fn an_app_sends_whole_recordings() {
    let bare = json!({"type": "utterance", "session_id": SESSION, "utterance_index": 0,
        "manual_cut": true, "src_lang": "zh", "tgt_lang": "en", "dialect": null,
        "audio": "QUJDRA==", "audio_format": "opus", "sample_rate": 16000});
    let mut full = bare.clone();
    full["trace_id"] = "t".into();
    full["pipeline"] = json!({"use_asr": true, "use_nmt": true, "use_tts": false,
        "use_semantic": false, "use_tone": false});
    for message in [&bare, &full] {
        let Request::Utterance(utterance) = request(message) else { panic!("no utterance") };
        let head = &utterance.head;
        assert_eq!((head.utterance_index, head.manual_cut, head.sample_rate), (0, true, 16_000));
        assert_eq!((head.audio_format.as_str(), &utterance.audio[..]), ("opus", &b"QUJDRA=="[..]));
        assert_eq!(head.pipeline.is_some_and(|p| !p.use_tts), message.get("pipeline").is_some());
    }
}

#[test]
fn the_page_says_that_it_lives_and_plays() {
    let beat = json!({"type": "client_heartbeat", "session_id": SESSION,
        "timestamp": 1_795_226_584_262_u64});
    let Request::Heartbeat(of) = request(&beat) else { panic!("no heartbeat") };
    assert_eq!(of.session_id, SESSION);
    let started = json!({"type": "tts_started", "session_id": SESSION, "trace_id": "t",
        "group_id": "group_s-1_17", "ts_start_ms": 1_795_226_227_989_u64});
    let Request::TtsStarted(mark) = request(&started) else { panic!("no start") };
    assert_eq!(mark.group_id.as_deref(), Some("group_s-1_17"));
    let ended = json!({"type": "tts_play_ended", "session_id": SESSION, "trace_id": "t",
        "group_id": "group_s-1_17", "ts_end_ms": 1_795_226_231_054_u64});
    let Request::TtsPlayEnded(mark) = request(&ended) else { panic!("no end") };
    assert_eq!(
        (mark.session_id.as_str(), mark.group_id.as_deref()),
        (SESSION, Some("group_s-1_17"))
    );
}

fn services() -> Value {
    let service = |id: &str, kind: &str| {
        json!({"service_id": id, "type": kind, "device": "gpu", "status": "running",
            "version": "2.0.0"})
    };
    json!([
        service("faster-whisper-vad", "asr"),
        service("nmt-m2m100", "nmt"),
        service("piper-tts", "tts"),
        service("semantic-repair-en-zh", "semantic")
    ])
}

fn ready() -> Value {
    let of = |kind: &str| json!({"type": kind, "ready": true, "devices": ["gpu"]});
    json!([of("asr"), of("nmt"), of("tts"), of("semantic")])
}

fn languages() -> Value {
    json!({"asr_languages": ["zh", "en"], "tts_languages": ["zh", "en"],
        "semantic_languages": ["zh", "en"], "semantic_core_ready": true})
}

#[test]
fn the_agent_registers_and_reports() {
    let register = json!({"type": "node_register", "node_id": null, "version": "2.0.0",
        "capability_schema_version": "2.0", "platform": "linux",
        "hardware": {"cpu_cores": 2, "memory_gb": 24}, "installed_models": [],
        "installed_services": services(), "capability_by_type": ready(),
        "features_supported": {"emotion_detection": false, "voice_style_detection": false,
            "speech_rate_detection": false, "speech_rate_control": false,
            "speaker_identification": false, "persona_adaptation": false},
        "accept_public_jobs": true, "language_capabilities": languages()});
    let Message::Register(report) = of_node(&register) else { panic!("no registration") };
    assert_eq!((report.node_id, report.version.as_str(), report.gpus), (None, "2.0.0", 0));
    assert_eq!((report.schema.as_deref(), report.platform.as_str()), (Some("2.0"), "linux"));
    let all = [ServiceType::Asr, ServiceType::Nmt, ServiceType::Tts, ServiceType::Semantic];
    assert!(report.ready.iter().eq(all) && report.accept_public_jobs);
    assert_eq!((report.sources.len(), report.targets.len(), report.services.len()), (2, 2, 4));

    let heartbeat = json!({"type": "node_heartbeat", "node_id": "node-3D9AB244",
        "timestamp": 1_795_226_200_153_u64,
        "resource_usage": {"cpu_percent": 100, "gpu_percent": 0, "mem_percent": 34.4,
            "running_jobs": 0},
        "installed_services": services(), "capability_by_type": ready(),
        "language_capabilities": languages(),
        "rerun_metrics": {"totalReruns": 0, "successfulReruns": 0, "failedReruns": 0,
            "timeoutReruns": 0, "qualityImprovements": 0}});
    let Message::Heartbeat(report) = of_node(&heartbeat) else { panic!("no heartbeat") };
    assert_eq!(report.node_id.as_deref(), Some("node-3D9AB244"));
    let load = report.load.unwrap();
    assert_eq!(
        (load.cpu_percent, load.gpu_percent, load.running_jobs),
        (100.0, Some(0.0), Some(0))
    );
    assert_eq!(load.mem_percent, 34.4);
    assert!(report.ready.iter().eq(all));
}

#[test]
fn the_agent_answers_jobs() {
    let good = json!({"type": "job_result", "job_id": JOB, "attempt_id": 1, "node_id": "node-1",
        "session_id": SESSION, "utterance_index": 0, "success": true, "text_asr": "\u{4f60}",
        "text_translated": "you", "tts_audio": "QUJDRA==", "tts_format": "opus",
        "extra": {"language_probability": 0.98, "asr_service_id": "x", "lid": null},
        "processing_time_ms": 815, "trace_id": "t", "asr_quality_level": "good",
        "reason_codes": [], "quality_score": 0.93, "rerun_count": 0,
        "segments_meta": {"count": 1, "max_gap": 0, "avg_duration": 1.2}});
    let Message::JobResult(result) = of_node(&good) else { panic!("no result") };
    assert!(result.success);
    assert_eq!((result.job_id.to_string(), result.attempt_id), (JOB.to_owned(), Some(1)));
    assert_eq!((result.text_asr.as_str(), result.text_translated.as_str()), ("\u{4f60}", "you"));
    assert_eq!((&result.tts_audio[..], result.tts_format.as_str()), (&b"QUJDRA=="[..], "opus"));
    assert_eq!((result.processing_time_ms, result.quality_score), (Some(815), Some(0.93)));
    assert_eq!(result.asr_quality_level.as_deref(), Some("good"));
    let meta = result.segments_meta.expect("it is passed on");
    assert_eq!(meta.get(), good["segments_meta"].to_string());

    let failed = json!({"type": "job_result", "job_id": JOB, "attempt_id": 1, "node_id": "node-1",
        "session_id": SESSION, "utterance_index": 1, "success": false, "processing_time_ms": 303,
        "error": {"code": "PROCESSING_ERROR", "message": "canned failure"}, "trace_id": "t"});
    let Message::JobResult(result) = of_node(&failed) else { panic!("no result") };
    let error = result.error.unwrap();
    assert!(!result.success && result.tts_audio.is_empty());
    assert_eq!(
        (error.code.as_str(), error.message.as_str()),
        ("PROCESSING_ERROR", "canned failure")
    );

    let missing = json!({"type": "job_result", "job_id": JOB, "attempt_id": 1,
        "node_id": "node-1", "session_id": SESSION, "utterance_index": 1, "success": false,
        "error": {"code": "MODEL_NOT_AVAILABLE",
            "message": "Service nmt-m2m100@1.0.0 is not available: not_installed",
            "details": {"service_id": "nmt-m2m100", "service_version": "1.0.0",
                "reason": "not_installed"}}, "trace_id": "t"});
    let Message::JobResult(result) = of_node(&missing) else { panic!("no result") };
    assert_eq!(result.error.unwrap().details.unwrap().service_id.unwrap(), "nmt-m2m100");

    let partial = json!({"type": "asr_partial", "node_id": "node-1", "session_id": SESSION,
        "utterance_index": 0, "job_id": JOB, "text": "partial 1", "is_final": false,
        "trace_id": "t"});
    let Message::AsrPartial(partial) = of_node(&partial) else { panic!("no partial") };
    assert_eq!((partial.text.as_str(), partial.is_final), ("partial 1", false));
}

/// Whether there is no null in it, at any depth.
fn full(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Array(items) => items.iter().all(full),
        Value::Object(fields) => fields.values().all(full),
        _ => true,
    }
}

/// Checks that the message has these fields, `name:type`, and no null anywhere.
fn has(message: &Value, fields: &str) {
    for field in fields.split_whitespace() {
        let (name, kind) = field.split_once(':').unwrap();
        let value = &message[name];
        let fits = match kind {
            "text" => value.is_string(),
            "word" => value.as_str().is_some_and(|text| !text.is_empty()),
            "whole" => value.is_u64(),
            "number" => value.is_number(),
            "bool" => value.is_boolean(),
            "object" => value.is_object(),
            "list" => value.is_array(),
            other => panic!("no such type: {other}"),
        };
        assert!(fits, "{name} is no {kind} in {message}");
    }
    assert!(full(message), "a null in {message}");
}

/// Checks that the message lacks these fields.
fn lacks(message: &Value, fields: &str) {
    for field in fields.split_whitespace() {
        assert!(message.get(field).is_none(), "{field} in {message}");
    }
}

async fn opened(server: &TestServer, init: Value) -> (Peer, Value) {
    let mut client = server.client().await;
    client.send(init).await;
    let ack = client.expect("session_init_ack").await;
    (client, ack)
}

fn init() -> Value {
    json!({"type": "session_init", "client_version": "t", "platform": "web", "src_lang": "zh",
        "tgt_lang": "en", "dialect": null, "features": {}, "pairing_code": null,
        "mode": "one_way", "trace_id": "a-trace", "tenant_id": null})
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_sent_what_they_read() {
    let server = TestServer::start(|_| {}).await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    let (mut client, ack) = opened(&server, init()).await;
    has(
        &ack,
        "session_id:word trace_id:word message:text protocol_version:word \
        use_binary_frame:bool negotiated_codec:word negotiated_audio_format:word \
        negotiated_sample_rate:whole negotiated_channel_count:whole",
    );
    // The page's own path for binary frames does not work.
    assert_eq!(ack["use_binary_frame"], false);
    assert_eq!((&ack["negotiated_codec"], &ack["trace_id"]), (&json!("opus"), &json!("a-trace")));
    let id = ack["session_id"].as_str().unwrap().to_owned();

    client.send(json!({"type": "client_heartbeat", "session_id": id, "timestamp": 1})).await;
    let beat = client.expect("server_heartbeat").await;
    has(&beat, "session_id:word timestamp:whole");
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64;
    assert!(now.abs_diff(beat["timestamp"].as_u64().unwrap()) < 60_000, "{beat}");

    client.chunk(&id, 0, &speech(300), true).await;
    let job = node.assignment().await;
    let dispatched = client.expect("ui_event").await;
    has(
        &dispatched,
        "trace_id:word session_id:word job_id:word utterance_index:whole event:word \
        status:word",
    );
    assert_eq!((&dispatched["event"], &dispatched["status"]), (&json!("DISPATCHED"), &json!("ok")));
    lacks(&dispatched, "error_code hint");

    node.peer
        .send(json!({"type": "asr_partial", "node_id": "n1", "session_id": id,
            "utterance_index": 0, "job_id": job["job_id"], "text": "par", "is_final": false,
            "trace_id": "a-trace"}))
        .await;
    let partial = client.expect("asr_partial").await;
    has(
        &partial,
        "session_id:word utterance_index:whole job_id:word text:word is_final:bool \
        trace_id:word",
    );
    assert_eq!(client.expect("ui_event").await["event"], "ASR_PARTIAL");

    let mut result = node.result(&job, "text");
    result["extra"] = json!({"service_timings": {"asr_ms": 5}, "language_probability": 0.9,
        "emotion": null, "lid": {"secret": 1}, "raw_asr_text": "te"});
    result["asr_quality_level"] = "good".into();
    result["reason_codes"] = json!([]);
    result["quality_score"] = 0.93.into();
    result["segments_meta"] = json!({"count": 1, "max_gap": 0, "avg_duration": 1.2});
    node.peer.send(result).await;
    let told = client.expect("translation_result").await;
    has(
        &told,
        "session_id:word utterance_index:whole job_id:word text_asr:word \
        text_translated:word tts_audio:word tts_format:word trace_id:word group_id:word \
        part_index:whole service_timings:object scheduler_sent_at_ms:whole extra:object \
        asr_quality_level:word reason_codes:list quality_score:number segments_meta:object",
    );
    lacks(&told, "late");
    assert_eq!(told["service_timings"], json!({"asr_ms": 5}));
    lacks(&told["extra"], "emotion lid raw_asr_text");
    let events: Vec<Value> = client.seen_of("ui_event");
    let names: Vec<&str> = events.iter().filter_map(|e| e["event"].as_str()).collect();
    assert_eq!(names, ["ASR_FINAL", "NMT_DONE"]);
    events.iter().for_each(|event| has(event, "elapsed_ms:whole job_id:word"));
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_told_little_where_there_is_little_to_tell() {
    let server = TestServer::start(|_| {}).await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    let (mut client, ack) = opened(&server, init()).await;
    let id = ack["session_id"].as_str().unwrap().to_owned();

    // The least a node may answer.
    client.chunk(&id, 1, &speech(300), true).await;
    let job = node.assignment().await;
    node.peer
        .send(json!({"type": "job_result", "job_id": job["job_id"], "success": true,
            "text_asr": "text", "extra": null, "asr_quality_level": null}))
        .await;
    let told = client.expect("translation_result").await;
    has(
        &told,
        "session_id:word utterance_index:whole job_id:word text_asr:word \
        text_translated:text tts_audio:text tts_format:word trace_id:word group_id:word \
        part_index:whole scheduler_sent_at_ms:whole",
    );
    lacks(&told, "extra asr_quality_level reason_codes quality_score segments_meta rerun_count");

    // Nothing was said.
    client.chunk(&id, 2, &speech(300), true).await;
    let job = node.assignment().await;
    node.peer
        .send(json!({"type": "job_result", "job_id": job["job_id"], "success": true,
            "text_asr": "", "text_translated": "", "tts_audio": "",
            "extra": {"reason": "ASR_EMPTY"}}))
        .await;
    let missing = client.told().await;
    has(
        &missing,
        "session_id:word utterance_index:whole reason:word created_at_ms:whole \
        trace_id:word",
    );
    assert_eq!(missing["reason"], "silence_detected");

    // It failed: that pops up no dialog.
    client.all("ui_event").await;
    client.chunk(&id, 3, &speech(300), true).await;
    let job = node.assignment().await;
    node.fail(&job, json!({"code": "PROCESSING_ERROR", "message": "broken"})).await;
    let missing = client.told().await;
    assert_eq!(
        (&missing["type"], &missing["reason"]),
        (&json!("missing_result"), &json!("job_failed"))
    );
    let events = client.seen_of("ui_event");
    let failed = events.iter().find(|e| e["event"] == "ERROR").unwrap();
    has(failed, "status:word error_code:word hint:word elapsed_ms:whole job_id:word");
    assert_eq!(
        (&failed["status"], &failed["error_code"]),
        (&json!("error"), &json!("PROCESSING_ERROR"))
    );
    assert!(client.seen_of("error").is_empty());

    client.send_text("{}").await;
    has(&client.expect("error").await, "code:word message:word trace_id:word");
    client.send(json!({"type": "session_close", "session_id": id})).await;
    has(&client.expect("session_close_ack").await, "session_id:word");
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_typed_for_clients_that_ask() {
    let server = TestServer::start(|_| {}).await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    let mut asks = init();
    asks["extensions"] = json!(["typed_errors", "something newer"]);
    let (mut client, ack) = opened(&server, asks).await;
    client.chunk(ack["session_id"].as_str().unwrap(), 0, &speech(300), true).await;
    let job = node.assignment().await;
    node.fail(&job, json!({"code": "NMT_TIMEOUT", "message": "too slow"})).await;
    let error = client.expect("error").await;
    has(&error, "code:word message:word retryable:bool phase:word trace_id:word job_id:word");
    assert_eq!((&error["code"], &error["job_id"]), (&json!("NMT_TIMEOUT"), &job["job_id"]));
    assert_eq!(client.told().await["reason"], "job_failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_sent_what_they_read() {
    let server = TestServer::start(|_| {}).await;
    let mut peer = server.raw_node().await;
    peer.send(register_message(None, &["zh", "en"])).await;
    let ack = peer.expect("node_register_ack").await;
    has(&ack, "node_id:word message:word status:word");
    assert_eq!(ack["status"], "registering");
    let id = ack["node_id"].as_str().unwrap().to_owned();
    peer.send(heartbeat_message(&id, &["zh", "en"])).await;
    let mut node = FakeNode { peer, id };

    // A stream, in the mode of the page.
    let mut two_way = init();
    for (key, value) in [
        ("src_lang", json!("auto")),
        ("mode", json!("two_way_auto")),
        ("lang_a", json!("zh")),
        ("lang_b", json!("en")),
        ("auto_langs", json!(["zh", "en"])),
    ] {
        two_way[key] = value;
    }
    let (mut client, ack) = opened(&server, two_way).await;
    let session = ack["session_id"].as_str().unwrap().to_owned();
    client.chunk(&session, 0, &speech(300), true).await;
    let job = node.assignment().await;
    let always = "job_id:word attempt_id:whole session_id:word utterance_index:whole \
        src_lang:word tgt_lang:word pipeline:object audio:word audio_format:word \
        sample_rate:whole enable_streaming_asr:bool partial_update_interval_ms:whole \
        trace_id:word turn_id:word";
    has(&job, always);
    has(
        &job,
        "mode:word lang_a:word lang_b:word auto_langs:list padding_ms:whole \
        is_manual_cut:bool features:object",
    );
    has(&job["pipeline"], "use_asr:bool use_nmt:bool use_tts:bool use_semantic:bool use_tone:bool");
    assert!(job["attempt_id"].as_u64() >= Some(1));
    assert_eq!(
        (&job["src_lang"], &job["lang_a"], &job["lang_b"]),
        (&json!("auto"), &json!("zh"), &json!("en"))
    );
    assert_eq!((&job["is_manual_cut"], &job["padding_ms"]), (&json!(true), &json!(280)));
    lacks(&job, "is_timeout_triggered is_max_duration_triggered dialect");

    // A recording says only what it was given.
    let (mut client, ack) = opened(&server, init()).await;
    let session = ack["session_id"].as_str().unwrap().to_owned();
    client
        .send(json!({"type": "utterance", "session_id": session, "utterance_index": 0,
            "manual_cut": false, "src_lang": "zh", "tgt_lang": "en", "dialect": "wu",
            "audio": "QUJDRA==", "audio_format": "wav", "sample_rate": 48000,
            "pipeline": {"use_asr": true, "use_nmt": true, "use_tts": false,
                "use_semantic": false, "use_tone": false}}))
        .await;
    let job = node.assignment().await;
    has(&job, always);
    assert_eq!((&job["audio"], &job["audio_format"]), (&json!("QUJDRA=="), &json!("wav")));
    assert_eq!((&job["sample_rate"], &job["dialect"]), (&json!(48_000), &json!("wu")));
    assert_eq!(job["pipeline"]["use_tts"], false);
    // One of the two marks closes the turn on a node.
    assert_eq!(job["is_timeout_triggered"], true);
    lacks(&job, "is_manual_cut is_max_duration_triggered lang_a lang_b auto_langs padding_ms");

    drop(client);
    let cancel = node.peer.expect("job_cancel").await;
    has(&cancel, "job_id:word trace_id:word reason:word");
    assert_eq!(cancel["job_id"], job["job_id"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_odd_registration_makes_a_usable_node() {
    let server = TestServer::start(|_| {}).await;
    let mut peer = server.raw_node().await;
    peer.send(json!({"type": "node_register", "node_id": "odd", "version": null,
        "capability_schema_version": null, "platform": null,
        "installed_models": null, "installed_services": [
            {"service_id": "hearing", "type": "asr", "device": "auto", "status": "running"},
            {"service_id": "levitation", "type": "levitation", "device": "tpu",
                "status": "running", "version": null},
            {"service_id": "nmt", "type": "nmt", "device": "auto", "status": "running"},
            {"service_id": "sleeper", "type": "tone", "device": "auto", "status": "dreaming"},
            {"service_id": "voice", "type": "tts", "device": null, "status": "running"},
            {"service_id": "speech", "type": "tts", "status": "running"}, null, 7],
        "capability_by_type": null, "features_supported": null, "accept_public_jobs": null,
        "language_capabilities": {"asr_languages": ["zh", null, "not a language at all", "en"],
            "tts_languages": ["en", "zh"], "semantic_languages": null}, "news": {"a": [null]}}))
        .await;
    assert_eq!(peer.expect("node_register_ack").await["node_id"], "odd");
    let row = server.until(|b| b["state"] == "ready", "/api/v1/nodes/odd").await;
    assert_eq!(row["usable_services"], json!(["asr", "nmt", "tts"]));
    assert_eq!(row["pairs_total"], 4);
    let mut node = FakeNode { peer, id: "odd".into() };
    let (mut client, id) = server.session("zh", "en").await;
    client.chunk(&id, 0, &speech(300), true).await;
    let job = node.assignment().await;
    node.answer(&job, "text").await;
    assert_eq!(client.told().await["text_asr"], "text");
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_peers_are_pinged_and_silent_ones_given_up() {
    let server = TestServer::start(|c| {
        c.transport.ping_interval_ms = 50;
        c.transport.pong_timeout_ms = 400;
    })
    .await;
    let (mut client, _) = server.session("zh", "en").await;
    let mut node = FakeNode::register(server.raw_node().await, "n1", &["zh", "en"]).await;
    let pinged = |frame: Option<Frame>| matches!(frame, Some(Frame::Ping(_)));
    for _ in 0..3 {
        // Reading answers them.
        assert!(pinged(client.next_frame().await));
        assert!(pinged(node.peer.next_frame().await));
    }
    // Who reads no more answers no more.
    let gave_up = "utterd_connections_closed_total{socket=\"session\",why=\"pong_missing\"}";
    server.until_metric(gave_up, 1.0).await;
    server.until(|b| b["total"] == 0, "/api/v1/sessions").await;
    let row = server.until(|b| b["state"] == "offline", "/api/v1/nodes/n1").await;
    assert!(row["peer"].is_null());
}

#[tokio::test(flavor = "multi_thread")]
async fn room_messages_that_have_no_effect_pop_up_no_dialog() {
    let server = TestServer::start(|_| {}).await;
    let mut client = server.client().await;
    let sdp = json!({"sdp": "v=0", "type": "offer"});
    let offer = json!({"type": "webrtc_offer", "room_code": "298523", "to": "s", "sdp": sdp});
    let join = json!({"type": "room_join", "room_code": "298523", "display_name": "Bob"});
    for message in [&join, &offer] {
        client.send(message.clone()).await;
        let refusal = client.expect("room_error").await;
        assert_eq!(refusal["message"], "Session not initialized");
    }
    client.send(init()).await;
    client.expect("session_init_ack").await;
    for message in [join, json!({"type": "room_leave", "room_code": "298523"})] {
        client.send(message).await;
        let refusal = client.expect("room_error").await;
        has(&refusal, "code:word message:word");
        assert_eq!(refusal["code"], "ROOM_NOT_FOUND");
    }
    client.send(offer).await;
    server.until_metric("utterd_room_signals_total{outcome=\"dropped\"}", 1.0).await;
    assert!(client.all("error").await.is_empty(), "a page shows errors as dialogs");
}

#[tokio::test(flavor = "multi_thread")]
async fn http_refuses_what_is_not_there() {
    let server = TestServer::start(|_| {}).await;
    let addr = server.addr();
    for path in [
        "/",
        "/nothing",
        "/api/v1",
        "/api/v1/nodes/n2",
        "/api/v1/jobs/job-1/more",
        "/api/v1/jobs/job-00000000-0000-4000-8000-000000000000",
        "/health/",
        "/ws",
    ] {
        assert_eq!(http(addr, "GET", path, "").await.0, 404, "{path}");
    }
    assert_eq!(server.get("/api/v1/jobs/7").await.0, 400);
    for (method, path) in [
        ("POST", "/health"),
        ("DELETE", "/api/v1/nodes/n1"),
        ("PUT", "/api/v1/stats"),
        ("POST", "/v1/stream"),
        ("POST", "/ws/session"),
    ] {
        assert_eq!(http(addr, method, path, "").await.0, 405, "{method} {path}");
    }
    assert_eq!(http(addr, "POST", "/nothing", "").await.0, 404);
    let (status, _) = http(addr, "GET", "/ws/session", "").await;
    assert!((400..500).contains(&status), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn http_answers_operators() {
    let server = TestServer::start(|_| {}).await;
    let addr = server.addr();
    assert_eq!(http(addr, "GET", "/health", "").await, (200, "OK".into()));
    assert_eq!(http(addr, "GET", "/readyz", "").await.0, 200);
    let mut node = server.node("n1", &["zh", "en"]).await;
    let (mut client, id) = server.session("zh", "en").await;
    client.chunk(&id, 0, &speech(300), true).await;
    let job = node.assignment().await;

    let (status, stats) = server.get("/api/v1/stats").await;
    assert_eq!(status, 200);
    has(
        &stats,
        "web_clients:object nodes:object jobs:object store:object uptime_seconds:whole \
        boot_epoch:whole",
    );
    has(&stats["web_clients"], "active_users:whole top_languages:list language_usage:object");
    has(
        &stats["nodes"],
        "connected_nodes:whole type_node_counts:object total_services:whole \
        available_services:list compute_power:object",
    );
    has(&stats["store"], "commits:whole rows_written:whole queued:whole bad_rows:whole");
    assert_eq!(
        (&stats["web_clients"]["active_users"], &stats["nodes"]["connected_nodes"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(stats["jobs"], json!({"live": 1, "waiting": 0}));
    assert_eq!(
        stats["web_clients"]["language_usage"]["zh"],
        json!({"as_source": 1, "as_target": 0, "total": 1})
    );
    assert_eq!(stats["nodes"]["type_node_counts"], json!({"Asr": 1, "Nmt": 1, "Tts": 1}));

    let (_, nodes) = server.get("/api/v1/nodes").await;
    assert_eq!((&nodes["total"], &nodes["nodes"][0]["node_id"]), (&json!(1), &json!("n1")));
    let (_, row) = server.get("/api/v1/nodes/n1").await;
    assert_eq!(
        (&row["slots_used"], &row["slots_max"], &row["state"]),
        (&json!(1), &json!(4), &json!("ready"))
    );

    let (_, pools) = server.get("/api/v1/pools").await;
    assert_eq!(pools["config"], json!([]));
    let pairs: Vec<&str> =
        pools["pairs"].as_array().unwrap().iter().filter_map(|p| p["pair"].as_str()).collect();
    assert_eq!(pairs, ["en:en", "en:zh", "zh:en", "zh:zh"]);
    assert_eq!(
        pools["pairs"][2]["pools"],
        json!([{"name": "zh:en", "configured": false, "nodes": ["n1"]}])
    );

    let (_, sessions) = server.get("/api/v1/sessions").await;
    assert_eq!(sessions["total"], 1);
    let row = &sessions["sessions"][0];
    assert_eq!(
        (&row["session_id"], &row["open_jobs"], &row["utterances"]),
        (&json!(id), &json!(1), &json!(1))
    );

    let (_, jobs) = server.get("/api/v1/jobs").await;
    assert_eq!(jobs["total"], 1);
    assert_eq!(
        (&jobs["jobs"][0]["job_id"], &jobs["jobs"][0]["src_lang"]),
        (&job["job_id"], &json!("zh"))
    );
    let path = format!("/api/v1/jobs/{}", job["job_id"].as_str().unwrap());
    let open = server.until(|b| b["state"] == "dispatched", &path).await;
    assert_eq!(open["ended"], Value::Null);
    assert_eq!(open["placements"][0]["considered"], json!([{"node": "n1", "verdict": "chosen"}]));
    node.answer(&job, "text").await;
    client.told().await;
    let ended = server.job_at(&job["job_id"], "delivered").await;
    assert_eq!(
        (&ended["state"], &ended["ended"]["node"], &ended["ended"]["attempts"]),
        (&json!("succeeded"), &json!("n1"), &json!(1))
    );

    let (status, text) = http(addr, "GET", "/metrics", "").await;
    assert_eq!(status, 200);
    for line in [
        "utterd_sessions 1",
        "utterd_jobs_live 0",
        "utterd_jobs_submitted_total 1",
        "utterd_jobs_settled_total{outcome=\"succeeded\"} 1",
        "utterd_results_sent_total{kind=\"result\"} 1",
        "utterd_connections{socket=\"node\"} 1",
        "utterd_frames_received_total{socket=\"session\",type=\"session_init\"} 1",
        "scheduler_dispatch_latency_seconds_count 1",
        "scheduler_stats_requests_total 1",
    ] {
        assert!(text.lines().any(|l| l == line), "no line {line} in\n{text}");
    }
    drop(client);
    server.advance(Duration::from_millis(1));
    server.until_nothing_is_left().await;
}
