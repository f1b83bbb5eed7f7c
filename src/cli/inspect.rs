//! `utterd inspect`: asks a running server, or reads a closed database.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde_json::{Value, json};

use super::http::{ServerArgs, get_json};
use super::{Failure, Outcome, code, runtime, say, show};
use crate::protocol::{JobId, SessionId};
use crate::server::{explain_ended, room_json, undelivered};
use crate::store::{JobView, ReadOnly, StoreError, open_read_only};

/// Rows read from a closed database.
const ROWS_MAX: usize = 1_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Jobs: state, stamps, placements and outcome. Of a database the list is of unfinished ones.
    #[value(alias = "jobs")]
    Job,
    /// Sessions: whether the client is there, its last jobs, what it was not told yet.
    #[value(alias = "sessions")]
    Session,
    /// Nodes: state, slots, load, services, pairs.
    #[value(alias = "nodes")]
    Node,
    /// Pools: the configuration, and what of it is in force with which nodes.
    #[value(alias = "pools")]
    Pool,
    /// Rooms and who is in them.
    #[value(alias = "rooms")]
    Room,
}

impl What {
    /// The page that lists all of them, also the name of the list in it.
    fn plural(self) -> &'static str {
        match self {
            What::Job => "jobs",
            What::Session => "sessions",
            What::Node => "nodes",
            What::Pool => "pools",
            What::Room => "rooms",
        }
    }

    fn text(self, value: &Value, one: bool) -> String {
        match (self, one) {
            (What::Job, true) => show::job(value),
            (What::Job, false) => show::jobs(value),
            (What::Session, true) => show::session(value),
            (What::Session, false) => show::sessions(value),
            (What::Node, true) => show::node(value),
            (What::Node, false) => show::nodes(value),
            (What::Pool, true) => show::pool(value),
            (What::Pool, false) => show::pools(value),
            (What::Room, true) => show::room(value),
            (What::Room, false) => show::rooms(value),
        }
    }
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  utterd inspect nodes
  utterd inspect job job-4f6c1a52-...
  utterd inspect session s-76A7EDF59613C5C4 --server 10.0.0.2:5010
  utterd inspect jobs --data /var/lib/utterd --json")]
pub(super) struct Args {
    /// What to show.
    #[arg(value_enum)]
    what: What,
    /// Which one: its id, of a pool its name, of a room its code. Without it, all of them.
    id: Option<String>,
    /// As one JSON document.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
    /// Read the database of this directory, or this copy of one, instead; no server may be using
    /// it.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> Outcome {
    let value = match &args.data {
        Some(dir) => from_database(dir, args)?,
        None => from_server(args)?,
    };
    match args.json {
        true => say(&serde_json::to_string_pretty(&value)?),
        false => say(args.what.text(&value, args.id.is_some()).trim_end()),
    }
    Ok(())
}

fn from_server(args: &Args) -> Result<Value, Failure> {
    let target = args.server.target()?;
    let page = format!("/api/v1/{}", args.what.plural());
    let get = |path: String| runtime()?.block_on(get_json(&target, &path)).map_err(Failure::from);
    match (&args.id, args.what) {
        (None, _) => get(page),
        // These have no page of their own.
        (Some(id), What::Pool | What::Room) => one_of(&get(page)?, args.what, id),
        (Some(id), _) => {
            let id = form_urlencoded::byte_serialize(id.as_bytes()).collect::<String>();
            get(format!("{page}/{id}"))
        }
    }
}

/// One pool or room out of all of them.
fn one_of(all: &Value, what: What, id: &str) -> Result<Value, Failure> {
    let found = match what {
        What::Pool => show::one_pool(all, id),
        _ => {
            let named = |room: &&Value| room["room_code"] == id;
            show::rows(all, what.plural()).iter().find(named).cloned()
        }
    };
    found.ok_or_else(|| anyhow::anyhow!("there is no {id} among the {}", what.plural()).into())
}

fn from_database(dir: &Path, args: &Args) -> Result<Value, Failure> {
    let store = open_read_only(dir).map_err(unusable)?;
    let Some(id) = &args.id else { return all_of(&store, args.what).map_err(unusable) };
    match args.what {
        What::Job => {
            let id: JobId =
                id.parse().map_err(|e| Failure::new(code::USAGE, anyhow::Error::new(e)))?;
            let view = store.job(id).map_err(unusable)?;
            Ok(one_job(view.ok_or_else(|| anyhow::anyhow!("{id} is not in the database"))?))
        }
        What::Session => {
            let parsed: SessionId =
                id.parse().map_err(|e| Failure::new(code::USAGE, anyhow::Error::new(e)))?;
            one_session(&store, parsed)
        }
        What::Node => {
            let nodes = all_of(&store, What::Node).map_err(unusable)?;
            let found = show::rows(&nodes, "nodes").iter().find(|node| node["node_id"] == **id);
            let missing = || anyhow::anyhow!("{id} is not in the database").into();
            found.cloned().ok_or_else(missing)
        }
        what => one_of(&all_of(&store, what).map_err(unusable)?, what, id),
    }
}

fn unusable(error: StoreError) -> Failure {
    Failure::new(code::DATA, anyhow::Error::from(error))
}

fn all_of(store: &ReadOnly, what: What) -> Result<Value, StoreError> {
    Ok(match what {
        What::Job => {
            let rows = store.jobs(ROWS_MAX)?;
            rows.into_iter().map(|row| one_job(JobView::Live(Box::new(row)))).collect()
        }
        What::Node => store
            .nodes()?
            .iter()
            .map(|row| {
                json!({"node_id": row.id, "platform": row.platform, "version": row.version,
                "first_seen_unix_ms": row.first_seen_unix_ms,
                "last_seen_unix_ms": row.last_seen_unix_ms})
            })
            .collect(),
        What::Pool => store.pools()?.map_or(Value::Null, |row| {
            let config: Value = serde_json::from_str(&row.text).unwrap_or_default();
            json!({"config_version": row.version, "config": config})
        }),
        What::Room => store.rooms()?.iter().map(room_json).collect(),
        What::Session => store
            .sessions()?
            .iter()
            .map(|row| {
                json!({"session_id": row.id, "trace_id": row.trace_id, "tenant": row.tenant,
                "platform": row.platform, "src_lang": row.src, "tgt_lang": row.tgt,
                "opened_unix_ms": row.opened_unix_ms})
            })
            .collect(),
    })
}

/// A session as it is kept: its row, its unfinished jobs, and what its client is owed.
fn one_session(store: &ReadOnly, id: SessionId) -> Result<Value, Failure> {
    let all = all_of(store, What::Session).map_err(unusable)?;
    let named = |row: &&Value| row["session_id"] == id.to_string();
    let row = show::rows(&all, "sessions").iter().find(named).cloned();
    let owed = store.outbox(id, 0, ROWS_MAX).map_err(unusable)?;
    let jobs = store.jobs(usize::MAX).map_err(unusable)?;
    let mut jobs: Vec<_> = jobs.into_iter().filter(|job| job.spec.session == id).collect();
    jobs.truncate(ROWS_MAX);
    if row.is_none() && owed.is_empty() && jobs.is_empty() {
        return Err(anyhow::anyhow!("{id} is not in the database").into());
    }
    let mut value = row.unwrap_or_else(|| json!({"session_id": id}));
    value["state"] = "kept".into();
    value["undelivered"] = owed.iter().map(undelivered).collect();
    value["jobs"] = jobs.into_iter().map(|row| one_job(JobView::Live(Box::new(row)))).collect();
    Ok(value)
}

fn one_job(view: JobView) -> Value {
    match view {
        JobView::Live(row) => json!({
            "job_id": row.id,
            "state": "unfinished",
            "session_id": row.spec.session,
            "utterance_index": row.spec.utterance_index,
            "turn_id": row.spec.turn,
            "src_lang": row.spec.src,
            "tgt_lang": row.spec.tgt,
            "audio_ms": row.spec.audio_ms,
            "accepted_unix_ms": row.accepted_unix_ms,
        }),
        JobView::Ended(row) => explain_ended(&row),
    }
}
