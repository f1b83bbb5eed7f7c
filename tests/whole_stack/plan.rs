//! What a seed draws: who is there, how slow everything is, and what goes wrong when.

use std::time::Duration;

use fastrand::Rng;
use utterd::config::Config;

use super::machine::Pace;
use super::node::Style;
use super::world::between;

/// All that a seed decides.
pub struct Plan {
    pub tick: Duration,
    pub latency: (Duration, Duration),
    pub pace: Pace,
    pub nodes: Vec<Style>,
    pub work_ms: u64,
    /// Utterances of each speaker, and whether it can come back.
    pub speakers: Vec<(usize, bool)>,
    /// When what goes wrong, soonest first.
    pub faults: Vec<(Duration, Fault)>,
    /// When nothing goes wrong any more.
    pub calm: Duration,
    pub config: Config,
}

/// Something that goes wrong.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The server's machine loses power, now or at some later change of its disk, and comes back
    /// after a while. A silent one tells nobody.
    Crash { changes: Option<u64>, away: Duration, silent: bool },
    /// A node's machine dies, and comes back after a while.
    NodeCrash(usize, Duration),
    /// Nothing gets through between that peer and the server.
    Partition(usize, Duration),
    /// Nothing gets through in one direction.
    OneWay(usize, Duration, bool),
    /// What is sent stays on the way.
    Hold(usize, Duration),
    /// Some messages between that peer and the server are lost.
    Lossy(usize, Duration),
}

impl Plan {
    pub fn new(rng: &mut Rng) -> Self {
        let low = between(rng, 1, 10);
        let latency = (low, low + between(rng, 0, 190));
        let pace = Pace {
            mostly_ms: [0, 2, 20, 100][rng.usize(..4)],
            slow_one_in: [5, 20, 1_000][rng.usize(..3)],
            slow_ms: [200, 1_000, 3_000][rng.usize(..3)],
        };
        let styles = [Style::Plain, Style::Acked, Style::Acked];
        let nodes: Vec<Style> = (0..rng.usize(2..=5)).map(|_| styles[rng.usize(..3)]).collect();
        let count = rng.usize(3..=10);
        let total = rng.usize(30..=100);
        let each = |rng: &mut Rng| (rng.usize(1..=total * 2 / count), rng.u8(..4) > 0);
        let speakers = (0..count).map(|_| each(rng)).collect::<Vec<_>>();
        let peers = nodes.len() + speakers.len();
        let calm = between(rng, 6_000, 14_000);
        let mut faults = Self::faults(rng, nodes.len(), peers, calm);
        faults.sort_by_key(|(at, _)| *at);
        let config = settings(rng);
        let work_ms = [20, 300, 1_500][rng.usize(..3)];
        let tick = Duration::from_millis([1, 2, 4][rng.usize(..3)]);
        Self { tick, latency, pace, nodes, work_ms, speakers, faults, calm, config }
    }

    fn faults(rng: &mut Rng, nodes: usize, peers: usize, calm: Duration) -> Vec<(Duration, Fault)> {
        let mut faults = Vec::new();
        let end = calm.as_millis() as u64;
        let mut at = Duration::ZERO;
        for _ in 0..rng.usize(0..=6) {
            // Some come shortly after the start before.
            at = if rng.u8(..3) == 0 { at + between(rng, 0, 400) } else { between(rng, 0, end) };
            let away = between(rng, 5, 2_000);
            let changes = rng.bool().then(|| rng.u64(0..300));
            faults.push((at.min(calm), Fault::Crash { changes, away, silent: rng.bool() }));
            at += away;
        }
        for _ in 0..rng.usize(0..=3) {
            let fault = Fault::NodeCrash(rng.usize(..nodes), between(rng, 5, 3_000));
            faults.push((between(rng, 0, end), fault));
        }
        for _ in 0..rng.usize(0..=8) {
            let (peer, lasts) = (rng.usize(..peers), between(rng, 50, 5_000));
            let fault = match rng.u8(..4) {
                0 => Fault::Partition(peer, lasts),
                1 => Fault::OneWay(peer, lasts, rng.bool()),
                2 => Fault::Hold(peer, lasts),
                _ => Fault::Lossy(peer, lasts),
            };
            faults.push((between(rng, 0, end), fault));
        }
        faults
    }
}

/// The server's settings: patience is short, for what is waited for costs steps.
fn settings(rng: &mut Rng) -> Config {
    let mut config = Config::default();
    config.transport.ping_interval_ms = 1_500;
    config.transport.pong_timeout_ms = 1_500;
    config.transport.first_message_timeout_ms = 3_000;
    config.transport.write_progress_timeout_ms = 3_000;
    config.session.result_gap_wait_ms = rng.u64(300..=4_000);
    config.session.utterance_gap_wait_ms = rng.u64(100..=1_000);
    config.job.pending_ms = 15_000;
    config.job.lease_base_ms = 5_000;
    config.job.lease_min_ms = 3_000;
    config.job.lease_max_ms = 8_000;
    config.node.heartbeat_timeout_ms = 6_000;
    config.node.quarantine_ms = 1_000;
    config.node.quarantine_max_ms = 3_000;
    config.node.resume_grace_ms = rng.u64(0..=3_000);
    config.node.recovery_wait_ms = rng.u64(0..=3_000);
    config
}
