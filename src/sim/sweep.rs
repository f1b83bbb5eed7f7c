//! Many seeds, on several threads. Each world stays on one thread, so it is the same wherever and
//! however often it is made.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use super::{Counts, Options, Report, run};

/// What came of many worlds.
#[derive(Debug, Default)]
pub struct Swept {
    /// Worlds made.
    pub worlds: u64,
    /// Things that happened in all of them.
    pub events: u64,
    /// What was reached in all of them.
    pub counts: Counts,
    /// All traces, mixed.
    pub trace: u64,
    /// The failure of the lowest seed that failed.
    pub failure: Option<Report>,
    /// What the judges said, by seed.
    pub sentences: BTreeMap<u64, String>,
}

impl Swept {
    fn take(&mut self, report: Report) {
        self.worlds += 1;
        self.events += report.events;
        self.trace ^= report.trace.wrapping_mul(report.seed | 1);
        self.counts.add(&report.counts);
        if let Some(failure) = &report.failure {
            self.sentences.insert(report.seed, failure.sentence.clone());
        }
        let first = self.failure.as_ref().is_none_or(|known| report.seed < known.seed);
        if report.failure.is_some() && first {
            self.failure = Some(report);
        }
    }

    fn merge(&mut self, other: Swept) {
        self.worlds += other.worlds;
        self.events += other.events;
        self.trace ^= other.trace;
        self.counts.add(&other.counts);
        self.sentences.extend(other.sentences);
        if let Some(report) = other.failure
            && self.failure.as_ref().is_none_or(|known| report.seed < known.seed)
        {
            self.failure = Some(report);
        }
    }
}

/// Makes the worlds of `count` seeds from `first` on, on `jobs` threads. Ends early at the first
/// failure unless told to go on.
pub fn sweep(first: u64, count: u64, jobs: usize, go_on: bool, options: &Options) -> Swept {
    let (next, failed) = (AtomicU64::new(0), AtomicBool::new(false));
    let work = || {
        let mut swept = Swept::default();
        while go_on || !failed.load(SeqCst) {
            let n = next.fetch_add(1, SeqCst);
            if n >= count {
                break;
            }
            let report = run(first + n, options);
            failed.fetch_or(report.failure.is_some(), SeqCst);
            swept.take(report);
        }
        swept
    };
    let mut all = Swept::default();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..jobs.max(1)).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            // A world's panic is caught where it runs.
            if let Ok(swept) = thread.join() {
                all.merge(swept);
            }
        }
    });
    all
}
