//! Looking without changing: single rows for a running store, and a closed database for the
//! command line. Everything here is a short read transaction.

use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use redb::{Builder, Key, ReadOnlyDatabase, ReadTransaction, ReadableDatabase};
use redb::{ReadableTable, ReadableTableMetadata, TableDefinition};

use super::StoreError;
use super::backup::{self, Copied};
use super::codec::{self, CodecError, Record};
use super::medium::FILE;
use super::record::*;
use super::recovery;
use super::tables::{self, ONLY};
use crate::protocol::ids::{JobId, SessionId};

type Def<K> = TableDefinition<'static, K, &'static [u8]>;

/// A row that says itself which key it belongs to.
pub(super) trait Keyed<K: Key + 'static> {
    /// Whether that is this one.
    fn is_at(&self, key: &K::SelfType<'_>) -> bool;
}

impl Keyed<u128> for TerminalRow {
    fn is_at(&self, key: &u128) -> bool {
        self.id.0 == *key
    }
}

impl Keyed<u128> for JobRow {
    fn is_at(&self, key: &u128) -> bool {
        self.id.0 == *key
    }
}

impl Keyed<u64> for DeadLetterRow {
    fn is_at(&self, key: &u64) -> bool {
        self.id == *key
    }
}

impl Keyed<u8> for PoolConfigRow {
    fn is_at(&self, key: &u8) -> bool {
        *key == ONLY
    }
}

impl Keyed<(u64, u64)> for OutboxRow {
    fn is_at(&self, key: &(u64, u64)) -> bool {
        (self.session.0, self.seq) == *key
    }
}

/// A stored value as the row of a key.
fn believed<K: Key + 'static, T: Record + Keyed<K>>(
    key: &K::SelfType<'_>,
    value: &[u8],
) -> Result<T, CodecError> {
    let row: T = codec::decode(value)?;
    if row.is_at(key) { Ok(row) } else { Err(CodecError::Misplaced) }
}

/// One row by its key.
pub(super) fn row<'k, K: Key + 'static, T: Record + Keyed<K>>(
    txn: &ReadTransaction,
    table: Def<K>,
    name: &'static str,
    key: K::SelfType<'k>,
) -> Result<Option<T>, StoreError> {
    let Some(value) = txn.open_table(table)?.get(&key)? else {
        return Ok(None);
    };
    let row = believed::<K, T>(&key, value.value());
    row.map(Some).map_err(|error| StoreError::BadRow { table: name, error })
}

/// The frames owed to a session above a number.
pub(super) fn owed(
    txn: &ReadTransaction,
    session: SessionId,
    after_seq: u64,
    limit: usize,
) -> Result<Vec<OutboxRow>, StoreError> {
    let Some(first) = after_seq.checked_add(1) else {
        return Ok(Vec::new());
    };
    let table = txn.open_table(tables::OUTBOX)?;
    let mut rows = Vec::new();
    for entry in table.range((session.0, first)..=(session.0, u64::MAX))? {
        if rows.len() == limit {
            break;
        }
        let (key, value) = entry?;
        match believed::<(u64, u64), OutboxRow>(&key.value(), value.value()) {
            // A damaged tree may lead to the rows of another.
            Ok(row) if row.session == session && row.seq > after_seq => rows.push(row),
            Ok(row) => tracing::error!(%session, found = %row.session, "left out a row"),
            Err(error) => tracing::error!(table = "outbox", %session, %error, "left out a row"),
        }
    }
    Ok(rows)
}

/// Dead letters above a number. Those that cannot be read are named in the log.
pub(super) fn dead_letters(
    txn: &ReadTransaction,
    after_id: u64,
    limit: usize,
) -> Result<Vec<DeadLetterRow>, StoreError> {
    let Some(first) = after_id.checked_add(1) else {
        return Ok(Vec::new());
    };
    let mut rows = Vec::new();
    for entry in txn.open_table(tables::DEAD_LETTERS)?.range(first..)? {
        if rows.len() == limit {
            break;
        }
        let (key, value) = entry?;
        match believed::<u64, _>(&key.value(), value.value()) {
            Ok(row) => rows.push(row),
            Err(error) => tracing::warn!(table = "dead_letters", %error, "left out a row"),
        }
    }
    Ok(rows)
}

/// How the jobs ended that were made before that one (before now, if none is named), the latest
/// first. Those that cannot be read are left out.
pub(super) fn terminals(
    txn: &ReadTransaction,
    before: Option<JobId>,
    limit: usize,
) -> Result<Vec<TerminalRow>, StoreError> {
    let mut rows = Vec::new();
    let table = txn.open_table(tables::TERMINALS)?;
    for entry in table.range(..before.map_or(u128::MAX, |id| id.0))?.rev() {
        if rows.len() == limit {
            break;
        }
        let (key, value) = entry?;
        match believed::<u128, _>(&key.value(), value.value()) {
            Ok(row) => rows.push(row),
            Err(error) => tracing::warn!(table = "terminals", %error, "left out a row"),
        }
    }
    Ok(rows)
}

/// A dead letter with its audio.
pub(super) fn dead_letter(
    txn: &ReadTransaction,
    id: u64,
) -> Result<Option<(DeadLetterRow, Option<Bytes>)>, StoreError> {
    let Some(row) = row::<u64, DeadLetterRow>(txn, tables::DEAD_LETTERS, "dead_letters", id)?
    else {
        return Ok(None);
    };
    let audio = match (txn.open_table(tables::DEAD_AUDIO)?.get(id)?, &row.job_row) {
        (Some(value), Some(job)) => {
            let table = "dead_letter_audio";
            let audio = recovery::believed_audio(value.value(), job);
            Some(audio.map_err(|error| StoreError::BadRow { table, error })?)
        }
        _ => None,
    };
    Ok(Some((row, audio)))
}

/// A job, wherever it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobView {
    /// Accepted and not ended.
    Live(Box<JobRow>),
    /// Ended.
    Ended(TerminalRow),
}

/// A closed database, open for looking.
pub struct ReadOnly {
    db: ReadOnlyDatabase,
    file: PathBuf,
}

/// Opens the database of a directory, or a copy of one by its own name, for looking. One that a
/// server has open is [`StoreError::Locked`].
pub fn open_read_only(place: &Path) -> Result<ReadOnly, StoreError> {
    let file = if place.is_file() { place.to_owned() } else { place.join(FILE) };
    if !file.exists() {
        return Err(StoreError::Absent { file });
    }
    let opened = catch_unwind(|| Builder::new().open_read_only(&file));
    let opened = opened.unwrap_or_else(|_| Err(recovery::panicked().into()));
    let db = opened.map_err(recovery::open_error(&file))?;
    let opened = ReadOnly { db, file };
    opened.meta()?;
    Ok(opened)
}

impl ReadOnly {
    /// Copies it into an empty file, which is not synced.
    pub fn backup(&self, file: std::fs::File) -> Result<Copied, StoreError> {
        backup::copy(&self.db.begin_read()?, file, &self.file, &|| Ok(()))
    }

    /// A job by its id.
    pub fn job(&self, id: JobId) -> Result<Option<JobView>, StoreError> {
        let txn = self.db.begin_read()?;
        if let Some(ended) = row(&txn, tables::TERMINALS, "terminals", id.0)? {
            return Ok(Some(JobView::Ended(ended)));
        }
        Ok(row(&txn, tables::JOBS, "jobs", id.0)?.map(|row| JobView::Live(Box::new(row))))
    }

    /// Jobs accepted and not ended, oldest first, at most `limit`.
    pub fn jobs(&self, limit: usize) -> Result<Vec<JobRow>, StoreError> {
        let mut jobs: Vec<JobRow> = self.all(tables::JOBS, "jobs")?;
        jobs.sort_by_key(|job| (job.accepted_unix_ms, job.spec.utterance_index, job.id));
        jobs.truncate(limit);
        Ok(jobs)
    }

    /// The rooms.
    pub fn rooms(&self) -> Result<Vec<RoomRow>, StoreError> {
        self.all(tables::ROOMS, "rooms")
    }

    /// Sessions not closed.
    pub fn sessions(&self) -> Result<Vec<SessionRow>, StoreError> {
        self.all(tables::SESSIONS, "sessions")
    }

    /// Dead letters with ids above a number, at most `limit`.
    pub fn dead_letters(
        &self,
        after_id: u64,
        limit: usize,
    ) -> Result<Vec<DeadLetterRow>, StoreError> {
        dead_letters(&self.db.begin_read()?, after_id, limit)
    }

    /// A dead letter with the audio of its job, if audio is kept with it.
    pub fn dead_letter(
        &self,
        id: u64,
    ) -> Result<Option<(DeadLetterRow, Option<Bytes>)>, StoreError> {
        dead_letter(&self.db.begin_read()?, id)
    }

    /// Frames owed to a session above a number, at most `limit`.
    pub fn outbox(
        &self,
        session: SessionId,
        after_seq: u64,
        limit: usize,
    ) -> Result<Vec<OutboxRow>, StoreError> {
        owed(&self.db.begin_read()?, session, after_seq, limit)
    }

    /// Nodes seen.
    pub fn nodes(&self) -> Result<Vec<NodeRow>, StoreError> {
        self.all(tables::NODES, "nodes")
    }

    /// Pool configuration in force.
    pub fn pools(&self) -> Result<Option<PoolConfigRow>, StoreError> {
        row(&self.db.begin_read()?, tables::POOLS, "pools", ONLY)
    }

    /// The database itself.
    pub fn meta(&self) -> Result<MetaRow, StoreError> {
        recovery::believed_meta(&self.db.begin_read()?, &self.file)
    }

    /// Rows that recoveries have put aside.
    pub fn quarantined(&self) -> Result<u64, StoreError> {
        Ok(self.db.begin_read()?.open_table(tables::QUARANTINE)?.len()?)
    }

    /// The readable rows of a table. The others are named in the log: the next start of the
    /// server puts them aside, and a listing that ends at the first would hide all the rest.
    fn all<K: Key + 'static, T: Record>(
        &self,
        table: Def<K>,
        name: &'static str,
    ) -> Result<Vec<T>, StoreError> {
        let mut rows = Vec::new();
        for entry in self.db.begin_read()?.open_table(table)?.iter()? {
            match codec::decode(entry?.1.value()) {
                Ok(row) => rows.push(row),
                Err(error) => tracing::warn!(table = name, %error, "left out a row"),
            }
        }
        Ok(rows)
    }
}
