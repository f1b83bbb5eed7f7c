//! Gives results back in the order of the utterances.
//!
//! A result waits for the utterances before it until they settle, or until it has waited for
//! `gap_wait_ms`: then the gap is told, the later results flow, and what was late is still
//! delivered when it comes, marked as late. Nothing computed is thrown away, and every utterance
//! ends in exactly one thing told in its place, plus at most one late result.

use std::collections::BTreeMap;

/// What is to be told about one utterance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Release<T> {
    /// In its place.
    InOrder(u64, T),
    /// It is missing so far, and later ones go ahead.
    Gap(u64),
    /// After later ones went ahead.
    Late(u64, T),
}

#[derive(Debug)]
enum Entry<T> {
    /// Its job is not settled yet.
    Open,
    /// Settled; ready since this moment.
    Ready(T, u64),
}

/// One listener's order.
#[derive(Debug)]
pub struct Sequencer<T> {
    gap_wait_us: u64,
    entries: BTreeMap<u64, Entry<T>>,
    /// Utterances whose gap was told and whose result may still come.
    late: Vec<u64>,
}

impl<T> Sequencer<T> {
    /// An empty order.
    pub fn new(gap_wait_ms: u64) -> Self {
        Self { gap_wait_us: gap_wait_ms * 1_000, entries: BTreeMap::new(), late: Vec::new() }
    }

    /// An utterance is being done: later ones wait for it. What was to be told of it before, and
    /// was not yet, is void.
    pub fn open(&mut self, index: u64) {
        self.entries.insert(index, Entry::Open);
    }

    /// The utterance was told of and is being done again: its result is a late one.
    pub fn expect_late(&mut self, index: u64) {
        if !self.entries.contains_key(&index) && !self.late.contains(&index) {
            self.late.push(index);
        }
    }

    /// The utterance is settled: `item` is what is to be told.
    pub fn settle(&mut self, index: u64, item: T, now_us: u64, out: &mut Vec<Release<T>>) {
        if let Some(at) = self.late.iter().position(|l| *l == index) {
            self.late.swap_remove(at);
            out.push(Release::Late(index, item));
            return;
        }
        self.entries.insert(index, Entry::Ready(item, now_us));
        self.release(now_us, out);
    }

    /// Lets time act: a gap may have been waited for long enough.
    pub fn release(&mut self, now_us: u64, out: &mut Vec<Release<T>>) {
        while let Some(first) = self.entries.first_entry() {
            if matches!(first.get(), Entry::Ready(..)) {
                let (index, entry) = first.remove_entry();
                if let Entry::Ready(item, _) = entry {
                    out.push(Release::InOrder(index, item));
                }
                continue;
            }
            let index = *first.key();
            if self.gap_over_at().is_none_or(|at| at > now_us) {
                return;
            }
            self.entries.remove(&index);
            self.late.push(index);
            out.push(Release::Gap(index));
        }
    }

    /// When the first gap has been waited for long enough, monotonic microseconds.
    pub fn gap_over_at(&self) -> Option<u64> {
        let ready = self.entries.values().filter_map(|entry| match entry {
            Entry::Ready(_, since) => Some(*since),
            Entry::Open => None,
        });
        ready.min().map(|since| since + self.gap_wait_us)
    }

    /// Settled utterances that wait for earlier ones.
    pub fn ready(&self) -> usize {
        self.entries.values().filter(|entry| matches!(entry, Entry::Ready(..))).count()
    }

    /// Gives up the order: everything settled, in the order of the utterances.
    pub fn drain(&mut self) -> Vec<(u64, T)> {
        let entries = std::mem::take(&mut self.entries);
        let ready = entries.into_iter().filter_map(|(index, entry)| match entry {
            Entry::Ready(item, _) => Some((index, item)),
            Entry::Open => None,
        });
        ready.collect()
    }

    /// Whether everything has been told.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.late.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(gap_ms: u64) -> (Sequencer<u64>, Vec<Release<u64>>) {
        (Sequencer::new(gap_ms), Vec::new())
    }

    #[test]
    fn a_later_result_waits_for_an_earlier_one() {
        let (mut s, mut out) = run(5_000);
        (0..3).for_each(|i| s.open(i));
        s.settle(1, 1, 0, &mut out);
        assert!(out.is_empty());
        s.settle(0, 0, 10, &mut out);
        assert_eq!(out, [Release::InOrder(0, 0), Release::InOrder(1, 1)]);
        assert!(!s.is_empty());
    }

    #[test]
    fn a_gap_is_told_and_its_late_result_still_delivered() {
        let (mut s, mut out) = run(5_000);
        (0..3).for_each(|i| s.open(i));
        s.settle(1, 1, 1_000, &mut out);
        assert_eq!(s.gap_over_at(), Some(5_001_000));
        s.release(5_000_999, &mut out);
        assert!(out.is_empty());
        s.release(5_001_000, &mut out);
        assert_eq!(out, [Release::Gap(0), Release::InOrder(1, 1)]);
        s.settle(0, 0, 6_000_000, &mut out);
        assert_eq!(out.last(), Some(&Release::Late(0, 0)));
        s.settle(2, 2, 6_000_000, &mut out);
        assert!(s.is_empty());
    }

    #[test]
    fn nothing_waits_when_nothing_is_behind_it() {
        let (mut s, mut out) = run(5_000);
        s.open(0);
        s.release(u64::MAX / 2, &mut out);
        assert!(out.is_empty() && s.gap_over_at().is_none());
    }

    proptest! {
        #[test]
        fn each_utterance_is_told_once_and_in_order(
            order in Just((0_u64..20).collect::<Vec<_>>()).prop_shuffle(),
            steps in proptest::collection::vec(0_u64..4_000_000, 20),
        ) {
            let (mut s, mut out) = run(5_000);
            (0..20).for_each(|i| s.open(i));
            let mut now = 0;
            for (index, step) in order.into_iter().zip(steps) {
                now += step;
                s.release(now, &mut out);
                s.settle(index, index, now, &mut out);
            }
            let places: Vec<u64> = out.iter().filter_map(|r| match r {
                Release::InOrder(i, _) | Release::Gap(i) => Some(*i),
                Release::Late(..) => None,
            }).collect();
            prop_assert_eq!(places, (0..20).collect::<Vec<_>>());
            let mut results: Vec<u64> = out.iter().filter_map(|r| match r {
                Release::InOrder(_, t) | Release::Late(_, t) => Some(*t),
                Release::Gap(_) => None,
            }).collect();
            results.sort_unstable();
            prop_assert_eq!(results, (0..20).collect::<Vec<_>>());
            prop_assert!(s.is_empty());
        }
    }
}
