//! Every order in which threads can meet at the small machines they share: the state word of a
//! job, the slots and the generation of a node, the binding of a turn, the sleep of the store.
//!
//! The files are the program's own, compiled here over loom's atomics.

#![allow(dead_code, reason = "each file brings more than the models use")]

mod atomics {
    pub use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize};
    pub use loom::sync::atomic::{Ordering, fence};
    pub use loom::thread::{Thread, park};
}
use utterd::{node, protocol};

#[path = "../src/job/binding.rs"]
mod binding;
#[path = "../src/store/signal.rs"]
mod signal;
#[path = "../src/node/slots.rs"]
mod slots;
#[path = "../src/job/state.rs"]
mod state;

use atomics::Ordering::SeqCst;
use binding::Binding;
use loom::sync::Arc;
use loom::thread;
use node::NodeIndex;
use protocol::job::Outcome;
use signal::Signal;
use slots::{Generation, Slots};
use state::{Event, Phase, State, Word};

const NODE: NodeIndex = NodeIndex(3);

/// A job that is with a node, in its first attempt.
fn dispatched() -> Arc<Word> {
    let word = Word::new(State::queued(1));
    let placed = word.on(Event::Place { node: NODE, floor: 1 << 8 });
    assert!(placed.is_some_and(|(_, after)| word.on(Event::Written(after.attempt)).is_some()));
    Arc::new(word)
}

/// Runs each on a thread of its own; what each came to.
fn together<T: Send + 'static>(steps: Vec<Box<dyn FnOnce() -> T + Send>>) -> Vec<T> {
    let threads: Vec<_> = steps.into_iter().map(thread::spawn).collect();
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

#[test]
fn a_job_ends_once_whoever_wins() {
    loom::model(|| {
        let word = dispatched();
        let attempt = word.load().attempt;
        let endings = [Event::Answer(attempt, Outcome::Succeeded), Event::Cancel];
        let deadline = Event::GiveUp(Outcome::Failed);
        let steps = endings.into_iter().map(|event| {
            let word = Arc::clone(&word);
            Box::new(move || word.on(event)) as Box<dyn FnOnce() -> _ + Send>
        });
        let threads: Vec<_> = steps.map(thread::spawn).collect();
        let own = word.on(deadline);
        let others = threads.into_iter().map(|thread| thread.join().unwrap());
        let won: Vec<State> = others.chain([own]).flatten().map(|(_, after)| after).collect();
        assert_eq!(won.len(), 1, "{won:?}");
        assert_eq!(word.load(), won[0]);
    });
}

#[test]
fn an_attempt_is_taken_back_or_answered_and_never_both() {
    loom::model(|| {
        let word = dispatched();
        let attempt = word.load().attempt;
        let lost = Arc::clone(&word);
        let lost = thread::spawn(move || lost.on(Event::Requeue(attempt)).is_some());
        let answered = word.on(Event::Answer(attempt, Outcome::Succeeded)).is_some();
        let lost = lost.join().unwrap();
        assert!(answered != lost, "answered {answered}, lost {lost}");
        let phase = if lost { Phase::Queued } else { Phase::Ended(Outcome::Succeeded) };
        assert_eq!(word.load().phase, phase);
    });
}

#[test]
fn a_late_answer_never_meets_the_next_attempt() {
    loom::model(|| {
        let word = dispatched();
        let first = word.load().attempt;
        let again = Arc::clone(&word);
        let again = thread::spawn(move || {
            again.on(Event::Requeue(first))?;
            again.on(Event::Place { node: NodeIndex(4), floor: 1 << 8 })
        });
        let late = word.on(Event::Answer(first, Outcome::Succeeded));
        match (again.join().unwrap(), late) {
            (Some((_, next)), None) => assert!(next.attempt > first && next.in_flight()),
            (None, Some((before, _))) => assert_eq!(before.attempt, first),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn no_more_slots_are_taken_than_there_are() {
    loom::model(|| {
        let slots = Arc::new(Slots::new(1));
        let steps = (0..2).map(|_| {
            let slots = Arc::clone(&slots);
            let step = move || {
                let took = slots.claim();
                assert!(slots.count().0 <= 1, "more were taken than there are");
                took && slots.release()
            };
            Box::new(step) as Box<dyn FnOnce() -> bool + Send>
        });
        let mut took = together(steps.collect());
        took.push(slots.claim());
        assert!(took.iter().any(|took| *took), "somebody had the slot");
        assert_eq!(slots.count(), (u32::from(took[2]), 1));
    });
}

#[test]
fn a_turn_takes_one_slot_and_gives_it_back_once() {
    loom::model(|| {
        let (binding, slots) = (Arc::new(Binding::new()), Arc::new(Slots::new(2)));
        // As placement and settling do it.
        let join = |binding: &Binding, slots: &Slots| {
            loop {
                let (node, n) = binding.now();
                if n == 0 && !slots.claim() {
                    return false;
                }
                if binding.rebind((node, n), (NODE, n + 1)) {
                    return true;
                }
                if n == 0 {
                    slots.release();
                }
                thread::yield_now();
            }
        };
        let leave = |binding: &Binding, slots: &Slots| {
            if binding.leave() == Some(true) {
                assert!(slots.release(), "given back once");
            }
        };
        let other = (Arc::clone(&binding), Arc::clone(&slots));
        let other = thread::spawn(move || {
            if join(&other.0, &other.1) {
                leave(&other.0, &other.1);
            }
        });
        if join(&binding, &slots) {
            leave(&binding, &slots);
        }
        other.join().unwrap();
        assert_eq!((binding.now().1, slots.count()), (0, (0, 2)));
    });
}

#[test]
fn the_newest_connection_speaks_in_whatever_order_they_come() {
    loom::model(|| {
        let generation = Arc::new(Generation::new());
        let steps = [2, 3].map(|number| {
            let generation = Arc::clone(&generation);
            let step = move || {
                generation.come(number);
                generation.current()
            };
            Box::new(step) as Box<dyn FnOnce() -> u64 + Send>
        });
        let seen = together(Vec::from(steps));
        assert!(seen[0] >= 2 && seen[1] == 3, "{seen:?}");
        assert_eq!(generation.current(), 3);
    });
}

/// A lane, as far as the signal knows one: how much was brought.
type Lane = Arc<loom::sync::atomic::AtomicUsize>;

/// The store's thread: takes what is brought until it is told to stop. How much it took.
fn store_thread(signal: &Signal, lane: &Lane) -> usize {
    let mut taken = 0;
    loop {
        taken += lane.swap(0, SeqCst);
        if signal.is_stopping() && signal.is_empty() {
            return taken + lane.swap(0, SeqCst);
        }
        if signal.is_stopping() {
            thread::yield_now();
        } else {
            signal.rest(|| lane.load(SeqCst) == 0);
        }
    }
}

/// A store's thread at work, with what it is told by.
fn store() -> (Arc<Signal>, Lane, thread::JoinHandle<usize>) {
    let signal = Arc::new(Signal::new());
    let lane: Lane = Arc::new(loom::sync::atomic::AtomicUsize::new(0));
    let own = (Arc::clone(&signal), Arc::clone(&lane));
    let thread = thread::spawn(move || store_thread(&own.0, &own.1));
    assert!(signal.wakes(thread.thread().clone()));
    (signal, lane, thread)
}

/// Brings one thing; how much was taken in.
fn bring(signal: &Signal, lane: &Lane) -> usize {
    let Some(_inside) = signal.enter() else { return 0 };
    lane.fetch_add(1, SeqCst);
    signal.wake();
    1
}

/// Bounded in how often a thread is interrupted: without it the models take hours.
fn bounded(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

#[test]
fn what_was_let_in_before_a_stop_is_taken_and_nothing_after() {
    bounded(|| {
        let (signal, lane, thread) = store();
        let other = (Arc::clone(&signal), Arc::clone(&lane));
        let other = thread::spawn(move || bring(&other.0, &other.1));
        signal.stop();
        let late = bring(&signal, &lane);
        assert_eq!(late, 0, "nobody is let in behind a stop");
        let brought = other.join().unwrap();
        assert_eq!(thread.join().unwrap(), brought);
    });
}

#[test]
fn the_store_sleeps_through_nothing() {
    bounded(|| {
        let (signal, lane, thread) = store();
        // A missed wake-up would leave its thread parked for ever, which the model tells.
        let brought = bring(&signal, &lane);
        while lane.load(SeqCst) > 0 {
            thread::yield_now();
        }
        signal.stop();
        assert_eq!(thread.join().unwrap(), brought);
    });
}
