//! The documents say what the program does: generated tables are up to date, the README's
//! transcript is what the demo prints, and every command it names exists.
//!
//! `UPDATE_DOCS=1 cargo test --test docs` writes the generated tables anew.

mod support;
mod torture {
    pub mod daemon;
}

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::json;
use support::{FakeNode, Peer, TestServer, http};
use torture::daemon::{Daemon, address};

use utterd::config;
use utterd::telemetry::{Metrics, Reference};

fn read(name: &str) -> String {
    fs::read_to_string(path(name)).unwrap()
}

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The part of a document between the two markers of `what`; written anew if asked.
fn generated(document: &str, what: &str, expected: &str) {
    let (begin, end) = (format!("<!-- {what}: begin -->\n"), format!("<!-- {what}: end -->"));
    let text = read(document);
    let from =
        text.find(&begin).unwrap_or_else(|| panic!("{document} has no {begin}")) + begin.len();
    let to = text.find(&end).unwrap_or_else(|| panic!("{document} has no {end}"));
    let expected = format!("{}\n", expected.trim_end());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(path(document), format!("{}{expected}{}", &text[..from], &text[to..])).unwrap();
    } else {
        assert!(text[from..to] == expected, "{document}: the table of {what} is out of date");
    }
}

fn metrics_table() -> String {
    let mut table = "| metric | kind | labels | meaning |\n|---|---|---|---|\n".to_owned();
    for Reference { name, kind, labels, help } in Metrics::reference() {
        table += &format!("| `{name}` | {kind} | {} | {help} |\n", labels.join(", "));
    }
    table
}

fn keys_table() -> String {
    let mut table = "| theirs | here | remark |\n|---|---|---|\n".to_owned();
    for (theirs, ours, remark) in config::reference_keys() {
        let ours = if ours.is_empty() { "–".to_owned() } else { format!("`{ours}`") };
        table += &format!("| `{theirs}` | {ours} | {remark} |\n");
    }
    table
}

#[test]
fn the_manual_lists_every_setting_metric_and_former_key() {
    generated("docs/OPERATING.md", "settings", &config::reference_markdown());
    generated("docs/OPERATING.md", "metrics", &metrics_table());
    generated("docs/OPERATING.md", "former keys", &keys_table());
}

/// All Rust sources below a directory, as one text.
fn sources(below: &str) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(path(below)).unwrap().map(Result::unwrap) {
        let name = format!("{below}/{}", entry.file_name().to_string_lossy());
        match entry.file_type().unwrap().is_dir() {
            true => text += &sources(&name),
            false if name.ends_with(".rs") => text += &read(&name),
            false => {}
        }
    }
    text
}

#[test]
fn every_promise_is_guarded_by_a_check_that_exists() {
    let text = read("docs/DURABILITY.md");
    let rows: Vec<&str> =
        text.lines().filter(|line| line.starts_with("| I") || line.starts_with("| L")).collect();
    assert_eq!(rows.len(), 25 + 5);
    let (checks, judges) = (sources("src") + &sources("tests"), sources("src/sim"));
    for row in rows {
        let number = row[2..].split(' ').next().unwrap();
        let guards = row.rsplit('|').nth(1).unwrap();
        assert!(!guards.trim().is_empty(), "{number} is guarded by nothing");
        for name in guards.split('`').skip(1).step_by(2).filter(|name| !name.contains("::")) {
            let exists = match name.contains('/') {
                true => path(name).exists(),
                false => checks.contains(&format!("fn {name}(")),
            };
            assert!(exists, "{number} names `{name}`, which is not there");
        }
        let judged = guards.contains(&format!("judge {number}"));
        assert!(!judged || judges.contains(&format!("{number}: ")), "no judge names {number}");
    }
}

/// Ids and numbers differ from run to run; everything else must not.
fn normalised(transcript: &str) -> Vec<String> {
    let word = |w: &str| {
        let id = w.starts_with("job-") || w.starts_with("node-") || w.starts_with("s-");
        let keep = |c: char| if c.is_ascii_digit() { '0' } else { c };
        let digits = || w.chars().map(keep).collect::<String>().replace("00", "0");
        if id { w.split('-').next().unwrap_or(w).to_owned() } else { digits() }
    };
    let line = |l: &str| l.split_whitespace().map(word).collect::<Vec<_>>().join(" ");
    let lines = transcript.lines().map(line);
    lines.map(|l| l.replace("00", "0").replace("00", "0")).collect()
}

#[test]
fn the_transcript_in_the_readme_is_what_the_demo_prints() {
    let shown = shown("$ cargo run --release -- demo\n");
    let (shown, serving) = shown.trim_end().rsplit_once('\n').unwrap();
    assert!(serving.starts_with("serving on http://127.0.0.1:5010"), "{serving}");
    let demo = Command::new(env!("CARGO_BIN_EXE_utterd"))
        .args(["demo", "--once", "--listen", "127.0.0.1:0"])
        .output()
        .unwrap();
    assert!(demo.status.success(), "{demo:?}");
    let printed = String::from_utf8(demo.stdout).unwrap();
    assert_eq!(normalised(&printed), normalised(shown), "printed:\n{printed}");
}

/// What the README shows a command to print.
fn shown(command: &str) -> String {
    let readme = read("README.md");
    let begin = readme.find(command).unwrap_or_else(|| panic!("the README has no {command}"));
    let shown = &readme[begin..];
    shown[shown.find('\n').unwrap() + 1..shown.find("```").unwrap()].to_owned()
}

/// Ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// The same story in a fifth of the time: only numbers differ.
#[tokio::test(flavor = "multi_thread")]
async fn the_session_in_the_readme_outlives_its_connection_and_its_server() {
    let dir = tempfile::tempdir().unwrap();
    let addr = address(&mut fastrand::Rng::new());
    let settings = [("UTTERD_SEGMENTER_MAX_DURATION_MS", "2000")];
    let mut server = Daemon::spawn(addr, dir.path(), &settings);
    server.until_up().await.unwrap();
    let utterd = || Command::new(env!("CARGO_BIN_EXE_utterd"));
    let node = utterd()
        .args(["node", "--engine", "echo", "--url", &format!("ws://{addr}/ws/node")])
        .stdout(Stdio::null())
        .spawn();
    let _node = Running(node.unwrap());
    tokio::time::sleep(Duration::from_millis(500)).await;
    let url = format!("ws://{addr}/ws/session");
    let mut speaker = utterd()
        .args(["speak", "--generated", "3.6", "--from", "en", "--to", "es"])
        .args(["--drop-after", "0.9", "--url", &url])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(speaker.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut printed = Vec::new();
    while !printed.last().is_some_and(|line: &String| line.contains("#0 translated")) {
        printed.push(lines.next().expect("the speaker ends early"));
    }
    server.kill();
    let mut server = Daemon::spawn(addr, dir.path(), &settings);
    server.until_up().await.unwrap();
    printed.extend(lines);
    let printed = printed.join("\n");
    assert!(speaker.wait().unwrap().success(), "{printed}");
    let shown = shown("$ cargo run --release -- speak --generated ");
    assert_eq!(normalised(&printed), normalised(shown.trim_end()), "printed:\n{printed}");
    server.stop(Duration::from_secs(30)).await.unwrap();
}

/// What people ask after an incident, and the command that answers.
const QUESTIONS: [(&str, &[&str]); 4] = [
    ("Was the pool configuration there, and was it seen?", &["inspect", "pools"]),
    ("Why was there no node?", &["explain", "--from", "zh", "--to", "en"]),
    ("Was the job sent? Did the result come back?", &["inspect", "job", "JOB"]),
    ("Did the client get it?", &["inspect", "session", "SESSION"]),
];

/// What an incident left.
struct Incident {
    session: String,
    job: String,
    /// Connections that last as long as this.
    _there: (FakeNode, FakeNode, Peer),
}

/// A pool that asks for what no node has; a client whose result came after it had gone; a node that
/// died, one that was drained and forgotten, one for other languages; a client that waits.
async fn incident(server: &TestServer) -> Incident {
    let pools = r#"[{"name": "east", "pairs": ["zh:*"], "required_services": ["semantic"]}]"#;
    assert_eq!(http(server.addr(), "PUT", "/api/v1/pools", pools).await.0, 200);
    let mut gone = server.node("gpu-a", &["zh", "en"]).await;
    let mut client = server.client().await;
    client
        .send(json!({"type": "session_init", "client_version": "1.4", "platform": "web",
            "src_lang": "zh", "tgt_lang": "en", "trace_id": "visit", "extensions": ["resume"]}))
        .await;
    let session = client.expect("session_init_ack").await["session_id"].clone();
    let session = session.as_str().unwrap().to_owned();
    client.sentence(&session).await;
    let job = gone.assignment().await;
    drop(client);
    server.until(|b| b["state"] == "away", &format!("/api/v1/sessions/{session}")).await;
    gone.answer(&job, "said").await;
    server.job_at(&job["job_id"], "durable").await;
    let drained = server.node("gpu-b", &["zh", "en"]).await;
    http(server.addr(), "POST", "/api/v1/nodes/gpu-b/drain", "").await;
    server.until_node_is(&drained, "draining").await;
    drop(gone);
    let french = server.node("gpu-c", &["fr", "en"]).await;
    server.until(|b| b["state"] == "offline", "/api/v1/nodes/gpu-a").await;
    let (mut waits, id) = server.session("zh", "en").await;
    waits.sentence(&id).await;
    server.until(|b| b["jobs"]["waiting"] == 1, "/api/v1/stats").await;
    let job = job["job_id"].as_str().unwrap().to_owned();
    Incident { session, job, _there: (drained, french, waits) }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_incident_is_answered_by_one_command_a_question() {
    let server = TestServer::start(|_| {}).await;
    let Incident { session, job, _there } = incident(&server).await;
    let mut told = String::new();
    for (question, command) in QUESTIONS {
        let named = |word: &&str| match *word {
            "SESSION" => session.clone(),
            "JOB" => job.clone(),
            word => word.to_owned(),
        };
        let command: Vec<String> = command.iter().map(named).collect();
        let ended = tokio::process::Command::new(env!("CARGO_BIN_EXE_utterd"))
            .args(&command)
            .args(["--server", &server.addr().to_string()])
            .output();
        let ended = ended.await.unwrap();
        assert!(ended.status.success(), "{ended:?}");
        let answer = String::from_utf8(ended.stdout).unwrap();
        let command = command.join(" ");
        told += &format!("**{question}**\n\n```\n$ utterd {command}\n{answer}```\n\n");
    }
    let document = "docs/OPERATING.md";
    if std::env::var_os("UPDATE_DOCS").is_some() {
        return generated(document, "incident", &told);
    }
    let text = read(document);
    let (_, shown) = text.split_once("<!-- incident: begin -->\n").unwrap();
    let (shown, _) = shown.split_once("<!-- incident: end -->").unwrap();
    assert_eq!(normalised(told.trim_end()), normalised(shown.trim_end()), "printed:\n{told}");
}

#[test]
fn the_readmes_test_command_is_what_ci_runs() {
    let readme = read("README.md");
    assert!(readme.contains("\ncargo test\n"));
    assert!(read(".ci/run").lines().any(|line| line == "cargo test"));
}

#[test]
fn every_page_of_the_documentation_exists_and_every_link_leads_somewhere() {
    for document in [
        "README.md",
        "docs/ARCHITECTURE.md",
        "docs/PROTOCOL.md",
        "docs/OPERATING.md",
        "docs/CHANGELOG.md",
    ] {
        let text = read(document);
        let dir = path(document).parent().unwrap().to_owned();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if !link.starts_with("http") && !link.starts_with('#') {
                let target = dir.join(link.split('#').next().unwrap());
                assert!(target.exists(), "{document} links to {link}");
            }
        }
    }
}
