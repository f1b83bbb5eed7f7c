//! What one tenant may have and has.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};

use foldhash::fast::RandomState;
use papaya::HashMap;

use super::Denied;
use super::usage::{Counted, Meter, Usage, Used};
use crate::config;
use crate::protocol::Pair;
use crate::protocol::job::Outcome;
use crate::telemetry::{Bucket, Metrics, Now};

/// Tenants that are not listed and have an account of their own: names prove nothing, and whoever
/// opens sessions can make them up. Further ones share the account called [`OTHER`].
const UNLISTED_MAX: usize = 256;
/// The account that tenants share for which there is none, and the label of all that are not
/// listed.
const OTHER: &str = "other";
/// The tenant of sessions that name none.
const UNNAMED: &str = "default";

/// One tenant: what it may have, what it has, and what it used.
#[derive(Debug)]
pub struct Account {
    /// Its place in the order in which accounts were made; names it where a number will do.
    number: u32,
    /// What sessions call it.
    pub(super) name: Arc<str>,
    /// Whether the configuration names it.
    listed: bool,
    /// Its share against other tenants where slots are scarce; at least 1.
    weight: u32,
    /// Most open sessions; `u32::MAX` is no limit.
    sessions_max: u32,
    /// Most unfinished jobs; `u32::MAX` is no limit.
    jobs_max: u32,
    /// Open sessions.
    sessions: AtomicU32,
    /// Unfinished jobs.
    jobs: AtomicU32,
    /// Those of them that wait for a slot; written by `Admission`.
    pub(super) waiting: AtomicUsize,
    /// Messages it may send; none if without limit.
    messages: Option<Bucket>,
    /// Milliseconds of audio it may have translated; none if without limit.
    audio: Option<Bucket>,
    /// Pairs that its use is counted by.
    pub(super) pairs: AtomicU32,
    /// What it used of further ones.
    pub(super) other_pairs: Meter,
    /// Its metrics.
    pub(super) counted: Counted,
}

/// Where a tenant stands now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Its name.
    pub tenant: Arc<str>,
    /// Whether the configuration names it.
    pub listed: bool,
    /// Its share against other tenants.
    pub weight: u32,
    /// Open sessions.
    pub sessions: u32,
    /// Unfinished jobs.
    pub jobs: u32,
    /// Those of them that wait for a slot.
    pub waiting: usize,
}

/// What a tenant may have of one thing, and what of that is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// Of what.
    pub of: &'static str,
    /// How much.
    pub quota: u64,
    /// In how many seconds as much comes in; none for what is had at one time.
    pub window_s: Option<u64>,
    /// How much can be taken now.
    pub left: u64,
    /// In how many milliseconds all of it can; 0 for what is had at one time.
    pub full_in_ms: u64,
}

impl Account {
    fn new(number: u32, terms: &config::Tenant, listed: bool, counted: Counted) -> Self {
        // Unset was filled in from the defaults; 0 is no limit.
        let limit = |max: Option<u32>| max.filter(|max| *max > 0);
        let second = |units: u32| Bucket::new(units.into(), 1_000);
        let minute = |seconds: u32| Bucket::new(u64::from(seconds) * 1_000, 60_000);
        Self {
            number,
            name: terms.name.as_str().into(),
            listed,
            weight: terms.weight,
            sessions_max: limit(terms.sessions_max).unwrap_or(u32::MAX),
            jobs_max: limit(terms.jobs_max).unwrap_or(u32::MAX),
            sessions: AtomicU32::new(0),
            jobs: AtomicU32::new(0),
            waiting: AtomicUsize::new(0),
            messages: limit(terms.messages_per_second).map(second),
            audio: limit(terms.audio_seconds_per_minute).map(minute),
            pairs: AtomicU32::new(0),
            other_pairs: Meter::default(),
            counted,
        }
    }

    /// Names it for as long as the server lives.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Its share against other tenants where slots are scarce; at least 1.
    pub fn weight(&self) -> u32 {
        self.weight
    }

    /// Counts one more open session, or says why not.
    pub fn open_session(&self) -> Result<(), Denied> {
        let room = |n: u32| (n < self.sessions_max).then_some(n + 1);
        let opened = self.sessions.fetch_update(SeqCst, SeqCst, room);
        opened.map(drop).map_err(|_| Denied::TenantSessions)
    }

    /// Counts a session that was open in an earlier life of the server; the limit does not apply.
    pub fn reopen_session(&self) {
        self.sessions.fetch_add(1, SeqCst);
    }

    /// Gives back what `open_session` or `reopen_session` counted.
    pub fn close_session(&self) {
        let before = self.sessions.fetch_sub(1, SeqCst);
        assert!(before > 0, "a session of {} was closed twice", self.name);
    }

    /// Whether its messages are limited: if not there is no need to charge any.
    pub fn limits_messages(&self) -> bool {
        self.messages.is_some()
    }

    /// Charges a message, or says that it comes too soon.
    pub fn charge_message(&self, now: Now) -> Result<(), Denied> {
        let Some(messages) = &self.messages else { return Ok(()) };
        messages.take(1, now).map_err(|retry_after_ms| Denied::TenantMessages { retry_after_ms })
    }

    /// Charges a message that is taken in any case; whether and when there is room for a next one.
    pub fn owe_message(&self, now: Now) -> Result<(), Denied> {
        let Some(messages) = &self.messages else { return Ok(()) };
        match messages.overdraw(1, now) {
            0 => Ok(()),
            retry_after_ms => Err(Denied::TenantMessages { retry_after_ms }),
        }
    }

    pub(super) fn charge_audio(&self, audio_ms: u32, now: Now) -> Result<(), Denied> {
        let Some(audio) = &self.audio else { return Ok(()) };
        audio
            .take(audio_ms.into(), now)
            .map_err(|retry_after_ms| Denied::TenantAudio { retry_after_ms })
    }

    pub(super) fn begin_job(&self) -> Result<(), Denied> {
        let room = |n: u32| (n < self.jobs_max).then_some(n + 1);
        let begun = self.jobs.fetch_update(SeqCst, SeqCst, room);
        begun.map(drop).map_err(|_| Denied::TenantJobs)
    }

    pub(super) fn resume_job(&self) {
        self.jobs.fetch_add(1, SeqCst);
    }

    /// Whether a job was there to be ended.
    pub(super) fn end_job(&self) -> bool {
        self.jobs.fetch_sub(1, SeqCst) > 0
    }

    /// What is left of all that is limited, in no more than four entries.
    pub fn allowances(&self, now: Now) -> Vec<Allowance> {
        let rate = |of, bucket: &Option<Bucket>, window_s, unit| {
            let bucket = bucket.as_ref()?;
            let (quota, (left, full_in_ms)) = (bucket.units(), bucket.left(now));
            let (quota, left) = (quota / unit, left / unit);
            Some(Allowance { of, quota, window_s: Some(window_s), left, full_in_ms })
        };
        let count = |of, max: u32, had: &AtomicU32| {
            let left = u64::from(max.saturating_sub(had.load(SeqCst)));
            let quota = u64::from(max);
            let some = Allowance { of, quota, window_s: None, left, full_in_ms: 0 };
            (max < u32::MAX).then_some(some)
        };
        let all = [
            rate("messages", &self.messages, 1, 1),
            rate("audio-seconds", &self.audio, 60, 1_000),
            count("utterances", self.jobs_max, &self.jobs),
            count("sessions", self.sessions_max, &self.sessions),
        ];
        all.into_iter().flatten().collect()
    }

    fn standing(&self) -> Standing {
        Standing {
            tenant: Arc::clone(&self.name),
            listed: self.listed,
            weight: self.weight,
            sessions: self.sessions.load(SeqCst),
            jobs: self.jobs.load(SeqCst),
            waiting: self.waiting.load(SeqCst),
        }
    }
}

/// The accounts of all tenants.
pub struct Accounts {
    by_name: HashMap<Arc<str>, Arc<Account>, RandomState>,
    /// What holds for who is not listed.
    defaults: config::TenantDefaults,
    /// Numbers given out.
    made: AtomicU32,
    /// Accounts made for tenants that are not listed.
    unlisted: AtomicUsize,
    /// The one that tenants share for which there is none.
    other: Arc<Account>,
    usage: Usage,
}

impl Accounts {
    /// Those listed, and what holds for who is not.
    pub fn new(
        defaults: config::TenantDefaults,
        listed: &[config::Tenant],
        metrics: &Metrics,
    ) -> Self {
        let other = Account::new(0, &defaults.terms(OTHER), false, Counted::of(OTHER, metrics));
        let accounts = Self {
            by_name: HashMap::with_hasher(RandomState::default()),
            made: AtomicU32::new(1),
            unlisted: AtomicUsize::new(0),
            other: Arc::new(other),
            usage: Usage::new(),
            defaults,
        };
        accounts.enter(Arc::clone(&accounts.other));
        for tenant in listed {
            let (number, terms) = (accounts.next_number(), accounts.defaults.complete(tenant));
            let counted = Counted::of(&tenant.name, metrics);
            accounts.enter(Arc::new(Account::new(number, &terms, true, counted)));
        }
        accounts
    }

    fn next_number(&self) -> u32 {
        self.made.fetch_add(1, Relaxed)
    }

    fn enter(&self, account: Arc<Account>) -> Arc<Account> {
        let name = Arc::clone(&account.name);
        Arc::clone(self.by_name.pin().get_or_insert(name, account))
    }

    /// The account of the tenant that a session names, to be kept for as long as the session is.
    pub fn of(&self, tenant: Option<&str>) -> Arc<Account> {
        let name = tenant.unwrap_or(UNNAMED);
        if let Some(account) = self.by_name.pin().get(name) {
            return Arc::clone(account);
        }
        let room = |n: usize| (n < UNLISTED_MAX).then_some(n + 1);
        if self.unlisted.fetch_update(SeqCst, SeqCst, room).is_err() {
            return Arc::clone(&self.other);
        }
        // Of two that meet here one account is kept; a place is lost, which does not matter.
        let terms = self.defaults.terms(name);
        let counted = self.other.counted.clone();
        self.enter(Arc::new(Account::new(self.next_number(), &terms, false, counted)))
    }

    pub(super) fn job_ended(&self, of: &Account, pair: Pair, outcome: Outcome, audio_ms: u32) {
        self.usage.add(of, pair, outcome, audio_ms);
    }

    /// All of them, by name.
    fn all(&self) -> Vec<Arc<Account>> {
        let mut all: Vec<_> = self.by_name.pin().values().map(Arc::clone).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Where each tenant stands, by name. Not for the path of an utterance.
    pub fn standings(&self) -> Vec<Standing> {
        self.all().iter().map(|account| account.standing()).collect()
    }

    /// What each tenant used, by name and pair. Not for the path of an utterance.
    pub fn used(&self) -> Vec<Used> {
        self.usage.read(&self.all())
    }
}
