//! How the values of a histogram are spread, since a moment.

use prometheus::Histogram;
use prometheus::core::Metric as _;

/// How many values there are up to each bound.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Spread {
    /// Upper bound, and values up to it; both rise.
    up_to: Vec<(f64, u64)>,
    /// All values, also those above the last bound.
    all: u64,
}

impl Spread {
    /// All values so far.
    pub fn of(histogram: &Histogram) -> Self {
        let metric = histogram.metric();
        let read = metric.get_histogram();
        let up_to = read.get_bucket().iter().map(|b| (b.upper_bound(), b.cumulative_count()));
        Self { up_to: up_to.collect(), all: read.get_sample_count() }
    }

    /// The values that came since `earlier`, which is of the same histogram.
    #[must_use]
    pub fn since(&self, earlier: &Spread) -> Self {
        let before = |at: usize| earlier.up_to.get(at).map_or(0, |(_, count)| *count);
        let up_to = self.up_to.iter().enumerate();
        let up_to = up_to.map(|(at, (bound, n))| (*bound, n.saturating_sub(before(at)))).collect();
        Self { up_to, all: self.all.saturating_sub(earlier.all) }
    }

    /// How many values.
    pub fn count(&self) -> u64 {
        self.all
    }

    /// The value that this share of them does not exceed, as far as the bounds tell: between two
    /// bounds values count as evenly spread, above the last one as that one. None of no values.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let (last, _) = *self.up_to.last()?;
        if self.all == 0 {
            return None;
        }
        let rank = share * self.all as f64;
        let (mut low, mut below) = (0.0, 0);
        for (bound, count) in &self.up_to {
            if *count as f64 >= rank && *count > below {
                let part = ((rank - below as f64) / (count - below) as f64).clamp(0.0, 1.0);
                return Some(low + (bound - low) * part);
            }
            (low, below) = (*bound, *count);
        }
        Some(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::HistogramOpts;

    #[test]
    fn quantiles_are_those_of_the_values_since_the_moment() {
        let options = HistogramOpts::new("h", "h").buckets(vec![1.0, 2.0, 4.0]);
        let histogram = Histogram::with_opts(options).unwrap();
        assert_eq!(Spread::of(&histogram).quantile(0.5), None);
        assert_eq!(Spread::default().quantile(0.5), None);
        (0..10).for_each(|_| histogram.observe(100.0));
        let before = Spread::of(&histogram);
        assert_eq!(before.quantile(0.5), Some(4.0), "above the last bound");
        (0..50).for_each(|_| histogram.observe(0.5));
        (0..50).for_each(|_| histogram.observe(3.0));
        let now = Spread::of(&histogram).since(&before);
        assert_eq!(now.count(), 100);
        assert_eq!(now.quantile(0.25), Some(0.5));
        assert_eq!(now.quantile(0.5), Some(1.0));
        assert_eq!(now.quantile(0.75), Some(3.0));
        assert_eq!(now.quantile(1.0), Some(4.0));
        assert_eq!(now.since(&now).quantile(0.5), None);
    }
}
