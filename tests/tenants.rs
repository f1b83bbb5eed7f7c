//! Tenants: each keeps to its limits, none is in another's way, and what they used is counted.

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::{Peer, TestServer, audio_of, speech};
use utterd::config::{Config, Tenant};

/// A session of that tenant, which wants errors with their codes; its id.
async fn opened(server: &TestServer, tenant: &str) -> (Peer, String) {
    let mut client = server.client().await;
    client.send(init(tenant)).await;
    let ack = client.expect("session_init_ack").await;
    (client, ack["session_id"].as_str().unwrap().to_owned())
}

fn init(tenant: &str) -> Value {
    json!({"type": "session_init", "client_version": "t", "platform": "web", "src_lang": "zh",
        "tgt_lang": "en", "tenant_id": tenant, "extensions": ["typed_errors"]})
}

/// Lists `acme` with what `change` makes of it.
fn acme(change: impl FnOnce(&mut Tenant)) -> impl FnOnce(&mut Config) {
    |config| {
        let mut tenant = Tenant { name: "acme".into(), ..Tenant::default() };
        change(&mut tenant);
        config.tenants.push(tenant);
    }
}

fn heartbeat(session: &str) -> Value {
    json!({"type": "client_heartbeat", "session_id": session})
}

/// The refusal that comes next: when to try again, in milliseconds.
async fn limited(client: &mut Peer) -> u64 {
    let error = client.expect("error").await;
    assert_eq!((&error["code"], &error["retryable"]), (&json!("RATE_LIMITED"), &json!(true)));
    error["retry_after_ms"].as_u64().expect("it says when")
}

/// What the API tells of a tenant now.
async fn standing(server: &TestServer, tenant: &str) -> Value {
    let (_, body) = server.get("/api/v1/usage").await;
    let rows = body["tenants"].as_array().unwrap();
    rows.iter().find(|row| row["tenant"] == tenant).cloned().unwrap_or(Value::Null)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_with_as_many_jobs_as_it_may_have_is_refused_and_nobody_else_is() {
    let server = TestServer::start(acme(|t| t.jobs_max = Some(1))).await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    let (mut first, first_id) = opened(&server, "acme").await;
    let (mut second, second_id) = opened(&server, "acme").await;
    first.sentence(&first_id).await;
    let job = node.assignment().await;
    second.sentence(&second_id).await;
    assert_eq!(limited(&mut second).await, 1_000);
    assert_eq!(second.told().await["reason"], "rate_limited");
    assert_eq!(second.failure().await, "RATE_LIMITED");
    assert_eq!(server.metric("utterd_jobs_refused_total{why=\"tenant_jobs\"}").await, 1.0);
    let (mut other, other_id) = opened(&server, "other than acme").await;
    other.sentence(&other_id).await;
    let others = node.assignment().await;
    node.answer(&others, "theirs").await;
    assert_eq!(other.told().await["text_asr"], "theirs");
    node.answer(&job, "first").await;
    assert_eq!(first.told().await["text_asr"], "first");
    second.sentence(&second_id).await;
    let job = node.assignment().await;
    node.answer(&job, "second").await;
    assert_eq!(second.told().await["text_asr"], "second");
}

#[tokio::test(flavor = "multi_thread")]
async fn audio_beyond_a_tenants_minute_is_refused_with_the_time_until_there_is_room() {
    let server = TestServer::start(acme(|t| t.audio_seconds_per_minute = Some(1))).await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    let (mut client, id) = opened(&server, "acme").await;
    client.chunk(&id, 0, &speech(900), true).await;
    let job = node.assignment().await;
    node.answer(&job, "within").await;
    assert_eq!(client.told().await["text_asr"], "within");
    client.chunk(&id, 1, &speech(600), true).await;
    let wait_ms = limited(&mut client).await;
    // Half a second of audio is missing, and comes in within half a minute.
    assert!((15_000..=30_000).contains(&wait_ms), "{wait_ms}");
    assert_eq!(client.told().await["reason"], "rate_limited");
    server.advance(Duration::from_millis(wait_ms));
    client.chunk(&id, 2, &speech(600), true).await;
    let job = node.assignment().await;
    node.answer(&job, "later").await;
    assert_eq!(client.told().await["text_asr"], "later");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_speaks_on_beyond_the_minute_is_asked_to_pause_for_as_long_as_it_takes() {
    let server = TestServer::start(|config| {
        acme(|t| t.audio_seconds_per_minute = Some(1))(config);
        config.segmenter.max_duration_ms = 800;
    })
    .await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    let (mut client, id) = opened(&server, "acme").await;
    // A server asks nobody to pause in its first half second.
    server.advance(Duration::from_secs(1));
    client.chunk(&id, 0, &speech(1_000), false).await;
    node.assignment().await;
    client.chunk(&id, 1, &speech(1_000), false).await;
    let wait_ms = limited(&mut client).await;
    let pause = client.expect("backpressure").await;
    assert_eq!((&pause["action"], &pause["resume_after_ms"]), (&json!("PAUSE"), &json!(wait_ms)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_with_as_many_sessions_as_it_may_have_opens_no_more() {
    let server = TestServer::start(|config| {
        config.tenant.sessions_max = 1;
        acme(|t| t.sessions_max = Some(0))(config);
    })
    .await;
    let (mut client, id) = opened(&server, "small").await;
    let mut late = server.client().await;
    late.send(init("small")).await;
    assert_eq!(limited(&mut late).await, 1_000);
    let refused = "utterd_frames_refused_total{kind=\"tenant_sessions\",socket=\"session\"}";
    assert_eq!(server.metric(refused).await, 1.0);
    // Others have their own, and 0 is no limit.
    drop(opened(&server, "smaller").await);
    let many = [opened(&server, "acme").await, opened(&server, "acme").await];
    assert_eq!(standing(&server, "acme").await["sessions"], 2);
    drop(many);
    client.send(json!({"type": "session_close", "session_id": id})).await;
    client.expect("session_close_ack").await;
    server
        .until(
            |b| b["tenants"].to_string().contains(r#""sessions":0,"tenant":"small""#),
            "/api/v1/usage",
        )
        .await;
    late.send(init("small")).await;
    late.expect("session_init_ack").await;
    assert_eq!(standing(&server, "small").await["sessions"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_come_too_fast_are_answered_and_read_no_faster() {
    let server = TestServer::start(acme(|t| t.messages_per_second = Some(1))).await;
    let (mut client, id) = opened(&server, "acme").await;
    for _ in 0..4 {
        client.send(heartbeat(&id)).await;
    }
    client.expect("server_heartbeat").await;
    let wait_ms = limited(&mut client).await;
    assert!((1..=1_000).contains(&wait_ms), "{wait_ms}");
    // What came behind it is read when there is room: one is taken, and one more comes too soon.
    server.advance(Duration::from_millis(wait_ms));
    client.expect("server_heartbeat").await;
    limited(&mut client).await;
    let refused = "utterd_frames_refused_total{kind=\"tenant_messages\",socket=\"session\"}";
    assert_eq!(server.metric(refused).await, 2.0);
    assert!(client.all("server_heartbeat").await.is_empty(), "a refused one was acted upon");
    // Another tenant is not kept waiting.
    let (mut other, other_id) = opened(&server, "other one").await;
    for _ in 0..100 {
        other.send(heartbeat(&other_id)).await;
        other.expect("server_heartbeat").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn speech_that_comes_too_fast_is_slowed_down_and_all_of_it_is_translated() {
    let server = TestServer::start(|config| {
        acme(|t| t.messages_per_second = Some(1))(config);
        config.segmenter.pause_ms = 0;
    })
    .await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    let (mut client, id) = opened(&server, "acme").await;
    server.advance(Duration::from_secs(1));
    let loud = speech(2_000);
    let chunks: Vec<&[u8]> = loud.chunks(loud.len() / 10).collect();
    for (seq, chunk) in chunks.iter().enumerate() {
        client.chunk(&id, seq as u64, chunk, seq + 1 == chunks.len()).await;
    }
    let pause = client.expect("backpressure").await;
    let wait_ms = pause["resume_after_ms"].as_u64().unwrap();
    assert!(pause["action"] == "PAUSE" && (1..=2_000).contains(&wait_ms), "{pause}");
    let received = "utterd_audio_received_bytes_total";
    server.until_metric(received, (loud.len() / 10 * 2) as f64).await;
    assert_eq!(server.metric("utterd_jobs_submitted_total").await, 0.0, "it was read at once");
    for read in 3..=chunks.len() {
        server.advance(Duration::from_secs(1));
        server.until_metric(received, (loud.len() / 10 * read) as f64).await;
    }
    let job = node.assignment().await;
    assert!(audio_of(&job) == loud, "speech was lost");
    assert!(client.seen_of("error").is_empty());
    node.answer(&job, "all").await;
    assert_eq!(client.told().await["text_asr"], "all");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_session_is_not_refused_for_coming_too_fast() {
    let server = TestServer::start(acme(|t| t.messages_per_second = Some(1))).await;
    let (mut busy, busy_id) = opened(&server, "acme").await;
    let (mut client, id) = opened(&server, "acme").await;
    busy.send(heartbeat(&busy_id)).await;
    busy.expect("server_heartbeat").await;
    client.send(json!({"type": "session_close", "session_id": id})).await;
    client.expect("session_close_ack").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_waits_is_not_behind_anothers_backlog() {
    let server = TestServer::start(|config| config.node.slots_default = 1).await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    let (mut flood, flood_id) = opened(&server, "flood").await;
    let (mut quiet, quiet_id) = opened(&server, "quiet").await;
    for _ in 0..20 {
        flood.sentence(&flood_id).await;
    }
    let first = node.assignment().await;
    server.until(|b| b["jobs"]["waiting"] == 19, "/api/v1/stats").await;
    quiet.sentence(&quiet_id).await;
    server.until(|b| b["jobs"]["waiting"] == 20, "/api/v1/stats").await;
    assert_eq!(standing(&server, "flood").await["waiting"], 19);
    node.answer(&first, "flood").await;
    let second = node.assignment().await;
    node.answer(&second, "second").await;
    let third = node.assignment().await;
    let quiets = [&second, &third].iter().filter(|job| job["session_id"] == *quiet_id).count();
    assert_eq!(quiets, 1, "one of the two next jobs is the quiet one's");
}

#[tokio::test(flavor = "multi_thread")]
async fn use_is_told_by_tenant_and_pair_and_strangers_are_no_labels() {
    let server = TestServer::start(acme(|t| t.weight = 3)).await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    for tenant in ["acme", "acme", "made up"] {
        let (mut client, id) = opened(&server, tenant).await;
        client.chunk(&id, 0, &speech(500), true).await;
        let job = node.assignment().await;
        node.answer(&job, "text").await;
        client.told().await;
    }
    let (mut client, id) = server.session("zh", "en").await;
    client.chunk(&id, 0, &speech(1_000), true).await;
    let job = node.assignment().await;
    node.fail(&job, json!({"code": "PROCESSING_ERROR", "message": ""})).await;
    client.told().await;
    let (status, body) = server.get("/api/v1/usage").await;
    assert!(status == 200 && body["since_unix_ms"].as_u64() > Some(1_700_000_000_000), "{body}");
    let row = |tenant: &str, jobs: u64, audio_seconds: f64, outcome: &str| {
        json!({"tenant": tenant, "pair": "zh:en", "jobs": jobs, "audio_seconds": audio_seconds,
            "by_outcome": {outcome: {"jobs": jobs, "audio_seconds": audio_seconds}}})
    };
    let expected = json!([
        row("acme", 2, 1.0, "succeeded"),
        row("default", 1, 1.0, "failed"),
        row("made up", 1, 0.5, "succeeded")
    ]);
    assert_eq!(body["usage"], expected);
    let acme = standing(&server, "acme").await;
    assert_eq!(
        (&acme["weight"], &acme["listed"], &acme["jobs"]),
        (&json!(3), &json!(true), &json!(0))
    );
    for (tenant, jobs, seconds) in [("acme", 2.0, 1.0), ("other", 1.0, 0.5)] {
        let labels = format!("{{outcome=\"succeeded\",tenant=\"{tenant}\"}}");
        let of = |name: &str| format!("utterd_tenant_{name}_total{labels}");
        assert_eq!(server.metric(&of("jobs")).await, jobs);
        assert_eq!(server.metric(&of("audio_seconds")).await, seconds);
    }
    assert_eq!(server.metric_sum("utterd_tenant_jobs_total", &["made up"]).await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_tenant_had_before_a_restart_counts_after_it() {
    let server = TestServer::start(|config| {
        acme(|t| t.jobs_max = Some(1))(config);
        config.server.drain_ms = 0;
    })
    .await;
    let mut resumable = init("acme");
    resumable["extensions"] = json!(["resume", "accepted", "typed_errors"]);
    let mut client = server.client().await;
    client.send(resumable).await;
    let ack = client.expect("session_init_ack").await;
    client.sentence(ack["session_id"].as_str().unwrap()).await;
    client.expect("utterance_accepted").await;
    let server = server
        .restart(|config| {
            acme(|t| (t.jobs_max, t.sessions_max) = (Some(1), Some(1)))(config);
            config.job.pending_ms = 60_000;
        })
        .await;
    let acme = standing(&server, "acme").await;
    assert_eq!((&acme["sessions"], &acme["jobs"]), (&json!(1), &json!(1)));
    let mut late = server.client().await;
    late.send(init("acme")).await;
    limited(&mut late).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn as_much_speech_is_held_as_there_is_room_for_and_the_rest_is_refused() {
    let server = TestServer::start(|c| c.job.audio_bytes_max = 64 * 1024).await;
    let (mut client, id) = opened(&server, "acme").await;
    // 48,000 bytes, which wait for a node.
    client.chunk(&id, 0, &speech(1_500), true).await;
    server.until_metric("utterd_audio_held_bytes", 48_000.0).await;
    client.chunk(&id, 1, &speech(1_000), true).await;
    let refused = client.expect("error").await;
    assert_eq!(refused["code"], "OVERLOADED");
    server.until_metric("utterd_jobs_refused_total{why=\"memory_full\"}", 1.0).await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    let job = node.assignment().await;
    node.answer(&job, "first").await;
    server.until_metric("utterd_audio_held_bytes", 0.0).await;
    client.chunk(&id, 2, &speech(1_000), true).await;
    let job = node.assignment().await;
    assert_eq!(audio_of(&job).len(), 32_000);
}
