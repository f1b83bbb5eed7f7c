//! What operators asked for, as text for people. Everything is drawn from the JSON that machines
//! get, so that the two cannot tell different stories.

use std::fmt::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::Value;

use crate::telemetry::Stage;

/// Columns set under each other, the first row being their heads.
pub(super) struct Table(Vec<Vec<String>>);

impl Table {
    pub(super) fn new(heads: &[&str]) -> Self {
        Self(vec![heads.iter().map(|head| (*head).to_owned()).collect()])
    }

    pub(super) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.0.push(cells.into());
    }

    /// One line for each row; how many rows there are, where there are none.
    pub(super) fn text(&self) -> String {
        if self.0.len() == 1 {
            return "none\n".to_owned();
        }
        let columns = self.0[0].len();
        let width = |at: usize| self.0.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.0 {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            text += cells.collect::<Vec<_>>().join("  ").trim_end();
            text.push('\n');
        }
        text
    }
}

/// A value in a cell; a dash where there is none. Characters that would move the cursor are left
/// out: names come from clients.
pub(super) fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => text.chars().filter(|c| !c.is_control()).collect(),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}

/// The rows of a list, bare or under its name.
pub(super) fn rows<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    let list = value.as_array().or_else(|| value[name].as_array());
    list.map_or(&[], Vec::as_slice)
}

/// A wall clock time of the answer.
fn at(unix_ms: &Value) -> String {
    let Some(ms) = unix_ms.as_u64() else { return "-".to_owned() };
    let time = UNIX_EPOCH.checked_add(Duration::from_millis(ms));
    time.map_or("-".to_owned(), |time| humantime::format_rfc3339_millis(time).to_string())
}

fn yes(value: &Value) -> String {
    if value.as_bool() == Some(true) { "yes" } else { "no" }.to_owned()
}

/// A line of a name and what it is, unless that is nothing.
fn line(text: &mut String, name: &str, value: &Value) {
    if !value.is_null() && value != "" {
        push(text, name, &cell(value));
    }
}

fn push(text: &mut String, name: &str, value: &str) {
    // Writing to a string does not fail.
    let _infallible = writeln!(text, "{:<22} {value}", format!("{name}:"));
}

/// The times at which a job crossed its borders, in order.
pub(super) fn stamps(job: &Value) -> String {
    let mut text = String::new();
    for stage in Stage::ALL {
        if let Some(us) = job["stamps_us"][stage.as_str()].as_u64() {
            let _infallible = writeln!(text, "  {:>9.3} ms  {}", us as f64 / 1e3, stage.as_str());
        }
    }
    text
}

/// The looks for a node that a job made.
pub(super) fn placements(job: &Value) -> String {
    let mut text = String::new();
    for look in rows(&job["placements"], "") {
        let thought = |c: &Value| format!("{} {}", cell(&c["node"]), cell(&c["verdict"]));
        let considered: Vec<String> = rows(&look["considered"], "").iter().map(thought).collect();
        let how = match look["pool"].as_str() {
            Some(pool) => format!("placed by pool {pool}"),
            None => format!("no node ({})", cell(&look["why_none"])),
        };
        let _infallible = match considered.is_empty() {
            true => writeln!(text, "  {how}"),
            false => writeln!(text, "  {how}: {}", considered.join(", ")),
        };
    }
    text
}

pub(super) fn jobs(value: &Value) -> String {
    let mut table = Table::new(&["JOB", "SESSION", "NO", "PAIR", "STATE", "OUTCOME", "NODE"]);
    for job in rows(value, "jobs") {
        table.row([
            cell(&job["job_id"]),
            cell(&job["session_id"]),
            cell(&job["utterance_index"]),
            format!("{}:{}", cell(&job["src_lang"]), cell(&job["tgt_lang"])),
            cell(&job["state"]),
            cell(&job["outcome"]),
            cell(&job["node"]),
        ]);
    }
    table.text()
}

/// One job: where it is in its life, asked as one asks after an incident.
pub(super) fn job(job: &Value) -> String {
    let mut text = String::new();
    push(&mut text, "job", &cell(&job["job_id"]));
    let session = format!("{} #{}", cell(&job["session_id"]), cell(&job["utterance_index"]));
    push(&mut text, "utterance", &session);
    let pair = format!("{}:{}", cell(&job["src_lang"]), cell(&job["tgt_lang"]));
    push(&mut text, "pair", &pair);
    line(&mut text, "tenant", &job["tenant"]);
    line(&mut text, "trace", &job["trace_id"]);
    if let Some(ms) = job["audio_ms"].as_u64() {
        push(&mut text, "audio", &format!("{ms} ms"));
    }
    line(&mut text, "state", &job["state"]);
    line(
        &mut text,
        "accepted",
        &job["accepted_unix_ms"].as_u64().map_or(Value::Null, |ms| Value::String(at(&ms.into()))),
    );
    let reached = &job["stamps_us"];
    if reached.is_object() {
        let said = |stage: &str| if reached[stage].is_u64() { "yes" } else { "no" };
        let attempts = cell(&job["attempts"]);
        push(&mut text, "sent to a node", &format!("{}, attempts: {attempts}", said("written")));
        let answered = answered(job);
        push(&mut text, "result came back", &answered);
        push(&mut text, "on disk", said("durable"));
        push(&mut text, "sent to the client", said("delivered"));
        push(&mut text, "confirmed by it", said("acknowledged"));
        text += "timeline:\n";
        text += &stamps(job);
        text += "looks for a node:\n";
        text += &placements(job);
    }
    let ended = if job["ended"].is_object() { &job["ended"] } else { job };
    if let Some(outcome) = ended["outcome"].as_str() {
        push(&mut text, "ended", outcome);
    }
    line(&mut text, "code", &ended["code"]);
    line(&mut text, "message", &ended["message"]);
    text
}

/// Whether a node's answer is what ended the job.
fn answered(job: &Value) -> String {
    let ended = &job["ended"];
    let by = || format!("yes, from {}", cell(&ended["node"]));
    match ended["outcome"].as_str() {
        Some("succeeded" | "empty") => by(),
        Some("merged") => "with the last answer of its turn".to_owned(),
        Some("failed") if ended["code"] == "PROCESSING_ERROR" => format!("{}: a failure", by()),
        Some(other) => format!("no: {other} ({})", cell(&ended["code"])),
        None => "not yet".to_owned(),
    }
}

pub(super) fn nodes(value: &Value) -> String {
    let mut table = Table::new(&["NODE", "STATE", "SLOTS", "SERVICES", "PAIRS", "SILENT", "FROM"]);
    for node in rows(value, "nodes") {
        let slots = format!("{}/{}", cell(&node["slots_used"]), cell(&node["slots_max"]));
        let silent = node["silent_ms"].as_u64().map(|ms| format!("{:.1}s", ms as f64 / 1e3));
        let known = node["state"].is_string();
        table.row([
            cell(&node["node_id"]),
            cell(&node["state"]),
            if known { slots } else { "-".to_owned() },
            cell(&node["usable_services"]),
            cell(&node["pairs_total"]),
            silent.unwrap_or_else(|| at(&node["last_seen_unix_ms"])),
            cell(&node["peer"]),
        ]);
    }
    table.text()
}

pub(super) fn node(node: &Value) -> String {
    let mut text = String::new();
    push(&mut text, "node", &cell(&node["node_id"]));
    for (name, key) in [
        ("state", "state"),
        ("connected from", "peer"),
        ("platform", "platform"),
        ("version", "version"),
        ("overloaded", "overloaded"),
        ("quarantined for ms", "quarantined_ms"),
        ("ready services", "ready_services"),
        ("usable services", "usable_services"),
        ("pairs", "pairs"),
        ("silent for ms", "silent_ms"),
    ] {
        line(&mut text, name, &node[key]);
    }
    if node["slots_max"].is_u64() {
        let slots = format!("{} of {}", cell(&node["slots_used"]), cell(&node["slots_max"]));
        push(&mut text, "slots in use", &slots);
    }
    if let Some(load) = node["load"].as_object() {
        let shown = load.iter().filter(|(_, value)| !value.is_null());
        let shown: Vec<String> = shown.map(|(key, v)| format!("{key} {}", cell(v))).collect();
        push(&mut text, "load", &shown.join(", "));
    }
    push(&mut text, "last heard", &at(first(node, &["last_heard_unix_ms", "last_seen_unix_ms"])));
    text
}

fn first<'a>(value: &'a Value, keys: &[&str]) -> &'a Value {
    keys.iter().map(|key| &value[*key]).find(|v| !v.is_null()).unwrap_or(&Value::Null)
}

/// The configured pools, and whether the snapshot that placements read has nodes in them.
pub(super) fn pools(value: &Value) -> String {
    let mut text = String::new();
    line(&mut text, "snapshot", &value["version"]);
    let version = cell(&value["config_version"]);
    let from = match value["overriding_file"].as_bool() {
        Some(false) => ", that of the file",
        Some(true) => ", not that of the file: it was replaced while running",
        None => "",
    };
    push(&mut text, "configuration", &format!("{version}{from}"));
    text += "\nconfigured:\n";
    let mut table = Table::new(&["POOL", "PAIRS", "TENANTS", "SERVICES", "SEEN"]);
    for pool in rows(&value["config"], "") {
        table.row([
            cell(&pool["name"]),
            cell(&pool["pairs"]),
            cell(&pool["tenants"]),
            cell(&pool["required_services"]),
            seen(value, &pool["name"]),
        ]);
    }
    text += &table.text();
    if value["pairs"].is_array() {
        text += "\nin force:\n";
        let mut table = Table::new(&["PAIR", "POOL", "NODES"]);
        for (pair, pool) in in_force(value) {
            table.row([cell(pair), cell(&pool["name"]), cell(&pool["nodes"])]);
        }
        text += &table.text();
    }
    text
}

/// Pairs and their pools in the snapshot.
fn in_force(value: &Value) -> impl Iterator<Item = (&Value, &Value)> {
    let pairs = rows(&value["pairs"], "").iter();
    pairs.flat_map(|route| rows(&route["pools"], "").iter().map(move |pool| (&route["pair"], pool)))
}

/// What became of a configured pool in the snapshot.
fn seen(value: &Value, name: &Value) -> String {
    if !value["pairs"].is_array() {
        return "-".to_owned();
    }
    let with_it = in_force(value).filter(|(_, pool)| pool["name"] == *name);
    match with_it.count() {
        0 => "yes, but no node is in it".to_owned(),
        n => format!("yes, for {n} pairs"),
    }
}

/// One configured pool.
pub(super) fn pool(value: &Value) -> String {
    let mut text = String::new();
    for (name, key) in [
        ("pool", "name"),
        ("pairs", "pairs"),
        ("tenants", "tenants"),
        ("required services", "required_services"),
        ("weight", "weight"),
        ("seen", "seen"),
    ] {
        line(&mut text, name, &value[key]);
    }
    let mut table = Table::new(&["PAIR", "NODES"]);
    for route in rows(&value["in_force"], "") {
        table.row([cell(&route["pair"]), cell(&route["nodes"])]);
    }
    text + &table.text()
}

/// One pool out of all, by name; none if there is none of that name.
pub(super) fn one_pool(all: &Value, name: &str) -> Option<Value> {
    let named = |pool: &&Value| pool["name"] == name;
    let found: Vec<(&Value, &Value)> = in_force(all).filter(|(_, p)| named(p)).collect();
    let mut pool = match rows(&all["config"], "").iter().find(named) {
        Some(pool) => pool.clone(),
        // The pool that every pair has by nature.
        None if !found.is_empty() => serde_json::json!({"name": name}),
        None => return None,
    };
    pool["seen"] = seen(all, &pool["name"]).into();
    pool["in_force"] = found
        .iter()
        .map(|(pair, pool)| serde_json::json!({"pair": pair, "nodes": pool["nodes"]}))
        .collect();
    Some(pool)
}

pub(super) fn sessions(value: &Value) -> String {
    let mut table =
        Table::new(&["SESSION", "PAIR", "FROM", "TENANT", "OPEN JOBS", "OWED", "OPENED"]);
    for session in rows(value, "sessions") {
        table.row([
            cell(&session["session_id"]),
            format!("{}:{}", cell(&session["src_lang"]), cell(&session["tgt_lang"])),
            cell(&session["peer"]),
            cell(&session["tenant"]),
            cell(&session["open_jobs"]),
            cell(&session["owed"]),
            at(&session["opened_unix_ms"]),
        ]);
    }
    table.text()
}

/// One session: whether its client is there, what it has said and what it was not told yet.
pub(super) fn session(session: &Value) -> String {
    let mut text = String::new();
    push(&mut text, "session", &cell(&session["session_id"]));
    for (name, key) in [
        ("state", "state"),
        ("connected from", "peer"),
        ("tenant", "tenant"),
        ("platform", "platform"),
        ("trace", "trace_id"),
        ("paired with node", "paired_node"),
        ("room", "room"),
        ("utterances", "utterances"),
        ("unfinished jobs", "open_jobs"),
        ("waiting for the disk", "waiting_for_disk"),
    ] {
        line(&mut text, name, &session[key]);
    }
    if session["src_lang"].is_string() {
        let pair = format!("{}:{}", cell(&session["src_lang"]), cell(&session["tgt_lang"]));
        push(&mut text, "pair", &pair);
    }
    push(&mut text, "opened", &at(&session["opened_unix_ms"]));
    let owed = rows(&session["undelivered"], "");
    push(&mut text, "not acknowledged", &owed.len().to_string());
    if !owed.is_empty() {
        let mut table = Table::new(&["SEQ", "JOB", "NO", "BYTES", "SINCE"]);
        for row in owed {
            table.row([
                cell(&row["seq"]),
                cell(&row["job_id"]),
                cell(&row["utterance_index"]),
                cell(&row["bytes"]),
                at(&row["since_unix_ms"]),
            ]);
        }
        text += &table.text();
    }
    text += "last jobs:\n";
    let mut table =
        Table::new(&["NO", "JOB", "PAIR", "STATE", "CODE", "NODE", "SENT", "ON DISK", "TOLD"]);
    for job in rows(&session["jobs"], "") {
        table.row([
            cell(&job["utterance_index"]),
            cell(&job["job_id"]),
            format!("{}:{}", cell(&job["src_lang"]), cell(&job["tgt_lang"])),
            cell(&job["state"]),
            cell(&job["code"]),
            cell(&job["node"]),
            yes(&job["sent"]),
            yes(&job["durable"]),
            yes(&job["delivered"]),
        ]);
    }
    text + &table.text()
}

pub(super) fn rooms(value: &Value) -> String {
    let mut table = Table::new(&["ROOM", "MEMBERS", "HEARS", "LAST SPOKEN IN"]);
    for room in rows(value, "rooms") {
        let members = rows(&room["members"], "");
        let hears: Vec<String> = members.iter().map(|member| cell(&member["hears"])).collect();
        table.row([
            cell(&room["room_code"]),
            members.len().to_string(),
            hears.join(" "),
            at(&room["active_unix_ms"]),
        ]);
    }
    table.text()
}

pub(super) fn room(room: &Value) -> String {
    let mut text = String::new();
    push(&mut text, "room", &cell(&room["room_code"]));
    push(&mut text, "last spoken in", &at(&room["active_unix_ms"]));
    let mut table = Table::new(&["SEAT", "SESSION", "NAME", "HEARS", "SINCE"]);
    for member in rows(&room["members"], "") {
        table.row([
            cell(&member["seat"]),
            cell(&member["session_id"]),
            cell(&member["display_name"]),
            cell(&member["hears"]),
            at(&member["joined_unix_ms"]),
        ]);
    }
    text + &table.text()
}

/// Who would get a job, and what keeps the others from it.
pub(super) fn outlook(value: &Value) -> String {
    let mut text = String::new();
    push(&mut text, "needs", &cell(&value["needs_pairs"]));
    line(&mut text, "services", &value["services"]);
    line(&mut text, "tenant", &value["tenant"]);
    let who = match value["chosen"].is_object() {
        true => {
            let chosen = &value["chosen"];
            let others = value["could"].as_u64().unwrap_or(1).saturating_sub(1);
            let or =
                if others > 0 { format!(", or one of {others} others") } else { "".to_owned() };
            format!("{} by pool {}{or}", cell(&chosen["node"]), cell(&chosen["pool"]))
        }
        false => format!("no node ({})", cell(&value["why_none"])),
    };
    push(&mut text, "would go to", &who);
    if value["waiting"] != 0 {
        push(&mut text, "waiting before it", &cell(&value["waiting"]));
    }
    line(&mut text, "no job is taken", &value["refused"]);
    push(&mut text, "what to do", &cell(&value["advice"]));
    let mut table = Table::new(&["NODE", "VERDICT", "SLOTS", "POOLS", "WHAT TO DO"]);
    for node in rows(&value["nodes"], "") {
        table.row([
            cell(&node["node_id"]),
            cell(&node["verdict"]),
            format!("{}/{}", cell(&node["slots_used"]), cell(&node["slots_max"])),
            cell(&node["pools"]),
            cell(&node["advice"]),
        ]);
    }
    text + &table.text()
}
