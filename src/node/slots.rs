//! How many jobs a node has room for, and which of its connections speaks for it. Counting only:
//! who may take a slot is decided elsewhere.

use crate::atomics::{AtomicU32, AtomicU64, Ordering::SeqCst};

/// The slots of one node.
#[derive(Debug)]
pub(super) struct Slots {
    used: AtomicU32,
    max: AtomicU32,
}

impl Slots {
    /// All free.
    pub(super) fn new(max: u32) -> Self {
        Self { used: AtomicU32::new(0), max: AtomicU32::new(max) }
    }

    /// Takes a slot, if one is free.
    pub(super) fn claim(&self) -> bool {
        let max = self.max.load(SeqCst);
        self.used.fetch_update(SeqCst, SeqCst, |n| (n < max).then_some(n + 1)).is_ok()
    }

    /// Takes a slot for what the node has already, free or not.
    pub(super) fn claim_held(&self) {
        self.used.fetch_add(1, SeqCst);
    }

    /// Gives a slot back; false if none was taken.
    pub(super) fn release(&self) -> bool {
        self.used.fetch_sub(1, SeqCst) > 0
    }

    /// From now on there are so many; those in use stay in use.
    pub(super) fn resize(&self, max: u32) {
        self.max.store(max, SeqCst);
    }

    /// Slots in use and slots there are.
    pub(super) fn count(&self) -> (u32, u32) {
        (self.used.load(SeqCst), self.max.load(SeqCst))
    }
}

/// Which connection speaks for a node: the newest. Numbers are handed out by the registry.
#[derive(Debug)]
pub(super) struct Generation(AtomicU64);

impl Generation {
    /// None yet.
    pub(super) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// This connection speaks, unless a newer one does already.
    pub(super) fn come(&self, generation: u64) {
        self.0.fetch_max(generation, SeqCst);
    }

    /// The one that speaks.
    pub(super) fn current(&self) -> u64 {
        self.0.load(SeqCst)
    }
}
