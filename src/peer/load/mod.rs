//! Load: sessions and nodes in numbers, on any server that speaks the wire, and what came of it.
//!
//! A `World` is connected once and goes through rounds. In an open loop each utterance has a time
//! at which it is due, fixed beforehand, from which its latency is counted; in a closed loop a
//! session says the next when it was answered. Each answer must prove that it is the answer to that
//! very utterance. Against the bare relay of `floor` the same load shows what a server adds.
//!
//! It shares the transport of the relay with the server, and nothing else.

mod beside;
mod calm;
mod capacity;
mod consoles;
mod crowd;
mod floor;
mod head;
mod ledger;
mod node;
mod pace;
mod process;
mod relay;
mod report;
mod speaker;
mod speech;
mod stages;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use hdrhistogram::CreationError;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::{self, protocol::WebSocketConfig};

use ledger::Ledger;
use node::{Node, Work};
use pace::Schedule;
use speaker::{Round, Speaker};
use speech::Speech;

use super::brake::Brake;
use super::dial::Trust;
use super::wire::{Dial, Socket};

pub use beside::{Beside, Company, Weighed, beside};
pub use capacity::{Capacity, Step, find_capacity};
pub use crowd::{Idle, idle};
pub use floor::{Compared, FloorPlan, Ratio, Verdict, compare};
pub use process::{ServerPlan, Spawned};
pub use relay::Relay;
pub use report::{Cost, Faults, Figures, Quantiles};
pub use stages::Stages;

/// Time between the order to begin and the first utterance.
const LEAD: Duration = Duration::from_millis(20);
/// Time between two looks whether all is answered.
const LOOK: Duration = Duration::from_millis(2);
/// Time for all peers to connect and be answered. Those that wait for the others answer no pings.
const CONNECT: Duration = Duration::from_secs(15);
/// Time for the peers to say goodbye.
const GOODBYE: Duration = Duration::from_secs(2);

/// How utterances are said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Each in one message.
    Utterance,
    /// Each in chunks of 200 ms, sent in one go, the last one with `is_final`.
    Chunks,
}

/// When utterances are said.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Pace {
    /// So many a second over all sessions, on a schedule that waits for nobody.
    Rate(f64),
    /// Each session has so many unanswered at any time.
    Closed(usize),
}

/// What a world is like.
#[derive(Debug, Clone, Serialize)]
pub struct Options {
    /// Nodes, at least 1.
    pub nodes: usize,
    /// Sessions, 1 to 65,535.
    pub sessions: usize,
    /// The language spoken, and the one to be heard.
    pub languages: (&'static str, &'static str),
    /// How utterances are said.
    pub mode: Mode,
    /// Length of each utterance, in milliseconds of PCM16 at 16 kHz.
    pub audio_ms: usize,
    /// Time a node takes for a job, in milliseconds; jobs do not wait for each other.
    pub service_ms: u64,
    /// Jobs at once that each node offers.
    pub slots: u32,
    /// Characters of base64 speech in each result.
    pub result_bytes: usize,
    /// The sessions offer `resume` and acknowledge.
    pub resume: bool,
    /// How long answers are waited for at the end of a round, in milliseconds.
    pub patience_ms: u64,
    /// Certificates, for a `wss://` address.
    #[serde(skip)]
    pub trust: Trust,
    /// Holds the sessions' reading back, if it is there.
    #[serde(skip)]
    pub brake: Option<Brake>,
}

impl Default for Options {
    /// The load that the project's targets speak of: 4 nodes, 32 sessions, one second of PCM (43 KB
    /// as base64), answered at once.
    fn default() -> Self {
        Self {
            nodes: 4,
            sessions: 32,
            languages: ("zh", "en"),
            mode: Mode::Utterance,
            audio_ms: 1_000,
            service_ms: 0,
            slots: 64,
            result_bytes: 0,
            resume: false,
            patience_ms: 10_000,
            trust: Trust::default(),
            brake: None,
        }
    }
}

/// One stretch of load.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Plan {
    /// When utterances are said.
    pub pace: Pace,
    /// Seconds before the measurement.
    pub warmup_s: f64,
    /// Seconds of the measurement.
    pub seconds: f64,
}

/// A load that could not be put on.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The connection failed.
    #[error("{0}")]
    Socket(Box<tungstenite::Error>),
    /// The server refuses a session or a node.
    #[error("the server refuses: {0}")]
    Refused(String),
    /// A process that was started does not serve.
    #[error("the process that was started does not serve: {0}")]
    NotUp(String),
    /// The system refuses something.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A histogram cannot be made.
    #[error(transparent)]
    Histogram(#[from] CreationError),
    /// Options that make no sense.
    #[error("{0}")]
    Options(&'static str),
}

impl From<tungstenite::Error> for LoadError {
    fn from(error: tungstenite::Error) -> Self {
        Self::Socket(Box::new(error))
    }
}

/// Connected sessions and nodes, at rest between rounds.
pub struct World {
    options: Options,
    ledger: Arc<Ledger>,
    /// One for each session.
    orders: Vec<mpsc::Sender<Round>>,
    speakers: JoinSet<()>,
    nodes: JoinSet<()>,
    /// The server's process, if it is known.
    pid: Option<u32>,
}

impl World {
    /// Connects everybody to the server at `url` (`ws://HOST:PORT`, or `wss://`). With `pid`, its
    /// process is looked at.
    pub async fn open(url: &str, options: &Options, pid: Option<u32>) -> Result<Self, LoadError> {
        check(options)?;
        let connecting = Box::pin(Self::connect(url, options, pid));
        match tokio::time::timeout(CONNECT, connecting).await {
            Ok(connected) => connected,
            Err(_) => Err(LoadError::Refused(format!("not all were answered in {CONNECT:?}"))),
        }
    }

    async fn connect(url: &str, options: &Options, pid: Option<u32>) -> Result<Self, LoadError> {
        let speech = Arc::new(Speech::new(options));
        let mut sessions = Vec::with_capacity(options.sessions);
        for number in 0..options.sessions {
            sessions.push(Speaker::open(url, number, options).await?);
        }
        let ids: Vec<String> = sessions.iter().map(|session| session.id.clone()).collect();
        let ledger = Arc::new(Ledger::new(&ids)?);
        let work = Work {
            service: Duration::from_millis(options.service_ms),
            slots: options.slots,
            languages: options.languages,
            tts_audio: "A".repeat(options.result_bytes / 4 * 4).into(),
        };
        let mut nodes = JoinSet::new();
        for number in 0..options.nodes {
            let name = format!("load-{:08x}-{number}", fastrand::u32(..));
            let node = Node::register(url, name, work.clone(), &options.trust).await?;
            nodes.spawn(node.run(Arc::clone(&ledger)));
        }
        let (mut orders, mut speakers) = (Vec::new(), JoinSet::new());
        for session in sessions {
            let (order, rounds) = mpsc::channel(1);
            orders.push(order);
            speakers.spawn(session.run(Arc::clone(&speech), Arc::clone(&ledger), rounds));
        }
        Ok(Self { options: options.clone(), ledger, orders, speakers, nodes, pid })
    }

    /// Goes through one round and waits for its answers.
    pub async fn round(&mut self, plan: Plan) -> Result<Figures, LoadError> {
        let start = Instant::now() + LEAD;
        let from = start + Duration::from_secs_f64(plan.warmup_s);
        let until = from + Duration::from_secs_f64(plan.seconds);
        self.ledger.begin(from, until, matches!(plan.pace, Pace::Closed(_)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let planned = self.set_off(plan, start, until, &stop).await?;
        tokio::time::sleep_until(from.into()).await;
        let before = self.look();
        tokio::time::sleep_until(until.into()).await;
        self.settle(planned).await;
        stop.store(true, SeqCst);
        let after = self.look();
        let (measured, faults) = self.ledger.end(planned);
        Ok(Figures {
            offered_per_s: match plan.pace {
                Pace::Rate(rate) => Some(rate),
                Pace::Closed(_) => None,
            },
            achieved_per_s: measured.arrived as f64 / plan.seconds,
            sent: after.sent,
            late: measured.late,
            dispatch: measured.dispatch,
            dispatch_from_send: measured.dispatch_from_send,
            result: measured.result,
            round_trip: measured.round_trip,
            round_trip_from_send: measured.round_trip_from_send,
            faults,
            complaint: self.ledger.complaint(),
            cost: cost(before, after),
        })
    }

    /// Gives the orders; how many utterances there will be, if that is known.
    async fn set_off(
        &self,
        plan: Plan,
        start: Instant,
        until: Instant,
        stop: &Arc<AtomicBool>,
    ) -> Result<Option<u64>, LoadError> {
        let seconds = plan.warmup_s + plan.seconds;
        let (round, planned) = match plan.pace {
            Pace::Rate(rate) => {
                let schedule = Schedule { start, rate, total: (rate * seconds) as u64 };
                (Round::Open(schedule), Some(schedule.total))
            }
            Pace::Closed(_) => (Round::Closed(until), None),
        };
        for order in &self.orders {
            // A session that was lost takes none; that is counted where it was lost.
            order.send(round).await.ok();
        }
        match (round, plan.pace) {
            (Round::Open(schedule), _) => {
                pace::keep(schedule, Arc::clone(&self.ledger), Arc::clone(stop))?;
            }
            (_, Pace::Closed(window)) => {
                for session in 0..self.ledger.sessions() {
                    self.ledger.let_speak(session, window);
                }
            }
            _ => {}
        }
        Ok(planned)
    }

    /// Waits until all is said and answered, within patience.
    async fn settle(&self, planned: Option<u64>) {
        let late = Instant::now() + Duration::from_millis(self.options.patience_ms);
        loop {
            let sent = self.ledger.counts.sent.load(SeqCst);
            let said = planned.is_none_or(|planned| sent >= planned);
            if (said && self.ledger.open() == 0) || Instant::now() >= late {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn look(&self) -> Look {
        Look {
            sent: self.ledger.counts.sent.load(SeqCst),
            closed: self.ledger.counts.closed.load(SeqCst),
            cpu_ns: self.pid.and_then(process::cpu_ns),
            rss_kb: self.pid.and_then(process::rss_kb),
        }
    }

    /// Says goodbye, as far as that takes no time.
    pub async fn close(mut self) {
        self.orders.clear();
        let gone = async { while self.speakers.join_next().await.is_some() {} };
        if tokio::time::timeout(GOODBYE, gone).await.is_err() {
            self.speakers.abort_all();
        }
        self.nodes.abort_all();
        while self.nodes.join_next().await.is_some() {}
    }
}

/// How things stand at a moment.
#[derive(Debug, Clone, Copy)]
struct Look {
    sent: u64,
    closed: u64,
    cpu_ns: Option<u64>,
    rss_kb: Option<u64>,
}

fn cost(before: Look, after: Look) -> Option<Cost> {
    let cpu_ns = after.cpu_ns?.saturating_sub(before.cpu_ns?);
    let utterances = after.closed.saturating_sub(before.closed).max(1);
    Some(Cost {
        cpu_us_per_utterance: cpu_ns as f64 / 1_000.0 / utterances as f64,
        rss_before_kb: before.rss_kb?,
        rss_after_kb: after.rss_kb?,
    })
}

fn check(options: &Options) -> Result<(), LoadError> {
    if options.nodes == 0 || options.sessions == 0 || options.slots == 0 {
        return Err(LoadError::Options("a load needs a node, a session and a slot at least"));
    }
    if options.sessions > usize::from(u16::MAX) {
        return Err(LoadError::Options("at most 65,535 sessions"));
    }
    if !(1..=60_000).contains(&options.audio_ms) {
        return Err(LoadError::Options("an utterance is 1 to 60,000 ms long"));
    }
    Ok(())
}

/// Connects; small messages leave at once.
async fn dial(dial: Dial, read_buffer_bytes: usize) -> Result<Socket, LoadError> {
    let config = WebSocketConfig::default().read_buffer_size(read_buffer_bytes);
    Ok(dial.open(config).await?)
}
