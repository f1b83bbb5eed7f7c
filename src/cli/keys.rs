//! `utterd keys`: who may come in.

use clap::{Subcommand, ValueEnum};
use hyper::Method;
use serde_json::{Value, json};

use super::http::{ServerArgs, Target, get_json, send_json};
use super::{Outcome, runtime, say};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    /// Opens sessions, as a tenant.
    Session,
    /// Lets nodes in.
    Node,
    /// Shows and changes what operators can, from other hosts.
    Admin,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Kind::Session => "session",
            Kind::Node => "node",
            Kind::Admin => "admin",
        }
    }
}

#[derive(Debug, Subcommand)]
enum What {
    /// Make a key. Its text is told this once. From the first key of a kind on, nobody comes in
    /// without one.
    Create {
        /// What it opens.
        #[arg(value_enum)]
        kind: Kind,
        /// Whose sessions it opens.
        #[arg(long, required_if_eq("kind", "session"))]
        tenant: Option<String>,
        /// What it is for, for people.
        #[arg(long, default_value = "")]
        name: String,
        /// Days after which it is no longer good.
        #[arg(long, value_name = "DAYS")]
        expires_in_days: Option<u64>,
    },
    /// All keys, without their secrets.
    List,
    /// Make a key good for nothing, and close what it opened.
    Revoke {
        /// Its number.
        id: u64,
    },
}

pub(super) fn run(args: &Args) -> Outcome {
    let value = runtime()?.block_on(ask(&args.server.target()?, &args.what))?;
    say(&serde_json::to_string_pretty(&value)?);
    Ok(())
}

async fn ask(server: &Target, what: &What) -> anyhow::Result<Value> {
    const BASE: &str = "/api/v1/keys";
    match what {
        What::Create { kind, tenant, name, expires_in_days } => {
            let body = json!({"kind": kind.as_str(), "tenant": tenant, "name": name,
                "expires_in_days": expires_in_days});
            send_json(server, Method::POST, BASE, Some(&body)).await
        }
        What::List => get_json(server, BASE).await,
        What::Revoke { id } => {
            send_json(server, Method::DELETE, &format!("{BASE}/{id}"), None).await
        }
    }
}
