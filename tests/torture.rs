//! The whole program killed with SIGKILL again and again, at work and while it recovers, with
//! clients and nodes that come back each time. What they are told is judged from outside, by what
//! was said on the sockets alone.
//!
//! `UTTERD_TORTURE_CYCLES` sets the number of kills, `UTTERD_TORTURE_SEED` repeats a choice of
//! moments, `UTTERD_TORTURE_PROGRAM` names another build of the program.

#![allow(clippy::print_stdout, reason = "the figures of a run")]

mod support;

mod torture {
    pub mod audio;
    pub mod client;
    pub mod daemon;
    pub mod ledger;
    pub mod plan;
    pub mod verdict;
    pub mod worker;
    pub mod world;
}

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde_json::Value;
use support::http;
use tokio::task::JoinSet;
use torture::client;
use torture::daemon::{Daemon, address};
use torture::plan::Kind;
use torture::verdict::{counts, judge, panics};
use torture::worker::{self, Style};
use torture::world::{Broken, Pace, World};

/// Kills when nothing else is asked for.
const CYCLES: u64 = 300;
/// Longest life of the server before it is killed.
const LIFE_US: u64 = 180_000;
/// How long everything may take to end once the server is left alone.
const CALM: Duration = Duration::from_secs(60);

const SETTINGS: [(&str, &str); 3] = [
    // Slices of a turn, and an end that comes a little later than its marker.
    ("UTTERD_SEGMENTER_MAX_DURATION_MS", "400"),
    ("UTTERD_SEGMENTER_HANGOVER_MANUAL_MS", "4"),
    // A job may see many short lives of the server before one is long enough for it.
    ("UTTERD_JOB_PENDING_MS", "60000"),
];

const CLIENTS: [Kind; 10] = [
    Kind::Recordings,
    Kind::Stream,
    Kind::Recordings,
    Kind::Stream,
    Kind::Recordings,
    Kind::Stream,
    Kind::Recordings,
    Kind::Recordings,
    Kind::Recordings,
    Kind::Stream,
];
const WORKERS: [Style; 4] = [Style::Plain, Style::Acked, Style::Plain, Style::Acked];

/// What the kills were like.
#[derive(Default)]
struct Storm {
    cycles: u64,
    /// Before it took sessions.
    recovering: u64,
    /// After it was asked to stop.
    draining: u64,
    starts_us: Vec<u64>,
}

fn asked<T: std::str::FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}")))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_at_any_moment_keeps_every_promise() {
    let cycles = asked("UTTERD_TORTURE_CYCLES").unwrap_or(CYCLES);
    let seed = asked("UTTERD_TORTURE_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("torture: UTTERD_TORTURE_SEED={seed} UTTERD_TORTURE_CYCLES={cycles}");
    let mut rng = Rng::with_seed(seed);
    let dir = tempfile::tempdir().unwrap();
    let world = Arc::new(World::new(address(&mut rng), Pace::default()));
    let began = Instant::now();

    let mut workers = JoinSet::new();
    for (i, style) in WORKERS.into_iter().enumerate() {
        workers.spawn(worker::run(Arc::clone(&world), rng.u64(..), format!("n{i}"), style));
    }
    let mut clients = JoinSet::new();
    for kind in CLIENTS {
        clients.spawn(client::run(Arc::clone(&world), rng.u64(..), kind));
    }
    clients.spawn(client::run_plain(Arc::clone(&world), rng.u64(..)));

    let mut storm = Storm::default();
    if let Err(why) = rage(&mut storm, &world, dir.path(), &mut rng, cycles).await {
        world.broken(Broken::Rule, why);
    }
    if world.all_broken().is_empty()
        && let Err(why) = calm(&world, dir.path(), &mut clients).await
    {
        world.broken(Broken::Rule, why);
    }
    workers.shutdown().await;
    clients.shutdown().await;
    panics(&world, dir.path());
    println!("{}", summary(&storm, &world, began.elapsed()));
    judge(&world, dir);
}

/// Starts and kills.
async fn rage(
    storm: &mut Storm,
    world: &World,
    dir: &Path,
    rng: &mut Rng,
    cycles: u64,
) -> Result<(), String> {
    let mut start = Duration::from_millis(30);
    while storm.cycles < cycles && world.all_broken().is_empty() {
        storm.cycles += 1;
        if storm.cycles.is_multiple_of(1_000) {
            let (accepted, results) = (&world.tally.accepted, &world.tally.results);
            let told = (accepted.load(Relaxed), results.load(Relaxed));
            println!("torture: {} kills, accepted and results {told:?}", storm.cycles);
        }
        let mut daemon = Daemon::spawn(world.addr, dir, &SETTINGS);
        if storm.cycles > 1 && rng.u8(0..4) == 0 {
            // Somewhere on its way up.
            let wait = Duration::from_micros(rng.u64(0..start.as_micros() as u64));
            let up = tokio::time::timeout(wait, daemon.until_up()).await;
            storm.recovering += u64::from(up.is_err());
        } else {
            let up = daemon.until_up().await;
            start = up.map_err(|why| format!("start {}: {why}", storm.cycles))?;
            storm.starts_us.push(start.as_micros() as u64);
            tokio::time::sleep(Duration::from_micros(rng.u64(100..LIFE_US))).await;
            if rng.u8(0..16) == 0 {
                storm.draining += 1;
                daemon.terminate();
                tokio::time::sleep(Duration::from_micros(rng.u64(0..60_000))).await;
            } else if let Some(status) = daemon.ended() {
                return Err(format!("life {}: it ended by itself: {status}", storm.cycles));
            }
        }
        daemon.kill();
    }
    Ok(())
}

/// Leaves the server alone: every promise is to be kept, and nothing to be left.
async fn calm(world: &World, dir: &Path, clients: &mut JoinSet<()>) -> Result<(), String> {
    let mut daemon = Daemon::spawn(world.addr, dir, &SETTINGS);
    daemon.until_up().await?;
    world.calm();
    let all_ended = async {
        while let Some(ended) = clients.join_next().await {
            ended.map_err(|e| e.to_string())?;
        }
        Ok::<_, String>(())
    };
    let ended = tokio::time::timeout(CALM, all_ended).await;
    ended.map_err(|_| format!("clients are not done after {CALM:?}"))??;
    let until = Instant::now() + CALM;
    loop {
        let (_, body) = http(world.addr, "GET", "/api/v1/stats", "").await;
        let stats: Value = serde_json::from_str(&body).unwrap_or_default();
        if stats["jobs"]["live"] == 0 && stats["jobs"]["waiting"] == 0 {
            break;
        }
        if Instant::now() > until {
            return Err(format!("something is left: {}", stats["jobs"]));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    daemon.stop(Duration::from_secs(30)).await
}

fn summary(storm: &Storm, world: &World, took: Duration) -> String {
    let mut starts = storm.starts_us.clone();
    starts.sort_unstable();
    let start = |part: usize| starts.get(starts.len() * part / 100).copied().unwrap_or(0) / 1_000;
    let (cycles, recovering, draining) = (storm.cycles, storm.recovering, storm.draining);
    let text = format!(
        "torture: {cycles} kills ({recovering} while recovering, {draining} while draining) in \
         {:.1} s; starts {} ms (median), {} ms (longest)\n",
        took.as_secs_f64(),
        start(50),
        starts.last().copied().unwrap_or(0) / 1_000,
    );
    text + &counts(world)
}
