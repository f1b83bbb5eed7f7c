//! Counts of jobs against the limits of the server, of a session and of a tenant.

use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst};

use super::{Account, Accounts, Denied};
use crate::config;
use crate::protocol::Pair;
use crate::protocol::job::Outcome;
use crate::telemetry::Now;

/// Counts unfinished jobs, and those of them that wait, against their limits.
pub struct Admission {
    accounts: Accounts,
    live: AtomicUsize,
    live_max: usize,
    session_max: u32,
    /// Jobs that wait for a slot.
    waiting: AtomicUsize,
    queue_max: usize,
    /// Weights of the tenants that have jobs waiting. Each enters with its first and leaves with
    /// its last, in whatever order two threads get here, so it may be below 0 for a moment.
    waiting_weight: AtomicI64,
    /// Speech that began after this is refused, monotonic microseconds.
    closed_us: AtomicU64,
}

impl Admission {
    /// With the limits of jobs for the server and for one session.
    pub fn new(config: &config::Job, session_max: usize, accounts: Accounts) -> Self {
        Self {
            accounts,
            live: AtomicUsize::new(0),
            live_max: config.live_max,
            session_max: u32::try_from(session_max).unwrap_or(u32::MAX),
            waiting: AtomicUsize::new(0),
            queue_max: config.queue_max,
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
        self.room_to_wait(account)?;
        let below = |max| move |n: u32| (n < max).then_some(n + 1);
        session
            .fetch_update(SeqCst, SeqCst, below(self.session_max))
            .map_err(|_| Denied::SessionFull)?;
        let admitted = self.admit_tenant(account, audio_ms, now);
        if admitted.is_err() {
            session.fetch_sub(1, SeqCst);
        }
        admitted
    }

    fn admit_tenant(&self, account: &Account, audio_ms: u32, now: Now) -> Result<(), Denied> {
        account.begin_job()?;
        let room = |n: usize| (n < self.live_max).then_some(n + 1);
        if self.live.fetch_update(SeqCst, SeqCst, room).is_err() {
            account.end_job();
            return Err(Denied::ServerFull);
        }
        // Audio comes last, for it is not given back.
        let charged = account.charge_audio(audio_ms, now);
        if charged.is_err() {
            self.live.fetch_sub(1, SeqCst);
            account.end_job();
        }
        charged
    }

    /// A full queue has room for a tenant that has less than its share of it: whoever filled it
    /// while nobody else was there does not shut the others out.
    fn room_to_wait(&self, account: &Account) -> Result<(), Denied> {
        if self.waiting() < self.queue_max {
            return Ok(());
        }
        let (own, weight) = (account.waiting.load(SeqCst), i64::from(account.weight()));
        let entered = if own > 0 { 0 } else { weight };
        let all = (self.waiting_weight.load(SeqCst) + entered).max(weight);
        let share = self.queue_max as u128 * weight as u128 / all as u128;
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
        if account.waiting.fetch_add(1, SeqCst) == 0 {
            self.waiting_weight.fetch_add(account.weight().into(), SeqCst);
        }
    }

    /// It waits no more.
    pub fn end_wait(&self, account: &Account) {
        let (own, all) = (account.waiting.fetch_sub(1, SeqCst), self.waiting.fetch_sub(1, SeqCst));
        assert!(own > 0 && all > 0, "a job left the queue twice");
        if own == 1 {
            self.waiting_weight.fetch_sub(account.weight().into(), SeqCst);
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
