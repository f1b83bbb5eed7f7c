//! The operators' pages: in a real browser, against a live server with nodes and traffic; and what
//! stands behind them, asked directly.

mod support;
mod console {
    pub mod browser;
    pub mod feed;
}

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use serde_json::json;
use support::{FakeNode, TestServer, speech};
use tokio::task::JoinHandle;
use utterd::peer::engine::{EchoEngine, Engine};
use utterd::peer::node::{NodeOptions, run};

use console::browser::Browser;

/// A node that gives the speaker's own audio back, until it is aborted.
async fn echo(server: &TestServer, id: &str) -> JoinHandle<()> {
    let url = format!("ws://{}/ws/node", server.addr());
    let options = NodeOptions {
        node_id: Some(id.to_owned()),
        capacity: 4,
        ..NodeOptions::new(url, Engine::Echo(EchoEngine::default()))
    };
    let node = tokio::spawn(async move {
        run(options, std::future::pending::<()>(), None).await.unwrap();
    });
    server.until(|b| b["state"] == "ready", &format!("/api/v1/nodes/{id}")).await;
    let quoted = format!("\"{id}\"");
    server.until(|b| b["pairs"].to_string().contains(&quoted), "/api/v1/pools").await;
    node
}

/// Says one sentence after the other until told to stop.
async fn traffic(server: &TestServer, stop: Arc<AtomicBool>) -> JoinHandle<()> {
    let (mut client, id) = server.session("en", "es").await;
    tokio::spawn(async move {
        while !stop.load(SeqCst) {
            client.chunk(&id, 0, &speech(200), true).await;
            assert_eq!(client.told().await["type"], "translation_result");
            client.seen_of("ui_event");
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    })
}

/// A recording for the browser's microphone: a second of quiet first, as people leave.
fn recording(path: &Path) {
    let spec = hound::WavSpec {
        channels: 1,
        sample_rate: 16_000,
        bits_per_sample: 16,
        sample_format: hound::SampleFormat::Int,
    };
    let mut wav = hound::WavWriter::create(path, spec).unwrap();
    for pair in speech(3_000).chunks_exact(2) {
        wav.write_sample(i16::from_le_bytes([pair[0], pair[1]])).unwrap();
    }
    wav.finalize().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_what_happens_and_speaks_in_a_browser() {
    let scratch = tempfile::tempdir().unwrap();
    let wav = scratch.path().join("speech.wav");
    recording(&wav);
    let Some(browser) = Browser::open(scratch.path(), &wav).await else {
        writeln!(std::io::stdout(), "skipped: chromium is not installed").unwrap();
        return;
    };
    let server = TestServer::start(|_| {}).await;
    let nodes = [echo(&server, "left").await, echo(&server, "right").await];
    let stop = Arc::new(AtomicBool::new(false));
    let speaker = traffic(&server, Arc::clone(&stop)).await;

    browser.go(&format!("http://{}/console", server.addr())).await;
    numbers_move(&browser).await;
    a_job_has_its_timeline(&browser).await;
    a_drained_node_leaves_the_pools(&browser, &server).await;
    strange_names_stay_text(&browser, &server).await;
    an_utterance_is_spoken_and_heard(&browser).await;

    stop.store(true, SeqCst);
    speaker.await.unwrap();
    silence_is_told(&browser, server).await;
    nodes.iter().for_each(JoinHandle::abort);
    assert_eq!(browser.complaints().await, Vec::<String>::new());
    browser.close().await;
}

async fn numbers_move(browser: &Browser) {
    browser.until("document.querySelector('#freshness').textContent", |v| v == "live").await;
    browser.until("document.querySelector('#nodes-ready').textContent", |v| v == "2").await;
    browser.until("document.querySelector('#sessions').textContent", |v| v == "1").await;
    let ended = "document.querySelector('#failed').parentNode.textContent && \
         Number(document.querySelector('#ended').nextSibling.textContent.split(' ')[0])";
    let first = browser.until(ended, |v| v.as_f64() > Some(0.0)).await;
    browser.until(ended, |v| v.as_f64() > first.as_f64()).await;
    let dispatch = "document.querySelector('#dispatch').textContent";
    browser.until(dispatch, |v| v.as_str().is_some_and(|v| v.ends_with(" ms"))).await;
    let points = "document.querySelector('#dispatch ~ .picture polyline').getAttribute('points')\
         .split(' ').length";
    browser.until(points, |v| v.as_u64() >= Some(2)).await;
}

async fn a_job_has_its_timeline(browser: &Browser) {
    browser.click("nav a[href='#jobs']").await;
    browser.until("document.activeElement.textContent", |v| v == "Jobs").await;
    let done = "[...document.querySelectorAll('tbody tr')].some((r) => \
         r.textContent.includes('succeeded'))";
    browser.until(done, |v| v == true).await;
    browser.click("tbody tr:last-child a[href^='#jobs/job-']").await;
    let picture = "document.querySelector('svg.timeline').getAttribute('aria-label')";
    let words =
        browser.until(picture, |v| v.as_str().is_some_and(|v| v.contains("delivered at"))).await;
    for stage in ["received", "cut", "queued", "placed", "written", "settled", "durable"] {
        assert!(words.as_str().unwrap().contains(&format!("{stage} at ")), "{stage}: {words}");
    }
    let bars = browser.value("document.querySelectorAll('svg.timeline rect').length").await;
    assert!(bars.as_u64() >= Some(8), "{bars}");
    let reasons = browser.value("document.querySelector('section[aria-label]').textContent").await;
    let reasons = reasons.as_str().unwrap().to_owned();
    assert!(reasons.contains("chosen") && reasons.contains("from pool en:es"), "{reasons}");
}

async fn a_drained_node_leaves_the_pools(browser: &Browser, server: &TestServer) {
    browser.click("nav a[href='#pools']").await;
    let heads = "[...document.querySelectorAll('.matrix thead th')].map((h) => h.textContent)";
    browser.until(heads, |v| *v == json!(["Pair", "left", "right"])).await;
    browser.click("nav a[href='#nodes']").await;
    browser.click("button[aria-label='drain left']").await;
    server.until(|b| b["state"] == "draining", "/api/v1/nodes/left").await;
    browser.until("document.querySelector('#said').textContent", |v| v == "left is draining").await;
    browser.click("nav a[href='#pools']").await;
    browser.until(heads, |v| *v == json!(["Pair", "right"])).await;
    browser.click("nav a[href='#nodes']").await;
    // The button is the same one, and has another word now.
    browser.click("button[aria-label='undrain left']").await;
    server.until(|b| b["state"] == "ready", "/api/v1/nodes/left").await;
}

async fn strange_names_stay_text(browser: &Browser, server: &TestServer) {
    const NAME: &str = "<img id=evil src=x onerror=\"document.title='evil'\">";
    let peer = server.raw_node().await;
    let node = FakeNode::register(peer, NAME, &["en", "es"]).await;
    let names = "[...document.querySelectorAll('tbody th')].map((h) => h.textContent)";
    browser.until(names, |v| v.as_array().is_some_and(|v| v.contains(&json!(NAME)))).await;
    assert!(browser.value("document.querySelector('#evil')").await.is_null());
    drop(node);
    server.until(|b| b["nodes"].to_string().contains("offline"), "/api/v1/nodes").await;
}

async fn an_utterance_is_spoken_and_heard(browser: &Browser) {
    browser.click("nav a[href='#talk']").await;
    browser
        .until("document.querySelector('#languages').children.length", |v| v.as_u64() > Some(1))
        .await;
    browser.set("#from", "en").await;
    browser.set("#to", "es").await;
    browser.click("button[type=submit].main").await;
    let ready = "!document.querySelector('.hold').disabled";
    browser.until(ready, |v| v == true).await;
    browser.hold(".hold", Duration::from_millis(1_500)).await;
    let told = |part: &str| format!("document.querySelector('.utterance .{part}')?.textContent");
    let echoed = |v: &serde_json::Value| v.as_str().is_some_and(|v| v.contains("[echo]"));
    browser.until(&told("translated"), echoed).await;
    let heard = browser.until(&told("heard"), echoed).await;
    let seconds = heard.as_str().unwrap().split(' ').find_map(|word| word.parse::<f64>().ok());
    assert!(seconds > Some(0.8), "what was held was heard: {heard}");
    let played = |v: &serde_json::Value| v.as_str().is_some_and(|v| v.ends_with("played"));
    browser.until(&told("speech"), played).await;
}

async fn silence_is_told(browser: &Browser, server: TestServer) {
    browser.click("nav a[href='#overview']").await;
    server.server.stop().await;
    let lost = |v: &serde_json::Value| {
        v.as_str().is_some_and(|v| v.starts_with("connection lost, last heard"))
    };
    browser.until("document.querySelector('#freshness').textContent", lost).await;
}
