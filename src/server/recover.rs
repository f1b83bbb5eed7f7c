//! Takes back what an earlier life of the server had accepted and not finished.
//!
//! A recovered job enters the same queue by the same way as a new one; there is no second way.

use std::collections::BTreeMap;
use std::sync::Arc;

use tracing::{info, warn};

use super::perform::perform;
use super::shared::Shared;
use crate::config::{Config, Pool, check_pools};
use crate::job::{Effects, Submission};
use crate::protocol::job::{Audio, Outcome};
use crate::store::{PoolConfigRow, Recovered, RecoveredJob, TerminalRow, Write};

/// The pool configuration to begin with and its version: the stored one if an operator changed it
/// while the server ran, else the file's.
pub(super) fn pools(config: &Config, stored: Option<&PoolConfigRow>) -> (Vec<Pool>, u64) {
    let Some(row) = stored else { return (config.pools.clone(), 1) };
    let parsed = serde_json::from_str::<Vec<Pool>>(&row.text).map_err(|e| e.to_string());
    match parsed.and_then(|pools| check_pools(pools).map_err(|f| f.to_string())) {
        Ok(pools) => {
            info!(version = row.version, "pool configuration taken from the store");
            (pools, row.version)
        }
        Err(fault) => {
            warn!(%fault, "the stored pool configuration is void; the file's is used");
            (config.pools.clone(), row.version + 1)
        }
    }
}

/// Queues every unfinished job again, in the order they were accepted.
pub(super) fn restore(shared: &Arc<Shared>, recovered: Option<Recovered>) {
    let Some(recovered) = recovered else { return };
    let now = shared.now();
    let (mut effects, mut speakers) = (Effects::new(), BTreeMap::new());
    let (mut restored, mut lost) = (0_u32, 0_u32);
    for RecoveredJob { row, audio } in recovered.jobs {
        let Ok(audio) = audio else {
            lost += 1;
            without_audio(shared, &row, now.unix_ms);
            continue;
        };
        restored += 1;
        let session = row.spec.session;
        let speaker = speakers.entry(session).or_insert_with(|| shared.scheduler.speaker(session));
        let submission = Submission {
            spec: row.spec,
            audio: Audio::Raw(audio),
            received_us: now.us,
            cut_us: now.us,
        };
        shared.scheduler.restore(row.id, speaker, submission, now, &mut effects);
    }
    perform(shared, &mut effects, now);
    for row in &recovered.idempotency {
        let left_ms = row.expires_unix_ms.saturating_sub(now.unix_ms);
        shared.scheduler.remember(row.key, row.job, left_ms, now, &mut effects);
    }
    perform(shared, &mut effects, now);
    if restored + lost > 0 || recovered.bad_rows > 0 {
        let bad_rows = recovered.bad_rows;
        warn!(restored, lost, bad_rows, "unfinished jobs of an earlier run were taken back");
    }
}

/// A job whose speech was not kept cannot be done again.
fn without_audio(shared: &Shared, row: &crate::store::JobRow, now_unix_ms: u64) {
    let Some(store) = &shared.store else { return };
    let terminal = TerminalRow {
        id: row.id,
        session: row.spec.session,
        utterance_index: row.spec.utterance_index,
        outcome: Outcome::Failed,
        code: "STORAGE_CORRUPT".to_owned(),
        message: "the speech of this job was not kept".to_owned(),
        attempts: row.attempts,
        node: None,
        settled_unix_ms: now_unix_ms,
        explanation: Vec::new(),
    };
    let write = Write::SettleJob { terminal: Box::new(terminal), outbox: None, dead: false };
    if store.submit(write, None).is_err() {
        warn!(job = %row.id, "a job without its speech stays to be ended at the next start");
    }
}
