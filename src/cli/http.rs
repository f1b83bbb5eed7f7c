//! Asks a running server for one of its JSON answers.

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// Longest answer read, in bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The JSON at `path` of the server at `host:port`.
pub(super) async fn get_json(authority: &str, path: &str) -> anyhow::Result<Value> {
    ask_json(authority, Method::GET, path).await
}

/// What the server at `host:port` answers to a request without a body.
pub(super) async fn ask_json(authority: &str, method: Method, path: &str) -> anyhow::Result<Value> {
    send_json(authority, method, path, None).await
}

/// What the server at `host:port` answers to a request, which may have a body.
pub(super) async fn send_json(
    authority: &str,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> anyhow::Result<Value> {
    let stream = TcpStream::connect(authority)
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
