//! Counts, times and traces without waiting. It refuses to know why.

pub mod log;
mod metrics;
mod stage;

pub use metrics::Metrics;
pub use stage::{Now, Stage, Stamps};
