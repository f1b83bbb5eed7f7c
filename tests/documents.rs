//! The documents that the server serves about itself, against the server. That what it says is as
//! described is held in every test with a peer or a request: see `support::described`.

mod support;

use std::collections::BTreeSet;

use serde_json::{Value, json};
use support::described::{ASYNCAPI, OPENAPI, Said, hold_to_it};
use support::{Peer, TestServer, http, register_message, speech};
use utterd::server::PATHS;

const BASE64: base64_simd::Base64 = base64_simd::STANDARD;

#[tokio::test(flavor = "multi_thread")]
async fn both_are_served_as_they_are_in_the_docs() {
    let server = TestServer::start(|_| {}).await;
    for (path, document) in [("/openapi.json", &*OPENAPI), ("/asyncapi.json", &*ASYNCAPI)] {
        assert_eq!(server.get(path).await, (200, document.clone()), "{path}");
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"), "{path}");
    }
    assert_eq!((&OPENAPI["openapi"], &ASYNCAPI["asyncapi"]), (&json!("3.1.0"), &json!("3.0.0")));
}

#[test]
fn they_name_every_path_and_method_and_no_other() {
    let mut ours = BTreeSet::new();
    for (path, methods) in PATHS {
        ours.extend(methods.iter().map(|method| (path.to_string(), method.to_string())));
    }
    let mut theirs = BTreeSet::new();
    for (path, methods) in OPENAPI["paths"].as_object().unwrap() {
        let plain: Vec<_> =
            path.split('/').map(|s| if s.starts_with('{') { "{}" } else { s }).collect();
        let methods = methods.as_object().unwrap().keys().filter(|key| *key != "parameters");
        theirs.extend(methods.map(|method| (plain.join("/"), method.to_uppercase())));
    }
    for channel in ASYNCAPI["channels"].as_object().unwrap().values() {
        theirs.insert((channel["address"].as_str().unwrap().to_owned(), "GET".to_owned()));
    }
    let (missing, made_up): (Vec<_>, Vec<_>) =
        (ours.difference(&theirs).collect(), theirs.difference(&ours).collect());
    assert!(missing.is_empty() && made_up.is_empty(), "missing {missing:?}, made up {made_up:?}");
}

/// Says what is described, and to which nobody objects.
async fn say(peer: &mut Peer, path: &str, message: Value) {
    hold_to_it(path, Said::ByPeer, &message);
    peer.send(message).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_peers_may_say_is_understood() {
    const SESSION: &str = "/ws/session";
    const NODE: &str = "/ws/node";
    let server = TestServer::start(|_| {}).await;
    let mut node = server.raw_node().await;
    say(&mut node, NODE, register_message(Some("n1"), &["zh", "en"])).await;
    node.expect("node_register_ack").await;
    server.until(|b| b["nodes"][0]["state"] == "ready", "/api/v1/nodes").await;
    say(&mut node, NODE, json!({"type": "node_error", "code": "X", "message": "y"})).await;
    say(&mut node, NODE, json!({"type": "pairing_code_request"})).await;
    node.expect("pairing_code").await;
    let mut client = server.client().await;
    say(
        &mut client,
        SESSION,
        json!({"type": "session_init", "client_version": "t", "platform": "web", "src_lang": "zh",
            "tgt_lang": "en", "features": {}, "dialect": null,
            "extensions": ["resume", "audio_ack", "accepted", "typed_errors", "go_away"]}),
    )
    .await;
    let id = client.expect("session_init_ack").await["session_id"].clone();
    let of = |mut message: Value| {
        message["session_id"] = id.clone();
        message
    };
    let audio = BASE64.encode_to_string(speech(200));
    let chunk = json!({"type": "audio_chunk", "seq": 1, "is_final": true, "payload": audio});
    say(&mut client, SESSION, of(chunk)).await;
    let job = node.expect("job_assign").await;
    for mut mark in [json!({"type": "job_ack"}), json!({"type": "job_started"})] {
        (mark["job_id"], mark["attempt_id"]) = (job["job_id"].clone(), job["attempt_id"].clone());
        say(&mut node, NODE, mark).await;
    }
    let partial = json!({"type": "asr_partial", "job_id": job["job_id"], "text": "so"});
    say(&mut node, NODE, partial).await;
    let result = json!({"type": "job_result", "job_id": job["job_id"], "success": true,
        "attempt_id": job["attempt_id"], "node_id": "n1", "text_asr": "a", "text_translated": "b",
        "tts_audio": "AAAA", "tts_format": "pcm16", "extra": {"emotion": "calm"}});
    say(&mut node, NODE, result).await;
    let word = client.expect("translation_result").await;
    say(&mut client, SESSION, of(json!({"type": "ack", "seq": word["seq"]}))).await;
    say(&mut client, SESSION, of(json!({"type": "tts_started", "group_id": "g"}))).await;
    say(&mut client, SESSION, of(json!({"type": "tts_play_ended", "group_id": "g"}))).await;
    let utterance = json!({"type": "utterance", "utterance_index": 1, "manual_cut": true,
        "src_lang": "zh", "tgt_lang": "en", "audio": audio, "audio_format": "pcm16",
        "sample_rate": 16_000, "idempotency_key": "k"});
    say(&mut client, SESSION, of(utterance)).await;
    node.expect("job_assign").await;
    say(&mut client, SESSION, json!({"type": "room_create", "client_ts": 1})).await;
    let code = client.expect("room_create_ack").await["room_code"].clone();
    for mut asked in [
        json!({"type": "room_history", "last": 3}),
        json!({"type": "room_preferred_lang", "preferred_lang": "de"}),
        json!({"type": "room_raw_voice_preference", "target_session_id": id,
            "receive_raw_voice": false}),
        json!({"type": "webrtc_offer", "to": id, "sdp": {"type": "offer", "sdp": "v=0"}}),
        json!({"type": "room_leave"}),
    ] {
        asked["room_code"] = code.clone();
        say(&mut client, SESSION, asked).await;
    }
    client.expect("room_history").await;
    say(&mut client, SESSION, of(json!({"type": "client_heartbeat", "timestamp": 1}))).await;
    client.expect("server_heartbeat").await;
    say(&mut client, SESSION, of(json!({"type": "session_close", "reason": "done"}))).await;
    assert_eq!(client.seen_of("error"), Vec::<Value>::new());
    assert_eq!(server.metric_sum("utterd_frames_refused_total", &[]).await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_says_which_methods_it_takes() {
    let server = TestServer::start(|_| {}).await;
    for (path, methods) in PATHS {
        let path = path.replace("{}", "1");
        let (status, body) = http(server.addr(), "PATCH", &path, "").await;
        assert_eq!(status, 405, "{path} takes {methods:?}: {body}");
    }
}
