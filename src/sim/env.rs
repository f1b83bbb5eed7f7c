//! What everything in the world shares: time, chance, what is going to happen, the links, and the
//! record of what did happen.

use std::collections::{BTreeMap, VecDeque};

use fastrand::Rng;

use super::counts::Counts;
use super::judge::Judge;
use super::net::{ConnId, Net, Way};
use super::swarm::Rates;
use crate::job::Deadline;
use crate::protocol::SessionId;

/// Lines kept for whoever has to understand a failure.
const TAIL_LINES: usize = 60;
/// Longest line of the tail, in bytes.
const LINE_BYTES: usize = 220;
/// Wall clock at the beginning of every world, Unix milliseconds.
const BEGINNING_UNIX_MS: i64 = 1_790_000_000_000;

/// A task of one life of the server.
pub(super) type TaskId = u64;

/// Something that is going to happen.
#[derive(Debug)]
pub(super) enum Event {
    /// The server's socket takes the next frame.
    Flush(ConnId),
    /// The next message of a link arrives.
    Arrive(ConnId, Way),
    /// One end of a connection notices that it is over.
    Notice(ConnId, Way),
    /// A connection breaks.
    Break(ConnId),
    /// A held direction goes on.
    Release(ConnId, Way),
    /// A session's task has something to do.
    Step(u64, TaskId),
    /// A session's task may have been asked to look at the clock.
    Tick(u64, TaskId),
    /// The control task looks around.
    Control(u64),
    /// The control task was woken.
    Wake(u64),
    /// The batch under way is on the disk.
    Commit(u64),
    /// The read of what a session is owed has an answer.
    ReadBack(u64, SessionId, (u64, usize)),
    /// A client does the next thing.
    Client(usize, u64),
    /// A node does the next thing; of an earlier run of its program it means nothing.
    Node(usize, u64, NodeWake),
    /// The server dies.
    Crash,
    /// The server begins to stop in good order.
    Stop,
    /// It closes what is open, and ends.
    Down(u64),
    /// The server starts.
    Start,
    /// Something befalls the network.
    Trouble,
    /// The wall clock is set.
    ClockJump,
    /// The disk has no room for some time.
    DiskFull,
    /// The disk has room again.
    DiskRoom,
    /// The batch that met the full disk is tried again.
    DiskRetry(u64),
    /// Faults stop.
    Calm,
    /// Clients end their sessions.
    Farewell,
    /// It is over.
    End,
}

/// What a node does next.
#[derive(Debug)]
pub(super) enum NodeWake {
    /// It connects.
    Connect,
    /// It tells its load.
    Beat,
    /// It has finished with an assignment.
    Done(u64),
    /// Its program dies.
    Die,
}

/// Deadlines on their way to the wheel.
pub(super) type Arms = VecDeque<(u64, Deadline)>;

/// Time, chance, links and the record.
pub(super) struct Env {
    /// Microseconds since the beginning.
    pub(super) now: u64,
    /// By how much the wall clock was set, in milliseconds.
    wall_skew_ms: i64,
    queue: BTreeMap<(u64, u64), Event>,
    next: u64,
    pub(super) rng: Rng,
    pub(super) rates: Rates,
    /// Faults happen.
    pub(super) faulty: bool,
    pub(super) net: Net,
    pub(super) judge: Judge,
    pub(super) counts: Counts,
    trace: Trace,
}

#[derive(Default)]
struct Trace {
    hash: u64,
    events: u64,
    tail: VecDeque<String>,
    aloud: bool,
}

impl Env {
    pub(super) fn new(seed: u64, rates: Rates, aloud: bool) -> Self {
        Self {
            now: 0,
            wall_skew_ms: 0,
            queue: BTreeMap::new(),
            next: 0,
            rng: Rng::with_seed(seed ^ 0x5EED_0F0D_D5EE_D000),
            faulty: rates.level > 0,
            rates,
            net: Net::default(),
            judge: Judge::default(),
            counts: Counts::default(),
            trace: Trace { aloud, ..Trace::default() },
        }
    }

    /// Has something happen at a moment.
    pub(super) fn at(&mut self, us: u64, event: Event) {
        self.next += 1;
        self.queue.insert((us.max(self.now), self.next), event);
    }

    /// Has something happen so many microseconds from now.
    pub(super) fn after(&mut self, us: u64, event: Event) {
        self.at(self.now + us, event);
    }

    /// The next thing that happens, at its moment.
    pub(super) fn next_event(&mut self) -> Option<Event> {
        let ((at, _), event) = self.queue.pop_first()?;
        self.now = at;
        self.trace.events += 1;
        Some(event)
    }

    /// Wall clock, Unix milliseconds.
    pub(super) fn wall_ms(&self) -> u64 {
        let ms = BEGINNING_UNIX_MS + self.wall_skew_ms + (self.now / 1_000) as i64;
        u64::try_from(ms).unwrap_or(0)
    }

    /// Sets the wall clock forward or back.
    pub(super) fn set_wall_by(&mut self, ms: i64) {
        self.wall_skew_ms += ms;
    }

    /// True so many times in a thousand.
    pub(super) fn chance(&mut self, per_mille: u32) -> bool {
        per_mille > 0 && self.rng.u32(..1_000) < per_mille
    }

    /// As `chance`, while there are faults.
    pub(super) fn fault(&mut self, per_mille: u32) -> bool {
        self.faulty && self.chance(per_mille)
    }

    /// A number from `low` to `high`, more often a small one.
    pub(super) fn skewed(&mut self, low: u64, high: u64) -> u64 {
        let f = self.rng.f64();
        low + ((high - low) as f64 * f * f * f) as u64
    }

    /// A number from `low` to `high`.
    pub(super) fn between(&mut self, low: u64, high: u64) -> u64 {
        if low >= high { low } else { self.rng.u64(low..=high) }
    }

    /// Something that can be told apart from anything else that could have happened.
    pub(super) fn note(&mut self, what: &str, who: u64, bytes: &[u8]) {
        let crc = crc32c::crc32c_append(crc32c::crc32c(what.as_bytes()), bytes);
        let word = (u64::from(crc) << 32) ^ who ^ self.now.rotate_left(17);
        let mixed = (self.trace.hash ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.trace.hash = mixed ^ (mixed >> 29);
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(LINE_BYTES)]);
        if text.contains("heartbeat") {
            // They would fill the tail.
            return;
        }
        let text: String = text.chars().filter(|c| !c.is_control()).take(LINE_BYTES).collect();
        let line = format!("{:>11.6} {what} {who} {text}", self.now as f64 / 1e6);
        if self.trace.aloud {
            tracing::info!(target: "utterd::sim", "{line}");
        }
        if self.trace.tail.len() >= TAIL_LINES {
            self.trace.tail.pop_front();
        }
        self.trace.tail.push_back(line);
    }

    /// What tells this run from every other, and how much happened.
    pub(super) fn trace(&self) -> (u64, u64) {
        (self.trace.hash, self.trace.events)
    }

    /// The last things that happened.
    pub(super) fn tail(&self) -> Vec<String> {
        self.trace.tail.iter().cloned().collect()
    }
}
