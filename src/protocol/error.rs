//! Codes of refusals and failures, and the errors of decoding.

use serde::Serialize;

/// A frame could not be understood. The connection stays open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not JSON, a required field is missing, or a field has another type.
    #[error("Invalid message format: {0}")]
    Malformed(String),
    /// The `type` is not one of this socket's.
    #[error("Invalid message format: unknown type `{0}`")]
    UnknownType(String),
    /// A field is longer than its bound.
    #[error("Invalid message format: `{field}` is longer than {max}")]
    TooLong {
        /// Name of the field.
        field: &'static str,
        /// Its bound, in bytes or entries.
        max: usize,
    },
    /// The audio is not what its field promises.
    #[error("Audio decode failed: {0}")]
    Audio(&'static str),
}

impl DecodeError {
    /// Label for the counter of refused frames.
    pub fn kind(&self) -> &'static str {
        match self {
            DecodeError::Malformed(_) => "malformed",
            DecodeError::UnknownType(_) => "unknown_type",
            DecodeError::TooLong { .. } => "too_long",
            DecodeError::Audio(_) => "audio",
        }
    }
}

impl From<serde_json::Error> for DecodeError {
    fn from(error: serde_json::Error) -> Self {
        DecodeError::Malformed(super::limits::clip(&error.to_string(), 256).to_owned())
    }
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// Codes of `error`, `ui_event` and job outcomes (docs/PROTOCOL.md, "Error codes").
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
        pub enum ErrorCode { $($(#[$doc])* #[serde(rename = $text)] $name,)* }
        impl ErrorCode {
            /// The code as it is written on the wire.
            pub fn as_str(self) -> &'static str {
                match self { $(ErrorCode::$name => $text,)* }
            }
            /// The code a peer wrote, if it is one of ours.
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(ErrorCode::$name),)* _ => None }
            }
        }
    };
}

codes! {
    /// A frame could not be understood.
    InvalidMessage = "INVALID_MESSAGE",
    /// The session is not this connection's, or there is none yet.
    InvalidSession = "INVALID_SESSION",
    /// The fault is ours.
    InternalError = "INTERNAL_ERROR",
    /// The credential is good, but not for this.
    Forbidden = "FORBIDDEN",
    /// The pairing code is wrong, was used, or is too old.
    InvalidPairingCode = "INVALID_PAIRING_CODE",
    /// The session is closing and takes no more speech.
    SessionClosed = "SESSION_CLOSED",
    /// A limit of the server or of the session is reached; try again later.
    Overloaded = "OVERLOADED",
    /// A limit of the tenant is reached; try again later.
    RateLimited = "RATE_LIMITED",
    /// The server is going down for a restart.
    ShuttingDown = "SHUTTING_DOWN",
    /// No node could take the job before its deadline.
    NoAvailableNode = "NO_AVAILABLE_NODE",
    /// The nodes that had the job were lost.
    NodeUnavailable = "NODE_UNAVAILABLE",
    /// The job was not answered in time.
    JobTimeout = "JOB_TIMEOUT",
    /// The node lacks a service the job needs.
    ModelNotAvailable = "MODEL_NOT_AVAILABLE",
    /// The node failed on the job.
    ProcessingError = "PROCESSING_ERROR",
    /// The node's translation took too long.
    NmtTimeout = "NMT_TIMEOUT",
    /// The node's speech synthesis took too long.
    TtsTimeout = "TTS_TIMEOUT",
    /// The node lost a connection it needed.
    WsDisconnected = "WS_DISCONNECTED",
    /// The node could not verify a model.
    ModelVerifyFailed = "MODEL_VERIFY_FAILED",
    /// The node has a damaged model.
    ModelCorrupted = "MODEL_CORRUPTED",
    /// The job ended the process of every node that tried it.
    PoisonJob = "POISON_JOB",
    /// The stored job could not be read back.
    StorageCorrupt = "STORAGE_CORRUPT",
    /// The idempotency key was used for something else.
    IdempotencyConflict = "IDEMPOTENCY_CONFLICT",
    /// Cancelled because its session went away, or on request.
    Cancelled = "CANCELLED",
}

impl ErrorCode {
    /// Text for people, in the language of the documentation; no client of today shows it.
    pub fn hint(self) -> &'static str {
        match self {
            ErrorCode::NoAvailableNode => "No node for this language pair was free in time.",
            ErrorCode::ModelNotAvailable => "The node lacks a service this job needs.",
            ErrorCode::JobTimeout => "The job was not answered in time.",
            ErrorCode::NodeUnavailable | ErrorCode::PoisonJob => {
                "The nodes that had the job were lost."
            }
            ErrorCode::Overloaded => "The service is at its limit; try again shortly.",
            ErrorCode::InvalidPairingCode => "The pairing code is not valid; ask for a new one.",
            ErrorCode::RateLimited => "The tenant is at its limit; try again shortly.",
            ErrorCode::ShuttingDown => "The service restarts; try again shortly.",
            _ => "The utterance could not be translated.",
        }
    }

    /// Whether the same request may succeed later.
    pub fn retryable(self) -> bool {
        !matches!(
            self,
            ErrorCode::InvalidMessage
                | ErrorCode::InvalidSession
                | ErrorCode::SessionClosed
                | ErrorCode::PoisonJob
                | ErrorCode::IdempotencyConflict
                | ErrorCode::InvalidPairingCode
                | ErrorCode::Forbidden
        )
    }
}
