//! What the pages are told, and who may ask.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{SOON, TestServer, http, http_with};

const FEED: &str = "/api/v1/console/feed";
const EVIL: &str = "host: evil.example\r\n";

/// Somebody who looks.
struct Viewer {
    stream: TcpStream,
    read: String,
}

impl Viewer {
    async fn open(server: &TestServer, view: &str, headers: &str) -> Self {
        let mut stream = TcpStream::connect(server.addr()).await.unwrap();
        let host = if headers.contains("host:") { "" } else { "host: localhost\r\n" };
        let request = format!("GET {FEED}?view={view} HTTP/1.1\r\n{host}{headers}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut viewer = Self { stream, read: String::new() };
        viewer.until("\r\n\r\n").await.expect("an answer");
        viewer
    }

    fn status(&self) -> u16 {
        self.read.split(' ').nth(1).unwrap().parse().unwrap()
    }

    /// Reads until that text came; none if the answer ends before.
    async fn until(&mut self, text: &str) -> Option<()> {
        while !self.read.contains(text) {
            let mut bytes = [0; 4096];
            let read = tokio::time::timeout(SOON, self.stream.read(&mut bytes));
            match read.await.expect("nothing came").unwrap_or(0) {
                0 => return None,
                n => self.read.push_str(&String::from_utf8_lossy(&bytes[..n])),
            }
        }
        Some(())
    }

    /// The next picture of that view, whole.
    async fn picture(&mut self, view: &str) -> Option<Value> {
        let mark = format!("event: {view}\ndata: ");
        self.until(&mark).await?;
        let from = self.read.find(&mark).unwrap() + mark.len();
        self.read.drain(..from);
        self.until("\n\n").await?;
        let end = self.read.find("\n\n").unwrap();
        // An event is one chunk, unless it is cut in the middle; none of these are that long.
        let picture = serde_json::from_str(&self.read[..end]).unwrap();
        self.read.drain(..end);
        Some(picture)
    }

    /// The answer ends, though nobody asked for that.
    async fn ends(mut self) {
        while self.until("a text that never comes").await.is_some() {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn viewers_see_the_overview_and_their_view_and_there_are_only_so_many() {
    let server = TestServer::start(|config| config.console.viewers_max = 2).await;
    let mut first = Viewer::open(&server, "nodes", "").await;
    assert_eq!(first.status(), 200);
    assert!(first.read.contains("text/event-stream"));
    assert_eq!(first.picture("nodes").await.unwrap(), json!({"nodes": [], "total": 0}));
    let overview = first.picture("overview").await.unwrap();
    assert_eq!((&overview["ready"], &overview["nodes"]["slots_max"]), (&json!(true), &json!(0)));

    let _node = server.node("n1", &["zh", "en"]).await;
    let nodes = first.picture("nodes").await.unwrap();
    assert_eq!((&nodes["nodes"][0]["id"], &nodes["total"]), (&json!("n1"), &json!(1)));
    let second = Viewer::open(&server, "overview", "").await;
    let third = Viewer::open(&server, "overview", "").await;
    assert_eq!((second.status(), third.status()), (200, 503));
    drop(second);
    // A place is free once the server has seen that its viewer is gone.
    let deadline = tokio::time::Instant::now() + SOON;
    while Viewer::open(&server, "jobs", "").await.status() != 200 {
        assert!(tokio::time::Instant::now() < deadline, "no place becomes free");
    }
    assert_eq!(server.get(&format!("{FEED}?view=none")).await.0, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_not_changed_is_told_to_who_comes_later() {
    let server = TestServer::start(|_| {}).await;
    for _ in 0..2 {
        let mut viewer = Viewer::open(&server, "pools", "").await;
        assert_eq!(viewer.picture("pools").await.unwrap()["pairs_total"], 0);
        // Longer than a picture is fresh.
        viewer.picture("overview").await.unwrap();
        viewer.picture("overview").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_goes_ends_what_is_looked_at_and_waits_for_nobody() {
    let server = TestServer::start(|_| {}).await;
    let mut viewer = Viewer::open(&server, "jobs", "").await;
    viewer.picture("overview").await.unwrap();
    let began = tokio::time::Instant::now();
    server.server.stop().await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    viewer.ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_can_be_turned_off() {
    let server = TestServer::start(|config| config.console.enabled = false).await;
    for path in ["/console", "/console/main.js", FEED, "/api/v1/console/jobs"] {
        assert_eq!(server.get(path).await.0, 404, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pages_load_nothing_from_elsewhere_and_all_they_name_is_there() {
    let server = TestServer::start(|_| {}).await;
    let (status, page) = http(server.addr(), "GET", "/console", "").await;
    assert_eq!(status, 200);
    let mut texts = vec![page.clone()];
    let names = page.split(['"', '\'']).filter(|word| word.starts_with("console/"));
    for name in names {
        let (status, text) = http(server.addr(), "GET", &format!("/{name}"), "").await;
        assert_eq!(status, 200, "{name}");
        texts.push(text);
    }
    assert_eq!(texts.len(), 3, "a style and a script");
    let imports: Vec<String> = texts[1..]
        .iter()
        .flat_map(|text| text.split('\'').filter(|word| word.starts_with("./")))
        .map(str::to_owned)
        .collect();
    assert!(imports.len() >= 5, "{imports:?}");
    for name in imports.iter().map(|name| &name[2..]).chain(["capture.js"]) {
        let (status, text) = http(server.addr(), "GET", &format!("/console/{name}"), "").await;
        assert_eq!(status, 200, "{name}");
        texts.push(text);
    }
    for text in &texts {
        // The one address in them is the name of a vocabulary.
        let foreign = text.replace("http://www.w3.org/2000/svg", "");
        for word in ["http://", "https://", "innerHTML", "outerHTML", "insertAdjacentHTML", "eval("]
        {
            assert!(!foreign.contains(word), "{word}");
        }
    }
    for path in ["/console/", "/console/x.js", "/console/../Cargo.toml", "/consolex"] {
        assert_eq!(server.get(path).await.0, 404, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_others_change_nothing_and_see_nothing() {
    let server = TestServer::start(|_| {}).await;
    let _node = server.node("n1", &["zh", "en"]).await;
    const DRAIN: &str = "/api/v1/nodes/n1/drain";
    let post = async |headers: &str| http_with(server.addr(), "POST", DRAIN, headers, "").await.0;
    let strange = [
        "sec-fetch-site: cross-site\r\n",
        "sec-fetch-site: same-site\r\n",
        "origin: http://evil.example\r\n",
        "origin: null\r\n",
        "origin: http://localhost:1\r\n",
    ];
    for headers in strange {
        assert_eq!(post(headers).await, 403, "{headers}");
        let put = http_with(server.addr(), "PUT", "/api/v1/pools", headers, "[]").await;
        assert_eq!(put.0, 403, "{headers}");
        assert_eq!(Viewer::open(&server, "nodes", headers).await.status(), 403, "{headers}");
    }
    assert_eq!(server.get("/api/v1/nodes/n1").await.1["state"], "ready");
    let refused = server.metric("utterd_origins_refused_total").await;
    assert_eq!(refused, 3.0 * strange.len() as f64);
    assert_eq!(post("origin: http://h\r\nsec-fetch-site: same-origin\r\n").await, 200);
    assert_eq!(server.get("/api/v1/nodes/n1").await.1["state"], "draining");
}

/// One request by a name that somebody else has given this host.
async fn by_another_name(server: &TestServer, method: &str, path: &str, more: &str) -> u16 {
    let mut stream = TcpStream::connect(server.addr()).await.unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\n{EVIL}{more}connection: close\r\ncontent-length: 0\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_was_made_to_mean_this_host_opens_nothing_without_a_key() {
    let server = TestServer::start(|_| {}).await;
    let all = ["/api/v1/nodes", "/api/v1/dead-letters", "/api/v1/keys", "/metrics", FEED];
    for path in all {
        assert_eq!(by_another_name(&server, "GET", path, "").await, 403, "{path}");
    }
    assert_eq!(by_another_name(&server, "POST", "/api/v1/nodes/n1/drain", "").await, 403);
    assert_eq!(by_another_name(&server, "GET", "/health", "").await, 200);

    let asked = json!({"kind": "admin", "name": "test"}).to_string();
    let (status, made) = http(server.addr(), "POST", "/api/v1/keys", &asked).await;
    assert_eq!(status, 201, "{made}");
    let made: Value = serde_json::from_str(&made).unwrap();
    let key = format!("authorization: Bearer {}\r\n", made["secret"].as_str().unwrap());
    for path in &all[..4] {
        assert_eq!(by_another_name(&server, "GET", path, "").await, 401, "{path}");
        assert_eq!(by_another_name(&server, "GET", path, &key).await, 200, "{path}");
    }

    // Who looks by the grace of a key looks for as long as it is good.
    let mut viewer = Viewer::open(&server, "nodes", &format!("{EVIL}{key}")).await;
    assert_eq!(viewer.status(), 200);
    viewer.picture("nodes").await.unwrap();
    let revoked = http(server.addr(), "DELETE", &format!("/api/v1/keys/{}", made["id"]), "").await;
    assert_eq!(revoked.0, 200);
    viewer.ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ended_jobs_are_listed_and_found_also_after_a_restart() {
    let server = TestServer::start(|_| {}).await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    let (mut client, session) = server.session("zh", "en").await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        client.sentence(&session).await;
        let job = node.assignment().await;
        node.answer(&job, "text").await;
        client.expect("translation_result").await;
        ids.push(job["job_id"].clone());
    }
    ids.reverse();
    let listed = |picture: &Value| -> Vec<Value> {
        picture["jobs"].as_array().unwrap().iter().map(|job| job["id"].clone()).collect()
    };
    let mut viewer = Viewer::open(&server, "jobs", "").await;
    let picture = viewer.picture("jobs").await.unwrap();
    assert_eq!(listed(&picture), ids);
    assert_eq!(picture["states"], json!({"succeeded": 3}));
    assert_eq!(picture["jobs"][0]["node"], "n1");
    drop((viewer, client, node));

    let server = server.restart(|_| {}).await;
    let mut viewer = Viewer::open(&server, "jobs", "").await;
    let picture = viewer.picture("jobs").await.unwrap();
    assert_eq!((listed(&picture), &picture["states"]), (ids.clone(), &json!({})));
    assert_eq!(picture["jobs"][0]["src"], "zh");

    let found = async |query: &str| {
        let (status, body) = server.get(&format!("/api/v1/console/jobs?{query}")).await;
        assert_eq!(status, 200, "{body}");
        listed(&body)
    };
    assert_eq!(found(&format!("q={session}")).await, ids);
    assert_eq!(found("q=N1").await, ids);
    assert_eq!(found("q=zh%3Aen").await, ids);
    assert_eq!(found(&format!("q={}", ids[1].as_str().unwrap())).await, ids[1..2]);
    let before = format!("q=succeeded&before={}", ids[0].as_str().unwrap());
    assert_eq!(found(&before).await, ids[1..]);
    assert_eq!(found("q=nobody").await, Vec::<Value>::new());
    assert_eq!(server.get("/api/v1/console/jobs?before=x").await.0, 400);
    let long = format!("/api/v1/console/jobs?q={}", "x".repeat(300));
    assert_eq!(server.get(&long).await.0, 400);
}
