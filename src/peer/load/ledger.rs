//! What was said, by whom and when; what came of it; and what should not have come.
//!
//! Shared by all sessions and nodes of a load: a node looks up when the utterance it was given was
//! due, a session whether an answer is the one it waits for. It refuses to know sockets and frames.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use hdrhistogram::{CreationError, Histogram};
use tokio::sync::{Notify, Semaphore};

use super::report::{Faults, Quantiles};

/// Utterances of one session that may be unanswered at once; far beyond what a server accepts.
const UNANSWERED_MAX: usize = 1_024;
/// Longest time that is told apart from longer ones, in nanoseconds.
const LONGEST_NS: u64 = 600_000_000_000;
/// Decimal digits of a time that are kept.
const DIGITS: u8 = 3;

/// One utterance on its way. Times are nanoseconds since the ledger began.
///
/// ```text
///   (older index) -- said --> Open -- answered, or told as missing --> Closed
///                              +----- the round's patience is over --> GivenUp
/// ```
#[derive(Default)]
struct Slot {
    /// Index and `State` in one word, so that an answer closes exactly its own utterance.
    word: AtomicU64,
    /// When it was to be said.
    due_ns: AtomicU64,
    /// When its sender began to write.
    sent_ns: AtomicU64,
    /// When its node began to write the answer.
    replied_ns: AtomicU64,
}

#[derive(Clone, Copy)]
enum State {
    Open = 1,
    Closed = 2,
    GivenUp = 3,
}

fn word(index: u64, state: State) -> u64 {
    (index << 2) | state as u64
}

/// One session's part.
struct Track {
    slots: Vec<Slot>,
    /// Permits to say the next utterance.
    turns: Semaphore,
    /// Free slots.
    room: Semaphore,
    /// One more than the highest index answered.
    answered_to: AtomicU64,
    /// Number of the last result processed, where results have numbers.
    seq: AtomicU64,
    /// There is a number to acknowledge.
    to_ack: Notify,
}

impl Track {
    fn new() -> Self {
        Self {
            slots: (0..UNANSWERED_MAX).map(|_| Slot::default()).collect(),
            turns: Semaphore::new(0),
            room: Semaphore::new(UNANSWERED_MAX),
            answered_to: AtomicU64::new(0),
            seq: AtomicU64::new(0),
            to_ack: Notify::new(),
        }
    }

    fn slot(&self, index: u64) -> &Slot {
        &self.slots[index as usize % UNANSWERED_MAX]
    }
}

/// The times of one round.
struct Times {
    late: Histogram<u64>,
    dispatch: Histogram<u64>,
    dispatch_from_send: Histogram<u64>,
    result: Histogram<u64>,
    round_trip: Histogram<u64>,
    round_trip_from_send: Histogram<u64>,
}

impl Times {
    fn new() -> Result<Self, CreationError> {
        let empty = || Histogram::new_with_bounds(1, LONGEST_NS, DIGITS);
        Ok(Self {
            late: empty()?,
            dispatch: empty()?,
            dispatch_from_send: empty()?,
            result: empty()?,
            round_trip: empty()?,
            round_trip_from_send: empty()?,
        })
    }
}

/// Counts of one round.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) sent: AtomicU64,
    /// Answered by a node, whether the answer was read or not.
    pub(super) replied: AtomicU64,
    /// Answered in any way.
    pub(super) closed: AtomicU64,
    /// Results that came while the round was measured.
    arrived: AtomicU64,
    repeated: AtomicU64,
    late: AtomicU64,
    disordered: AtomicU64,
    foreign: AtomicU64,
    wrong: AtomicU64,
    missing: AtomicU64,
    errors: AtomicU64,
    pub(super) cancelled: AtomicU64,
    pub(super) unreadable: AtomicU64,
    pub(super) disconnected: AtomicU64,
}

/// The times of a round, as figures.
pub(super) struct Measured {
    pub(super) arrived: u64,
    pub(super) late: Quantiles,
    pub(super) dispatch: Quantiles,
    pub(super) dispatch_from_send: Quantiles,
    pub(super) result: Quantiles,
    pub(super) round_trip: Quantiles,
    pub(super) round_trip_from_send: Quantiles,
}

/// The book of one load.
pub(super) struct Ledger {
    began: Instant,
    /// Number of each session by its id.
    numbers: HashMap<String, usize>,
    tracks: Vec<Track>,
    times: Mutex<Times>,
    pub(super) counts: Counts,
    /// Utterances due from here on are measured...
    from_ns: AtomicU64,
    /// ...and up to here.
    until_ns: AtomicU64,
    /// An answer lets its session speak again.
    closed_loop: AtomicBool,
    /// What the server said of the first thing it did not like.
    complaint: Mutex<Option<String>>,
}

impl Ledger {
    pub(super) fn new(ids: &[String]) -> Result<Self, CreationError> {
        Ok(Self {
            began: Instant::now(),
            numbers: ids.iter().cloned().zip(0..).collect(),
            tracks: ids.iter().map(|_| Track::new()).collect(),
            times: Mutex::new(Times::new()?),
            counts: Counts::default(),
            from_ns: AtomicU64::new(u64::MAX),
            until_ns: AtomicU64::new(u64::MAX),
            closed_loop: AtomicBool::new(false),
            complaint: Mutex::new(None),
        })
    }

    pub(super) fn sessions(&self) -> usize {
        self.tracks.len()
    }

    fn ns(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.began).as_nanos() as u64
    }

    fn times(&self) -> MutexGuard<'_, Times> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new round, of which what is due between the two is measured.
    pub(super) fn begin(
        &self,
        from: Instant,
        until: Instant,
        closed_loop: bool,
    ) -> Result<(), CreationError> {
        *self.times() = Times::new()?;
        self.from_ns.store(self.ns(from), SeqCst);
        self.until_ns.store(self.ns(until), SeqCst);
        self.closed_loop.store(closed_loop, SeqCst);
        Ok(())
    }

    fn is_measured(&self, due_ns: u64) -> bool {
        (self.from_ns.load(SeqCst)..self.until_ns.load(SeqCst)).contains(&due_ns)
    }

    /// The session may say so many more utterances.
    pub(super) fn let_speak(&self, session: usize, utterances: usize) {
        self.tracks[session].turns.add_permits(utterances);
    }

    /// Waits until the session may say one.
    pub(super) async fn turn(&self, session: usize) {
        let track = &self.tracks[session];
        // Neither is ever closed.
        if let Ok(permit) = track.turns.acquire().await {
            permit.forget();
        }
    }

    /// Waits until the session has room for one more that is unanswered.
    pub(super) async fn room(&self, session: usize) {
        if let Ok(permit) = self.tracks[session].room.acquire().await {
            permit.forget();
        }
    }

    /// An utterance that has room is about to be written.
    pub(super) fn sent(&self, (session, index): (usize, u64), due: Instant, now: Instant) {
        let slot = self.tracks[session].slot(index);
        let (due_ns, now_ns) = (self.ns(due), self.ns(now));
        slot.due_ns.store(due_ns, SeqCst);
        slot.sent_ns.store(now_ns, SeqCst);
        slot.replied_ns.store(0, SeqCst);
        slot.word.store(word(index, State::Open), SeqCst);
        self.counts.sent.fetch_add(1, SeqCst);
        if self.is_measured(due_ns) {
            self.times().late.saturating_record(now_ns.saturating_sub(due_ns).max(1));
        }
    }

    /// A node has read an assignment; the session's number, or none if nobody here has that id.
    pub(super) fn dispatched(&self, session: &str, index: u64, now: Instant) -> Option<usize> {
        let Some(&number) = self.numbers.get(session) else {
            self.counts.foreign.fetch_add(1, SeqCst);
            return None;
        };
        let slot = self.tracks[number].slot(index);
        let due_ns = slot.due_ns.load(SeqCst);
        if slot.word.load(SeqCst) == word(index, State::Open) && self.is_measured(due_ns) {
            let now_ns = self.ns(now);
            let sent_ns = slot.sent_ns.load(SeqCst);
            let mut times = self.times();
            times.dispatch.saturating_record(now_ns.saturating_sub(due_ns).max(1));
            times.dispatch_from_send.saturating_record(now_ns.saturating_sub(sent_ns).max(1));
        }
        Some(number)
    }

    /// A node is about to write its answer.
    pub(super) fn replied(&self, (session, index): (usize, u64), now: Instant) {
        self.tracks[session].slot(index).replied_ns.store(self.ns(now), SeqCst);
        self.counts.replied.fetch_add(1, SeqCst);
    }

    /// A session has read a result that proves to be its own, or does not.
    pub(super) fn answered(&self, at: (usize, u64), now: Instant, proves: bool) {
        let (session, index) = at;
        let track = &self.tracks[session];
        let slot = track.slot(index);
        let (due_ns, sent_ns) = (slot.due_ns.load(SeqCst), slot.sent_ns.load(SeqCst));
        let replied_ns = slot.replied_ns.load(SeqCst);
        let now_ns = self.ns(now);
        if !self.close(at, now_ns) {
            return;
        }
        if !proves {
            self.counts.wrong.fetch_add(1, SeqCst);
        }
        if self.is_measured(now_ns) {
            self.counts.arrived.fetch_add(1, SeqCst);
        }
        if self.is_measured(due_ns) {
            let mut times = self.times();
            times.round_trip.saturating_record(now_ns.saturating_sub(due_ns).max(1));
            times.round_trip_from_send.saturating_record(now_ns.saturating_sub(sent_ns).max(1));
            if replied_ns > 0 {
                times.result.saturating_record(now_ns.saturating_sub(replied_ns).max(1));
            }
        }
    }

    /// A session was told that there will be no result.
    pub(super) fn missing(&self, at: (usize, u64), now: Instant, frame: &str) {
        self.counts.missing.fetch_add(1, SeqCst);
        self.complain(frame);
        self.close(at, self.ns(now));
    }

    /// The last word on an utterance; false, and counted, if it is not the one waited for.
    fn close(&self, (session, index): (usize, u64), now_ns: u64) -> bool {
        let track = &self.tracks[session];
        let slot = track.slot(index);
        let (open, closed) = (word(index, State::Open), word(index, State::Closed));
        if let Err(seen) = slot.word.compare_exchange(open, closed, SeqCst, SeqCst) {
            let count = match seen {
                seen if seen == word(index, State::GivenUp) => &self.counts.late,
                // Its slot has gone on to a later one, so it was closed.
                seen if seen >= closed => &self.counts.repeated,
                _ => &self.counts.foreign,
            };
            count.fetch_add(1, SeqCst);
            return false;
        }
        if track.answered_to.fetch_max(index + 1, SeqCst) > index {
            self.counts.disordered.fetch_add(1, SeqCst);
        }
        self.counts.closed.fetch_add(1, SeqCst);
        track.room.add_permits(1);
        if self.closed_loop.load(SeqCst) && now_ns < self.until_ns.load(SeqCst) {
            track.turns.add_permits(1);
        }
        true
    }

    /// A result of another session came.
    pub(super) fn foreign(&self) {
        self.counts.foreign.fetch_add(1, SeqCst);
    }

    /// The server sent an `error`.
    pub(super) fn error(&self, frame: &str) {
        self.counts.errors.fetch_add(1, SeqCst);
        self.complain(frame);
    }

    fn complain(&self, frame: &str) {
        let mut first = self.complaint.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert_with(|| frame.chars().take(300).collect());
    }

    /// What the server said of the first thing it did not like.
    pub(super) fn complaint(&self) -> Option<String> {
        self.complaint.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A numbered result was processed.
    pub(super) fn processed(&self, session: usize, seq: u64) {
        let track = &self.tracks[session];
        track.seq.fetch_max(seq, SeqCst);
        track.to_ack.notify_one();
    }

    /// Waits for a result to acknowledge: all up to this number.
    pub(super) async fn to_ack(&self, session: usize) -> u64 {
        let track = &self.tracks[session];
        track.to_ack.notified().await;
        track.seq.load(SeqCst)
    }

    /// Utterances that were said and have no last word.
    pub(super) fn open(&self) -> u64 {
        let closed = self.counts.closed.load(SeqCst);
        self.counts.sent.load(SeqCst).saturating_sub(closed)
    }

    /// Ends the round: what is open is lost, and nobody has a turn any more.
    pub(super) fn end(&self, planned: Option<u64>) -> (Measured, Faults) {
        let mut lost = 0;
        for track in &self.tracks {
            track.turns.forget_permits(track.turns.available_permits());
            for slot in &track.slots {
                let seen = slot.word.load(SeqCst);
                let given_up = (seen & !3) | State::GivenUp as u64;
                let is_open = seen & 3 == State::Open as u64;
                if is_open && slot.word.compare_exchange(seen, given_up, SeqCst, SeqCst).is_ok() {
                    lost += 1;
                    track.room.add_permits(1);
                }
            }
        }
        let sent = self.counts.sent.swap(0, SeqCst);
        self.counts.closed.store(0, SeqCst);
        self.counts.replied.store(0, SeqCst);
        let counts = &self.counts;
        let take = |count: &AtomicU64| count.swap(0, SeqCst);
        let faults = Faults {
            lost,
            unsent: planned.map_or(0, |planned| planned.saturating_sub(sent)),
            repeated: take(&counts.repeated),
            late: take(&counts.late),
            disordered: take(&counts.disordered),
            foreign: take(&counts.foreign),
            wrong: take(&counts.wrong),
            missing: take(&counts.missing),
            errors: take(&counts.errors),
            cancelled: take(&counts.cancelled),
            unreadable: take(&counts.unreadable),
            disconnected: take(&counts.disconnected),
        };
        let times = self.times();
        let measured = Measured {
            arrived: take(&counts.arrived),
            late: Quantiles::of(&times.late),
            dispatch: Quantiles::of(&times.dispatch),
            dispatch_from_send: Quantiles::of(&times.dispatch_from_send),
            result: Quantiles::of(&times.result),
            round_trip: Quantiles::of(&times.round_trip),
            round_trip_from_send: Quantiles::of(&times.round_trip_from_send),
        };
        (measured, faults)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn ledger() -> Ledger {
        let ledger = Ledger::new(&["a".to_owned(), "b".to_owned()]).unwrap();
        let began = ledger.began;
        ledger.begin(began, began + Duration::from_secs(60), false).unwrap();
        ledger
    }

    fn ms(ledger: &Ledger, at: u64) -> Instant {
        ledger.began + Duration::from_millis(at)
    }

    #[test]
    fn times_are_counted_from_when_the_utterance_was_due() {
        let ledger = ledger();
        // A stall of 300 ms: what was due at 0, 100 and 200 ms is only sent at its end.
        for (index, due) in [0, 100, 200].into_iter().enumerate() {
            let at = (0, index as u64);
            ledger.sent(at, ms(&ledger, due), ms(&ledger, 300));
            assert_eq!(ledger.dispatched("a", at.1, ms(&ledger, 301)), Some(0));
            ledger.replied(at, ms(&ledger, 301));
            ledger.answered(at, ms(&ledger, 302), true);
        }
        assert_eq!(ledger.counts.replied.load(SeqCst), 3);
        let (measured, faults) = ledger.end(Some(3));
        assert!(faults.is_clean(), "{faults:?}");
        assert_eq!(ledger.counts.replied.load(SeqCst), 0, "the next round counts anew");
        let near = |us: f64, ms: f64| (us / 1_000.0 - ms).abs() < 1.0;
        assert!(near(measured.late.max_us, 300.0), "{:?}", measured.late);
        assert!(near(measured.dispatch.max_us, 301.0), "{:?}", measured.dispatch);
        assert!(near(measured.round_trip.p50_us, 202.0), "{:?}", measured.round_trip);
        assert!(near(measured.round_trip_from_send.max_us, 2.0));
        assert!(near(measured.result.max_us, 1.0));
    }

    #[test]
    fn every_kind_of_wrong_answer_has_its_count() {
        let ledger = ledger();
        let now = ms(&ledger, 1);
        for index in 0..6 {
            ledger.sent((0, index), now, now);
        }
        ledger.answered((0, 0), now, true);
        ledger.answered((0, 0), now, true);
        ledger.answered((0, 2), now, true);
        ledger.answered((0, 1), now, true);
        ledger.answered((0, 3), now, false);
        ledger.missing((0, 4), now, "{}");
        ledger.answered((1, 0), now, true);
        ledger.answered((0, 77), now, true);
        ledger.error("{\"type\":\"error\"}");
        assert_eq!(ledger.dispatched("nobody", 0, now), None);
        assert_eq!(ledger.open(), 1);
        let (_, faults) = ledger.end(Some(8));
        let expected = Faults {
            lost: 1,
            unsent: 2,
            repeated: 1,
            disordered: 1,
            wrong: 1,
            missing: 1,
            errors: 1,
            foreign: 3,
            ..Faults::default()
        };
        assert_eq!(faults, expected);
        assert!(!faults.is_clean());
        ledger.answered((0, 5), now, true);
        assert_eq!(ledger.end(None).1, Faults { late: 1, ..Faults::default() });
    }

    #[test]
    fn only_what_is_due_while_measured_counts() {
        let ledger = ledger();
        let (from, until) = (ms(&ledger, 10), ms(&ledger, 20));
        ledger.begin(from, until, false).unwrap();
        for (index, due) in [9, 10, 19, 20].into_iter().enumerate() {
            let at = (1, index as u64);
            ledger.sent(at, ms(&ledger, due), ms(&ledger, due));
            ledger.answered(at, ms(&ledger, 25), true);
        }
        let (measured, faults) = ledger.end(Some(4));
        assert!(faults.is_clean());
        assert_eq!((measured.round_trip.count, measured.arrived), (2, 0));
    }
}
