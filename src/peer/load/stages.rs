//! Where the time went inside a server, by the stamps of the jobs that it remembers.
//!
//! It refuses to know how the server is asked.

use hdrhistogram::{CreationError, Histogram};
use serde::Serialize;
use serde_json::Value;

use super::report::Quantiles;

/// Longest time that is told apart from longer ones, in microseconds.
const LONGEST_US: u64 = 600_000_000;

/// Stretches of the lives of jobs in a server.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stages {
    /// From the last byte of the utterance read to its assignment flushed to a node.
    pub read_to_written: Quantiles,
    /// From there to the answer taken: the node's time, and the way there and back.
    pub written_to_settled: Quantiles,
    /// From the answer taken to its place on the disk.
    pub settled_to_durable: Quantiles,
    /// From the answer taken to the result flushed to the listener.
    pub settled_to_delivered: Quantiles,
}

impl Stages {
    /// Of the jobs in an answer of `/api/v1/jobs`; those that have not come so far are left out.
    pub fn of(jobs: &Value) -> Result<Self, CreationError> {
        let stretch = |from: &str, to: &str| -> Result<Quantiles, CreationError> {
            let mut times = Histogram::<u64>::new_with_bounds(1, LONGEST_US * 1_000, 3)?;
            for job in jobs["jobs"].as_array().into_iter().flatten() {
                let at = |stage: &str| job["stamps_us"][stage].as_u64();
                if let (Some(from), Some(to)) = (at(from), at(to)) {
                    times.saturating_record(to.saturating_sub(from).max(1) * 1_000);
                }
            }
            Ok(Quantiles::of(&times))
        };
        Ok(Self {
            read_to_written: stretch("received", "written")?,
            written_to_settled: stretch("written", "settled")?,
            settled_to_durable: stretch("settled", "durable")?,
            settled_to_delivered: stretch("settled", "delivered")?,
        })
    }

    /// For people; nothing of a server that told nothing.
    pub fn lines(&self) -> Vec<String> {
        let all = [
            ("read to written", &self.read_to_written),
            ("written to settled", &self.written_to_settled),
            ("settled to durable", &self.settled_to_durable),
            ("settled to delivered", &self.settled_to_delivered),
        ];
        let known = all.into_iter().filter(|(_, times)| times.count > 0);
        let line = |(name, q): (&str, &Quantiles)| {
            format!(
                "in the server: {name:<22} p50 {:>6.0} p90 {:>6.0} p99 {:>6.0} µs, {} jobs",
                q.p50_us, q.p90_us, q.p99_us, q.count
            )
        };
        known.map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn stretches_are_taken_of_the_jobs_that_came_so_far() {
        let jobs = json!({"jobs": [
            {"stamps_us": {"received": 0, "written": 40, "settled": 90, "durable": 1_090}},
            {"stamps_us": {"received": 0, "written": 60}},
            {"stamps_us": {"received": 0}},
            {},
        ]});
        let stages = Stages::of(&jobs).unwrap();
        let (way, disk) = (&stages.read_to_written, &stages.settled_to_durable);
        assert_eq!((way.count, way.max_us.round()), (2, 60.0));
        assert_eq!((disk.count, disk.max_us.round()), (1, 1_000.0));
        assert_eq!(stages.lines().len(), 3, "nothing was delivered");
        assert!(Stages::of(&json!({})).unwrap().lines().is_empty());
    }
}
