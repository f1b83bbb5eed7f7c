//! What happened to a job, as data.

use serde_json::{Value, json};

use super::table::{Job, Placement};
use crate::telemetry::Stage;

impl Job {
    /// The job's life so far: state, stamps, and every placement with who was considered and why
    /// not. The same for the console, the API, `inspect` and the stored row.
    pub fn explain(&self) -> Value {
        let state = self.state();
        let (placements, looked) = self.placements();
        let placements: Vec<Value> = placements.map(|p| self.explain_placement(p)).collect();
        let pairs: Vec<String> = self.pairs.iter().map(ToString::to_string).collect();
        let ended = self.ended().map(|e| {
            json!({
                "outcome": e.outcome.as_str(),
                "code": e.code_text(),
                "message": e.message,
                "node": e.node,
                "attempts": e.attempts,
                "at_unix_ms": e.unix_ms,
            })
        });
        json!({
            "job_id": self.id,
            "state": state.phase.as_str(),
            "attempts": state.attempts(),
            "attempt_id": state.attempt,
            "session_id": self.spec.session,
            "utterance_index": self.spec.utterance_index,
            "turn_id": self.spec.turn,
            "trace_id": self.spec.trace_id,
            "tenant": self.spec.tenant,
            "src_lang": self.spec.src,
            "tgt_lang": self.spec.tgt,
            "needs_pairs": pairs,
            "cut": self.spec.cut.as_str(),
            "audio_format": self.spec.audio_format,
            "audio_ms": self.spec.audio_ms,
            "lease_ms": self.lease_ms,
            "pending_ms": self.pending_ms,
            "stamps_us": self.stamps,
            "placements": placements,
            "placements_made": looked,
            "ended": ended,
        })
    }

    fn explain_placement(&self, placement: &Placement) -> Value {
        let considered: Vec<Value> = placement
            .reasons
            .considered
            .iter()
            .map(|c| json!({"node": c.node, "verdict": c.verdict.as_str()}))
            .collect();
        let (node, pool, attempt) = match &placement.chosen {
            Some((node, pool, attempt)) => (Some(node), Some(pool), Some(attempt)),
            None => (None, None, None),
        };
        json!({
            "at_us": placement.at_us.saturating_sub(self.stamps.at(Stage::Received)),
            "node": node,
            "pool": pool.map(|p| &**p),
            "attempt_id": attempt,
            "snapshot": placement.reasons.snapshot,
            "considered": considered,
            "more": placement.reasons.more,
            "why_none": node.is_none().then(|| placement.reasons.why_none()),
        })
    }
}
