//! What is known of a job, its turn and its speaker.

use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};

use arc_swap::{ArcSwap, ArcSwapOption};

use super::Submission;
use super::binding::Binding;
use super::state::{State, Word};
use crate::node::{NodeIndex, Reasons};
use crate::protocol::job::{Audio, ChunkMark, JobSpec, Outcome};
use crate::protocol::{ErrorCode, JobId, Lang, NodeId, Pair, SessionId, TurnId};
use crate::telemetry::Stamps;
use crate::tenant::Account;

/// Nodes a job can have been to; also the bound of attempts.
pub(super) const EXCLUDED_MAX: usize = 8;
/// Placements kept for the explanation.
const PLACEMENTS_MAX: usize = 12;

/// One unit of work.
#[derive(Debug)]
pub struct Job {
    /// The same through all attempts.
    pub id: JobId,
    /// What is asked.
    pub spec: JobSpec,
    /// When it crossed which border.
    pub stamps: Stamps,
    /// Which numbered chunks of the client's stream are in it and in those before it.
    pub chunks: Option<ChunkMark>,
    /// Idempotency key.
    pub(super) key: u128,
    /// The client's own key, and what it stands for.
    pub(super) named: Option<(u128, u32)>,
    /// Directed pairs its node must cover, the one to look up first; never empty.
    pub(super) pairs: Box<[Pair]>,
    /// The speech, until the job ends.
    pub(super) audio: ArcSwapOption<Audio>,
    pub(super) word: Word,
    pub(super) speaker: Arc<Speaker>,
    pub(super) turn: Arc<Turn>,
    pub(super) lease_ms: u64,
    pub(super) pending_ms: u64,
    pub(super) attempts_max: u32,
    /// Until when the current attempt may run, monotonic microseconds.
    pub(super) lease_until: AtomicU64,
    /// Until when it may wait for a node, monotonic microseconds.
    pub(super) pending_until: AtomicU64,
    /// Attempts that reached a node's socket.
    pub(super) tries: AtomicU32,
    /// Attempts that ended with the loss of their node.
    pub(super) deaths: AtomicU32,
    pub(super) excluded: [AtomicU32; EXCLUDED_MAX],
    pub(super) excluded_len: AtomicUsize,
    /// The first look for a node; most jobs need no other.
    pub(super) placement: OnceLock<Placement>,
    pub(super) more_placements: OnceLock<Box<[OnceLock<Placement>; PLACEMENTS_MAX - 1]>>,
    pub(super) placements_len: AtomicUsize,
    /// Why the last attempt came to nothing.
    pub(super) last_cause: AtomicU32,
    /// Over which connection an attempt went out or is known to its node: the attempt in the upper
    /// half, the connection's number in the lower; of the latest attempt, or of one before it.
    pub(super) carried: AtomicU64,
    /// Whose answer ended it: the node's index in the upper half (0 is none), the attempt that the
    /// answer named in the lower (0 is none). Written by whoever took the answer.
    pub(super) answered_by: AtomicU64,
    /// Its place among the jobs of an earlier life of the server while it waits for the nodes of
    /// that life, from 1; 0 is none.
    pub(super) held: AtomicU32,
    /// Whether the outcome is on disk; without a store, whether there is one.
    pub(super) kept: AtomicBool,
    pub(super) ended: OnceLock<Ended>,
}

/// How a job ended.
#[derive(Debug, Clone)]
pub struct Ended {
    /// The outcome.
    pub outcome: Outcome,
    /// What went wrong, if something did, and is one of our codes.
    pub code: Option<ErrorCode>,
    /// The node's own code, where it is none of ours.
    pub foreign_code: Option<String>,
    /// Text to it.
    pub message: String,
    /// The node that had it last.
    pub node: Option<NodeId>,
    /// Attempts made.
    pub attempts: u32,
    /// When, Unix milliseconds.
    pub unix_ms: u64,
}

impl Ended {
    /// The code to tell, if something went wrong.
    pub fn code_text(&self) -> Option<&str> {
        self.foreign_code.as_deref().or(self.code.map(ErrorCode::as_str))
    }
}

/// One look for a node.
#[derive(Debug, Clone)]
pub struct Placement {
    /// When, monotonic microseconds.
    pub at_us: u64,
    /// The node chosen, the pool it came from and the attempt; none if no one could.
    pub chosen: Option<(NodeId, Arc<str>, u32)>,
    /// Who was considered and why not.
    pub reasons: Reasons,
}

impl Job {
    pub(super) fn new(
        id: JobId,
        spec: JobSpec,
        (speaker, turn): (Arc<Speaker>, Arc<Turn>),
        state: State,
    ) -> Self {
        Self {
            id,
            stamps: Stamps::default(),
            chunks: None,
            key: 0,
            named: None,
            pairs: Box::default(),
            audio: ArcSwapOption::empty(),
            word: Word::new(state),
            speaker,
            turn,
            lease_ms: 0,
            pending_ms: 0,
            attempts_max: 1,
            lease_until: AtomicU64::new(0),
            pending_until: AtomicU64::new(0),
            tries: AtomicU32::new(0),
            deaths: AtomicU32::new(0),
            excluded: Default::default(),
            excluded_len: AtomicUsize::new(0),
            placement: OnceLock::new(),
            more_placements: OnceLock::new(),
            placements_len: AtomicUsize::new(0),
            last_cause: AtomicU32::new(0),
            carried: AtomicU64::new(0),
            answered_by: AtomicU64::new(0),
            held: AtomicU32::new(0),
            kept: AtomicBool::new(false),
            ended: OnceLock::new(),
            spec,
        }
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        self.word.load()
    }

    /// The speech, while the job lives.
    pub fn audio(&self) -> Option<Arc<Audio>> {
        self.audio.load_full()
    }

    /// How it ended, once it has.
    pub fn ended(&self) -> Option<&Ended> {
        self.ended.get()
    }

    /// Idempotency key for the store, the client's own if it named one; with the digest of what
    /// it stands for, 0 where the key says all.
    pub fn key(&self) -> (u128, u32) {
        self.named.unwrap_or((self.key, 0))
    }

    /// How long an attempt may run, in milliseconds.
    pub fn lease_ms(&self) -> u64 {
        self.lease_ms
    }

    /// Whether `attempt` is the current one and a node has it.
    pub fn is_at(&self, attempt: u32) -> bool {
        let state = self.state();
        state.in_flight() && state.attempt == attempt
    }

    /// Notes, before it is sent, over which connection an attempt goes out.
    pub fn carry(&self, attempt: u32, generation: u64) {
        self.carried.fetch_max(carriage(attempt, generation), SeqCst);
    }

    /// Notes over which connection an adopted attempt is known to its node. It may be an older one
    /// than the last.
    pub(super) fn carry_back(&self, attempt: u32, generation: u64) {
        self.carried.store(carriage(attempt, generation), SeqCst);
    }

    /// Whether the attempt went out over that connection or an older one and is not known to have
    /// reached a newer one. What has not gone out yet did not.
    pub(super) fn went_out_by(&self, attempt: u32, through: u64) -> bool {
        (carriage(attempt, 0)..=carriage(attempt, through)).contains(&self.carried.load(SeqCst))
    }

    pub(super) fn set_ended(&self, ended: Ended) {
        let first = self.ended.set(ended).is_ok();
        assert!(first, "{} ended twice", self.id);
    }

    /// The nodes it must not go to again.
    pub(super) fn excluded(&self) -> ([NodeIndex; EXCLUDED_MAX], usize) {
        let n = self.excluded_len.load(SeqCst).min(EXCLUDED_MAX);
        (std::array::from_fn(|i| NodeIndex(self.excluded[i].load(SeqCst))), n)
    }

    pub(super) fn exclude(&self, node: NodeIndex) {
        let at = self.excluded_len.fetch_add(1, SeqCst);
        if let Some(slot) = self.excluded.get(at) {
            slot.store(node.0, SeqCst);
        }
    }

    pub(super) fn remember(&self, placement: Placement) {
        // The index is handed out once, so the place is free.
        match self.placements_len.fetch_add(1, SeqCst) {
            0 => drop(self.placement.set(placement)),
            at => {
                let more = self.more_placements.get_or_init(Box::default);
                drop(more.get(at - 1).map(|place| place.set(placement)));
            }
        }
    }

    fn placement_at(&self, at: usize) -> Option<&Placement> {
        match at {
            0 => self.placement.get(),
            at => self.more_placements.get()?.get(at - 1)?.get(),
        }
    }

    /// Why the latest look for a node found none, if it found none.
    pub(super) fn why_waiting(&self) -> Option<&'static str> {
        let looked = self.placements_len.load(SeqCst).min(PLACEMENTS_MAX);
        let last = self.placement_at(looked.checked_sub(1)?)?;
        last.chosen.is_none().then(|| last.reasons.why_none())
    }

    /// The looks for a node that are kept, and how many there were.
    pub fn placements(&self) -> (impl Iterator<Item = &Placement>, usize) {
        let kept = (0..PLACEMENTS_MAX).filter_map(|at| self.placement_at(at));
        (kept, self.placements_len.load(SeqCst))
    }
}

/// An attempt and the connection it went out over; newer ones of either are larger.
fn carriage(attempt: u32, generation: u64) -> u64 {
    (u64::from(attempt) << 32) | (generation & u64::from(u32::MAX))
}

/// What the scheduler knows of a session.
#[derive(Debug)]
pub struct Speaker {
    /// The session.
    pub session: SessionId,
    /// Its tenant's.
    pub account: Arc<Account>,
    /// Its unfinished jobs.
    pub(super) open: AtomicU32,
    /// The node that had its last job: it has the context. Index 0 is none.
    pub(super) sticky: AtomicU32,
    /// Its latest turn.
    turn: ArcSwapOption<Turn>,
}

impl Speaker {
    pub(super) fn new(session: SessionId, account: Arc<Account>) -> Self {
        Self {
            session,
            account,
            open: AtomicU32::new(0),
            sticky: AtomicU32::new(0),
            turn: ArcSwapOption::empty(),
        }
    }

    /// Whether it has no unfinished job.
    pub fn is_idle(&self) -> bool {
        self.open.load(SeqCst) == 0
    }

    /// The latest turn gets no further job.
    pub fn close_turn(&self) {
        if let Some(turn) = self.turn.load_full() {
            turn.close();
        }
    }

    /// The end of that turn became no job: it gets no further one.
    pub fn end_turn(&self, id: TurnId) {
        if let Some(turn) = self.turn.load_full().filter(|turn| turn.id == id) {
            turn.close();
        }
    }

    /// Jobs of that turn follow: the one before it gets no further one, though its end may never
    /// have become a job.
    pub(super) fn close_turn_before(&self, id: TurnId) {
        if let Some(turn) = self.turn.load_full().filter(|turn| turn.id != id) {
            turn.close();
        }
    }

    /// The turn of that id with the job entered, made if it is new; `ends_it` if the job is its
    /// last. Only the session's own task and recovery call this, one after the other.
    ///
    /// A recording that comes between two slices of a stretch of speech is a turn of its own, and
    /// does not take the place of theirs: it would be left open for ever, and its slices with it.
    pub(super) fn turn_of(&self, id: TurnId, job: JobId, ends_it: bool) -> Arc<Turn> {
        let latest = self.turn.load_full();
        let turn = match latest {
            Some(turn) if turn.id == id => turn,
            latest => {
                let turn = Arc::new(Turn::new(id));
                let open = latest.filter(|latest| !latest.is_closed());
                if open.is_none() || !ends_it {
                    open.iter().for_each(|open| open.close());
                    self.turn.store(Some(Arc::clone(&turn)));
                }
                turn
            }
        };
        turn.jobs.rcu(|jobs| jobs.iter().copied().chain([job]).collect::<Vec<_>>());
        turn
    }
}

/// The jobs of one stretch of speech. They share one node, and one slot of it, for as long as any
/// of them is there: a node may keep slices to itself until the last one comes, and slices must
/// not take the slot that the last one needs.
#[derive(Debug)]
pub struct Turn {
    /// Its id on the wire.
    pub id: TurnId,
    /// Where it is.
    bound: Binding,
    closed: AtomicBool,
    /// Its jobs, in order.
    pub(super) jobs: ArcSwap<Vec<JobId>>,
}

impl Turn {
    pub(super) fn new(id: TurnId) -> Self {
        Self { id, bound: Binding::new(), closed: AtomicBool::new(false), jobs: ArcSwap::default() }
    }

    /// Its last job has been cut.
    pub(super) fn close(&self) {
        self.closed.store(true, SeqCst);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(SeqCst)
    }

    /// The node it is bound to, and its jobs in flight there.
    pub(super) fn bound(&self) -> (NodeIndex, u32) {
        self.bound.now()
    }

    /// Moves from one binding to another, if it is still the one.
    pub(super) fn rebind(&self, from: (NodeIndex, u32), to: (NodeIndex, u32)) -> bool {
        self.bound.rebind(from, to)
    }

    /// One job less in flight; whether it was the last, so that the slot goes back.
    pub(super) fn leave(&self) -> bool {
        let last = self.bound.leave();
        assert!(last.is_some(), "turn {} was left more often than joined", self.id);
        last == Some(true)
    }
}

/// Names one utterance of one session into one language with one set of features, so that the same
/// message sent twice makes one job. Stable across builds and restarts: it is kept on disk.
pub(super) fn idempotency_key(spec: &JobSpec) -> u128 {
    let half = |seed: u64| {
        let mut hasher = foldhash::fast::FixedState::with_seed(seed).build_hasher();
        spec.tenant.as_deref().unwrap_or("default").hash(&mut hasher);
        spec.session.hash(&mut hasher);
        spec.utterance_index.hash(&mut hasher);
        spec.tgt.hash(&mut hasher);
        spec.features.map(|f| f.bits()).hash(&mut hasher);
        u128::from(hasher.finish())
    };
    (half(1) << 64) | half(2)
}

/// The client's own key for an utterance, within its session, and what it stands for.
pub(super) fn client_key(submission: &Submission) -> Option<(u128, u32)> {
    let (spec, named) = (&submission.spec, submission.key.as_ref()?);
    let half = |seed: u64| {
        let mut hasher = foldhash::fast::FixedState::with_seed(seed).build_hasher();
        spec.tenant.as_deref().unwrap_or("default").hash(&mut hasher);
        spec.session.hash(&mut hasher);
        named.text.hash(&mut hasher);
        u128::from(hasher.finish())
    };
    Some(((half(3) << 64) | half(4), named.digest))
}

/// The directed pairs a node must cover to take the job, the one to look up first. With a source
/// of `auto` that is every candidate language in every direction that may be needed; without
/// candidates it is a pair that no node serves, and the explanation says so.
pub(super) fn required_pairs(spec: &JobSpec) -> Box<[Pair]> {
    let pair = |src, tgt| Pair { src, tgt };
    if !spec.pipeline.use_nmt && !spec.src.is_auto() {
        return Box::new([pair(spec.src, spec.src)]);
    }
    let two_way = spec.mode.as_deref() == Some("two_way_auto");
    if let (true, Some(a), Some(b)) = (two_way, spec.lang_a, spec.lang_b) {
        return Box::new([pair(a, b), pair(b, a)]);
    }
    if !spec.src.is_auto() {
        return Box::new([pair(spec.src, spec.tgt)]);
    }
    let named: Vec<Lang> = spec.lang_a.into_iter().chain(spec.lang_b).collect();
    let candidates = spec.auto_langs.as_ref().filter(|langs| !langs.is_empty()).unwrap_or(&named);
    let mut pairs: Vec<Pair> = candidates
        .iter()
        .filter(|lang| **lang != spec.tgt && !lang.is_auto())
        .map(|lang| pair(*lang, spec.tgt))
        .collect();
    if pairs.is_empty() {
        pairs.push(pair(spec.src, spec.tgt));
    }
    pairs.into_boxed_slice()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::job::FeatureFlags;
    use crate::protocol::job::samples::spec;

    fn pairs(spec: &JobSpec) -> String {
        required_pairs(spec).iter().map(Pair::to_string).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn needed_pairs_cover_every_candidate_in_every_direction() {
        let lang = |l: &str| l.parse().ok();
        assert_eq!(pairs(&spec("zh", "en")), "zh:en");
        let auto = JobSpec { lang_a: lang("zh"), lang_b: lang("en"), ..spec("auto", "en") };
        assert_eq!(pairs(&auto), "zh:en");
        let two_way = JobSpec { mode: Some("two_way_auto".into()), ..auto };
        assert_eq!(pairs(&two_way), "zh:en en:zh");
        let langs = ["zh", "ja", "en"].map(|l| l.parse().unwrap()).to_vec();
        let many = JobSpec { auto_langs: Some(langs), ..spec("auto", "en") };
        assert_eq!(pairs(&many), "zh:en ja:en");
        assert_eq!(pairs(&spec("auto", "en")), "auto:en");
        let mut transcript = spec("zh", "en");
        transcript.pipeline.use_nmt = false;
        assert_eq!(pairs(&transcript), "zh:zh");
    }

    #[test]
    fn keys_tell_utterances_languages_and_features_apart() {
        let a = spec("zh", "en");
        let same = idempotency_key(&a);
        assert_eq!(same, idempotency_key(&spec("zh", "en")));
        let no_features = JobSpec { features: Some(FeatureFlags::default()), ..a.clone() };
        let others = [
            JobSpec { utterance_index: 1, ..a.clone() },
            JobSpec { session: SessionId(2), ..a.clone() },
            JobSpec { tgt: "de".parse().unwrap(), ..a.clone() },
            JobSpec { tenant: Some("acme".into()), ..a.clone() },
            no_features,
        ];
        for other in others {
            assert_ne!(same, idempotency_key(&other), "{other:?}");
        }
    }
}
