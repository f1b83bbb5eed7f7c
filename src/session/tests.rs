//! Sessions without sockets: what is said when, and what ends.

use super::*;
use crate::protocol::node::Message;
use crate::protocol::session::decode;

const INIT: &str = r#"{"type":"session_init","client_version":"1","platform":"t","src_lang":"zh",
    "tgt_lang":"en","audio_format":"opus","extensions":["#;

fn session(extensions: &str) -> Session {
    let frame = Bytes::from(format!("{INIT}{extensions}]}}"));
    let Ok(Request::Init(init)) = decode(&frame) else { panic!("a good session_init") };
    let profile = Profile::new(*init, "trace".into()).unwrap();
    let config = (config::Session::default(), config::Segmenter::default());
    Session::new(SessionId(7), profile, 1, false, config)
}

const ALL: &str = r#""resume","accepted","audio_ack""#;

fn at(ms: u64) -> Now {
    Now { us: ms * 1_000, unix_ms: ms }
}

fn past(open: &[(u64, u128)], turn: Option<u128>, owed: usize) -> Past {
    Past {
        open: open.iter().map(|(index, job)| (*index, JobId(*job))).collect(),
        next_index: open.iter().map(|(index, _)| index + 1).max().unwrap_or(0),
        first_seq: 1,
        owed: vec![10; owed],
        turn: turn.map(TurnId),
        ..Past::default()
    }
}

fn refusal() -> Refusal {
    let why = "full".to_owned();
    Refusal { code: ErrorCode::Overloaded, why, retry_after_ms: 1_000, stored: true }
}

/// Frames sent with the effects, in order.
fn sent(effects: &[Effect]) -> Vec<String> {
    let text = |e: &Effect| match e {
        Effect::Send(frame, _) | Effect::Prove(frame, _) | Effect::Deliver { frame, .. } => {
            let value: serde_json::Value = serde_json::from_slice(frame).unwrap();
            let reason = value["reason"].as_str().unwrap_or_default();
            Some(format!("{} {reason}", value["type"].as_str().unwrap()).trim().to_owned())
        }
        _ => None,
    };
    effects.iter().filter_map(text).collect()
}

fn chunk(seq: u64, is_final: bool, audio: &[u8]) -> Input {
    let session_id = SessionId(7).to_string();
    let (audio, client_timestamp_ms) = (Bytes::copy_from_slice(audio), None);
    Input::Request(Request::AudioChunk(crate::protocol::session::AudioChunk {
        session_id,
        seq,
        is_final,
        audio,
        client_timestamp_ms,
    }))
}

/// A packet in which something is said.
fn packet() -> Vec<u8> {
    [&[20, 0][..], &[0x48; 20]].concat()
}

#[test]
fn a_restored_session_without_a_way_back_ends_when_nothing_is_left_to_do() {
    for (open, ends) in [(&[][..], true), (&[(0, 1)][..], false)] {
        let (mut session, mut effects) = (session(""), Effects::new());
        session.restore(past(open, None, 0), at(1), &mut effects);
        assert_eq!(effects.iter().any(|e| matches!(e, Effect::Ended)), ends);
    }
    let (mut session, mut effects) = (session(ALL), Effects::new());
    session.restore(past(&[], None, 0), at(1), &mut effects);
    assert!(!effects.iter().any(|e| matches!(e, Effect::Ended)), "its client may come");
}

#[test]
fn a_turn_whose_rest_is_lost_ends_after_a_pause_unless_the_client_speaks_on() {
    let ended = |e: &Effect| matches!(e, Effect::EndTurn(TurnId(9)));
    for speaks in [false, true] {
        let (mut session, mut effects) = (session(ALL), Effects::new());
        session.restore(past(&[(0, 1)], Some(9), 0), at(1), &mut effects);
        assert!(session.attach(0, at(1_000), &mut effects));
        assert_eq!(session.next_tick(), Some(4_000_000), "the pause");
        if speaks {
            session.apply(chunk(1, false, &packet()), at(2_000), &mut effects);
        }
        session.apply(Input::Tick, at(4_000), &mut effects);
        assert_eq!(effects.iter().any(ended), !speaks);
    }
    let (mut session, mut effects) = (session(ALL), Effects::new());
    session.restore(past(&[(0, 1)], Some(9), 0), at(1), &mut effects);
    session.attach(0, at(1_000), &mut effects);
    session.apply(chunk(1, true, &[]), at(1_100), &mut effects);
    assert!(effects.iter().any(ended), "the client says that it has ended");
}

#[test]
fn a_refusal_waits_for_the_results_that_are_read_back() {
    let (mut session, mut effects) = (session(ALL), Effects::new());
    session.restore(past(&[], None, 1), at(1), &mut effects);
    session.attach(0, at(2), &mut effects);
    effects.clear();
    session.refused(5, refusal(), at(3), &mut effects);
    assert_eq!(sent(&effects), [""; 0]);
    let owed = Bytes::from_static(b"{\"type\":\"translation_result\"}");
    let frames = vec![(1, JobId(1), owed)];
    session.apply(Input::Replayed { after: 0, frames }, at(4), &mut effects);
    assert_eq!(sent(&effects), ["translation_result", "missing_result overloaded"]);
}

#[test]
fn chunks_of_a_refused_utterance_are_safe_when_that_is_kept() {
    let (mut session, mut effects) = (session(ALL), Effects::new());
    session.apply(chunk(1, true, &packet()), at(1), &mut effects);
    session.apply(Input::Lost, at(2), &mut effects);
    effects.clear();
    session.apply(Input::Tick, at(500), &mut effects);
    assert!(effects.iter().any(|e| matches!(e, Effect::Submit(_))), "the hangover is over");
    session.refused(0, refusal(), at(500), &mut effects);
    let kept = effects.iter().find_map(|e| match e {
        Effect::Refuse(refused) => Some((refused.job, refused.chunks.through)),
        _ => None,
    });
    let (job, through) = kept.unwrap();
    assert_eq!(through, 1, "what it covers is committed with it");
    session.attach(0, at(900), &mut effects);
    assert_eq!(sent(&effects), ["session_resume_ack"], "it is not on disk");
    effects.clear();
    session.apply(Input::News(News::Durable { job, seq: Some(1) }), at(901), &mut effects);
    assert_eq!(sent(&effects), ["audio_ack", "missing_result overloaded"]);
    assert!(effects.iter().any(|e| matches!(e, Effect::Deliver { seq: 1, .. })));
}

#[test]
fn an_utterance_that_is_taken_after_all_is_not_told_to_be_refused() {
    let (mut session, mut effects) = (session(ALL), Effects::new());
    session.submitted(0, JobId(1));
    session.refused(1, refusal(), at(1), &mut effects);
    session.apply(Input::Lost, at(2), &mut effects);
    session.refused(2, refusal(), at(3), &mut effects);
    session.submitted(1, JobId(2));
    session.submitted(2, JobId(3));
    effects.clear();
    session.attach(0, at(4), &mut effects);
    assert_eq!(sent(&effects), ["session_resume_ack"]);
    assert_eq!(session.open_jobs(), 3);
}

#[test]
fn a_refusal_that_is_not_kept_is_said_until_the_client_proves_to_have_heard_it() {
    let (mut session, mut effects) = (session(ALL), Effects::new());
    session.apply(chunk(1, true, &packet()), at(1), &mut effects);
    session.apply(Input::Tick, at(500), &mut effects);
    let proof = |effects: &[Effect]| {
        let number = |e: &Effect| if let Effect::Prove(_, n) = e { Some(*n) } else { None };
        effects.iter().find_map(number)
    };
    effects.clear();
    session.refused(0, Refusal { stored: false, ..refusal() }, at(500), &mut effects);
    let first = proof(&effects).expect("it asks for a proof");
    session.apply(Input::Lost, at(501), &mut effects);
    assert!(!sent(&effects).contains(&"audio_ack".to_owned()), "nobody has heard it");
    effects.clear();
    session.attach(0, at(600), &mut effects);
    assert_eq!(sent(&effects), ["session_resume_ack", "missing_result overloaded"]);
    let second = proof(&effects).expect("it asks again");
    effects.clear();
    session.apply(Input::Ponged(first), at(601), &mut effects);
    assert_eq!(sent(&effects), [""; 0], "an older pong proves nothing of this connection");
    session.apply(Input::Ponged(second), at(602), &mut effects);
    assert_eq!(sent(&effects), ["audio_ack"]);
}

#[test]
fn what_is_no_result_is_told_to_a_missing_session_only_if_its_client_may_come_back() {
    let nothing = Answer::Nothing("merged");
    let frame =
        |answer, comes_back| unheard(answer, JobId(3), (SessionId(7), 4), "trace", comes_back, 99);
    assert_eq!(frame(&nothing, false), None);
    let told = frame(&nothing, true).expect("a frame");
    let told: serde_json::Value = serde_json::from_slice(&told).unwrap();
    assert_eq!((&told["type"], &told["reason"]), (&"missing_result".into(), &"merged".into()));
    assert_eq!(told["utterance_index"], 4);
    let job = JobId(3);
    let said =
        format!(r#"{{"type":"job_result","job_id":"{job}","success":true,"text_asr":"hello"}}"#);
    let Ok(Message::JobResult(result)) = crate::protocol::node::decode(&said.into()) else {
        panic!("a good job_result")
    };
    let result = Answer::Result(result);
    for comes_back in [false, true] {
        let told = frame(&result, comes_back).expect("results are kept for whoever comes");
        let told: serde_json::Value = serde_json::from_slice(&told).unwrap();
        assert_eq!(
            (&told["type"], &told["text_asr"]),
            (&"translation_result".into(), &"hello".into())
        );
    }
}
