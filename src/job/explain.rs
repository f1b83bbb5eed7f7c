//! What happened to a job, as data.

use serde::ser::{Serialize, SerializeMap, Serializer};

use super::table::{Ended, Job, Placement};
use crate::node::Considered;
use crate::telemetry::Stage;

/// A job's life so far: state, stamps, and every placement with who was considered and why not.
/// The same for the console, the API, `inspect` and the stored row.
#[derive(Debug)]
pub struct Explanation<'a>(&'a Job);

impl Job {
    /// The job's life so far.
    pub fn explain(&self) -> Explanation<'_> {
        Explanation(self)
    }
}

impl Serialize for Explanation<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let job = self.0;
        let (spec, state) = (&job.spec, job.state());
        let pairs: Vec<String> = job.pairs.iter().map(ToString::to_string).collect();
        let mut map = s.serialize_map(None)?;
        map.serialize_entry("job_id", &job.id)?;
        map.serialize_entry("state", state.phase.as_str())?;
        map.serialize_entry("attempts", &state.attempts())?;
        map.serialize_entry("attempt_id", &state.attempt)?;
        map.serialize_entry("session_id", &spec.session)?;
        map.serialize_entry("utterance_index", &spec.utterance_index)?;
        map.serialize_entry("turn_id", &spec.turn)?;
        map.serialize_entry("trace_id", &*spec.trace_id)?;
        map.serialize_entry("tenant", &spec.tenant)?;
        map.serialize_entry("src_lang", &spec.src)?;
        map.serialize_entry("tgt_lang", &spec.tgt)?;
        map.serialize_entry("needs_pairs", &pairs)?;
        map.serialize_entry("cut", spec.cut.as_str())?;
        map.serialize_entry("audio_format", &*spec.audio_format)?;
        map.serialize_entry("audio_ms", &spec.audio_ms)?;
        map.serialize_entry("lease_ms", &job.lease_ms)?;
        map.serialize_entry("pending_ms", &job.pending_ms)?;
        map.serialize_entry("stamps_us", &job.stamps)?;
        map.serialize_entry("placements", &Looks(job))?;
        map.serialize_entry("placements_made", &job.placements().1)?;
        map.serialize_entry("ended", &job.ended().map(End))?;
        map.end()
    }
}

/// All looks for a node that are kept.
struct Looks<'a>(&'a Job);

impl Serialize for Looks<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let origin_us = self.0.stamps.at(Stage::Received);
        s.collect_seq(self.0.placements().0.map(|look| Look(look, origin_us)))
    }
}

/// One of them, and when its job was received.
struct Look<'a>(&'a Placement, u64);

impl Serialize for Look<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let Look(Placement { at_us, chosen, reasons }, origin_us) = self;
        let mut map = s.serialize_map(None)?;
        map.serialize_entry("at_us", &at_us.saturating_sub(*origin_us))?;
        map.serialize_entry("node", &chosen.as_ref().map(|(node, ..)| node))?;
        map.serialize_entry("pool", &chosen.as_ref().map(|(_, pool, _)| &**pool))?;
        map.serialize_entry("attempt_id", &chosen.as_ref().map(|(.., attempt)| *attempt))?;
        map.serialize_entry("snapshot", &reasons.snapshot)?;
        map.serialize_entry("considered", &Candidates(&reasons.considered))?;
        map.serialize_entry("more", &reasons.more)?;
        map.serialize_entry("why_none", &chosen.is_none().then(|| reasons.why_none()))?;
        map.end()
    }
}

struct Candidates<'a>(&'a [Considered]);

impl Serialize for Candidates<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(self.0.iter().map(Candidate))
    }
}

struct Candidate<'a>(&'a Considered);

impl Serialize for Candidate<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut map = s.serialize_map(Some(2))?;
        map.serialize_entry("node", &self.0.node)?;
        map.serialize_entry("verdict", self.0.verdict.as_str())?;
        map.end()
    }
}

struct End<'a>(&'a Ended);

impl Serialize for End<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut map = s.serialize_map(None)?;
        map.serialize_entry("outcome", self.0.outcome.as_str())?;
        map.serialize_entry("code", &self.0.code_text())?;
        map.serialize_entry("message", &self.0.message)?;
        map.serialize_entry("node", &self.0.node)?;
        map.serialize_entry("attempts", &self.0.attempts)?;
        map.serialize_entry("at_unix_ms", &self.0.unix_ms)?;
        map.end()
    }
}
