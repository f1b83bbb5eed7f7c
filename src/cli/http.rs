//! Asks a running server for one of its answers.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, HOST, HeaderValue};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;

use super::{Failure, code};
use crate::peer::dial::{Identity, Trust};

/// Longest answer read, in bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A running server.
#[derive(Clone)]
pub(super) struct Target {
    /// `HOST:PORT`.
    authority: String,
    encrypted: bool,
    trust: Trust,
    /// What to show as `Authorization`, if anything.
    credential: Option<HeaderValue>,
}

impl Target {
    /// At `HOST:PORT`, which may have `http://` or `ws://` before it, or, for an encrypted
    /// connection, `https://` or `wss://`.
    pub(super) fn new(address: &str, trust: Trust) -> Self {
        let (scheme, rest) = address.split_once("://").unwrap_or(("http", address));
        let encrypted = matches!(scheme, "https" | "wss");
        let authority = rest.trim_end_matches('/').to_owned();
        Self { authority, encrypted, trust, credential: None }
    }

    /// With a key to show.
    fn showing(self, key: Option<&str>) -> Result<Self, Failure> {
        let bearer = |key: &str| {
            let mut value = HeaderValue::try_from(format!("Bearer {key}"))?;
            value.set_sensitive(true);
            anyhow::Ok(value)
        };
        let credential = key.map(bearer).transpose();
        let fault = |_| Failure::new(code::USAGE, anyhow::anyhow!("that is no key"));
        Ok(Self { credential: credential.map_err(fault)?, ..self })
    }

    /// `HOST:PORT`.
    pub(super) fn authority(&self) -> &str {
        &self.authority
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
    /// Admin key of the server's to show, if it asks for one.
    #[arg(long, global = true, env = "UTTERD_KEY", hide_env_values = true)]
    api_key: Option<String>,
}

impl ServerArgs {
    pub(super) fn target(&self) -> Result<Target, Failure> {
        let target = Target::new(&self.server, trust(self.ca.as_deref(), None)?);
        target.showing(self.api_key.as_deref())
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
    let body = body.map(Value::to_string).unwrap_or_default();
    send(target, Asked { method, path, body, if_match: None }).await
}

/// A request.
pub(super) struct Asked<'a> {
    pub(super) method: Method,
    pub(super) path: &'a str,
    pub(super) body: String,
    /// Which state of things it is to change; none for any.
    pub(super) if_match: Option<&'a str>,
}

/// What a server answers to a request, as JSON.
pub(super) async fn send(target: &Target, asked: Asked<'_>) -> anyhow::Result<Value> {
    let path = asked.path.to_owned();
    let answer = exchange(target, asked).await?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
    let Ok(body) = body else {
        bail!("the answer of {} is too long or broken", target.authority);
    };
    let value: Value = serde_json::from_slice(&body.to_bytes())?;
    if !status.is_success() {
        bail!("{path}: {}", value["error"].as_str().unwrap_or(status.as_str()));
    }
    Ok(value)
}

/// The answer of a server, of which only the head was read.
pub(super) async fn exchange(
    target: &Target,
    asked: Asked<'_>,
) -> anyhow::Result<Response<Incoming>> {
    let Target { authority, encrypted, trust, credential } = target;
    let stream = Box::pin(trust.connect(authority, *encrypted))
        .await
        .with_context(|| format!("no server answers at {authority}"))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await?;
    // It ends when the answer is read, or dropped.
    drop(tokio::spawn(connection));
    let mut request = Request::builder().method(asked.method).uri(asked.path);
    request = request.header(HOST, authority);
    if let Some(credential) = credential {
        request = request.header(AUTHORIZATION, credential);
    }
    if let Some(tag) = asked.if_match {
        request = request.header(hyper::header::IF_MATCH, format!("\"{tag}\""));
    }
    let request = request.body(Full::from(asked.body))?;
    Ok(sender.send_request(request).await?)
}
