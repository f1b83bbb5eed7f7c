//! When each utterance is due, whatever became of those before it.
//!
//! A schedule is fixed before its first utterance: who waits for answers before it asks again
//! measures a stalled server once instead of a thousand times. It refuses to know what is sent.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use super::ledger::Ledger;

/// How exactly the thread that keeps the time is to be woken, in nanoseconds. The system's own
/// slack of 50 µs is as long as what is measured.
const SLACK_NS: u64 = 1;
/// Longest sleep without a look whether to stop.
const LOOK: Duration = Duration::from_millis(100);

/// Utterances at a fixed rate over all sessions in turn.
#[derive(Debug, Clone, Copy)]
pub(super) struct Schedule {
    /// When the first one is due.
    pub(super) start: Instant,
    /// Utterances a second, over all sessions.
    pub(super) rate: f64,
    /// How many there are.
    pub(super) total: u64,
}

impl Schedule {
    /// When the `nth` utterance is due, from 0.
    pub(super) fn due(&self, nth: u64) -> Instant {
        self.start + Duration::from_secs_f64(nth as f64 / self.rate)
    }
}

/// Lets each session speak when its utterance is due. The thread is outside the runtime, whose
/// timers count in milliseconds.
pub(super) fn keep(
    schedule: Schedule,
    ledger: Arc<Ledger>,
    stop: Arc<AtomicBool>,
) -> io::Result<()> {
    let run = move || {
        if let Err(error) = exact_sleep() {
            tracing::debug!(%error, "the pace is kept less exactly");
        }
        let sessions = ledger.sessions() as u64;
        for nth in 0..schedule.total {
            if !wait_until(schedule.due(nth), &stop) {
                return;
            }
            ledger.let_speak((nth % sessions) as usize, 1);
        }
    };
    thread::Builder::new().name("load-pace".to_owned()).spawn(run)?;
    Ok(())
}

/// False if asked to stop before that.
fn wait_until(due: Instant, stop: &AtomicBool) -> bool {
    loop {
        if stop.load(Relaxed) {
            return false;
        }
        match due.checked_duration_since(Instant::now()) {
            None | Some(Duration::ZERO) => return true,
            Some(left) => thread::sleep(left.min(LOOK)),
        }
    }
}

#[cfg(target_os = "linux")]
fn exact_sleep() -> io::Result<()> {
    Ok(rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(SLACK_NS))?)
}

#[cfg(not(target_os = "linux"))]
fn exact_sleep() -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedule_does_not_wait_for_anybody() {
        let start = Instant::now();
        let schedule = Schedule { start, rate: 1_000.0, total: 5_000 };
        assert_eq!(schedule.due(0), start);
        assert_eq!(schedule.due(1), start + Duration::from_millis(1));
        assert_eq!(schedule.due(4_999), start + Duration::from_millis(4_999));
        let odd = Schedule { rate: 3.0, ..schedule };
        assert_eq!(odd.due(3), start + Duration::from_secs(1));
    }

    #[test]
    fn who_is_asked_to_stop_waits_no_longer() {
        let later = Instant::now() + Duration::from_secs(60);
        assert!(!wait_until(later, &AtomicBool::new(true)));
        assert!(wait_until(Instant::now(), &AtomicBool::new(false)));
    }
}
