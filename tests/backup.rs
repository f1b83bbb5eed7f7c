//! A copy of the database of a running server: what is in it is what there was at one moment, and a
//! server begins on it.

mod support;

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use serde_json::json;
use support::{FakeNode, TestServer, config_for, http, speech};
use utterd::server::Server;
use utterd::store::{JobView, open_read_only};

fn backup(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_utterd"));
    command.arg("backup").args(args).env_remove("UTTERD_CONFIG").output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8([&output.stdout[..], &output.stderr[..]].concat()).unwrap()
}

async fn work(mut node: FakeNode) {
    while let Some(message) = node.peer.next().await {
        if message["type"] == "job_assign" {
            node.answer(&message, "text").await;
        }
    }
}

/// Speaks until told to stop; how many utterances were answered. None fails.
async fn speak(server: Arc<TestServer>, stop: Arc<AtomicBool>) -> u64 {
    let (mut client, id) = server.session("zh", "en").await;
    let (audio, mut answered) = (speech(200), 0);
    while !stop.load(SeqCst) {
        client.chunk(&id, 0, &audio, true).await;
        let told = client.told().await;
        assert_eq!(
            (&told["type"], &told["utterance_index"]),
            (&json!("translation_result"), &json!(answered))
        );
        answered += 1;
    }
    answered
}

/// What must be so in every copy: each session's jobs are there without a gap from the first to the
/// last that was accepted, each once, ended or not.
fn is_of_one_moment(copy: &Path) -> u64 {
    let db = open_read_only(copy).unwrap();
    let mut owed = 0;
    for session in db.sessions().unwrap() {
        let frames = db.outbox(session.id, 0, 1_000).unwrap();
        for pair in frames.windows(2) {
            assert_eq!(pair[0].seq + 1, pair[1].seq, "a frame is missing in the middle");
        }
        for frame in &frames {
            // A frame is numbered in the commit that ends its job.
            let ended = db.job(frame.job).unwrap();
            assert!(
                matches!(ended, Some(JobView::Ended(_))),
                "{:?} is owed and not ended",
                frame.job
            );
            owed += 1;
        }
    }
    for job in db.jobs(10_000).unwrap() {
        assert!(matches!(db.job(job.id).unwrap(), Some(JobView::Live(_))), "{} is in both", job.id);
    }
    assert_eq!(db.quarantined().unwrap(), 0);
    owed
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_made_under_load_is_of_one_moment_and_a_server_goes_on_from_it() {
    let server = Arc::new(TestServer::start(|_| {}).await);
    let mut workers = Vec::new();
    for id in ["n1", "n2"] {
        workers.push(tokio::spawn(work(server.node(id, &["zh", "en"]).await)));
    }
    // Of a language that no node knows: its job waits, with its audio.
    let (mut waiting, id) = server.session("ja", "ko").await;
    waiting.chunk(&id, 0, &speech(700), true).await;
    server.until(|b| b["jobs"]["waiting"] == 1, "/api/v1/stats").await;
    let pools = json!([{"name": "kept", "pairs": ["zh:en"]}]).to_string();
    assert_eq!(http(server.addr(), "PUT", "/api/v1/pools", &pools).await.0, 200);

    let stop = Arc::new(AtomicBool::new(false));
    let speakers: Vec<_> =
        (0..4).map(|_| tokio::spawn(speak(Arc::clone(&server), Arc::clone(&stop)))).collect();
    server.until(|b| b["jobs"]["live"].as_u64() >= Some(2), "/api/v1/stats").await;
    let (dir, addr) = (tempfile::tempdir().unwrap(), server.addr().to_string());
    let mut last = None;
    for n in 0..5 {
        let copy = dir.path().join(format!("copy-{n}"));
        let (to, addr) = (copy.clone(), addr.clone());
        let made = move || backup(&[to.to_str().unwrap(), "--server", &addr]);
        let output = tokio::task::spawn_blocking(made).await.unwrap();
        assert!(output.status.success(), "{}", said(&output));
        is_of_one_moment(&copy);
        last = Some(copy);
    }
    let before = server.metric("utterd_store_commits").await;
    server.until_metric_is_above("utterd_store_commits", before).await;
    stop.store(true, SeqCst);
    let mut answered = 0;
    for speaker in speakers {
        answered += speaker.await.unwrap();
    }
    assert!(answered > 0);
    let left = std::fs::read_dir(server.dir.path()).unwrap().map(|e| e.unwrap().file_name());
    let left: Vec<_> = left.filter(|n| n.to_string_lossy().starts_with("backup")).collect();
    assert!(left.is_empty(), "{left:?}");

    // The verb that reads closed databases reads it, and a server begins on it.
    let copy = last.unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_utterd"))
        .args(["inspect", "jobs", "--data", copy.to_str().unwrap()])
        .output()
        .unwrap();
    assert!(output.status.success() && said(&output).contains("ja"), "{}", said(&output));
    let home = tempfile::tempdir().unwrap();
    std::fs::copy(&copy, home.path().join("utterd.redb")).unwrap();
    let config = config_for(home.path());
    let restored = TestServer { server: Server::start(config).await.unwrap(), dir: home };
    let (_, pools) = restored.get("/api/v1/pools").await;
    assert_eq!(pools["config"][0]["name"], "kept");
    let mut node = restored.node("n3", &["ja", "ko"]).await;
    let job = node.assignment().await;
    assert_eq!((&job["src_lang"], support::audio_of(&job)), (&json!("ja"), speech(700)));
    node.answer(&job, "after all").await;
    restored.job_at(&job["job_id"], "durable").await;
    workers.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_there_is_not_replaced_and_a_failed_copy_leaves_nothing() {
    let server = TestServer::start(|_| {}).await;
    let (dir, addr) = (tempfile::tempdir().unwrap(), server.addr().to_string());
    let path = dir.path().join("copy");
    let file = path.to_str().unwrap();
    std::fs::write(&path, "dear").unwrap();
    let output = backup(&[file, "--server", &addr]);
    assert!(!output.status.success() && said(&output).contains("--force"), "{}", said(&output));
    assert_eq!(std::fs::read(&path).unwrap(), b"dear");
    let output = backup(&[file, "--server", "127.0.0.1:1", "--force"]);
    assert!(!output.status.success());
    assert_eq!(std::fs::read(&path).unwrap(), b"dear");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "a part is left");
    let output = backup(&[file, "--server", &addr, "--force"]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(is_of_one_moment(&path), 0);
    // A database that is in use is copied by its server, a closed one without.
    let data = server.dir.path().to_str().unwrap().to_owned();
    let second = dir.path().join("second");
    let output = backup(&[second.to_str().unwrap(), "--data", &data]);
    assert_eq!(output.status.code(), Some(65), "{}", said(&output));
    assert!(!second.exists());
    server.server.stop().await;
    let output = backup(&[second.to_str().unwrap(), "--data", &data]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(is_of_one_moment(&second), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_keeps_nothing_has_nothing_to_copy() {
    let server = TestServer::start(|c| c.store.enabled = false).await;
    assert_eq!(http(server.addr(), "POST", "/api/v1/backup", "").await.0, 409);
}
