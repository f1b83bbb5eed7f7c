//! The one thread that changes the database.
//!
//! Three lanes lead to it, and it empties them in the order results, accepts, housekeeping: a
//! result has work behind it that would have to be done again. There is no timer. While a commit
//! is in flight the lanes fill, and what they hold when it returns is the next batch.
//!
//! The thread parks when the lanes are empty and ends the process when the disk fails it. It
//! knows the effect of a write on the tables and nothing of why a job ended.

use std::sync::atomic::Ordering::{Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use crossbeam::queue::ArrayQueue;

use super::engine::{AroundCommit, Engine};
use super::ledger::Noted;
use super::medium::{IoStats, Space};
use super::pressure::{Health, Patience, Pressure, Watermarks};
use super::signal::Signal;
use super::{Committed, Done, Refused, StoreError, StoreOptions, StoreStats, Why, Write};

/// Most writes in one transaction.
const BATCH_ROWS_MAX: usize = 4_096;
/// A batch is closed by the write that takes it to this many bytes.
const BATCH_BYTES_MAX: usize = 8 << 20;
/// How often the room on the disk is looked at, at most; and how often a full disk is tried again.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Looks in a row that must find the thread lost before the process is ended.
const LOST_LOOKS: u32 = 3;

/// What the thread takes from the world beside the disk; tests put their own in.
#[derive(Clone)]
pub(super) struct Hooks {
    /// Unix time in milliseconds.
    pub(super) now_ms: fn() -> u64,
    /// Asked around every commit; an error has the effect of one from the disk.
    pub(super) around_commit: AroundCommit,
    /// How long the thread may be without moving.
    pub(super) patience: Patience,
    /// Ends the process. Where it returns, as in tests, the thread ends without another write.
    pub(super) fatal: Arc<dyn Fn(&str) + Send + Sync>,
}

impl Default for Hooks {
    fn default() -> Self {
        Self {
            now_ms: unix_ms,
            around_commit: Arc::new(|_| Ok(())),
            patience: Patience::default(),
            fatal: Arc::new(stop_process),
        }
    }
}

/// The clock of the machine when this process first asked, and what has passed since: moving that
/// clock makes nothing older.
fn unix_ms() -> u64 {
    static BEGAN: OnceLock<(Instant, Duration)> = OnceLock::new();
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (began, unix) = BEGAN.get_or_init(|| (Instant::now(), now()));
    u64::try_from((*unix + began.elapsed()).as_millis()).unwrap_or(u64::MAX)
}

/// After a failed sync nobody knows which pages reached the disk, and a second sync may claim
/// success for pages that were dropped. Only a fresh start reads what is really there.
fn stop_process(why: &str) {
    tracing::error!(why, "the store cannot go on; stopping so that recovery starts from the disk");
    std::process::abort();
}

/// A write under way.
pub(super) struct Entry {
    write: Write,
    done: Option<Done>,
}

/// What submitters and the thread have in common.
pub(super) struct Shared {
    results: ArrayQueue<Entry>,
    accepts: ArrayQueue<Entry>,
    housekeeping: ArrayQueue<Entry>,
    /// How the thread is woken and stopped.
    pub(super) signal: Signal,
    /// The thread has ended; there is nothing to watch any more.
    ended: AtomicBool,
    /// The room on the disk is to be looked at. Set by anyone; cleared by the thread.
    look: AtomicBool,
    /// [`Pressure`], as a number; the thread's to set.
    pressure: AtomicU8,
    /// Free bytes when they were last looked at.
    free_bytes: AtomicU64,
    patience: Patience,
    /// Zero of `beat_us`.
    born: Instant,
    /// When the thread last moved, microseconds since `born`.
    beat_us: AtomicU64,
    commits: AtomicU64,
    rows_written: AtomicU64,
    bytes_written: AtomicU64,
    last_commit_us: AtomicU64,
    last_batch_rows: AtomicU64,
    outbox_expired: AtomicU64,
    /// Dead letters kept, as of the last commit; recovery says it first.
    pub(super) dead_letters: AtomicU64,
    dead_letters_expired: AtomicU64,
    /// Rows not believed, since the process began; recovery adds its own.
    pub(super) bad_rows: AtomicU64,
}

impl Shared {
    /// Whether a job may be accepted now. A part of the lane is for those who asked at the same
    /// time, and for sessions: who was told that there is room finds it.
    pub(super) fn has_room_for_accepts(&self) -> bool {
        let lane = &self.accepts;
        lane.len() < lane.capacity() - lane.capacity() / 8
            && self.pressure() < Pressure::NoJobs
            && self.health() < Health::Stuck
    }

    /// What the room on the disk asks for.
    pub(super) fn pressure(&self) -> Pressure {
        Pressure::ALL[usize::from(self.pressure.load(Relaxed))]
    }

    /// Whether the thread moves.
    pub(super) fn health(&self) -> Health {
        self.patience.health(self.silent())
    }

    /// How long the thread has not moved; one with nothing to do is not late.
    fn silent(&self) -> Duration {
        let idle = self.signal.is_sleeping() && self.queued() == 0;
        let since = self.now_us().saturating_sub(self.beat_us.load(Relaxed));
        if idle { Duration::ZERO } else { Duration::from_micros(since) }
    }

    /// Has the thread look at the room on the disk soon.
    pub(super) fn look_at_disk(&self) {
        self.look.store(true, SeqCst);
        self.signal.wake();
    }

    pub(super) fn new(options: &StoreOptions, patience: Patience) -> Self {
        Self {
            results: ArrayQueue::new(options.lane_results.max(1)),
            accepts: ArrayQueue::new(options.lane_accepts.max(1)),
            housekeeping: ArrayQueue::new(options.lane_housekeeping.max(1)),
            signal: Signal::new(),
            ended: AtomicBool::new(false),
            look: AtomicBool::new(false),
            pressure: AtomicU8::new(Pressure::None as u8),
            free_bytes: AtomicU64::new(0),
            patience,
            born: Instant::now(),
            beat_us: AtomicU64::new(0),
            commits: AtomicU64::new(0),
            rows_written: AtomicU64::new(0),
            bytes_written: AtomicU64::new(0),
            last_commit_us: AtomicU64::new(0),
            last_batch_rows: AtomicU64::new(0),
            outbox_expired: AtomicU64::new(0),
            dead_letters: AtomicU64::new(0),
            dead_letters_expired: AtomicU64::new(0),
            bad_rows: AtomicU64::new(0),
        }
    }

    /// Puts a write into its lane and wakes the thread, or hands the write back.
    #[allow(clippy::result_large_err, reason = "the write goes back to its owner, not to a log")]
    pub(super) fn submit(&self, write: Write, done: Option<Done>) -> Result<(), Refused> {
        self.leave(write, done)?;
        self.signal.wake();
        Ok(())
    }

    /// Puts a write into its lane, or hands it back.
    #[allow(clippy::result_large_err, reason = "the write goes back to its owner, not to a log")]
    pub(super) fn leave(&self, write: Write, done: Option<Done>) -> Result<(), Refused> {
        let Some(_inside) = self.signal.enter() else {
            return Err(Refused { write, done, why: Why::Stopped });
        };
        // What is accepted while nothing becomes durable would be a promise without a ground.
        if matches!(write, Write::AcceptJob { .. }) && self.pressure() == Pressure::Full {
            return Err(Refused { write, done, why: Why::Full });
        }
        let lane = match &write {
            Write::SettleJob { .. } | Write::Delivered { .. } | Write::Forfeit { .. } => {
                &self.results
            }
            Write::AcceptJob { .. } | Write::OpenSession(_) | Write::CloseSession(_) => {
                &self.accepts
            }
            Write::Node(_)
            | Write::Pools(_)
            | Write::Room(_)
            | Write::DropRoom(_)
            | Write::Key(_)
            | Write::DropDeadLetter(_) => &self.housekeeping,
        };
        let pushed = lane.push(Entry { write, done });
        pushed.map_err(|Entry { write, done }| Refused { write, done, why: Why::Full })
    }

    /// Refuses writes from now on, and has the thread finish those it has.
    pub(super) fn stop(&self) {
        self.signal.stop();
    }

    /// Parks until there is something to do.
    fn rest(&self) {
        self.signal.rest(|| self.queued() == 0 && !self.look.load(SeqCst));
    }

    /// Whether a stop was asked for and nothing more can come. The lanes are looked at last: a
    /// submitter that has left has filled its lane, and one yet to enter is refused.
    fn finished(&self) -> bool {
        self.signal.is_stopping() && self.signal.is_empty() && self.queued() == 0
    }

    pub(super) fn queued(&self) -> usize {
        self.results.len() + self.accepts.len() + self.housekeeping.len()
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// The thread has moved.
    fn beat(&self) {
        self.beat_us.store(self.now_us(), Relaxed);
    }

    /// Takes the figures of what was committed into account.
    fn note(&self, noted: &Noted, took_us: u64) {
        self.commits.fetch_add(1, Relaxed);
        self.rows_written.fetch_add(noted.rows, Relaxed);
        self.bytes_written.fetch_add(noted.bytes, Relaxed);
        self.last_commit_us.store(took_us, Relaxed);
        self.last_batch_rows.store(noted.writes, Release);
        self.bad_rows.fetch_add(noted.bad_rows, Relaxed);
        self.outbox_expired.fetch_add(noted.outbox_expired, Relaxed);
        self.dead_letters_expired.fetch_add(noted.dead_letters_expired, Relaxed);
        if let Some(kept) = noted.dead_letters {
            self.dead_letters.store(kept, Relaxed);
        }
    }

    /// The figures, but for the size of the file.
    pub(super) fn stats(&self) -> StoreStats {
        let queued = [self.results.len(), self.accepts.len(), self.housekeeping.len()];
        let beat_age_us = u64::try_from(self.silent().as_micros()).unwrap_or(u64::MAX);
        StoreStats {
            queued_results: queued[0],
            queued_accepts: queued[1],
            queued_housekeeping: queued[2],
            commits: self.commits.load(Relaxed),
            rows_written: self.rows_written.load(Relaxed),
            bytes_written: self.bytes_written.load(Relaxed),
            last_commit_us: self.last_commit_us.load(Relaxed),
            last_batch_rows: self.last_batch_rows.load(Relaxed),
            outbox_expired: self.outbox_expired.load(Relaxed),
            dead_letters: self.dead_letters.load(Relaxed),
            dead_letters_expired: self.dead_letters_expired.load(Relaxed),
            bad_rows: self.bad_rows.load(Relaxed),
            beat_age_us,
            pressure: self.pressure(),
            health: self.health(),
            free_bytes: self.free_bytes.load(Relaxed),
            file_bytes: 0,
            io: IoStats::default(),
        }
    }
}

/// Ends the process when the thread unwinds: without it writes would be taken and never made.
struct FailStop {
    shared: Arc<Shared>,
    fatal: Arc<dyn Fn(&str) + Send + Sync>,
}

impl Drop for FailStop {
    fn drop(&mut self) {
        self.shared.signal.close();
        self.shared.ended.store(true, SeqCst);
        if std::thread::panicking() {
            (self.fatal)("panic in the store's thread");
        }
    }
}

/// The thread's own state.
pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) engine: Engine,
    hooks: Hooks,
    watermarks: Watermarks,
    ballast_bytes: u64,
    /// The ballast was given up and is not there again: what is free is what it was kept for.
    on_ballast: bool,
    looked: Instant,
}

impl Writer {
    pub(super) fn new(
        shared: &Arc<Shared>,
        mut engine: Engine,
        hooks: Hooks,
        options: &StoreOptions,
    ) -> Self {
        engine.around_commit = Arc::clone(&hooks.around_commit);
        let mut writer = Self {
            shared: Arc::clone(shared),
            engine,
            hooks,
            watermarks: options.watermarks,
            ballast_bytes: options.ballast_bytes,
            on_ballast: false,
            looked: Instant::now(),
        };
        writer.look();
        writer
    }

    /// Makes writes durable until told to stop and nothing is left.
    pub(super) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let _fail_stop =
            FailStop { shared: Arc::clone(&shared), fatal: Arc::clone(&self.hooks.fatal) };
        loop {
            shared.beat();
            // Whoever asks more often than there is something to see is not answered.
            shared.look.store(false, SeqCst);
            if self.looked.elapsed() >= LOOK_EVERY {
                self.look();
            }
            let batch = Batch::fill(&shared);
            if !batch.writes.is_empty() {
                match self.commit(batch) {
                    Ok(()) => {}
                    Err(StoreError::Full { file }) => {
                        let file = file.display();
                        tracing::error!(%file, "stopped on a full disk; what waited is lost");
                        return;
                    }
                    Err(error) => return (self.hooks.fatal)(&error.to_string()),
                }
            } else if shared.finished() {
                return;
            } else if shared.signal.is_stopping() {
                // A submitter is half-way through; it takes nanoseconds and wakes nobody.
                std::thread::yield_now();
            } else {
                shared.rest();
            }
        }
    }

    /// One transaction: all of the batch or none of it, then the callbacks.
    fn commit(&mut self, batch: Batch) -> Result<(), StoreError> {
        let began = Instant::now();
        let now_ms = (self.hooks.now_ms)();
        let committed = match self.engine.commit(batch.writes, now_ms) {
            Err(StoreError::Full { .. }) => self.wait_for_room()?,
            outcome => outcome?,
        };
        self.note(began);
        tell(batch.dones, committed);
        Ok(())
    }

    /// Takes a commit that began then into account.
    pub(super) fn note(&mut self, began: Instant) {
        let took = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.shared.note(&self.engine.take_noted(), took);
    }

    /// A commit met a full disk: gives up the ballast and tries again, until there is room or the
    /// store is stopped. Nothing that was taken is dropped meanwhile, and nobody is told anything.
    fn wait_for_room(&mut self) -> Result<Vec<Committed>, StoreError> {
        self.shared.pressure.store(Pressure::Full as u8, Relaxed);
        let ballast = self.engine.drop_ballast();
        self.on_ballast |= ballast;
        tracing::error!(ballast, "the disk is full; the ballast is given up if there is one");
        let began = Instant::now();
        loop {
            self.shared.beat();
            match self.engine.retry() {
                Err(error @ StoreError::Full { .. }) => {
                    if self.shared.signal.is_stopping() {
                        return Err(error);
                    }
                }
                outcome => {
                    let committed = outcome?;
                    let after_ms = began.elapsed().as_millis();
                    tracing::warn!(after_ms, "there is room on the disk again");
                    self.look();
                    return Ok(committed);
                }
            }
            std::thread::park_timeout(LOOK_EVERY);
        }
    }

    /// Looks how much room there is, says what that asks for, and sets room aside where there is
    /// plenty.
    fn look(&mut self) {
        self.looked = Instant::now();
        let Some(space) = self.engine.space() else {
            // Where nothing can be told, only a full disk says so.
            self.shared.pressure.store(Pressure::None as u8, Relaxed);
            return;
        };
        self.keep_ballast(space);
        let space = self.engine.space().unwrap_or(space);
        self.shared.free_bytes.store(space.free, Relaxed);
        self.on_ballast &= self.ballast_bytes > 0 && !self.engine.has_ballast();
        let asked = self.watermarks.pressure(space);
        let now = if self.on_ballast { asked.max(Pressure::NoJobs) } else { asked };
        let before = self.shared.pressure();
        if before != now {
            let (free, now) = (space.free, now.as_str());
            tracing::warn!(free, before = before.as_str(), now, "room on the disk");
        }
        self.shared.pressure.store(now as u8, Relaxed);
    }

    /// The ballast is made only where it leaves room for work: it must not cause what it is for.
    fn keep_ballast(&mut self, space: Space) {
        let has = self.engine.has_ballast();
        if self.ballast_bytes == 0 {
            if has {
                self.engine.drop_ballast();
            }
        } else if !has
            && space.free >= self.ballast_bytes / 4 * 5 + self.watermarks.no_jobs.line(space.total)
        {
            self.engine.make_ballast();
        }
    }
}

/// Says that writes are durable, in their order.
pub(super) fn tell(dones: Vec<Option<Done>>, committed: Vec<Committed>) {
    for (done, committed) in dones.into_iter().zip(committed) {
        if let Some(done) = done {
            done(committed);
        }
    }
}

/// What one transaction is to hold, with whom to tell of each write.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) writes: Vec<Write>,
    pub(super) dones: Vec<Option<Done>>,
}

impl Batch {
    /// Moves the next batch out of the lanes.
    pub(super) fn fill(shared: &Shared) -> Self {
        let mut batch = Self::default();
        let mut bytes = 0;
        for lane in [&shared.results, &shared.accepts, &shared.housekeeping] {
            while batch.writes.len() < BATCH_ROWS_MAX && bytes < BATCH_BYTES_MAX {
                let Some(Entry { write, done }) = lane.pop() else { break };
                bytes += weight(&write);
                batch.writes.push(write);
                batch.dones.push(done);
            }
        }
        batch
    }
}

/// About how many bytes a write brings; only the parts that can be large are looked at.
fn weight(write: &Write) -> usize {
    const SMALL: usize = 512;
    SMALL
        + match write {
            Write::AcceptJob { audio, .. } => audio.held_len(),
            Write::SettleJob { terminal, outbox, heard, .. } => {
                let heard = heard.iter().map(|heard| heard.listeners.len() * heard.frame.len());
                let outbox = outbox.as_ref().map_or(0, Bytes::len);
                terminal.explanation.len() + outbox + heard.sum::<usize>()
            }
            Write::Pools(row) => row.text.len(),
            _ => 0,
        }
}

/// Ends the process when the store's thread has not moved for too long: it has promised answers
/// that will not come, and a fresh start gives them. It has a thread of its own and needs nothing
/// of the one it watches.
pub(super) fn watch(shared: &Shared, fatal: &(dyn Fn(&str) + Send + Sync)) {
    let every = (shared.patience.lost / 20).min(Duration::from_secs(1));
    let mut looks = 0;
    while !shared.ended.load(SeqCst) {
        // Several looks in a row: a process that was stopped for a minute and goes on is not lost.
        looks = if shared.health() == Health::Lost { looks + 1 } else { 0 };
        if looks == LOST_LOOKS {
            return fatal("the store's thread does not move");
        }
        std::thread::park_timeout(every);
    }
}
