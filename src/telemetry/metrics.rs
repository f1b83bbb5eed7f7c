//! Counters, gauges and histograms. Recording never waits: values are atomics. Handles without
//! labels are resolved at start; those with labels are looked up under the library's read lock,
//! which is taken for writing only when a label value is first seen.

use prometheus::{
    Counter, CounterVec, Encoder, Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec,
    IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

use super::seeds::seeds;

const SECONDS: [f64; 14] = [
    0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.2, 1.0, 5.0, 30.0,
];

/// What a metric is called and means.
#[derive(Debug, Clone, Copy)]
pub struct Reference {
    /// Its name, by which it is asked for.
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// What its values are told apart by.
    pub labels: &'static [&'static str],
    /// What it says.
    pub help: &'static str,
}

macro_rules! metrics {
    ($( $kind:ident $field:ident = $name:literal $([$($label:literal),+])? $help:literal; )*) => {
        /// Everything that is counted, by field; names and meanings are in docs/OPERATING.md.
        pub struct Metrics {
            registry: Registry,
            $( #[doc = $help] pub $field: metrics!(@type $kind), )*
        }

        impl Metrics {
            /// A fresh set, all zero.
            #[allow(clippy::new_without_default, reason = "one is made on purpose, at start")]
            pub fn new() -> Self {
                let registry = Registry::new();
                $( let $field = metrics!(@make $kind $name [$($($label),+)?] $help);
                   register(&registry, &$field);
                   metrics!(@seed $kind $field $name); )*
                Self { registry, $($field,)* }
            }

            /// All of them, for the documentation and its test.
            pub fn reference() -> Vec<Reference> {
                vec![$( Reference {
                    name: $name,
                    kind: metrics!(@kind $kind),
                    labels: &[$($($label),+)?],
                    help: $help,
                }, )*]
            }
        }
    };
    (@seed counters $field:ident $name:literal) => { metrics!(@seeds $field $name) };
    (@seed gauges $field:ident $name:literal) => { metrics!(@seeds $field $name) };
    (@seed sums $field:ident $name:literal) => { metrics!(@seeds $field $name) };
    (@seed $kind:ident $field:ident $name:literal) => {};
    (@seeds $field:ident $name:literal) => {
        for values in seeds($name) {
            // From now on it is shown, as zero.
            drop($field.with_label_values(&values));
        }
    };
    (@kind counter) => { "counter" };
    (@kind counters) => { "counter" };
    (@kind sum) => { "counter" };
    (@kind sums) => { "counter" };
    (@kind gauge) => { "gauge" };
    (@kind gauges) => { "gauge" };
    (@kind real) => { "gauge" };
    (@kind histogram) => { "histogram" };
    (@type counter) => { IntCounter };
    (@type sum) => { Counter };
    (@type real) => { Gauge };
    (@type counters) => { IntCounterVec };
    (@type sums) => { CounterVec };
    (@type gauge) => { IntGauge };
    (@type gauges) => { IntGaugeVec };
    (@type histogram) => { Histogram };
    (@make counter $name:literal [] $help:literal) => { made(IntCounter::new($name, $help)) };
    (@make gauge $name:literal [] $help:literal) => { made(IntGauge::new($name, $help)) };
    (@make sum $name:literal [] $help:literal) => { made(Counter::new($name, $help)) };
    (@make real $name:literal [] $help:literal) => { made(Gauge::new($name, $help)) };
    (@make counters $name:literal [$($label:literal),+] $help:literal) => {
        made(IntCounterVec::new(Opts::new($name, $help), &[$($label),+]))
    };
    (@make sums $name:literal [$($label:literal),+] $help:literal) => {
        made(CounterVec::new(Opts::new($name, $help), &[$($label),+]))
    };
    (@make gauges $name:literal [$($label:literal),+] $help:literal) => {
        made(IntGaugeVec::new(Opts::new($name, $help), &[$($label),+]))
    };
    (@make histogram $name:literal [] $help:literal) => {
        made(Histogram::with_opts(HistogramOpts::new($name, $help).buckets(SECONDS.to_vec())))
    };
}

/// Names are literals checked by the tests; a bad one is our bug.
#[allow(clippy::expect_used, reason = "only a malformed literal above can fail")]
fn made<T>(metric: prometheus::Result<T>) -> T {
    metric.expect("metric names are valid")
}

#[allow(clippy::expect_used, reason = "only a repeated literal above can fail")]
fn register<C: prometheus::core::Collector + Clone + 'static>(registry: &Registry, metric: &C) {
    registry.register(Box::new(metric.clone())).expect("metric names are unique");
}

metrics! {
    counters frames_in = "utterd_frames_received_total" ["socket", "type"]
        "Frames understood, by socket and message type.";
    counters frames_refused = "utterd_frames_refused_total" ["socket", "kind"]
        "Frames not understood or not allowed, by socket and kind of fault.";
    counters connections_closed = "utterd_connections_closed_total" ["socket", "why"]
        "Connections ended, by socket and cause.";
    gauges connections = "utterd_connections" ["socket"]
        "Connections open now, by socket.";
    gauge outbox_bytes = "utterd_outbox_bytes"
        "Bytes that wait to be written to sessions.";
    counters tls_failures = "utterd_tls_handshakes_failed_total" ["why"]
        "TLS handshakes that came to nothing: `refused`, or `late`.";
    counters tls_reloads = "utterd_tls_reloads_total" ["outcome"]
        "Times that certificates were read again: `done`, or `refused` for faults in the files.";
    counters config_reloads = "utterd_config_reloads_total" ["outcome"]
        "Times that the configuration was read again: `done`, or `refused` for faults in it.";
    gauge config_version = "utterd_config_version"
        "Version of the settings in force: 1 at the start, one more with each reading.";
    counter origins_refused = "utterd_origins_refused_total"
        "Requests refused for the page that had a browser make them.";
    gauge sessions = "utterd_sessions"
        "Sessions open now.";
    counter sessions_opened = "utterd_sessions_opened_total"
        "Sessions opened.";
    counters resumes = "utterd_session_resumes_total" ["event"]
        "Clients lost that may come back, and what became of those that did.";
    counter replays = "utterd_outbox_replays_total"
        "Times that results were read back from disk for a client.";
    counters unauthorized = "utterd_unauthorized_total" ["door"]
        "Requests without a good credential: of sessions, nodes or operators.";
    counters pairings = "utterd_pairings_total" ["outcome"]
        "Pairing codes offered by sessions: paired, invalid or too_many.";
    gauge rooms = "utterd_rooms"
        "Rooms there are.";
    gauge room_members = "utterd_room_members"
        "Sessions in rooms.";
    counters room_faults = "utterd_room_requests_refused_total" ["why"]
        "Messages about rooms that had no effect, by cause.";
    counters signals = "utterd_room_signals_total" ["outcome"]
        "Messages between members of a room that set up a call: relayed or dropped.";
    counter audio_bytes = "utterd_audio_received_bytes_total"
        "Bytes of speech received, decoded.";
    counters audio_dropped = "utterd_audio_dropped_bytes_total" ["why"]
        "Bytes of speech that became no job, by cause.";
    counters cuts = "utterd_utterances_cut_total" ["reason"]
        "Utterances cut, by reason.";
    counters finalized = "scheduler_web_task_finalized_total" ["reason"]
        "Utterances cut, in the words of earlier dashboards: send or timeout.";
    counters silences = "utterd_silences_dropped_total" ["reason"]
        "Cuts in which nothing was said and that made no job, by reason of the cut.";
    counters jobs_settled = "utterd_jobs_settled_total" ["outcome"]
        "Jobs ended, by outcome.";
    counter jobs_submitted = "utterd_jobs_submitted_total"
        "Jobs accepted.";
    counter jobs_repeated = "utterd_jobs_repeated_total"
        "Submissions that found their job already there.";
    counters jobs_refused = "utterd_jobs_refused_total" ["why"]
        "Submissions refused, by cause.";
    counters tenant_jobs = "utterd_tenant_jobs_total" ["tenant", "outcome"]
        "Jobs ended, by tenant (`other` for all that are not listed) and outcome.";
    sums tenant_audio_seconds = "utterd_tenant_audio_seconds_total" ["tenant", "outcome"]
        "Seconds of audio in them, in the same way.";
    gauge jobs_live = "utterd_jobs_live"
        "Jobs not yet ended.";
    gauge audio_held_bytes = "utterd_audio_held_bytes"
        "Bytes of speech of jobs that have not ended.";
    gauge jobs_waiting = "utterd_jobs_waiting"
        "Jobs that wait for a slot.";
    counters attempts = "utterd_attempts_ended_total" ["why"]
        "Attempts that ended without settling their job, by cause.";
    counters stale = "utterd_stale_events_total" ["event"]
        "Events that came too late to change their job, by event.";
    counters no_node = "scheduler_no_available_node_total" ["reason"]
        "Placements that found no node, by the most common reason among the candidates.";
    histogram dispatch_seconds = "scheduler_dispatch_latency_seconds"
        "From the cut of an utterance to its job_assign flushed to the node, first attempts.";
    histogram wait_seconds = "utterd_queue_wait_seconds"
        "How long a job waited for a slot before its first attempt; zero when one was free.";
    histogram node_seconds = "utterd_node_seconds"
        "From job_assign flushed to the result read.";
    histogram journal_seconds = "utterd_journal_seconds"
        "From the outcome of a job to the commit that holds it, as its session hears of it.";
    histogram deliver_seconds = "utterd_deliver_seconds"
        "From the result read to its frame flushed to the listener.";
    counters results_out = "utterd_results_sent_total" ["kind"]
        "Outcomes written to listeners, by kind.";
    counters progress_dropped = "utterd_progress_dropped_total" ["why"]
        "Progress messages dropped because their receiver is slow, by cause.";
    gauges nodes = "utterd_nodes" ["state"]
        "Nodes known, by state.";
    counter pool_snapshots = "utterd_pool_snapshots_total"
        "Pool snapshots published.";
    gauge pool_version = "utterd_pool_version"
        "Version of the pool snapshot that placements read now.";
    counters foreign = "utterd_foreign_ids_total" ["socket"]
        "Messages that named an id of another connection; never acted upon.";
    counters result_acks = "utterd_result_acks_total" ["status"]
        "Results acknowledged to nodes that asked for it, by status.";
    counters hello_jobs = "utterd_hello_jobs_total" ["action"]
        "Jobs of nodes that came again and said what they have: by what they were answered, or \
         `requeued` if they had lost it, or `ignored` if it could not be read.";
    counter jobs_adopted = "utterd_jobs_adopted_total"
        "Waiting jobs that went on where a node already had them.";
    counters quarantines = "utterd_node_quarantines_total" ["why"]
        "Nodes taken out for a time, by cause.";
    counter model_na_received = "scheduler_model_na_received_total"
        "MODEL_NOT_AVAILABLE failures received.";
    counter model_na_marked = "scheduler_model_na_marked_total"
        "Services of a node marked unavailable for a time.";
    counter stats_requests = "scheduler_stats_requests_total"
        "Requests of /api/v1/stats.";
    gauge pause_ms = "scheduler_web_task_pause_ms"
        "Configured pause that ends an utterance, in milliseconds.";
    gauges store_queued = "utterd_store_queued" ["lane"]
        "Writes waiting for the store, by lane.";
    real store_last_commit_seconds = "utterd_store_last_commit_seconds"
        "Length of the last commit.";
    counter store_commits = "utterd_store_commits_total"
        "Commits since the start.";
    counter store_bad_rows = "utterd_store_bad_rows_total"
        "Stored rows that failed their check since the start.";
    gauge store_dead_letters = "utterd_store_dead_letters"
        "Undelivered results and failed jobs kept for people to look at.";
    counter store_dead_letters_expired = "utterd_store_dead_letters_expired_total"
        "Dead letters given up since the start.";
    gauge store_pressure = "utterd_store_pressure"
        "Room on the disk: 0 enough, 1 warning, 2 no new jobs, 3 no new sessions, 4 full.";
    gauge store_health = "utterd_store_health"
        "The store's thread: 0 well, 1 late, 2 stuck, 3 lost.";
    gauge store_free_bytes = "utterd_store_free_bytes"
        "Free bytes of the disk when they were last looked at.";
    counter store_syncs = "utterd_store_syncs_total"
        "Syncs of the disk since the start.";
    sum store_sync_seconds = "utterd_store_sync_seconds_total"
        "Time spent in them.";
    gauges build = "utterd_build_info" ["version"]
        "Which program this is; always 1.";
    counter traces_exported = "utterd_traces_exported_total"
        "Traces of jobs that the collector has taken.";
    counters traces_dropped = "utterd_traces_dropped_total" ["why"]
        "Traces of jobs that were given up: `queue_full`, or `refused` by the collector.";
}

impl Metrics {
    /// Brings a counter to what was counted elsewhere. Only one task does this for a counter.
    pub fn bring(counter: &IntCounter, to: u64) {
        counter.inc_by(to.saturating_sub(counter.get()));
    }

    /// The exposition text.
    pub fn text(&self) -> Vec<u8> {
        let mut text = Vec::new();
        // Writing to memory does not fail.
        if TextEncoder::new().encode(&self.registry.gather(), &mut text).is_err() {
            text.clear();
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_values_show() {
        let metrics = Metrics::new();
        metrics.cuts.with_label_values(&["pause"]).inc();
        let text = String::from_utf8(metrics.text()).unwrap();
        assert!(text.contains("utterd_utterances_cut_total{reason=\"pause\"} 1"), "{text}");
    }
}
