//! What came of it, for people and for the test.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;

use super::daemon::log_of;
use super::world::{Broken, World};

/// Faults every panic the server wrote of.
pub fn panics(world: &World, dir: &Path) {
    let log = std::fs::read_to_string(log_of(dir)).unwrap_or_default();
    for line in log.lines().filter(|line| line.contains("panicked")) {
        world.broken(Broken::Rule, line);
    }
}

/// All that was counted, in one line, and what happened how often, in lines of their own.
pub fn counts(world: &World) -> String {
    let tally = &world.tally;
    let counts = [
        ("sessions", &tally.sessions),
        ("left behind", &tally.left),
        ("resumed", &tally.resumed),
        ("forgotten without a promise", &tally.forgotten),
        ("accepted", &tally.accepted),
        ("results", &tally.results),
        ("typed failures", &tally.failed),
        ("refusals", &tally.refused),
        ("late", &tally.late),
        ("repeats dropped", &tally.repeats),
        ("sent again", &tally.resent),
        ("assigned", &tally.assigned),
        ("results acked to nodes", &tally.acked),
    ];
    let mut text = String::new();
    for (name, value) in counts {
        write!(text, "{name} {}, ", value.load(Relaxed)).unwrap();
    }
    let (lost, gaps) = (world.count_broken(Broken::Lost), world.count_broken(Broken::Gap));
    write!(text, "lost {lost}, gaps {gaps}").unwrap();
    for (reason, n) in world.reasons() {
        write!(text, "\n  {reason}: {n}").unwrap();
    }
    text
}

/// Panics if a promise was broken, and leaves the server's files for who looks into it.
pub fn judge(world: &World, dir: tempfile::TempDir) {
    let broken = world.all_broken();
    let (failed, results) = (world.tally.failed.load(Relaxed), world.tally.results.load(Relaxed));
    let refused = world.tally.refused.load(Relaxed);
    // Nodes that go while they work cost a job now and then, and a server that is asked to stop
    // refuses.
    let failures = failed * 100 > results + 300 || refused * 10 > results + 300;
    if broken.is_empty() && !failures {
        return;
    }
    let kept = dir.keep();
    let list: String = broken.iter().take(20).fold(String::new(), |mut list, (what, how)| {
        writeln!(list, "  {what:?}: {how}").unwrap();
        list
    });
    panic!(
        "{} promises broken, {failed} failures, {refused} refusals; see {}:\n{list}",
        broken.len(),
        kept.display()
    );
}
