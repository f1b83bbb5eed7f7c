//! What tenants used: jobs and seconds of audio that ended, since the start.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use foldhash::fast::RandomState;
use papaya::HashMap;
use prometheus::{Counter, CounterVec, IntCounter, IntCounterVec};

use super::Account;
use crate::protocol::Pair;
use crate::protocol::job::Outcome;
use crate::telemetry::Metrics;

const OUTCOMES: usize = Outcome::ALL.len();

/// Pairs that are counted by name for one tenant: languages are words that clients choose.
pub(super) const PAIRS_MAX: u32 = 64;

/// What one tenant used of one pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Used {
    /// The tenant's name.
    pub tenant: Arc<str>,
    /// What was spoken and what was wanted; none for pairs beyond those counted by name.
    pub pair: Option<Pair>,
    /// By outcome: jobs, and milliseconds of audio in them.
    pub by_outcome: [(Outcome, u64, u64); OUTCOMES],
}

/// Counts of one tenant and one pair. Each stands for itself, so their order to one another does
/// not matter.
#[derive(Debug, Default)]
pub(super) struct Meter {
    jobs: [AtomicU64; OUTCOMES],
    audio_ms: [AtomicU64; OUTCOMES],
}

impl Meter {
    fn add(&self, outcome: Outcome, audio_ms: u32) {
        self.jobs[outcome as usize].fetch_add(1, Relaxed);
        self.audio_ms[outcome as usize].fetch_add(audio_ms.into(), Relaxed);
    }

    fn read(&self) -> [(Outcome, u64, u64); OUTCOMES] {
        let of = |counts: &[AtomicU64; OUTCOMES], o: Outcome| counts[o as usize].load(Relaxed);
        Outcome::ALL.map(|outcome| (outcome, of(&self.jobs, outcome), of(&self.audio_ms, outcome)))
    }

    fn is_zero(&self) -> bool {
        self.read().iter().all(|(_, jobs, _)| *jobs == 0)
    }
}

/// The metrics of one tenant, or of all that are not listed, looked up once.
#[derive(Debug, Clone)]
pub(super) struct Counted {
    jobs: [IntCounter; OUTCOMES],
    audio_seconds: [Counter; OUTCOMES],
}

/// The metrics of all tenants.
#[derive(Debug)]
pub(super) struct Families {
    jobs: IntCounterVec,
    audio_seconds: CounterVec,
}

impl Families {
    pub(super) fn of(metrics: &Metrics) -> Self {
        let (jobs, audio_seconds) = (&metrics.tenant_jobs, &metrics.tenant_audio_seconds);
        Self { jobs: jobs.clone(), audio_seconds: audio_seconds.clone() }
    }

    pub(super) fn of_tenant(&self, tenant: &str) -> Counted {
        let labels = |outcome: Outcome| [tenant, outcome.as_str()];
        Counted {
            jobs: Outcome::ALL.map(|o| self.jobs.with_label_values(&labels(o))),
            audio_seconds: Outcome::ALL.map(|o| self.audio_seconds.with_label_values(&labels(o))),
        }
    }
}

/// All meters, by the tenant's number and the pair.
#[derive(Debug)]
pub(super) struct Usage(HashMap<(u32, Pair), Meter, RandomState>);

impl Usage {
    pub(super) fn new() -> Self {
        Self(HashMap::with_hasher(RandomState::default()))
    }

    /// A job of the tenant ended.
    pub(super) fn add(
        &self,
        (account, counted): (&Account, &Counted),
        pair: Pair,
        outcome: Outcome,
        audio_ms: u32,
    ) {
        counted.jobs[outcome as usize].inc();
        counted.audio_seconds[outcome as usize].inc_by(f64::from(audio_ms) / 1_000.0);
        let meters = self.0.pin();
        let key = (account.number(), pair);
        let meter = meters.get(&key).or_else(|| {
            let room = |n: u32| (n < PAIRS_MAX).then_some(n + 1);
            // Two that meet here may count one pair twice towards the bound, which only gets lower.
            account.pairs.fetch_update(Relaxed, Relaxed, room).ok()?;
            Some(meters.get_or_insert_with(key, Meter::default))
        });
        meter.unwrap_or(&account.other_pairs).add(outcome, audio_ms);
    }

    /// What each of these used, in their order and then that of the pairs.
    pub(super) fn read(&self, accounts: &[Arc<Account>]) -> Vec<Used> {
        let meters = self.0.pin();
        let mut by_number: BTreeMap<u32, BTreeMap<Pair, &Meter>> = BTreeMap::new();
        for ((number, pair), meter) in &meters {
            by_number.entry(*number).or_default().insert(*pair, meter);
        }
        let mut rows = Vec::new();
        for account in accounts {
            let used = |pair, meter: &Meter| Used {
                tenant: Arc::clone(&account.name),
                pair,
                by_outcome: meter.read(),
            };
            let named = by_number.remove(&account.number()).unwrap_or_default();
            rows.extend(named.into_iter().map(|(pair, meter)| used(Some(pair), meter)));
            if !account.other_pairs.is_zero() {
                rows.push(used(None, &account.other_pairs));
            }
        }
        rows
    }
}
