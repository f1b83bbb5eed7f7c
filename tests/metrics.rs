//! Metrics as they are scraped: named by the conventions, described in the manual, and all that
//! alerts and dashboards ask for exists.

#![allow(clippy::print_stdout, reason = "what is skipped is told")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};
use support::{TestServer, http};
use utterd::telemetry::{Metrics, Reference};

/// Names of the system before this one, kept for dashboards that know them, where they break a
/// rule.
const FORMER: [&str; 1] = ["scheduler_web_task_pause_ms"];

fn read(name: &str) -> String {
    std::fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// What speaks against the name of a metric.
fn misnamed(metric: &Reference) -> Option<&'static str> {
    let Reference { name, kind, .. } = metric;
    let has = |parts: &[&str]| parts.iter().any(|part| name.split('_').any(|word| word == *part));
    match *kind {
        _ if !name.starts_with("utterd_") && !name.starts_with("scheduler_") => Some("prefix"),
        "counter" if !name.ends_with("_total") => Some("a counter ends in _total"),
        "gauge" | "histogram" if name.ends_with("_total") => Some("only a counter ends in _total"),
        "histogram" if !name.ends_with("_seconds") => Some("a histogram of times is in seconds"),
        _ if has(&["ms", "us", "microseconds", "milliseconds", "kb", "mb", "minutes"]) => {
            Some("base units are seconds and bytes")
        }
        _ => None,
    }
}

#[test]
fn names_follow_the_conventions() {
    let sees = |name, kind| misnamed(&Reference { name, kind, labels: &[], help: "" }).is_some();
    assert!(sees("utterd_x", "counter") && sees("utterd_x_total", "gauge") && sees("x", "gauge"));
    assert!(sees("utterd_commit_microseconds", "gauge") && sees("utterd_wait", "histogram"));
    assert!(!sees("utterd_x_seconds_total", "counter") && !sees("utterd_free_bytes", "gauge"));
    let found: Vec<_> = Metrics::reference()
        .iter()
        .filter_map(|metric| Some((metric.name, misnamed(metric)?)))
        .collect();
    let names: Vec<&str> = found.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, FORMER, "{found:?}");
}

/// Each family of a scrape: its kind and the names of its labels.
fn families(text: &str) -> BTreeMap<String, (String, BTreeSet<String>)> {
    let mut all = BTreeMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            all.insert(name.to_owned(), (kind.to_owned(), BTreeSet::new()));
        } else if !line.starts_with('#') {
            let (series, _) = line.rsplit_once(' ').unwrap();
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
            let base = base.filter(|base| all.contains_key(*base)).unwrap_or(name);
            let (_, seen) = all.get_mut(base).unwrap_or_else(|| panic!("{name} has no TYPE"));
            let names = labels.split("\",").filter_map(|label| Some(label.split_once('=')?.0));
            seen.extend(names.filter(|label| *label != "le").map(str::to_owned));
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrape_has_what_the_manual_lists_and_nothing_else() {
    let server = TestServer::start(|_| {}).await;
    let scrape = async || families(&http(server.addr(), "GET", "/metrics", "").await.1);
    let fresh = scrape().await;
    let mut node = server.node("n1", &["zh", "en"]).await;
    let (mut client, id) = server.session("zh", "en").await;
    client.send_text("{\"type\": \"what\"}").await;
    client.sentence(&id).await;
    let job = node.assignment().await;
    node.answer(&job, "said").await;
    client.told().await;
    server.job_at(&job["job_id"], "delivered").await;
    client.send(json!({"type": "room_join", "room_code": "100000"})).await;
    client.expect("room_error").await;
    http(server.addr(), "GET", "/api/v1/stats", "").await;
    let used = scrape().await;
    for (when, seen) in [("at the start", fresh), ("after traffic", used)] {
        let expected: BTreeMap<_, _> = Metrics::reference()
            .iter()
            .map(|metric| {
                let labels = metric.labels.iter().map(|label| (*label).to_owned()).collect();
                (metric.name.to_owned(), (metric.kind.to_owned(), labels))
            })
            .collect();
        assert_eq!(seen, expected, "{when}");
    }
    for histogram in [
        "utterd_queue_wait_seconds",
        "scheduler_dispatch_latency_seconds",
        "utterd_node_seconds",
        "utterd_journal_seconds",
        "utterd_deliver_seconds",
    ] {
        assert_eq!(server.metric(&format!("{histogram}_count")).await, 1.0, "{histogram}");
    }
}

/// Metrics and labels that an expression of PromQL names.
#[derive(Debug, Default, PartialEq)]
struct Asked {
    metrics: BTreeSet<String>,
    labels: BTreeSet<String>,
}

fn asked(expression: &str) -> Asked {
    const WORDS: [&str; 14] = [
        "by",
        "and",
        "on",
        "or",
        "unless",
        "without",
        "ignoring",
        "le",
        "group_left",
        "group_right",
        "bool",
        "offset",
        "instance",
        "job",
    ];
    let mut all = Asked::default();
    let (mut rest, mut inside) = (expression, false);
    while let Some(at) = rest.find(|c: char| c.is_ascii_alphabetic() || "_{}\"[]$".contains(c)) {
        rest = &rest[at..];
        let mark = rest.as_bytes()[0];
        let skipped = match mark {
            b'{' | b'}' => {
                inside = mark == b'{';
                1
            }
            // What is quoted is a value; what is in brackets a time; a variable begins with $.
            b'"' => rest[1..].find('"').unwrap() + 2,
            b'[' => rest.find(']').unwrap(),
            b']' => 1,
            _ => {
                let part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '$';
                let word = &rest[..rest.find(|c| !part(c)).unwrap_or(rest.len())];
                let after = rest[word.len()..].trim_start();
                let called = after.starts_with('(') || after.starts_with("by");
                if WORDS.contains(&word) || word.starts_with('$') || called {
                } else if word.contains('_') && !inside {
                    all.metrics.insert(word.to_owned());
                } else if word != "up" {
                    all.labels.insert(word.to_owned());
                }
                word.len()
            }
        };
        rest = &rest[skipped..];
    }
    all
}

/// Every metric and label an expression names exists.
fn check(expression: &str) {
    let Asked { metrics, labels } = asked(expression);
    let mut known_labels = BTreeSet::new();
    for name in &metrics {
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        let all = Metrics::reference();
        let of = |name: &str| all.iter().find(|metric| metric.name == name);
        let histogram = base.and_then(of).filter(|metric| metric.kind == "histogram");
        let metric = histogram.or_else(|| of(name).filter(|metric| metric.kind != "histogram"));
        let metric = metric.unwrap_or_else(|| panic!("no metric {name}: {expression}"));
        let rated =
            ["rate(", "increase("].iter().any(|f| expression.contains(&format!("{f}{name}")));
        assert_eq!(rated, metric.kind != "gauge", "{name} is a {}: {expression}", metric.kind);
        known_labels.extend(metric.labels.iter().map(|label| (*label).to_owned()));
    }
    assert!(labels.is_subset(&known_labels), "{labels:?} of {metrics:?}: {expression}");
}

#[test]
fn expressions_are_read_as_prometheus_reads_them() {
    let text =
        "sum by (state, instance) (rate(a_b_total{x=\"y_z\", c=~\"d\"}[5m])) > 2 and up == 0";
    let set = |all: &[&str]| all.iter().map(|one| (*one).to_owned()).collect::<BTreeSet<_>>();
    let expected = Asked { metrics: set(&["a_b_total"]), labels: set(&["c", "state", "x"]) };
    assert_eq!(asked(text), expected);
    for bad in [
        "utterd_nodes{zone=\"a\"}",
        "rate(utterd_nodes[5m])",
        "utterd_nothing",
        "utterd_jobs_submitted_total > 1",
        "sum by (why) (utterd_jobs_live)",
    ] {
        assert!(std::panic::catch_unwind(|| check(bad)).is_err(), "{bad}");
    }
}

/// The alerts, as Prometheus reads them.
fn alerts() -> Vec<Value> {
    let all: Value = serde_saphyr::from_str(&read("docs/alerts.yml")).unwrap();
    let groups = all["groups"].as_array().unwrap().iter();
    groups.flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}

#[test]
fn alerts_ask_for_what_exists_and_each_is_in_the_runbook() {
    let manual = read("docs/OPERATING.md");
    let runbook = &manual[manual.find("## Runbook").unwrap()..];
    let runbook = &runbook[..runbook[3..].find("\n## ").map_or(runbook.len(), |at| at + 3)];
    let mut names = BTreeSet::new();
    for rule in alerts() {
        let name = rule["alert"].as_str().unwrap();
        assert!(names.insert(name.to_owned()), "{name} is there twice");
        check(rule["expr"].as_str().unwrap());
        assert!(["page", "warn"].contains(&rule["labels"]["severity"].as_str().unwrap()), "{name}");
        assert!(rule["annotations"]["summary"].is_string(), "{name}");
        let entry = runbook.split_once(&format!("### {name}\n"));
        let (_, entry) = entry.unwrap_or_else(|| panic!("{name} is not in the runbook"));
        let entry = entry.split("\n### ").next().unwrap();
        for part in ["*Means:* ", "*Look:* ", "*Do:* "] {
            assert!(entry.contains(part), "{name} does not say {part}");
        }
    }
    let described: BTreeSet<_> = runbook.lines().filter_map(|l| l.strip_prefix("### ")).collect();
    let described: BTreeSet<String> = described.into_iter().map(str::to_owned).collect();
    assert_eq!(described, names, "the runbook and the alerts");
}

#[test]
fn the_dashboard_asks_for_what_exists() {
    let board: Value = serde_json::from_str(&read("docs/grafana.json")).unwrap();
    let (mut asked_for, mut ids) = (0, BTreeSet::new());
    for panel in board["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64()), "{}", panel["title"]);
        for target in panel["targets"].as_array().into_iter().flatten() {
            check(target["expr"].as_str().unwrap());
            asked_for += 1;
        }
    }
    assert!(asked_for > 30, "{asked_for}");
    check("utterd_build_info");
    assert!(board["templating"]["list"].to_string().contains("label_values(utterd_build_info, "));
}

#[test]
fn prometheus_takes_the_alerts() {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/alerts.yml");
    match Command::new("promtool").args(["check", "rules"]).arg(&file).output() {
        Ok(checked) => assert!(checked.status.success(), "{checked:?}"),
        Err(error) => println!("skipped: no promtool ({error})"),
    }
}
