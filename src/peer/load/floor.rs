//! The same load on a server and on a bare relay, in turns, and how far the one is from the other.
//!
//! Absolute times on a shared machine drift by a factor of two from day to day; ratios of what was
//! taken in turns do not. It refuses to know where the two processes come from.

use serde::Serialize;

use super::report::median;
use super::{Faults, Figures, LoadError, Options, Pace, Plan, World};

/// Most that a dispatch may take against the relay: half of them, and 99 %.
const DISPATCH_P50_MAX: f64 = 1.25;
const DISPATCH_P99_MAX: f64 = 1.5;
/// Least throughput of a closed loop against the relay, with the store on and off.
const CLOSED_STORED_MIN: f64 = 0.5;
const CLOSED_UNSTORED_MIN: f64 = 0.7;

/// What is compared, and how often.
#[derive(Debug, Clone, Serialize)]
pub struct FloorPlan {
    /// What both worlds are like.
    pub options: Options,
    /// Rounds on each side.
    pub rounds: usize,
    /// One round at a fixed rate.
    pub open: Plan,
    /// One round of the closed loop.
    pub closed: Plan,
    /// The server keeps what it has on disk.
    pub stored: bool,
}

/// A median of the server's rounds, one of the relay's, and the first through the second.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Ratio {
    /// What is compared, with its unit.
    pub what: &'static str,
    /// Of the server.
    pub server: f64,
    /// Of the relay.
    pub relay: f64,
    /// `server` through `relay`.
    pub ratio: f64,
}

/// A target, and whether it is met.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Verdict {
    /// What is asked.
    pub what: &'static str,
    /// The bound on the ratio.
    pub bound: f64,
    /// The ratio found.
    pub ratio: f64,
    /// Whether the bound is kept.
    pub met: bool,
}

/// Both sides.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Compared {
    /// The server's rounds at a fixed rate.
    pub server: Vec<Figures>,
    /// The relay's.
    pub relay: Vec<Figures>,
    /// The server's rounds of the closed loop.
    pub server_closed: Vec<Figures>,
    /// The relay's.
    pub relay_closed: Vec<Figures>,
    /// Medians and ratios.
    pub ratios: Vec<Ratio>,
    /// Against the targets.
    pub verdicts: Vec<Verdict>,
}

impl Compared {
    /// What should be zero, of every round that has some. A relay that deals to its nodes in turn
    /// promises no order, so its disorder is left out.
    pub fn faults(&self) -> Vec<(&'static str, Faults)> {
        let server = self.server.iter().chain(&self.server_closed);
        let server = server.map(|figures| ("server", figures.faults.clone()));
        let relay = self.relay.iter().chain(&self.relay_closed);
        let relay =
            relay.map(|figures| ("relay", Faults { disordered: 0, ..figures.faults.clone() }));
        server.chain(relay).filter(|(_, faults)| !faults.is_clean()).collect()
    }
}

/// Runs all rounds, the first side changing with each. `tell` hears how far it is.
pub async fn compare(
    (server_url, server_pid): (&str, Option<u32>),
    (relay_url, relay_pid): (&str, Option<u32>),
    plan: &FloorPlan,
    mut tell: impl FnMut(&str),
) -> Result<Compared, LoadError> {
    let mut worlds = [
        World::open(server_url, &plan.options, server_pid).await?,
        World::open(relay_url, &plan.options, relay_pid).await?,
    ];
    let mut taken = [Vec::new(), Vec::new(), Vec::new(), Vec::new()];
    for (part, one) in [plan.open, plan.closed].into_iter().enumerate() {
        for round in 0..plan.rounds {
            for turn in 0..worlds.len() {
                let side = (round + turn) % worlds.len();
                let figures = worlds[side].round(one).await?;
                tell(&line(["server", "relay"][side], round, &figures));
                taken[part * 2 + side].push(figures);
            }
        }
    }
    for world in worlds {
        world.close().await;
    }
    let [server, relay, server_closed, relay_closed] = taken;
    let ratios = ratios(&server, &relay, &server_closed, &relay_closed);
    let verdicts = verdicts(&ratios, plan);
    Ok(Compared { server, relay, server_closed, relay_closed, ratios, verdicts })
}

fn line(side: &str, round: usize, figures: &Figures) -> String {
    let offered = figures.offered_per_s.map_or("closed".to_owned(), |rate| format!("{rate:.0}/s"));
    format!("round {round}, {side:<6} {offered:>6}: {}", figures.in_a_line())
}

/// Name, and how to take it from a round.
type Measure = (&'static str, fn(&Figures) -> f64);

const OPEN: [Measure; 10] = [
    ("dispatch p50, from send, µs", |f| f.dispatch_from_send.p50_us),
    ("dispatch p99, from send, µs", |f| f.dispatch_from_send.p99_us),
    ("dispatch p50, from due, µs", |f| f.dispatch.p50_us),
    ("dispatch p99, from due, µs", |f| f.dispatch.p99_us),
    ("result p50, µs", |f| f.result.p50_us),
    ("result p99, µs", |f| f.result.p99_us),
    ("round trip p50, from send, µs", |f| f.round_trip_from_send.p50_us),
    ("round trip p99, from send, µs", |f| f.round_trip_from_send.p99_us),
    ("round trip p99, from due, µs", |f| f.round_trip.p99_us),
    ("processor per utterance, µs", |f| f.cost.map_or(0.0, |c| c.cpu_us_per_utterance)),
];
const CLOSED: Measure = ("closed loop, utterances/s", |f| f.achieved_per_s);

fn ratios(server: &[Figures], relay: &[Figures], sc: &[Figures], rc: &[Figures]) -> Vec<Ratio> {
    let of = |(what, take): Measure, server: &[Figures], relay: &[Figures]| {
        let server = median(server.iter().map(take).collect());
        let relay = median(relay.iter().map(take).collect());
        Ratio { what, server, relay, ratio: if relay > 0.0 { server / relay } else { 0.0 } }
    };
    let open = OPEN.into_iter().map(|measure| of(measure, server, relay));
    open.chain([of(CLOSED, sc, rc)]).collect()
}

/// The dispatch is judged by both of its clocks. From the send on is stricter where the generator
/// itself is late, for that delay is the same on both sides; from when it was due is stricter where
/// a server takes no more.
fn verdicts(ratios: &[Ratio], plan: &FloorPlan) -> Vec<Verdict> {
    let of = |name: &str| ratios.iter().find(|r| r.what.starts_with(name)).map_or(0.0, |r| r.ratio);
    let worse = |a: &str, b: &str| of(a).max(of(b));
    let most = |what, bound, ratio: f64| Verdict { what, bound, ratio, met: ratio <= bound };
    let least = |what, bound, ratio: f64| Verdict { what, bound, ratio, met: ratio >= bound };
    let mut verdicts = Vec::new();
    if matches!(plan.open.pace, Pace::Rate(_)) {
        let p50 = worse("dispatch p50, from send", "dispatch p50, from due");
        let p99 = worse("dispatch p99, from send", "dispatch p99, from due");
        verdicts.push(most("dispatch p50 at most, times the relay's", DISPATCH_P50_MAX, p50));
        verdicts.push(most("dispatch p99 at most, times the relay's", DISPATCH_P99_MAX, p99));
    }
    let (what, bound) = match plan.stored {
        true => ("closed loop with the store on, of the relay's at least", CLOSED_STORED_MIN),
        false => ("closed loop with the store off, of the relay's at least", CLOSED_UNSTORED_MIN),
    };
    verdicts.push(least(what, bound, of("closed loop")));
    verdicts
}
