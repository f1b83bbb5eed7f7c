//! Every worker: its pairs, capacity and health, and the choice of one.
//!
//! It refuses to know jobs: a node is asked for a slot and told how an attempt went. Load and
//! health are atomics inside `Node`, written by the node's own link and read by every placement;
//! who may be chosen at all is the published snapshot (`pool`).

mod outlook;
pub mod pool;
mod registry;
mod select;
mod slots;
mod state;

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::SeqCst};

use arc_swap::{ArcSwap, ArcSwapOption};
use foldhash::HashSet;

use slots::{Generation, Slots};

use crate::config;
use crate::protocol::node::{Report, ResourceUsage, Service, ServiceSet, ServiceType};
use crate::protocol::{Lang, NodeId, Pair, limits};
use crate::telemetry::Now;

pub use outlook::{Bar, Standing, standings};
pub use registry::{Attached, Registry};
pub use select::{Claim, Considered, Need, Reasons, Verdict, fit, preview, select};
pub use state::{Event, State, transition};

/// A node's short name inside this process: never reused, 24 bits so that it fits a job's state
/// word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeIndex(pub u32);

impl NodeIndex {
    /// Highest index; after that many distinct nodes the server refuses new ones until a restart.
    pub const MAX: u32 = (1 << 24) - 1;
}

/// What a node can do, replaced whole by each report.
#[derive(Debug, Clone, Default)]
pub struct Capability {
    /// Software version.
    pub version: String,
    /// Operating system.
    pub platform: String,
    /// Schema of its capability fields.
    pub schema: Option<String>,
    /// GPUs it found.
    pub gpus: usize,
    /// Services as reported.
    pub services: Vec<Service>,
    /// Types with a ready service.
    pub ready: ServiceSet,
    /// Languages it understands.
    pub sources: Vec<Lang>,
    /// Languages it answers in.
    pub targets: Vec<Lang>,
    /// Exact pairs, where fewer than sources × targets.
    pub pairs: Option<HashSet<Pair>>,
}

impl Capability {
    fn from_report(report: &Report, before: &Capability, require_gpu: bool) -> Self {
        let keep = |new: &str, old: &str| if new.is_empty() { old } else { new }.to_owned();
        Self {
            version: keep(&report.version, &before.version),
            platform: keep(&report.platform, &before.platform),
            schema: report.schema.clone().or_else(|| before.schema.clone()),
            gpus: report.gpus.max(before.gpus),
            services: report.services.clone(),
            ready: if require_gpu { report.ready_on_gpu } else { report.ready },
            sources: report.sources.clone(),
            targets: report.targets.clone(),
            pairs: report.pairs.as_ref().map(|p| p.iter().copied().collect()),
        }
    }

    /// Whether it knows the languages of the directed pair, whatever its services.
    fn speaks(&self, pair: Pair) -> bool {
        match &self.pairs {
            Some(pairs) => pairs.contains(&pair),
            None => self.sources.contains(&pair.src) && self.targets.contains(&pair.tgt),
        }
    }

    /// Whether it serves the directed pair: it knows both languages in their places, and where they
    /// differ it can translate.
    pub fn covers(&self, pair: Pair) -> bool {
        self.speaks(pair)
            && self.ready.has(if pair.src == pair.tgt {
                ServiceType::Asr
            } else {
                ServiceType::Nmt
            })
    }

    /// All pairs it serves.
    pub fn pairs(&self) -> Vec<Pair> {
        let product = self
            .sources
            .iter()
            .flat_map(|&src| self.targets.iter().map(move |&tgt| Pair { src, tgt }));
        let all: Box<dyn Iterator<Item = Pair> + '_> = match &self.pairs {
            Some(pairs) => Box::new(pairs.iter().copied()),
            None => Box::new(product),
        };
        let mut pairs: Vec<Pair> = all.filter(|p| self.covers(*p)).collect();
        pairs.sort_unstable();
        pairs.dedup();
        pairs.truncate(limits::PAIRS_PER_NODE_MAX);
        pairs
    }

    /// Whether a required service, named by id or by type, is there.
    pub fn has_service(&self, name: &str) -> bool {
        ServiceType::parse(name).is_some_and(|t| self.ready.has(t))
            || self.services.iter().any(|s| s.service_id == name && s.status == "running")
    }
}

/// One worker.
#[derive(Debug)]
pub struct Node {
    /// Its name in this process.
    pub index: NodeIndex,
    /// Its name on the wire.
    pub id: NodeId,
    /// The connection that speaks for it now; an older one's words and end change nothing.
    generation: Generation,
    state: AtomicU8,
    slots: Slots,
    /// Load it last reported.
    load: ArcSwap<ResourceUsage>,
    overloaded: AtomicBool,
    /// An operator wants it empty, whatever its connection does.
    drained: AtomicBool,
    capability: ArcSwap<Capability>,
    /// Which run of its program said hello last, if one that can did. Written by its link.
    boot_id: ArcSwapOption<String>,
    /// Outcomes of the last attempts, newest in the lowest bit, 1 = failed.
    outcomes: AtomicU32,
    outcomes_known: AtomicU32,
    /// Monotonic microseconds until which it is kept out after failures; zero if it is not.
    quarantined_until: AtomicU64,
    /// Quarantines in a row, each twice as long as the one before.
    quarantines: AtomicU32,
    /// Per service type, monotonic microseconds until which its model counts as missing.
    missing_until: [AtomicU64; ServiceType::ALL.len()],
    registered_at: AtomicU64,
    heard_at: AtomicU64,
    heard_unix_ms: AtomicU64,
}

impl Node {
    fn new(index: NodeIndex, id: NodeId, slots: u32) -> Self {
        Self {
            index,
            id,
            generation: Generation::new(),
            state: AtomicU8::new(State::Offline as u8),
            slots: Slots::new(slots),
            load: ArcSwap::from_pointee(ResourceUsage::default()),
            overloaded: AtomicBool::new(false),
            drained: AtomicBool::new(false),
            capability: ArcSwap::from_pointee(Capability::default()),
            boot_id: ArcSwapOption::empty(),
            outcomes: AtomicU32::new(0),
            outcomes_known: AtomicU32::new(0),
            quarantined_until: AtomicU64::new(0),
            quarantines: AtomicU32::new(0),
            missing_until: Default::default(),
            registered_at: AtomicU64::new(0),
            heard_at: AtomicU64::new(0),
            heard_unix_ms: AtomicU64::new(0),
        }
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        State::from_number(self.state.load(SeqCst))
    }

    /// Applies an event; the new state, if it changed.
    pub fn on(&self, event: Event) -> Option<State> {
        let step = |n| transition(State::from_number(n), event).map(|s| s as u8);
        let before = self.state.fetch_update(SeqCst, SeqCst, step).ok()?;
        transition(State::from_number(before), event)
    }

    /// Whether `generation` is the connection that speaks for it.
    pub fn is_current(&self, generation: u64) -> bool {
        self.generation.current() == generation
    }

    /// The connection that speaks for it now.
    pub fn generation(&self) -> u64 {
        self.generation.current()
    }

    /// Takes a slot, if one is free.
    pub fn claim(&self) -> bool {
        self.slots.claim()
    }

    /// Whether a slot is free.
    pub fn has_room(&self) -> bool {
        let (used, max) = self.slots();
        used < max
    }

    /// Takes a slot for what it has already, free or not.
    pub fn claim_held(&self) {
        self.slots.claim_held();
    }

    /// Notes which run of its program speaks for it now; whether the same did before.
    pub fn runs_as(&self, boot_id: &str) -> bool {
        let before = self.boot_id.swap(Some(std::sync::Arc::new(boot_id.to_owned())));
        before.is_some_and(|before| *before == boot_id)
    }

    /// Gives a slot back.
    pub fn release(&self) {
        assert!(self.slots.release(), "a slot of {} was given back twice", self.id);
    }

    /// Slots in use and slots there are.
    pub fn slots(&self) -> (u32, u32) {
        self.slots.count()
    }

    /// Load it last reported.
    pub fn load(&self) -> ResourceUsage {
        **self.load.load()
    }

    /// What it can do.
    pub fn capability(&self) -> std::sync::Arc<Capability> {
        self.capability.load_full()
    }

    /// When it was last heard of: monotonic microseconds, Unix milliseconds.
    pub fn heard(&self) -> (u64, u64) {
        (self.heard_at.load(SeqCst), self.heard_unix_ms.load(SeqCst))
    }

    /// Service types that can be used now: ready, and not marked missing.
    pub fn usable(&self, now: Now) -> ServiceSet {
        let ready = self.capability.load().ready;
        let marked = |t: &ServiceType| self.missing_until[*t as usize].load(SeqCst) > now.us;
        ready.iter().filter(|t| !marked(t)).fold(ServiceSet::default(), ServiceSet::with)
    }

    /// Until when it is quarantined, in monotonic microseconds, if it is.
    pub fn quarantined(&self, now: Now) -> Option<u64> {
        Some(self.quarantined_until.load(SeqCst)).filter(|until| *until > now.us)
    }

    /// Keeps jobs that need `service` away for `ms`.
    pub fn mark_missing(&self, service: ServiceType, now: Now, ms: u64) {
        self.missing_until[service as usize].store(now.after_ms(ms), SeqCst);
    }

    /// Takes in what the node told; whether its place in the pools may have changed.
    fn report(&self, report: &Report, now: Now, config: &config::Node) -> bool {
        self.heard_at.store(now.us, SeqCst);
        self.heard_unix_ms.store(now.unix_ms, SeqCst);
        let before = self.capability.load_full();
        let after = Capability::from_report(report, &before, config.require_gpu);
        let reshaped = before.ready != after.ready
            || before.sources != after.sources
            || before.targets != after.targets
            || before.pairs != after.pairs
            || before.services != after.services;
        if let Some(load) = report.load {
            let over = load.cpu_percent > config.cpu_threshold_percent
                || load.gpu_percent.is_some_and(|p| p > config.gpu_threshold_percent)
                || load.mem_percent > config.memory_threshold_percent;
            self.overloaded.store(over, SeqCst);
            self.load.store(std::sync::Arc::new(load));
        }
        if let Some(slots) = report.max_concurrent_jobs {
            self.slots.resize(slots.clamp(1, config.slots_max));
        }
        self.capability.store(std::sync::Arc::new(after));
        let verdict = if self.is_able(now) { Event::GoodReport } else { Event::BadReport };
        self.on(verdict).is_some() || reshaped
    }

    /// Whether nothing speaks against giving it jobs: by its last report it can work and is not
    /// overloaded, and it is not in quarantine.
    fn is_able(&self, now: Now) -> bool {
        let capability = self.capability.load();
        let empty = capability.ready.is_empty()
            || capability.sources.is_empty()
            || capability.targets.is_empty();
        !empty && !self.overloaded.load(SeqCst) && self.quarantined(now).is_none()
    }

    /// Takes it out of the pools until `undrain`, also if it comes again meanwhile; whether that
    /// changed its state.
    pub fn drain(&self) -> bool {
        self.drained.store(true, SeqCst);
        self.on(Event::Drain).is_some()
    }

    /// Lets it work again, at once if it can; whether that changed its state.
    pub fn undrain(&self, now: Now) -> bool {
        self.drained.store(false, SeqCst);
        let moved = self.on(Event::Undrain).is_some();
        if moved && self.is_able(now) {
            self.on(Event::GoodReport);
        }
        moved
    }

    /// Whether its last report was over a load threshold.
    pub fn overloaded(&self) -> bool {
        self.overloaded.load(SeqCst)
    }

    /// Remembers how an attempt ended; whether the node was thereby put into quarantine.
    pub fn finished(&self, failed: bool, now: Now, config: &config::Node) -> bool {
        let shifted = |w: u32| Some((w << 1) | u32::from(failed));
        let word = self.outcomes.fetch_update(SeqCst, SeqCst, shifted).unwrap_or_default();
        let word = (word << 1) | u32::from(failed);
        let known = self.outcomes_known.fetch_add(1, SeqCst).saturating_add(1).min(32);
        if !failed {
            self.quarantines.store(0, SeqCst);
            return false;
        }
        let window = config.failure_window.min(known);
        let recent = (word & mask(window)).count_ones();
        let in_a_row = word.trailing_ones().min(known);
        if recent < config.failure_count && in_a_row < config.failure_consecutive {
            return false;
        }
        let doublings = self.quarantines.fetch_add(1, SeqCst).min(16);
        let ms = config.quarantine_ms.saturating_mul(1 << doublings).min(config.quarantine_max_ms);
        self.quarantined_until.store(now.after_ms(ms), SeqCst);
        self.outcomes.store(0, SeqCst);
        self.outcomes_known.store(0, SeqCst);
        self.on(Event::Failing).is_some()
    }

    /// Of how many of the last attempts it is remembered how they ended, and how many failed.
    pub fn recent(&self) -> (u32, u32) {
        let known = self.outcomes_known.load(SeqCst).min(32);
        (known, (self.outcomes.load(SeqCst) & mask(known)).count_ones())
    }

    /// What time alone changes: the end of a quarantine, of warm-up, of patience with silence.
    /// Whether its place in the pools may have changed.
    fn tick(&self, now: Now, config: &config::Node) -> bool {
        if self.state() == State::Offline {
            return false;
        }
        let silent_for = now.us.saturating_sub(self.heard_at.load(SeqCst));
        if silent_for > config.heartbeat_timeout_ms * 1_000 {
            return self.on(Event::Lost).is_some();
        }
        let until = self.quarantined_until.load(SeqCst);
        if until != 0 && until <= now.us {
            self.quarantined_until.store(0, SeqCst);
            if self.is_able(now) && self.state() == State::Degraded {
                return self.on(Event::GoodReport).is_some();
            }
        }
        let age = now.us.saturating_sub(self.registered_at.load(SeqCst));
        if self.state() == State::Registering && age > config.warmup_timeout_ms * 1_000 {
            self.on(Event::WarmupOver);
        }
        false
    }
}

fn mask(bits: u32) -> u32 {
    if bits >= 32 { u32::MAX } else { (1 << bits) - 1 }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A report of a node that serves all ordered pairs of `languages` with asr, nmt and tts.
    pub(crate) fn report_of(languages: &[&str]) -> Report {
        let wire = serde_json::json!({
            "type": "node_register", "version": "2.0.0", "platform": "linux",
            "capability_by_type": [
                {"type": "asr", "ready": true},
                {"type": "nmt", "ready": true},
                {"type": "tts", "ready": true}],
            "language_capabilities": {"asr_languages": languages, "semantic_languages": languages,
                "tts_languages": languages},
        });
        let frame = bytes::Bytes::from(wire.to_string());
        match crate::protocol::node::decode(&frame) {
            Ok(crate::protocol::node::Message::Register(report)) => *report,
            other => panic!("{other:?}"),
        }
    }

    fn node() -> Node {
        let node = Node::new(NodeIndex(1), NodeId::from("n"), 2);
        node.on(Event::Registered);
        node
    }

    #[test]
    fn slots_are_claimed_up_to_capacity_and_no_further() {
        let node = node();
        assert!(node.claim() && node.claim() && !node.claim());
        node.release();
        assert!(node.claim());
    }

    #[test]
    fn readiness_follows_reports() {
        let (node, config, now) = (node(), config::Node::default(), Now::default());
        assert!(node.report(&report_of(&["zh", "en"]), now, &config));
        assert_eq!(node.state(), State::Ready);
        assert!(!node.report(&report_of(&["zh", "en"]), now, &config), "nothing changed");
        assert!(node.report(&report_of(&[]), now, &config));
        assert_eq!(node.state(), State::Degraded);
        let mut busy = report_of(&["zh", "en"]);
        busy.load = Some(ResourceUsage { gpu_percent: Some(99.0), ..ResourceUsage::default() });
        node.report(&busy, now, &config);
        assert_eq!(node.state(), State::Degraded);
        busy.load = Some(ResourceUsage::default());
        node.report(&busy, now, &config);
        assert_eq!(node.state(), State::Ready);
    }

    #[test]
    fn failures_quarantine_and_time_heals() {
        let (node, config) = (node(), config::Node::default());
        let now = Now { us: 1_000, unix_ms: 0 };
        node.report(&report_of(&["zh", "en"]), now, &config);
        assert!(!node.finished(true, now, &config) && !node.finished(true, now, &config));
        assert!(node.finished(true, now, &config), "three in a row");
        assert_eq!(node.state(), State::Degraded);
        node.report(&report_of(&["zh", "en"]), now, &config);
        assert_eq!(node.state(), State::Degraded, "a report does not end a quarantine");
        let later = Now { us: now.after_ms(config.quarantine_ms), unix_ms: 0 };
        assert!(node.tick(later, &config));
        assert_eq!(node.state(), State::Ready);
        for _ in 0..3 {
            node.finished(true, later, &config);
        }
        assert!(
            node.quarantined(Now { us: later.after_ms(config.quarantine_ms), unix_ms: 0 })
                .is_some()
        );
    }

    #[test]
    fn three_failures_of_five_quarantine_too() {
        let (node, config, now) = (node(), config::Node::default(), Now::default());
        node.report(&report_of(&["zh", "en"]), now, &config);
        let ends =
            [true, false, true, false, true].map(|failed| node.finished(failed, now, &config));
        assert_eq!(ends, [false, false, false, false, true]);
    }

    #[test]
    fn silence_is_loss() {
        let (node, config) = (node(), config::Node::default());
        node.report(&report_of(&["zh"]), Now::default(), &config);
        let late = Now { us: Now::default().after_ms(config.heartbeat_timeout_ms) + 1, unix_ms: 0 };
        assert!(node.tick(late, &config));
        assert_eq!(node.state(), State::Offline);
    }

    #[test]
    fn only_transcription_is_claimed_without_a_translator() {
        let mut report = report_of(&["zh", "en"]);
        report.ready = ServiceSet::default().with(ServiceType::Asr);
        let capability = Capability::from_report(&report, &Capability::default(), false);
        assert!(capability.covers("zh:zh".parse().unwrap()));
        assert!(!capability.covers("zh:en".parse().unwrap()));
        assert_eq!(capability.pairs().len(), 2);
    }
}
