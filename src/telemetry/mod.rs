//! Counts, times and traces without waiting. It refuses to know why.

mod bucket;
pub mod log;
mod metrics;
mod seeds;
mod spread;
mod stage;

pub use bucket::{Bucket, Rate};
pub use metrics::{Metrics, Reference};
pub use spread::Spread;
pub use stage::{Now, Stage, Stamps};
