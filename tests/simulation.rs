//! Many seeded worlds hold, the same seed is the same world everywhere, and the judges see what is
//! wrong when something is.

use std::process::Command;
use std::thread::available_parallelism;

use utterd::sim::{Options, Plant, sweep};

/// Seeds of one run; more on request.
fn seeds() -> u64 {
    let asked = std::env::var("UTTERD_SIM_SEEDS").ok();
    asked.map_or(2_000, |n| n.parse().expect("UTTERD_SIM_SEEDS is a number"))
}

#[test]
fn many_worlds_hold_and_meet_every_case() {
    let jobs = available_parallelism().map_or(2, usize::from);
    let swept = sweep(1, seeds(), jobs, false, &Options::default());
    if let Some(report) = &swept.failure {
        let failure = report.failure.as_ref().expect("it failed");
        let tail = failure.tail.join("\n");
        panic!("{tail}\n{}\nutterd simulate --seed {}", failure.sentence, report.seed);
    }
    if swept.worlds >= 2_000 {
        assert_eq!(swept.counts.missing(), [""; 0], "a case that is never met is never tested");
    }
}

#[test]
fn without_faults_nothing_is_missing_either() {
    let options = Options { faults: 0, ..Options::default() };
    let swept = sweep(1, 40, 1, false, &options);
    assert_eq!(swept.sentences.into_iter().next(), None);
    let lost = swept.counts.iter().find(|(case, _)| matches!(*case, "crash" | "node_lost"));
    assert_eq!(lost, None);
}

fn last_line(args: &[&str]) -> String {
    let ran = Command::new(env!("CARGO_BIN_EXE_utterd")).arg("simulate").args(args).output();
    let ran = ran.expect("the program runs");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let text = String::from_utf8(ran.stdout).unwrap();
    let last = text.lines().last().expect("a summary").to_owned();
    // The time it took is told last.
    last.rsplit_once(',').expect("a time").0.to_owned()
}

#[test]
fn the_same_seed_is_the_same_world_in_another_process_and_on_other_threads() {
    let one = last_line(&["--seed", "500", "--seeds", "24", "--jobs", "1"]);
    let other = last_line(&["--seed", "500", "--seeds", "24", "--jobs", "3"]);
    assert_eq!(one, other);
    let seed = last_line(&["--seed", "501", "--seeds", "24", "--jobs", "1"]);
    assert_ne!(one, seed, "the trace tells worlds apart");
}

#[test]
fn judges_see_a_world_that_is_wrong() {
    // What the world does wrong, and the invariants whose judges may say so.
    let plants = [
        (Plant::LyingDisk, &["I1", "I2", "I3", "I4", "I5", "I7", "I8", "I9", "I10", "I18"][..]),
        (Plant::SwappingLinks, &["I2", "I5", "I6", "I14", "I21", "I23", "L1", "L2", "L3"][..]),
        (Plant::SpoiledAudio, &["I21"][..]),
    ];
    for (plant, invariants) in plants {
        let options = Options { plant, ..Options::default() };
        let swept = sweep(1, 300, 1, false, &options);
        let (seed, sentence) = swept.sentences.into_iter().next().expect("a judge speaks");
        let named = sentence.split(':').next().unwrap_or_default();
        assert!(invariants.contains(&named), "seed {seed} with {plant:?}: {sentence}");
    }
}

#[test]
fn a_failure_says_how_to_see_it_again() {
    let args = ["simulate", "--seeds", "300", "--plant", "spoiled-audio"];
    let ran = Command::new(env!("CARGO_BIN_EXE_utterd")).args(args).output().unwrap();
    assert_eq!(ran.status.code(), Some(1));
    let text = String::from_utf8(ran.stderr).unwrap();
    let line = text.lines().find(|line| line.starts_with("utterd simulate")).expect("a command");
    let args: Vec<&str> = line.split(' ').skip(1).collect();
    let again = Command::new(env!("CARGO_BIN_EXE_utterd")).args(args).output().unwrap();
    assert_eq!(String::from_utf8(again.stderr).unwrap(), text);
}
