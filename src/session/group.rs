//! Conversation groups: utterances that follow each other closely share a group id.
//!
//! Clients name the group when they begin and finish playing; the window counts from the end of
//! playing, or from the group's beginning while nothing was played.

use crate::protocol::SessionId;
use crate::telemetry::Now;

/// The groups of one session: only the latest one can still grow.
#[derive(Debug)]
pub struct Groups {
    session: SessionId,
    window_us: u64,
    current: Option<Group>,
    /// Unix milliseconds in the last id: two groups never share one.
    last_id_ms: u64,
}

#[derive(Debug)]
struct Group {
    id: String,
    parts: u64,
    quiet_since_us: u64,
}

impl Groups {
    /// None yet.
    pub fn new(session: SessionId, window_ms: u64) -> Self {
        Self { session, window_us: window_ms * 1_000, current: None, last_id_ms: 0 }
    }

    /// The group and place of a result with text.
    pub fn place(&mut self, now: Now) -> (String, u64) {
        let open =
            self.current.take_if(|g| now.us.saturating_sub(g.quiet_since_us) <= self.window_us);
        let mut group = open.unwrap_or_else(|| {
            self.last_id_ms = now.unix_ms.max(self.last_id_ms + 1);
            let id = format!("group_{}_{}", self.session, self.last_id_ms);
            Group { id, parts: 0, quiet_since_us: now.us }
        });
        let place = (group.id.clone(), group.parts);
        group.parts += 1;
        self.current = Some(group);
        place
    }

    /// The client finished playing something of this group.
    pub fn played(&mut self, group_id: Option<&str>, now: Now) {
        if let Some(group) = self.current.as_mut().filter(|g| group_id == Some(g.id.as_str())) {
            group.quiet_since_us = now.us;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Now {
        Now { us: ms * 1_000, unix_ms: 5_000 + ms / 1_000 }
    }

    #[test]
    fn results_within_the_window_share_a_group() {
        let mut groups = Groups::new(SessionId(1), 2_000);
        let (first, part) = groups.place(at(0));
        assert_eq!((first.as_str(), part), ("group_s-0000000000000001_5000", 0));
        assert_eq!(groups.place(at(1_900)), (first.clone(), 1));
        groups.played(Some(&first), at(3_000));
        assert_eq!(groups.place(at(4_900)), (first.clone(), 2));
        let (second, part) = groups.place(at(6_000));
        assert_ne!(second, first);
        assert_eq!(part, 0);
    }

    #[test]
    fn groups_of_one_millisecond_differ() {
        let mut groups = Groups::new(SessionId(1), 0);
        let now = Now { us: 1, unix_ms: 7 };
        let (a, _) = groups.place(now);
        let (b, _) = groups.place(Now { us: 2, unix_ms: 7 });
        assert_ne!(a, b);
    }
}
