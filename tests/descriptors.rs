//! A server that has no descriptors left: who is there is served on, who comes waits or is told so,
//! and all is well when there are some again.

mod support;

mod torture {
    pub mod daemon;
}

use std::net::SocketAddr;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::json;
use support::{FakeNode, Peer};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use torture::daemon::{Daemon, address, log_of};

/// How long somebody may have to wait once there is room.
const SOON: Duration = Duration::from_secs(5);
/// How long somebody is seen to wait, beyond the server's pause between two tries.
const A_WHILE: Duration = Duration::from_millis(300);

fn allow(daemon: &Daemon, descriptors: u64) {
    let pid = i32::try_from(daemon.pid()).ok().and_then(Pid::from_raw);
    let limit = Rlimit { current: Some(descriptors), maximum: hard(daemon) };
    prlimit(pid, Resource::Nofile, limit).unwrap();
}

/// The most that it may be allowed; none is no bound.
fn hard(daemon: &Daemon) -> Option<u64> {
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", daemon.pid())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    line.split_whitespace().nth(4)?.parse().ok()
}

fn descriptors(daemon: &Daemon) -> u64 {
    std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count() as u64
}

/// A session, opened; its id.
async fn session(addr: SocketAddr) -> (Peer, String) {
    let mut client = Peer::connect(addr, "/ws/session").await;
    client
        .send(json!({"type": "session_init", "client_version": "t", "platform": "cli",
            "src_lang": "zh", "tgt_lang": "en"}))
        .await;
    let ack = client.expect("session_init_ack").await;
    let id = ack["session_id"].as_str().unwrap().to_owned();
    (client, id)
}

async fn is_served(client: &mut Peer, id: &str, node: &mut FakeNode, index: u64) {
    client.utterance(id, index, "zh", "en").await;
    let job = node.assignment().await;
    node.answer(&job, "heard").await;
    assert_eq!(client.expect("translation_result").await["utterance_index"], index);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_descriptors_who_is_there_is_served_and_who_comes_waits() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = fastrand::Rng::new();
    let mut daemon = Daemon::spawn(address(&mut rng), dir.path(), &[]);
    daemon.until_up().await.unwrap();
    let addr = daemon.addr();
    let peer = Peer::connect(addr, "/ws/node").await;
    let mut node = FakeNode::register(peer, "n1", &["zh", "en"]).await;
    let (mut client, id) = session(addr).await;
    is_served(&mut client, &id, &mut node, 0).await;

    allow(&daemon, descriptors(&daemon));
    let waiting: Vec<_> = (0..20).map(|_| tokio::spawn(session(addr))).collect();
    tokio::time::sleep(A_WHILE).await;
    // A number that was free below the limit may have let one or two in.
    let outside = waiting.iter().filter(|session| !session.is_finished()).count();
    assert!(outside >= 15, "{outside} of 20 wait");
    for index in 1..4 {
        is_served(&mut client, &id, &mut node, index).await;
    }

    allow(&daemon, 4_096);
    let all = async {
        for session in waiting {
            let (mut late, id) = session.await.unwrap();
            is_served(&mut late, &id, &mut node, 0).await;
        }
    };
    tokio::time::timeout(SOON, all).await.expect("who waited is let in");
    let log = std::fs::read_to_string(log_of(dir.path())).unwrap();
    assert!(log.contains("cannot accept connections"), "{log}");
    assert!(log.lines().count() < 40, "it tries again at leisure:\n{log}");
    daemon.stop(Duration::from_secs(30)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_are_let_in_than_there_are_descriptors_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = fastrand::Rng::new();
    let mut daemon = Daemon::spawn_with(address(&mut rng), dir.path(), &[], Some(96));
    daemon.until_up().await.unwrap();
    let addr = daemon.addr();
    let mut told = 0;
    let mut inside = Vec::new();
    for _ in 0..60 {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let mut words = String::new();
        let read = stream.read_to_string(&mut words);
        match tokio::time::timeout(Duration::from_millis(20), read).await {
            Ok(_) if words.starts_with("HTTP/1.1 503 ") => told += 1,
            Ok(end) => panic!("{end:?}: {words:?}"),
            Err(_) => inside.push(stream),
        }
    }
    assert_eq!((inside.len(), told), (32, 28), "64 are kept for what else is needed");
    drop(inside);
    let log = std::fs::read_to_string(log_of(dir.path())).unwrap();
    assert!(log.contains("the limit of open files leaves less room"), "{log}");
    assert!(!log.contains("cannot accept connections"), "{log}");
    daemon.stop(Duration::from_secs(30)).await.unwrap();
}
