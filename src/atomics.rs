//! The atomics of the small machines that more than one thread moves: slots, bindings, the state
//! word, the store's sleep.
//!
//! They are named here once so that `tests/loom.rs` can compile the same files over loom's, which
//! tries every order in which threads can meet.

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize};
pub(crate) use std::sync::atomic::{Ordering, fence};
pub(crate) use std::thread::{Thread, park};
