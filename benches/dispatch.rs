//! What durability costs: from a speaker's send to the node having read the assignment, with the
//! store off, on, and on with sessions that come back, in turns within one run.
//!
//! 4 nodes, 32 sessions, one second of PCM (43 KB of base64) an utterance, answered at once, at a
//! fixed pace, everything on loopback in one process: server and load share the cores. Medians of
//! rounds, and ratios, are what can be compared.
//!
//! `cargo bench --bench dispatch` measures; `cargo test --bench dispatch` only shows that it works.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};
use utterd::config::Config;
use utterd::server::Server;

const NODES: usize = 4;
const SESSIONS: usize = 32;
const PER_SECOND: u64 = 1_000;
const AUDIO_BYTES: usize = 32_000;

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// When each utterance was sent, dispatched and answered: microseconds since the start.
struct Times {
    start: Instant,
    per_session: usize,
    sent: Vec<AtomicU64>,
    read: Vec<AtomicU64>,
    answered: Vec<AtomicU64>,
}

impl Times {
    fn new(per_session: usize) -> Arc<Self> {
        let zeros = || (0..SESSIONS * per_session).map(|_| AtomicU64::new(0)).collect();
        let (sent, read, answered) = (zeros(), zeros(), zeros());
        Arc::new(Self { start: Instant::now(), per_session, sent, read, answered })
    }

    fn at(&self, session: usize, index: u64) -> usize {
        session * self.per_session + index as usize
    }

    fn mark(&self, what: &[AtomicU64], at: usize) {
        what[at].store(self.start.elapsed().as_micros() as u64, Relaxed);
    }

    /// Waits until every utterance has been answered: a disk that stalls delays answers.
    async fn settle(&self) {
        let late = Instant::now() + Duration::from_secs(30);
        let open = || self.answered.iter().filter(|at| at.load(Relaxed) == 0).count();
        while open() > 0 {
            assert!(Instant::now() < late, "{} utterances went missing", open());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The quantiles of the differences, in microseconds.
    fn quantiles(&self, to: &[AtomicU64], qs: &[f64]) -> Vec<f64> {
        let pairs = self.sent.iter().zip(to);
        let mut us: Vec<u64> =
            pairs.map(|(from, to)| to.load(Relaxed) - from.load(Relaxed)).collect();
        us.sort_unstable();
        qs.iter().map(|q| us[((us.len() - 1) as f64 * q) as usize] as f64).collect()
    }
}

/// One server with its nodes and sessions, at rest between rounds.
struct World {
    server: Server,
    _data: tempfile::TempDir,
    names: BTreeMap<String, usize>,
    speakers: Vec<mpsc::Sender<(u64, String)>>,
    next: u64,
    times: Arc<arc_swap::ArcSwap<Times>>,
    base: Arc<AtomicU64>,
}

impl World {
    async fn new(stored: bool, resumable: bool) -> Self {
        let data = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.server.listen = "127.0.0.1:0".into();
        config.server.data = data.path().to_owned();
        config.server.drain_ms = 0;
        config.store.enabled = stored;
        config.node.slots_default = 64;
        // The nodes of this bench say nothing of themselves.
        config.node.heartbeat_timeout_ms = 3_600_000;
        let server = Server::start(config).await.unwrap();
        let url = format!("ws://{}", server.addr());
        let times = Arc::new(arc_swap::ArcSwap::new(Times::new(1)));
        let base = Arc::new(AtomicU64::new(0));
        let (mut names, mut speakers) = (BTreeMap::new(), Vec::new());
        let extensions = if resumable { json!(["resume"]) } else { json!([]) };
        let init = json!({"type": "session_init", "client_version": "b", "platform": "cli",
            "src_lang": "zh", "tgt_lang": "en", "extensions": extensions});
        for number in 0..SESSIONS {
            let mut socket = connect(&format!("{url}/ws/session")).await;
            socket.send(Message::text(init.to_string())).await.unwrap();
            let ack = socket.next().await.unwrap().unwrap().into_text().unwrap();
            names.insert(text_of(&ack, "session_id").to_owned(), number);
            let (speaker, words) = mpsc::channel(64);
            speakers.push(speaker);
            tokio::spawn(speak(socket, number, words, Arc::clone(&times), Arc::clone(&base)));
        }
        for number in 0..NODES {
            let socket = connect(&format!("{url}/ws/node")).await;
            let (times, base) = (Arc::clone(&times), Arc::clone(&base));
            tokio::spawn(work(socket, number, names.clone(), times, base));
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        Self { server, _data: data, names, speakers, next: 0, times, base }
    }

    /// Speaks for `seconds`; returns p50 and p99 of dispatch, and of the whole way.
    async fn round(&mut self, seconds: u64, audio: &str) -> [f64; 4] {
        let per_session = (PER_SECOND * seconds) as usize / SESSIONS;
        let times = Times::new(per_session);
        self.times.store(Arc::clone(&times));
        self.base.store(self.next, Relaxed);
        let ids: Vec<&String> = {
            let mut ids: Vec<_> = self.names.iter().collect();
            ids.sort_by_key(|(_, number)| **number);
            ids.into_iter().map(|(id, _)| id).collect()
        };
        let mut pace = tokio::time::interval(Duration::from_micros(1_000_000 / PER_SECOND));
        for step in 0..per_session as u64 {
            for (number, id) in ids.iter().enumerate() {
                pace.tick().await;
                let index = self.next + step;
                let head = json!({"type": "utterance", "session_id": id, "utterance_index": index,
                    "manual_cut": true, "src_lang": "zh", "tgt_lang": "en",
                    "audio_format": "pcm16", "sample_rate": 16_000})
                .to_string();
                let text = format!("{},\"audio\":\"{audio}\"}}", &head[..head.len() - 1]);
                self.speakers[number].send((index, text)).await.unwrap();
            }
        }
        times.settle().await;
        self.next += per_session as u64;
        let dispatch = times.quantiles(&times.read, &[0.5, 0.99]);
        let whole = times.quantiles(&times.answered, &[0.5, 0.99]);
        [dispatch[0], dispatch[1], whole[0], whole[1]]
    }
}

/// The text of a field near the beginning of a frame.
fn text_of<'a>(frame: &'a str, field: &str) -> &'a str {
    let from = frame.find(&format!("\"{field}\":\"")).unwrap() + field.len() + 4;
    &frame[from..from + frame[from..].find('"').unwrap()]
}

fn number_of(frame: &str, field: &str) -> u64 {
    let from = frame.find(&format!("\"{field}\":")).unwrap() + field.len() + 3;
    let digits = frame[from..].find(|c: char| !c.is_ascii_digit()).unwrap();
    frame[from..from + digits].parse().unwrap()
}

/// Small messages leave at once.
async fn connect(url: &str) -> Socket {
    connect_async_with_config(url, None, true).await.unwrap().0
}

/// One session: says what it is given, hears the answers, and acknowledges those with a number.
async fn speak(
    mut socket: Socket,
    number: usize,
    mut words: mpsc::Receiver<(u64, String)>,
    times: Arc<arc_swap::ArcSwap<Times>>,
    base: Arc<AtomicU64>,
) {
    loop {
        let sent = tokio::select! {
            word = words.recv() => {
                let Some((index, text)) = word else { return };
                let times = times.load_full();
                times.mark(&times.sent, times.at(number, index - base.load(Relaxed)));
                socket.send(Message::text(text)).await
            }
            heard = socket.next() => {
                let Some(Ok(heard)) = heard else { return };
                let Message::Text(text) = heard else { continue };
                if !text.starts_with(r#"{"type":"translation_result""#) {
                    continue;
                }
                let index = number_of(&text, "utterance_index") - base.load(Relaxed);
                let times = times.load_full();
                times.mark(&times.answered, times.at(number, index));
                if !text.contains(r#""seq":"#) {
                    continue;
                }
                let (id, seq) = (text_of(&text, "session_id"), number_of(&text, "seq"));
                let ack = json!({"type": "ack", "session_id": id, "seq": seq});
                socket.send(Message::text(ack.to_string())).await
            }
        };
        if sent.is_err() {
            return;
        }
    }
}

async fn work(
    mut socket: Socket,
    number: usize,
    names: BTreeMap<String, usize>,
    times: Arc<arc_swap::ArcSwap<Times>>,
    base: Arc<AtomicU64>,
) {
    let (languages, ready) = (json!(["zh", "en"]), |kind| json!({"type": kind, "ready": true}));
    let register = json!({"type": "node_register", "node_id": format!("n{number}"),
        "version": "b", "capability_schema_version": "2.0", "platform": "linux",
        "hardware": {}, "installed_models": [], "installed_services": [],
        "capability_by_type": [ready("asr"), ready("nmt"), ready("tts")],
        "features_supported": {}, "accept_public_jobs": true,
        "language_capabilities": {"asr_languages": languages, "tts_languages": languages,
            "semantic_languages": languages},
        "max_concurrent_jobs": 64})
    .to_string();
    socket.send(Message::text(register)).await.unwrap();
    while let Some(Ok(message)) = socket.next().await {
        let Ok(text) = message.into_text() else { continue };
        if !text.starts_with(r#"{"type":"job_assign""#) {
            continue;
        }
        let index = number_of(&text, "utterance_index") - base.load(Relaxed);
        let now = times.load_full();
        now.mark(&now.read, now.at(names[text_of(&text, "session_id")], index));
        let (job, attempt) = (text_of(&text, "job_id"), number_of(&text, "attempt_id"));
        let result = json!({"type": "job_result", "job_id": job, "attempt_id": attempt,
            "node_id": format!("n{number}"), "success": true, "text_asr": "a",
            "text_translated": "b", "tts_audio": "", "tts_format": "pcm16"})
        .to_string();
        if socket.send(Message::text(result)).await.is_err() {
            return;
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[allow(clippy::print_stdout, reason = "it is what a benchmark is for")]
#[tokio::main]
async fn main() {
    // Only `cargo bench` says so: anything else is to see that it works.
    let smoke = !std::env::args().any(|arg| arg == "--bench");
    let (rounds, seconds) = if smoke { (1, 1) } else { (15, 2) };
    let audio = base64_simd::STANDARD.encode_to_string(vec![0x40; AUDIO_BYTES]);
    let modes = [("store off", false, false), ("store on", true, false), ("resumable", true, true)];
    let mut worlds = Vec::new();
    for (_, stored, resumable) in modes {
        worlds.push(World::new(stored, resumable).await);
    }
    let mut taken: Vec<[Vec<f64>; 4]> = modes.iter().map(|_| Default::default()).collect();
    for round in 0..=rounds {
        // Each mode comes first in a third of the rounds.
        for turn in 0..modes.len() {
            let mode = (round + turn) % modes.len();
            let figures = worlds[mode].round(seconds, &audio).await;
            // The first round warms up.
            if round > 0 || smoke {
                for (all, one) in taken[mode].iter_mut().zip(figures) {
                    all.push(one);
                }
            }
        }
    }
    println!(
        "{rounds} rounds of {seconds} s, {PER_SECOND} utterances/s, medians of the rounds, µs"
    );
    println!("{:<12} {:>14} {:>14} {:>14} {:>14}", "", "dispatch p50", "p99", "answer p50", "p99");
    let medians: Vec<[f64; 4]> = taken.into_iter().map(|figures| figures.map(median)).collect();
    for ((name, ..), m) in modes.iter().zip(&medians) {
        println!("{name:<12} {:>14.0} {:>14.0} {:>14.0} {:>14.0}", m[0], m[1], m[2], m[3]);
    }
    for ((name, ..), m) in modes.iter().zip(&medians).skip(1) {
        let r: Vec<f64> = m.iter().zip(&medians[0]).map(|(a, b)| a / b).collect();
        println!("{name:<12} {:>13.2}× {:>13.2}× {:>13.2}× {:>13.2}×", r[0], r[1], r[2], r[3]);
    }
    for world in worlds {
        world.server.stop().await;
    }
}
