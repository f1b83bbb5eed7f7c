//! What every connection of one server shares.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};

use bytes::Bytes;
use crossbeam::queue::{ArrayQueue, SegQueue};
use foldhash::fast::RandomState;
use papaya::HashMap;
use sha2::{Digest, Sha256};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;

use super::awaited::Awaited;
use super::clock::Clock;
use super::console::Console;
use super::credentials::{Admitted, Changed, KeyChange, Watch};
use super::pools::{PoolEdit, PoolsChanged};
use super::reload::Reloads;
use super::traces::Traces;
use crate::config::{self, Change, Settings};
use crate::job::{Deadline, Job, Scheduler};
use crate::node::pool::Pools;
use crate::node::{NodeIndex, Registry};
use crate::protocol::{JobId, RoomCode, SessionId, limits};
use crate::session::{News, Profile, RoomInput, RoomView, Whereabouts};
use crate::store::{RoomRow, Store};
use crate::telemetry::{Metrics, Now};
use crate::tenant::{Account, Denied, Keys, Pairings};
use crate::transport::{Budget, Connection, House, Outbox, Tls};

/// Progress messages a session's mailbox holds before further ones are dropped.
const PROGRESS_MAX: usize = 1_024;
/// Administrative commands that may wait for the control task.
const COMMANDS_MAX: usize = 16;

/// Everything shared, made once at start.
pub(super) struct Shared {
    /// The settings in force.
    pub(super) settings: Arc<Settings>,
    /// Where to read them again, and whose turn it is to do so.
    pub(super) reloads: Reloads,
    pub(super) clock: Arc<Clock>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) registry: Arc<Registry>,
    pub(super) pools: Arc<Pools>,
    pub(super) scheduler: Scheduler,
    /// None when the configuration turns durability off.
    pub(super) store: Option<Store>,
    pub(super) sessions: HashMap<SessionId, Arc<SessionHandle>, RandomState>,
    pub(super) sessions_open: AtomicUsize,
    /// Where the clients of sessions are, if they are connected.
    pub(super) peers: HashMap<SessionId, SocketAddr, RandomState>,
    pub(super) links: HashMap<NodeIndex, Arc<Link>, RandomState>,
    /// Where ended jobs go to be told of as traces, if there is a collector.
    pub(super) traces: Option<Traces>,
    /// Certificates of the listeners.
    pub(super) tls: Arc<Tls>,
    /// Who looks at the console.
    pub(super) console: Console,
    /// Nodes of an earlier run that may still come.
    pub(super) awaited: Awaited,
    pub(super) control: Control,
    /// Keys, and who is here by the grace of one.
    pub(super) keys: Keys,
    pub(super) watch: Watch,
    /// Who is here, whatever they came for.
    pub(super) house: House,
    /// What may wait for all clients of sessions together.
    pub(super) outgoing: Arc<Budget>,
    /// The public API.
    pub(super) gateway: super::gateway::Gateway,
    /// Codes that pair a session with a node.
    pub(super) pairings: Pairings,
    /// The way to the task that owns the rooms.
    pub(super) rooms: mpsc::Sender<RoomInput>,
    /// Something of what the rooms were to be told did not get there.
    pub(super) rooms_overrun: AtomicBool,
    /// Rooms as they are, for operators.
    pub(super) rooms_seen: HashMap<RoomCode, Arc<RoomRow>, RandomState>,
    /// Sessions are taken: not while the server takes back what it had, and not while it drains.
    pub(super) ready: AtomicBool,
    /// Set when the server begins to go down: when connections are closed at the latest.
    pub(super) drain: watch::Sender<Option<Instant>>,
    /// Becomes true when an operator asks for the stop.
    pub(super) stop_asked: watch::Sender<bool>,
    /// A copy of the database is being made.
    pub(super) backing_up: AtomicBool,
    /// Becomes true when connections are to close.
    pub(super) closing: watch::Sender<bool>,
    pub(super) started_unix_ms: u64,
    pub(super) boot_epoch: u32,
}

impl Shared {
    pub(super) fn now(&self) -> Now {
        self.clock.now()
    }

    /// Whether the server has begun to go down.
    pub(super) fn is_draining(&self) -> bool {
        self.drain.borrow().is_some()
    }

    /// Whether a result may be told before it is on disk.
    pub(super) fn tells_at_once(&self, config: &config::Session) -> bool {
        self.store.is_none() || config.delivery == config::Delivery::Fast
    }
}

/// Reads from the store, off the path: it may wait for the disk. A store that is stepped does not,
/// and a read on another thread would be the only thing in a simulation that chance decides.
pub(super) async fn read_store<T: Send + 'static>(
    store: &Store,
    read: impl FnOnce(&Store) -> T + Send + 'static,
) -> Result<T, tokio::task::JoinError> {
    if store.is_stepped() {
        return Ok(read(store));
    }
    let store = store.clone();
    tokio::task::spawn_blocking(move || read(&store)).await
}

/// A frame's claim on attention once it was flushed to a node's socket.
pub(super) type NodeTag = Option<(Arc<Job>, u32)>;
/// A frame's claim on attention once it was flushed to a client's socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SessionTag {
    /// None.
    Plain,
    /// The last word on a job, with its number if it has one.
    Word(JobId, Option<u64>),
    /// What the client is to prove to have heard, by a pong with this number.
    Prove(u64),
    /// The end of a session that may still owe proof up to this number.
    Farewell(SessionId, u64),
}

/// What connections run over.
pub(super) type Socket = crate::transport::Stream;

/// A client's connection.
pub(super) struct Line {
    pub(super) peer: SocketAddr,
    /// Who showed a key, if one is asked for.
    pub(super) admitted: Option<Box<Admitted>>,
    pub(super) connection: Connection<Socket, SessionTag>,
    pub(super) outbox: Arc<Outbox<SessionTag>>,
    /// The newest progress of jobs that the client was too slow for.
    pub(super) late: BTreeMap<JobId, Bytes>,
    /// A session that ended here, and the number its client may still prove to have.
    pub(super) farewell: Option<(SessionId, u64)>,
}

/// A client that comes back to its session over a new connection.
pub(super) struct Newcomer {
    pub(super) line: Line,
    /// Number of the last result it has.
    pub(super) last_seq: u64,
    /// What it named, for the answer.
    pub(super) session_id: String,
}

/// Clients that come back to one session at the same time; of more, the older are dropped.
const NEWCOMERS_MAX: usize = 4;

/// The way to a node's socket.
pub(super) struct Link {
    pub(super) generation: u64,
    pub(super) outbox: Arc<Outbox<NodeTag>>,
    pub(super) peer: SocketAddr,
    /// Whether the node wants to be told what becomes of its results.
    pub(super) acks: AtomicBool,
    /// Whether the node wants to know where in a trace its jobs stand.
    pub(super) traces: AtomicBool,
}

/// Mail for a session's task.
#[derive(Debug)]
pub(super) enum Mail {
    /// News of one of its jobs.
    News(News),
    /// A job of it settled.
    Settled(Arc<Job>, News),
    /// An operator had a job of it done again.
    Reopened(Arc<Job>),
    /// What was read back of what it is owed behind `after`.
    Replayed { after: u64, frames: Vec<(u64, JobId, Bytes)> },
    /// A frame for its client.
    Frame(Bytes),
    /// Somebody else in its room said something. Not counted against what its own jobs may leave.
    Heard(News),
}

/// The way to a session's task, and what others may know of it.
pub(super) struct SessionHandle {
    pub(super) id: SessionId,
    pub(super) profile: Profile,
    pub(super) opened_unix_ms: u64,
    /// By which its client can prove who it is when it comes back.
    pub(super) key: Option<ResumeKey>,
    pub(super) open_jobs: AtomicUsize,
    /// Outcomes that wait for the disk before they are told.
    pub(super) untold: AtomicUsize,
    pub(super) utterances: AtomicU64,
    /// Results kept for its client.
    pub(super) owed: AtomicUsize,
    /// Its room as it is now.
    pub(super) room: Whereabouts,
    /// It has asked something about rooms, and may be in one.
    pub(super) knows_rooms: AtomicBool,
    /// Of what it asked the rooms, how much waits.
    pub(super) room_requests: AtomicUsize,
    /// It knows that the server goes down, and what had been said before is jobs now.
    pub(super) drained: AtomicBool,
    /// Boxed, so that a session at rest does not pay for what it may get.
    mail: SegQueue<Box<Mail>>,
    /// Mail left and not taken yet; counted before it is there.
    mail_left: AtomicUsize,
    /// Most mail at once.
    mail_max: usize,
    newcomers: ArrayQueue<Box<Newcomer>>,
    pub(super) wake: Notify,
    /// The session is over: nobody reads its mail any more.
    over: AtomicBool,
}

impl SessionHandle {
    pub(super) fn new(
        id: SessionId,
        profile: Profile,
        opened_unix_ms: u64,
        key: Option<ResumeKey>,
        (jobs_max, langs_max): (usize, usize),
    ) -> Self {
        Self {
            id,
            profile,
            opened_unix_ms,
            key,
            open_jobs: AtomicUsize::new(0),
            untold: AtomicUsize::new(0),
            utterances: AtomicU64::new(0),
            owed: AtomicUsize::new(0),
            room: Whereabouts::default(),
            knows_rooms: AtomicBool::new(false),
            room_requests: AtomicUsize::new(0),
            drained: AtomicBool::new(false),
            mail: SegQueue::new(),
            mail_left: AtomicUsize::new(0),
            // Each job is kept, ends and becomes durable once, and reading stops while as many as
            // may be open wait for the disk; those for others only end, and there may be as many
            // for each language. What the rooms answer is bounded by what may be asked. Progress
            // gets what is beyond that.
            mail_max: PROGRESS_MAX + (6 + langs_max) * jobs_max + 64,
            newcomers: ArrayQueue::new(NEWCOMERS_MAX),
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
        let fits = self.mail_left.fetch_add(1, SeqCst) < self.mail_max;
        assert!(fits, "the mailbox of {} is sized for all its jobs", self.id);
        self.mail.push(Box::new(mail));
        self.wake.notify_one();
    }

    /// Leaves mail that may be dropped; whether it was kept.
    pub(super) fn offer(&self, mail: Mail) -> bool {
        let room = |left: usize| (left < PROGRESS_MAX).then_some(left + 1);
        let kept = self.mail_left.fetch_update(SeqCst, SeqCst, room).is_ok();
        if kept {
            self.mail.push(Box::new(mail));
        }
        self.wake.notify_one();
        kept
    }

    /// Leaves what somebody else in its room said. That is as much as others say: it is taken as
    /// soon as the session's task runs, and what its client is not ready for stays on disk.
    pub(super) fn hears(&self, news: News) {
        self.mail.push(Box::new(Mail::Heard(news)));
        self.wake.notify_one();
    }

    pub(super) fn take(&self) -> Option<Mail> {
        let mail = self.mail.pop()?;
        if !matches!(*mail, Mail::Heard(_)) {
            self.mail_left.fetch_sub(1, SeqCst);
        }
        Some(*mail)
    }

    /// Shows it another room than before, or none.
    pub(super) fn show_room(&self, view: Option<Arc<RoomView>>) {
        self.room.show(view);
        self.wake.notify_one();
    }

    /// Hands a client that came back to the session's task.
    pub(super) fn welcome(&self, newcomer: Newcomer) {
        // Of too many at once the newest stay; the socket of the one dropped closes.
        drop(self.newcomers.force_push(Box::new(newcomer)));
        self.wake.notify_one();
    }

    /// Whether a client came back that was not taken yet.
    pub(super) fn has_newcomer(&self) -> bool {
        !self.newcomers.is_empty()
    }

    /// The client that came back first and was not taken yet.
    pub(super) fn newcomer(&self) -> Option<Newcomer> {
        self.newcomers.pop().map(|newcomer| *newcomer)
    }

    /// Whether the session wants to hear when a job of it is on disk.
    pub(super) fn wants_kept(&self) -> bool {
        self.profile.accepted || self.profile.audio_ack
    }
}

/// What a client that comes back must match.
#[derive(Debug, Clone, Copy)]
pub(super) struct ResumeKey {
    pub(super) epoch: u32,
    /// SHA-256 of the secret.
    pub(super) hash: [u8; 32],
}

impl ResumeKey {
    /// A key with its secret, which is told once and not kept.
    pub(super) fn fresh(epoch: u32) -> Option<(Self, String)> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).ok()?;
        let text: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        Some((Self { epoch, hash: hash(&text) }, text))
    }

    /// Whether the client knows the secret. Hashes are compared, so the time it takes says nothing
    /// of the secret.
    pub(super) fn opens(&self, epoch: u32, secret: &str) -> bool {
        self.epoch == epoch && self.hash == hash(secret)
    }
}

fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
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
    /// Change the pool configuration.
    Pools(Box<PoolEdit>, oneshot::Sender<PoolsChanged>),
    /// Put other settings in force; answered with their version.
    Settings(Box<Change>, oneshot::Sender<u64>),
    /// Make or revoke a key; answered with what it is then.
    Key(KeyChange, oneshot::Sender<Changed>),
}

/// Counts an open session of the server and of its tenant for as long as it lives.
pub(super) struct SessionSlot {
    shared: Arc<Shared>,
    pub(super) account: Arc<Account>,
}

impl SessionSlot {
    /// Within the limits of both.
    pub(super) fn take(shared: &Arc<Shared>, tenant: Option<&str>) -> Result<Self, Denied> {
        let account = shared.scheduler.accounts().of(tenant);
        account.open_session()?;
        let max = shared.settings.with(|version| version.config.session.sessions_max);
        let room = |n: usize| (n < max).then_some(n + 1);
        if shared.sessions_open.fetch_update(SeqCst, SeqCst, room).is_err() {
            account.close_session();
            return Err(Denied::ServerSessions);
        }
        shared.metrics.sessions.inc();
        Ok(Self { shared: Arc::clone(shared), account })
    }

    /// For a session that was open before the server restarted; the limits do not apply.
    pub(super) fn take_back(shared: &Arc<Shared>, tenant: Option<&str>) -> Self {
        let account = shared.scheduler.accounts().of(tenant);
        account.reopen_session();
        shared.sessions_open.fetch_add(1, SeqCst);
        shared.metrics.sessions.inc();
        Self { shared: Arc::clone(shared), account }
    }
}

impl Drop for SessionSlot {
    fn drop(&mut self) {
        self.account.close_session();
        self.shared.sessions_open.fetch_sub(1, SeqCst);
        self.shared.metrics.sessions.dec();
    }
}

/// Returns when the server begins to go down: with the end of the drain.
pub(super) async fn drain_begins(drain: &mut watch::Receiver<Option<Instant>>) -> Instant {
    match drain.wait_for(Option::is_some).await.map(|until| *until) {
        Ok(Some(until)) => until,
        // The server is gone without a word; `going_down` sees it too.
        Ok(None) | Err(_) => std::future::pending().await,
    }
}

/// The reason of the close frames of a server that goes down, with a time of its own for each peer.
pub(super) fn parting() -> String {
    format!("server is going down; retry_after_ms={}", limits::reconnect_after_ms())
}

/// Returns when connections are to close.
pub(super) async fn going_down(closing: &mut watch::Receiver<bool>) {
    if closing.wait_for(|closing| *closing).await.is_err() {
        // The server is gone without a word; so is the connection.
        tracing::debug!("the server ended before its connections");
    }
}
