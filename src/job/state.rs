//! The life of a job, in one word.
//!
//! ```text
//!   ∅ ─submit─▶ Queued ─place─▶ Assigned ─written─▶ Dispatched ─ack, start─▶ Running
//!                 ▲ │└expire─▶ Ended     │              │                       │
//!                 │ └────── adopt: a node came that has it already ────────▶ Running
//!                 └────── requeue ───────┴──────────────┴───────────────────────┤
//!                                        answer, merge, fail, cancel ─▶ Ended ◀─┘
//! ```
//! Phase, node and attempt are one atomic word, so that whoever moves it has decided: between a
//! result, a second result, a deadline and a cancellation exactly one wins.

use crate::atomics::{AtomicU64, Ordering::SeqCst};

use crate::node::NodeIndex;
use crate::protocol::job::Outcome;

/// How far a job has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Waits for a node.
    Queued,
    /// A node was chosen and a slot taken; the assignment is on its way to the socket.
    Assigned,
    /// The assignment was flushed to the node's socket.
    Dispatched,
    /// The node said that it works on it.
    Running,
    /// Settled, for good.
    Ended(Outcome),
}

impl Phase {
    /// Name in explanations.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Queued => "queued",
            Phase::Assigned => "assigned",
            Phase::Dispatched => "dispatched",
            Phase::Running => "running",
            Phase::Ended(outcome) => outcome.as_str(),
        }
    }

    fn number(self) -> u64 {
        match self {
            Phase::Queued => 0,
            Phase::Assigned => 1,
            Phase::Dispatched => 2,
            Phase::Running => 3,
            Phase::Ended(outcome) => 4 + outcome as u64,
        }
    }

    fn from_number(number: u64) -> Phase {
        match number {
            0 => Phase::Queued,
            1 => Phase::Assigned,
            2 => Phase::Dispatched,
            3 => Phase::Running,
            n => Phase::Ended(Outcome::ALL[(n - 4) as usize]),
        }
    }
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    /// How far it has come.
    pub phase: Phase,
    /// The node that has it, or had it last; index 0 is none.
    pub node: NodeIndex,
    /// Number of the latest attempt: the server's boot epoch above the lowest byte, a count from 1
    /// in it; a count of 0 means that there was none in this boot. An attempt of an earlier boot
    /// is one that a node went on with while the server was away.
    pub attempt: u32,
}

impl State {
    /// Queued, before the first attempt of this boot.
    pub fn queued(boot_epoch: u32) -> Self {
        Self { phase: Phase::Queued, node: NodeIndex(0), attempt: boot_epoch << 8 }
    }

    /// Attempts made in the boot of the latest one.
    pub fn attempts(self) -> u32 {
        self.attempt & 0xFF
    }

    /// Whether a node has it.
    pub fn in_flight(self) -> bool {
        matches!(self.phase, Phase::Assigned | Phase::Dispatched | Phase::Running)
    }

    /// The outcome, once there is one.
    pub fn outcome(self) -> Option<Outcome> {
        match self.phase {
            Phase::Ended(outcome) => Some(outcome),
            _ => None,
        }
    }

    fn pack(self) -> u64 {
        (self.phase.number() << 56) | (u64::from(self.node.0) << 32) | u64::from(self.attempt)
    }

    fn unpack(word: u64) -> Self {
        Self {
            phase: Phase::from_number(word >> 56),
            node: NodeIndex((word >> 32) as u32 & NodeIndex::MAX),
            attempt: word as u32,
        }
    }
}

/// What happens to a job. Events of an attempt carry its number; of another attempt they are stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A slot on a node was taken for it.
    Place {
        /// The node.
        node: NodeIndex,
        /// The attempt before the first one of this boot.
        floor: u32,
    },
    /// A node has it from before: the latest attempt, which was given up, or one of an earlier
    /// boot while none was made in this one.
    Adopt {
        /// The node.
        node: NodeIndex,
        /// The attempt it has.
        attempt: u32,
        /// The attempt before the first one of this boot.
        floor: u32,
    },
    /// Its assignment was flushed to the node.
    Written(u32),
    /// The node has it or works on it.
    Started(u32),
    /// The attempt came to nothing.
    Requeue(u32),
    /// The node answered.
    Answer(u32, Outcome),
    /// Its audio went into a later job's answer.
    Merge,
    /// Nobody will do it any more: attempts spent, or its last node said no.
    GiveUp(Outcome),
    /// It waited too long.
    Expire,
    /// Nobody wants it any more.
    Cancel,
}

/// The state after `event`, or none: the event came too late, or twice.
pub fn transition(state: State, event: Event) -> Option<State> {
    use Phase as P;
    let ended = |outcome| Some(State { phase: P::Ended(outcome), ..state });
    let current = |attempt| state.in_flight() && state.attempt == attempt;
    match event {
        Event::Place { node, floor } if state.phase == P::Queued => {
            // Above every earlier one, and of this boot.
            let attempt = state.attempt.max(floor).checked_add(1)?;
            let of_this_boot = attempt >> 8 == floor >> 8;
            of_this_boot.then_some(State { phase: P::Assigned, node, attempt })
        }
        Event::Adopt { node, attempt, floor } if state.phase == P::Queued => {
            let of_before = attempt < floor && state.attempt <= floor;
            let latest = state.node == node && state.attempt == attempt;
            (of_before || latest).then_some(State { phase: P::Running, node, attempt })
        }
        Event::Written(a) if current(a) && state.phase == P::Assigned => {
            Some(State { phase: P::Dispatched, ..state })
        }
        Event::Started(a) if current(a) && state.phase != P::Running => {
            Some(State { phase: P::Running, ..state })
        }
        Event::Requeue(a) if current(a) => Some(State { phase: P::Queued, ..state }),
        Event::Answer(a, outcome) if current(a) => ended(outcome),
        Event::Merge if state.in_flight() => ended(Outcome::Merged),
        Event::GiveUp(outcome) if state.outcome().is_none() => ended(outcome),
        Event::Expire if state.phase == P::Queued => ended(Outcome::Expired),
        Event::Cancel if state.outcome().is_none() => ended(Outcome::Cancelled),
        _ => None,
    }
}

/// A job's state, shared.
#[derive(Debug)]
pub(super) struct Word(AtomicU64);

impl Word {
    /// Begins with `state`.
    pub(super) fn new(state: State) -> Self {
        Self(AtomicU64::new(state.pack()))
    }

    /// The state now.
    pub(super) fn load(&self) -> State {
        State::unpack(self.0.load(SeqCst))
    }

    /// Applies `event`: the states before and after, if this call is the one that moved the word.
    pub(super) fn on(&self, event: Event) -> Option<(State, State)> {
        let step = |word| transition(State::unpack(word), event).map(State::pack);
        let before = State::unpack(self.0.fetch_update(SeqCst, SeqCst, step).ok()?);
        transition(before, event).map(|after| (before, after))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeIndex = NodeIndex(7);

    fn all_phases() -> impl Iterator<Item = Phase> {
        let live = [Phase::Queued, Phase::Assigned, Phase::Dispatched, Phase::Running];
        live.into_iter().chain(Outcome::ALL.map(Phase::Ended))
    }

    /// The table of docs/ARCHITECTURE.md, live states only: what each event leads to.
    fn documented(phase: Phase, event: Event) -> Option<Phase> {
        use Phase as P;
        let in_flight = matches!(phase, P::Assigned | P::Dispatched | P::Running);
        match event {
            Event::Place { .. } => (phase == P::Queued).then_some(P::Assigned),
            Event::Adopt { .. } => (phase == P::Queued).then_some(P::Running),
            Event::Written(_) => (phase == P::Assigned).then_some(P::Dispatched),
            Event::Started(_) => matches!(phase, P::Assigned | P::Dispatched).then_some(P::Running),
            Event::Requeue(_) => in_flight.then_some(P::Queued),
            Event::Answer(_, outcome) => in_flight.then_some(P::Ended(outcome)),
            Event::Merge => in_flight.then_some(P::Ended(Outcome::Merged)),
            Event::GiveUp(outcome) => Some(P::Ended(outcome)),
            Event::Expire => (phase == P::Queued).then_some(P::Ended(Outcome::Expired)),
            Event::Cancel => Some(P::Ended(Outcome::Cancelled)),
        }
    }

    fn events(attempt: u32) -> Vec<Event> {
        vec![
            Event::Place { node: NODE, floor: 0x300 },
            Event::Adopt { node: NODE, attempt, floor: 0x300 },
            Event::Written(attempt),
            Event::Started(attempt),
            Event::Requeue(attempt),
            Event::Answer(attempt, Outcome::Succeeded),
            Event::Merge,
            Event::GiveUp(Outcome::Failed),
            Event::Expire,
            Event::Cancel,
        ]
    }

    #[test]
    fn every_state_and_event_is_as_documented() {
        for phase in all_phases() {
            let state = State { phase, node: NODE, attempt: 0x301 };
            for event in events(0x301) {
                let ended = matches!(phase, Phase::Ended(_));
                let expected = if ended { None } else { documented(phase, event) };
                let got = transition(state, event);
                assert_eq!(got.map(|s| s.phase), expected, "{phase:?} on {event:?}");
                if let Some(got) = got {
                    let next = matches!(event, Event::Place { .. });
                    assert_eq!(got.attempt, state.attempt + u32::from(next));
                }
            }
        }
    }

    #[test]
    fn events_of_another_attempt_are_stale() {
        for phase in [Phase::Assigned, Phase::Dispatched, Phase::Running] {
            let state = State { phase, node: NODE, attempt: 0x302 };
            let of_attempt = |e: &Event| {
                let numbered = [Event::Written(1), Event::Started(1), Event::Requeue(1)];
                numbered.contains(e) || matches!(e, Event::Answer(..))
            };
            for event in events(1).into_iter().filter(of_attempt) {
                assert_eq!(transition(state, event), None, "{phase:?} on {event:?}");
            }
        }
    }

    #[test]
    fn attempts_grow_across_boots_and_adoptions() {
        let other = NodeIndex(8);
        let on = |state, event| transition(state, event);
        let place = Event::Place { node: other, floor: 0x400 };
        let adopt = |node, attempt| Event::Adopt { node, attempt, floor: 0x400 };
        let queued = |node, attempt| State { phase: Phase::Queued, node, attempt };
        let restored = State::queued(4);
        // Of an earlier boot, from whatever node; not of this one or a later one.
        let running = on(restored, adopt(NODE, 0x307)).unwrap();
        assert_eq!(running, State { phase: Phase::Running, node: NODE, attempt: 0x307 });
        assert_eq!(on(restored, adopt(NODE, 0x401)), None);
        // It comes to nothing: what follows is above all of them.
        let again = on(running, Event::Requeue(0x307)).unwrap();
        assert_eq!(on(again, adopt(other, 0x305)).map(|s| s.attempt), Some(0x305));
        let placed = on(again, place).unwrap();
        assert_eq!((placed.attempt, placed.attempts()), (0x401, 1));
        // After an attempt in this boot those of earlier ones do not count any more.
        assert_eq!(on(queued(other, 0x401), adopt(NODE, 0x307)), None);
        assert_eq!(on(queued(other, 0x401), adopt(NODE, 0x401)), None, "another node had it");
        assert!(on(queued(other, 0x401), adopt(other, 0x401)).is_some());
        // The numbers of a boot end before those of the next one.
        assert_eq!(on(queued(other, 0x4FF), place), None);
        let last = Event::Place { node: other, floor: 0xFFFF_FF00 };
        assert_eq!(on(queued(other, u32::MAX), last), None);
    }

    #[test]
    fn the_word_holds_every_state() {
        for phase in all_phases() {
            for node in [NodeIndex(0), NODE, NodeIndex(NodeIndex::MAX)] {
                let state = State { phase, node, attempt: u32::MAX };
                assert_eq!(State::unpack(state.pack()), state);
            }
        }
    }
}
