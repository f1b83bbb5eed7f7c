//! What every connection of one server shares.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};

use crossbeam::queue::{ArrayQueue, SegQueue};
use foldhash::fast::RandomState;
use papaya::HashMap;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use super::clock::Clock;
use crate::config::{Config, Faults, Pool};
use crate::job::{Deadline, Job, Scheduler};
use crate::node::pool::Pools;
use crate::node::{NodeIndex, Registry};
use crate::protocol::{JobId, SessionId};
use crate::session::{News, Profile};
use crate::store::Store;
use crate::telemetry::{Metrics, Now};
use crate::transport::Outbox;

/// Progress messages a session's mailbox holds before further ones are dropped.
const PROGRESS_MAX: usize = 1_024;
/// Administrative commands that may wait for the control task.
const COMMANDS_MAX: usize = 16;

/// Everything shared, made once at start.
pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) clock: Arc<Clock>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) registry: Arc<Registry>,
    pub(super) pools: Arc<Pools>,
    pub(super) scheduler: Scheduler,
    /// None when the configuration turns durability off.
    pub(super) store: Option<Store>,
    pub(super) sessions: HashMap<SessionId, Arc<SessionHandle>, RandomState>,
    pub(super) sessions_open: AtomicUsize,
    pub(super) links: HashMap<NodeIndex, Arc<Link>, RandomState>,
    pub(super) control: Control,
    /// Set once all listeners accept; cleared while draining.
    pub(super) ready: AtomicBool,
    /// Becomes true when connections are to close.
    pub(super) closing: watch::Sender<bool>,
    pub(super) started_unix_ms: u64,
    pub(super) boot_epoch: u32,
}

impl Shared {
    pub(super) fn now(&self) -> Now {
        self.clock.now()
    }

    /// Whether a result may be told before it is on disk.
    pub(super) fn tells_at_once(&self) -> bool {
        self.store.is_none() || self.config.session.delivery == crate::config::Delivery::Fast
    }
}

/// A frame's claim on attention once it was flushed to a node's socket.
pub(super) type NodeTag = Option<(Arc<Job>, u32)>;
/// A frame's claim on attention once it was flushed to a client's socket.
pub(super) type SessionTag = Option<JobId>;

/// The way to a node's socket.
pub(super) struct Link {
    pub(super) generation: u64,
    pub(super) outbox: Arc<Outbox<NodeTag>>,
    pub(super) peer: SocketAddr,
    /// Whether the node wants to be told what becomes of its results.
    pub(super) acks: AtomicBool,
}

/// Mail for a session's task.
#[derive(Debug)]
pub(super) enum Mail {
    /// News of one of its jobs.
    News(News),
    /// The last word on an utterance is on disk, as this number of its outbox.
    Durable { index: u64, job: JobId, seq: Option<u64> },
}

/// The way to a session's task, and what others may know of it.
pub(super) struct SessionHandle {
    pub(super) id: SessionId,
    pub(super) profile: Profile,
    pub(super) peer: SocketAddr,
    pub(super) opened_unix_ms: u64,
    pub(super) open_jobs: AtomicUsize,
    /// Outcomes that wait for the disk before they are told.
    pub(super) untold: AtomicUsize,
    pub(super) utterances: AtomicU64,
    mail: ArrayQueue<Mail>,
    pub(super) wake: Notify,
    /// The session is over: nobody reads its mail any more.
    over: AtomicBool,
}

impl SessionHandle {
    pub(super) fn new(
        id: SessionId,
        profile: Profile,
        peer: SocketAddr,
        opened_unix_ms: u64,
        jobs_max: usize,
    ) -> Self {
        Self {
            id,
            profile,
            peer,
            opened_unix_ms,
            open_jobs: AtomicUsize::new(0),
            untold: AtomicUsize::new(0),
            utterances: AtomicU64::new(0),
            // Each job ends once and becomes durable once, and reading stops while as many as may
            // be open wait for the disk; progress gets what is beyond that.
            mail: ArrayQueue::new(PROGRESS_MAX + 4 * jobs_max + 8),
            wake: Notify::new(),
            over: AtomicBool::new(false),
        }
    }

    /// The session is over. Who leaves mail after this call sees that it is, and who left mail
    /// before left it for the caller to take: none is overlooked.
    pub(super) fn end(&self) {
        self.over.store(true, SeqCst);
    }

    /// Whether the session has jobs, or outcomes it was not told yet.
    pub(super) fn is_owed(&self) -> bool {
        self.open_jobs.load(SeqCst) + self.untold.load(SeqCst) > 0
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(SeqCst)
    }

    /// Leaves mail that must arrive; there is always room for it.
    pub(super) fn deliver(&self, mail: Mail) {
        let fits = self.mail.push(mail).is_ok();
        assert!(fits, "the mailbox of {} is sized for all its jobs", self.id);
        self.wake.notify_one();
    }

    /// Leaves mail that may be dropped; whether it was kept.
    pub(super) fn offer(&self, news: News) -> bool {
        let kept = self.mail.len() < PROGRESS_MAX && self.mail.push(Mail::News(news)).is_ok();
        self.wake.notify_one();
        kept
    }

    pub(super) fn take(&self) -> Option<Mail> {
        self.mail.pop()
    }
}

/// The way to the control task.
pub(super) struct Control {
    /// Deadlines on their way to the wheel; at most a few per admitted job and tick.
    pub(super) arms: SegQueue<(u64, Deadline)>,
    /// Nodes whose place in the pools may have changed; bounded by the reports that are read.
    pub(super) changed: SegQueue<NodeIndex>,
    pub(super) wake: Notify,
    pub(super) commands: mpsc::Sender<Command>,
}

impl Control {
    pub(super) fn new() -> (Self, mpsc::Receiver<Command>) {
        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        let control =
            Self { arms: SegQueue::new(), changed: SegQueue::new(), wake: Notify::new(), commands };
        (control, receiver)
    }

    pub(super) fn node_changed(&self, node: NodeIndex) {
        self.changed.push(node);
        self.wake.notify_one();
    }
}

/// What an operator asks of the control task.
pub(super) enum Command {
    /// Replace the pool configuration whole; answered with the version published.
    ReplacePools(Vec<Pool>, oneshot::Sender<Result<u64, Faults>>),
}

/// Counts an open session for as long as it lives, within the limit.
pub(super) struct SessionSlot(Arc<Shared>);

impl SessionSlot {
    pub(super) fn take(shared: &Arc<Shared>) -> Option<Self> {
        let max = shared.config.session.sessions_max;
        let room = |n: usize| (n < max).then_some(n + 1);
        shared.sessions_open.fetch_update(SeqCst, SeqCst, room).ok()?;
        shared.metrics.sessions.inc();
        Some(Self(Arc::clone(shared)))
    }
}

impl Drop for SessionSlot {
    fn drop(&mut self) {
        self.0.sessions_open.fetch_sub(1, SeqCst);
        self.0.metrics.sessions.dec();
    }
}

/// Returns when connections are to close.
pub(super) async fn going_down(closing: &mut watch::Receiver<bool>) {
    if closing.wait_for(|closing| *closing).await.is_err() {
        // The server is gone without a word; so is the connection.
        tracing::debug!("the server ended before its connections");
    }
}
