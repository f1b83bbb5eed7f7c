//! What all tasks of the torture share: where the server is, whether it is still being killed, what
//! was counted and what went wrong.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

/// Longest wait for an answer to a greeting; the server may be killed meanwhile.
pub const ANSWER: Duration = Duration::from_secs(5);

/// A promise that was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Broken {
    /// Accepted, and without a last word.
    Lost,
    /// A hole in the numbers of last words.
    Gap,
    /// A second, other last word.
    Twice,
    /// Last words in another order than the utterances.
    Order,
    /// Audio at a node that was not sent, or twice, or not at all.
    Audio,
    /// Anything else that must not be.
    Rule,
}

/// How busy everybody is.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Longest pause of a client between two things it says, in microseconds.
    pub pause_us: u64,
    /// Of so many connections that a client drops it comes back to all but one; 0 is to all.
    pub leaves_one_in: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { pause_us: 12_000, leaves_one_in: 0 }
    }
}

/// Counts, shown at the end.
#[derive(Debug, Default)]
pub struct Tally {
    pub sessions: AtomicU64,
    /// Sessions nobody came back to, though they could have.
    pub left: AtomicU64,
    pub resumed: AtomicU64,
    /// Sessions nobody had promised anything to, unknown after a kill.
    pub forgotten: AtomicU64,
    pub accepted: AtomicU64,
    pub results: AtomicU64,
    /// Typed failures told as last words.
    pub failed: AtomicU64,
    /// Utterances refused before they were accepted.
    pub refused: AtomicU64,
    pub late: AtomicU64,
    /// Last words that came again and were dropped.
    pub repeats: AtomicU64,
    /// Utterances and chunks sent again.
    pub resent: AtomicU64,
    pub assigned: AtomicU64,
    /// Results whose commit a node was told of.
    pub acked: AtomicU64,
}

pub struct World {
    pub addr: SocketAddr,
    pub pace: Pace,
    pub tally: Tally,
    storm: AtomicBool,
    voices: AtomicU32,
    broken: Mutex<Vec<(Broken, String)>>,
    /// Attempts of each job that nodes were given.
    attempts: Mutex<HashMap<String, Vec<u64>>>,
    /// Jobs whose result a node was told to be on disk, and in which life of the server.
    committed: Mutex<HashMap<String, u64>>,
    reasons: Mutex<BTreeMap<String, u64>>,
}

impl World {
    pub fn new(addr: SocketAddr, pace: Pace) -> Self {
        Self {
            addr,
            pace,
            tally: Tally::default(),
            storm: AtomicBool::new(true),
            voices: AtomicU32::new(1),
            broken: Mutex::default(),
            attempts: Mutex::default(),
            committed: Mutex::default(),
            reasons: Mutex::default(),
        }
    }

    /// Whether the server is still being killed.
    pub fn storm(&self) -> bool {
        self.storm.load(Ordering::Acquire)
    }

    pub fn calm(&self) {
        self.storm.store(false, Ordering::Release);
    }

    /// A voice nobody has yet.
    pub fn voice(&self) -> u32 {
        self.voices.fetch_add(1, Ordering::Relaxed)
    }

    pub fn broken(&self, what: Broken, how: impl fmt::Display) {
        self.broken.lock().unwrap().push((what, how.to_string()));
    }

    pub fn all_broken(&self) -> Vec<(Broken, String)> {
        self.broken.lock().unwrap().clone()
    }

    pub fn count_broken(&self, what: Broken) -> usize {
        self.broken.lock().unwrap().iter().filter(|(kind, _)| *kind == what).count()
    }

    /// Counts something by name.
    pub fn reason(&self, name: impl Into<String>) {
        *self.reasons.lock().unwrap().entry(name.into()).or_default() += 1;
    }

    pub fn reasons(&self) -> BTreeMap<String, u64> {
        self.reasons.lock().unwrap().clone()
    }

    /// A node was given this attempt of a job; no attempt is given out twice.
    pub fn assigned(&self, job: &str, attempt: u64) {
        count(&self.tally.assigned);
        let mut attempts = self.attempts.lock().unwrap();
        let of_job = attempts.entry(job.to_owned()).or_default();
        let again = of_job.contains(&attempt);
        of_job.push(attempt);
        drop(attempts);
        let committed = self.committed.lock().unwrap().get(job).copied();
        if committed.is_some_and(|life| attempt >> 8 > life) {
            self.broken(Broken::Lost, format!("{job} was done, on disk, and is to be done again"));
        }
        if again {
            self.broken(Broken::Rule, format!("attempt {attempt} of {job} was given out twice"));
        }
    }

    /// A node was told that its result is on disk: no later life may ask for it again.
    pub fn committed(&self, job: &str, life: u64) {
        count(&self.tally.acked);
        self.committed.lock().unwrap().entry(job.to_owned()).or_insert(life);
    }

    pub fn was_assigned(&self, job: &str, attempt: u64) -> bool {
        self.attempts.lock().unwrap().get(job).is_some_and(|of_job| of_job.contains(&attempt))
    }
}

pub fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// One end of a WebSocket, JSON in and out.
pub struct Wire(WebSocketStream<MaybeTlsStream<TcpStream>>);

/// What came over it.
pub enum Came {
    Said(Value),
    /// Closed with a code.
    Closed(u16),
    /// Torn, as by a kill.
    Lost,
}

impl Wire {
    /// None when nobody answers there now.
    pub async fn dial(addr: SocketAddr, path: &str) -> Option<Self> {
        let dial = connect_async(format!("ws://{addr}{path}"));
        let (socket, _) = tokio::time::timeout(ANSWER, dial).await.ok()?.ok()?;
        Some(Self(socket))
    }

    /// False when the connection is gone.
    pub async fn say(&mut self, message: Value) -> bool {
        let sent = self.0.send(Message::text(message.to_string()));
        matches!(tokio::time::timeout(ANSWER, sent).await, Ok(Ok(())))
    }

    pub async fn next(&mut self) -> Came {
        loop {
            match self.0.next().await {
                Some(Ok(Message::Text(text))) => match serde_json::from_str(&text) {
                    Ok(value) => return Came::Said(value),
                    Err(_) => return Came::Said(Value::Null),
                },
                Some(Ok(Message::Close(frame))) => {
                    return frame.map_or(Came::Lost, |frame| Came::Closed(frame.code.into()));
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Came::Lost,
            }
        }
    }
}
