//! Every node and what keeps it from a job now: placement looked at from outside, taking nothing.
//!
//! What a placement itself would think of a candidate is asked of `select`; only of nodes that no
//! placement looks at the reason is found here.

use std::sync::Arc;

use super::pool::Snapshot;
use super::{Need, Node, State, Verdict, fit};
use crate::protocol::Pair;
use crate::telemetry::Now;

/// What keeps a node from a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bar {
    /// No slot is free.
    Full,
    /// It does not know the languages of a direction that is needed.
    WrongPair,
    /// A service that is needed is not ready, or its model is marked missing.
    MissingService,
    /// It is not connected.
    Offline,
    /// An operator is emptying it.
    Draining,
    /// Too many of its last jobs failed.
    Quarantined,
    /// Its last report was over a load threshold.
    Overloaded,
    /// It is connected and has not said yet that it can work.
    Registering,
    /// By its last report it can do nothing: no ready service, or no language.
    NothingReady,
    /// It could have the job, but no snapshot that says so is published yet.
    Unpublished,
    /// The job may not go to it: it may have seen it, or the session is paired with another.
    Reserved,
}

impl Bar {
    /// Name in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Bar::Full => "full",
            Bar::WrongPair => "wrong_pair",
            Bar::MissingService => "missing_service",
            Bar::Offline => "offline",
            Bar::Draining => "draining",
            Bar::Quarantined => "quarantined",
            Bar::Overloaded => "overloaded",
            Bar::Registering => "registering",
            Bar::NothingReady => "nothing_ready",
            Bar::Unpublished => "not_in_pool",
            Bar::Reserved => "reserved",
        }
    }
}

/// How a node stands towards a job.
#[derive(Debug, Clone)]
pub struct Standing {
    /// The node.
    pub node: Arc<Node>,
    /// Pools of the pair that it is in, in the order of the configuration.
    pub pools: Vec<Arc<str>>,
    /// What keeps it from the job; none if it could have it.
    pub bar: Option<Bar>,
}

/// How each of `nodes` stands towards a job.
pub fn standings(
    snapshot: &Snapshot,
    nodes: Vec<Arc<Node>>,
    need: &Need<'_>,
    now: Now,
) -> Vec<Standing> {
    let route = snapshot.route(need.pairs[0]);
    let of = |node: Arc<Node>| {
        let pools = route.iter().flat_map(|route| &route.pools);
        let pools: Vec<Arc<str>> = pools
            .filter(|pool| pool.nodes.iter().any(|member| member.index == node.index))
            .map(|pool| Arc::clone(&pool.name))
            .collect();
        let bar = match pools.is_empty() {
            true => Some(outside(&node, need, now)),
            false => among(&node, need, now),
        };
        Standing { node, pools, bar }
    };
    nodes.into_iter().map(of).collect()
}

/// Of a candidate: what a placement would think of it.
fn among(node: &Node, need: &Need<'_>, now: Now) -> Option<Bar> {
    match fit(node, need, now) {
        Verdict::Chosen => (!node.has_room()).then_some(Bar::Full),
        Verdict::Full => Some(Bar::Full),
        Verdict::Unpaired | Verdict::Excluded => Some(Bar::Reserved),
        Verdict::WrongPair => Some(Bar::WrongPair),
        Verdict::MissingService => Some(Bar::MissingService),
        Verdict::NotReady => Some(outside(node, need, now)),
    }
}

/// Of a node that placements do not look at, or find gone.
fn outside(node: &Node, need: &Need<'_>, now: Now) -> Bar {
    let capability = node.capability();
    let told = !capability.sources.is_empty() && !capability.targets.is_empty();
    // What no rest of the node would mend comes first.
    if told && !need.pairs.iter().all(|pair: &Pair| capability.speaks(*pair)) {
        return Bar::WrongPair;
    }
    match node.state() {
        State::Offline => Bar::Offline,
        State::Draining => Bar::Draining,
        State::Registering => Bar::Registering,
        State::Degraded if node.quarantined(now).is_some() => Bar::Quarantined,
        State::Degraded if node.overloaded() => Bar::Overloaded,
        State::Degraded => Bar::NothingReady,
        State::Ready if !need.pairs.iter().all(|pair| capability.covers(*pair)) => {
            Bar::MissingService
        }
        State::Ready => Bar::Unpublished,
    }
}

#[cfg(test)]
mod tests {
    use super::super::pool::{Pools, Publisher};
    use super::super::tests::report_of;
    use super::super::{Attached, Event, Registry, preview, select};
    use super::*;
    use crate::config;
    use crate::protocol::NodeId;
    use crate::protocol::node::{ResourceUsage, ServiceSet, ServiceType};

    struct World {
        registry: Registry,
        publisher: Publisher,
        pools: Arc<Pools>,
    }

    impl World {
        fn new() -> Self {
            let (publisher, pools) = Publisher::new(Vec::new(), 1);
            Self { registry: Registry::new(config::Node::default()), publisher, pools }
        }

        fn join(&mut self, id: &str, languages: &[&str]) -> Attached {
            let attached = self.registry.attach(NodeId::from(id), NOW).unwrap();
            self.registry.report(&attached, &report_of(languages), NOW);
            self.publisher.node_changed(&attached.node);
            attached
        }

        fn bar_of(&self, id: &str) -> &'static str {
            let pairs = ["zh:en".parse().unwrap()];
            let all = self.pools.with(|s| standings(s, self.registry.all(), &need(&pairs), NOW));
            let found = all.iter().find(|standing| *standing.node.id.0 == *id).unwrap();
            found.bar.map_or("could", Bar::as_str)
        }
    }

    const NOW: Now = Now { us: 1_000_000, unix_ms: 0 };

    fn need(pairs: &[Pair]) -> Need<'_> {
        let services = ServiceSet::default().with(ServiceType::Asr).with(ServiceType::Nmt);
        Need { pairs, services, tenant: None, excluded: &[], prefer: None, only: None }
    }

    #[test]
    fn each_thing_that_keeps_a_node_from_a_job_is_named() {
        let mut world = World::new();
        world.join("free", &["zh", "en"]);
        assert_eq!(world.bar_of("free"), "could");
        let full = world.join("full", &["zh", "en"]).node;
        while full.claim() {}
        assert_eq!(world.bar_of("full"), "full");
        world.join("french", &["fr", "en"]);
        assert_eq!(world.bar_of("french"), "wrong_pair");
        let drained = world.join("drained", &["zh", "en"]).node;
        drained.drain();
        assert_eq!(world.bar_of("drained"), "draining", "whether or not it is published");
        world.publisher.node_changed(&drained);
        assert_eq!(world.bar_of("drained"), "draining");
        let failing = world.join("failing", &["zh", "en"]).node;
        while !failing.finished(true, NOW, &config::Node::default()) {}
        assert_eq!(world.bar_of("failing"), "quarantined");
        let busy = world.join("busy", &["zh", "en"]);
        let mut report = report_of(&["zh", "en"]);
        report.load = Some(ResourceUsage { gpu_percent: Some(99.0), ..ResourceUsage::default() });
        world.registry.report(&busy, &report, NOW);
        assert_eq!(world.bar_of("busy"), "overloaded");
        let deaf = world.join("deaf", &["zh", "en"]).node;
        deaf.mark_missing(ServiceType::Asr, NOW, 1_000);
        assert_eq!(world.bar_of("deaf"), "missing_service");
        let mute = world.join("mute", &["zh", "en"]);
        let mut report = report_of(&["zh", "en"]);
        report.ready = ServiceSet::default().with(ServiceType::Asr);
        world.registry.report(&mute, &report, NOW);
        world.publisher.node_changed(&mute.node);
        assert_eq!(world.bar_of("mute"), "missing_service");
        let gone = world.join("gone", &["zh", "en"]);
        world.registry.detach(&gone);
        assert_eq!(world.bar_of("gone"), "offline");
        let new = world.registry.attach(NodeId::from("new"), NOW).unwrap();
        assert_eq!(world.bar_of("new"), "registering");
        world.registry.report(&new, &report_of(&["zh", "en"]), NOW);
        assert_eq!(world.bar_of("new"), "not_in_pool");
        let bare = world.registry.attach(NodeId::from("bare"), NOW).unwrap();
        bare.node.on(Event::BadReport);
        bare.node.on(Event::WarmupOver);
        assert_eq!(world.bar_of("bare"), "nothing_ready");
    }

    /// Nodes in any state: who could have the job by the outlook is who gets it in earnest, and
    /// looking takes nothing.
    #[test]
    fn the_outlook_never_disagrees_with_a_placement() {
        for seed in 0..300 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut world = World::new();
            for i in 0..rng.usize(0..6) {
                let languages: &[&str] =
                    if rng.u8(..4) == 0 { &["fr", "en"] } else { &["zh", "en"] };
                let node = world.join(&format!("n{i}"), languages).node;
                match rng.u8(..6) {
                    0 => while node.claim() {},
                    1 => drop(node.drain()),
                    2 => node.mark_missing(ServiceType::Nmt, NOW, 1_000),
                    _ => {}
                }
            }
            let pairs = ["zh:en".parse().unwrap()];
            let need = need(&pairs);
            let used = |world: &World| -> u32 {
                world.registry.all().iter().map(|node| node.slots().0).sum()
            };
            let before = used(&world);
            let (seen, reasons) = world.pools.with(|s| preview(s, &need, NOW));
            let all = world.pools.with(|s| standings(s, world.registry.all(), &need, NOW));
            assert_eq!(used(&world), before, "looking takes no slot");
            let could = |node: &Node| {
                all.iter().any(|one| one.node.index == node.index && one.bar.is_none())
            };
            let (got, in_earnest) = world.pools.with(|s| select(s, &need, NOW));
            assert_eq!(seen.is_some(), got.is_some(), "seed {seed}");
            assert_eq!(got.is_some(), all.iter().any(|one| one.bar.is_none()), "seed {seed}");
            assert!(seen.iter().chain(&got).all(|claim| could(&claim.node)), "seed {seed}");
            if got.is_none() {
                let one_of = |why: &str| all.iter().any(|s| s.bar.map(Bar::as_str) == Some(why));
                let why = in_earnest.why_none();
                assert_eq!(reasons.routed, in_earnest.routed);
                let named = matches!(why, "full" | "missing_service");
                assert!(!named || one_of(why), "seed {seed}: {why}");
            }
        }
    }
}
