//! The same load on a server that nobody looks at and on one with open consoles, in turns, and how
//! far the one is from the other.
//!
//! A console here reads the views as a browser does, one of them each, and forgets them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::report::median;
use super::{Faults, Figures, LoadError, Options, Plan, World};

/// What consoles look at, in turns.
const VIEWS: [&str; 5] = ["overview", "nodes", "pools", "jobs", "sessions"];
/// Time for all consoles to be told something.
const TOLD: Duration = Duration::from_secs(10);
/// What a console is told begins with this.
const MARK: &[u8] = b"event: ";

/// A measure of a pair of rounds: the medians, and the median of the ratios of the pairs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Weighed {
    /// What is measured, with its unit.
    pub what: &'static str,
    /// With no console open.
    pub without: f64,
    /// With all of them.
    pub with: f64,
    /// `with` through `without`: the median of the pairs.
    pub ratio: f64,
    /// The quarter of the pairs that have the smallest ratios ends here.
    pub ratio_low: f64,
    /// The quarter that have the largest begins here.
    pub ratio_high: f64,
}

/// Both sides.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Watched {
    /// Consoles that were open in every second round.
    pub consoles: usize,
    /// Pictures that they were sent meanwhile.
    pub pictures: u64,
    /// Rounds with no console open.
    pub without: Vec<Figures>,
    /// Rounds with all of them, each beside the one at the same place.
    pub with: Vec<Figures>,
    /// What came of it.
    pub weighed: Vec<Weighed>,
}

impl Watched {
    /// What should be zero, of every round that has some.
    pub fn faults(&self) -> Vec<(&'static str, Faults)> {
        let of = |side: &'static str, rounds: &[Figures]| -> Vec<(&'static str, Faults)> {
            rounds.iter().map(|figures| (side, figures.faults.clone())).collect()
        };
        let all = of("without consoles", &self.without).into_iter();
        let all = all.chain(of("with consoles", &self.with));
        all.filter(|(_, faults)| !faults.is_clean()).collect()
    }
}

/// Runs pairs of rounds on one server, the side that comes first changing with each pair. `tell`
/// hears how far it is.
pub async fn watched(
    (url, pid): (&str, Option<u32>),
    options: &Options,
    (plan, rounds, consoles): (Plan, usize, usize),
    mut tell: impl FnMut(&str),
) -> Result<Watched, LoadError> {
    let Some(authority) = url.strip_prefix("ws://") else {
        return Err(LoadError::Options("consoles are opened on a server without TLS"));
    };
    let mut world = World::open(url, options, pid).await?;
    let pictures = Arc::new(AtomicU64::new(0));
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        for turn in 0..2 {
            let is_open = (round + turn) % 2 == 1;
            let open = if is_open { consoles } else { 0 };
            let looking = look(authority, open, &pictures).await?;
            let figures = world.round(plan).await?;
            tell(&line(round, open, &figures));
            if is_open {
                with.push(figures)
            } else {
                without.push(figures)
            }
            close(looking).await?;
        }
    }
    world.close().await;
    let weighed = weigh(&without, &with);
    Ok(Watched { consoles, pictures: pictures.load(SeqCst), without, with, weighed })
}

fn line(round: usize, open: usize, figures: &Figures) -> String {
    format!("round {round}, {open:>3} consoles: {}", figures.in_a_line())
}

/// Name, and how to take it from a round.
type Measure = (&'static str, fn(&Figures) -> f64);

const MEASURES: [Measure; 7] = [
    ("dispatch p50, from send, µs", |f| f.dispatch_from_send.p50_us),
    ("dispatch p99, from send, µs", |f| f.dispatch_from_send.p99_us),
    ("dispatch p50, from due, µs", |f| f.dispatch.p50_us),
    ("dispatch p99, from due, µs", |f| f.dispatch.p99_us),
    ("round trip p50, from send, µs", |f| f.round_trip_from_send.p50_us),
    ("round trip p99, from send, µs", |f| f.round_trip_from_send.p99_us),
    ("processor per utterance, µs", |f| f.cost.map_or(0.0, |c| c.cpu_us_per_utterance)),
];

fn weigh(without: &[Figures], with: &[Figures]) -> Vec<Weighed> {
    let of = |(what, take): Measure| {
        let pairs = without.iter().map(take).zip(with.iter().map(take));
        let ratio = |(a, b): (f64, f64)| if a > 0.0 { b / a } else { 0.0 };
        let mut ratios: Vec<f64> = pairs.map(ratio).collect();
        ratios.sort_by(f64::total_cmp);
        let at = |quarter: usize| ratios.get(ratios.len() * quarter / 4).copied();
        Weighed {
            what,
            without: median(without.iter().map(take).collect()),
            with: median(with.iter().map(take).collect()),
            ratio: at(2).unwrap_or_default(),
            ratio_low: at(1).unwrap_or_default(),
            ratio_high: at(3).unwrap_or_default(),
        }
    };
    MEASURES.into_iter().map(of).collect()
}

/// Opens consoles; returns when each was told something.
async fn look(
    authority: &str,
    consoles: usize,
    pictures: &Arc<AtomicU64>,
) -> Result<JoinSet<Result<(), LoadError>>, LoadError> {
    let (mut looking, begins) = (JoinSet::new(), pictures.load(SeqCst));
    for number in 0..consoles {
        let view = VIEWS[number % VIEWS.len()];
        let stream = TcpStream::connect(authority).await?;
        let request =
            format!("GET /api/v1/console/feed?view={view} HTTP/1.1\r\nhost: {authority}\r\n\r\n");
        looking.spawn(read(stream, request, Arc::clone(pictures)));
    }
    let all = async {
        while pictures.load(SeqCst) < begins + consoles as u64 {
            tokio::time::sleep(Duration::from_millis(5)).await;
            if let Some(ended) = looking.try_join_next() {
                ended.map_err(std::io::Error::other)??;
            }
        }
        Ok(())
    };
    match tokio::time::timeout(TOLD, all).await {
        Ok(told) => told.map(|()| looking),
        Err(_) => Err(LoadError::Refused(format!("consoles were told nothing in {TOLD:?}"))),
    }
}

/// Ends them; who was turned away before is a fault.
async fn close(mut looking: JoinSet<Result<(), LoadError>>) -> Result<(), LoadError> {
    while let Some(ended) = looking.try_join_next() {
        ended.map_err(std::io::Error::other)??;
    }
    looking.shutdown().await;
    Ok(())
}

/// One console: reads for as long as it is let.
async fn read(
    mut stream: TcpStream,
    request: String,
    pictures: Arc<AtomicU64>,
) -> Result<(), LoadError> {
    stream.write_all(request.as_bytes()).await?;
    let mut bytes = vec![0; 64 * 1024];
    let mut is_first = true;
    loop {
        let n = stream.read(&mut bytes).await?;
        let read = &bytes[..n];
        if n == 0 || (is_first && !read.starts_with(b"HTTP/1.1 200")) {
            let words = String::from_utf8_lossy(read).lines().next().unwrap_or("").to_owned();
            return Err(LoadError::Refused(format!("a console was ended: {words}")));
        }
        is_first = false;
        let told = memchr::memmem::find_iter(read, MARK).count();
        pictures.fetch_add(told as u64, SeqCst);
    }
}
