//! What is stored: one struct for each table.
//!
//! Rows are plain data. When they are written, and what a row's absence means, is the writer's and
//! the recovery's business. A change of fields here is a change of `VERSION`.

use bincode::{Decode, Encode};

use super::codec::Record;
use crate::protocol::ids::{JobId, Lang, NodeId, SessionId};
use crate::protocol::job::{JobSpec, Outcome};

macro_rules! records {
    ($($row:ident: $kind:literal v $version:literal;)*) => {
        $(impl Record for $row {
            const KIND: u8 = $kind;
            const VERSION: u8 = $version;
        })*
    };
}

records! {
    MetaRow: 0x01 v 1;
    SessionRow: 0x02 v 1;
    JobRow: 0x03 v 1;
    TerminalRow: 0x04 v 1;
    OutboxRow: 0x05 v 1;
    IdemRow: 0x06 v 1;
    NodeRow: 0x07 v 1;
    PoolConfigRow: 0x08 v 1;
    SeqRow: 0x09 v 1;
}

/// The database itself.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct MetaRow {
    /// Layout of the tables; a release opens only its own.
    pub format: u32,
    /// Starts so far, from 0; none in a database that was created and never opened.
    pub boot_epoch: Option<u32>,
    /// When the database was made, Unix milliseconds.
    pub created_unix_ms: u64,
}

/// A session that may come back.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct SessionRow {
    /// Its id.
    pub id: SessionId,
    /// Trace given by the client or made for it.
    pub trace_id: String,
    /// Tenant, if the session named one.
    pub tenant: Option<String>,
    /// Client's platform, as it said.
    pub platform: String,
    /// Client's version, as it said.
    pub client_version: String,
    /// Language spoken.
    pub src: Lang,
    /// Language wanted.
    pub tgt: Lang,
    /// When it opened, Unix milliseconds.
    pub opened_unix_ms: u64,
    /// Incarnation of the session; goes up when its numbering cannot be continued.
    pub epoch: u32,
    /// Sequence number the next frame owed to it will get. The writer raises what the caller says
    /// to what it has allotted itself; a recovered row says the number to go on with.
    pub next_seq: u64,
}

/// A job that was accepted and has not ended.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct JobRow {
    /// Its id.
    pub id: JobId,
    /// What is asked for.
    pub spec: JobSpec,
    /// When it was accepted, Unix milliseconds.
    pub accepted_unix_ms: u64,
    /// Attempts made when the row was written.
    pub attempts: u32,
    /// CRC-32C of the audio bytes. The writer sets it, for base64 is decoded there.
    pub audio_crc: u32,
    /// Length of the audio in bytes. The writer sets it.
    pub audio_bytes: u32,
}

/// A job that ended.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct TerminalRow {
    /// The job.
    pub id: JobId,
    /// The speaker; 0 where the job's own row could not be read.
    pub session: SessionId,
    /// Place in the speaker's order; 0 where the job's own row could not be read.
    pub utterance_index: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// Error code of the wire; empty on success.
    pub code: String,
    /// For people.
    pub message: String,
    /// Attempts made.
    pub attempts: u32,
    /// Node that had it last.
    pub node: Option<NodeId>,
    /// When it ended, Unix milliseconds; its age for retention.
    pub settled_unix_ms: u64,
    /// Why things went as they did: JSON made by the caller, opaque here.
    pub explanation: Vec<u8>,
}

/// A frame owed to a session.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct OutboxRow {
    /// To whom.
    pub session: SessionId,
    /// Place in what is owed, contiguous from 1.
    pub seq: u64,
    /// The job it tells the end of.
    pub job: JobId,
    /// When it was written, Unix milliseconds; its age for retention.
    pub created_unix_ms: u64,
    /// The frame as it is to be sent.
    pub frame: Vec<u8>,
}

/// A client's own key for a job, so that sending it again does not make a second one.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct IdemRow {
    /// Hash of the key and of what it is scoped to.
    pub key: u128,
    /// The job it made.
    pub job: JobId,
    /// When the key may be used anew, Unix milliseconds.
    pub expires_unix_ms: u64,
}

/// A node that has been here.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct NodeRow {
    /// Its own name for itself.
    pub id: NodeId,
    /// Its platform, as it said.
    pub platform: String,
    /// Its version, as it said.
    pub version: String,
    /// First registration, Unix milliseconds.
    pub first_seen_unix_ms: u64,
    /// Last sign of life written down, Unix milliseconds.
    pub last_seen_unix_ms: u64,
}

/// The pool configuration in force.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct PoolConfigRow {
    /// Goes up with every change.
    pub version: u64,
    /// The configuration as text, opaque here.
    pub text: String,
}

/// The next sequence number of a session. Apart from its session's row, for it changes with every
/// result and may exist before the session's row does.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(super) struct SeqRow {
    pub(super) next: u64,
}

#[cfg(test)]
pub(super) mod samples {
    //! Rows for the tests of this module, from empty to all fields set.

    use super::*;
    use crate::protocol::ids::TurnId;
    use crate::protocol::job::{Cut, FeatureFlags, Pipeline};

    fn lang(tag: &str) -> Lang {
        tag.parse().unwrap()
    }

    pub(in crate::store) fn plain_job(id: u128) -> JobRow {
        let spec = JobSpec {
            session: SessionId(0),
            utterance_index: 0,
            turn: TurnId(0),
            tenant: None,
            src: Lang::AUTO,
            tgt: lang("e"),
            dialect: None,
            mode: None,
            lang_a: None,
            lang_b: None,
            auto_langs: None,
            features: None,
            pipeline: Pipeline::default(),
            audio_format: "".into(),
            sample_rate: 0,
            audio_ms: 0,
            trace_id: "".into(),
            padding_ms: None,
            cut: Cut::Manual,
            streaming_asr: false,
            partial_interval_ms: 0,
            client_sent_ms: None,
        };
        let id = JobId(id);
        JobRow { id, spec, accepted_unix_ms: 0, attempts: 0, audio_crc: 0, audio_bytes: 0 }
    }

    pub(in crate::store) fn full_job(id: u128) -> JobRow {
        let spec = JobSpec {
            session: SessionId(77),
            utterance_index: u64::MAX,
            turn: TurnId(u128::MAX),
            tenant: Some("tenant".into()),
            src: lang("zh-Hant-TW"),
            tgt: lang("en"),
            dialect: Some("粵語".into()),
            mode: Some("two_way_auto".into()),
            lang_a: Some(lang("zh")),
            lang_b: Some(lang("en")),
            auto_langs: Some(vec![lang("zh"), lang("ja")]),
            features: Some(FeatureFlags { emotion_detection: Some(true), ..Default::default() }),
            pipeline: Pipeline::default(),
            audio_format: "opus".into(),
            sample_rate: 16_000,
            audio_ms: 4_200,
            trace_id: "trace".into(),
            padding_ms: Some(220),
            cut: Cut::Whole,
            streaming_asr: true,
            partial_interval_ms: 1_000,
            client_sent_ms: Some(-1),
        };
        JobRow { spec, accepted_unix_ms: 1_000, attempts: 3, ..plain_job(id) }
    }

    pub(in crate::store) fn full_session(id: u64) -> SessionRow {
        SessionRow {
            id: SessionId(id),
            trace_id: "trace".into(),
            tenant: Some("tenant".into()),
            platform: "android".into(),
            client_version: "1.2".into(),
            src: lang("zh"),
            tgt: lang("en"),
            opened_unix_ms: 5,
            epoch: 2,
            next_seq: 1,
        }
    }

    pub(in crate::store) fn full_terminal(id: u128) -> TerminalRow {
        TerminalRow {
            id: JobId(id),
            session: SessionId(77),
            utterance_index: 3,
            outcome: Outcome::Failed,
            code: "NODE_ERROR".into(),
            message: "the node said so".into(),
            attempts: 2,
            node: Some(NodeId::from("node-1")),
            settled_unix_ms: 2_000,
            explanation: b"{}".to_vec(),
        }
    }
}
