//! The views as data: what there is now, short enough to be told every second.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{View, jobs};
use crate::config::Pool;
use crate::node::pool::Snapshot;
use crate::node::{Node, State};
use crate::protocol::Pair;
use crate::protocol::job::Outcome;
use crate::server::shared::{SessionHandle, Shared};
use crate::store::Store;
use crate::telemetry::Spread;

/// Rows of one table.
const ROWS_MAX: usize = 300;
/// Names in one row.
const NAMES_MAX: usize = 50;
/// Over how long times are looked at; a picture that comes a little late still counts.
const WINDOW: Duration = Duration::from_millis(10_500);
const TIMES: usize = 4;

/// Makes pictures.
pub(super) struct Painter {
    shared: Arc<Shared>,
    /// The histograms as they were in the last pictures, oldest first, and when.
    before: VecDeque<(Instant, [Spread; TIMES])>,
}

impl Painter {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, before: VecDeque::new() }
    }

    pub(super) fn paint(&mut self, view: View) -> Value {
        match view {
            View::Overview => self.overview(),
            View::Nodes => nodes(&self.shared),
            View::Pools => pools(&self.shared),
            View::Jobs => jobs::recent(&self.shared),
            View::Sessions => sessions(&self.shared),
        }
    }

    fn overview(&mut self) -> Value {
        let times = self.times();
        let (shared, m) = (&self.shared, &self.shared.metrics);
        let now_ms = shared.now().unix_ms;
        let ended: BTreeMap<&str, u64> = Outcome::ALL
            .into_iter()
            .map(|o| (o.as_str(), m.jobs_settled.with_label_values(&[o.as_str()]).get()))
            .collect();
        let (live, waiting) = (shared.scheduler.live(), shared.scheduler.waiting());
        let snapshot = shared.pools.load_full();
        json!({
            "at_unix_ms": now_ms,
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_s": now_ms.saturating_sub(shared.started_unix_ms) / 1_000,
            "boot_epoch": shared.boot_epoch,
            "ready": shared.ready.load(SeqCst),
            "draining": shared.is_draining(),
            "viewers": shared.console.viewers.load(SeqCst),
            "sessions": {
                "open": shared.sessions_open.load(SeqCst),
                "connected": shared.peers.len(),
                "opened": m.sessions_opened.get(),
            },
            "rooms": {"open": m.rooms.get(), "members": m.room_members.get()},
            "jobs": {
                "waiting": waiting,
                "with_nodes": live.saturating_sub(waiting),
                "submitted": m.jobs_submitted.get(),
                "ended": ended,
            },
            "times": times,
            "nodes": node_counts(shared),
            "pools": {"version": snapshot.version, "pairs": snapshot.routes().count()},
            "store": shared.store.as_ref().map(store),
        })
    }

    /// Milliseconds of the last seconds, by what took them.
    fn times(&mut self) -> Value {
        let m = &self.shared.metrics;
        let of = [&m.wait_seconds, &m.dispatch_seconds, &m.node_seconds, &m.deliver_seconds];
        let now = of.map(Spread::of);
        // What passed while nobody looked is not of the last seconds.
        self.before.retain(|(at, _)| at.elapsed() < WINDOW);
        let before =
            self.before.front().map_or_else(|| now.clone(), |(_, spreads)| spreads.clone());
        let names = ["wait", "dispatch", "node", "deliver"];
        let told = names.into_iter().zip(now.iter().zip(&before)).map(|(name, (now, before))| {
            let spread = now.since(before);
            let ms = |share| spread.quantile(share).map(|s| (s * 1e6).round() / 1e3);
            let told = json!({"p50_ms": ms(0.5), "p99_ms": ms(0.99), "count": spread.count()});
            (name.to_owned(), told)
        });
        let told = told.collect();
        self.before.push_back((Instant::now(), now));
        Value::Object(told)
    }
}

fn node_counts(shared: &Shared) -> Value {
    let now = shared.now();
    let mut states: BTreeMap<&str, u64> = BTreeMap::new();
    let (mut used, mut max, mut quarantined) = (0, 0, 0);
    for node in shared.registry.all() {
        let state = node.state();
        *states.entry(state.as_str()).or_default() += 1;
        if state != State::Offline {
            let slots = node.slots();
            used += slots.0;
            max += slots.1;
            quarantined += u32::from(node.quarantined(now).is_some());
        }
    }
    json!({"states": states, "slots_used": used, "slots_max": max, "quarantined": quarantined})
}

fn store(store: &Store) -> Value {
    let s = store.stats();
    json!({
        "queued": s.queued_results + s.queued_accepts + s.queued_housekeeping,
        "last_commit_ms": s.last_commit_us as f64 / 1e3,
        "behind_ms": s.beat_age_us as f64 / 1e3,
        "commits": s.commits,
        "health": s.health.as_str(),
        "pressure": s.pressure.as_str(),
        "free_bytes": s.free_bytes,
        "file_bytes": s.file_bytes,
        "dead_letters": s.dead_letters,
        "bad_rows": s.bad_rows,
    })
}

fn nodes(shared: &Shared) -> Value {
    let now = shared.now();
    let mut nodes = shared.registry.all();
    nodes.sort_by(|a, b| a.id.cmp(&b.id));
    let rows: Vec<Value> = nodes
        .iter()
        .take(ROWS_MAX)
        .map(|node| {
            let (used, max) = node.slots();
            let (remembered, failed) = node.recent();
            let (capability, load) = (node.capability(), node.load());
            let pairs = capability.pairs();
            let services: Vec<Value> = capability
                .services
                .iter()
                .take(NAMES_MAX)
                .map(|s| json!({"id": s.service_id, "type": s.kind, "status": s.status}))
                .collect();
            json!({
                "id": node.id,
                "state": node.state(),
                "peer": shared.links.pin().get(&node.index).map(|link| link.peer.to_string()),
                "platform": capability.platform,
                "version": capability.version,
                "slots_used": used,
                "slots_max": max,
                "cpu": load.cpu_percent,
                "gpu": load.gpu_percent,
                "mem": load.mem_percent,
                "overloaded": node.overloaded(),
                "failed": failed,
                "remembered": remembered,
                "quarantined_s":
                    node.quarantined(now).map(|until| (until - now.us).div_ceil(1_000_000)),
                "ready": capability.ready,
                "usable": node.usable(now),
                "services": services,
                "pairs": pairs.iter().take(NAMES_MAX).collect::<Vec<_>>(),
                "pairs_total": pairs.len(),
                "silent_s": now.us.saturating_sub(node.heard().0) / 1_000_000,
            })
        })
        .collect();
    json!({"nodes": rows, "total": nodes.len()})
}

fn pools(shared: &Shared) -> Value {
    let snapshot = shared.pools.load_full();
    let mut routes: Vec<_> = snapshot.routes().collect();
    routes.sort_by_key(|route| route.pair);
    let rows: Vec<Value> = routes
        .iter()
        .take(ROWS_MAX)
        .map(|route| {
            let pools = route.pools.iter().map(|pool| {
                let names: Vec<_> = pool.nodes.iter().take(NAMES_MAX).map(|n| &n.id).collect();
                json!({"name": &*pool.name, "configured": pool.config.is_some(),
                    "nodes": names, "nodes_total": pool.nodes.len()})
            });
            json!({"pair": route.pair, "pools": pools.collect::<Vec<_>>()})
        })
        .collect();
    let config: Vec<&Pool> = snapshot.config.iter().take(ROWS_MAX).map(Arc::as_ref).collect();
    let unserved = unserved(shared, &snapshot);
    json!({
        "version": snapshot.version,
        "config_version": snapshot.config_version,
        "config": config,
        "pairs": rows,
        "pairs_total": routes.len(),
        "unserved": unserved.iter().take(ROWS_MAX).map(|(pair, wanted, why)| {
            json!({"pair": pair, "wanted_by": wanted, "why": why})
        }).collect::<Vec<_>>(),
    })
}

/// Pairs that no node serves now, though a session or a pool wants them or a node could: by whom
/// they are wanted, and why there is no node.
fn unserved(shared: &Shared, snapshot: &Snapshot) -> Vec<(Pair, Vec<String>, Vec<String>)> {
    let mut wanted: BTreeMap<Pair, BTreeSet<String>> = BTreeMap::new();
    let mut want = |pair: Pair, who: String| {
        if snapshot.route(pair).is_none() {
            wanted.entry(pair).or_default().insert(who);
        }
    };
    for session in shared.sessions.pin().values().filter(|s| !s.profile.src.is_auto()) {
        let pair = Pair { src: session.profile.src, tgt: session.profile.tgt };
        want(pair, "a session".to_owned());
    }
    for pool in snapshot.config.iter() {
        for pair in pool.pairs.iter().filter_map(|pattern| pattern.to_string().parse().ok()) {
            want(pair, format!("pool {}", pool.name));
        }
    }
    let away: Vec<Arc<Node>> =
        shared.registry.all().into_iter().filter(|node| node.state() != State::Ready).collect();
    for node in &away {
        for pair in node.capability().pairs() {
            want(pair, format!("node {}", node.id));
        }
    }
    let explain = |(pair, who): (Pair, BTreeSet<String>)| {
        let able = away.iter().filter(|node| node.capability().covers(pair));
        let mut why: Vec<String> = able
            .take(NAMES_MAX)
            .map(|node| format!("{} is {}", node.id, node.state().as_str()))
            .collect();
        if why.is_empty() {
            why.push("no node knows both languages and can translate between them".to_owned());
        }
        (pair, who.into_iter().take(NAMES_MAX).collect(), why)
    };
    wanted.into_iter().map(explain).collect()
}

fn sessions(shared: &Shared) -> Value {
    let (sessions, peers) = (shared.sessions.pin(), shared.peers.pin());
    let mut rows: Vec<&Arc<SessionHandle>> = sessions.values().collect();
    rows.sort_by_key(|s| std::cmp::Reverse(s.opened_unix_ms));
    let total = rows.len();
    let rows: Vec<Value> = rows
        .into_iter()
        .take(ROWS_MAX)
        .map(|s| {
            json!({
                "id": s.id,
                "tenant": s.profile.tenant,
                "platform": s.profile.platform,
                "version": s.profile.client_version,
                "src": s.profile.src,
                "tgt": s.profile.tgt,
                "peer": peers.get(&s.id).map(ToString::to_string),
                "room": s.room.view().map(|view| view.code),
                "open_jobs": s.open_jobs.load(SeqCst),
                "owed": s.owed.load(SeqCst),
                "utterances": s.utterances.load(SeqCst),
                "opened_unix_ms": s.opened_unix_ms,
            })
        })
        .collect();
    let rooms = crate::server::rooms::listed(shared, ROWS_MAX);
    let (listed, rooms_total) = (&rooms["rooms"], &rooms["total"]);
    json!({"sessions": rows, "total": total, "rooms": listed, "rooms_total": rooms_total})
}
