//! Traces for a collector (OTLP): of each job one span, with a child for each stretch of its life.
//!
//! The path of an utterance only leaves a pointer to the ended job in a bounded queue; if that is
//! full, the trace is dropped and counted. Everything else happens in a task of its own.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry::trace::{
    Event, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::shared::Shared;
use crate::config;
use crate::job::Job;
use crate::protocol::job::Outcome;
use crate::protocol::trace::TraceParent;
use crate::telemetry::{Metrics, Now, Stage};

/// How long an ended job may take to be told to its client before its trace is made without that.
const TOLD_WITHIN_US: u64 = 2_000_000;
/// Time between looks at the jobs that wait.
const ROUND: Duration = Duration::from_millis(250);
/// Traces in one request to the collector.
const BATCH: usize = 256;
/// Longest time for one request, and for the last one of a server that stops.
const REQUEST_MAX: Duration = Duration::from_secs(5);
const LAST_REQUEST_MAX: Duration = Duration::from_secs(1);

/// The way of ended jobs to the collector.
pub(super) struct Traces {
    queue: mpsc::Sender<Arc<Job>>,
    sample_percent: u32,
}

impl Traces {
    /// None unless a collector is configured; with the queue's other end.
    pub(super) fn configured(
        config: &config::Telemetry,
    ) -> Option<(Self, mpsc::Receiver<Arc<Job>>)> {
        config.otlp_endpoint.as_ref()?;
        let (queue, jobs) = mpsc::channel(config.queue_max);
        Some((Self { queue, sample_percent: config.sample_percent }, jobs))
    }

    /// Takes a job that has ended, if it is one to be traced. Never waits.
    pub(super) fn ended(&self, job: &Arc<Job>, metrics: &Metrics) {
        if self.wants(job) && self.queue.try_send(Arc::clone(job)).is_err() {
            metrics.traces_dropped.with_label_values(&["queue_full"]).inc();
        }
    }

    /// Whether the job is to be traced: as its client says, else by lot. The lot is in its id, so
    /// that all who draw it agree.
    fn wants(&self, job: &Job) -> bool {
        match job.spec.traced.0 {
            Some(client) => client.sampled,
            None => (job.id.0 as u64 >> 32) % 100 < u64::from(self.sample_percent),
        }
    }

    /// The context that a node is to be told, so that its spans are under the job's.
    pub(super) fn context(&self, job: &Job) -> TraceParent {
        let context = TraceParent::of_job(job.id, job.spec.traced.0);
        TraceParent { sampled: self.wants(job), ..context }
    }
}

/// Sends traces until the server closes.
pub(super) async fn run(shared: Arc<Shared>, mut jobs: mpsc::Receiver<Arc<Job>>) {
    let config = shared.settings.with(|version| version.config.telemetry.clone());
    let Some(endpoint) = config.otlp_endpoint else { return };
    let exporter = match exporter(&endpoint) {
        Ok(exporter) => exporter,
        Err(error) => return warn!(%error, "no traces are sent"),
    };
    let mut closing = shared.closing.subscribe();
    let waiting_max = config.queue_max;
    let mut waiting = VecDeque::new();
    let mut round = tokio::time::interval(ROUND);
    round.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !*closing.borrow_and_update() {
        tokio::select! {
            job = jobs.recv(), if waiting.len() < waiting_max => match job {
                Some(job) => waiting.push_back(job),
                None => break,
            },
            _ = round.tick() => send(&shared, &exporter, ripe(&mut waiting, shared.now())).await,
            changed = closing.changed() => if changed.is_err() { break },
        }
    }
    while let Ok(job) = jobs.try_recv() {
        waiting.push_back(job);
    }
    let last = send(&shared, &exporter, waiting.into_iter().collect());
    if tokio::time::timeout(LAST_REQUEST_MAX, last).await.is_err() {
        debug!("the collector is late: the last traces are lost");
    }
}

/// Takes out the jobs whose traces can be made: told to their clients, or not told for so long
/// that nobody waits for it.
fn ripe(waiting: &mut VecDeque<Arc<Job>>, now: Now) -> Vec<Arc<Job>> {
    let is_ripe = |job: &Arc<Job>| {
        let ended = job.stamps.at(Stage::Settled);
        job.stamps.at(Stage::Delivered) > 0 || now.us.saturating_sub(ended) > TOLD_WITHIN_US
    };
    let mut taken = Vec::new();
    waiting.retain(|job| {
        let ripe = is_ripe(job);
        if ripe {
            taken.push(Arc::clone(job));
        }
        !ripe
    });
    taken
}

fn exporter(endpoint: &str) -> Result<SpanExporter, opentelemetry_otlp::ExporterBuildError> {
    let builder = SpanExporter::builder().with_http().with_protocol(Protocol::HttpBinary);
    let mut exporter = builder.with_endpoint(endpoint).with_timeout(REQUEST_MAX).build()?;
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let resource = Resource::builder_empty().with_service_name("utterd").with_attribute(version);
    exporter.set_resource(&resource.build());
    Ok(exporter)
}

async fn send(shared: &Shared, exporter: &SpanExporter, jobs: Vec<Arc<Job>>) {
    for batch in jobs.chunks(BATCH) {
        let now = shared.now();
        let spans = batch.iter().flat_map(|job| spans(job, now)).collect();
        let traces = batch.len() as u64;
        match exporter.export(spans).await {
            Ok(()) => shared.metrics.traces_exported.inc_by(traces),
            Err(error) => {
                debug!(%error, "the collector did not take traces");
                shared.metrics.traces_dropped.with_label_values(&["refused"]).inc_by(traces);
            }
        }
    }
}

/// Stretches of a job's life: the span's name, and the borders it is between.
const STRETCHES: [(&str, Stage, Stage); 6] = [
    ("listen", Stage::Received, Stage::Cut),
    ("queued", Stage::Queued, Stage::Placed),
    ("placed", Stage::Placed, Stage::Written),
    ("node", Stage::Written, Stage::Settled),
    ("durable", Stage::Settled, Stage::Durable),
    ("delivered", Stage::Settled, Stage::Delivered),
];

/// The spans of an ended job: its own first. Nothing that was said is in them.
fn spans(job: &Job, now: Now) -> Vec<SpanData> {
    let wall = |us: u64| {
        let now_us = now.unix_ms.saturating_mul(1_000);
        let unix_us = now_us.saturating_sub(now.us.saturating_sub(us));
        UNIX_EPOCH.checked_add(Duration::from_micros(unix_us)).unwrap_or(UNIX_EPOCH)
    };
    let own = TraceParent::of_job(job.id, job.spec.traced.0);
    let reached = Stage::ALL.map(|stage| job.stamps.at(stage)).into_iter().filter(|us| *us > 0);
    let (first, last) = (reached.clone().min().unwrap_or(now.us), reached.max().unwrap_or(now.us));
    let span = |id: u64, parent: u64, name: &'static str, from: u64, to: u64| SpanData {
        span_context: SpanContext::new(
            TraceId::from(own.trace),
            SpanId::from(id),
            TraceFlags::SAMPLED,
            false,
            TraceState::NONE,
        ),
        parent_span_id: SpanId::from(parent),
        parent_span_is_remote: false,
        span_kind: SpanKind::Internal,
        name: name.into(),
        start_time: wall(from),
        end_time: wall(to.max(from)),
        attributes: Vec::new(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: Status::Unset,
        instrumentation_scope: InstrumentationScope::builder("utterd").build(),
    };
    let client = job.spec.traced.0.map_or(0, |client| client.parent);
    let mut job_span = span(own.parent, client, "job", first, last);
    job_span.parent_span_is_remote = client != 0;
    job_span.span_kind = SpanKind::Server;
    job_span.attributes = attributes(job);
    job_span.events.events = looks(job, wall);
    job_span.status = status(job);
    let mut all = vec![job_span];
    for (at, (name, from, to)) in (1..).zip(STRETCHES) {
        let (begin, end) = (job.stamps.at(from), job.stamps.at(to));
        if begin > 0 && end > 0 {
            all.push(span(own.parent.wrapping_add(at).max(1), own.parent, name, begin, end));
        }
    }
    all
}

fn attributes(job: &Job) -> Vec<KeyValue> {
    let spec = &job.spec;
    let mut all = vec![
        KeyValue::new("utterd.job", job.id.to_string()),
        KeyValue::new("utterd.session", spec.session.to_string()),
        KeyValue::new("utterd.utterance", i64::try_from(spec.utterance_index).unwrap_or(-1)),
        KeyValue::new("utterd.trace_id", spec.trace_id.to_string()),
        KeyValue::new("utterd.src_lang", spec.src.to_string()),
        KeyValue::new("utterd.tgt_lang", spec.tgt.to_string()),
        KeyValue::new("utterd.audio_ms", i64::from(spec.audio_ms)),
        KeyValue::new("utterd.cut", spec.cut.as_str()),
    ];
    if let Some(tenant) = &spec.tenant {
        all.push(KeyValue::new("utterd.tenant", tenant.to_string()));
    }
    if let Some(ended) = job.ended() {
        all.push(KeyValue::new("utterd.outcome", ended.outcome.as_str()));
        all.push(KeyValue::new("utterd.attempts", i64::from(ended.attempts)));
        if let Some(node) = &ended.node {
            all.push(KeyValue::new("utterd.node", node.to_string()));
        }
        if let Some(code) = ended.code {
            all.push(KeyValue::new("utterd.code", code.as_str()));
        }
    }
    all
}

/// An event for each look for a node: an attempt, or why there was none.
fn looks(job: &Job, wall: impl Fn(u64) -> SystemTime) -> Vec<Event> {
    let look = |place: &crate::job::Placement| match &place.chosen {
        Some((node, pool, attempt)) => {
            let attributes = vec![
                KeyValue::new("utterd.node", node.to_string()),
                KeyValue::new("utterd.pool", pool.to_string()),
                KeyValue::new("utterd.attempt", i64::from(*attempt)),
            ];
            Event::new("attempt", wall(place.at_us), attributes, 0)
        }
        None => {
            let why = KeyValue::new("utterd.why", place.reasons.why_none());
            Event::new("no node", wall(place.at_us), vec![why], 0)
        }
    };
    job.placements().0.map(look).collect()
}

/// A node's message may quote what was said, so only the code is told.
fn status(job: &Job) -> Status {
    match job.ended() {
        Some(ended) if matches!(ended.outcome, Outcome::Failed | Outcome::Expired) => {
            Status::error(ended.code.map_or("failed", |code| code.as_str()))
        }
        Some(_) => Status::Ok,
        None => Status::Unset,
    }
}
