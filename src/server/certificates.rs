//! Certificates: read at the start, checked beforehand, read again while the server runs.

use std::sync::Arc;

use hyper::{Response, StatusCode};
use serde_json::json;
use tracing::{error, info};

use super::routes::{Routes, fault, reply};
use super::shared::Shared;
use crate::config::{Config, Fault, Faults, Place};
use crate::transport::{Body, Tls};

/// Reads the files of certificates that the configuration names and tells all that is wrong with
/// them. Blocks.
pub fn check_certificates(config: &Config) -> Result<(), Faults> {
    Tls::load(config.tls.clone()).map(drop)
}

/// Reads the files again, for the connections to come. With faults in them the old ones stay.
pub(super) async fn reload(shared: &Shared) -> Result<(), Faults> {
    if !shared.tls.is_used() {
        info!("there are no certificates to read again");
        return Ok(());
    }
    let tls = Arc::clone(&shared.tls);
    // The disk may take its time.
    let read = tokio::task::spawn_blocking(move || tls.reload()).await;
    let read = read.unwrap_or_else(|error| {
        let wrong = format!("not read: {error}");
        let (key, place) = ("tls".to_owned(), Place::Nowhere);
        Err(Faults(vec![Fault { key, wrong, given: None, allowed: None, place }]))
    });
    let outcome = if read.is_ok() { "done" } else { "refused" };
    shared.metrics.tls_reloads.with_label_values(&[outcome]).inc();
    match &read {
        Ok(()) => info!("certificates read again"),
        Err(faults) => error!(%faults, "the certificates cannot be used; the old ones stay"),
    }
    read
}

impl Routes {
    pub(super) async fn reload_certificates(&self) -> Response<Body> {
        if !self.shared.tls.is_used() {
            return fault(StatusCode::CONFLICT, "no listener has a certificate");
        }
        match reload(&self.shared).await {
            Ok(()) => reply(StatusCode::OK, &json!({"reloaded": true})),
            Err(faults) => fault(StatusCode::UNPROCESSABLE_ENTITY, &faults.to_string()),
        }
    }
}
