//! The store without a thread: one batch of writes, one transaction, one answer for each write.
//!
//! The engine is what the store's thread drives, and what a simulation drives in its own time over
//! a disk that does not exist. It reads no clock. It tells a full disk from every other failure:
//! a batch that met a full disk is kept, and [`Engine::retry`] finds out whether it happened after
//! all before it is done again.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use redb::{Database, Durability, ReadableDatabase};

use super::inspect;
use super::ledger::{Ledger, Noted};
use super::medium::{Directory, Fault, IoStats, Medium, Space, Tally};
use super::record::{DeadLetterRow, OutboxRow, TerminalRow};
use super::recovery;
use super::tables::{self, Tables};
use super::{Committed, Recovered, StoreError, StoreOptions, Write};
use crate::protocol::ids::{JobId, SessionId};

/// How long a reader waits while the database is closed and opened again.
const REOPENING_MAX: Duration = Duration::from_secs(2);

/// Asked before every commit and after it; an error has the effect of one from the disk.
pub(super) type AroundCommit = Arc<dyn Fn(Moment) -> Result<(), StoreError> + Send + Sync>;

/// When a commit is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    Before,
    After,
}

/// The store without a thread.
pub struct Engine {
    medium: Box<dyn Medium>,
    cache_bytes: usize,
    ballast_bytes: u64,
    /// None only where opening it again has failed.
    db: Option<Arc<Database>>,
    reader: Reader,
    io: Arc<Tally>,
    ledger: Ledger,
    pending: Option<Pending>,
    /// What committed batches came to beside their writes, until it is taken.
    noted: Noted,
    pub(super) around_commit: AroundCommit,
}

/// A batch that met a full disk.
struct Pending {
    writes: Vec<Write>,
    now_ms: u64,
    /// If its commit failed, and not something before it, it may have happened: its number and
    /// what was to be said of it.
    unsure: Option<Attempt>,
}

/// A transaction ready to commit.
struct Attempt {
    number: u64,
    committed: Vec<Committed>,
}

impl Engine {
    /// Opens the database of a directory, making one where there has never been one, and reads
    /// back what is in it. `now_ms` is Unix time in milliseconds.
    pub fn open(
        dir: &Path,
        options: &StoreOptions,
        now_ms: u64,
    ) -> Result<(Engine, Recovered), StoreError> {
        Self::open_on(Box::new(Directory::new(dir)), options, now_ms)
    }

    /// As [`Engine::open`], wherever the database lies.
    pub fn open_on(
        mut medium: Box<dyn Medium>,
        options: &StoreOptions,
        now_ms: u64,
    ) -> Result<(Engine, Recovered), StoreError> {
        let io = Arc::new(Tally::default());
        let opened = match open_once(medium.as_mut(), &io, options, now_ms) {
            // The start itself needs a little room; that is what the ballast is for.
            Err(error) if ran_full(&io, &error) && medium.drop_ballast() => {
                io.forget_fault();
                open_once(medium.as_mut(), &io, options, now_ms)
            }
            opened => opened,
        };
        let (db, recovered) = opened.map_err(|error| match ran_full(&io, &error) {
            true => StoreError::Full { file: medium.file() },
            false => error,
        })?;
        let engine = Engine {
            medium,
            cache_bytes: options.cache_bytes,
            ballast_bytes: options.ballast_bytes,
            reader: Reader { state: Arc::new(ArcSwap::from_pointee(Reading::Of(db.clone()))) },
            db: Some(db),
            io,
            ledger: Ledger::new(options, now_ms),
            pending: None,
            noted: Noted::default(),
            around_commit: Arc::new(|_| Ok(())),
        };
        Ok((engine, recovered))
    }

    /// Makes a batch durable: all of it or none of it. The answers are in the order of the writes.
    ///
    /// [`StoreError::Full`] means that the batch is kept: [`Engine::retry`] goes on with it, and
    /// until that has succeeded no other is taken. After any other error it is not known what is
    /// on the disk; only a new opening tells.
    ///
    /// # Panics
    ///
    /// If a batch is still kept.
    pub fn commit(
        &mut self,
        writes: Vec<Write>,
        now_ms: u64,
    ) -> Result<Vec<Committed>, StoreError> {
        assert!(self.pending.is_none(), "one batch at a time");
        self.attempt(Pending { writes, now_ms, unsure: None })
    }

    /// Goes on with the batch that met a full disk: opens the database again, looks whether the
    /// batch is in it, and does it again if it is not. Nothing to do is no error.
    pub fn retry(&mut self) -> Result<Vec<Committed>, StoreError> {
        let Some(mut pending) = self.pending.take() else { return Ok(Vec::new()) };
        let settled = self.reopen().and_then(|db| match &pending.unsure {
            None => Ok(false),
            Some(unsure) => Ok(stored_number(&db)? == unsure.number),
        });
        match settled {
            Err(error) => Err(self.kept(pending, error)),
            Ok(true) => {
                self.noted.add(self.ledger.committed());
                Ok(pending.unsure.take().map(|unsure| unsure.committed).unwrap_or_default())
            }
            Ok(false) => {
                pending.unsure = None;
                self.attempt(pending)
            }
        }
    }

    /// Whether a batch is kept for [`Engine::retry`].
    pub fn is_full(&self) -> bool {
        self.pending.is_some()
    }

    /// What can be read while the engine works, from any thread.
    pub fn reader(&self) -> Reader {
        self.reader.clone()
    }

    /// What the disk has been asked.
    pub fn io(&self) -> IoStats {
        self.io.stats()
    }

    /// The room there is, if that can be told.
    pub fn space(&self) -> Option<Space> {
        self.medium.space()
    }

    /// Sets room aside for a full disk. Returns whether it is there now.
    pub fn make_ballast(&mut self) -> bool {
        self.ballast_bytes > 0 && self.medium.make_ballast(self.ballast_bytes)
    }

    /// Whether room is set aside.
    pub fn has_ballast(&self) -> bool {
        self.medium.has_ballast()
    }

    /// Gives up the room set aside. Returns whether there was any.
    pub fn drop_ballast(&mut self) -> bool {
        self.medium.drop_ballast()
    }

    pub(super) fn take_noted(&mut self) -> Noted {
        std::mem::take(&mut self.noted)
    }

    pub(super) fn io_tally(&self) -> Arc<Tally> {
        Arc::clone(&self.io)
    }

    fn attempt(&mut self, mut pending: Pending) -> Result<Vec<Committed>, StoreError> {
        // It is gone only where it could not be opened again for a reason that is not room.
        let Some(db) = self.db.clone() else { return Err(StoreError::Stopped) };
        match self.transact(&db, &pending.writes, pending.now_ms, &mut pending.unsure) {
            Ok(()) => {
                self.noted.add(self.ledger.committed());
                self.noted.writes += pending.writes.len() as u64;
                Ok(pending.unsure.take().map(|done| done.committed).unwrap_or_default())
            }
            Err(error) => Err(self.kept(pending, error)),
        }
    }

    /// One transaction. `unsure` is set when nothing but the commit itself is left to do.
    fn transact(
        &mut self,
        db: &Database,
        writes: &[Write],
        now_ms: u64,
        unsure: &mut Option<Attempt>,
    ) -> Result<(), StoreError> {
        let mut txn = db.begin_write()?;
        txn.set_durability(Durability::Immediate)?;
        // Two-phase and with the allocator saved: reopening after a kill takes milliseconds,
        // whatever the size of the file.
        txn.set_quick_repair(true);
        let mut tables = Tables::open(&txn)?;
        self.ledger.begin(&tables)?;
        let mut committed = Vec::with_capacity(writes.len());
        for write in writes {
            committed.push(self.ledger.apply(&mut tables, write, now_ms)?);
        }
        self.ledger.close_batch(&mut tables, now_ms)?;
        drop(tables);
        (self.around_commit)(Moment::Before)?;
        *unsure = Some(Attempt { number: self.ledger.commit_number(), committed });
        txn.commit()?;
        (self.around_commit)(Moment::After)
    }

    /// Keeps a batch that met a full disk; gives back any other error as it is.
    fn kept(&mut self, pending: Pending, error: StoreError) -> StoreError {
        if !ran_full(&self.io, &error) {
            return error;
        }
        self.pending = Some(pending);
        StoreError::Full { file: self.medium.file() }
    }

    /// Closes the database and opens it again: the engine below takes no more writes after the
    /// first that failed. Waits for readers, which are quick.
    fn reopen(&mut self) -> Result<Arc<Database>, StoreError> {
        self.reader.state.store(Arc::new(Reading::Moving));
        if let Some(db) = self.db.take() {
            while Arc::strong_count(&db) > 1 {
                std::thread::sleep(Duration::from_micros(50));
            }
        }
        self.io.forget_fault();
        // Nothing can be made here, so the time of making does not matter.
        match recovery::open(self.medium.as_mut(), &self.io, self.cache_bytes, 0) {
            Ok(db) => {
                let db = Arc::new(db);
                self.reader.state.store(Arc::new(Reading::Of(Arc::clone(&db))));
                self.db = Some(Arc::clone(&db));
                Ok(db)
            }
            Err(error) => {
                self.reader.state.store(Arc::new(Reading::Full(self.medium.file())));
                Err(error)
            }
        }
    }
}

fn open_once(
    medium: &mut dyn Medium,
    io: &Arc<Tally>,
    options: &StoreOptions,
    now_ms: u64,
) -> Result<(Arc<Database>, Recovered), StoreError> {
    let db = Arc::new(recovery::open(medium, io, options.cache_bytes, now_ms)?);
    recovery::recover(db, &medium.file(), (now_ms, options.expiry_pause_ms > 0))
}

/// Whether an error means that there is no room: only a write says so, and only if nothing else
/// has failed on the way.
fn ran_full(io: &Tally, error: &StoreError) -> bool {
    match error {
        StoreError::Full { .. } => true,
        StoreError::Engine(redb::Error::Corrupted(_)) => false,
        StoreError::Engine(_) | StoreError::Io { .. } => io.fault() == Fault::Full,
        _ => false,
    }
}

/// The number of the last transaction that happened.
fn stored_number(db: &Database) -> Result<u64, StoreError> {
    let whole = || tables::stored_counters(&db.begin_read()?);
    let counters = catch_unwind(AssertUnwindSafe(whole));
    let counters = counters.unwrap_or_else(|_| Err(recovery::panicked().into()))?;
    Ok(counters.commits)
}

/// Reads what is stored, beside whoever writes. Clones read the same store.
#[derive(Clone)]
pub struct Reader {
    state: Arc<ArcSwap<Reading>>,
}

enum Reading {
    Of(Arc<Database>),
    /// It is being opened again.
    Moving,
    /// It could not be opened again, for want of room.
    Full(PathBuf),
    Stopped,
}

impl Reader {
    /// How a job ended, if it has and is not forgotten.
    pub fn terminal(&self, id: JobId) -> Result<Option<TerminalRow>, StoreError> {
        inspect::row(&self.db()?.begin_read()?, tables::TERMINALS, "terminals", id.0)
    }

    /// How the jobs ended that were made before that one, the latest first, at most `limit`; those
    /// that cannot be read are left out.
    pub fn terminals(
        &self,
        before: Option<JobId>,
        limit: usize,
    ) -> Result<Vec<TerminalRow>, StoreError> {
        inspect::terminals(&self.db()?.begin_read()?, before, limit)
    }

    /// The frames owed to a session with numbers above `after_seq`, in order, at most `limit`.
    /// A number that is missing was in quarantine.
    pub fn outbox(
        &self,
        session: SessionId,
        after_seq: u64,
        limit: usize,
    ) -> Result<Vec<OutboxRow>, StoreError> {
        inspect::owed(&self.db()?.begin_read()?, session, after_seq, limit)
    }

    /// Dead letters with ids above `after_id`, in order, at most `limit`; those that cannot be
    /// read are left out.
    pub fn dead_letters(
        &self,
        after_id: u64,
        limit: usize,
    ) -> Result<Vec<DeadLetterRow>, StoreError> {
        inspect::dead_letters(&self.db()?.begin_read()?, after_id, limit)
    }

    /// A dead letter with the audio of its job, if audio is kept with it.
    pub fn dead_letter(
        &self,
        id: u64,
    ) -> Result<Option<(DeadLetterRow, Option<Bytes>)>, StoreError> {
        inspect::dead_letter(&self.db()?.begin_read()?, id)
    }

    /// The database. Whoever has it keeps it from being opened again, so it is had for one read.
    pub(super) fn db(&self) -> Result<Arc<Database>, StoreError> {
        let step = Duration::from_micros(200);
        let mut waited = Duration::ZERO;
        loop {
            match &*self.state.load_full() {
                Reading::Of(db) => return Ok(Arc::clone(db)),
                Reading::Full(file) => return Err(StoreError::Full { file: file.clone() }),
                Reading::Moving if waited < REOPENING_MAX => {}
                Reading::Moving | Reading::Stopped => return Err(StoreError::Stopped),
            }
            std::thread::sleep(step);
            waited += step;
        }
    }

    /// Whether the database is still this one, and nobody waits for it to be let go.
    pub(super) fn is_of(&self, db: &Arc<Database>) -> bool {
        matches!(&**self.state.load(), Reading::Of(now) if Arc::ptr_eq(now, db))
    }

    /// Lets the database go.
    pub(super) fn stop(&self) {
        self.state.store(Arc::new(Reading::Stopped));
    }
}
