//! What is stored: one struct for each table.
//!
//! Rows are plain data. When they are written, and what a row's absence means, is the writer's and
//! the recovery's business. A change of fields here is a change of `VERSION`.

use bincode::{Decode, Encode};

use super::codec::Record;
use crate::protocol::ids::{JobId, Lang, NodeId, RoomCode, SessionId};
use crate::protocol::job::{ChunkMark, JobSpec, Outcome};

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
    SessionRow: 0x02 v 3;
    JobRow: 0x03 v 3;
    TerminalRow: 0x04 v 1;
    OutboxRow: 0x05 v 2;
    IdemRow: 0x06 v 2;
    NodeRow: 0x07 v 1;
    PoolConfigRow: 0x08 v 1;
    ProgressRow: 0x09 v 2;
    DeadLetterRow: 0x0a v 2;
    CountersRow: 0x0b v 1;
    RoomRow: 0x0c v 1;
    KeyRow: 0x0d v 1;
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
    /// SHA-256 of the secret with which a client takes the session up again; none where it cannot.
    pub resume_hash: Option<[u8; 32]>,
    /// The node it is paired with: no other serves it.
    pub paired: Option<NodeId>,
    /// The session's first frame as JSON, from which the session can be made anew; opaque here.
    pub init: Vec<u8>,
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
    /// How far its session's audio stream is used up with this job, if it is a part of one.
    pub chunks: Option<ChunkMark>,
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

impl TerminalRow {
    /// The end of an utterance that was refused, under a name of its own.
    pub fn refusal(
        id: JobId,
        (session, utterance_index): (SessionId, u64),
        (code, message): (&str, String),
        settled_unix_ms: u64,
    ) -> Self {
        Self {
            id,
            session,
            utterance_index,
            outcome: Outcome::Failed,
            code: code.to_owned(),
            message,
            attempts: 0,
            node: None,
            settled_unix_ms,
            explanation: Vec::new(),
        }
    }
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
    /// Place of that job in the speaker's order.
    pub utterance_index: u64,
    /// When it was written, Unix milliseconds.
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
    /// Digest of what was sent with the key, opaque here; 0 where none was made.
    pub digest: u32,
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

/// A room, with those who are in it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct RoomRow {
    /// The number by which it is joined.
    pub code: RoomCode,
    /// Its name for as long as it exists; codes are used again.
    pub room_id: u128,
    /// When it was made, or when somebody in it last spoke or came, Unix milliseconds.
    pub active_unix_ms: u64,
    /// The seat that the next one to come gets.
    pub next_seat: u32,
    /// In the order in which they came.
    pub members: Vec<MemberRow>,
}

/// Somebody in a room.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct MemberRow {
    /// Their session.
    pub session: SessionId,
    /// Their seat, which nobody else ever gets.
    pub seat: u32,
    /// As they call themselves.
    pub display_name: Option<String>,
    /// The language they said they want to hear.
    pub preferred_lang: Option<Lang>,
    /// The language they hear.
    pub lang: Lang,
    /// Whose own voice they want to hear or not, as far as they said.
    pub raw_voice: Vec<(SessionId, bool)>,
    /// When they came, Unix milliseconds.
    pub joined_unix_ms: u64,
}

/// A key that opens something, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct KeyRow {
    /// Its number.
    pub id: u64,
    /// What it opens, opaque here.
    pub kind: u8,
    /// Whose sessions it opens, if it is one for sessions.
    pub tenant: Option<String>,
    /// For people.
    pub name: String,
    /// Keyed hash of the key.
    pub hash: [u8; 32],
    /// When it was made, Unix milliseconds.
    pub created_unix_ms: u64,
    /// When it is no longer good, Unix milliseconds, if it ends by itself.
    pub expires_unix_ms: Option<u64>,
    /// When it was revoked, Unix milliseconds, if it was.
    pub revoked_unix_ms: Option<u64>,
}

/// What was not delivered, or not done, and is kept for people to look at.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct DeadLetterRow {
    /// Grows with every dead letter, from 1; never given twice.
    pub id: u64,
    /// The job it is about.
    pub job: JobId,
    /// The speaker.
    pub session: SessionId,
    /// Place in the speaker's order.
    pub utterance_index: u64,
    /// What brought it here: `unclaimed`, `failed`, or what a [`Write::Forfeit`] said.
    ///
    /// [`Write::Forfeit`]: super::Write::Forfeit
    pub why: String,
    /// Error code the job ended with; empty on success, or where its end is forgotten.
    pub code: String,
    /// For people, from the job's end.
    pub message: String,
    /// When it came here, Unix milliseconds; its age for retention.
    pub created_unix_ms: u64,
    /// Number of the frame in what its session was owed, if there was a frame.
    pub seq: Option<u64>,
    /// The frame that was not delivered; none where it is, or may still be, delivered.
    pub frame: Option<Vec<u8>>,
    /// The job, where it is kept so that it can be done again.
    pub job_row: Option<JobRow>,
    /// Length of the audio kept with it, in bytes; 0 for none.
    pub audio_bytes: u32,
}

/// How far a session has come. Apart from its session's row, for it changes with every job, may
/// exist before the session's row does, and stays after it while frames are owed.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(super) struct ProgressRow {
    /// The session.
    pub(super) session: SessionId,
    /// Sequence number of the next frame owed to it.
    pub(super) next_seq: u64,
    /// Behind the last place in its order that a job has taken.
    pub(super) next_index: u64,
    /// The furthest mark of its jobs.
    pub(super) chunks: Option<ChunkMark>,
    /// None while the session is open. Else when it closed, or was last heard of since then, in
    /// Unix milliseconds: the age of everything it is still owed.
    pub(super) idle_since_ms: Option<u64>,
}

/// Numbers that go on through every start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub(super) struct CountersRow {
    /// Transactions committed: tells whether one whose commit failed has happened.
    pub(super) commits: u64,
    /// Id of the next dead letter.
    pub(super) next_dead_letter: u64,
}

#[cfg(test)]
pub(super) mod samples {
    //! Rows for the tests of this module, from empty to all fields set.

    use super::*;
    use crate::protocol::ids::TurnId;
    use crate::protocol::job::{Audience, Cut, FeatureFlags, Pipeline};

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
            traced: Default::default(),
            paired: None,
            audience: None,
        };
        let id = JobId(id);
        JobRow {
            id,
            spec,
            accepted_unix_ms: 0,
            attempts: 0,
            chunks: None,
            audio_crc: 0,
            audio_bytes: 0,
        }
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
            traced: Default::default(),
            paired: Some(NodeId::from("node-1")),
            audience: Some(Box::new(Audience {
                room: RoomCode(123_456),
                seat: 3,
                primary: true,
                wanted: false,
                listeners: vec![SessionId(1), SessionId(2)],
                readers: vec![SessionId(3)],
            })),
        };
        let chunks = Some(ChunkMark { through: 12, skip: 340 });
        JobRow { spec, accepted_unix_ms: 1_000, attempts: 3, chunks, ..plain_job(id) }
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
            resume_hash: Some([7; 32]),
            paired: Some(NodeId::from("node-1")),
            init: b"{}".to_vec(),
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

    pub(in crate::store) fn full_room(code: u32) -> RoomRow {
        RoomRow {
            code: RoomCode(code),
            room_id: 9,
            active_unix_ms: 7,
            next_seat: 5,
            members: vec![MemberRow {
                session: SessionId(77),
                seat: 4,
                display_name: Some("Bob".into()),
                preferred_lang: Some(lang("de")),
                lang: lang("de"),
                raw_voice: vec![(SessionId(78), false)],
                joined_unix_ms: 6,
            }],
        }
    }

    pub(in crate::store) fn full_key(id: u64) -> KeyRow {
        KeyRow {
            id,
            kind: 1,
            tenant: Some("tenant".into()),
            name: "name".into(),
            hash: [9; 32],
            created_unix_ms: 4,
            expires_unix_ms: Some(5),
            revoked_unix_ms: Some(6),
        }
    }

    pub(in crate::store) fn full_dead_letter(id: u64) -> DeadLetterRow {
        DeadLetterRow {
            id,
            job: JobId(9),
            session: SessionId(77),
            utterance_index: 3,
            why: "failed".into(),
            code: "NODE_ERROR".into(),
            message: "the node said so".into(),
            created_unix_ms: 2_000,
            seq: Some(4),
            frame: Some(b"frame".to_vec()),
            job_row: Some(full_job(9)),
            audio_bytes: 5,
        }
    }
}
