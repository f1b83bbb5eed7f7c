//! What a load found, as numbers: for people as lines, for programs as JSON.
//!
//! It refuses to know how they were taken, and prints nothing itself.

use hdrhistogram::Histogram;
use serde::Serialize;

/// A distribution of times, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Quantiles {
    /// How many times there are.
    pub count: u64,
    /// Half of them are no longer.
    pub p50_us: f64,
    /// 90 % of them are no longer.
    pub p90_us: f64,
    /// 99 % of them are no longer.
    pub p99_us: f64,
    /// 99.9 % of them are no longer.
    pub p999_us: f64,
    /// The longest.
    pub max_us: f64,
}

impl Quantiles {
    /// Of times in nanoseconds.
    pub(super) fn of(times: &Histogram<u64>) -> Self {
        let at = |q: f64| times.value_at_quantile(q) as f64 / 1_000.0;
        Self {
            count: times.len(),
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: times.max() as f64 / 1_000.0,
        }
    }
}

/// What should be zero.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Faults {
    /// Said, and without a last word when patience was over.
    pub lost: u64,
    /// Due, and not even said when patience was over: the server took no more.
    pub unsent: u64,
    /// Results that came again.
    pub repeated: u64,
    /// Results of utterances given up as lost in an earlier round.
    pub late: u64,
    /// Results behind a later one of their session.
    pub disordered: u64,
    /// Results or jobs of a session that is another, or of what nobody said.
    pub foreign: u64,
    /// Results whose text does not prove that their audio was that of the utterance.
    pub wrong: u64,
    /// `missing_result` frames.
    pub missing: u64,
    /// `error` frames.
    pub errors: u64,
    /// `job_cancel` frames for jobs that a node had.
    pub cancelled: u64,
    /// Frames without the fields they must have.
    pub unreadable: u64,
    /// Connections that ended by themselves.
    pub disconnected: u64,
}

impl Faults {
    /// Each with its name.
    pub fn each(&self) -> [(&'static str, u64); 12] {
        [
            ("lost", self.lost),
            ("unsent", self.unsent),
            ("repeated", self.repeated),
            ("late", self.late),
            ("disordered", self.disordered),
            ("foreign", self.foreign),
            ("wrong", self.wrong),
            ("missing", self.missing),
            ("errors", self.errors),
            ("cancelled", self.cancelled),
            ("unreadable", self.unreadable),
            ("disconnected", self.disconnected),
        ]
    }

    /// Whether every utterance was answered once, in order, in its session, with its own answer.
    pub fn is_clean(&self) -> bool {
        *self == Self::default()
    }

    /// In one line.
    pub fn line(&self) -> String {
        let found: Vec<String> = self
            .each()
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .map(|(name, count)| format!("{count} {name}"))
            .collect();
        match found.is_empty() {
            true => "every utterance answered once, in order, with its own answer".to_owned(),
            false => found.join(", "),
        }
    }
}

/// What the server's process took, where it can be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Cost {
    /// Processor time per utterance, in microseconds, in user and kernel mode.
    pub cpu_us_per_utterance: f64,
    /// Resident memory before the round, in kB.
    pub rss_before_kb: u64,
    /// Resident memory after it, in kB.
    pub rss_after_kb: u64,
}

/// One round.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figures {
    /// Utterances a second that were due; none in a closed loop.
    pub offered_per_s: Option<f64>,
    /// Results a second that came while it was measured.
    pub achieved_per_s: f64,
    /// Utterances said, those before the measurement among them.
    pub sent: u64,
    /// How long after it was due an utterance was begun: the generator's own delay, and that of a
    /// server that takes no more.
    pub late: Quantiles,
    /// From when it was due to when a node has read the assignment.
    pub dispatch: Quantiles,
    /// The same from when its sender began to write.
    pub dispatch_from_send: Quantiles,
    /// From when a node began to write the result to when the session has read it.
    pub result: Quantiles,
    /// From when it was due to when the session has read the result.
    pub round_trip: Quantiles,
    /// The same from when its sender began to write.
    pub round_trip_from_send: Quantiles,
    /// What should be zero.
    pub faults: Faults,
    /// What the server said of the first thing it did not like.
    pub complaint: Option<String>,
    /// What it cost the server.
    pub cost: Option<Cost>,
}

impl Figures {
    /// What a round came to.
    pub(super) fn in_a_line(&self) -> String {
        format!(
            "{:>8.0}/s answered, dispatch p50 {:>5.0} p99 {:>6.0}, round trip p50 {:>5.0} \
             p99 {:>6.0} µs",
            self.achieved_per_s,
            self.dispatch_from_send.p50_us,
            self.dispatch_from_send.p99_us,
            self.round_trip_from_send.p50_us,
            self.round_trip_from_send.p99_us,
        )
    }
}

impl Figures {
    /// For people.
    pub fn lines(&self) -> Vec<String> {
        let closed = || "in a closed loop".to_owned();
        let offered = self.offered_per_s.map_or_else(closed, |r| format!("{r:.0}/s offered"));
        let mut lines = vec![
            format!(
                "{offered}, {:.1}/s answered, {} utterances said",
                self.achieved_per_s, self.sent
            ),
            format!("{:<22}{:>9}{:>9}{:>9}{:>9}{:>9}", "µs", "p50", "p90", "p99", "p99.9", "max"),
        ];
        for (name, q) in [
            ("dispatch", &self.dispatch),
            ("dispatch, from send", &self.dispatch_from_send),
            ("result", &self.result),
            ("round trip", &self.round_trip),
            ("round trip, from send", &self.round_trip_from_send),
            ("said too late by", &self.late),
        ] {
            lines.push(format!(
                "{name:<22}{:>9.0}{:>9.0}{:>9.0}{:>9.0}{:>9.0}",
                q.p50_us, q.p90_us, q.p99_us, q.p999_us, q.max_us
            ));
        }
        if let Some(cost) = &self.cost {
            lines.push(format!(
                "server: {:.1} µs of processor an utterance, {:.1} MB resident before, {:.1} after",
                cost.cpu_us_per_utterance,
                cost.rss_before_kb as f64 / 1_000.0,
                cost.rss_after_kb as f64 / 1_000.0
            ));
        }
        lines.push(self.faults.line());
        lines.extend(self.complaint.iter().map(|words| format!("the server said: {words}")));
        lines
    }
}

/// The middle one; 0 of none.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
