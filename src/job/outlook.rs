//! What would come of a job if it were submitted now: placement without a job.

use std::sync::Arc;

use super::{Scheduler, table};
use crate::node::{Bar, Need, Standing, preview, standings};
use crate::protocol::job::JobSpec;
use crate::protocol::node::ServiceSet;
use crate::protocol::{NodeId, Pair};
use crate::telemetry::Now;

/// Who would get a job, and how every node stands towards it.
#[derive(Debug)]
pub struct Outlook {
    /// Directed pairs its node must cover, the one to look up first.
    pub pairs: Box<[Pair]>,
    /// Services its node must have.
    pub services: ServiceSet,
    /// Version of the pool snapshot that was read.
    pub snapshot: u64,
    /// Who got it in this look, and from which pool. Another look may draw another of those that
    /// could.
    pub chosen: Option<(NodeId, Arc<str>)>,
    /// Why no one did, in the words of placements; none if one did.
    pub why_none: Option<&'static str>,
    /// Jobs that wait for a slot: they are looked at before it.
    pub waiting: usize,
    /// All nodes, those that could have it first, then by name.
    pub standings: Vec<Standing>,
}

impl Scheduler {
    /// What would come of a job like this one, of a session that no node knows yet.
    pub fn outlook(&self, spec: &JobSpec, now: Now) -> Outlook {
        let pairs = table::required_pairs(spec);
        let need = Need {
            pairs: &pairs,
            services: ServiceSet::of(&spec.pipeline),
            tenant: spec.tenant.as_deref(),
            excluded: &[],
            prefer: None,
            only: None,
        };
        let (services, nodes) = (need.services, self.nodes.all());
        let ((claim, reasons), mut standings) = self.pools.with(|snapshot| {
            (preview(snapshot, &need, now), standings(snapshot, nodes, &need, now))
        });
        standings.sort_by(|a, b| {
            let rank = |one: &Standing| (one.bar.is_some(), one.bar != Some(Bar::Full));
            rank(a).cmp(&rank(b)).then_with(|| a.node.id.cmp(&b.node.id))
        });
        Outlook {
            services,
            snapshot: reasons.snapshot,
            why_none: claim.is_none().then(|| reasons.why_none()),
            chosen: claim.map(|claim| (claim.node.id.clone(), claim.pool)),
            waiting: self.waiting(),
            standings,
            pairs,
        }
    }
}
