//! From a directory to a store that can be trusted: making the database, opening it, and reading
//! back what a process that is gone has left.
//!
//! Two rules: nothing is ever made over something that may have held accepted work, and nothing
//! that fails its checksum is interpreted. A bad row is moved to `quarantine` as it is, counted,
//! and ends its job. What recovered jobs are worth, and when to run them, is decided elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use foldhash::HashSet;
use redb::{Builder, Database, DatabaseError, Key, ReadTransaction, ReadableDatabase};
use redb::{ReadableTable, ReadableTableMetadata, StorageBackend, StorageError, TableDefinition};

use super::codec::{self, CodecError, Record};
use super::ledger::{FIRST_SEQ, put_progress};
use super::medium::{FILE, Medium, Tally, Watched};
use super::record::*;
use super::tables::{self, COUNTERS, ONLY, Tables};
use super::{AudioLost, Recovered, RecoveredJob, RecoveredSession, StoreError};
use crate::protocol::ids::{JobId, SessionId};
use crate::protocol::job::Outcome;

/// Layout of the tables.
const FORMAT: u32 = 4;

/// Opens a medium's database, making one where there has never been one.
pub(super) fn open(
    medium: &mut dyn Medium,
    io: &Arc<Tally>,
    cache_bytes: usize,
    now_ms: u64,
) -> Result<Database, StoreError> {
    let file = medium.file();
    let found = match medium.find()? {
        Some(found) => found,
        None => {
            create(medium, io, now_ms)?;
            medium.find()?.ok_or_else(|| corrupt(&file, "it vanished while it was made"))?
        }
    };
    // The engine would make a database of an empty file.
    if found.len().map_err(|error| open_error(&file)(error.into()))? == 0 {
        return Err(corrupt(&file, "it is empty"));
    }
    let db = open_backend(found, io, cache_bytes, &file)?;
    medium.opened()?;
    Ok(db)
}

fn open_backend(
    inner: Box<dyn StorageBackend>,
    io: &Arc<Tally>,
    cache_bytes: usize,
    file: &Path,
) -> Result<Database, StoreError> {
    let watched = Watched { inner, tally: Arc::clone(io) };
    let mut builder = Builder::new();
    builder.set_cache_size(cache_bytes);
    let opened = catch_unwind(AssertUnwindSafe(|| builder.create_with_backend(watched)));
    opened.unwrap_or_else(|_| Err(panicked().into())).map_err(open_error(file))
}

/// Makes an empty database under another name and moves it into place when it is whole: a crash
/// while the engine writes its first pages leaves a file that it cannot open again.
fn create(medium: &mut dyn Medium, io: &Arc<Tally>, now_ms: u64) -> Result<(), StoreError> {
    let made = medium.make()?;
    let db = open_backend(made, io, 1 << 20, &medium.file())?;
    let mut txn = db.begin_write()?;
    txn.set_quick_repair(true);
    let mut all = Tables::open(&txn)?;
    let meta = MetaRow { format: FORMAT, boot_epoch: None, created_unix_ms: now_ms };
    let value = all.sealed(&meta);
    all.meta.insert(ONLY, value.as_slice())?;
    drop(all);
    txn.commit()?;
    drop(db);
    medium.publish()
}

/// What the engine said about a file, in the operator's terms.
pub(super) fn open_error(path: &Path) -> impl Fn(DatabaseError) -> StoreError {
    let file = path.to_owned();
    move |error| match error {
        DatabaseError::DatabaseAlreadyOpen => StoreError::Locked { file: file.clone() },
        DatabaseError::RepairAborted => StoreError::Unclean { file: file.clone() },
        DatabaseError::Storage(StorageError::Io(source)) => match source.kind() {
            // The engine's word for a magic number or a length that is wrong.
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => corrupt(&file, source),
            _ => StoreError::Io { doing: "open", path: file.clone(), source },
        },
        DatabaseError::Storage(_) | DatabaseError::UpgradeRequired(_) => corrupt(&file, error),
        other => StoreError::Engine(other.into()),
    }
}

fn corrupt(file: &Path, detail: impl std::fmt::Display) -> StoreError {
    StoreError::Corrupt { file: file.to_owned(), detail: detail.to_string() }
}

/// The engine panics on some damaged pages where it could return an error.
pub(super) fn panicked() -> StorageError {
    StorageError::Corrupted("a page makes no sense".into())
}

/// Reads everything back, then counts this start and puts aside what cannot be believed.
///
/// Reading comes first, so that a database that is refused has not been written to.
pub(super) fn recover(
    db: Arc<Database>,
    file: &Path,
    (now_ms, keep_keys): (u64, bool),
) -> Result<(Arc<Database>, Recovered), StoreError> {
    let whole = || -> Result<(u32, Scan), StoreError> {
        let txn = db.begin_read()?;
        let meta = believed_meta(&txn, file)?;
        let scan = Scan::read(&txn, now_ms, keep_keys)?;
        drop(txn);
        Ok((scan.put_aside(&db, file, meta, now_ms)?, scan))
    };
    let (boot_epoch, scan) = match catch_unwind(AssertUnwindSafe(whole)) {
        Ok(recovered) => recovered.map_err(|error| recovery_error(error, file))?,
        Err(_) => {
            // Closing writes, and what the engine now believes of the file is not to be written.
            std::mem::forget(db);
            return Err(corrupt(file, panicked()));
        }
    };
    let mut jobs = scan.jobs;
    jobs.sort_by_key(|job| (job.row.accepted_unix_ms, job.row.spec.utterance_index, job.row.id));
    let recovered = Recovered {
        boot_epoch,
        jobs,
        sessions: scan.sessions,
        idempotency: scan.idempotency,
        nodes: scan.nodes,
        pools: scan.pools,
        rooms: scan.rooms,
        keys: scan.keys,
        outbox_rows: scan.outbox_rows,
        dead_letters: scan.dead_letters,
        bad_rows: scan.bad.len() as u64,
    };
    Ok((db, recovered))
}

/// Damage that shows in the middle of the file is the same to an operator as at its beginning.
fn recovery_error(error: StoreError, file: &Path) -> StoreError {
    match error {
        StoreError::Engine(
            error @ (redb::Error::Corrupted(_)
            | redb::Error::TableDoesNotExist(_)
            | redb::Error::TableTypeMismatch { .. }),
        ) => corrupt(file, error),
        other => other,
    }
}

/// The database's own row; without it nothing else can be read for what it is.
pub(super) fn believed_meta(txn: &ReadTransaction, file: &Path) -> Result<MetaRow, StoreError> {
    let meta = txn.open_table(tables::META)?.get(ONLY)?;
    match meta.map(|value| codec::decode::<MetaRow>(value.value())) {
        Some(Ok(meta)) if meta.format == FORMAT => Ok(meta),
        Some(Ok(meta)) => Err(StoreError::OtherRelease {
            file: file.to_owned(),
            detail: format!("table layout {} where {FORMAT} is known", meta.format),
        }),
        Some(Err(error @ CodecError::Version { .. })) => {
            Err(StoreError::OtherRelease { file: file.to_owned(), detail: error.to_string() })
        }
        Some(Err(error)) => Err(corrupt(file, error)),
        None => Err(corrupt(file, "it does not say what it is")),
    }
}

/// Where a row lies.
#[derive(Debug, Clone)]
enum Place {
    Counters,
    Session(u64),
    Progress(u64),
    Job(u128),
    Audio(u128),
    Outbox(u64, u64),
    Idempotency(u64, u128),
    Node(String),
    Pools,
    Room(u32),
    Key(u64),
}

/// A row that was not believed.
struct Bad {
    place: Place,
    value: Vec<u8>,
    error: CodecError,
}

/// Everything read back, and what is to be put aside.
#[derive(Default)]
struct Scan {
    jobs: Vec<RecoveredJob>,
    sessions: Vec<RecoveredSession>,
    idempotency: Vec<IdemRow>,
    nodes: Vec<NodeRow>,
    pools: Option<PoolConfigRow>,
    rooms: Vec<RoomRow>,
    keys: Vec<KeyRow>,
    outbox_rows: u64,
    dead_letters: u64,
    /// What is to be stored of the progress of sessions: as it is, and as it has to be.
    progress: Vec<(u64, Option<ProgressRow>, ProgressRow)>,
    /// Entries of the index of idle sessions that say what no progress says.
    stale_times: Vec<(u64, u64)>,
    bad: Vec<Bad>,
    /// Rows that are sound and belong to nothing any more.
    orphans: Vec<Place>,
}

impl Scan {
    fn read(txn: &ReadTransaction, now_ms: u64, keep_keys: bool) -> Result<Self, StoreError> {
        let mut scan = Self::default();
        scan.read_small_tables(txn, |key| keep_keys || key.expires_unix_ms > now_ms)?;
        scan.read_jobs(txn)?;
        let owed = scan.read_outbox(txn)?;
        scan.read_sessions(txn, &owed, now_ms)?;
        Ok(scan)
    }

    fn read_small_tables(
        &mut self,
        txn: &ReadTransaction,
        counts: impl Fn(&IdemRow) -> bool,
    ) -> Result<(), StoreError> {
        let nodes = &mut self.nodes;
        let bad = &mut self.bad;
        let mut keys = BTreeMap::new();
        let place = |(expires, key)| Place::Idempotency(expires, key);
        each(txn, tables::IDEMPOTENCY, bad, place, |(expires, key), row: IdemRow| {
            let own = (row.expires_unix_ms, row.key) == (expires, key);
            if own && counts(&row) {
                // They come by expiry: what was said last of a key stays.
                keys.insert(key, row);
            }
            own
        })?;
        self.idempotency = keys.into_values().collect();
        let place = |id: &str| Place::Node(id.to_owned());
        each(txn, tables::NODES, bad, place, |id, row: NodeRow| {
            keep(nodes, &*row.id.0 == id, row)
        })?;
        each(
            txn,
            tables::POOLS,
            bad,
            |_| Place::Pools,
            |_, row| {
                self.pools = Some(row);
                true
            },
        )?;
        let rooms = &mut self.rooms;
        each(txn, tables::ROOMS, bad, Place::Room, |code, row: RoomRow| {
            keep(rooms, row.code.0 == code, row)
        })?;
        let keys = &mut self.keys;
        each(txn, tables::KEYS, bad, Place::Key, |id, row: KeyRow| keep(keys, row.id == id, row))?;
        if let Some(value) = txn.open_table(tables::META)?.get(COUNTERS)?
            && let Err(error) = codec::decode::<CountersRow>(value.value())
        {
            let (place, value) = (Place::Counters, value.value().to_vec());
            self.bad.push(checked(Bad { place, value, error })?);
        }
        // Letters are believed or not when they are read: there may be many, and no work waits.
        self.dead_letters = txn.open_table(tables::DEAD_LETTERS)?.len()?;
        Ok(())
    }

    fn read_jobs(&mut self, txn: &ReadTransaction) -> Result<(), StoreError> {
        let mut rows: Vec<JobRow> = Vec::new();
        each(txn, tables::JOBS, &mut self.bad, Place::Job, |id, row: JobRow| {
            keep(&mut rows, row.id.0 == id, row)
        })?;
        let table = txn.open_table(tables::AUDIO)?;
        for row in rows {
            let id = row.id.0;
            let audio = match table.get(id)? {
                None => Err(AudioLost::Missing),
                Some(value) => match believed_audio(value.value(), &row) {
                    Ok(audio) => Ok(audio),
                    Err(error) => {
                        let (place, value) = (Place::Audio(id), value.value().to_vec());
                        self.bad.push(checked(Bad { place, value, error })?);
                        Err(AudioLost::Corrupt)
                    }
                },
            };
            self.jobs.push(RecoveredJob { row, audio });
        }
        // One audio row for each job, so a surplus shows in the count and is rarely looked for.
        let held = self.jobs.iter().filter(|job| job.audio != Err(AudioLost::Missing)).count();
        if table.len()? != held as u64 {
            let live: HashSet<u128> = self.jobs.iter().map(|job| job.row.id.0).collect();
            for entry in table.iter()? {
                let id = entry?.0.value();
                if !live.contains(&id) {
                    self.orphans.push(Place::Audio(id));
                }
            }
        }
        Ok(())
    }

    /// What is owed to each session.
    fn read_outbox(&mut self, txn: &ReadTransaction) -> Result<BTreeMap<u64, Owed>, StoreError> {
        let mut owed: BTreeMap<u64, Owed> = BTreeMap::new();
        let place = |(session, seq)| Place::Outbox(session, seq);
        let (rows, bad_before) = (&mut self.outbox_rows, self.bad.len());
        each(txn, tables::OUTBOX, &mut self.bad, place, |(session, seq), row: OutboxRow| {
            // The row is proven and its key is not: the number that was given is in the row.
            let of = owed.entry(row.session.0).or_default();
            of.behind = of.behind.max(row.seq.saturating_add(1));
            if (row.session.0, row.seq) != (session, seq) {
                return false;
            }
            *rows += 1;
            of.span = Some((of.span.map_or(seq, |(first, _)| first), seq));
            of.bytes += row.frame.len() as u64;
            true
        })?;
        for Bad { place, error, .. } in &self.bad[bad_before..] {
            // An unreadable row has a number too, which must not be given twice.
            if let Place::Outbox(session, seq) = place
                && *error != CodecError::Misplaced
            {
                let of = owed.entry(*session).or_default();
                of.behind = of.behind.max(seq.saturating_add(1));
            }
        }
        Ok(owed)
    }

    /// The sessions, each with how far it has come. A session whose progress is unreadable is
    /// forgotten: a client told "nothing missed" on a guess would lose results without a word.
    fn read_sessions(
        &mut self,
        txn: &ReadTransaction,
        owed: &BTreeMap<u64, Owed>,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        let mut stored: BTreeMap<u64, ProgressRow> = BTreeMap::new();
        let bad_before = self.bad.len();
        each(
            txn,
            tables::PROGRESS,
            &mut self.bad,
            Place::Progress,
            |session, row: ProgressRow| {
                let own = row.session.0 == session;
                if own {
                    stored.insert(session, row);
                }
                own
            },
        )?;
        let lost = |bad: &Bad| match bad.place {
            Place::Progress(session) => Some(session),
            _ => None,
        };
        let lost: HashSet<u64> = self.bad[bad_before..].iter().filter_map(lost).collect();
        let mut sessions: Vec<SessionRow> = Vec::new();
        let bad = &mut self.bad;
        each(txn, tables::SESSIONS, bad, Place::Session, |id, row: SessionRow| {
            keep(&mut sessions, row.id.0 == id, row)
        })?;
        for row in sessions {
            let session = row.id.0;
            if lost.contains(&session) {
                self.orphans.push(Place::Session(session));
                continue;
            }
            let stored = stored.remove(&session);
            let progress = sound_progress(session, stored.as_ref(), owed.get(&session), None);
            let owed = owed.get(&session);
            self.sessions.push(RecoveredSession {
                row,
                next_seq: progress.next_seq,
                next_index: progress.next_index,
                chunks: progress.chunks,
                owed: owed.and_then(|owed| owed.span),
                owed_bytes: owed.map_or(0, |owed| owed.bytes),
            });
            self.progress.push((session, stored, progress));
        }
        // Sessions that closed, or were settled for and never opened, or are forgotten now.
        let open: HashSet<u64> = self.sessions.iter().map(|session| session.row.id.0).collect();
        let closed = stored.keys().chain(owed.keys().filter(|id| !stored.contains_key(id)));
        for session in closed.copied().filter(|id| !open.contains(id)) {
            let stored = stored.get(&session);
            let since = stored.and_then(|row| row.idle_since_ms).unwrap_or(now_ms);
            let progress = sound_progress(session, stored, owed.get(&session), Some(since));
            self.progress.push((session, stored.cloned(), progress));
        }
        self.read_idle_times(txn)
    }

    /// Holds the index of idle sessions against their progress. Its entries are bare keys, which
    /// nothing proves, so progress is what counts.
    fn read_idle_times(&mut self, txn: &ReadTransaction) -> Result<(), StoreError> {
        let mut times: BTreeSet<(u64, u64)> = BTreeSet::new();
        for entry in txn.open_table(tables::IDLE_TIMES)?.iter()? {
            times.insert(entry?.0.value());
        }
        for (session, stored, _) in &mut self.progress {
            let since = stored.as_ref().and_then(|row| row.idle_since_ms);
            if let Some(since) = since
                && !times.remove(&(since, *session))
            {
                // Put again as if it had never been.
                *stored = None;
            }
        }
        self.stale_times = times.into_iter().collect();
        Ok(())
    }

    /// One transaction: the number of this start, by which whatever an earlier process still has
    /// out in the world can be told from this one's; bad rows into quarantine; the end of their
    /// jobs; orphans removed. Returns the number.
    fn put_aside(
        &self,
        db: &Database,
        file: &Path,
        meta: MetaRow,
        now_ms: u64,
    ) -> Result<u32, StoreError> {
        let boot_epoch = match meta.boot_epoch {
            None => 0,
            Some(last) => last.checked_add(1).ok_or_else(|| corrupt(file, "no epoch is left"))?,
        };
        let mut txn = db.begin_write()?;
        txn.set_quick_repair(true);
        let mut all = Tables::open(&txn)?;
        let boot = MetaRow { boot_epoch: Some(boot_epoch), ..meta };
        let value = all.sealed(&boot);
        all.meta.insert(ONLY, value.as_slice())?;
        for Bad { place, value, error } in &self.bad {
            tracing::error!(?place, %error, "a stored row was put into quarantine");
            let (table, key) = place.name();
            all.quarantine.insert((table, key.as_slice()), value.as_slice())?;
            place.clear(&mut all)?;
            if let Place::Counters = place {
                let last = all.dead_letters.last()?.map_or(0, |(key, _)| key.value());
                all.put_counters(&CountersRow { commits: 0, next_dead_letter: last + 1 })?;
            }
            if let Place::Job(id) = place
                && all.terminals.get(*id)?.is_none()
            {
                all.put_terminal(&unreadable(JobId(*id), *error, now_ms))?;
            }
        }
        for place in &self.orphans {
            place.clear(&mut all)?;
        }
        for time in &self.stale_times {
            all.idle_times.remove(time)?;
        }
        for (session, stored, row) in &self.progress {
            put_progress(&mut all, *session, stored.as_ref(), row)?;
        }
        drop(all);
        txn.commit()?;
        Ok(boot_epoch)
    }
}

impl Place {
    /// Table and key, as they stand in the quarantine.
    fn name(&self) -> (&'static str, Vec<u8>) {
        match self {
            Place::Counters => ("meta", vec![COUNTERS]),
            Place::Session(id) => ("sessions", id.to_be_bytes().to_vec()),
            Place::Progress(id) => ("progress", id.to_be_bytes().to_vec()),
            Place::Job(id) => ("jobs", id.to_be_bytes().to_vec()),
            Place::Audio(id) => ("audio", id.to_be_bytes().to_vec()),
            Place::Outbox(id, seq) => {
                ("outbox", [id.to_be_bytes(), seq.to_be_bytes()].as_flattened().to_vec())
            }
            Place::Idempotency(expires, key) => {
                ("idempotency", [&expires.to_be_bytes()[..], &key.to_be_bytes()].concat())
            }
            Place::Node(id) => ("nodes", id.as_bytes().to_vec()),
            Place::Pools => ("pools", vec![ONLY]),
            Place::Room(code) => ("rooms", code.to_be_bytes().to_vec()),
            Place::Key(id) => ("keys", id.to_be_bytes().to_vec()),
        }
    }

    fn clear(&self, all: &mut Tables<'_>) -> Result<(), StoreError> {
        match self {
            Place::Counters => drop(all.meta.remove(COUNTERS)?),
            Place::Session(id) => drop(all.sessions.remove(id)?),
            Place::Progress(id) => drop(all.progress.remove(id)?),
            Place::Job(id) => drop(all.jobs.remove(id)?),
            Place::Audio(id) => drop(all.audio.remove(id)?),
            Place::Outbox(id, seq) => drop(all.outbox.remove((*id, *seq))?),
            Place::Idempotency(expires, key) => drop(all.idempotency.remove((*expires, *key))?),
            Place::Node(id) => drop(all.nodes.remove(id.as_str())?),
            Place::Pools => drop(all.pools.remove(ONLY)?),
            Place::Room(code) => drop(all.rooms.remove(code)?),
            Place::Key(id) => drop(all.keys.remove(id)?),
        }
        Ok(())
    }
}

/// What is owed to one session.
#[derive(Default)]
struct Owed {
    /// Number behind the last frame, readable or not.
    behind: u64,
    /// First and last frame that can be read.
    span: Option<(u64, u64)>,
    bytes: u64,
}

/// How far a session has come, as it has to stand from now on.
fn sound_progress(
    session: u64,
    stored: Option<&ProgressRow>,
    owed: Option<&Owed>,
    idle_since_ms: Option<u64>,
) -> ProgressRow {
    let known = [stored.map(|row| row.next_seq), owed.map(|owed| owed.behind)];
    ProgressRow {
        session: SessionId(session),
        next_seq: known.into_iter().flatten().max().unwrap_or(FIRST_SEQ),
        next_index: stored.map_or(0, |row| row.next_index),
        chunks: stored.and_then(|row| row.chunks),
        idle_since_ms,
    }
}

/// How a job ends whose row cannot be read. Its session is in that row, so nobody is owed a frame.
fn unreadable(id: JobId, error: CodecError, now_ms: u64) -> TerminalRow {
    TerminalRow {
        id,
        session: SessionId(0),
        utterance_index: 0,
        outcome: Outcome::Failed,
        code: "STORAGE_CORRUPT".into(),
        message: format!("the stored job cannot be read: {error}"),
        attempts: 0,
        node: None,
        settled_unix_ms: now_ms,
        explanation: b"{}".to_vec(),
    }
}

/// The audio of a stored value, if it is that of this job.
pub(super) fn believed_audio(value: &[u8], row: &JobRow) -> Result<Bytes, CodecError> {
    let audio = codec::decode_audio(value)?;
    // Sound in itself, but is it this job's?
    match audio.len() as u64 == u64::from(row.audio_bytes) && crc32c::crc32c(audio) == row.audio_crc
    {
        true => Ok(Bytes::copy_from_slice(audio)),
        false => Err(CodecError::Checksum),
    }
}

/// A row of another release is not damage: an older program must not throw a newer one's work
/// into quarantine, so the start is refused instead.
fn checked(bad: Bad) -> Result<Bad, StoreError> {
    match bad.error {
        CodecError::Version { .. } => Err(StoreError::OtherRelease {
            file: PathBuf::from(FILE),
            detail: bad.error.to_string(),
        }),
        _ => Ok(bad),
    }
}

/// Keeps a row that belongs to its key; says whether it does.
fn keep<T>(rows: &mut Vec<T>, own: bool, row: T) -> bool {
    if own {
        rows.push(row);
    }
    own
}

/// Reads a table: good rows go to `good`, which says whether they belong to their key; all others
/// go to `bad`.
fn each<K: Key + 'static, T: Record>(
    txn: &ReadTransaction,
    table: TableDefinition<'static, K, &'static [u8]>,
    bad: &mut Vec<Bad>,
    mut place: impl for<'k> FnMut(K::SelfType<'k>) -> Place,
    mut good: impl for<'k> FnMut(K::SelfType<'k>, T) -> bool,
) -> Result<(), StoreError> {
    for entry in txn.open_table(table)?.iter()? {
        let (key, value) = entry?;
        let here = place(key.value());
        let error = match codec::decode::<T>(value.value()) {
            Ok(row) => match good(key.value(), row) {
                true => continue,
                false => CodecError::Misplaced,
            },
            Err(error) => error,
        };
        bad.push(checked(Bad { place: here, value: value.value().to_vec(), error })?);
    }
    Ok(())
}
