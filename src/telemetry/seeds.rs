//! Values of labels that are known beforehand. They are shown as zero from the start, so that the
//! first event of a kind is a rise, and a query for what never happened finds zero.

/// Of a metric, the values of each of its labels.
type Seed = (&'static str, &'static [&'static [&'static str]]);

const SOCKETS: &[&str] = &["session", "node"];
const CUTS: &[&str] = &["manual", "pause", "max_duration", "max_bytes", "close", "whole"];
const OUTCOMES: &[&str] = &["succeeded", "empty", "merged", "failed", "expired", "cancelled"];

/// Every metric with labels is here.
const SEEDS: &[Seed] = &[
    ("utterd_frames_received_total", &[&["session"], FROM_CLIENTS]),
    ("utterd_frames_received_total", &[&["node"], FROM_NODES]),
    ("utterd_frames_refused_total", &[SOCKETS, BAD_FRAMES]),
    ("utterd_connections_closed_total", &[SOCKETS, ENDS]),
    ("utterd_connections", &[SOCKETS]),
    ("utterd_tls_handshakes_failed_total", &[&["refused", "late"]]),
    ("utterd_tls_reloads_total", &[&["done", "refused"]]),
    ("utterd_config_reloads_total", &[&["done", "refused"]]),
    ("utterd_session_resumes_total", &[&["detached", "resumed", "unknown_session"]]),
    ("utterd_unauthorized_total", &[&["session", "node", "admin"]]),
    ("utterd_pairings_total", &[&["paired", "invalid", "too_many"]]),
    ("utterd_room_requests_refused_total", &[ROOM_FAULTS]),
    ("utterd_room_signals_total", &[&["relayed", "dropped"]]),
    ("utterd_audio_dropped_bytes_total", &[UNUSED_AUDIO]),
    ("utterd_utterances_cut_total", &[CUTS]),
    ("scheduler_web_task_finalized_total", &[&["send", "timeout"]]),
    ("utterd_silences_dropped_total", &[CUTS]),
    ("utterd_jobs_settled_total", &[OUTCOMES]),
    ("utterd_jobs_refused_total", &[REFUSALS]),
    ("utterd_tenant_jobs_total", &[&["other"], OUTCOMES]),
    ("utterd_tenant_audio_seconds_total", &[&["other"], OUTCOMES]),
    ("utterd_attempts_ended_total", &[CAUSES]),
    ("utterd_stale_events_total", &[STALE]),
    ("scheduler_no_available_node_total", &[NO_NODE]),
    ("utterd_results_sent_total", &[&["result", "missing"]]),
    ("utterd_progress_dropped_total", &[&["mailbox_full", "outbox_full", "slow_client"]]),
    ("utterd_nodes", &[&["registering", "ready", "degraded", "draining", "offline"]]),
    ("utterd_foreign_ids_total", &[SOCKETS]),
    ("utterd_result_acks_total", &[&["committed", "duplicate", "stale", "unknown"]]),
    ("utterd_hello_jobs_total", &[&["keep", "cancel", "send", "requeued", "ignored"]]),
    ("utterd_node_quarantines_total", &[&["failures"]]),
    ("utterd_store_queued", &[&["results", "accepts", "housekeeping"]]),
    ("utterd_build_info", &[&[env!("CARGO_PKG_VERSION")]]),
    ("utterd_traces_dropped_total", &[&["queue_full", "refused"]]),
];

const FROM_CLIENTS: &[&str] = &[
    "session_init",
    "audio_chunk",
    "utterance",
    "client_heartbeat",
    "session_close",
    "tts_started",
    "tts_play_ended",
    "session_resume",
    "ack",
    "room",
    "webrtc",
];
const FROM_NODES: &[&str] = &[
    "node_register",
    "node_heartbeat",
    "job_result",
    "asr_partial",
    "job_ack",
    "job_started",
    "node_error",
    "pairing_code_request",
];
const BAD_FRAMES: &[&str] = &["malformed", "unknown_type", "too_long", "audio", "wrong_direction"];
const ENDS: &[&str] = &[
    "by_peer",
    "write_stalled",
    "pong_missing",
    "first_message_late",
    "too_large",
    "protocol_error",
    "io",
    "requested",
];
const ROOM_FAULTS: &[&str] = &[
    "room_not_found",
    "already_in_room",
    "room_full",
    "rate_limited",
    "overloaded",
    "internal_error",
];
const UNUSED_AUDIO: &[&str] =
    &["silence", "leading_silence", "session_lost", "draining", "invalid"];
const REFUSALS: &[&str] = &[
    "server_full",
    "memory_full",
    "queue_full",
    "session_full",
    "store_full",
    "store_race",
    "unacknowledged",
    "conflict",
    "draining",
    "tenant_queue",
    "tenant_jobs",
    "tenant_audio",
];
const CAUSES: &[&str] = &[
    "not_sent",
    "node_lost",
    "node_restarted",
    "not_arrived",
    "lease_over",
    "model_missing",
    "refused",
    "turn_moved",
];
const STALE: &[&str] = &[
    "written",
    "not_sent",
    "started",
    "partial",
    "result_unknown",
    "result_late",
    "result_foreign",
];
const NO_NODE: &[&str] = &[
    "no_node_for_pair",
    "full",
    "unpaired",
    "excluded",
    "wrong_pair",
    "missing_service",
    "not_ready",
    "no_pool_for_tenant",
];

/// The values that a metric's labels are known to have, in every combination.
pub(super) fn seeds(name: &str) -> Vec<Vec<&'static str>> {
    let mut all = Vec::new();
    for (_, labels) in SEEDS.iter().filter(|(of, _)| *of == name) {
        let mut rows = vec![Vec::new()];
        for values in *labels {
            let longer = |row: &Vec<&'static str>| {
                let row = row.clone();
                values.iter().map(move |value| [&row[..], &[*value]].concat())
            };
            rows = rows.iter().flat_map(longer).collect();
        }
        all.extend(rows);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::super::Metrics;
    use super::*;

    #[test]
    fn every_metric_with_labels_is_seeded_and_no_other() {
        for metric in Metrics::reference() {
            let rows = seeds(metric.name);
            assert_eq!(rows.is_empty(), metric.labels.is_empty(), "{}", metric.name);
            assert!(rows.iter().all(|row| row.len() == metric.labels.len()), "{}", metric.name);
        }
        let known = |name: &str| Metrics::reference().iter().any(|metric| metric.name == name);
        let unknown: Vec<_> = SEEDS.iter().filter(|(name, _)| !known(name)).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
    }
}
