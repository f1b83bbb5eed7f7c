//! HTTP: who answers which path, the two WebSocket endpoints, health, metrics, and what an
//! operator may do. What there is to read is in pages.rs.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode, header};
use serde_json::json;
use tokio::sync::oneshot;
use tracing::{debug, warn};

use super::credentials::Admitted;
use super::node::NodeTask;
use super::paths::methods_of;
use super::session::SessionTask;
use super::shared::{Command, Shared};
use crate::config::{self, Pool};
use crate::node::Node;
use crate::protocol::{NodeId, limits};
use crate::store::StoreStats;
use crate::telemetry::Metrics;
use crate::tenant::{CODE_MS, KeyKind};
use crate::transport::{Body, Connection, Limits, Outbox, Rates, Service, Stream, answer, upgrade};

/// Longest request body read, in bytes.
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// Rows in one answer.
pub(super) const ROWS_MAX: usize = 1_000;

/// Answers requests and turns upgrades into connection tasks.
pub(super) struct Routes {
    pub(super) shared: Arc<Shared>,
    serves: Serves,
}

/// Whom a listener is for. Pages are answered by every one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Serves {
    Everyone,
    Sessions,
    Nodes,
}

impl Routes {
    pub(super) fn new(shared: Arc<Shared>, serves: Serves) -> Self {
        Self { shared, serves }
    }

    async fn route(&self, mut request: Request<Incoming>, peer: SocketAddr) -> Response<Body> {
        let path = request.uri().path().to_owned();
        // Its answer is that to GET, of which the head alone is sent.
        if request.method() == Method::HEAD && !request.headers().contains_key(header::UPGRADE) {
            *request.method_mut() = Method::GET;
        }
        if path.starts_with("/api/v1/")
            && path != "/api/v1/session-tokens"
            && let Err(refusal) = self.admit_operator(&request, peer)
        {
            return refusal;
        }
        let Some(methods) = methods_of(&path) else {
            return fault(StatusCode::NOT_FOUND, "no such page");
        };
        if !methods.contains(&request.method().as_str()) {
            return not_allowed(methods);
        }
        match path.as_str() {
            "/ws/session" if self.serves != Serves::Nodes => {
                self.session_socket(&mut request, peer)
            }
            "/ws/node" if self.serves != Serves::Sessions => self.node_socket(&mut request, peer),
            "/api/v1/session-tokens" => self.session_token(request, peer).await,
            "/v1/speech/translate" if self.has_gateway() => self.translate(request, peer).await,
            "/v1/stream" if self.has_gateway() => self.stream(&mut request, peer),
            "/openapi.json" => super::documents::openapi(),
            "/asyncapi.json" => super::documents::asyncapi(),
            "/health" => answer(StatusCode::OK, "OK"),
            "/readyz" => self.readyz(),
            "/metrics" => match self.admit_operator(&request, peer) {
                Ok(()) => self.metrics(),
                Err(refusal) => refusal,
            },
            "/api/v1/stats" => self.stats(),
            "/api/v1/nodes" => reply(StatusCode::OK, &self.nodes()),
            "/api/v1/pools" if request.method() == Method::GET => {
                reply(StatusCode::OK, &self.pools())
            }
            "/api/v1/pools" => self.replace_pools(request).await,
            "/api/v1/rooms" => reply(StatusCode::OK, &super::rooms::listed(&self.shared, ROWS_MAX)),
            "/api/v1/sessions" => reply(StatusCode::OK, &self.sessions()),
            "/api/v1/jobs" => reply(StatusCode::OK, &self.jobs()),
            "/api/v1/usage" => reply(StatusCode::OK, &self.usage()),
            other => match other.strip_prefix("/api/v1/keys") {
                Some("") => self.keys(&[], request, peer).await,
                Some(rest) if rest.starts_with('/') => {
                    self.keys(&[&rest[1..]], request, peer).await
                }
                _ => self.about_one(other, &request, peer).await,
            },
        }
    }

    async fn about_one(
        &self,
        path: &str,
        request: &Request<Incoming>,
        peer: SocketAddr,
    ) -> Response<Body> {
        let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        match (request.method(), segments.as_slice()) {
            (method, ["api", "v1", "dead-letters", rest @ ..]) => {
                self.dead_letters(method, rest, request.uri().query(), peer).await
            }
            (&Method::GET, ["api", "v1", "jobs", id]) => self.job(id).await,
            (&Method::GET, ["api", "v1", "nodes", id]) => {
                match self.shared.registry.get(&NodeId::from(*id)) {
                    Some(node) => reply(StatusCode::OK, &self.node(&node, self.shared.now())),
                    None => fault(StatusCode::NOT_FOUND, "no such node"),
                }
            }
            (&Method::POST, ["api", "v1", "nodes", id, "pairing-codes"]) => self.pairing_code(id),
            (&Method::POST, ["api", "v1", "tls", "reload"]) => self.reload_certificates().await,
            (&Method::POST, ["api", "v1", "nodes", id, "drain"]) => self.move_node(id, Node::drain),
            (&Method::POST, ["api", "v1", "nodes", id, "undrain"]) => {
                self.move_node(id, |node| node.undrain(self.shared.now()))
            }
            // A path of the other listener, or of what is turned off.
            _ => fault(StatusCode::NOT_FOUND, "no such page"),
        }
    }

    fn has_gateway(&self) -> bool {
        self.serves != Serves::Nodes && self.shared.config.gateway.enabled
    }

    fn session_socket(&self, request: &mut Request<Incoming>, peer: SocketAddr) -> Response<Body> {
        if !self.shared.ready.load(SeqCst) {
            return self.not_now();
        }
        let t = &self.shared.config.transport;
        let limits = Limits {
            message_bytes_max: t.session_message_bytes_max,
            read_buffer_bytes: t.session_read_buffer_bytes,
            outbox_bytes_max: t.session_outbox_bytes_max,
            ..self.limits()
        };
        let pass = match self.admit(KeyKind::Session, request, peer) {
            Ok(pass) => pass,
            Err(refusal) => return refusal,
        };
        let shared = Arc::clone(&self.shared);
        let frames_max = t.session_outbox_frames_max;
        open_socket(request, peer, limits, frames_max, move |connection, outbox| {
            let admitted = Admitted::session(&shared, pass, &outbox);
            SessionTask::new(shared, peer, admitted, connection, outbox).run()
        })
    }

    /// The answer to a session that comes too early, or too late.
    pub(super) fn not_now(&self) -> Response<Body> {
        let (why, seconds) = match self.shared.is_draining() {
            true => ("going down", limits::reconnect_after_ms().div_ceil(1_000)),
            false => ("starting", 1),
        };
        let mut response = fault(StatusCode::SERVICE_UNAVAILABLE, why);
        response.headers_mut().insert(header::RETRY_AFTER, seconds.max(1).into());
        response
    }

    fn node_socket(&self, request: &mut Request<Incoming>, peer: SocketAddr) -> Response<Body> {
        let t = &self.shared.config.transport;
        let limits = Limits {
            message_bytes_max: t.node_message_bytes_max,
            read_buffer_bytes: t.node_read_buffer_bytes,
            outbox_bytes_max: t.node_outbox_bytes_max,
            rates: Rates {
                bytes: t.node_bytes_per_second,
                frames: t.node_frames_per_second,
                controls: t.node_controls_per_second,
            },
            ..self.limits()
        };
        let pass = match self.admit(KeyKind::Node, request, peer) {
            Ok(pass) => pass,
            Err(refusal) => return refusal,
        };
        let shared = Arc::clone(&self.shared);
        open_socket(request, peer, limits, t.node_outbox_frames_max, move |connection, outbox| {
            let admitted = Admitted::node(&shared, pass, &outbox);
            NodeTask::new(shared, peer, admitted, connection, outbox).run()
        })
    }

    pub(super) fn limits(&self) -> Limits {
        let t = &self.shared.config.transport;
        Limits {
            message_bytes_max: t.session_message_bytes_max,
            read_buffer_bytes: t.session_read_buffer_bytes,
            // What is told together leaves together.
            write_buffer_bytes: 4 * 1024,
            outbox_bytes_max: t.session_outbox_bytes_max,
            rates: Rates {
                bytes: t.session_bytes_per_second,
                frames: t.session_frames_per_second,
                controls: t.session_controls_per_second,
            },
            ping_interval: Duration::from_millis(t.ping_interval_ms),
            pong_timeout: Duration::from_millis(t.pong_timeout_ms),
            write_progress_timeout: Duration::from_millis(t.write_progress_timeout_ms),
            first_message_timeout: Duration::from_millis(t.first_message_timeout_ms),
            close_timeout: Duration::from_millis(t.write_progress_timeout_ms),
        }
    }

    fn readyz(&self) -> Response<Body> {
        let store = self.shared.store.as_ref();
        let ready = self.shared.ready.load(SeqCst);
        match ready && store.is_none_or(|store| store.takes_sessions()) {
            true => answer(StatusCode::OK, "ready"),
            false => answer(StatusCode::SERVICE_UNAVAILABLE, "not ready"),
        }
    }

    fn metrics(&self) -> Response<Body> {
        let text = self.shared.metrics.text();
        let mut response = Response::new(Body::from(text));
        let kind = header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }

    /// Makes a code by which one session is served by this node alone.
    fn pairing_code(&self, id: &str) -> Response<Body> {
        let (shared, now) = (&self.shared, self.shared.now());
        let Some(node) = shared.registry.get(&NodeId::from(id)) else {
            return fault(StatusCode::NOT_FOUND, "no such node");
        };
        let Some(code) = shared.pairings.make(&node.id, now) else {
            return fault(
                StatusCode::SERVICE_UNAVAILABLE,
                "too many pairing codes are good already",
            );
        };
        let body = json!({"pairing_code": format!("{code:06}"), "node_id": node.id,
            "expires_unix_ms": now.unix_ms + CODE_MS});
        reply(StatusCode::CREATED, &body)
    }

    fn move_node(&self, id: &str, step: impl FnOnce(&Node) -> bool) -> Response<Body> {
        let Some(node) = self.shared.registry.get(&NodeId::from(id)) else {
            return fault(StatusCode::NOT_FOUND, "no such node");
        };
        let moved = step(&node);
        if moved {
            warn!(node = id, state = node.state().as_str(), "node moved by an operator");
            self.shared.control.node_changed(node.index);
        }
        reply(StatusCode::OK, &json!({"node_id": node.id, "state": node.state(), "changed": moved}))
    }

    async fn replace_pools(&self, request: Request<Incoming>) -> Response<Body> {
        let body = match Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await {
            Ok(body) => body.to_bytes(),
            Err(_) => return fault(StatusCode::PAYLOAD_TOO_LARGE, "the body is too long"),
        };
        let pools: Vec<Pool> = match serde_json::from_slice(&body) {
            Ok(pools) => pools,
            Err(error) => return fault(StatusCode::BAD_REQUEST, &error.to_string()),
        };
        let (asked, answered) = oneshot::channel();
        let command = Command::ReplacePools(pools, asked);
        if self.shared.control.commands.try_send(command).is_err() {
            return fault(StatusCode::SERVICE_UNAVAILABLE, "too many changes at once");
        }
        match answered.await {
            Ok(Ok(version)) => reply(StatusCode::OK, &json!({"version": version})),
            Ok(Err(faults)) => fault(StatusCode::UNPROCESSABLE_ENTITY, &faults.to_string()),
            Err(_) => fault(StatusCode::SERVICE_UNAVAILABLE, "going down"),
        }
    }
}

impl Service for Routes {
    async fn call(self: Arc<Self>, request: Request<Incoming>, peer: SocketAddr) -> Response<Body> {
        if let Some(origin) = strange_origin(&request, &self.shared.config.transport) {
            debug!(%peer, ?origin, "an origin that is not allowed");
            self.shared.metrics.origins_refused.inc();
            return fault(StatusCode::FORBIDDEN, "this origin is not allowed");
        }
        self.route(request, peer).await
    }
}

/// The origin that a request names and that is not allowed. Who names none is no browser, or its
/// page comes from here.
fn strange_origin<'a, B>(
    request: &'a Request<B>,
    config: &config::Transport,
) -> Option<&'a header::HeaderValue> {
    let allowed = &config.allowed_origins;
    let known = |origin: &&header::HeaderValue| {
        allowed.iter().any(|one| one.as_bytes().eq_ignore_ascii_case(origin.as_bytes()))
    };
    let mut named = request.headers().get_all(header::ORIGIN).iter();
    named.find(|origin| !allowed.is_empty() && !known(origin))
}

/// Agrees to a WebSocket and gives it to a task of its own, or answers why not.
pub(super) fn open_socket<T: Send + 'static, F: Future<Output = ()> + Send + 'static>(
    request: &mut Request<Incoming>,
    peer: SocketAddr,
    limits: Limits,
    frames_max: usize,
    run: impl FnOnce(Connection<Stream, T>, Arc<Outbox<T>>) -> F + Send + 'static,
) -> Response<Body> {
    let (response, socket) = match upgrade(request, &limits) {
        Ok(agreed) => agreed,
        Err(refusal) => return refusal,
    };
    let outbox = Outbox::new(frames_max, limits.outbox_bytes_max);
    tokio::spawn(async move {
        match socket.await {
            // A task of its own again, which does not carry what the upgrade needed.
            Ok(socket) => {
                let connection = Connection::new(socket, limits, Arc::clone(&outbox));
                drop(tokio::spawn(run(connection, outbox)));
            }
            Err(error) => debug!(%peer, %error, "a peer left during the upgrade"),
        }
    });
    response
}

pub(super) fn reply(status: StatusCode, body: &impl serde::Serialize) -> Response<Body> {
    // Only a map whose keys are no text could fail.
    let text = serde_json::to_vec(body).unwrap_or_default();
    let mut response = Response::new(Body::from(Bytes::from(text)));
    *response.status_mut() = status;
    let json = header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

fn not_allowed(methods: &[&str]) -> Response<Body> {
    let mut response = fault(StatusCode::METHOD_NOT_ALLOWED, "not a method of this page");
    let head = methods.contains(&"GET").then_some("HEAD");
    let allowed: Vec<&str> = methods.iter().copied().chain(head).collect();
    if let Ok(value) = header::HeaderValue::from_str(&allowed.join(", ")) {
        response.headers_mut().insert(header::ALLOW, value);
    }
    response
}

pub(super) fn fault(status: StatusCode, message: &str) -> Response<Body> {
    reply(status, &json!({"error": message}))
}

/// Shows the store's counters.
pub(super) fn store_gauges(metrics: &Metrics, stats: &StoreStats) {
    let lanes = [
        ("results", stats.queued_results),
        ("accepts", stats.queued_accepts),
        ("housekeeping", stats.queued_housekeeping),
    ];
    for (lane, queued) in lanes {
        metrics.store_queued.with_label_values(&[lane]).set(queued as i64);
    }
    metrics.store_last_commit_us.set(stats.last_commit_us as i64);
    metrics.store_commits.set(stats.commits as i64);
    metrics.store_bad_rows.set(stats.bad_rows as i64);
    metrics.store_dead_letters.set(stats.dead_letters as i64);
    metrics.store_dead_letters_expired.set(stats.dead_letters_expired as i64);
    metrics.store_pressure.set(stats.pressure as i64);
    metrics.store_health.set(stats.health as i64);
    metrics.store_free_bytes.set(i64::try_from(stats.free_bytes).unwrap_or(i64::MAX));
    metrics.store_syncs.set(stats.io.syncs as i64);
    metrics.store_sync_us.set(stats.io.sync_us as i64);
}
