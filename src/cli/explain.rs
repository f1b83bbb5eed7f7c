//! `utterd explain`: who would get a job now, and why not the others.

use super::http::{ServerArgs, get_json};
use super::{Outcome, runtime, say, show};

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  utterd explain --from zh --to en --server 10.0.0.2:5010")]
pub(super) struct Args {
    /// Language spoken, or `auto`.
    #[arg(long, value_name = "LANG")]
    from: String,
    /// Language wanted.
    #[arg(long, value_name = "LANG")]
    to: String,
    /// With `--from auto`, the languages it may be.
    #[arg(long, value_name = "LANG,...", value_delimiter = ',')]
    candidates: Vec<String>,
    /// Services the job needs.
    #[arg(long, value_name = "TYPE,...", value_delimiter = ',', default_value = "asr,nmt,tts")]
    services: Vec<String>,
    /// Whose job it is.
    #[arg(long)]
    tenant: Option<String>,
    /// As one JSON document.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

pub(super) fn run(args: &Args) -> Outcome {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("from", &args.from).append_pair("to", &args.to);
    query.append_pair("services", &args.services.join(","));
    if !args.candidates.is_empty() {
        query.append_pair("candidates", &args.candidates.join(","));
    }
    if let Some(tenant) = &args.tenant {
        query.append_pair("tenant", tenant);
    }
    let path = format!("/api/v1/explain?{}", query.finish());
    let value = runtime()?.block_on(get_json(&args.server.target()?, &path))?;
    match args.json {
        true => say(&serde_json::to_string_pretty(&value)?),
        false => say(show::outlook(&value).trim_end()),
    }
    Ok(())
}
