//! Sessions in numbers that say nothing, or hardly read what they are told: what they cost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::ledger::Ledger;
use super::speaker::Speaker;
use super::{Brake, Faults, LEAD, LOOK, LoadError, Options, Pace, Plan, Trust, World, process};

/// Sessions that come at the same time in a storm.
const AT_ONCE: usize = 2_048;
/// Time after the last has come in which the server may tidy up.
const REST: Duration = Duration::from_secs(5);

/// What sessions that say nothing cost a server.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Idle {
    /// How many came.
    pub sessions: usize,
    /// Of these, how many were turned away, or heard nothing.
    pub refused: usize,
    /// What the first of them was told.
    pub complaint: Option<String>,
    /// Seconds until the last was let in.
    pub storm_s: f64,
    /// The longest that one had to wait, in milliseconds.
    pub longest_ms: f64,
    /// How long they were left alone, in seconds.
    pub seconds: f64,
    /// Connections that ended meanwhile.
    pub lost: u64,
    /// Resident memory of the server before they came, in kB.
    pub rss_before_kb: u64,
    /// The same while they were there, in kB.
    pub rss_with_kb: u64,
    /// What one session takes of it, in bytes.
    pub bytes_per_session: f64,
    /// Processor time that the server took while they were left alone, in percent of one core.
    pub cpu_percent: f64,
}

/// Opens so many sessions as fast as they are let in, leaves them alone for a while, and looks at
/// the server's process.
pub async fn idle(
    (url, pid): (&str, u32),
    options: &Options,
    seconds: f64,
) -> Result<Idle, LoadError> {
    let unknown = || LoadError::Options("the server's process cannot be looked at");
    let rss = || process::rss_kb(pid).ok_or_else(unknown);
    let cpu = || process::cpu_ns(pid).ok_or_else(unknown);
    let rss_before_kb = rss()?;
    let lost = Arc::new(AtomicU64::new(0));
    let storm = Storm::come(url, options, &lost).await;
    tokio::time::sleep(REST).await;
    let (cpu_before, began) = (cpu()?, Instant::now());
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    let (cpu_ns, took) = (cpu()? - cpu_before, began.elapsed());
    let rss_with_kb = rss()?;
    let sessions = options.sessions;
    let there = storm.staying.len().max(1);
    Ok(Idle {
        sessions,
        refused: storm.refused,
        complaint: storm.complaint,
        storm_s: storm.took.as_secs_f64(),
        longest_ms: storm.longest.as_secs_f64() * 1e3,
        seconds: took.as_secs_f64(),
        lost: lost.load(SeqCst),
        rss_before_kb,
        rss_with_kb,
        bytes_per_session: rss_with_kb.saturating_sub(rss_before_kb) as f64 * 1024.0 / there as f64,
        cpu_percent: cpu_ns as f64 / took.as_nanos() as f64 * 100.0,
    })
}

/// Many who come at once.
struct Storm {
    staying: JoinSet<()>,
    refused: usize,
    complaint: Option<String>,
    took: Duration,
    longest: Duration,
}

impl Storm {
    async fn come(url: &str, options: &Options, lost: &Arc<AtomicU64>) -> Self {
        let (began, doors) = (Instant::now(), Arc::new(Semaphore::new(AT_ONCE)));
        let mut coming = JoinSet::new();
        for number in 0..options.sessions {
            let (url, options, doors) = (url.to_owned(), options.clone(), Arc::clone(&doors));
            coming.spawn(async move {
                let _turn = doors.acquire().await;
                let began = Instant::now();
                let opened = Speaker::open(&url, number, &options).await;
                (opened, began.elapsed())
            });
        }
        let mut storm = Self {
            staying: JoinSet::new(),
            refused: 0,
            complaint: None,
            took: Duration::ZERO,
            longest: Duration::ZERO,
        };
        while let Some(came) = coming.join_next().await {
            let told = match came {
                Ok((Ok(mut speaker), waited)) => {
                    storm.longest = storm.longest.max(waited);
                    let lost = Arc::clone(lost);
                    storm.staying.spawn(async move {
                        while let Some(Ok(_)) = speaker.socket.next().await {}
                        lost.fetch_add(1, SeqCst);
                    });
                    continue;
                }
                Ok((Err(error), _)) => error.to_string(),
                Err(error) => error.to_string(),
            };
            storm.refused += 1;
            storm.complaint.get_or_insert(told);
        }
        storm.took = began.elapsed();
        storm
    }
}

/// What each slow reader asks for at a time: answers, and the speech in each, in characters.
const ANSWERS: usize = 10;
const ANSWER_BYTES: usize = 64 * 1_024;
/// Utterances a second that all of them say together.
const ASK_RATE: f64 = 1_000.0;
/// How long that, and reading it all, may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Languages that the load beside them does not use, so that its nodes get none of their jobs.
const LANGUAGES: (&str, &str) = ("fr", "de");

/// Sessions that read at their own pace.
pub(super) struct SlowReaders {
    world: World,
    brake: Brake,
    stop: Arc<AtomicBool>,
    asked: u64,
}

impl SlowReaders {
    /// Opens so many, and a node for them.
    pub(super) async fn open(url: &str, count: usize, trust: &Trust) -> Result<Self, LoadError> {
        let brake = Brake::default();
        let options = Options {
            nodes: 1,
            sessions: count,
            languages: LANGUAGES,
            audio_ms: 100,
            slots: 1_024,
            result_bytes: ANSWER_BYTES,
            patience_ms: PATIENCE.as_millis() as u64,
            trust: trust.clone(),
            brake: Some(brake.clone()),
            ..Options::default()
        };
        let world = World::open(url, &options, None).await?;
        Ok(Self { world, brake, stop: Arc::default(), asked: (count * ANSWERS) as u64 })
    }

    fn ledger(&self) -> &Ledger {
        &self.world.ledger
    }

    /// Has each ask for more than it reads; returns when all of it is answered.
    pub(super) async fn ask(&mut self) -> Result<(), LoadError> {
        self.brake.set(true);
        self.stop = Arc::default();
        let start = Instant::now() + LEAD;
        self.ledger().begin(start, start + PATIENCE, false)?;
        let seconds = self.asked as f64 / ASK_RATE;
        let plan = Plan { pace: Pace::Rate(ASK_RATE), warmup_s: 0.0, seconds };
        self.world.set_off(plan, start, start + PATIENCE, &self.stop).await?;
        while self.ledger().counts.replied.load(SeqCst) < self.asked {
            if start.elapsed() > PATIENCE {
                return Err(LoadError::Refused("slow readers are not answered".to_owned()));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Has them read all that is there for them: what of it is not as it should be.
    pub(super) async fn read_all(&mut self) -> Faults {
        self.brake.set(false);
        self.world.settle(Some(self.asked)).await;
        self.stop.store(true, SeqCst);
        self.ledger().end(Some(self.asked)).1
    }

    pub(super) async fn close(self) {
        self.world.close().await;
    }
}
