//! The settings as documents: the manual's tables, an example file, and the names other systems
//! use.
//!
//! Everything but the foreign names follows from the declarations; there is nothing to keep in step
//! by hand.

use super::setting::{Allowed, Field, Section, Value, When};
use super::{Config, PairPattern, Pool, Tenant};

/// Every setting as Markdown: a heading, a sentence and a table for each section.
pub fn reference_markdown() -> String {
    let mut config = Config::default();
    let (mut pool, mut tenant) = (Pool::default(), Tenant::default());
    let lists: [&mut dyn Section; 2] = [&mut pool, &mut tenant];
    let mut out = String::new();
    let sections = config.sections().into_iter().map(|section| (section, false));
    for (section, list) in sections.chain(lists.map(|list| (list, true))) {
        let name = section.name();
        let heading = if list { format!("[[{name}]]") } else { format!("[{name}]") };
        if !out.is_empty() {
            out.push('\n');
        }
        out.push_str(&format!("### `{heading}`\n\n{}\n\n", section.about()));
        out.push_str("| Key | Type | Default | Unit | Allowed | Changes | Meaning |\n");
        out.push_str("|---|---|---|---|---|---|---|\n");
        section.each(&mut |field, value| out.push_str(&row(field, value)));
    }
    out
}

/// Every setting outside of lists, as section and key, and whether it may change while the server
/// runs.
pub fn reference_settings() -> Vec<(&'static str, &'static str, bool)> {
    let mut all = Vec::new();
    for section in Config::default().sections() {
        let name = section.name();
        section.each(&mut |field, _| all.push((name, field.key, field.when == When::Live)));
    }
    all
}

fn row(field: &Field, value: &dyn Value) -> String {
    let shown = value.show();
    let default = match field.unit {
        _ if !value.fits(&field.allowed) => "required".to_owned(),
        _ if shown.is_empty() => "unset".to_owned(),
        "bytes" => format!("`{shown}`{}", binary(&shown)),
        _ => format!("`{shown}`"),
    };
    let unit = if field.unit == "none" { "" } else { field.unit };
    let allowed = cell(&field.allowed.describe("none"));
    let (key, meaning) = (format!("`{}`", field.key), cell(field.doc));
    let when = match field.when {
        When::Live => "live",
        When::Restart => "at a restart",
    };
    let cells = [&key, value.kind(), &default, unit, &allowed, when, &meaning];
    format!("| {} |\n", cells.join(" | "))
}

/// Text that stays inside its cell: bars and stars are kept from meaning anything.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace("\"*", "\"\\*").replace("*\"", "\\*\"")
}

/// A number of bytes in binary units, when it is a round one.
fn binary(shown: &str) -> String {
    let bytes: u64 = shown.replace('_', "").parse().unwrap_or(0);
    match bytes {
        n if n >= 1 << 20 && n % (1 << 20) == 0 => format!(" ({} MiB)", n >> 20),
        n if n >= 1 << 10 && n % (1 << 10) == 0 => format!(" ({} KiB)", n >> 10),
        _ => String::new(),
    }
}

/// A file that sets everything to its default, with a comment on each setting, and a pool and a
/// tenant to uncomment.
pub fn example_toml() -> String {
    let mut out = String::from(
        "# Every setting of utterd at its default. A line that is left out keeps its default.\n",
    );
    for section in Config::default().sections() {
        out.push('\n');
        out.push_str(&comment(section.about()));
        out.push_str(&format!("[{}]\n", section.name()));
        section.each(&mut |field, value| out.push_str(&setting(field, value)));
    }
    let (mut pool, mut tenant) = (example_pool(), example_tenant());
    for list in [&mut pool as &mut dyn Section, &mut tenant] {
        out.push('\n');
        out.push_str(&comment(list.about()));
        out.push_str(&format!("#\n# [[{}]]\n", list.name()));
        list.each(&mut |field, value| {
            for line in setting(field, value).lines() {
                out.push_str(&format!("# {line}\n"));
            }
        });
    }
    out
}

/// The tenant shown in the example file.
pub(super) fn example_tenant() -> Tenant {
    Tenant {
        name: "acme".to_owned(),
        weight: 2,
        sessions_max: Some(100),
        jobs_max: Some(400),
        messages_per_second: Some(1_000),
        audio_seconds_per_minute: Some(3_600),
    }
}

/// The pool shown in the example file.
pub(super) fn example_pool() -> Pool {
    let pair = |text: &str| text.parse().unwrap_or(PairPattern::ANY);
    Pool {
        name: "zh-en".to_owned(),
        pairs: vec![pair("zh:en"), pair("en:zh")],
        pending_ms: Some(10_000),
        lease_base_ms: Some(30_000),
        attempts_max: Some(3),
        ..Pool::default()
    }
}

fn setting(field: &Field, value: &dyn Value) -> String {
    let range = match field.allowed {
        Allowed::Any => String::new(),
        allowed => format!(" ({})", allowed.describe(field.unit)),
    };
    let when = if field.when == When::Restart { " Changes at a restart." } else { "" };
    let about = comment(&format!("{}{range}{when}", field.doc));
    match value.show() {
        unset if unset.is_empty() => format!("{about}# {} is unset\n", field.key),
        shown => format!("{about}{} = {shown}\n", field.key),
    }
}

/// A text as comment lines of at most 98 columns, which leaves room to comment them once more.
fn comment(text: &str) -> String {
    let mut out = String::new();
    let mut width = 0;
    for word in text.split_whitespace() {
        let next = word.chars().count() + 1;
        if width == 0 || width + next > 98 {
            out.push_str(if width == 0 { "#" } else { "\n#" });
            width = 1;
        }
        out.push(' ');
        out.push_str(word);
        width += next;
    }
    out.push('\n');
    out
}

/// Keys of the scheduler that utterd replaces: its name there, the name here (empty when there is
/// none), a note.
pub fn reference_keys() -> &'static [(&'static str, &'static str, &'static str)] {
    FOREIGN_KEYS
}

const SECONDS: &str = "seconds there, milliseconds here";

const FOREIGN_KEYS: &[(&str, &str, &str)] = &[
    ("server.port", "server.listen", "one address here: HOST:PORT"),
    ("server.host", "server.listen", "only logged there; obeyed here, loopback unless allowed"),
    (
        "scheduler.web_task_segmentation.pause_ms",
        "segmenter.pause_ms",
        "same meaning; 0 is no pause cut",
    ),
    (
        "scheduler.web_task_segmentation.max_duration_ms",
        "segmenter.max_duration_ms",
        "same meaning; 0 is off",
    ),
    (
        "scheduler.web_task_segmentation.edge_stabilization.hangover_manual_ms",
        "segmenter.hangover_manual_ms",
        "late audio is collected here; there it was only waited for",
    ),
    (
        "scheduler.web_task_segmentation.edge_stabilization.hangover_auto_ms",
        "",
        "a cut for a pause or for length waits for nothing",
    ),
    (
        "scheduler.web_task_segmentation.edge_stabilization.padding_manual_ms",
        "segmenter.padding_manual_ms",
        "same meaning",
    ),
    (
        "scheduler.web_task_segmentation.edge_stabilization.padding_auto_ms",
        "segmenter.padding_auto_ms",
        "same meaning",
    ),
    (
        "scheduler.web_task_segmentation.edge_stabilization.short_merge_threshold_ms",
        "",
        "had no effect there",
    ),
    ("scheduler.max_concurrent_jobs_per_node", "node.slots_default", "only logged there"),
    ("scheduler.job_timeout_seconds", "job.lease_base_ms", SECONDS),
    ("scheduler.job_timeout.pending_timeout_seconds", "job.pending_ms", SECONDS),
    ("scheduler.job_timeout.failover_max_attempts", "job.attempts_max", "had no effect there"),
    ("scheduler.job_timeout.scan_interval_ms", "", "deadlines are exact; nothing is scanned"),
    ("scheduler.job_timeout.send_cancel", "", "had no effect there"),
    ("scheduler.heartbeat_interval_seconds", "node.heartbeat_timeout_ms", SECONDS),
    (
        "scheduler.node_health.heartbeat_interval_seconds",
        "node.heartbeat_timeout_ms",
        "seconds there, and a node was lost after three; the whole silence in ms here",
    ),
    ("scheduler.node_health.heartbeat_timeout_seconds", "node.heartbeat_timeout_ms", SECONDS),
    ("scheduler.node_health.warmup_timeout_seconds", "node.warmup_timeout_ms", SECONDS),
    (
        "scheduler.node_health.failure_threshold.window_size",
        "node.failure_window",
        "had no effect there; at most 32 here",
    ),
    (
        "scheduler.node_health.failure_threshold.failure_count",
        "node.failure_count",
        "had no effect there",
    ),
    (
        "scheduler.node_health.failure_threshold.consecutive_failure_count",
        "node.failure_consecutive",
        "had no effect there",
    ),
    ("scheduler.node_health.health_check_count", "", "only logged there"),
    ("scheduler.node_health.status_scan_interval_seconds", "", "only logged there"),
    (
        "scheduler.load_balancer.resource_threshold",
        "node.gpu_threshold_percent",
        "one number there; node.cpu_threshold_percent and node.memory_threshold_percent too",
    ),
    ("scheduler.load_balancer.strategy", "", "only logged there"),
    ("scheduler.model_not_available.unavailable_ttl_seconds", "node.model_unavailable_ms", SECONDS),
    ("scheduler.task_binding.lease_seconds", "job.lease_base_ms", SECONDS),
    ("scheduler.redis_runtime.enabled", "store.enabled", "one process and its disk, no Redis"),
    ("scheduler.redis_runtime.redis.url", "", "no Redis"),
    ("scheduler.redis_runtime.instance_id", "", "there is one instance"),
];
