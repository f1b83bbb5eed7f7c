//! The atomics of the small machines that more than one thread moves: slots, bindings, the state
//! word.
//!
//! They are named here once so that `tests/loom.rs` can compile the same files over loom's, which
//! tries every order in which threads can meet.

pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
