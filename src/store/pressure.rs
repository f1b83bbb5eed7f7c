//! How much room is left, and whether the thread still moves: what the store asks of those who
//! bring it work.

use std::time::Duration;

use super::medium::Space;

/// What a disk with little room asks for. Each asks for all that stands before it, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Pressure {
    /// Nothing.
    None,
    /// That an operator looks after it.
    Warn,
    /// That no new jobs are accepted; those accepted go on.
    NoJobs,
    /// That no new sessions are opened.
    NoSessions,
    /// A commit met a full disk. What was durable can be read and delivered; nothing else becomes
    /// durable until there is room again, which is looked for every second.
    Full,
}

impl Pressure {
    /// All of them, in order.
    pub const ALL: [Pressure; 5] =
        [Pressure::None, Pressure::Warn, Pressure::NoJobs, Pressure::NoSessions, Pressure::Full];

    /// Name in logs and answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Pressure::None => "none",
            Pressure::Warn => "warn",
            Pressure::NoJobs => "no_jobs",
            Pressure::NoSessions => "no_sessions",
            Pressure::Full => "full",
        }
    }
}

/// A line that free space should not fall below: the lower of a share and a number of bytes, so
/// that neither a small disk nor a large one is refused work it has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watermark {
    /// Share of the file system, in percent.
    pub percent: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Watermark {
    /// The line on a file system of `total` bytes.
    pub fn line(self, total: u64) -> u64 {
        (total / 100).saturating_mul(self.percent).min(self.bytes)
    }
}

/// The lines at which the store asks for something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watermarks {
    /// Below it: [`Pressure::Warn`].
    pub warn: Watermark,
    /// Below it: [`Pressure::NoJobs`].
    pub no_jobs: Watermark,
    /// Below it: [`Pressure::NoSessions`].
    pub no_sessions: Watermark,
}

impl Default for Watermarks {
    fn default() -> Self {
        Self {
            warn: Watermark { percent: 20, bytes: 1 << 30 },
            no_jobs: Watermark { percent: 10, bytes: 256 << 20 },
            no_sessions: Watermark { percent: 5, bytes: 128 << 20 },
        }
    }
}

impl Watermarks {
    /// What this much room asks for.
    pub fn pressure(&self, space: Space) -> Pressure {
        let below = |mark: Watermark| space.free < mark.line(space.total);
        if below(self.no_sessions) {
            Pressure::NoSessions
        } else if below(self.no_jobs) {
            Pressure::NoJobs
        } else if below(self.warn) {
            Pressure::Warn
        } else {
            Pressure::None
        }
    }
}

/// Whether the store's thread moves. A thread with nothing to do is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Health {
    /// It does.
    Well,
    /// It is in something that takes too long: no new sessions, not ready.
    Late,
    /// It has been for so long that no new jobs are accepted.
    Stuck,
    /// It will not come back; the process ends.
    Lost,
}

impl Health {
    /// Name in logs and answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Health::Well => "well",
            Health::Late => "late",
            Health::Stuck => "stuck",
            Health::Lost => "lost",
        }
    }
}

/// How long the thread may be without moving.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    pub(super) late: Duration,
    pub(super) stuck: Duration,
    pub(super) lost: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            late: Duration::from_secs(2),
            stuck: Duration::from_secs(10),
            lost: Duration::from_secs(60),
        }
    }
}

impl Patience {
    /// For a store whose owner takes what time it wants.
    pub(super) const ENDLESS: Self =
        Self { late: Duration::MAX, stuck: Duration::MAX, lost: Duration::MAX };

    pub(super) fn health(&self, silent: Duration) -> Health {
        match silent {
            silent if silent > self.lost => Health::Lost,
            silent if silent > self.stuck => Health::Stuck,
            silent if silent > self.late => Health::Late,
            _ => Health::Well,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_large_disk_that_is_nearly_full_is_not_refused_work_it_has_room_for() {
        let marks = Watermarks::default();
        let at = |free| marks.pressure(Space { free, total: 250 * GIB });
        assert_eq!(at(12 * GIB), Pressure::None);
        assert_eq!(at(GIB - 1), Pressure::Warn);
        assert_eq!(at((256 << 20) - 1), Pressure::NoJobs);
        assert_eq!(at((128 << 20) - 1), Pressure::NoSessions);
    }

    #[test]
    fn a_small_disk_is_measured_by_its_size() {
        let marks = Watermarks::default();
        let at = |free| marks.pressure(Space { free, total: 1_000 << 20 });
        assert_eq!(at(200 << 20), Pressure::None);
        assert_eq!(at(199 << 20), Pressure::Warn);
        assert_eq!(at(99 << 20), Pressure::NoJobs);
        assert_eq!(at(49 << 20), Pressure::NoSessions);
    }
}
