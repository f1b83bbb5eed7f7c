//! The node agent: registration, jobs, cancellation, failures, and coming back.

use std::time::Duration;

use futures_util::SinkExt;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;
use utterd::peer::command::{CommandConfig, CommandEngine, CommandLines};
use utterd::peer::engine::{EchoEngine, Engine};
use utterd::peer::node::{self, NodeError, NodeEvent, NodeOptions};

use crate::script::{SOON, Script, base64, unbase64};

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

async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    for _ in 0..1_000 {
        if let Some(seen) = look() {
            return seen;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

fn pids_in(file: &std::path::Path) -> Vec<String> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.split_inclusive('\n').filter_map(|l| l.strip_suffix('\n')).map(str::to_owned).collect()
}

/// Ended, or a zombie that nobody has collected yet.
fn is_dead(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.map_or(true, |stat| stat.rsplit(')').next().unwrap_or("").trim().starts_with('Z'))
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
    let pids = tempfile::tempdir().unwrap();
    let file = pids.path().join("pids");
    let script = format!("echo $$ >> {}; sleep 60", file.display());
    let mut stage = stage(command(&script), |_| {}).await;
    stage.script.register().await;
    for (index, job) in (0..).zip(["runs", "waits", "last"]) {
        stage.script.say(assign(job, index)).await;
    }
    stage.script.expect("job_ack").await;
    assert_eq!(stage.script.expect("job_started").await["job_id"], "runs");
    stage.script.expect("job_ack").await;
    stage.script.expect("job_ack").await;
    let first = until("the first runs", || Some(pids_in(&file)).filter(|p| !p.is_empty())).await;
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
    until("the cancelled one is dead", || is_dead(&first[0]).then_some(())).await;
    let both = until("the last runs", || Some(pids_in(&file)).filter(|p| p.len() == 2)).await;
    assert!(!is_dead(&both[1]));
    stage.end().await;
    until("nothing outlives the node", || is_dead(&both[1]).then_some(())).await;
}

#[tokio::test]
async fn an_attempt_told_twice_is_done_once_and_a_newer_one_replaces_it() {
    let mut stage = stage(echo(40), |_| {}).await;
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
async fn partial_texts_keep_their_place_however_quick_the_engine_is() {
    let mut stage = stage(echo(0), |_| {}).await;
    stage.script.register().await;
    for index in 0..40 {
        let mut job = assign(&format!("job-{index}"), index);
        job["enable_streaming_asr"] = json!(true);
        stage.script.say(job).await;
        for kind in ["job_ack", "job_started", "asr_partial", "job_result"] {
            assert_eq!(stage.script.expect(kind).await["job_id"], format!("job-{index}"));
        }
    }
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
        stage.script.say(assign("too early", 9)).await;
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

/// The connection breaks without a word, and the node is back.
async fn comes_again(stage: &mut Stage) {
    stage.script.socket.get_mut().shutdown().await.unwrap();
    stage.script = Script::accept(&stage.listener).await;
}

fn attempts(jobs: &[&str]) -> Value {
    jobs.iter().map(|job| json!({"job_id": job, "attempt_id": 3})).collect()
}

fn wants(job: &str, action: &str) -> Value {
    json!({"job_id": job, "attempt_id": 3, "action": action})
}

async fn taken(stage: &mut Stage, job: &str) {
    let ack = json!({"type": "result_ack", "job_id": job, "attempt_id": 3, "status": "committed"});
    stage.script.say(ack).await;
}

#[tokio::test]
async fn a_node_that_is_acknowledged_says_what_it_works_on_and_does_as_it_is_told() {
    let mut stage = stage(echo(400), |o| o.capacity = 3).await;
    let register = stage.script.welcome(json!([])).await;
    assert_eq!(register["extensions"], json!(["result_ack"]));
    assert_eq!((&register["inflight"], &register["unacked"]), (&json!([]), &json!([])));
    let boot_id = register["boot_id"].clone();
    assert_eq!(boot_id.as_str().map(str::len), Some(32));
    for (index, job) in (0..).zip(["a", "b", "c"]) {
        stage.script.say(assign(job, index)).await;
        stage.script.expect("job_ack").await;
        stage.script.expect("job_started").await;
    }
    comes_again(&mut stage).await;
    // What is of another attempt is not touched.
    let other = json!({"job_id": "c", "attempt_id": 4, "action": "cancel"});
    let jobs = json!([wants("a", "keep"), wants("b", "cancel"), other]);
    let register = stage.script.welcome(jobs).await;
    assert_eq!(register["boot_id"], boot_id, "it is the same run");
    let mut inflight = register["inflight"].as_array().unwrap().clone();
    inflight.sort_by_key(|a| a["job_id"].to_string());
    assert_eq!(Value::from(inflight), attempts(&["a", "b", "c"]));
    let mut done = Vec::new();
    for _ in 0..2 {
        done.push(stage.script.expect("job_result").await["job_id"].clone());
    }
    done.sort_by_key(Value::to_string);
    assert_eq!(done, ["a", "c"]);
    stage.script.assert_quiet().await;
    stage.end().await;
}

#[tokio::test]
async fn a_result_is_kept_until_it_is_acknowledged() {
    let mut stage = stage(echo(0), |_| {}).await;
    stage.script.welcome(json!([])).await;
    for (index, job) in (0..).zip(["a", "b"]) {
        stage.script.say(assign(job, index)).await;
        stage.script.expect("job_ack").await;
        stage.script.expect("job_started").await;
        stage.script.expect("job_result").await;
    }
    taken(&mut stage, "b").await;
    comes_again(&mut stage).await;
    let register = stage.script.welcome(json!([wants("a", "send")])).await;
    assert_eq!(register["unacked"], attempts(&["a"]));
    let again = stage.script.expect("job_result").await;
    assert_eq!((&again["job_id"], &again["attempt_id"]), (&json!("a"), &json!(3)));
    assert_eq!(unbase64(&again["tts_audio"]), [1, 2, 3, 4].repeat(8_000));
    // Told twice it is still done.
    stage.script.say(assign("a", 0)).await;
    stage.script.assert_quiet().await;
    comes_again(&mut stage).await;
    let register = stage.script.welcome(json!([wants("a", "keep")])).await;
    assert_eq!(register["unacked"], attempts(&["a"]), "sent is not taken");
    stage.script.assert_quiet().await;
    comes_again(&mut stage).await;
    let register = stage.script.welcome(json!([wants("a", "cancel")])).await;
    assert_eq!(register["unacked"], attempts(&["a"]));
    stage.script.assert_quiet().await;
    comes_again(&mut stage).await;
    assert_eq!(stage.script.welcome(json!([])).await["unacked"], json!([]));
    stage.end().await;
}

#[tokio::test]
async fn work_goes_on_without_a_connection() {
    let mut stage = stage(echo(150), |_| {}).await;
    stage.script.welcome(json!([])).await;
    for (index, job) in (0..).zip(["a", "b"]) {
        stage.script.say(assign(job, index)).await;
    }
    stage.script.expect("job_ack").await;
    stage.script.expect("job_started").await;
    stage.script.expect("job_ack").await;
    stage.script.socket.get_mut().shutdown().await.unwrap();
    // The second is begun, and done, though nobody can be told.
    let mut done = Vec::new();
    while done.len() < 2 {
        let event = tokio::time::timeout(SOON, stage.events.recv()).await.unwrap().unwrap();
        if let NodeEvent::Finished { job_id, failure: None, .. } = event {
            done.push(job_id);
        }
    }
    stage.script = Script::accept(&stage.listener).await;
    let jobs = json!([wants("a", "send"), wants("b", "keep")]);
    let register = stage.script.welcome(jobs).await;
    assert_eq!(register["unacked"], attempts(&["a", "b"]));
    assert_eq!(register["inflight"], json!([]));
    // One that was never sent is sent, whatever is thought of it.
    for job in ["a", "b"] {
        assert_eq!(stage.script.expect("job_result").await["job_id"], job);
    }
    stage.end().await;
}

#[tokio::test]
async fn a_result_that_nobody_acknowledges_is_sent_again() {
    let mut stage = stage(echo(0), |o| o.heartbeat = Duration::from_millis(30)).await;
    stage.script.welcome(json!([])).await;
    stage.script.say(assign("a", 0)).await;
    stage.script.expect("job_ack").await;
    stage.script.expect("job_started").await;
    for _ in 0..3 {
        assert_eq!(stage.script.expect("job_result").await["job_id"], "a");
    }
    taken(&mut stage, "a").await;
    stage.script.expect("node_heartbeat").await;
    stage.script.assert_quiet().await;
    stage.end().await;
}

#[tokio::test]
async fn a_node_with_too_many_results_on_its_hands_takes_no_more_work() {
    let mut stage = stage(echo(0), |_| {}).await;
    stage.script.welcome(json!([])).await;
    let small = |index: u64| {
        let mut job = assign(&format!("job-{index}"), index);
        job["audio"] = json!(base64(&[1, 2]));
        job
    };
    for index in 0..1_024 {
        stage.script.say(small(index)).await;
        for kind in ["job_ack", "job_started", "job_result"] {
            stage.script.expect(kind).await;
        }
    }
    stage.script.say(small(2_000)).await;
    stage.script.expect("job_ack").await;
    assert_eq!(stage.script.expect("job_result").await["error"]["code"], "NODE_OVERLOADED");
    taken(&mut stage, "job-7").await;
    stage.script.say(small(2_001)).await;
    for kind in ["job_ack", "job_started", "job_result"] {
        assert_eq!(stage.script.expect(kind).await["job_id"], "job-2001");
    }
    stage.end().await;
}

#[tokio::test]
async fn work_for_a_scheduler_that_acknowledged_is_dropped_for_one_that_does_not() {
    let mut stage = stage(echo(200), |_| {}).await;
    stage.script.welcome(json!([])).await;
    stage.script.say(assign("a", 0)).await;
    stage.script.expect("job_ack").await;
    stage.script.expect("job_started").await;
    comes_again(&mut stage).await;
    assert_eq!(stage.script.register().await["inflight"], attempts(&["a"]));
    comes_again(&mut stage).await;
    let register = stage.script.register().await;
    assert_eq!((&register["inflight"], &register["unacked"]), (&json!([]), &json!([])));
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
