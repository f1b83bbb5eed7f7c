//! Sessions and nodes that come and go for as long as one likes, on a server that is killed now and
//! then: nothing of it stays, and nothing is lost.
//!
//! `UTTERD_CHURN_SECONDS` sets how long (twenty seconds if it is unset), `UTTERD_CHURN_LIFE` after
//! how many seconds the server is killed each time (a quarter of all, at most five minutes),
//! `UTTERD_TORTURE_PROGRAM` names another build of the program. The slope of memory is judged where
//! a life of the server is long enough to be warm in, from `WARM_FROM_S` seconds on.

#![allow(clippy::print_stdout, reason = "the figures of a run")]

mod support;

mod torture {
    pub mod audio;
    pub mod client;
    pub mod daemon;
    pub mod ledger;
    pub mod plan;
    pub mod verdict;
    pub mod watch;
    pub mod worker;
    pub mod world;
}

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use tokio::task::JoinSet;
use torture::client;
use torture::daemon::{Daemon, address};
use torture::plan::Kind;
use torture::verdict::{counts, judge, panics};
use torture::watch::{EVERY, Look, Trend, line, median};
use torture::worker::{self, Style};
use torture::world::{Broken, Pace, World};

const SECONDS: Duration = Duration::from_secs(20);
/// Longest life of the server, and how many there are at least.
const LIFE: Duration = Duration::from_secs(300);
const LIVES: u32 = 4;
/// The part of a life in which tables fill, and how long one is at least for that to be over.
const WARMUP: f64 = 0.4;
const WARM_FROM_S: f64 = 100.0;
/// Most that a warm server grows in a minute, and from the first lives to the last, of all it has.
/// Five minutes are too short for the cache of the database to fill: a hundred bytes that every job
/// leaves behind are twice as much.
const GROWTH_PER_MINUTE: f64 = 0.01;
const GROWTH: f64 = 0.05;
/// How long everything may take to end once the server is left alone.
const CALM: Duration = Duration::from_secs(60);

/// Everything that is kept for a while is kept for a short one, so that a life sees it go.
const SETTINGS: [(&str, &str); 9] = [
    ("UTTERD_SEGMENTER_MAX_DURATION_MS", "400"),
    ("UTTERD_SEGMENTER_HANGOVER_MANUAL_MS", "4"),
    ("UTTERD_SESSION_RESUME_WINDOW_MS", "5000"),
    ("UTTERD_JOB_HISTORY_MAX", "500"),
    ("UTTERD_JOB_IDEMPOTENCY_MS", "10000"),
    ("UTTERD_STORE_TERMINAL_ROWS_MAX", "2000"),
    ("UTTERD_STORE_OUTBOX_RETENTION_MS", "5000"),
    ("UTTERD_STORE_DEAD_LETTERS_MAX", "200"),
    ("UTTERD_STORE_DEAD_LETTER_RETENTION_MS", "20000"),
];

const CLIENTS: usize = 12;
const WORKERS: [Style; 4] = [Style::Plain, Style::Acked, Style::Plain, Style::Acked];
const PACE: Pace = Pace { pause_us: 60_000, leaves_one_in: 4 };

fn seconds(name: &str) -> Option<Duration> {
    let asked = std::env::var(name).ok()?;
    let seconds = asked.parse().unwrap_or_else(|_| panic!("{name} is {asked:?}"));
    Some(Duration::from_secs(seconds))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_and_goes_leaves_nothing_behind() {
    let whole = seconds("UTTERD_CHURN_SECONDS").unwrap_or(SECONDS);
    let life = seconds("UTTERD_CHURN_LIFE").unwrap_or_else(|| (whole / LIVES).min(LIFE));
    let began = Instant::now();
    let mut rng = Rng::new();
    let dir = tempfile::tempdir().unwrap();
    let world = Arc::new(World::new(address(&mut rng), PACE));

    let mut daemon = Daemon::spawn(world.addr, dir.path(), &SETTINGS);
    daemon.until_up().await.unwrap();
    let empty = Look::at(daemon.pid(), world.addr, daemon.began).await.unwrap();

    let mut workers = JoinSet::new();
    for (i, style) in WORKERS.into_iter().enumerate() {
        workers.spawn(worker::run(Arc::clone(&world), rng.u64(..), format!("n{i}"), style));
    }
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let kind = if number % 2 == 0 { Kind::Recordings } else { Kind::Stream };
        clients.spawn(client::run(Arc::clone(&world), rng.u64(..), kind));
    }
    clients.spawn(client::run_plain(Arc::clone(&world), rng.u64(..)));

    let mut trends = Vec::new();
    while began.elapsed() < whole && world.all_broken().is_empty() {
        let looks = live(&mut daemon, &world, life).await;
        let trend = Trend::of(&looks, life.as_secs_f64() * WARMUP);
        println!("churn: {}", line(trends.len(), &looks, trend));
        trends.extend(trend);
        daemon.kill();
        daemon = Daemon::spawn(world.addr, dir.path(), &SETTINGS);
        if let Err(why) = daemon.until_up().await {
            world.broken(Broken::Rule, why);
        }
    }
    match life.as_secs_f64() >= WARM_FROM_S {
        true => flat(&world, &trends),
        false => println!("churn: too short a life for memory to be judged"),
    }
    let mut all = (workers, clients);
    if world.all_broken().is_empty()
        && let Err(why) = calm(&mut daemon, &world, &empty, &mut all).await
    {
        world.broken(Broken::Rule, why);
    }
    if let Err(why) = daemon.stop(Duration::from_secs(30)).await {
        world.broken(Broken::Rule, why);
    }
    panics(&world, dir.path());
    let size = std::fs::metadata(database(dir.path())).map_or(0, |file| file.len());
    let (took, kb) = (began.elapsed().as_secs_f64(), size / 1_024);
    println!("churn: {took:.0} s, database {kb} kB\n{}", counts(&world));
    judge(&world, dir);
}

fn database(dir: &Path) -> std::path::PathBuf {
    dir.join("data").join("utterd.redb")
}

/// One life, looked at until it is time.
async fn live(daemon: &mut Daemon, world: &World, life: Duration) -> Vec<Look> {
    let (until, mut looks) = (Instant::now() + life, Vec::new());
    while Instant::now() < until && world.all_broken().is_empty() {
        tokio::time::sleep(EVERY).await;
        if let Some(status) = daemon.ended() {
            world.broken(Broken::Rule, format!("it ended by itself: {status}"));
        }
        looks.extend(Look::at(daemon.pid(), world.addr, daemon.began).await);
    }
    looks
}

/// Memory does not grow, neither in a life nor from one to the next.
fn flat(world: &World, trends: &[Trend]) {
    let slopes = trends.iter().map(|trend| trend.kb_per_min / trend.rss_kb);
    let slope = median(slopes.collect()).unwrap_or(f64::MAX);
    if slope > GROWTH_PER_MINUTE {
        world.broken(Broken::Rule, format!("memory grows by {:.2} % a minute", slope * 100.0));
    }
    let part = trends.len().div_ceil(3);
    let of = |trends: &[Trend]| median(trends.iter().map(|trend| trend.rss_kb).collect());
    let (first, last) = (of(&trends[..part]), of(&trends[trends.len() - part..]));
    let growth = last.zip(first).map_or(f64::MAX, |(last, first)| last / first - 1.0);
    println!("churn: {:+.3} % a minute, {:+.1} % in all", slope * 100.0, growth * 100.0);
    if growth > GROWTH {
        world.broken(Broken::Rule, format!("memory grew by {:.1} %", growth * 100.0));
    }
}

/// Everybody goes: every promise is kept, and the server has what it had when it was new.
async fn calm(
    daemon: &mut Daemon,
    world: &World,
    empty: &Look,
    (workers, clients): &mut (JoinSet<()>, JoinSet<()>),
) -> Result<(), String> {
    world.calm();
    let all_ended = async {
        while let Some(ended) = clients.join_next().await {
            ended.map_err(|error| error.to_string())?;
        }
        Ok::<_, String>(())
    };
    let ended = tokio::time::timeout(CALM, all_ended).await;
    ended.map_err(|_| format!("clients are not done after {CALM:?}"))??;
    workers.shutdown().await;
    let until = Instant::now() + CALM;
    loop {
        tokio::time::sleep(EVERY).await;
        let look = Look::at(daemon.pid(), world.addr, daemon.began).await;
        let left = look.map_or(vec!["nothing answers".to_owned()], |look| look.beyond(empty));
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > until {
            return Err(format!("something is left: {left:?}"));
        }
    }
}
