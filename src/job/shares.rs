//! Start-time fair queueing: who has taken how much, by weight.
//!
//! Each tenant has a start, in virtual time: what it has taken, divided by its weight. Whose start
//! is least goes first, and what it takes moves its own start on. The clock is the start whose turn
//! it was last; nobody's start is before it. So a tenant that did not ask for a while has no
//! credit, and one that cannot be served while others are keeps none.
//!
//! Of two tenants that both have work all the time, neither is ever further ahead, divided by its
//! weight, than by one piece of work of each.

use std::collections::BTreeMap;

/// What a job costs at least, in milliseconds of audio: a short one takes a slot too.
const COST_MS_MIN: u32 = 250;
/// Virtual time of a millisecond at weight 1: divided by the highest weight it is a whole number.
const UNIT: u64 = 1_000;

/// What tenants have taken of something.
#[derive(Debug, Default)]
pub(super) struct Shares {
    clock: u64,
    /// By the tenant's number; who is not in here starts at the clock.
    starts: BTreeMap<u32, u64>,
}

impl Shares {
    /// Who has the least start goes first.
    pub(super) fn start(&self, tenant: u32) -> u64 {
        self.starts.get(&tenant).copied().unwrap_or(0).max(self.clock)
    }

    /// It is the turn of that start, and the tenant took a job of so much audio.
    pub(super) fn charge(&mut self, turn: u64, tenant: u32, audio_ms: u32, weight: u32) {
        self.clock = self.clock.max(turn);
        let cost = u64::from(audio_ms.max(COST_MS_MIN)) * UNIT / u64::from(weight);
        let start = self.start(tenant) + cost;
        self.starts.insert(tenant, start);
    }

    /// Forgets what has no bearing any more; `all`, if nobody waits.
    pub(super) fn tidy(&mut self, all: bool) {
        match all {
            true => *self = Self::default(),
            false => self.starts.retain(|_, start| *start > self.clock),
        }
    }
}
