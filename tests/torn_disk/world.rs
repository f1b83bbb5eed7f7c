//! What the store ought to hold, kept in plain maps by a second reading of its promises.

use std::collections::BTreeMap;

use bytes::Bytes;
use utterd::protocol::job::{Audio, ChunkMark, Heard};
use utterd::protocol::{JobId, SessionId};
use utterd::store::*;

/// The limits of the stores under test: small, so that every kind of retention happens.
pub fn options() -> StoreOptions {
    StoreOptions {
        terminal_retention_ms: 5_000,
        terminal_rows_max: 40,
        outbox_retention_ms: 1_000,
        dead_letter_retention_ms: 4_000,
        dead_letters_max: 12,
        ballast_bytes: 64 << 10,
        ..StoreOptions::default()
    }
}

/// How far a session has come.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    pub next_seq: u64,
    pub next_index: u64,
    pub chunks: Option<ChunkMark>,
    /// Since when it is not open.
    pub idle: Option<u64>,
}

/// Everything that is stored.
#[derive(Clone, Debug, Default)]
pub struct World {
    pub sessions: BTreeMap<u64, SessionRow>,
    pub progress: BTreeMap<u64, Progress>,
    pub jobs: BTreeMap<u128, (JobRow, Bytes)>,
    pub terminals: BTreeMap<u128, TerminalRow>,
    pub outbox: BTreeMap<(u64, u64), OutboxRow>,
    pub idempotency: BTreeMap<u128, IdemRow>,
    pub nodes: BTreeMap<String, NodeRow>,
    pub pools: Option<PoolConfigRow>,
    pub rooms: BTreeMap<u32, RoomRow>,
    pub keys: BTreeMap<u64, KeyRow>,
    pub letters: BTreeMap<u64, (DeadLetterRow, Option<Bytes>)>,
    pub last_letter: u64,
    /// Jobs that ended before their acceptance, each with the letter that waits for it. Memory of
    /// a process, which a crash takes.
    pub early: BTreeMap<u128, Option<u64>>,
}

impl World {
    /// A batch, with all that belongs to its transaction.
    pub fn apply(&mut self, writes: &[Write], now: u64) -> Vec<Committed> {
        let answers = writes.iter().map(|write| self.write(write, now)).collect();
        self.forget(now);
        answers
    }

    fn write(&mut self, write: &Write, now: u64) -> Committed {
        let mut answer = Committed::default();
        match write {
            Write::OpenSession(row) => {
                self.touch(row.id.0, now).idle = None;
                self.sessions.insert(row.id.0, row.clone());
            }
            Write::CloseSession(id) => {
                self.sessions.remove(&id.0);
                if self.progress.contains_key(&id.0) {
                    let progress = self.touch(id.0, now);
                    progress.idle = progress.idle.or(Some(now));
                }
            }
            Write::AcceptJob { row, audio, idempotency } => {
                self.accept(row, audio.raw().into_owned().into(), now);
                if let Some(key) = idempotency {
                    self.idempotency.insert(key.key, key.clone());
                }
            }
            Write::SettleJob { terminal, outbox, heard, dead, refused } => {
                let frames = (outbox.as_ref(), heard.as_slice());
                answer = self.settle(terminal, frames, (*dead, *refused), now);
            }
            Write::Delivered { session, through_seq } => {
                self.outbox.retain(|(s, seq), _| *s != session.0 || seq > through_seq);
            }
            Write::Forfeit { session, through_seq, why } => {
                self.give_up(session.0, *through_seq, why, now);
            }
            Write::Node(row) => drop(self.nodes.insert(row.id.to_string(), row.clone())),
            Write::Pools(row) => self.pools = Some(row.clone()),
            Write::Room(row) => drop(self.rooms.insert(row.code.0, row.clone())),
            Write::Key(row) => drop(self.keys.insert(row.id, row.clone())),
            Write::DropRoom(code) => drop(self.rooms.remove(&code.0)),
            Write::DropDeadLetter(id) => drop(self.letters.remove(id)),
        }
        answer
    }

    fn touch(&mut self, session: u64, now: u64) -> &mut Progress {
        let owed = self.outbox.range((session, 0)..=(session, u64::MAX)).next_back();
        let fresh = Progress {
            next_seq: owed.map_or(1, |((_, seq), _)| seq + 1),
            next_index: 0,
            chunks: None,
            idle: Some(now),
        };
        let progress = self.progress.entry(session).or_insert(fresh);
        progress.idle = progress.idle.map(|_| now);
        progress
    }

    fn accept(&mut self, row: &JobRow, audio: Bytes, now: u64) {
        let progress = self.touch(row.spec.session.0, now);
        progress.next_index = progress.next_index.max(row.spec.utterance_index + 1);
        progress.chunks = progress.chunks.max(row.chunks);
        let mut row = row.clone();
        (row.audio_bytes, row.audio_crc) = (audio.len() as u32, crc32c::crc32c(&audio));
        match self.early.remove(&row.id.0) {
            None if self.terminals.contains_key(&row.id.0) => {}
            None => drop(self.jobs.insert(row.id.0, (row, audio))),
            Some(letter) => {
                let kept = letter.and_then(|letter| self.letters.get_mut(&letter));
                if let Some((letter, sound)) = kept {
                    letter.audio_bytes = row.audio_bytes;
                    letter.job_row = Some(row);
                    *sound = Some(audio);
                }
            }
        }
    }

    fn settle(
        &mut self,
        end: &TerminalRow,
        (frame, heard): (Option<&Bytes>, &[Heard]),
        (dead, refused): (bool, Option<ChunkMark>),
        now: u64,
    ) -> Committed {
        if self.terminals.contains_key(&end.id.0) {
            return Committed { ended_before: true, ..Committed::default() };
        }
        self.terminals.insert(end.id.0, end.clone());
        let job = self.jobs.remove(&end.id.0);
        let progress = self.touch(end.session.0, now);
        progress.next_index = progress.next_index.max(end.utterance_index + 1);
        progress.chunks = progress.chunks.max(refused);
        let seq = frame.map(|frame| self.owe(end, end.session, frame, now));
        let mut heard_seqs = Vec::new();
        for one in heard {
            let owe = |listener: &SessionId| self.owe(end, *listener, &one.frame, now);
            heard_seqs.extend(one.listeners.iter().map(owe));
        }
        let early = job.is_none() && (dead || refused.is_none());
        let letter = dead.then(|| {
            let letter = self.letter(end.id, end.session, end.utterance_index, "failed", now);
            letter.0.seq = seq;
            letter.0.audio_bytes = job.as_ref().map_or(0, |(row, _)| row.audio_bytes);
            letter.1 = job.as_ref().map(|(_, audio)| audio.clone());
            letter.0.job_row = job.map(|(row, _)| row);
            letter.0.id
        });
        if early {
            self.early.insert(end.id.0, letter);
        }
        Committed { outbox_seq: seq, heard_seqs, ended_before: false }
    }

    fn owe(&mut self, end: &TerminalRow, session: SessionId, frame: &Bytes, now: u64) -> u64 {
        let progress = self.touch(session.0, now);
        let seq = progress.next_seq;
        progress.next_seq += 1;
        let row = OutboxRow {
            session,
            seq,
            job: end.id,
            utterance_index: end.utterance_index,
            created_unix_ms: now,
            frame: frame.to_vec(),
        };
        self.outbox.insert((session.0, seq), row);
        seq
    }

    fn letter(
        &mut self,
        job: JobId,
        session: SessionId,
        utterance_index: u64,
        why: &str,
        now: u64,
    ) -> &mut (DeadLetterRow, Option<Bytes>) {
        self.last_letter += 1;
        let end = self.terminals.get(&job.0);
        let row = DeadLetterRow {
            id: self.last_letter,
            job,
            session,
            utterance_index,
            why: why.to_owned(),
            code: end.map(|end| end.code.clone()).unwrap_or_default(),
            message: end.map(|end| end.message.clone()).unwrap_or_default(),
            created_unix_ms: now,
            seq: None,
            frame: None,
            job_row: None,
            audio_bytes: 0,
        };
        self.letters.entry(self.last_letter).or_insert((row, None))
    }

    fn give_up(&mut self, session: u64, through: u64, why: &str, now: u64) {
        let owed = self.outbox.range((session, 0)..=(session, through));
        let owed: Vec<OutboxRow> = owed.map(|(_, row)| row.clone()).collect();
        for row in owed {
            self.outbox.remove(&(session, row.seq));
            let letter = self.letter(row.job, row.session, row.utterance_index, why, now);
            (letter.0.seq, letter.0.frame) = (Some(row.seq), Some(row.frame));
        }
    }

    /// What is too old, or too much. Batches are small, so all of it goes at once.
    fn forget(&mut self, now: u64) {
        let limits = options();
        let before = |retention: u64| now.checked_sub(retention);
        while let Some((id, end)) = self.terminals.first_key_value() {
            let old = before(limits.terminal_retention_ms);
            let old = old.is_some_and(|before| end.settled_unix_ms <= before);
            if !old && self.terminals.len() as u64 <= limits.terminal_rows_max {
                break;
            }
            let id = *id;
            self.terminals.remove(&id);
        }
        self.idempotency.retain(|_, key| key.expires_unix_ms > now);
        let idle = self.progress.iter().filter_map(|(id, row)| row.idle.map(|since| (since, *id)));
        let mut idle: Vec<_> = idle.collect();
        idle.sort_unstable();
        for (since, session) in idle {
            if before(limits.outbox_retention_ms).is_some_and(|before| since <= before) {
                self.give_up(session, u64::MAX, "unclaimed", now);
                self.progress.remove(&session);
            }
        }
        while let Some((id, (letter, _))) = self.letters.first_key_value() {
            let old = before(limits.dead_letter_retention_ms);
            let old = old.is_some_and(|before| letter.created_unix_ms <= before);
            if !old && self.letters.len() as u64 <= limits.dead_letters_max {
                break;
            }
            let id = *id;
            self.letters.remove(&id);
        }
    }

    /// The first difference between this world and what a recovery and the store's reader say.
    pub fn differs(&self, found: &Recovered, reader: &Reader, now: u64) -> Option<String> {
        let jobs: BTreeMap<u128, (JobRow, Bytes)> = found
            .jobs
            .iter()
            .map(|job| (job.row.id.0, (job.row.clone(), job.audio.clone().unwrap_or_default())))
            .collect();
        let keys: Vec<&IdemRow> =
            self.idempotency.values().filter(|key| key.expires_unix_ms > now).collect();
        let counts = (found.outbox_rows, found.dead_letters, found.bad_rows);
        let wanted = (self.outbox.len() as u64, self.letters.len() as u64, 0);
        let sessions: Vec<RecoveredSession> =
            self.sessions.values().map(|s| self.seen(s)).collect();
        let nodes: Vec<NodeRow> = self.nodes.values().cloned().collect();
        if jobs != self.jobs {
            return Some(format!("jobs {:?}, not {:?}", jobs.keys(), self.jobs.keys()));
        } else if found.sessions != sessions {
            return Some(format!("sessions {:?}, not {sessions:?}", found.sessions));
        } else if found.idempotency.iter().collect::<Vec<_>>() != keys {
            return Some(format!("keys {:?}, not {keys:?}", found.idempotency));
        } else if counts != wanted {
            return Some(format!("frames, letters, bad rows {counts:?}, not {wanted:?}"));
        } else if found.nodes != nodes || found.pools != self.pools {
            return Some("nodes or pools".to_owned());
        } else if !found.keys.iter().eq(self.keys.values()) {
            return Some(format!("keys of doors {:?}, not {:?}", found.keys, self.keys));
        } else if !found.rooms.iter().eq(self.rooms.values()) {
            return Some(format!("rooms {:?}, not {:?}", found.rooms, self.rooms));
        }
        self.differs_within(reader)
    }

    fn seen(&self, row: &SessionRow) -> RecoveredSession {
        let progress = &self.progress[&row.id.0];
        let owed = || self.outbox.range((row.id.0, 0)..=(row.id.0, u64::MAX));
        let first = owed().next().map(|((_, seq), _)| *seq);
        RecoveredSession {
            row: row.clone(),
            next_seq: progress.next_seq,
            next_index: progress.next_index,
            chunks: progress.chunks,
            owed: first.zip(owed().next_back().map(|((_, seq), _)| *seq)),
            owed_bytes: owed().map(|(_, row)| row.frame.len() as u64).sum(),
        }
    }

    fn differs_within(&self, reader: &Reader) -> Option<String> {
        for session in 0..super::SESSIONS {
            let found = reader.outbox(SessionId(session), 0, 1_000);
            let rows = self.outbox.range((session, 0)..=(session, u64::MAX));
            let wanted: Vec<OutboxRow> = rows.map(|(_, row)| row.clone()).collect();
            if !found.as_ref().is_ok_and(|found| *found == wanted) {
                return Some(format!("owed to {session}: {found:?}, not {wanted:?}"));
            }
        }
        let letters = reader.dead_letters(0, 1_000);
        let wanted: Vec<DeadLetterRow> = self.letters.values().map(|l| l.0.clone()).collect();
        if !letters.as_ref().is_ok_and(|letters| *letters == wanted) {
            return Some(format!("letters {letters:?}, not {wanted:?}"));
        }
        for (id, wanted) in &self.letters {
            let found = reader.dead_letter(*id);
            if !found.as_ref().is_ok_and(|found| found.as_ref() == Some(wanted)) {
                return Some(format!("letter {id} {found:?}"));
            }
        }
        None
    }

    /// Whether the ends of these jobs are what they should be.
    pub fn ends_differ(&self, reader: &Reader, jobs: std::ops::Range<u128>) -> Option<String> {
        for id in jobs {
            let found = reader.terminal(JobId(id));
            if !found.as_ref().is_ok_and(|found| found.as_ref() == self.terminals.get(&id)) {
                return Some(format!("the end of {id}: {found:?}"));
            }
        }
        None
    }
}

/// The audio of a job, told by its id.
pub fn audio(id: u128) -> Audio {
    let raw = vec![id as u8; 50 + (id as usize * 977) % 6_000];
    match id % 3 {
        0 => {
            let mut text = Vec::new();
            Audio::Raw(Bytes::from(raw)).write_base64(&mut text);
            Audio::Base64(Bytes::from(text))
        }
        _ => Audio::Raw(Bytes::from(raw)),
    }
}
