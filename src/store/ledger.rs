//! What a write means for the tables, and the little that must be remembered between
//! transactions.
//!
//! Everything a transaction changes in memory is kept apart until its commit is known: a
//! transaction that did not happen leaves no trace here. The ledger knows nothing of threads, and
//! nothing of why a job ended.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};

use foldhash::HashMap;
use redb::ReadableTable;

use super::codec;
use super::record::*;
use super::tables::{ONLY, Tables, TakenJob};
use super::{Committed, StoreError, StoreOptions, Write};
use crate::protocol::ids::{JobId, SessionId};
use crate::protocol::job::{Audio, ChunkMark, Heard};

/// Old rows of each kind forgotten with one commit, beside two for every job it ends: retention
/// keeps pace with the work and never makes a transaction of its own size.
const PRUNE_ROWS: usize = 64;
/// Jobs remembered as ended before their acceptance arrived. An acceptance trails by no more than
/// its lane holds; the default lane is half of this.
const EARLY_ENDS_MAX: usize = 65_536;
/// First sequence number of every session, so that 0 can mean "has received nothing".
pub(super) const FIRST_SEQ: u64 = 1;

/// What the writes mean for the tables.
pub(super) struct Ledger {
    keep_audio: bool,
    terminal_retention_ms: u64,
    terminal_rows_max: u64,
    outbox_retention_ms: u64,
    dead_letter_retention_ms: u64,
    dead_letters_max: u64,
    /// Before this moment nothing is too old, Unix milliseconds.
    expires_from_ms: u64,
    early_ends: EarlyEnds,
    batch: Batch,
}

/// What one transaction has done so far. Its maps have an order, so that a simulation that does
/// the same twice sees the same twice.
struct Batch {
    counters: CountersRow,
    /// Progress of the sessions touched: as it is stored, and as it is to be.
    progress: BTreeMap<u64, Held>,
    /// Early ends since the transaction began; None for one whose acceptance came.
    early_ends: BTreeMap<u128, Option<EarlyEnd>>,
    /// Jobs ended; sets how much may be pruned.
    settled: usize,
    /// Dead letters made; likewise.
    buried: usize,
    noted: Noted,
}

struct Held {
    stored: Option<ProgressRow>,
    row: ProgressRow,
}

/// What transactions came to, beside what was asked for.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Noted {
    /// Writes.
    pub(super) writes: u64,
    /// Rows put.
    pub(super) rows: u64,
    /// Bytes of their values.
    pub(super) bytes: u64,
    /// Rows not believed.
    pub(super) bad_rows: u64,
    /// Frames given up because nobody came for them.
    pub(super) outbox_expired: u64,
    /// Dead letters given up.
    pub(super) dead_letters_expired: u64,
    /// Dead letters kept; none where nothing was committed.
    pub(super) dead_letters: Option<u64>,
}

impl Noted {
    /// Takes in what a later transaction came to.
    pub(super) fn add(&mut self, later: Noted) {
        self.writes += later.writes;
        self.rows += later.rows;
        self.bytes += later.bytes;
        self.bad_rows += later.bad_rows;
        self.outbox_expired += later.outbox_expired;
        self.dead_letters_expired += later.dead_letters_expired;
        self.dead_letters = later.dead_letters.or(self.dead_letters);
    }
}

/// A job that ended before its acceptance arrived.
#[derive(Debug, Clone, Copy)]
struct EarlyEnd {
    /// The dead letter that is to get its job and audio.
    letter: Option<u64>,
}

/// What becomes a dead letter.
struct Burial<'a> {
    job: JobId,
    session: SessionId,
    utterance_index: u64,
    why: &'a str,
    code: String,
    message: String,
    seq: Option<u64>,
    frame: Option<Vec<u8>>,
    job_row: Option<JobRow>,
    /// In its stored form.
    audio: Option<Vec<u8>>,
}

impl Ledger {
    pub(super) fn new(options: &StoreOptions, now_ms: u64) -> Self {
        Self {
            keep_audio: options.keep_audio,
            terminal_retention_ms: options.terminal_retention_ms,
            terminal_rows_max: options.terminal_rows_max,
            outbox_retention_ms: options.outbox_retention_ms,
            dead_letter_retention_ms: options.dead_letter_retention_ms,
            dead_letters_max: options.dead_letters_max,
            expires_from_ms: now_ms.saturating_add(options.expiry_pause_ms),
            early_ends: EarlyEnds::default(),
            batch: Batch::new(CountersRow { commits: 0, next_dead_letter: 1 }),
        }
    }

    /// Begins a transaction. Whatever is left of one before did not happen.
    pub(super) fn begin(&mut self, tables: &Tables<'_>) -> Result<(), StoreError> {
        self.batch = Batch::new(tables.counters()?);
        Ok(())
    }

    /// Applies one write.
    pub(super) fn apply(
        &mut self,
        tables: &mut Tables<'_>,
        write: &Write,
        now_ms: u64,
    ) -> Result<Committed, StoreError> {
        match write {
            Write::SettleJob { terminal, outbox, heard, dead, refused } => {
                let (frame, dead, refused) = (outbox.as_deref(), *dead, *refused);
                let end = End { terminal, frame, heard, dead, refused };
                return self.settle(tables, end, now_ms);
            }
            Write::Delivered { session, through_seq } => tables.deliver(session.0, *through_seq)?,
            Write::Forfeit { session, through_seq, why } => {
                self.forfeit(tables, session.0, (*through_seq, usize::MAX), why, now_ms)?;
            }
            Write::AcceptJob { row, audio, idempotency } => {
                if let Some(key) = idempotency {
                    tables.put_idempotency(key)?;
                }
                self.accept(tables, row, audio, now_ms)?;
            }
            Write::OpenSession(row) => {
                let value = tables.sealed(row);
                tables.sessions.insert(row.id.0, value.as_slice())?;
                self.progress(tables, row.id, now_ms)?.idle_since_ms = None;
            }
            Write::CloseSession(session) => self.close_session(tables, *session, now_ms)?,
            Write::Node(row) => tables.put_node(row)?,
            Write::Pools(row) => {
                let value = tables.sealed(row);
                tables.pools.insert(ONLY, value.as_slice())?;
            }
            Write::Room(row) => {
                let value = tables.sealed(row);
                tables.rooms.insert(row.code.0, value.as_slice())?;
            }
            Write::Key(row) => {
                let value = tables.sealed(row);
                tables.keys.insert(row.id, value.as_slice())?;
            }
            Write::DropRoom(code) => drop(tables.rooms.remove(code.0)?),
            Write::DropDeadLetter(id) => tables.drop_dead_letter(*id)?,
        }
        Ok(Committed::default())
    }

    /// What belongs to the transaction and to no single write.
    pub(super) fn close_batch(
        &mut self,
        tables: &mut Tables<'_>,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        for (session, Held { stored, row }) in std::mem::take(&mut self.batch.progress) {
            put_progress(tables, session, stored.as_ref(), &row)?;
        }
        let rows = PRUNE_ROWS + 2 * self.batch.settled;
        // Where the clock is younger than the retention, nothing is old.
        let expires = now_ms >= self.expires_from_ms;
        let before_ms = |kept_ms| now_ms.checked_sub(kept_ms).filter(|_| expires);
        let ended = before_ms(self.terminal_retention_ms);
        repeat(rows, || tables.prune_terminal(ended, self.terminal_rows_max))?;
        if expires {
            repeat(rows, || tables.prune_idempotency(now_ms))?;
        }
        if let Some(idle) = before_ms(self.outbox_retention_ms) {
            self.prune_idle(tables, idle, rows, now_ms)?;
        }
        let came = before_ms(self.dead_letter_retention_ms);
        let rows = rows + self.batch.buried;
        let expired = repeat(rows, || tables.prune_dead_letter(came, self.dead_letters_max))?;
        self.batch.noted.dead_letters_expired += expired;
        self.batch.noted.dead_letters = Some(tables.dead_letters_len()?);
        self.batch.counters.commits += 1;
        tables.put_counters(&self.batch.counters)?;
        (self.batch.noted.rows, self.batch.noted.bytes) = (tables.rows_put, tables.bytes_put);
        Ok(())
    }

    /// The transaction's number: whether it is stored tells whether it happened.
    pub(super) fn commit_number(&self) -> u64 {
        self.batch.counters.commits
    }

    /// The transaction has happened: what it changed in memory counts from now on.
    pub(super) fn committed(&mut self) -> Noted {
        for (id, end) in std::mem::take(&mut self.batch.early_ends) {
            match end {
                Some(end) => self.early_ends.insert(id, end),
                None => self.early_ends.remove(id),
            }
        }
        std::mem::take(&mut self.batch.noted)
    }

    /// The first end of a job wins; another changes nothing and is owed nothing.
    fn settle(
        &mut self,
        tables: &mut Tables<'_>,
        End { terminal, frame, heard, dead, refused }: End<'_>,
        now_ms: u64,
    ) -> Result<Committed, StoreError> {
        let id = terminal.id.0;
        if tables.terminals.get(id)?.is_some() {
            return Ok(Committed { ended_before: true, ..Committed::default() });
        }
        self.batch.settled += 1;
        tables.put_terminal(terminal)?;
        let job = tables.take_job(id, dead)?;
        if job.is_none() && refused.is_none() {
            self.batch.early_ends.insert(id, Some(EarlyEnd { letter: None }));
        }
        let progress = self.progress(tables, terminal.session, now_ms)?;
        progress.chunks = progress.chunks.max(refused);
        let behind = terminal.utterance_index.saturating_add(1);
        progress.next_index = progress.next_index.max(behind);
        let owed = frame.map(|frame| self.owe(tables, terminal, terminal.session, frame, now_ms));
        let seq = owed.transpose()?;
        let mut heard_seqs = Vec::new();
        for Heard { listeners, frame } in heard {
            for listener in listeners {
                heard_seqs.push(self.owe(tables, terminal, *listener, frame, now_ms)?);
            }
        }
        if dead {
            self.bury_job(tables, terminal, job, seq, now_ms)?;
        }
        Ok(Committed { outbox_seq: seq, heard_seqs, ended_before: false })
    }

    /// A session is owed a frame about the end of a job, of its own or of another that it listened
    /// to. Returns the frame's number.
    fn owe(
        &mut self,
        tables: &mut Tables<'_>,
        of: &TerminalRow,
        session: SessionId,
        frame: &[u8],
        now_ms: u64,
    ) -> Result<u64, StoreError> {
        let progress = self.progress(tables, session, now_ms)?;
        let seq = progress.next_seq;
        progress.next_seq += 1;
        tables.put_outbox(&OutboxRow {
            session,
            seq,
            job: of.id,
            utterance_index: of.utterance_index,
            created_unix_ms: now_ms,
            frame: frame.to_vec(),
        })?;
        Ok(seq)
    }

    /// Keeps a job that has just ended as a dead letter. Where its acceptance is still to come,
    /// job and audio are added then.
    fn bury_job(
        &mut self,
        tables: &mut Tables<'_>,
        of: &TerminalRow,
        job: Option<TakenJob>,
        seq: Option<u64>,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        let early = job.is_none();
        let TakenJob { row, audio } = job.unwrap_or_default();
        let job_row = match codec::decode::<JobRow>(&row) {
            Ok(row) => Some(row),
            Err(_) if early => None,
            Err(error) => {
                self.batch.noted.bad_rows += 1;
                tracing::error!(job = %of.id, %error, "a job cannot be kept as a dead letter");
                None
            }
        };
        let burial = Burial {
            job: of.id,
            session: of.session,
            utterance_index: of.utterance_index,
            why: "failed",
            code: of.code.clone(),
            message: of.message.clone(),
            seq,
            frame: None,
            job_row,
            audio,
        };
        let letter = self.bury(tables, burial, now_ms)?;
        if early {
            self.batch.early_ends.insert(of.id.0, Some(EarlyEnd { letter: Some(letter) }));
        }
        Ok(())
    }

    fn accept(
        &mut self,
        tables: &mut Tables<'_>,
        row: &JobRow,
        audio: &Audio,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        let progress = self.progress(tables, row.spec.session, now_ms)?;
        let behind = row.spec.utterance_index.saturating_add(1);
        progress.next_index = progress.next_index.max(behind);
        progress.chunks = progress.chunks.max(row.chunks);
        let id = row.id.0;
        // The terminal row is the proof that the job ended; the memory beside it holds where
        // retention was quicker than the acceptance, and knows the dead letter that waits.
        let early_end = self.take_early_end(id);
        let letter = match early_end {
            Some(end) => end.letter,
            None if tables.terminals.get(id)?.is_some() => None,
            None => {
                let (row, audio) = self.sealed_job(row, audio);
                if let Some(audio) = audio {
                    tables.count(&audio);
                    tables.audio.insert(id, audio.as_slice())?;
                }
                let value = tables.sealed(&row);
                tables.jobs.insert(id, value.as_slice())?;
                return Ok(());
            }
        };
        let letter = match letter {
            Some(letter) => tables.dead_letter(letter)?,
            None => None,
        };
        if let Some(mut letter) = letter {
            let (row, audio) = self.sealed_job(row, audio);
            letter.audio_bytes = row.audio_bytes;
            letter.job_row = Some(row);
            tables.put_dead_letter(&letter, audio.as_deref())?;
        }
        Ok(())
    }

    /// A job's row as it is stored, with its audio's stored form if audio is kept.
    fn sealed_job(&mut self, row: &JobRow, audio: &Audio) -> (JobRow, Option<Vec<u8>>) {
        let mut row = row.clone();
        if !self.keep_audio {
            return (row, None);
        }
        let Some(sealed) = codec::encode_audio(audio) else {
            self.batch.noted.bad_rows += 1;
            tracing::warn!(job = %row.id, "audio is not base64; job kept without it");
            return (row, None);
        };
        (row.audio_crc, row.audio_bytes) = (sealed.crc, sealed.bytes);
        (row, Some(sealed.value))
    }

    /// What is owed stays, until it is delivered or too old; and so does the numbering, for jobs
    /// that have yet to end.
    fn close_session(
        &mut self,
        tables: &mut Tables<'_>,
        session: SessionId,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        tables.sessions.remove(session.0)?;
        let known = self.batch.progress.contains_key(&session.0);
        if known || tables.progress.get(session.0)?.is_some() {
            let progress = self.progress(tables, session, now_ms)?;
            progress.idle_since_ms = progress.idle_since_ms.or(Some(now_ms));
        }
        Ok(())
    }

    /// The progress of a session, to be changed. One that is not known (its opening is still in
    /// the other lane, or is forgotten) goes on behind what it is owed, or begins. One that is not
    /// open has been heard of now.
    fn progress(
        &mut self,
        tables: &Tables<'_>,
        session: SessionId,
        now_ms: u64,
    ) -> Result<&mut ProgressRow, StoreError> {
        let row = match self.batch.progress.entry(session.0) {
            Entry::Occupied(held) => &mut held.into_mut().row,
            Entry::Vacant(place) => {
                let stored = tables.progress(session.0)?;
                let row = match &stored {
                    Some(row) => row.clone(),
                    None => ProgressRow {
                        session,
                        next_seq: tables.last_owed(session.0)?.map_or(FIRST_SEQ, |last| last + 1),
                        next_index: 0,
                        chunks: None,
                        idle_since_ms: Some(now_ms),
                    },
                };
                &mut place.insert(Held { stored, row }).row
            }
        };
        row.idle_since_ms = row.idle_since_ms.map(|since| since.max(now_ms));
        Ok(row)
    }

    /// Frames owed to a session become dead letters: up to a number, and at most so many. Returns
    /// how many did, and whether nothing of it is left.
    fn forfeit(
        &mut self,
        tables: &mut Tables<'_>,
        session: u64,
        (through_seq, limit): (u64, usize),
        why: &str,
        now_ms: u64,
    ) -> Result<(usize, bool), StoreError> {
        let taken = tables.take_owed(session, through_seq, limit)?;
        self.batch.noted.bad_rows += taken.bad;
        let count = taken.rows.len() + taken.bad as usize;
        for row in taken.rows {
            let (code, message) = tables.last_words(row.job.0)?;
            let burial = Burial {
                job: row.job,
                session: row.session,
                utterance_index: row.utterance_index,
                why,
                code,
                message,
                seq: Some(row.seq),
                frame: Some(row.frame),
                job_row: None,
                audio: None,
            };
            self.bury(tables, burial, now_ms)?;
        }
        Ok((count, taken.all))
    }

    fn bury(
        &mut self,
        tables: &mut Tables<'_>,
        burial: Burial<'_>,
        now_ms: u64,
    ) -> Result<u64, StoreError> {
        let id = self.batch.counters.next_dead_letter;
        self.batch.counters.next_dead_letter += 1;
        self.batch.buried += 1;
        let row = DeadLetterRow {
            id,
            job: burial.job,
            session: burial.session,
            utterance_index: burial.utterance_index,
            why: burial.why.to_owned(),
            code: burial.code,
            message: burial.message,
            created_unix_ms: now_ms,
            seq: burial.seq,
            frame: burial.frame,
            audio_bytes: burial.job_row.as_ref().map_or(0, |row| row.audio_bytes),
            job_row: burial.job_row,
        };
        tables.put_dead_letter(&row, burial.audio.as_deref())?;
        Ok(id)
    }

    /// Gives up what sessions are owed that have not been heard of since `before_ms`, and then
    /// what is known of them.
    fn prune_idle(
        &mut self,
        tables: &mut Tables<'_>,
        before_ms: u64,
        rows: usize,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        let mut left = rows;
        while left > 0
            && let Some((since, session)) = tables.first_idle(before_ms)?
        {
            let (count, all) =
                self.forfeit(tables, session, (u64::MAX, left), "unclaimed", now_ms)?;
            self.batch.noted.outbox_expired += count as u64;
            left = left.saturating_sub(count.max(1));
            if all {
                tables.idle_times.remove((since, session))?;
                tables.progress.remove(session)?;
            }
        }
        Ok(())
    }

    /// Whether a job ended before its acceptance, which has now come.
    fn take_early_end(&mut self, id: u128) -> Option<EarlyEnd> {
        let end = match self.batch.early_ends.get(&id) {
            Some(end) => *end,
            None => self.early_ends.get(id),
        };
        if end.is_some() {
            self.batch.early_ends.insert(id, None);
        }
        end
    }
}

impl Batch {
    fn new(counters: CountersRow) -> Self {
        Self {
            counters,
            progress: BTreeMap::new(),
            early_ends: BTreeMap::new(),
            settled: 0,
            buried: 0,
            noted: Noted::default(),
        }
    }
}

/// How a job ends.
struct End<'a> {
    terminal: &'a TerminalRow,
    /// What its session is owed for it.
    frame: Option<&'a [u8]>,
    /// What others are owed for it.
    heard: &'a [Heard],
    /// Whether the job is kept as a dead letter.
    dead: bool,
    /// Of what was refused: its mark in the audio stream.
    refused: Option<ChunkMark>,
}

/// Stores the progress of a session, and its place among those that are not open.
pub(super) fn put_progress(
    tables: &mut Tables<'_>,
    session: u64,
    stored: Option<&ProgressRow>,
    row: &ProgressRow,
) -> Result<(), StoreError> {
    if stored == Some(row) {
        return Ok(());
    }
    let value = tables.sealed(row);
    tables.progress.insert(session, value.as_slice())?;
    let before = stored.and_then(|row| row.idle_since_ms);
    if before == row.idle_since_ms {
        return Ok(());
    }
    if let Some(since) = before {
        tables.idle_times.remove((since, session))?;
    }
    if let Some(since) = row.idle_since_ms {
        tables.idle_times.insert((since, session), ())?;
    }
    Ok(())
}

/// Repeats a step until it finds nothing to do, at most `times`; returns how often it did.
fn repeat(
    times: usize,
    mut step: impl FnMut() -> Result<bool, StoreError>,
) -> Result<u64, StoreError> {
    for done in 0..times {
        if !step()? {
            return Ok(done as u64);
        }
    }
    Ok(times as u64)
}

/// The jobs that ended before their acceptance was seen, oldest first, bounded: an acceptance
/// that was refused at its lane never comes to take its entry away.
#[derive(Default)]
struct EarlyEnds {
    ends: HashMap<u128, EarlyEnd>,
    order: VecDeque<u128>,
}

impl EarlyEnds {
    fn insert(&mut self, id: u128, end: EarlyEnd) {
        self.ends.insert(id, end);
        self.order.push_back(id);
        if self.order.len() > EARLY_ENDS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.ends.remove(&oldest);
        }
    }

    fn get(&self, id: u128) -> Option<EarlyEnd> {
        self.ends.get(&id).copied()
    }

    fn remove(&mut self, id: u128) {
        self.ends.remove(&id);
    }
}
