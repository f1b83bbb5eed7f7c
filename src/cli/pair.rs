//! `utterd pair`: a code by which one session is served by one node alone.

use hyper::Method;

use super::http::ask_json;
use super::{Outcome, runtime, say};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The node, as it calls itself.
    node: String,
    /// The running server to ask.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:5010")]
    server: String,
}

pub(super) fn run(args: &Args) -> Outcome {
    let path = format!("/api/v1/nodes/{}/pairing-codes", args.node);
    let value = runtime()?.block_on(ask_json(&args.server, Method::POST, &path))?;
    say(&serde_json::to_string_pretty(&value)?);
    Ok(())
}
