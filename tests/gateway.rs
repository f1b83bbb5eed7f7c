//! The public API: a recording in, its translation out, by one request or on a stream.

mod support;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use base64_simd::STANDARD as BASE64;
use serde_json::{Value, json};
use support::described::hold_answer_to_it;
use support::{FakeNode, Peer, TestServer, audio_of, fault, http, opus, speech};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use utterd::config::{Config, Tenant};
use utterd::peer::wav;

/// For what must happen.
const SOON: Duration = Duration::from_secs(20);
const TRANSLATE: &str = "/v1/speech/translate";

/// Fields of a form beside the recording.
type Fields<'a> = &'a [(&'a str, &'a str)];

/// What a request was answered.
struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Value,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// A form with these fields; the first is the recording.
fn form(audio: &[u8], fields: &[(&str, &str)]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, value) in fields {
        let part =
            format!("--edge\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
        body.extend_from_slice(part.as_bytes());
    }
    body.extend_from_slice(
        b"--edge\r\ncontent-disposition: form-data; name=\"audio\"; filename=\"a\"\r\n\
          content-type: application/octet-stream\r\n\r\n",
    );
    body.extend_from_slice(audio);
    body.extend_from_slice(b"\r\n--edge--\r\n");
    body
}

/// Sends a request whole; its connection.
async fn asked(addr: SocketAddr, key: Option<&str>, kind: &str, body: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let key = key.map(|key| format!("authorization: Bearer {key}\r\n")).unwrap_or_default();
    let head = format!(
        "POST {TRANSLATE} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n{key}content-type: {kind}\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // Who is refused early may not read to the end.
    stream.write_all(body).await.ok();
    stream
}

async fn answered(mut stream: TcpStream) -> Answer {
    let mut answer = Vec::new();
    let read = tokio::time::timeout(SOON, stream.read_to_end(&mut answer)).await;
    read.expect("an answer in time").unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap().parse().unwrap();
    let headers = lines.filter_map(|line| line.split_once(": "));
    let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()));
    hold_answer_to_it("POST", TRANSLATE, status, body);
    Answer { status, headers: headers.collect(), body: serde_json::from_str(body).unwrap() }
}

const FORM: &str = "multipart/form-data; boundary=edge";

async fn translate(server: &TestServer, audio: &[u8], fields: &[(&str, &str)]) -> TcpStream {
    asked(server.addr(), None, FORM, &form(audio, fields)).await
}

fn wav_of(ms: usize) -> Vec<u8> {
    wav::encode_wav(&wav::pcm16_samples(&speech(ms))).unwrap()
}

async fn ready() -> (TestServer, FakeNode) {
    let server = TestServer::start(|_| {}).await;
    let node = server.node("n1", &["zh", "en", "es"]).await;
    (server, node)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recording_goes_in_and_its_translation_comes_out() {
    let (server, mut node) = ready().await;
    let fields = [("src_lang", "en"), ("tgt_lang", "es"), ("trace_id", "t-7")];
    let request = translate(&server, &wav_of(700), &fields).await;
    let job = node.assignment().await;
    assert_eq!(audio_of(&job), speech(700));
    assert_eq!((&job["src_lang"], &job["tgt_lang"]), (&json!("en"), &json!("es")));
    assert_eq!((&job["is_manual_cut"], &job["trace_id"]), (&json!(true), &json!("t-7")));
    let mut result = node.result(&job, "good day");
    result["text_translated"] = "buenos días".into();
    result["tts_audio"] = BASE64.encode_to_string(speech(300)).into();
    result["tts_format"] = "pcm16".into();
    node.peer.send(result).await;
    let answer = answered(request).await;
    let Answer { status, body, .. } = &answer;
    assert_eq!((*status, &body["text"]), (200, &json!("good day")), "{body}");
    assert_eq!(body["translation"], "buenos días");
    assert_eq!((&body["audio_format"], &body["trace_id"]), (&json!("wav"), &json!("t-7")));
    assert_eq!(body["job_id"], job["job_id"]);
    let spoken = BASE64.decode_to_vec(body["audio"].as_str().unwrap()).unwrap();
    assert_eq!(wav::pcm16_bytes(&wav::decode_wav(spoken).unwrap()), speech(300));
    assert_eq!(answer.header("ratelimit-policy"), "\"requests\";q=64;qu=\"concurrent-requests\"");
    // The session is gone, and its result counts as heard: nothing waits to be told again.
    server.until_nothing_is_left().await;
    server.until(|b| b["store"]["queued"] == 0, "/api/v1/stats").await;
    let (_, stats) = server.get("/api/v1/stats").await;
    assert_eq!(stats["store"]["dead_letters"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_form_of_recording_is_taken_with_its_defaults() {
    let (server, mut node) = ready().await;
    // Not told: samples of 16 kHz, from Chinese to English.
    let request = translate(&server, &speech(100), &[]).await;
    let job = node.assignment().await;
    assert_eq!((&job["src_lang"], &job["tgt_lang"]), (&json!("zh"), &json!("en")));
    assert_eq!((&job["audio_format"], &job["sample_rate"]), (&json!("pcm16"), &json!(16_000)));
    node.answer(&job, "one").await;
    assert_eq!(answered(request).await.body["text"], "one");
    let fields = [("audio_format", "pcm16"), ("sample_rate", "8000"), ("answer_format", "pcm16")];
    let request = translate(&server, &speech(100), &fields).await;
    let job = node.assignment().await;
    assert_eq!(job["sample_rate"], 8_000);
    let mut result = node.result(&job, "two");
    (result["tts_audio"], result["tts_format"]) = (json!("AAAA"), json!("pcm16"));
    node.peer.send(result).await;
    let answer = answered(request).await.body;
    assert_eq!((&answer["audio"], &answer["audio_format"]), (&json!("AAAA"), &json!("pcm16")));
    // A browser's own chain: packets of 20 ms.
    let request = translate(&server, &opus(5, 40), &[("audio_format", "opus")]).await;
    let job = node.assignment().await;
    assert_eq!((&job["audio_format"], audio_of(&job)), (&json!("opus"), opus(5, 40)));
    node.answer(&job, "three").await;
    assert_eq!(answered(request).await.body["text"], "three");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_right_is_refused_and_no_job_is_made_of_it() {
    let server = TestServer::start(|c| c.gateway.recording_bytes_max = 8_192).await;
    let refused = async |kind: &str, body: Vec<u8>| {
        let answer = answered(asked(server.addr(), None, kind, &body).await).await;
        assert!(answer.body["error"].is_string(), "{}", answer.body);
        (answer.status, answer.body["code"].as_str().unwrap().to_owned())
    };
    let wrong = (400, "INVALID_MESSAGE".to_owned());
    let cases: [(&[u8], Fields); 9] = [
        (b"", &[]),
        (b"abc", &[]),
        (b"abcd", &[("sample_rate", "x")]),
        (b"abcd", &[("sample_rate", "0")]),
        (b"abcd", &[("src_lang", "not a language")]),
        (b"abcd", &[("tgt_lang", "en"), ("tgt_lang", "en")]),
        (b"abcd", &[("unheard-of", "x")]),
        (b"abcd", &[("audio_format", "wav")]),
        (b"abcd", &[("audio_format", "opus")]),
    ];
    for (audio, fields) in cases {
        assert_eq!(refused(FORM, form(audio, fields)).await, wrong, "{fields:?}");
    }
    let long = form(b"abcd", &[("trace_id", &"x".repeat(600))]);
    assert_eq!(refused(FORM, long).await, wrong);
    assert_eq!(refused(FORM, b"--edge\r\nbroken".to_vec()).await, wrong);
    assert_eq!(refused("application/json", b"{}".to_vec()).await.0, 415);
    assert_eq!(refused(FORM, form(b"abcd", &[("audio_format", "mp3")])).await.0, 415);
    assert_eq!(refused(FORM, form(&speech(300), &[])).await.0, 413);
    assert_eq!(refused(FORM, form(&speech(1_000), &[])).await.0, 413);
    // Little on the wire, too much when it is unpacked.
    let slow = wav_with_rate(&[0; 4_000], 2_000);
    assert_eq!(refused(FORM, form(&slow, &[])).await.0, 413);
    assert_eq!(server.metric("utterd_jobs_submitted_total").await, 0.0);
    let (status, body) = http(server.addr(), "GET", TRANSLATE, "").await;
    assert_eq!(status, 405, "{body}");
}

/// A WAV of 8 bits at that rate.
fn wav_with_rate(samples: &[u8], rate: u32) -> Vec<u8> {
    let (length, bytes) = (samples.len() as u32, [8_u16.to_le_bytes(), 1_u16.to_le_bytes()]);
    let [bits, one] = bytes;
    [
        b"RIFF",
        &(36 + length).to_le_bytes()[..],
        b"WAVEfmt ",
        &16_u32.to_le_bytes(),
        &one,
        &one,
        &rate.to_le_bytes(),
        &rate.to_le_bytes(),
        &one,
        &bits,
        b"data",
        &length.to_le_bytes(),
        samples,
    ]
    .concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_told_with_its_code_and_what_it_is_in_http() {
    let server = TestServer::start(|c| c.job.pending_ms = 5_000).await;
    let nobody = translate(&server, &speech(100), &[]).await;
    server.until(|b| b["jobs"]["waiting"] == 1, "/api/v1/stats").await;
    server.advance(Duration::from_secs(6));
    let answer = answered(nobody).await;
    assert_eq!((answer.status, &answer.body["code"]), (503, &json!("NO_AVAILABLE_NODE")));
    assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
    let mut node = server.node("n1", &["zh", "en"]).await;
    let unheard_of = translate(&server, &speech(100), &[("tgt_lang", "fr")]).await;
    let answer = answered(unheard_of).await;
    assert_eq!((answer.status, &answer.body["code"]), (422, &json!("NO_AVAILABLE_NODE")));
    let request = translate(&server, &speech(100), &[]).await;
    let job = node.assignment().await;
    node.fail(&job, fault("PROCESSING_ERROR", "no good")).await;
    let answer = answered(request).await;
    assert_eq!((answer.status, &answer.body["code"]), (502, &json!("PROCESSING_ERROR")));
    assert_eq!(answer.body["error"], "no good");
    let request = translate(&server, &speech(100), &[]).await;
    node.assignment().await;
    server.until(|b| b["jobs"]["live"] == 1, "/api/v1/stats").await;
    for _ in 0..12 {
        server.beat(&mut node).await;
        server.advance(Duration::from_secs(10));
    }
    let answer = answered(request).await;
    assert_eq!((answer.status, &answer.body["code"]), (504, &json!("JOB_TIMEOUT")));
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_is_an_answer() {
    let (server, mut node) = ready().await;
    let request = translate(&server, &speech(100), &[]).await;
    let job = node.assignment().await;
    let mut result = node.result(&job, "");
    result["tts_audio"] = "".into();
    node.peer.send(result).await;
    let answer = answered(request).await;
    assert_eq!((answer.status, &answer.body["text"]), (200, &json!("")), "{}", answer.body);
    assert_eq!(answer.body["audio"], "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_at_its_limit_is_told_when_there_is_room_and_what_it_has_left() {
    let acme = |config: &mut Config| {
        config.tenants.push(Tenant {
            name: "acme".into(),
            audio_seconds_per_minute: Some(2),
            jobs_max: Some(3),
            ..Tenant::default()
        });
    };
    let server = TestServer::start(acme).await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    let made = json!({"kind": "session", "tenant": "acme"}).to_string();
    let (_, made) = http(server.addr(), "POST", "/api/v1/keys", &made).await;
    let made: Value = serde_json::from_str(&made).unwrap();
    let key = made["secret"].as_str();
    let request = asked(server.addr(), key, FORM, &form(&speech(1_500), &[])).await;
    let job = node.assignment().await;
    node.answer(&job, "one").await;
    let answer = answered(request).await;
    assert_eq!(
        answer.header("ratelimit-policy"),
        "\"audio-seconds\";q=2;w=60, \"utterances\";q=3;qu=\"concurrent-requests\", \
         \"requests\";q=64;qu=\"concurrent-requests\""
    );
    let left = answer.header("ratelimit");
    assert!(left.starts_with("\"audio-seconds\";r=0;t=4"), "{left}");
    let answer = answered(asked(server.addr(), key, FORM, &form(&speech(1_000), &[])).await).await;
    assert_eq!((answer.status, &answer.body["code"]), (429, &json!("RATE_LIMITED")));
    let wait: u64 = answer.header("retry-after").parse().unwrap();
    // Half a second of audio is missing, and comes in within fifteen.
    assert!((10..=15).contains(&wait), "{wait}");
    server.advance(Duration::from_secs(wait));
    let request = asked(server.addr(), key, FORM, &form(&speech(1_000), &[])).await;
    let job = node.assignment().await;
    node.answer(&job, "two").await;
    assert_eq!(answered(request).await.body["text"], "two");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_good_key_learns_nothing_and_a_revoked_one_ends_what_it_began() {
    let (server, mut node) = ready().await;
    let body = json!({"kind": "session", "tenant": "acme"}).to_string();
    let (_, made) = http(server.addr(), "POST", "/api/v1/keys", &body).await;
    let made: Value = serde_json::from_str(&made).unwrap();
    for key in [None, Some("uk_wrong")] {
        let answer = answered(asked(server.addr(), key, FORM, &form(b"", &[])).await).await;
        assert_eq!((answer.status, answer.header("www-authenticate")), (401, "Bearer"));
        assert_eq!(answer.header("ratelimit"), "");
    }
    let key = made["secret"].as_str();
    let request = asked(server.addr(), key, FORM, &form(&speech(100), &[])).await;
    let mut stream = stream_as(&server, key).await;
    stream.send(json!({"type": "start"})).await;
    stream.expect("started").await;
    node.assignment().await;
    let path = format!("/api/v1/keys/{}", made["id"]);
    assert_eq!(http(server.addr(), "DELETE", &path, "").await.0, 200);
    assert_eq!(answered(request).await.status, 401);
    assert_eq!(stream.close_code().await, Some(4401));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_hangs_up_is_not_worked_for_any_longer() {
    let (server, mut node) = ready().await;
    let request = translate(&server, &speech(100), &[]).await;
    let job = node.assignment().await;
    drop(request);
    let cancelled = node.peer.expect("job_cancel").await;
    assert_eq!(cancelled["job_id"], job["job_id"]);
    server.until_nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_recordings_at_once_than_may_be_are_told_to_come_back() {
    let server = TestServer::start(|c| c.gateway.requests_max = 1).await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    let first = translate(&server, &speech(100), &[]).await;
    let job = node.assignment().await;
    let answer = answered(translate(&server, &speech(100), &[]).await).await;
    assert_eq!((answer.status, &answer.body["code"]), (503, &json!("OVERLOADED")));
    assert_eq!(answer.header("ratelimit"), "\"requests\";r=0");
    assert_eq!(answer.header("retry-after"), "1");
    node.answer(&job, "first").await;
    assert_eq!(answered(first).await.body["text"], "first");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recording_that_does_not_come_in_time_is_given_up() {
    let server = TestServer::start(|c| c.gateway.upload_timeout_ms = 50).await;
    let mut stream = TcpStream::connect(server.addr()).await.unwrap();
    let head = format!(
        "POST {TRANSLATE} HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-type: {FORM}\r\n\
         content-length: 900\r\n\r\n--edge\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(answered(stream).await.status, 408);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_gateway_there_is_nothing_there() {
    let server = TestServer::start(|c| c.gateway.enabled = false).await;
    let answer = answered(translate(&server, &speech(100), &[]).await).await;
    assert_eq!(answer.status, 404);
    assert_eq!(http(server.addr(), "GET", "/v1/stream", "").await.0, 404);
}

async fn stream_as(server: &TestServer, key: Option<&str>) -> Peer {
    let mut request = "ws://h/v1/stream".into_client_request().unwrap();
    if let Some(key) = key {
        request.headers_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
    }
    Peer::asking(TcpStream::connect(server.addr()).await.unwrap(), request).await.unwrap()
}

fn audio(bytes: &[u8]) -> Value {
    json!({"type": "audio", "chunk": BASE64.encode_to_string(bytes)})
}

#[tokio::test(flavor = "multi_thread")]
async fn recordings_on_a_stream_are_answered_in_their_order() {
    let (server, mut node) = ready().await;
    let mut stream = stream_as(&server, None).await;
    stream.send(json!({"type": "start", "src_lang": "en", "tgt_lang": "es"})).await;
    let started = stream.expect("started").await;
    let (_, sessions) = server.get("/api/v1/sessions").await;
    assert_eq!(sessions["sessions"][0]["session_id"], started["session_id"]);
    assert_eq!(sessions["sessions"][0]["platform"], "api-gateway");
    // More than the pipe to the session holds, and a WAV.
    stream.send(audio(&speech(6_000))).await;
    stream.send(audio(&wav_of(200))).await;
    stream.send(audio(&speech(300))).await;
    let first = node.assignment_of(0).await;
    let second = node.assignment_of(1).await;
    let third = node.assignment_of(2).await;
    assert_eq!((audio_of(&first), audio_of(&second)), (speech(6_000), speech(200)));
    node.answer(&third, "three").await;
    node.fail(&second, fault("PROCESSING_ERROR", "no good")).await;
    node.answer(&first, "one").await;
    let told = stream.expect("final").await;
    assert_eq!((&told["index"], &told["transcript"]), (&json!(0), &json!("one")));
    let told = stream.expect("error").await;
    assert_eq!((&told["index"], &told["code"]), (&json!(1), &json!("PROCESSING_ERROR")));
    assert_eq!(told["message"], "Translation failed: no good");
    assert_eq!(stream.expect("final").await["index"], 2);
    drop(stream);
    server.until_nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_says_what_is_wrong_and_goes_on() {
    let server = TestServer::start(|c| c.job.live_max = 1).await;
    let mut node = server.node("n1", &["zh", "en", "es"]).await;
    let mut stream = stream_as(&server, None).await;
    let mut wrong = async |text: &str| {
        stream.send_text(text).await;
        stream.expect("error").await["message"].as_str().unwrap().to_owned()
    };
    assert_eq!(wrong("{").await, "Invalid JSON");
    assert_eq!(wrong(r#"{"type":"stop"}"#).await, "Unknown message type");
    assert_eq!(wrong(r#"{"type":"audio"}"#).await, "Missing audio chunk");
    assert_eq!(wrong(r#"{"type":"audio","chunk":"?"}"#).await, "Invalid base64 audio");
    assert_eq!(wrong(r#"{"type":"audio","chunk":"AAAA"}"#).await, "Session not started");
    let no_language = wrong(r#"{"type":"start","src_lang":"not a language"}"#).await;
    assert!(no_language.starts_with("Failed to create session: "), "{no_language}");
    stream.send(json!({"type": "start", "partials": true})).await;
    stream.expect("started").await;
    stream.send(audio(b"abc")).await;
    let told = stream.expect("error").await;
    assert_eq!(told["message"], "Translation failed: pcm16 has an odd number of bytes");
    stream.send(audio(&speech(100))).await;
    let job = node.assignment().await;
    stream.send(audio(&speech(100))).await;
    node.peer.send(json!({"type": "asr_partial", "job_id": job["job_id"], "text": "so"})).await;
    let partial = stream.expect("partial").await;
    assert_eq!((&partial["index"], &partial["text"]), (&json!(0), &json!("so")));
    // The second was refused at once, and is told of when its turn comes.
    server.until_metric("utterd_jobs_refused_total{why=\"server_full\"}", 1.0).await;
    node.answer(&job, "one").await;
    assert_eq!(stream.expect("final").await["index"], 0);
    let told = stream.expect("error").await;
    assert_eq!((&told["index"], &told["code"]), (&json!(1), &json!("OVERLOADED")));
    assert_eq!(told["retry_after_ms"], 1_000);
    // A second start is another session, which counts from the beginning.
    stream.send(json!({"type": "start", "src_lang": "en", "tgt_lang": "es"})).await;
    stream.expect("started").await;
    stream.send(audio(&speech(100))).await;
    let job = node.assignment().await;
    assert_eq!((&job["tgt_lang"], &job["utterance_index"]), (&json!("es"), &json!(0)));
    node.answer(&job, "two").await;
    assert_eq!(stream.expect("final").await["transcript"], "two");
}
