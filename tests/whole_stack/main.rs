//! The real server, its store and both kinds of peers in one simulated world for each seed: time,
//! network, disk and death are the simulation's, everything between socket and disk is the
//! product's.
//!
//! A seed has a process of its own, because what it does depends on nothing else then. Without
//! settings a fixed number of seeds is run, and the first of them twice: the same must happen.
//!
//! - `UTTERD_WHOLE_STACK_SEED` runs that one seed here, and shows how it ended.
//! - `UTTERD_WHOLE_STACK_SEEDS` sets how many are run, `UTTERD_WHOLE_STACK_FROM` the first.
//! - `UTTERD_WHOLE_STACK_TRACE` shows all that happens.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the figures of a run")]

mod client;
mod machine;
mod node;
mod plain;
mod plan;
mod run;
#[path = "../support/mod.rs"]
mod support;
mod wire;
mod world;

use std::collections::BTreeMap;
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// Seeds of a run without settings.
const SEEDS: u64 = 60;
/// What must have happened in that many seeds: what never came has proved nothing.
const HAPPENED: [&str; 16] = [
    "accepted",
    "accepted again",
    "crash",
    "forgotten",
    "hello cancel",
    "hello keep",
    "hello send",
    "late",
    "node crash",
    "partition",
    "repeated",
    "result stale",
    "result unknown",
    "resumed to a finished utterance",
    "resumed to an unfinished utterance",
    "silent crash",
];

fn main() -> ExitCode {
    // As the test harness would: names are looked for in, and lists are of, nothing but this.
    let asked: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let listed = std::env::args().any(|arg| arg == "--list");
    if listed || !asked.is_empty() && !asked.iter().any(|name| "whole_stack".contains(&**name)) {
        return ExitCode::SUCCESS;
    }
    match setting("UTTERD_WHOLE_STACK_SEED") {
        Some(seed) => run::alone(seed),
        None => many(),
    }
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs seeds, each in a process of its own, on all cores.
fn many() -> ExitCode {
    let first = setting("UTTERD_WHOLE_STACK_FROM").unwrap_or(1);
    let count = setting("UTTERD_WHOLE_STACK_SEEDS").unwrap_or(SEEDS);
    let (next, began) = (AtomicU64::new(first), uptime());
    let (tally, wrong) = (Mutex::new(BTreeMap::<String, u64>::new()), Mutex::new(Vec::new()));
    let work = || {
        loop {
            let seed = next.fetch_add(1, SeqCst);
            if seed >= first + count || wrong.lock().unwrap().len() >= 5 {
                return;
            }
            match one(seed) {
                Ok(counts) => {
                    let mut tally = tally.lock().unwrap();
                    for (what, times) in counts {
                        *tally.entry(what).or_default() += times;
                    }
                }
                Err(how) => {
                    eprintln!("{how}\nto see it again: {}", again(seed));
                    wrong.lock().unwrap().push(seed);
                }
            }
        }
    };
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| (0..cores).for_each(|_| drop(scope.spawn(work))));
    let tally = tally.into_inner().unwrap();
    let took = uptime() - began;
    println!("{count} seeds in {took:.1} s, {:.2} a second: {tally:#?}", count as f64 / took);
    let mut wrong = wrong.into_inner().unwrap();
    if let (Ok(one), Ok(other)) = (output(first), output(first))
        && one != other
    {
        eprintln!("the same seed went two ways: {one}\n{other}\nto see it: {}", again(first));
        wrong.push(first);
    }
    let missing: Vec<_> = HAPPENED.iter().filter(|what| !tally.contains_key(**what)).collect();
    if count >= SEEDS && !missing.is_empty() {
        eprintln!("never happened, and so proved nothing: {missing:?}");
        return ExitCode::FAILURE;
    }
    if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn again(seed: u64) -> String {
    format!("UTTERD_WHOLE_STACK_SEED={seed} cargo test --test whole_stack")
}

/// What one seed came to: how often what happened in it, or how it went wrong.
fn one(seed: u64) -> Result<BTreeMap<String, u64>, String> {
    let text = output(seed)?;
    let counts = text.lines().find_map(|line| line.strip_prefix("tally "));
    serde_json::from_str(counts.unwrap_or_default()).map_err(|_| format!("seed {seed}: {text}"))
}

/// What the process of one seed says.
fn output(seed: u64) -> Result<String, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let output = Command::new(program)
        .env("UTTERD_WHOLE_STACK_SEED", seed.to_string())
        .output()
        .map_err(|error| error.to_string())?;
    let (said, cried) = (&output.stdout, &output.stderr);
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(said).into_owned()),
        false => Err(format!("seed {seed}: {}\n{}", output.status, String::from_utf8_lossy(cried))),
    }
}

/// Seconds since the machine started: in this program the other clocks are the simulation's.
fn uptime() -> f64 {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    text.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0.0)
}
