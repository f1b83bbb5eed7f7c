//! The log's filter, shown and exchanged while the server runs.

use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use serde_json::json;
use tracing::warn;

use super::routes::{body_within, fault, reply};
use crate::config::Config;
use crate::telemetry::log::{Handle, LogError, running};
use crate::transport::Body;

/// Longest filter read, in bytes.
const BODY_BYTES_MAX: usize = 4 * 1024;

fn own() -> Option<Handle> {
    running().filter(Handle::is_ours)
}

pub(super) fn page() -> Response<Body> {
    match own() {
        Some(log) => reply(StatusCode::OK, &json!({"level": log.level()})),
        None => elsewhere(),
    }
}

/// Puts the filter in the body in force, until the next start or until `log.level` of the file
/// changes.
pub(super) async fn set(request: Request<Incoming>) -> Response<Body> {
    let body = match body_within(request, BODY_BYTES_MAX).await {
        Ok(body) => body,
        Err(refusal) => return refusal,
    };
    let Ok(level) = std::str::from_utf8(&body).map(str::trim) else {
        return fault(StatusCode::BAD_REQUEST, "the filter is no text");
    };
    let mut wanted = Config::default();
    level.clone_into(&mut wanted.log.level);
    if let Err(faults) = wanted.check() {
        return fault(StatusCode::BAD_REQUEST, &faults.to_string());
    }
    let Some(log) = own() else { return elsewhere() };
    match log.set_level(level) {
        Ok(()) => {
            warn!(level, "an operator changed the log's filter");
            reply(StatusCode::OK, &json!({"level": log.level()}))
        }
        Err(error @ LogError::Filter(_)) => fault(StatusCode::BAD_REQUEST, &error.to_string()),
        Err(LogError::Foreign) => elsewhere(),
    }
}

fn elsewhere() -> Response<Body> {
    fault(StatusCode::CONFLICT, &LogError::Foreign.to_string())
}
