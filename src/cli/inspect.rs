//! `utterd inspect`: asks a running server, or reads a closed database.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde_json::{Value, json};

use super::http::{ServerArgs, get_json};
use super::{Failure, Outcome, code, runtime, say};
use crate::protocol::JobId;
use crate::server::{explain_ended, room_json};
use crate::store::{JobView, open_read_only};

/// Rows read from a closed database.
const ROWS_MAX: usize = 1_000;

#[derive(Debug, Clone, Copy, ValueEnum)]
enum What {
    /// One job, by id: its state, stamps, placements and outcome.
    Job,
    /// Jobs: all that a server remembers, or the unfinished ones of a database.
    Jobs,
    /// Nodes.
    Nodes,
    /// The pool snapshot and its configuration.
    Pools,
    /// Sessions.
    Sessions,
    /// Rooms and who is in them.
    Rooms,
}

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// What to show.
    #[arg(value_enum)]
    what: What,
    /// Which job.
    #[arg(required_if_eq("what", "job"))]
    id: Option<String>,
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
        None => {
            let path = match args.what {
                What::Job => format!("/api/v1/jobs/{}", args.id.as_deref().unwrap_or_default()),
                What::Jobs => "/api/v1/jobs".to_owned(),
                What::Nodes => "/api/v1/nodes".to_owned(),
                What::Pools => "/api/v1/pools".to_owned(),
                What::Sessions => "/api/v1/sessions".to_owned(),
                What::Rooms => "/api/v1/rooms".to_owned(),
            };
            runtime()?.block_on(get_json(&args.server.target()?, &path))?
        }
    };
    say(&serde_json::to_string_pretty(&value)?);
    Ok(())
}

fn from_database(dir: &Path, args: &Args) -> Result<Value, Failure> {
    let unusable = |error| Failure::new(code::DATA, anyhow::Error::from(error));
    let store = open_read_only(dir).map_err(unusable)?;
    let value = match args.what {
        What::Job => {
            let text = args.id.as_deref().unwrap_or_default();
            let id: JobId =
                text.parse().map_err(|e| Failure::new(code::USAGE, anyhow::Error::new(e)))?;
            match store.job(id).map_err(unusable)? {
                Some(view) => one_job(view),
                None => return Err(anyhow::anyhow!("{id} is not in the database").into()),
            }
        }
        What::Jobs => {
            let rows = store.jobs(ROWS_MAX).map_err(unusable)?;
            rows.into_iter().map(|row| one_job(JobView::Live(Box::new(row)))).collect()
        }
        What::Nodes => store
            .nodes()
            .map_err(unusable)?
            .iter()
            .map(|row| {
                json!({"node_id": row.id, "platform": row.platform, "version": row.version,
                "first_seen_unix_ms": row.first_seen_unix_ms,
                "last_seen_unix_ms": row.last_seen_unix_ms})
            })
            .collect(),
        What::Pools => store.pools().map_err(unusable)?.map_or(Value::Null, |row| {
            let config: Value = serde_json::from_str(&row.text).unwrap_or_default();
            json!({"config_version": row.version, "config": config})
        }),
        What::Rooms => store.rooms().map_err(unusable)?.iter().map(room_json).collect(),
        What::Sessions => store
            .sessions()
            .map_err(unusable)?
            .iter()
            .map(|row| {
                json!({"session_id": row.id, "trace_id": row.trace_id, "tenant": row.tenant,
                "platform": row.platform, "src_lang": row.src, "tgt_lang": row.tgt,
                "opened_unix_ms": row.opened_unix_ms})
            })
            .collect(),
    };
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
