//! Where a turn is: one node, and how many of its jobs are in flight there, in one word, so that
//! the slot is taken with the first of them and given back with the last.

use crate::atomics::{AtomicU64, Ordering::SeqCst};
use crate::node::NodeIndex;

/// Node index in the upper half (0 is none), jobs in flight there in the lower.
#[derive(Debug)]
pub(super) struct Binding(AtomicU64);

impl Binding {
    /// Nowhere.
    pub(super) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// The node, and the jobs in flight there.
    pub(super) fn now(&self) -> (NodeIndex, u32) {
        let word = self.0.load(SeqCst);
        (NodeIndex((word >> 32) as u32), word as u32)
    }

    /// Moves from one binding to another, if it is still the one.
    pub(super) fn rebind(&self, from: (NodeIndex, u32), to: (NodeIndex, u32)) -> bool {
        let pack = |(node, n): (NodeIndex, u32)| (u64::from(node.0) << 32) | u64::from(n);
        self.0.compare_exchange(pack(from), pack(to), SeqCst, SeqCst).is_ok()
    }

    /// One job less in flight; whether it was the last, so that the slot goes back. None if there
    /// was none.
    pub(super) fn leave(&self) -> Option<bool> {
        let before = self.0.fetch_sub(1, SeqCst) as u32;
        (before > 0).then_some(before == 1)
    }
}
