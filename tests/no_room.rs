//! A disk that fills up under load and is freed again: nothing accepted is lost, and the service
//! goes on by itself.

mod support;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{Peer, TestServer, speech};

const LANGUAGES: [&str; 2] = ["zh", "en"];
/// Within this time of space coming back the service must do its work again.
const BACK_WITHIN: Duration = Duration::from_secs(10);

/// A small file system of its own.
struct Tmpfs {
    dir: tempfile::TempDir,
}

impl Tmpfs {
    /// None where mounting is not allowed.
    fn mount(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(dir.path());
        let mounted = mount.output().is_ok_and(|output| output.status.success());
        mounted.then_some(Self { dir })
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Takes all the room there is.
    fn fill(&self) -> PathBuf {
        let path = self.path().join("filler");
        let mut file = std::fs::File::create(&path).unwrap();
        for size in [1 << 20, 64 << 10, 4_096, 1] {
            while file.write_all(&vec![7; size]).is_ok() {}
        }
        path
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: the server of a failed test may still have it open.
        let unmounted = Command::new("umount").arg("-l").arg(self.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

/// What a client saw.
#[derive(Default)]
struct Seen {
    accepted: BTreeMap<u64, u32>,
    results: BTreeMap<u64, u32>,
    refused: u64,
    last_seq: u64,
}

impl Seen {
    fn take(&mut self, message: &Value) {
        let index = message["utterance_index"].as_u64();
        match (message["type"].as_str(), index) {
            (Some("utterance_accepted"), Some(index)) => {
                *self.accepted.entry(index).or_default() += 1;
            }
            (Some("translation_result"), Some(index)) => {
                *self.results.entry(index).or_default() += 1;
                let seq = message["seq"].as_u64().unwrap();
                assert_eq!(seq, self.last_seq + 1, "numbers rise by one");
                self.last_seq = seq;
            }
            (Some("missing_result"), Some(_)) => {
                assert_eq!(message["reason"], "overloaded", "{message}");
                self.refused += 1;
            }
            _ => {}
        }
    }

    /// Everything that came within this time.
    async fn listen(&mut self, client: &mut Peer, time: Duration) {
        let until = Instant::now() + time;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            match tokio::time::timeout(left, client.next()).await {
                Ok(Some(message)) => self.take(&message),
                Ok(None) => panic!("the connection was lost"),
                Err(_) => return,
            }
        }
    }
}

async fn echo(mut node: support::FakeNode) {
    loop {
        let job = node.assignment().await;
        node.answer(&job, "heard").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_loses_nothing_and_is_left_when_there_is_room_again() {
    let Some(disk) = Tmpfs::mount("24m") else {
        return writeln!(std::io::stderr(), "skipped: cannot mount a tmpfs").unwrap();
    };
    let server = TestServer::start(|config| {
        config.server.data = disk.path().join("data");
        config.store.ballast_bytes = 4 << 20;
        config.store.cache_bytes = 8 << 20;
    })
    .await;
    tokio::spawn(echo(server.node("n1", &LANGUAGES).await));
    let mut client = server.client().await;
    client
        .send(json!({"type": "session_init", "client_version": "t", "platform": "cli",
            "src_lang": "zh", "tgt_lang": "en", "extensions": ["resume", "accepted"]}))
        .await;
    let ack = client.expect("session_init_ack").await;
    let session = ack["session_id"].as_str().unwrap().to_owned();
    let (mut seen, mut index, mut filler) = (Seen::default(), 0, None);
    let began = Instant::now();
    let mut freed = None;
    // A second of work, four of a full disk, then until it works again and a little longer.
    loop {
        say(&mut client, &session, index).await;
        index += 1;
        seen.listen(&mut client, Duration::from_millis(25)).await;
        let seq = seen.last_seq;
        client.send(json!({"type": "ack", "session_id": session, "seq": seq})).await;
        let age = began.elapsed();
        if age > Duration::from_secs(1) && filler.is_none() {
            assert!(seen.refused == 0 && !seen.accepted.is_empty());
            filler = Some(disk.fill());
        }
        if age > Duration::from_secs(5)
            && let (Some(path), None) = (&filler, freed)
        {
            assert!(seen.refused > 0, "a full disk takes no work");
            std::fs::remove_file(path).unwrap();
            freed = Some((Instant::now(), index));
        }
        if let Some((at, first)) = freed {
            let works = seen.results.keys().any(|done| *done >= first);
            assert!(works || at.elapsed() < BACK_WITHIN, "the service did not come back");
            if works && at.elapsed() > Duration::from_secs(2) {
                break;
            }
        }
    }
    seen.listen(&mut client, Duration::from_secs(2)).await;
    assert_eq!(server.get("/readyz").await.0, 200);
    for index in seen.accepted.keys() {
        assert_eq!(seen.results.get(index), Some(&1), "utterance {index} was accepted");
    }
    assert!(seen.results.values().all(|times| *times == 1), "none twice");
}

async fn say(client: &mut Peer, session: &str, index: u64) {
    let audio = base64_simd::STANDARD.encode_to_string(speech(500));
    client
        .send(json!({"type": "utterance", "session_id": session, "utterance_index": index,
            "manual_cut": true, "src_lang": "zh", "tgt_lang": "en", "audio": audio,
            "audio_format": "pcm16", "sample_rate": 16_000}))
        .await;
}
