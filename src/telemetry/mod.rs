//! Counts, times and traces without waiting. It refuses to know why.

mod bucket;
pub mod log;
mod metrics;
mod stage;

pub use bucket::Bucket;
pub use metrics::Metrics;
pub use stage::{Now, Stage, Stamps};
