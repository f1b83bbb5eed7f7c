//! Everything that outlives the process: sessions, jobs with their audio, how jobs ended, and the
//! frames still owed to sessions.
//!
//! A [`Write`] is handed to [`Store::submit`], which never waits; one thread gathers writes into
//! transactions, and calls a write's [`Done`] when the transaction that holds it is on the disk.
//! What must not be said to a peer before it is durable is said from there.
//!
//! The store refuses to know what a job is for. It keeps three promises: a write whose `Done` was
//! called survives a power cut; a job ends once; the frames of a session are numbered without
//! gaps, in the transactions that end their jobs.
//!
//! ```text
//! submit ─► results ──────┐
//!        ─► accepts ──────┼─► thread "store": one batch, one commit ─► Done(Committed)
//!        ─► housekeeping ─┘
//! ```

mod backup;
pub mod codec;
mod disk;
mod engine;
mod error;
mod inspect;
mod ledger;
mod medium;
mod pressure;
mod record;
mod recovery;
mod signal;
mod stepper;
mod tables;
#[cfg(test)]
mod tests;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;

pub use backup::Copied;
pub use codec::{CodecError, PAYLOAD_BYTES_MAX};
pub use disk::{DiskOps, SimDisk};
pub use engine::{Engine, Reader};
pub use error::StoreError;
pub use inspect::{JobView, ReadOnly, open_read_only};
pub use medium::{IoStats, Medium, Space};
pub use pressure::{Health, Pressure, Watermark, Watermarks};
pub use record::{
    DeadLetterRow, IdemRow, JobRow, KeyRow, MemberRow, MetaRow, NodeRow, OutboxRow, PoolConfigRow,
    RoomRow, SessionRow, TerminalRow,
};

pub use stepper::Stepper;

use crate::protocol::ids::{JobId, RoomCode, SessionId};
use crate::protocol::job::{Audio, ChunkMark, Heard};
use medium::{Directory, Tally};
use pressure::Patience;
use writer::{Hooks, Shared, Writer};

/// How a store behaves.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Memory for the database's pages, in bytes.
    pub cache_bytes: usize,
    /// Whether audio is stored. Without it a job that was accepted cannot be run after a restart.
    pub keep_audio: bool,
    /// How long the end of a job can be looked up, in milliseconds.
    pub terminal_retention_ms: u64,
    /// How many ended jobs can be looked up.
    pub terminal_rows_max: u64,
    /// How long a session that is over can come for the frames it is owed, in milliseconds from
    /// its close; then they become dead letters.
    pub outbox_retention_ms: u64,
    /// How long dead letters are kept, in milliseconds.
    pub dead_letter_retention_ms: u64,
    /// How many dead letters are kept; the oldest go first.
    pub dead_letters_max: u64,
    /// How long after an opening nothing is too old, in milliseconds: the clock of the machine may
    /// have been moved since rows were written, and nothing may be given up for that at once.
    pub expiry_pause_ms: u64,
    /// Room set aside on the disk, to be given up when it is full so that rows can be deleted, in
    /// bytes; 0 for none.
    pub ballast_bytes: u64,
    /// How little room on the disk is too little.
    pub watermarks: Watermarks,
    /// Capacity of the lane of results and deliveries, in writes.
    pub lane_results: usize,
    /// Capacity of the lane of accepted jobs and of sessions, in writes.
    pub lane_accepts: usize,
    /// Capacity of the lane of nodes, pools and rooms, in writes.
    pub lane_housekeeping: usize,
}

impl Default for StoreOptions {
    fn default() -> Self {
        const DAY_MS: u64 = 24 * 60 * 60 * 1_000;
        Self {
            cache_bytes: 64 << 20,
            keep_audio: true,
            terminal_retention_ms: DAY_MS,
            terminal_rows_max: 100_000,
            outbox_retention_ms: 120_000,
            dead_letter_retention_ms: DAY_MS,
            dead_letters_max: 10_000,
            expiry_pause_ms: 0,
            ballast_bytes: 64 << 20,
            watermarks: Watermarks::default(),
            lane_results: 65_536,
            lane_accepts: 32_768,
            lane_housekeeping: 4_096,
        }
    }
}

/// A change of what is stored.
#[derive(Debug, Clone)]
pub enum Write {
    /// A session opened, or changed: the row replaces the one before. While it is open the frames
    /// owed to it do not age.
    OpenSession(SessionRow),
    /// A session is over. Frames owed to it stay until they are delivered, or become dead letters
    /// with the reason `unclaimed` when `outbox_retention_ms` have passed.
    CloseSession(SessionId),
    /// A job was accepted. Its place in the session's order and its mark in the audio stream count
    /// from now on, even if the job ended before.
    AcceptJob {
        /// The job; the writer sets the fields about its audio.
        row: Box<JobRow>,
        /// Its audio.
        audio: Audio,
        /// The client's own key for it. One that is used anew expires later than it did.
        idempotency: Option<IdemRow>,
    },
    /// A job ended. It need not have been accepted yet: its acceptance then stores nothing.
    SettleJob {
        /// How.
        terminal: Box<TerminalRow>,
        /// The frame owed to its session, which gets the session's next number.
        outbox: Option<Bytes>,
        /// The frames owed to other sessions, each of which gets that session's next number.
        heard: Vec<Heard>,
        /// Whether the job and its audio are kept as a dead letter with the reason `failed`. If
        /// its acceptance comes later, they are added then.
        dead: bool,
        /// It was refused and there is no job: no acceptance will come, and its mark in the audio
        /// stream counts from now on.
        refused: Option<ChunkMark>,
    },
    /// A session has received its frames.
    Delivered {
        /// The session.
        session: SessionId,
        /// Number of the last frame it has.
        through_seq: u64,
    },
    /// Frames owed to a session become dead letters.
    Forfeit {
        /// The session.
        session: SessionId,
        /// Number of the last frame it will not get.
        through_seq: u64,
        /// Why, in one word.
        why: &'static str,
    },
    /// A node was seen.
    Node(NodeRow),
    /// The pool configuration changed.
    Pools(PoolConfigRow),
    /// A room was made, or changed.
    Room(RoomRow),
    /// A room is no more.
    DropRoom(RoomCode),
    /// A key was made, or changed.
    Key(KeyRow),
    /// A dead letter is not needed any more.
    DropDeadLetter(u64),
}

/// Called on the store's thread after the commit that holds the write. It must be quick, and a
/// panic in it ends the process.
pub type Done = Box<dyn FnOnce(Committed) + Send>;

/// What a write came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Committed {
    /// Number given to the frame of a `SettleJob`: from 1, without gaps within a session. None if
    /// there was no frame, or if the job had ended before.
    pub outbox_seq: Option<u64>,
    /// Numbers given to the frames that others are owed, in the order of the write's listeners;
    /// empty if the job had ended before.
    pub heard_seqs: Vec<u64>,
    /// Whether the job of a `SettleJob` had ended before: the write changed nothing.
    pub ended_before: bool,
}

/// A write that was not taken, with everything its owner needs to try again.
pub struct Refused {
    /// The write.
    pub write: Write,
    /// Its callback, not called.
    pub done: Option<Done>,
    /// Why.
    pub why: Why,
}

impl std::fmt::Debug for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Refused({:?})", self.why)
    }
}

/// Why a write was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Its lane is full: the disk is slower than the work.
    Full,
    /// The store has been shut down.
    Stopped,
}

/// What was found at opening.
#[derive(Debug)]
pub struct Recovered {
    /// Starts before this one.
    pub boot_epoch: u32,
    /// Jobs accepted and not ended, by time of acceptance, then by place in their session.
    pub jobs: Vec<RecoveredJob>,
    /// Sessions not closed, by id.
    pub sessions: Vec<RecoveredSession>,
    /// Keys that have not expired, or, where there is a pause of expiry, that are still there.
    pub idempotency: Vec<IdemRow>,
    /// Nodes seen.
    pub nodes: Vec<NodeRow>,
    /// Pool configuration in force.
    pub pools: Option<PoolConfigRow>,
    /// Rooms, by code.
    pub rooms: Vec<RoomRow>,
    /// Keys, by number.
    pub keys: Vec<KeyRow>,
    /// Frames still owed, over all sessions; see [`Store::outbox`].
    pub outbox_rows: u64,
    /// Dead letters kept; see [`Store::dead_letters`].
    pub dead_letters: u64,
    /// Rows put into quarantine.
    pub bad_rows: u64,
}

/// A session that was not closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveredSession {
    /// The session.
    pub row: SessionRow,
    /// Number the next frame owed to it gets.
    pub next_seq: u64,
    /// Place in its order behind the last one a job has taken.
    pub next_index: u64,
    /// How far its audio stream is inside jobs, if any of them was a part of one.
    pub chunks: Option<ChunkMark>,
    /// Numbers of the first and the last frame owed to it. One between them may be missing: it
    /// was in quarantine.
    pub owed: Option<(u64, u64)>,
    /// Bytes of the frames owed to it.
    pub owed_bytes: u64,
}

/// A job that has to be run again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveredJob {
    /// The job.
    pub row: JobRow,
    /// Its audio, if it is still whole.
    pub audio: Result<Bytes, AudioLost>,
}

/// Why a job's audio is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AudioLost {
    /// It was never stored.
    #[error("the audio was not stored")]
    Missing,
    /// It is not what was stored.
    #[error("the stored audio is damaged")]
    Corrupt,
}

/// What the store is doing. Counters are since the process began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreStats {
    /// Results and deliveries waiting.
    pub queued_results: usize,
    /// Accepted jobs and sessions waiting.
    pub queued_accepts: usize,
    /// Nodes, pools and rooms waiting.
    pub queued_housekeeping: usize,
    /// Transactions committed.
    pub commits: u64,
    /// Rows written.
    pub rows_written: u64,
    /// Bytes of the values written.
    pub bytes_written: u64,
    /// Length of the last transaction with its commit, in microseconds.
    pub last_commit_us: u64,
    /// Writes in the last transaction.
    pub last_batch_rows: u64,
    /// Frames that became dead letters because nobody came for them.
    pub outbox_expired: u64,
    /// Dead letters kept now.
    pub dead_letters: u64,
    /// Dead letters given up, for their age or because there were too many.
    pub dead_letters_expired: u64,
    /// Rows that could not be believed.
    pub bad_rows: u64,
    /// Since the thread last moved, in microseconds; 0 while it has nothing to do.
    pub beat_age_us: u64,
    /// What the room on the disk asks for.
    pub pressure: Pressure,
    /// Whether the thread moves.
    pub health: Health,
    /// Free bytes of the disk when they were last looked at; 0 where that cannot be told.
    pub free_bytes: u64,
    /// Size of the database file.
    pub file_bytes: u64,
    /// What the disk has been asked.
    pub io: IoStats,
}

/// The store. Clones are the same store; the last one to go shuts it down.
#[derive(Clone)]
pub struct Store {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    /// For reading; of no use after the shutdown, which lets the file go.
    reader: Reader,
    io: Arc<Tally>,
    file: PathBuf,
    /// Only ever touched at shutdown.
    threads: Mutex<Threads>,
    /// There are no threads: a [`Stepper`] does their work.
    stepped: bool,
}

#[derive(Default)]
struct Threads {
    store: Option<JoinHandle<()>>,
    watch: Option<JoinHandle<()>>,
}

impl Store {
    /// Opens the database of a directory, making one where there has never been one, and reads
    /// back what is in it. Blocks; takes as long as reading every row that is not history.
    pub fn open(dir: &Path, options: StoreOptions) -> Result<(Store, Recovered), StoreError> {
        Self::open_with(dir, options, Hooks::default())
    }

    /// As [`Store::open`], wherever the database lies.
    pub fn open_on(
        medium: Box<dyn Medium>,
        options: StoreOptions,
    ) -> Result<(Store, Recovered), StoreError> {
        Self::start(medium, &options, Hooks::default())
    }

    fn open_with(
        dir: &Path,
        options: StoreOptions,
        hooks: Hooks,
    ) -> Result<(Store, Recovered), StoreError> {
        Self::start(Box::new(Directory::new(dir)), &options, hooks)
    }

    fn start(
        medium: Box<dyn Medium>,
        options: &StoreOptions,
        hooks: Hooks,
    ) -> Result<(Store, Recovered), StoreError> {
        let file = medium.file();
        let (engine, recovered) = Engine::open_on(medium, options, (hooks.now_ms)())?;
        let shared = Arc::new(Shared::new(options, hooks.patience));
        shared.bad_rows.store(recovered.bad_rows, Relaxed);
        shared.dead_letters.store(recovered.dead_letters, Relaxed);
        let (reader, io, fatal) = (engine.reader(), engine.io_tally(), Arc::clone(&hooks.fatal));
        let writer = Writer::new(&shared, engine, hooks, options);
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.to_owned()).spawn(work).map_err(|source| {
                StoreError::Io { doing: "start a thread for", path: file.clone(), source }
            })
        };
        let thread = spawn("store", Box::new(|| writer.run()))?;
        let named = shared.signal.wakes(thread.thread().clone());
        assert!(named, "a store has one thread");
        let watched = Arc::clone(&shared);
        let watch = move || writer::watch(&watched, fatal.as_ref());
        let watch = match spawn("store-watch", Box::new(watch)) {
            Ok(watch) => Some(watch),
            Err(error) => {
                tracing::error!(%error, "nobody watches the store's thread");
                None
            }
        };
        let threads = Mutex::new(Threads { store: Some(thread), watch });
        let handle = Handle { shared, reader, io, file, threads, stepped: false };
        Ok((Store { handle: Arc::new(handle) }, recovered))
    }

    /// A store without a thread: what it is handed becomes durable when the owner of the
    /// [`Stepper`] says so. For simulations, whose time is not the machine's; `now_ms` is theirs.
    pub fn open_stepped(
        medium: Box<dyn Medium>,
        options: &StoreOptions,
        now_ms: u64,
    ) -> Result<(Store, Recovered, Stepper), StoreError> {
        let file = medium.file();
        let (engine, recovered) = Engine::open_on(medium, options, now_ms)?;
        let shared = Arc::new(Shared::new(options, Patience::ENDLESS));
        shared.bad_rows.store(recovered.bad_rows, Relaxed);
        shared.dead_letters.store(recovered.dead_letters, Relaxed);
        let (reader, io, threads) = (engine.reader(), engine.io_tally(), Mutex::default());
        let stepper = Stepper::new(Writer::new(&shared, engine, Hooks::default(), options));
        let handle = Handle { shared, reader, io, file, threads, stepped: true };
        Ok((Store { handle: Arc::new(handle) }, recovered, stepper))
    }

    /// Whether its owner makes it move; then reading it takes no time that others could use.
    pub fn is_stepped(&self) -> bool {
        self.handle.stepped
    }

    /// Hands over a write. Never waits: a full lane hands it back.
    #[allow(clippy::result_large_err, reason = "the write goes back to its owner, not to a log")]
    pub fn submit(&self, write: Write, done: Option<Done>) -> Result<(), Refused> {
        self.handle.shared.submit(write, done)
    }

    /// As [`Store::submit`], for who has something more urgent to do than to wake a thread: nothing
    /// is made durable before [`Store::wake`] is called, or another write is submitted.
    #[allow(clippy::result_large_err, reason = "the write goes back to its owner, not to a log")]
    pub fn leave(&self, write: Write, done: Option<Done>) -> Result<(), Refused> {
        self.handle.shared.leave(write, done)
    }

    /// Has writes that were left made durable. Costs next to nothing where there are none.
    pub fn wake(&self) {
        if self.handle.shared.queued() > 0 {
            self.handle.shared.signal.wake();
        }
    }

    /// Whether a job may be accepted: its lane has room, the disk has, and the thread moves.
    /// Asked before a job is accepted, so that it is refused in time; [`Store::pressure`] and
    /// [`Store::health`] tell why.
    pub fn has_room_for_accepts(&self) -> bool {
        self.handle.shared.has_room_for_accepts()
    }

    /// Whether a session may be opened; a server that may not is not ready.
    pub fn takes_sessions(&self) -> bool {
        self.pressure() < Pressure::NoSessions && self.health() < Health::Late
    }

    /// What the room on the disk asks for, as of the last look.
    pub fn pressure(&self) -> Pressure {
        self.handle.shared.pressure()
    }

    /// Whether the store's thread moves.
    pub fn health(&self) -> Health {
        self.handle.shared.health()
    }

    /// Has the room on the disk looked at, at most once a second. Never waits. A busy store looks
    /// by itself.
    pub fn look_at_disk(&self) {
        self.handle.shared.look_at_disk();
    }

    /// How a job ended, if it has and is not forgotten. Reads the disk.
    pub fn terminal(&self, id: JobId) -> Result<Option<TerminalRow>, StoreError> {
        self.handle.reader.terminal(id)
    }

    /// How the jobs ended that were made before that one (before now, if none is named), the latest
    /// first, at most `limit`; those that cannot be read are left out. Reads the disk.
    pub fn terminals(
        &self,
        before: Option<JobId>,
        limit: usize,
    ) -> Result<Vec<TerminalRow>, StoreError> {
        self.handle.reader.terminals(before, limit)
    }

    /// The frames owed to a session with numbers above `after_seq`, in order, at most `limit`.
    /// A number that is missing was in quarantine or too old. Reads the disk.
    pub fn outbox(
        &self,
        session: SessionId,
        after_seq: u64,
        limit: usize,
    ) -> Result<Vec<OutboxRow>, StoreError> {
        self.handle.reader.outbox(session, after_seq, limit)
    }

    /// Dead letters with ids above `after_id`, in order, at most `limit`; those that cannot be
    /// read are left out. Reads the disk.
    pub fn dead_letters(
        &self,
        after_id: u64,
        limit: usize,
    ) -> Result<Vec<DeadLetterRow>, StoreError> {
        self.handle.reader.dead_letters(after_id, limit)
    }

    /// A dead letter with the audio of its job, if audio is kept with it. Reads the disk.
    pub fn dead_letter(
        &self,
        id: u64,
    ) -> Result<Option<(DeadLetterRow, Option<Bytes>)>, StoreError> {
        self.handle.reader.dead_letter(id)
    }

    /// Copies the database, as it is at one commit, into an empty file, which is not synced. Blocks
    /// for as long as reading every row takes twice; writes go on meanwhile. Given up when the disk
    /// fills up, and when the database is closed or opened again.
    pub fn backup(&self, file: std::fs::File) -> Result<Copied, StoreError> {
        let (reader, name) = (&self.handle.reader, &self.handle.file);
        let db = reader.db()?;
        let may_go_on = || match self.pressure() {
            Pressure::None if reader.is_of(&db) => Ok(()),
            Pressure::None => Err(StoreError::Interrupted { file: name.clone() }),
            _ => Err(StoreError::NoRoom { file: name.clone() }),
        };
        backup::copy(&redb::ReadableDatabase::begin_read(&*db)?, file, name, &may_go_on)
    }

    /// The directory of the database.
    pub fn dir(&self) -> PathBuf {
        self.handle.file.parent().unwrap_or(&self.handle.file).to_owned()
    }

    /// What the store is doing.
    pub fn stats(&self) -> StoreStats {
        let file_bytes = std::fs::metadata(&self.handle.file).map_or(0, |file| file.len());
        StoreStats { file_bytes, io: self.handle.io.stats(), ..self.handle.shared.stats() }
    }

    /// Makes every write that was taken durable, ends the thread and closes the file. Blocks; the
    /// second call finds nothing to do. Must not be called from a [`Done`].
    pub fn shutdown(&self) {
        self.handle.shutdown();
    }

    /// For the tests that look beneath.
    #[cfg(test)]
    fn db(&self) -> Result<Arc<redb::Database>, StoreError> {
        self.handle.reader.db()
    }
}

impl Handle {
    fn shutdown(&self) {
        self.shared.stop();
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        // The last clone may live in a callback; a thread cannot wait for its own end.
        let own = |thread: &JoinHandle<()>| thread.thread().id() == std::thread::current().id();
        if let Some(thread) = threads.store.take_if(|thread| !own(thread)) {
            // A thread that panicked has ended the process, or been told by a test not to.
            let _ended = thread.join();
        }
        // The watch ends with what it watches.
        if threads.store.is_none()
            && let Some(watch) = threads.watch.take()
        {
            watch.thread().unpark();
            let _ended = watch.join();
        }
        self.reader.stop();
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shutdown();
    }
}
