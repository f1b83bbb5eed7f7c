//! How submitters and the store's one thread find each other: sleep without a missed wake-up, a
//! stop without a write left behind. It knows nothing of what is written.
//!
//! Both halves rest on the same argument. One side writes A, fences, then reads B; the other writes
//! B, fences, then reads A. The two fences have an order, so at least one side sees the other.

use std::sync::OnceLock;

use crate::atomics::Ordering::{Acquire, Relaxed, Release, SeqCst};
use crate::atomics::{AtomicBool, AtomicUsize, Thread, fence, park};

/// The meeting point.
#[derive(Debug)]
pub(super) struct Signal {
    /// Submitters between entering and leaving.
    inside: AtomicUsize,
    /// No more writes are taken. Set once.
    stopping: AtomicBool,
    /// The thread is parked or about to be. Set by it; cleared by whoever wakes it.
    sleeping: AtomicBool,
    /// Whom to wake; set before the first submitter can exist.
    thread: OnceLock<Thread>,
}

/// A submitter on its way; leaves when dropped.
pub(super) struct Inside<'a>(&'a Signal);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Release);
    }
}

impl Signal {
    /// With no thread yet.
    pub(super) fn new() -> Self {
        Self {
            inside: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            sleeping: AtomicBool::new(false),
            thread: OnceLock::new(),
        }
    }

    /// This is the thread to wake; false if there was one.
    pub(super) fn wakes(&self, thread: Thread) -> bool {
        self.thread.set(thread).is_ok()
    }

    /// Lets a submitter in, unless nothing is taken any more.
    pub(super) fn enter(&self) -> Option<Inside<'_>> {
        self.inside.fetch_add(1, Relaxed);
        let inside = Inside(self);
        // Either this load sees the stop, or the thread's look at `inside` sees us and waits.
        fence(SeqCst);
        (!self.stopping.load(Relaxed)).then_some(inside)
    }

    /// Lets nobody in from now on, and wakes the thread.
    pub(super) fn stop(&self) {
        self.close();
        self.wake();
        // It may wait for something else than work, which is no sleep.
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// Lets nobody in from now on.
    pub(super) fn close(&self) {
        self.stopping.store(true, Relaxed);
    }

    /// Whether nobody is let in any more.
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Relaxed)
    }

    /// Whether nobody can bring anything any more, once `is_stopping`: what was brought is then
    /// there to be seen.
    pub(super) fn is_empty(&self) -> bool {
        fence(SeqCst);
        self.inside.load(Acquire) == 0
    }

    /// Whether the thread is at rest.
    pub(super) fn is_sleeping(&self) -> bool {
        self.sleeping.load(Acquire)
    }

    /// Wakes the thread if it sleeps, after something was brought; of many callers at most one pays
    /// for it.
    pub(super) fn wake(&self) {
        fence(SeqCst);
        if self.sleeping.load(Relaxed)
            && self.sleeping.swap(false, Relaxed)
            && let Some(thread) = self.thread.get()
        {
            // Before the park, it makes the park return.
            thread.unpark();
        }
    }

    /// For the thread: parks until there is something to do.
    pub(super) fn rest(&self, idle: impl Fn() -> bool) {
        self.sleeping.store(true, Relaxed);
        fence(SeqCst);
        if idle() && !self.is_stopping() {
            // Parking may return for no reason; the flag says whether there was one.
            while self.sleeping.load(Relaxed) {
                park();
            }
        }
        self.sleeping.store(false, Relaxed);
    }
}
