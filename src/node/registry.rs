//! Who is known: by name, by index, and which connection speaks for whom.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

use foldhash::fast::RandomState;
use papaya::HashMap;

use super::{Event, Node, NodeIndex, State};
use crate::config::{self, Live};
use crate::protocol::NodeId;
use crate::protocol::node::Report;
use crate::telemetry::Now;

/// All nodes this process has heard of. A node that went away stays, `Offline`, so that its index
/// keeps its meaning for the jobs that name it; the oldest offline ones go when the table is full.
pub struct Registry {
    config: Live<config::Node>,
    by_id: HashMap<NodeId, Arc<Node>, RandomState>,
    by_index: HashMap<NodeIndex, Arc<Node>, RandomState>,
    next_index: AtomicU32,
    next_generation: AtomicU64,
}

/// A connection now speaks for a node.
#[derive(Debug, Clone)]
pub struct Attached {
    /// The node.
    pub node: Arc<Node>,
    /// This connection's number; larger is newer.
    pub generation: u64,
}

/// No further node fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the server knows as many nodes as it may")]
pub struct RegistryFull;

impl Registry {
    /// An empty registry.
    pub fn new(config: impl Into<Live<config::Node>>) -> Self {
        let config = config.into();
        // Grown beyond that when the limit rises.
        let capacity = config.with(|node| node.nodes_max) * 2;
        Self {
            by_id: HashMap::with_capacity_and_hasher(capacity, RandomState::default()),
            by_index: HashMap::with_capacity_and_hasher(capacity, RandomState::default()),
            next_index: AtomicU32::new(1),
            next_generation: AtomicU64::new(1),
            config,
        }
    }

    /// The limits and thresholds in force.
    pub fn config(&self) -> &Live<config::Node> {
        &self.config
    }

    /// Lets a new connection speak for `id`; an older one is thereby void. A node known before
    /// keeps its index. What was sent over the older connection is the caller's to resolve.
    pub fn attach(&self, id: NodeId, now: Now) -> Result<Attached, RegistryFull> {
        let generation = self.next_generation.fetch_add(1, SeqCst);
        let by_id = self.by_id.pin();
        let node = match by_id.get(&id) {
            Some(node) => Arc::clone(node),
            None => {
                let (nodes_max, slots) = self.config.with(|c| (c.nodes_max, c.slots_default));
                if by_id.len() >= nodes_max && !self.forget_one_offline() {
                    return Err(RegistryFull);
                }
                let index = self.next_index.fetch_add(1, SeqCst);
                if index > NodeIndex::MAX {
                    return Err(RegistryFull);
                }
                let made = Arc::new(Node::new(NodeIndex(index), id.clone(), slots));
                let node = Arc::clone(by_id.get_or_insert_with(id, || made));
                self.by_index.pin().insert(node.index, Arc::clone(&node));
                node
            }
        };
        node.generation.come(generation);
        node.registered_at.store(now.us, SeqCst);
        node.heard_at.store(now.us, SeqCst);
        node.heard_unix_ms.store(now.unix_ms, SeqCst);
        node.on(Event::Registered);
        if node.drained.load(SeqCst) {
            node.on(Event::Drain);
        }
        Ok(Attached { node, generation })
    }

    fn forget_one_offline(&self) -> bool {
        let by_id = self.by_id.pin();
        let offline = by_id.values().filter(|n| n.state() == State::Offline);
        let Some(oldest) = offline.min_by_key(|n| n.heard().0).map(Arc::clone) else {
            return false;
        };
        by_id.remove(&oldest.id);
        self.by_index.pin().remove(&oldest.index);
        true
    }

    /// Takes in a report of the node's current connection; whether the pools may have changed.
    /// An older connection's report changes nothing.
    pub fn report(&self, attached: &Attached, report: &Report, now: Now) -> bool {
        attached.node.is_current(attached.generation)
            && self.config.with(|config| attached.node.report(report, now, config))
    }

    /// A connection ended; whether its node is thereby lost (not if a newer one speaks for it).
    pub fn detach(&self, attached: &Attached) -> bool {
        attached.node.is_current(attached.generation) && attached.node.on(Event::Lost).is_some()
    }

    /// The node of that name.
    pub fn get(&self, id: &NodeId) -> Option<Arc<Node>> {
        self.by_id.pin().get(id).map(Arc::clone)
    }

    /// The node of that index.
    pub fn by_index(&self, index: NodeIndex) -> Option<Arc<Node>> {
        self.by_index.pin().get(&index).map(Arc::clone)
    }

    /// All nodes, in no order. Not for the path of an utterance.
    pub fn all(&self) -> Vec<Arc<Node>> {
        self.by_id.pin().values().map(Arc::clone).collect()
    }

    /// Lets time act on every node; those whose place in the pools may have changed.
    pub fn tick(&self, now: Now) -> Vec<Arc<Node>> {
        let all = self.all().into_iter();
        self.config.with(|config| all.filter(|node| node.tick(now, config)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::report_of;
    use super::*;

    #[test]
    fn an_old_connection_changes_nothing_any_more() {
        let registry = Registry::new(config::Node::default());
        let old = registry.attach(NodeId::from("n"), Now::default()).unwrap();
        let new = registry.attach(NodeId::from("n"), Now::default()).unwrap();
        assert_eq!(old.node.index, new.node.index);
        assert!(registry.report(&new, &report_of(&["zh"]), Now::default()));
        assert!(!registry.report(&old, &report_of(&[]), Now::default()));
        assert!(!registry.detach(&old));
        assert_eq!(new.node.state(), State::Ready);
        assert!(registry.detach(&new));
        assert_eq!(new.node.state(), State::Offline);
    }

    #[test]
    fn a_drained_node_stays_drained_when_it_comes_again() {
        let registry = Registry::new(config::Node::default());
        let first = registry.attach(NodeId::from("n"), Now::default()).unwrap();
        registry.report(&first, &report_of(&["zh"]), Now::default());
        assert!(first.node.drain());
        registry.detach(&first);
        let again = registry.attach(NodeId::from("n"), Now::default()).unwrap();
        registry.report(&again, &report_of(&["zh"]), Now::default());
        assert_eq!(again.node.state(), State::Draining);
        assert!(again.node.undrain(Now::default()));
        assert_eq!(again.node.state(), State::Ready, "without waiting for a report");
    }

    #[test]
    fn a_full_registry_forgets_the_offline_before_it_refuses() {
        let registry = Registry::new(config::Node { nodes_max: 1, ..config::Node::default() });
        let first = registry.attach(NodeId::from("a"), Now::default()).unwrap();
        assert!(registry.attach(NodeId::from("b"), Now::default()).is_err());
        registry.detach(&first);
        assert!(registry.attach(NodeId::from("b"), Now::default()).is_ok());
        assert!(registry.get(&NodeId::from("a")).is_none());
    }
}
