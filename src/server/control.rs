//! The one task that publishes pool snapshots, owns the deadlines and gives waiting jobs their try.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

use super::credentials;
use super::perform::perform;
use super::pools::{PoolEdit, PoolsChanged, PoolsInForce, PoolsRefused, edited, tag};
use super::shared::{Command, Shared};
use crate::config::{Change, Pool, Setter};
use crate::job::{Deadline, Effects, WaitQueue, Wheel};
use crate::node::pool::{Publisher, Snapshot};
use crate::node::{Node, State};
use crate::protocol::job::Outcome;
use crate::store::PoolConfigRow;
use crate::store::Write;
use crate::telemetry::Now;

/// How often the wheel is looked at: a job of a silent node moves within 5 ms of its lease's end.
const TICK: Duration = Duration::from_millis(2);
/// How often waiting jobs are tried even if nothing woke them, and nodes are looked at.
const ROUND_US: u64 = 250_000;

/// How often it is looked whether keys have expired under open connections.
const SWEEP_US: u64 = 5_000_000;

pub(super) struct ControlTask {
    shared: Arc<Shared>,
    publisher: Publisher,
    setter: Setter,
    commands: mpsc::Receiver<Command>,
    wheel: Wheel<Deadline>,
    waiting: WaitQueue,
    next_round_us: u64,
    next_sweep_us: u64,
}

impl ControlTask {
    pub(super) fn new(
        shared: Arc<Shared>,
        (publisher, setter): (Publisher, Setter),
        commands: mpsc::Receiver<Command>,
    ) -> Self {
        let now = shared.now().us;
        Self {
            shared,
            publisher,
            setter,
            commands,
            wheel: Wheel::new(now),
            waiting: WaitQueue::default(),
            next_round_us: 0,
            next_sweep_us: 0,
        }
    }

    /// Runs until every sender of commands is gone or the task is aborted.
    pub(super) async fn run(mut self) {
        let mut effects = Effects::new();
        loop {
            let shared = Arc::clone(&self.shared);
            let woken = tokio::select! {
                () = shared.control.wake.notified() => true,
                command = self.commands.recv() => match command {
                    Some(command) => { self.command(command); true }
                    None => return,
                },
                () = tokio::time::sleep(TICK) => false,
            };
            let now = shared.now();
            self.step(woken, now, &mut effects);
            perform(&shared, &mut effects, now);
        }
    }

    fn step(&mut self, woken: bool, now: Now, effects: &mut Effects) {
        while let Some(index) = self.shared.control.changed.pop() {
            if let Some(node) = self.shared.registry.by_index(index) {
                self.publish(&node);
            }
        }
        while let Some((at, deadline)) = self.shared.control.arms.pop() {
            self.wheel.arm(at, deadline);
        }
        if let Some(store) = &self.shared.store {
            // Of jobs whose assignment could not be written yet.
            store.wake();
        }
        let scheduler = &self.shared.scheduler;
        self.wheel.expire(now.us, |deadline| scheduler.due(deadline, now, effects));
        let round = now.us >= self.next_round_us;
        if round {
            self.next_round_us = now.us + ROUND_US;
            self.nodes_round(now, effects);
        }
        if (woken || round) && self.shared.scheduler.waiting() > 0 {
            self.waiting.drain(&self.shared.scheduler, now, effects);
        }
    }

    fn publish(&mut self, node: &Arc<Node>) {
        let version = self.publisher.node_changed(node);
        self.published(version);
        info!(node = %node.id, state = node.state().as_str(), version, "pools published");
    }

    fn published(&self, version: u64) {
        self.shared.metrics.pool_snapshots.inc();
        self.shared.metrics.pool_version.set(version as i64);
    }

    /// Lets time act on nodes: warm-up, quarantine, silence.
    fn nodes_round(&mut self, now: Now, effects: &mut Effects) {
        for node in self.shared.registry.tick(now) {
            self.publish(&node);
            if node.state() == State::Offline {
                warn!(node = %node.id, "node fell silent");
                if let Some(link) = self.shared.links.pin().get(&node.index) {
                    link.outbox.request_close(1001, "no heartbeat");
                }
                self.shared.scheduler.node_lost(node.index, now, effects);
            }
        }
        let mut counts = [0_i64; State::ALL.len()];
        for node in self.shared.registry.all() {
            counts[node.state() as usize] += 1;
        }
        for state in State::ALL {
            let gauge = self.shared.metrics.nodes.with_label_values(&[state.as_str()]);
            gauge.set(counts[state as usize]);
        }
        let settled = &self.shared.metrics.jobs_settled;
        let ended = Outcome::ALL.map(|o| settled.with_label_values(&[o.as_str()]).get());
        self.shared.gateway.pace.look(ended.iter().sum(), now.us);
        if now.us >= self.next_sweep_us {
            self.next_sweep_us = now.us + SWEEP_US;
            credentials::sweep(&self.shared);
        }
        let waiting = self.shared.outgoing.held();
        self.shared.metrics.outbox_bytes.set(i64::try_from(waiting).unwrap_or(i64::MAX));
        if let Some(store) = &self.shared.store {
            store.look_at_disk();
            super::routes::store_gauges(&self.shared.metrics, &store.stats());
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Pools(edit, answer) => {
                let outcome = self.edit_pools(*edit);
                if answer.send(outcome).is_err() {
                    info!("who asked for other pools did not wait for the answer");
                }
            }
            Command::Settings(change, answer) => {
                if answer.send(self.change_settings(*change)).is_err() {
                    info!("who asked for other settings did not wait for the answer");
                }
            }
            Command::Key(change, answer) => {
                if answer.send(credentials::change(&self.shared, change)).is_err() {
                    info!("who asked for a key did not wait for the answer");
                }
                credentials::sweep(&self.shared);
            }
        }
    }

    /// Puts other settings in force, and the file's pools with them, unless an operator's rank
    /// above.
    fn change_settings(&mut self, change: Change) -> u64 {
        let config = &change.effective.config;
        self.shared.metrics.pause_ms.set(config.segmenter.pause_ms as i64);
        let of_file = config.pools.clone();
        let is_new = |s: &Snapshot| {
            let same = s.config.iter().map(Arc::as_ref).eq(of_file.iter());
            !s.overriding && !same
        };
        let version = self.setter.publish(change.effective);
        self.shared.metrics.config_version.set(version as i64);
        if self.shared.pools.with(is_new) {
            self.publish_pools(of_file, false);
        }
        // Jobs that waited may have room now.
        self.shared.control.wake.notify_one();
        version
    }

    /// Changes the pools; the store is asked first, so that what is in force is not forgotten.
    fn edit_pools(&mut self, edit: PoolEdit) -> PoolsChanged {
        let PoolEdit { step, expected } = edit;
        let before = self.shared.pools.load_full();
        if expected.is_some_and(|expected| !expected.fits(&tag(&before))) {
            return Err(PoolsRefused::Changed(tag(&before)));
        }
        let after = edited(&before, step)?;
        let of_file = || self.shared.settings.with(|version| version.config.pools.clone());
        let (pools, overriding) = after.map_or_else(|| (of_file(), false), |pools| (pools, true));
        let kept = match &self.shared.store {
            Some(store) => {
                let version = before.config_version + 1;
                let text = serde_json::to_string(&overriding.then_some(&pools));
                let row = PoolConfigRow { version, text: text.unwrap_or_default() };
                let (told, kept) = oneshot::channel();
                // Who asked may have left.
                let done = Box::new(move |_| {
                    told.send(()).unwrap_or(());
                });
                store.submit(Write::Pools(row), Some(done)).map_err(|_| PoolsRefused::Busy)?;
                Some(kept)
            }
            None => None,
        };
        let version = self.publish_pools(pools, overriding);
        // Jobs that waited may have somewhere to go now.
        self.shared.control.wake.notify_one();
        let (config_version, tag) = self.shared.pools.with(|s| (s.config_version, tag(s)));
        Ok(PoolsInForce { version, config_version, tag, overriding, kept })
    }

    fn publish_pools(&mut self, pools: Vec<Pool>, overriding: bool) -> u64 {
        let version = self.publisher.replace_config(pools, overriding);
        self.published(version);
        let config_version = self.shared.pools.with(|s| s.config_version);
        info!(version, config_version, overriding, "pool configuration replaced");
        version
    }
}
