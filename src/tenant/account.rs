//! What one tenant may have and has.

use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};

use foldhash::fast::RandomState;
use papaya::HashMap;

use super::Denied;
use super::usage::{Counted, Families, Meter, Usage, Used};
use crate::config::{self, Live, Tenants};
use crate::protocol::Pair;
use crate::protocol::job::Outcome;
use crate::telemetry::{Bucket, Metrics, Now, Rate};

/// Tenants that are not listed and have an account of their own: names prove nothing, and whoever
/// opens sessions can make them up. Further ones share the account called [`OTHER`].
const UNLISTED_MAX: usize = 256;
/// The account that tenants share for which there is none, and the label of all that are not
/// listed.
const OTHER: &str = "other";
/// The tenant of sessions that name none.
const UNNAMED: &str = "default";

/// One tenant: what it has, and what it used. What it may have is in the settings.
#[derive(Debug)]
pub struct Account {
    /// Its place in the order in which accounts were made; names it where a number will do.
    number: u32,
    /// What sessions call it.
    pub(super) name: Arc<str>,
    /// What each tenant may have.
    tenants: Arc<Live<Tenants>>,
    /// Open sessions.
    sessions: AtomicU32,
    /// Unfinished jobs.
    jobs: AtomicU32,
    /// Those of them that wait for a slot; written by `Admission`.
    pub(super) queue: Queued,
    /// Messages it may send.
    messages: Bucket,
    /// Milliseconds of audio it may have translated.
    audio: Bucket,
    /// Pairs that its use is counted by.
    pub(super) pairs: AtomicU32,
    /// What it used of further ones.
    pub(super) other_pairs: Meter,
    /// Its metrics, from when it is first counted while it is listed.
    counted: OnceLock<Counted>,
}

/// Jobs that wait, and the weight with which the first of them entered, in one word: a weight that
/// changes meanwhile must not be what is taken back in the end.
#[derive(Debug, Default)]
pub(super) struct Queued(AtomicU64);

impl Queued {
    const ONE: u64 = 1;
    const COUNT: u64 = u32::MAX as u64;

    /// One more waits; the weight it enters with, if it is the first.
    pub(super) fn enter(&self, weight: u32) -> Option<u32> {
        let fresh = u64::from(weight) << 32;
        let step = |word: u64| {
            Some(if word & Self::COUNT == 0 { fresh + Self::ONE } else { word + Self::ONE })
        };
        let before = self.0.fetch_update(SeqCst, SeqCst, step).unwrap_or(0);
        (before & Self::COUNT == 0).then_some(weight)
    }

    /// One waits no more; the weight that leaves with it, if it was the last.
    ///
    /// # Panics
    ///
    /// If none waited.
    pub(super) fn leave(&self) -> Option<u32> {
        let before = self.0.fetch_sub(Self::ONE, SeqCst);
        assert!(before & Self::COUNT > 0, "a job left the queue twice");
        (before & Self::COUNT == 1).then_some((before >> 32) as u32)
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        (self.0.load(SeqCst) & Self::COUNT) as usize
    }
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

/// A limit of the settings; 0 is none.
fn limit(max: Option<u32>) -> Option<u32> {
    max.filter(|max| *max > 0)
}

fn messages_of(terms: &config::Tenant) -> Option<Rate> {
    limit(terms.messages_per_second).map(|units| Rate::new(units.into(), 1_000))
}

fn audio_of(terms: &config::Tenant) -> Option<Rate> {
    let minute = |seconds: u32| Rate::new(u64::from(seconds) * 1_000, 60_000);
    limit(terms.audio_seconds_per_minute).map(minute)
}

impl Account {
    fn new(number: u32, name: Arc<str>, tenants: Arc<Live<Tenants>>) -> Self {
        Self {
            number,
            name,
            tenants,
            sessions: AtomicU32::new(0),
            jobs: AtomicU32::new(0),
            queue: Queued::default(),
            messages: Bucket::default(),
            audio: Bucket::default(),
            pairs: AtomicU32::new(0),
            other_pairs: Meter::default(),
            counted: OnceLock::new(),
        }
    }

    /// Runs `read` on what it may have, and on whether the configuration names it.
    pub(super) fn terms<R>(&self, read: impl FnOnce(&config::Tenant, bool) -> R) -> R {
        self.tenants.with(|tenants| {
            let (terms, listed) = tenants.terms(&self.name);
            read(terms, listed)
        })
    }

    /// Names it for as long as the server lives.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Its share against other tenants where slots are scarce; at least 1.
    pub fn weight(&self) -> u32 {
        self.terms(|terms, _| terms.weight)
    }

    /// Counts one more open session, or says why not.
    pub fn open_session(&self) -> Result<(), Denied> {
        let max = self.terms(|terms, _| limit(terms.sessions_max)).unwrap_or(u32::MAX);
        let room = |n: u32| (n < max).then_some(n + 1);
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
        self.terms(|terms, _| messages_of(terms)).is_some()
    }

    /// Charges a message, or says that it comes too soon.
    pub fn charge_message(&self, now: Now) -> Result<(), Denied> {
        let Some(rate) = self.terms(|terms, _| messages_of(terms)) else { return Ok(()) };
        let taken = self.messages.take(rate, 1, now);
        taken.map_err(|retry_after_ms| Denied::TenantMessages { retry_after_ms })
    }

    /// Charges a message that is taken in any case; whether and when there is room for a next one.
    pub fn owe_message(&self, now: Now) -> Result<(), Denied> {
        let Some(rate) = self.terms(|terms, _| messages_of(terms)) else { return Ok(()) };
        match self.messages.overdraw(rate, 1, now) {
            0 => Ok(()),
            retry_after_ms => Err(Denied::TenantMessages { retry_after_ms }),
        }
    }

    pub(super) fn charge_audio(
        &self,
        terms: &config::Tenant,
        audio_ms: u32,
        now: Now,
    ) -> Result<(), Denied> {
        let Some(rate) = audio_of(terms) else { return Ok(()) };
        let taken = self.audio.take(rate, audio_ms.into(), now);
        taken.map_err(|retry_after_ms| Denied::TenantAudio { retry_after_ms })
    }

    pub(super) fn begin_job(&self, terms: &config::Tenant) -> Result<(), Denied> {
        let max = limit(terms.jobs_max).unwrap_or(u32::MAX);
        let room = |n: u32| (n < max).then_some(n + 1);
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
        let (messages_rate, audio_rate, jobs_max, sessions_max) = self.terms(|terms, _| {
            let max = |max| limit(max).unwrap_or(u32::MAX);
            let counts = (max(terms.jobs_max), max(terms.sessions_max));
            (messages_of(terms), audio_of(terms), counts.0, counts.1)
        });
        let rate = |of, rate: Option<Rate>, bucket: &Bucket, window_s, unit| {
            let rate = rate?;
            let (quota, (left, full_in_ms)) = (rate.units(), bucket.left(rate, now));
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
            rate("messages", messages_rate, &self.messages, 1, 1),
            rate("audio-seconds", audio_rate, &self.audio, 60, 1_000),
            count("utterances", jobs_max, &self.jobs),
            count("sessions", sessions_max, &self.sessions),
        ];
        all.into_iter().flatten().collect()
    }

    fn standing(&self) -> Standing {
        let (weight, listed) = self.terms(|terms, listed| (terms.weight, listed));
        Standing {
            tenant: Arc::clone(&self.name),
            listed,
            weight,
            sessions: self.sessions.load(SeqCst),
            jobs: self.jobs.load(SeqCst),
            waiting: self.queue.len(),
        }
    }
}

/// The accounts of all tenants.
pub struct Accounts {
    by_name: HashMap<Arc<str>, Arc<Account>, RandomState>,
    /// What each tenant may have.
    tenants: Arc<Live<Tenants>>,
    /// Numbers given out.
    made: AtomicU32,
    /// Accounts made for tenants that were not listed.
    unlisted: AtomicUsize,
    /// The one that tenants share for which there is none.
    other: Arc<Account>,
    usage: Usage,
    families: Families,
    /// The metrics of all that are not listed.
    counted: Counted,
}

impl Accounts {
    /// Of those listed, and of who is not, by terms that do not change.
    pub fn new(
        defaults: config::TenantDefaults,
        listed: &[config::Tenant],
        metrics: &Metrics,
    ) -> Self {
        Self::by(Tenants::new(defaults, listed), metrics)
    }

    /// The same by terms that may change.
    pub fn by(tenants: impl Into<Live<Tenants>>, metrics: &Metrics) -> Self {
        let (tenants, families) = (Arc::new(tenants.into()), Families::of(metrics));
        let accounts = Self {
            by_name: HashMap::with_hasher(RandomState::default()),
            made: AtomicU32::new(1),
            unlisted: AtomicUsize::new(0),
            other: Arc::new(Account::new(0, OTHER.into(), Arc::clone(&tenants))),
            usage: Usage::new(),
            counted: families.of_tenant(OTHER),
            families,
            tenants,
        };
        accounts.enter(Arc::clone(&accounts.other));
        accounts.enter_listed();
        accounts
    }

    /// Gives those an account that the settings list, also before a session names them.
    fn enter_listed(&self) {
        let listed = self.tenants.with(|t| t.listed().map(str::to_owned).collect::<Vec<_>>());
        for name in listed {
            let account = self.of(Some(&name));
            account.counted.get_or_init(|| self.families.of_tenant(&name));
        }
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
        let listed = self.tenants.with(|tenants| tenants.lists(name));
        if !listed && self.unlisted.fetch_update(SeqCst, SeqCst, room).is_err() {
            return Arc::clone(&self.other);
        }
        // Of two that meet here one account is kept; a place is lost, which does not matter.
        let number = self.made.fetch_add(1, Relaxed);
        self.enter(Arc::new(Account::new(number, name.into(), Arc::clone(&self.tenants))))
    }

    pub(super) fn job_ended(&self, of: &Account, pair: Pair, outcome: Outcome, audio_ms: u32) {
        let listed = of.terms(|_, listed| listed);
        let counted = match listed {
            true => of.counted.get_or_init(|| self.families.of_tenant(&of.name)),
            false => &self.counted,
        };
        self.usage.add((of, counted), pair, outcome, audio_ms);
    }

    /// All of them, by name.
    fn all(&self) -> Vec<Arc<Account>> {
        self.enter_listed();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_entered_the_queue_leaves_it_whatever_the_weight_is_by_then() {
        let queue = Queued::default();
        assert_eq!(queue.enter(3), Some(3));
        assert_eq!(queue.enter(9), None);
        assert_eq!(queue.len(), 2);
        assert_eq!(queue.leave(), None);
        assert_eq!(queue.leave(), Some(3), "the weight it entered with");
        assert_eq!(queue.enter(9), Some(9));
        assert_eq!(queue.leave(), Some(9));
    }
}
