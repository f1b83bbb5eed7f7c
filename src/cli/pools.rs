//! `utterd pools`: the pools of a running server, shown or changed.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Subcommand;
use hyper::Method;

use super::http::{Asked, ServerArgs, send};
use super::{Outcome, runtime, say};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    server: ServerArgs,
    /// Change them only if their `tag` is still this one.
    #[arg(long, global = true, value_name = "TAG")]
    tag: Option<String>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Show them, with their tag; so it is without a word too.
    Show,
    /// Replace all of them by the JSON list in a file.
    Replace {
        /// `-` for standard input.
        file: PathBuf,
    },
    /// Add one, or put it in the place of the one of its name.
    Put {
        /// What it is called.
        name: String,
        /// A JSON object; `-` for standard input.
        file: PathBuf,
    },
    /// Take one away.
    Remove {
        /// What it is called.
        name: String,
    },
    /// Go back to those of the configuration file.
    Reset,
}

pub(super) fn run(args: &Args) -> Outcome {
    let all = "/api/v1/pools".to_owned();
    let one = |name: &str| format!("{all}/{name}");
    let none = String::new();
    let (method, path, body) = match &args.what {
        None | Some(What::Show) => (Method::GET, all, none),
        Some(What::Replace { file }) => (Method::PUT, all, read(file)?),
        Some(What::Put { name, file }) => (Method::PUT, one(name), read(file)?),
        Some(What::Remove { name }) => (Method::DELETE, one(name), none),
        Some(What::Reset) => (Method::DELETE, all, none),
    };
    let asked = Asked { method, path: &path, body, if_match: args.tag.as_deref() };
    let answer = runtime()?.block_on(send(&args.server.target()?, asked))?;
    say(&serde_json::to_string_pretty(&answer)?);
    Ok(())
}

fn read(file: &Path) -> anyhow::Result<String> {
    let text = match file.to_str() {
        Some("-") => std::io::read_to_string(std::io::stdin()),
        _ => std::fs::read_to_string(file),
    };
    text.with_context(|| format!("{} cannot be read", file.display()))
}
