//! What an earlier life had accepted and not finished is taken back, as in `server/recover.rs`.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Life;
use super::journal::Then;
use super::session::Open;
use crate::job::{Deadline, Effect, Effects, Speaker, Submission};
use crate::protocol::job::Audio;
use crate::protocol::session::{Request, decode};
use crate::protocol::{NodeId, SessionId};
use crate::session::{Past, Profile};
use crate::sim::env::Env;
use crate::store::{JobRow, NodeRow, Recovered, RecoveredJob, RecoveredSession, Write};
use crate::telemetry::Now;

/// As the server has it.
const KEY_MS_MIN: u64 = 60_000;

/// A session that was open, and what is known of it.
struct Returned {
    open: Open,
    past: Past,
}

impl Life {
    pub(super) fn restore(&mut self, recovered: Recovered, env: &mut Env) {
        let now = self.now(env);
        let mut returned: BTreeMap<SessionId, Returned> = BTreeMap::new();
        for session in recovered.sessions {
            let id = session.row.id;
            env.counts.reached("session_restored");
            match self.returned(session, now) {
                Some(back) => drop(returned.insert(id, back)),
                None => drop(self.submit_write(Write::CloseSession(id), Then::Nothing, env)),
            }
        }
        let (mut effects, mut strangers) =
            (Effects::new(), BTreeMap::<SessionId, Arc<Speaker>>::new());
        for RecoveredJob { row, audio } in recovered.jobs {
            env.counts.reached("job_restored");
            let session = row.spec.session;
            let speaker = match returned.get_mut(&session) {
                Some(back) => speaker_of(back, &row),
                None => {
                    let account = self.scheduler.accounts().of(row.spec.tenant.as_deref());
                    let stranger = || self.scheduler.speaker(session, account);
                    Arc::clone(strangers.entry(session).or_insert_with(stranger))
                }
            };
            let Ok(audio) = audio else {
                env.counts.reached("audio_lost");
                self.scheduler.restore_lost(row.id, &speaker, row.spec, now, &mut effects);
                continue;
            };
            let submission = Submission {
                spec: row.spec,
                audio: Audio::Raw(audio),
                received_us: now.us,
                cut_us: now.us,
                chunks: row.chunks,
                key: None,
            };
            self.scheduler.restore(row.id, &speaker, submission, now);
        }
        for row in &recovered.idempotency {
            let left_ms = row.expires_unix_ms.saturating_sub(now.unix_ms).max(KEY_MS_MIN);
            let key = (row.key, row.digest);
            self.scheduler.remember(key, row.job, left_ms, now, &mut effects);
        }
        // Nobody will speak on for these.
        strangers.values().for_each(|speaker| speaker.close_turn());
        // Before the jobs move, so that no outcome finds its session missing.
        for back in returned.into_values() {
            self.come_back(back, now, env);
        }
        self.wait_for(&recovered.nodes, now, &mut effects);
        self.perform(&mut effects, now, env);
    }

    /// Lets the jobs that were taken back wait for these nodes, or gives them out, if there is
    /// nothing to wait for; as `server/awaited.rs`.
    fn wait_for(&mut self, nodes: &[NodeRow], now: Now, effects: &mut Effects) {
        let wait_ms = self.config.node.recovery_wait_ms;
        if self.scheduler.live() > 0 && wait_ms > 0 {
            self.awaited = nodes.iter().map(|node| node.id.clone()).collect();
        }
        if self.awaited.is_empty() {
            return self.scheduler.release_restored(now, effects);
        }
        effects.push(Effect::Arm(now.after_ms(wait_ms), Deadline::Recovered));
    }

    /// A node has come, and has said what it has if it can.
    pub(super) fn awaited_came(&mut self, node: &NodeId, now: Now, effects: &mut Effects) {
        if self.awaited.remove(node) && self.awaited.is_empty() {
            self.scheduler.release_restored(now, effects);
        }
    }

    /// None if the stored session cannot be made sense of.
    fn returned(&mut self, session: RecoveredSession, now: Now) -> Option<Returned> {
        let RecoveredSession { row, next_seq, next_index, chunks, owed, owed_bytes } = session;
        let Ok(Request::Init(init)) = decode(&row.init.into()) else { return None };
        let profile = Profile::new(*init, row.trace_id).ok()?;
        let key = row.resume_hash.map(|hash| (row.epoch, hash));
        let open = self.open_session(row.id, profile, row.epoch, key, now);
        let (first_seq, frames) = match owed {
            Some((first, last)) => (first, last + 1 - first),
            None => (next_seq, 0),
        };
        let each = owed_bytes.checked_div(frames).unwrap_or(0);
        let owed = vec![u32::try_from(each).unwrap_or(u32::MAX); frames as usize];
        let past = Past { next_index, chunks, first_seq, owed, ..Past::default() };
        Some(Returned { open, past })
    }

    fn come_back(&mut self, back: Returned, now: Now, env: &mut Env) {
        let Returned { mut open, mut past } = back;
        if !open.session.profile.resume {
            // Nobody will speak on.
            past.turn = None;
            open.speaker.close_turn();
        }
        let mut effects = crate::session::Effects::new();
        open.session.restore(past, now, &mut effects);
        self.add_restored(open, effects, env);
    }
}

/// One of its jobs is taken back.
fn speaker_of(back: &mut Returned, row: &JobRow) -> Arc<Speaker> {
    back.past.open.insert(row.spec.utterance_index, row.id);
    let open = !row.spec.cut.closes_turn();
    back.past.turn = open.then_some(row.spec.turn);
    Arc::clone(&back.open.speaker)
}
