//! The same load on a server that has nobody else and on one that has others to care for, in turns,
//! and how far the one is from the other.

use std::time::Duration;

use serde::Serialize;

use super::calm::Watched;
use super::consoles::Consoles;
use super::crowd::SlowReaders;
use super::report::median;
use super::{Faults, Figures, LoadError, Options, Plan, World, process};

/// What those who came took is looked at after so long.
const REST: Duration = Duration::from_secs(1);

/// Who is there in every second round, and how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Company {
    /// Open consoles.
    Consoles(usize),
    /// Sessions that asked for much and read 16 KiB a second of it. They are there in the
    /// other rounds too, and have read everything then.
    SlowReaders(usize),
}

impl Company {
    /// What they are called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Consoles(_) => "consoles",
            Self::SlowReaders(_) => "slow readers",
        }
    }

    /// How many they are.
    pub fn count(self) -> usize {
        match self {
            Self::Consoles(count) | Self::SlowReaders(count) => count,
        }
    }
}

/// A measure of a pair of rounds: the medians, and the median of the ratios of the pairs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Weighed {
    /// What is measured, with its unit.
    pub what: &'static str,
    /// Without the others.
    pub without: f64,
    /// With them.
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
pub struct Beside {
    /// Who was there in every second round.
    pub company: Company,
    /// Pictures that consoles were sent meanwhile.
    pub pictures: u64,
    /// Resident memory of the server before the first of these rounds, in kB, where it is known.
    pub rss_without_kb: Option<u64>,
    /// The most that it was at the begin of one, in kB.
    pub rss_with_kb: Option<u64>,
    /// What should be zero, of the others.
    pub company_faults: Vec<Faults>,
    /// Rounds without them.
    pub without: Vec<Figures>,
    /// Rounds with all of them, each beside the one at the same place.
    pub with: Vec<Figures>,
    /// What came of it.
    pub weighed: Vec<Weighed>,
}

impl Beside {
    /// What should be zero, of every round that has some.
    pub fn faults(&self) -> Vec<(&'static str, Faults)> {
        let of = |side: &'static str, rounds: &[Figures]| -> Vec<(&'static str, Faults)> {
            rounds.iter().map(|figures| (side, figures.faults.clone())).collect()
        };
        let all = of("without them", &self.without).into_iter();
        let all = all.chain(of("with them", &self.with));
        let all = all.chain(self.company_faults.iter().map(|faults| ("they", faults.clone())));
        all.filter(|(_, faults)| !faults.is_clean()).collect()
    }
}

/// Those others.
enum Others {
    Consoles(Consoles),
    SlowReaders(Box<SlowReaders>),
}

impl Others {
    async fn of(url: &str, company: Company, options: &Options) -> Result<Self, LoadError> {
        Ok(match company {
            Company::Consoles(count) => Self::Consoles(Consoles::of(url, count)?),
            Company::SlowReaders(count) => {
                let readers = SlowReaders::open(url, count, &options.trust).await?;
                Self::SlowReaders(Box::new(readers))
            }
        })
    }

    async fn come(&mut self) -> Result<(), LoadError> {
        match self {
            Self::Consoles(consoles) => consoles.look().await,
            Self::SlowReaders(readers) => readers.ask().await,
        }
    }

    /// What of them went wrong meanwhile, if that is counted.
    async fn go(&mut self) -> Result<Faults, LoadError> {
        match self {
            Self::Consoles(consoles) => consoles.close().await.map(|()| Faults::default()),
            Self::SlowReaders(readers) => Ok(readers.read_all().await),
        }
    }

    async fn end(self) -> u64 {
        match self {
            Self::Consoles(consoles) => consoles.pictures(),
            Self::SlowReaders(readers) => {
                readers.close().await;
                0
            }
        }
    }
}

/// Runs pairs of rounds on one server, the side that comes first changing with each pair. `tell`
/// hears how far it is.
pub async fn beside(
    (url, pid): (&str, Option<u32>),
    options: &Options,
    (plan, rounds, company): (Plan, usize, Company),
    mut tell: impl FnMut(&str),
) -> Result<Beside, LoadError> {
    let mut world = World::open(url, options, pid).await?;
    let mut others = Others::of(url, company, options).await?;
    let watched = Watched::of(url)?;
    let (mut without, mut with, mut company_faults) = (Vec::new(), Vec::new(), Vec::new());
    let (mut rss_without_kb, mut rss_with_kb) = (None, None);
    for round in 0..rounds {
        for turn in 0..2 {
            let here = (round + turn) % 2 == 1;
            if here {
                rss_without_kb = rss_without_kb.or_else(|| process::rss_kb(pid?));
                others.come().await?;
                watched.until_calm().await?;
                tokio::time::sleep(REST).await;
                rss_with_kb = rss_with_kb.max(pid.and_then(process::rss_kb));
            }
            let figures = world.round(plan).await?;
            tell(&line(round, here, company, &figures));
            match here {
                true => with.push(figures),
                false => without.push(figures),
            }
            if here {
                company_faults.push(others.go().await?);
                watched.until_calm().await?;
            }
        }
    }
    world.close().await;
    let pictures = others.end().await;
    let weighed = weigh(&without, &with);
    Ok(Beside {
        company,
        pictures,
        rss_without_kb,
        rss_with_kb,
        company_faults,
        without,
        with,
        weighed,
    })
}

fn line(round: usize, here: bool, company: Company, figures: &Figures) -> String {
    let there = if here { company.count() } else { 0 };
    format!("round {round}, {there:>3} {}: {}", company.name(), figures.in_a_line())
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
