//! Outgoing frames, waiting for the one task that owns the socket.
//!
//! Any thread pushes, one owner pops. The queue is bounded in frames and in bytes, because a peer
//! that stops reading must cost its own connection, never the memory of the process. Nobody waits
//! here: a push that does not fit is handed back at once and the caller decides what it means.
//!
//! It refuses to know what a frame says, and how it reaches the wire.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use bytes::Bytes;
use crossbeam::queue::SegQueue;
use futures_util::task::AtomicWaker;

use crate::config::Live;

/// One text frame on its way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame<T> {
    /// The payload: UTF-8 JSON, trusted because this process wrote it.
    pub text: Bytes,
    /// Comes back in `Event::Written` once the payload has left for the socket.
    pub tag: T,
}

/// Why a push was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The frame would exceed a bound; it may fit once the peer has read.
    Full,
    /// The outbox takes no more frames, ever.
    Closed,
}

/// A frame that was not accepted, given back whole.
#[derive(Debug)]
pub struct Refused<T> {
    /// The frame, untouched.
    pub frame: Frame<T>,
    /// What stood in the way.
    pub why: Refusal,
}

/// A wish to end the connection once everything queued has been sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CloseRequest {
    /// The WebSocket close code.
    pub code: u16,
    /// The reason shown to the peer.
    pub reason: &'static str,
}

/// What the outboxes that share it may hold together, in bytes.
///
/// When it is spent, an outbox in which something waits already takes no more, and one that is
/// empty still takes a frame: who keeps up is served while those who do not are the ones refused.
#[derive(Debug)]
pub struct Budget {
    held: AtomicUsize,
    bytes_max: Live<usize>,
}

impl Budget {
    /// Of so many bytes.
    pub fn new(bytes_max: impl Into<Live<usize>>) -> Arc<Self> {
        Arc::new(Self { held: AtomicUsize::new(0), bytes_max: bytes_max.into() })
    }

    /// Bytes held now, by all outboxes.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Takes that much of it; always, where it `must`.
    fn take(&self, size: usize, must: bool) -> bool {
        let before = self.held.fetch_add(size, Ordering::Relaxed);
        let fits = must || self.bytes_max.with(|max| before.saturating_add(size) <= *max);
        if !fits {
            self.give_back(size);
        }
        fits
    }

    fn give_back(&self, size: usize) {
        self.held.fetch_sub(size, Ordering::Relaxed);
    }
}

/// A bounded queue of frames: many producers, one consumer, no lock.
///
/// **Invariant:** `level` counts a frame from before it enters `queue` until after it has left, so
/// both bounds hold at every instant and `level` is zero exactly when nothing is queued or about to
/// be.
pub struct Outbox<T> {
    /// Frames in order of arrival. A segment has room for 31 of them and is kept once there was
    /// one, even by who is idle: boxed, they take an eighth of the room.
    queue: SegQueue<Box<Frame<T>>>,
    /// The closed flag, the frame count and the byte count in one word (see `Level`), so that
    /// "is there room" and "is it still open" are one decision. Written by everybody.
    level: AtomicU64,
    /// Most frames held at once.
    frames_max: usize,
    /// Most payload bytes held at once.
    bytes_max: usize,
    /// What it shares with others, if it does. It counts exactly the bytes that `level` counts.
    budget: Option<Arc<Budget>>,
    /// The first request to close; later ones are ignored. Written once, by any thread.
    close_request: OnceLock<CloseRequest>,
    /// The owner's task, woken after each push and each request.
    owner: AtomicWaker,
}

/// The three facts packed into `Outbox::level`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Level(u64);

impl Level {
    const BYTES_BITS: u32 = 40;
    const FRAMES_BITS: u32 = 23;
    const ONE_FRAME: u64 = 1 << Self::BYTES_BITS;
    const CLOSED: u64 = 1 << 63;

    fn bytes(self) -> usize {
        (self.0 & (Self::ONE_FRAME - 1)) as usize
    }

    fn frames(self) -> usize {
        ((self.0 & !Self::CLOSED) >> Self::BYTES_BITS) as usize
    }

    fn is_closed(self) -> bool {
        self.0 & Self::CLOSED != 0
    }

    /// What one frame of `bytes` adds to the word.
    fn of_frame(bytes: usize) -> u64 {
        Self::ONE_FRAME + bytes as u64
    }
}

const _: () = assert!(Level::BYTES_BITS + Level::FRAMES_BITS == 63, "one bit is left for `closed`");

impl<T> Outbox<T> {
    /// Most frames it holds.
    pub fn frames_max(&self) -> usize {
        self.frames_max
    }

    /// An empty, open outbox.
    ///
    /// # Panics
    /// If a bound is too large to be counted (8 Mi frames, 1 TiB).
    pub fn new(frames_max: usize, bytes_max: usize) -> Arc<Self> {
        Self::sharing(None, frames_max, bytes_max)
    }

    /// The same, that shares a budget with others.
    ///
    /// # Panics
    /// As [`Outbox::new`].
    pub fn within(budget: &Arc<Budget>, frames_max: usize, bytes_max: usize) -> Arc<Self> {
        Self::sharing(Some(Arc::clone(budget)), frames_max, bytes_max)
    }

    fn sharing(budget: Option<Arc<Budget>>, frames_max: usize, bytes_max: usize) -> Arc<Self> {
        assert!(frames_max < 1 << Level::FRAMES_BITS, "frames_max is beyond counting");
        assert!(bytes_max < 1 << Level::BYTES_BITS, "bytes_max is beyond counting");
        Arc::new(Self {
            queue: SegQueue::new(),
            level: AtomicU64::new(0),
            frames_max,
            bytes_max,
            budget,
            close_request: OnceLock::new(),
            owner: AtomicWaker::new(),
        })
    }

    /// Queues a frame, or hands it back.
    ///
    /// A frame larger than `bytes_max` is always refused as `Full`, even by an empty outbox.
    pub fn push(&self, frame: Frame<T>) -> Result<(), Refused<T>> {
        let size = frame.text.len();
        if let Err(why) = self.reserve(size) {
            return Err(Refused { frame, why });
        }
        self.queue.push(Box::new(frame));
        self.owner.wake();
        Ok(())
    }

    /// Takes room for one frame of `size` bytes, before the frame is there.
    fn reserve(&self, size: usize) -> Result<(), Refusal> {
        let mut seen = self.level.load(Ordering::Relaxed);
        loop {
            let level = Level(seen);
            if level.is_closed() {
                return Err(Refusal::Closed);
            }
            // `bytes <= bytes_max` always holds, so the subtraction cannot wrap; the sum might.
            if level.frames() >= self.frames_max || size > self.bytes_max - level.bytes() {
                return Err(Refusal::Full);
            }
            let next = seen + Level::of_frame(size);
            match self.level.compare_exchange_weak(seen, next, Ordering::AcqRel, Ordering::Relaxed)
            {
                Ok(_) => break,
                Err(now) => seen = now,
            }
        }
        match &self.budget {
            Some(budget) if !budget.take(size, Level(seen).frames() == 0) => {
                self.level.fetch_sub(Level::of_frame(size), Ordering::AcqRel);
                Err(Refusal::Full)
            }
            _ => Ok(()),
        }
    }

    /// Takes no more frames from now on; those already accepted stay and are still sent.
    pub fn close(&self) {
        self.level.fetch_or(Level::CLOSED, Ordering::AcqRel);
        self.owner.wake();
    }

    /// Asks the owner to close the socket after all that is queued, and closes the outbox.
    ///
    /// The outbox closes because frames arriving later could otherwise postpone the end for ever.
    /// The first request wins; the rest change nothing.
    pub fn request_close(&self, code: u16, reason: &'static str) {
        self.close_request.get_or_init(|| CloseRequest { code, reason });
        self.close();
    }

    /// The winning request to close, if there was one.
    pub fn close_requested(&self) -> Option<CloseRequest> {
        self.close_request.get().copied()
    }

    /// True once no push can succeed any more.
    pub fn is_closed(&self) -> bool {
        self.level().is_closed()
    }

    /// True once the outbox is closed and every accepted frame has been taken: nothing can follow.
    pub fn is_drained(&self) -> bool {
        let level = self.level();
        level.is_closed() && level.frames() == 0
    }

    /// Frames accepted and not yet taken by the owner.
    pub fn frames(&self) -> usize {
        self.level().frames()
    }

    /// Payload bytes accepted and not yet taken by the owner.
    pub fn bytes(&self) -> usize {
        self.level().bytes()
    }

    /// The byte bound; also the largest frame that can ever come out.
    pub fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    fn level(&self) -> Level {
        Level(self.level.load(Ordering::Acquire))
    }

    /// Takes the oldest frame. For the owner, and for whoever collects the rest after its end.
    pub fn pop(&self) -> Option<Frame<T>> {
        let frame = self.queue.pop()?;
        let size = frame.text.len();
        self.level.fetch_sub(Level::of_frame(size), Ordering::AcqRel);
        self.budget.iter().for_each(|budget| budget.give_back(size));
        Some(*frame)
    }

    /// Takes the oldest frame, or arranges for the owner to be woken by the next push or request.
    pub(crate) fn poll_pop(&self, context: &mut Context<'_>) -> Poll<Frame<T>> {
        if let Some(frame) = self.pop() {
            return Poll::Ready(frame);
        }
        self.owner.register(context.waker());
        // A push between the first look and the registration woke nobody: look again.
        self.pop().map_or(Poll::Pending, Poll::Ready)
    }
}

/// What nobody collected is held no more.
impl<T> Drop for Outbox<T> {
    fn drop(&mut self) {
        let bytes = self.bytes();
        self.budget.iter().for_each(|budget| budget.give_back(bytes));
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Wake, Waker};
    use std::thread;

    use super::*;

    fn frame(text: &'static str, tag: u32) -> Frame<u32> {
        Frame { text: Bytes::from_static(text.as_bytes()), tag }
    }

    fn why(outcome: Result<(), Refused<u32>>) -> Option<Refusal> {
        outcome.err().map(|refused| refused.why)
    }

    #[test]
    fn frames_are_bounded() {
        let outbox = Outbox::new(2, 100);
        assert_eq!(why(outbox.push(frame("a", 1))), None);
        assert_eq!(why(outbox.push(frame("b", 2))), None);
        let refused = outbox.push(frame("c", 3)).unwrap_err();
        assert_eq!((refused.why, refused.frame), (Refusal::Full, frame("c", 3)));
        assert_eq!(outbox.pop(), Some(frame("a", 1)));
        assert_eq!(why(outbox.push(frame("c", 3))), None);
        assert_eq!((outbox.frames(), outbox.bytes()), (2, 2));
    }

    #[test]
    fn bytes_are_bounded_to_the_byte() {
        let outbox = Outbox::new(10, 5);
        assert_eq!(why(outbox.push(frame("123456", 1))), Some(Refusal::Full));
        assert_eq!(why(outbox.push(frame("123", 1))), None);
        assert_eq!(why(outbox.push(frame("456", 2))), Some(Refusal::Full));
        assert_eq!(why(outbox.push(frame("45", 2))), None);
        assert_eq!(outbox.bytes(), 5);
        assert_eq!(why(outbox.push(frame("", 3))), None, "an empty frame needs no bytes");
        while outbox.pop().is_some() {}
        assert_eq!((outbox.frames(), outbox.bytes()), (0, 0));
    }

    #[test]
    fn a_spent_budget_refuses_those_who_wait_and_serves_those_who_keep_up() {
        let budget = Budget::new(10);
        let (slow, quick) = (Outbox::within(&budget, 10, 100), Outbox::within(&budget, 10, 100));
        assert_eq!(why(slow.push(frame("12345678", 1))), None);
        assert_eq!(why(slow.push(frame("123", 2))), Some(Refusal::Full));
        assert_eq!((slow.frames(), slow.bytes(), budget.held()), (1, 8, 8));
        for n in 0..3 {
            assert_eq!(why(quick.push(frame("12345", n))), None, "nothing of it waits");
            assert_eq!(why(quick.push(frame("1", n))), Some(Refusal::Full));
            assert_eq!((quick.pop(), budget.held()), (Some(frame("12345", n)), 8));
        }
        assert_eq!(why(slow.push(frame("12", 3))), None, "to the byte");
        drop(slow);
        assert_eq!((budget.held(), why(quick.push(frame("0123456789", 4)))), (0, None));
    }

    #[test]
    fn a_closed_outbox_keeps_what_it_has() {
        let outbox = Outbox::new(10, 100);
        assert_eq!(why(outbox.push(frame("a", 1))), None);
        assert!(!outbox.is_closed());
        outbox.close();
        assert!(outbox.is_closed() && !outbox.is_drained());
        assert_eq!(why(outbox.push(frame("b", 2))), Some(Refusal::Closed));
        assert_eq!((outbox.frames(), outbox.bytes()), (1, 1));
        assert_eq!(outbox.pop(), Some(frame("a", 1)));
        assert!(outbox.is_drained());
    }

    #[test]
    fn the_first_close_request_wins() {
        let outbox: Arc<Outbox<u32>> = Outbox::new(1, 1);
        assert_eq!(outbox.close_requested(), None);
        outbox.request_close(4001, "first");
        outbox.request_close(4002, "second");
        let first = CloseRequest { code: 4001, reason: "first" };
        assert_eq!(outbox.close_requested(), Some(first));
        assert!(outbox.is_closed());
    }

    #[derive(Default)]
    struct Counter(AtomicUsize);

    impl Wake for Counter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_waiting_owner_is_woken_by_push_and_by_close() {
        let outbox = Outbox::new(4, 100);
        let wakes = Arc::new(Counter::default());
        let waker = Waker::from(Arc::clone(&wakes));
        let mut context = Context::from_waker(&waker);
        assert!(outbox.poll_pop(&mut context).is_pending());
        assert_eq!(why(outbox.push(frame("a", 1))), None);
        assert_eq!(wakes.0.load(Ordering::SeqCst), 1);
        assert!(outbox.poll_pop(&mut context).is_ready());
        assert!(outbox.poll_pop(&mut context).is_pending());
        outbox.request_close(1000, "");
        assert_eq!(wakes.0.load(Ordering::SeqCst), 2);
    }

    /// Four producers against one consumer and tight bounds: each producer's frames come out in its
    /// order, the bounds hold at every look, and nothing is left in the accounts.
    #[test]
    fn producers_keep_their_order_and_the_accounts_return_to_zero() {
        const PRODUCERS: u32 = 4;
        const EACH: u32 = 5_000;
        let outbox = Outbox::new(16, 64);
        let mut next = [0; PRODUCERS as usize];
        thread::scope(|scope| {
            for producer in 0..PRODUCERS {
                let outbox = &outbox;
                scope.spawn(move || {
                    for n in 0..EACH {
                        let size = (n % 9) as usize;
                        let text = Bytes::from_static(&b"........"[..size]);
                        let mut frame = Frame { text, tag: (producer, n) };
                        while let Err(refused) = outbox.push(frame) {
                            assert_eq!(refused.why, Refusal::Full);
                            frame = refused.frame;
                            thread::yield_now();
                        }
                    }
                });
            }
            let mut left = PRODUCERS * EACH;
            while left > 0 {
                assert!(outbox.frames() <= 16 && outbox.bytes() <= 64);
                let Some(Frame { tag: (producer, n), .. }) = outbox.pop() else {
                    thread::yield_now();
                    continue;
                };
                assert_eq!(n, next[producer as usize], "producer {producer} was reordered");
                next[producer as usize] += 1;
                left -= 1;
            }
        });
        assert_eq!((outbox.frames(), outbox.bytes()), (0, 0));
    }

    /// Frames accepted while another thread closes are all still there afterwards.
    #[test]
    fn closing_loses_no_accepted_frame() {
        for _ in 0..200 {
            let outbox = Outbox::new(1_000, 1_000);
            let accepted = thread::scope(|scope| {
                let pusher = scope.spawn(|| {
                    (0..1_000).take_while(|n| outbox.push(frame("x", *n)).is_ok()).count()
                });
                outbox.close();
                pusher.join().unwrap()
            });
            assert_eq!(outbox.frames(), accepted);
            assert_eq!(std::iter::from_fn(|| outbox.pop()).count(), accepted);
            assert!(outbox.is_drained());
        }
    }
}
