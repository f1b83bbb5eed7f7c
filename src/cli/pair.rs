//! `utterd pair`: a code by which one session is served by one node alone.

use hyper::Method;

use super::http::{ServerArgs, ask_json};
use super::{Outcome, runtime, say};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The node, as it calls itself.
    node: String,
    #[command(flatten)]
    server: ServerArgs,
}

pub(super) fn run(args: &Args) -> Outcome {
    let path = format!("/api/v1/nodes/{}/pairing-codes", args.node);
    let value = runtime()?.block_on(ask_json(&args.server.target()?, Method::POST, &path))?;
    say(&serde_json::to_string_pretty(&value)?);
    Ok(())
}
