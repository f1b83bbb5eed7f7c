//! The speaker: what it sends, what it collects, and when it stops waiting.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use utterd::peer::speaker::{Mode, SpeakError, SpeakEvent, SpeakOptions, Spoken, speak};
use utterd::peer::{voice, wav};

use crate::script::{SOON, Script, base64, unbase64};

/// A speaker in the middle of its recording, and what it said to open its session.
pub(crate) struct Talk {
    pub(crate) listener: TcpListener,
    pub(crate) script: Script,
    pub(crate) init: Value,
    pub(crate) speaker: JoinHandle<(Result<Spoken, SpeakError>, Vec<SpeakEvent>)>,
}

pub(crate) async fn talk(
    pcm: Vec<i16>,
    mode: Mode,
    adjust: impl FnOnce(&mut SpeakOptions),
) -> Talk {
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
    Talk { listener, script, init, speaker }
}

pub(crate) const AT_ONCE: Mode = Mode::Chunks { realtime: false };

impl Talk {
    async fn ready(&mut self) {
        self.script.say(json!({"type": "session_init_ack", "session_id": "s-1"})).await;
    }

    pub(crate) async fn hear_all_chunks(&mut self) -> Vec<Value> {
        let mut chunks = Vec::new();
        while chunks.last().is_none_or(|chunk: &Value| chunk["is_final"] == false) {
            chunks.push(self.script.expect("audio_chunk").await);
        }
        chunks
    }

    pub(crate) async fn dispatched(&mut self, index: u64) {
        let event = json!({
            "type": "ui_event", "session_id": "s-1", "job_id": format!("job-{index}"),
            "utterance_index": index, "event": "DISPATCHED", "status": "ok", "trace_id": "t",
        });
        self.script.say(event).await;
    }

    pub(crate) async fn result(&mut self, index: u64, audio: &[u8], format: &str) {
        let result = json!({
            "type": "translation_result", "session_id": "s-1", "utterance_index": index,
            "job_id": format!("job-{index}"), "text_asr": format!("said {index}"),
            "text_translated": format!("dicho {index}"), "tts_audio": base64(audio),
            "tts_format": format, "group_id": "g", "trace_id": "t", "quality_score": 0.5,
        });
        self.script.say(result).await;
    }

    /// The speaker's goodbye, answered.
    pub(crate) async fn end(mut self) -> (Spoken, Vec<SpeakEvent>) {
        let close = self.script.expect("session_close").await;
        assert_eq!(close["session_id"], "s-1");
        self.script.say(json!({"type": "session_close_ack", "session_id": "s-1"})).await;
        let (spoken, seen) = tokio::time::timeout(SOON, self.speaker).await.unwrap().unwrap();
        (spoken.unwrap(), seen)
    }
}

#[tokio::test]
async fn a_recording_goes_out_in_chunks_and_comes_back_as_answers() {
    let pcm = voice::sine_speech(1.0);
    let mut talk = talk(pcm.clone(), AT_ONCE, |o| o.settle = Duration::from_millis(800)).await;
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
    // 1000 ms are three whole chunks of 256 ms, the rest, and the marker.
    assert_eq!(chunks.len(), 5);
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
    let answered = Instant::now();
    let (spoken, seen) = talk.end().await;
    // It was announced after the marker, so no other is likely to follow.
    assert!(answered.elapsed() < Duration::from_millis(600), "{:?}", answered.elapsed());
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
    let mut talk = talk(voice::sine_speech(1.0), AT_ONCE, |_| {}).await;
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
    let mut announced = talk(voice::sine_speech(0.1), AT_ONCE, short).await;
    announced.ready().await;
    announced.hear_all_chunks().await;
    announced.dispatched(4).await;
    let (spoken, _) = announced.end().await;
    assert!(spoken.timed_out);
    assert_eq!(spoken.unanswered.into_iter().collect::<Vec<_>>(), [4]);

    let mut nothing = talk(voice::sine_speech(0.1), AT_ONCE, short).await;
    nothing.ready().await;
    nothing.hear_all_chunks().await;
    let (spoken, _) = nothing.end().await;
    assert!(spoken.timed_out && spoken.unanswered.is_empty() && spoken.results.is_empty());
}

#[tokio::test]
async fn answers_held_back_until_the_goodbye_are_still_taken() {
    let short = |o: &mut SpeakOptions| o.result_timeout = Duration::from_millis(50);
    let mut talk = talk(voice::sine_speech(0.1), AT_ONCE, short).await;
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
    let pcm = voice::sine_speech(0.5);
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
    let mut whole = talk(voice::sine_speech(0.1), Mode::Utterance, |_| {}).await;
    whole.ready().await;
    whole.script.expect("utterance").await;
    whole
        .script
        .say(json!({"type": "error", "code": "INTERNAL_ERROR", "message": "no node"}))
        .await;
    let (spoken, _) = whole.end().await;
    assert_eq!(spoken.missing.get(&0).map(String::as_str), Some("INTERNAL_ERROR"));

    let mut chunks = talk(voice::sine_speech(0.1), AT_ONCE, |_| {}).await;
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

    let options = SpeakOptions::new("ws://127.0.0.1:1/", "en", "es");
    let error = speak(vec![], options, |_| {}).await.unwrap_err();
    assert!(matches!(error, SpeakError::Socket { .. }), "{error}");

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
    let mut talk = talk(voice::sine_speech(0.2), realtime, |o| o.chunk_ms = 20).await;
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
