//! The speaker that loses its connection: it comes back, says what is missing and nothing twice.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use utterd::peer::speaker::{Mode, SpeakError, SpeakEvent, SpeakOptions};
use utterd::peer::{voice, wav};

use crate::script::{SOON, Script, unbase64};
use crate::speaker::{AT_ONCE, Talk, talk};

/// Long enough to say something after the last chunk, for a fourth of it counts then.
const SETTLE: Duration = Duration::from_millis(1_600);
const SECRET: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

impl Talk {
    /// A session that is kept for this long.
    async fn kept(&mut self, window_ms: u64) {
        let ack = json!({"type": "session_init_ack", "session_id": "s-1", "epoch": 3,
            "resume_secret": SECRET, "resume_window_ms": window_ms,
            "extensions": ["resume", "accepted", "audio_ack", "go_away"]});
        self.script.say(ack).await;
    }

    /// The speaker on a new connection; what it says to come back.
    async fn back(&mut self) -> Value {
        self.script = Script::accept(&self.listener).await;
        self.script.expect("session_resume").await
    }

    async fn recovered(&mut self, from_seq: u64, rest: Value) {
        let mut ack = json!({"type": "session_resume_ack", "session_id": "s-1",
            "recovered": true, "epoch": 3, "from_seq": from_seq, "utterances": []});
        for (key, value) in rest.as_object().unwrap() {
            ack[key] = value.clone();
        }
        self.script.say(ack).await;
    }

    async fn numbered(&mut self, seq: u64, index: u64) {
        let result = json!({"type": "translation_result", "session_id": "s-1",
            "utterance_index": index, "job_id": format!("job-{index}"), "epoch": 3, "seq": seq,
            "text_asr": "said", "text_translated": "dicho", "tts_audio": "", "trace_id": "t"});
        self.script.say(result).await;
    }

    async fn chunk(&mut self, seq: u64) -> Value {
        let chunk = self.script.expect("audio_chunk").await;
        assert_eq!(chunk["seq"], seq, "{chunk}");
        chunk
    }

    async fn acks(&mut self, seq: u64) {
        let ack = self.script.expect("ack").await;
        assert_eq!((&ack["session_id"], &ack["seq"]), (&json!("s-1"), &json!(seq)));
    }

    async fn fails(self) -> SpeakError {
        let (result, _) = tokio::time::timeout(SOON, self.speaker).await.unwrap().unwrap();
        result.unwrap_err()
    }
}

fn resumed(seen: &[SpeakEvent]) -> Vec<&SpeakEvent> {
    let told = |e: &&SpeakEvent| matches!(e, SpeakEvent::Lost { .. } | SpeakEvent::Resumed { .. });
    seen.iter().filter(told).collect()
}

#[tokio::test]
async fn a_lost_connection_is_made_again_and_only_the_missing_tail_is_said_again() {
    let pcm = voice::sine_speech(1.0);
    let mut talk = talk(pcm.clone(), AT_ONCE, |o| (o.chunk_ms, o.settle) = (100, SETTLE)).await;
    let offered = talk.init["extensions"].as_array().unwrap();
    assert!(["resume", "accepted", "audio_ack"].iter().all(|word| offered.contains(&json!(word))));
    talk.kept(60_000).await;
    let chunks = talk.hear_all_chunks().await;
    assert_eq!((&chunks[0]["seq"], chunks.len()), (&json!(1), 11));
    talk.script.say(json!({"type": "audio_ack", "session_id": "s-1", "through": 4})).await;
    talk.numbered(1, 0).await;
    talk.acks(1).await;
    talk.script.socket.close(None).await.unwrap();

    let resume = talk.back().await;
    for (field, value) in [
        ("session_id", json!("s-1")),
        ("epoch", json!(3)),
        ("resume_secret", json!(SECRET)),
        ("last_seq", json!(1)),
    ] {
        assert_eq!(resume[field], value, "{field}");
    }
    talk.recovered(2, json!({"chunks_through": 7})).await;
    let again = talk.hear_all_chunks().await;
    assert_eq!((&again[0]["seq"], again.len()), (&json!(8), 4));
    let audio = |chunks: &[Value]| -> Vec<u8> {
        chunks.iter().flat_map(|chunk| unbase64(&chunk["payload"])).collect()
    };
    let whole = [audio(&chunks[..7]), audio(&again)].concat();
    assert_eq!(wav::pcm16_samples(&whole), pcm);

    // What comes again counts once, and is acknowledged with what is new.
    talk.numbered(1, 0).await;
    talk.numbered(2, 1).await;
    talk.acks(2).await;
    let (spoken, seen) = talk.end().await;
    let order: Vec<u64> = spoken.results.iter().map(|r| r.utterance_index).collect();
    assert_eq!(order, [0, 1]);
    let sent = seen.iter().filter(|e| **e == SpeakEvent::Sent).count();
    assert_eq!(sent, 1);
    assert!(
        matches!(
            resumed(&seen)[..],
            [
                SpeakEvent::Lost { .. },
                SpeakEvent::Resumed { recovered: true, from_result: 2, from_chunk: Some(8) }
            ]
        ),
        "{seen:?}"
    );
}

#[tokio::test]
async fn a_stream_goes_on_in_the_middle_at_its_own_pace() {
    let realtime = Mode::Chunks { realtime: true };
    let drop = |o: &mut SpeakOptions| {
        o.chunk_ms = 50;
        o.settle = SETTLE;
        o.drop_after = Some(Duration::from_millis(120));
    };
    let mut talk = talk(voice::sine_speech(0.5), realtime, drop).await;
    talk.kept(60_000).await;
    for seq in 1..=3 {
        talk.chunk(seq).await;
    }
    // It tears its own connection, once.
    assert!(talk.script.hear().await.is_none());
    talk.back().await;
    talk.recovered(1, json!({"chunks_through": 1})).await;
    let back = Instant::now();
    talk.chunk(2).await;
    talk.chunk(3).await;
    assert!(back.elapsed() < Duration::from_millis(45), "{:?}", back.elapsed());
    for seq in 4..=11 {
        talk.chunk(seq).await;
    }
    assert!(back.elapsed() > Duration::from_millis(300), "{:?}", back.elapsed());
    talk.numbered(1, 0).await;
    talk.acks(1).await;
    let (spoken, seen) = talk.end().await;
    assert!(!spoken.timed_out);
    assert_eq!(resumed(&seen).len(), 2);
}

#[tokio::test]
async fn an_unfinished_utterance_named_on_the_way_back_is_awaited() {
    let mut talk = talk(voice::sine_speech(0.1), AT_ONCE, |o| o.settle = SETTLE).await;
    talk.kept(60_000).await;
    talk.hear_all_chunks().await;
    talk.numbered(1, 0).await;
    talk.acks(1).await;
    talk.script.socket.close(None).await.unwrap();
    talk.back().await;
    let open = json!([{"utterance_index": 1, "job_id": "job-1"}]);
    talk.recovered(2, json!({"chunks_through": 2, "utterances": open})).await;
    talk.script.assert_quiet().await;
    talk.script.assert_quiet().await;
    talk.numbered(2, 1).await;
    talk.acks(2).await;
    let (spoken, _) = talk.end().await;
    assert_eq!(spoken.results.len(), 2);
}

#[tokio::test]
async fn a_recording_goes_again_under_its_key_unless_it_was_accepted() {
    for accepted in [false, true] {
        let mut talk = talk(voice::sine_speech(0.2), Mode::Utterance, |_| {}).await;
        talk.kept(60_000).await;
        let first = talk.script.expect("utterance").await;
        assert!(first["idempotency_key"].is_string());
        if accepted {
            let word = json!({"type": "utterance_accepted", "session_id": "s-1",
                "utterance_index": 0, "job_id": "job-0"});
            talk.script.say(word).await;
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        talk.script.socket.close(None).await.unwrap();
        talk.back().await;
        talk.recovered(1, json!({})).await;
        if accepted {
            talk.script.assert_quiet().await;
        } else {
            assert_eq!(talk.script.expect("utterance").await, first);
        }
        talk.numbered(1, 0).await;
        talk.acks(1).await;
        let (spoken, _) = talk.end().await;
        assert_eq!(spoken.results.len(), 1);
    }
}

#[tokio::test]
async fn it_tries_again_while_the_scheduler_is_not_ready_and_says_what_is_gone() {
    let mut talk = talk(voice::sine_speech(0.1), AT_ONCE, |o| o.settle = SETTLE).await;
    talk.kept(60_000).await;
    talk.hear_all_chunks().await;
    talk.script.socket.close(None).await.unwrap();
    talk.back().await;
    let later = json!({"type": "error", "code": "OVERLOADED", "message": "", "retryable": true});
    talk.script.say(later).await;
    talk.back().await;
    let gap = json!({"recovered": false, "reason": "gap", "chunks_through": 2});
    talk.recovered(4, gap).await;
    talk.numbered(4, 3).await;
    talk.acks(4).await;
    let (spoken, seen) = talk.end().await;
    assert_eq!(spoken.results.len(), 1);
    let gap = SpeakEvent::Resumed { recovered: false, from_result: 4, from_chunk: Some(3) };
    assert!(seen.contains(&gap), "{seen:?}");
}

#[tokio::test]
async fn a_session_of_which_nothing_was_kept_begins_anew() {
    let mut talk = talk(voice::sine_speech(0.1), AT_ONCE, |o| o.settle = SETTLE).await;
    talk.kept(60_000).await;
    let first = talk.hear_all_chunks().await;
    talk.dispatched(0).await;
    talk.script.socket.close(None).await.unwrap();
    talk.back().await;
    talk.script.say(unknown_session()).await;
    talk.script.expect("session_init").await;
    talk.kept(60_000).await;
    assert_eq!(talk.hear_all_chunks().await, first);
    talk.numbered(1, 0).await;
    talk.acks(1).await;
    let (spoken, seen) = talk.end().await;
    assert_eq!(spoken.results.len(), 1);
    let ready = seen.iter().filter(|e| matches!(e, SpeakEvent::Ready { .. })).count();
    assert_eq!((ready, resumed(&seen).len()), (2, 1));
}

fn unknown_session() -> Value {
    json!({"type": "session_resume_ack", "session_id": "s-1", "recovered": false,
        "reason": "unknown_session"})
}

#[tokio::test]
async fn it_gives_up_when_the_session_is_gone() {
    let mut unknown = talk(voice::sine_speech(0.1), AT_ONCE, |o| o.settle = SETTLE).await;
    unknown.kept(60_000).await;
    unknown.hear_all_chunks().await;
    unknown.script.say(json!({"type": "audio_ack", "session_id": "s-1", "through": 1})).await;
    tokio::time::sleep(Duration::from_millis(30)).await;
    unknown.script.socket.close(None).await.unwrap();
    unknown.back().await;
    unknown.script.say(unknown_session()).await;
    let error = unknown.fails().await;
    assert!(matches!(&error, SpeakError::Forgotten { reason } if reason == "unknown_session"));

    let mut late = talk(voice::sine_speech(0.1), AT_ONCE, |o| o.settle = SETTLE).await;
    late.kept(300).await;
    late.hear_all_chunks().await;
    let Talk { listener, mut script, speaker, init } = late;
    drop((listener, init));
    let began = Instant::now();
    script.socket.close(None).await.unwrap();
    drop(script);
    let (result, _) = tokio::time::timeout(SOON, speaker).await.unwrap().unwrap();
    let error = result.unwrap_err();
    assert!(matches!(error, SpeakError::Gone { .. }), "{error}");
    assert!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
}
