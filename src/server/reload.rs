//! Settings read again while the server runs, all or nothing; the page that shows them; and the
//! stop that an operator asks for.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, OnceLock};

use hyper::{Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, oneshot};
use tracing::{error, info, warn};

use super::routes::{Routes, fault, reply};
use super::shared::{Command, Shared};
use super::whence::Whence;
use crate::config::{Change, Changed, Faults, Loaded, Place, is_untold, reference_settings};
use crate::telemetry;
use crate::transport::{Body, Reading};

/// Reads the settings from wherever they are written. It blocks.
pub type Source = Arc<dyn Fn() -> Result<Loaded, Faults> + Send + Sync>;

/// How settings are read again.
pub(super) struct Reloads {
    source: OnceLock<Source>,
    /// One reading at a time: the one that begins later ends later.
    turn: Semaphore,
}

impl Default for Reloads {
    fn default() -> Self {
        Self { source: OnceLock::new(), turn: Semaphore::new(1) }
    }
}

impl Reloads {
    /// The first source stays.
    pub(super) fn read_from(&self, source: Source) {
        if self.source.set(source).is_err() {
            warn!("there is a place already where settings are read again");
        }
    }
}

/// What a reading has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reloaded {
    /// Version of the settings now in force.
    pub version: u64,
    /// Settings that are others now.
    pub changed: Vec<Changed>,
    /// Settings that are written otherwise and have no effect before a restart.
    pub needs_restart: Vec<Changed>,
    /// Pools that are written otherwise and have no effect while an operator's rank above.
    pub outranked: Vec<Changed>,
    /// Whether certificates were read again.
    pub certificates: bool,
}

/// Why nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreloaded {
    /// There is no file, and there are no certificates.
    #[error("this server has nothing to read again")]
    Nothing,
    /// What was read has faults.
    #[error("{0}")]
    Faults(Faults),
    /// The server has too much to do, or goes down.
    #[error("the server cannot change its settings now")]
    Busy,
}

/// What was read, before anything of it is in force.
type Read = (Result<Option<Loaded>, Faults>, Result<Option<Reading>, Faults>);

/// Reads settings and certificates again. With any fault in any of them nothing changes.
pub(super) async fn reload(shared: &Shared) -> Result<Reloaded, Unreloaded> {
    // It is never closed.
    let _turn = shared.reloads.turn.acquire().await.map_err(|_| Unreloaded::Busy)?;
    let outcome = in_turn(shared).await;
    match &outcome {
        Ok(done) => {
            for Changed { setting, from, to } in &done.changed {
                info!(setting, from, to, "setting changed");
            }
            for Changed { setting, from, to } in &done.needs_restart {
                warn!(setting, from, to, "setting changes at a restart");
            }
            for Changed { setting, .. } in &done.outranked {
                warn!(setting, "an operator's pools rank above those of the file");
            }
            info!(version = done.version, certificates = done.certificates, "settings read again");
        }
        Err(fault) => error!(%fault, "nothing is changed"),
    }
    let label = if outcome.is_ok() { "done" } else { "refused" };
    shared.metrics.config_reloads.with_label_values(&[label]).inc();
    outcome
}

async fn in_turn(shared: &Shared) -> Result<Reloaded, Unreloaded> {
    let (source, tls) = (shared.reloads.source.get().map(Arc::clone), Arc::clone(&shared.tls));
    if source.is_none() && !tls.is_used() {
        return Err(Unreloaded::Nothing);
    }
    // The disk may take its time.
    let read = tokio::task::spawn_blocking(move || -> Read {
        let settings = source.map(|source| source()).transpose();
        let certificates = tls.is_used().then(|| tls.reading()).transpose();
        (settings, certificates)
    });
    let (settings, certificates) = read.await.map_err(|_| Unreloaded::Busy)?;
    let now = shared.settings.load_full();
    let change = settings.and_then(|read| {
        let same = || Loaded { config: now.config.clone(), places: now.places.clone() };
        Change::between(&now.config, read.unwrap_or_else(same))
    });
    let outcome = if certificates.is_ok() { "done" } else { "refused" };
    if shared.tls.is_used() {
        shared.metrics.tls_reloads.with_label_values(&[outcome]).inc();
    }
    let (change, certificates) = match (change, certificates) {
        (Ok(change), Ok(certificates)) => (change, certificates),
        (change, certificates) => {
            let mut faults = change.err().map(|faults| faults.0).unwrap_or_default();
            faults.extend(certificates.err().map(|faults| faults.0).unwrap_or_default());
            return Err(Unreloaded::Faults(Faults(faults)));
        }
    };
    let level = change.effective.config.log.level.clone();
    let overriding = shared.pools.with(|snapshot| snapshot.overriding);
    let of_pools = |one: &Changed| one.setting == "pools" || one.setting.starts_with("pools.");
    let (outranked, changed) =
        change.changed.iter().cloned().partition(|one| overriding && of_pools(one));
    let needs_restart = change.needs_restart.clone();
    let (asked, answered) = oneshot::channel();
    let command = Command::Settings(Box::new(change), asked);
    shared.control.commands.send(command).await.map_err(|_| Unreloaded::Busy)?;
    let version = answered.await.map_err(|_| Unreloaded::Busy)?;
    if level != now.config.log.level {
        set_level(&level);
    }
    let read = certificates.is_some();
    if let Some(certificates) = certificates {
        shared.tls.publish(certificates);
    }
    Ok(Reloaded { version, changed, needs_restart, outranked, certificates: read })
}

/// Where somebody else owns the log of the process, its filter is not ours to change.
fn set_level(level: &str) {
    let log = telemetry::log::running().filter(telemetry::log::Handle::is_ours);
    if let Some(Err(error)) = log.map(|log| log.set_level(level)) {
        warn!(%error, level, "the log's filter is as it was");
    }
}

impl Routes {
    pub(super) async fn reload_settings(&self) -> Response<Body> {
        match reload(&self.shared).await {
            Ok(done) => reply(
                StatusCode::OK,
                &json!({
                    "version": done.version,
                    "changed": done.changed,
                    "needs_restart": done.needs_restart,
                    "outranked": done.outranked,
                    "certificates": done.certificates,
                }),
            ),
            Err(Unreloaded::Faults(faults)) => {
                let body = json!({"error": faults.to_string(), "faults": faults});
                reply(StatusCode::UNPROCESSABLE_ENTITY, &body)
            }
            Err(why @ Unreloaded::Nothing) => fault(StatusCode::CONFLICT, &why.to_string()),
            Err(why @ Unreloaded::Busy) => fault(StatusCode::SERVICE_UNAVAILABLE, &why.to_string()),
        }
    }

    /// The settings in force: their version, and of each its value, where it was written and when a
    /// change of it has effect.
    pub(super) fn settings(&self, whence: Whence) -> Response<Body> {
        if self.is_stranger(whence) {
            return fault(StatusCode::FORBIDDEN, "only from this host");
        }
        let now = self.shared.settings.load_full();
        let values = serde_json::to_value(&now.config).unwrap_or_default();
        let mut sections: BTreeMap<&str, BTreeMap<&str, Value>> = BTreeMap::new();
        for (section, key, live) in reference_settings() {
            let value = match is_untold(key) {
                true => Value::Null,
                false => values[section][key].clone(),
            };
            let from = now.places.get(&format!("{section}.{key}"));
            let changes = if live { "live" } else { "at a restart" };
            let shown = json!({"value": value, "from": from.unwrap_or(&Place::Nowhere),
                "changes": changes});
            sections.entry(section).or_default().insert(key, shown);
        }
        let log = telemetry::log::running().map(|log| log.level());
        reply(
            StatusCode::OK,
            &json!({"version": now.number, "settings": sections, "pools": values["pools"],
                "tenants": values["tenants"], "log_level_in_force": log}),
        )
    }

    /// Has the server stopped in good order by who runs it.
    pub(super) fn drain(&self) -> Response<Body> {
        let asked = &self.shared.stop_asked;
        if asked.receiver_count() == 0 && !self.shared.is_draining() {
            return fault(
                StatusCode::CONFLICT,
                "who started this server does not stop it when asked",
            );
        }
        if !asked.send_replace(true) {
            warn!("an operator asks for the stop");
        }
        let (jobs, sessions) =
            (self.shared.scheduler.live(), self.shared.sessions_open.load(SeqCst));
        let drain_ms = self.shared.settings.with(|version| version.config.server.drain_ms);
        let body = json!({"draining": true, "jobs": jobs, "sessions": sessions,
            "drain_ms": drain_ms});
        reply(StatusCode::ACCEPTED, &body)
    }
}
