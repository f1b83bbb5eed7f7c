//! `utterd dead-letters`: what could not be brought to its end.

use std::path::PathBuf;

use clap::Subcommand;
use hyper::Method;
use serde_json::{Value, json};

use super::http::{ServerArgs, Target, ask_json, get_json};
use super::{Failure, Outcome, code, runtime, say};
use crate::server::explain_dead_letter;
use crate::store::open_read_only;

/// Letters read from a closed database.
const ROWS_MAX: usize = 1_000;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    server: ServerArgs,
    /// Read the database of this directory instead; no server may be using it.
    #[arg(long, global = true, value_name = "DIR")]
    data: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// All of them, oldest first.
    List {
        /// Only those behind this one.
        #[arg(long, value_name = "ID", default_value_t = 0)]
        after: u64,
    },
    /// One, with the result it holds.
    Show {
        /// Which.
        id: u64,
    },
    /// Do the job again. Its result goes to the session, or becomes a dead letter of its own.
    Resend {
        /// Which.
        id: u64,
    },
    /// Forget it.
    Drop {
        /// Which.
        id: u64,
    },
}

pub(super) fn run(args: &Args) -> Outcome {
    let value = match &args.data {
        Some(dir) => from_database(dir, &args.what)?,
        None => runtime()?.block_on(ask(&args.server.target()?, &args.what))?,
    };
    say(&serde_json::to_string_pretty(&value)?);
    Ok(())
}

async fn ask(server: &Target, what: &What) -> anyhow::Result<Value> {
    const BASE: &str = "/api/v1/dead-letters";
    match what {
        What::List { after } => get_json(server, &format!("{BASE}?after={after}")).await,
        What::Show { id } => get_json(server, &format!("{BASE}/{id}")).await,
        What::Resend { id } => ask_json(server, Method::POST, &format!("{BASE}/{id}/resend")).await,
        What::Drop { id } => ask_json(server, Method::DELETE, &format!("{BASE}/{id}")).await,
    }
}

fn from_database(dir: &std::path::Path, what: &What) -> Result<Value, Failure> {
    let unusable = |error| Failure::new(code::DATA, anyhow::Error::from(error));
    let store = open_read_only(dir).map_err(unusable)?;
    match what {
        What::List { after } => {
            let rows = store.dead_letters(*after, ROWS_MAX).map_err(unusable)?;
            let letters: Vec<Value> = rows.iter().map(explain_dead_letter).collect();
            Ok(json!({"dead_letters": letters}))
        }
        What::Show { id } => match store.dead_letter(*id).map_err(unusable)? {
            Some((row, _)) => Ok(explain_dead_letter(&row)),
            None => Err(anyhow::anyhow!("no such dead letter").into()),
        },
        What::Resend { .. } | What::Drop { .. } => {
            let text = "a closed database is only read; ask a running server";
            Err(Failure::new(code::USAGE, anyhow::anyhow!(text)))
        }
    }
}
