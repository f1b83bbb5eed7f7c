//! What the tests against the real server share: a server on port 0, and doubles of the two peers
//! that speak the wire by hand.

#![allow(dead_code, reason = "each test file uses its part")]

pub mod described;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use described::{Said, hold_answer_to_it, hold_to_it};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::client::Request;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};
use utterd::config::Config;
use utterd::server::Server;

/// Longest wait for something that is to happen at once.
pub const SOON: Duration = Duration::from_secs(10);
/// How long silence is listened to before it counts.
pub const QUIET: Duration = Duration::from_millis(150);

/// A server of its own directory.
pub struct TestServer {
    pub server: Server,
    pub dir: TempDir,
}

impl TestServer {
    /// With embedded defaults, no hangover, and what `change` makes of them.
    pub async fn start(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config_for(dir.path());
        change(&mut config);
        let server = Server::start(config).await.unwrap();
        Self { server, dir }
    }

    /// With this configuration, which names `dir` as its data directory.
    pub async fn start_in(dir: TempDir, config: Config) -> Self {
        let server = Server::start(config).await.unwrap();
        Self { server, dir }
    }

    /// Stops in good order and starts again in the same directory, at the same address.
    pub async fn restart(self, change: impl FnOnce(&mut Config)) -> Self {
        let Self { server, dir } = self;
        let addr = server.addr();
        server.stop().await;
        let mut config = config_for(dir.path());
        config.server.listen = addr.to_string();
        change(&mut config);
        Self::start_in(dir, config).await
    }

    pub fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    /// Moves the server's clock.
    pub fn advance(&self, by: Duration) {
        self.server.clock().advance(by);
    }

    pub async fn client(&self) -> Peer {
        Peer::connect(self.addr(), "/ws/session").await
    }

    pub async fn raw_node(&self) -> Peer {
        Peer::connect(self.addr(), "/ws/node").await
    }

    /// A node that is registered for all pairs of `languages` and in the pools.
    pub async fn node(&self, id: &str, languages: &[&str]) -> FakeNode {
        let node = FakeNode::register(self.raw_node().await, id, languages).await;
        self.until(|body| body["state"] == "ready", &format!("/api/v1/nodes/{id}")).await;
        self.settle_pools(id).await;
        node
    }

    /// A node that can say what it has, and is in the pools; what it is answered, job by job.
    pub async fn able_node(
        &self,
        id: &str,
        boot_id: &str,
        inflight: &[&Value],
        unacked: &[&Value],
    ) -> (FakeNode, Value) {
        let hello = hello_message(id, boot_id, inflight, unacked);
        let (node, jobs) = FakeNode::hello(self.raw_node().await, hello).await;
        self.settle_pools(id).await;
        (node, jobs)
    }

    /// A node for Chinese and English whose name may have any characters.
    pub async fn node_named(&self, name: &str) -> FakeNode {
        let node = FakeNode::register(self.raw_node().await, name, &["zh", "en"]).await;
        self.settle_pools(name).await;
        node
    }

    async fn settle_pools(&self, id: &str) {
        let listed = |body: &Value| body["pairs"].to_string().contains(&format!("\"{id}\""));
        self.until(listed, "/api/v1/pools").await;
    }

    /// A session, opened; its id.
    pub async fn session(&self, src: &str, tgt: &str) -> (Peer, String) {
        let mut client = self.client().await;
        client
            .send(json!({"type": "session_init", "client_version": "t", "platform": "web",
            "src_lang": src, "tgt_lang": tgt}))
            .await;
        let ack = client.expect("session_init_ack").await;
        let id = ack["session_id"].as_str().unwrap().to_owned();
        (client, id)
    }

    /// GET, as JSON; null where the answer is no JSON.
    pub async fn get(&self, path: &str) -> (u16, Value) {
        let (status, body) = http(self.addr(), "GET", path, "").await;
        (status, serde_json::from_str(&body).unwrap_or(Value::Null))
    }

    /// One metric's value, by its name with labels.
    pub async fn metric(&self, name: &str) -> f64 {
        let (_, text) = http(self.addr(), "GET", "/metrics", "").await;
        let line = text.lines().find(|l| l.strip_prefix(name).is_some_and(|r| r.starts_with(' ')));
        line.and_then(|l| l.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
    }

    /// The sum of a metric over all its labels that contain every one of `labels`.
    pub async fn metric_sum(&self, name: &str, labels: &[&str]) -> f64 {
        let (_, text) = http(self.addr(), "GET", "/metrics", "").await;
        let fits = |line: &&str| {
            let of_name = line.strip_prefix(name).is_some_and(|r| r.starts_with([' ', '{']));
            of_name && labels.iter().all(|label| line.contains(label))
        };
        let value = |line: &str| line.rsplit(' ').next()?.parse::<f64>().ok();
        text.lines().filter(fits).filter_map(value).sum()
    }

    /// Asks for a metric until it is `value`.
    pub async fn until_metric(&self, name: &str, value: f64) {
        let deadline = tokio::time::Instant::now() + SOON;
        loop {
            let is = self.metric(name).await;
            if is == value {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "{name} stays at {is}, not {value}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Asks for a metric until it is above `value`.
    pub async fn until_metric_is_above(&self, name: &str, value: f64) {
        let deadline = tokio::time::Instant::now() + SOON;
        while self.metric(name).await <= value {
            assert!(tokio::time::Instant::now() < deadline, "{name} stays at {value}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// What is known of a job, once it has crossed that border.
    pub async fn job_at(&self, id: &Value, stage: &str) -> Value {
        let path = format!("/api/v1/jobs/{}", id.as_str().unwrap());
        self.until(|job| job["stamps_us"][stage].is_u64(), &path).await
    }

    /// Waits until nothing is left of any session or job: tables empty, slots free, gauges zero.
    pub async fn until_nothing_is_left(&self) {
        self.until(|b| b["total"] == 0 && b["sessions"] == json!([]), "/api/v1/sessions").await;
        self.until(|b| b["jobs"] == json!({"live": 0, "waiting": 0}), "/api/v1/stats").await;
        let free = |b: &Value| b["nodes"].as_array().unwrap().iter().all(|n| n["slots_used"] == 0);
        self.until(free, "/api/v1/nodes").await;
        for gauge in ["utterd_sessions", "utterd_jobs_live", "utterd_jobs_waiting"] {
            self.until_metric(gauge, 0.0).await;
        }
        self.until_metric("utterd_connections{socket=\"session\"}", 0.0).await;
    }

    /// A heartbeat of a node that is well, taken in.
    pub async fn beat(&self, node: &mut FakeNode) {
        node.peer.send(heartbeat_message(&node.id, &["zh", "en"])).await;
        self.until(|b| b["silent_ms"].as_u64() < Some(1_000), &node.path()).await;
    }

    /// Waits until the node is in that state, and in the pools exactly if that is `ready`.
    pub async fn until_node_is(&self, node: &FakeNode, state: &str) {
        self.until(|b| b["state"] == state, &node.path()).await;
        let quoted = format!("\"{}\"", node.id);
        let fits = |b: &Value| b["pairs"].to_string().contains(&quoted) == (state == "ready");
        self.until(fits, "/api/v1/pools").await;
    }

    /// Asks until the answer is as wanted.
    pub async fn until(&self, wanted: impl Fn(&Value) -> bool, path: &str) -> Value {
        let deadline = tokio::time::Instant::now() + SOON;
        loop {
            let (_, body) = self.get(path).await;
            if wanted(&body) {
                return body;
            }
            assert!(tokio::time::Instant::now() < deadline, "{path} stays at {body}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Embedded defaults on any port in `dir`, no hangover.
pub fn config_for(dir: &Path) -> Config {
    let mut config = Config::default();
    config.server.listen = "127.0.0.1:0".into();
    config.server.data = dir.to_owned();
    config.segmenter.hangover_manual_ms = 0;
    config
}

/// One HTTP exchange: status and body.
pub async fn http(addr: SocketAddr, method: &str, path: &str, body: &str) -> (u16, String) {
    http_with(addr, method, path, "", body).await
}

/// The same with further header lines, each with its end.
pub async fn http_with(
    addr: SocketAddr,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> (u16, String) {
    let stream = TcpStream::connect(addr).await.unwrap();
    http_over(stream, method, path, headers, body).await
}

/// The same over an open stream.
pub async fn http_over(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> (u16, String) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n{headers}\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    if status > 0 {
        hold_answer_to_it(method, path, status, body);
    }
    (status, body.to_owned())
}

/// What a WebSocket may run over.
pub trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// One end of a WebSocket, JSON in and out.
pub struct Peer {
    socket: WebSocketStream<Box<dyn Wire>>,
    /// Which WebSocket of the server.
    path: String,
    /// Messages read while another was waited for.
    seen: Vec<Value>,
}

impl Peer {
    pub async fn connect(addr: SocketAddr, path: &str) -> Self {
        let stream = TcpStream::connect(addr).await.unwrap();
        Self::over(stream, path).await.unwrap()
    }

    /// Over an open stream.
    pub async fn over(stream: impl Wire + 'static, path: &str) -> Result<Self, Error> {
        Self::asking(stream, format!("ws://h{path}").into_client_request()?).await
    }

    /// With this request, over an open stream.
    pub async fn asking(stream: impl Wire + 'static, request: Request) -> Result<Self, Error> {
        let (stream, path): (Box<dyn Wire>, _) =
            (Box::new(stream), request.uri().path().to_owned());
        let (socket, _) = client_async(request, stream).await?;
        Ok(Self { socket, path, seen: Vec::new() })
    }

    pub async fn send(&mut self, message: Value) {
        self.send_text(&message.to_string()).await;
    }

    pub async fn send_text(&mut self, text: &str) {
        self.socket.send(Message::text(text)).await.unwrap();
    }

    pub async fn send_raw(&mut self, message: Message) {
        self.socket.send(message).await.unwrap();
    }

    /// The next message, of any type; none when the connection ends.
    pub async fn next(&mut self) -> Option<Value> {
        if !self.seen.is_empty() {
            return Some(self.seen.remove(0));
        }
        self.read(SOON).await.expect("nothing came")
    }

    /// The next message, of any type; none when the connection ends, or nothing comes any more.
    pub async fn next_within(&mut self) -> Option<Value> {
        self.read(SOON).await.ok().flatten()
    }

    /// `Err` when nothing came in time, `Ok(None)` when the connection ended.
    async fn read(
        &mut self,
        within: Duration,
    ) -> Result<Option<Value>, tokio::time::error::Elapsed> {
        tokio::time::timeout(within, async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Text(text))) => {
                        let frame = serde_json::from_str(&text).unwrap();
                        hold_to_it(&self.path, Said::ByServer, &frame);
                        return Some(frame);
                    }
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
                    Some(Ok(_)) => {}
                }
            }
        })
        .await
    }

    /// The next message of that type; others are kept for later.
    pub async fn expect(&mut self, kind: &str) -> Value {
        if let Some(at) = self.seen.iter().position(|m| m["type"] == kind) {
            return self.seen.remove(at);
        }
        loop {
            match self.read(SOON).await {
                Ok(Some(message)) if message["type"] == kind => return message,
                Ok(Some(message)) => self.seen.push(message),
                Ok(None) => panic!("closed while waiting for {kind}; seen: {:?}", self.seen),
                Err(_) => panic!("no {kind} came; seen: {:?}", self.seen),
            }
        }
    }

    /// The next message of one of these types; others are kept for later.
    pub async fn next_of(&mut self, kinds: &[&str]) -> Value {
        let fits = |m: &Value| m["type"].as_str().is_some_and(|kind| kinds.contains(&kind));
        if let Some(at) = self.seen.iter().position(fits) {
            return self.seen.remove(at);
        }
        loop {
            match self.read(SOON).await {
                Ok(Some(message)) if fits(&message) => return message,
                Ok(Some(message)) => self.seen.push(message),
                Ok(None) => panic!("closed while waiting for {kinds:?}; seen: {:?}", self.seen),
                Err(_) => panic!("none of {kinds:?} came; seen: {:?}", self.seen),
            }
        }
    }

    /// The next last word on an utterance.
    pub async fn told(&mut self) -> Value {
        self.next_of(&["translation_result", "missing_result"]).await
    }

    /// Everything that comes before it is quiet, and what was seen before.
    pub async fn everything(&mut self) -> Vec<Value> {
        while let Ok(Some(message)) = self.read(QUIET).await {
            self.seen.push(message);
        }
        std::mem::take(&mut self.seen)
    }

    /// A sentence of a quarter of a second, ended by hand.
    pub async fn sentence(&mut self, session: &str) {
        self.chunk(session, 0, &speech(256), false).await;
        self.chunk(session, 1, &[], true).await;
    }

    /// The code of the next failure that is told.
    pub async fn failure(&mut self) -> String {
        loop {
            let event = self.expect("ui_event").await;
            if event["event"] == "ERROR" {
                assert_eq!(event["status"], "error");
                return event["error_code"].as_str().unwrap().to_owned();
            }
        }
    }

    /// The messages of that type that were read while others were waited for.
    pub fn seen_of(&mut self, kind: &str) -> Vec<Value> {
        self.seen.extract_if(.., |m| m["type"] == kind).collect()
    }

    /// The next frame as it is; none when the connection ends or nothing comes.
    pub async fn next_frame(&mut self) -> Option<Message> {
        tokio::time::timeout(SOON, self.socket.next()).await.ok()??.ok()
    }

    /// The code of the close frame that comes next, whatever else comes before it.
    pub async fn close_code(&mut self) -> Option<u16> {
        loop {
            if let Message::Close(frame) = self.next_frame().await? {
                return frame.map(|frame| frame.code.into());
            }
        }
    }

    /// All messages of that type that come before it is quiet, and those already seen.
    pub async fn all(&mut self, kind: &str) -> Vec<Value> {
        while let Ok(Some(message)) = self.read(QUIET).await {
            self.seen.push(message);
        }
        let (of_kind, rest) =
            std::mem::take(&mut self.seen).into_iter().partition(|m| m["type"] == kind);
        self.seen = rest;
        of_kind
    }

    /// Whether the server ends the connection soon.
    pub async fn ends(&mut self) -> bool {
        loop {
            match self.read(SOON).await {
                Ok(Some(message)) => self.seen.push(message),
                Ok(None) => return true,
                Err(_) => return false,
            }
        }
    }

    /// A piece of a stream; an empty one is a bare marker.
    pub async fn chunk(&mut self, session: &str, seq: u64, audio: &[u8], is_final: bool) {
        let payload = base64_simd::STANDARD.encode_to_string(audio);
        self.send(json!({"type": "audio_chunk", "session_id": session, "seq": seq,
            "is_final": is_final, "payload": payload}))
            .await;
    }

    /// A whole recording of a second.
    pub async fn utterance(&mut self, session: &str, index: u64, src: &str, tgt: &str) {
        let audio = base64_simd::STANDARD.encode_to_string(speech(1_000));
        self.send(json!({"type": "utterance", "session_id": session, "utterance_index": index,
            "manual_cut": true, "src_lang": src, "tgt_lang": tgt, "dialect": null, "audio": audio,
            "audio_format": "pcm16", "sample_rate": 16000}))
            .await;
    }
}

/// One HTTP connection for many exchanges, which may be written ahead of their answers.
pub struct Http {
    stream: tokio::io::BufReader<TcpStream>,
}

impl Http {
    pub async fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).await.unwrap();
        Self { stream: tokio::io::BufReader::new(stream) }
    }

    /// Writes a request.
    pub async fn ask(&mut self, method: &str, path: &str, body: &str) {
        use tokio::io::AsyncWriteExt;
        let length = body.len();
        let text = format!(
            "{method} {path} HTTP/1.1\r\nhost: h\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }

    /// Reads the next answer: status and body.
    pub async fn answer(&mut self) -> (u16, String) {
        use tokio::io::{AsyncBufReadExt, AsyncReadExt};
        let (mut status, mut length) = (0, 0);
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line).await.unwrap();
            let line = line.trim_end().to_ascii_lowercase();
            if let Some(rest) = line.strip_prefix("http/1.1 ") {
                status = rest[..3].parse().unwrap();
            } else if let Some(rest) = line.strip_prefix("content-length: ") {
                length = rest.parse().unwrap();
            } else if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await.unwrap();
        (status, String::from_utf8(body).unwrap())
    }
}

/// Loud pcm16 of that length at 16 kHz.
pub fn speech(ms: usize) -> Vec<u8> {
    let wave = |i: usize| if i % 40 < 20 { 6_000_i16 } else { -6_000 };
    (0..ms * 16).flat_map(|i| wave(i).to_le_bytes()).collect()
}

/// A chunk of a browser: length-prefixed Opus packets of `bytes` each, 20 ms apiece.
pub fn opus(packets: usize, bytes: u16) -> Vec<u8> {
    let packet = [bytes.to_le_bytes().to_vec(), vec![0x48; bytes.into()]].concat();
    packet.repeat(packets)
}

/// A registration as the real node agent writes it.
pub fn register_message(id: Option<&str>, languages: &[&str]) -> Value {
    json!({"type": "node_register", "node_id": id, "version": "2.0.0",
        "capability_schema_version": "2.0", "platform": "linux",
        "hardware": {"cpu_cores": 2, "memory_gb": 24}, "installed_models": [],
        "installed_services": [
            {"service_id": "faster-whisper", "type": "asr", "device": "gpu", "status": "running"},
            {"service_id": "nmt-m2m100", "type": "nmt", "device": "gpu", "status": "running"},
            {"service_id": "piper-tts", "type": "tts", "device": "gpu", "status": "running"}],
        "capability_by_type": [{"type": "asr", "ready": true, "devices": ["gpu"]},
            {"type": "nmt", "ready": true, "devices": ["gpu"]},
            {"type": "tts", "ready": true, "devices": ["gpu"]}],
        "features_supported": {}, "accept_public_jobs": true,
        "language_capabilities": {"asr_languages": languages, "tts_languages": languages,
            "semantic_languages": languages, "semantic_core_ready": true}})
}

/// A registration of a node that can say what it has: assignments it works on, and those it has
/// answered without being told that the answer was taken.
pub fn hello_message(id: &str, boot_id: &str, inflight: &[&Value], unacked: &[&Value]) -> Value {
    let list = |jobs: &[&Value]| -> Vec<Value> {
        let attempt =
            |job: &&Value| json!({"job_id": job["job_id"], "attempt_id": job["attempt_id"]});
        jobs.iter().map(attempt).collect()
    };
    let mut message = register_message(Some(id), &["zh", "en"]);
    message["extensions"] = json!(["result_ack"]);
    message["boot_id"] = boot_id.into();
    message["inflight"] = list(inflight).into();
    message["unacked"] = list(unacked).into();
    message
}

/// A heartbeat as the real node agent writes it.
pub fn heartbeat_message(id: &str, languages: &[&str]) -> Value {
    let mut message = register_message(Some(id), languages);
    message["type"] = "node_heartbeat".into();
    message["timestamp"] = 1.into();
    message["resource_usage"] =
        json!({"cpu_percent": 12.5, "gpu_percent": 0, "mem_percent": 34.4, "running_jobs": 0});
    message
}

/// A node that does what the test says.
pub struct FakeNode {
    pub peer: Peer,
    pub id: String,
}

impl FakeNode {
    pub async fn register(mut peer: Peer, id: &str, languages: &[&str]) -> Self {
        peer.send(register_message(Some(id), languages)).await;
        let ack = peer.expect("node_register_ack").await;
        Self { id: ack["node_id"].as_str().unwrap().to_owned(), peer }
    }

    /// With a hello; the node and what it is answered, job by job.
    pub async fn hello(mut peer: Peer, message: Value) -> (Self, Value) {
        peer.send(message).await;
        let ack = peer.expect("node_register_ack").await;
        assert_eq!(ack["extensions"], json!(["result_ack"]));
        (Self { id: ack["node_id"].as_str().unwrap().to_owned(), peer }, ack["jobs"].clone())
    }

    /// What the next result acknowledged has become.
    pub async fn acked(&mut self, job: &Value) -> String {
        let ack = self.peer.expect("result_ack").await;
        assert_eq!((&ack["job_id"], &ack["attempt_id"]), (&job["job_id"], &job["attempt_id"]));
        ack["status"].as_str().unwrap().to_owned()
    }

    /// Where the API tells about it.
    pub fn path(&self) -> String {
        format!("/api/v1/nodes/{}", self.id)
    }

    /// The next assignment, which is to be of that utterance.
    pub async fn assignment_of(&mut self, index: u64) -> Value {
        let job = self.assignment().await;
        assert_eq!(job["utterance_index"], index, "{job}");
        job
    }

    /// The node was given nothing, and nothing comes.
    pub async fn has_nothing(&mut self) {
        let jobs = self.peer.all("job_assign").await;
        assert!(jobs.is_empty(), "{jobs:?}");
    }

    /// The next assignment.
    pub async fn assignment(&mut self) -> Value {
        self.peer.expect("job_assign").await
    }

    /// The answer to an assignment: `text` heard and translated, no speech.
    pub fn result(&self, job: &Value, text: &str) -> Value {
        json!({"type": "job_result", "job_id": job["job_id"], "attempt_id": job["attempt_id"],
            "node_id": self.id, "session_id": job["session_id"],
            "utterance_index": job["utterance_index"], "success": true, "text_asr": text,
            "text_translated": format!("{text}!"), "tts_audio": "QUJDRA==", "tts_format": "pcm16",
            "extra": {}, "processing_time_ms": 5, "trace_id": job["trace_id"]})
    }

    pub async fn answer(&mut self, job: &Value, text: &str) {
        let message = self.result(job, text);
        self.peer.send(message).await;
    }

    /// A failure with this code.
    pub async fn fail(&mut self, job: &Value, error: Value) {
        self.peer
            .send(json!({"type": "job_result", "job_id": job["job_id"],
                "attempt_id": job["attempt_id"], "node_id": self.id,
                "session_id": job["session_id"], "utterance_index": job["utterance_index"],
                "success": false, "processing_time_ms": 5, "error": error,
                "trace_id": job["trace_id"]}))
            .await;
    }
}

/// Which attempt in this life of the server an assignment is, from 1.
pub fn attempt_of(job: &Value) -> u64 {
    job["attempt_id"].as_u64().unwrap() & 0xFF
}

/// The audio of an assignment.
pub fn audio_of(job: &Value) -> Vec<u8> {
    base64_simd::STANDARD.decode_to_vec(job["audio"].as_str().unwrap()).unwrap()
}

/// An error as nodes write it.
pub fn fault(code: &str, message: &str) -> Value {
    json!({"code": code, "message": message, "details": {}})
}
