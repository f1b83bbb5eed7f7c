//! What all parts of one simulation share: what was promised to whom, and what went against it.

use std::cell::{Cell, RefCell};
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{Hash, Hasher};
use std::time::Duration;

use serde_json::Value;
use utterd::protocol::{JobId, SessionId};
use utterd::store::{Recovered, SimDisk, Store};

/// Lines shown of a run that went wrong.
const TRAIL: usize = 400;

/// Why an actor stops: something went against a promise.
pub type Verdict<T> = Result<T, String>;

pub struct World {
    pub disk: SimDisk,
    /// The store of the present life of the server.
    pub store: RefCell<Option<Store>>,
    /// The server has died of its disk, and is to be taken away.
    pub died: Cell<bool>,
    /// No more faults come.
    pub calm: Cell<bool>,
    /// Speakers that have not finished.
    pub speaking: Cell<usize>,
    pub book: RefCell<Book>,
    /// Time in the world, for who is not in it.
    pub now: Cell<Duration>,
    trace: RefCell<Trace>,
    faults: RefCell<Vec<String>>,
}

/// What peers were told.
#[derive(Default)]
pub struct Book {
    /// Jobs whose utterance was accepted.
    pub accepted: BTreeSet<String>,
    /// Jobs whose outcome was told, to a client or to a node.
    pub ended: BTreeSet<String>,
    /// Sessions that can be come back to.
    pub sessions: BTreeMap<String, Owed>,
    /// Attempts nodes were given.
    pub attempts: BTreeSet<(String, u64)>,
    /// How often what has happened.
    pub tally: BTreeMap<String, u64>,
}

/// What a client says it has of its session.
#[derive(Default, Clone, Copy)]
pub struct Owed {
    /// Highest number acknowledged; what was said on a connection that was lost counts.
    pub acked: u64,
    /// Highest number told.
    pub told: u64,
    /// It was asked to end.
    pub closing: bool,
}

#[derive(Default)]
struct Trace {
    hash: DefaultHasher,
    lines: u64,
    last: VecDeque<String>,
}

impl World {
    pub fn new(disk: SimDisk) -> Self {
        Self {
            disk,
            store: RefCell::default(),
            died: Cell::default(),
            calm: Cell::default(),
            speaking: Cell::default(),
            book: RefCell::default(),
            now: Cell::default(),
            trace: RefCell::default(),
            faults: RefCell::default(),
        }
    }

    /// Writes down what happened. Two runs of a seed have the same trace.
    pub fn note(&self, who: &str, what: &str) {
        let at = turmoil::sim_elapsed().unwrap_or(self.now.get());
        self.now.set(at);
        let line = format!("{:>9.3} {who:<9} {what}", at.as_secs_f64());
        let mut trace = self.trace.borrow_mut();
        line.hash(&mut trace.hash);
        trace.lines += 1;
        if std::env::var_os("UTTERD_WHOLE_STACK_TRACE").is_some() {
            println!("{line}");
        }
        if trace.last.len() == TRAIL {
            trace.last.pop_front();
        }
        trace.last.push_back(line);
    }

    /// The same of a message, without what only two processes would differ in.
    pub fn note_message(&self, who: &str, mark: &str, message: &Value) {
        let mut short = message.clone();
        for key in ["audio", "payload", "trace_id", "resume_secret", "extra", "tts_audio"] {
            short.as_object_mut().and_then(|fields| fields.remove(key));
        }
        self.note(who, &format!("{mark} {short}"));
    }

    pub fn count(&self, what: &str) {
        *self.book.borrow_mut().tally.entry(what.to_owned()).or_default() += 1;
    }

    pub fn fault(&self, who: &str, how: &str) {
        self.note(who, &format!("FAULT {how}"));
        self.faults.borrow_mut().push(format!("{who}: {how}"));
    }

    pub fn faults(&self) -> Vec<String> {
        self.faults.borrow().clone()
    }

    pub fn trail(&self) -> Vec<String> {
        self.trace.borrow().last.iter().cloned().collect()
    }

    /// Lines and hash of the trace.
    pub fn trace(&self) -> (u64, u64) {
        let trace = self.trace.borrow();
        (trace.lines, trace.hash.finish())
    }

    /// The outcome of a job is told to somebody: it has to be on the disk by now.
    pub fn told_of_end(&self, who: &str, job: &str) {
        self.book.borrow_mut().ended.insert(job.to_owned());
        let store = self.store.borrow();
        let Some(store) = &*store else { return };
        if !self.disk.is_off() && !has_ended(store, job) && !self.disk.is_off() {
            self.fault(who, &format!("was told how {job} ended before that was on the disk"));
        }
    }

    /// Holds what a start of the server finds against what was promised before.
    pub fn judge(&self, found: &Recovered, store: &Store) {
        let faults = self.judged(found, store);
        // With the power gone nothing can be read, and nothing is known.
        if !self.disk.is_off() {
            faults.iter().for_each(|fault| self.fault("disk", fault));
        }
    }

    fn judged(&self, found: &Recovered, store: &Store) -> Vec<String> {
        let book = self.book.borrow();
        let open: BTreeSet<JobId> = found.jobs.iter().map(|job| job.row.id).collect();
        let is_open = |job: &str| job.parse().is_ok_and(|id| open.contains(&id));
        let mut faults = Vec::new();
        for job in &book.accepted {
            if !is_open(job) && !has_ended(store, job) {
                faults.push(format!("{job} was accepted, and is not there"));
            }
        }
        for job in &book.ended {
            if is_open(job) || !has_ended(store, job) {
                faults.push(format!("the end of {job} was told, and is not there"));
            }
        }
        for (name, owed) in &book.sessions {
            let Ok(id) = name.parse::<SessionId>() else { continue };
            faults.extend(judge_session(found, store, id, *owed).err());
        }
        faults
    }
}

fn has_ended(store: &Store, job: &str) -> bool {
    let ended = |id: JobId| store.terminal(id).is_ok_and(|row| row.is_some());
    job.parse().is_ok_and(ended)
}

/// What a client has not acknowledged is there, under the numbers it was told.
fn judge_session(found: &Recovered, store: &Store, id: SessionId, owed: Owed) -> Verdict<()> {
    if owed.told == 0 || owed.closing {
        return Ok(());
    }
    let session = found.sessions.iter().find(|session| session.row.id == id);
    let Some(session) = session else {
        return Err(format!("{id} has told {}, and is not there", owed.told));
    };
    if session.next_seq <= owed.told {
        return Err(format!("{id} has told {}, its next is {}", owed.told, session.next_seq));
    }
    let rows = store.outbox(id, owed.acked, 10_000).map_err(|error| error.to_string())?;
    let there: Vec<u64> = rows.iter().map(|row| row.seq).collect();
    let wanted: Vec<u64> = (owed.acked + 1..session.next_seq).collect();
    match there == wanted {
        true => Ok(()),
        false => Err(format!("{id} owes {wanted:?}, and has {there:?}")),
    }
}

/// A length of time between two, in milliseconds.
pub fn between(rng: &mut fastrand::Rng, low: u64, high: u64) -> Duration {
    Duration::from_millis(rng.u64(low..=high))
}
