//! How refusals and limits are told over HTTP.

use std::fmt::Write as _;

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use serde_json::json;

use crate::protocol::gateway::Failed;
use crate::protocol::{ErrorCode, Pair};
use crate::server::routes::reply;
use crate::server::shared::Shared;
use crate::tenant::Allowance;
use crate::transport::Body;

/// Why a recording was not translated.
#[derive(Debug)]
pub(super) struct Refused {
    status: StatusCode,
    code: String,
    message: String,
    retry_after_ms: Option<u64>,
    trace_id: Option<String>,
}

impl Refused {
    fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        let (code, message) = (code.to_owned(), message.into());
        Self { status, code, message, retry_after_ms: None, trace_id: None }
    }

    /// For a code of the protocol.
    pub(super) fn of(code: ErrorCode, message: impl Into<String>) -> Self {
        Self::new(status_of(code.as_str()), code.as_str(), message)
    }

    /// As a session, or a node, said it.
    pub(super) fn failed(failed: Failed) -> Self {
        let Failed { code, message, retry_after_ms, trace_id, .. } = failed;
        Self { status: status_of(&code), code, message, retry_after_ms, trace_id }
    }

    /// The request itself is wrong.
    pub(super) fn malformed(message: impl Into<String>) -> Self {
        Self::of(ErrorCode::InvalidMessage, message)
    }

    /// Not a kind of body, or of recording, that is read here.
    pub(super) fn unsupported(message: impl Into<String>) -> Self {
        let code = ErrorCode::InvalidMessage.as_str();
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, code, message)
    }

    /// More than is taken.
    pub(super) fn too_long(message: impl Into<String>) -> Self {
        let code = ErrorCode::InvalidMessage.as_str();
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, code, message)
    }

    /// Nobody translates this.
    pub(super) fn not_spoken(pair: Pair) -> Self {
        let code = ErrorCode::NoAvailableNode.as_str();
        let message = format!("no node translates from {} to {}", pair.src, pair.tgt);
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, message)
    }

    /// The recording did not come in time.
    pub(super) fn too_slow() -> Self {
        let code = ErrorCode::InvalidMessage.as_str();
        Self::new(StatusCode::REQUEST_TIMEOUT, code, "the recording did not come in time")
    }

    /// It was not translated in time.
    pub(super) fn too_late() -> Self {
        Self::of(ErrorCode::JobTimeout, "the recording was not translated in time")
    }

    /// The fault is ours.
    pub(super) fn ours() -> Self {
        Self::of(ErrorCode::InternalError, "the recording could not be worked on")
    }

    /// The credential was taken back meanwhile.
    pub(super) fn unauthorized() -> Self {
        let message = "the credential is no longer valid";
        Self::new(StatusCode::UNAUTHORIZED, ErrorCode::Forbidden.as_str(), message)
    }

    /// Whether the credential was at fault.
    pub(super) fn is_unauthorized(&self) -> bool {
        self.status == StatusCode::UNAUTHORIZED
    }

    /// One of the protocol's codes, or a node's.
    pub(super) fn code(&self) -> &str {
        &self.code
    }

    /// For people.
    pub(super) fn message(&self) -> &str {
        &self.message
    }

    /// When the same may succeed, if that is known.
    pub(super) fn retry_after_ms(&self) -> Option<u64> {
        self.retry_after_ms
    }

    /// As it is told over HTTP.
    pub(super) fn answer(self, shared: &Shared) -> Response<Body> {
        let Self { status, code, message, retry_after_ms, trace_id } = self;
        let body = json!({"error": message, "code": code, "trace_id": trace_id});
        let mut response = reply(status, &body);
        let headers = response.headers_mut();
        let waits = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE];
        if waits.contains(&status) {
            let told_s = retry_after_ms.map(|ms| ms.div_ceil(1_000));
            // A limit of the tenant's own knows when there is room; for the rest it is the queue.
            let seconds = match status {
                StatusCode::TOO_MANY_REQUESTS => told_s.unwrap_or(1),
                _ => shared.gateway.pace.wait_s(shared.scheduler.waiting()),
            };
            headers.insert(header::RETRY_AFTER, seconds.max(1).into());
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// What a code of the protocol, or of a node, is in HTTP.
fn status_of(code: &str) -> StatusCode {
    match ErrorCode::parse(code) {
        Some(ErrorCode::InvalidMessage) => StatusCode::BAD_REQUEST,
        Some(ErrorCode::Forbidden) => StatusCode::FORBIDDEN,
        Some(ErrorCode::RateLimited) => StatusCode::TOO_MANY_REQUESTS,
        Some(
            ErrorCode::Overloaded
            | ErrorCode::ShuttingDown
            | ErrorCode::NoAvailableNode
            | ErrorCode::NodeUnavailable
            | ErrorCode::ModelNotAvailable
            | ErrorCode::Cancelled,
        ) => StatusCode::SERVICE_UNAVAILABLE,
        Some(ErrorCode::JobTimeout) => StatusCode::GATEWAY_TIMEOUT,
        Some(ErrorCode::InternalError | ErrorCode::InvalidSession | ErrorCode::StorageCorrupt) => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
        _ => StatusCode::BAD_GATEWAY,
    }
}

/// `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers).
pub(super) fn tell_limits(allowances: &[Allowance], headers: &mut HeaderMap) {
    let (mut policies, mut left) = (String::new(), String::new());
    for allowance in allowances {
        let comma = if policies.is_empty() { "" } else { ", " };
        let name = allowance.of;
        // Writing to text does not fail.
        let policy = match allowance.window_s {
            Some(window) => write!(policies, "{comma}\"{name}\";q={};w={window}", allowance.quota),
            None => {
                let unit = "concurrent-requests";
                write!(policies, "{comma}\"{name}\";q={};qu=\"{unit}\"", allowance.quota)
            }
        };
        let rest = match allowance.window_s {
            Some(_) => {
                let full_s = allowance.full_in_ms.div_ceil(1_000);
                write!(left, "{comma}\"{name}\";r={};t={full_s}", allowance.left)
            }
            None => write!(left, "{comma}\"{name}\";r={}", allowance.left),
        };
        debug_assert!(policy.is_ok() && rest.is_ok());
    }
    let names = [("ratelimit-policy", policies), ("ratelimit", left)];
    for (name, value) in names {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
}
