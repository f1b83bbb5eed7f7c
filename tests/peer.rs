//! The node agent and the speaker against a scheduler that only follows a script.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use utterd::peer::command::{CommandConfig, CommandEngine, CommandLines};
use utterd::peer::engine::{EchoEngine, Engine};
use utterd::peer::node::{self, NodeError, NodeEvent, NodeOptions};
use utterd::peer::speaker::{Mode, SpeakError, SpeakEvent, SpeakOptions, Spoken, speak};
use utterd::peer::wav;

/// Longest wait for something that must happen.
const SOON: Duration = Duration::from_secs(10);
/// Long enough for something that must not happen to show.
const QUIET: Duration = Duration::from_millis(80);

/// The scheduler's side of one connection.
struct Script {
    socket: WebSocketStream<TcpStream>,
}

impl Script {
    async fn accept(listener: &TcpListener) -> Self {
        let accepted = tokio::time::timeout(SOON, listener.accept()).await;
        let (stream, _) = accepted.expect("nobody connects").unwrap();
        Self { socket: tokio_tungstenite::accept_async(stream).await.unwrap() }
    }

    async fn say(&mut self, message: Value) {
        self.socket.send(Message::text(message.to_string())).await.unwrap();
    }

    /// The next JSON message, or nothing once the peer has closed.
    async fn hear(&mut self) -> Option<Value> {
        loop {
            let next = tokio::time::timeout(SOON, self.socket.next()).await;
            match next.expect("the peer says nothing") {
                Some(Ok(Message::Text(text))) => return Some(serde_json::from_str(&text).unwrap()),
                Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
                Some(Ok(_)) => {}
            }
        }
    }

    /// The next message, which must be of this type; heartbeats are passed over unless asked for.
    #[track_caller]
    fn expect<'a>(&'a mut self, kind: &'a str) -> impl Future<Output = Value> + 'a {
        let at = std::panic::Location::caller();
        async move {
            loop {
                let message = self.hear().await.unwrap_or_else(|| panic!("{at}: closed"));
                let said = message["type"].as_str().unwrap().to_owned();
                if said == kind {
                    return message;
                }
                assert_eq!(said, "node_heartbeat", "{at}: wanted {kind}, got {message}");
            }
        }
    }

    /// Nothing but heartbeats and pings for a while.
    async fn assert_quiet(&mut self) {
        let until = Instant::now() + QUIET;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            match tokio::time::timeout(left, self.socket.next()).await {
                Err(_) => return,
                Ok(Some(Ok(Message::Text(text)))) => {
                    assert!(text.contains("\"node_heartbeat\""), "not quiet: {text}");
                }
                Ok(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => {}
                Ok(other) => panic!("not quiet: {other:?}"),
            }
        }
    }

    async fn register(&mut self) -> Value {
        let register = self.expect("node_register").await;
        let ack =
            json!({"type": "node_register_ack", "node_id": "node-7", "status": "registering"});
        self.say(ack).await;
        register
    }
}

/// A running node and the script it talks to.
struct Stage {
    listener: TcpListener,
    script: Script,
    events: mpsc::Receiver<NodeEvent>,
    stop: oneshot::Sender<()>,
    node: JoinHandle<Result<(), NodeError>>,
}

async fn stage(engine: Engine, adjust: impl FnOnce(&mut NodeOptions)) -> Stage {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}/ws/node", listener.local_addr().unwrap());
    let mut options = NodeOptions::new(url, engine);
    options.reconnect_min = Duration::from_millis(5);
    options.reconnect_max = Duration::from_millis(20);
    adjust(&mut options);
    let (stop, stopped) = oneshot::channel();
    let (tell, events) = mpsc::channel(100);
    let node = tokio::spawn(node::run(options, stopped, Some(tell)));
    let script = Script::accept(&listener).await;
    Stage { listener, script, events, stop, node }
}

impl Stage {
    async fn end(self) {
        self.stop.send(()).unwrap();
        let ended = tokio::time::timeout(SOON, self.node).await;
        ended.expect("the node does not stop").unwrap().unwrap();
    }
}

fn echo(delay_ms: u64) -> Engine {
    Engine::Echo(EchoEngine { delay: Duration::from_millis(delay_ms), ..EchoEngine::default() })
}

/// An engine whose recogniser is a script; the rest repeats what it hears and says nothing.
fn command(asr: &str) -> Engine {
    let lines = CommandLines {
        asr: format!("sh -c '{asr}'"),
        nmt: "cat".to_owned(),
        tts: "cat".to_owned(),
        decode: None,
        pairs: vec!["en:es".to_owned()],
    };
    let config = CommandConfig::from_lines(&lines).unwrap();
    Engine::Command(CommandEngine::new(config).unwrap())
}

fn assign(job_id: &str, index: u64) -> Value {
    json!({
        "type": "job_assign", "job_id": job_id, "attempt_id": 3, "session_id": "s-1",
        "utterance_index": index, "src_lang": "en", "tgt_lang": "es", "trace_id": "t-9",
        "features": {}, "turn_id": "turn", "padding_ms": 0, "is_max_duration_triggered": true,
        "pipeline": {"use_asr": true, "use_nmt": true, "use_tts": true, "use_tone": false},
        "audio": base64(&[1, 2, 3, 4].repeat(8_000)), "audio_format": "pcm16",
        "sample_rate": 16_000, "enable_streaming_asr": false,
    })
}

fn base64(bytes: &[u8]) -> String {
    base64_simd::STANDARD.encode_to_string(bytes)
}

fn unbase64(text: &Value) -> Vec<u8> {
    base64_simd::STANDARD.decode_to_vec(text.as_str().unwrap()).unwrap()
}

#[tokio::test]
async fn a_node_says_what_it_can_and_that_it_lives() {
    let engine = Engine::Echo(EchoEngine {
        languages: ["en", "es", "zh"].map(str::to_owned).into(),
        delay: Duration::ZERO,
    });
    let mut stage = stage(engine, |o| {
        o.capacity = 2;
        o.heartbeat = Duration::from_millis(30);
    })
    .await;
    let register = stage.script.register().await;
    assert_eq!(register["node_id"], Value::Null);
    assert_eq!(register["max_concurrent_jobs"], 2);
    assert!(register["hardware"]["cpu_cores"].as_u64().unwrap() > 0);
    assert!(register["hardware"]["memory_gb"].is_u64());
    assert_eq!(register["installed_services"][0]["status"], "running");
    let ready = |kind| json!({"type": kind, "ready": true, "devices": ["cpu"]});
    assert_eq!(register["capability_by_type"], json!([ready("asr"), ready("nmt"), ready("tts")]));
    let languages = &register["language_capabilities"];
    for list in ["asr_languages", "semantic_languages", "tts_languages"] {
        assert_eq!(languages[list], json!(["en", "es", "zh"]), "{list}");
    }
    let pairs = json!(["en:es", "en:zh", "es:en", "es:zh", "zh:en", "zh:es"]);
    assert_eq!(languages["pairs"], pairs);

    for _ in 0..3 {
        let beat = stage.script.expect("node_heartbeat").await;
        assert_eq!(beat["node_id"], "node-7");
        assert_eq!(beat["resource_usage"]["running_jobs"], 0);
        assert!(beat["resource_usage"]["mem_percent"].as_f64().unwrap() > 0.0);
        assert!(beat["timestamp"].as_u64().unwrap() > 1_600_000_000_000);
        assert_eq!(&beat["language_capabilities"], languages);
        assert!(beat["installed_services"].is_array() && beat["capability_by_type"].is_array());
    }
    let registered = stage.events.recv().await.unwrap();
    assert_eq!(registered, NodeEvent::Registered { node_id: "node-7".to_owned() });
    stage.end().await;
}

#[tokio::test]
async fn a_job_is_answered_with_everything_it_came_with() {
    let mut stage = stage(echo(0), |_| {}).await;
    stage.script.register().await;
    stage.script.say(assign("job-a", 5)).await;
    for kind in ["job_ack", "job_started"] {
        let step = stage.script.expect(kind).await;
        let echoed =
            ["job_id", "attempt_id", "node_id", "session_id", "trace_id"].map(|k| &step[k]);
        assert_eq!(
            echoed,
            [&json!("job-a"), &json!(3), &json!("node-7"), &json!("s-1"), &json!("t-9")]
        );
    }
    let result = stage.script.expect("job_result").await;
    for (field, value) in [
        ("job_id", json!("job-a")),
        ("attempt_id", json!(3)),
        ("node_id", json!("node-7")),
        ("session_id", json!("s-1")),
        ("utterance_index", json!(5)),
        ("trace_id", json!("t-9")),
        ("success", json!(true)),
        ("text_asr", json!("[echo] 1.00 s of pcm16 speech")),
        ("text_translated", json!("[echo] the speaker's own audio, not a translation")),
        ("tts_format", json!("pcm16")),
    ] {
        assert_eq!(result[field], value, "{field}");
    }
    assert_eq!(unbase64(&result["tts_audio"]), [1, 2, 3, 4].repeat(8_000));
    assert!(result["processing_time_ms"].is_u64());
    assert!(result["node_completed_at_ms"].as_u64().unwrap() > 1_600_000_000_000);
    assert!(result["extra"]["service_timings"]["total_ms"].is_u64());
    assert!(result.get("error").is_none());
    stage.script.assert_quiet().await;
    stage.end().await;
}

#[tokio::test]
async fn of_three_jobs_two_run_and_the_third_waits_for_a_place() {
    let mut stage = stage(echo(60), |o| o.capacity = 2).await;
    stage.script.register().await;
    for (index, job) in (0..).zip(["a", "b", "c"]) {
        stage.script.say(assign(job, index)).await;
    }
    let mut told = Vec::new();
    while told.iter().filter(|t: &&String| t.starts_with("job_result")).count() < 3 {
        let message = stage.script.hear().await.unwrap();
        if message["type"] != "node_heartbeat" {
            let kind = message["type"].as_str().unwrap();
            told.push(format!("{kind} {}", message["job_id"].as_str().unwrap()));
        }
    }
    let at = |what: &str| told.iter().position(|t| t == what).unwrap_or_else(|| panic!("{told:?}"));
    let first_result = at("job_result a").min(at("job_result b"));
    assert!(at("job_started a") < first_result && at("job_started b") < first_result, "{told:?}");
    assert!(at("job_ack c") < first_result, "{told:?}");
    assert!(first_result < at("job_started c"), "{told:?}");
    assert_eq!(told.len(), 9, "{told:?}");
    stage.end().await;
}

#[tokio::test]
async fn more_jobs_than_may_wait_are_refused_at_once() {
    let mut stage = stage(command("sleep 60"), |_| {}).await;
    stage.script.register().await;
    for index in 0..6 {
        stage.script.say(assign(&format!("job-{index}"), index)).await;
    }
    stage.script.expect("job_ack").await;
    stage.script.expect("job_started").await;
    for _ in 1..6 {
        stage.script.expect("job_ack").await;
    }
    let refused = stage.script.expect("job_result").await;
    assert_eq!(refused["job_id"], "job-5");
    assert_eq!(refused["success"], false);
    assert_eq!(refused["error"]["code"], "PROCESSING_ERROR");
    stage.script.assert_quiet().await;
    stage.end().await;
}

#[tokio::test]
async fn a_cancelled_job_is_never_answered_and_gives_its_place_away() {
    let mut stage = stage(command("test -s {wav}; sleep 60"), |_| {}).await;
    stage.script.register().await;
    for (index, job) in (0..).zip(["runs", "waits", "last"]) {
        stage.script.say(assign(job, index)).await;
    }
    stage.script.expect("job_ack").await;
    assert_eq!(stage.script.expect("job_started").await["job_id"], "runs");
    stage.script.expect("job_ack").await;
    stage.script.expect("job_ack").await;
    stage.script.say(json!({"type": "job_cancel", "job_id": "waits"})).await;
    stage.script.say(json!({"type": "job_cancel", "job_id": "runs", "reason": "x"})).await;
    stage.script.say(json!({"type": "job_cancel", "job_id": "unheard-of"})).await;
    assert_eq!(stage.script.expect("job_started").await["job_id"], "last");
    stage.script.assert_quiet().await;
    let mut cancelled = Vec::new();
    while let Ok(event) = stage.events.try_recv() {
        if let NodeEvent::Cancelled { job_id } = event {
            cancelled.push(job_id);
        }
    }
    assert_eq!(cancelled, ["waits", "runs"]);
    stage.end().await;
}

#[tokio::test]
async fn an_attempt_told_twice_is_done_once_and_a_newer_one_replaces_it() {
    let mut stage = stage(echo(40), |o| o.capacity = 2).await;
    stage.script.register().await;
    stage.script.say(assign("a", 0)).await;
    stage.script.say(assign("a", 0)).await;
    let mut again = assign("a", 0);
    again["attempt_id"] = json!(4);
    stage.script.say(again).await;
    for attempt in [3, 4] {
        assert_eq!(stage.script.expect("job_ack").await["attempt_id"], attempt);
        assert_eq!(stage.script.expect("job_started").await["attempt_id"], attempt);
    }
    assert_eq!(stage.script.expect("job_result").await["attempt_id"], 4);
    stage.script.assert_quiet().await;
    stage.end().await;
}

#[tokio::test]
async fn partial_texts_come_before_the_answer_and_only_when_asked_for() {
    let mut stage = stage(command("echo heard it"), |_| {}).await;
    stage.script.register().await;
    let mut job = assign("a", 2);
    job["pipeline"]["use_tts"] = json!(false);
    job["enable_streaming_asr"] = json!(true);
    stage.script.say(job.clone()).await;
    stage.script.expect("job_ack").await;
    stage.script.expect("job_started").await;
    let partial = stage.script.expect("asr_partial").await;
    let wanted = json!({
        "type": "asr_partial", "node_id": "node-7", "session_id": "s-1", "utterance_index": 2,
        "job_id": "a", "text": "heard it", "is_final": true, "trace_id": "t-9",
    });
    assert_eq!(partial, wanted);
    assert_eq!(stage.script.expect("job_result").await["text_translated"], "heard it");
    job["enable_streaming_asr"] = json!(false);
    job["job_id"] = json!("b");
    stage.script.say(job).await;
    stage.script.expect("job_ack").await;
    stage.script.expect("job_started").await;
    stage.script.expect("job_result").await;
    stage.end().await;
}

#[tokio::test]
async fn failures_have_a_code_and_a_bounded_reason() {
    let mut stage = stage(command("seq 1 2000 >&2; echo the end >&2; exit 4"), |_| {}).await;
    stage.script.register().await;
    let mut opus = assign("opus", 0);
    opus["audio_format"] = json!("opus");
    let mut torn = assign("torn", 1);
    torn["audio"] = json!("%%%");
    let mut deaf = assign("deaf", 2);
    deaf["pipeline"]["use_asr"] = json!(false);
    for (job, reason) in [
        (assign("bad", 3), "the end"),
        (opus, "the command engine takes pcm16, not opus"),
        (torn, "the audio is not base64"),
        (deaf, "nothing to do without recognition"),
    ] {
        stage.script.say(job).await;
        stage.script.expect("job_ack").await;
        stage.script.expect("job_started").await;
        let result = stage.script.expect("job_result").await;
        assert_eq!((&result["success"], &result["attempt_id"]), (&json!(false), &json!(3)));
        assert_eq!(result["error"]["code"], "PROCESSING_ERROR");
        let message = result["error"]["message"].as_str().unwrap();
        assert!(message.ends_with(reason) && message.len() <= 500, "{message}");
        assert!(result.get("text_asr").is_none());
    }
    stage.end().await;
}

#[tokio::test]
async fn a_missing_program_is_told_as_a_missing_model() {
    let lines = CommandLines {
        asr: "/nowhere/recognise".to_owned(),
        nmt: "cat".to_owned(),
        tts: "cat".to_owned(),
        decode: None,
        pairs: vec!["en:es".to_owned()],
    };
    let config = CommandConfig::from_lines(&lines).unwrap();
    let mut stage = stage(Engine::Command(CommandEngine::new(config).unwrap()), |_| {}).await;
    stage.script.register().await;
    stage.script.say(assign("a", 0)).await;
    stage.script.expect("job_ack").await;
    stage.script.expect("job_started").await;
    let error = &stage.script.expect("job_result").await["error"];
    assert_eq!(error["code"], "MODEL_NOT_AVAILABLE");
    let details = json!({
        "service_id": "asr-recognise", "service_version": "1.0.0", "reason": "not_installed",
    });
    assert_eq!(error["details"], details);
    stage.end().await;
}

#[tokio::test]
async fn silence_is_an_empty_success() {
    let mut stage = stage(command("true"), |_| {}).await;
    stage.script.register().await;
    stage.script.say(assign("a", 0)).await;
    stage.script.expect("job_ack").await;
    stage.script.expect("job_started").await;
    let result = stage.script.expect("job_result").await;
    assert_eq!(result["success"], true);
    assert_eq!(result["extra"]["reason"], "ASR_EMPTY");
    assert_eq!((&result["text_asr"], &result["tts_audio"]), (&json!(""), &json!("")));
    stage.end().await;
}

#[tokio::test]
async fn a_lost_node_comes_back_under_its_name_without_its_old_work() {
    let mut stage = stage(echo(100), |_| {}).await;
    stage.script.register().await;
    stage.script.say(assign("old", 0)).await;
    stage.script.expect("job_ack").await;
    stage.script.expect("job_started").await;
    for _ in 0..3 {
        stage.script.socket.get_mut().shutdown().await.unwrap();
        stage.script = Script::accept(&stage.listener).await;
        let register = stage.script.register().await;
        assert_eq!(register["node_id"], "node-7");
        let beat = stage.script.expect("node_heartbeat").await;
        assert_eq!(beat["resource_usage"]["running_jobs"], 0);
    }
    stage.script.say(assign("new", 1)).await;
    stage.script.expect("job_ack").await;
    stage.script.expect("job_started").await;
    assert_eq!(stage.script.expect("job_result").await["job_id"], "new");
    stage.end().await;
}

#[tokio::test]
async fn refused_connections_are_tried_again_and_again() {
    let port = {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        taken.local_addr().unwrap()
    };
    let mut options = NodeOptions::new(format!("ws://{port}/ws/node"), echo(0));
    options.node_id = Some("named".to_owned());
    options.reconnect_min = Duration::from_millis(2);
    options.reconnect_max = Duration::from_millis(10);
    let (stop, stopped) = oneshot::channel::<()>();
    let (tell, mut events) = mpsc::channel(100);
    let node = tokio::spawn(node::run(options, stopped, Some(tell)));
    for _ in 0..5 {
        let event = tokio::time::timeout(SOON, events.recv()).await.unwrap().unwrap();
        assert!(matches!(event, NodeEvent::Disconnected { .. }), "{event:?}");
    }
    let listener = TcpListener::bind(port).await.unwrap();
    let mut script = Script::accept(&listener).await;
    assert_eq!(script.register().await["node_id"], "named");
    script.expect("node_heartbeat").await;
    stop.send(()).unwrap();
    node.await.unwrap().unwrap();
    assert!(script.hear().await.is_none(), "a goodbye was due");
}

#[tokio::test]
async fn a_scheduler_that_answers_no_ping_is_left() {
    let mut stage = stage(echo(0), |o| {
        o.heartbeat = Duration::from_millis(20);
        o.silence = Duration::from_millis(100);
    })
    .await;
    stage.script.register().await;
    // The script reads nothing from here on, so nothing answers the pings; but the socket stays
    // open.
    let mut next = Script::accept(&stage.listener).await;
    assert_eq!(next.register().await["node_id"], "node-7");
    let mut silent = false;
    while let Ok(event) = stage.events.try_recv() {
        silent |=
            matches!(&event, NodeEvent::Disconnected { reason, .. } if reason.contains("silent"));
    }
    assert!(silent);
    stage.end().await;
}

#[tokio::test]
async fn odd_messages_change_nothing() {
    let mut stage = stage(echo(0), |_| {}).await;
    stage.script.expect("node_register").await;
    stage.script.say(assign("too early", 0)).await;
    for odd in ["[]", "null", "{", "{\"type\":\"node_control\"}", "{\"type\":\"job_assign\"}"] {
        stage.script.socket.send(Message::text(odd)).await.unwrap();
    }
    stage.script.say(json!({"type": "error", "code": "NO", "message": "no"})).await;
    stage.script.assert_quiet().await;
    let ack = json!({"type": "node_register_ack", "node_id": "node-8"}).to_string();
    stage.script.socket.send(Message::binary(ack.into_bytes())).await.unwrap();
    stage.script.expect("node_heartbeat").await;
    stage.script.say(json!({"type": "job_assign", "job_id": "bare"})).await;
    assert_eq!(stage.script.expect("job_ack").await["node_id"], "node-8");
    stage.script.expect("job_started").await;
    assert_eq!(stage.script.expect("job_result").await["attempt_id"], 1);
    stage.end().await;
}

#[tokio::test]
async fn what_can_never_work_is_an_error_at_once() {
    let never = std::future::pending::<()>;
    let options = NodeOptions::new("http://127.0.0.1:1/", echo(0));
    let error = node::run(options, never(), None).await.unwrap_err();
    assert!(matches!(error, NodeError::Address { .. }), "{error}");
    let mut options = NodeOptions::new("ws://127.0.0.1:1/", echo(0));
    options.capacity = 0;
    let error = node::run(options, never(), None).await.unwrap_err();
    assert!(matches!(error, NodeError::NoCapacity), "{error}");
}

/// A speaker in the middle of its recording, and what it said to open its session.
struct Talk {
    script: Script,
    init: Value,
    speaker: JoinHandle<(Result<Spoken, SpeakError>, Vec<SpeakEvent>)>,
}

async fn talk(pcm: Vec<i16>, mode: Mode, adjust: impl FnOnce(&mut SpeakOptions)) -> Talk {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}/ws/session", listener.local_addr().unwrap());
    let mut options = SpeakOptions::new(url, "en", "es");
    options.mode = mode;
    options.result_timeout = SOON;
    options.settle = Duration::from_millis(150);
    adjust(&mut options);
    let speaker = tokio::spawn(async move {
        let mut seen = Vec::new();
        let spoken = speak(pcm, options, |event| seen.push(event)).await;
        (spoken, seen)
    });
    let mut script = Script::accept(&listener).await;
    let init = script.expect("session_init").await;
    Talk { script, init, speaker }
}

const AT_ONCE: Mode = Mode::Chunks { realtime: false };

impl Talk {
    async fn ready(&mut self) {
        self.script.say(json!({"type": "session_init_ack", "session_id": "s-1"})).await;
    }

    async fn hear_all_chunks(&mut self) -> Vec<Value> {
        let mut chunks = Vec::new();
        while chunks.last().is_none_or(|chunk: &Value| chunk["is_final"] == false) {
            chunks.push(self.script.expect("audio_chunk").await);
        }
        chunks
    }

    async fn dispatched(&mut self, index: u64) {
        let event = json!({
            "type": "ui_event", "session_id": "s-1", "job_id": format!("job-{index}"),
            "utterance_index": index, "event": "DISPATCHED", "status": "ok", "trace_id": "t",
        });
        self.script.say(event).await;
    }

    async fn result(&mut self, index: u64, audio: &[u8], format: &str) {
        let result = json!({
            "type": "translation_result", "session_id": "s-1", "utterance_index": index,
            "job_id": format!("job-{index}"), "text_asr": format!("said {index}"),
            "text_translated": format!("dicho {index}"), "tts_audio": base64(audio),
            "tts_format": format, "group_id": "g", "trace_id": "t", "quality_score": 0.5,
        });
        self.script.say(result).await;
    }

    /// The speaker's goodbye, answered.
    async fn end(mut self) -> (Spoken, Vec<SpeakEvent>) {
        let close = self.script.expect("session_close").await;
        assert_eq!(close["session_id"], "s-1");
        self.script.say(json!({"type": "session_close_ack", "session_id": "s-1"})).await;
        let (spoken, seen) = tokio::time::timeout(SOON, self.speaker).await.unwrap().unwrap();
        (spoken.unwrap(), seen)
    }
}

#[tokio::test]
async fn a_recording_goes_out_in_chunks_and_comes_back_as_answers() {
    let pcm = wav::sine_speech(1.0);
    let mut talk = talk(pcm.clone(), AT_ONCE, |_| {}).await;
    for (field, value) in [
        ("platform", json!("cli")),
        ("src_lang", json!("en")),
        ("tgt_lang", json!("es")),
        ("audio_format", json!("pcm16")),
        ("sample_rate", json!(16_000)),
    ] {
        assert_eq!(talk.init[field], value, "{field}");
    }
    assert!(talk.init["client_version"].is_string());
    talk.ready().await;
    let chunks = talk.hear_all_chunks().await;
    assert_eq!(chunks.len(), 5); // 1000 ms are three whole chunks of 256 ms, the rest, and the marker.
    let mut sent = Vec::new();
    for (seq, chunk) in (0..).zip(&chunks) {
        assert_eq!((&chunk["seq"], &chunk["session_id"]), (&json!(seq), &json!("s-1")));
        sent.extend(unbase64(&chunk["payload"]));
    }
    assert_eq!(wav::pcm16_samples(&sent), pcm);
    assert_eq!(unbase64(&chunks[0]["payload"]).len(), 256 * 16 * 2);
    assert_eq!(chunks[4]["payload"], "");

    talk.dispatched(0).await;
    let partial = json!({
        "type": "asr_partial", "session_id": "s-1", "utterance_index": 0, "job_id": "",
        "text": "sa", "is_final": false, "trace_id": "t",
    });
    talk.script.say(partial).await;
    talk.result(0, &[1, 0, 2, 0], "pcm16").await;
    let (spoken, seen) = talk.end().await;
    assert_eq!(spoken.session_id, "s-1");
    assert_eq!(spoken.results.len(), 1);
    let result = &spoken.results[0];
    assert_eq!((result.text_asr.as_str(), result.job_id.as_str()), ("said 0", "job-0"));
    assert_eq!(result.text_translated, "dicho 0");
    assert_eq!(result.group_id.as_deref(), Some("g"));
    assert_eq!(result.raw["quality_score"], 0.5);
    assert_eq!(spoken.pcm16(), (vec![1, 2], 0));
    assert!(!spoken.timed_out && spoken.missing.is_empty() && spoken.unanswered.is_empty());
    assert_eq!(seen, spoken.events);
    assert!(
        matches!(
            seen[..],
            [
                SpeakEvent::Ready { .. },
                SpeakEvent::Sent,
                SpeakEvent::Step { .. },
                SpeakEvent::Partial { is_final: false, .. },
                SpeakEvent::Result { audio_bytes: 4, .. },
            ]
        ),
        "{seen:?}"
    );
}

#[tokio::test]
async fn the_last_utterance_is_awaited_though_all_before_it_are_answered() {
    let mut talk = talk(wav::sine_speech(1.0), AT_ONCE, |_| {}).await;
    talk.ready().await;
    talk.dispatched(0).await;
    talk.result(0, &[7, 7], "pcm16").await;
    talk.hear_all_chunks().await;
    tokio::time::sleep(Duration::from_millis(30)).await; // The cut after the marker takes its time.
    talk.dispatched(1).await;
    talk.dispatched(2).await;
    talk.result(2, &[1, 2, 3], "opus").await;
    talk.script.assert_quiet().await; // Longer than it waits once the last one is answered.
    let missing = json!({
        "type": "missing_result", "session_id": "s-1", "utterance_index": 1,
        "reason": "silence_detected", "created_at_ms": 1,
    });
    talk.script.say(missing).await;
    let (spoken, _) = talk.end().await;
    let order: Vec<u64> = spoken.results.iter().map(|r| r.utterance_index).collect();
    assert_eq!(order, [0, 2]);
    assert_eq!(spoken.results[1].tts_audio, [1, 2, 3]);
    assert_eq!(spoken.pcm16(), (vec![0x0707], 1));
    assert_eq!(
        spoken.missing.into_iter().collect::<Vec<_>>(),
        [(1, "silence_detected".to_owned())]
    );
    assert!(!spoken.timed_out);
}

#[tokio::test]
async fn waiting_ends_by_time_and_says_what_is_open() {
    let short = |o: &mut SpeakOptions| o.result_timeout = Duration::from_millis(100);
    let mut announced = talk(wav::sine_speech(0.1), AT_ONCE, short).await;
    announced.ready().await;
    announced.hear_all_chunks().await;
    announced.dispatched(4).await;
    let (spoken, _) = announced.end().await;
    assert!(spoken.timed_out);
    assert_eq!(spoken.unanswered.into_iter().collect::<Vec<_>>(), [4]);

    let mut nothing = talk(wav::sine_speech(0.1), AT_ONCE, short).await;
    nothing.ready().await;
    nothing.hear_all_chunks().await;
    let (spoken, _) = nothing.end().await;
    assert!(spoken.timed_out && spoken.unanswered.is_empty() && spoken.results.is_empty());
}

#[tokio::test]
async fn answers_held_back_until_the_goodbye_are_still_taken() {
    let short = |o: &mut SpeakOptions| o.result_timeout = Duration::from_millis(50);
    let mut talk = talk(wav::sine_speech(0.1), AT_ONCE, short).await;
    talk.ready().await;
    talk.hear_all_chunks().await;
    talk.dispatched(0).await;
    talk.script.expect("session_close").await;
    talk.result(0, &[1, 1], "pcm16").await;
    talk.script.say(json!({"type": "session_close_ack", "session_id": "s-1"})).await;
    let (spoken, _) = talk.speaker.await.unwrap();
    let spoken = spoken.unwrap();
    assert_eq!(spoken.results.len(), 1);
    assert!(spoken.unanswered.is_empty());
}

#[tokio::test]
async fn one_message_carries_a_whole_recording() {
    let pcm = wav::sine_speech(0.5);
    let mut talk = talk(pcm.clone(), Mode::Utterance, |o| o.settle = SOON).await;
    talk.ready().await;
    let utterance = talk.script.expect("utterance").await;
    for (field, value) in [
        ("session_id", json!("s-1")),
        ("utterance_index", json!(0)),
        ("manual_cut", json!(true)),
        ("src_lang", json!("en")),
        ("tgt_lang", json!("es")),
        ("audio_format", json!("pcm16")),
        ("sample_rate", json!(16_000)),
    ] {
        assert_eq!(utterance[field], value, "{field}");
    }
    assert_eq!(wav::pcm16_samples(&unbase64(&utterance["audio"])), pcm);
    talk.result(0, &[], "pcm16").await;
    let (spoken, _) = talk.end().await;
    assert_eq!(spoken.pcm16(), (vec![], 0));
    assert!(!spoken.timed_out);
}

#[tokio::test]
async fn failures_close_an_utterance_too() {
    let mut whole = talk(wav::sine_speech(0.1), Mode::Utterance, |_| {}).await;
    whole.ready().await;
    whole.script.expect("utterance").await;
    whole
        .script
        .say(json!({"type": "error", "code": "INTERNAL_ERROR", "message": "no node"}))
        .await;
    let (spoken, _) = whole.end().await;
    assert_eq!(spoken.missing.get(&0).map(String::as_str), Some("INTERNAL_ERROR"));

    let mut chunks = talk(wav::sine_speech(0.1), AT_ONCE, |_| {}).await;
    chunks.ready().await;
    chunks.hear_all_chunks().await;
    let failed = json!({
        "type": "ui_event", "session_id": "s-1", "job_id": "job-0", "utterance_index": 0,
        "event": "ERROR", "status": "error", "error_code": "JOB_TIMEOUT", "hint": "…",
    });
    chunks.script.say(failed).await;
    let (spoken, _) = chunks.end().await;
    assert_eq!(spoken.missing.get(&0).map(String::as_str), Some("JOB_TIMEOUT"));
    assert!(!spoken.timed_out);
}

#[tokio::test]
async fn a_refusal_and_a_lost_connection_are_errors() {
    let mut refused = talk(vec![0; 100], AT_ONCE, |_| {}).await;
    refused.script.say(json!({"type": "error", "code": "NO", "message": "go away"})).await;
    let (result, _) = refused.speaker.await.unwrap();
    assert!(matches!(result, Err(SpeakError::Refused { code, .. }) if code == "NO"));

    let mut lost = talk(vec![0; 100], AT_ONCE, |_| {}).await;
    lost.ready().await;
    lost.hear_all_chunks().await;
    lost.dispatched(0).await;
    lost.script.socket.close(None).await.unwrap();
    let (result, _) = tokio::time::timeout(SOON, lost.speaker).await.unwrap().unwrap();
    let error = result.unwrap_err();
    assert!(matches!(error, SpeakError::Closed { open: 1 }), "{error}");
}

#[tokio::test]
async fn audio_is_paced_and_held_back_on_request() {
    let realtime = Mode::Chunks { realtime: true };
    let mut talk = talk(wav::sine_speech(0.2), realtime, |o| o.chunk_ms = 20).await;
    talk.ready().await;
    talk.script.expect("audio_chunk").await;
    let started = Instant::now();
    let pause = json!({"type": "backpressure", "action": "PAUSE", "resume_after_ms": 120});
    talk.script.say(pause).await;
    let mut arrivals = vec![started];
    while talk.script.expect("audio_chunk").await["is_final"] == false {
        arrivals.push(Instant::now());
    }
    let longest = arrivals.windows(2).map(|w| w[1] - w[0]).max().unwrap();
    assert!(longest >= Duration::from_millis(100), "{longest:?}");
    // Nine more chunks of 20 ms after the pause, even if some caught up a little.
    assert!(started.elapsed() >= Duration::from_millis(240), "{:?}", started.elapsed());
    talk.dispatched(0).await;
    talk.result(0, &[0, 0], "pcm16").await;
    let (spoken, seen) = talk.end().await;
    assert_eq!(spoken.results.len(), 1);
    assert!(seen.contains(&SpeakEvent::Paused { pause: Duration::from_millis(120) }));
}

#[tokio::test]
async fn a_node_and_its_engine_can_be_shared_between_tasks() {
    fn shared<T: Send + Sync>(_: &T) {}
    shared(&Arc::new(echo(0)));
    let options = SpeakOptions::new("ws://127.0.0.1:1/", "en", "es");
    let error = speak(vec![], options, |_| {}).await.unwrap_err();
    assert!(matches!(error, SpeakError::Socket { .. }), "{error}");
}
