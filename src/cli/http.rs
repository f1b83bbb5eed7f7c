//! Asks a running server for one of its JSON answers.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;

use super::{Failure, code};
use crate::peer::dial::{Identity, Trust};

/// Longest answer read, in bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A running server.
#[derive(Debug, Clone)]
pub(super) struct Target {
    /// `HOST:PORT`.
    authority: String,
    encrypted: bool,
    trust: Trust,
}

impl Target {
    /// At `HOST:PORT`, which may have `http://` or `ws://` before it, or, for an encrypted
    /// connection, `https://` or `wss://`.
    pub(super) fn new(address: &str, trust: Trust) -> Self {
        let (scheme, rest) = address.split_once("://").unwrap_or(("http", address));
        let encrypted = matches!(scheme, "https" | "wss");
        Self { authority: rest.trim_end_matches('/').to_owned(), encrypted, trust }
    }
}

/// Which running server a verb asks.
#[derive(Debug, clap::Args)]
pub(super) struct ServerArgs {
    /// The running server to ask; with https:// before it over TLS.
    #[arg(long, global = true, value_name = "HOST:PORT", default_value = "127.0.0.1:5010")]
    server: String,
    /// Certificates to believe, and no others (PEM).
    #[arg(long, global = true, value_name = "FILE")]
    ca: Option<PathBuf>,
}

impl ServerArgs {
    pub(super) fn target(&self) -> Result<Target, Failure> {
        Ok(Target::new(&self.server, trust(self.ca.as_deref(), None)?))
    }
}

/// Reads the certificates named on the command line.
pub(super) fn trust(ca: Option<&Path>, identity: Option<&Identity>) -> Result<Trust, Failure> {
    let read = ca.map(|ca| Trust::read(ca, identity)).transpose();
    Ok(read.map_err(|error| Failure::new(code::USAGE, error))?.unwrap_or_default())
}

/// The JSON at `path` of a server.
pub(super) async fn get_json(target: &Target, path: &str) -> anyhow::Result<Value> {
    ask_json(target, Method::GET, path).await
}

/// What a server answers to a request without a body.
pub(super) async fn ask_json(target: &Target, method: Method, path: &str) -> anyhow::Result<Value> {
    send_json(target, method, path, None).await
}

/// What a server answers to a request, which may have a body.
pub(super) async fn send_json(
    target: &Target,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> anyhow::Result<Value> {
    let Target { authority, encrypted, trust } = target;
    let stream = Box::pin(trust.connect(authority, *encrypted))
        .await
        .with_context(|| format!("no server answers at {authority}"))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path);
    let request = request
        .header(hyper::header::HOST, authority)
        .body(Full::from(body.map(Value::to_string).unwrap_or_default()))?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    let Ok(body) = body else { bail!("the answer of {authority} is too long or broken") };
    driver.abort();
    let value: Value = serde_json::from_slice(&body.to_bytes())?;
    if !status.is_success() {
        bail!("{path}: {}", value["error"].as_str().unwrap_or(status.as_str()));
    }
    Ok(value)
}
