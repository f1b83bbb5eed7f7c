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
use tracing::{debug, warn};

use super::credentials::Admitted;
use super::log_level;
use super::node::NodeTask;
use super::paths::methods_of;
use super::session::SessionTask;
use super::shared::Shared;
use super::whence::{Whence, is_own_page, is_sent_by_others};
use crate::config::{self, Version};
use crate::node::Node;
use crate::protocol::{NodeId, limits};
use crate::store::StoreStats;
use crate::telemetry::Metrics;
use crate::tenant::{CODE_MS, KeyKind};
use crate::transport::{Body, Connection, Limits, Outbox, Rates, Service, Stream, answer, upgrade};

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
        let settings = &self.shared.settings;
        let whence = settings.with(|v| Whence::of(&request, peer, &v.config.transport));
        if path.starts_with("/api/v1/")
            && path != "/api/v1/session-tokens"
            && let Err(refusal) = self.admit_operator(&request, whence)
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
            "/metrics" => match self.admit_operator(&request, whence) {
                Ok(_) => self.metrics(),
                Err(refusal) => refusal,
            },
            "/api/v1/stats" => self.stats(),
            "/api/v1/nodes" => reply(StatusCode::OK, &self.nodes()),
            "/api/v1/rooms" => reply(StatusCode::OK, &super::rooms::listed(&self.shared, ROWS_MAX)),
            "/api/v1/sessions" => reply(StatusCode::OK, &self.sessions()),
            "/api/v1/explain" => self.explain(request.uri().query()),
            "/api/v1/jobs" => reply(StatusCode::OK, &self.jobs()),
            "/api/v1/usage" => reply(StatusCode::OK, &self.usage()),
            page if page.starts_with("/console") => self.console_file(page),
            other => match other.strip_prefix("/api/v1/keys") {
                Some("") => self.keys(&[], request, whence).await,
                Some(rest) if rest.starts_with('/') => {
                    self.keys(&[&rest[1..]], request, whence).await
                }
                _ if changes(other) => self.change(other, request, whence).await,
                _ => self.about_one(other, &request, whence).await,
            },
        }
    }

    async fn about_one(
        &self,
        path: &str,
        request: &Request<Incoming>,
        whence: Whence,
    ) -> Response<Body> {
        let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        match (request.method(), segments.as_slice()) {
            (method, ["api", "v1", "dead-letters", rest @ ..]) => {
                self.dead_letters(method, rest, request.uri().query(), whence).await
            }
            (&Method::GET, ["api", "v1", "console", what]) => {
                self.console(what, request, whence).await
            }
            (&Method::GET, ["api", "v1", "jobs", id]) => self.job(id).await,
            (&Method::GET, ["api", "v1", "sessions", id]) => self.session(id).await,
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
        self.serves != Serves::Nodes && self.shared.settings.with(|v| v.config.gateway.enabled)
    }

    fn session_socket(&self, request: &mut Request<Incoming>, peer: SocketAddr) -> Response<Body> {
        if !self.shared.ready.load(SeqCst) {
            return self.not_now();
        }
        let (limits, frames_max) = self.shared.settings.with(|version| {
            let t = &version.config.transport;
            (session_limits(t), t.session_outbox_frames_max)
        });
        let pass = match self.admit(KeyKind::Session, request, peer.ip()) {
            Ok(pass) => pass,
            Err(refusal) => return refusal,
        };
        let shared = Arc::clone(&self.shared);
        let outbox = Outbox::within(&shared.outgoing, frames_max, limits.outbox_bytes_max);
        open_socket(request, peer, limits, outbox, move |connection, outbox| {
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
        let (limits, frames_max) = self.shared.settings.with(|version| {
            let t = &version.config.transport;
            (node_limits(t), t.node_outbox_frames_max)
        });
        let pass = match self.admit(KeyKind::Node, request, peer.ip()) {
            Ok(pass) => pass,
            Err(refusal) => return refusal,
        };
        let shared = Arc::clone(&self.shared);
        let outbox = Outbox::new(frames_max, limits.outbox_bytes_max);
        open_socket(request, peer, limits, outbox, move |connection, outbox| {
            let admitted = Admitted::node(&shared, pass, &outbox);
            NodeTask::new(shared, peer, admitted, connection, outbox).run()
        })
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

    /// What an operator changes while the server runs.
    async fn change(
        &self,
        path: &str,
        request: Request<Incoming>,
        whence: Whence,
    ) -> Response<Body> {
        let segments: Vec<&str> = path.trim_start_matches('/').split('/').skip(2).collect();
        match (request.method(), segments.as_slice()) {
            (&Method::GET, ["config"]) => self.settings(whence),
            (&Method::POST, ["config", "reload"]) => self.reload_settings().await,
            (&Method::POST, ["drain"]) => self.drain(),
            (&Method::POST, ["backup"]) => self.backup(whence).await,
            (&Method::GET, ["log-level"]) => log_level::page(),
            (&Method::PUT, ["log-level"]) => log_level::set(request).await,
            (_, ["pools", rest @ ..]) if rest.len() < 2 => {
                let name = rest.first().map(|name| (*name).to_owned());
                self.change_pools(name, request).await
            }
            _ => fault(StatusCode::NOT_FOUND, "no such page"),
        }
    }
}

/// Whether a path is one of those by which an operator changes the server.
fn changes(path: &str) -> bool {
    let first = path.strip_prefix("/api/v1/").and_then(|rest| rest.split('/').next());
    first.is_some_and(|name| ["config", "drain", "backup", "log-level", "pools"].contains(&name))
}

/// Of a session's connection.
pub(super) fn session_limits(t: &config::Transport) -> Limits {
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

/// Of a node's connection.
fn node_limits(t: &config::Transport) -> Limits {
    Limits {
        message_bytes_max: t.node_message_bytes_max,
        read_buffer_bytes: t.node_read_buffer_bytes,
        outbox_bytes_max: t.node_outbox_bytes_max,
        rates: Rates {
            bytes: t.node_bytes_per_second,
            frames: t.node_frames_per_second,
            controls: t.node_controls_per_second,
        },
        ..session_limits(t)
    }
}

/// The body of a request.
pub(super) async fn body_within(
    request: Request<Incoming>,
    bytes_max: usize,
) -> Result<Bytes, Response<Body>> {
    match Limited::new(request.into_body(), bytes_max).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(_) => Err(fault(StatusCode::PAYLOAD_TOO_LARGE, "the body is too long")),
    }
}

impl Service for Routes {
    async fn call(self: Arc<Self>, request: Request<Incoming>, peer: SocketAddr) -> Response<Body> {
        let strange =
            |version: &Version| strange_origin(&request, &version.config.transport).is_some();
        if self.shared.settings.with(strange) {
            let origin = request.headers().get(header::ORIGIN);
            debug!(%peer, ?origin, "an origin that is not allowed");
            self.shared.metrics.origins_refused.inc();
            return fault(StatusCode::FORBIDDEN, "this origin is not allowed");
        }
        let others = |version: &Version| is_sent_by_others(&request, &version.config.transport);
        if self.shared.settings.with(others) {
            debug!(%peer, "a page of somebody else asks for something");
            self.shared.metrics.origins_refused.inc();
            return fault(StatusCode::FORBIDDEN, "not from pages of other sites");
        }
        self.route(request, peer).await
    }
}

/// The origin that a request names and that is not allowed. Who names none is no browser, or its
/// page comes from here; so does one whose origin is an address of this host.
fn strange_origin<'a, B>(
    request: &'a Request<B>,
    config: &config::Transport,
) -> Option<&'a header::HeaderValue> {
    let allowed = &config.allowed_origins;
    let known = |origin: &&header::HeaderValue| {
        allowed.iter().any(|one| one.as_bytes().eq_ignore_ascii_case(origin.as_bytes()))
    };
    let mut named = request.headers().get_all(header::ORIGIN).iter();
    named.find(|origin| !allowed.is_empty() && !known(origin) && !is_own_page(request, origin))
}

/// Agrees to a WebSocket and gives it to a task of its own, or answers why not.
pub(super) fn open_socket<T: Send + 'static, F: Future<Output = ()> + Send + 'static>(
    request: &mut Request<Incoming>,
    peer: SocketAddr,
    limits: Limits,
    outbox: Arc<Outbox<T>>,
    run: impl FnOnce(Connection<Stream, T>, Arc<Outbox<T>>) -> F + Send + 'static,
) -> Response<Body> {
    let (response, socket) = match upgrade(request, &limits) {
        Ok(agreed) => agreed,
        Err(refusal) => return refusal,
    };
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
    metrics.store_last_commit_seconds.set(stats.last_commit_us as f64 / 1e6);
    Metrics::bring(&metrics.store_commits, stats.commits);
    Metrics::bring(&metrics.store_bad_rows, stats.bad_rows);
    metrics.store_dead_letters.set(stats.dead_letters as i64);
    Metrics::bring(&metrics.store_dead_letters_expired, stats.dead_letters_expired);
    metrics.store_pressure.set(stats.pressure as i64);
    metrics.store_health.set(stats.health as i64);
    metrics.store_free_bytes.set(i64::try_from(stats.free_bytes).unwrap_or(i64::MAX));
    Metrics::bring(&metrics.store_syncs, stats.io.syncs);
    let spent = stats.io.sync_us as f64 / 1e6 - metrics.store_sync_seconds.get();
    metrics.store_sync_seconds.inc_by(spent.max(0.0));
}
