//! Bodies of requests to the operators' pages.
//!
//! Source: docs/PROTOCOL.md, "Credentials", and docs/OPERATING.md.

use serde::Deserialize;

/// `POST /api/v1/keys`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MakeKey {
    /// `session`, `node` or `admin`.
    pub kind: String,
    /// Whose sessions it opens.
    pub tenant: Option<String>,
    /// What it is for, for people.
    #[serde(default)]
    pub name: String,
    /// Days after which it is no longer good.
    pub expires_in_days: Option<u64>,
}

/// `POST /api/v1/session-tokens`; the body may be empty.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MakeToken {
    /// Seconds after which it opens nothing any more.
    pub expires_in_seconds: Option<u64>,
}
