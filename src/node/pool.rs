//! Who may be chosen: one snapshot, built whole and published whole.
//!
//! A snapshot holds the pool configuration and, for each directed pair, the pools that serve it.
//! Every reader sees one snapshot entire; nothing else holds a copy of the configuration or of the
//! membership. One task owns the `Publisher`. Load is not in here: it changes with every job and
//! lives in the nodes.

use std::sync::Arc;

use arc_swap::ArcSwap;
use foldhash::{HashMap, HashSet};

use super::{Node, NodeIndex, State};
use crate::config;
use crate::protocol::Pair;

/// The nodes that serve one pair under one name.
#[derive(Debug)]
pub struct Pool {
    /// Configured name, or the pair itself for the pool every pair has by nature.
    pub name: Arc<str>,
    /// The configured pool it comes from; none for the natural one.
    pub config: Option<Arc<config::Pool>>,
    /// Its members, all `Ready` when the snapshot was built.
    pub nodes: Vec<Arc<Node>>,
}

/// Where a pair can go: configured pools in the order of the configuration, the natural one last.
#[derive(Debug)]
pub struct Route {
    /// The pair.
    pub pair: Pair,
    /// Its pools; none is empty.
    pub pools: Vec<Pool>,
}

/// All that placements need to know of pools, at one moment.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Grows by one with each publication.
    pub version: u64,
    /// Grows by one with each replaced configuration.
    pub config_version: u64,
    /// Whether an operator set the configuration while the server ran: it ranks above the file's.
    pub overriding: bool,
    /// The configured pools.
    pub config: Arc<[Arc<config::Pool>]>,
    routes: HashMap<Pair, Arc<Route>>,
}

impl Snapshot {
    /// Where `pair` can go, if a node serves it.
    pub fn route(&self, pair: Pair) -> Option<&Route> {
        self.routes.get(&pair).map(Arc::as_ref)
    }

    /// All routes, in no order.
    pub fn routes(&self) -> impl Iterator<Item = &Route> {
        self.routes.values().map(Arc::as_ref)
    }

    /// The first configured pool that is meant for `pair` and `tenant`, whether or not it has nodes
    /// now: its own limits hold for the job. As in the choice of a node, a pool made for the tenant
    /// comes before those for everyone.
    pub fn limits_for(&self, pair: Pair, tenant: Option<&str>) -> Option<&config::Pool> {
        let meant =
            || self.config.iter().map(Arc::as_ref).filter(|pool| meant_for(pool, pair, tenant));
        meant().find(|pool| !pool.tenants.is_empty()).or_else(|| meant().next())
    }
}

fn meant_for(pool: &config::Pool, pair: Pair, tenant: Option<&str>) -> bool {
    serves_tenant(pool, tenant) && pool.pairs.iter().any(|p| p.matches(pair))
}

/// Whether `tenant` may use the pool.
pub(super) fn serves_tenant(pool: &config::Pool, tenant: Option<&str>) -> bool {
    pool.tenants.is_empty() || tenant.is_some_and(|t| pool.tenants.iter().any(|own| own == t))
}

/// The published snapshot.
pub struct Pools(ArcSwap<Snapshot>);

impl Pools {
    /// Runs `read` on the current snapshot. The guard cannot leave the call, so it can be held
    /// neither across an await nor for long.
    pub fn with<R>(&self, read: impl FnOnce(&Snapshot) -> R) -> R {
        read(&self.0.load())
    }

    /// The current snapshot, to keep. Not for the path of an utterance.
    pub fn load_full(&self) -> Arc<Snapshot> {
        self.0.load_full()
    }
}

/// The one writer of the snapshot.
pub struct Publisher {
    pools: Arc<Pools>,
    /// Pairs of each member, as of the snapshot that is out.
    members: HashMap<NodeIndex, Vec<Pair>>,
    /// Members of each pair, as of the snapshot that is out.
    by_pair: HashMap<Pair, Vec<Arc<Node>>>,
}

impl Publisher {
    /// Publishes a first snapshot: the configuration of the file, and no nodes.
    pub fn new(config: Vec<config::Pool>, config_version: u64) -> (Self, Arc<Pools>) {
        Self::begin(config, config_version, false)
    }

    /// The same; `overriding` says that the configuration is an operator's.
    pub fn begin(
        config: Vec<config::Pool>,
        config_version: u64,
        overriding: bool,
    ) -> (Self, Arc<Pools>) {
        let first = Snapshot {
            version: 1,
            config_version,
            overriding,
            config: config.into_iter().map(Arc::new).collect(),
            routes: HashMap::default(),
        };
        let pools = Arc::new(Pools(ArcSwap::from_pointee(first)));
        let publisher = Self {
            pools: Arc::clone(&pools),
            members: HashMap::default(),
            by_pair: HashMap::default(),
        };
        (publisher, pools)
    }

    /// Publishes what has become of one node. Routes that it does not touch are shared with the
    /// snapshot before. Returns the version that is out.
    pub fn node_changed(&mut self, node: &Arc<Node>) -> u64 {
        let before = self.members.remove(&node.index).unwrap_or_default();
        let after = match node.state() {
            State::Ready => node.capability().pairs(),
            _ => Vec::new(),
        };
        for pair in &before {
            if let Some(nodes) = self.by_pair.get_mut(pair) {
                nodes.retain(|n| n.index != node.index);
            }
        }
        for pair in &after {
            self.by_pair.entry(*pair).or_default().push(Arc::clone(node));
        }
        let old = self.pools.load_full();
        let mut routes = old.routes.clone();
        let touched: HashSet<Pair> = before.iter().chain(&after).copied().collect();
        for pair in touched {
            self.rebuild(&mut routes, pair, &old.config);
        }
        if !after.is_empty() {
            self.members.insert(node.index, after);
        }
        let config = Arc::clone(&old.config);
        self.publish((old.config_version, old.overriding), config, routes)
    }

    /// Publishes a new configuration with the membership as it is; `overriding` says that it is an
    /// operator's, not the file's. Returns the version that is out.
    pub fn replace_config(&mut self, config: Vec<config::Pool>, overriding: bool) -> u64 {
        let old = self.pools.load_full();
        let config: Arc<[Arc<config::Pool>]> = config.into_iter().map(Arc::new).collect();
        let mut routes = HashMap::default();
        let pairs: Vec<Pair> = self.by_pair.keys().copied().collect();
        for pair in pairs {
            self.rebuild(&mut routes, pair, &config);
        }
        self.publish((old.config_version + 1, overriding), config, routes)
    }

    fn rebuild(
        &mut self,
        routes: &mut HashMap<Pair, Arc<Route>>,
        pair: Pair,
        config: &[Arc<config::Pool>],
    ) {
        let Some(nodes) = self.by_pair.get(&pair).filter(|nodes| !nodes.is_empty()) else {
            self.by_pair.remove(&pair);
            routes.remove(&pair);
            return;
        };
        let mut pools = Vec::new();
        for configured in config.iter().filter(|c| c.pairs.iter().any(|p| p.matches(pair))) {
            let able = |node: &&Arc<Node>| {
                let capability = node.capability();
                configured.required_services.iter().all(|name| capability.has_service(name))
            };
            let nodes: Vec<_> = nodes.iter().filter(able).map(Arc::clone).collect();
            if !nodes.is_empty() {
                let name = Arc::from(configured.name.as_str());
                pools.push(Pool { name, config: Some(Arc::clone(configured)), nodes });
            }
        }
        let name = Arc::from(pair.to_string());
        pools.push(Pool { name, config: None, nodes: nodes.clone() });
        routes.insert(pair, Arc::new(Route { pair, pools }));
    }

    fn publish(
        &self,
        (config_version, overriding): (u64, bool),
        config: Arc<[Arc<config::Pool>]>,
        routes: HashMap<Pair, Arc<Route>>,
    ) -> u64 {
        let version = self.pools.0.load().version + 1;
        let next = Snapshot { version, config_version, overriding, config, routes };
        self.pools.0.store(Arc::new(next));
        version
    }
}
