//! The load generator: what it counts on a real server, and that no lie of a server goes unseen.

mod support;

use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use support::TestServer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use utterd::peer::load::{Faults, Figures, Mode, Options, Pace, Plan, Relay, World};

fn small(mode: Mode) -> Options {
    Options { nodes: 2, sessions: 4, audio_ms: 250, mode, patience_ms: 5_000, ..Options::default() }
}

fn plan(pace: Pace) -> Plan {
    Plan { pace, warmup_s: 0.2, seconds: 0.8 }
}

async fn load(url: &str, options: &Options, plan: Plan) -> Figures {
    let pid = Some(std::process::id());
    let mut world = World::open(url, options, pid).await.unwrap();
    let figures = world.round(plan).await.unwrap();
    world.close().await;
    figures
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_answers_every_utterance_once_in_order_with_its_own_answer() {
    let server = TestServer::start(|_| {}).await;
    let url = format!("ws://{}", server.addr());
    for mode in [Mode::Utterance, Mode::Chunks] {
        for resume in [false, true] {
            let options = Options { resume, result_bytes: 1_000, ..small(mode) };
            let figures = load(&url, &options, plan(Pace::Rate(200.0))).await;
            assert!(figures.faults.is_clean(), "{mode:?}: {figures:?}");
            assert_eq!((figures.sent, figures.round_trip.count), (200, 160), "{mode:?}");
            assert_eq!(figures.dispatch.count, 160);
            assert!(figures.dispatch.p50_us <= figures.round_trip.p50_us);
            assert!(figures.cost.is_some_and(|cost| cost.cpu_us_per_utterance > 0.0));
            let figures = load(&url, &options, plan(Pace::Closed(2))).await;
            assert!(figures.faults.is_clean(), "{mode:?}: {figures:?}");
            assert!(figures.sent > 8 && figures.achieved_per_s > 0.0, "{figures:?}");
        }
    }
    server.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_take_their_time_do_other_jobs_meanwhile() {
    let server = TestServer::start(|_| {}).await;
    let options = Options { service_ms: 100, ..small(Mode::Utterance) };
    let url = format!("ws://{}", server.addr());
    let figures = load(&url, &options, plan(Pace::Rate(200.0))).await;
    assert!(figures.faults.is_clean(), "{figures:?}");
    // One after the other it would be 100 jobs in 5 s on each node.
    let p50_us = figures.round_trip.p50_us;
    assert!((100_000.0..1_000_000.0).contains(&p50_us), "{p50_us}");
    server.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_relay_passes_everything_on() {
    let relay = Relay::bind().await.unwrap();
    let url = format!("ws://{}", relay.addr());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let relaying = tokio::spawn(relay.run(stopped));
    // It deals to its nodes in turn, so that with several there would be no order.
    let options = Options { nodes: 1, ..small(Mode::Utterance) };
    for pace in [Pace::Rate(200.0), Pace::Closed(1)] {
        let figures = load(&url, &options, plan(pace)).await;
        assert!(figures.faults.is_clean(), "{figures:?}");
    }
    drop(stop);
    relaying.await.unwrap();
}

/// What a lying server does with the results of one session.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Lie {
    None,
    Lose,
    Repeat,
    Swap,
    /// The text of another utterance.
    Exchange,
    /// The name of another session.
    Misname,
    /// A word that there will be none.
    Refuse,
    /// Nothing is read for 300 ms, once.
    Stall,
}

/// One socket's way out.
type Out = mpsc::Sender<String>;

/// A relay in a few lines that lies once, about utterance 10 of the first session.
struct Liar {
    lie: Lie,
    nodes: Mutex<Vec<Out>>,
    sessions: Mutex<Vec<Out>>,
    /// Kept back to be told behind the next.
    held: Mutex<Option<String>>,
}

impl Liar {
    async fn start(lie: Lie) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}", listener.local_addr().unwrap());
        let (nodes, sessions, held) = Default::default();
        let liar = Arc::new(Self { lie, nodes, sessions, held });
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(Arc::clone(&liar).serve(stream));
            }
        });
        url
    }

    async fn serve(self: Arc<Self>, stream: TcpStream) {
        stream.set_nodelay(true).unwrap();
        let mut path = String::new();
        #[expect(clippy::result_large_err, reason = "the library's own signature")]
        let look = |request: &Request, response: Response| {
            path = request.uri().path().to_owned();
            Ok(response)
        };
        let mut socket = tokio_tungstenite::accept_hdr_async(stream, look).await.unwrap();
        let (out, mut going) = mpsc::channel(4_096);
        loop {
            tokio::select! {
                text = going.recv() => {
                    let Some(text) = text else { return };
                    if socket.send(Message::text::<String>(text)).await.is_err() {
                        return;
                    }
                }
                message = socket.next() => {
                    let Some(Ok(message)) = message else { return };
                    if let Message::Text(text) = message {
                        self.hear(&path, text.as_str(), &out).await;
                    }
                }
            }
        }
    }

    async fn hear(&self, path: &str, text: &str, out: &Out) {
        let is = |kind: &str| text.starts_with(&format!("{{\"type\":\"{kind}\""));
        let is_tenth = text.contains("\"session_id\":\"s-0\",\"utterance_index\":10,");
        if path == "/ws/session" && is("utterance") {
            if self.lie == Lie::Stall && is_tenth {
                // The whole of it stands still, as with a disk that does not answer.
                std::thread::sleep(Duration::from_millis(300));
            }
            let node = self.nodes.lock().unwrap()[0].clone();
            node.send(text.to_owned()).await.unwrap();
        } else if path == "/ws/session" {
            // The order of the fields is not JSON's concern: it is found by its text.
            if text.contains("session_init") {
                let number = self.sessions.lock().unwrap().len();
                self.sessions.lock().unwrap().push(out.clone());
                let ack =
                    format!("{{\"type\":\"session_init_ack\",\"session_id\":\"s-{number}\"}}");
                out.send(ack).await.unwrap();
            }
        } else if is("job_result") {
            self.tell(text, is_tenth).await;
        } else if text.contains("node_register") {
            self.nodes.lock().unwrap().push(out.clone());
            out.send("{\"type\":\"node_register_ack\"}".to_owned()).await.unwrap();
        }
    }

    async fn tell(&self, text: &str, is_tenth: bool) {
        let from = text.find("\"session_id\":\"s-").unwrap() + 16;
        let number: usize = text[from..=from].parse().unwrap();
        let session = self.sessions.lock().unwrap()[number].clone();
        let mut frames = vec![text.to_owned()];
        if is_tenth {
            match self.lie {
                Lie::None | Lie::Stall => {}
                Lie::Lose => frames.clear(),
                Lie::Repeat => frames.push(text.to_owned()),
                Lie::Swap => *self.held.lock().unwrap() = frames.pop(),
                Lie::Exchange => frames[0] = text.replace("00000000000a ", "00000000000b "),
                Lie::Misname => frames[0] = text.replace("\"s-0\"", "\"s-1\""),
                Lie::Refuse => frames[0] = text.replace("job_result", "missing_result"),
            }
        } else if number == 0 {
            frames.extend(self.held.lock().unwrap().take());
        }
        for frame in frames {
            session.send(frame).await.unwrap();
        }
    }
}

fn found(change: impl FnOnce(&mut Faults)) -> Faults {
    let mut faults = Faults::default();
    change(&mut faults);
    faults
}

#[tokio::test(flavor = "multi_thread")]
async fn no_lie_goes_unseen() {
    let lies = [
        (Lie::None, found(|_| {})),
        (Lie::Lose, found(|f| f.lost = 1)),
        (Lie::Repeat, found(|f| f.repeated = 1)),
        (Lie::Swap, found(|f| f.disordered = 1)),
        (Lie::Exchange, found(|f| f.wrong = 1)),
        (Lie::Misname, found(|f| (f.foreign, f.lost) = (1, 1))),
        (Lie::Refuse, found(|f| f.missing = 1)),
    ];
    let options =
        Options { nodes: 1, sessions: 2, audio_ms: 20, patience_ms: 500, ..Options::default() };
    for (lie, expected) in lies {
        let url = Liar::start(lie).await;
        let figures = load(&url, &options, plan(Pace::Rate(100.0))).await;
        assert_eq!(figures.faults, expected, "{lie:?}");
        assert_eq!(figures.sent, 100);
    }
}

/// Who waited for the server before it measured again would have one slow utterance of 800.
#[tokio::test(flavor = "multi_thread")]
async fn a_stall_is_in_the_quantiles_of_all_that_were_due_meanwhile() {
    let url = Liar::start(Lie::Stall).await;
    let options = Options { nodes: 1, sessions: 1, audio_ms: 20, ..Options::default() };
    let plan = Plan { pace: Pace::Rate(1_000.0), warmup_s: 0.0, seconds: 1.0 };
    let figures = load(&url, &options, plan).await;
    assert!(figures.faults.is_clean(), "{figures:?}");
    assert_eq!(figures.round_trip.count, 1_000);
    assert!(figures.round_trip.p99_us > 250_000.0, "{:?}", figures.round_trip);
    // 290 of 1,000 were due in the last 290 ms of the stall.
    assert!(figures.round_trip.p90_us > 150_000.0, "{:?}", figures.round_trip);
}

fn program(args: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_utterd")).arg("load").args(args).output();
    let output = output.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_fails_where_an_utterance_was_lost() {
    let url = Liar::start(Lie::Repeat).await;
    let args = ["--url", &url, "--nodes", "1", "--sessions", "2", "--audio-ms", "20", "--rate"];
    let args = [&args[..], &["100", "--seconds", "0.5", "--warmup", "0"]].concat();
    let (code, shown, complaint) = tokio::task::block_in_place(|| program(&args));
    assert_eq!(code, Some(1), "{shown}");
    assert!(shown.contains("1 repeated") && complaint.contains("1 repeated"), "{complaint}");
    let (code, ..) = tokio::task::block_in_place(|| program(&["--floor", "--mode", "chunks"]));
    assert_eq!(code, Some(2));
}

#[test]
fn the_floor_is_measured_by_the_program_itself() {
    let args = ["--floor", "--seconds", "0.5", "--warmup", "0.2", "--rounds", "1", "--json"];
    let (code, shown, complaint) = program(&[&args[..], &["--rate", "100"]].concat());
    assert_eq!(code, Some(0), "{complaint}\n{shown}");
    let document: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let floor = &document["floor"];
    for side in ["server", "relay", "server_closed", "relay_closed"] {
        assert_eq!(floor[side].as_array().unwrap().len(), 1, "{side}");
        assert!(floor[side][0]["round_trip"]["count"].as_u64() > Some(0), "{side}");
        assert!(floor[side][0]["cost"]["rss_after_kb"].as_u64() > Some(0), "{side}");
    }
    let verdicts = floor["verdicts"].as_array().unwrap();
    assert_eq!(verdicts.len(), 3);
    assert!(verdicts.iter().all(|verdict| verdict["ratio"].as_f64() > Some(0.0)), "{verdicts:?}");
}

#[test]
fn open_consoles_are_weighed_by_the_program_itself() {
    let args = ["--consoles", "3", "--seconds", "1", "--warmup", "0.1", "--rounds", "2", "--json"];
    let (code, shown, complaint) = program(&[&args[..], &["--rate", "100"]].concat());
    assert_eq!(code, Some(0), "{complaint}\n{shown}");
    let document: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let watched = &document["beside"];
    for side in ["without", "with"] {
        assert_eq!(watched[side].as_array().unwrap().len(), 2, "{side}");
        assert!(watched[side][1]["round_trip"]["count"].as_u64() > Some(0), "{side}");
    }
    // Each of the three was told something, twice at least, in each of the two rounds.
    assert!(watched["pictures"].as_u64() >= Some(12), "{}", watched["pictures"]);
    let weighed = watched["weighed"].as_array().unwrap();
    assert!(weighed.iter().all(|weighed| weighed["ratio"].as_f64() > Some(0.0)), "{weighed:?}");
    // More than a server keeps up to date.
    let (code, _, complaint) = program(&["--consoles", "40", "--seconds", "0.1", "--rounds", "1"]);
    assert_eq!(code, Some(1), "{complaint}");
    assert!(complaint.contains("503"), "{complaint}");
}

#[test]
fn slow_readers_are_weighed_and_read_everything_in_the_end() {
    let args = ["--slow-readers", "10", "--seconds", "1", "--warmup", "0.1", "--rounds", "1"];
    let (code, shown, complaint) = program(&[&args[..], &["--rate", "50", "--json"]].concat());
    assert_eq!(code, Some(0), "{complaint}\n{shown}");
    let document: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let beside = &document["beside"];
    assert_eq!(beside["company"]["slow_readers"], 10);
    assert_eq!(beside["company_faults"].as_array().unwrap().len(), 1);
    for side in ["rss_without_kb", "rss_with_kb"] {
        assert!(beside[side].as_u64() > Some(1_000), "{side}");
    }
}

#[test]
fn idle_sessions_are_counted_and_weighed() {
    let (code, shown, complaint) = program(&["--idle", "500", "--seconds", "1", "--json"]);
    assert_eq!(code, Some(0), "{complaint}\n{shown}");
    let document: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let idle = &document["idle"];
    assert_eq!((&idle["refused"], &idle["lost"]), (&0.into(), &0.into()), "{idle}");
    // An optimised build takes less; `docs/BENCHMARKS.md`.
    let bytes = idle["bytes_per_session"].as_f64().unwrap();
    assert!((1_000.0..40_000.0).contains(&bytes), "{bytes}");
}
