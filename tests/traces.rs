//! Traces of jobs, as a collector gets them (OTLP over HTTP), and the context that goes with a job
//! from its client to its node.

mod support;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use serde_json::{Value, json};
use support::{FakeNode, Peer, SOON, TestServer, fault, register_message};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const CONTEXT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// Takes traces and answers each request with this status.
struct Collector {
    addr: SocketAddr,
    /// Bodies of the requests, as they came.
    bodies: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Collector {
    async fn start(status: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let bodies = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&bodies);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, status, Arc::clone(&kept)));
            }
        });
        Self { addr, bodies }
    }

    fn endpoint(&self) -> Option<String> {
        Some(format!("http://{}/v1/traces", self.addr))
    }

    fn spans(&self) -> Vec<Span> {
        let bodies = self.bodies.lock().unwrap();
        let requests = bodies.iter().map(|b| ExportTraceServiceRequest::decode(&b[..]).unwrap());
        let resources = requests.flat_map(|request| request.resource_spans);
        let scopes = resources.flat_map(|resource| {
            let resource_is = resource.resource.unwrap();
            assert_eq!(text(&resource_is.attributes, "service.name"), "utterd");
            resource.scope_spans
        });
        scopes.flat_map(|scope| scope.spans).collect()
    }

    /// Waits until that many jobs have been told of; all spans.
    async fn until_jobs(&self, count: usize) -> Vec<Span> {
        let deadline = tokio::time::Instant::now() + SOON;
        loop {
            let spans = self.spans();
            if spans.iter().filter(|span| span.name == "job").count() >= count {
                return spans;
            }
            assert!(tokio::time::Instant::now() < deadline, "only {} spans came", spans.len());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

async fn answer(mut stream: TcpStream, status: &str, bodies: Arc<Mutex<Vec<Vec<u8>>>>) {
    let mut read = Vec::new();
    loop {
        let end = loop {
            if let Some(end) = read.windows(4).position(|w| w == b"\r\n\r\n") {
                break end + 4;
            }
            if stream.read_buf(&mut read).await.unwrap_or(0) == 0 {
                return;
            }
        };
        let head = String::from_utf8(read[..end].to_vec()).unwrap().to_ascii_lowercase();
        assert!(head.starts_with("post /v1/traces http/1.1"), "{head}");
        assert!(head.contains("content-type: application/x-protobuf"), "{head}");
        let length = head.split("content-length: ").nth(1).unwrap();
        let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
        while read.len() < end + length {
            stream.read_buf(&mut read).await.unwrap();
        }
        bodies.lock().unwrap().push(read[end..end + length].to_vec());
        read.drain(..end + length);
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
}

fn text(attributes: &[KeyValue], key: &str) -> String {
    let of = attributes.iter().find(|one| one.key == key).unwrap_or_else(|| panic!("no {key}"));
    match of.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => text.clone(),
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        other => panic!("{other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn named<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("no span {name}"))
}

/// A node that wants contexts, in the pools.
async fn tracing_node(server: &TestServer, id: &str) -> FakeNode {
    let mut peer = server.raw_node().await;
    let mut hello = register_message(Some(id), &["zh", "en"]);
    hello["extensions"] = json!(["traceparent"]);
    peer.send(hello).await;
    let ack = peer.expect("node_register_ack").await;
    assert_eq!(ack["extensions"], json!(["traceparent"]));
    let node = FakeNode { peer, id: id.to_owned() };
    server.until_node_is(&node, "ready").await;
    node
}

async fn session_in(server: &TestServer, traceparent: Value) -> (Peer, String) {
    let mut client = server.client().await;
    client
        .send(json!({"type": "session_init", "client_version": "t", "platform": "web",
            "src_lang": "zh", "tgt_lang": "en", "traceparent": traceparent}))
        .await;
    let ack = client.expect("session_init_ack").await;
    let id = ack["session_id"].as_str().unwrap().to_owned();
    (client, id)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_a_span_of_its_clients_trace_and_the_parent_of_its_nodes() {
    let collector = Collector::start("200 OK").await;
    let server =
        TestServer::start(|config| config.telemetry.otlp_endpoint = collector.endpoint()).await;
    let mut node = tracing_node(&server, "n1").await;
    let (mut client, id) = session_in(&server, CONTEXT.into()).await;
    client.sentence(&id).await;
    let job = node.assignment().await;
    let mut result = node.result(&job, "quetzal");
    result["tts_audio"] = base64_simd::STANDARD.encode_to_string("axolotl").into();
    node.peer.send(result).await;
    client.told().await;
    let spans = collector.until_jobs(1).await;

    let own = named(&spans, "job");
    assert_eq!(
        (hex(&own.trace_id), hex(&own.parent_span_id)),
        (TRACE.into(), "00f067aa0ba902b7".into())
    );
    let context = job["traceparent"].as_str().unwrap();
    assert_eq!(context, format!("00-{TRACE}-{}-01", hex(&own.span_id)));
    assert_eq!(text(&own.attributes, "utterd.job"), job["job_id"].as_str().unwrap());
    assert_eq!(text(&own.attributes, "utterd.session"), id);
    assert_eq!(text(&own.attributes, "utterd.outcome"), "succeeded");
    assert_eq!((own.status.as_ref().unwrap().code, own.events.len()), (1, 1));
    assert_eq!(own.events[0].name, "attempt");
    assert_eq!(text(&own.events[0].attributes, "utterd.node"), "n1");
    let unix_ns = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    assert!(unix_ns - own.end_time_unix_nano < 60_000_000_000, "ends about now");
    for name in ["listen", "queued", "placed", "node", "durable", "delivered"] {
        let child = named(&spans, name);
        assert_eq!((&child.parent_span_id, &child.trace_id), (&own.span_id, &own.trace_id));
        assert!(own.start_time_unix_nano <= child.start_time_unix_nano, "{name}");
        assert!(child.start_time_unix_nano <= child.end_time_unix_nano, "{name}");
        assert!(child.end_time_unix_nano <= own.end_time_unix_nano, "{name}");
    }
    let mut ids: Vec<_> = spans.iter().map(|span| span.span_id.clone()).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), spans.len(), "each has an id of its own");
    assert_eq!(server.metric("utterd_traces_exported_total").await, 1.0);
    let bodies = collector.bodies.lock().unwrap().concat();
    for said in ["quetzal", "axolotl", &base64_simd::STANDARD.encode_to_string("axolotl")] {
        assert!(!bodies.windows(said.len()).any(|w| w == said.as_bytes()), "{said} is in a trace");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn contexts_go_where_they_are_wanted_and_odd_ones_nowhere() {
    let server = TestServer::start(|_| {}).await;
    let mut able = tracing_node(&server, "able").await;
    for odd in [json!(7), json!("00-0-0-0"), json!(""), Value::Null, json!({"a": []})] {
        let (mut client, id) = session_in(&server, odd).await;
        client.sentence(&id).await;
        let job = able.assignment().await;
        assert!(job["traceparent"].is_null(), "{job}");
        able.answer(&job, "said").await;
        client.told().await;
    }
    // Without a collector there is no span of ours: the node's is straight under the client's.
    let (mut client, id) = session_in(&server, CONTEXT.into()).await;
    client.sentence(&id).await;
    let job = able.assignment().await;
    assert_eq!(job["traceparent"], CONTEXT);
    able.answer(&job, "said").await;
    client.told().await;
    let audio = base64_simd::STANDARD.encode_to_string(support::speech(300));
    let own = CONTEXT.replace("4bf9", "ffff");
    client
        .send(json!({"type": "utterance", "session_id": id, "utterance_index": 1,
            "manual_cut": true, "src_lang": "zh", "tgt_lang": "en", "audio": audio,
            "audio_format": "pcm16", "sample_rate": 16000, "traceparent": own}))
        .await;
    let job = able.assignment().await;
    assert_eq!(job["traceparent"], own, "that of the utterance comes first");
    able.answer(&job, "said").await;
    client.told().await;
    drop(able);
    let mut plain = server.node("plain", &["zh", "en"]).await;
    client.chunk(&id, 2, &support::speech(300), true).await;
    let job = plain.assignment().await;
    assert!(job.get("traceparent").is_none(), "a node that did not ask is told nothing new");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_client_does_not_want_traced_is_not_and_failures_are_told() {
    let collector = Collector::start("200 OK").await;
    let server =
        TestServer::start(|config| config.telemetry.otlp_endpoint = collector.endpoint()).await;
    let mut node = tracing_node(&server, "n1").await;
    let (mut quiet, id) = session_in(&server, CONTEXT.replace("-01", "-00").into()).await;
    quiet.sentence(&id).await;
    let job = node.assignment().await;
    assert!(job["traceparent"].as_str().unwrap().ends_with("-00"));
    node.answer(&job, "said").await;
    quiet.told().await;
    // Nobody brought a context: the trace is the job's own.
    let (mut client, id) = server.session("zh", "en").await;
    client.sentence(&id).await;
    let job = node.assignment().await;
    let mut second = tracing_node(&server, "n2").await;
    node.fail(&job, fault("NODE_OVERLOADED", "axolotl")).await;
    let again = second.assignment().await;
    assert_eq!(again["traceparent"], job["traceparent"], "one span, however many attempts");
    second.fail(&again, fault("PROCESSING_ERROR", "axolotl")).await;
    client.told().await;
    let spans = collector.until_jobs(1).await;
    let own = named(&spans, "job");
    let uuid = job["job_id"].as_str().unwrap().replace("job-", "").replace('-', "");
    assert_eq!((hex(&own.trace_id), own.parent_span_id.len()), (uuid, 0));
    let status = own.status.as_ref().unwrap();
    assert_eq!((status.code, status.message.as_str()), (2, "PROCESSING_ERROR"));
    let attempts = own.events.iter().filter(|event| event.name == "attempt");
    let nodes: Vec<_> = attempts.map(|event| text(&event.attributes, "utterd.node")).collect();
    assert_eq!(nodes, ["n1", "n2"]);
    assert!(
        !String::from_utf8_lossy(&collector.bodies.lock().unwrap().concat()).contains("axolotl")
    );
    assert_eq!(spans.iter().filter(|span| span.name == "job").count(), 1);
}

/// Says one sentence after the other; each gets its result.
async fn speak(server: &TestServer, sentences: usize) {
    let mut node = server.node("n1", &["zh", "en"]).await;
    let (mut client, id) = server.session("zh", "en").await;
    for _ in 0..sentences {
        client.sentence(&id).await;
        let job = node.assignment().await;
        node.answer(&job, "said").await;
        assert_eq!(client.told().await["text_asr"], "said");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_hangs_or_refuses_costs_traces_and_nothing_else() {
    // Accepts and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Some(format!("http://{}/v1/traces", silent.local_addr().unwrap()));
    let server = TestServer::start(|config| {
        config.telemetry.otlp_endpoint = endpoint;
        config.telemetry.queue_max = 2;
    })
    .await;
    speak(&server, 8).await;
    let full = "utterd_traces_dropped_total{why=\"queue_full\"}";
    assert!(server.metric(full).await >= 1.0, "the queue is bounded");
    let began = std::time::Instant::now();
    server.server.stop().await;
    assert!(began.elapsed() < Duration::from_secs(8), "a stop does not wait for the collector");

    let refusing = Collector::start("400 Bad Request").await;
    let server =
        TestServer::start(|config| config.telemetry.otlp_endpoint = refusing.endpoint()).await;
    speak(&server, 2).await;
    server.until_metric("utterd_traces_dropped_total{why=\"refused\"}", 2.0).await;
    assert_eq!(server.metric("utterd_traces_exported_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_sends_its_last_traces() {
    let collector = Collector::start("200 OK").await;
    let server =
        TestServer::start(|config| config.telemetry.otlp_endpoint = collector.endpoint()).await;
    speak(&server, 3).await;
    server.server.stop().await;
    let jobs = collector.spans().iter().filter(|span| span.name == "job").count();
    assert_eq!(jobs, 3);
}
