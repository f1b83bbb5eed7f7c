//! A copy of the whole database, as it was at one commit, while others go on writing.
//!
//! The engine cannot copy itself. All rows are read in one read transaction, which sees one commit
//! whatever is written meanwhile, and are put into a new database a bounded batch at a time. While
//! it reads, pages that are no longer used are not used again, so it is not drawn out: it works
//! half of the time and rests the other half.

use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use redb::backends::FileBackend;
use redb::{Builder, Database, Key, ReadTransaction, ReadableTable, StorageBackend};
use redb::{TableDefinition, TableError, Value};

use super::recovery::{self, open_error};
use super::{StoreError, tables};

/// Values put into the copy in one transaction, in bytes.
const BATCH_BYTES: u64 = 1 << 20;
/// Memory for pages of the copy, in bytes.
const CACHE_BYTES: usize = 8 << 20;
/// Longest rest between two batches.
const REST_MAX: Duration = Duration::from_millis(50);

/// What was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    /// The commit as of which it is.
    pub commit: u64,
    /// Rows.
    pub rows: u64,
    /// Bytes of their values.
    pub bytes: u64,
}

/// Copies all that a read transaction sees into an empty file, without syncing it. `may_go_on` is
/// asked between batches.
pub(super) fn copy(
    from: &ReadTransaction,
    file: File,
    name: &Path,
    may_go_on: &dyn Fn() -> Result<(), StoreError>,
) -> Result<Copied, StoreError> {
    let whole = || copy_all(from, file, name, may_go_on);
    let copied = catch_unwind(AssertUnwindSafe(whole));
    copied.unwrap_or_else(|_| Err(recovery::panicked().into()))
}

fn copy_all(
    from: &ReadTransaction,
    file: File,
    name: &Path,
    may_go_on: &dyn Fn() -> Result<(), StoreError>,
) -> Result<Copied, StoreError> {
    let backend = Unsynced(FileBackend::new(file).map_err(open_error(name))?);
    let to = Builder::new().set_cache_size(CACHE_BYTES).create_with_backend(backend);
    let commit = tables::stored_counters(from)?.commits;
    let copied = Copied { commit, rows: 0, bytes: 0 };
    let mut copy = Copying { to: to.map_err(open_error(name))?, may_go_on, copied };
    let mut known = Vec::new();
    macro_rules! every {
        ($($table:ident),+) => {$(
            copy.table(from, tables::$table)?;
            known.push(redb::TableHandle::name(&tables::$table).to_owned());
        )+};
    }
    every!(
        META,
        SESSIONS,
        PROGRESS,
        IDLE_TIMES,
        JOBS,
        AUDIO,
        TERMINALS,
        OUTBOX,
        DEAD_LETTERS,
        DEAD_AUDIO,
        IDEMPOTENCY,
        NODES,
        POOLS,
        ROOMS,
        KEYS,
        QUARANTINE
    );
    for table in from.list_tables()? {
        let found = redb::TableHandle::name(&table);
        if !known.iter().any(|name| name == found) {
            let detail = format!("it has a table {found}, which would be left out");
            return Err(StoreError::OtherRelease { file: name.to_owned(), detail });
        }
    }
    Ok(copy.copied)
}

struct Copying<'a> {
    to: Database,
    may_go_on: &'a dyn Fn() -> Result<(), StoreError>,
    copied: Copied,
}

impl Copying<'_> {
    fn table<K: Key + 'static, V: Value + 'static>(
        &mut self,
        from: &ReadTransaction,
        table: TableDefinition<'static, K, V>,
    ) -> Result<(), StoreError> {
        let source = match from.open_table(table) {
            Ok(source) => source,
            Err(TableError::TableDoesNotExist(_)) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let mut rows = source.iter()?;
        let mut more = true;
        while more {
            (self.may_go_on)()?;
            let began = Instant::now();
            let mut txn = self.to.begin_write()?;
            // The copy is opened without a repair.
            txn.set_quick_repair(true);
            let mut bytes = 0;
            let mut target = txn.open_table(table)?;
            more = loop {
                let Some(row) = rows.next() else { break false };
                let (key, value) = row?;
                bytes += V::as_bytes(&value.value()).as_ref().len() as u64;
                target.insert(key.value(), value.value())?;
                self.copied.rows += 1;
                if bytes >= BATCH_BYTES {
                    break true;
                }
            };
            drop(target);
            txn.commit()?;
            self.copied.bytes += bytes;
            std::thread::sleep(began.elapsed().min(REST_MAX));
        }
        Ok(())
    }
}

/// A file that is synced when it is whole, by who wanted it.
#[derive(Debug)]
struct Unsynced(FileBackend);

impl StorageBackend for Unsynced {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }
}
