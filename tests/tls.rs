//! Certificates of the server and of nodes, read again while it runs; handshakes that never end;
//! origins of browsers.

mod support;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use support::{FakeNode, Peer, SOON, TestServer, http, http_over};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, ServerName};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use utterd::config::Config;
use utterd::server::{Server, StartError};

/// One who certifies.
struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, in PEM.
struct Identity {
    cert: String,
    key: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// For this machine.
    fn certify(&self) -> Identity {
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let key = KeyPair::generate().unwrap();
        let cert = CertificateParams::new(names).unwrap().signed_by(&key, &self.0).unwrap();
        Identity { cert: cert.pem(), key: key.serialize_pem() }
    }

    /// Who believes this authority and no other, and shows that identity if there is one.
    fn believer(
        &self,
        identity: Option<&Identity>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Believer {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match identity {
            None => config.with_no_client_auth(),
            Some(Identity { cert, key }) => {
                let chain = PemObject::pem_slice_iter(cert.as_bytes()).map(Result::unwrap);
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                config.with_client_auth_cert(chain.collect(), key).unwrap()
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Believer(TlsConnector::from(Arc::new(config)))
    }

    /// The same without an identity, of any version.
    fn client(&self) -> Believer {
        self.believer(None, &[&TLS12, &TLS13])
    }
}

/// One end of TLS connections.
struct Believer(TlsConnector);

impl Believer {
    async fn dial(&self, addr: SocketAddr) -> std::io::Result<TlsStream<TcpStream>> {
        let tcp = TcpStream::connect(addr).await?;
        self.0.connect(ServerName::try_from("localhost").unwrap(), tcp).await
    }

    async fn peer(&self, addr: SocketAddr, path: &str) -> Peer {
        Peer::over(self.dial(addr).await.unwrap(), path).await.unwrap()
    }

    async fn ask(&self, addr: SocketAddr, method: &str, path: &str) -> (u16, String) {
        http_over(self.dial(addr).await.unwrap(), method, path, "", "").await
    }

    /// Asks until a page contains that.
    async fn until(&self, addr: SocketAddr, path: &str, wanted: &str) {
        let seen = async {
            while !self.ask(addr, "GET", path).await.1.contains(wanted) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let in_time = tokio::time::timeout(SOON, seen).await;
        assert!(in_time.is_ok(), "{path} has no {wanted}");
    }

    /// A node in the pools.
    async fn node(&self, addr: SocketAddr) -> FakeNode {
        let peer = self.peer(addr, "/ws/node").await;
        let node = FakeNode::register(peer, "n1", &["zh", "en"]).await;
        self.until(addr, "/api/v1/pools", "\"n1\"").await;
        node
    }

    /// A session, opened; its id.
    async fn session(&self, addr: SocketAddr) -> (Peer, String) {
        let mut client = self.peer(addr, "/ws/session").await;
        client
            .send(json!({"type": "session_init", "client_version": "t", "platform": "web",
                "src_lang": "zh", "tgt_lang": "en"}))
            .await;
        let ack = client.expect("session_init_ack").await;
        (client, ack["session_id"].as_str().unwrap().to_owned())
    }
}

/// The files of a server.
struct Files {
    dir: TempDir,
}

impl Files {
    fn of(identity: &Identity) -> Self {
        let files = Self { dir: tempfile::tempdir().unwrap() };
        files.write(identity);
        files
    }

    fn write(&self, identity: &Identity) {
        std::fs::write(self.path("cert"), &identity.cert).unwrap();
        std::fs::write(self.path("key"), &identity.key).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.pem"))
    }

    fn set(&self, config: &mut Config) {
        config.tls.cert = Some(self.path("cert"));
        config.tls.key = Some(self.path("key"));
    }
}

/// An utterance there and back.
async fn speak(node: &mut FakeNode, client: &mut Peer, session: &str, index: u64, text: &str) {
    client.utterance(session, index, "zh", "en").await;
    let job = node.assignment_of(index).await;
    node.answer(&job, text).await;
    assert_eq!(client.told().await["text_asr"], text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_speaks_over_tls_and_gets_its_result() {
    let authority = Authority::new();
    let files = Files::of(&authority.certify());
    let server = TestServer::start(|config| files.set(config)).await;
    let addr = server.addr();
    let mut node = authority.client().node(addr).await;
    for (index, version) in [&TLS12, &TLS13].into_iter().enumerate() {
        let client = authority.believer(None, &[version]);
        let stream = client.dial(addr).await.unwrap();
        let (_, connection) = stream.get_ref();
        assert_eq!(connection.protocol_version(), Some(version.version));
        assert_eq!(connection.alpn_protocol(), Some(&b"http/1.1"[..]));
        let (mut session, id) = client.session(addr).await;
        speak(&mut node, &mut session, &id, 0, &format!("heard {index}")).await;
    }
    let strangers = Authority::new().client();
    assert!(strangers.dial(addr).await.is_err(), "a certificate of somebody else was believed");
    drop(node);
    server.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_on_a_tls_port_gets_no_answer_and_hurts_nobody() {
    let authority = Authority::new();
    let files = Files::of(&authority.certify());
    let server = TestServer::start(|config| files.set(config)).await;
    let client = authority.client();
    let (mut session, id) = client.session(server.addr()).await;
    for _ in 0..20 {
        assert_eq!(http(server.addr(), "GET", "/health", "").await, (0, String::new()));
    }
    session.send(json!({"type": "client_heartbeat", "session_id": id})).await;
    session.expect("server_heartbeat").await;
    assert_eq!(client.ask(server.addr(), "GET", "/health").await, (200, "OK".to_owned()));
    let failed = "utterd_tls_handshakes_failed_total{why=\"refused\"} 20";
    client.until(server.addr(), "/metrics", failed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stalled_handshakes_keep_nobody_out_and_are_cut_off() {
    const STALLED: usize = 50;
    let authority = Authority::new();
    let files = Files::of(&authority.certify());
    let change = |config: &mut Config| {
        files.set(config);
        config.transport.header_timeout_ms = 3_000;
        config.transport.connections_max = STALLED + 1;
    };
    let server = TestServer::start(change).await;
    let mut stalled = Vec::new();
    for at in 0..STALLED {
        let mut tcp = TcpStream::connect(server.addr()).await.unwrap();
        // Half of them begin: the head of a record, and of a greeting, of which no more comes.
        if at % 2 == 0 {
            tcp.write_all(&[0x16, 0x03, 0x01, 0x01, 0x00, 0x01, 0x00]).await.unwrap();
        }
        stalled.push(tcp);
    }
    let client = authority.client();
    let (mut session, id) = client.session(server.addr()).await;
    // They count: there is no room for one more, and no words in plain for who expects others.
    let mut extra = TcpStream::connect(server.addr()).await.unwrap();
    let mut words = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(1), extra.read_to_end(&mut words)).await;
    assert!(ended.is_ok(), "handshakes are not counted");
    assert_eq!(words, b"");
    session.send(json!({"type": "client_heartbeat", "session_id": id})).await;
    session.expect("server_heartbeat").await;
    for mut tcp in stalled {
        let rest = tokio::time::timeout(SOON, tcp.read_to_end(&mut Vec::new())).await;
        assert!(rest.is_ok(), "a stalled handshake is not cut off");
    }
    let failed = format!("utterd_tls_handshakes_failed_total{{why=\"late\"}} {STALLED}");
    client.until(server.addr(), "/metrics", &failed).await;
    session.send(json!({"type": "client_heartbeat", "session_id": id})).await;
    session.expect("server_heartbeat").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_is_for_those_who_come_later() {
    let (old, new) = (Authority::new(), Authority::new());
    let files = Files::of(&old.certify());
    let server = TestServer::start(|config| files.set(config)).await;
    let addr = server.addr();
    let mut node = old.client().node(addr).await;
    let (mut session, id) = old.client().session(addr).await;
    speak(&mut node, &mut session, &id, 0, "before").await;

    files.write(&new.certify());
    assert!(new.client().dial(addr).await.is_err(), "nobody asked for a reload");
    let (status, body) = old.client().ask(addr, "POST", "/api/v1/tls/reload").await;
    assert_eq!((status, body.as_str()), (200, r#"{"reloaded":true}"#));
    assert!(old.client().dial(addr).await.is_err(), "the old certificate is still shown");
    assert_eq!(new.client().ask(addr, "GET", "/health").await.0, 200);
    speak(&mut node, &mut session, &id, 1, "after").await;
    let (mut late, id) = new.client().session(addr).await;
    speak(&mut node, &mut late, &id, 0, "late").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_files_on_a_reload_leave_the_old_ones() {
    let (old, new) = (Authority::new(), Authority::new());
    let (first, second) = (old.certify(), new.certify());
    let files = Files::of(&first);
    let server = TestServer::start(|config| files.set(config)).await;
    let addr = server.addr();
    let client = old.client();
    let (cert, key) = (second.cert.as_str(), second.key.as_str());
    let short = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    let faults = [
        ("", key, "tls.cert: holds no certificate in PEM"),
        (short, key, "tls.cert: certificate 1: "),
        (cert, "", "tls.key: holds no private key in PEM"),
        // The new certificate with the old key.
        (cert, first.key.as_str(), "tls.key: does not go with tls.cert: "),
    ];
    for (cert, key, told) in faults {
        files.write(&Identity { cert: cert.to_owned(), key: key.to_owned() });
        let (status, body) = client.ask(addr, "POST", "/api/v1/tls/reload").await;
        let body: Value = serde_json::from_str(&body).unwrap();
        let error = body["error"].as_str().unwrap();
        assert!(status == 422 && error.starts_with(told), "{status} {body}, not {told}");
        assert!(error.contains(files.dir.path().to_str().unwrap()), "{error} names no file");
        assert_eq!(client.ask(addr, "GET", "/health").await.0, 200);
    }
    let refused = "utterd_tls_reloads_total{outcome=\"refused\"} 4";
    client.until(addr, "/metrics", refused).await;
    files.write(&second);
    assert_eq!(client.ask(addr, "POST", "/api/v1/tls/reload").await.0, 200);
    assert_eq!(new.client().ask(addr, "GET", "/health").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_certificates_there_is_nothing_to_reload() {
    let server = TestServer::start(|_| {}).await;
    let (status, body) = http(server.addr(), "POST", "/api/v1/tls/reload", "").await;
    assert_eq!((status, body.as_str()), (409, r#"{"error":"no listener has a certificate"}"#));
    server.server.reload_certificates().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn all_faults_of_the_files_are_told_at_the_start_and_by_check() {
    let files = Files::of(&Authority::new().certify());
    std::fs::write(files.path("key"), "no key").unwrap();
    std::fs::write(files.path("ca"), "no certificate").unwrap();
    let mut config = support::config_for(&files.dir.path().join("data"));
    config.tls.cert = Some(files.path("absent"));
    config.tls.key = Some(files.path("key"));
    config.tls.node_client_ca = Some(files.path("ca"));
    config.server.node_listen = Some("127.0.0.1:0".to_owned());
    let Err(error) = Server::start(config.clone()).await else { panic!("it has started") };
    let StartError::Certificates(faults) = &error else { panic!("{error}") };
    let keys: Vec<&str> = faults.0.iter().map(|fault| fault.key.as_str()).collect();
    assert_eq!(keys, ["tls.cert", "tls.key", "tls.node_client_ca"], "{faults}");
    assert!(!config.server.data.exists(), "the data directory was touched");

    let text = format!(
        "[server]\nnode_listen = \"127.0.0.1:0\"\n[tls]\ncert = {:?}\nkey = {:?}\n\
         node_client_ca = {:?}\n",
        files.path("absent"),
        files.path("key"),
        files.path("ca")
    );
    let file = files.dir.path().join("utterd.toml");
    std::fs::write(&file, text).unwrap();
    let checked = Command::new(env!("CARGO_BIN_EXE_utterd")).arg("check").arg(file).output();
    let checked = checked.unwrap();
    assert_eq!(checked.status.code(), Some(2));
    let said = String::from_utf8(checked.stderr).unwrap();
    assert!(said.contains(&faults.to_string()), "{said}");
}

/// A server whose nodes have a listener of their own, and are to show a certificate of `nodes`.
async fn with_node_certificates(files: &Files, nodes: &Authority) -> TestServer {
    std::fs::write(files.path("ca"), nodes.0.pem()).unwrap();
    let change = |config: &mut Config| {
        files.set(config);
        config.server.node_listen = Some("127.0.0.1:0".to_owned());
        config.tls.node_client_ca = Some(files.path("ca"));
    };
    TestServer::start(change).await
}

/// Why a node does not get through the handshake; `None` if it does.
async fn refusal(node: &Believer, addr: SocketAddr) -> Option<String> {
    // In TLS 1.3 the client believes to be done before the server has looked at its certificate.
    match node.dial(addr).await {
        Err(error) => Some(error.to_string()),
        Ok(stream) => Peer::over(stream, "/ws/node").await.err().map(|error| error.to_string()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_show_a_certificate_of_the_right_authority() {
    let (authority, nodes, foreign) = (Authority::new(), Authority::new(), Authority::new());
    let files = Files::of(&authority.certify());
    let server = with_node_certificates(&files, &nodes).await;
    let (addr, node_addr) = (server.addr(), server.server.node_addr());
    let (right, wrong) = (nodes.certify(), foreign.certify());
    for version in [&TLS12, &TLS13] {
        let bare = refusal(&authority.believer(None, &[version]), node_addr).await;
        assert!(bare.is_some_and(|why| why.contains("alert")), "a node without a certificate");
        let strange = refusal(&authority.believer(Some(&wrong), &[version]), node_addr).await;
        assert!(strange.is_some_and(|why| why.contains("alert")), "a node of somebody else");
        let known = refusal(&authority.believer(Some(&right), &[version]), node_addr).await;
        assert_eq!(known, None);
    }
    let client = authority.client();
    let failed = "utterd_tls_handshakes_failed_total{why=\"refused\"} 4";
    client.until(addr, "/metrics", failed).await;
    // Sessions need none, and what the right node does is theirs.
    let node = authority.believer(Some(&right), &[&TLS13]);
    let mut node = node.node(node_addr).await;
    let (mut session, id) = client.session(addr).await;
    speak(&mut node, &mut session, &id, 0, "by a known node").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_takes_the_authority_of_the_nodes_too() {
    let (authority, old, new) = (Authority::new(), Authority::new(), Authority::new());
    let files = Files::of(&authority.certify());
    let server = with_node_certificates(&files, &old).await;
    let node_addr = server.server.node_addr();
    let (before, after) = (old.certify(), new.certify());
    let before = authority.believer(Some(&before), &[&TLS13]);
    let after = authority.believer(Some(&after), &[&TLS13]);
    assert_eq!(refusal(&before, node_addr).await, None);
    std::fs::write(files.path("ca"), new.0.pem()).unwrap();
    server.server.reload_certificates().await.unwrap();
    // The same client again: what it could resume was made under the old authority.
    assert!(refusal(&before, node_addr).await.is_some(), "an authority that is gone counts");
    assert_eq!(refusal(&after, node_addr).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_may_see_another_certificate_than_sessions() {
    let (public, inner) = (Authority::new(), Authority::new());
    let (files, node_files) = (Files::of(&public.certify()), Files::of(&inner.certify()));
    let change = |config: &mut Config| {
        files.set(config);
        config.server.node_listen = Some("127.0.0.1:0".to_owned());
        config.tls.node_cert = Some(node_files.path("cert"));
        config.tls.node_key = Some(node_files.path("key"));
    };
    let server = TestServer::start(change).await;
    let (addr, node_addr) = (server.addr(), server.server.node_addr());
    let mut node = inner.client().node(node_addr).await;
    assert!(public.client().dial(node_addr).await.is_err());
    let (mut session, id) = public.client().session(addr).await;
    speak(&mut node, &mut session, &id, 0, "each by its own").await;
}

/// The program, which does not outlive its test.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Program {
    fn serve(files: &Files, data: &Path) -> (Self, SocketAddr) {
        use std::io::{BufRead, BufReader};
        let mut child = Command::new(env!("CARGO_BIN_EXE_utterd"))
            .args(["serve", "--listen", "127.0.0.1:0", "--data"])
            .arg(data)
            .env("UTTERD_TLS_CERT", files.path("cert"))
            .env("UTTERD_TLS_KEY", files.path("key"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let addr = line.trim().strip_prefix("utterd listening on ").unwrap().parse().unwrap();
        (Self(child), addr)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hangup_has_the_files_read_again() {
    let (old, new) = (Authority::new(), Authority::new());
    let files = Files::of(&old.certify());
    let (program, addr) = Program::serve(&files, &files.dir.path().join("data"));
    let hang_up = || kill_process(Pid::from_child(&program.0), Signal::HUP).unwrap();
    let (mut session, id) = old.client().session(addr).await;
    let good = new.certify();
    files.write(&Identity { cert: good.cert.clone(), key: "none".to_owned() });
    hang_up();
    old.client().until(addr, "/metrics", "utterd_tls_reloads_total{outcome=\"refused\"} 1").await;
    files.write(&good);
    hang_up();
    let deadline = tokio::time::Instant::now() + SOON;
    while new.client().dial(addr).await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "the old certificate stays");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    session.send(json!({"type": "client_heartbeat", "session_id": id})).await;
    session.expect("server_heartbeat").await;
}

/// Runs a verb of the program to its end; what it printed.
async fn utterd(arguments: &[&str]) -> Result<String, String> {
    let ended = tokio::process::Command::new(env!("CARGO_BIN_EXE_utterd")).args(arguments).output();
    let ended = tokio::time::timeout(SOON, ended).await.expect("it does not end").unwrap();
    match ended.status.success() {
        true => Ok(String::from_utf8(ended.stdout).unwrap()),
        false => Err(String::from_utf8(ended.stderr).unwrap()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clients_of_the_program_speak_tls() {
    let (authority, nodes) = (Authority::new(), Authority::new());
    let files = Files::of(&authority.certify());
    let server = with_node_certificates(&files, &nodes).await;
    let shown = Files::of(&nodes.certify());
    std::fs::write(files.path("root"), authority.0.pem()).unwrap();
    let path = |of: &Files, name: &str| of.path(name).to_str().unwrap().to_owned();
    let (root, stranger) = (path(&files, "root"), path(&files, "ca"));
    let node_url = format!("wss://localhost:{}/ws/node", server.server.node_addr().port());
    let node = Command::new(env!("CARGO_BIN_EXE_utterd"))
        .args(["node", "--id", "n1", "--url", &node_url, "--ca", &root])
        .args(["--cert", &path(&shown, "cert"), "--key", &path(&shown, "key")])
        .stdout(Stdio::null())
        .spawn();
    let _node = Program(node.unwrap());
    authority.client().until(server.addr(), "/api/v1/pools", "\"n1\"").await;

    let url = format!("wss://{}/ws/session", server.addr());
    let speech = ["speak", "--generated", "0.5", "--fast", "--from", "en", "--to", "es"];
    let speak = async |rest: &[&str]| utterd(&[&speech, rest].concat()).await;
    let said = speak(&["--url", &url, "--ca", &root]).await.unwrap();
    assert!(said.contains("#0 translated: [echo]"), "{said}");
    let unbelieved = speak(&["--url", &url, "--ca", &stranger]).await.unwrap_err();
    assert!(unbelieved.contains("invalid peer certificate"), "{unbelieved}");
    let bare = speak(&["--url", &url]).await.unwrap_err();
    assert!(bare.contains("a file of certificates to believe (--ca)"), "{bare}");

    let https = format!("https://{}", server.addr());
    let listed = utterd(&["inspect", "nodes", "--server", &https, "--ca", &root]).await.unwrap();
    assert!(listed.contains("\nn1 "), "{listed}");
    let empty = utterd(&["dead-letters", "list", "--server", &https, "--ca", &root]).await.unwrap();
    assert!(empty.contains("\"dead_letters\": []"), "{empty}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_can_be_put_on_a_server_behind_tls() {
    let authority = Authority::new();
    let files = Files::of(&authority.certify());
    std::fs::write(files.path("root"), authority.0.pem()).unwrap();
    let server = TestServer::start(|config| files.set(config)).await;
    let url = format!("wss://{}", server.addr());
    let root = files.path("root");
    let load = ["load", "--url", &url, "--ca", root.to_str().unwrap(), "--nodes", "1"];
    let load = [&load[..], &["--sessions", "2", "--seconds", "0.3", "--warmup", "0"]].concat();
    let told = utterd(&[&load[..], &["--rate", "50", "--json"]].concat()).await.unwrap();
    let told: Value = serde_json::from_str(&told).unwrap();
    assert!(told.to_string().contains("\"dispatch"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn browsers_are_let_in_from_the_origins_that_are_allowed() {
    let change = |config: &mut Config| {
        config.transport.allowed_origins =
            vec!["https://talk.example".to_owned(), "http://Localhost:8080".to_owned()];
    };
    let server = TestServer::start(change).await;
    let upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
        sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n";
    let ask = async |path: &str, headers: &str| {
        let stream = TcpStream::connect(server.addr()).await.unwrap();
        let asked = http_over(stream, "GET", path, headers, "");
        // An upgrade that is agreed to does not end: its answer is told apart by its silence.
        tokio::time::timeout(Duration::from_millis(300), asked).await.map_or(101, |a| a.0)
    };
    let allowed = ["", "origin: https://talk.example\r\n", "Origin: HTTP://localhost:8080\r\n"];
    for origin in allowed {
        assert_eq!(ask("/api/v1/stats", origin).await, 200, "{origin}");
        for path in ["/ws/session", "/ws/node"] {
            assert_eq!(ask(path, &format!("{origin}{upgrade}")).await, 101, "{path} {origin}");
        }
    }
    let refused = [
        "origin: https://evil.example\r\n",
        "origin: http://talk.example\r\n",
        "origin: https://talk.example:8443\r\n",
        "origin: https://talk.example.evil.example\r\n",
        "origin: https://talk.example/\r\n",
        "origin: null\r\n",
        "origin:\r\n",
        "origin: https://talk.example\r\norigin: https://evil.example\r\n",
    ];
    for origin in refused {
        assert_eq!(ask("/api/v1/stats", origin).await, 403, "{origin}");
        for path in ["/ws/session", "/ws/node"] {
            assert_eq!(ask(path, &format!("{origin}{upgrade}")).await, 403, "{path} {origin}");
        }
    }
    let counted = server.metric("utterd_origins_refused_total").await;
    assert_eq!(counted, 3.0 * refused.len() as f64);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_list_every_origin_is_let_in() {
    let server = TestServer::start(|_| {}).await;
    let stream = TcpStream::connect(server.addr()).await.unwrap();
    let (status, _) =
        http_over(stream, "GET", "/api/v1/stats", "origin: https://any.example\r\n", "").await;
    assert_eq!(status, 200);
}
