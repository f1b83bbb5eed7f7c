//! What could not be brought to its end, for operators: to see, to send again, to drop.

use std::sync::Arc;

use hyper::{Method, Response, StatusCode};
use serde_json::{Value, json};
use tracing::{info, warn};

use super::perform::perform;
use super::routes::{Routes, fault, reply};
use super::shared::{Mail, Shared, read_store};
use super::whence::Whence;
use crate::job::{Effects, Submission};
use crate::protocol::JobId;
use crate::protocol::job::Audio;
use crate::store::{DeadLetterRow, Store, Write};
use crate::transport::Body;

/// Letters in one listing.
const ROWS_MAX: usize = 1_000;

impl Routes {
    /// `/api/v1/dead-letters` and below. The first is a listing behind the id that is its query.
    pub(super) async fn dead_letters(
        &self,
        method: &Method,
        rest: &[&str],
        query: Option<&str>,
        whence: Whence,
    ) -> Response<Body> {
        let Some(store) = self.shared.store.clone() else {
            return fault(StatusCode::NOT_FOUND, "nothing is kept on disk");
        };
        if self.is_stranger(whence) {
            // They hold what people said.
            return fault(StatusCode::FORBIDDEN, "only from this host");
        }
        let id = match rest.first().map(|id| id.parse::<u64>()) {
            None => return list(store, query).await,
            Some(Ok(id)) => id,
            Some(Err(_)) => return fault(StatusCode::BAD_REQUEST, "not a dead letter's id"),
        };
        let (row, audio) = match read_store(&store, move |s| s.dead_letter(id)).await {
            Ok(Ok(Some(found))) => found,
            Ok(Ok(None)) => return fault(StatusCode::NOT_FOUND, "no such dead letter"),
            Ok(Err(error)) => {
                return fault(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string());
            }
            Err(_) => return fault(StatusCode::INTERNAL_SERVER_ERROR, "it could not be read"),
        };
        match (method, &rest[1..]) {
            (&Method::GET, []) => reply(StatusCode::OK, &explain_dead_letter(&row)),
            (&Method::GET, ["audio"]) => match audio {
                Some(audio) => Response::new(Body::from(audio)),
                None => fault(StatusCode::NOT_FOUND, "no audio is kept with it"),
            },
            (&Method::POST, ["resend"]) => match audio {
                Some(audio) => resend(&self.shared, &row, Audio::Raw(audio)),
                None => fault(StatusCode::CONFLICT, "no audio is kept with it"),
            },
            (&Method::DELETE, []) => match store.submit(Write::DropDeadLetter(id), None) {
                Ok(()) => {
                    info!(id, job = %row.job, "dead letter dropped by an operator");
                    reply(StatusCode::OK, &json!({"id": id, "dropped": true}))
                }
                Err(_) => fault(StatusCode::SERVICE_UNAVAILABLE, "the store is behind"),
            },
            _ => fault(StatusCode::NOT_FOUND, "no such page"),
        }
    }
}

async fn list(store: Store, query: Option<&str>) -> Response<Body> {
    let after = query.and_then(|q| q.strip_prefix("after=")).map_or(Ok(0), str::parse);
    let Ok(after) = after else { return fault(StatusCode::BAD_REQUEST, "`after` is no number") };
    match read_store(&store, move |s| s.dead_letters(after, ROWS_MAX)).await {
        Ok(Ok(rows)) => {
            let letters: Vec<Value> = rows.iter().map(explain_dead_letter).collect();
            reply(StatusCode::OK, &json!({"dead_letters": letters}))
        }
        _ => fault(StatusCode::INTERNAL_SERVER_ERROR, "the store could not be read"),
    }
}

/// Makes a new job of a dead letter. Its result goes to the session, if that is still there, as a
/// late one; else it becomes a dead letter of its own, with what was said.
fn resend(shared: &Arc<Shared>, letter: &DeadLetterRow, audio: Audio) -> Response<Body> {
    let Some(row) = &letter.job_row else {
        return fault(StatusCode::CONFLICT, "the job was not kept with it");
    };
    let (now, mut effects) = (shared.now(), Effects::new());
    let (received_us, cut_us) = (now.us, now.us);
    let spec = row.spec.clone();
    let submission = Submission { spec, audio, received_us, cut_us, chunks: None, key: None };
    let job = match shared.scheduler.submit_again(submission, now, &mut effects) {
        Ok(job) => job,
        Err(denied) => return fault(StatusCode::SERVICE_UNAVAILABLE, &denied.to_string()),
    };
    let session = shared.sessions.pin().get(&job.spec.session).map(Arc::clone);
    if let Some(session) = session {
        session.deliver(Mail::Reopened(Arc::clone(&job)));
    }
    perform(shared, &mut effects, now);
    if let Some(store) = &shared.store
        && store.submit(Write::DropDeadLetter(letter.id), None).is_err()
    {
        warn!(id = letter.id, "a dead letter that was sent again could not be dropped");
    }
    info!(id = letter.id, old = %letter.job, new = %job.id, "dead letter sent again");
    reply(StatusCode::OK, &json!({"id": letter.id, "job_id": job.id, "was": letter.job}))
}

/// A dead letter for people and programs.
pub fn explain_dead_letter(row: &DeadLetterRow) -> Value {
    let frame: Option<Value> =
        row.frame.as_deref().and_then(|frame| serde_json::from_slice(frame).ok());
    let asked = row.job_row.as_ref().map(|job| {
        json!({"src_lang": job.spec.src, "tgt_lang": job.spec.tgt, "audio_ms": job.spec.audio_ms,
            "audio_format": job.spec.audio_format, "trace_id": job.spec.trace_id})
    });
    let no_job: Option<JobId> = None;
    json!({
        "id": row.id,
        "why": row.why,
        "job_id": if row.job == JobId(0) { no_job } else { Some(row.job) },
        "session_id": row.session,
        "utterance_index": row.utterance_index,
        "code": row.code,
        "message": row.message,
        "created_unix_ms": row.created_unix_ms,
        "seq": row.seq,
        "frame": frame,
        "asked": asked,
        "audio_bytes": row.audio_bytes,
        "can_resend": row.job_row.is_some() && row.audio_bytes > 0,
    })
}
