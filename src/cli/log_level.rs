//! `utterd log-level`: what a running server logs.

use hyper::Method;

use super::http::{Asked, ServerArgs, send};
use super::{Outcome, runtime, say};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A level, or levels by target such as `info,utterd::store=debug`; without it the filter in
    /// force is shown.
    filter: Option<String>,
    #[command(flatten)]
    server: ServerArgs,
}

pub(super) fn run(args: &Args) -> Outcome {
    let (method, body) = match &args.filter {
        Some(filter) => (Method::PUT, filter.clone()),
        None => (Method::GET, String::new()),
    };
    let asked = Asked { method, path: "/api/v1/log-level", body, if_match: None };
    let answer = runtime()?.block_on(send(&args.server.target()?, asked))?;
    say(answer["level"].as_str().unwrap_or_default());
    Ok(())
}
