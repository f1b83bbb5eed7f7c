//! What could not be brought to its end is kept for an operator, and can be done again.

mod support;

use serde_json::{Value, json};
use support::{FakeNode, Peer, TestServer, audio_of, http, speech};

const LANGUAGES: [&str; 2] = ["zh", "en"];
const LETTERS: &str = "/api/v1/dead-letters";

async fn letters(server: &TestServer) -> Vec<Value> {
    let (status, body) = server.get(LETTERS).await;
    assert_eq!(status, 200, "{body}");
    body["dead_letters"].as_array().unwrap().clone()
}

async fn ask(server: &TestServer, method: &str, path: &str) -> (u16, Value) {
    let (status, body) = http(server.addr(), method, path, "").await;
    (status, serde_json::from_str(&body).unwrap_or_default())
}

/// An utterance that takes two nodes down with it; returns the letter about it.
async fn poison(server: &TestServer, client: &mut Peer, session: &str) -> Value {
    client.sentence(session).await;
    for name in ["n1", "n2"] {
        let mut node = server.node(name, &LANGUAGES).await;
        drop(node.assignment().await);
        drop(node);
    }
    assert_eq!(client.failure().await, "POISON_JOB");
    server.until(|body| body["dead_letters"] != json!([]), LETTERS).await;
    letters(server).await.remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_took_its_nodes_down_is_kept_with_its_speech_and_can_be_done_again() {
    let server = TestServer::start(|_| {}).await;
    let (mut client, session) = server.session("zh", "en").await;
    let letter = poison(&server, &mut client, &session).await;
    assert_eq!(letter["why"], "failed");
    assert_eq!(letter["code"], "POISON_JOB");
    assert_eq!((&letter["can_resend"], &letter["asked"]["src_lang"]), (&json!(true), &json!("zh")));

    let one = format!("{LETTERS}/{}", letter["id"]);
    let (status, again) = ask(&server, "POST", &format!("{one}/resend")).await;
    assert_eq!(status, 200, "{again}");
    assert_ne!(again["job_id"], letter["job_id"]);
    let mut node: FakeNode = server.node("n3", &LANGUAGES).await;
    let job = node.assignment().await;
    assert_eq!(job["job_id"], again["job_id"]);
    assert!(audio_of(&job) == speech(256), "the speech is the same");
    node.answer(&job, "at last").await;
    let result = client.expect("translation_result").await;
    assert_eq!((&result["utterance_index"], &result["late"]), (&json!(0), &json!(true)));
    server.until(|body| body["dead_letters"] == json!([]), LETTERS).await;
    assert_eq!(ask(&server, "GET", &one).await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_for_a_session_that_is_gone_is_a_letter_that_shows_it() {
    let server = TestServer::start(|config| {
        config.store.outbox_retention_ms = 1;
        config.store.expiry_pause_ms = 0;
    })
    .await;
    let (mut client, session) = server.session("zh", "en").await;
    let letter = poison(&server, &mut client, &session).await;
    drop(client);
    server.until(|body| body["total"] == 0, "/api/v1/sessions").await;

    let (_, again) = ask(&server, "POST", &format!("{LETTERS}/{}/resend", letter["id"])).await;
    let mut node = server.node("n3", &LANGUAGES).await;
    let job = node.assignment().await;
    node.answer(&job, "to nobody").await;
    server.job_at(&again["job_id"], "settled").await;
    // Old rows go with later transactions.
    let (mut other, id) = server.session("zh", "en").await;
    let found = loop {
        other.sentence(&id).await;
        let job = node.assignment().await;
        node.answer(&job, "onwards").await;
        other.expect("translation_result").await;
        if let Some(found) =
            letters(&server).await.into_iter().find(|l| l["job_id"] == again["job_id"])
        {
            break found;
        }
    };
    assert_eq!(found["why"], "unclaimed");
    assert_eq!(found["frame"]["text_translated"], "to nobody!");
    assert_eq!(found["session_id"], json!(session));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_can_be_dropped_and_faults_are_told() {
    let server = TestServer::start(|_| {}).await;
    let (mut client, session) = server.session("zh", "en").await;
    let letter = poison(&server, &mut client, &session).await;
    let one = format!("{LETTERS}/{}", letter["id"]);
    let (status, audio) = http(server.addr(), "GET", &format!("{one}/audio"), "").await;
    assert_eq!((status, audio.is_empty()), (200, false));
    assert_eq!(ask(&server, "GET", &format!("{LETTERS}/x")).await.0, 400);
    assert_eq!(ask(&server, "GET", &format!("{LETTERS}?after=x")).await.0, 400);
    assert_eq!(ask(&server, "POST", &one).await.0, 405);
    assert_eq!(ask(&server, "DELETE", LETTERS).await.0, 405);
    assert_eq!(ask(&server, "DELETE", &one).await.0, 200);
    server.until(|body| body["dead_letters"] == json!([]), LETTERS).await;
    let behind = format!("{LETTERS}?after={}", letter["id"]);
    assert_eq!(ask(&server, "GET", &behind).await.1["dead_letters"], json!([]));
}
