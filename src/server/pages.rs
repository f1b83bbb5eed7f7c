//! The JSON answers for operators: what there is now, and what became of a job.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use hyper::{Response, StatusCode};
use serde_json::{Value, json};

use super::routes::{ROWS_MAX, Routes, fault, reply};
use super::shared::read_store;
use crate::config::Pool;
use crate::node::{Node, State};
use crate::protocol::JobId;
use crate::protocol::node::ServiceType;
use crate::store::TerminalRow;
use crate::telemetry::Now;
use crate::transport::Body;

/// Languages in `top_languages`.
const TOP_LANGUAGES: usize = 10;

impl Routes {
    pub(super) fn stats(&self) -> Response<Body> {
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

    pub(super) fn nodes(&self) -> Value {
        let now = self.shared.now();
        let mut nodes = self.shared.registry.all();
        nodes.sort_by(|a, b| a.id.cmp(&b.id));
        let rows: Vec<Value> =
            nodes.iter().take(ROWS_MAX).map(|node| self.node(node, now)).collect();
        json!({"nodes": rows, "total": nodes.len()})
    }

    pub(super) fn node(&self, node: &Node, now: Now) -> Value {
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

    pub(super) fn pools(&self) -> Value {
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
            "tag": super::pools::tag(&snapshot),
            "overriding_file": snapshot.overriding,
            "config": config,
            "pairs": rows,
            "pairs_total": total,
        })
    }

    pub(super) fn sessions(&self) -> Value {
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

    pub(super) fn jobs(&self) -> Value {
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
    pub(super) fn usage(&self) -> Value {
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

    pub(super) async fn job(&self, id: &str) -> Response<Body> {
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
