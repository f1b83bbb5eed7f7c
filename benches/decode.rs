//! What reading and writing a frame costs: both sockets, short frames and frames full of speech.
//!
//! `cargo bench --bench decode` measures; `cargo test --bench decode` only shows that it works.

mod world;

use std::hint::black_box;

use bytes::Bytes;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use serde_json::json;
use utterd::protocol::job::{Audio, JobSpec};
use utterd::protocol::node::{self, Message, encode_job_assign};
use utterd::protocol::session::{self, Request, TranslationResult};
use utterd::protocol::{JobId, SessionId};

use world::SECOND_BYTES;

const SESSION: SessionId = SessionId(0x00C0_FFEE);

fn sized(group: &mut BenchmarkGroup<'_, WallTime>, bytes: usize) {
    group.throughput(Throughput::Bytes(bytes as u64));
}

fn with_audio(head: &serde_json::Value, field: &str, audio: &str) -> Bytes {
    let head = head.to_string();
    Bytes::from(format!("{},\"{field}\":\"{audio}\"}}", &head[..head.len() - 1]))
}

/// An `utterance` of so many seconds.
fn utterance(seconds: usize) -> Bytes {
    let head = json!({"type": "utterance", "session_id": SESSION, "utterance_index": 7,
        "manual_cut": true, "src_lang": "zh", "tgt_lang": "en", "audio_format": "pcm16",
        "sample_rate": 16_000});
    with_audio(&head, "audio", &world::base64_of(seconds * SECOND_BYTES))
}

fn chunk() -> Bytes {
    let head = json!({"type": "audio_chunk", "session_id": SESSION, "seq": 12, "is_final": false,
        "client_timestamp_ms": 1_700_000_000_000_u64});
    with_audio(&head, "payload", &world::base64_of(SECOND_BYTES / 5))
}

fn init() -> Bytes {
    let init = json!({"type": "session_init", "client_version": "2.3.1", "platform": "android",
        "src_lang": "zh", "tgt_lang": "en", "dialect": null, "mode": "one_way",
        "features": {"emotion_detection": true}, "trace_id": "trace-2f1c8a90",
        "audio_format": "opus", "sample_rate": 16_000,
        "extensions": ["resume", "accepted", "audio_ack"]});
    Bytes::from(init.to_string())
}

fn session_frames(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode_session");
    let ack = json!({"type": "ack", "session_id": SESSION, "seq": 41});
    let frames = [
        ("utterance 43 KB", utterance(1)),
        ("utterance 430 KB", utterance(10)),
        ("audio_chunk 200 ms", chunk()),
        ("ack", Bytes::from(ack.to_string())),
        ("session_init", init()),
    ];
    for (name, frame) in frames {
        match session::decode(&frame) {
            Ok(Request::Utterance(said)) => {
                assert!(frame.as_ptr_range().contains(&said.audio.as_ptr()), "it was copied");
                let seconds = if name.ends_with("430 KB") { 10 } else { 1 };
                assert!(said.audio == world::base64_of(seconds * SECOND_BYTES), "{name}");
                assert_eq!(said.head.utterance_index, 7);
            }
            Ok(Request::AudioChunk(chunk)) => assert_eq!(chunk.audio.len(), SECOND_BYTES / 5),
            Ok(Request::Ack(ack)) => assert_eq!(ack.seq, 41),
            Ok(Request::Init(init)) => assert_eq!(init.extensions.map(|e| e.len()), Some(3)),
            other => panic!("{name}: {other:?}"),
        }
        sized(&mut group, frame.len());
        group.bench_function(name, |bencher| {
            bencher.iter(|| session::decode(black_box(&frame)));
        });
    }
    group.finish();
}

fn heartbeat() -> Bytes {
    let service = |id: &str, kind: &str| {
        json!({"service_id": id, "type": kind, "device": "gpu", "status": "running",
            "version": "1.4.0"})
    };
    let ready = |kind: &str| json!({"type": kind, "ready": true});
    let heartbeat = json!({"type": "node_heartbeat", "node_id": "node-0001",
        "timestamp": 1_700_000_000_000_u64,
        "resource_usage": {"cpu_percent": 31.5, "gpu_percent": 64.0, "gpu_mem_percent": 71.2,
            "mem_percent": 40.1, "running_jobs": 3},
        "installed_services": [service("faster-whisper-vad", "asr"), service("nmt-m2m100", "nmt"),
            service("piper-tts", "tts")],
        "capability_by_type": [ready("asr"), ready("nmt"), ready("tts")],
        "language_capabilities": {"asr_languages": world::LANGUAGES,
            "tts_languages": world::LANGUAGES, "semantic_languages": world::LANGUAGES}});
    Bytes::from(heartbeat.to_string())
}

fn node_frames(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode_node");
    let result = |voice: &str| Bytes::from(world::result_frame(JobId(9), 0x101, voice));
    let voice = world::base64_of(SECOND_BYTES);
    let frames = [
        ("job_result, no voice", result("")),
        ("job_result, 43 KB of voice", result(&voice)),
        ("node_heartbeat", heartbeat()),
    ];
    for (name, frame) in frames {
        match node::decode(&frame) {
            Ok(Message::JobResult(result)) => {
                let voiced = frame.len() > SECOND_BYTES;
                assert_eq!((result.job_id, result.attempt_id), (JobId(9), Some(0x101)));
                assert_eq!(&result.tts_audio[..], if voiced { voice.as_bytes() } else { b"" });
            }
            Ok(Message::Heartbeat(report)) => {
                assert_eq!((report.services.len(), report.sources.len()), (3, 5));
                assert_eq!(report.load.and_then(|load| load.running_jobs), Some(3));
            }
            other => panic!("{name}: {other:?}"),
        }
        sized(&mut group, frame.len());
        group.bench_function(name, |bencher| bencher.iter(|| node::decode(black_box(&frame))));
    }
    group.finish();
}

/// What a peer would read in the frame.
fn value(frame: &Bytes) -> serde_json::Value {
    serde_json::from_slice(frame).expect("JSON")
}

fn encoded(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode");
    let text = world::base64_of(SECOND_BYTES);
    let raw = base64_simd::STANDARD.decode_to_vec(&text).expect("base64");
    let spec: JobSpec = world::spec(SESSION, 7, "zh:en".parse().expect("a pair"));
    let audios = [
        ("job_assign 43 KB, as it came", Audio::Base64(Bytes::from(text.clone()))),
        ("job_assign 43 KB, from bytes", Audio::Raw(Bytes::from(raw))),
    ];
    for (name, audio) in audios {
        let frame = encode_job_assign(JobId(9), 0x101, &spec, &audio, None);
        assert_eq!(value(&frame)["audio"], text.as_str(), "{name}");
        sized(&mut group, frame.len());
        group.bench_function(name, |bencher| {
            bencher.iter(|| encode_job_assign(JobId(9), 0x101, black_box(&spec), &audio, None));
        });
    }
    for (name, voice) in [("translation_result, no voice", ""), {
        ("translation_result, 43 KB of voice", text.as_str())
    }] {
        let frame = Bytes::from(world::result_frame(JobId(9), 0x101, voice));
        let Ok(Message::JobResult(result)) = node::decode(&frame) else { panic!("{name}") };
        let encode = || {
            let place = (SESSION, 7);
            let now = 1_700_000_000_000;
            let told = TranslationResult::plain(JobId(9), place, "trace", &result, now);
            told.encode(black_box(&result.tts_audio))
        };
        assert_eq!(value(&encode())["tts_audio"], voice, "{name}");
        sized(&mut group, encode().len());
        group.bench_function(name, |bencher| bencher.iter(encode));
    }
    group.finish();
}

criterion_group!(benches, session_frames, node_frames, encoded);
criterion_main!(benches);
