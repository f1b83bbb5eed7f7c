//! Rooms: everybody hears what is said in their own language, once and in order, whatever becomes
//! of a node, a connection or the server.

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use support::{FakeNode, Peer, TestServer};
use tokio::task::JoinHandle;

const LANGUAGES: [&str; 3] = ["en", "es", "de"];
const SUBMITTED: &str = "utterd_jobs_submitted_total";

/// Somebody in a room.
struct Member {
    peer: Peer,
    session: String,
    /// What it needs to come back, if it can.
    secret: Value,
}

impl Member {
    async fn open(server: &TestServer, src: &str, tgt: &str, extensions: &[&str]) -> Self {
        let mut peer = server.client().await;
        peer.send(json!({"type": "session_init", "client_version": "t", "platform": "web",
            "src_lang": src, "tgt_lang": tgt, "extensions": extensions}))
            .await;
        let ack = peer.expect("session_init_ack").await;
        let session = ack["session_id"].as_str().unwrap().to_owned();
        Self { peer, session, secret: ack }
    }

    /// Makes a room; its code.
    async fn create(&mut self, hears: Option<&str>) -> String {
        let message = json!({"type": "room_create", "client_ts": 1, "preferred_lang": hears});
        self.peer.send(message).await;
        let code = self.peer.expect("room_create_ack").await["room_code"].clone();
        self.sees(1).await;
        code.as_str().unwrap().to_owned()
    }

    async fn join(&mut self, code: &str, hears: Option<&str>) {
        self.peer
            .send(json!({"type": "room_join", "room_code": code, "preferred_lang": hears}))
            .await;
        let ack = self.peer.expect("room_create_ack").await;
        assert_eq!(ack["room_code"], code);
    }

    /// Waits until it sees so many members; their sessions.
    async fn sees(&mut self, members: usize) -> Vec<String> {
        loop {
            let event = self.peer.expect("room_members").await;
            let listed = event["members"].as_array().unwrap();
            if listed.len() == members {
                let session = |m: &Value| m["session_id"].as_str().unwrap().to_owned();
                return listed.iter().map(session).collect();
            }
        }
    }

    async fn says(&mut self, index: u64, src: &str, tgt: &str) {
        self.peer.utterance(&self.session, index, src, tgt).await;
    }

    /// The next so many last words.
    async fn hears(&mut self, count: usize) -> Vec<Value> {
        let mut words = Vec::new();
        for _ in 0..count {
            words.push(self.peer.told().await);
        }
        words
    }

    /// Nothing more is told.
    async fn hears_nothing(&mut self) {
        let seen = self.peer.everything().await;
        let words: Vec<_> = seen.iter().filter(|m| m["type"] == "translation_result").collect();
        assert!(words.is_empty(), "{words:?}");
    }

    async fn back(&mut self, server: &TestServer, last_seq: u64) {
        self.peer = server.client().await;
        self.peer
            .send(json!({"type": "session_resume", "session_id": self.session,
                "epoch": self.secret["epoch"], "resume_secret": self.secret["resume_secret"],
                "last_seq": last_seq}))
            .await;
        let ack = self.peer.expect("session_resume_ack").await;
        assert_eq!(ack["recovered"], true, "{ack}");
    }
}

/// A node that answers what it is given; after so many it is given one more and dies. What it was
/// given.
fn works(mut node: FakeNode, dies_after: Option<usize>) -> JoinHandle<Vec<Value>> {
    tokio::spawn(async move {
        let mut given = Vec::new();
        while let Some(message) = node.peer.next_within().await {
            if message["type"] != "job_assign" {
                continue;
            }
            given.push(message.clone());
            if dies_after.is_some_and(|after| given.len() > after) {
                return given;
            }
            let (index, tgt) = (&message["utterance_index"], message["tgt_lang"].as_str().unwrap());
            node.answer(&message, &format!("{index} in {tgt}")).await;
        }
        given
    })
}

/// Jobs a node was given, as it tells them apart: it does one utterance of a session once.
fn told_apart(given: &[Value]) {
    let pairs = given.iter().map(|job| (job["session_id"].to_string(), &job["utterance_index"]));
    let mut seen = BTreeSet::new();
    for (session, index) in pairs {
        assert!(seen.insert((session.clone(), index.to_string())), "{session} {index} came twice");
    }
}

/// Places of utterances in their speaker's order.
fn places(words: &[Value]) -> Vec<u64> {
    words.iter().map(|word| word["room"]["utterance_index"].as_u64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_listener_hears_each_utterance_once_in_its_language_while_a_node_dies() {
    const SAID: u64 = 24;
    let server = TestServer::start(|_| {}).await;
    let dying = works(server.node("n1", &LANGUAGES).await, Some(7));
    let living = works(server.node("n2", &LANGUAGES).await, None);
    let mut speaker = Member::open(&server, "en", "es", &[]).await;
    let code = speaker.create(Some("en")).await;
    let mut listeners = Vec::new();
    for hears in ["es", "de", "es", "en"] {
        let mut member = Member::open(&server, "en", "es", &[]).await;
        member.join(&code, Some(hears)).await;
        listeners.push((hears, member));
    }
    speaker.sees(5).await;
    for index in 0..SAID {
        speaker.says(index, "en", "es").await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let own = speaker.hears(SAID as usize).await;
    for (index, word) in own.iter().enumerate() {
        assert_eq!(word["utterance_index"], index);
        assert_eq!(word["text_translated"], format!("{index} in es!"));
        assert_eq!(word.get("room"), None);
    }
    for (hears, member) in &mut listeners {
        let words = member.hears(SAID as usize).await;
        assert_eq!(places(&words), (0..SAID).collect::<Vec<_>>(), "{hears}");
        for (index, word) in words.iter().enumerate() {
            assert_eq!(word["session_id"], speaker.session.as_str());
            assert_eq!(
                (&word["room"]["code"], &word["room"]["lang"]),
                (&json!(code), &json!(hears))
            );
            match *hears {
                "en" => {
                    assert!(word["text_asr"].as_str().unwrap().starts_with(&format!("{index} in")));
                    assert_eq!(
                        (&word["text_translated"], &word["tts_audio"]),
                        (&json!(""), &json!(""))
                    );
                }
                lang => {
                    assert_eq!(word["text_translated"], format!("{index} in {lang}!"));
                    assert_eq!(word["tts_audio"], "QUJDRA==");
                }
            }
        }
        member.hears_nothing().await;
    }
    assert_eq!(server.metric(SUBMITTED).await, 2.0 * SAID as f64, "a job for each language");
    let died_with = dying.await.unwrap();
    assert_eq!(died_with.len(), 8);
    server.server.stop().await;
    let given = living.await.unwrap();
    assert_eq!(given.len() as u64, 2 * SAID - 7, "what was lost was done again");
    told_apart(&given);
    told_apart(&died_with);
}

/// Frames of the existing page, as recorded, and what it needs to be told.
#[tokio::test(flavor = "multi_thread")]
async fn the_existing_page_creates_joins_and_calls() {
    let server = TestServer::start(|_| {}).await;
    let init = json!({"type": "session_init", "client_version": "web-client-v1.0",
        "platform": "web", "src_lang": "zh", "tgt_lang": "en", "dialect": null, "features": {},
        "pairing_code": null, "mode": "one_way",
        "trace_id": "5f0c8a0e-3a57-4d0c-9a1c-4b3f3c7d2e11", "tenant_id": null});
    // Both are sent without waiting for the answer to the first.
    let mut a = server.client().await;
    a.send(init.clone()).await;
    a.send(json!({"type": "room_create", "client_ts": 1_795_226_605_389_u64})).await;
    let session_a = a.expect("session_init_ack").await["session_id"].clone();
    let created = a.next().await.unwrap();
    assert_eq!(created["type"], "room_create_ack");
    let (code, room_id) = (created["room_code"].clone(), created["room_id"].clone());
    assert!(code.as_str().unwrap().parse::<u32>().is_ok_and(|n| (100_000..=999_999).contains(&n)));
    assert_eq!(room_id.as_str().unwrap().len(), 36);
    let alone = a.next().await.unwrap();
    assert_eq!((&alone["type"], &alone["room_code"]), (&json!("room_members"), &code));

    let mut b = server.client().await;
    b.send(init).await;
    b.send(json!({"type": "room_join", "room_code": code, "display_name": "Bob"})).await;
    let session_b = b.expect("session_init_ack").await["session_id"].clone();
    let joined = b.next().await.unwrap();
    assert_eq!(joined, json!({"type": "room_create_ack", "room_code": code, "room_id": room_id}));
    let both = b.next().await.unwrap();
    assert_eq!(a.next().await.unwrap(), both);
    let members = both["members"].as_array().unwrap();
    assert_eq!((&members[0]["session_id"], &members[1]["session_id"]), (&session_a, &session_b));
    assert_eq!(members[1]["participant_id"], session_b);
    assert_eq!(members[1]["display_name"], "Bob");
    assert_eq!(members[1]["raw_voice_preferences"], json!({}));
    assert_eq!(members[0].get("display_name"), None);

    let session = |id: &Value| id.as_str().unwrap().to_owned();
    call_each_other(code.as_str().unwrap(), (a, session(&session_a)), (b, session(&session_b)))
        .await;
}

/// What two pages in a room say to each other to set up a call, and how one of them leaves.
async fn call_each_other(
    code: &str,
    (mut a, session_a): (Peer, String),
    (mut b, session_b): (Peer, String),
) {
    // Both offer at the same moment, and each answers the other's offer.
    let sdp = |kind: &str, n: u32| json!({"sdp": format!("v=0\r\no=- {n}"), "type": kind});
    let said = |kind: &str, to: &str, what: &str, value: &Value| {
        let mut message = json!({"type": kind, "room_code": code, "to": to});
        message[what] = value.clone();
        message
    };
    let offer = |to: &str, n: u32| said("webrtc_offer", to, "sdp", &sdp("offer", n));
    a.send(offer(&session_b, 1)).await;
    b.send(offer(&session_a, 2)).await;
    assert_eq!(b.next().await.unwrap(), offer(&session_a, 1), "`to` names who sent it");
    assert_eq!(a.next().await.unwrap(), offer(&session_b, 2));
    let answer = |to: &str, n: u32| said("webrtc_answer", to, "sdp", &sdp("answer", n));
    let candidate = json!({"candidate": "candidate:1 1 udp 1 127.0.0.1 9 typ host", "sdpMid": "0",
        "sdpMLineIndex": 0, "usernameFragment": null});
    let ice = |to: &str| said("webrtc_ice", to, "candidate", &candidate);
    b.send(answer(&session_a, 3)).await;
    b.send(ice(&session_a)).await;
    assert_eq!(a.next().await.unwrap(), answer(&session_b, 3));
    assert_eq!(a.next().await.unwrap(), ice(&session_b));

    a.send(json!({"type": "room_raw_voice_preference", "room_code": code,
        "target_session_id": session_b, "receive_raw_voice": false}))
        .await;
    let muted = a.next().await.unwrap();
    assert_eq!(muted["members"][0]["raw_voice_preferences"], json!({session_b.as_str(): false}));
    assert_eq!(b.next().await.unwrap(), muted);
    b.send(offer(&session_a, 4)).await;
    b.send(answer(&session_a, 5)).await;
    assert_eq!(a.next().await.unwrap(), answer(&session_b, 5), "the offer is not passed on");

    a.send(json!({"type": "room_leave", "room_code": code})).await;
    let left = b.next().await.unwrap();
    assert_eq!(
        (&left["type"], left["members"].as_array().unwrap().len()),
        (&json!("room_members"), 1)
    );
    a.send(offer(&session_b, 6)).await;
    a.send(json!({"type": "room_leave", "room_code": "298523"})).await;
    let unknown = a.next().await.unwrap();
    assert_eq!(unknown["code"], "ROOM_NOT_FOUND");
    assert!(b.everything().await.is_empty(), "who is not in the room calls nobody in it");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_loses_its_connection_is_no_ghost_and_what_it_said_is_still_heard() {
    let server = TestServer::start(|_| {}).await;
    let mut node = server.node("n1", &LANGUAGES).await;
    let mut speaker = Member::open(&server, "en", "es", &[]).await;
    let code = speaker.create(None).await;
    let mut listener = Member::open(&server, "es", "de", &[]).await;
    listener.join(&code, None).await;
    listener.sees(2).await;
    speaker.sees(2).await;
    speaker.says(0, "en", "es").await;
    let job = node.assignment().await;
    assert_eq!(job["tgt_lang"], "de", "the listener hears what its session asked for");
    drop(speaker);
    assert_eq!(listener.sees(1).await, [listener.session.clone()]);
    node.answer(&job, "last words").await;
    let words = listener.hears(1).await;
    assert_eq!(words[0]["text_translated"], "last words!");
    // Alone again, it is an ordinary session.
    listener.says(0, "es", "de").await;
    let job = node.assignment().await;
    node.answer(&job, "alone").await;
    assert_eq!(listener.hears(1).await[0].get("room"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn rooms_and_who_can_come_back_to_them_survive_a_restart() {
    let server = TestServer::start(|_| {}).await;
    let mut speaker = Member::open(&server, "en", "es", &["resume"]).await;
    let code = speaker.create(None).await;
    let mut away = Member::open(&server, "es", "de", &["resume"]).await;
    away.join(&code, None).await;
    let mut page = Member::open(&server, "es", "en", &[]).await;
    page.join(&code, None).await;
    page.sees(3).await;
    let before = server.get("/api/v1/rooms").await.1;
    assert_eq!(before["rooms"][0]["members"].as_array().unwrap().len(), 3);

    let server = server.restart(|_| {}).await;
    let node = works(server.node("n1", &LANGUAGES).await, None);
    speaker.back(&server, 0).await;
    assert_eq!(speaker.sees(2).await, [speaker.session.clone(), away.session.clone()]);
    // One of them is not back yet, and hears it when it is.
    speaker.says(0, "en", "es").await;
    let own = speaker.hears(1).await;
    assert_eq!((&own[0]["text_asr"], &own[0]["text_translated"]), (&json!("0 in de"), &json!("")));
    away.back(&server, 0).await;
    let words = away.hears(1).await;
    assert_eq!((&words[0]["text_translated"], &words[0]["seq"]), (&json!("0 in de!"), &json!(1)));
    away.peer.send(json!({"type": "ack", "session_id": away.session, "seq": 1})).await;
    // The page knows the code, and no session.
    let mut page = Member::open(&server, "es", "en", &[]).await;
    page.join(&code, None).await;
    assert_eq!(page.sees(3).await.len(), 3);
    let acked = |body: &Value| {
        let rows = body["sessions"].as_array().unwrap();
        rows.iter().any(|row| row["session_id"] == away.session.as_str() && row["owed"] == 0)
    };
    server.until(acked, "/api/v1/sessions").await;
    node.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_for_listeners_survive_a_restart_of_the_server() {
    let server = TestServer::start(|config| config.server.drain_ms = 0).await;
    let mut holding = server.node("n1", &LANGUAGES).await;
    let mut speaker = Member::open(&server, "en", "es", &["resume"]).await;
    let code = speaker.create(None).await;
    let mut listeners = Vec::new();
    for hears in ["es", "de"] {
        let mut member = Member::open(&server, "en", hears, &["resume"]).await;
        member.join(&code, None).await;
        listeners.push(member);
    }
    speaker.sees(3).await;
    speaker.says(0, "en", "es").await;
    let mut given = vec![holding.assignment().await, holding.assignment().await];
    let sessions: BTreeSet<_> = given.drain(..).map(|job| job["session_id"].to_string()).collect();
    let derived = format!("\"{}.de\"", speaker.session);
    assert_eq!(sessions, BTreeSet::from([format!("\"{}\"", speaker.session), derived]));

    let server = server.restart(|_| {}).await;
    let node = works(server.node("n2", &LANGUAGES).await, None);
    speaker.back(&server, 0).await;
    assert_eq!(speaker.hears(1).await[0]["text_translated"], "0 in es!");
    for (member, lang) in listeners.iter_mut().zip(["es", "de"]) {
        member.back(&server, 0).await;
        assert_eq!(member.hears(1).await[0]["text_translated"], format!("0 in {lang}!"));
    }
    node.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_later_asks_for_what_was_said() {
    let server = TestServer::start(|_| {}).await;
    let node = works(server.node("n1", &LANGUAGES).await, None);
    let mut speaker = Member::open(&server, "en", "es", &[]).await;
    let code = speaker.create(None).await;
    let mut listener = Member::open(&server, "es", "de", &[]).await;
    listener.join(&code, None).await;
    speaker.sees(2).await;
    for index in 0..3 {
        speaker.says(index, "en", "es").await;
    }
    listener.hears(3).await;
    let mut late = Member::open(&server, "de", "en", &[]).await;
    late.join(&code, Some("de")).await;
    late.peer.send(json!({"type": "room_history", "room_code": code, "last": 2})).await;
    let history = late.peer.expect("room_history").await;
    let texts: Vec<_> = history["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|result| (&result["text_translated"], &result["tts_audio"]))
        .collect();
    assert_eq!(texts, [(&json!("1 in de!"), &json!("")), (&json!("2 in de!"), &json!(""))]);
    late.peer
        .send(json!({"type": "room_preferred_lang", "room_code": code,
        "preferred_lang": "en"}))
        .await;
    speaker.sees(3).await;
    speaker.says(3, "en", "es").await;
    let words = late.hears(1).await;
    assert_eq!(
        (&words[0]["text_asr"], &words[0]["room"]["lang"]),
        (&json!("3 in de"), &json!("en"))
    );
    node.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_in_which_nobody_speaks_expires_and_its_members_are_told() {
    let server = TestServer::start(|config| config.room.expire_ms = 60_000).await;
    let mut a = Member::open(&server, "en", "es", &[]).await;
    let code = a.create(None).await;
    server.advance(Duration::from_secs(61));
    let expired = a.peer.expect("room_expired").await;
    assert_eq!(expired["room_code"], code.as_str());
    let mut b = Member::open(&server, "en", "es", &[]).await;
    b.peer.send(json!({"type": "room_join", "room_code": code})).await;
    assert_eq!(b.peer.expect("room_error").await["code"], "ROOM_NOT_FOUND");
    assert_eq!(server.get("/api/v1/rooms").await.1["total"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_store_rooms_work_while_the_server_lives() {
    let server = TestServer::start(|config| config.store.enabled = false).await;
    let node = works(server.node("n1", &LANGUAGES).await, None);
    let mut speaker = Member::open(&server, "en", "es", &[]).await;
    let code = speaker.create(None).await;
    let mut listener = Member::open(&server, "es", "de", &[]).await;
    listener.join(&code, None).await;
    speaker.sees(2).await;
    for index in 0..5 {
        speaker.says(index, "en", "es").await;
    }
    assert_eq!(places(&listener.hears(5).await), [0, 1, 2, 3, 4]);
    assert_eq!(speaker.hears(5).await[4]["text_asr"], "4 in de");
    node.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_of_slices_goes_to_those_who_were_there_when_it_began() {
    let server = TestServer::start(|config| config.segmenter.max_duration_ms = 1_000).await;
    let mut node = server.node("n1", &LANGUAGES).await;
    let mut speaker = Member::open(&server, "en", "es", &[]).await;
    let code = speaker.create(None).await;
    let mut first = Member::open(&server, "es", "es", &[]).await;
    first.join(&code, None).await;
    speaker.sees(2).await;
    let audio = support::speech(1_200);
    speaker.peer.chunk(&speaker.session, 0, &audio, false).await;
    let slice = node.assignment().await;
    assert_eq!(
        (&slice["tgt_lang"], &slice["is_max_duration_triggered"]),
        (&json!("es"), &json!(true))
    );
    let mut second = Member::open(&server, "de", "de", &[]).await;
    second.join(&code, None).await;
    speaker.sees(3).await;
    speaker.peer.chunk(&speaker.session, 1, &audio[..6_400], true).await;
    let last = node.assignment().await;
    assert_eq!((&last["tgt_lang"], &last["turn_id"]), (&json!("es"), &slice["turn_id"]));
    node.answer(&slice, "one").await;
    node.answer(&last, "two").await;
    assert_eq!(places(&first.hears(2).await), [0, 1]);
    speaker.peer.chunk(&speaker.session, 2, &audio[..6_400], true).await;
    let mut jobs = vec![node.assignment().await, node.assignment().await];
    jobs.sort_by_key(|job| job["tgt_lang"].to_string());
    assert_eq!((&jobs[0]["tgt_lang"], &jobs[1]["tgt_lang"]), (&json!("de"), &json!("es")));
    assert_ne!(jobs[0]["turn_id"], jobs[1]["turn_id"]);
    for job in &jobs {
        node.answer(job, "three").await;
    }
    assert_eq!(places(&second.hears(1).await), [2]);
    assert_eq!(places(&first.hears(1).await), [2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_failed_for_listeners_alone_is_done_again_for_them() {
    const LETTERS: &str = "/api/v1/dead-letters";
    let server = TestServer::start(|_| {}).await;
    let mut speaker = Member::open(&server, "en", "es", &[]).await;
    let code = speaker.create(None).await;
    let mut listeners = Vec::new();
    for hears in ["es", "de"] {
        let mut member = Member::open(&server, "en", hears, &[]).await;
        member.join(&code, None).await;
        listeners.push(member);
    }
    speaker.sees(3).await;
    let mut first = server.node("n1", &LANGUAGES).await;
    speaker.says(0, "en", "es").await;
    for _ in 0..2 {
        let job = first.assignment().await;
        if job["tgt_lang"] == "es" {
            first.answer(&job, "heard").await;
        }
    }
    assert_eq!(speaker.hears(1).await[0]["text_translated"], "heard!");
    drop(first);
    let mut second = server.node("n2", &LANGUAGES).await;
    second.assignment().await;
    drop(second);
    assert_eq!(listeners[1].hears(1).await[0]["type"], "missing_result");
    let found = server.until(|body| body["dead_letters"] != json!([]), LETTERS).await;
    let path = format!("{LETTERS}/{}/resend", found["dead_letters"][0]["id"]);
    assert_eq!(support::http(server.addr(), "POST", &path, "").await.0, 200);
    let mut third = server.node("n3", &LANGUAGES).await;
    let job = third.assignment().await;
    third.answer(&job, "at last").await;
    let words = listeners[1].hears(1).await;
    assert_eq!(
        (&words[0]["text_translated"], &words[0]["late"]),
        (&json!("at last!"), &json!(true))
    );
    speaker.hears_nothing().await;
    // Nothing of it is left open.
    let close = json!({"type": "session_close", "session_id": speaker.session});
    speaker.peer.send(close).await;
    speaker.peer.expect("session_close_ack").await;
}
