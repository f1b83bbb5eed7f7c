//! Jobs as rows of a table: the latest ones, and those in which a text is found. Ids of jobs grow
//! with time, in memory and on disk alike.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use hyper::{Response, StatusCode};
use serde_json::{Value, json};

use crate::job::Job;
use crate::protocol::JobId;
use crate::server::pages::explain_ended;
use crate::server::routes::{Routes, fault, reply};
use crate::server::shared::Shared;
use crate::store::{StoreError, TerminalRow};
use crate::telemetry::Stage;
use crate::transport::Body;

/// Rows of the latest jobs, and of one page of what is found.
const ROWS_MAX: usize = 100;
/// Longest text that is looked for, in bytes.
const TEXT_BYTES_MAX: usize = 200;
/// Ended jobs that one search reads from the disk at most, and at a time.
const DISK_ROWS_MAX: usize = 20_000;
const DISK_ROWS: usize = 500;

/// The latest jobs, those of an earlier life of the server included, and how many are in which
/// state.
pub(super) fn recent(shared: &Shared) -> Value {
    let mut states: BTreeMap<&str, u64> = BTreeMap::new();
    let mut found = Latest::default();
    shared.scheduler.for_each(|job| {
        *states.entry(job.state().phase.as_str()).or_default() += 1;
        found.offer(job, None);
    });
    let mut rows = found.rows();
    if rows.len() < ROWS_MAX
        && let Some(store) = &shared.store
        // Read in one go, so that a slow disk is met once.
        && let Ok(ended) = store.terminals(None, ROWS_MAX * 2)
    {
        rows.extend(ended.iter().filter(|row| !is_known(shared, row)).map(of_terminal));
        newest_first(&mut rows);
    }
    json!({"jobs": told(rows), "states": states})
}

/// What is in memory ranks above its row on the disk.
fn is_known(shared: &Shared, row: &TerminalRow) -> bool {
    shared.scheduler.job(row.id).is_some()
}

type Row = (JobId, Value);

fn newest_first(rows: &mut Vec<Row>) {
    rows.sort_by_key(|(id, _)| Reverse(*id));
    rows.truncate(ROWS_MAX);
}

fn told(rows: Vec<Row>) -> Vec<Value> {
    rows.into_iter().map(|(_, row)| row).collect()
}

/// The newest jobs of all that were offered.
#[derive(Default)]
struct Latest {
    jobs: BTreeMap<JobId, Arc<Job>>,
    ids: BinaryHeap<Reverse<JobId>>,
}

impl Latest {
    fn offer(&mut self, job: &Arc<Job>, before: Option<JobId>) {
        let full = self.ids.len() >= ROWS_MAX;
        let oldest = self.ids.peek().map(|oldest| oldest.0);
        if before.is_some_and(|before| job.id >= before)
            || (full && oldest.is_some_and(|oldest| job.id < oldest))
        {
            return;
        }
        if full && let Some(Reverse(oldest)) = self.ids.pop() {
            self.jobs.remove(&oldest);
        }
        self.ids.push(Reverse(job.id));
        self.jobs.insert(job.id, Arc::clone(job));
    }

    fn rows(self) -> Vec<Row> {
        self.jobs.into_iter().rev().map(|(id, job)| (id, of_job(&job))).collect()
    }
}

/// When a job was made, Unix milliseconds: its id begins with that.
fn made_unix_ms(id: JobId) -> u64 {
    (id.0 >> 80) as u64
}

fn of_job(job: &Job) -> Value {
    let (spec, ended) = (&job.spec, job.ended());
    let chosen = || job.placements().0.filter_map(|look| look.chosen.as_ref()).last();
    json!({
        "id": job.id,
        "session": spec.session,
        "index": spec.utterance_index,
        "tenant": spec.tenant,
        "state": job.state().phase.as_str(),
        "src": spec.src,
        "tgt": spec.tgt,
        "audio_ms": spec.audio_ms,
        "node": chosen().map(|(node, ..)| node),
        "attempts": job.state().attempts(),
        "code": ended.and_then(|ended| ended.code_text()),
        "made_unix_ms": made_unix_ms(job.id),
        "took_us": job.stamps.between(Stage::Cut, Stage::Settled),
        "dispatch_us": job.stamps.between(Stage::Cut, Stage::Written),
    })
}

fn of_terminal(row: &TerminalRow) -> Row {
    let kept = explain_ended(row);
    let stamp = |name: &str| kept["stamps_us"][name].as_u64();
    let between = |to: &str| Some(stamp(to)?.saturating_sub(stamp("cut")?));
    let told = json!({
        "id": row.id,
        "session": row.session,
        "index": row.utterance_index,
        "tenant": kept["tenant"],
        "state": row.outcome.as_str(),
        "src": kept["src_lang"],
        "tgt": kept["tgt_lang"],
        "audio_ms": kept["audio_ms"],
        "node": row.node,
        "attempts": row.attempts,
        "code": Some(&row.code).filter(|code| !code.is_empty()),
        "made_unix_ms": made_unix_ms(row.id),
        "took_us": between("settled"),
        "dispatch_us": between("written"),
    });
    (row.id, told)
}

/// Whether the text is in what a row tells, without regard to the case of letters.
fn tells(row: &Value, text: &str) -> bool {
    let pair =
        format!("{}:{}", row["src"].as_str().unwrap_or(""), row["tgt"].as_str().unwrap_or(""));
    let words = ["id", "session", "tenant", "state", "node", "code"];
    let mut words = words.iter().filter_map(|name| row[name].as_str()).chain([pair.as_str()]);
    words.any(|word| word.to_ascii_lowercase().contains(text))
}

/// What was found, how many jobs were looked at, and where it goes on.
struct Found {
    rows: Vec<Row>,
    looked_at: usize,
    /// There may be more before this job.
    more_before: Option<JobId>,
}

/// Looks in memory, then on the disk, from the newest job on.
fn look(shared: &Shared, text: &str, before: Option<JobId>) -> Result<Found, StoreError> {
    let (mut found, mut looked_at) = (Latest::default(), 0);
    shared.scheduler.for_each(|job| {
        looked_at += 1;
        if tells(&of_job(job), text) {
            found.offer(job, before);
        }
    });
    let mut rows = found.rows();
    let (mut at, mut read, mut is_all) = (before, 0, false);
    if let Some(store) = &shared.store {
        let mut on_disk = 0;
        while on_disk < ROWS_MAX && read < DISK_ROWS_MAX && !is_all {
            let ended = store.terminals(at, DISK_ROWS)?;
            read += ended.len();
            is_all = ended.len() < DISK_ROWS;
            at = ended.last().map(|row| row.id).or(at);
            for row in ended.iter().filter(|row| !is_known(shared, row)).map(of_terminal) {
                if tells(&row.1, text) {
                    on_disk += 1;
                    rows.push(row);
                }
            }
        }
    }
    let cut = rows.len() > ROWS_MAX;
    newest_first(&mut rows);
    let last = rows.last().map(|(id, _)| *id);
    let more_before = match (cut || rows.len() == ROWS_MAX, is_all || shared.store.is_none()) {
        (true, _) => last,
        (false, true) => None,
        // Nothing newer than where the reading ended was left out.
        (false, false) => at,
    };
    Ok(Found { rows, looked_at: looked_at + read, more_before })
}

impl Routes {
    /// The jobs in which a text is found, before a job that may be named.
    pub(super) async fn search(
        &self,
        text: Option<String>,
        before: Option<String>,
    ) -> Response<Body> {
        let text = text.unwrap_or_default().trim().to_ascii_lowercase();
        if text.len() > TEXT_BYTES_MAX {
            return fault(StatusCode::BAD_REQUEST, "the text is too long");
        }
        let Ok(before) = before.map(|id| id.parse::<JobId>()).transpose() else {
            return fault(StatusCode::BAD_REQUEST, "`before` is not a job id");
        };
        let Ok(_alone) = self.shared.console.search.try_acquire() else {
            return fault(StatusCode::SERVICE_UNAVAILABLE, "somebody else is searching");
        };
        let shared = Arc::clone(&self.shared);
        match tokio::task::spawn_blocking(move || look(&shared, &text, before)).await {
            Ok(Ok(Found { rows, looked_at, more_before })) => {
                let body = json!({"jobs": told(rows), "looked_at": looked_at,
                    "more_before": more_before});
                reply(StatusCode::OK, &body)
            }
            Ok(Err(error)) => fault(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
            Err(_) => fault(StatusCode::INTERNAL_SERVER_ERROR, "the search failed"),
        }
    }
}
