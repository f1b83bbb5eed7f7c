//! `GET /api/v1/sessions/{id}`: one session, its last jobs, and what its client was not told yet.

use std::cmp::Reverse;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use hyper::{Response, StatusCode};
use serde_json::{Value, json};

use super::routes::{Routes, fault, reply};
use super::shared::{SessionHandle, read_store};
use crate::job::Job;
use crate::protocol::SessionId;
use crate::store::OutboxRow;
use crate::telemetry::Stage;
use crate::transport::Body;

/// Jobs shown of one session, the latest ones.
const JOBS_MAX: usize = 20;
/// Results shown that its client has not acknowledged, the oldest ones.
const OWED_MAX: usize = 100;

impl Routes {
    pub(super) async fn session(&self, id: &str) -> Response<Body> {
        let Ok(id) = id.parse::<SessionId>() else {
            return fault(StatusCode::BAD_REQUEST, "not a session id");
        };
        let handle = self.shared.sessions.pin().get(&id).map(Arc::clone);
        let mut jobs = Vec::new();
        self.shared.scheduler.for_each(|job| {
            if job.spec.session == id {
                jobs.push(Arc::clone(job));
            }
        });
        let owed = match self.shared.store.clone() {
            Some(store) => match read_store(&store, move |s| s.outbox(id, 0, OWED_MAX)).await {
                Ok(Ok(rows)) => rows,
                _ => {
                    let why = "the store could not be read";
                    return fault(StatusCode::INTERNAL_SERVER_ERROR, why);
                }
            },
            None => Vec::new(),
        };
        if handle.is_none() && jobs.is_empty() && owed.is_empty() {
            return fault(StatusCode::NOT_FOUND, "no such session, or nothing of it is remembered");
        }
        let mut body = match &handle {
            Some(handle) => self.open_session(handle),
            None => json!({"session_id": id, "state": "over"}),
        };
        jobs.sort_by_key(|job| Reverse((job.spec.utterance_index, job.id)));
        body["jobs_total"] = jobs.len().into();
        body["jobs"] = jobs.iter().take(JOBS_MAX).map(|job| brief(job)).collect();
        body["undelivered"] = owed.iter().map(undelivered).collect();
        reply(StatusCode::OK, &body)
    }

    fn open_session(&self, handle: &SessionHandle) -> Value {
        let peer = self.shared.peers.pin().get(&handle.id).map(ToString::to_string);
        let profile = &handle.profile;
        json!({
            "session_id": handle.id,
            "state": if peer.is_some() { "connected" } else { "away" },
            "peer": peer,
            "trace_id": profile.trace_id,
            "tenant": profile.tenant,
            "platform": profile.platform,
            "client_version": profile.client_version,
            "src_lang": profile.src,
            "tgt_lang": profile.tgt,
            "can_come_back": profile.resume,
            "paired_node": profile.paired,
            "room": handle.room.view().map(|room| room.code),
            "opened_unix_ms": handle.opened_unix_ms,
            "open_jobs": handle.open_jobs.load(SeqCst),
            "utterances": handle.utterances.load(SeqCst),
            "waiting_for_disk": handle.untold.load(SeqCst),
            "owed": handle.owed.load(SeqCst),
        })
    }
}

/// One of a session's jobs, in a line.
fn brief(job: &Job) -> Value {
    let ended = job.ended();
    json!({
        "job_id": job.id,
        "utterance_index": job.spec.utterance_index,
        "src_lang": job.spec.src,
        "tgt_lang": job.spec.tgt,
        "audio_ms": job.spec.audio_ms,
        "state": job.state().phase.as_str(),
        "outcome": ended.map(|ended| ended.outcome.as_str()),
        "code": ended.and_then(|ended| ended.code_text()),
        "node": ended.and_then(|ended| ended.node.as_ref()),
        "sent": job.stamps.at(Stage::Written) > 0,
        "durable": job.stamps.at(Stage::Durable) > 0,
        "delivered": job.stamps.at(Stage::Delivered) > 0,
    })
}

/// A result that is kept for a client. What is in it is not shown: somebody said it.
pub fn undelivered(row: &OutboxRow) -> Value {
    json!({
        "seq": row.seq,
        "job_id": row.job,
        "utterance_index": row.utterance_index,
        "bytes": row.frame.len(),
        "since_unix_ms": row.created_unix_ms,
    })
}
