//! Where rows are kept: the database's tables, and what is moved in them together. Rows that come
//! with the work have keys that grow, so that a transaction changes few pages. Knows redb; knows
//! nothing of threads, lanes or recovery.

use redb::WriteTransaction;
use redb::{ReadTransaction, ReadableTable, ReadableTableMetadata, Table, TableDefinition};

use super::StoreError;
use super::codec::{self, CodecError, Record};
use super::record::*;

type Def<K> = TableDefinition<'static, K, &'static [u8]>;
type Index<K> = TableDefinition<'static, K, ()>;
type Rows<'t, K> = Table<'t, K, &'static [u8]>;

pub(super) const META: Def<u8> = TableDefinition::new("meta");
pub(super) const SESSIONS: Def<u64> = TableDefinition::new("sessions");
pub(super) const PROGRESS: Def<u64> = TableDefinition::new("progress");
pub(super) const IDLE_TIMES: Index<(u64, u64)> = TableDefinition::new("idle_sessions_by_time");
pub(super) const JOBS: Def<u128> = TableDefinition::new("jobs");
pub(super) const AUDIO: Def<u128> = TableDefinition::new("audio");
pub(super) const TERMINALS: Def<u128> = TableDefinition::new("terminals");
pub(super) const OUTBOX: Def<(u64, u64)> = TableDefinition::new("outbox");
pub(super) const DEAD_LETTERS: Def<u64> = TableDefinition::new("dead_letters");
pub(super) const DEAD_AUDIO: Def<u64> = TableDefinition::new("dead_letter_audio");
/// By expiry, then key: keys are looked up in memory, and here they only come and go.
pub(super) const IDEMPOTENCY: Def<(u64, u128)> = TableDefinition::new("idempotency");
pub(super) const NODES: Def<&'static str> = TableDefinition::new("nodes");
pub(super) const POOLS: Def<u8> = TableDefinition::new("pools");
pub(super) const ROOMS: Def<u32> = TableDefinition::new("rooms");
pub(super) const KEYS: Def<u64> = TableDefinition::new("keys");
pub(super) const QUARANTINE: Def<(&'static str, &'static [u8])> =
    TableDefinition::new("quarantine");

/// Key of the tables that hold one row.
pub(super) const ONLY: u8 = 0;
/// Key of the counters, beside the database's own row.
pub(super) const COUNTERS: u8 = 1;

/// All tables, open in one write transaction.
pub(super) struct Tables<'t> {
    pub(super) meta: Rows<'t, u8>,
    pub(super) sessions: Rows<'t, u64>,
    pub(super) progress: Rows<'t, u64>,
    /// Sessions that are not open, by the time since when.
    pub(super) idle_times: Table<'t, (u64, u64), ()>,
    pub(super) jobs: Rows<'t, u128>,
    pub(super) audio: Rows<'t, u128>,
    pub(super) terminals: Rows<'t, u128>,
    pub(super) outbox: Rows<'t, (u64, u64)>,
    pub(super) dead_letters: Rows<'t, u64>,
    pub(super) dead_audio: Rows<'t, u64>,
    pub(super) idempotency: Rows<'t, (u64, u128)>,
    pub(super) nodes: Rows<'t, &'static str>,
    pub(super) pools: Rows<'t, u8>,
    pub(super) rooms: Rows<'t, u32>,
    pub(super) keys: Rows<'t, u64>,
    pub(super) quarantine: Rows<'t, (&'static str, &'static [u8])>,
    /// Bytes of the values put so far.
    pub(super) bytes_put: u64,
    /// Rows put so far.
    pub(super) rows_put: u64,
}

impl<'t> Tables<'t> {
    /// Opens every table, making those that are not there yet.
    pub(super) fn open(txn: &'t WriteTransaction) -> Result<Self, StoreError> {
        Ok(Self {
            meta: txn.open_table(META)?,
            sessions: txn.open_table(SESSIONS)?,
            progress: txn.open_table(PROGRESS)?,
            idle_times: txn.open_table(IDLE_TIMES)?,
            jobs: txn.open_table(JOBS)?,
            audio: txn.open_table(AUDIO)?,
            terminals: txn.open_table(TERMINALS)?,
            outbox: txn.open_table(OUTBOX)?,
            dead_letters: txn.open_table(DEAD_LETTERS)?,
            dead_audio: txn.open_table(DEAD_AUDIO)?,
            idempotency: txn.open_table(IDEMPOTENCY)?,
            nodes: txn.open_table(NODES)?,
            pools: txn.open_table(POOLS)?,
            rooms: txn.open_table(ROOMS)?,
            keys: txn.open_table(KEYS)?,
            quarantine: txn.open_table(QUARANTINE)?,
            bytes_put: 0,
            rows_put: 0,
        })
    }

    /// The stored form of a row about to be put, counted.
    pub(super) fn sealed<T: Record>(&mut self, row: &T) -> Vec<u8> {
        let value = codec::encode(row);
        self.count(&value);
        value
    }

    /// Counts a value about to be put.
    pub(super) fn count(&mut self, value: &[u8]) {
        self.rows_put += 1;
        self.bytes_put += value.len() as u64;
    }

    /// Puts the end of a job that has none yet.
    pub(super) fn put_terminal(&mut self, row: &TerminalRow) -> Result<(), StoreError> {
        let value = self.sealed(row);
        self.terminals.insert(row.id.0, value.as_slice())?;
        Ok(())
    }

    /// Takes away a job that has ended, with its audio; none if it is not there. What was stored
    /// is copied out only if it is wanted.
    pub(super) fn take_job(
        &mut self,
        id: u128,
        wanted: bool,
    ) -> Result<Option<TakenJob>, StoreError> {
        let copy = |value: &[u8]| if wanted { value.to_vec() } else { Vec::new() };
        let Some(row) = self.jobs.remove(id)?.map(|value| copy(value.value())) else {
            return Ok(None);
        };
        let audio = self.audio.remove(id)?.map(|value| copy(value.value()));
        Ok(Some(TakenJob { row, audio }))
    }

    /// Puts a node; when it was first seen stays as it is.
    pub(super) fn put_node(&mut self, row: &NodeRow) -> Result<(), StoreError> {
        let before = self.nodes.get(&*row.id.0)?;
        let before = before.and_then(|value| codec::decode::<NodeRow>(value.value()).ok());
        let first = before.map_or(row.first_seen_unix_ms, |before| before.first_seen_unix_ms);
        let value = self.sealed(&NodeRow { first_seen_unix_ms: first, ..row.clone() });
        self.nodes.insert(&*row.id.0, value.as_slice())?;
        Ok(())
    }

    /// Puts a key. One that was there before stays until it expires; the later one counts.
    pub(super) fn put_idempotency(&mut self, row: &IdemRow) -> Result<(), StoreError> {
        let value = self.sealed(row);
        self.idempotency.insert((row.expires_unix_ms, row.key), value.as_slice())?;
        Ok(())
    }

    /// Puts a frame owed to a session.
    pub(super) fn put_outbox(&mut self, row: &OutboxRow) -> Result<(), StoreError> {
        let value = self.sealed(row);
        let before = self.outbox.insert((row.session.0, row.seq), value.as_slice())?.is_some();
        assert!(!before, "a sequence number is given once");
        Ok(())
    }

    /// Takes away what a session has received.
    pub(super) fn deliver(&mut self, session: u64, through_seq: u64) -> Result<(), StoreError> {
        let mut passed = Vec::new();
        for row in self.outbox.range((session, 0)..=(session, through_seq))? {
            passed.push(row?.0.value());
        }
        for key in passed {
            self.outbox.remove(key)?;
        }
        Ok(())
    }

    /// Takes out the frames owed to a session with numbers up to one, at most `limit`. A row that
    /// cannot be read is put into quarantine.
    pub(super) fn take_owed(
        &mut self,
        session: u64,
        through_seq: u64,
        limit: usize,
    ) -> Result<Taken, StoreError> {
        let mut values = Vec::new();
        for row in self.outbox.range((session, 0)..=(session, through_seq))?.take(limit) {
            let (key, value) = row?;
            values.push((key.value(), value.value().to_vec()));
        }
        let mut taken = Taken { rows: Vec::new(), bad: 0, all: values.len() < limit };
        for (key, value) in values {
            self.outbox.remove(key)?;
            match codec::decode(&value) {
                Ok(row) => taken.rows.push(row),
                Err(error) => {
                    taken.bad += 1;
                    tracing::error!(?key, %error, "a frame that was owed cannot be read");
                    let name = [key.0.to_be_bytes(), key.1.to_be_bytes()];
                    let name = ("outbox", name.as_flattened());
                    self.quarantine.insert(name, value.as_slice())?;
                }
            }
        }
        Ok(taken)
    }

    /// The highest sequence number still owed to a session.
    pub(super) fn last_owed(&self, session: u64) -> Result<Option<u64>, StoreError> {
        let mut rows = self.outbox.range((session, 0)..=(session, u64::MAX))?;
        Ok(rows.next_back().transpose()?.map(|(key, _)| key.value().1))
    }

    /// Forgets the job that was accepted first of those that ended, if it ended at `before_ms` or
    /// earlier, if there are more than `rows_max`, or if it cannot be read. Returns whether there
    /// was one to forget. Ids of jobs grow with time, so there is no index by time.
    pub(super) fn prune_terminal(
        &mut self,
        before_ms: Option<u64>,
        rows_max: u64,
    ) -> Result<bool, StoreError> {
        let surplus = self.terminals.len()? > rows_max;
        let Some((id, settled)) = self.terminals.first()?.map(|(key, value)| {
            let row = codec::decode::<TerminalRow>(value.value());
            (key.value(), row.map_or(0, |row| row.settled_unix_ms))
        }) else {
            return Ok(false);
        };
        let old = before_ms.is_some_and(|before_ms| settled <= before_ms);
        if surplus || old {
            self.terminals.remove(id)?;
        }
        Ok(surplus || old)
    }

    /// Forgets the key that expired first, if one has at `now_ms`.
    pub(super) fn prune_idempotency(&mut self, now_ms: u64) -> Result<bool, StoreError> {
        let first = self.idempotency.first()?.map(|(key, _)| key.value());
        let Some(key) = first.filter(|(expires, _)| *expires <= now_ms) else {
            return Ok(false);
        };
        self.idempotency.remove(key)?;
        Ok(true)
    }

    /// The session that has been idle longest, if it has been since `before_ms` or earlier.
    /// With it, since when.
    pub(super) fn first_idle(&self, before_ms: u64) -> Result<Option<(u64, u64)>, StoreError> {
        let first = self.idle_times.first()?.map(|(key, _)| key.value());
        Ok(first.filter(|(since, _)| *since <= before_ms))
    }

    /// How far a session has come.
    pub(super) fn progress(&self, session: u64) -> Result<Option<ProgressRow>, StoreError> {
        let value = self.progress.get(session)?;
        let row = value.map(|value| codec::decode::<ProgressRow>(value.value())).transpose();
        let own = |row: ProgressRow| match row.session.0 == session {
            true => Ok(row),
            false => Err(CodecError::Misplaced),
        };
        let row = row.and_then(|row| row.map(own).transpose());
        row.map_err(|error| StoreError::BadRow { table: "progress", error })
    }

    /// Code and message a job ended with; empty where that is forgotten or cannot be read.
    pub(super) fn last_words(&self, job: u128) -> Result<(String, String), StoreError> {
        let value = self.terminals.get(job)?;
        let row = value.and_then(|value| codec::decode::<TerminalRow>(value.value()).ok());
        Ok(row.map(|row| (row.code, row.message)).unwrap_or_default())
    }

    /// A dead letter; none where it cannot be read.
    pub(super) fn dead_letter(&self, id: u64) -> Result<Option<DeadLetterRow>, StoreError> {
        Ok(self.dead_letters.get(id)?.and_then(|value| codec::decode(value.value()).ok()))
    }

    /// How many dead letters are kept.
    pub(super) fn dead_letters_len(&self) -> Result<u64, StoreError> {
        Ok(self.dead_letters.len()?)
    }

    /// Puts a dead letter; the audio in its stored form.
    pub(super) fn put_dead_letter(
        &mut self,
        row: &DeadLetterRow,
        audio: Option<&[u8]>,
    ) -> Result<(), StoreError> {
        let value = self.sealed(row);
        self.dead_letters.insert(row.id, value.as_slice())?;
        if let Some(audio) = audio {
            self.count(audio);
            self.dead_audio.insert(row.id, audio)?;
        }
        Ok(())
    }

    /// Takes away a dead letter with its audio.
    pub(super) fn drop_dead_letter(&mut self, id: u64) -> Result<(), StoreError> {
        self.dead_letters.remove(id)?;
        self.dead_audio.remove(id)?;
        Ok(())
    }

    /// Forgets the oldest dead letter if it came at `before_ms` or earlier, or if there are more
    /// than `rows_max`. One that cannot be read is forgotten as the oldest, whenever it came.
    pub(super) fn prune_dead_letter(
        &mut self,
        before_ms: Option<u64>,
        rows_max: u64,
    ) -> Result<bool, StoreError> {
        let surplus = self.dead_letters.len()? > rows_max;
        let Some((id, created)) = self.dead_letters.first()?.map(|(key, value)| {
            let row = codec::decode::<DeadLetterRow>(value.value());
            (key.value(), row.map_or(0, |row| row.created_unix_ms))
        }) else {
            return Ok(false);
        };
        let old = before_ms.is_some_and(|before_ms| created <= before_ms);
        if surplus || old {
            self.drop_dead_letter(id)?;
        }
        Ok(surplus || old)
    }

    /// The numbers that go on through every start.
    pub(super) fn counters(&self) -> Result<CountersRow, StoreError> {
        counters_in(&self.meta)
    }

    /// Puts them.
    pub(super) fn put_counters(&mut self, row: &CountersRow) -> Result<(), StoreError> {
        let value = codec::encode(row);
        self.meta.insert(COUNTERS, value.as_slice())?;
        Ok(())
    }
}

/// The counters as they are stored.
pub(super) fn stored_counters(txn: &ReadTransaction) -> Result<CountersRow, StoreError> {
    counters_in(&txn.open_table(META)?)
}

fn counters_in(meta: &impl ReadableTable<u8, &'static [u8]>) -> Result<CountersRow, StoreError> {
    let stored = meta.get(COUNTERS)?;
    let row = stored.map(|value| codec::decode::<CountersRow>(value.value())).transpose();
    let row = row.map_err(|error| StoreError::BadRow { table: "meta", error })?;
    Ok(row.unwrap_or(CountersRow { commits: 0, next_dead_letter: 1 }))
}

/// A job that was taken away, in its stored form.
#[derive(Default)]
pub(super) struct TakenJob {
    pub(super) row: Vec<u8>,
    pub(super) audio: Option<Vec<u8>>,
}

/// Frames taken out of what is owed.
pub(super) struct Taken {
    /// Those that could be read, in order.
    pub(super) rows: Vec<OutboxRow>,
    /// How many could not.
    pub(super) bad: u64,
    /// Whether nothing is left of what was asked for.
    pub(super) all: bool,
}
