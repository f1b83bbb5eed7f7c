//! Pools changed by an operator: all of them, one of them, or back to the file's.

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode, header};
use serde_json::json;
use tokio::sync::oneshot;

use super::routes::{Routes, body_within, fault, reply};
use super::shared::Command;
use crate::config::{Faults, Pool, check_pools};
use crate::node::pool::Snapshot;
use crate::transport::Body;

/// Longest body read, in bytes.
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// How long an answer waits for the change to be on disk.
const KEPT_WITHIN: Duration = Duration::from_secs(5);

/// A change of the pool configuration.
pub(super) struct PoolEdit {
    pub(super) step: Step,
    /// Which configuration it is to change; none for any.
    pub(super) expected: Option<Expected>,
}

/// What is to be changed.
pub(super) enum Step {
    /// These are all.
    Replace(Vec<Pool>),
    /// This one, in the place of the one of its name, or behind all others.
    Put(Pool),
    /// Not this one.
    Remove(String),
    /// Those of the file, whatever they are.
    BackToFile,
}

/// The tags that a request names, as in `If-Match`.
pub(super) struct Expected(String);

impl Expected {
    pub(super) fn fits(&self, tag: &str) -> bool {
        let named = self.0.split(',').map(|one| one.trim().trim_matches('"'));
        named.into_iter().any(|one| one == tag || one == "*")
    }
}

/// What is in force after a change.
pub(super) struct PoolsInForce {
    /// Of the snapshot.
    pub(super) version: u64,
    pub(super) config_version: u64,
    pub(super) tag: String,
    pub(super) overriding: bool,
    /// Resolves when the change is on disk; none where nothing is kept.
    pub(super) kept: Option<oneshot::Receiver<()>>,
}

/// Why pools were not changed.
pub(super) enum PoolsRefused {
    /// Somebody else changed them; the tag of what is in force.
    Changed(String),
    NoSuchPool,
    Faults(Faults),
    /// The store takes no more for the moment.
    Busy,
}

pub(super) type PoolsChanged = Result<PoolsInForce, PoolsRefused>;

/// Names one configuration: its version, which restarts of a server may give again, and a checksum
/// of what is in it.
pub(super) fn tag(snapshot: &Snapshot) -> String {
    let config: Vec<&Pool> = snapshot.config.iter().map(Arc::as_ref).collect();
    let text = serde_json::to_vec(&config).unwrap_or_default();
    format!("{}-{:08x}", snapshot.config_version, crc32c::crc32c(&text))
}

/// The configuration after a step, checked; none for that of the file.
pub(super) fn edited(now: &Snapshot, step: Step) -> Result<Option<Vec<Pool>>, PoolsRefused> {
    let current = || now.config.iter().map(|pool| Pool::clone(pool)).collect::<Vec<_>>();
    let pools = match step {
        Step::BackToFile => return Ok(None),
        Step::Replace(pools) => pools,
        Step::Put(pool) => {
            let mut pools = current();
            match pools.iter_mut().find(|one| one.name == pool.name) {
                Some(there) => *there = pool,
                None => pools.push(pool),
            }
            pools
        }
        Step::Remove(name) => {
            let mut pools = current();
            let at = pools.iter().position(|one| one.name == name);
            pools.remove(at.ok_or(PoolsRefused::NoSuchPool)?);
            pools
        }
    };
    check_pools(pools).map(Some).map_err(PoolsRefused::Faults)
}

impl Routes {
    /// `/api/v1/pools`, and `/api/v1/pools/{name}` below.
    pub(super) async fn change_pools(
        &self,
        name: Option<String>,
        request: Request<Incoming>,
    ) -> Response<Body> {
        let named = request.headers().get(header::IF_MATCH);
        let Ok(expected) = named.map(|value| value.to_str()).transpose() else {
            return fault(StatusCode::BAD_REQUEST, "If-Match is no text");
        };
        let expected = expected.map(|text| Expected(text.to_owned()));
        let step = match (request.method(), name) {
            (&Method::GET, None) => return self.all_pools(),
            (&Method::GET, Some(name)) => return self.one_pool(&name),
            (&Method::DELETE, None) => Step::BackToFile,
            (&Method::DELETE, Some(name)) => Step::Remove(name),
            (&Method::PUT, name) => match body_within(request, BODY_BYTES_MAX).await {
                Ok(body) => match put(name, &body) {
                    Ok(step) => step,
                    Err(why) => return fault(StatusCode::BAD_REQUEST, &why),
                },
                Err(refusal) => return refusal,
            },
            _ => return fault(StatusCode::METHOD_NOT_ALLOWED, "not a method of this page"),
        };
        let (asked, answered) = oneshot::channel();
        let command = Command::Pools(Box::new(PoolEdit { step, expected }), asked);
        if self.shared.control.commands.try_send(command).is_err() {
            return fault(StatusCode::SERVICE_UNAVAILABLE, "too many changes at once");
        }
        match answered.await {
            Ok(outcome) => answer_of(outcome).await,
            Err(_) => fault(StatusCode::SERVICE_UNAVAILABLE, "going down"),
        }
    }

    fn all_pools(&self) -> Response<Body> {
        let body = self.pools();
        let tag = body["tag"].as_str().unwrap_or_default();
        tagged(reply(StatusCode::OK, &body), tag)
    }

    fn one_pool(&self, name: &str) -> Response<Body> {
        let snapshot = self.shared.pools.load_full();
        match snapshot.config.iter().find(|pool| pool.name == name) {
            Some(pool) => tagged(reply(StatusCode::OK, &**pool), &tag(&snapshot)),
            None => fault(StatusCode::NOT_FOUND, "no such pool"),
        }
    }
}

/// What a body asks for. The pool of a path need not say its name again.
fn put(name: Option<String>, body: &[u8]) -> Result<Step, String> {
    let Some(name) = name else {
        return serde_json::from_slice(body).map(Step::Replace).map_err(|e| e.to_string());
    };
    // A list would be taken for the values of a pool in their order.
    let object = serde_json::from_slice::<serde_json::Map<_, _>>(body);
    let pool = object.and_then(|object| serde_json::from_value(object.into()));
    let mut pool: Pool = pool.map_err(|error| error.to_string())?;
    if pool.name.is_empty() {
        pool.name = name;
    } else if pool.name != name {
        return Err(format!("the body calls the pool {:?}, the path {name:?}", pool.name));
    }
    Ok(Step::Put(pool))
}

async fn answer_of(outcome: PoolsChanged) -> Response<Body> {
    let now = match outcome {
        Ok(now) => now,
        Err(PoolsRefused::Faults(faults)) => {
            return fault(StatusCode::UNPROCESSABLE_ENTITY, &faults.to_string());
        }
        Err(PoolsRefused::NoSuchPool) => return fault(StatusCode::NOT_FOUND, "no such pool"),
        Err(PoolsRefused::Busy) => {
            return fault(StatusCode::SERVICE_UNAVAILABLE, "the store is behind: nothing changed");
        }
        Err(PoolsRefused::Changed(tag)) => {
            let why = "the pools are not those of If-Match: read them again";
            return tagged(fault(StatusCode::PRECONDITION_FAILED, why), &tag);
        }
    };
    let kept = match now.kept {
        Some(kept) => tokio::time::timeout(KEPT_WITHIN, kept).await.is_ok_and(|told| told.is_ok()),
        None => false,
    };
    let body = json!({"version": now.version, "config_version": now.config_version,
        "tag": now.tag, "overriding_file": now.overriding, "on_disk": kept});
    tagged(reply(StatusCode::OK, &body), &now.tag)
}

fn tagged(mut response: Response<Body>, tag: &str) -> Response<Body> {
    if let Ok(value) = header::HeaderValue::from_str(&format!("\"{tag}\"")) {
        response.headers_mut().insert(header::ETAG, value);
    }
    response
}
