//! `utterd reload`: settings and certificates are read again.

use hyper::Method;
use serde_json::Value;

use super::http::{ServerArgs, ask_json};
use super::{Outcome, runtime, say};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print the answer as it came.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

pub(super) fn run(args: &Args) -> Outcome {
    let path = "/api/v1/config/reload";
    let answer = runtime()?.block_on(ask_json(&args.server.target()?, Method::POST, path))?;
    if args.json {
        say(&serde_json::to_string_pretty(&answer)?);
        return Ok(());
    }
    say(&format!("version {} of the settings is in force", answer["version"]));
    for (list, remark) in [
        ("changed", ""),
        ("needs_restart", ": needs a restart"),
        ("outranked", ": an operator's pools rank above the file's"),
    ] {
        for one in answer[list].as_array().into_iter().flatten() {
            let shown = |value: &Value| value.as_str().unwrap_or("unset").to_owned();
            let setting = shown(&one["setting"]);
            say(&format!("  {setting} {} -> {}{remark}", shown(&one["from"]), shown(&one["to"])));
        }
    }
    Ok(())
}
