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

use futures_util::stream::SplitSink;
use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};
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

    /// The `q`-quantile of the differences, in microseconds.
    fn quantiles(&self, to: &[AtomicU64], qs: &[f64]) -> Vec<f64> {
        let pairs = self.sent.iter().zip(to);
        let mut us: Vec<u64> = pairs
            .map(|(from, to)| (from.load(Relaxed), to.load(Relaxed)))
            .filter(|(from, to)| *from > 0 && to > from)
            .map(|(from, to)| to - from)
            .collect();
        us.sort_unstable();
        assert!(us.len() * 100 >= self.sent.len() * 99, "utterances went missing: {}", us.len());
        qs.iter().map(|q| us[((us.len() - 1) as f64 * q) as usize] as f64).collect()
    }
}

/// One server with its nodes and sessions, at rest between rounds.
struct World {
    server: Server,
    _data: tempfile::TempDir,
    names: BTreeMap<String, usize>,
    sinks: Vec<SplitSink<Socket, Message>>,
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
        let server = Server::start(config).await.unwrap();
        let url = format!("ws://{}", server.addr());
        let times = Arc::new(arc_swap::ArcSwap::new(Times::new(1)));
        let base = Arc::new(AtomicU64::new(0));
        let (mut names, mut sinks) = (BTreeMap::new(), Vec::new());
        let extensions = if resumable { json!(["resume"]) } else { json!([]) };
        let init = json!({"type": "session_init", "client_version": "b", "platform": "cli",
            "src_lang": "zh", "tgt_lang": "en", "extensions": extensions});
        for number in 0..SESSIONS {
            let (mut socket, _) = connect_async(format!("{url}/ws/session")).await.unwrap();
            socket.send(Message::text(init.to_string())).await.unwrap();
            let ack = socket.next().await.unwrap().unwrap().into_text().unwrap();
            names.insert(text_of(&ack, "session_id").to_owned(), number);
            let (sink, stream) = socket.split();
            sinks.push(sink);
            tokio::spawn(listen(stream, number, Arc::clone(&times), Arc::clone(&base)));
        }
        for number in 0..NODES {
            let (socket, _) = connect_async(format!("{url}/ws/node")).await.unwrap();
            let (times, base) = (Arc::clone(&times), Arc::clone(&base));
            tokio::spawn(work(socket, number, names.clone(), times, base));
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        Self { server, _data: data, names, sinks, next: 0, times, base }
    }

    /// Speaks for `seconds`; returns p50 and p99 of dispatch, and of the whole way.
    async fn round(&mut self, seconds: u64, audio: &str, acks: bool) -> [f64; 4] {
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
                times.mark(&times.sent, times.at(number, step));
                self.sinks[number].send(Message::text(text)).await.unwrap();
                if acks && step > 4 {
                    let seq = index - 4;
                    let ack = json!({"type": "ack", "session_id": id, "seq": seq}).to_string();
                    self.sinks[number].send(Message::text(ack)).await.unwrap();
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
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

async fn listen(
    mut stream: futures_util::stream::SplitStream<Socket>,
    number: usize,
    times: Arc<arc_swap::ArcSwap<Times>>,
    base: Arc<AtomicU64>,
) {
    while let Some(Ok(message)) = stream.next().await {
        let Ok(text) = message.into_text() else { continue };
        if text.starts_with(r#"{"type":"translation_result""#) {
            let index = number_of(&text, "utterance_index") - base.load(Relaxed);
            let times = times.load_full();
            times.mark(&times.answered, times.at(number, index));
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
            let figures = worlds[mode].round(seconds, &audio, modes[mode].2).await;
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
