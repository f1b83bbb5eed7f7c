//! The accept loop, TLS where a listener has it, HTTP/1.1, and the step from there to a WebSocket.
//!
//! A socket is counted from `accept` until it is closed, whatever becomes of it in between: the
//! count lives inside the socket itself, so nobody can forget to carry it along.
//!
//! It refuses to know paths, credentials and what happens after an upgrade.

use std::convert::Infallible;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::http::request;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, watch};
use tokio_tungstenite::tungstenite::handshake::server::create_response;

use super::body::{Body, Flow};
use super::listen::Listen;
use super::pipe::Stream;
use super::socket::WebSocket;
use super::tls::TlsDoor;
use super::visitors::{Visitor, VisitorLimits, Visitors};
use super::websocket::{Limits, server_socket};
use crate::config::Live;

/// A WebSocket that began as an HTTP request.
pub type Socket = WebSocket<Stream>;

/// The answer to send, and what becomes the socket once it has been sent.
pub type Agreed<F> = (Response<Body>, F);

/// How an upgrade turned out.
type NewSocket = Result<Socket, hyper::Error>;

/// Answers requests.
pub trait Service: Send + Sync + 'static {
    /// Answers one request. It runs inside the connection's task: slow work belongs elsewhere.
    fn call(
        self: Arc<Self>,
        request: Request<Incoming>,
        peer: SocketAddr,
    ) -> impl Future<Output = Response<Body>> + Send;
}

/// What HTTP peers may take before they have shown who they are.
#[derive(Debug, Clone)]
pub struct HttpLimits {
    /// From the first moment, or from the last answer, until the end of a request's headers. As
    /// much is given to the TLS handshake before that.
    pub header_timeout: Duration,
    /// Headers in one request; browsers send about 20. Beyond it: 431.
    pub headers_max: usize,
    /// Bytes of one request's line and headers. Beyond it: 431. At least 8 KiB.
    pub buffer_bytes_max: usize,
    /// Bytes that the system may hold for a peer that does not take them; 0 leaves it to the
    /// system.
    pub send_buffer_bytes: usize,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            header_timeout: Duration::from_secs(5),
            headers_max: 64,
            buffer_bytes_max: 16 * 1024,
            send_buffer_bytes: 0,
        }
    }
}

/// The smallest buffer hyper works with.
const BUFFER_BYTES_MIN: usize = 8 * 1024;
/// Pause after `accept` failed for want of something: trying at once would only burn a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How those who come to a listener are let in.
#[derive(Clone)]
pub struct Entrance {
    /// Counts them. Several listeners may share one, and with it one bound.
    pub house: House,
    /// How long they may take.
    pub limits: HttpLimits,
    /// With whom they shake hands first; none where they speak plainly.
    pub tls: Option<TlsDoor>,
}

/// Serves connections until `shutdown` resolves, then returns; the listener is closed with that.
///
/// HTTP connections finish the request they are in; WebSockets live on with their owners.
pub async fn serve<L: Listen, S: Service>(
    listener: L,
    service: Arc<S>,
    entrance: Entrance,
    shutdown: impl Future,
) {
    let Entrance { house, limits, tls } = entrance;
    let mut shutdown = pin!(shutdown);
    // Dropped on return, which is how the connections learn of it.
    let (_running, stopping) = watch::channel(());
    let http = http_builder(&limits);
    loop {
        let (tcp, peer) = tokio::select! {
            biased;
            _ = &mut shutdown => return,
            accepted = accept(&listener) => accepted,
        };
        let permit = match house.admit(peer.ip()) {
            Ok(permit) => permit,
            Err(full) => {
                // Without waiting for the question: it costs one write and no task. Who expects
                // TLS would not understand it.
                let words = if tls.is_none() { full.words() } else { String::new() };
                let outcome = L::turn_away(tcp, words.as_bytes());
                tracing::debug!(%peer, ?full, ?outcome, "too many connections");
                continue;
            }
        };
        if let Err(error) = prepare::<L>(&tcp, &limits) {
            tracing::debug!(%peer, %error, "peer left before it was served");
            continue;
        }
        let io = Admitted { tcp, _permit: permit };
        let (http, service, stopping) = (http.clone(), Arc::clone(&service), stopping.clone());
        match tls.clone() {
            None => drop(tokio::spawn(connection(http, io, peer, service, stopping))),
            Some(door) => drop(tokio::spawn(async move {
                if let Some(io) = door.shake_hands(io, peer, limits.header_timeout).await {
                    connection(http, io, peer, service, stopping).await;
                }
            })),
        }
    }
}

fn prepare<L: Listen>(tcp: &L::Stream, limits: &HttpLimits) -> io::Result<()> {
    L::set_nodelay(tcp)?;
    match limits.send_buffer_bytes {
        0 => Ok(()),
        bytes => L::bound_send_buffer(tcp, bytes),
    }
}

fn http_builder(limits: &HttpLimits) -> http1::Builder {
    let mut http = http1::Builder::new();
    // Without a timer hyper forgives every slow header.
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_headers(limits.headers_max)
        .max_buf_size(limits.buffer_bytes_max.max(BUFFER_BYTES_MIN))
        .keep_alive(true)
        .half_close(false);
    http
}

/// One connection, from its first byte until it ends or becomes a WebSocket.
async fn connection<T: AsyncRead + AsyncWrite + Send + Unpin + 'static, S: Service>(
    http: http1::Builder,
    io: T,
    peer: SocketAddr,
    service: Arc<S>,
    mut stopping: watch::Receiver<()>,
) {
    let (asked, live) = (Notify::new(), LiveAnswer::default());
    let answers = service_fn(|request| {
        let (service, live) = (Arc::clone(&service), &live);
        asked.notify_one();
        async move {
            let answer = service.call(request, peer).await;
            live.watch(answer.body());
            Ok::<_, Infallible>(answer)
        }
    });
    let mut exchange = pin!(http.serve_connection(TokioIo::new(io), answers).with_upgrades());
    let outcome = tokio::select! {
        outcome = &mut exchange => outcome,
        // Whoever was let in is answered once: told to go before the first request, hyper would
        // close on a peer whose request is on its way.
        _ = stopping.changed() => tokio::select! {
            biased;
            outcome = &mut exchange => outcome,
            () = asked.notified() => {
                exchange.as_mut().graceful_shutdown();
                exchange.await
            }
        },
        () = live.stands_still() => {
            tracing::debug!(%peer, "a reader that takes nothing is given up");
            return;
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%peer, %error, "connection ended");
    }
}

/// The answer of a connection that goes on for as long as its peer reads, if there is one.
#[derive(Default)]
struct LiveAnswer {
    flow: OnceLock<Arc<Flow>>,
    began: Notify,
}

impl LiveAnswer {
    /// Such an answer is a connection's last one.
    fn watch(&self, body: &Body) {
        if let Some(flow) = body.flow() {
            drop(self.flow.set(flow));
            self.began.notify_one();
        }
    }

    async fn stands_still(&self) {
        self.began.notified().await;
        match self.flow.get() {
            Some(flow) => flow.stands_still().await,
            None => std::future::pending().await,
        }
    }
}

/// The next connection; errors are waited out.
async fn accept<L: Listen>(listener: &L) -> (L::Stream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => {
                if let Some(pause) = pause_after(&error) {
                    tracing::warn!(%error, "cannot accept connections");
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }
}

/// How long to wait after `accept` failed: not at all if it was only about that one connection.
fn pause_after(error: &io::Error) -> Option<Duration> {
    match error.kind() {
        io::ErrorKind::ConnectionAborted
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionRefused
        | io::ErrorKind::Interrupted => None,
        // Most of all: no more file descriptors, in the process or in the system.
        _ => Some(ACCEPT_PAUSE),
    }
}

/// Counts the sockets that are open, of all listeners that share it.
#[derive(Debug, Clone)]
pub struct House {
    open: Arc<AtomicUsize>,
    connections_max: Arc<Live<usize>>,
    /// Sockets that the system has room for.
    descriptors: usize,
    visitors: Arc<Visitors>,
}

impl House {
    /// Room for so many sockets at once, WebSockets included.
    pub fn new(connections_max: impl Into<Live<usize>>, each: VisitorLimits) -> Self {
        let visitors = Arc::new(Visitors::new(each));
        let connections_max = Arc::new(connections_max.into());
        Self { open: Arc::default(), connections_max, descriptors: usize::MAX, visitors }
    }

    /// The same, with no more sockets than these, whatever the bound is: what else needs
    /// descriptors (files, new listeners) is to have some left.
    pub fn with_descriptors(self, descriptors: usize) -> Self {
        Self { descriptors, ..self }
    }

    /// Somebody from that address showed a credential that is not good; who does so too often is
    /// turned away for a while.
    pub fn failed(&self, address: IpAddr) {
        self.visitors.failed(address);
    }

    /// Sockets open now.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    fn admit(&self, address: IpAddr) -> Result<Permit, NoRoom> {
        let visitor = self.visitors.enter(address).map_err(NoRoom::OfThem)?;
        let max = self.connections_max.with(|max| *max).min(self.descriptors);
        let room = |open: usize| (open < max).then_some(open + 1);
        match self.open.fetch_update(Ordering::AcqRel, Ordering::Acquire, room) {
            Ok(_) => Ok(Permit(Arc::clone(&self.open), visitor)),
            Err(_) => {
                visitor.iter().for_each(|visitor| visitor.leave());
                Err(NoRoom::OfAll)
            }
        }
    }
}

/// Why there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NoRoom {
    /// There is none for anybody.
    OfAll,
    /// There is none for this address, for so many seconds.
    OfThem(u64),
}

impl NoRoom {
    /// What a connection is told that did not ask anything yet.
    fn words(self) -> String {
        let (status, seconds) = match self {
            NoRoom::OfAll => ("503 Service Unavailable", 1),
            NoRoom::OfThem(seconds) => ("429 Too Many Requests", seconds),
        };
        format!(
            "HTTP/1.1 {status}\r\nconnection: close\r\nretry-after: {seconds}\r\n\
             content-length: 0\r\n\r\n"
        )
    }
}

/// One open socket's place in the count, of all and of its address.
struct Permit(Arc<AtomicUsize>, Option<Arc<Visitor>>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
        self.1.iter().for_each(|visitor| visitor.leave());
    }
}

/// A socket and its permit, which ends with it: through HTTP, through the upgrade, to the
/// close.
struct Admitted<T> {
    tcp: T,
    _permit: Permit,
}

impl<T: AsyncRead + Unpin> AsyncRead for Admitted<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(context, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Admitted<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(context, buffer)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }
}

/// A short plain-text answer.
pub fn answer(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

/// Agrees to a WebSocket, or says why not.
///
/// On success the response is to be sent as it is, and the future, in a task of its own, becomes
/// the socket once it has been. No subprotocol and no extension is ever agreed to.
#[expect(clippy::result_large_err, reason = "the error is the answer, and about to be sent")]
pub fn upgrade(
    request: &mut Request<Incoming>,
    limits: &Limits,
) -> Result<Agreed<impl Future<Output = NewSocket> + Send + 'static + use<>>, Response<Body>> {
    let agreed = check_upgrade(request)?.map(|()| Body::default());
    let upgraded = hyper::upgrade::on(request);
    let limits = limits.clone();
    let socket =
        async move { Ok(server_socket(Stream::Left(TokioIo::new(upgraded.await?)), &limits)) };
    Ok((agreed, socket))
}

/// The 101 to a proper request, or the answer to an improper one.
#[expect(clippy::result_large_err, reason = "the error is the answer, and about to be sent")]
fn check_upgrade<B: hyper::body::Body>(
    request: &Request<B>,
) -> Result<Response<()>, Response<Body>> {
    let headers = request.headers();
    let bad = |why| Err(answer(StatusCode::BAD_REQUEST, why));
    if request.method() != Method::GET {
        let mut response = answer(StatusCode::METHOD_NOT_ALLOWED, "GET only");
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
        return Err(response);
    }
    if request.version() != Version::HTTP_11 {
        return bad("HTTP/1.1 only");
    }
    if !has_token(request, &header::UPGRADE, "websocket") {
        return Err(upgrade_required());
    }
    if !has_token(request, &header::CONNECTION, "upgrade") {
        return bad("no Connection: Upgrade");
    }
    if headers.get_all(header::HOST).iter().count() != 1 {
        return bad("exactly one Host is needed");
    }
    // What follows the headers are frames: a body could not be told apart from them.
    if !request.body().is_end_stream() {
        return bad("no body with an upgrade");
    }
    let Some(version) = only(request, &header::SEC_WEBSOCKET_VERSION) else {
        return bad("exactly one Sec-WebSocket-Version is needed");
    };
    if version != "13" {
        return Err(upgrade_required());
    }
    let Some(key) = only(request, &header::SEC_WEBSOCKET_KEY) else {
        return bad("exactly one Sec-WebSocket-Key is needed");
    };
    // The codec's check reads only the first of several Connection headers, and knows no lists in
    // Upgrade. Both were checked above, so it is shown the plain form.
    let plain = request::Builder::new()
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, version)
        .header(header::SEC_WEBSOCKET_KEY, key)
        .body(());
    let agreed = plain.ok().and_then(|plain| create_response(&plain).ok());
    agreed.ok_or_else(|| answer(StatusCode::BAD_REQUEST, "not a valid Sec-WebSocket-Key"))
}

/// 426 with everything the peer needs to do better.
fn upgrade_required() -> Response<Body> {
    let mut response = answer(StatusCode::UPGRADE_REQUIRED, "WebSocket version 13 only");
    let headers = response.headers_mut();
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    response
}

/// True if one of the headers called `name` lists `token`.
fn has_token<B>(request: &Request<B>, name: &HeaderName, token: &str) -> bool {
    let values = request.headers().get_all(name).iter();
    let mut tokens = values.filter_map(|value| value.to_str().ok()).flat_map(|v| v.split(','));
    tokens.any(|each| each.trim().eq_ignore_ascii_case(token))
}

/// The header called `name`, if there is exactly one.
fn only<'a, B>(request: &'a Request<B>, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = request.headers().get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

#[cfg(test)]
mod tests;
