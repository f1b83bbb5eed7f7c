//! How the server goes: signals, what sessions and nodes hear of it, what becomes of speech and
//! jobs, and how the next one takes over.

mod support;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use support::{FakeNode, Peer, SOON, TestServer, heartbeat_message, http, speech};
use tokio::task::JoinHandle;
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::{Error, Message};
use utterd::server::Stopped;

const LANGUAGES: [&str; 2] = ["zh", "en"];
/// Longest time after which a peer may be asked to come back.
const RECONNECT_MS_MAX: u64 = 5_000;
/// Exit code of a process that ended before its stop was in good order.
const AT_ONCE: i32 = 75;

/// The program itself, in a process of its own.
struct Program {
    child: Ended,
    stdout: BufReader<ChildStdout>,
    addr: SocketAddr,
}

/// A process that does not outlive its test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It has ended already, unless the test has no end for it, or failed.
        if self.0.kill().is_ok() {
            self.0.wait().unwrap();
        }
    }
}

impl Program {
    /// `settings` are variables without their prefix.
    fn start(dir: &Path, settings: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_utterd"));
        command.stderr(Stdio::null());
        Self::run(command, dir, settings)
    }

    /// With these sockets as the descriptors a service manager hands over, the second one called
    /// `client` if there are two.
    fn start_behind(sockets: &[&TcpListener], dir: &Path) -> Self {
        // A shell moves them to where they belong, and keeps the number of its process.
        const HAND_OVER: &str = "exec 3<&0 4<&2 0</dev/null 2>/dev/null; \
            LISTEN_PID=$$; export LISTEN_PID; exec \"$0\" \"$@\"";
        let fd = |socket: &TcpListener| OwnedFd::from(socket.try_clone().unwrap());
        let mut command = Command::new("sh");
        command.args(["-c", HAND_OVER, env!("CARGO_BIN_EXE_utterd")]);
        command.stdin(fd(sockets[0]));
        match sockets.get(1) {
            Some(second) => command.stderr(fd(second)).env("LISTEN_FDNAMES", "node:client"),
            None => command.stderr(Stdio::null()),
        };
        command.env("LISTEN_FDS", sockets.len().to_string());
        Self::run(command, dir, &[("SERVER_DRAIN_MS", "2000")])
    }

    fn run(mut command: Command, dir: &Path, settings: &[(&str, &str)]) -> Self {
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("UTTERD_") {
                command.env_remove(name);
            }
        }
        for (name, value) in settings {
            command.env(format!("UTTERD_{name}"), value);
        }
        let mut child = command
            .args(["serve", "--listen", "127.0.0.1:0", "--data"])
            .arg(dir)
            .env("UTTERD_SEGMENTER_HANGOVER_MANUAL_MS", "0")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let addr = said(&mut stdout, "utterd listening on ");
        Self { child: Ended(child), stdout, addr }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child.0), signal).unwrap();
    }

    /// Waits until it says that it takes no more sessions.
    async fn until_it_drains(&self) {
        let deadline = Instant::now() + SOON;
        while http(self.addr, "GET", "/readyz", "").await.0 != 503 {
            assert!(Instant::now() < deadline, "it still takes sessions");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Its exit code, when it has ended by itself.
    async fn ended(mut self) -> Option<i32> {
        let ended = tokio::task::spawn_blocking(move || {
            let status = self.child.0.wait().unwrap();
            self.stdout.read_to_string(&mut String::new()).unwrap();
            status.code()
        });
        tokio::time::timeout(Duration::from_secs(30), ended).await.unwrap().unwrap()
    }
}

/// The address in the next line, after these words.
fn said(stdout: &mut BufReader<ChildStdout>, words: &str) -> SocketAddr {
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    let addr = line.trim().strip_prefix(words).map(str::parse);
    addr.unwrap_or_else(|| panic!("said {line:?}")).unwrap()
}

async fn node(addr: SocketAddr) -> FakeNode {
    let peer = Peer::connect(addr, "/ws/node").await;
    FakeNode::register(peer, "n1", &LANGUAGES).await
}

/// A session that understands these extensions.
async fn session(addr: SocketAddr, extensions: &[&str]) -> (Peer, String) {
    let mut client = Peer::connect(addr, "/ws/session").await;
    client.send(session_init(extensions)).await;
    let ack = client.expect("session_init_ack").await;
    (client, ack["session_id"].as_str().unwrap().to_owned())
}

fn session_init(extensions: &[&str]) -> Value {
    json!({"type": "session_init", "client_version": "t", "platform": "web", "src_lang": "zh",
        "tgt_lang": "en", "extensions": extensions})
}

/// A job that the node has.
async fn job_in_flight(addr: SocketAddr) -> (FakeNode, Peer, Value) {
    let mut node = node(addr).await;
    let (mut client, id) = session(addr, &[]).await;
    client.sentence(&id).await;
    let job = node.assignment().await;
    (node, client, job)
}

/// The close frame that comes next, whatever else comes before it: its code, and when its reason
/// says one may come back, in milliseconds.
async fn farewell(peer: &mut Peer) -> (u16, u64) {
    loop {
        match peer.next_frame().await.expect("no close frame came") {
            Message::Close(Some(frame)) => {
                let (_, hint) = frame.reason.split_once("retry_after_ms=").unwrap();
                return (frame.code.into(), hint.parse().unwrap());
            }
            Message::Close(None) => panic!("a close frame without a code"),
            _ => {}
        }
    }
}

fn stop(server: TestServer) -> JoinHandle<Stopped> {
    tokio::spawn(server.server.stop())
}

async fn in_order(stopped: JoinHandle<Stopped>) {
    assert_eq!(stopped.await.unwrap(), Stopped::InOrder);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_lets_a_job_finish_and_its_result_arrive() {
    let dir = tempfile::tempdir().unwrap();
    let manager = UnixDatagram::bind(dir.path().join("notify")).unwrap();
    manager.set_read_timeout(Some(SOON)).unwrap();
    let told = || {
        let mut state = [0; 64];
        let length = manager.recv(&mut state).unwrap();
        String::from_utf8(state[..length].to_vec()).unwrap()
    };
    let mut command = Command::new(env!("CARGO_BIN_EXE_utterd"));
    command.stderr(Stdio::null()).env("NOTIFY_SOCKET", dir.path().join("notify"));
    let program = Program::run(command, &dir.path().join("data"), &[("SERVER_DRAIN_MS", "10000")]);
    assert_eq!(told(), "READY=1");

    let (mut node, mut client, job) = job_in_flight(program.addr).await;
    let began = Instant::now();
    program.signal(Signal::TERM);
    assert_eq!(told(), "STOPPING=1");
    program.until_it_drains().await;
    node.answer(&job, "in time").await;
    assert_eq!(client.told().await["text_asr"], "in time");
    for peer in [&mut client, &mut node.peer] {
        let (code, hint) = farewell(peer).await;
        assert_eq!(code, 1001);
        assert!(hint <= RECONNECT_MS_MAX, "{hint}");
    }
    drop((client, node));
    assert_eq!(program.ended().await, Some(0));
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_takes_too_long_goes_on_after_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let program = Program::start(dir.path(), &[("SERVER_DRAIN_MS", "300")]);
    let (node, mut client, job) = job_in_flight(program.addr).await;
    program.signal(Signal::INT);
    assert_eq!(farewell(&mut client).await.0, 1001);
    drop((node, client));
    assert_eq!(program.ended().await, Some(0));

    let program = Program::start(dir.path(), &[("SERVER_DRAIN_MS", "5000")]);
    let mut peer = Peer::connect(program.addr, "/ws/node").await;
    peer.send(heartbeat_message("n2", &LANGUAGES)).await;
    let mut node = FakeNode { peer, id: "n2".to_owned() };
    let again = node.assignment().await;
    assert_eq!((&again["job_id"], &again["audio"]), (&job["job_id"], &job["audio"]));
    // It is work in flight like any other: the next stop waits for it.
    program.signal(Signal::TERM);
    program.until_it_drains().await;
    node.answer(&again, "at last").await;
    assert_eq!(farewell(&mut node.peer).await.0, 1001);
    drop(node);
    assert_eq!(program.ended().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_the_process_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let program = Program::start(dir.path(), &[("SERVER_DRAIN_MS", "20000")]);
    let _held = job_in_flight(program.addr).await;
    program.signal(Signal::TERM);
    program.until_it_drains().await;
    let began = Instant::now();
    program.signal(Signal::INT);
    assert_eq!(program.ended().await, Some(AT_ONCE));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_idle_sessions_are_gone_soon_and_do_not_come_back_together() {
    let dir = tempfile::tempdir().unwrap();
    let program = Program::start(dir.path(), &[]);
    let mut clients = Vec::new();
    for _ in 0..200 {
        clients.push(session(program.addr, &[]).await.0);
    }
    let began = Instant::now();
    program.signal(Signal::TERM);
    // Half of them do not even listen.
    let deaf = clients.split_off(100);
    let mut hints = BTreeSet::new();
    for mut client in clients {
        let (code, hint) = farewell(&mut client).await;
        assert!(code == 1001 && hint <= RECONNECT_MS_MAX, "{code} {hint}");
        hints.insert(hint);
    }
    assert!(hints.len() > 50, "{hints:?}");
    assert_eq!(program.ended().await, Some(0));
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    drop(deaf);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_asked_is_told_to_go_away() {
    let server = TestServer::start(|c| c.server.drain_ms = 4_000).await;
    let mut node = server.node("n1", &LANGUAGES).await;
    let (mut asked, id) = session(server.addr(), &["typed_errors", "go_away"]).await;
    let (mut other, _) = session(server.addr(), &["typed_errors"]).await;
    asked.sentence(&id).await;
    let job = node.assignment().await;
    let stopped = stop(server);
    let told = asked.expect("go_away").await;
    assert_eq!(
        (told["type"].as_str(), told["reason"].as_str()),
        (Some("go_away"), Some("shutdown"))
    );
    assert!(told["reconnect_after_ms"].as_u64().unwrap() <= RECONNECT_MS_MAX, "{told}");
    let deadline = told["deadline_ms"].as_u64().unwrap();
    assert!((1..=4_000).contains(&deadline), "{told}");
    assert_eq!(told.as_object().unwrap().len(), 4, "{told}");
    // Between the notice and the end there is time for what is in flight.
    node.answer(&job, "in time").await;
    assert_eq!(asked.told().await["text_asr"], "in time");
    assert!(asked.ends().await);
    assert_eq!(asked.seen_of("go_away"), [] as [Value; 0]);
    assert!(other.ends().await);
    assert_eq!(other.next().await, None);
    drop((asked, other, node));
    in_order(stopped).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_said_before_is_done_and_what_is_said_after_is_refused() {
    let server = TestServer::start(|_| {}).await;
    let mut node = server.node("n1", &LANGUAGES).await;
    let (mut client, id) = server.session("zh", "en").await;
    let before = speech(300);
    // A client that was asked to pause just now is not asked again, and this server is young.
    server.advance(Duration::from_secs(1));
    client.chunk(&id, 0, &before, false).await;
    server.until_metric("utterd_audio_received_bytes_total", before.len() as f64).await;
    let stopped = stop(server);
    // The sentence had no end yet: it is cut where the server heard of its own.
    let job = node.assignment_of(0).await;
    assert_eq!(support::audio_of(&job), before);
    assert_eq!(client.expect("backpressure").await["action"], "PAUSE");
    client.chunk(&id, 1, &speech(300), false).await;
    client.chunk(&id, 2, &[], true).await;
    assert_eq!(client.failure().await, "SHUTTING_DOWN");
    // A sentence without an end is refused too, before the connection is closed.
    client.chunk(&id, 3, &speech(300), false).await;
    client.send(json!({"type": "client_heartbeat", "session_id": id})).await;
    client.expect("server_heartbeat").await;
    node.answer(&job, "before").await;
    assert_eq!(client.told().await["text_asr"], "before");
    let refused = client.told().await;
    assert_eq!(
        (&refused["reason"], &refused["utterance_index"]),
        (&"shutting_down".into(), &1.into())
    );
    assert_eq!(client.failure().await, "SHUTTING_DOWN");
    assert_eq!(client.told().await["utterance_index"], 2);
    assert!(client.ends().await);
    drop((client, node));
    in_order(stopped).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recording_sent_again_finds_its_job_even_then() {
    let server = TestServer::start(|_| {}).await;
    let mut node = server.node("n1", &LANGUAGES).await;
    let (mut client, id) = session(server.addr(), &["go_away"]).await;
    client.utterance(&id, 0, "zh", "en").await;
    let job = node.assignment().await;
    // One that waits for the one before it is not waited with any longer.
    client.utterance(&id, 2, "zh", "en").await;
    client.send(json!({"type": "client_heartbeat", "session_id": id})).await;
    client.expect("server_heartbeat").await;
    let stopped = stop(server);
    client.expect("go_away").await;
    let waited = node.assignment_of(2).await;
    client.utterance(&id, 0, "zh", "en").await;
    client.utterance(&id, 3, "zh", "en").await;
    assert_eq!(client.failure().await, "SHUTTING_DOWN");
    node.answer(&job, "once").await;
    node.answer(&waited, "two").await;
    let told = [client.told().await, client.told().await, client.told().await];
    let indices = told.each_ref().map(|t| t["utterance_index"].as_u64().unwrap());
    assert_eq!(indices, [0, 2, 3], "{told:?}");
    assert_eq!(told[0]["text_asr"], "once");
    assert_eq!(told[2]["reason"], "shutting_down");
    drop((client, node));
    in_order(stopped).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_can_come_back_says_to_the_next_server_what_this_one_did_not_take() {
    let server = TestServer::start(|_| {}).await;
    let mut node = server.node("n1", &LANGUAGES).await;
    let mut client = server.client().await;
    client.send(session_init(&["resume", "audio_ack", "go_away"])).await;
    let opened = client.expect("session_init_ack").await;
    assert_eq!(opened["extensions"], json!(["resume", "audio_ack", "go_away"]));
    let id = opened["session_id"].as_str().unwrap().to_owned();
    let audio = speech(300);
    client.chunk(&id, 1, &audio, false).await;
    server.until_metric("utterd_audio_received_bytes_total", audio.len() as f64).await;
    let restarted = tokio::spawn(server.restart(|_| {}));
    client.expect("go_away").await;
    let job = node.assignment_of(0).await;
    // Neither taken nor refused.
    client.chunk(&id, 2, &audio, true).await;
    client.send(json!({"type": "client_heartbeat", "session_id": id})).await;
    client.expect("server_heartbeat").await;
    node.answer(&job, "first half").await;
    assert_eq!(client.told().await["text_asr"], "first half");
    assert!(client.ends().await);
    assert_eq!(client.seen_of("missing_result"), [] as [Value; 0]);
    drop((client, node));

    let server = restarted.await.unwrap();
    let mut node = server.node("n1", &LANGUAGES).await;
    let mut client = server.client().await;
    client
        .send(json!({"type": "session_resume", "session_id": id, "epoch": opened["epoch"],
            "resume_secret": opened["resume_secret"], "last_seq": 1}))
        .await;
    let resumed = client.expect("session_resume_ack").await;
    assert_eq!((&resumed["recovered"], &resumed["chunks_through"]), (&true.into(), &1.into()));
    client.chunk(&id, 2, &audio, true).await;
    let job = node.assignment_of(1).await;
    assert_eq!(support::audio_of(&job), audio);
    node.answer(&job, "second half").await;
    assert_eq!(client.told().await["text_asr"], "second half");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_during_the_drain_is_refused_and_told_when_to_come() {
    let server = TestServer::start(|_| {}).await;
    let addr = server.addr();
    let (mut node, client, job) = job_in_flight(addr).await;
    let mut early = server.client().await;
    let stopped = stop(server);
    let deadline = Instant::now() + SOON;
    let refused = loop {
        match connect_async(format!("ws://{addr}/ws/session")).await {
            Err(Error::Http(answer)) => break answer,
            Err(other) => panic!("{other}"),
            Ok(_) => assert!(Instant::now() < deadline, "sessions are still taken"),
        }
    };
    assert_eq!(refused.status(), 503);
    let seconds: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=RECONNECT_MS_MAX / 1_000).contains(&seconds), "{seconds}");
    // It was connected before, and says what it wants only now.
    early.send(session_init(&[])).await;
    let error = early.expect("error").await;
    assert_eq!((&error["code"], &error["retryable"]), (&"SHUTTING_DOWN".into(), &true.into()));
    assert!(error["retry_after_ms"].as_u64().unwrap() <= RECONNECT_MS_MAX, "{error}");
    node.answer(&job, "in time").await;
    drop((client, early, node));
    in_order(stopped).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_behind_a_socket_handed_over_refuses_no_connection() {
    let dir = tempfile::tempdir().unwrap();
    let bound = || TcpListener::bind("127.0.0.1:0").unwrap();
    let (nodes, clients) = (bound(), bound());
    let addr = clients.local_addr().unwrap();
    let first = Program::start_behind(&[&nodes, &clients], dir.path());
    assert_eq!(first.addr, addr);
    let over = Arc::new(AtomicBool::new(false));
    let dialers: Vec<_> = (0..4)
        .map(|_| {
            let over = Arc::clone(&over);
            tokio::spawn(async move {
                let mut answered = 0;
                while !over.load(SeqCst) {
                    // Panics when it is refused.
                    assert_eq!(http(addr, "GET", "/health", "").await, (200, "OK".to_owned()));
                    answered += 1;
                }
                answered
            })
        })
        .collect();
    let mut next = first;
    for _ in 0..3 {
        let (mut client, _) = session(addr, &[]).await;
        next.signal(Signal::TERM);
        assert_eq!(farewell(&mut client).await.0, 1001);
        drop(client);
        assert_eq!(next.ended().await, Some(0));
        // Nobody accepts, and nobody is turned away: this one waits for the next server.
        let waits = tokio::spawn(session(addr, &[]));
        tokio::time::sleep(support::QUIET).await;
        assert!(!waits.is_finished());
        next = Program::start_behind(&[&nodes, &clients], dir.path());
        waits.await.unwrap();
    }
    over.store(true, SeqCst);
    for dialer in dialers {
        assert!(dialer.await.unwrap() > 3);
    }
    next.signal(Signal::TERM);
    assert_eq!(next.ended().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_to_a_socket_handed_over_waits_out_the_drain() {
    let dir = tempfile::tempdir().unwrap();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let program = Program::start_behind(&[&socket], dir.path());
    let addr = program.addr;
    let (mut node, _client, job) = job_in_flight(addr).await;
    let (mut told, _) = session(addr, &["go_away"]).await;
    program.signal(Signal::TERM);
    told.expect("go_away").await;
    let waits = tokio::spawn(async move { http(addr, "GET", "/health", "").await });
    tokio::time::sleep(support::QUIET).await;
    assert!(!waits.is_finished());
    node.answer(&job, "in time").await;
    drop((node, told));
    assert_eq!(program.ended().await, Some(0));
    let _next = Program::start_behind(&[&socket], dir.path());
    assert_eq!(waits.await.unwrap().0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_let_in_is_answered_even_by_a_server_that_goes() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let dir = tempfile::tempdir().unwrap();
    let program = Program::start(dir.path(), &[]);
    let mut silent = tokio::net::TcpStream::connect(program.addr).await.unwrap();
    // Sockets are accepted in order.
    assert_eq!(http(program.addr, "GET", "/health", "").await.0, 200);
    program.signal(Signal::TERM);
    tokio::time::sleep(2 * support::QUIET).await;
    silent.write_all(b"GET /health HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    silent.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert_eq!(program.ended().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_may_have_an_address_of_their_own() {
    let server = TestServer::start(|c| c.server.node_listen = Some("127.0.0.1:0".into())).await;
    let (addr, node_addr) = (server.addr(), server.server.node_addr());
    each_has_its_own(addr, node_addr).await;
    // What is busy is found before the data directory is touched.
    let mut config = support::config_for(server.dir.path());
    config.server.node_listen = Some(node_addr.to_string());
    let busy = utterd::server::Server::start(config).await.err().unwrap();
    assert!(busy.to_string().contains(&node_addr.to_string()), "{busy}");
    // What is busy when sessions are to be taken is told as well, and the store closed again.
    let dir = tempfile::tempdir().unwrap();
    let mut config = support::config_for(dir.path());
    config.server.node_listen = Some("127.0.0.1:0".into());
    config.server.listen = addr.to_string();
    let busy = utterd::server::Server::start(config).await.err().unwrap();
    assert!(busy.to_string().contains(&addr.to_string()), "{busy}");
    let config = support::config_for(dir.path());
    TestServer::start_in(dir, config).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_handed_over_are_told_apart_by_their_names() {
    let dir = tempfile::tempdir().unwrap();
    let bound = || TcpListener::bind("127.0.0.1:0").unwrap();
    // One without a name is for everybody.
    let shared = bound();
    let program = Program::start_behind(&[&shared], &dir.path().join("shared"));
    assert_eq!(program.addr, shared.local_addr().unwrap());
    let _both = (node(program.addr).await, session(program.addr, &[]).await);
    program.signal(Signal::TERM);
    assert_eq!(program.ended().await, Some(0));
    let (nodes, clients) = (bound(), bound());
    let (addr, node_addr) = (clients.local_addr().unwrap(), nodes.local_addr().unwrap());
    let mut program = Program::start_behind(&[&nodes, &clients], dir.path());
    assert_eq!(program.addr, addr);
    assert_eq!(said(&mut program.stdout, "utterd listening for nodes on "), node_addr);
    each_has_its_own(addr, node_addr).await;
    program.signal(Signal::TERM);
    assert_eq!(program.ended().await, Some(0));
}

/// Each address takes its own kind and knows nothing of the other; both answer pages.
async fn each_has_its_own(addr: SocketAddr, node_addr: SocketAddr) {
    assert_ne!(addr, node_addr);
    for (wrong, path) in [(node_addr, "/ws/session"), (addr, "/ws/node")] {
        match connect_async(format!("ws://{wrong}{path}")).await {
            Err(Error::Http(answer)) => assert_eq!(answer.status(), 404),
            other => panic!("{:?}", other.map(|_| "taken")),
        }
        assert_eq!(http(wrong, "GET", "/readyz", "").await.0, 200);
    }
    let mut node = node(node_addr).await;
    let (mut client, id) = session(addr, &[]).await;
    client.sentence(&id).await;
    let job = node.assignment().await;
    node.answer(&job, "across").await;
    assert_eq!(client.told().await["text_asr"], "across");
}
