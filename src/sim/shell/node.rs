//! A node's connection, as in `server/node.rs`.

use bytes::Bytes;

use super::{Life, Link};
use crate::job::{Answered, Deadline, Effect, Effects, Welcome};
use crate::node::Attached;
use crate::protocol::NodeId;
use crate::protocol::hello::{Hello, RESULT_ACK};
use crate::protocol::node::{Command, Message, Report, decode};
use crate::sim::env::Env;
use crate::sim::net::{ConnId, Msg, Tag};
use crate::store::{NodeRow, Write};

/// How long jobs given to an older connection of a node may still be answered over the new one, in
/// milliseconds.
const REPLACED_GRACE_MS: u64 = 3_000;

/// One node's connection.
#[derive(Debug, Default)]
pub(super) struct NodeTask {
    attached: Option<Attached>,
    /// The node has said over this connection what it has, and will do so again.
    able: bool,
}

impl Life {
    pub(super) fn node_arrived(&mut self, conn: ConnId, msg: Msg, env: &mut Env) {
        match msg {
            Msg::Text(text, _) => self.node_text(conn, &text, env),
            Msg::Close => {
                env.server_end(conn);
                self.node_closed(conn, env);
            }
            Msg::Ping(_) | Msg::Pong(_) => {}
        }
    }

    fn node_text(&mut self, conn: ConnId, text: &Bytes, env: &mut Env) {
        match decode(text) {
            Ok(Message::Register(report)) => self.register(conn, &report, env),
            Ok(Message::Heartbeat(report)) => self.heartbeat(conn, &report, env),
            Ok(message) => self.about_job(conn, message, env),
            Err(_) => env.counts.reached("node_not_understood"),
        }
    }

    fn register(&mut self, conn: ConnId, report: &Report, env: &mut Env) {
        let Some(task) = self.node_tasks.get_mut(&conn) else { return };
        // What a node has is told once: later it would not know of what is on its way.
        let hello = report.hello.as_deref().filter(|_| !task.able);
        task.able |= hello.is_some();
        if let Some(attached) = task.attached.clone() {
            self.greet(conn, &attached, hello, env);
        } else {
            let named = report.node_id.as_deref().filter(|id| !id.is_empty());
            let id = NodeId::from(named.unwrap_or("node-unnamed"));
            if !self.attach(conn, id, Some(hello), env) {
                return;
            }
        }
        let Some(attached) = self.attached_of(conn) else { return };
        let unix_ms = self.now(env).unix_ms;
        let row = NodeRow {
            id: attached.node.id.clone(),
            platform: report.platform.clone(),
            version: report.version.clone(),
            first_seen_unix_ms: unix_ms,
            last_seen_unix_ms: unix_ms,
        };
        if self.submit_write(Write::Node(row), super::Then::Nothing, env).is_err() {
            env.counts.reached("node_not_noted");
        }
        self.report(&attached, report, env);
    }

    /// Answers a registration over a connection by which the node can be reached already.
    fn greet(&mut self, conn: ConnId, attached: &Attached, hello: Option<&Hello>, env: &mut Env) {
        let (now, mut effects) = (self.now(env), Effects::new());
        let welcome = hello.map(|h| self.scheduler.hello(attached, h, now, &mut effects));
        self.acknowledge_node(conn, &attached.node.id, welcome.as_ref(), env);
        let able = self.node_tasks.get(&conn).is_some_and(|t| t.able);
        let link = self.links.get_mut(&attached.node.index);
        if let Some(link) = link.filter(|link| link.generation == attached.generation) {
            link.acks = able;
        }
        if let Some(welcome) = welcome {
            self.scheduler.welcomed(attached, welcome, now, &mut effects);
        }
        self.perform(&mut effects, now, env);
    }

    fn acknowledge_node(
        &self,
        conn: ConnId,
        id: &NodeId,
        welcome: Option<&Welcome>,
        env: &mut Env,
    ) {
        let able = self.node_tasks.get(&conn).is_some_and(|t| t.able);
        let (node_id, message) = (id.to_string(), "Node registered successfully");
        let extensions = if able { vec![RESULT_ACK] } else { Vec::new() };
        let jobs = welcome.map(|welcome| welcome.jobs.clone());
        let status = "registering";
        let command = Command::NodeRegisterAck { node_id, message, status, extensions, jobs };
        self.send_command(conn, &command, env);
    }

    fn attached_of(&self, conn: ConnId) -> Option<Attached> {
        self.node_tasks.get(&conn)?.attached.clone()
    }

    fn heartbeat(&mut self, conn: ConnId, report: &Report, env: &mut Env) {
        if self.attached_of(conn).is_none() {
            let Some(id) = report.node_id.as_deref().filter(|id| !id.is_empty()) else { return };
            env.counts.reached("node_by_heartbeat");
            if !self.attach(conn, NodeId::from(id), None, env) {
                return;
            }
        }
        if let Some(attached) = self.attached_of(conn) {
            self.report(&attached, report, env);
        }
    }

    /// Makes this connection the one that speaks for `id`; false if there is no room. `greeting` if
    /// it registered, with what the node has if it says so.
    fn attach(
        &mut self,
        conn: ConnId,
        id: NodeId,
        greeting: Option<Option<&Hello>>,
        env: &mut Env,
    ) -> bool {
        let (now, mut effects) = (self.now(env), Effects::new());
        let Ok(attached) = self.registry.attach(id, now) else {
            env.request_close(conn);
            return false;
        };
        let mut welcome = None;
        // Before the link, over which assignments come at once.
        if let Some(hello) = greeting {
            welcome = hello.map(|h| self.scheduler.hello(&attached, h, now, &mut effects));
            self.acknowledge_node(conn, &attached.node.id, welcome.as_ref(), env);
        }
        let acks = self.node_tasks.get(&conn).is_some_and(|t| t.able);
        let link = Link { generation: attached.generation, conn, acks };
        let old = self.links.insert(attached.node.index, link);
        if let Some(old) = &old {
            env.counts.reached("node_came_again");
            env.request_close(old.conn);
        }
        match (welcome, old) {
            (Some(welcome), _) => {
                self.scheduler.welcomed(&attached, welcome, now, &mut effects);
            }
            // What was sent over the older connection may have gone down with it.
            (None, Some(old)) => {
                let until = now.after_ms(REPLACED_GRACE_MS);
                let sent = Deadline::Away(attached.node.index, old.generation);
                effects.push(Effect::Arm(until, sent));
            }
            (None, None) => {}
        }
        self.awaited_came(&attached.node.id, now, &mut effects);
        self.perform(&mut effects, now, env);
        if let Some(task) = self.node_tasks.get_mut(&conn) {
            task.attached = Some(attached);
        }
        true
    }

    fn report(&mut self, attached: &Attached, report: &Report, env: &mut Env) {
        let now = self.now(env);
        if self.registry.report(attached, report, now) {
            self.changed.push_back(attached.node.index);
            self.wake_control(env);
        }
    }

    fn about_job(&mut self, conn: ConnId, message: Message, env: &mut Env) {
        let Some(attached) = self.attached_of(conn) else { return };
        let (index, now, mut effects) = (attached.node.index, self.now(env), Effects::new());
        match message {
            Message::JobResult(result) => {
                let foreign =
                    result.node_id.as_deref().is_some_and(|id| id != &*attached.node.id.0);
                if foreign {
                    return;
                }
                let answered = self.scheduler.answer(index, result, now, &mut effects);
                env.counts.reached(match answered {
                    Answered::Settled => "answer_settled",
                    Answered::Refused => "answer_refused",
                    Answered::Stale => "answer_stale",
                    Answered::Unknown => "answer_unknown",
                });
            }
            Message::AsrPartial(partial) => {
                self.scheduler.partial(index, partial, now, &mut effects);
            }
            Message::JobAck(mark) | Message::JobStarted(mark) => {
                self.scheduler.started(index, &mark, now, &mut effects);
            }
            _ => {}
        }
        self.perform(&mut effects, now, env);
    }

    pub(super) fn node_written(&mut self, tag: Tag, env: &mut Env) {
        let Tag::Assign(job, attempt) = tag else { return };
        let (now, mut effects) = (self.now(env), Effects::new());
        self.scheduler.written(&job, attempt, now, &mut effects);
        self.perform(&mut effects, now, env);
    }

    /// This connection no longer speaks for the node. If none does, the node is lost.
    pub(super) fn node_closed(&mut self, conn: ConnId, env: &mut Env) {
        let Some(task) = self.node_tasks.remove(&conn) else { return };
        let Some(attached) = task.attached else { return };
        let index = attached.node.index;
        if self.links.get(&index).is_some_and(|link| link.generation == attached.generation) {
            self.links.remove(&index);
        }
        if !self.registry.detach(&attached) {
            return;
        }
        env.counts.reached("node_lost");
        self.changed.push_back(index);
        self.wake_control(env);
        let (now, mut effects) = (self.now(env), Effects::new());
        match task.able {
            // It may be back in a moment and say what it has.
            true => self.scheduler.node_away(&attached, now, &mut effects),
            false => self.scheduler.node_lost(index, now, &mut effects),
        }
        self.perform(&mut effects, now, env);
    }
}
