//! The nodes that an earlier run of the server knew. Some of its unfinished jobs may be with them,
//! so those jobs are not given out before the nodes had a chance to say so.

use std::sync::Arc;

use foldhash::fast::RandomState;
use papaya::HashMap;

use super::shared::Shared;
use crate::job::{Deadline, Effect, Effects};
use crate::protocol::NodeId;
use crate::store::NodeRow;
use crate::telemetry::Now;

/// How long a node that does not come is remembered as one that may.
const KNOWN_FOR_MS: u64 = 24 * 3_600_000;

/// Known nodes that have not come yet.
#[derive(Default)]
pub(super) struct Awaited(HashMap<NodeId, (), RandomState>);

/// Lets the jobs that were taken back wait for these nodes, as far as they were seen lately; or
/// gives them out, if there is nothing to wait for.
pub(super) fn wait_for(shared: &Arc<Shared>, nodes: &[NodeRow], now: Now, effects: &mut Effects) {
    let wait_ms = shared.settings.with(|v| v.config.node.recovery_wait_ms);
    let awaited = shared.awaited.0.pin();
    for node in nodes.iter().filter(|_| shared.scheduler.live() > 0 && wait_ms > 0) {
        if node.last_seen_unix_ms.saturating_add(KNOWN_FOR_MS) > now.unix_ms {
            awaited.insert(node.id.clone(), ());
        }
    }
    if awaited.is_empty() {
        return shared.scheduler.release_restored(now, effects);
    }
    effects.push(Effect::Arm(now.after_ms(wait_ms), Deadline::Recovered));
}

/// A node has come, and has said what it has if it can.
pub(super) fn arrived(shared: &Arc<Shared>, node: &NodeId, now: Now, effects: &mut Effects) {
    let awaited = shared.awaited.0.pin();
    if awaited.remove(node).is_some() && awaited.is_empty() {
        shared.scheduler.release_restored(now, effects);
    }
}
