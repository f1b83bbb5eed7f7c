//! The life of a node's registration.
//!
//! ```text
//!   ∅ ─register─▶ Registering ─good report─▶ Ready ◀─good report─ Degraded
//!                     │                        └─bad report, failures─▶ ▲
//!                     └─warm-up over───────────────────────────────────┘
//!   any but Offline ─drain─▶ Draining ─undrain─▶ Registering
//!   any ─lost─▶ Offline ─register─▶ Registering
//! ```

use serde::Serialize;

/// Where a node stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum State {
    /// Connected; not yet known to be able to work.
    Registering,
    /// In the pools.
    Ready,
    /// Connected, but kept out of the pools.
    Degraded,
    /// Takes no new jobs, finishes those it has.
    Draining,
    /// Not connected.
    Offline,
}

impl State {
    /// All states, in the order of their numbers.
    pub const ALL: [State; 5] =
        [State::Registering, State::Ready, State::Degraded, State::Draining, State::Offline];

    /// Name in answers and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Registering => "registering",
            State::Ready => "ready",
            State::Degraded => "degraded",
            State::Draining => "draining",
            State::Offline => "offline",
        }
    }

    pub(super) fn from_number(number: u8) -> State {
        State::ALL[usize::from(number)]
    }
}

/// What happens to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A connection took the id.
    Registered,
    /// A report says it can work, and nothing here speaks against it.
    GoodReport,
    /// A report says it cannot work now: no language, no ready service, or too high a load.
    BadReport,
    /// It has been registering for longer than a node may.
    WarmupOver,
    /// Too many of its last jobs failed.
    Failing,
    /// An operator wants it empty.
    Drain,
    /// An operator wants it back.
    Undrain,
    /// Its connection is gone, or it fell silent.
    Lost,
}

impl Event {
    /// All events.
    pub const ALL: [Event; 8] = [
        Event::Registered,
        Event::GoodReport,
        Event::BadReport,
        Event::WarmupOver,
        Event::Failing,
        Event::Drain,
        Event::Undrain,
        Event::Lost,
    ];
}

/// The state after `event`; none where it changes nothing.
pub fn transition(state: State, event: Event) -> Option<State> {
    use Event as E;
    use State as S;
    let next = match (state, event) {
        (S::Offline, E::Registered) | (S::Draining, E::Undrain) => S::Registering,
        (S::Registering | S::Degraded, E::GoodReport) => S::Ready,
        (S::Ready, E::BadReport | E::Failing) | (S::Registering, E::WarmupOver | E::Failing) => {
            S::Degraded
        }
        (S::Registering | S::Ready | S::Degraded, E::Drain) => S::Draining,
        (S::Registering | S::Ready | S::Degraded | S::Draining, E::Lost) => S::Offline,
        _ => return None,
    };
    Some(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of docs/ARCHITECTURE.md: a row for each state, a column for each event in the
    /// order of `Event::ALL`; `.` where nothing changes.
    const TABLE: [(State, &str); 5] = [
        (State::Registering, ".r.ggx.o"),
        (State::Ready, "..g.gx.o"),
        (State::Degraded, ".r...x.o"),
        (State::Draining, "......no"),
        (State::Offline, "n......."),
    ];

    #[test]
    fn every_state_and_event_is_as_documented() {
        for (state, row) in TABLE {
            for (event, expected) in Event::ALL.into_iter().zip(row.chars()) {
                let expected = match expected {
                    '.' => None,
                    'n' => Some(State::Registering),
                    'r' => Some(State::Ready),
                    'g' => Some(State::Degraded),
                    'x' => Some(State::Draining),
                    _ => Some(State::Offline),
                };
                assert_eq!(transition(state, event), expected, "{state:?} on {event:?}");
            }
        }
    }

    #[test]
    fn numbers_name_their_states() {
        for state in State::ALL {
            assert_eq!(State::from_number(state as u8), state);
        }
    }
}
