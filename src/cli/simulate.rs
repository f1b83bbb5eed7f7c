//! `utterd simulate`: the core in a virtual world, with faults and judges.

use super::{Failure, Outcome, code, say};
use crate::sim::{Options, Plant, Report, Swept, sweep};
use crate::telemetry;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The first seed. The same seed is the same world, everywhere.
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,
    /// How many seeds from the first one on.
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    seeds: u64,
    /// Nodes in the world.
    #[arg(long, value_name = "COUNT", default_value_t = 3)]
    nodes: usize,
    /// Clients in the world, each with one session at a time.
    #[arg(long, value_name = "COUNT", default_value_t = 6)]
    sessions: usize,
    /// Faults: none, light, heavy, or a number from 0 to 100.
    #[arg(long, value_name = "LEVEL", default_value = "50", value_parser = level)]
    faults: u32,
    /// Threads; each world stays on one.
    #[arg(long, value_name = "COUNT", default_value_t = 2)]
    jobs: usize,
    /// Goes on after a failure, and counts them all.
    #[arg(long)]
    go_on: bool,
    /// Shows everything that happens, on standard error.
    #[arg(long)]
    trace: bool,
    /// Puts something wrong into the world itself, which the judges must find: lying-disk,
    /// swapping-links or spoiled-audio.
    #[arg(long, value_name = "WHAT", value_parser = plant)]
    plant: Option<Plant>,
}

fn level(text: &str) -> Result<u32, String> {
    match text {
        "none" => Ok(0),
        "light" => Ok(20),
        "heavy" => Ok(80),
        number => match number.parse() {
            Ok(level) if level <= 100 => Ok(level),
            _ => Err("none, light, heavy, or a number from 0 to 100".into()),
        },
    }
}

fn plant(text: &str) -> Result<Plant, String> {
    let named = Plant::ALL.into_iter().find(|plant| plant.as_str() == text);
    named.ok_or_else(|| "lying-disk, swapping-links or spoiled-audio".to_owned())
}

pub(super) fn run(args: &Args) -> Outcome {
    let options = Options {
        nodes: args.nodes,
        sessions: args.sessions,
        faults: args.faults,
        plant: args.plant.unwrap_or_default(),
        aloud: args.trace,
    };
    let level = if args.trace { "utterd::sim=info" } else { "off" };
    let log = crate::config::Log { level: level.into(), ..crate::config::Log::default() };
    let _log = telemetry::log::init(&log)?;
    let began = std::time::Instant::now();
    let swept = sweep(args.seed, args.seeds, args.jobs, args.go_on, &options);
    let seconds = began.elapsed().as_secs_f64();
    tell(args, &swept, seconds);
    if let Some(report) = &swept.failure {
        return Err(failed(args, &swept, report));
    }
    let missing = swept.counts.missing();
    if args.seeds >= 2_000 && args.faults > 0 && !missing.is_empty() {
        let text = format!("never reached: {}", missing.join(", "));
        return Err(Failure::new(code::FAILED, anyhow::Error::msg(text)));
    }
    Ok(())
}

fn tell(args: &Args, swept: &Swept, seconds: f64) {
    for (case, n) in swept.counts.iter() {
        say(&format!("{n:>10}  {case}"));
    }
    let Swept { worlds, events, trace, .. } = swept;
    say(&format!(
        "{worlds} worlds from seed {}, {events} events, trace {trace:016x}, {seconds:.1} s",
        args.seed
    ));
}

/// One line from which the failure comes again, and what led to it.
fn failed(args: &Args, swept: &Swept, report: &Report) -> Failure {
    for (seed, sentence) in swept.sentences.iter().filter(|_| args.go_on) {
        say(&format!("seed {seed}: {sentence}"));
    }
    let failure = report.failure.as_ref();
    for line in failure.map(|f| f.tail.as_slice()).unwrap_or_default() {
        say(line);
    }
    let sentence = failure.map(|f| f.sentence.as_str()).unwrap_or_default();
    let text = format!(
        "{sentence}\nutterd simulate --seed {} --nodes {} --sessions {} --faults {}{}",
        report.seed,
        args.nodes,
        args.sessions,
        args.faults,
        args.plant.map(|plant| format!(" --plant {}", plant.as_str())).unwrap_or_default()
    );
    Failure::new(code::FAILED, anyhow::Error::msg(text))
}
