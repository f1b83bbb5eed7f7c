//! The real world: sockets, the clock, tasks. Assembles the core, routes connections, performs
//! effects, drains.
//!
//! It refuses to decide: every choice about sessions, jobs and nodes is made in the core, which is
//! given inputs and the time.

mod awaited;
mod backup;
mod certificates;
mod clock;
mod console;
mod control;
mod credentials;
mod dead_letters;
mod delivery;
mod documents;
mod explain;
mod gateway;
mod log_level;
mod node;
mod pages;
mod paths;
mod perform;
mod pools;
mod recover;
mod reload;
mod rooms;
mod routes;
mod session;
mod sessions;
mod shared;
mod traces;
mod whence;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use foldhash::fast::RandomState;
use papaya::HashMap;
use rustix::process::{Resource, getrlimit};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{info, warn};

pub use certificates::check_certificates;
pub use clock::Clock;
pub use dead_letters::explain_dead_letter;
pub use pages::explain_ended;
pub use paths::PATHS;
pub use reload::{Reloaded, Source, Unreloaded};
pub use rooms::room_json;
pub use sessions::undelivered;

use crate::config::{Config, DRAIN_MS_MAX, Faults, Loaded, Setter, Settings};
use crate::job::Scheduler;
use crate::node::Registry;
use crate::node::pool::Publisher;
use crate::session::RoomInput;
use crate::store::{Recovered, Store, StoreError, StoreOptions, Watermark, Watermarks};
use crate::telemetry::Metrics;
use crate::tenant::{Accounts, Admission, Pairings};
use crate::transport::{
    Budget, Entrance, House, HttpLimits, Listen, Side, Tls, VisitorLimits, serve,
};
use control::ControlTask;
use rooms::RoomsTask;
use routes::{Routes, Serves};
use shared::{Control, SessionHandle, Shared};
use traces::Traces;

/// Connections that wait to be accepted; systems have a bound of their own, often the same.
const BACKLOG: i32 = 4_096;
/// Descriptors that are left to the database, to listeners and to what else is opened.
const DESCRIPTORS_KEPT: usize = 64;

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be listened on.
    #[error("cannot listen on {listen}: {source}")]
    Listen {
        /// The configured address.
        listen: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// The secret of the data directory cannot be read or made.
    #[error("the secret in {dir}: {source}")]
    Secret {
        /// The data directory.
        dir: std::path::PathBuf,
        /// What is wrong.
        source: std::io::Error,
    },
    /// Certificates cannot be used.
    #[error("the certificates have faults:\n{0}")]
    Certificates(Faults),
    /// The data directory cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Sockets that listen already, handed over by who started the process. They stay open in its
/// hands: who connects while no server accepts waits, and is not refused.
#[derive(Debug, Default)]
pub struct Handed {
    /// For sessions, instead of `server.listen`; for nodes too, unless they have their own.
    pub client: Option<std::net::TcpListener>,
    /// For nodes alone, instead of `server.node_listen`.
    pub node: Option<std::net::TcpListener>,
}

/// What a server is given that somebody else opened, and may have made up: a network, a disk, the
/// time.
pub struct Opened<L> {
    /// Listens for sessions and nodes.
    pub listener: L,
    /// Where it listens.
    pub addr: SocketAddr,
    /// The store with what was found in it; none to keep nothing.
    pub store: Option<(Store, Recovered)>,
    /// Under which keys are hashed.
    pub secret: [u8; 32],
    /// Unix time now, in milliseconds. The server's clock goes on from there with the runtime's.
    pub unix_ms: u64,
}

/// How a server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// All that was taken is done or on disk.
    InOrder,
    /// The store had not made its last rows durable in time; it still tries.
    StoreLate,
}

/// How long connections may take to close, all at once; each is given two seconds.
const CLOSING_MAX: Duration = Duration::from_secs(3);
/// How long the store may take for its last rows.
const LAST_COMMIT_MAX: Duration = Duration::from_secs(6);
/// A stop takes no longer than this, whatever the settings.
pub const STOP_MAX: Duration = Duration::from_secs(30);

const _: () = {
    let rest = CLOSING_MAX.as_millis() + LAST_COMMIT_MAX.as_millis();
    assert!(DRAIN_MS_MAX as u128 + rest < STOP_MAX.as_millis());
};

/// A running server.
pub struct Server {
    addr: SocketAddr,
    node_addr: SocketAddr,
    shared: Arc<Shared>,
    doors: Vec<Door>,
    control: JoinHandle<()>,
    rooms: JoinHandle<()>,
    /// Sends traces, if there is a collector.
    traces: Option<JoinHandle<()>>,
    console: JoinHandle<()>,
}

/// A listener whose connections are accepted.
struct Door {
    /// Whether somebody else keeps it open too.
    handed: bool,
    stop: oneshot::Sender<()>,
    accepting: JoinHandle<()>,
}

/// A socket that listens, and of which nothing has been accepted yet.
struct Listener<L> {
    tcp: L,
    addr: SocketAddr,
    handed: bool,
}

impl Listener<TcpListener> {
    async fn open(
        handed: Option<std::net::TcpListener>,
        listen: String,
    ) -> Result<Self, StartError> {
        let (was_handed, opened) = match handed {
            Some(tcp) => {
                let tcp = tcp.set_nonblocking(true).and_then(|()| TcpListener::from_std(tcp));
                (true, tcp)
            }
            None => (false, TcpListener::bind(&listen).await.and_then(with_long_queue)),
        };
        let with_addr = opened.and_then(|tcp| Ok((tcp.local_addr()?, tcp)));
        let (addr, tcp) = with_addr.map_err(|source| StartError::Listen { listen, source })?;
        Ok(Self { tcp, addr, handed: was_handed })
    }
}

impl Server {
    /// Opens the store, takes back what was not finished, and listens. When this returns the server
    /// takes nodes and sessions.
    pub async fn start(config: impl Into<Loaded>) -> Result<Server, StartError> {
        Self::start_with(config, Handed::default()).await
    }

    /// The same, with sockets that listen already.
    ///
    /// Nodes are taken before sessions: where both share one address, sessions are answered 503
    /// until what an earlier life left is taken back; where they do not, theirs is opened then.
    pub async fn start_with(
        config: impl Into<Loaded>,
        handed: Handed,
    ) -> Result<Server, StartError> {
        let loaded = config.into();
        let config = &loaded.config;
        let (listen, node_listen) = (config.server.listen.clone(), &config.server.node_listen);
        let apart = handed.node.is_some() || node_listen.is_some();
        let tls = Tls::load(config.tls.clone()).map_err(StartError::Certificates)?;
        // Before the store: the directory of a server that runs already is not touched.
        let (first, mut second) = match apart {
            true => (
                Listener::open(handed.node, node_listen.clone().unwrap_or_default()).await?,
                Some((handed.client, listen)),
            ),
            false => (Listener::open(handed.client, listen).await?, None),
        };
        let opened = open_store(config)?;
        let secret = open_secret(config)?;
        let made = (Clock::new(), secret, tls);
        let mut server = Self::begin(loaded, opened, made, first.addr);
        server.accept(first, if apart { Serves::Nodes } else { Serves::Everyone });
        if let Some((handed, listen)) = second.take() {
            match Listener::open(handed, listen).await {
                Ok(listener) => {
                    server.addr = listener.addr;
                    server.shared.ready.store(true, SeqCst);
                    server.accept(listener, Serves::Sessions);
                }
                Err(error) => {
                    let stopped = server.close().await;
                    warn!(?stopped, "sessions cannot be listened for");
                    return Err(error);
                }
            }
        }
        server.begun();
        Ok(server)
    }

    /// The same over what is open already. The configuration's addresses, certificates and data
    /// directory are not looked at.
    pub async fn start_on<L: Listen>(config: Config, opened: Opened<L>) -> Server {
        let Opened { listener, addr, store, unix_ms, secret } = opened;
        let clock = Clock::starting_at(unix_ms);
        let mut server = Self::begin(config.into(), store, (clock, secret, Tls::none()), addr);
        server.accept(Listener { tcp: listener, addr, handed: false }, Serves::Everyone);
        server.begun();
        server
    }

    /// Takes back what was not finished.
    fn begin(
        loaded: Loaded,
        store: Option<(Store, Recovered)>,
        made: Made,
        addr: SocketAddr,
    ) -> Server {
        let telemetry = loaded.config.telemetry.clone();
        let (traces, ended) = Traces::configured(&telemetry).unzip();
        let (shared, writers, (commands, inbox), recovered) = assemble(loaded, store, made, traces);
        let traces = ended.map(|ended| tokio::spawn(traces::run(Arc::clone(&shared), ended)));
        let rooms = recover::restore(&shared, recovered);
        let task = ControlTask::new(Arc::clone(&shared), writers, commands);
        let control = tokio::spawn(task.run());
        let rooms = RoomsTask::new(Arc::clone(&shared), inbox, rooms);
        let rooms = tokio::spawn(rooms.run());
        let console = tokio::spawn(console::feed(Arc::clone(&shared)));
        let doors = Vec::new();
        Server { addr, node_addr: addr, shared, doors, control, rooms, console, traces }
    }

    /// Sessions are taken from now on.
    fn begun(&self) {
        self.shared.ready.store(true, SeqCst);
        let (addr, node_addr) = (self.addr, self.node_addr);
        info!(%addr, %node_addr, boot_epoch = self.shared.boot_epoch, "accepting sessions");
    }

    fn accept<L: Listen>(&mut self, listener: Listener<L>, serves: Serves) {
        let Listener { tcp, addr, handed } = listener;
        let limits = self.shared.settings.with(|version| {
            let transport = &version.config.transport;
            let header_timeout = Duration::from_millis(transport.header_timeout_ms);
            let send_buffer_bytes = transport.send_buffer_bytes;
            HttpLimits { header_timeout, send_buffer_bytes, ..HttpLimits::default() }
        });
        let side = if serves == Serves::Nodes { Side::Nodes } else { Side::Sessions };
        let tls = self.shared.tls.door(side, &self.shared.metrics);
        let encrypted = tls.is_some();
        let (stop, stopped) = oneshot::channel::<()>();
        let routes = Arc::new(Routes::new(Arc::clone(&self.shared), serves));
        let entrance = Entrance { house: self.shared.house.clone(), limits, tls };
        let accepting = tokio::spawn(serve(tcp, routes, entrance, stopped));
        info!(%addr, handed, ?serves, encrypted, "accepting connections");
        self.doors.push(Door { handed, stop, accepting });
    }

    /// Where it listens for sessions.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where it listens for nodes; the same address unless they have their own.
    pub fn node_addr(&self) -> SocketAddr {
        self.node_addr
    }

    /// Its clock, which tests move.
    pub fn clock(&self) -> Arc<Clock> {
        Arc::clone(&self.shared.clock)
    }

    /// Reads the files of certificates again, for the connections to come; those there are go on.
    /// Fails with all that is wrong with the files: the old certificates stay then. Without any it
    /// does nothing.
    pub async fn reload_certificates(&self) -> Result<(), Faults> {
        certificates::reload(&self.shared).await
    }

    /// Where [`Server::reload`] reads the settings. Without it they are not read again.
    pub fn reload_from(&self, source: Source) {
        self.shared.reloads.read_from(source);
    }

    /// Reads settings and certificates again and puts them in force whole, or, with any fault in
    /// them, changes nothing.
    pub async fn reload(&self) -> Result<Reloaded, Unreloaded> {
        reload::reload(&self.shared).await
    }

    /// Resolves when an operator has asked, through the admin API, for the server to be stopped.
    /// Who does not wait for this refuses such requests.
    pub fn asked_to_stop(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut asked = self.shared.stop_asked.subscribe();
        async move {
            if asked.wait_for(|asked| *asked).await.is_err() {
                // The server ended without having been asked.
                std::future::pending().await
            }
        }
    }

    /// Stops in good order: takes no new sessions and no speech that begins now, lets unfinished
    /// jobs end for as long as configured, closes every connection, and makes the last rows
    /// durable. What is unfinished then goes on after the next start. Takes [`STOP_MAX`] at most.
    pub async fn stop(mut self) -> Stopped {
        let shared = Arc::clone(&self.shared);
        shared.ready.store(false, SeqCst);
        // Who connects to a socket that stays open waits for the next server. Elsewhere there is
        // nobody to wait for, and an answer is better than none.
        let (handed, own) = self.doors.drain(..).partition(|door| door.handed);
        self.doors = own;
        shut(handed).await;
        let drain = Duration::from_millis(shared.settings.with(|v| v.config.server.drain_ms));
        shared.scheduler.close(shared.now());
        shared.drain.send_replace(Some(Instant::now() + drain));
        info!(jobs = shared.scheduler.live(), "draining");
        let idle = async {
            // What was said is a job once its session is drained; what has ended is still to be
            // told, which may be after it is on disk.
            let busy = |s: &Arc<SessionHandle>| s.is_owed() || !s.drained.load(SeqCst);
            let owed = || shared.sessions.pin().values().any(busy);
            while owed() || shared.scheduler.live() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(drain, idle).await.is_err() {
            warn!(jobs = shared.scheduler.live(), "stopping with unfinished jobs");
        }
        self.close().await
    }

    /// Closes every connection and the store.
    async fn close(self) -> Stopped {
        let shared = self.shared;
        shared.closing.send_replace(true);
        shut(self.doors).await;
        let deadline = Instant::now() + CLOSING_MAX;
        // A socket that was accepted and is about to ask is given its answer as well.
        let open = || shared.closing.receiver_count() > 0 || shared.house.open() > 0;
        while open() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.control.abort();
        self.rooms.abort();
        self.console.abort();
        if let Some(traces) = self.traces
            && tokio::time::timeout_at(deadline, traces).await.is_err()
        {
            warn!("the last traces were not taken in time");
        }
        if let Some(store) = shared.store.clone() {
            // It blocks until the last commit.
            let last_commit = tokio::task::spawn_blocking(move || store.shutdown());
            match tokio::time::timeout(LAST_COMMIT_MAX, last_commit).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => warn!("the store did not shut down in good order"),
                Err(_) => {
                    warn!("the store is late with its last rows");
                    return Stopped::StoreLate;
                }
            }
        }
        info!("stopped");
        Stopped::InOrder
    }
}

/// Accepts no more connections there.
async fn shut(doors: Vec<Door>) {
    for Door { stop, accepting, .. } in doors {
        // The receiver is gone if the accept loop has ended, which is what is asked.
        if stop.send(()).is_ok() && accepting.await.is_err() {
            warn!("an accept loop had failed");
        }
    }
}

fn watermarks(config: &crate::config::Store) -> Watermarks {
    let mark = |percent, bytes| Watermark { percent, bytes };
    Watermarks {
        warn: mark(config.free_warn_percent, config.free_warn_bytes),
        no_jobs: mark(config.refuse_jobs_percent, config.refuse_jobs_bytes),
        no_sessions: mark(config.refuse_sessions_percent, config.refuse_sessions_bytes),
    }
}

fn open_store(config: &Config) -> Result<Option<(Store, Recovered)>, StoreError> {
    if !config.store.enabled {
        return Ok(None);
    }
    let options = StoreOptions {
        cache_bytes: config.store.cache_bytes,
        keep_audio: config.store.keep_audio,
        terminal_retention_ms: config.store.terminal_retention_ms,
        terminal_rows_max: config.store.terminal_rows_max,
        outbox_retention_ms: config.store.outbox_retention_ms,
        dead_letter_retention_ms: config.store.dead_letter_retention_ms,
        dead_letters_max: config.store.dead_letters_max,
        expiry_pause_ms: config.store.expiry_pause_ms,
        ballast_bytes: config.store.ballast_bytes,
        watermarks: watermarks(&config.store),
        ..StoreOptions::default()
    };
    Store::open(&config.server.data, options).map(Some)
}

/// Counts from nothing, but for what is known already.
fn metrics(config: &Config) -> Arc<Metrics> {
    let metrics = Metrics::new();
    metrics.pause_ms.set(config.segmenter.pause_ms as i64);
    metrics.config_version.set(1);
    metrics.build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    Arc::new(metrics)
}

/// Has the system hold many who connect at the same moment: who finds no place tries again a second
/// later.
fn with_long_queue(tcp: TcpListener) -> std::io::Result<TcpListener> {
    rustix::net::listen(&tcp, BACKLOG)?;
    Ok(tcp)
}

fn house(settings: &Arc<Settings>) -> House {
    let each = settings.with(|version| {
        let config = &version.config.transport;
        let networks = config.unlimited_addresses.iter();
        VisitorLimits {
            connections_max: config.address_connections_max,
            connections_per_second: config.address_connections_per_second,
            failures_per_minute: config.address_failures_per_minute,
            // Seen to be networks when the configuration was checked.
            unlimited: networks.filter_map(|network| network.parse().ok()).collect(),
        }
    });
    let max = settings.part(|version| &version.config.transport.connections_max);
    let (wanted, descriptors) = (max.with(|max| *max), descriptors_for_sockets());
    if descriptors < wanted {
        warn!(wanted, descriptors, "the limit of open files leaves less room for connections");
    }
    House::new(max, each).with_descriptors(descriptors)
}

/// Descriptors that sockets of peers may take: all that the process may have, but for some that
/// files, listeners and the runtime need.
fn descriptors_for_sockets() -> usize {
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(files).unwrap_or(usize::MAX).saturating_sub(DESCRIPTORS_KEPT).max(1)
}

/// Without a store there is nothing that a secret should outlive.
fn open_secret(config: &Config) -> Result<[u8; 32], StartError> {
    let secret = match config.store.enabled {
        true => credentials::secret_in(&config.server.data),
        false => credentials::fresh_secret(),
    };
    secret.map_err(|source| StartError::Secret { dir: config.server.data.clone(), source })
}

/// What is made anew at each start.
type Made = (Clock, [u8; 32], Tls);
type Assembled = (Arc<Shared>, (Publisher, Setter), Inboxes, Option<Recovered>);
/// What the control task and the task of the rooms are told.
type Inboxes = (mpsc::Receiver<shared::Command>, mpsc::Receiver<RoomInput>);

fn assemble(
    loaded: Loaded,
    store: Option<(Store, Recovered)>,
    (clock, secret, tls): Made,
    traces: Option<Traces>,
) -> Assembled {
    let (store, mut recovered) = store.unzip();
    let rows = recovered.as_mut().map(|r| std::mem::take(&mut r.keys)).unwrap_or_default();
    let (setter, settings) = Setter::new(loaded);
    let started = settings.load_full();
    let config = &started.config;
    let keys = credentials::ring(secret, settings.part(|version| &version.config.auth), rows);
    let boot_epoch = recovered.as_ref().map_or(0, |r| r.boot_epoch);
    let stored = recovered.as_ref().and_then(|r| r.pools.as_ref());
    let (pool_config, pool_version, overriding) = recover::pools(config, stored);
    let (clock, metrics) = (Arc::new(clock), metrics(config));
    let registry = Arc::new(Registry::new(settings.part(|version| &version.config.node)));
    let (publisher, pools) = Publisher::begin(pool_config, pool_version, overriding);
    let accounts = Accounts::by(settings.part(|version| &version.tenants), &metrics);
    let job = || settings.part(|version| &version.config.job);
    let scheduler = Scheduler::new(
        job(),
        Admission::new(job(), config.session.jobs_max, accounts),
        boot_epoch,
        Arc::clone(&registry),
        Arc::clone(&pools),
        Arc::clone(&metrics),
    );
    let (control, commands) = Control::new();
    let (rooms, inbox) = mpsc::channel(rooms::INPUTS_MAX);
    let sessions =
        HashMap::with_capacity_and_hasher(config.session.sessions_max, RandomState::default());
    let links = HashMap::with_capacity_and_hasher(config.node.nodes_max, RandomState::default());
    let shared = Arc::new(Shared {
        started_unix_ms: clock.now().unix_ms,
        clock,
        metrics,
        registry,
        pools,
        scheduler,
        store,
        sessions,
        sessions_open: 0.into(),
        peers: HashMap::with_hasher(RandomState::default()),
        links,
        traces,
        tls: Arc::new(tls),
        console: Default::default(),
        awaited: Default::default(),
        control,
        keys,
        watch: Default::default(),
        house: house(&settings),
        outgoing: Budget::new(settings.part(|v| &v.config.transport.sessions_outbox_bytes_max)),
        gateway: Default::default(),
        pairings: Pairings::default(),
        rooms,
        rooms_overrun: false.into(),
        rooms_seen: HashMap::with_hasher(RandomState::default()),
        ready: false.into(),
        drain: watch::Sender::new(None),
        closing: watch::Sender::new(false),
        boot_epoch,
        settings,
        reloads: Default::default(),
        stop_asked: watch::Sender::new(false),
        backing_up: false.into(),
    });
    (shared, (publisher, setter), (commands, inbox), recovered)
}
