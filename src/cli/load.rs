//! `utterd load`: sessions and nodes in numbers, on a server or against a bare relay.

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use serde_json::{Value, json};

use super::http::{Target, get_json, trust};
use super::{Failure, Outcome, Signals, code, runtime, say};
use crate::config;
use crate::peer::dial::Trust;
use crate::peer::load::{
    self, Beside, Company, Compared, Faults, Figures, FloorPlan, Idle, Mode, Options, Pace, Plan,
    Relay, ServerPlan, Spawned, Stages, Step, World,
};
use crate::telemetry;

/// The rate without `--rate` or `--closed`, in utterances a second.
const RATE: f64 = 1_000.0;
/// Seconds of a round and of its warmup, alone and where there are many.
const SECONDS: (f64, f64) = (10.0, 2.0);
const SECONDS_OF_MANY: (f64, f64) = (4.0, 1.0);
/// The same of the closed loop beside the floor; no longer than those.
const SECONDS_CLOSED: (f64, f64) = (2.0, 0.5);
/// Rounds of each side beside the floor.
const FLOOR_ROUNDS: usize = 5;
/// Pairs of rounds without and with others, and seconds of a round and of its warmup.
const CONSOLE_ROUNDS: usize = 15;
const SLOW_READER_ROUNDS: usize = 5;
const SECONDS_BESIDE: (f64, f64) = (2.0, 0.5);
/// Seconds that idle sessions are left alone: more than a round of pings takes.
const SECONDS_IDLE: f64 = 45.0;

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ModeName {
    /// Each utterance in one message.
    Utterance,
    /// In chunks of 200 ms, sent in one go.
    Chunks,
}

#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
enum Switch {
    On,
    Off,
}

#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
enum Delivery {
    Durable,
    Fast,
}

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A running server, as ws://HOST:PORT or wss://; without one, a server is started for the load
    /// in a process of its own and ended after it.
    #[arg(long)]
    url: Option<String>,
    /// Certificates to believe of a wss:// server, and no others (PEM).
    #[arg(long, value_name = "FILE", requires = "url")]
    ca: Option<PathBuf>,
    /// The process of that server, to see what it costs.
    #[arg(long, requires = "url")]
    pid: Option<u32>,
    /// Nodes.
    #[arg(long, value_name = "COUNT", default_value_t = 4)]
    nodes: usize,
    /// Sessions.
    #[arg(long, value_name = "COUNT", default_value_t = 32)]
    sessions: usize,
    /// How utterances are said.
    #[arg(long, value_enum, default_value = "utterance")]
    mode: ModeName,
    /// Length of each utterance, in milliseconds of speech.
    #[arg(long, value_name = "MS", default_value_t = 1_000)]
    audio_ms: usize,
    /// Time a node takes for a job, in milliseconds; jobs do not wait for each other.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    service_ms: u64,
    /// Jobs at once that each node offers.
    #[arg(long, value_name = "COUNT", default_value_t = 64)]
    slots: u32,
    /// Utterances a second over all sessions, each due at its time whatever became of those
    /// before; 1000 if nothing is said.
    #[arg(long, value_name = "PER_SECOND", conflicts_with = "closed")]
    rate: Option<f64>,
    /// Each session says the next when it was answered.
    #[arg(long)]
    closed: bool,
    /// Unanswered utterances of each session in the closed loop.
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    window: usize,
    /// Seconds measured in each round: 10, or 4 where there are many.
    #[arg(long)]
    seconds: Option<f64>,
    /// Seconds before that which do not count: 2, or 1 where there are many.
    #[arg(long, value_name = "SECONDS")]
    warmup: Option<f64>,
    /// Rounds: 1, or 5 of each side with --floor, 15 with --consoles, 5 with --slow-readers.
    #[arg(long, value_name = "COUNT")]
    rounds: Option<usize>,
    /// Size of the speech in each result, in characters of base64.
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    result_bytes: usize,
    /// Sessions that can come back: they acknowledge each result.
    #[arg(long)]
    resume: bool,
    /// The started server keeps what it has on disk.
    #[arg(long, value_enum, default_value = "on", conflicts_with = "url")]
    store: Switch,
    /// When the started server tells results: after they are on disk, or at once.
    #[arg(long, value_enum, default_value = "durable", conflicts_with = "url")]
    delivery: Delivery,
    /// Data directory of the started server; without one, a temporary one.
    #[arg(long, value_name = "DIR", conflicts_with = "url")]
    data: Option<PathBuf>,
    /// Compare with a bare relay on the same transport, in turns.
    #[arg(long, conflicts_with_all = ["find_capacity", "closed"])]
    floor: bool,
    /// Compare with the same load while so many consoles are open, in turns.
    #[arg(long, value_name = "COUNT", conflicts_with_all = ["floor", "find_capacity"])]
    consoles: Option<usize>,
    /// Compare with the same load while so many sessions read 16 KiB a second of what they
    /// asked for, in turns.
    #[arg(long, value_name = "COUNT", conflicts_with_all = ["floor", "find_capacity", "consoles"])]
    slow_readers: Option<usize>,
    /// Open so many sessions at once, leave them alone, and look at what they cost the server.
    #[arg(long, value_name = "COUNT", conflicts_with_all = ["floor", "find_capacity", "consoles",
        "slow_readers", "rate", "closed", "rounds", "sessions"])]
    idle: Option<usize>,
    /// Look for the highest rate at which 99 % of the round trips keep within --p99.
    #[arg(long, conflicts_with_all = ["rate", "closed", "rounds"])]
    find_capacity: bool,
    /// The bound of --find-capacity, such as 5ms.
    #[arg(long, value_name = "TIME", default_value = "5ms", value_parser = time)]
    p99: Duration,
    /// One JSON document on standard output, at the end.
    #[arg(long)]
    json: bool,
    /// Be the bare relay.
    #[arg(long, hide = true)]
    relay_only: bool,
}

/// Milliseconds, or with its unit: `5ms`, `1.5s`.
fn time(text: &str) -> Result<Duration, String> {
    let (number, unit_s) = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
        (Some(ms), _) => (ms, 1e-3),
        (None, Some(s)) => (s, 1.0),
        (None, None) => (text, 1e-3),
    };
    let seconds = number.trim().parse::<f64>().map(|number| number * unit_s);
    let time = seconds.ok().and_then(|s| Duration::try_from_secs_f64(s).ok());
    time.filter(|time| !time.is_zero()).ok_or_else(|| "a time such as 5ms or 1.5s".to_owned())
}

pub(super) fn run(args: Args) -> Outcome {
    let _log =
        telemetry::log::init(&config::Log { level: "warn".into(), ..config::Log::default() })?;
    args.check()?;
    runtime()?.block_on(async {
        if args.relay_only {
            return relay().await;
        }
        let server = args.server().await?;
        let url = args.url.clone().or_else(|| server.as_ref().map(Spawned::url));
        let pid = args.pid.or_else(|| server.as_ref().and_then(Spawned::pid));
        let at = (url.unwrap_or_default(), pid);
        let mut signals = Signals::caught();
        let outcome = tokio::select! {
            outcome = Box::pin(work(&args, &at)) => outcome,
            () = signals.next() => Err(anyhow::anyhow!("asked to end").into()),
        };
        if let Some(server) = server {
            server.stop().await?;
        }
        outcome
    })
}

async fn work(args: &Args, at: &(String, Option<u32>)) -> Outcome {
    let consoles = args.consoles.map(|count| (Company::Consoles(count), CONSOLE_ROUNDS));
    let slow = args.slow_readers.map(|count| (Company::SlowReaders(count), SLOW_READER_ROUNDS));
    match (args.idle, consoles.or(slow)) {
        (Some(count), _) => idle(args, at, count).await,
        (_, Some(company)) => beside(args, at, company).await,
        _ if args.floor => floor(args, at).await,
        _ if args.find_capacity => capacity(args, &at.0).await,
        _ => rounds(args, at).await,
    }
}

/// The other side of the floor, until it is asked to end.
async fn relay() -> Outcome {
    let mut signals = Signals::caught();
    let relay = Relay::bind().await?;
    say(&format!("relay listening on {}", relay.addr()));
    relay.run(signals.next()).await;
    Ok(())
}

impl Args {
    fn check(&self) -> Outcome {
        let usage = |text| Err(Failure::new(code::USAGE, anyhow::Error::msg(text)));
        let sane = |value: Option<f64>, least: f64| {
            value.is_none_or(|v| v.is_finite() && v >= least && v <= 1e7)
        };
        if !sane(self.rate, 0.1) {
            return usage("--rate is 0.1 to 10,000,000 utterances a second");
        }
        if !sane(self.seconds, 0.1) || !sane(self.warmup, 0.0) {
            return usage("--seconds is at least 0.1, --warmup at least 0");
        }
        if self.floor && matches!(self.mode, ModeName::Chunks) {
            return usage("a relay cuts no speech: --floor is for --mode utterance");
        }
        if self.window == 0 || self.rounds == Some(0) {
            return usage("--window and --rounds are at least 1");
        }
        Ok(())
    }

    fn options(&self) -> Result<Options, Failure> {
        Ok(Options {
            nodes: self.nodes,
            sessions: self.sessions,
            mode: match self.mode {
                ModeName::Utterance => Mode::Utterance,
                ModeName::Chunks => Mode::Chunks,
            },
            audio_ms: self.audio_ms,
            service_ms: self.service_ms,
            slots: self.slots,
            result_bytes: self.result_bytes,
            resume: self.resume,
            trust: trust(self.ca.as_deref(), None)?,
            ..Options::default()
        })
    }

    fn pace(&self) -> Pace {
        match self.closed {
            true => Pace::Closed(self.window),
            false => Pace::Rate(self.rate.unwrap_or(RATE)),
        }
    }

    fn plan(&self, (seconds, warmup_s): (f64, f64)) -> Plan {
        Plan {
            pace: self.pace(),
            warmup_s: self.warmup.unwrap_or(warmup_s),
            seconds: self.seconds.unwrap_or(seconds),
        }
    }

    /// Settings of the started server that are not its defaults, as environment variables.
    fn settings(&self) -> Vec<(String, String)> {
        let mut settings = vec![("UTTERD_SERVER_DRAIN_MS", "0")];
        if self.store == Switch::Off {
            settings.push(("UTTERD_STORE_ENABLED", "false"));
        }
        if self.delivery == Delivery::Fast {
            settings.push(("UTTERD_SESSION_DELIVERY", "fast"));
        }
        if matches!(self.mode, ModeName::Chunks) {
            // Else the next utterance would be taken for the end of this one.
            settings.push(("UTTERD_SEGMENTER_HANGOVER_MANUAL_MS", "0"));
        }
        settings.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    async fn server(&self) -> Result<Option<Spawned>, Failure> {
        if self.url.is_some() {
            return Ok(None);
        }
        let settings = self.settings();
        if !self.json {
            let words: Vec<String> = settings.iter().map(|(k, v)| format!("{k}={v}")).collect();
            say(&format!("a server of its own, with {}", words.join(" ")));
        }
        let program = std::env::current_exe()?;
        let plan = ServerPlan { program, data: self.data.clone(), settings };
        Ok(Some(Spawned::server(&plan).await?))
    }

    fn is_stored(&self) -> bool {
        self.store == Switch::On
    }

    fn tell_what(&self, options: &Options) {
        if !self.json {
            say(&format!(
                "{} nodes, {} sessions, {} ms of speech an utterance{}",
                options.nodes,
                options.sessions,
                options.audio_ms,
                if options.resume { ", sessions that acknowledge" } else { "" }
            ));
        }
    }
}

async fn rounds(args: &Args, (url, pid): &(String, Option<u32>)) -> Outcome {
    let (options, plan) = (args.options()?, args.plan(SECONDS));
    args.tell_what(&options);
    let mut world = World::open(url, &options, *pid).await?;
    let (mut taken, mut inside): (Vec<Figures>, Vec<Option<Stages>>) = (Vec::new(), Vec::new());
    for round in 0..args.rounds.unwrap_or(1) {
        let figures = world.round(plan).await?;
        let stages = stages(url, &options.trust).await?;
        if !args.json {
            let mut lines = figures.lines();
            lines.extend(stages.iter().flat_map(Stages::lines));
            say(&format!("round {round}: {}", lines.join("\n  ")));
        }
        taken.push(figures);
        inside.push(stages);
    }
    world.close().await;
    if args.json {
        document(&json!({"options": options, "plan": plan, "settings": settings(args),
            "rounds": taken, "stages": inside}))?;
    }
    judge(taken.into_iter().map(|figures| ("the load", figures.faults)))
}

/// Where the time went inside the server, as far as it remembers and tells: not every server that
/// takes a load does.
async fn stages(url: &str, trust: &Trust) -> Result<Option<Stages>, Failure> {
    match get_json(&Target::new(url, trust.clone()), "/api/v1/jobs").await {
        Ok(jobs) => Ok(Some(Stages::of(&jobs).map_err(load::LoadError::from)?)),
        Err(_) => Ok(None),
    }
}

async fn capacity(args: &Args, url: &str) -> Outcome {
    let options = args.options()?;
    args.tell_what(&options);
    let (seconds, warmup) = SECONDS_OF_MANY;
    let times = (args.warmup.unwrap_or(warmup), args.seconds.unwrap_or(seconds));
    let tell = |step: &Step| {
        if !args.json {
            say(&format!(
                "{:>8.0}/s {} round trip p50 {:>6.0} p99 {:>8.0} µs, {:.0}/s answered, {}",
                step.rate,
                if step.holds { "holds:" } else { "fails:" },
                step.figures.round_trip.p50_us,
                step.figures.round_trip.p99_us,
                step.figures.achieved_per_s,
                step.figures.faults.line()
            ));
        }
    };
    let found = load::find_capacity(url, &options, args.p99, times, tell).await?;
    let bound = args.p99.as_secs_f64() * 1e3;
    if args.json {
        document(&json!({"options": options, "settings": settings(args), "p99_ms": bound,
            "capacity": found}))?;
    }
    match found.rate {
        Some(rate) if !args.json => {
            say(&format!("{rate:.0} utterances/s, with 99 % answered within {bound} ms"));
            Ok(())
        }
        Some(_) => Ok(()),
        None => Err(anyhow::anyhow!("no rate holds 99 % within {bound} ms").into()),
    }
}

async fn floor(args: &Args, (url, pid): &(String, Option<u32>)) -> Outcome {
    let open = args.plan(SECONDS_OF_MANY);
    let closed = Plan {
        pace: Pace::Closed(args.window),
        seconds: SECONDS_CLOSED.0.min(open.seconds),
        warmup_s: SECONDS_CLOSED.1.min(open.warmup_s),
    };
    let plan = FloorPlan {
        options: args.options()?,
        rounds: args.rounds.unwrap_or(FLOOR_ROUNDS),
        open,
        closed,
        stored: args.is_stored(),
    };
    args.tell_what(&plan.options);
    let relay = Spawned::relay(&std::env::current_exe()?).await?;
    let tell = |line: &str| {
        if !args.json {
            say(line);
        }
    };
    let sides = ((url.as_str(), *pid), (relay.url(), relay.pid()));
    let ((url, pid), (relay_url, relay_pid)) = sides;
    let compared = load::compare((url, pid), (&relay_url, relay_pid), &plan, tell).await;
    relay.stop().await?;
    let compared = compared?;
    match args.json {
        true => {
            document(&json!({"plan": plan, "settings": settings(args), "floor": compared}))?;
        }
        false => tell_compared(&compared),
    }
    judge(compared.faults())
}

fn tell_compared(compared: &Compared) {
    say(&format!("{:<34}{:>10}{:>10}{:>10}", "medians of the rounds", "server", "relay", "ratio"));
    for ratio in &compared.ratios {
        say(&format!(
            "{:<34}{:>10.0}{:>10.0}{:>9.2}×",
            ratio.what, ratio.server, ratio.relay, ratio.ratio
        ));
    }
    for verdict in &compared.verdicts {
        say(&format!(
            "{:<8} {} {:.2}: {:.2}",
            if verdict.met { "met:" } else { "not met:" },
            verdict.what,
            verdict.bound,
            verdict.ratio
        ));
    }
}

async fn beside(
    args: &Args,
    (url, pid): &(String, Option<u32>),
    (company, rounds): (Company, usize),
) -> Outcome {
    let (options, plan) = (args.options()?, args.plan(SECONDS_BESIDE));
    args.tell_what(&options);
    let tell = |line: &str| {
        if !args.json {
            say(line);
        }
    };
    let plan = (plan, args.rounds.unwrap_or(rounds), company);
    let beside = load::beside((url, *pid), &options, plan, tell).await?;
    match args.json {
        true => document(&json!({"options": options, "plan": plan.0, "settings": settings(args),
            "beside": beside}))?,
        false => tell_beside(&beside),
    }
    judge(beside.faults())
}

fn tell_beside(beside: &Beside) {
    let company = beside.company;
    if let Company::Consoles(count) = company {
        say(&format!("{} pictures were sent to {count} consoles", beside.pictures));
    }
    if let (Some(before), Some(with)) = (beside.rss_without_kb, beside.rss_with_kb) {
        say(&format!(
            "memory of the server: {before} kB before the {} {}, {with} kB at most with them",
            company.count(),
            company.name()
        ));
    }
    let heads = ["without", "with", "ratio", "quarters"];
    say(&format!(
        "{:<34}{:>10}{:>10}{:>10}{:>16}",
        "medians of the rounds", heads[0], heads[1], heads[2], heads[3]
    ));
    for w in &beside.weighed {
        let quarters = format!("{:.2} – {:.2}", w.ratio_low, w.ratio_high);
        say(&format!(
            "{:<34}{:>10.0}{:>10.0}{:>9.2}×{quarters:>16}",
            w.what, w.without, w.with, w.ratio
        ));
    }
}

async fn idle(args: &Args, (url, pid): &(String, Option<u32>), sessions: usize) -> Outcome {
    let usage = |text| Failure::new(code::USAGE, anyhow::Error::msg(text));
    let pid = pid.ok_or_else(|| usage("--idle looks at the server's process: say its --pid"))?;
    let options = Options { sessions, ..args.options()? };
    let seconds = args.seconds.unwrap_or(SECONDS_IDLE);
    let idle = load::idle((url, pid), &options, seconds).await?;
    match args.json {
        true => document(&json!({"settings": settings(args), "idle": idle}))?,
        false => tell_idle(&idle),
    }
    match (idle.refused, idle.lost) {
        (0, 0) => Ok(()),
        (refused, lost) => {
            let why = idle.complaint.unwrap_or_default();
            Err(anyhow::anyhow!("{refused} sessions refused ({why}), {lost} lost").into())
        }
    }
}

fn tell_idle(idle: &Idle) {
    say(&format!(
        "{} sessions came in {:.1} s, {} refused, the longest wait {:.0} ms",
        idle.sessions, idle.storm_s, idle.refused, idle.longest_ms
    ));
    say(&format!(
        "memory of the server: {} kB before, {} kB with them: {:.0} bytes a session",
        idle.rss_before_kb, idle.rss_with_kb, idle.bytes_per_session
    ));
    say(&format!(
        "left alone for {:.0} s: {:.2} % of a core, {} connections lost",
        idle.seconds, idle.cpu_percent, idle.lost
    ));
}

fn settings(args: &Args) -> Value {
    args.url.is_none().then(|| args.settings()).into_iter().flatten().collect()
}

fn document(value: &Value) -> Outcome {
    say(&serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Anything but one answer for each utterance, in order and its own, is a failure.
fn judge(all: impl IntoIterator<Item = (&'static str, Faults)>) -> Outcome {
    let dirty = all.into_iter().filter(|(_, faults)| !faults.is_clean());
    let words: Vec<String> =
        dirty.map(|(side, faults)| format!("{side}: {}", faults.line())).collect();
    match words.is_empty() {
        true => Ok(()),
        false => Err(Failure::new(code::FAILED, anyhow::Error::msg(words.join("; ")))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_and_without_a_unit() {
        assert_eq!(time("5ms"), Ok(Duration::from_millis(5)));
        assert_eq!(time("5"), Ok(Duration::from_millis(5)));
        assert_eq!(time("1.5s"), Ok(Duration::from_millis(1_500)));
        for bad in ["", "ms", "-1", "0", "x", "1e30s", "nan"] {
            assert!(time(bad).is_err(), "{bad}");
        }
    }
}
