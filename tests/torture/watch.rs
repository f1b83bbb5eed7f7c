//! What the server's process and its tables hold, looked at from outside.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::support::http;

/// Time between two looks.
pub const EVERY: Duration = Duration::from_secs(1);

/// What is counted of what there is now: all of it is nothing when nobody is there.
const TABLES: [&str; 8] = [
    "utterd_connections{socket=\"session\"}",
    "utterd_sessions",
    "utterd_rooms",
    "utterd_jobs_live",
    "utterd_jobs_waiting",
    "utterd_audio_held_bytes",
    "utterd_outbox_bytes",
    "utterd_nodes{state=\"ready\"}",
];

/// One look.
#[derive(Debug, Clone, PartialEq)]
pub struct Look {
    /// Seconds since this life of the server began.
    pub at_s: f64,
    pub rss_kb: f64,
    pub descriptors: usize,
    /// As `TABLES` names them.
    pub tables: Vec<f64>,
}

impl Look {
    /// None when the server is not there.
    pub async fn at(pid: u32, addr: SocketAddr, began: Instant) -> Option<Self> {
        let (status, text) =
            tokio::time::timeout(EVERY, http(addr, "GET", "/metrics", "")).await.ok()?;
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|value| value.parse().ok()).unwrap_or(0.0)
        };
        Some(Self {
            at_s: began.elapsed().as_secs_f64(),
            rss_kb: rss_kb(pid)?,
            descriptors: fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count(),
            tables: TABLES.map(value).to_vec(),
        })
        .filter(|_| status == 200)
    }

    /// What there is more than in `before`, by name.
    pub fn beyond(&self, before: &Self) -> Vec<String> {
        let tables = TABLES.iter().zip(self.tables.iter().zip(&before.tables));
        let more = tables.filter(|(_, (now, before))| now > before);
        let mut left: Vec<String> =
            more.map(|(name, (now, _))| format!("{name} is {now}")).collect();
        if self.descriptors > before.descriptors {
            left.push(format!("{} descriptors, not {}", self.descriptors, before.descriptors));
        }
        left
    }
}

fn rss_kb(pid: u32) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// How memory went in one life, its first part left out.
#[derive(Debug, Clone, Copy)]
pub struct Trend {
    /// Median of the slopes between all pairs of looks.
    pub kb_per_min: f64,
    /// Median of the looks.
    pub rss_kb: f64,
}

impl Trend {
    /// Of the looks after `warm` seconds; none if there are too few.
    pub fn of(looks: &[Look], warm_s: f64) -> Option<Self> {
        let looks: Vec<&Look> = looks.iter().filter(|look| look.at_s >= warm_s).collect();
        let slope = |a: &Look, b: &Look| (b.rss_kb - a.rss_kb) / (b.at_s - a.at_s) * 60.0;
        let pairs = looks
            .iter()
            .enumerate()
            .flat_map(|(i, a)| looks[i + 1..].iter().map(move |b| slope(a, b)).collect::<Vec<_>>());
        let kb_per_min = median(pairs.collect())?;
        let rss_kb = median(looks.iter().map(|look| look.rss_kb).collect())?;
        Some(Self { kb_per_min, rss_kb })
    }
}

/// None of nothing.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// In one line.
pub fn line(life: usize, looks: &[Look], trend: Option<Trend>) -> String {
    let mut text = format!("life {life}: {} looks", looks.len());
    if let Some(last) = looks.last() {
        write!(text, ", {:.0} kB, {} descriptors at the end", last.rss_kb, last.descriptors)
            .unwrap();
    }
    if let Some(Trend { kb_per_min, rss_kb }) = trend {
        write!(text, "; warm {rss_kb:.0} kB (median), {kb_per_min:+.0} kB a minute").unwrap();
    }
    text
}

#[test]
fn the_slope_of_memory_is_seen_through_noise() {
    let look = |at: u32, rss_kb| Look {
        at_s: f64::from(at),
        rss_kb,
        descriptors: 9,
        tables: vec![0.0; TABLES.len()],
    };
    let noise = |at: u32| if at % 10 == 3 { 900.0 } else { 0.0 };
    let flat: Vec<Look> = (0..60).map(|at| look(at, 50_000.0 + noise(at))).collect();
    let slope = Trend::of(&flat, 10.0).unwrap().kb_per_min;
    assert!(slope.abs() < 10.0, "{slope}");
    let leak: Vec<Look> =
        (0..60).map(|at| look(at, 50_000.0 + noise(at) + f64::from(at) * 10.0)).collect();
    let slope = Trend::of(&leak, 10.0).unwrap().kb_per_min;
    assert!((500.0..700.0).contains(&slope), "{slope}");
    assert!(Trend::of(&flat, 59.0).is_none(), "one look is no slope");
    let mut more = flat[0].clone();
    (more.descriptors, more.tables[1]) = (11, 2.0);
    assert_eq!(more.beyond(&flat[0]), ["utterd_sessions is 2", "11 descriptors, not 9"]);
}
