//! Who may come in: credentials of requests, the keys' own pages, and the end of connections whose
//! key is no longer good.

use std::fs::OpenOptions;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode, header};
use serde_json::{Value, json};
use tracing::{info, warn};

use super::routes::{Routes, body_within, fault, reply};
use super::shared::{Command, NodeTag, SessionTag, Shared};
use super::whence::Whence;
use crate::config::{self, Live};
use crate::protocol::admin::{MakeKey, MakeToken};
use crate::store::{KeyRow, Write};
use crate::tenant::{Key, KeyKind, Keys, NoKey, Pass};
use crate::transport::{Body, Outbox};

/// The file beside the database under whose content keys are hashed.
const SECRET_FILE: &str = "secret";
/// Bytes of a request's body about keys.
const BODY_BYTES_MAX: usize = 16 * 1024;
/// How long a token is good that does not say otherwise, and the longest it may be, in seconds.
const TOKEN_SECONDS: (u64, u64) = (300, 3_600);
const DAY_MS: u64 = 86_400_000;
/// Most days a key can be given.
const DAYS_MAX: u64 = 36_500;

/// The secret of this data directory, made if there is none.
pub(super) fn secret_in(dir: &Path) -> io::Result<[u8; 32]> {
    let file = dir.join(SECRET_FILE);
    match OpenOptions::new().read(true).open(&file) {
        Ok(mut found) => {
            let mut bytes = Vec::new();
            io::Read::by_ref(&mut found).take(64).read_to_end(&mut bytes)?;
            let wrong = |_| io::Error::new(io::ErrorKind::InvalidData, "it is not 32 bytes long");
            bytes.try_into().map_err(wrong)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let secret = fresh_secret()?;
            let mut made =
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file)?;
            made.write_all(&secret)?;
            made.sync_all()?;
            Ok(secret)
        }
        Err(error) => Err(error),
    }
}

/// A secret for as long as the process lives.
pub(super) fn fresh_secret() -> io::Result<[u8; 32]> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(secret)
}

/// The keys of a server that begins.
pub(super) fn ring(
    secret: [u8; 32],
    required: impl Into<Live<config::Auth>>,
    rows: Vec<KeyRow>,
) -> Keys {
    let of = |row: KeyRow| {
        let kind = KeyKind::ALL.into_iter().find(|kind| *kind as u8 == row.kind)?;
        Some(Key {
            id: row.id,
            kind,
            tenant: row.tenant,
            name: row.name,
            hash: row.hash,
            created_unix_ms: row.created_unix_ms,
            expires_unix_ms: row.expires_unix_ms,
            revoked_unix_ms: row.revoked_unix_ms,
        })
    };
    Keys::new(secret, required, rows.into_iter().filter_map(of).collect())
}

fn row(key: &Key) -> KeyRow {
    KeyRow {
        id: key.id,
        kind: key.kind as u8,
        tenant: key.tenant.clone(),
        name: key.name.clone(),
        hash: key.hash,
        created_unix_ms: key.created_unix_ms,
        expires_unix_ms: key.expires_unix_ms,
        revoked_unix_ms: key.revoked_unix_ms,
    }
}

/// What an operator wants of a key.
pub(super) enum KeyChange {
    /// Make one.
    Make { kind: KeyKind, tenant: Option<String>, name: String, expires_unix_ms: Option<u64> },
    /// Make it good for nothing.
    Revoke(u64),
}

/// What became of that: the key, and its text if it is new; none if there is no such key.
pub(super) type Changed = Result<Option<(Key, Option<String>)>, NoKey>;

/// Changes a key. Only the control task calls this, one change after the other.
pub(super) fn change(shared: &Shared, change: KeyChange) -> Changed {
    let (keys, now_ms) = (&shared.keys, shared.now().unix_ms);
    let (key, text) = match change {
        KeyChange::Make { kind, tenant, name, expires_unix_ms } => {
            let (key, text) = keys.make((kind, tenant), name, expires_unix_ms, now_ms)?;
            (key, Some(text))
        }
        KeyChange::Revoke(id) => match keys.revoked(id, now_ms) {
            Some(key) => (key, None),
            None => return Ok(None),
        },
    };
    keys.put(key.clone());
    info!(key = key.id, kind = key.kind.as_str(), tenant = ?key.tenant,
        revoked = key.revoked_unix_ms.is_some(), "key changed");
    if let Some(store) = &shared.store
        && store.submit(Write::Key(row(&key)), None).is_err()
    {
        warn!(key = key.id, "the store is behind: the key is as it is until the next start");
    }
    Ok(Some((key, text)))
}

/// The connection of somebody who showed a key.
enum Watched {
    Session(Arc<Outbox<SessionTag>>),
    Node(Arc<Outbox<NodeTag>>),
}

/// Connections that are open by the grace of a key, each with the key.
#[derive(Default)]
pub(super) struct Watch {
    next: std::sync::atomic::AtomicU64,
    open: papaya::HashMap<u64, (u64, Watched), foldhash::fast::RandomState>,
}

/// Somebody who showed a key; watched for as long as this lives.
pub(super) struct Admitted {
    pub(super) pass: Pass,
    shared: Arc<Shared>,
    number: u64,
}

impl Admitted {
    /// Nobody has to be watched who did not have to show a key.
    pub(super) fn session(
        shared: &Arc<Shared>,
        pass: Pass,
        outbox: &Arc<Outbox<SessionTag>>,
    ) -> Option<Box<Self>> {
        Self::watched(shared, pass, Watched::Session(Arc::clone(outbox)))
    }

    /// The same of a node.
    pub(super) fn node(
        shared: &Arc<Shared>,
        pass: Pass,
        outbox: &Arc<Outbox<NodeTag>>,
    ) -> Option<Box<Self>> {
        Self::watched(shared, pass, Watched::Node(Arc::clone(outbox)))
    }

    fn watched(shared: &Arc<Shared>, pass: Pass, watched: Watched) -> Option<Box<Self>> {
        let key = pass.key?;
        let number = shared.watch.next.fetch_add(1, Relaxed);
        shared.watch.open.pin().insert(number, (key, watched));
        Some(Box::new(Self { pass, shared: Arc::clone(shared), number }))
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.shared.watch.open.pin().remove(&self.number);
    }
}

/// Closes the connections whose key is no longer good.
pub(super) fn sweep(shared: &Shared) {
    const WHY: &str = "the credential is no longer valid";
    let now_ms = shared.now().unix_ms;
    for (key, watched) in shared.watch.open.pin().values() {
        if !shared.keys.is_good(*key, now_ms) {
            match watched {
                Watched::Session(outbox) => outbox.request_close(4401, WHY),
                Watched::Node(outbox) => outbox.request_close(4401, WHY),
            }
        }
    }
}

/// What a request shows. A token may stand in the address, for browsers can put it nowhere else; a
/// key may not, for addresses are written down everywhere.
fn shown<B>(request: &Request<B>) -> Option<&str> {
    let value = request.headers().get(header::AUTHORIZATION)?.to_str().ok();
    let bearer = value.and_then(|value| value.split_once(' '));
    let bearer = bearer.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    Some(bearer.map_or("", |(_, credential)| credential.trim()))
}

fn in_address<B>(request: &Request<B>) -> Option<&str> {
    let mut pairs = request.uri().query()?.split('&');
    let token = pairs.find_map(|pair| pair.strip_prefix("access_token="))?;
    Some(if Keys::is_token(token) { token } else { "" })
}

/// The same answer to everybody who is not let in.
fn unauthorized() -> Response<Body> {
    let mut response = fault(StatusCode::UNAUTHORIZED, "a valid credential is needed");
    let challenge = header::HeaderValue::from_static("Bearer");
    response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    response
}

impl Routes {
    /// Who asks, if they may come in by this door.
    #[expect(clippy::result_large_err, reason = "the error is the answer, and about to be sent")]
    pub(super) fn admit<B>(
        &self,
        kind: KeyKind,
        request: &Request<B>,
        from: IpAddr,
    ) -> Result<Pass, Response<Body>> {
        let credential = shown(request).or_else(|| in_address(request));
        let now_ms = self.shared.now().unix_ms;
        self.shared.keys.admit(kind, credential, now_ms).map_err(|_| {
            self.shared.metrics.unauthorized.with_label_values(&[kind.as_str()]).inc();
            self.shared.house.failed(from);
            unauthorized()
        })
    }

    /// Whether who asks may see the operators' pages, and change things there; with the key it
    /// showed for that. From this host anybody may; from elsewhere whoever has an admin key. While
    /// there is none, pages can be seen from wherever the server can be reached, and nothing
    /// changed; but not through a browser on this host by a name that anybody may have given it.
    #[expect(clippy::result_large_err, reason = "the error is the answer, and about to be sent")]
    pub(super) fn admit_operator<B>(
        &self,
        request: &Request<B>,
        whence: Whence,
    ) -> Result<Option<u64>, Response<Body>> {
        if whence == Whence::Here {
            return Ok(None);
        }
        let pass = self.admit(KeyKind::Admin, request, whence.address())?;
        match (pass.key, whence) {
            (None, Whence::Renamed) => Err(fault(
                StatusCode::FORBIDDEN,
                "not by this name: ask for an address of this host, or show an admin key",
            )),
            (None, _) if request.method() != Method::GET => {
                Err(fault(StatusCode::FORBIDDEN, "only from this host"))
            }
            (key, _) => Ok(key),
        }
    }

    /// Whether somebody from elsewhere is here only because there is no admin key yet.
    pub(super) fn is_stranger(&self, whence: Whence) -> bool {
        whence != Whence::Here && self.shared.keys.is_open(KeyKind::Admin)
    }

    /// `/api/v1/keys` and below.
    pub(super) async fn keys(
        &self,
        rest: &[&str],
        request: Request<Incoming>,
        whence: Whence,
    ) -> Response<Body> {
        if self.is_stranger(whence) {
            return fault(StatusCode::FORBIDDEN, "only from this host");
        }
        match (request.method(), rest) {
            (&Method::GET, []) => {
                let keys: Vec<Value> =
                    self.shared.keys.all().iter().map(|key| shape(key)).collect();
                reply(StatusCode::OK, &json!({"keys": keys}))
            }
            (&Method::POST, []) => match body_of(request).await {
                Ok(body) => self.make_key(&body).await,
                Err(refusal) => refusal,
            },
            (&Method::DELETE, [id]) => match id.parse() {
                Ok(id) => self.change_key(KeyChange::Revoke(id)).await,
                Err(_) => fault(StatusCode::BAD_REQUEST, "not a key's number"),
            },
            _ => fault(StatusCode::NOT_FOUND, "no such page"),
        }
    }

    async fn make_key(&self, body: &[u8]) -> Response<Body> {
        let body: MakeKey = match serde_json::from_slice(body) {
            Ok(body) => body,
            Err(error) => return fault(StatusCode::BAD_REQUEST, &error.to_string()),
        };
        let Some(kind) = KeyKind::parse(&body.kind) else {
            return fault(StatusCode::BAD_REQUEST, "kind is session, node or admin");
        };
        let days = body.expires_in_days;
        if days.is_some_and(|days| !(1..=DAYS_MAX).contains(&days)) {
            return fault(StatusCode::BAD_REQUEST, "expires_in_days is 1 to 36500");
        }
        let now_ms = self.shared.now().unix_ms;
        let expires_unix_ms = days.map(|days| now_ms + days * DAY_MS);
        let (tenant, name) = (body.tenant, body.name);
        self.change_key(KeyChange::Make { kind, tenant, name, expires_unix_ms }).await
    }

    async fn change_key(&self, change: KeyChange) -> Response<Body> {
        let (asked, answered) = tokio::sync::oneshot::channel();
        if self.shared.control.commands.try_send(Command::Key(change, asked)).is_err() {
            return fault(StatusCode::SERVICE_UNAVAILABLE, "too many changes at once");
        }
        match answered.await {
            Ok(Ok(Some((key, text)))) => {
                let status = if text.is_some() { StatusCode::CREATED } else { StatusCode::OK };
                let mut body = shape(&key);
                if let Some(text) = text {
                    body["secret"] = text.into();
                }
                reply(status, &body)
            }
            Ok(Ok(None)) => fault(StatusCode::NOT_FOUND, "no such key"),
            Ok(Err(refused)) => fault(StatusCode::UNPROCESSABLE_ENTITY, &refused.to_string()),
            Err(_) => fault(StatusCode::SERVICE_UNAVAILABLE, "going down"),
        }
    }

    /// Makes a token for a browser of the tenant whose key is shown.
    pub(super) async fn session_token(
        &self,
        request: Request<Incoming>,
        peer: SocketAddr,
    ) -> Response<Body> {
        let pass = match self.admit(KeyKind::Session, &request, peer.ip()) {
            Ok(pass) => pass,
            Err(refusal) => return refusal,
        };
        let body = match body_of(request).await {
            Ok(body) => body,
            Err(refusal) => return refusal,
        };
        let asked: MakeToken = match body.is_empty() {
            true => MakeToken::default(),
            false => match serde_json::from_slice(&body) {
                Ok(asked) => asked,
                Err(error) => return fault(StatusCode::BAD_REQUEST, &error.to_string()),
            },
        };
        let seconds = asked.expires_in_seconds.unwrap_or(TOKEN_SECONDS.0);
        if !(1..=TOKEN_SECONDS.1).contains(&seconds) {
            return fault(StatusCode::BAD_REQUEST, "expires_in_seconds is 1 to 3600");
        }
        let until = self.shared.now().unix_ms + seconds * 1_000;
        match self.shared.keys.token(&pass, until) {
            Some(token) => {
                let body = json!({"token": token, "expires_unix_ms": until});
                reply(StatusCode::CREATED, &body)
            }
            None => fault(StatusCode::CONFLICT, "there are no keys for sessions: none is needed"),
        }
    }
}

async fn body_of(request: Request<Incoming>) -> Result<bytes::Bytes, Response<Body>> {
    body_within(request, BODY_BYTES_MAX).await
}

/// A key as operators see it; its secret is nowhere.
fn shape(key: &Key) -> Value {
    json!({
        "id": key.id,
        "kind": key.kind.as_str(),
        "tenant": key.tenant,
        "name": key.name,
        "created_unix_ms": key.created_unix_ms,
        "expires_unix_ms": key.expires_unix_ms,
        "revoked_unix_ms": key.revoked_unix_ms,
    })
}
