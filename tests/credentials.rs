//! Who may come in: keys and tokens, at each door, and what becomes of those who came in by a key
//! that is revoked.

mod support;

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{Peer, TestServer, config_for, http, register_message};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Error as WsError;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use utterd::server::{Opened, Server};
use utterd::store::{Store, StoreOptions};
use utterd::transport::Listen;

const INIT: &str = r#"{"type":"session_init","client_version":"t","platform":"web",
    "src_lang":"zh","tgt_lang":"en"}"#;

async fn make(server: &TestServer, body: Value) -> Value {
    let (status, made) = http(server.addr(), "POST", "/api/v1/keys", &body.to_string()).await;
    assert_eq!(status, 201, "{made}");
    serde_json::from_str(&made).unwrap()
}

async fn session_key(server: &TestServer, tenant: &str) -> (String, u64) {
    let made = make(server, json!({"kind": "session", "tenant": tenant})).await;
    (made["secret"].as_str().unwrap().to_owned(), made["id"].as_u64().unwrap())
}

async fn revoke(server: &TestServer, id: u64) {
    let (status, body) = http(server.addr(), "DELETE", &format!("/api/v1/keys/{id}"), "").await;
    assert_eq!(status, 200, "{body}");
}

/// Knocks at a door: a connection, or all that is answered.
async fn knock(addr: SocketAddr, path: &str, key: Option<&str>) -> Result<Peer, String> {
    let mut request = format!("ws://{addr}{path}").into_client_request().unwrap();
    if let Some(key) = key {
        request.headers_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
    }
    let stream = TcpStream::connect(addr).await.unwrap();
    match Peer::asking(stream, request).await {
        Ok(peer) => Ok(peer),
        Err(WsError::Http(answer)) => {
            let mut headers: Vec<_> =
                answer.headers().iter().filter(|(name, _)| *name != "date").collect();
            headers.sort_by_key(|(name, _)| name.as_str());
            let body = answer.body().as_ref().map(|body| String::from_utf8_lossy(body));
            Err(format!("{} {headers:?} {body:?}", answer.status()))
        }
        Err(other) => panic!("{other}"),
    }
}

/// Opens a session as whoever has this key; the first answer.
async fn open(addr: SocketAddr, key: &str, tenant: Option<&str>) -> (Peer, Value) {
    let mut peer = knock(addr, "/ws/session", Some(key)).await.expect("let in");
    let mut init: Value = serde_json::from_str(INIT).unwrap();
    init["tenant_id"] = tenant.into();
    peer.send(init).await;
    let answer = peer.next_of(&["session_init_ack", "error"]).await;
    (peer, answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_opens_the_door_as_its_tenant_and_closes_it_for_everybody_else() {
    let server = TestServer::start(|_| {}).await;
    assert!(knock(server.addr(), "/ws/session", None).await.is_ok(), "without keys it is open");
    let (key, _) = session_key(&server, "acme").await;
    assert!(knock(server.addr(), "/ws/session", None).await.is_err());
    assert!(knock(server.addr(), "/ws/node", None).await.is_ok(), "this is another door");
    let (_peer, _) = open(server.addr(), &key, None).await;
    let (_, sessions) = server.get("/api/v1/sessions").await;
    assert_eq!(sessions["sessions"][0]["tenant"], "acme");
    assert_eq!(open(server.addr(), &key, Some("acme")).await.1["type"], "session_init_ack");
    let (_, refused) = open(server.addr(), &key, Some("other")).await;
    assert_eq!(refused["code"], "FORBIDDEN");
    let (_, listed) = server.get("/api/v1/keys").await;
    assert_eq!(listed["keys"][0]["tenant"], "acme");
    assert!(!listed.to_string().contains(key.rsplit('.').next().unwrap()));
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_wrong_with_a_credential_the_answer_is_the_same_and_takes_as_long() {
    let server = TestServer::start(|_| {}).await;
    let (good, _) = session_key(&server, "acme").await;
    let old = make(&server, json!({"kind": "session", "tenant": "acme", "expires_in_days": 1}));
    let old = old.await["secret"].as_str().unwrap().to_owned();
    let (gone, id) = session_key(&server, "acme").await;
    revoke(&server, id).await;
    let node = make(&server, json!({"kind": "node"})).await["secret"].as_str().unwrap().to_owned();
    server.advance(Duration::from_secs(86_401));
    let mut forged = good.clone();
    forged.replace_range(forged.len() - 4.., "AAAA");
    let unknown = format!("uk_{:016x}.{}", 99, good.rsplit('.').next().unwrap());
    let bad = [
        ("/ws/session", vec![Some(&old), Some(&gone), Some(&node), Some(&forged), Some(&unknown)]),
        ("/ws/node", vec![Some(&good), Some(&old), Some(&gone), Some(&forged), Some(&unknown)]),
    ];
    let mut answers = Vec::new();
    let mut times: Vec<Vec<Duration>> = vec![Vec::new(); 6];
    for round in 0..60 {
        for (path, credentials) in &bad {
            for (at, key) in credentials.iter().copied().chain([None]).enumerate() {
                let began = Instant::now();
                let answer = knock(server.addr(), path, key.map(String::as_str)).await;
                if round > 0 {
                    times[at].push(began.elapsed());
                }
                answers.push(answer.map(|_| ()).expect_err("nobody is let in by that"));
            }
        }
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert!(answers[0].starts_with("401"), "{}", answers[0]);
    let medians: Vec<Duration> = times
        .into_iter()
        .map(|mut of| {
            of.sort_unstable();
            of[of.len() / 2]
        })
        .collect();
    let (least, most) = (medians.iter().min().unwrap(), medians.iter().max().unwrap());
    assert!(*most < 2 * *least, "{medians:?}");
    assert!(knock(server.addr(), "/ws/session", Some(&good)).await.is_ok());
    assert!(knock(server.addr(), "/ws/node", Some(&node)).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_opens_a_session_from_a_browser_for_its_time() {
    let server = TestServer::start(|_| {}).await;
    let (key, id) = session_key(&server, "acme").await;
    let token = mint(server.addr(), Some(&key), r#"{"expires_in_seconds":60}"#).await;
    let token = token.unwrap()["token"].as_str().unwrap().to_owned();
    let with = |credential: &str| format!("/ws/session?access_token={credential}");
    let mut peer = knock(server.addr(), &with(&token), None).await.expect("a token is let in");
    peer.send_text(INIT).await;
    peer.expect("session_init_ack").await;
    assert!(knock(server.addr(), &with(&key), None).await.is_err(), "keys stay out of addresses");
    assert_eq!(mint(server.addr(), None, "").await, Err(401));
    assert_eq!(mint(server.addr(), Some(&key), r#"{"expires_in_seconds":3601}"#).await, Err(400));
    server.advance(Duration::from_secs(61));
    assert!(knock(server.addr(), &with(&token), None).await.is_err());
    let token = mint(server.addr(), Some(&key), "").await.unwrap()["token"].clone();
    revoke(&server, id).await;
    assert!(knock(server.addr(), &with(token.as_str().unwrap()), None).await.is_err());
    assert_eq!(peer.close_code().await, Some(4401), "whoever came by its token goes with the key");
}

/// Asks for a token; the status if there is none.
async fn mint(addr: SocketAddr, key: Option<&str>, body: &str) -> Result<Value, u16> {
    let header = key.map(|key| format!("authorization: Bearer {key}\r\n")).unwrap_or_default();
    let (status, body) =
        support::http_with(addr, "POST", "/api/v1/session-tokens", &header, body).await;
    if status == 201 { Ok(serde_json::from_str(&body).unwrap()) } else { Err(status) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_revoked_or_expires_closes_what_it_opened() {
    let server = TestServer::start(|_| {}).await;
    let (revoked, id) = session_key(&server, "acme").await;
    let node = make(&server, json!({"kind": "node", "expires_in_days": 1})).await;
    let (mut session, _) = open(server.addr(), &revoked, None).await;
    let node_key = node["secret"].as_str().unwrap();
    let mut node = knock(server.addr(), "/ws/node", Some(node_key)).await.unwrap();
    node.send(register_message(Some("n1"), &["zh", "en"])).await;
    node.expect("node_register_ack").await;
    let (kept, _) = session_key(&server, "acme").await;
    let (mut other, _) = open(server.addr(), &kept, None).await;
    revoke(&server, id).await;
    assert_eq!(session.close_code().await, Some(4401));
    server.advance(Duration::from_secs(86_400));
    // It was silent for that day, too.
    let code = node.close_code().await.expect("the node is closed");
    assert!(code == 4401 || code == 1001, "{code}");
    assert!(knock(server.addr(), "/ws/node", Some(node_key)).await.is_err());
    let heartbeat = json!({"type": "client_heartbeat", "session_id": "x"});
    other.send(heartbeat).await;
    other.expect("error").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_survive_a_restart_and_their_text_is_nowhere_on_the_disk() {
    let server = TestServer::start(|_| {}).await;
    let (good, _) = session_key(&server, "acme").await;
    let (gone, id) = session_key(&server, "acme").await;
    revoke(&server, id).await;
    let server = server.restart(|_| {}).await;
    assert!(knock(server.addr(), "/ws/session", Some(&good)).await.is_ok());
    for bad in [Some(gone.as_str()), None] {
        assert!(knock(server.addr(), "/ws/session", bad).await.is_err());
    }
    let secret = good.rsplit('.').next().unwrap().as_bytes();
    for file in std::fs::read_dir(server.dir.path()).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        assert!(!bytes.windows(secret.len()).any(|window| window == secret));
    }
    use std::os::unix::fs::PermissionsExt as _;
    let secret = std::fs::metadata(server.dir.path().join("secret")).unwrap();
    assert_eq!(secret.permissions().mode() & 0o777, 0o600);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_not_taken_up_with_the_key_of_another_tenant() {
    let server = TestServer::start(|_| {}).await;
    let (acme, _) = session_key(&server, "acme").await;
    let (other, _) = session_key(&server, "other").await;
    let mut peer = knock(server.addr(), "/ws/session", Some(&acme)).await.unwrap();
    let mut init: Value = serde_json::from_str(INIT).unwrap();
    init["extensions"] = json!(["resume"]);
    peer.send(init).await;
    let ack = peer.expect("session_init_ack").await;
    let resume = json!({"type": "session_resume", "session_id": ack["session_id"],
        "epoch": ack["epoch"], "resume_secret": ack["resume_secret"], "last_seq": 0});
    drop(peer);
    for (key, recovered) in [(&other, false), (&acme, true)] {
        let mut peer = knock(server.addr(), "/ws/session", Some(key)).await.unwrap();
        peer.send(resume.clone()).await;
        assert_eq!(peer.expect("session_resume_ack").await["recovered"], recovered);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn doors_can_be_closed_before_there_is_a_key() {
    let server = TestServer::start(|config| {
        config.auth.session_keys_required = true;
        config.auth.node_keys_required = true;
    })
    .await;
    for path in ["/ws/session", "/ws/node"] {
        assert!(knock(server.addr(), path, None).await.is_err(), "{path}");
    }
    let (key, _) = session_key(&server, "acme").await;
    assert!(knock(server.addr(), "/ws/session", Some(&key)).await.is_ok());
}

/// Connections of somebody on another host.
struct Elsewhere(TcpListener);

impl Listen for Elsewhere {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, _) = self.0.accept().await?;
        Ok((stream, "203.0.113.9:4711".parse().unwrap()))
    }

    fn set_nodelay(stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)
    }

    fn turn_away(stream: TcpStream, words: &[u8]) -> io::Result<usize> {
        TcpListener::turn_away(stream, words)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_on_other_hosts_need_an_admin_key() {
    let dir = tempfile::tempdir().unwrap();
    // An admin key is made on the host itself.
    let server = TestServer::start(|_| {}).await;
    let admin = make(&server, json!({"kind": "admin", "name": "me"})).await;
    let node = make(&server, json!({"kind": "node"})).await["secret"].clone();
    let admin = admin["secret"].as_str().unwrap().to_owned();
    let TestServer { server, dir: data } = server;
    server.stop().await;
    let secret = std::fs::read(data.path().join("secret")).unwrap().try_into().unwrap();
    for (data, keys) in [(dir.path(), false), (data.path(), true)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let store = Some(Store::open(data, StoreOptions::default()).unwrap());
        let unix_ms = 1_800_000_000_000;
        let opened = Opened { listener: Elsewhere(listener), addr, store, unix_ms, secret };
        let server = Server::start_on(config_for(data), opened).await;
        let ask = async |method: &str, path: &str, key: Option<&str>| {
            let header = key.map(|key| format!("authorization: Bearer {key}\r\n"));
            support::http_with(addr, method, path, &header.unwrap_or_default(), "").await.0
        };
        let (node, admin) = (node.as_str(), Some(admin.as_str()));
        for path in ["/api/v1/nodes", "/metrics", "/api/v1/jobs"] {
            assert_eq!(ask("GET", path, None).await, if keys { 401 } else { 200 }, "{path}");
            assert_eq!(ask("GET", path, node).await, if keys { 401 } else { 200 }, "{path}");
            assert_eq!(ask("GET", path, admin).await, 200, "{path}");
        }
        for path in ["/api/v1/keys", "/api/v1/dead-letters"] {
            assert_eq!(ask("GET", path, None).await, if keys { 401 } else { 403 }, "{path}");
            assert_eq!(ask("GET", path, admin).await, if keys { 200 } else { 403 }, "{path}");
        }
        let drain = "/api/v1/nodes/n9/drain";
        assert_eq!(ask("POST", drain, None).await, if keys { 401 } else { 403 });
        assert_eq!(ask("POST", drain, admin).await, if keys { 404 } else { 403 });
        assert_eq!(ask("GET", "/health", None).await, 200);
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_made_listed_and_revoked_from_the_command_line() {
    let server = TestServer::start(|_| {}).await;
    let addr = server.addr().to_string();
    let utterd = async |args: &[&str]| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_utterd"));
        command.arg("keys").args(args).args(["--server", &addr]);
        let output = command.output().await.unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    let (made, text) = utterd(&["create", "session", "--tenant", "acme", "--name", "n"]).await;
    assert!(made);
    let key: Value = serde_json::from_str(&text).unwrap();
    assert!(knock(server.addr(), "/ws/session", key["secret"].as_str()).await.is_ok());
    assert!(!utterd(&["create", "session"]).await.0, "a session's key needs a tenant");
    assert!(utterd(&["list"]).await.1.contains("\"acme\""));
    assert!(utterd(&["revoke", "1"]).await.0);
    assert!(!utterd(&["revoke", "9"]).await.0);
    assert!(knock(server.addr(), "/ws/session", key["secret"].as_str()).await.is_err());
}
