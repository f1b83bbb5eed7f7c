//! When things happened: the time handed to every decision, and the stamps a job collects.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::ser::{Serialize, SerializeMap, Serializer};

/// The time at which a decision is made. Decisions never read a clock; the shell hands them this.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Now {
    /// Monotonic, microseconds since the process began; what deadlines are made of.
    pub us: u64,
    /// Wall clock, Unix milliseconds; what is told to peers and kept on disk.
    pub unix_ms: u64,
}

impl Now {
    /// The monotonic moment `ms` milliseconds from now, in microseconds.
    pub fn after_ms(self, ms: u64) -> u64 {
        self.us.saturating_add(ms.saturating_mul(1_000))
    }
}

/// Borders that a job crosses, in the order of a good life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Stage {
    /// Its first audio was read from the speaker's socket.
    Received,
    /// The segmenter ended it.
    Cut,
    /// It entered the job table.
    Queued,
    /// A node was chosen (latest attempt).
    Placed,
    /// `job_assign` was flushed to that node's socket (latest attempt).
    Written,
    /// The node acknowledged or started it, if it ever says so.
    Acked,
    /// It reached its outcome.
    Settled,
    /// The outcome is on disk.
    Durable,
    /// The outcome was flushed to the listener's socket.
    Delivered,
    /// The listener has confirmed it, or its WebSocket stack has proven that it is there.
    Acknowledged,
}

impl Stage {
    /// All stages, in order.
    pub const ALL: [Stage; 10] = [
        Stage::Received,
        Stage::Cut,
        Stage::Queued,
        Stage::Placed,
        Stage::Written,
        Stage::Acked,
        Stage::Settled,
        Stage::Durable,
        Stage::Delivered,
        Stage::Acknowledged,
    ];

    /// Name in explanations.
    pub fn as_str(self) -> &'static str {
        match self {
            Stage::Received => "received",
            Stage::Cut => "cut",
            Stage::Queued => "queued",
            Stage::Placed => "placed",
            Stage::Written => "written",
            Stage::Acked => "acked",
            Stage::Settled => "settled",
            Stage::Durable => "durable",
            Stage::Delivered => "delivered",
            Stage::Acknowledged => "acknowledged",
        }
    }
}

/// Monotonic microseconds of each stage; zero where it did not come to that. Whoever causes the
/// stage writes it.
#[derive(Debug, Default)]
pub struct Stamps([AtomicU64; Stage::ALL.len()]);

impl Stamps {
    /// Records a stage; a later attempt overwrites an earlier one.
    pub fn mark(&self, stage: Stage, us: u64) {
        self.0[stage as usize].store(us.max(1), Ordering::Relaxed);
    }

    /// When the stage was reached, in microseconds; zero if it was not.
    pub fn at(&self, stage: Stage) -> u64 {
        self.0[stage as usize].load(Ordering::Relaxed)
    }

    /// Microseconds between two stages that were both reached.
    pub fn between(&self, from: Stage, to: Stage) -> Option<u64> {
        let (from, to) = (self.at(from), self.at(to));
        (from > 0 && to > 0).then(|| to.saturating_sub(from))
    }
}

impl Serialize for Stamps {
    /// Microseconds since the first stage reached.
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let origin = Stage::ALL.iter().map(|g| self.at(*g)).filter(|us| *us > 0).min().unwrap_or(0);
        let mut map = s.serialize_map(None)?;
        for stage in Stage::ALL.iter().filter(|g| self.at(**g) > 0) {
            map.serialize_entry(stage.as_str(), &(self.at(*stage) - origin))?;
        }
        map.end()
    }
}
