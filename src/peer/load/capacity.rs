//! The highest rate at which a server still answers in time.
//!
//! Doubles until it fails, then halves the interval. It refuses to know why a rate is too high.

use std::time::Duration;

use serde::Serialize;

use super::{Figures, LoadError, Options, Pace, Plan, World};

/// The first rate, in utterances a second.
const FIRST: f64 = 250.0;
/// Most steps, whatever was found.
const STEPS_MAX: usize = 24;
/// How close the answer is to what just fails.
const CLOSE: f64 = 1.05;
/// Tries at one rate: a machine that does something else for a moment fails any.
const TRIES: usize = 2;
/// Rest between two steps, in which the server forgets the last one.
const REST: Duration = Duration::from_millis(200);

/// One rate, and how it went.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Step {
    /// Utterances a second.
    pub rate: f64,
    /// Whether it was answered in time, and all of it.
    pub holds: bool,
    /// What was measured.
    pub figures: Figures,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Capacity {
    /// The highest rate that held; none if the first did not.
    pub rate: Option<f64>,
    /// The lowest rate that did not hold; none if all did.
    pub fails_at: Option<f64>,
    /// Every step, in order.
    pub steps: Vec<Step>,
}

/// The two sides between which the answer lies.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Bounds {
    holds: Option<f64>,
    fails: Option<f64>,
}

impl Bounds {
    /// The next rate to try; none if the answer is close enough.
    fn next(self) -> Option<f64> {
        match (self.holds, self.fails) {
            (None, None) => Some(FIRST),
            (Some(holds), None) => Some(holds * 2.0),
            (None, Some(fails)) => (fails > 2.0).then_some(fails / 4.0),
            (Some(holds), Some(fails)) => {
                let between = (holds + fails) / 2.0;
                // A whole number of a hundred or more still lies between the two.
                let next = if holds < 100.0 { between } else { between.round() };
                (fails / holds > CLOSE).then_some(next)
            }
        }
    }

    fn learn(&mut self, rate: f64, holds: bool) {
        match holds {
            true => self.holds = Some(rate),
            false => self.fails = Some(rate),
        }
    }
}

/// Looks for the highest rate at which 99 % of the round trips take at most `p99`. Each step has
/// connections of its own, so that none inherits the queues of another.
pub async fn find_capacity(
    url: &str,
    options: &Options,
    p99: Duration,
    (warmup_s, seconds): (f64, f64),
    mut tell: impl FnMut(&Step),
) -> Result<Capacity, LoadError> {
    let (mut bounds, mut steps, mut failed) = (Bounds::default(), Vec::new(), 0);
    while let Some(rate) = bounds.next().filter(|_| steps.len() < STEPS_MAX) {
        let mut world = World::open(url, options, None).await?;
        let figures = world.round(Plan { pace: Pace::Rate(rate), warmup_s, seconds }).await?;
        world.close().await;
        let in_time = figures.round_trip.p99_us <= p99.as_secs_f64() * 1e6;
        let step = Step { rate, holds: in_time && figures.faults.is_clean(), figures };
        tell(&step);
        failed = if step.holds { 0 } else { failed + 1 };
        if step.holds || failed == TRIES {
            bounds.learn(rate, step.holds);
            failed = 0;
        }
        steps.push(step);
        tokio::time::sleep(REST).await;
    }
    Ok(Capacity { rate: bounds.holds, fails_at: bounds.fails, steps })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_ends_close_to_the_truth() {
        for truth in [1.5, 90.0, 260.0, 3_333.0, 20_000.0] {
            let (mut bounds, mut steps) = (Bounds::default(), 0);
            while let Some(rate) = bounds.next().filter(|_| steps < STEPS_MAX) {
                bounds.learn(rate, rate <= truth);
                steps += 1;
            }
            let found = bounds.holds.unwrap_or_default();
            assert!(found <= truth && found * CLOSE * 1.01 >= truth, "{found} of {truth}");
            assert!(steps < STEPS_MAX, "{steps} steps for {truth}");
        }
    }
}
