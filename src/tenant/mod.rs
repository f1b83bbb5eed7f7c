//! Who may come in, and have how much: keys, tokens and pairing codes; admits a job, a session or a
//! message, or refuses it with a typed reason; keeps each tenant's account.
//!
//! It refuses to know scheduling: of a tenant's share it says the weight, and what waits is told to
//! it. What it counts is given back when the job or the session ends; messages and audio come back
//! with time.

mod account;
mod admission;
mod keys;
mod pairing;
#[cfg(test)]
mod tests;
mod usage;

pub use account::{Account, Accounts, Allowance, Standing};
pub use admission::Admission;
pub use keys::{Key, KeyKind, Keys, NoKey, Pass, Unauthorized};
pub use pairing::{CODE_MS, NotPaired, Pairings};
pub use usage::Used;

use crate::protocol::{ErrorCode, limits};

/// Why a job, a session or a message was not admitted. Nothing of it was kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The server holds as many unfinished jobs as it may.
    #[error("the server is at its limit of unfinished jobs")]
    ServerFull,
    /// The server holds as much speech in memory as it may.
    #[error("the server holds as much speech as it may")]
    MemoryFull,
    /// Too many jobs wait for a node.
    #[error("too many utterances wait for a node")]
    QueueFull,
    /// The session has as many unfinished jobs as it may.
    #[error("the session is at its limit of unfinished utterances")]
    SessionFull,
    /// The store cannot take more for the moment.
    #[error("the store is behind")]
    StoreFull,
    /// The session has more results than it may that it did not acknowledge.
    #[error("too many results wait to be acknowledged")]
    Unacknowledged,
    /// The idempotency key was used for another utterance.
    #[error("the idempotency key was used for another utterance")]
    Conflict,
    /// The server is going down, and the speech began after that was said.
    #[error("the server is going down")]
    Draining,
    /// The server has as many open sessions as it may.
    #[error("the server has as many sessions as it may")]
    ServerSessions,
    /// Too many jobs wait for a node, and the tenant has its share of them.
    #[error("too many utterances of the tenant wait for a node")]
    TenantQueue,
    /// The tenant has as many unfinished jobs as it may.
    #[error("the tenant is at its limit of unfinished utterances")]
    TenantJobs,
    /// The tenant has as many open sessions as it may.
    #[error("the tenant is at its limit of sessions")]
    TenantSessions,
    /// The tenant has had its audio of this minute.
    #[error("the tenant is at its limit of audio a minute")]
    TenantAudio {
        /// When there is room for the utterance, milliseconds from now.
        retry_after_ms: u64,
    },
    /// The tenant has sent its messages of this second.
    #[error("the tenant is at its limit of messages a second")]
    TenantMessages {
        /// When there is room for a message, milliseconds from now.
        retry_after_ms: u64,
    },
}

impl Denied {
    /// Label of the metric.
    pub fn as_str(self) -> &'static str {
        match self {
            Denied::ServerFull => "server_full",
            Denied::MemoryFull => "memory_full",
            Denied::QueueFull => "queue_full",
            Denied::SessionFull => "session_full",
            Denied::StoreFull => "store_full",
            Denied::Unacknowledged => "unacknowledged",
            Denied::Conflict => "conflict",
            Denied::Draining => "draining",
            Denied::ServerSessions => "server_sessions",
            Denied::TenantQueue => "tenant_queue",
            Denied::TenantJobs => "tenant_jobs",
            Denied::TenantSessions => "tenant_sessions",
            Denied::TenantAudio { .. } => "tenant_audio",
            Denied::TenantMessages { .. } => "tenant_messages",
        }
    }

    /// What the client is told.
    pub fn code(self) -> ErrorCode {
        match self {
            Denied::Draining => ErrorCode::ShuttingDown,
            Denied::Conflict => ErrorCode::IdempotencyConflict,
            Denied::TenantJobs
            | Denied::TenantSessions
            | Denied::TenantAudio { .. }
            | Denied::TenantMessages { .. } => ErrorCode::RateLimited,
            _ => ErrorCode::Overloaded,
        }
    }

    /// When to try again, in milliseconds: when there is room, where that is a matter of time; at a
    /// restart, some time in which not everybody comes at once; else about the length of one
    /// utterance.
    pub fn retry_after_ms(self) -> u64 {
        match self {
            Denied::Draining => limits::reconnect_after_ms(),
            Denied::TenantAudio { retry_after_ms } | Denied::TenantMessages { retry_after_ms } => {
                retry_after_ms
            }
            _ => 1_000,
        }
    }
}
