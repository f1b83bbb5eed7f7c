//! Random writes of every kind, and what can be said of their effects without a model.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use bytes::Bytes;
use utterd::protocol::job::{ChunkMark, Cut, Heard, JobSpec, Outcome, Pipeline};
use utterd::protocol::{JobId, Lang, NodeId, RoomCode, SessionId, TurnId};
use utterd::store::*;

use super::SESSIONS;
use super::world::{World, audio};

/// What has been sent, and what has been said of it.
#[derive(Default)]
pub struct Workload {
    last_job: u128,
    last_batch: u64,
    /// Jobs under way in this process: sent as ended, their acceptance still to come.
    to_accept: Vec<u128>,
    /// Jobs that were acknowledged as accepted and not sent as ended.
    owed: BTreeSet<u128>,
    /// Jobs with an acknowledged end.
    ended: BTreeSet<u128>,
    /// Numbers of the frames of each session, since it was last unknown.
    given: BTreeMap<u64, BTreeSet<u64>>,
    /// What the batch under way does to the sets above.
    accepting: Vec<u128>,
    ending: Vec<u128>,
    giving: Vec<(u64, u64)>,
}

impl Workload {
    /// The next batch, sent at `now` into a world.
    pub fn batch(&mut self, random: &mut fastrand::Rng, world: &World, now: u64) -> Vec<Write> {
        let mut ending = BTreeSet::new();
        let count = random.usize(1..8);
        let mut writes: Vec<Write> =
            (0..count).map(|_| self.write(random, world, now, &mut ending)).collect();
        // Not everything a write changes shows at once; this does, so that a recovery tells
        // whether the batch is there.
        self.last_batch += 1;
        let text = "x".repeat(random.usize(..9));
        writes.push(Write::Pools(PoolConfigRow { version: self.last_batch, text }));
        writes
    }

    fn write(
        &mut self,
        random: &mut fastrand::Rng,
        world: &World,
        now: u64,
        ending: &mut BTreeSet<u128>,
    ) -> Write {
        let session = SessionId(random.u64(..SESSIONS));
        let owed = world.outbox.range((session.0, 0)..=(session.0, u64::MAX));
        let through_seq = owed.map(|((_, seq), _)| *seq).next_back().unwrap_or(3);
        let through_seq = random.u64(..=through_seq);
        match random.u8(..20) {
            0..=1 => Write::OpenSession(session_row(session, now)),
            2 => Write::CloseSession(session),
            3..=4 => Write::Delivered { session, through_seq },
            5 => Write::Forfeit { session, through_seq, why: "overflow" },
            6 => Write::Node(node_row(random.u8(..3), now)),
            7 if random.u8(..3) == 0 => Write::Key(key_row(random, now)),
            7 => match random.bool() {
                true => Write::Room(room_row(random, session, now)),
                false => Write::DropRoom(room_code(random)),
            },
            8 => Write::DropDeadLetter(random.u64(..=world.last_letter)),
            9..=13 => {
                let late = self.to_accept.pop();
                let id = late.unwrap_or_else(|| self.next_job());
                accept(random, id, session, now)
            }
            _ => {
                // Mostly a job that is there, now and then one that has ended or is to come.
                let live = world.jobs.keys().copied().find(|id| !ending.contains(id));
                let again = world.terminals.values().max_by_key(|end| end.settled_unix_ms);
                let id = match (random.u8(..10), live, again) {
                    (0, _, Some(again)) => again.id.0,
                    (2.., Some(live), _) => live,
                    _ => {
                        let id = self.next_job();
                        self.to_accept.push(id);
                        id
                    }
                };
                ending.insert(id);
                settle(random, id, session, now)
            }
        }
    }

    fn next_job(&mut self) -> u128 {
        self.last_job += 1;
        self.last_job
    }

    /// The jobs whose ends are worth looking at; the ends of older ones are long forgotten.
    pub fn recent_jobs(&self) -> Range<u128> {
        self.last_job.saturating_sub(60)..self.last_job + 1
    }

    /// A batch was handed over; these are to be its answers.
    pub fn submitted(&mut self, writes: &[Write], answers: &[Committed]) {
        (self.accepting, self.ending, self.giving) = Default::default();
        for (write, answer) in writes.iter().zip(answers) {
            match write {
                Write::AcceptJob { row, .. } => self.accepting.push(row.id.0),
                Write::SettleJob { terminal, heard, .. } if !answer.ended_before => {
                    self.ending.push(terminal.id.0);
                    let given = answer.outbox_seq.map(|seq| (terminal.session.0, seq));
                    let listeners = heard.iter().flat_map(|heard| &heard.listeners);
                    let heard = listeners.map(|listener| listener.0).zip(answer.heard_seqs.clone());
                    self.giving.extend(given.into_iter().chain(heard));
                }
                _ => {}
            }
        }
    }

    /// The batch that led to a world was acknowledged, or found after a crash. The error says
    /// which promise is broken.
    pub fn acknowledged(&mut self, world: &World) -> Result<(), String> {
        for id in self.accepting.drain(..) {
            if !self.ended.contains(&id) {
                self.owed.insert(id);
            }
        }
        for id in self.ending.drain(..) {
            self.owed.remove(&id);
            if !self.ended.insert(id) {
                return Err(format!("job {id} has ended twice"));
            }
        }
        for (session, seq) in self.giving.drain(..) {
            if !self.given.entry(session).or_default().insert(seq) {
                return Err(format!("number {seq} of session {session} was given twice"));
            }
        }
        // A session that is over and has everything begins anew if it is heard of again.
        self.given.retain(|session, _| world.progress.contains_key(session));
        Ok(())
    }

    /// A recovery found a world, with or without the batch that was under way.
    pub fn found(&mut self, world: &World, with_batch: bool) -> Result<(), String> {
        match with_batch {
            true => self.acknowledged(world)?,
            false => (self.accepting, self.ending, self.giving) = Default::default(),
        }
        // A process that is gone sends no acceptances any more.
        self.to_accept.clear();
        if let Some(id) = self.owed.iter().find(|id| !world.jobs.contains_key(id)) {
            return Err(format!("job {id} was accepted and has neither ended nor come back"));
        }
        for (session, given) in &self.given {
            if !given.iter().copied().eq(1..=given.len() as u64) {
                return Err(format!("the numbers of session {session} have gaps: {given:?}"));
            }
        }
        Ok(())
    }
}

fn lang(tag: &str) -> Lang {
    tag.parse().expect("a tag")
}

fn session_row(id: SessionId, now: u64) -> SessionRow {
    SessionRow {
        id,
        trace_id: "trace".into(),
        tenant: id.0.is_multiple_of(2).then(|| "tenant".into()),
        platform: "web".into(),
        client_version: "1".into(),
        src: lang("zh"),
        tgt: lang("en"),
        opened_unix_ms: now,
        epoch: 1,
        resume_hash: Some([id.0 as u8; 32]),
        paired: id.0.is_multiple_of(3).then(|| NodeId::from("node-1")),
        init: vec![b'x'; id.0 as usize * 10],
    }
}

fn key_row(random: &mut fastrand::Rng, now: u64) -> KeyRow {
    KeyRow {
        id: random.u64(..5),
        kind: random.u8(..3),
        tenant: random.bool().then(|| "tenant".to_owned()),
        name: "name".to_owned(),
        hash: [random.u8(..); 32],
        created_unix_ms: now,
        expires_unix_ms: None,
        revoked_unix_ms: random.bool().then_some(now),
    }
}

fn room_code(random: &mut fastrand::Rng) -> RoomCode {
    RoomCode(random.u32(100_000..100_003))
}

fn room_row(random: &mut fastrand::Rng, session: SessionId, now: u64) -> RoomRow {
    let member = MemberRow {
        session,
        seat: 1,
        display_name: random.bool().then(|| "name".to_owned()),
        preferred_lang: None,
        lang: lang("de"),
        raw_voice: vec![(SessionId(random.u64(..9)), random.bool())],
        joined_unix_ms: now,
    };
    RoomRow {
        code: room_code(random),
        room_id: random.u128(..),
        active_unix_ms: now,
        next_seat: 2,
        members: vec![member; random.usize(..3)],
    }
}

fn node_row(n: u8, now: u64) -> NodeRow {
    NodeRow {
        id: NodeId::from(format!("node-{n}").as_str()),
        platform: "linux".into(),
        version: "1".into(),
        first_seen_unix_ms: 1,
        last_seen_unix_ms: now,
    }
}

fn accept(random: &mut fastrand::Rng, id: u128, session: SessionId, now: u64) -> Write {
    let spec = JobSpec {
        session,
        utterance_index: random.u64(..50),
        turn: TurnId(id),
        tenant: None,
        src: lang("zh"),
        tgt: lang("en"),
        dialect: None,
        mode: None,
        lang_a: None,
        lang_b: None,
        auto_langs: None,
        features: None,
        pipeline: Pipeline::default(),
        audio_format: "opus".into(),
        sample_rate: 16_000,
        audio_ms: 1_000,
        trace_id: "trace".into(),
        padding_ms: None,
        cut: Cut::Pause,
        streaming_asr: false,
        partial_interval_ms: 0,
        client_sent_ms: None,
        traced: Default::default(),
        paired: None,
        audience: None,
    };
    let chunks = random.bool().then(|| mark(random));
    let row = JobRow {
        id: JobId(id),
        spec,
        accepted_unix_ms: now,
        attempts: 0,
        chunks,
        audio_crc: 0,
        audio_bytes: 0,
    };
    let idempotency = random.bool().then(|| IdemRow {
        key: random.u128(..40),
        job: JobId(id),
        digest: id as u32,
        expires_unix_ms: now + 1_500,
    });
    Write::AcceptJob { row: Box::new(row), audio: audio(id), idempotency }
}

fn mark(random: &mut fastrand::Rng) -> ChunkMark {
    ChunkMark { through: random.u64(..20), skip: random.u32(..5) }
}

fn settle(random: &mut fastrand::Rng, id: u128, session: SessionId, now: u64) -> Write {
    let terminal = TerminalRow {
        id: JobId(id),
        session,
        utterance_index: random.u64(..50),
        outcome: Outcome::ALL[random.usize(..Outcome::ALL.len())],
        code: "CODE".into(),
        message: format!("job {id}"),
        attempts: 1,
        node: None,
        settled_unix_ms: now,
        explanation: vec![b'e'; random.usize(..200)],
    };
    let outbox = (random.u8(..4) > 0).then(|| Bytes::from(vec![id as u8; random.usize(..5_000)]));
    let refused = (random.u8(..8) == 0).then(|| mark(random));
    let mut heard = Vec::new();
    while random.u8(..4) == 0 {
        let listeners = (0..random.usize(..3)).map(|_| SessionId(random.u64(..SESSIONS))).collect();
        heard.push(Heard { listeners, frame: Bytes::from(vec![id as u8; random.usize(..2_000)]) });
    }
    Write::SettleJob {
        terminal: Box::new(terminal),
        outbox,
        heard,
        dead: random.u8(..4) == 0,
        refused,
    }
}
