//! Takes back what an earlier life of the server had accepted and not finished.
//!
//! A recovered job enters the same queue by the same way as a new one; there is no second way.

use std::collections::BTreeMap;
use std::sync::Arc;

use tracing::{info, warn};

use super::awaited;
use super::perform::perform;
use super::session::{Open, SessionTask};
use super::shared::{ResumeKey, SessionSlot, Shared};
use crate::config::{Config, Pool, check_pools};
use crate::job::{Effects, Speaker, Submission};
use crate::protocol::SessionId;
use crate::protocol::job::Audio;
use crate::protocol::session::{Request, decode};
use crate::session::{Past, Profile};
use crate::store::{
    JobRow, PoolConfigRow, Recovered, RecoveredJob, RecoveredSession, RoomRow, Write,
};
use crate::telemetry::Now;

/// How long a key that was taken back is remembered at least: the clock may have been moved.
const KEY_MS_MIN: u64 = 60_000;

/// The pool configuration to begin with, its version, and whether it is an operator's: the stored
/// one if an operator changed it while the server ran, else the file's. A stored `null` says that
/// the file's was returned to.
pub(super) fn pools(config: &Config, stored: Option<&PoolConfigRow>) -> (Vec<Pool>, u64, bool) {
    let Some(row) = stored else { return (config.pools.clone(), 1, false) };
    let parsed = serde_json::from_str::<Option<Vec<Pool>>>(&row.text).map_err(|e| e.to_string());
    let checked = parsed.and_then(|pools| {
        pools.map(|pools| check_pools(pools).map_err(|f| f.to_string())).transpose()
    });
    match checked {
        Ok(Some(pools)) => {
            info!(version = row.version, "pool configuration taken from the store");
            (pools, row.version, true)
        }
        Ok(None) => (config.pools.clone(), row.version + 1, false),
        Err(fault) => {
            warn!(%fault, "the stored pool configuration is void; the file's is used");
            (config.pools.clone(), row.version + 1, false)
        }
    }
}

/// Queues every unfinished job again, in the order they were accepted, and brings every open
/// session back, without its client for now.
/// Returns the rooms there were.
pub(super) fn restore(shared: &Arc<Shared>, recovered: Option<Recovered>) -> Vec<RoomRow> {
    let Some(recovered) = recovered else { return Vec::new() };
    let now = shared.now();
    let mut returned: BTreeMap<SessionId, Returned> = BTreeMap::new();
    for session in recovered.sessions {
        let id = session.row.id;
        match Returned::of(shared, session, now) {
            Some(back) => drop(returned.insert(id, back)),
            None => close(shared, id),
        }
    }
    let (mut effects, mut strangers) = (Effects::new(), BTreeMap::new());
    let (mut restored, mut lost) = (0_u32, 0_u32);
    for RecoveredJob { row, audio } in recovered.jobs {
        let session = row.spec.session;
        let speaker = match returned.get_mut(&session) {
            Some(back) => back.speaker_of(shared, &row),
            None => {
                let account = shared.scheduler.accounts().of(row.spec.tenant.as_deref());
                let stranger = || shared.scheduler.speaker(session, account);
                Arc::clone(strangers.entry(session).or_insert_with(stranger))
            }
        };
        let Ok(audio) = audio else {
            lost += 1;
            shared.scheduler.restore_lost(row.id, &speaker, row.spec, now, &mut effects);
            continue;
        };
        restored += 1;
        let submission = Submission {
            spec: row.spec,
            audio: Audio::Raw(audio),
            received_us: now.us,
            cut_us: now.us,
            chunks: row.chunks,
            key: None,
        };
        shared.scheduler.restore(row.id, &speaker, submission, now);
    }
    for row in &recovered.idempotency {
        let left_ms = row.expires_unix_ms.saturating_sub(now.unix_ms).max(KEY_MS_MIN);
        let key = (row.key, row.digest);
        shared.scheduler.remember(key, row.job, left_ms, now, &mut effects);
    }
    let sessions = returned.len();
    // Nobody will speak on for these.
    strangers.values().for_each(|speaker| speaker.close_turn());
    // Before the jobs move, so that no outcome finds its session missing.
    for back in returned.into_values() {
        tokio::spawn(back.task(shared, now).run());
    }
    awaited::wait_for(shared, &recovered.nodes, now, &mut effects);
    perform(shared, &mut effects, now);
    if restored + lost > 0 || sessions > 0 || recovered.bad_rows > 0 {
        let bad_rows = recovered.bad_rows;
        warn!(restored, lost, sessions, bad_rows, "taken back from an earlier run");
    }
    recovered.rooms
}

/// A session that was open, and what is known of it.
struct Returned {
    open: Open,
    past: Past,
}

impl Returned {
    /// None if the stored session cannot be made sense of.
    fn of(shared: &Arc<Shared>, session: RecoveredSession, now: Now) -> Option<Self> {
        let RecoveredSession { row, next_seq, next_index, chunks, owed, owed_bytes } = session;
        let Ok(Request::Init(init)) = decode(&row.init.into()) else {
            warn!(session = %row.id, "a stored session cannot be made anew");
            return None;
        };
        let profile = Profile::new(*init, row.trace_id).ok()?;
        let profile = profile.paired_with(row.paired).of_tenant(row.tenant);
        let key = row.resume_hash.map(|hash| ResumeKey { epoch: row.epoch, hash });
        let slot = SessionSlot::take_back(shared, profile.tenant.as_deref());
        let open = Open::new(shared, row.id, profile, row.epoch, key, now, slot);
        let (first_seq, frames) = match owed {
            Some((first, last)) => (first, last + 1 - first),
            None => (next_seq, 0),
        };
        // Their lengths matter only in sum.
        let each = owed_bytes.checked_div(frames).unwrap_or(0);
        let owed = vec![u32::try_from(each).unwrap_or(u32::MAX); frames as usize];
        let past = Past { next_index, chunks, first_seq, owed, ..Past::default() };
        Some(Self { open, past })
    }

    /// One of its jobs is taken back.
    fn speaker_of(&mut self, shared: &Shared, row: &JobRow) -> Arc<Speaker> {
        let (id, lang, index) = (row.spec.session, row.spec.tgt, row.spec.utterance_index);
        self.past.remember_hearers(&row.spec);
        if !row.spec.is_primary() {
            self.past.for_others.push((lang, index, row.id));
            let account = Arc::clone(&self.open.speaker.account);
            let fresh = || shared.scheduler.speaker(id, account);
            return Arc::clone(self.open.lanes.entry(lang).or_insert_with(fresh));
        }
        self.past.open.insert(index, row.id);
        let open = !row.spec.cut.closes_turn();
        self.past.turn = open.then_some(row.spec.turn);
        Arc::clone(&self.open.speaker)
    }

    fn task(self, shared: &Arc<Shared>, now: Now) -> SessionTask {
        let Self { mut open, mut past } = self;
        if !open.session.profile.resume {
            // Nobody will speak on.
            past.turn = None;
            open.close_turns();
        }
        let mut effects = crate::session::Effects::new();
        open.session.restore(past, now, &mut effects);
        SessionTask::restored(Arc::clone(shared), open, effects)
    }
}

fn close(shared: &Shared, session: SessionId) {
    let Some(store) = &shared.store else { return };
    if store.submit(Write::CloseSession(session), None).is_err() {
        warn!(%session, "a session without sense stays until the next start");
    }
}
