//! `utterd drain` and `utterd undrain`: the server is stopped in good order, or a node emptied.

use hyper::Method;

use super::http::{ServerArgs, ask_json};
use super::{Outcome, runtime, say};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Empty this node, and leave the server as it is.
    #[arg(long, value_name = "ID")]
    node: Option<String>,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct UndrainArgs {
    /// Which node.
    #[arg(long, value_name = "ID")]
    node: String,
    #[command(flatten)]
    server: ServerArgs,
}

pub(super) fn run(args: &Args) -> Outcome {
    let path = match &args.node {
        Some(node) => format!("/api/v1/nodes/{node}/drain"),
        None => "/api/v1/drain".to_owned(),
    };
    post(&args.server, &path)
}

pub(super) fn undrain(args: &UndrainArgs) -> Outcome {
    post(&args.server, &format!("/api/v1/nodes/{}/undrain", args.node))
}

fn post(server: &ServerArgs, path: &str) -> Outcome {
    let value = runtime()?.block_on(ask_json(&server.target()?, Method::POST, path))?;
    say(&serde_json::to_string_pretty(&value)?);
    Ok(())
}
