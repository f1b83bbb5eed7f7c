//! What operators ask a running server or a closed database: pages and verbs.

mod support;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};
use serde_json::{Value, json};
use support::{SOON, TestServer, http};

/// Runs the program; what it prints, or what it complains of.
async fn utterd(arguments: &[&str]) -> Result<String, String> {
    let ended = tokio::process::Command::new(env!("CARGO_BIN_EXE_utterd")).args(arguments).output();
    let ended = tokio::time::timeout(SOON, ended).await.expect("it does not end").unwrap();
    match ended.status.success() {
        true => Ok(String::from_utf8(ended.stdout).unwrap()),
        false => Err(String::from_utf8(ended.stderr).unwrap()),
    }
}

fn verdict(outlook: &Value, node: &str) -> String {
    let nodes = outlook["nodes"].as_array().unwrap();
    let row = nodes.iter().find(|row| row["node_id"] == node).unwrap();
    row["verdict"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_would_get_a_job_is_told_and_then_true() {
    let server = TestServer::start(|config| config.node.slots_default = 1).await;
    let path = "/api/v1/explain?from=zh&to=en";
    let (_, nobody) = server.get(path).await;
    assert_eq!(
        (&nobody["chosen"], &nobody["why_none"]),
        (&json!(null), &json!("no_node_for_pair"))
    );
    let mut held = server.node("held", &["zh", "en"]).await;
    let _french = server.node("french", &["fr", "en"]).await;
    let (mut client, id) = server.session("zh", "en").await;
    client.sentence(&id).await;
    held.assignment().await;
    let mut drained = server.node("drained", &["zh", "en"]).await;
    http(server.addr(), "POST", "/api/v1/nodes/drained/drain", "").await;
    server.until_node_is(&drained, "draining").await;

    let (status, outlook) = server.get(path).await;
    assert_eq!((status, &outlook["why_none"]), (200, &json!("full")), "{outlook}");
    let verdicts = ["held", "french", "drained"].map(|node| verdict(&outlook, node));
    assert_eq!(verdicts, ["full", "wrong_pair", "draining"]);
    assert_eq!(server.metric("utterd_jobs_live").await, 1.0, "asking makes no job");
    let addr = server.addr().to_string();
    let ask = ["explain", "--from", "zh", "--to", "en", "--server", &addr];
    let text = utterd(&ask).await.unwrap();
    for shown in ["no node (full)", "draining", "undrain to take it back", "wrong_pair"] {
        assert!(text.contains(shown), "no `{shown}` in\n{text}");
    }

    http(server.addr(), "POST", "/api/v1/nodes/drained/undrain", "").await;
    server.until_node_is(&drained, "ready").await;
    let told = utterd(&[&ask[..], &["--json"]].concat()).await.unwrap();
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["chosen"], json!({"node": "drained", "pool": "zh:en"}));
    assert_eq!((verdict(&told, "drained"), &told["could"]), ("could".to_owned(), &json!(1)));
    let (mut other, id) = server.session("zh", "en").await;
    other.sentence(&id).await;
    drained.assignment().await;
    let (_, outlook) = server.get(path).await;
    assert_eq!(verdict(&outlook, "drained"), "full");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outlook_needs_languages_and_looks_at_what_the_job_needs() {
    let server = TestServer::start(|_| {}).await;
    let _node = server.node("n1", &["zh", "en"]).await;
    let pools = r#"[{"name": "acme", "pairs": ["*:*"], "tenants": ["acme & co"]}]"#;
    assert_eq!(http(server.addr(), "PUT", "/api/v1/pools", pools).await.0, 200);
    for (query, status, why) in [
        ("", 400, "`from` is missing: a language tag"),
        ("from=zh", 400, "`to` is missing: a language tag"),
        ("from=zh&to=%00", 400, "`to`: not a valid language tag"),
        (
            "from=auto&to=en",
            400,
            "`from=auto` needs `candidates`: the languages it may be, by commas",
        ),
        (
            "from=zh&to=en&services=x",
            400,
            "`services`: asr, nmt, tts, semantic and tone, by commas",
        ),
    ] {
        let (is, body) = server.get(&format!("/api/v1/explain?{query}")).await;
        assert_eq!((is, body["error"].as_str().unwrap()), (status, why), "{query}");
    }
    let ask = async |query: &str| server.get(&format!("/api/v1/explain?{query}")).await.1;
    let toned = ask("from=zh&to=en&services=asr,tone").await;
    assert_eq!(verdict(&toned, "n1"), "missing_service");
    // Without translation it is the language spoken that counts.
    assert_eq!(toned["needs_pairs"], json!(["zh:zh"]));
    let auto = ask("from=auto&to=en&candidates=zh,fr").await;
    assert_eq!(auto["needs_pairs"], json!(["zh:en", "fr:en"]));
    assert_eq!(verdict(&auto, "n1"), "wrong_pair");
    let theirs = ask("from=zh&to=en&tenant=acme+%26%20co").await;
    assert_eq!(theirs["chosen"], json!({"node": "n1", "pool": "acme"}));
    assert_eq!(ask("from=zh&to=en").await["chosen"]["pool"], "zh:en");
    let addr = server.addr().to_string();
    let theirs = ["explain", "--from", "zh", "--to", "en", "--tenant", "acme & co", "--server"];
    let text = utterd(&[&theirs[..], &[&addr]].concat()).await.unwrap();
    assert!(text.contains("n1 by pool acme"), "{text}");
    let refused = utterd(&["explain", "--from", "z z", "--to", "en", "--server", &addr]).await;
    assert!(refused.unwrap_err().contains("not a valid language tag"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_shows_its_jobs_and_what_its_client_was_not_told() {
    let server = TestServer::start(|_| {}).await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    let mut client = server.client().await;
    client
        .send(json!({"type": "session_init", "client_version": "t", "platform": "web",
            "src_lang": "zh", "tgt_lang": "en", "extensions": ["resume"]}))
        .await;
    let ack = client.expect("session_init_ack").await;
    let id = ack["session_id"].as_str().unwrap();
    let page = format!("/api/v1/sessions/{id}");
    let (_, fresh) = server.get(&page).await;
    assert_eq!((&fresh["state"], &fresh["jobs"]), (&json!("connected"), &json!([])));
    client.sentence(id).await;
    let job = node.assignment().await;
    let open = server.until(|b| b["jobs"][0]["sent"] == true, &page).await;
    assert_eq!((&open["open_jobs"], &open["jobs"][0]["delivered"]), (&json!(1), &json!(false)));
    node.answer(&job, "quetzal").await;
    let told = client.told().await;
    let owed = server.until(|b| b["undelivered"][0].is_object(), &page).await;
    let unacknowledged = &owed["undelivered"][0];
    assert_eq!((&unacknowledged["seq"], &unacknowledged["job_id"]), (&told["seq"], &job["job_id"]));
    assert!(!owed.to_string().contains("quetzal"), "what was said is not shown");
    server.until(|b| b["jobs"][0]["delivered"] == true, &page).await;
    let addr = server.addr().to_string();
    let shown = utterd(&["inspect", "session", id, "--server", &addr]).await.unwrap();
    assert!(shown.contains("not acknowledged:      1\n"), "{shown}");
    let all = utterd(&["inspect", "sessions", "--server", &addr]).await.unwrap();
    assert!(all.contains(id), "{all}");
    let job_page = format!("/api/v1/jobs/{}", job["job_id"].as_str().unwrap());
    let (_, before) = server.get(&job_page).await;
    assert!(before["stamps_us"]["acknowledged"].is_null(), "{before}");
    client.send(json!({"type": "ack", "session_id": id, "seq": told["seq"]})).await;
    let known = server.job_at(&job["job_id"], "acknowledged").await;
    assert!(
        known["stamps_us"]["acknowledged"].as_u64() >= known["stamps_us"]["delivered"].as_u64()
    );

    client.send(json!({"type": "ack", "session_id": id, "seq": told["seq"]})).await;
    server.until(|b| b["undelivered"] == json!([]), &page).await;
    drop(client);
    server.until(|b| b["state"] == "away" && b["peer"].is_null(), &page).await;
    assert_eq!(server.get("/api/v1/sessions/s-0").await.0, 400);
    assert_eq!(server.get("/api/v1/sessions/s-0000000000000001").await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_can_be_inspected_while_it_runs_and_when_it_is_closed() {
    let server = TestServer::start(|_| {}).await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    let (mut client, session) = server.session("zh", "en").await;
    client.sentence(&session).await;
    let assigned = node.assignment().await;
    let job = assigned["job_id"].as_str().unwrap();
    let pools = r#"[{"name": "far", "pairs": ["fr:*"]}, {"name": "near", "pairs": ["zh:*"]}]"#;
    assert_eq!(http(server.addr(), "PUT", "/api/v1/pools", pools).await.0, 200);
    client.send(json!({"type": "room_create", "client_ts": 1, "display_name": "Ada"})).await;
    let room = client.expect("room_create_ack").await["room_code"].as_str().unwrap().to_owned();
    server.until(|b| b["total"] == 1, "/api/v1/rooms").await;
    node.answer(&assigned, "said").await;
    client.told().await;
    server.job_at(&assigned["job_id"], "delivered").await;

    let addr = server.addr().to_string();
    let ask = async |what: &[&str]| {
        utterd(&[&["inspect"], what, &["--server", &addr]].concat()).await.unwrap()
    };
    let shows = |text: &str, all: &[&str]| {
        let missing: Vec<_> = all.iter().filter(|part| !text.contains(*part)).collect();
        assert!(missing.is_empty(), "{missing:?} are not in\n{text}");
    };
    shows(&ask(&["job"]).await, &[job, &session, "zh:en", "succeeded"]);
    let one = ask(&["job", job]).await;
    shows(&one, &["sent to a node:        yes", "result came back:      yes, from n1"]);
    shows(&one, &["sent to the client:    yes", "ms  delivered", "pool zh:en: n1 chosen"]);
    shows(&ask(&["nodes"]).await, &["n1", "ready", "asr nmt tts"]);
    shows(&ask(&["node", "n1"]).await, &["slots in use:          0 of", "zh:en"]);
    shows(&ask(&["pools"]).await, &["yes, but no node is in it", "yes, for 2 pairs", "in force:"]);
    shows(&ask(&["pools"]).await, &["not that of the file: it was replaced while running"]);
    shows(&ask(&["pool", "near"]).await, &["zh:*", "n1"]);
    shows(&ask(&["pool", "en:zh"]).await, &["n1"]);
    shows(&ask(&["rooms"]).await, &[&room]);
    shows(&ask(&["room", &room]).await, &["Ada", &session]);
    let json = ask(&["job", job, "--json"]).await;
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap()["job_id"], job);
    let missing = utterd(&["inspect", "pool", "none", "--server", &addr]).await.unwrap_err();
    assert!(missing.contains("there is no none among the pools"), "{missing}");
    let odd = utterd(&["inspect", "node", "a/../b ?", "--server", &addr]).await.unwrap_err();
    assert!(odd.contains("no such node"), "{odd}");

    let TestServer { server, dir } = server;
    server.stop().await;
    let data = dir.path().to_str().unwrap();
    let ask = async |what: &[&str]| {
        utterd(&[&["inspect"], what, &["--data", data]].concat()).await.unwrap()
    };
    shows(&ask(&["job", job]).await, &["result came back:      yes, from n1", &session]);
    assert_eq!(ask(&["jobs"]).await, "none\n");
    shows(&ask(&["node", "n1"]).await, &["linux"]);
    shows(&ask(&["pools"]).await, &["far", "near"]);
    shows(&ask(&["pool", "near"]).await, &["zh:*"]);
    let gone = utterd(&["inspect", "session", "s-0000000000000001", "--data", data]).await;
    assert!(gone.unwrap_err().contains("is not in the database"));
}

/// Reads one request and answers it with an empty object; the request.
fn overheard(listener: TcpListener) -> String {
    let (mut stream, _) = listener.accept().unwrap();
    let (mut request, mut buffer) = (String::new(), [0; 4_096]);
    while !request.contains("\r\n\r\n") {
        let n = stream.read(&mut buffer).unwrap();
        request += &String::from_utf8_lossy(&buffer[..n]);
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").unwrap();
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_shows_a_key_and_the_help_does_not() {
    for by_flag in [true, false] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let heard = std::thread::spawn(move || overheard(listener));
        let mut command = Command::new(env!("CARGO_BIN_EXE_utterd"));
        command.args(["inspect", "nodes", "--server", &addr]).stdout(Stdio::null());
        match by_flag {
            true => command.args(["--api-key", "uk_axolotl"]),
            false => command.env("UTTERD_KEY", "uk_axolotl"),
        };
        assert!(command.status().unwrap().success());
        assert!(heard.join().unwrap().contains("authorization: Bearer uk_axolotl\r\n"));
    }
    let help = Command::new(env!("CARGO_BIN_EXE_utterd"))
        .args(["inspect", "--help"])
        .env("UTTERD_KEY", "uk_axolotl")
        .output()
        .unwrap();
    assert!(!String::from_utf8(help.stdout).unwrap().contains("axolotl"));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_terminal_top_prints_once() {
    let server = TestServer::start(|_| {}).await;
    let _node = server.node("n1", &["zh", "en"]).await;
    let (_client, session) = server.session("zh", "en").await;
    let addr = server.addr().to_string();
    for arguments in [&["top", "--server", &addr][..], &["top", "--once", "--server", &addr]] {
        let text = utterd(arguments).await.unwrap();
        for shown in ["sessions 1   nodes 1   slots 0/", "n1", &session] {
            assert!(text.contains(shown), "no `{shown}` in\n{text}");
        }
        assert!(!text.contains('\u{1b}'), "no word to a terminal in {text:?}");
    }
    let refused = utterd(&["top", "--once", "--server", "127.0.0.1:1"]).await.unwrap_err();
    assert!(refused.contains("no server answers"), "{refused}");
}

/// The program on a terminal of its own.
struct OnTerminal {
    child: Child,
    master: std::fs::File,
    /// The program's end, held open so that its settings can be looked at.
    slave: std::fs::File,
    screen: Arc<Mutex<String>>,
    before: Termios,
}

impl OnTerminal {
    fn start(arguments: &[&str]) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let size = Winsize { ws_row: 40, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&master, size).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let slave = std::fs::File::options().read(true).write(true).open(name).unwrap();
        let before = tcgetattr(&slave).unwrap();
        let end = || Stdio::from(OwnedFd::from(slave.try_clone().unwrap()));
        let child = Command::new(env!("CARGO_BIN_EXE_utterd"))
            .args(arguments)
            .env("TERM", "xterm")
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap();
        let master = std::fs::File::from(master);
        let screen = Arc::new(Mutex::new(String::new()));
        let (mut from, onto) = (master.try_clone().unwrap(), Arc::clone(&screen));
        std::thread::spawn(move || {
            let mut buffer = [0; 4_096];
            while let Ok(n @ 1..) = from.read(&mut buffer) {
                *onto.lock().unwrap() += &String::from_utf8_lossy(&buffer[..n]);
            }
        });
        Self { child, master, slave, screen, before }
    }

    fn until_shown(&self, text: &str) {
        let began = Instant::now();
        while !self.screen.lock().unwrap().contains(text) {
            let screen = self.screen.lock().unwrap().clone();
            assert!(began.elapsed() < SOON, "no {text:?} on {screen:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// It ends well, and leaves the terminal as it was.
    fn until_ended(mut self) {
        assert!(self.child.wait().unwrap().success());
        // Leaves the other screen, and shows the cursor again.
        self.until_shown("\u{1b}[?1049l");
        self.until_shown("\u{1b}[?25h");
        let after = tcgetattr(&self.slave).unwrap();
        assert_eq!(after.local_modes, self.before.local_modes);
        assert_eq!(after.input_modes, self.before.input_modes);
        assert_eq!(after.output_modes, self.before.output_modes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn top_watches_and_gives_the_terminal_back_however_it_ends() {
    let server = TestServer::start(|_| {}).await;
    let _node = server.node("n1", &["zh", "en"]).await;
    let addr = server.addr().to_string();
    let start = || {
        let top = OnTerminal::start(&["top", "--every", "0.1", "--server", &addr]);
        top.until_shown("\u{1b}[?1049h");
        top.until_shown("n1");
        let raw = tcgetattr(&top.slave).unwrap();
        assert_ne!(raw.local_modes, top.before.local_modes, "keys come one by one");
        top
    };
    let mut top = start();
    let (_client, session) = server.session("zh", "en").await;
    top.until_shown(&session);
    top.master.write_all(b"q").unwrap();
    top.until_ended();
    let mut top = start();
    top.master.write_all(&[3]).unwrap();
    top.until_ended();
    let top = start();
    kill_process(Pid::from_child(&top.child), Signal::TERM).unwrap();
    top.until_ended();
    // A server that goes away is told of, and does not end it.
    let mut top = start();
    server.server.stop().await;
    top.until_shown("not up to date");
    top.master.write_all(b"q").unwrap();
    top.until_ended();
}
