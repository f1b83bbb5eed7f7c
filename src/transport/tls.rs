//! TLS of the listeners: their certificates, read and published whole, and the handshake.
//!
//! A connection takes what is published when its handshake begins and keeps it: files that are
//! read again later are for those who come later. What is read either replaces all that was, or
//! nothing of it.
//!
//! It refuses to know when files are to be read again, and what is said after the handshake.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::{Error as PemError, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::server::{ParsedCertificate, ServerConfig, WebPkiClientVerifier};
use tokio_rustls::rustls::{self, RootCertStore};
use tokio_rustls::server::TlsStream;
use tracing::debug;

use crate::config::{self, Fault, Faults, Place};
use crate::telemetry::Metrics;

/// Encrypted bytes that wait for the socket, at most, beyond one record. As long as a record: then
/// a peer that takes anything at all is seen to do so at the latest after that much.
const WAITING_BYTES_MAX: usize = 16 * 1024;

/// Whom a listener is for, as far as its certificates go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Sessions, or sessions and nodes.
    Sessions,
    /// Nodes alone.
    Nodes,
}

/// The certificates of all listeners.
#[derive(Debug)]
pub struct Tls {
    settings: config::Tls,
    /// Readings begun so far.
    readings: AtomicU64,
    published: watch::Sender<Published>,
}

/// What listeners show and ask for. One value, so that both change together.
#[derive(Debug, Clone, Default)]
struct Published {
    /// The reading this comes from.
    reading: u64,
    /// None of a plain listener.
    sessions: Option<Arc<ServerConfig>>,
    nodes: Option<Arc<ServerConfig>>,
}

/// Certificates that were read and are not in force yet.
#[derive(Debug)]
pub struct Reading(Published);

impl Published {
    fn of(&self, side: Side) -> Option<&Arc<ServerConfig>> {
        match side {
            Side::Sessions => self.sessions.as_ref(),
            Side::Nodes => self.nodes.as_ref(),
        }
    }
}

impl Tls {
    /// Reads the files that are named by settings that passed their checks, and blocks for as long.
    /// Fails with all that is wrong with the files.
    pub fn load(settings: config::Tls) -> Result<Self, Faults> {
        let published = watch::Sender::new(read(&settings)?);
        Ok(Self { settings, readings: AtomicU64::new(0), published })
    }

    /// Without files: every listener is plain.
    pub fn none() -> Self {
        Self {
            settings: config::Tls::default(),
            readings: AtomicU64::new(0),
            published: watch::Sender::default(),
        }
    }

    /// Whether any file is named.
    pub fn is_used(&self) -> bool {
        self.settings != config::Tls::default()
    }

    /// Reads the files again, blocks for as long, and publishes them for the connections to come.
    /// Fails with all that is wrong with them; what was published before stays then.
    pub fn reload(&self) -> Result<(), Faults> {
        self.publish(self.reading()?);
        Ok(())
    }

    /// Reads the files again, and blocks for as long, without publishing anything.
    pub fn reading(&self) -> Result<Reading, Faults> {
        let reading = 1 + self.readings.fetch_add(1, Ordering::Relaxed);
        Ok(Reading(Published { reading, ..read(&self.settings)? }))
    }

    /// Publishes what was read, for the connections to come. Of two readings at the same time the
    /// one that began later has seen the newer files.
    pub fn publish(&self, Reading(read): Reading) {
        self.published.send_if_modified(|published| {
            let newer = published.reading < read.reading;
            if newer {
                *published = read;
            }
            newer
        });
    }

    /// What a listener of that side needs for its handshakes; none if it is plain.
    pub fn door(&self, side: Side, metrics: &Arc<Metrics>) -> Option<TlsDoor> {
        self.published.borrow().of(side)?;
        let (published, metrics) = (self.published.subscribe(), Arc::clone(metrics));
        Some(TlsDoor { published, side, metrics })
    }
}

/// Shakes hands with those who come to one listener.
#[derive(Clone)]
pub struct TlsDoor {
    published: watch::Receiver<Published>,
    side: Side,
    metrics: Arc<Metrics>,
}

impl TlsDoor {
    /// Becomes the encrypted stream over `io`, if the peer does its part within that time.
    pub(super) async fn shake_hands<S>(
        &self,
        io: S,
        peer: SocketAddr,
        within: Duration,
    ) -> Option<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        // A listener that had certificates has some after every reading.
        let config = self.published.borrow().of(self.side).cloned()?;
        let bounded =
            |c: &mut rustls::ServerConnection| c.set_buffer_limit(Some(WAITING_BYTES_MAX));
        let handshake = TlsAcceptor::from(config).accept_with(io, bounded);
        let why = match tokio::time::timeout(within, handshake).await {
            Ok(Ok(stream)) => return Some(stream),
            Ok(Err(error)) => {
                debug!(%peer, %error, "no handshake");
                "refused"
            }
            Err(_) => {
                debug!(%peer, "the handshake was not done in time");
                "late"
            }
        };
        self.metrics.tls_failures.with_label_values(&[why]).inc();
        None
    }
}

/// A file, and the setting that names it.
#[derive(Clone, Copy)]
struct Named<'a> {
    key: &'static str,
    file: &'a Path,
}

fn named<'a>(key: &'static str, file: &'a Option<PathBuf>) -> Option<Named<'a>> {
    file.as_deref().map(|file| Named { key, file })
}

impl Named<'_> {
    fn fault(self, wrong: impl Into<String>) -> Fault {
        Fault {
            key: self.key.to_owned(),
            wrong: wrong.into(),
            given: Some(format!("{:?}", self.file)),
            allowed: None,
            place: Place::Nowhere,
        }
    }

    fn unread(self, what: &str, error: PemError) -> Fault {
        match error {
            PemError::Io(error) => self.fault(format!("cannot be read: {error}")),
            PemError::NoItemsFound => self.fault(format!("holds no {what} in PEM")),
            other => self.fault(format!("is not PEM: {other}")),
        }
    }

    /// Every certificate in the file, at least one.
    fn certificates(self) -> Result<Vec<CertificateDer<'static>>, Fault> {
        let all = CertificateDer::pem_file_iter(self.file).and_then(Iterator::collect);
        let all: Vec<_> = all.map_err(|error| self.unread("certificate", error))?;
        if all.is_empty() {
            return Err(self.unread("certificate", PemError::NoItemsFound));
        }
        for (at, one) in all.iter().enumerate() {
            ParsedCertificate::try_from(one)
                .map_err(|error| self.fault(format!("certificate {}: {error}", at + 1)))?;
        }
        Ok(all)
    }

    fn private_key(self) -> Result<PrivateKeyDer<'static>, Fault> {
        let key = PrivateKeyDer::from_pem_file(self.file);
        key.map_err(|error| self.unread("private key", error))
    }

    /// Takes whom the authorities in the file have certified, and nobody else.
    fn verifier(self) -> Result<Arc<dyn ClientCertVerifier>, Fault> {
        let mut roots = RootCertStore::empty();
        for (at, root) in self.certificates()?.into_iter().enumerate() {
            let added = roots.add(root);
            added.map_err(|error| self.fault(format!("certificate {}: {error}", at + 1)))?;
        }
        let made = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build();
        made.map_err(|error| self.fault(error.to_string()))
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// All that the settings name, read.
fn read(settings: &config::Tls) -> Result<Published, Faults> {
    let common = named("tls.cert", &settings.cert).zip(named("tls.key", &settings.key));
    let own =
        named("tls.node_cert", &settings.node_cert).zip(named("tls.node_key", &settings.node_key));
    let client_ca = named("tls.node_client_ca", &settings.node_client_ca);
    let mut faults: Vec<Fault> = Vec::new();
    let sessions = common.and_then(|shown| read_side(shown, None, &mut faults));
    let nodes = match (own, client_ca) {
        (None, None) => sessions.clone(),
        _ => own.or(common).and_then(|shown| read_side(shown, client_ca, &mut faults)),
    };
    if faults.is_empty() {
        return Ok(Published { reading: 0, sessions, nodes });
    }
    Err(Faults(faults))
}

/// What one side shows, a chain and its key, and whom it takes. All files are looked at before one
/// that cannot be used ends it.
fn read_side(
    (cert, key): (Named<'_>, Named<'_>),
    client_ca: Option<Named<'_>>,
    faults: &mut Vec<Fault>,
) -> Option<Arc<ServerConfig>> {
    // A file that both sides use is told of once.
    let mut told = |fault| {
        if !faults.contains(&fault) {
            faults.push(fault);
        }
    };
    let chain = cert.certificates().map_err(&mut told).ok();
    let private = key.private_key().map_err(&mut told).ok();
    let clients = match client_ca {
        None => Some(WebPkiClientVerifier::no_client_auth()),
        Some(ca) => ca.verifier().map_err(&mut told).ok(),
    };
    let (chain, private, clients) = (chain?, private?, clients?);
    let made = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .and_then(|b| b.with_client_cert_verifier(clients).with_single_cert(chain, private));
    match made {
        Ok(mut config) => {
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            Some(Arc::new(config))
        }
        Err(error) => {
            told(key.fault(format!("does not go with {}: {error}", cert.key)));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::Pin;

    use futures_util::FutureExt;
    use tokio::io::duplex;
    use tokio_rustls::TlsConnector;
    use tokio_rustls::rustls::pki_types::ServerName;

    use super::*;

    /// A listener of sessions, and one who believes it.
    fn both_ends() -> (Tls, TlsConnector) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = (dir.path().join("cert"), dir.path().join("key"));
        std::fs::write(&cert, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let client = rustls::ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let settings = config::Tls { cert: Some(cert), key: Some(key), ..config::Tls::default() };
        (Tls::load(settings).unwrap(), TlsConnector::from(Arc::new(client)))
    }

    #[tokio::test]
    async fn of_what_the_socket_does_not_take_one_record_is_taken() {
        const PIPE: usize = 1024;
        let (tls, client) = both_ends();
        let door = tls.door(Side::Sessions, &Arc::new(Metrics::new())).unwrap();
        let (near, far) = duplex(PIPE);
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        let name = ServerName::try_from("localhost").unwrap();
        let second = Duration::from_secs(1);
        let (served, known) =
            tokio::join!(door.shake_hands(near, peer, second), client.connect(name, far));
        // The other end is there, and reads nothing.
        let (mut served, _known) = (served.unwrap(), known.unwrap());
        let (piece, mut taken) = ([0; 1024], 0);
        while let Some(size) =
            poll_fn(|context| Pin::new(&mut served).poll_write(context, &piece)).now_or_never()
        {
            taken += size.unwrap();
            assert!(taken <= WAITING_BYTES_MAX + 16 * 1024 + PIPE, "{taken} bytes are taken");
        }
    }

    #[test]
    fn of_two_readings_the_one_that_began_later_stays() {
        let (tls, _) = both_ends();
        let first = tls.published.borrow().clone();
        tls.publish(Reading(Published { reading: 2, ..first.clone() }));
        tls.publish(Reading(Published { reading: 1, sessions: None, nodes: None }));
        assert_eq!(tls.published.borrow().reading, 2);
        assert!(tls.published.borrow().sessions.is_some());
    }
}
