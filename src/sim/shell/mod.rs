//! One life of the server, from start to death: the real core, and around it the steps by which
//! `server` performs what the core decides, in the same order, in virtual time.
//!
//! What `server` does with tasks, queues and callbacks is done here with events: a task is a struct
//! that is stepped, a callback of the store is a [`Then`].

mod delivery;
mod journal;
mod node;
mod perform;
mod recover;
mod session;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::env::{Arms, Env, Event, TaskId};
use super::net::{ConnId, Msg, Peer};
use crate::config::Config;
use crate::job::Deadline;
use crate::job::{Effects, Scheduler, WaitQueue, Wheel};
use crate::node::pool::Publisher;
use crate::node::{NodeIndex, Registry, State};
use crate::protocol::{NodeId, SessionId};
use crate::store::{SimDisk, StoreError, StoreOptions};
use crate::telemetry::{Metrics, Now};
use crate::tenant::{Accounts, Admission};

use journal::Journal;
pub(super) use journal::Then;
use node::NodeTask;
use session::{Handle, Task};

/// How often the wheel is looked at, in microseconds.
const TICK_US: u64 = 2_000;
/// How often waiting jobs are tried even if nothing woke them, and nodes are looked at.
const ROUND_US: u64 = 250_000;

/// The way to a node's socket.
#[derive(Debug, Clone, Copy)]
struct Link {
    generation: u64,
    conn: ConnId,
    acks: bool,
}

/// The server while it runs.
pub(super) struct Life {
    /// Which life it is, from 1.
    pub(super) number: u64,
    /// When its monotonic clock began, in the world's time.
    born_us: u64,
    /// What the wall clock said then; the server asks it once and goes on by itself.
    born_unix_ms: u64,
    config: Config,
    boot_epoch: u32,
    registry: Arc<Registry>,
    publisher: Publisher,
    scheduler: Scheduler,
    wheel: Wheel<Deadline>,
    waiting: WaitQueue,
    next_round_us: u64,
    woken: bool,
    arms: Arms,
    changed: VecDeque<NodeIndex>,
    journal: Journal,
    tasks: BTreeMap<TaskId, Task>,
    next_task: TaskId,
    /// The task that reads a client's connection.
    readers: BTreeMap<ConnId, TaskId>,
    handles: BTreeMap<SessionId, Handle>,
    sessions_open: usize,
    node_tasks: BTreeMap<ConnId, NodeTask>,
    links: BTreeMap<NodeIndex, Link>,
    /// Nodes of an earlier life that have not come yet.
    awaited: BTreeSet<NodeId>,
    /// The server begins to go down.
    draining: bool,
    /// Connections are being closed; jobs are left to the next life.
    going_down: bool,
}

impl Life {
    /// Opens the store, takes back what was not finished, and serves.
    pub(super) fn start(
        number: u64,
        config: &Config,
        disk: &SimDisk,
        options: &StoreOptions,
        env: &mut Env,
    ) -> Result<Self, StoreError> {
        let (journal, recovered) = Journal::open(disk, options, env)?;
        let metrics = Arc::new(Metrics::new());
        let registry = Arc::new(Registry::new(config.node.clone()));
        let (publisher, pools) = Publisher::new(Vec::new(), 1);
        let accounts = Accounts::new(config.tenant.clone(), &config.tenants, &metrics);
        let scheduler = Scheduler::new(
            config.job.clone(),
            Admission::new(config.job.clone(), config.session.jobs_max, accounts),
            recovered.boot_epoch,
            Arc::clone(&registry),
            pools,
            metrics,
        );
        let mut life = Self {
            number,
            born_us: env.now,
            born_unix_ms: env.wall_ms(),
            config: config.clone(),
            boot_epoch: recovered.boot_epoch,
            registry,
            publisher,
            scheduler,
            wheel: Wheel::new(0),
            waiting: WaitQueue::default(),
            next_round_us: 0,
            woken: false,
            arms: Arms::new(),
            changed: VecDeque::new(),
            journal,
            tasks: BTreeMap::new(),
            next_task: 0,
            readers: BTreeMap::new(),
            handles: BTreeMap::new(),
            sessions_open: 0,
            node_tasks: BTreeMap::new(),
            links: BTreeMap::new(),
            awaited: BTreeSet::new(),
            draining: false,
            going_down: false,
        };
        life.restore(recovered, env);
        env.after(TICK_US, Event::Control(number));
        Ok(life)
    }

    fn now(&self, env: &Env) -> Now {
        let us = env.now - self.born_us;
        Now { us: us + 1, unix_ms: self.born_unix_ms + us / 1_000 }
    }

    /// A moment of this life in the world's time.
    fn world_us(&self, us: u64) -> u64 {
        us.saturating_add(self.born_us).saturating_sub(1)
    }

    /// A peer connected.
    pub(super) fn accept(&mut self, conn: ConnId, peer: Peer) {
        match peer {
            Peer::Client(_) => self.accept_client(conn),
            Peer::Node(_) => drop(self.node_tasks.insert(conn, NodeTask::default())),
        }
    }

    /// How many frames may wait for a peer.
    pub(super) fn outbox_max(&self, peer: Peer) -> usize {
        match peer {
            Peer::Client(_) => self.config.transport.session_outbox_frames_max,
            Peer::Node(_) => self.config.transport.node_outbox_frames_max,
        }
    }

    /// A message came in.
    pub(super) fn arrived(&mut self, conn: ConnId, msg: Msg, env: &mut Env) {
        if self.node_tasks.contains_key(&conn) {
            self.node_arrived(conn, msg, env);
        } else {
            self.client_arrived(conn, session::Arrival::Msg(msg), env);
        }
    }

    /// A socket took a frame.
    pub(super) fn written(&mut self, conn: ConnId, tag: super::net::Tag, env: &mut Env) {
        if self.node_tasks.contains_key(&conn) {
            self.node_written(tag, env);
        } else {
            self.client_arrived(conn, session::Arrival::Written(tag), env);
        }
    }

    /// A connection is over, as this end sees it.
    pub(super) fn closed(&mut self, conn: ConnId, env: &mut Env) {
        if self.node_tasks.contains_key(&conn) {
            env.server_end(conn);
            self.node_closed(conn, env);
        } else {
            self.client_arrived(conn, session::Arrival::Closed, env);
        }
    }

    /// The control task: deadlines, waiting jobs, nodes and pools.
    pub(super) fn control(&mut self, woken: bool, env: &mut Env) {
        if woken {
            self.woken = false;
        } else {
            env.after(TICK_US, Event::Control(self.number));
        }
        let now = self.now(env);
        let mut effects = Effects::new();
        while let Some(index) = self.changed.pop_front() {
            if let Some(node) = self.registry.by_index(index) {
                self.publisher.node_changed(&node);
            }
        }
        while let Some((at, deadline)) = self.arms.pop_front() {
            self.wheel.arm(at, deadline);
        }
        let scheduler = &self.scheduler;
        self.wheel.expire(now.us, |deadline| scheduler.due(deadline, now, &mut effects));
        let round = now.us >= self.next_round_us;
        if round {
            self.next_round_us = now.us + ROUND_US;
            self.nodes_round(now, &mut effects, env);
        }
        if (woken || round) && self.scheduler.waiting() > 0 {
            self.waiting.drain(&self.scheduler, now, &mut effects);
        }
        self.perform(&mut effects, now, env);
    }

    fn nodes_round(&mut self, now: Now, effects: &mut Effects, env: &mut Env) {
        let mut changed = self.registry.tick(now);
        // The registry has no order.
        changed.sort_by_key(|node| node.index.0);
        for node in changed {
            self.publisher.node_changed(&node);
            if node.state() == State::Offline {
                env.counts.reached("node_silent");
                if let Some(link) = self.links.get(&node.index) {
                    env.request_close(link.conn);
                }
                self.scheduler.node_lost(node.index, now, effects);
            }
        }
    }

    fn wake_control(&mut self, env: &mut Env) {
        if !std::mem::replace(&mut self.woken, true) {
            let us = env.skewed(5, 2_000);
            env.after(us, Event::Wake(self.number));
        }
    }

    /// What is not as it should be when nothing is left to do.
    pub(super) fn unquiet(&self) -> Option<String> {
        let (live, waiting) = (self.scheduler.live(), self.scheduler.waiting());
        if live + waiting > 0 {
            let mut jobs = Vec::new();
            self.scheduler.for_each(|job| {
                let state = job.state();
                if state.outcome().is_none() {
                    let (id, at) = (job.id, job.spec.utterance_index);
                    jobs.push(format!("{id} #{at} of {} {state:?}", job.spec.session));
                }
            });
            jobs.sort();
            let what = format!("{live} jobs live and {waiting} waiting when all is done");
            return Some(format!("I15: {what}: {}", jobs.join(", ")));
        }
        let mut nodes = self.registry.all();
        nodes.sort_by_key(|node| node.index.0);
        if let Some(node) = nodes.iter().find(|node| node.slots().0 > 0) {
            let used = node.slots().0;
            return Some(format!("I12: {used} slots of {} are taken when all is done", node.id));
        }
        let open = |t: &&Task| t.open.is_some();
        if let Some(task) = self.tasks.values().find(open) {
            return Some(format!("L3: the task of {} never ended", task.name()));
        }
        let left = (self.handles.len(), self.sessions_open, self.journal.backlog());
        (left != (0, 0, 0)).then(|| {
            let (handles, sessions, writes) = left;
            format!("I15: {handles} mailboxes, {sessions} sessions, {writes} writes are left over")
        })
    }
}
