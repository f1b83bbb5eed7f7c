//! `GET /api/v1/explain`: who would get a job now, why not the others, and what to do about it.

use std::borrow::Cow;

use hyper::{Response, StatusCode};
use serde_json::{Value, json};

use super::routes::{ROWS_MAX, Routes, fault, reply};
use crate::node::{Bar, Standing};
use crate::protocol::Lang;
use crate::protocol::job::{JobSpec, Pipeline};
use crate::store::{Health, Pressure};
use crate::telemetry::Now;
use crate::transport::Body;

impl Routes {
    /// A dry run of placement: nothing is taken, and no job is made.
    pub(super) fn explain(&self, query: Option<&str>) -> Response<Body> {
        let spec = match asked(query.unwrap_or_default()) {
            Ok(spec) => spec,
            Err(why) => return fault(StatusCode::BAD_REQUEST, &why),
        };
        let now = self.shared.now();
        let outlook = self.shared.scheduler.outlook(&spec, now);
        let rows: Vec<Value> =
            outlook.standings.iter().take(ROWS_MAX).map(|one| row(one, now)).collect();
        let pairs: Vec<String> = outlook.pairs.iter().map(ToString::to_string).collect();
        let chosen =
            outlook.chosen.as_ref().map(|(node, pool)| json!({"node": node, "pool": &**pool}));
        let could = outlook.standings.iter().filter(|one| one.bar.is_none()).count();
        let refused = self.refuses_jobs();
        let body = json!({
            "needs_pairs": pairs,
            "services": outlook.services,
            "tenant": spec.tenant,
            "snapshot": outlook.snapshot,
            "chosen": chosen,
            "could": could,
            "why_none": outlook.why_none,
            "waiting": outlook.waiting,
            "refused": refused,
            "advice": advice(refused, outlook.why_none, outlook.waiting),
            "nodes": rows,
            "total": outlook.standings.len(),
        });
        reply(StatusCode::OK, &body)
    }

    /// Why no job would be taken at all, if that is so.
    fn refuses_jobs(&self) -> Option<&'static str> {
        if self.shared.is_draining() {
            return Some("draining");
        }
        let store = self.shared.store.as_ref()?.stats();
        match () {
            () if store.pressure >= Pressure::NoJobs => Some("disk_full"),
            () if store.health >= Health::Stuck => Some("store_stuck"),
            () => None,
        }
    }
}

/// The job that a query describes.
fn asked(query: &str) -> Result<JobSpec, String> {
    let fields: Vec<(Cow<'_, str>, Cow<'_, str>)> =
        form_urlencoded::parse(query.as_bytes()).collect();
    let field = |name: &str| fields.iter().find(|(key, _)| key == name).map(|(_, value)| value);
    let lang = |name: &str| -> Result<Lang, String> {
        let text = field(name).ok_or_else(|| format!("`{name}` is missing: a language tag"))?;
        text.parse().map_err(|error| format!("`{name}`: {error}"))
    };
    let mut spec = JobSpec::plain(lang("from")?, lang("to")?);
    spec.tenant = field("tenant").map(|tenant| Box::from(&**tenant));
    if let Some(list) = field("candidates") {
        let parsed = list.split(',').map(str::parse).collect::<Result<Vec<Lang>, _>>();
        spec.auto_langs = Some(parsed.map_err(|error| format!("`candidates`: {error}"))?);
    }
    if spec.src.is_auto() && spec.auto_langs.is_none() {
        return Err("`from=auto` needs `candidates`: the languages it may be, by commas".to_owned());
    }
    if let Some(list) = field("services") {
        spec.pipeline = pipeline(list)?;
    }
    Ok(spec)
}

fn pipeline(list: &str) -> Result<Pipeline, String> {
    let mut pipeline = Pipeline {
        use_asr: false,
        use_nmt: false,
        use_tts: false,
        use_semantic: false,
        use_tone: false,
    };
    for name in list.split(',') {
        match name {
            "asr" => pipeline.use_asr = true,
            "nmt" => pipeline.use_nmt = true,
            "tts" => pipeline.use_tts = true,
            "semantic" => pipeline.use_semantic = true,
            "tone" => pipeline.use_tone = true,
            _ => return Err("`services`: asr, nmt, tts, semantic and tone, by commas".to_owned()),
        }
    }
    Ok(pipeline)
}

fn row(standing: &Standing, now: Now) -> Value {
    let Standing { node, pools, bar } = standing;
    let (used, max) = node.slots();
    let pools: Vec<&str> = pools.iter().map(|name| &**name).collect();
    let until = node.quarantined(now).filter(|_| *bar == Some(Bar::Quarantined));
    json!({
        "node_id": node.id,
        "verdict": bar.map_or("could", Bar::as_str),
        "state": node.state(),
        "slots_used": used,
        "slots_max": max,
        "pools": pools,
        "usable_services": node.usable(now),
        "quarantined_ms": until.map(|until| (until - now.us) / 1_000),
        "silent_ms": now.us.saturating_sub(node.heard().0) / 1_000,
        "advice": bar.map(remedy),
    })
}

/// What an operator can do about a node that cannot have the job.
fn remedy(bar: Bar) -> &'static str {
    match bar {
        Bar::Full => "wait, add nodes, or let it say a higher max_concurrent_jobs",
        Bar::WrongPair => "it does not know these languages: use another node for this pair",
        Bar::MissingService => "load the model on the node; it says so in its next heartbeat",
        Bar::Offline => "start it, or see why it cannot connect: its log, its key, the network",
        Bar::Draining => "POST /api/v1/nodes/ID/undrain to take it back",
        Bar::Quarantined => "see its log: its last jobs failed; it comes back by itself",
        Bar::Overloaded => "see its load; the limits are node.*_threshold_percent",
        Bar::Registering => "it is starting: its services are not ready yet",
        Bar::NothingReady => "see its log: no service of it is ready, or it names no language",
        Bar::Unpublished => "ask again: it comes into the pools at this moment",
        Bar::Reserved => "the job is for another node",
    }
}

/// What an operator can do about the whole.
fn advice(refused: Option<&str>, why_none: Option<&str>, waiting: usize) -> &'static str {
    match (refused, why_none) {
        (Some("draining"), _) => "the server is going down: no job is taken",
        (Some("disk_full"), _) => "the disk is nearly full: no job is taken until there is room",
        (Some(_), _) => "the disk does not answer: no job is taken until it does",
        (_, None) if waiting > 0 => "it would wait behind the jobs that wait already",
        (_, None) => "nothing to do: it would be placed at once",
        (_, Some("full")) => "it would wait for a slot: add nodes or slots if that lasts",
        (_, Some("no_node_for_pair")) => {
            "no node in the pools serves the pair: see the nodes, and start one that does"
        }
        (_, Some(_)) => "nodes serve the pair and none can have it: see what each of them lacks",
    }
}
