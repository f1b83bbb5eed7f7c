//! Counts of jobs against the limits of the server, of a session and of a tenant.

use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst};

use super::{Account, Accounts, Denied};
use crate::config::{self, Live};
use crate::protocol::Pair;
use crate::protocol::job::Outcome;
use crate::telemetry::Now;

/// Counts unfinished jobs, and those of them that wait, against their limits.
pub struct Admission {
    accounts: Accounts,
    live: AtomicUsize,
    /// Limits of jobs.
    limits: Live<config::Job>,
    session_max: u32,
    /// Jobs that wait for a slot.
    waiting: AtomicUsize,
    /// Weights of the tenants that have jobs waiting. Each enters with its first and leaves with
    /// its last, in whatever order two threads get here, so it may be below 0 for a moment.
    waiting_weight: AtomicI64,
    /// Speech that began after this is refused, monotonic microseconds.
    closed_us: AtomicU64,
}

impl Admission {
    /// With the limits of jobs for the server and for one session.
    pub fn new(
        limits: impl Into<Live<config::Job>>,
        session_max: usize,
        accounts: Accounts,
    ) -> Self {
        Self {
            accounts,
            live: AtomicUsize::new(0),
            limits: limits.into(),
            session_max: u32::try_from(session_max).unwrap_or(u32::MAX),
            waiting: AtomicUsize::new(0),
            waiting_weight: AtomicI64::new(0),
            closed_us: AtomicU64::new(u64::MAX),
        }
    }

    /// The accounts of all tenants.
    pub fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    /// Takes no speech that begins after `now_us`, in monotonic microseconds.
    pub fn close(&self, now_us: u64) {
        self.closed_us.store(now_us, SeqCst);
    }

    /// Whether speech that began at `begun_us` is still taken.
    pub fn takes(&self, begun_us: u64) -> Result<(), Denied> {
        if begun_us > self.closed_us.load(SeqCst) { Err(Denied::Draining) } else { Ok(()) }
    }

    /// Counts one more job of the tenant, of the session whose count is `session`, and charges its
    /// audio; or says why not.
    pub fn admit(
        &self,
        account: &Account,
        session: &AtomicU32,
        audio_ms: u32,
        now: Now,
    ) -> Result<(), Denied> {
        account.terms(|terms, _| self.admit_by(terms, account, session, (audio_ms, now)))
    }

    fn admit_by(
        &self,
        terms: &config::Tenant,
        account: &Account,
        session: &AtomicU32,
        (audio_ms, now): (u32, Now),
    ) -> Result<(), Denied> {
        let (queue_max, live_max) = self.limits.with(|job| (job.queue_max, job.live_max));
        self.room_to_wait(account, terms.weight, queue_max)?;
        let below = |max| move |n: u32| (n < max).then_some(n + 1);
        session
            .fetch_update(SeqCst, SeqCst, below(self.session_max))
            .map_err(|_| Denied::SessionFull)?;
        let admitted = self.admit_tenant(terms, account, live_max, (audio_ms, now));
        if admitted.is_err() {
            session.fetch_sub(1, SeqCst);
        }
        admitted
    }

    fn admit_tenant(
        &self,
        terms: &config::Tenant,
        account: &Account,
        live_max: usize,
        (audio_ms, now): (u32, Now),
    ) -> Result<(), Denied> {
        account.begin_job(terms)?;
        let room = |n: usize| (n < live_max).then_some(n + 1);
        if self.live.fetch_update(SeqCst, SeqCst, room).is_err() {
            account.end_job();
            return Err(Denied::ServerFull);
        }
        // Audio comes last, for it is not given back.
        let charged = account.charge_audio(terms, audio_ms, now);
        if charged.is_err() {
            self.live.fetch_sub(1, SeqCst);
            account.end_job();
        }
        charged
    }

    /// A full queue has room for a tenant that has less than its share of it: whoever filled it
    /// while nobody else was there does not shut the others out.
    fn room_to_wait(&self, account: &Account, weight: u32, queue_max: usize) -> Result<(), Denied> {
        if self.waiting() < queue_max {
            return Ok(());
        }
        let (own, weight) = (account.queue.len(), i64::from(weight));
        let entered = if own > 0 { 0 } else { weight };
        let all = (self.waiting_weight.load(SeqCst) + entered).max(weight);
        let share = queue_max as u128 * weight as u128 / all as u128;
        match (own as u128) < share {
            true => Ok(()),
            false if all == weight => Err(Denied::QueueFull),
            false => Err(Denied::TenantQueue),
        }
    }

    /// Counts a job that was accepted in an earlier life of the server; limits do not apply.
    pub fn readmit(&self, account: &Account, session: &AtomicU32) {
        session.fetch_add(1, SeqCst);
        account.resume_job();
        self.live.fetch_add(1, SeqCst);
    }

    /// Gives back what `admit` or `readmit` counted, and notes what was used.
    pub fn release(
        &self,
        account: &Account,
        session: &AtomicU32,
        pair: Pair,
        (outcome, audio_ms): (Outcome, u32),
    ) {
        let (session, live) = (session.fetch_sub(1, SeqCst), self.live.fetch_sub(1, SeqCst));
        assert!(account.end_job() && session > 0 && live > 0, "a job was given back twice");
        self.accounts.job_ended(account, pair, outcome, audio_ms);
    }

    /// A job of the tenant waits for a slot.
    pub fn begin_wait(&self, account: &Account) {
        self.waiting.fetch_add(1, SeqCst);
        if let Some(weight) = account.queue.enter(account.weight()) {
            self.waiting_weight.fetch_add(weight.into(), SeqCst);
        }
    }

    /// It waits no more.
    pub fn end_wait(&self, account: &Account) {
        let (weight, all) = (account.queue.leave(), self.waiting.fetch_sub(1, SeqCst));
        assert!(all > 0, "a job left the queue twice");
        if let Some(weight) = weight {
            self.waiting_weight.fetch_sub(weight.into(), SeqCst);
        }
    }

    /// Unfinished jobs.
    pub fn live(&self) -> usize {
        self.live.load(SeqCst)
    }

    /// Jobs that wait for a slot.
    pub fn waiting(&self) -> usize {
        self.waiting.load(SeqCst)
    }
}
