//! Connections that this side opens, plain or encrypted: whom it believes to be the server, and who
//! it says that it is.
//!
//! It refuses to know what is said over them.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{Error as PemError, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, Error as TlsError, RootCertStore};

use super::brake::{Brake, Braked};

/// Certificates for connections this side opens. Without any, only plain ones can be.
#[derive(Clone, Default)]
pub struct Trust(Option<Arc<ClientConfig>>);

/// A file of certificates that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// It cannot be read, or is not PEM, or holds nothing of what it is for.
    #[error("{}: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: PemError,
    },
    /// What it holds is no certificate, or does not go with its key.
    #[error("{}: {source}", file.display())]
    Unfit {
        /// The file.
        file: PathBuf,
        /// Why.
        source: TlsError,
    },
}

/// Files with which a client shows who it is, in PEM.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Certificate chain, its own certificate first.
    pub cert: PathBuf,
    /// The private key that belongs to it.
    pub key: PathBuf,
}

impl Trust {
    /// Believes what the authorities in the file `ca` have certified and nobody else, and shows
    /// that identity, if there is one, to servers that ask.
    pub fn read(ca: &Path, identity: Option<&Identity>) -> Result<Self, TrustError> {
        let mut roots = RootCertStore::empty();
        for root in certificates(ca)? {
            roots.add(root).map_err(|source| unfit(ca, source))?;
        }
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|source| unfit(ca, source))?
            .with_root_certificates(roots);
        let mut config = match identity {
            None => config.with_no_client_auth(),
            Some(Identity { cert, key }) => {
                let private = PrivateKeyDer::from_pem_file(key)
                    .map_err(|source| TrustError::Read { file: key.clone(), source })?;
                let shown = config.with_client_auth_cert(certificates(cert)?, private);
                shown.map_err(|source| unfit(cert, source))?
            }
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(Some(Arc::new(config))))
    }

    /// Whether encrypted connections can be opened.
    pub fn is_some(&self) -> bool {
        self.0.is_some()
    }

    /// What is wrong where they are wanted and cannot be.
    pub(super) fn missing() -> io::Error {
        let text = "an encrypted connection needs a file of certificates to believe (--ca)";
        io::Error::new(io::ErrorKind::InvalidInput, text)
    }

    /// Connects to `HOST:PORT`; small messages leave at once. An encrypted connection is there
    /// when the server has shown a certificate for HOST that is believed.
    pub async fn connect(&self, authority: &str, encrypted: bool) -> io::Result<Stream> {
        if !encrypted {
            return Ok(Stream::Plain(open(authority).await?));
        }
        let config = self.0.as_ref().ok_or_else(Self::missing)?;
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(host).map_err(io::Error::other)?;
        let connector = TlsConnector::from(Arc::clone(config));
        let stream = connector.connect(name, open(authority).await?).await?;
        Ok(Stream::Encrypted(Box::new(stream)))
    }
}

/// Shows no certificate: there is nothing to see in it.
impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_some() { "Trust(a file)" } else { "Trust(none)" })
    }
}

async fn open(authority: &str) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(authority).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let read = read.and_then(|all| match all.is_empty() {
        true => Err(PemError::NoItemsFound),
        false => Ok(all),
    });
    read.map_err(|source| TrustError::Read { file: file.to_owned(), source })
}

fn unfit(file: &Path, source: TlsError) -> TrustError {
    TrustError::Unfit { file: file.to_owned(), source }
}

/// A connection that this side opened.
#[derive(Debug)]
pub enum Stream {
    /// As it is.
    Plain(TcpStream),
    /// Over TLS.
    Encrypted(Box<TlsStream<TcpStream>>),
    /// Either, with a brake.
    Slow(Box<Braked<Stream>>),
}

impl Stream {
    /// The same, read as slowly as the brake wants.
    pub fn slowed(self, brake: Brake) -> Self {
        Self::Slow(Box::new(Braked::new(self, brake)))
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(context, buffer),
            Self::Encrypted(tls) => Pin::new(tls).poll_read(context, buffer),
            Self::Slow(slow) => slow.poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(context, buffer),
            Self::Encrypted(tls) => Pin::new(tls).poll_write(context, buffer),
            Self::Slow(slow) => Pin::new(slow.inner()).poll_write(context, buffer),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(context),
            Self::Encrypted(tls) => Pin::new(tls).poll_flush(context),
            Self::Slow(slow) => Pin::new(slow.inner()).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(context),
            Self::Encrypted(tls) => Pin::new(tls).poll_shutdown(context),
            Self::Slow(slow) => Pin::new(slow.inner()).poll_shutdown(context),
        }
    }
}
