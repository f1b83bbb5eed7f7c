//! Credentials: keys that people keep, and tokens of a few minutes that are made from them.
//!
//! A key is told once, when it is made; kept of it is a keyed hash. A token carries what it is good
//! for and a seal. Which of the ways a credential can be bad applies is never said, and each is
//! found out with the same work: one hash, one comparison in constant time.

use std::sync::Arc;

use arc_swap::ArcSwap;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::config::{self, Live};
use crate::protocol::limits::ID_BYTES_MAX;

type Seal = Hmac<Sha256>;

/// What every key begins with; then its number as 16 hex digits, a dot, and the secret.
const KEY_MARK: &str = "uk_";
/// What every token begins with.
const TOKEN_MARK: &str = "ut_";
/// Bytes of randomness in a key.
const SECRET_BYTES: usize = 32;
/// Longest credential that is looked at, in bytes.
const CREDENTIAL_BYTES_MAX: usize = 1_024;
/// Keys there may be, revoked ones included.
pub const KEYS_MAX: usize = 10_000;

/// What a key opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum KeyKind {
    /// Sessions, as a tenant.
    Session,
    /// The way in for nodes.
    Node,
    /// The operators' pages, from elsewhere than this host.
    Admin,
}

impl KeyKind {
    /// All kinds, in the order of their numbers.
    pub const ALL: [KeyKind; 3] = [KeyKind::Session, KeyKind::Node, KeyKind::Admin];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            KeyKind::Session => "session",
            KeyKind::Node => "node",
            KeyKind::Admin => "admin",
        }
    }

    /// The kind of that name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

/// A key, without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Its number, which is part of it.
    pub id: u64,
    /// What it opens.
    pub kind: KeyKind,
    /// Whose sessions it opens; none for other kinds.
    pub tenant: Option<String>,
    /// For people.
    pub name: String,
    /// Keyed hash of its text.
    pub hash: [u8; 32],
    /// When it was made, Unix milliseconds.
    pub created_unix_ms: u64,
    /// When it is no longer good, Unix milliseconds, if it ends by itself.
    pub expires_unix_ms: Option<u64>,
    /// When it was revoked, Unix milliseconds, if it was.
    pub revoked_unix_ms: Option<u64>,
}

impl Key {
    fn is_good(&self, now_ms: u64) -> bool {
        self.revoked_unix_ms.is_none() && self.expires_unix_ms.is_none_or(|at| now_ms < at)
    }
}

/// Who somebody is, as far as it matters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pass {
    /// The key behind it; none where none is asked for.
    pub key: Option<u64>,
    /// The tenant whose sessions may be opened; none where anybody's may.
    pub tenant: Option<String>,
}

/// There is no credential, or it is not good: which of these, and why, is not said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a valid credential is needed")]
pub struct Unauthorized;

/// Why no key was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoKey {
    /// A session's key has a tenant, others have none.
    #[error("keys for sessions need a tenant, of 1 to 128 bytes, and other keys have none")]
    Tenant,
    /// The name is too long.
    #[error("the name is longer than 128 bytes")]
    Name,
    /// There are as many as there may be.
    #[error("there are too many keys")]
    TooMany,
    /// The system has no randomness to give.
    #[error("no random bytes could be had")]
    Random,
}

/// All keys. Readers see them whole; whoever changes them replaces them.
pub struct Keys {
    secret: [u8; 32],
    /// Which kinds are asked for although no key was made.
    required: Live<config::Auth>,
    ring: ArcSwap<Vec<Arc<Key>>>,
}

impl Keys {
    /// The keys there are, with the secret under which they were hashed.
    pub fn new(
        secret: [u8; 32],
        required: impl Into<Live<config::Auth>>,
        mut keys: Vec<Key>,
    ) -> Self {
        keys.sort_by_key(|key| key.id);
        let ring = keys.into_iter().map(Arc::new).collect::<Vec<_>>();
        Self { secret, required: required.into(), ring: ArcSwap::from_pointee(ring) }
    }

    /// Whether nothing is asked for: no key of that kind was ever made, nor is one required. A
    /// revoked key does not open the door that it once closed.
    pub fn is_open(&self, kind: KeyKind) -> bool {
        let required = self.required.with(|auth| match kind {
            KeyKind::Session => auth.session_keys_required,
            KeyKind::Node => auth.node_keys_required,
            KeyKind::Admin => auth.admin_keys_required,
        });
        !required && !self.ring.load().iter().any(|key| key.kind == kind)
    }

    /// All keys, by number.
    pub fn all(&self) -> Arc<Vec<Arc<Key>>> {
        self.ring.load_full()
    }

    /// Makes a key; with it its text, which is told once.
    pub fn make(
        &self,
        (kind, tenant): (KeyKind, Option<String>),
        name: String,
        expires_unix_ms: Option<u64>,
        now_ms: u64,
    ) -> Result<(Key, String), NoKey> {
        let fits = |text: &String| (1..=ID_BYTES_MAX).contains(&text.trim().len());
        if tenant.is_some() != (kind == KeyKind::Session) || !tenant.iter().all(fits) {
            return Err(NoKey::Tenant);
        }
        if name.len() > ID_BYTES_MAX {
            return Err(NoKey::Name);
        }
        let ring = self.ring.load();
        if ring.len() >= KEYS_MAX {
            return Err(NoKey::TooMany);
        }
        let mut secret = [0; SECRET_BYTES];
        getrandom::fill(&mut secret).map_err(|_| NoKey::Random)?;
        let id = ring.last().map_or(1, |key| key.id + 1);
        let secret = base64_simd::URL_SAFE_NO_PAD.encode_to_string(secret);
        let text = format!("{KEY_MARK}{id:016x}.{secret}");
        let hash = self.seal(b"key", text.as_bytes()).finalize().into_bytes().into();
        let (created_unix_ms, revoked_unix_ms) = (now_ms, None);
        let key =
            Key { id, kind, tenant, name, hash, created_unix_ms, expires_unix_ms, revoked_unix_ms };
        Ok((key, text))
    }

    /// Publishes a key that was made or changed.
    pub fn put(&self, key: Key) {
        let key = Arc::new(key);
        self.ring.rcu(|ring| {
            let mut ring = Vec::clone(ring);
            match ring.binary_search_by_key(&key.id, |key| key.id) {
                Ok(at) => ring[at] = Arc::clone(&key),
                Err(at) => ring.insert(at, Arc::clone(&key)),
            }
            ring
        });
    }

    /// The key as it is once it is revoked; none if there is no such key.
    pub fn revoked(&self, id: u64, now_ms: u64) -> Option<Key> {
        let key = self.find(id)?;
        Some(Key { revoked_unix_ms: key.revoked_unix_ms.or(Some(now_ms)), ..Key::clone(&key) })
    }

    /// Whether what the key opened may stay open.
    pub fn is_good(&self, id: u64, now_ms: u64) -> bool {
        self.find(id).is_some_and(|key| key.is_good(now_ms))
    }

    fn find(&self, id: u64) -> Option<Arc<Key>> {
        let ring = self.ring.load();
        let at = ring.binary_search_by_key(&id, |key| key.id).ok()?;
        Some(Arc::clone(&ring[at]))
    }

    /// Whether the text is meant to be a token, and no key.
    pub fn is_token(text: &str) -> bool {
        text.starts_with(TOKEN_MARK)
    }

    /// Who shows this credential, if it is good for that. Without keys of the kind anybody is let
    /// in, whatever they show.
    pub fn admit(
        &self,
        kind: KeyKind,
        credential: Option<&str>,
        now_ms: u64,
    ) -> Result<Pass, Unauthorized> {
        if self.is_open(kind) {
            return Ok(Pass::default());
        }
        let text = credential.unwrap_or_default();
        let text = if text.len() > CREDENTIAL_BYTES_MAX { "" } else { text };
        let pass = match text.strip_prefix(TOKEN_MARK) {
            Some(token) => self.by_token(token, now_ms),
            None => self.by_key(text),
        };
        let (key, pass) = pass.ok_or(Unauthorized)?;
        if key.kind == kind && key.is_good(now_ms) { Ok(pass) } else { Err(Unauthorized) }
    }

    fn by_key(&self, text: &str) -> Option<(Arc<Key>, Pass)> {
        let number = text.strip_prefix(KEY_MARK).and_then(|rest| rest.split_once('.'));
        let number = number.and_then(|(hex, _)| u64::from_str_radix(hex, 16).ok());
        let key = number.and_then(|id| self.find(id));
        // What is no key is hashed and compared like one.
        let hash = key.as_ref().map_or([0; 32], |key| key.hash);
        let proven = self.seal(b"key", text.as_bytes()).verify_slice(&hash).is_ok();
        let key = key.filter(|_| proven)?;
        let pass = Pass { key: Some(key.id), tenant: key.tenant.clone() };
        Some((key, pass))
    }

    /// A token for a session of the tenant whose key this pass came from, good until then.
    pub fn token(&self, pass: &Pass, until_unix_ms: u64) -> Option<String> {
        let id = pass.key?;
        let body = format!("{id:016x}{until_unix_ms:016x}");
        let mac = self.seal(b"token", body.as_bytes()).finalize().into_bytes();
        Some(format!("{TOKEN_MARK}{body}{}", base64_simd::URL_SAFE_NO_PAD.encode_to_string(mac)))
    }

    fn by_token(&self, token: &str, now_ms: u64) -> Option<(Arc<Key>, Pass)> {
        let (body, mac) = token.split_at_checked(32).unwrap_or(("", ""));
        let mac = base64_simd::URL_SAFE_NO_PAD.decode_to_vec(mac).unwrap_or_default();
        let proven = self.seal(b"token", body.as_bytes()).verify_slice(&mac).is_ok();
        let hex = |range| body.get(range).and_then(|hex| u64::from_str_radix(hex, 16).ok());
        let (id, until) = (hex(0..16).filter(|_| proven)?, hex(16..32)?);
        let key = self.find(id).filter(|_| now_ms < until)?;
        let pass = Pass { key: Some(id), tenant: key.tenant.clone() };
        Some((key, pass))
    }

    /// What is sealed for one purpose is good for no other.
    fn seal(&self, purpose: &[u8], text: &[u8]) -> Seal {
        let mut seal = Seal::new_from_slice(&self.secret).expect("any length will do");
        for part in [purpose, &[0], text] {
            seal.update(part);
        }
        seal
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400_000;

    fn ring() -> Keys {
        Keys::new([7; 32], config::Auth::default(), Vec::new())
    }

    fn made(keys: &Keys, kind: KeyKind, tenant: Option<&str>, expires: Option<u64>) -> String {
        let made = keys.make((kind, tenant.map(str::to_owned)), "k".into(), expires, 0);
        let (key, text) = made.expect("it is a fine key");
        keys.put(key);
        text
    }

    #[test]
    fn without_keys_anybody_is_let_in_and_with_one_nobody_without() {
        let keys = ring();
        assert_eq!(keys.admit(KeyKind::Session, None, 0), Ok(Pass::default()));
        let text = made(&keys, KeyKind::Session, Some("acme"), None);
        assert_eq!(keys.admit(KeyKind::Session, None, 0), Err(Unauthorized));
        assert_eq!(keys.admit(KeyKind::Node, None, 0), Ok(Pass::default()), "another door");
        let pass = keys.admit(KeyKind::Session, Some(&text), 0).unwrap();
        assert_eq!((pass.key, pass.tenant.as_deref()), (Some(1), Some("acme")));
    }

    #[test]
    fn what_is_not_good_is_refused_alike() {
        let keys = ring();
        let good = made(&keys, KeyKind::Session, Some("acme"), None);
        let old = made(&keys, KeyKind::Session, Some("acme"), Some(DAY));
        let node = made(&keys, KeyKind::Node, None, None);
        let gone = made(&keys, KeyKind::Session, Some("acme"), None);
        keys.put(keys.revoked(4, 5).unwrap());
        let elsewhere = Keys::new([8; 32], config::Auth::default(), Vec::new());
        let foreign = made(&elsewhere, KeyKind::Session, Some("acme"), None);
        let mut forged = good.clone();
        forged.pop();
        let long = "x".repeat(2 * CREDENTIAL_BYTES_MAX);
        for bad in
            [&old, &node, &gone, &foreign, &forged, &long, "", "uk_", "uk_1.é", "ut_", "ut_é"]
        {
            assert_eq!(keys.admit(KeyKind::Session, Some(bad), DAY), Err(Unauthorized), "{bad}");
        }
        assert!(keys.admit(KeyKind::Session, Some(&good), DAY).is_ok());
        assert!(keys.admit(KeyKind::Session, Some(&old), DAY - 1).is_ok());
        assert!(!keys.is_good(4, 5) && keys.is_good(1, 5) && !keys.is_good(9, 5));
    }

    #[test]
    fn a_token_is_good_for_its_time_and_as_long_as_its_key() {
        let keys = ring();
        let text = made(&keys, KeyKind::Session, Some("acme"), None);
        let pass = keys.admit(KeyKind::Session, Some(&text), 0).unwrap();
        let token = keys.token(&pass, 1_000).unwrap();
        assert_eq!(keys.admit(KeyKind::Session, Some(&token), 999), Ok(pass));
        assert_eq!(keys.admit(KeyKind::Session, Some(&token), 1_000), Err(Unauthorized));
        // Another time in it is another token.
        let later = token.replacen("00000003e8", "00000013e8", 1);
        assert_ne!(later, token);
        assert_eq!(keys.admit(KeyKind::Session, Some(&later), 999), Err(Unauthorized));
        made(&keys, KeyKind::Node, None, None);
        assert_eq!(keys.admit(KeyKind::Node, Some(&token), 999), Err(Unauthorized));
        keys.put(keys.revoked(1, 5).unwrap());
        assert_eq!(keys.admit(KeyKind::Session, Some(&token), 999), Err(Unauthorized));
        assert!(!keys.is_open(KeyKind::Session), "a revoked key leaves the door closed");
    }

    #[test]
    fn a_door_can_be_closed_before_there_is_a_key() {
        let required = config::Auth { node_keys_required: true, ..config::Auth::default() };
        let keys = Keys::new([7; 32], required, Vec::new());
        assert_eq!(keys.admit(KeyKind::Node, None, 0), Err(Unauthorized));
        assert!(keys.is_open(KeyKind::Session));
    }

    #[test]
    fn keys_have_a_tenant_where_they_need_one() {
        let keys = ring();
        let make = |kind, tenant: Option<&str>, name: &str| {
            let made = keys.make((kind, tenant.map(str::to_owned)), name.to_owned(), None, 0);
            made.map(|_| ())
        };
        assert_eq!(make(KeyKind::Session, None, ""), Err(NoKey::Tenant));
        assert_eq!(make(KeyKind::Session, Some(" "), ""), Err(NoKey::Tenant));
        assert_eq!(make(KeyKind::Node, Some("acme"), ""), Err(NoKey::Tenant));
        assert_eq!(make(KeyKind::Admin, None, &"x".repeat(129)), Err(NoKey::Name));
        assert_eq!(make(KeyKind::Admin, None, "me"), Ok(()));
    }
}
