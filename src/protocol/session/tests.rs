use super::*;

fn decoded(json: &str) -> Result<Request, DecodeError> {
    decode(&Bytes::copy_from_slice(json.as_bytes()))
}

#[test]
fn utterance_audio_is_a_slice_of_the_frame() {
    let frame = Bytes::from_static(
        br#"{"type":"utterance","session_id":"s-1","utterance_index":0.0,
        "manual_cut":true,"src_lang":"zh","tgt_lang":"en","dialect":null,"audio":"QUJDRA==",
        "audio_format":"opus","sample_rate":16000,"new":[1]}"#,
    );
    let Ok(Request::Utterance(u)) = decode(&frame) else { panic!("not an utterance") };
    assert_eq!((&u.audio[..], u.head.utterance_index), (&b"QUJDRA=="[..], 0));
    let inside = frame.as_ptr_range().contains(&u.audio.as_ptr());
    assert!(inside, "the audio was copied");
}

#[test]
fn chunk_payload_may_be_absent_null_empty_or_escaped() {
    for (payload, len) in [
        ("", 0),
        (r#","payload":null"#, 0),
        (r#","payload":"""#, 0),
        (r#","payload":"QU\u004aD""#, 3),
    ] {
        let json = format!(
            r#"{{"type":"audio_chunk","session_id":"s-1","seq":3,"is_final":true{payload}}}"#
        );
        let Ok(Request::AudioChunk(c)) = decoded(&json) else { panic!("{json}") };
        assert_eq!((c.audio.len(), c.seq, c.is_final), (len, 3, true));
    }
}

#[test]
fn faults_are_typed() {
    let fault = |json: &str| decoded(json).map(|_| ()).unwrap_err().kind();
    assert_eq!(fault("{"), "malformed");
    assert_eq!(fault("[]"), "malformed");
    assert_eq!(fault(r#"{"type":"dance"}"#), "unknown_type");
    assert_eq!(fault(r#"{"type":"session_init"}"#), "malformed");
    assert_eq!(
        fault(r#"{"type":"audio_chunk","session_id":"s","seq":0,"is_final":false,"payload":"@"}"#),
        "audio"
    );
    let pcm = r#"{"type":"utterance","session_id":"s","utterance_index":0,
        "manual_cut":true,"src_lang":"zh","tgt_lang":"en","audio":"QUJD",
        "audio_format":"pcm16","sample_rate":16000}"#;
    assert_eq!(fault(pcm), "audio");
    let long = format!(
        r#"{{"type":"session_init","client_version":"{}","platform":"web","src_lang":"zh",
        "tgt_lang":"en"}}"#,
        "x".repeat(200)
    );
    assert_eq!(fault(&long), "too_long");
}

#[test]
fn results_keep_absent_fields_out_and_audio_untouched() {
    let result = TranslationResult {
        session_id: SessionId(1),
        utterance_index: 2,
        job_id: JobId(3),
        text_asr: "\u{4f60}\u{597d}",
        text_translated: "hello",
        tts_format: "opus",
        extra: None,
        trace_id: "t",
        group_id: None,
        part_index: None,
        service_timings: None,
        network_timings: None,
        scheduler_sent_at_ms: 4,
        asr_quality_level: None,
        reason_codes: None,
        quality_score: None,
        rerun_count: None,
        segments_meta: None,
        late: false,
        room: None,
    };
    let json: serde_json::Value = serde_json::from_slice(&result.encode(b"QUJD")).unwrap();
    assert_eq!(json["tts_audio"], "QUJD");
    assert_eq!(json["type"], "translation_result");
    assert_eq!(json.as_object().unwrap().len(), 10);
}
