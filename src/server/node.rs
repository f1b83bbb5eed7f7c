//! One node's connection: owns the socket, speaks for the node while it is the newest.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tracing::{debug, info, warn};

use super::awaited;
use super::credentials::Admitted;
use super::perform::perform;
use super::shared::{Link, NodeTag, Shared, going_down, parting};
use crate::job::{Answered, Deadline, Effect, Effects, Welcome};
use crate::node::Attached;
use crate::protocol::hello::{Hello, RESULT_ACK};
use crate::protocol::node::{Command, Message, Report, decode};
use crate::protocol::trace::TraceParent;
use crate::protocol::{NodeId, limits};
use crate::store::NodeRow;
use crate::store::Write;
use crate::tenant::CODE_MS;
use crate::transport::{Connection, Event as Arrival, Frame, Gone, Outbox};

/// How long jobs given to an older connection of a node may still be answered over the new one.
const REPLACED_GRACE_MS: u64 = 3_000;
/// How often it is noted on disk that a node is there.
const NOTED_EVERY_MS: u64 = 3_600_000;
/// How long the node is given to take what is queued when the server closes the connection.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);

/// One node's connection.
pub(super) struct NodeTask<S> {
    shared: Arc<Shared>,
    peer: SocketAddr,
    /// Watched for as long as the connection lives.
    _admitted: Option<Box<Admitted>>,
    connection: Connection<S, NodeTag>,
    outbox: Arc<Outbox<NodeTag>>,
    attached: Option<Attached>,
    /// The node has said over this connection what it has, and will do so again.
    able: bool,
    /// It wants to know where in a trace its jobs stand.
    traces: bool,
    /// When it was last noted on disk that the node is there, Unix milliseconds.
    noted_unix_ms: u64,
    effects: Effects,
}

impl<S: AsyncRead + AsyncWrite + Unpin> NodeTask<S> {
    pub(super) fn new(
        shared: Arc<Shared>,
        peer: SocketAddr,
        admitted: Option<Box<Admitted>>,
        connection: Connection<S, NodeTag>,
        outbox: Arc<Outbox<NodeTag>>,
    ) -> Self {
        Self {
            shared,
            peer,
            _admitted: admitted,
            connection,
            outbox,
            attached: None,
            able: false,
            traces: false,
            noted_unix_ms: 0,
            effects: Effects::new(),
        }
    }

    /// Lives as long as the connection.
    pub(super) async fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let gauge = shared.metrics.connections.with_label_values(&["node"]);
        gauge.inc();
        let mut closing = shared.closing.subscribe();
        let gone = loop {
            tokio::select! {
                arrival = self.connection.next() => match arrival {
                    Arrival::Text(text) => self.text(&text.into()),
                    Arrival::Binary(_) => self.refused("binary"),
                    Arrival::Written(tag) => self.written(tag),
                    Arrival::Pong(_) => {}
                    Arrival::Closed(gone) => break Some(gone),
                },
                () = going_down(&mut closing) => break None,
            }
        };
        gauge.dec();
        self.finish(gone).await;
    }

    async fn finish(mut self, gone: Option<Gone>) {
        self.outbox.close();
        match gone {
            Some(gone) => {
                let why = gone.as_str();
                self.shared.metrics.connections_closed.with_label_values(&["node", why]).inc();
                self.detach(why);
            }
            // Going down: jobs stay where they are, on disk and on the node.
            None => self.connection.close(1001, &parting(), CLOSE_WITHIN).await,
        }
    }

    /// This connection no longer speaks for the node. If none does, the node is lost.
    fn detach(&mut self, why: &str) {
        let Some(attached) = self.attached.take() else { return };
        let index = attached.node.index;
        let links = self.shared.links.pin();
        if links.get(&index).is_some_and(|link| link.generation == attached.generation) {
            links.remove(&index);
        }
        if !self.shared.registry.detach(&attached) {
            debug!(node = %attached.node.id, why, "an old connection of a node ended");
            return;
        }
        warn!(node = %attached.node.id, why, "node lost");
        self.shared.control.node_changed(index);
        let now = self.shared.now();
        match self.able {
            // It may be back in a moment and say what it has.
            true => self.shared.scheduler.node_away(&attached, now, &mut self.effects),
            false => self.shared.scheduler.node_lost(index, now, &mut self.effects),
        }
        perform(&self.shared, &mut self.effects, now);
    }

    fn refused(&self, kind: &str) {
        self.shared.metrics.frames_refused.with_label_values(&["node", kind]).inc();
    }

    fn text(&mut self, frame: &bytes::Bytes) {
        let message = match decode(frame) {
            Ok(message) => message,
            Err(fault) => {
                let node = self.attached.as_ref().map(|a| a.node.id.clone());
                warn!(peer = %self.peer, ?node, %fault, "a node's message was not understood");
                return self.refused(fault.kind());
            }
        };
        let kind = match &message {
            Message::Register(_) => "node_register",
            Message::Heartbeat(_) => "node_heartbeat",
            Message::JobResult(_) => "job_result",
            Message::AsrPartial(_) => "asr_partial",
            Message::JobAck(_) => "job_ack",
            Message::JobStarted(_) => "job_started",
            Message::NodeError(_) => "node_error",
            Message::PairingCodeRequest => "pairing_code_request",
            Message::WrongDirection(_) => return self.refused("wrong_direction"),
        };
        self.shared.metrics.frames_in.with_label_values(&["node", kind]).inc();
        match message {
            Message::Register(report) => self.register(&report),
            Message::Heartbeat(report) => self.heartbeat(&report),
            message => self.about_job(message),
        }
    }

    fn register(&mut self, report: &Report) {
        if let Some(fault) = self.unwelcome(report) {
            warn!(peer = %self.peer, fault, "node registration refused");
            let command =
                Command::Error { code: "INVALID_CAPABILITY_SCHEMA", message: fault.into() };
            self.send(&command);
            return self.outbox.request_close(4400, "registration refused");
        }
        // The connection keeps the first id it was known by.
        if self.is_foreign(report.node_id.as_deref()) {
            self.shared.metrics.foreign.with_label_values(&["node"]).inc();
        }
        // What a node has is told once: later it would not know of what is on its way.
        let hello = report.hello.as_deref().filter(|_| !self.able);
        self.able |= hello.is_some();
        self.traces |= report.traces;
        if let Some(attached) = self.attached.clone() {
            self.greet(&attached, hello);
        } else {
            let named = report.node_id.as_deref().filter(|id| !id.is_empty());
            let id = named.map_or_else(fresh_id, NodeId::from);
            if !self.attach(id, Greeting::Acknowledge(hello)) {
                return;
            }
        }
        let Some(attached) = self.attached.clone() else { return };
        info!(node = %attached.node.id, peer = %self.peer, version = %report.version,
            platform = %report.platform, ready = ?report.ready, "node registered");
        self.report(&attached, report);
        self.remember(&attached);
    }

    /// Answers a registration over a connection by which the node can be reached already.
    fn greet(&mut self, attached: &Attached, hello: Option<&Hello>) {
        let now = self.shared.now();
        let scheduler = &self.shared.scheduler;
        let welcome = hello.map(|hello| scheduler.hello(attached, hello, now, &mut self.effects));
        self.acknowledge(&attached.node.id, welcome.as_ref());
        let link = self.shared.links.pin().get(&attached.node.index).map(Arc::clone);
        if let Some(link) = link.filter(|link| link.generation == attached.generation) {
            link.acks.store(self.able, SeqCst);
            link.traces.store(self.traces, SeqCst);
        }
        if let Some(welcome) = welcome {
            scheduler.welcomed(attached, welcome, now, &mut self.effects);
        }
        perform(&self.shared, &mut self.effects, now);
    }

    fn acknowledge(&self, id: &NodeId, welcome: Option<&Welcome>) {
        let (node_id, message) = (id.to_string(), "Node registered successfully");
        let granted = [(self.able, RESULT_ACK), (self.traces, TraceParent::NAME)];
        let extensions = granted.into_iter().filter(|(is, _)| *is).map(|(_, name)| name).collect();
        let jobs = welcome.map(|welcome| welcome.jobs.clone());
        let status = "registering";
        self.send(&Command::NodeRegisterAck { node_id, message, status, extensions, jobs });
    }

    /// What the configured switches hold against a registration, if anything.
    fn unwelcome(&self, report: &Report) -> Option<&'static str> {
        self.shared.settings.with(|v| held_against(&v.config.node, report))
    }

    fn heartbeat(&mut self, report: &Report) {
        if self.attached.is_none() {
            // After a reconnect the heartbeat may come first: it says all that is needed.
            let Some(id) = report.node_id.as_deref().filter(|id| !id.is_empty()) else {
                return self.refused("no_node_id");
            };
            if !self.attach(NodeId::from(id), Greeting::None) {
                return;
            }
            info!(node = id, peer = %self.peer, "node is back by heartbeat");
        }
        if self.is_foreign(report.node_id.as_deref()) {
            return self.shared.metrics.foreign.with_label_values(&["node"]).inc();
        }
        if let Some(attached) = self.attached.clone() {
            self.report(&attached, report);
            if self.noted_unix_ms + NOTED_EVERY_MS <= self.shared.now().unix_ms {
                self.remember(&attached);
            }
        }
    }

    fn is_foreign(&self, id: Option<&str>) -> bool {
        match (&self.attached, id) {
            (Some(attached), Some(id)) => &*attached.node.id.0 != id,
            _ => false,
        }
    }

    /// Makes this connection the one that speaks for `id`; false if there is no room.
    fn attach(&mut self, id: NodeId, greeting: Greeting<'_>) -> bool {
        let now = self.shared.now();
        let attached = match self.shared.registry.attach(id, now) {
            Ok(attached) => attached,
            Err(full) => {
                warn!(peer = %self.peer, %full, "node refused");
                self.outbox.request_close(1013, "too many nodes");
                return false;
            }
        };
        let scheduler = &self.shared.scheduler;
        let mut welcome = None;
        // Before the link, over which assignments come at once if the node was in the pools
        // already: a node drops what comes before its answer.
        if let Greeting::Acknowledge(hello) = greeting {
            welcome = hello.map(|h| scheduler.hello(&attached, h, now, &mut self.effects));
            self.acknowledge(&attached.node.id, welcome.as_ref());
        }
        let (generation, outbox) = (attached.generation, Arc::clone(&self.outbox));
        let (acks, traces) = (self.able.into(), self.traces.into());
        let link = Arc::new(Link { generation, outbox, peer: self.peer, acks, traces });
        let links = self.shared.links.pin();
        let old = links.insert(attached.node.index, link).map(Arc::clone);
        if let Some(old) = old {
            info!(node = %attached.node.id, old = %old.peer, new = %self.peer, "node came again");
            old.outbox.request_close(4409, "replaced by a newer connection");
        }
        if let Some(welcome) = welcome {
            scheduler.welcomed(&attached, welcome, now, &mut self.effects);
        } else if attached.node.slots().0 > 0 {
            // What was sent over older connections may have gone down with them.
            let sent = Deadline::Away(attached.node.index, generation - 1);
            self.effects.push(Effect::Arm(now.after_ms(REPLACED_GRACE_MS), sent));
        }
        awaited::arrived(&self.shared, &attached.node.id, now, &mut self.effects);
        perform(&self.shared, &mut self.effects, now);
        self.attached = Some(attached);
        true
    }

    fn report(&self, attached: &Attached, report: &Report) {
        if self.shared.registry.report(attached, report, self.shared.now()) {
            self.shared.control.node_changed(attached.node.index);
        }
    }

    /// Notes for the next start of the server that the node is there.
    fn remember(&mut self, attached: &Attached) {
        let Some(store) = &self.shared.store else { return };
        let now = self.shared.now();
        self.noted_unix_ms = now.unix_ms;
        let capability = attached.node.capability();
        let row = NodeRow {
            id: attached.node.id.clone(),
            platform: capability.platform.clone(),
            version: capability.version.clone(),
            first_seen_unix_ms: now.unix_ms,
            last_seen_unix_ms: now.unix_ms,
        };
        if store.submit(Write::Node(row), None).is_err() {
            debug!(node = %attached.node.id, "the store is behind: the node was not noted");
        }
    }

    fn about_job(&mut self, message: Message) {
        let Some(attached) = &self.attached else { return self.refused("not_registered") };
        let index = attached.node.index;
        let now = self.shared.now();
        let scheduler = &self.shared.scheduler;
        match message {
            Message::JobResult(result) => {
                if self.is_foreign(result.node_id.as_deref()) {
                    return self.shared.metrics.foreign.with_label_values(&["node"]).inc();
                }
                let (job, attempt) = (result.job_id, result.attempt_id);
                let answered = scheduler.answer(index, result, now, &mut self.effects);
                if answered != Answered::Settled {
                    info!(%job, ?attempt, node = %attached.node.id, ?answered, "result not used");
                }
            }
            Message::AsrPartial(partial) => {
                scheduler.partial(index, partial, now, &mut self.effects);
            }
            Message::JobAck(mark) | Message::JobStarted(mark) => {
                scheduler.started(index, &mark, now, &mut self.effects);
            }
            Message::NodeError(trouble) => {
                let message = limits::clip(&trouble.message, limits::TEXT_BYTES_MAX);
                warn!(node = %attached.node.id, code = %trouble.code, message, "node in trouble");
            }
            Message::PairingCodeRequest => {
                let code = self.shared.pairings.make(&attached.node.id, now);
                self.send(&match code {
                    Some(code) => Command::PairingCode {
                        pairing_code: format!("{code:06}"),
                        expires_in_ms: CODE_MS,
                    },
                    None => Command::Error {
                        code: "OVERLOADED",
                        message: "too many pairing codes are good already".to_owned(),
                    },
                });
            }
            Message::Register(_) | Message::Heartbeat(_) | Message::WrongDirection(_) => {}
        }
        perform(&self.shared, &mut self.effects, now);
    }

    fn written(&mut self, tag: NodeTag) {
        let Some((job, attempt)) = tag else { return };
        let now = self.shared.now();
        self.shared.scheduler.written(&job, attempt, now, &mut self.effects);
        perform(&self.shared, &mut self.effects, now);
        if let Some(store) = &self.shared.store {
            store.wake();
        }
    }

    fn send(&self, command: &Command) {
        if self.outbox.push(Frame { text: command.encode(), tag: None }).is_err() {
            debug!(peer = %self.peer, "an answer to a node was dropped");
        }
    }
}

/// Whether a node that attaches awaits an answer.
#[derive(Clone, Copy)]
enum Greeting<'a> {
    /// It registered, and said what it has if it can.
    Acknowledge(Option<&'a Hello>),
    /// It sent a heartbeat.
    None,
}

fn fresh_id() -> NodeId {
    NodeId::from(format!("node-{:08X}", fastrand::u32(..)).as_str())
}

fn held_against(config: &crate::config::Node, report: &Report) -> Option<&'static str> {
    if config.require_gpu && report.gpus == 0 {
        return Some("a GPU is required");
    }
    let schema = &config.require_schema;
    if !schema.is_empty() && report.schema.as_deref() != Some(schema.as_str()) {
        return Some("another capability_schema_version is required");
    }
    None
}
