//! The choice of one node: sticky where it can be, else the less loaded of two drawn at random.

use std::sync::Arc;

use super::pool::{Pool, Route, Snapshot, serves_tenant};
use super::{Node, NodeIndex, State};
use crate::protocol::node::ServiceSet;
use crate::protocol::{NodeId, Pair};
use crate::telemetry::Now;

/// What a job needs of its node.
#[derive(Debug, Clone)]
pub struct Need<'a> {
    /// Directed pairs it must cover; the first one is looked up. Never empty.
    pub pairs: &'a [Pair],
    /// Service types it must have.
    pub services: ServiceSet,
    /// Whose job it is.
    pub tenant: Option<&'a str>,
    /// Nodes that may have seen the job already.
    pub excluded: &'a [NodeIndex],
    /// The node that has the session's context.
    pub prefer: Option<NodeIndex>,
    /// The only node that may have it, if its session is paired with one.
    pub only: Option<NodeIndex>,
}

/// A slot was taken on a node.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The node; one of its slots is the caller's until released.
    pub node: Arc<Node>,
    /// The pool it was chosen from.
    pub pool: Arc<str>,
}

/// Why a candidate was or was not chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It has the job.
    Chosen,
    /// The session is paired with another node.
    Unpaired,
    /// No slot free.
    Full,
    /// It may have seen the job already.
    Excluded,
    /// It does not serve another direction or candidate language the job needs.
    WrongPair,
    /// It lacks a service, or a model of it is marked missing.
    MissingService,
    /// It left the pools after the snapshot was published.
    NotReady,
}

impl Verdict {
    /// Name in explanations and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Chosen => "chosen",
            Verdict::Unpaired => "unpaired",
            Verdict::Full => "full",
            Verdict::Excluded => "excluded",
            Verdict::WrongPair => "wrong_pair",
            Verdict::MissingService => "missing_service",
            Verdict::NotReady => "not_ready",
        }
    }
}

/// One candidate and what was thought of it.
#[derive(Debug, Clone)]
pub struct Considered {
    /// The candidate.
    pub node: NodeId,
    /// What was thought of it.
    pub verdict: Verdict,
}

/// Why a placement ended as it did: the candidates looked at, at most `Reasons::MAX` of them.
#[derive(Debug, Clone, Default)]
pub struct Reasons {
    /// Version of the snapshot that was read.
    pub snapshot: u64,
    /// What was thought of each candidate, in the order they were looked at.
    pub considered: Vec<Considered>,
    /// Candidates beyond the bound.
    pub more: usize,
    /// Whether any node serves the pair.
    pub routed: bool,
    /// Whether some candidate could take the job later: only a slot is missing.
    pub only_full: bool,
}

impl Reasons {
    /// Candidates kept by name.
    pub const MAX: usize = 8;

    fn note(&mut self, node: &Node, verdict: Verdict) {
        self.only_full |= verdict == Verdict::Full;
        if self.considered.iter().any(|c| c.node == node.id && c.verdict == verdict) {
            return;
        }
        if self.considered.len() < Self::MAX {
            self.considered.push(Considered { node: node.id.clone(), verdict });
        } else {
            self.more += 1;
        }
    }

    /// The reason to count when nothing was found.
    pub fn why_none(&self) -> &'static str {
        if !self.routed {
            return "no_node_for_pair";
        }
        if self.only_full {
            return Verdict::Full.as_str();
        }
        self.considered.first().map_or("no_pool_for_tenant", |c| c.verdict.as_str())
    }
}

/// Chooses a node for `need` and takes one of its slots. Allocates nothing when a first choice
/// fits.
pub fn select(snapshot: &Snapshot, need: &Need<'_>, now: Now) -> (Option<Claim>, Reasons) {
    look(snapshot, need, &mut Taking { now, take: Node::claim, reasons: Reasons::default() })
}

/// As [`select`], but no slot is taken: who would get a job now.
pub fn preview(snapshot: &Snapshot, need: &Need<'_>, now: Now) -> (Option<Claim>, Reasons) {
    look(snapshot, need, &mut Taking { now, take: Node::has_room, reasons: Reasons::default() })
}

/// How nodes are looked at, and what was thought of them.
struct Taking<T> {
    now: Now,
    /// Whether the node has a slot; in earnest, by taking it.
    take: T,
    reasons: Reasons,
}

fn look<T: Fn(&Node) -> bool>(
    snapshot: &Snapshot,
    need: &Need<'_>,
    taking: &mut Taking<T>,
) -> (Option<Claim>, Reasons) {
    taking.reasons.snapshot = snapshot.version;
    let claim = snapshot.route(need.pairs[0]).and_then(|route| {
        taking.reasons.routed = true;
        prefer(route, need, taking)
            .or_else(|| pools_in_order(route, need).find_map(|p| draw(p, need, taking)))
    });
    (claim, std::mem::take(&mut taking.reasons))
}

fn prefer<T: Fn(&Node) -> bool>(
    route: &Route,
    need: &Need<'_>,
    taking: &mut Taking<T>,
) -> Option<Claim> {
    let wanted = need.prefer?;
    let open = route.pools.iter().filter(|p| open_to(p, need.tenant));
    let (pool, node) =
        open.flat_map(|p| p.nodes.iter().map(move |n| (p, n))).find(|(_, n)| n.index == wanted)?;
    attempt(pool, node, need, taking)
}

fn open_to(pool: &Pool, tenant: Option<&str>) -> bool {
    pool.config.as_ref().is_none_or(|config| serves_tenant(config, tenant))
}

/// Pools open to the tenant: those made for it, then the other configured ones starting with one
/// drawn by weight, then the natural one.
fn pools_in_order<'a>(route: &'a Route, need: &'a Need<'_>) -> impl Iterator<Item = &'a Pool> {
    let own = |p: &Pool| p.config.as_ref().is_some_and(|c| !c.tenants.is_empty());
    let shared = |p: &Pool| p.config.as_ref().is_some_and(|c| c.tenants.is_empty());
    let open = move |p: &&Pool| open_to(p, need.tenant);
    let weight = |p: &Pool| p.config.as_ref().map_or(0, |c| u64::from(c.weight));
    let total: u64 = route.pools.iter().filter(|p| shared(p)).map(weight).sum();
    let mut ticket = if total > 0 { fastrand::u64(..total) } else { 0 };
    let drawn = route.pools.iter().filter(move |p| shared(p)).position(move |p| {
        let hit = ticket < weight(p);
        ticket = ticket.saturating_sub(weight(p));
        hit
    });
    let shared_pools = move || route.pools.iter().filter(move |p| shared(p));
    let mine = route.pools.iter().filter(move |p| own(p)).filter(open);
    let first = drawn.into_iter().flat_map(move |i| shared_pools().nth(i));
    let rest = shared_pools().enumerate().filter(move |(i, _)| Some(*i) != drawn).map(|(_, p)| p);
    let natural = route.pools.iter().filter(|p| p.config.is_none());
    mine.chain(first).chain(rest).chain(natural)
}

/// Two at random, the less loaded first; then everyone once, from a random start.
fn draw<T: Fn(&Node) -> bool>(
    pool: &Pool,
    need: &Need<'_>,
    taking: &mut Taking<T>,
) -> Option<Claim> {
    let n = pool.nodes.len();
    if n > 2 {
        let (a, b) = (&pool.nodes[fastrand::usize(..n)], &pool.nodes[fastrand::usize(..n)]);
        let (first, second) = if busier(a, b) { (b, a) } else { (a, b) };
        for node in [first, second] {
            if verdict(node, need, taking) == Verdict::Chosen {
                taking.reasons.note(node, Verdict::Chosen);
                return Some(Claim { node: Arc::clone(node), pool: Arc::clone(&pool.name) });
            }
        }
    }
    let start = fastrand::usize(..n);
    let mut order: [usize; 2] = [start, (start + 1) % n];
    if n == 2 && busier(&pool.nodes[order[0]], &pool.nodes[order[1]]) {
        order.swap(0, 1);
    }
    let rest = (2..n).map(|i| (start + i) % n);
    let mut all = order.into_iter().take(n).chain(rest);
    all.find_map(|i| attempt(pool, &pool.nodes[i], need, taking))
}

/// Whether `a` has the larger share of its slots in use.
fn busier(a: &Node, b: &Node) -> bool {
    let ((a_used, a_max), (b_used, b_max)) = (a.slots(), b.slots());
    u64::from(a_used) * u64::from(b_max) > u64::from(b_used) * u64::from(a_max)
}

fn attempt<T: Fn(&Node) -> bool>(
    pool: &Pool,
    node: &Arc<Node>,
    need: &Need<'_>,
    taking: &mut Taking<T>,
) -> Option<Claim> {
    let verdict = verdict(node, need, taking);
    taking.reasons.note(node, verdict);
    (verdict == Verdict::Chosen)
        .then(|| Claim { node: Arc::clone(node), pool: Arc::clone(&pool.name) })
}

fn verdict<T: Fn(&Node) -> bool>(node: &Node, need: &Need<'_>, taking: &Taking<T>) -> Verdict {
    match fit(node, need, taking.now) {
        Verdict::Chosen if !(taking.take)(node) => Verdict::Full,
        verdict => verdict,
    }
}

/// Whether the node can have the job, slots aside; `Chosen` if so.
pub fn fit(node: &Node, need: &Need<'_>, now: Now) -> Verdict {
    if need.only.is_some_and(|only| only != node.index) {
        return Verdict::Unpaired;
    }
    if need.excluded.contains(&node.index) {
        return Verdict::Excluded;
    }
    if node.state() != State::Ready {
        return Verdict::NotReady;
    }
    if !node.usable(now).lacks(need.services).is_empty() {
        return Verdict::MissingService;
    }
    if need.pairs.len() > 1 {
        let capability = node.capability();
        if !need.pairs.iter().all(|pair| capability.covers(*pair)) {
            return Verdict::WrongPair;
        }
    }
    Verdict::Chosen
}

#[cfg(test)]
mod tests {
    use super::super::pool::Publisher;
    use super::super::tests::report_of;
    use super::super::{Attached, Registry};
    use super::*;
    use crate::config;
    use crate::protocol::node::ServiceType;

    struct World {
        registry: Registry,
        publisher: Publisher,
        pools: Arc<super::super::pool::Pools>,
    }

    impl World {
        fn new(config: Vec<config::Pool>) -> Self {
            let (publisher, pools) = Publisher::new(config, 1);
            Self { registry: Registry::new(config::Node::default()), publisher, pools }
        }

        fn join(&mut self, id: &str, languages: &[&str]) -> Attached {
            let attached = self.registry.attach(NodeId::from(id), Now::default()).unwrap();
            self.registry.report(&attached, &report_of(languages), Now::default());
            self.publisher.node_changed(&attached.node);
            attached
        }

        fn select(&self, need: &Need<'_>) -> (Option<Claim>, Reasons) {
            self.pools.with(|s| select(s, need, Now::default()))
        }
    }

    fn pair(text: &str) -> Pair {
        text.parse().unwrap()
    }

    fn need<'a>(pairs: &'a [Pair]) -> Need<'a> {
        let services = ServiceSet::default().with(ServiceType::Asr);
        Need { pairs, services, tenant: None, excluded: &[], prefer: None, only: None }
    }

    #[test]
    fn direction_matters_and_reasons_are_told() {
        let mut world = World::new(Vec::new());
        let pairs = [pair("zh:en")];
        let (claim, reasons) = world.select(&need(&pairs));
        assert!(claim.is_none() && !reasons.routed);
        let node = world.join("a", &["zh", "en"]).node;
        let (claim, _) = world.select(&need(&pairs));
        assert_eq!(claim.unwrap().node.id, node.id);
        let excluded = [node.index];
        let (claim, reasons) = world.select(&Need { excluded: &excluded, ..need(&pairs) });
        assert!(claim.is_none());
        assert_eq!(reasons.why_none(), "excluded");
        while node.claim() {}
        assert_eq!(world.select(&need(&pairs)).1.why_none(), "full");
    }

    #[test]
    fn a_sticky_node_is_kept_while_it_has_room() {
        let mut world = World::new(Vec::new());
        let nodes: Vec<_> =
            (0..8).map(|i| world.join(&format!("n{i}"), &["zh", "en"]).node).collect();
        let pairs = [pair("zh:en")];
        let sticky = Need { prefer: Some(nodes[5].index), ..need(&pairs) };
        for _ in 0..nodes[5].slots().1 {
            assert_eq!(world.select(&sticky).0.unwrap().node.index, nodes[5].index);
        }
        assert_ne!(world.select(&sticky).0.unwrap().node.index, nodes[5].index);
    }

    #[test]
    fn slots_fill_evenly_and_completely() {
        let mut world = World::new(Vec::new());
        let nodes: Vec<_> =
            (0..5).map(|i| world.join(&format!("n{i}"), &["zh", "en"]).node).collect();
        let pairs = [pair("zh:en")];
        let total: u32 = nodes.iter().map(|n| n.slots().1).sum();
        for _ in 0..total {
            assert!(world.select(&need(&pairs)).0.is_some());
        }
        assert!(world.select(&need(&pairs)).0.is_none());
    }

    #[test]
    fn every_needed_direction_must_be_covered() {
        let mut world = World::new(Vec::new());
        let one_way = world.registry.attach(NodeId::from("one"), Now::default()).unwrap();
        let mut report = report_of(&["zh", "en"]);
        report.pairs = Some(vec![pair("zh:en")]);
        world.registry.report(&one_way, &report, Now::default());
        world.publisher.node_changed(&one_way.node);
        let both = [pair("zh:en"), pair("en:zh")];
        let (claim, reasons) = world.select(&need(&both));
        assert!(claim.is_none());
        assert_eq!(reasons.why_none(), "wrong_pair");
        world.join("both", &["zh", "en"]);
        assert_eq!(world.select(&need(&both)).0.unwrap().node.id, NodeId::from("both"));
    }

    fn configured(name: &str, tenants: &[&str], services: &[&str], weight: u32) -> config::Pool {
        config::Pool {
            name: name.into(),
            pairs: vec!["*:*".parse().unwrap()],
            required_services: services.iter().map(|s| (*s).to_owned()).collect(),
            tenants: tenants.iter().map(|s| (*s).to_owned()).collect(),
            weight,
            pending_ms: None,
            lease_base_ms: None,
            attempts_max: None,
        }
    }

    #[test]
    fn configured_pools_are_kept_to_their_tenants_and_services() {
        let pools =
            vec![configured("acme", &["acme"], &[], 1), configured("tone", &[], &["tone"], 1)];
        let mut world = World::new(pools);
        world.join("a", &["zh", "en"]);
        let pairs = [pair("zh:en")];
        let acme = Need { tenant: Some("acme"), ..need(&pairs) };
        assert_eq!(&*world.select(&acme).0.unwrap().pool, "acme");
        assert_eq!(&*world.select(&need(&pairs)).0.unwrap().pool, "zh:en");
    }

    #[test]
    fn shared_pools_are_drawn_by_weight() {
        let pools = vec![configured("small", &[], &[], 1), configured("large", &[], &[], 9)];
        let mut world = World::new(pools);
        let node = world.join("a", &["zh", "en"]).node;
        let pairs = [pair("zh:en")];
        let mut large = 0;
        for _ in 0..1_000 {
            let claim = world.select(&need(&pairs)).0.unwrap();
            large += u32::from(&*claim.pool == "large");
            node.release();
        }
        assert!((800..980).contains(&large), "{large} of 1000");
    }

    #[test]
    fn leaving_nodes_leave_every_pair_at_once() {
        let mut world = World::new(Vec::new());
        let attached = world.join("a", &["zh", "en"]);
        let before = world.pools.load_full();
        assert_eq!(before.routes().count(), 4);
        world.registry.detach(&attached);
        world.publisher.node_changed(&attached.node);
        let after = world.pools.load_full();
        assert_eq!(after.routes().count(), 0);
        assert_eq!(before.routes().count(), 4, "who holds a snapshot keeps it whole");
        assert_eq!(after.version, before.version + 1);
    }
}
