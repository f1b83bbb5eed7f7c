//! HTTP: the two WebSocket endpoints, health, metrics, and the JSON answers for operators.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tracing::{debug, warn};

use super::credentials::Admitted;
use super::node::NodeTask;
use super::session::SessionTask;
use super::shared::{Command, Shared, read_store};
use crate::config::{self, Pool};
use crate::node::{Node, State};
use crate::protocol::node::ServiceType;
use crate::protocol::{JobId, NodeId, limits};
use crate::store::{StoreStats, TerminalRow};
use crate::telemetry::{Metrics, Now};
use crate::tenant::{CODE_MS, KeyKind};
use crate::transport::{Body, Connection, Limits, Outbox, Service, answer, upgrade};

/// Longest request body read, in bytes.
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// Rows in one answer.
const ROWS_MAX: usize = 1_000;
/// Languages in `top_languages`.
const TOP_LANGUAGES: usize = 10;

type Upgraded = TokioIo<hyper::upgrade::Upgraded>;

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
        let get = request.method() == Method::GET;
        if path.starts_with("/api/v1/")
            && path != "/api/v1/session-tokens"
            && let Err(refusal) = self.admit_operator(&request, peer)
        {
            return refusal;
        }
        match path.as_str() {
            "/ws/session" if self.serves != Serves::Nodes => {
                self.session_socket(&mut request, peer)
            }
            "/ws/node" if self.serves != Serves::Sessions => self.node_socket(&mut request, peer),
            "/api/v1/session-tokens" if request.method() == Method::POST => {
                self.session_token(request).await
            }
            "/health" if get => answer(StatusCode::OK, "OK"),
            "/readyz" if get => self.readyz(),
            "/metrics" if get => match self.admit_operator(&request, peer) {
                Ok(()) => self.metrics(),
                Err(refusal) => refusal,
            },
            "/api/v1/stats" if get => self.stats(),
            "/api/v1/nodes" if get => reply(StatusCode::OK, &self.nodes()),
            "/api/v1/pools" if get => reply(StatusCode::OK, &self.pools()),
            "/api/v1/pools" if request.method() == Method::PUT => self.replace_pools(request).await,
            "/api/v1/rooms" if get => {
                reply(StatusCode::OK, &super::rooms::listed(&self.shared, ROWS_MAX))
            }
            "/api/v1/sessions" if get => reply(StatusCode::OK, &self.sessions()),
            "/api/v1/jobs" if get => reply(StatusCode::OK, &self.jobs()),
            "/api/v1/usage" if get => reply(StatusCode::OK, &self.usage()),
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
            (&Method::GET, _) => fault(StatusCode::NOT_FOUND, "no such page"),
            _ => fault(StatusCode::METHOD_NOT_ALLOWED, "not a method of this page"),
        }
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
        let pass = match self.admit(KeyKind::Session, request) {
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
    fn not_now(&self) -> Response<Body> {
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
            ..self.limits()
        };
        let pass = match self.admit(KeyKind::Node, request) {
            Ok(pass) => pass,
            Err(refusal) => return refusal,
        };
        let shared = Arc::clone(&self.shared);
        open_socket(request, peer, limits, t.node_outbox_frames_max, move |connection, outbox| {
            let admitted = Admitted::node(&shared, pass, &outbox);
            NodeTask::new(shared, peer, admitted, connection, outbox).run()
        })
    }

    fn limits(&self) -> Limits {
        let t = &self.shared.config.transport;
        Limits {
            message_bytes_max: t.session_message_bytes_max,
            read_buffer_bytes: t.session_read_buffer_bytes,
            // What is told together leaves together.
            write_buffer_bytes: 4 * 1024,
            outbox_bytes_max: t.session_outbox_bytes_max,
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

    fn stats(&self) -> Response<Body> {
        self.shared.metrics.stats_requests.inc();
        let mut usage: BTreeMap<String, [u64; 3]> = BTreeMap::new();
        let mut count = |lang: &str, column: usize| {
            let row = usage.entry(lang.to_owned()).or_default();
            row[column] += 1;
            row[2] += 1;
        };
        let mut users = 0_u64;
        for handle in self.shared.sessions.pin().values() {
            users += 1;
            if !handle.profile.src.is_auto() {
                count(handle.profile.src.as_str(), 0);
            }
            count(handle.profile.tgt.as_str(), 1);
        }
        let mut top: Vec<_> = usage.iter().map(|(lang, row)| (lang.clone(), row[2])).collect();
        top.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
        top.truncate(TOP_LANGUAGES);
        let top: Vec<Value> = top
            .into_iter()
            .map(|(language, count)| json!({"language": language, "count": count}))
            .collect();
        let usage: BTreeMap<&String, Value> = usage
            .iter()
            .map(|(lang, [src, tgt, total])| {
                (lang, json!({"as_source": src, "as_target": tgt, "total": total}))
            })
            .collect();
        let body = json!({
            "web_clients": {"active_users": users, "top_languages": top, "language_usage": usage},
            "nodes": self.node_stats(),
            "jobs": {
                "live": self.shared.scheduler.live(),
                "waiting": self.shared.scheduler.waiting(),
            },
            "store": self.store_stats(),
            "uptime_seconds":
                self.shared.now().unix_ms.saturating_sub(self.shared.started_unix_ms) / 1_000,
            "boot_epoch": self.shared.boot_epoch,
        });
        reply(StatusCode::OK, &body)
    }

    fn node_stats(&self) -> Value {
        let nodes = self.shared.registry.all();
        let online = nodes.iter().filter(|n| n.state() != State::Offline);
        let (mut connected, mut types) = (0_u64, BTreeMap::<String, u64>::new());
        let mut services = std::collections::BTreeSet::new();
        for node in online {
            connected += 1;
            let capability = node.capability();
            for kind in capability.ready.iter() {
                *types.entry(capitalised(kind)).or_default() += 1;
            }
            services.extend(capability.services.iter().map(|s| s.service_id.clone()));
        }
        json!({
            "connected_nodes": connected,
            "type_node_counts": types,
            "type_in_use_counts": types,
            "available_services": [],
            "total_services": services.len(),
            "compute_power": {"total_cpu_power": 0.0, "total_gpu_power": 0.0,
                "total_memory_power": 0.0, "node_power_details": []},
        })
    }

    fn store_stats(&self) -> Value {
        match &self.shared.store {
            None => Value::Null,
            Some(store) => {
                let s = store.stats();
                json!({
                    "commits": s.commits,
                    "rows_written": s.rows_written,
                    "last_commit_us": s.last_commit_us,
                    "queued": s.queued_results + s.queued_accepts + s.queued_housekeeping,
                    "bad_rows": s.bad_rows,
                    "dead_letters": s.dead_letters,
                    "dead_letters_expired": s.dead_letters_expired,
                    "file_bytes": s.file_bytes,
                    "free_bytes": s.free_bytes,
                    "pressure": s.pressure.as_str(),
                    "health": s.health.as_str(),
                    "syncs": s.io.syncs,
                    "sync_us": s.io.sync_us,
                    "sync_us_max": s.io.sync_us_max,
                })
            }
        }
    }

    fn nodes(&self) -> Value {
        let now = self.shared.now();
        let mut nodes = self.shared.registry.all();
        nodes.sort_by(|a, b| a.id.cmp(&b.id));
        let rows: Vec<Value> =
            nodes.iter().take(ROWS_MAX).map(|node| self.node(node, now)).collect();
        json!({"nodes": rows, "total": nodes.len()})
    }

    fn node(&self, node: &Node, now: Now) -> Value {
        let (used, max) = node.slots();
        let capability = node.capability();
        let (heard_us, heard_unix_ms) = node.heard();
        let pairs = capability.pairs();
        let peer = self.shared.links.pin().get(&node.index).map(|link| link.peer.to_string());
        json!({
            "node_id": node.id,
            "state": node.state(),
            "generation": node.generation(),
            "peer": peer,
            "platform": capability.platform,
            "version": capability.version,
            "slots_used": used,
            "slots_max": max,
            "load": node.load(),
            "overloaded": node.overloaded(),
            "quarantined_ms": node.quarantined(now).map(|until| (until - now.us) / 1_000),
            "ready_services": capability.ready,
            "usable_services": node.usable(now),
            "services": capability.services,
            "pairs": pairs.iter().take(ROWS_MAX).collect::<Vec<_>>(),
            "pairs_total": pairs.len(),
            "silent_ms": now.us.saturating_sub(heard_us) / 1_000,
            "last_heard_unix_ms": heard_unix_ms,
        })
    }

    fn pools(&self) -> Value {
        let snapshot = self.shared.pools.load_full();
        let mut routes: Vec<_> = snapshot.routes().collect();
        routes.sort_by_key(|route| route.pair);
        let total = routes.len();
        let rows: Vec<Value> = routes
            .into_iter()
            .take(ROWS_MAX)
            .map(|route| {
                let pools: Vec<Value> = route
                    .pools
                    .iter()
                    .map(|pool| {
                        let nodes: Vec<_> =
                            pool.nodes.iter().take(ROWS_MAX).map(|n| n.id.clone()).collect();
                        json!({"name": &*pool.name, "configured": pool.config.is_some(),
                            "nodes": nodes})
                    })
                    .collect();
                json!({"pair": route.pair, "pools": pools})
            })
            .collect();
        let config: Vec<&Pool> = snapshot.config.iter().map(Arc::as_ref).collect();
        json!({
            "version": snapshot.version,
            "config_version": snapshot.config_version,
            "config": config,
            "pairs": rows,
            "pairs_total": total,
        })
    }

    fn sessions(&self) -> Value {
        let (sessions, peers) = (self.shared.sessions.pin(), self.shared.peers.pin());
        let mut rows: Vec<_> = sessions.values().map(Arc::clone).collect();
        rows.sort_by_key(|s| std::cmp::Reverse(s.opened_unix_ms));
        let total = rows.len();
        let rows: Vec<Value> = rows
            .into_iter()
            .take(ROWS_MAX)
            .map(|s| {
                json!({
                    "session_id": s.id,
                    "trace_id": s.profile.trace_id,
                    "tenant": s.profile.tenant,
                    "platform": s.profile.platform,
                    "client_version": s.profile.client_version,
                    "src_lang": s.profile.src,
                    "tgt_lang": s.profile.tgt,
                    "peer": peers.get(&s.id).map(ToString::to_string),
                    "owed": s.owed.load(SeqCst),
                    "opened_unix_ms": s.opened_unix_ms,
                    "open_jobs": s.open_jobs.load(SeqCst),
                    "utterances": s.utterances.load(SeqCst),
                })
            })
            .collect();
        json!({"sessions": rows, "total": total})
    }

    fn jobs(&self) -> Value {
        let mut rows = Vec::new();
        let mut total = 0_usize;
        self.shared.scheduler.for_each(|job| {
            total += 1;
            if rows.len() < ROWS_MAX {
                rows.push(json!({
                    "job_id": job.id,
                    "session_id": job.spec.session,
                    "utterance_index": job.spec.utterance_index,
                    "state": job.state().phase.as_str(),
                    "src_lang": job.spec.src,
                    "tgt_lang": job.spec.tgt,
                    "stamps_us": job.stamps,
                }));
            }
        });
        json!({"jobs": rows, "total": total})
    }

    /// What tenants have and used. As long as there are accounts and pairs, which are bounded.
    fn usage(&self) -> Value {
        let accounts = self.shared.scheduler.accounts();
        let tenants: Vec<Value> = accounts
            .standings()
            .iter()
            .map(|s| {
                json!({"tenant": &*s.tenant, "listed": s.listed, "weight": s.weight,
                    "sessions": s.sessions, "jobs": s.jobs, "waiting": s.waiting})
            })
            .collect();
        let seconds = |ms: u64| ms as f64 / 1_000.0;
        let usage: Vec<Value> = accounts
            .used()
            .iter()
            .map(|used| {
                let ended = used.by_outcome.iter().filter(|(_, jobs, _)| *jobs > 0);
                let by_outcome: BTreeMap<&str, Value> = ended
                    .map(|(outcome, jobs, ms)| {
                        (outcome.as_str(), json!({"jobs": jobs, "audio_seconds": seconds(*ms)}))
                    })
                    .collect();
                let jobs: u64 = used.by_outcome.iter().map(|(_, jobs, _)| jobs).sum();
                let audio_ms = used.by_outcome.iter().map(|(.., ms)| ms).sum();
                json!({"tenant": &*used.tenant, "pair": used.pair, "jobs": jobs,
                    "audio_seconds": seconds(audio_ms), "by_outcome": by_outcome})
            })
            .collect();
        let since_unix_ms = self.shared.started_unix_ms;
        json!({"since_unix_ms": since_unix_ms, "tenants": tenants, "usage": usage})
    }

    async fn job(&self, id: &str) -> Response<Body> {
        let Ok(id) = id.parse::<JobId>() else {
            return fault(StatusCode::BAD_REQUEST, "not a job id");
        };
        if let Some(job) = self.shared.scheduler.job(id) {
            return reply(StatusCode::OK, &job.explain());
        }
        let Some(store) = self.shared.store.clone() else {
            return fault(StatusCode::NOT_FOUND, "no such job");
        };
        // The store reads the disk.
        match read_store(&store, move |s| s.terminal(id)).await {
            Ok(Ok(Some(row))) => reply(StatusCode::OK, &explain_ended(&row)),
            Ok(Ok(None)) => fault(StatusCode::NOT_FOUND, "no such job"),
            _ => fault(StatusCode::INTERNAL_SERVER_ERROR, "the store could not be read"),
        }
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
fn open_socket<T: Send + 'static, F: Future<Output = ()> + Send + 'static>(
    request: &mut Request<Incoming>,
    peer: SocketAddr,
    limits: Limits,
    frames_max: usize,
    run: impl FnOnce(Connection<Upgraded, T>, Arc<Outbox<T>>) -> F + Send + 'static,
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

pub(super) fn fault(status: StatusCode, message: &str) -> Response<Body> {
    reply(status, &json!({"error": message}))
}

/// What the store kept of an ended job: its explanation, or its bare outcome where none was made.
pub fn explain_ended(row: &TerminalRow) -> Value {
    match serde_json::from_slice(&row.explanation) {
        Ok(kept @ Value::Object(_)) => kept,
        _ => json!({
            "job_id": row.id,
            "session_id": row.session,
            "utterance_index": row.utterance_index,
            "code": row.code,
            "message": row.message,
            "attempts": row.attempts,
            "node": row.node,
            "settled_unix_ms": row.settled_unix_ms,
        }),
    }
}

fn capitalised(kind: ServiceType) -> String {
    let mut name = kind.as_str().to_owned();
    name[..1].make_ascii_uppercase();
    name
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
