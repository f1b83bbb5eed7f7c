//! A client that comes back to its session: nothing accepted is lost, nothing is told twice, and
//! what cannot be kept is said.

mod support;

mod torture {
    pub mod daemon;
}

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use support::{FakeNode, Peer, QUIET, SOON, TestServer, audio_of, speech};
use tempfile::TempDir;
use tokio::task::JoinSet;
use torture::daemon::{Daemon, address};

const LANGUAGES: [&str; 2] = ["zh", "en"];
const LETTERS: &str = "/api/v1/dead-letters";

/// A session, its connection, and the way back to it.
struct Client {
    peer: Peer,
    session: String,
    epoch: u64,
    secret: String,
}

impl Client {
    async fn open(mut peer: Peer) -> Self {
        peer.send(json!({"type": "session_init", "client_version": "t", "platform": "cli",
            "src_lang": "zh", "tgt_lang": "en", "audio_format": "pcm16", "sample_rate": 16_000,
            "extensions": ["resume", "accepted", "audio_ack"]}))
            .await;
        let ack = peer.expect("session_init_ack").await;
        let text = |key: &str| ack[key].as_str().unwrap().to_owned();
        let (session, secret) = (text("session_id"), text("resume_secret"));
        assert_eq!(secret.len(), 64);
        Self { peer, session, epoch: ack["epoch"].as_u64().unwrap(), secret }
    }

    /// The session's own words to come back.
    fn resume(&self, last_seq: u64) -> Value {
        json!({"type": "session_resume", "session_id": self.session, "epoch": self.epoch,
            "resume_secret": self.secret, "last_seq": last_seq})
    }

    /// Comes back over another connection; the answer.
    async fn back(&mut self, peer: Peer, last_seq: u64) -> Value {
        self.peer = peer;
        self.peer.send(self.resume(last_seq)).await;
        self.peer.expect("session_resume_ack").await
    }

    /// Comes back, and everything is there.
    async fn recover(&mut self, peer: Peer, last_seq: u64) -> Value {
        let ack = self.back(peer, last_seq).await;
        assert_eq!((&ack["recovered"], &ack["from_seq"]), (&json!(true), &json!(last_seq + 1)));
        assert_eq!(ack["epoch"], self.epoch);
        ack
    }

    async fn ack(&mut self, seq: u64) {
        self.peer.send(json!({"type": "ack", "session_id": self.session, "seq": seq})).await;
    }

    async fn chunk(&mut self, seq: u64, audio: &[u8], is_final: bool) {
        self.peer.chunk(&self.session, seq, audio, is_final).await;
    }

    async fn utterance(&mut self, index: u64, key: &str, audio: &[u8]) {
        let audio = base64_simd::STANDARD.encode_to_string(audio);
        self.peer
            .send(json!({"type": "utterance", "session_id": self.session,
                "utterance_index": index, "manual_cut": true, "src_lang": "zh", "tgt_lang": "en",
                "audio": audio, "audio_format": "pcm16", "sample_rate": 16_000,
                "idempotency_key": key}))
            .await;
    }

    async fn accepted(&mut self) -> Value {
        self.peer.expect("utterance_accepted").await
    }

    /// The next last word, which has this number, of this utterance.
    async fn word(&mut self, seq: u64, index: u64) -> Value {
        let word = self.peer.told().await;
        assert_eq!(word["epoch"], self.epoch, "{word}");
        assert_eq!((&word["seq"], &word["utterance_index"]), (&json!(seq), &json!(index)));
        word
    }
}

/// Speech whose every 20 ms differ.
fn marked(packets: std::ops::Range<u16>) -> Vec<u8> {
    let mut audio = speech(20 * packets.len());
    for (packet, number) in audio.chunks_mut(640).zip(packets) {
        packet[..2].copy_from_slice(&number.to_le_bytes());
    }
    audio
}

async fn world() -> (TestServer, FakeNode, Client) {
    let server = TestServer::start(|_| {}).await;
    let node = server.node("n1", &LANGUAGES).await;
    let client = Client::open(server.client().await).await;
    (server, node, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_utterance_interrupted_by_a_lost_connection_reaches_the_node_whole() {
    let (server, mut node, mut client) = world().await;
    client.chunk(1, &marked(0..5), false).await;
    client.chunk(2, &marked(5..10), false).await;
    let came = "utterd_frames_received_total{socket=\"session\",type=\"audio_chunk\"}";
    server.until_metric(came, 2.0).await;
    let ack = client.recover(server.client().await, 0).await;
    assert_eq!(ack["chunks_through"], 2);
    // What it has is ignored when it comes again.
    client.chunk(2, &marked(5..10), false).await;
    client.chunk(3, &marked(10..15), false).await;
    server.until_metric(came, 4.0).await;
    let ack = client.recover(server.client().await, 0).await;
    assert_eq!(ack["chunks_through"], 3);
    client.chunk(4, &[], true).await;
    let job = node.assignment().await;
    assert!(audio_of(&job) == marked(0..15), "the audio is not whole");
    assert_eq!(client.accepted().await["job_id"], job["job_id"]);
    let through = client.peer.expect("audio_ack").await["through"].as_u64().unwrap();
    assert!((3..=4).contains(&through), "{through}");
    node.answer(&job, "whole").await;
    assert_eq!(client.word(1, 0).await["text_asr"], "whole");
    node.has_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_utterance_interrupted_by_a_kill_is_said_again_from_where_it_was_cut() {
    let mut killed = Killed::start().await;
    let mut node = killed.node().await;
    let mut client = Client::open(killed.peer("/ws/session").await).await;
    client.chunk(1, &marked(0..5), true).await;
    let job = node.assignment().await;
    client.accepted().await;
    assert_eq!(client.peer.expect("audio_ack").await["through"], 1);
    client.chunk(2, &marked(5..10), false).await;
    killed.again().await;
    let mut node = killed.node().await;
    let ack = client.recover(killed.peer("/ws/session").await, 0).await;
    assert_eq!(ack["chunks_through"], 1);
    // What is safe is said again: the first time may not have arrived.
    assert_eq!(client.peer.expect("audio_ack").await["through"], 1);
    let open = json!([{"utterance_index": 0, "job_id": job["job_id"]}]);
    assert_eq!(ack["utterances"], open);
    let again = node.assignment().await;
    assert_eq!(again["job_id"], job["job_id"]);
    for seq in 1..=3 {
        let packets = 5 * (seq - 1)..5 * seq;
        client.chunk(seq.into(), &marked(packets), seq == 3).await;
    }
    let second = node.assignment().await;
    assert!(audio_of(&second) == marked(5..15), "the audio is not whole");
    assert_eq!(client.accepted().await["utterance_index"], 1);
    // Out of order at the node, in order at the client.
    node.answer(&second, "second").await;
    node.answer(&again, "first").await;
    assert_eq!(client.word(1, 0).await["text_asr"], "first");
    assert_eq!(client.word(2, 1).await["text_asr"], "second");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_passed_over_before_a_restart_is_late_after_it() {
    let settings = |config: &mut utterd::config::Config| {
        config.server.drain_ms = 0;
        config.session.result_gap_wait_ms = 50;
    };
    let server = TestServer::start(settings).await;
    let mut node = server.node("n1", &LANGUAGES).await;
    let mut client = Client::open(server.client().await).await;
    client.utterance(0, "first", &speech(100)).await;
    client.utterance(1, "second", &speech(100)).await;
    node.assignment_of(0).await;
    let second = node.assignment_of(1).await;
    for index in 0..2 {
        assert_eq!(client.accepted().await["utterance_index"], index);
    }
    node.answer(&second, "second").await;
    assert_eq!(client.peer.told().await["reason"], "gap_timeout");
    client.word(1, 1).await;
    let server = server.restart(settings).await;
    let mut node = server.node("n1", &LANGUAGES).await;
    client.recover(server.client().await, 1).await;
    let first = node.assignment_of(0).await;
    node.answer(&first, "first").await;
    let word = client.word(2, 0).await;
    assert_eq!((&word["text_asr"], &word["late"]), (&json!("first"), &json!(true)));
}

/// Of the program: an end marker cuts at once, and jobs wait for the node of the next life.
const SETTINGS: [(&str, &str); 2] =
    [("UTTERD_SEGMENTER_HANGOVER_MANUAL_MS", "0"), ("UTTERD_JOB_PENDING_MS", "60000")];

/// The program itself, which is killed.
struct Killed {
    daemon: Daemon,
    addr: SocketAddr,
    dir: TempDir,
}

impl Killed {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let addr = address(&mut fastrand::Rng::new());
        let mut daemon = Daemon::spawn(addr, dir.path(), &SETTINGS);
        daemon.until_up().await.unwrap();
        Self { daemon, addr, dir }
    }

    /// Kills it and starts it again.
    async fn again(&mut self) {
        self.daemon.kill();
        self.daemon = Daemon::spawn(self.addr, self.dir.path(), &SETTINGS);
        self.daemon.until_up().await.unwrap();
    }

    /// A connection, as soon as there is a server that takes it.
    async fn peer(&self, path: &str) -> Peer {
        let until = tokio::time::Instant::now() + SOON;
        let url = format!("ws://{}{path}", self.addr);
        while let Err(refused) = tokio_tungstenite::connect_async(url.as_str()).await {
            assert!(tokio::time::Instant::now() < until, "{refused}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Peer::connect(self.addr, path).await
    }

    async fn node(&self) -> FakeNode {
        FakeNode::register(self.peer("/ws/node").await, "n1", &LANGUAGES).await
    }
}

/// The node, when the server was started again.
async fn back(server: &TestServer, node: FakeNode) -> FakeNode {
    let id = node.id.clone();
    drop(node);
    server.node(&id, &LANGUAGES).await
}

#[tokio::test(flavor = "multi_thread")]
async fn results_are_told_again_until_they_are_acknowledged() {
    let (server, mut node, mut client) = world().await;
    for index in 0..4 {
        client.utterance(index, &format!("k{index}"), &speech(100)).await;
        let job = node.assignment_of(index).await;
        node.answer(&job, &format!("t{index}")).await;
        client.word(index + 1, index).await;
    }
    let mut before = Vec::new();
    for _ in 0..2 {
        client.recover(server.client().await, 1).await;
        let mut words = Vec::new();
        for seq in 2..=4 {
            words.push(client.word(seq, seq - 1).await);
        }
        assert!(before.is_empty() || before == words, "it is told otherwise");
        before = words;
    }
    client.ack(3).await;
    client.recover(server.client().await, 3).await;
    client.word(4, 3).await;
    // Numbers go on after a restart; what was acknowledged does not come again, nor is it hidden.
    let server = server.restart(|_| {}).await;
    let mut node = back(&server, node).await;
    client.recover(server.client().await, 3).await;
    assert_eq!(client.word(4, 3).await, before[2]);
    client.utterance(4, "k4", &speech(100)).await;
    let job = node.assignment_of(4).await;
    node.answer(&job, "t4").await;
    client.word(5, 4).await;
    let ack = client.back(server.client().await, 1).await;
    assert_eq!((&ack["recovered"], &ack["reason"]), (&json!(false), &json!("gap")));
    assert_eq!(ack["from_seq"], 4);
    client.word(4, 3).await;
    client.word(5, 4).await;
    assert!(client.peer.all("translation_result").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_connection_has_the_session_and_a_stranger_has_not() {
    let (server, mut node, mut client) = world().await;
    client.utterance(0, "k", &speech(100)).await;
    let job = node.assignment().await;
    client.accepted().await;
    for (key, wrong) in [
        ("resume_secret", json!("0".repeat(64))),
        ("resume_secret", json!(&client.secret[..62])),
        ("epoch", json!(client.epoch + 1)),
        ("session_id", json!("s-0000000000000001")),
        ("last_seq", json!(1)),
    ] {
        let mut stranger = server.client().await;
        let mut claim = client.resume(0);
        claim[key] = wrong;
        stranger.send(claim).await;
        let ack = stranger.expect("session_resume_ack").await;
        assert_eq!(ack["recovered"], false, "{key}: {ack}");
        assert_eq!((&ack["reason"], &ack["from_seq"]), (&json!("unknown_session"), &Value::Null));
        // It may open one of its own there.
        let own = Client::open(stranger).await;
        assert_ne!(own.session, client.session);
    }
    // None of that touched the session.
    let older = std::mem::replace(&mut client.peer, server.client().await);
    client.peer.send(client.resume(0)).await;
    let ack = client.peer.expect("session_resume_ack").await;
    assert_eq!(ack["recovered"], true, "{ack}");
    let mut older = older;
    assert_eq!(older.close_code().await, Some(4409));
    node.answer(&job, "to the newest").await;
    client.word(1, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_finds_its_job_and_another_body_under_it_is_refused() {
    let (server, mut node, mut client) = world().await;
    client.utterance(0, "k", &speech(100)).await;
    let job = node.assignment().await;
    assert_eq!(client.accepted().await["job_id"], job["job_id"]);
    // Under its own number and under another; over this connection and the next.
    client.utterance(0, "k", &speech(100)).await;
    client.recover(server.client().await, 0).await;
    client.utterance(0, "k", &speech(100)).await;
    client.utterance(1, "k", &speech(100)).await;
    node.has_nothing().await;
    client.utterance(2, "k", &speech(120)).await;
    let error = client.peer.expect("error").await;
    assert_eq!(error["code"], "IDEMPOTENCY_CONFLICT");
    node.has_nothing().await;
    node.answer(&job, "once").await;
    client.word(1, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_lost_in_the_middle_of_a_turn_costs_no_slice_and_no_order() {
    let server = TestServer::start(|c| c.segmenter.max_duration_ms = 200).await;
    let mut first = server.node("n1", &LANGUAGES).await;
    let mut client = Client::open(server.client().await).await;
    client.chunk(1, &marked(0..11), false).await;
    client.chunk(2, &marked(11..22), false).await;
    let early = [first.assignment_of(0).await, first.assignment_of(1).await];
    first.answer(&early[0], "slice 0").await;
    client.word(1, 0).await;
    let mut second = server.node("n2", &LANGUAGES).await;
    drop(first);
    let moved = second.assignment_of(1).await;
    assert_eq!(moved["job_id"], early[1]["job_id"]);
    client.chunk(3, &marked(22..26), true).await;
    let last = second.assignment_of(2).await;
    let heard = [audio_of(&early[0]), audio_of(&moved), audio_of(&last)].concat();
    assert!(heard == marked(0..26), "the audio is not whole");
    second.answer(&last, "slice 2").await;
    second.answer(&moved, "slice 1").await;
    assert_eq!(client.word(2, 1).await["text_asr"], "slice 1");
    assert_eq!(client.word(3, 2).await["text_asr"], "slice 2");
}

/// Fills the connection of a client that does not read: answers of 300 kB to `n` utterances.
async fn flood(server: &TestServer, node: &mut FakeNode, client: &mut Client, n: u64) {
    for index in 0..n {
        client.utterance(index, &format!("k{index}"), &speech(40)).await;
    }
    // A slot that frees while the queue is looked through may go to a later one.
    let mut given = std::collections::BTreeMap::new();
    for index in 0..n {
        while !given.contains_key(&index) {
            let job = node.assignment().await;
            given.insert(job["utterance_index"].as_u64().unwrap(), job);
        }
        let job = given.remove(&index).unwrap();
        let mut answer = node.result(&job, &format!("t{index}"));
        answer["tts_audio"] = "QUJD".repeat(100_000).into();
        node.peer.send(answer).await;
        server.job_at(&job["job_id"], "durable").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_gets_every_result_from_the_disk_when_it_reads_again() {
    let (server, mut node, mut client) = world().await;
    flood(&server, &mut node, &mut client, 40).await;
    for index in 0..40 {
        let word = client.word(index + 1, index).await;
        assert_eq!(word["text_asr"], format!("t{index}"));
    }
    assert!(server.metric("utterd_outbox_replays_total").await > 0.0, "nothing waited on disk");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stood_still_loses_its_connection_and_no_result() {
    let server = TestServer::start(|c| c.transport.write_progress_timeout_ms = 500).await;
    let mut node = server.node("n1", &LANGUAGES).await;
    let mut client = Client::open(server.client().await).await;
    flood(&server, &mut node, &mut client, 40).await;
    server.until_metric("utterd_connections{socket=\"session\"}", 0.0).await;
    client.recover(server.client().await, 0).await;
    for index in 0..40 {
        client.word(index + 1, index).await;
        client.ack(index + 1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn results_nobody_came_for_in_time_become_dead_letters() {
    let change = |c: &mut utterd::config::Config| {
        c.session.resume_window_ms = 60_000;
        c.store.outbox_retention_ms = 1;
        c.store.expiry_pause_ms = 0;
    };
    let server = TestServer::start(change).await;
    let mut node = server.node("n1", &LANGUAGES).await;
    let mut client = Client::open(server.client().await).await;
    client.utterance(0, "k0", &speech(100)).await;
    let job = node.assignment_of(0).await;
    node.answer(&job, "unheard").await;
    client.word(1, 0).await;
    client.peer = server.client().await;
    server.until_metric("utterd_session_resumes_total{event=\"detached\"}", 1.0).await;
    server.advance(Duration::from_millis(59_000));
    tokio::time::sleep(QUIET).await;
    client.recover(server.client().await, 0).await;
    client.word(1, 0).await;
    client.peer = server.client().await;
    server.until_metric("utterd_session_resumes_total{event=\"detached\"}", 2.0).await;
    server.advance(Duration::from_millis(61_000));
    server.until(|body| body["total"] == 0, "/api/v1/sessions").await;
    let ack = client.back(server.client().await, 0).await;
    assert_eq!((&ack["recovered"], &ack["reason"]), (&json!(false), &json!("unknown_session")));
    // Old rows go with later transactions.
    let mut other = Client::open(client.peer).await;
    let until = tokio::time::Instant::now() + SOON;
    for index in 0.. {
        other.utterance(index, &format!("o{index}"), &speech(100)).await;
        other.accepted().await;
        let (_, body) = server.get(LETTERS).await;
        let mut letters = body["dead_letters"].as_array().unwrap().iter();
        if let Some(letter) = letters.find(|l| l["job_id"] == job["job_id"]) {
            assert_eq!(letter["why"], "unclaimed");
            assert_eq!(letter["frame"]["text_asr"], "unheard");
            return;
        }
        assert!(tokio::time::Instant::now() < until, "no letter: {body}");
    }
}

/// Sessions of the crowd, and utterances of each.
const CROWD: usize = 200;
const EACH: u64 = 3;

/// Answers what it is given with session and utterance, as long as `n` lasts.
async fn crowd_node(mut node: FakeNode, n: usize) -> FakeNode {
    for _ in 0..n {
        let job = node.assignment().await;
        let text = format!("{} {}", job["session_id"].as_str().unwrap(), job["utterance_index"]);
        node.answer(&job, &text).await;
    }
    node
}

/// Speaks until every utterance is accepted or answered; how many were answered.
async fn speak(client: &mut Client) -> u64 {
    for index in 0..EACH {
        client.utterance(index, &format!("k{index}"), &speech(40)).await;
    }
    let (mut promised, mut had) = (BTreeSet::new(), 0);
    while promised.len() < EACH as usize {
        let word = client.peer.next_of(&["utterance_accepted", "translation_result"]).await;
        promised.insert(word["utterance_index"].as_u64().unwrap());
        if word["type"] == "translation_result" {
            had += 1;
            assert_eq!(word["seq"], had, "{word}");
        }
    }
    had
}

/// Comes back and takes whatever is missing; every result comes once, in order, and is its own.
async fn take_all(mut client: Client, peer: Peer, had: u64) {
    client.recover(peer, had).await;
    for index in had..EACH {
        let word = client.word(index + 1, index).await;
        assert_eq!(word["text_asr"], format!("{} {index}", client.session));
        client.ack(index + 1).await;
    }
    assert!(client.peer.all("translation_result").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_under_two_hundred_sessions_owes_none_of_them_a_result() {
    let mut killed = Killed::start().await;
    let addr = killed.addr;
    let answered = CROWD * EACH as usize / 3;
    let node = tokio::spawn(crowd_node(killed.node().await, answered));
    let mut crowd = JoinSet::new();
    for _ in 0..CROWD {
        crowd.spawn(async move {
            let mut client = Client::open(Peer::connect(addr, "/ws/session").await).await;
            let had = speak(&mut client).await;
            (client, had)
        });
    }
    let clients = crowd.join_all().await;
    let node = node.await.unwrap();
    drop(node);
    killed.again().await;
    drop(killed.peer("/ws/session").await);
    let node = tokio::spawn(crowd_node(killed.node().await, CROWD * EACH as usize));
    let mut crowd = JoinSet::new();
    for (client, had) in clients {
        crowd.spawn(async move {
            take_all(client, Peer::connect(addr, "/ws/session").await, had).await;
        });
    }
    crowd.join_all().await;
    node.abort();
    killed.daemon.stop(SOON).await.unwrap();
}
