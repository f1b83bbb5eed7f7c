//! The rows: input, how it is sent, and what is to come of it.

use serde_json::{Value, json};

use super::frames::{frame, head_of, still};
use crate::upgrade;

/// One kind of hostile input.
pub struct Row {
    pub number: u32,
    pub input: &'static str,
    pub way: Way,
    /// What is to come of it; one of several with ` or ` between.
    pub wanted: &'static str,
}

/// How it is sent, or why it is not.
pub enum Way {
    /// To the port, all at once.
    Bytes(fn() -> Vec<u8>),
    /// To the port, one byte after the other.
    Slowly(&'static [u8]),
    /// On a WebSocket, below messages.
    Frames(fn() -> Vec<u8>),
    /// By a client that has opened a session; text as it is, other values as JSON.
    Session(fn(&str) -> Vec<Value>),
    /// By a node.
    Node(fn() -> Vec<Value>),
    /// At a door that asks for keys, with this credential.
    Closed(&'static str, &'static str),
    /// By one who has as many connections as an address may.
    Crowd,
    /// In another test: its file and name.
    Shown(&'static str, &'static str),
    /// It cannot be: why.
    Without(&'static str),
}

use Way::{Bytes, Closed, Crowd, Frames, Node, Session, Shown, Slowly, Without};

const fn row(number: u32, input: &'static str, way: Way, wanted: &'static str) -> Row {
    Row { number, input, way, wanted }
}

const ELSEWHERE: &str = "shown elsewhere";
const STAYS: &str = "INVALID_MESSAGE, open";

pub const ROWS: &[Row] = &[
    row(1, "random bytes", Bytes(|| b"\x07\x99random\xff\r\n\r\n".to_vec()), "400"),
    row(
        2,
        "a TLS hello on a plain port",
        Bytes(|| b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\r\n\r\n".to_vec()),
        "400",
    ),
    row(3, "HTTP/0.9", Bytes(|| b"GET /\r\n\r\n".to_vec()), "400"),
    row(
        4,
        "an upgrade over HTTP/1.0",
        Bytes(|| upgrade("/ws/session", "").replace("HTTP/1.1", "HTTP/1.0").into()),
        "400",
    ),
    row(
        5,
        "the beginning of HTTP/2",
        Bytes(|| b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
        "closed or 400",
    ),
    row(
        6,
        "an upgrade by POST",
        Bytes(|| upgrade("/ws/session", "").replacen("GET", "POST", 1).into()),
        "405",
    ),
    row(7, "no Upgrade", Bytes(|| b"GET /ws/session HTTP/1.1\r\nhost: h\r\n\r\n".to_vec()), "426"),
    row(
        8,
        "WebSocket version 8",
        Bytes(|| upgrade("/ws/session", "").replace("version: 13", "version: 8").into()),
        "426",
    ),
    row(
        9,
        "a key of another length",
        Bytes(|| upgrade("/ws/session", "").replace("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ=").into()),
        "400",
    ),
    row(
        10,
        "no Host",
        Bytes(|| upgrade("/ws/session", "").replace("host: h\r\n", "").into()),
        "400",
    ),
    row(
        11,
        "bare LF; harmless, for nothing in front reads it otherwise",
        Bytes(|| upgrade("/ws/session", "").replace("\r\n", "\n").into()),
        "101",
    ),
    row(
        12,
        "a hundred headers",
        Bytes(|| upgrade("/ws/session", &"x: y\r\n".repeat(100)).into()),
        "431",
    ),
    row(
        13,
        "one header of 20 kB",
        Bytes(|| upgrade("/ws/session", &format!("x: {}\r\n", "y".repeat(20_000))).into()),
        "431",
    ),
    row(
        14,
        "a path of 70 kB",
        Bytes(|| format!("GET /{} HTTP/1.1\r\nhost: h\r\n\r\n", "x".repeat(70_000)).into()),
        "431 or 414",
    ),
    row(15, "1 MB without an end of line", Bytes(|| vec![b'x'; 1_000_000]), "431 or 400 or closed"),
    row(
        16,
        "a body with an upgrade",
        Bytes(|| format!("{}abc", upgrade("/ws/session", "content-length: 3\r\n")).into()),
        "400",
    ),
    row(
        17,
        "both lengths",
        Bytes(|| post("content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n")),
        "400",
    ),
    row(
        18,
        "two lengths",
        Bytes(|| post("content-length: 3\r\ncontent-length: 4\r\n\r\nabcd")),
        "400",
    ),
    row(
        19,
        "a folded header",
        Bytes(|| b"GET /health HTTP/1.1\r\nhost: h\r\nx: a\r\n b\r\n\r\n".to_vec()),
        "400",
    ),
    row(20, "a byte now and then", Slowly(b"GET /health HTTP/1.1\r\nx: y\r\n"), "closed or 408"),
    row(21, "nothing", Slowly(b""), "closed or 408"),
    row(
        22,
        "a TLS handshake that stalls",
        Shown("tests/tls.rs", "stalled_handshakes_keep_nobody_out_and_are_cut_off"),
        ELSEWHERE,
    ),
    row(
        23,
        "the origin of a strange page",
        Bytes(|| upgrade("/ws/session", "origin: https://theirs.example\r\n").into()),
        "403",
    ),
    row(24, "the origin null", Bytes(|| upgrade("/ws/session", "origin: null\r\n").into()), "403"),
    row(25, "no credential", Closed("/ws/session", ""), "401"),
    row(26, "a token that is none", Closed("/ws/session", "ut_eyJhbGciOiJub25lIn0.e30."), "401"),
    row(
        27,
        "a credential for another door",
        Shown(
            "tests/credentials.rs",
            "whatever_is_wrong_with_a_credential_the_answer_is_the_same_and_takes_as_long",
        ),
        ELSEWHERE,
    ),
    row(
        28,
        "a key revoked under an open session",
        Shown("tests/credentials.rs", "a_key_that_is_revoked_or_expires_closes_what_it_opened"),
        ELSEWHERE,
    ),
    row(29, "one connection more than an address may have", Crowd, "429"),
    row(30, "a frame without a mask", Frames(|| b"\x81\x02{}".to_vec()), "1002"),
    row(31, "a compressed frame nobody agreed to", Frames(|| frame(0xc1, b"{}")), "1002"),
    row(32, "a reserved opcode", Frames(|| frame(0x83, b"x")), "1002"),
    row(33, "a ping in fragments", Frames(|| frame(0x09, b"x")), "1002"),
    row(34, "a continuation of nothing", Frames(|| frame(0x80, b"x")), "1002"),
    row(
        35,
        "text that is not UTF-8, in two fragments",
        Frames(|| [frame(0x01, b"\xe4"), frame(0x80, b"\x41")].concat()),
        "1007",
    ),
    row(36, "a length of 2^63", Frames(|| head_of(1 << 63)), "1009 or 1002"),
    row(37, "16 MiB announced and not sent", Frames(|| head_of(16 << 20)), "1009"),
    row(
        38,
        "fragments that add up to too much",
        Frames(|| [frame(0x01, &[b' '; 6_000]), frame(0x80, &[b' '; 6_000])].concat()),
        "1009",
    ),
    row(39, "the close code 999", Frames(|| frame(0x88, &999_u16.to_be_bytes())), "1002"),
    row(
        40,
        "a close reason that is not UTF-8",
        Frames(|| frame(0x88, b"\x03\xe8\xff")),
        "1007 or 1002",
    ),
    row(
        41,
        "data behind a close",
        Frames(|| [frame(0x88, &1_000_u16.to_be_bytes()), frame(0x81, b"{}")].concat()),
        "1000",
    ),
    row(42, "3,000 pings at once", Frames(|| frame(0x89, b"x").repeat(3_000)), "1008"),
    row(
        43,
        "20,000 empty continuations",
        Frames(|| [frame(0x01, b""), frame(0x00, b"").repeat(20_000)].concat()),
        "1008",
    ),
    row(44, "a message that is never finished", Frames(|| frame(0x01, b"{")), "1011 or 1008"),
    row(45, "silence, and no pong", Frames(Vec::new), "1011 or 1008"),
    row(
        46,
        "a length in more bytes than it needs; harmless",
        Frames(|| [vec![0x81, 0xfe, 0, 2, 0, 0, 0, 0], b"{}".to_vec(), still()].concat()),
        "open",
    ),
    row(
        47,
        "compression offered",
        Bytes(|| upgrade("/ws/session", "sec-websocket-extensions: permessage-deflate\r\n").into()),
        "101",
    ),
    row(48, "a binary frame", Frames(|| [frame(0x82, b"\0\xff"), still()].concat()), "open"),
    row(
        49,
        "JSON 4,000 deep",
        Session(|_| {
            vec![
                format!(
                    "{{\"type\":\"session_init\",\"features\":{}{}}}",
                    "[".repeat(3_900),
                    "]".repeat(3_900)
                )
                .into(),
            ]
        }),
        STAYS,
    ),
    row(
        50,
        "fields of other types",
        Session(|id| {
            vec![json!({"type": "audio_chunk", "session_id": id, "seq": -1, "is_final": "no"})]
        }),
        STAYS,
    ),
    row(
        51,
        "a lone surrogate",
        Session(|_| {
            vec![r#"{"type":"session_init","client_version":"\ud800","src_lang":"zh"}"#.into()]
        }),
        STAYS,
    ),
    row(52, "an unknown type", Session(|_| vec![json!({"type": "no_such"})]), STAYS),
    row(
        53,
        "messages above the rate",
        Shown("tests/tenants.rs", "messages_that_come_too_fast_are_answered_and_read_no_faster"),
        ELSEWHERE,
    ),
    row(
        54,
        "an acknowledgement of what was never sent",
        Session(|id| vec![json!({"type": "ack", "session_id": id, "seq": 99})]),
        STAYS,
    ),
    row(
        55,
        "somebody else's session taken up",
        Shown("tests/resume.rs", "the_newest_connection_has_the_session_and_a_stranger_has_not"),
        ELSEWHERE,
    ),
    row(
        56,
        "a session taken up twice",
        Shown("tests/resume.rs", "the_newest_connection_has_the_session_and_a_stranger_has_not"),
        ELSEWHERE,
    ),
    row(
        57,
        "a key of idempotency with another body",
        Shown("tests/resume.rs", "a_key_finds_its_job_and_another_body_under_it_is_refused"),
        ELSEWHERE,
    ),
    row(
        58,
        "a key of idempotency of 1 kB",
        Session(|id| vec![utterance(id, "idempotency_key", json!("k".repeat(1_000)))]),
        STAYS,
    ),
    row(
        59,
        "a sample rate of 0",
        Session(|id| vec![utterance(id, "sample_rate", json!(0))]),
        STAYS,
    ),
    row(
        60,
        "chunks again, and in another order",
        Shown(
            "tests/resume.rs",
            "an_utterance_interrupted_by_a_lost_connection_reaches_the_node_whole",
        ),
        ELSEWHERE,
    ),
    row(
        61,
        "a language that is a path",
        Session(|id| vec![utterance(id, "src_lang", json!("../../etc"))]),
        STAYS,
    ),
    row(
        62,
        "more jobs at once than a session may have",
        Session(|id| (0..40).map(|n| utterance(id, "utterance_index", json!(n))).collect()),
        "OVERLOADED, open",
    ),
    row(
        63,
        "a deadline in the past",
        Without("clients set no deadlines: leases and patience are the server's"),
        "does not apply",
    ),
    row(
        64,
        "a result for the job of another node",
        Shown("tests/limits.rs", "nobody_speaks_for_another_node"),
        ELSEWHERE,
    ),
    row(
        65,
        "a result of an old attempt",
        Shown("tests/failover.rs", "results_nobody_waits_for_change_nothing"),
        ELSEWHERE,
    ),
    row(
        66,
        "a message of a node beyond its limit",
        Node(|| vec![json!({"type": "node_error", "message": "x".repeat(20_000)})]),
        "closed",
    ),
    row(67, "a node with 2^32 - 1 slots", Node(|| vec![register(json!(u32::MAX))]), "1024 slots"),
    row(
        68,
        "two nodes with one id",
        Shown("tests/nodes.rs", "the_newest_connection_speaks_for_a_node"),
        ELSEWHERE,
    ),
    row(
        69,
        "bombs of bincode",
        Without("nodes speak JSON; of stored rows fuzz/src/store_records.rs says more"),
        "does not apply",
    ),
    row(70, "a million jobs in a hello", Node(|| vec![crowded()]), "closed"),
    row(
        71,
        "a node that never reads",
        Shown("src/transport/websocket/tests.rs", "a_peer_that_takes_nothing_is_stalled"),
        ELSEWHERE,
    ),
    row(
        72,
        "a PROXY header on a port that takes none",
        Bytes(|| b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\nGET /health HTTP/1.1\r\n\r\n".to_vec()),
        "400",
    ),
    row(
        73,
        "escapes and ends of line in what is logged",
        Shown("tests/secrets.rs", "what_peers_call_themselves_cannot_forge_a_line_of_the_log"),
        ELSEWHERE,
    ),
    row(
        74,
        "operators' pages from elsewhere",
        Shown("tests/credentials.rs", "operators_on_other_hosts_need_an_admin_key"),
        ELSEWHERE,
    ),
    row(
        75,
        "a hangup with broken files",
        Shown(
            "tests/change.rs",
            "a_broken_file_changes_nothing_and_every_fault_is_told_with_its_line",
        ),
        ELSEWHERE,
    ),
];

fn post(rest: &str) -> Vec<u8> {
    format!("POST /api/v1/keys HTTP/1.1\r\nhost: h\r\n{rest}").into_bytes()
}

fn utterance(id: &str, field: &str, value: Value) -> Value {
    let mut utterance = json!({"type": "utterance", "session_id": id, "utterance_index": 0,
        "manual_cut": true, "src_lang": "zh", "tgt_lang": "en", "audio": "AAAAAAAA",
        "audio_format": "pcm16", "sample_rate": 16_000});
    utterance[field] = value;
    utterance
}

fn register(slots: Value) -> Value {
    json!({"type": "node_register", "node_id": "wide", "version": "2", "platform": "linux",
        "capability_schema_version": "2.0", "max_concurrent_jobs": slots})
}

fn crowded() -> Value {
    let jobs: Vec<Value> = (0..1_000).map(|n| json!({"job_id": "j", "attempt_id": n})).collect();
    let mut hello = register(json!(1));
    hello["inflight"] = jobs.into();
    hello
}
