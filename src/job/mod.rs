//! Each unit of work from submit to settled: idempotency, state, placement, deadlines, failover.
//!
//! It refuses to know sockets and sessions. Every call takes the time and a list to put effects
//! in; nothing here waits, reads a clock or takes a lock. Effects come from transitions that this
//! call won, so each is performed once.

mod ack;
mod binding;
mod deadline;
mod explain;
mod hello;
mod outlook;
mod place;
mod queue;
mod settle;
mod shares;
mod state;
mod table;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst};

use arc_swap::ArcSwapOption;
use crossbeam::queue::{ArrayQueue, SegQueue};
use foldhash::fast::RandomState;
use papaya::HashMap;

use crate::config::{self, Live};
use crate::node::pool::Pools;
use crate::node::{NodeIndex, Registry};
use crate::protocol::hello::AckStatus;
use crate::protocol::job::{Audio, ChunkMark, JobSpec, Outcome};
use crate::protocol::node::JobResult;
use crate::protocol::{ErrorCode, JobId, Pair, SessionId};
use crate::telemetry::{Metrics, Now, Stage};
use crate::tenant::{Account, Accounts, Admission, Denied};

pub use deadline::Wheel;
pub use hello::Welcome;
pub use outlook::Outlook;
pub use queue::WaitQueue;
pub use settle::Answered;
pub use state::{Event, Phase, State, transition};
pub use table::{Ended, Job, Placement, Speaker, Turn};

/// What the shell has to do about a decision.
#[derive(Debug)]
pub enum Effect {
    /// Put the new job on disk, with its speech: the job may have ended by now, and until its
    /// outcome is on disk it must be found whole.
    Accept(Arc<Job>, Arc<Audio>),
    /// Send the assignment of this attempt to the node.
    Assign {
        /// The job.
        job: Arc<Job>,
        /// The node.
        node: NodeIndex,
        /// The attempt.
        attempt: u32,
    },
    /// Tell the node to stop.
    CancelOn {
        /// The job.
        job: Arc<Job>,
        /// The node.
        node: NodeIndex,
        /// Why, on the wire.
        reason: &'static str,
    },
    /// Tell the node, if it asked for that, what became of its result.
    AckResult {
        /// The job.
        job: JobId,
        /// The node.
        node: NodeIndex,
        /// The attempt its result named.
        attempt: Option<u32>,
        /// What became of it.
        status: AckStatus,
    },
    /// Wake the scheduler at this moment with this deadline.
    Arm(u64, Deadline),
    /// Tell the session how its job is coming along.
    Progress(Arc<Job>, Progress),
    /// The job is settled: tell the session, put it on disk.
    Settled {
        /// The job; its `ended` tells how.
        job: Arc<Job>,
        /// What the node answered, if that settled it.
        result: Option<Box<JobResult>>,
    },
    /// Let waiting jobs have another try.
    WakeQueue,
    /// The node's place in the pools may have changed.
    NodeChanged(NodeIndex),
}

/// News of a job on its way.
#[derive(Debug, Clone)]
pub enum Progress {
    /// The assignment was flushed to a node.
    Dispatched,
    /// The node acknowledged it.
    Accepted,
    /// A transcript so far.
    Partial {
        /// The transcript.
        text: String,
        /// Whether it will not change.
        is_final: bool,
    },
}

/// A moment at which a job must have moved on. Jobs are named, not held: most have ended and are
/// forgotten long before.
#[derive(Debug, Clone)]
pub enum Deadline {
    /// It must have found a node.
    Pending(JobId),
    /// This attempt must have been answered.
    Lease(JobId, u32),
    /// The turn is over; what the node kept of this slice is in the last answer.
    Merge(JobId),
    /// The memory of this idempotency key is over.
    Forget(u128),
    /// What went out to the node over this connection or an older one must be known to have reached
    /// a newer one.
    Away(NodeIndex, u64),
    /// The nodes of the server's earlier life must have come.
    Recovered,
}

/// Effects in the order they were caused.
pub type Effects = Vec<Effect>;

/// An utterance to be done.
#[derive(Debug)]
pub struct Submission {
    /// What is asked.
    pub spec: JobSpec,
    /// The speech.
    pub audio: Audio,
    /// When its first audio was read, monotonic microseconds.
    pub received_us: u64,
    /// When it was cut, monotonic microseconds.
    pub cut_us: u64,
    /// Which numbered chunks of the client's stream are in it and in those before it.
    pub chunks: Option<ChunkMark>,
    /// The client's own name for it.
    pub key: Option<ClientKey>,
}

/// A client's own name for an utterance, unique within its session.
#[derive(Debug)]
pub struct ClientKey {
    /// The name.
    pub text: String,
    /// What tells one utterance under this name from another.
    pub digest: u32,
}

/// What is known of an idempotency key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    job: JobId,
    /// Of the body it stands for; 0 where the key says all.
    digest: u32,
}

/// What became of a submission.
#[derive(Debug, Clone)]
pub enum Submitted {
    /// A job was made.
    New(Arc<Job>),
    /// The same utterance was submitted before; this is its job.
    Repeated(JobId),
}

/// All jobs, and every rule about them.
pub struct Scheduler {
    config: Live<config::Job>,
    jobs: HashMap<JobId, Arc<Job>, RandomState>,
    keys: HashMap<u128, Known, RandomState>,
    nodes: Arc<Registry>,
    pools: Arc<Pools>,
    metrics: Arc<Metrics>,
    /// Limits of jobs, and how many there are; among them those that wait for a slot, here or in
    /// the `WaitQueue`.
    admission: Admission,
    /// Jobs on their way to the `WaitQueue`.
    parked: SegQueue<Arc<Job>>,
    /// Jobs taken back from an earlier life of the server.
    restored: AtomicU32,
    /// Bytes of speech of jobs that have not ended.
    held: AtomicUsize,
    /// Ended jobs that can still be explained, oldest first.
    history: ArrayQueue<JobId>,
    boot_epoch: u32,
}

impl Scheduler {
    /// With no jobs. `boot_epoch` fences attempts of earlier lives of the server.
    pub fn new(
        config: impl Into<Live<config::Job>>,
        admission: Admission,
        boot_epoch: u32,
        nodes: Arc<Registry>,
        pools: Arc<Pools>,
        metrics: Arc<Metrics>,
    ) -> Self {
        // Pre-sized for what is usual, not for the limit: growing is amortised by the map.
        let config = config.into();
        let history_max = config.with(|job| job.history_max);
        let expected = history_max + 4_096;
        Self {
            jobs: HashMap::with_capacity_and_hasher(expected, RandomState::default()),
            keys: HashMap::with_capacity_and_hasher(expected, RandomState::default()),
            nodes,
            pools,
            metrics,
            admission,
            parked: SegQueue::new(),
            restored: AtomicU32::new(0),
            held: AtomicUsize::new(0),
            history: ArrayQueue::new(history_max.max(1)),
            boot_epoch: boot_epoch & 0x00FF_FFFF,
            config,
        }
    }

    /// Takes an utterance. The same utterance again finds the job that exists.
    pub fn submit(
        &self,
        speaker: &Arc<Speaker>,
        submission: Submission,
        now: Now,
        effects: &mut Effects,
    ) -> Result<Submitted, Denied> {
        let key = table::idempotency_key(&submission.spec);
        let named = table::client_key(&submission);
        let id = JobId::fresh(now.unix_ms, fastrand::u128(..));
        if let Some(existing) = self.repeated(key, named)? {
            self.metrics.jobs_repeated.inc();
            return Ok(Submitted::Repeated(existing));
        }
        self.admission.takes(submission.received_us)?;
        self.admit(speaker, &submission, now)?;
        // Only the session's own task submits for it, so nobody else can have taken these keys.
        for (key, digest) in [Some((key, 0)), named].into_iter().flatten() {
            self.keys.pin().insert(key, Known { job: id, digest });
        }
        let job = Arc::new(self.make(id, (key, named), speaker, submission));
        self.begin(&job, now, effects);
        Ok(Submitted::New(job))
    }

    /// Takes an utterance whose job has ended, as a new job.
    pub fn submit_again(
        &self,
        submission: Submission,
        now: Now,
        effects: &mut Effects,
    ) -> Result<Arc<Job>, Denied> {
        let account = self.accounts().of(submission.spec.tenant.as_deref());
        let speaker = self.speaker(submission.spec.session, account);
        self.admit(&speaker, &submission, now)?;
        let id = JobId::fresh(now.unix_ms, fastrand::u128(..));
        let key = table::idempotency_key(&submission.spec);
        let job = self.make(id, (key, None), &speaker, submission);
        // Whatever its turn was, nothing of it is awaited any more.
        job.turn.close();
        let job = Arc::new(job);
        self.begin(&job, now, effects);
        Ok(job)
    }

    fn admit(&self, speaker: &Speaker, of: &Submission, now: Now) -> Result<(), Denied> {
        let max = self.config.with(|job| job.audio_bytes_max);
        if self.held.load(SeqCst).saturating_add(of.audio.held_len()) > max {
            return Err(Denied::MemoryFull);
        }
        self.admission.admit(&speaker.account, &speaker.open, of.spec.audio_ms, now)
    }

    /// So much more speech is in memory.
    fn hold(&self, bytes: usize) {
        let held = self.held.fetch_add(bytes, SeqCst) + bytes;
        self.metrics.audio_held_bytes.set(held as i64);
    }

    /// The speech of a job that has ended is not needed any more.
    fn let_go(&self, job: &Job) {
        let bytes = job.audio.swap(None).map_or(0, |audio| audio.held_len());
        let before = self.held.fetch_sub(bytes, SeqCst);
        assert!(before >= bytes, "speech of {} was let go twice", job.id);
        self.metrics.audio_held_bytes.set((before - bytes) as i64);
    }

    /// A new job enters the tables and the queue.
    fn begin(&self, job: &Arc<Job>, now: Now, effects: &mut Effects) {
        job.stamps.mark(Stage::Queued, now.us);
        self.jobs.pin().insert(job.id, Arc::clone(job));
        self.metrics.jobs_submitted.inc();
        self.metrics.jobs_live.inc();
        let audio = job.audio().unwrap_or_else(|| Arc::new(Audio::Raw(bytes::Bytes::new())));
        // The node first: the row goes to the disk beside the path, not in front of it.
        self.enqueue(job, now, effects);
        effects.push(Effect::Accept(Arc::clone(job), audio));
    }

    /// Takes back a job of an earlier life of the server whose speech is gone: it ends here.
    pub fn restore_lost(
        &self,
        id: JobId,
        speaker: &Arc<Speaker>,
        spec: JobSpec,
        now: Now,
        effects: &mut Effects,
    ) {
        self.admission.readmit(&speaker.account, &speaker.open);
        let audio = Audio::Raw(bytes::Bytes::new());
        let (received_us, cut_us) = (now.us, now.us);
        let key = table::idempotency_key(&spec);
        let lost = Submission { spec, audio, received_us, cut_us, chunks: None, key: None };
        let job = Arc::new(self.make(id, (key, None), speaker, lost));
        self.jobs.pin().insert(id, Arc::clone(&job));
        self.metrics.jobs_live.inc();
        let verdict = Verdict::of(ErrorCode::StorageCorrupt, "the speech of this job was not kept");
        self.end(&job, Event::GiveUp(Outcome::Failed), verdict, None, now, effects);
    }

    /// The job of this submission, if it came before: to be asked before anything speaks against
    /// taking it, for what was taken is not refused afterwards.
    pub fn known(&self, submission: &Submission) -> Result<Option<JobId>, Denied> {
        let key = table::idempotency_key(&submission.spec);
        let known = self.repeated(key, table::client_key(submission))?;
        if known.is_some() {
            self.metrics.jobs_repeated.inc();
        }
        Ok(known)
    }

    /// The job of a submission that came before, if it did.
    fn repeated(&self, key: u128, named: Option<(u128, u32)>) -> Result<Option<JobId>, Denied> {
        let keys = self.keys.pin();
        if let Some((key, digest)) = named
            && let Some(known) = keys.get(&key)
        {
            return if known.digest == digest {
                Ok(Some(known.job))
            } else {
                Err(Denied::Conflict)
            };
        }
        Ok(keys.get(&key).map(|known| known.job))
    }

    /// Admits no speech that begins after this.
    pub fn close(&self, now: Now) {
        self.admission.close(now.us);
    }

    /// Takes back a job that was accepted in an earlier life of the server. It waits until
    /// `release_restored`, for a node that has it already.
    pub fn restore(&self, id: JobId, speaker: &Arc<Speaker>, submission: Submission, now: Now) {
        let key = table::idempotency_key(&submission.spec);
        self.admission.readmit(&speaker.account, &speaker.open);
        speaker.close_turn_before(submission.spec.turn);
        let job = Arc::new(self.make(id, (key, None), speaker, submission));
        job.stamps.mark(Stage::Queued, now.us);
        self.keys.pin().insert(key, Known { job: id, digest: 0 });
        job.held.store(self.restored.fetch_add(1, SeqCst) + 1, SeqCst);
        self.jobs.pin().insert(id, job);
        self.metrics.jobs_live.inc();
    }

    fn make(
        &self,
        id: JobId,
        (key, named): (u128, Option<(u128, u32)>),
        speaker: &Arc<Speaker>,
        submission: Submission,
    ) -> Job {
        let Submission { spec, audio, received_us, cut_us, chunks, .. } = submission;
        let pairs = table::required_pairs(&spec);
        let terms = self.terms_of(&spec, pairs[0]);
        let ends_turn = spec.cut.closes_turn();
        let turn = speaker.turn_of(spec.turn, id, ends_turn);
        if ends_turn {
            turn.close();
        }
        let place = (Arc::clone(speaker), turn);
        self.hold(audio.held_len());
        let job = Job {
            key,
            named,
            chunks,
            lease_ms: terms.lease_ms,
            pending_ms: terms.pending_ms,
            attempts_max: terms.attempts_max.min(table::EXCLUDED_MAX as u32),
            audio: ArcSwapOption::from_pointee(audio),
            pairs,
            ..Job::new(id, spec, place, State::queued(self.boot_epoch))
        };
        job.stamps.mark(Stage::Received, received_us);
        job.stamps.mark(Stage::Cut, cut_us);
        job
    }

    /// A job just queued: arms its patience and looks for a node.
    fn enqueue(&self, job: &Arc<Job>, now: Now, effects: &mut Effects) {
        let until = now.after_ms(job.pending_ms);
        job.pending_until.store(until, SeqCst);
        effects.push(Effect::Arm(until, Deadline::Pending(job.id)));
        self.place_or_park(job, now, effects);
    }

    /// A deadline came. What has moved on since it was armed is left alone.
    pub fn due(&self, deadline: Deadline, now: Now, effects: &mut Effects) {
        match deadline {
            Deadline::Pending(id) => {
                if let Some(job) = self.job(id) {
                    self.waited_too_long(&job, now, effects);
                }
            }
            Deadline::Lease(id, attempt) => {
                if let Some(job) = self.job(id) {
                    self.lease_over(&job, attempt, now, effects);
                }
            }
            Deadline::Merge(id) => {
                if let Some(job) = self.job(id) {
                    self.end(&job, Event::Merge, Verdict::plain(), None, now, effects);
                }
            }
            Deadline::Forget(key) => {
                self.keys.pin().remove(&key);
            }
            Deadline::Away(node, through) => self.carried_away(node, through, now, effects),
            Deadline::Recovered => self.release_restored(now, effects),
        }
    }

    /// Remembers for `left_ms` that an earlier life of the server made `job` for `key`.
    pub fn remember(
        &self,
        (key, digest): (u128, u32),
        job: JobId,
        left_ms: u64,
        now: Now,
        effects: &mut Effects,
    ) {
        if self.keys.pin().try_insert(key, Known { job, digest }).is_ok() {
            effects.push(Effect::Arm(now.after_ms(left_ms), Deadline::Forget(key)));
        }
    }

    /// The job of that id, live or lately ended.
    pub fn job(&self, id: JobId) -> Option<Arc<Job>> {
        self.jobs.pin().get(&id).map(Arc::clone)
    }

    /// Visits every job that is live or lately ended. Not for the path of an utterance.
    pub fn for_each(&self, mut visit: impl FnMut(&Arc<Job>)) {
        self.jobs.pin().values().for_each(&mut visit);
    }

    /// Unfinished jobs.
    pub fn live(&self) -> usize {
        self.admission.live()
    }

    /// Jobs that wait for a slot.
    pub fn waiting(&self) -> usize {
        self.admission.waiting()
    }

    /// The accounts of all tenants.
    pub fn accounts(&self) -> &Accounts {
        self.admission.accounts()
    }

    /// What the scheduler knows of a session of that tenant, to be kept for as long as it may
    /// submit.
    pub fn speaker(&self, session: SessionId, account: Arc<Account>) -> Arc<Speaker> {
        Arc::new(Speaker::new(session, account))
    }

    /// What holds for a job that is made now, by one version of the pools and one of the settings.
    fn terms_of(&self, spec: &JobSpec, pair: Pair) -> Terms {
        self.pools.with(|pools| {
            let own = pools.limits_for(pair, spec.tenant.as_deref());
            self.config.with(|job| {
                let base_ms = own.and_then(|p| p.lease_base_ms).unwrap_or(job.lease_base_ms);
                let for_audio = job.lease_per_audio_second_ms * u64::from(spec.audio_ms) / 1_000;
                Terms {
                    lease_ms: (base_ms + for_audio).clamp(job.lease_min_ms, job.lease_max_ms),
                    pending_ms: own.and_then(|p| p.pending_ms).unwrap_or(job.pending_ms),
                    attempts_max: own.and_then(|p| p.attempts_max).unwrap_or(job.attempts_max),
                }
            })
        })
    }

    fn stale(&self, event: &str) {
        self.metrics.stale.with_label_values(&[event]).inc();
    }
}

/// How long one job may take and how often it is tried.
struct Terms {
    lease_ms: u64,
    pending_ms: u64,
    attempts_max: u32,
}

/// What to say about an outcome.
#[derive(Debug, Clone, Default)]
struct Verdict {
    code: Option<ErrorCode>,
    /// The node's own code where it is none of ours.
    foreign_code: Option<String>,
    message: String,
}

impl Verdict {
    fn plain() -> Self {
        Self::default()
    }

    fn of(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code: Some(code), foreign_code: None, message: message.into() }
    }
}
