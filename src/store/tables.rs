//! Where rows are kept: the database's tables, and the moves that keep a table and its index by
//! time in step. Knows redb; knows nothing of threads, lanes or recovery.

use redb::{ReadableTable, ReadableTableMetadata, Table, TableDefinition, WriteTransaction};

use super::StoreError;
use super::codec::{self, Record};
use super::record::{IdemRow, OutboxRow, TerminalRow};

type Def<K> = TableDefinition<'static, K, &'static [u8]>;
type Index<K> = TableDefinition<'static, K, ()>;
type Rows<'t, K> = Table<'t, K, &'static [u8]>;

pub(super) const META: Def<u8> = TableDefinition::new("meta");
pub(super) const SESSIONS: Def<u64> = TableDefinition::new("sessions");
pub(super) const SEQS: Def<u64> = TableDefinition::new("outbox_seqs");
pub(super) const JOBS: Def<u128> = TableDefinition::new("jobs");
pub(super) const AUDIO: Def<u128> = TableDefinition::new("audio");
pub(super) const TERMINALS: Def<u128> = TableDefinition::new("terminals");
const TERMINAL_TIMES: Index<(u64, u128)> = TableDefinition::new("terminals_by_time");
pub(super) const OUTBOX: Def<(u64, u64)> = TableDefinition::new("outbox");
const OUTBOX_TIMES: Index<(u64, u64, u64)> = TableDefinition::new("outbox_by_time");
pub(super) const IDEMPOTENCY: Def<u128> = TableDefinition::new("idempotency");
const IDEMPOTENCY_TIMES: Index<(u64, u128)> = TableDefinition::new("idempotency_by_time");
pub(super) const NODES: Def<&'static str> = TableDefinition::new("nodes");
pub(super) const POOLS: Def<u8> = TableDefinition::new("pools");
pub(super) const QUARANTINE: Def<(&'static str, &'static [u8])> =
    TableDefinition::new("quarantine");

/// Key of the tables that hold one row.
pub(super) const ONLY: u8 = 0;

/// All tables, open in one write transaction.
pub(super) struct Tables<'t> {
    pub(super) meta: Rows<'t, u8>,
    pub(super) sessions: Rows<'t, u64>,
    pub(super) seqs: Rows<'t, u64>,
    pub(super) jobs: Rows<'t, u128>,
    pub(super) audio: Rows<'t, u128>,
    pub(super) terminals: Rows<'t, u128>,
    terminal_times: Table<'t, (u64, u128), ()>,
    pub(super) outbox: Rows<'t, (u64, u64)>,
    outbox_times: Table<'t, (u64, u64, u64), ()>,
    pub(super) idempotency: Rows<'t, u128>,
    idempotency_times: Table<'t, (u64, u128), ()>,
    pub(super) nodes: Rows<'t, &'static str>,
    pub(super) pools: Rows<'t, u8>,
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
            seqs: txn.open_table(SEQS)?,
            jobs: txn.open_table(JOBS)?,
            audio: txn.open_table(AUDIO)?,
            terminals: txn.open_table(TERMINALS)?,
            terminal_times: txn.open_table(TERMINAL_TIMES)?,
            outbox: txn.open_table(OUTBOX)?,
            outbox_times: txn.open_table(OUTBOX_TIMES)?,
            idempotency: txn.open_table(IDEMPOTENCY)?,
            idempotency_times: txn.open_table(IDEMPOTENCY_TIMES)?,
            nodes: txn.open_table(NODES)?,
            pools: txn.open_table(POOLS)?,
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
        self.terminal_times.insert((row.settled_unix_ms, row.id.0), ())?;
        Ok(())
    }

    /// Puts a key; one that was there before is replaced, with its place in the index.
    pub(super) fn put_idempotency(&mut self, row: &IdemRow) -> Result<(), StoreError> {
        let value = self.sealed(row);
        let before = self.idempotency.insert(row.key, value.as_slice())?;
        // An old row that cannot be read leaves its index entry behind; expiry copes with that.
        let before = before.and_then(|v| codec::decode::<IdemRow>(v.value()).ok());
        if let Some(before) = before {
            self.idempotency_times.remove((before.expires_unix_ms, before.key))?;
        }
        self.idempotency_times.insert((row.expires_unix_ms, row.key), ())?;
        Ok(())
    }

    /// Puts a frame owed to a session.
    pub(super) fn put_outbox(&mut self, row: &OutboxRow) -> Result<(), StoreError> {
        let value = self.sealed(row);
        let (session, seq) = (row.session.0, row.seq);
        let before = self.outbox.insert((session, seq), value.as_slice())?.is_some();
        assert!(!before, "a sequence number is given once");
        self.outbox_times.insert((row.created_unix_ms, session, seq), ())?;
        Ok(())
    }

    /// Takes away what a session has received. Returns how many rows could not be read: they go
    /// too, for their place is known and the session has passed it.
    pub(super) fn deliver(&mut self, session: u64, through_seq: u64) -> Result<u64, StoreError> {
        let mut passed = Vec::new();
        for row in self.outbox.range((session, 0)..=(session, through_seq))? {
            let (key, value) = row?;
            let created = codec::decode::<OutboxRow>(value.value()).map(|r| r.created_unix_ms);
            passed.push((key.value().1, created.ok()));
        }
        let mut bad = 0;
        for (seq, created) in passed {
            self.outbox.remove((session, seq))?;
            match created {
                Some(created) => drop(self.outbox_times.remove((created, session, seq))?),
                None => bad += 1,
            }
        }
        Ok(bad)
    }

    /// The highest sequence number still owed to a session.
    pub(super) fn last_owed(&self, session: u64) -> Result<Option<u64>, StoreError> {
        let mut rows = self.outbox.range((session, 0)..=(session, u64::MAX))?;
        Ok(rows.next_back().transpose()?.map(|(key, _)| key.value().1))
    }

    /// Forgets the oldest ended job if it ended at `before_ms` or earlier, or if there are more
    /// than `rows_max`. Returns whether there was one to forget.
    pub(super) fn prune_terminal(
        &mut self,
        before_ms: Option<u64>,
        rows_max: u64,
    ) -> Result<bool, StoreError> {
        let Some((settled, id)) = self.terminal_times.first()?.map(|(key, _)| key.value()) else {
            return Ok(false);
        };
        let young = before_ms.is_none_or(|before_ms| settled > before_ms);
        if young && self.terminal_times.len()? <= rows_max {
            return Ok(false);
        }
        self.terminal_times.remove((settled, id))?;
        self.terminals.remove(id)?;
        Ok(true)
    }

    /// Forgets the key that expired first, if one has at `now_ms`.
    pub(super) fn prune_idempotency(&mut self, now_ms: u64) -> Result<bool, StoreError> {
        let first = self.idempotency_times.first()?.map(|(key, _)| key.value());
        let Some((expires, key)) = first.filter(|(expires, _)| *expires <= now_ms) else {
            return Ok(false);
        };
        self.idempotency_times.remove((expires, key))?;
        let renewed = match self.idempotency.get(key)? {
            Some(row) => {
                codec::decode::<IdemRow>(row.value()).is_ok_and(|row| row.expires_unix_ms > expires)
            }
            None => false,
        };
        if !renewed {
            self.idempotency.remove(key)?;
        }
        Ok(true)
    }

    /// Gives up the frame that has been owed longest, if it was written at `before_ms` or earlier.
    pub(super) fn prune_outbox(&mut self, before_ms: u64) -> Result<bool, StoreError> {
        let first = self.outbox_times.first()?.map(|(key, _)| key.value());
        let Some((created, session, seq)) = first.filter(|(created, ..)| *created <= before_ms)
        else {
            return Ok(false);
        };
        self.outbox_times.remove((created, session, seq))?;
        self.outbox.remove((session, seq))?;
        Ok(true)
    }
}
