//! Who gets a job: nodes that come, report, fill up and go, the published pools, and the choice.
//!
//! The twin looks at every node there is, each time: who serves the pair, has the services, a free
//! slot, and nothing against it. The choice must be one of those, and there must be none only if
//! there are none; who is preferred must get it, and a pool that comes first goes first.

use std::sync::Arc;

use utterd::config;
use utterd::node::pool::{Pools, Publisher, Snapshot};
use utterd::node::{Attached, Event, Need, Node, NodeIndex, Registry, State, select, transition};
use utterd::protocol::node::{Report, ResourceUsage, ServiceSet, ServiceType};
use utterd::protocol::{Lang, NodeId, Pair};
use utterd::telemetry::Now;

use super::script::Script;

const LANGS: [&str; 3] = ["zh", "en", "es"];
const TENANTS: [&str; 2] = ["acme", "bolt"];

struct World {
    registry: Registry,
    publisher: Publisher,
    pools: Arc<Pools>,
    now: Now,
    attached: Vec<Attached>,
    /// Slots that were taken and not given back.
    taken: Vec<Arc<Node>>,
}

pub fn run(input: &[u8]) {
    fastrand::seed(7);
    let mut script = Script::new(input);
    let config = config::Node {
        nodes_max: 5,
        slots_default: 1,
        slots_max: 3,
        failure_consecutive: 2,
        quarantine_ms: 1_000,
        ..config::Node::default()
    };
    let (publisher, pools) = Publisher::new(Vec::new(), 1);
    let mut world = World {
        registry: Registry::new(config),
        publisher,
        pools,
        now: Now { us: 1, unix_ms: 1 },
        attached: Vec::new(),
        taken: Vec::new(),
    };
    while !script.is_over() {
        world.step(&mut script);
        world.audit();
    }
}

impl World {
    fn step(&mut self, script: &mut Script<'_>) {
        match script.pick(9) {
            0 => self.attach(script),
            1 | 2 => self.report(script),
            3 => self.detach(script),
            4 | 5 => self.choose(script),
            6 => self.give_back(script),
            7 => self.configure(script),
            _ => {
                self.now.us += u64::from(script.any::<u16>()) * 1_000;
                for node in self.registry.tick(self.now) {
                    self.publisher.node_changed(&node);
                }
            }
        }
    }

    fn attach(&mut self, script: &mut Script<'_>) {
        let id = NodeId::from(script.of(&["a", "b", "c", "d", "e", "f", "g"]));
        let (known, room) = (self.registry.get(&id), self.registry.all().len() < 5);
        let room = room || self.registry.all().iter().any(|n| n.state() == State::Offline);
        match self.registry.attach(id, self.now) {
            Ok(attached) => {
                assert!(known.is_some() || room, "more nodes than there may be");
                assert!(attached.node.is_current(attached.generation));
                self.publisher.node_changed(&attached.node);
                self.attached.push(attached);
            }
            Err(_) => assert!(known.is_none() && !room, "there was room"),
        }
    }

    fn report(&mut self, script: &mut Script<'_>) {
        if self.attached.is_empty() {
            return;
        }
        let attached = self.attached[script.pick(self.attached.len())].clone();
        let report = report(script);
        let current = attached.node.is_current(attached.generation);
        let changed = self.registry.report(&attached, &report, self.now);
        assert!(current || !changed, "an older connection changed something");
        if changed {
            self.publisher.node_changed(&attached.node);
        }
    }

    fn detach(&mut self, script: &mut Script<'_>) {
        if self.attached.is_empty() {
            return;
        }
        let attached = self.attached.swap_remove(script.pick(self.attached.len()));
        let before = attached.node.state();
        let lost = self.registry.detach(&attached);
        let wanted = attached.node.is_current(attached.generation)
            && transition(before, Event::Lost).is_some();
        assert_eq!(lost, wanted);
        if lost {
            self.publisher.node_changed(&attached.node);
        }
    }

    fn give_back(&mut self, script: &mut Script<'_>) {
        if self.taken.is_empty() {
            return;
        }
        let node = self.taken.swap_remove(script.pick(self.taken.len()));
        node.release();
        let failed = script.seldom(2);
        if self.registry.config().with(|config| node.finished(failed, self.now, config)) {
            self.publisher.node_changed(&node);
        }
        match script.pick(8) {
            0 => node.mark_missing(ServiceType::Nmt, self.now, 500),
            1 if node.drain() => drop(self.publisher.node_changed(&node)),
            2 if node.undrain(self.now) => drop(self.publisher.node_changed(&node)),
            _ => {}
        }
    }

    fn configure(&mut self, script: &mut Script<'_>) {
        let pools = (0..script.pick(4)).map(|n| config::Pool {
            name: format!("p{n}"),
            pairs: vec![script.of(&["*:*", "zh:*", "*:en", "zh:en"]).parse().expect("a pattern")],
            weight: script.pick(4) as u32,
            tenants: (0..script.pick(2)).map(|_| script.of(&TENANTS).to_owned()).collect(),
            required_services: (0..script.pick(2)).map(|_| "tts".to_owned()).collect(),
            ..config::Pool::default()
        });
        self.publisher.replace_config(pools.collect(), true);
    }

    fn choose(&mut self, script: &mut Script<'_>) {
        let pairs: Vec<Pair> = (0..1 + script.pick(2)).map(|_| pair(script)).collect();
        let index = |script: &mut Script<'_>| NodeIndex(script.pick(8) as u32);
        let excluded: Vec<NodeIndex> = (0..script.pick(3)).map(|_| index(script)).collect();
        let services = services(script.pick(8));
        let tenant = script.seldom(2).then(|| script.of(&TENANTS));
        let prefer = script.seldom(2).then(|| index(script));
        let only = script.seldom(8).then(|| index(script));
        let excluded = &excluded;
        let need = Need { pairs: &pairs, services, tenant, excluded, prefer, only };
        let snapshot = self.pools.load_full();
        let able = self.able(&snapshot, &need);
        let wanted = prefer.filter(|_| able.iter().any(|(_, node)| Some(node.index) == prefer));
        let first = able.iter().map(|(rank, _)| *rank).min();
        let before: Vec<u32> = able.iter().map(|(_, node)| node.slots().0).collect();
        let (claim, reasons) = select(&snapshot, &need, self.now);
        assert_eq!(claim.is_some(), !able.is_empty(), "{reasons:?} for {need:?}");
        assert_eq!(reasons.routed, snapshot.route(pairs[0]).is_some());
        assert!(reasons.considered.len() <= utterd::node::Reasons::MAX);
        let Some(claim) = claim else { return };
        let at = able.iter().position(|(_, node)| node.index == claim.node.index);
        let at = at.expect("one that could not have it was chosen");
        assert_eq!(claim.node.slots().0, before[at] + 1, "one slot was taken");
        match wanted {
            Some(wanted) => assert_eq!(claim.node.index, wanted, "who has the context"),
            // Among pools for everyone chance decides; those made for a tenant go first.
            None => assert!(
                first != Some(0)
                    || able.iter().any(|(rank, n)| *rank == 0 && n.id == claim.node.id),
                "a pool made for the tenant was passed over"
            ),
        }
        self.taken.push(claim.node);
    }

    /// Everyone who could have the job, with how far back the best pool is: 0 for one made for the
    /// tenant.
    fn able(&self, snapshot: &Snapshot, need: &Need<'_>) -> Vec<(u8, Arc<Node>)> {
        let serves = |pool: &config::Pool| {
            pool.tenants.is_empty()
                || need.tenant.is_some_and(|t| pool.tenants.iter().any(|p| p == t))
        };
        let mut able = Vec::new();
        for node in self.registry.all() {
            let capability = node.capability();
            let (used, max) = node.slots();
            let fits = node.state() == State::Ready
                && need.pairs.iter().all(|pair| capability.covers(*pair))
                && node.usable(self.now).lacks(need.services).is_empty()
                && !need.excluded.contains(&node.index)
                && need.only.is_none_or(|only| only == node.index);
            if !fits || used >= max {
                continue;
            }
            let has_all = |pool: &config::Pool| {
                pool.required_services.iter().all(|name| capability.has_service(name))
            };
            let meant = |pool: &&Arc<config::Pool>| {
                pool.pairs.iter().any(|p| p.matches(need.pairs[0])) && serves(pool) && has_all(pool)
            };
            let own = snapshot.config.iter().filter(meant).any(|pool| !pool.tenants.is_empty());
            able.push((u8::from(!own), node));
        }
        able
    }

    /// What is published is what the nodes say.
    fn audit(&self) {
        let snapshot = self.pools.load_full();
        for node in self.registry.all() {
            let of_node = self.taken.iter().filter(|taken| taken.index == node.index).count();
            assert_eq!(node.slots().0 as usize, of_node, "slots of {}", node.id);
            let pairs = match node.state() {
                State::Ready => node.capability().pairs(),
                _ => Vec::new(),
            };
            for src in LANGS {
                for tgt in LANGS {
                    let pair: Pair = format!("{src}:{tgt}").parse().expect("a pair");
                    let natural = snapshot.route(pair).and_then(|route| route.pools.last());
                    let times = natural.map_or(0, |pool| {
                        pool.nodes.iter().filter(|n| n.index == node.index).count()
                    });
                    let wanted = usize::from(pairs.contains(&pair));
                    assert_eq!(times, wanted, "{} in the pool of {pair}", node.id);
                }
            }
        }
        for route in snapshot.routes() {
            assert!(route.pools.iter().all(|pool| !pool.nodes.is_empty()), "an empty pool");
            assert!(route.pools.last().is_some_and(|pool| pool.config.is_none()));
        }
    }
}

fn lang(script: &mut Script<'_>) -> Lang {
    script.of(&LANGS).parse().expect("a language")
}

fn pair(script: &mut Script<'_>) -> Pair {
    Pair { src: lang(script), tgt: lang(script) }
}

fn services(bits: usize) -> ServiceSet {
    let chosen = [ServiceType::Asr, ServiceType::Nmt, ServiceType::Tts];
    let chosen = chosen.into_iter().enumerate().filter(|(at, _)| bits & (1 << at) != 0);
    chosen.fold(ServiceSet::default(), |set, (_, service)| set.with(service))
}

fn report(script: &mut Script<'_>) -> Report {
    let bits = script.pick(16);
    let list = |script: &mut Script<'_>| -> Vec<Lang> {
        (0..script.pick(4)).map(|_| lang(script)).collect()
    };
    let (sources, targets) = (list(script), list(script));
    let pairs = script.seldom(4).then(|| (0..script.pick(4)).map(|_| pair(script)).collect());
    let percent = |script: &mut Script<'_>| f32::from(script.any::<u8>() % 128);
    let load = script.seldom(3).then(|| ResourceUsage {
        cpu_percent: percent(script),
        gpu_percent: script.seldom(2).then(|| percent(script)),
        mem_percent: percent(script),
        ..ResourceUsage::default()
    });
    Report {
        node_id: None,
        version: String::new(),
        schema: None,
        platform: String::new(),
        gpus: script.pick(3),
        services: Vec::new(),
        ready: services(if bits < 8 { 7 } else { bits }),
        ready_on_gpu: services(bits),
        sources,
        targets,
        pairs,
        load,
        max_concurrent_jobs: script.seldom(3).then(|| script.any::<u8>().into()),
        accept_public_jobs: true,
        hello: None,
        traces: false,
    }
}
