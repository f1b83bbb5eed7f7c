//! The store in virtual time: three lanes, one commit at a time, and what follows a commit.

use std::collections::VecDeque;
use std::sync::Arc;

use super::Life;
use crate::job::Job;
use crate::protocol::{JobId, SessionId};
use crate::session::News;
use crate::sim::env::{Env, Event};
use crate::store::{
    Committed, Engine, OutboxRow, Reader, Recovered, SimDisk, StoreError, StoreOptions, Write,
};

/// Accepts that may wait, so that the lane is full now and then.
const ACCEPTS_MAX: usize = 12;

/// What follows when a write is on the disk.
#[derive(Debug)]
pub(in crate::sim) enum Then {
    /// Nothing.
    Nothing,
    /// The session hears that its job is kept.
    Kept(SessionId, u64, JobId),
    /// The node may forget its result, and the session hears under which number the last word is.
    Recorded(Arc<Job>, Option<SessionId>),
    /// The session hears under which number the last word is.
    Told(SessionId, JobId),
}

/// Why a write was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

/// A batch under way, in the order of its writes.
struct Batch {
    writes: Vec<Write>,
    thens: Vec<Then>,
}

/// The store of one life.
pub(super) struct Journal {
    engine: Engine,
    reader: Reader,
    lanes: [VecDeque<(Write, Then)>; 3],
    batch: Option<Batch>,
    /// The batch met a full disk.
    full: bool,
}

impl Journal {
    pub(super) fn open(
        disk: &SimDisk,
        options: &StoreOptions,
        env: &mut Env,
    ) -> Result<(Self, Recovered), StoreError> {
        let (mut engine, recovered) = Engine::open_on(disk.medium(), options, env.wall_ms())?;
        engine.make_ballast();
        let reader = engine.reader();
        let lanes = Default::default();
        Ok((Self { engine, reader, lanes, batch: None, full: false }, recovered))
    }

    fn lane_of(write: &Write) -> usize {
        match write {
            Write::SettleJob { .. } | Write::Delivered { .. } | Write::Forfeit { .. } => 0,
            Write::AcceptJob { .. } | Write::OpenSession(_) | Write::CloseSession(_) => 1,
            Write::Node(_)
            | Write::Pools(_)
            | Write::Room(_)
            | Write::DropRoom(_)
            | Write::Key(_)
            | Write::DropDeadLetter(_) => 2,
        }
    }

    pub(super) fn has_room_for_accepts(&self) -> bool {
        self.lanes[1].len() < ACCEPTS_MAX && !self.full
    }

    pub(super) fn backlog(&self) -> usize {
        let waiting: usize = self.lanes.iter().map(VecDeque::len).sum();
        waiting + self.batch.as_ref().map_or(0, |b| b.writes.len())
    }

    pub(super) fn outbox(
        &self,
        session: SessionId,
        after: u64,
        limit: usize,
    ) -> Result<Vec<OutboxRow>, StoreError> {
        self.reader.outbox(session, after, limit)
    }
}

impl Life {
    /// Hands a write to the store.
    pub(super) fn submit_write(
        &mut self,
        write: Write,
        then: Then,
        env: &mut Env,
    ) -> Result<(), Full> {
        let lane = Journal::lane_of(&write);
        // The others are sized for what can happen.
        if lane == 1 && self.journal.lanes[1].len() >= 2 * ACCEPTS_MAX {
            env.counts.reached("lane_full");
            return Err(Full);
        }
        self.journal.lanes[lane].push_back((write, then));
        self.begin_commit(env);
        Ok(())
    }

    fn begin_commit(&mut self, env: &mut Env) {
        if self.journal.batch.is_some() || self.journal.backlog() == 0 {
            return;
        }
        let (mut writes, mut thens) = (Vec::new(), Vec::new());
        for lane in &mut self.journal.lanes {
            for (write, then) in lane.drain(..) {
                writes.push(write);
                thens.push(then);
            }
        }
        self.journal.batch = Some(Batch { writes, thens });
        let max = if env.faulty { env.rates.commit_us } else { 10_000 };
        let us = env.skewed(100, max.max(101));
        env.after(us, Event::Commit(self.number));
    }

    /// The batch under way reaches the disk, and what follows from it happens.
    pub(in crate::sim) fn commit(&mut self, env: &mut Env) -> Result<(), StoreError> {
        let Some(Batch { writes, thens }) = self.journal.batch.take() else { return Ok(()) };
        let committed = match self.journal.engine.commit(writes, self.now(env).unix_ms) {
            Ok(committed) => committed,
            Err(StoreError::Full { .. }) => {
                env.counts.reached("disk_full");
                self.journal.full = true;
                self.journal.batch = Some(Batch { writes: Vec::new(), thens });
                env.after(200_000, Event::DiskRetry(self.number));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        self.follow(thens, committed, env);
        Ok(())
    }

    /// The batch that met a full disk is tried again.
    pub(in crate::sim) fn retry_commit(&mut self, env: &mut Env) -> Result<(), StoreError> {
        self.journal.engine.drop_ballast();
        match self.journal.engine.retry() {
            Ok(committed) => {
                self.journal.full = false;
                env.counts.reached("disk_full_left");
                let batch = self.journal.batch.take();
                self.follow(batch.map(|b| b.thens).unwrap_or_default(), committed, env);
                self.journal.engine.make_ballast();
                Ok(())
            }
            Err(StoreError::Full { .. }) => {
                env.after(200_000, Event::DiskRetry(self.number));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn follow(&mut self, thens: Vec<Then>, committed: Vec<Committed>, env: &mut Env) {
        for (then, committed) in thens.into_iter().zip(committed) {
            match then {
                Then::Nothing => {}
                Then::Kept(session, index, job) => {
                    self.deliver(session, super::session::Mail::News(News::Kept(index, job)), env);
                }
                Then::Recorded(job, session) => {
                    if committed.ended_before {
                        env.counts.reached("settled_twice");
                    }
                    self.kept(&job, env);
                    if let Some(session) = session {
                        self.tell_durable(session, job.id, committed, env);
                    }
                }
                Then::Told(session, job) => self.tell_durable(session, job, committed, env),
            }
        }
        self.begin_commit(env);
    }

    fn tell_durable(&mut self, session: SessionId, job: JobId, of: Committed, env: &mut Env) {
        let news = News::Durable { job, seq: of.outbox_seq };
        self.deliver(session, super::session::Mail::News(news), env);
    }

    /// The server dies: what is under way reaches the disk whole, in part, or not.
    pub(in crate::sim) fn die(mut self, disk: &SimDisk, env: &mut Env) {
        if let Some(Batch { writes, .. }) = self.journal.batch.take()
            && !writes.is_empty()
        {
            match env.rng.u32(..4) {
                0 => env.counts.reached("W1_or_W5_before_commit"),
                1 => {
                    let committed =
                        self.journal.engine.commit(writes, self.now(env).unix_ms).is_ok();
                    if committed {
                        env.counts.reached("W2_or_W6_committed_untold");
                    }
                }
                _ => {
                    let changes = env.skewed(0, 60);
                    disk.cut_power_after(Some(changes));
                    match self.journal.engine.commit(writes, self.now(env).unix_ms) {
                        Ok(_) => env.counts.reached("W2_or_W6_committed_untold"),
                        Err(_) => env.counts.reached("W1_or_W5_torn_commit"),
                    }
                }
            }
        }
        drop(self);
        disk.crash();
        disk.cut_power_after(None);
    }

    /// The server stops in good order: everything handed over is committed.
    pub(in crate::sim) fn finish(mut self, env: &mut Env) -> Result<(), StoreError> {
        // Nobody hears of it any more; a batch that waits for room is left to the next start.
        while !self.journal.full && self.journal.backlog() > 0 {
            if self.journal.batch.is_none() {
                self.begin_commit(env);
            }
            if let Some(Batch { writes, .. }) = self.journal.batch.take() {
                match self.journal.engine.commit(writes, self.now(env).unix_ms) {
                    Ok(_) => {}
                    Err(StoreError::Full { .. }) => break,
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// What the disk holds, to be judged.
    pub(in crate::sim) fn reader(&self) -> Reader {
        self.journal.reader.clone()
    }
}
