//! The HTTP side over real sockets: what is answered, what is cut off, what is counted.

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

use super::*;
use crate::transport::{Connection, Event, Frame, Outbox, Rates};

const SOON: Duration = Duration::from_secs(5);

fn websocket_limits() -> Limits {
    Limits {
        message_bytes_max: 8 * 1024,
        read_buffer_bytes: 1024,
        write_buffer_bytes: 2048,
        outbox_bytes_max: 8 * 1024,
        rates: Rates::default(),
        ping_interval: SOON,
        pong_timeout: SOON,
        write_progress_timeout: SOON,
        first_message_timeout: SOON,
        close_timeout: SOON,
    }
}

/// How long the reader of a live answer may take nothing.
const PATIENCE: Duration = Duration::from_millis(100);

/// Greets on every path but these: on one it says everything twice, on one it never ends to talk,
/// on one it begins an answer and says nothing.
struct Echo;

impl Service for Echo {
    async fn call(
        self: Arc<Self>,
        mut request: Request<Incoming>,
        _peer: SocketAddr,
    ) -> Response<Body> {
        match request.uri().path() {
            "/echo" => {}
            "/talk" => {
                let pieces = futures_util::stream::repeat(Bytes::from_static(&[b'x'; 64 * 1024]));
                return Response::new(Body::live(pieces, PATIENCE));
            }
            "/silence" => {
                return Response::new(Body::live(futures_util::stream::pending(), PATIENCE));
            }
            _ => return answer(StatusCode::OK, "hello"),
        }
        match upgrade(&mut request, &websocket_limits()) {
            Err(refusal) => refusal,
            Ok((response, socket)) => {
                tokio::spawn(async move { echo(socket.await.expect("upgraded")).await });
                response
            }
        }
    }
}

async fn echo(socket: Socket) {
    let outbox = Outbox::new(16, 8 * 1024);
    let mut connection = Connection::new(socket, websocket_limits(), Arc::clone(&outbox));
    loop {
        match connection.next().await {
            Event::Text(text) => {
                let frame = Frame { text: text.into(), tag: () };
                outbox.push(frame).expect("room for an echo");
            }
            Event::Closed(_) => return,
            _ => {}
        }
    }
}

/// A server for one test. Dropping `stop` shuts it down.
struct Running {
    at: SocketAddr,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<()>,
}

async fn running(limits: HttpLimits) -> Running {
    running_in(House::new(16, VisitorLimits::default()), limits).await
}

async fn running_in(house: House, limits: HttpLimits) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel();
    let entrance = Entrance { house, limits, tls: None };
    let serving = tokio::spawn(serve(listener, Arc::new(Echo), entrance, stopped));
    Running { at, stop, serving }
}

impl Running {
    async fn dial(&self) -> TcpStream {
        TcpStream::connect(self.at).await.unwrap()
    }

    /// Sends `request` and returns all that comes back until the server closes or resets: it does
    /// the latter when it did not care to read everything.
    async fn ask(&self, request: &str) -> String {
        let mut tcp = self.dial().await;
        tcp.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let end = tcp.read_to_end(&mut answer);
        if let Err(error) = timeout(SOON, end).await.expect("the server closes") {
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
        String::from_utf8(answer).unwrap()
    }

    async fn echo_socket(&self) -> Result<WebSocketStream<TcpStream>, String> {
        let url = format!("ws://{}/echo", self.at);
        match client_async(url, self.dial().await).await {
            Ok((socket, _)) => Ok(socket),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// One answer with a body of known length, from a connection that stays open.
async fn one_answer(tcp: &mut TcpStream) -> String {
    let mut seen = Vec::new();
    while !seen.ends_with(b"hello") {
        seen.push(timeout(SOON, tcp.read_u8()).await.expect("an answer").expect("all of it"));
    }
    String::from_utf8(seen).unwrap()
}

async fn says_back(socket: &mut WebSocketStream<TcpStream>, text: &str) -> bool {
    socket.send(Message::text(text)).await.unwrap();
    let back = timeout(SOON, socket.next()).await.expect("an echo");
    back.unwrap().unwrap() == Message::text(text)
}

#[tokio::test]
async fn a_connection_serves_several_requests_and_then_a_websocket() {
    let server = running(HttpLimits::default()).await;
    let mut tcp = server.dial().await;
    for _ in 0..2 {
        tcp.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        assert!(one_answer(&mut tcp).await.starts_with("HTTP/1.1 200"));
    }
    let (mut socket, response) =
        client_async(format!("ws://{}/echo", server.at), tcp).await.unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert!(says_back(&mut socket, "twice").await);
}

#[tokio::test]
async fn slow_headers_are_cut_off() {
    let patience = Duration::from_millis(50);
    let server = running(HttpLimits { header_timeout: patience, ..HttpLimits::default() }).await;
    for sent in ["", "GET / HTTP/1.1\r\nho"] {
        let answer = server.ask(sent).await;
        assert!(!answer.contains("200"), "{answer}");
    }
}

#[tokio::test]
async fn an_idle_connection_is_cut_off() {
    let patience = Duration::from_millis(50);
    let server = running(HttpLimits { header_timeout: patience, ..HttpLimits::default() }).await;
    let mut tcp = server.dial().await;
    tcp.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    one_answer(&mut tcp).await;
    let mut rest = Vec::new();
    timeout(SOON, tcp.read_to_end(&mut rest)).await.expect("closed").unwrap();
}

#[tokio::test]
async fn headers_are_bounded() {
    let server = running(HttpLimits::default()).await;
    let many = |count| {
        let lines: String = (0..count).map(|n| format!("h{n}: x\r\n")).collect();
        format!("GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{lines}\r\n")
    };
    assert!(server.ask(&many(62)).await.starts_with("HTTP/1.1 200"));
    assert!(server.ask(&many(63)).await.starts_with("HTTP/1.1 431"));
    let long = format!("GET / HTTP/1.1\r\nh: {}", "x".repeat(16 * 1024));
    assert!(server.ask(&long).await.starts_with("HTTP/1.1 431"));
}

#[tokio::test]
async fn the_count_covers_websockets_until_they_end() {
    let server = running_in(House::new(1, VisitorLimits::default()), HttpLimits::default()).await;
    let mut socket = server.echo_socket().await.unwrap();
    assert!(says_back(&mut socket, "upgraded").await);
    // It closes without having read, so the request it never looks at may reset the connection.
    let mut turned_away = server.dial().await;
    let mut answer = Vec::new();
    timeout(SOON, turned_away.read_to_end(&mut answer)).await.expect("closed").unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 503 "), "{answer:?}");

    socket.close(None).await.unwrap();
    while socket.next().await.is_some() {}
    let mut tries = 0;
    let mut next = loop {
        match server.echo_socket().await {
            Ok(socket) => break socket,
            Err(why) => assert!(tries < 100, "the place was never given back: {why}"),
        }
        tries += 1;
        sleep(Duration::from_millis(1)).await;
    };
    assert!(says_back(&mut next, "my turn").await);
}

#[tokio::test]
async fn the_count_covers_plain_connections() {
    let server = running_in(House::new(2, VisitorLimits::default()), HttpLimits::default()).await;
    let ask = "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    for _ in 0..20 {
        // Each gives its place back, if not before its last byte then soon after.
        let mut tries = 0;
        while !server.ask(ask).await.starts_with("HTTP/1.1 200") {
            tries += 1;
            assert!(tries < 100, "the places were never given back");
            sleep(Duration::from_millis(1)).await;
        }
    }
}

#[tokio::test]
async fn shutdown_ends_idle_connections_but_no_websocket() {
    let server = running(HttpLimits::default()).await;
    let mut socket = server.echo_socket().await.unwrap();
    let mut idle = server.dial().await;
    idle.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    one_answer(&mut idle).await;
    let Running { at, stop, serving } = server;
    stop.send(()).unwrap();
    timeout(SOON, serving).await.expect("serve returns").unwrap();
    let mut rest = Vec::new();
    timeout(SOON, idle.read_to_end(&mut rest)).await.expect("closed").unwrap();
    assert!(TcpStream::connect(at).await.is_err(), "nobody listens any more");
    assert!(says_back(&mut socket, "still here").await);
}

const GOOD: &[(&str, &str)] = &[
    ("Host", "x"),
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

/// A good upgrade request with headers replaced (all of that name), added, or removed (no value).
fn changed(method: &str, changes: &[(&str, &str)]) -> String {
    let kept = GOOD.iter().filter(|(name, _)| changes.iter().all(|(other, _)| name != other));
    let added = changes.iter().filter(|(_, value)| !value.is_empty());
    let lines: String = kept.chain(added).map(|(n, v)| format!("{n}: {v}\r\n")).collect();
    format!("{method}\r\n{lines}\r\n")
}

#[tokio::test]
async fn improper_upgrades_are_refused() {
    let server = running(HttpLimits::default()).await;
    let get = "GET /echo HTTP/1.1";
    let key = "dGhlIHNhbXBsZSBub25jZQ==";
    let close = ("Connection", "close");
    let both = ("Connection", "close, upgrade");
    for (method, changes, status, mention) in [
        ("POST /echo HTTP/1.1", vec![both], 405, "allow: GET"),
        (get, vec![close, ("Upgrade", "")], 426, "upgrade: websocket"),
        (get, vec![both, ("Upgrade", "h2c")], 426, "upgrade: websocket"),
        (get, vec![both, ("Sec-WebSocket-Version", "8")], 426, "sec-websocket-version: 13"),
        (get, vec![close], 400, "Connection: Upgrade"),
        (get, vec![both, ("Host", "")], 400, "Host"),
        (get, vec![both, ("Host", "x"), ("Host", "y")], 400, "Host"),
        (get, vec![both, ("Sec-WebSocket-Version", "")], 400, "Version"),
        (get, vec![both, ("Sec-WebSocket-Key", "")], 400, "Key"),
        (get, vec![both, ("Sec-WebSocket-Key", "c2hvcnQ=")], 400, "Key"),
        (get, vec![both, ("Sec-WebSocket-Key", key), ("Sec-WebSocket-Key", key)], 400, "Key"),
        (get, vec![both, ("Content-Length", "4")], 400, "no body"),
        (get, vec![both, ("Transfer-Encoding", "chunked")], 400, "no body"),
        ("GET /echo HTTP/1.0", vec![both], 400, "HTTP/1.1"),
    ] {
        let answer = server.ask(&changed(method, &changes)).await;
        let said = answer.split(' ').nth(1);
        assert_eq!(said, Some(status.to_string().as_str()), "{changes:?}: {answer}");
        assert!(answer.contains(mention), "{changes:?}: {answer}");
    }
}

#[tokio::test]
async fn unusual_but_proper_upgrades_are_agreed_to() {
    let server = running(HttpLimits::default()).await;
    for changes in [
        vec![],
        vec![("Connection", "keep-alive, Upgrade")],
        vec![("Connection", "keep-alive"), ("Connection", "upgrade")],
        vec![("Upgrade", "WebSocket")],
        vec![("Upgrade", "h2c, websocket")],
        vec![("Content-Length", "0")],
        vec![
            ("Sec-WebSocket-Protocol", "chat"),
            ("Sec-WebSocket-Extensions", "permessage-deflate"),
        ],
    ] {
        let mut tcp = server.dial().await;
        tcp.write_all(changed("GET /echo HTTP/1.1", &changes).as_bytes()).await.unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(b"\r\n\r\n") {
            seen.push(timeout(SOON, tcp.read_u8()).await.expect("an answer").unwrap());
        }
        let answer = String::from_utf8(seen).unwrap().to_lowercase();
        assert!(answer.starts_with("http/1.1 101 "), "{changes:?}: {answer}");
        assert!(answer.contains("s3pplmbitxaq9kygzzhzrbk+xoo="), "{answer}");
        for unwanted in ["sec-websocket-protocol", "sec-websocket-extensions"] {
            assert!(!answer.contains(unwanted), "{answer}");
        }
    }
}

/// Bytes that arrive together with the request are the first of the WebSocket, not lost.
#[tokio::test]
async fn a_hasty_first_message_is_heard() {
    let server = running(HttpLimits::default()).await;
    let mut tcp = server.dial().await;
    let mut bytes = changed("GET /echo HTTP/1.1", &[]).into_bytes();
    bytes.extend(*b"\x81\x85\0\0\0\0hasty");
    tcp.write_all(&bytes).await.unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"\x81\x05hasty") {
        seen.push(timeout(SOON, tcp.read_u8()).await.expect("an echo").unwrap());
    }
}

#[test]
fn accept_waits_for_resources_but_not_for_one_lost_peer() {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset};
    for kind in [ConnectionAborted, ConnectionReset] {
        assert_eq!(pause_after(&kind.into()), None);
    }
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    for code in [ENFILE, EMFILE] {
        assert_eq!(pause_after(&io::Error::from_raw_os_error(code)), Some(ACCEPT_PAUSE));
    }
}

/// Opens `path` in a house of its own, and whether its server still has it after `pause`, in which
/// all that comes is read or nothing is.
async fn is_kept(path: &str, pause: Duration, reads: bool) -> bool {
    let house = House::new(1, VisitorLimits::default());
    let server = running_in(house.clone(), HttpLimits::default()).await;
    let mut tcp = server.dial().await;
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
    tcp.write_all(request.as_bytes()).await.unwrap();
    let mut head = [0; 12];
    tcp.read_exact(&mut head).await.unwrap();
    let reading = async {
        let mut bytes = vec![0; 256 * 1024];
        while reads && tcp.read(&mut bytes).await.is_ok_and(|n| n > 0) {}
        std::future::pending::<()>().await;
    };
    let gone = async {
        while house.open() > 0 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        () = reading => true,
        gone = timeout(pause, gone) => gone.is_err(),
    }
}

#[tokio::test]
async fn a_reader_that_takes_nothing_of_a_live_answer_is_given_up() {
    assert!(!is_kept("/talk", SOON, false).await, "nothing is taken");
    assert!(is_kept("/talk", PATIENCE * 5, true).await, "all is taken");
    assert!(is_kept("/silence", PATIENCE * 5, false).await, "there is nothing to take");
}
