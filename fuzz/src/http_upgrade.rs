//! HTTP up to the step to a WebSocket: `transport::serve` and `transport::upgrade`, over a pipe.
//!
//! Whatever is asked, every answer is an answer, and nobody gets a WebSocket whose request does not
//! say so in the words of RFC 6455.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use utterd::transport::{
    Body, Connection, Entrance, House, HttpLimits, Limits, Outbox, Service, answer, serve, upgrade,
};

use super::memory::{door, runtime};
use super::script::Script;

/// Upgrades whoever asks for it.
#[derive(Default)]
struct Gate {
    agreed: AtomicUsize,
}

fn limits() -> Limits {
    let seconds = Duration::from_secs;
    Limits {
        rates: utterd::transport::Rates::default(),
        message_bytes_max: 2_000,
        read_buffer_bytes: 512,
        write_buffer_bytes: 256,
        outbox_bytes_max: 3_000,
        ping_interval: seconds(30),
        pong_timeout: seconds(10),
        write_progress_timeout: seconds(10),
        first_message_timeout: seconds(10),
        close_timeout: seconds(2),
    }
}

impl Service for Gate {
    async fn call(
        self: Arc<Self>,
        mut request: Request<Incoming>,
        _: SocketAddr,
    ) -> Response<Body> {
        if request.uri().path() == "/plain" {
            return answer(StatusCode::OK, "plain");
        }
        match upgrade(&mut request, &limits()) {
            Ok((response, socket)) => {
                self.agreed.fetch_add(1, SeqCst);
                tokio::spawn(async move {
                    let Ok(socket) = socket.await else { return };
                    let outbox: Arc<Outbox<()>> = Outbox::new(2, 3_000);
                    let mut connection = Connection::new(socket, limits(), outbox);
                    drop(connection.next().await);
                });
                response
            }
            Err(response) => response,
        }
    }
}

pub fn run(input: &[u8]) {
    let mut script = Script::new(input);
    let cuts: Vec<usize> = (0..script.pick(6)).map(|_| script.any::<u8>().into()).collect();
    let asked = script.rest();
    let gate = Arc::new(Gate::default());
    let answers = runtime().block_on(ask(Arc::clone(&gate), asked, &cuts));
    let text = String::from_utf8_lossy(&answers);
    let agreed = text.starts_with("HTTP/1.1 101 ") || text.contains("\r\n\r\nHTTP/1.1 101 ");
    let agreed = agreed || text.contains("plainHTTP/1.1 101 ");
    assert!(!agreed || gate.agreed.load(SeqCst) == 1, "a WebSocket that nobody agreed to");
    if agreed {
        let said = String::from_utf8_lossy(asked).to_ascii_lowercase();
        for word in ["get ", "host", "upgrade", "connection", "sec-websocket-key", "websocket"] {
            assert!(said.contains(word), "a WebSocket without {word} in {said}");
        }
        assert!(text.to_ascii_lowercase().contains("sec-websocket-accept: "));
    }
    let is_answer = answers.is_empty() || answers.starts_with(b"HTTP/1.");
    assert!(is_answer, "not an answer: {text}");
}

async fn ask(gate: Arc<Gate>, asked: &[u8], cuts: &[usize]) -> Vec<u8> {
    let (listener, street) = door();
    let house = House::new(4, utterd::transport::VisitorLimits::default());
    let entrance = Entrance { house: house.clone(), limits: HttpLimits::default(), tls: None };
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(serve(listener, gate, entrance, stopped));
    let (mut reading, mut writing) = tokio::io::split(street.connect().await);
    let (mut rest, cuts) = (asked.to_vec(), cuts.to_vec());
    let send = tokio::spawn(async move {
        for cut in cuts {
            let after = rest.split_off(cut.min(rest.len()));
            if writing.write_all(&rest).await.is_err() {
                return;
            }
            rest = after;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        writing.write_all(&rest).await.ok();
        // Who only listens is not waited for.
        tokio::time::sleep(Duration::from_secs(20)).await;
        writing.shutdown().await.ok();
    });
    let mut answers = Vec::new();
    let read = reading.read_to_end(&mut answers);
    let ended = tokio::time::timeout(Duration::from_secs(300), read).await;
    assert!(ended.is_ok(), "a connection is kept for ever");
    send.await.expect("it only sends");
    drop(reading);
    stop.send(()).expect("it is served");
    serving.await.expect("it serves");
    // What is left of the connection is done by and by.
    for _ in 0..100 {
        if house.open() == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(house.open(), 0, "a connection that ended is counted");
    answers
}
