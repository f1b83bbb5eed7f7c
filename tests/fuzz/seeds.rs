//! The seeds that our own encoders make: good frames, rows and files of every kind, and scripts of
//! chance for the targets that read choices. They are in `fuzz/corpus/TARGET/seed-…`.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use utterd::peer::voice::sine_speech;
use utterd::peer::wav::encode_wav;
use utterd::protocol::job::{Cut, JobSpec, Pipeline};
use utterd::protocol::{JobId, SessionId, TurnId};
use utterd::store::codec::{Record, encode};
use utterd::store::{
    DeadLetterRow, IdemRow, JobRow, KeyRow, MemberRow, MetaRow, NodeRow, OutboxRow, PoolConfigRow,
    RoomRow, SessionRow, TerminalRow,
};

use super::bodies::TARGETS;
use super::replay::{folder, kept};

type Seeds = BTreeMap<(&'static str, String), Vec<u8>>;

/// Targets whose bytes are choices, and how many scripts of chance each has.
const SCRIPTED: [&str; 8] =
    ["connection", "jobs", "order", "outbox", "pools", "segmenter", "server", "session"];
const SCRIPTS: usize = 12;
const CORPUS_BYTES_MAX: u64 = 1 << 20;

#[test]
fn the_seeds_are_those_that_the_encoders_make() {
    let seeds = seeds();
    if std::env::var_os("UPDATE_CORPUS").is_some() {
        for ((target, name), bytes) in &seeds {
            std::fs::create_dir_all(folder("corpus", target)).unwrap();
            std::fs::write(folder("corpus", target).join(format!("seed-{name}")), bytes).unwrap();
        }
    }
    let mut there = Seeds::new();
    for (target, _) in TARGETS {
        for (path, bytes) in kept("corpus", target) {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if let Some(name) = name.strip_prefix("seed-") {
                there.insert((target, name.to_owned()), bytes);
            }
        }
    }
    let names: (Vec<_>, Vec<_>) = (there.keys().collect(), seeds.keys().collect());
    assert_eq!(names.0, names.1, "UPDATE_CORPUS=1 writes them; old ones are to be deleted");
    let stale: Vec<_> = seeds.iter().filter(|(key, bytes)| there[key] != **bytes).collect();
    let stale: Vec<_> = stale.into_iter().map(|(key, _)| key).collect();
    assert!(stale.is_empty(), "UPDATE_CORPUS=1 writes them anew: {stale:?}");
}

#[test]
fn the_corpus_is_small() {
    let all = ["corpus", "regressions"]
        .into_iter()
        .flat_map(|kind| TARGETS.iter().flat_map(move |(target, _)| kept(kind, target)));
    let bytes: u64 = all.map(|(_, bytes)| bytes.len() as u64).sum();
    assert!(bytes < CORPUS_BYTES_MAX, "{bytes} bytes");
}

fn seeds() -> Seeds {
    let mut seeds = Seeds::new();
    let mut add = |target: &'static str, name: String, bytes: Vec<u8>| {
        assert!(seeds.insert((target, name), bytes).is_none(), "two seeds of one name");
    };
    frames(&mut add);
    rows(&mut add);
    rest(&mut add);
    for target in SCRIPTED {
        let mut rng = fastrand::Rng::with_seed(target.len() as u64);
        for n in 0..SCRIPTS {
            let len = [24, 120, 700, 2_000][n % 4];
            let bytes = (0..len).map(|_| rng.u8(..)).collect();
            add(target, format!("chance-{n:02}"), bytes);
        }
    }
    seeds
}

/// Messages of both sockets, those of recorded clients among them, and some that ask for much.
fn frames(add: &mut impl FnMut(&'static str, String, Vec<u8>)) {
    for (target, templates) in [
        ("session_frames", super::bodies::server::SESSION),
        ("node_frames", super::bodies::server::NODE),
    ] {
        for (at, text) in templates.lines().enumerate() {
            let frame = filled(text);
            if let Some(wide) = wide(&frame, target) {
                add(target, format!("{at:02}-wide"), wide);
            }
            add(target, format!("{at:02}"), frame);
        }
    }
    for (target, name, text) in [
        ("session_frames", "web-init", include_str!("recorded/web-init.json")),
        ("session_frames", "web-chunk", include_str!("recorded/web-chunk.json")),
        ("session_frames", "web-playing", include_str!("recorded/web-playing.json")),
        ("node_frames", "agent-register", include_str!("recorded/agent-register.json")),
        ("node_frames", "agent-heartbeat", include_str!("recorded/agent-heartbeat.json")),
        ("node_frames", "agent-result", include_str!("recorded/agent-result.json")),
    ] {
        let frame = text.trim_end().as_bytes().to_vec();
        if let Some(wide) = wide(&frame, target) {
            add(target, format!("{name}-wide"), wide);
        }
        add(target, name.to_owned(), frame);
    }
    let long = "QUJD".repeat(6_000);
    let chunk = json!({"type": "audio_chunk", "session_id": "s", "seq": 1.0, "is_final": true,
        "payload": long, "client_timestamp_ms": -5});
    add("session_frames", "long-chunk".into(), chunk.to_string().into_bytes());
    let result = json!({"type": "job_result", "job_id": JobId(1), "success": true,
        "tts_audio": long, "processing_time_ms": 2.5, "rerun_count": 1, "quality_score": 0.5,
        "reason_codes": ["a"], "segments_meta": {"count": 1}, "node_completed_at_ms": 7,
        "extra": {"service_timings": {"asr": 1}, "language_probability": 0.5, "other": 1}});
    add("node_frames", "long-result".into(), result.to_string().into_bytes());
    // Long enough that what takes time by the square of its length is seen to.
    let keys = r#","":"""#.repeat(20_000);
    let ack = format!(r#"{{"type":"ack","session_id":"s","seq":1{keys}}}"#);
    add("session_frames", "many-keys".into(), ack.into_bytes());
    let mark = format!(r#"{{"type":"job_ack","job_id":"{}"{keys}}}"#, JobId(1));
    add("node_frames", "many-keys".into(), mark.into_bytes());
    let ones = vec![1; 12_000];
    let boxes: Vec<_> = (0..2_000).map(|_| json!({"": {}})).collect();
    for (name, list) in [("ones", json!(ones)), ("boxes", json!(boxes))] {
        let register = json!({"type": "node_register", "installed_services": list,
            "hardware": {"gpus": list}, "language_capabilities": {"asr_languages": list}});
        add("node_frames", format!("list-{name}"), register.to_string().into_bytes());
        let hello = json!({"type": "node_register", "extensions": ["result_ack"], "boot_id": "b",
            "inflight": list, "unacked": list});
        add("node_frames", format!("hello-{name}"), hello.to_string().into_bytes());
        let result = json!({"type": "job_result", "job_id": JobId(1), "success": false,
            "segments_meta": list, "extra": {"service_timings": {"a": list}, "more": list},
            "error": {"code": "x", "details": {"a": list}}});
        add("node_frames", format!("result-{name}"), result.to_string().into_bytes());
    }
}

/// The same frame, still a good one, with text in all its places for text that cannot be cut at any
/// even byte; none if there is no such place.
fn wide(frame: &[u8], target: &str) -> Option<Vec<u8>> {
    let is_good = |frame: &Value| {
        let frame = frame.to_string().into();
        match target {
            "session_frames" => utterd::protocol::session::decode(&frame).is_ok(),
            _ => utterd::protocol::node::decode(&frame).is_ok(),
        }
    };
    let mut frame: Value = serde_json::from_slice(frame).ok()?;
    let mut places = Vec::new();
    texts(&frame, String::new(), &mut places);
    let mut is_wide = false;
    for place in places {
        for chars in [300, 60, 30, 15, 7] {
            let mut other = frame.clone();
            *other.pointer_mut(&place)? = format!("x{}", "\u{1F600}".repeat(chars)).into();
            if is_good(&other) {
                (frame, is_wide) = (other, true);
                break;
            }
        }
    }
    is_wide.then(|| frame.to_string().into_bytes())
}

/// Where there is text in it.
fn texts(value: &Value, at: String, found: &mut Vec<String>) {
    match value {
        Value::String(_) => found.push(at),
        Value::Array(items) => {
            (0..).zip(items).for_each(|(n, item)| texts(item, format!("{at}/{n}"), found));
        }
        Value::Object(fields) => {
            fields.iter().for_each(|(key, field)| texts(field, format!("{at}/{key}"), found));
        }
        _ => {}
    }
}

/// A template of the server's target with something in its places.
fn filled(template: &str) -> Vec<u8> {
    let (session, job) = (SessionId(7).to_string(), JobId(9).to_string());
    let places = [
        ("$session", &*session),
        ("$job", &job),
        ("$attempt", "769"),
        ("$room", "298523"),
        ("$node", "node-1"),
        ("$small", "3"),
        ("$number", "200"),
    ];
    let fill = |text: String, (place, with): (&str, &str)| text.replace(place, with);
    places.into_iter().fold(template.to_owned(), fill).into_bytes()
}

fn rows(add: &mut impl FnMut(&'static str, String, Vec<u8>)) {
    let (session, job) = (SessionId(7), JobId(9));
    let lang = |text: &str| text.parse().unwrap();
    let created_unix_ms = 1_700_000_000_000;
    let meta = MetaRow { format: 3, boot_epoch: Some(4), created_unix_ms };
    row(add, 0, &meta);
    row(
        add,
        1,
        &SessionRow {
            id: session,
            trace_id: "t".into(),
            tenant: Some("acme".into()),
            platform: "web".into(),
            client_version: "1".into(),
            src: lang("zh"),
            tgt: lang("en"),
            opened_unix_ms: created_unix_ms,
            epoch: 4,
            resume_hash: Some([3; 32]),
            paired: Some("node-1".into()),
            init: b"{\"type\":\"session_init\"}".to_vec(),
        },
    );
    let (attempts, audio_crc, audio_bytes, chunks) = (0, 7, 5, None);
    let spec = spec(session);
    let accepted_unix_ms = created_unix_ms;
    row(
        add,
        2,
        &JobRow { id: job, spec, accepted_unix_ms, attempts, audio_crc, audio_bytes, chunks },
    );
    row(add, 5, &IdemRow { key: 1, job, digest: 2, expires_unix_ms: created_unix_ms });
    others(add, session, job, created_unix_ms);
}

fn row<T: Record>(add: &mut impl FnMut(&'static str, String, Vec<u8>), at: u8, row: &T) {
    let stored = encode(row);
    let payload = stored[6..stored.len() - 4].to_vec();
    add("store_records", format!("row-{at:02}"), [vec![at], stored].concat());
    add("store_records", format!("payload-{at:02}"), [vec![at], payload].concat());
}

fn spec(session: SessionId) -> JobSpec {
    JobSpec {
        session,
        utterance_index: 3,
        turn: TurnId(5),
        tenant: Some("acme".into()),
        src: "auto".parse().unwrap(),
        tgt: "en".parse().unwrap(),
        dialect: None,
        mode: Some("two_way_auto".into()),
        lang_a: Some("zh".parse().unwrap()),
        lang_b: Some("en".parse().unwrap()),
        auto_langs: Some(vec!["zh".parse().unwrap(), "en".parse().unwrap()]),
        features: Some(Default::default()),
        pipeline: Pipeline::default(),
        audio_format: "opus".into(),
        sample_rate: 16_000,
        audio_ms: 1_200,
        trace_id: "t".into(),
        padding_ms: Some(200),
        cut: Cut::Manual,
        streaming_asr: true,
        partial_interval_ms: 1_000,
        client_sent_ms: Some(1),
        paired: None,
        audience: None,
        traced: Default::default(),
    }
}

fn others(
    add: &mut impl FnMut(&'static str, String, Vec<u8>),
    session: SessionId,
    job: JobId,
    unix_ms: u64,
) {
    let place = (session, 3);
    row(add, 3, &TerminalRow::refusal(job, place, ("OVERLOADED", "full".into()), unix_ms));
    let frame = br#"{"type":"missing_result"}"#.to_vec();
    let (seq, utterance_index, created_unix_ms) = (1, 3, unix_ms);
    row(add, 4, &OutboxRow { session, seq, job, utterance_index, created_unix_ms, frame });
    row(
        add,
        6,
        &NodeRow {
            id: "node-1".into(),
            platform: "linux".into(),
            version: "2".into(),
            first_seen_unix_ms: unix_ms,
            last_seen_unix_ms: unix_ms,
        },
    );
    row(add, 7, &PoolConfigRow { version: 2, text: "[]".into() });
    let member = MemberRow {
        session,
        seat: 1,
        display_name: Some("a".into()),
        preferred_lang: Some("es".parse().unwrap()),
        lang: "es".parse().unwrap(),
        raw_voice: vec![(SessionId(8), false)],
        joined_unix_ms: unix_ms,
    };
    let members = vec![member.clone(), member];
    let code = "298523".parse().unwrap();
    row(add, 8, &RoomRow { code, room_id: 5, active_unix_ms: unix_ms, next_seat: 3, members });
    row(
        add,
        9,
        &KeyRow {
            id: 1,
            kind: 1,
            tenant: None,
            name: "a".into(),
            hash: [5; 32],
            created_unix_ms: unix_ms,
            expires_unix_ms: Some(unix_ms),
            revoked_unix_ms: None,
        },
    );
    row(
        add,
        10,
        &DeadLetterRow {
            id: 1,
            job,
            session,
            utterance_index: 3,
            why: "unclaimed".into(),
            code: String::new(),
            message: String::new(),
            created_unix_ms: unix_ms,
            seq: Some(4),
            frame: Some(b"{}".to_vec()),
            job_row: None,
            audio_bytes: 0,
        },
    );
}

/// Everything that is neither a frame nor a row.
fn rest(add: &mut impl FnMut(&'static str, String, Vec<u8>)) {
    let packets = |lens: &[u16]| -> Vec<u8> {
        let packet = |len: &u16| [&len.to_le_bytes()[..], &vec![0x48; usize::from(*len)]].concat();
        lens.iter().flat_map(packet).collect()
    };
    add("audio", "opus".into(), packets(&[3, 60, 20, 300]));
    add("audio", "longest-packet".into(), packets(&[7_650]));
    add("audio", "pcm".into(), (0..640_u16).flat_map(u16::to_le_bytes).collect());
    let sound = sine_speech(0.05);
    let wav = encode_wav(&sound).unwrap();
    // The same sound said to be of another rate, of two channels, in bytes, and longer than it is.
    for (name, at, with) in [
        ("8-khz", 24, &8_000_u32.to_le_bytes()[..]),
        ("44-khz", 24, &44_100_u32.to_le_bytes()),
        ("two-channels", 22, &[2, 0]),
        ("bytes", 32, &[1, 0, 8, 0]),
        ("endless", 40, &[0xFF; 4]),
    ] {
        let mut other = wav.clone();
        other[at..at + with.len()].copy_from_slice(with);
        add("wav", name.into(), other);
    }
    add("wav", "16-khz".into(), wav);
    let example = utterd::config::example_toml();
    add("config", "example".into(), example.into_bytes());
    let lists = "[[pools]]\nname = \"a\"\npairs = [\"zh:*\"]\nweight = 2\n\
        [[tenants]]\nname = \"acme\"\nweight = 3\n\
        \0JOB_LIVE_MAX=10\nSERVER_LISTEN=127.0.0.1:0\nAUTH_ADMIN_KEYS_REQUIRED=true\n";
    add("config", "lists-and-variables".into(), lists.as_bytes().to_vec());
    add("config", "faults".into(), b"[job]\nlive_max = -1\nx = 1\n[[pools]]\n\0X=1\n".to_vec());
    for (how, name, text) in [
        (0, "key", "utk_0000000000000001.AAAA"),
        (0, "id", "job-00000000-0000-0000-0000-000000000009"),
        (0, "session", "s-00C0FFEE00C0FFEE"),
        (0, "pair", "zh:en"),
        (1, "token", "\0\0a"),
        (2, "changed-key", "\u{5}\0b"),
        (3, "pairing", "\0\0\u{1}\0\u{1}\0\u{3}\0\0\u{2}\u{6}\x00123456"),
    ] {
        add("credentials", name.into(), [&[how], text.as_bytes()].concat());
    }
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
    let upgrade = format!(
        "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\
        Sec-WebSocket-Version: 13\r\n{key}\r\n\r\n"
    );
    let old = upgrade.replace(": 13", ": 8");
    let plain = "GET /plain HTTP/1.1\r\nHost: a\r\n\r\n";
    let body =
        "POST /plain HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n";
    for (name, cuts, text) in [
        ("upgrade", &[0][..], upgrade.clone()),
        ("pieces", &[2, 10, 60], upgrade.clone()),
        ("old-version", &[0], old),
        ("plain-twice", &[1, 50], plain.repeat(2)),
        ("plain-then-upgrade", &[0], format!("{plain}{upgrade}")),
        ("body", &[0], body.to_owned()),
        ("frames-at-once", &[0], format!("{upgrade}\u{1}\u{2}")),
    ] {
        add("http_upgrade", name.into(), [cuts, text.as_bytes()].concat());
    }
}
