//! The real world: sockets, the clock, tasks. Assembles the core, routes connections, performs
//! effects, drains.
//!
//! It refuses to decide: every choice about sessions, jobs and nodes is made in the core, which is
//! given inputs and the time.

mod awaited;
mod clock;
mod control;
mod dead_letters;
mod delivery;
mod node;
mod perform;
mod recover;
mod routes;
mod session;
mod shared;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use foldhash::fast::RandomState;
use papaya::HashMap;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tracing::{info, warn};

pub use clock::Clock;
pub use dead_letters::explain_dead_letter;
pub use routes::explain_ended;

use crate::config::Config;
use crate::job::Scheduler;
use crate::node::Registry;
use crate::node::pool::Publisher;
use crate::store::{Recovered, Store, StoreError, StoreOptions};
use crate::telemetry::Metrics;
use crate::transport::{HttpLimits, serve};
use control::ControlTask;
use routes::Routes;
use shared::{Control, Shared};

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
    /// The data directory cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A running server.
pub struct Server {
    addr: SocketAddr,
    shared: Arc<Shared>,
    stop_accepting: oneshot::Sender<()>,
    accepting: JoinHandle<()>,
    control: JoinHandle<()>,
}

impl Server {
    /// Opens the store, takes back what was not finished, and listens. When this returns the server
    /// accepts connections.
    pub async fn start(config: Config) -> Result<Server, StartError> {
        let listen = config.server.listen.clone();
        let bound = TcpListener::bind(&listen).await;
        let listener = bound.map_err(|source| StartError::Listen { listen, source })?;
        let opened = open_store(&config)?;
        let (shared, publisher, commands, recovered) = assemble(config, opened);
        recover::restore(&shared, recovered);
        let task = ControlTask::new(Arc::clone(&shared), publisher, commands);
        let control = tokio::spawn(task.run());
        let addr = listener.local_addr().map_err(|source| StartError::Listen {
            listen: shared.config.server.listen.clone(),
            source,
        })?;
        let limits = HttpLimits {
            header_timeout: Duration::from_millis(shared.config.transport.header_timeout_ms),
            connections_max: shared.config.transport.connections_max,
            ..HttpLimits::default()
        };
        let (stop_accepting, stopped) = oneshot::channel::<()>();
        let routes = Arc::new(Routes::new(Arc::clone(&shared)));
        let accepting = tokio::spawn(serve(listener, routes, limits, stopped));
        shared.ready.store(true, SeqCst);
        info!(%addr, boot_epoch = shared.boot_epoch, "accepting connections");
        Ok(Server { addr, shared, stop_accepting, accepting, control })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its clock, which tests move.
    pub fn clock(&self) -> Arc<Clock> {
        Arc::clone(&self.shared.clock)
    }

    /// Stops in good order: takes no new connections, lets unfinished jobs end for as long as
    /// configured, closes every connection, and makes the last rows durable. What is unfinished
    /// then goes on after the next start.
    pub async fn stop(self) {
        let shared = self.shared;
        shared.ready.store(false, SeqCst);
        // The receiver is gone if the accept loop has ended, which is what is asked.
        let told = self.stop_accepting.send(());
        let drain = Duration::from_millis(shared.config.server.drain_ms);
        let idle = async {
            // What has ended is still to be told, which may be after it is on disk.
            let owed = || shared.sessions.pin().values().any(|session| session.is_owed());
            while shared.scheduler.live() > 0 || owed() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(drain, idle).await.is_err() {
            warn!(jobs = shared.scheduler.live(), "stopping with unfinished jobs");
        }
        shared.closing.send_replace(true);
        if told.is_ok() && self.accepting.await.is_err() {
            warn!("the accept loop had failed");
        }
        let deadline = tokio::time::Instant::now() + drain;
        while shared.closing.receiver_count() > 0 && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.control.abort();
        if let Some(store) = shared.store.clone() {
            // It blocks until the last commit.
            if tokio::task::spawn_blocking(move || store.shutdown()).await.is_err() {
                warn!("the store did not shut down in good order");
            }
        }
        info!("stopped");
    }
}

fn open_store(config: &Config) -> Result<(Option<Store>, Option<Recovered>), StoreError> {
    if !config.store.enabled {
        return Ok((None, None));
    }
    let options = StoreOptions {
        cache_bytes: config.store.cache_bytes,
        keep_audio: config.store.keep_audio,
        terminal_retention_ms: config.store.terminal_retention_ms,
        terminal_rows_max: config.store.terminal_rows_max,
        outbox_retention_ms: config.store.outbox_retention_ms,
        dead_letter_retention_ms: config.store.dead_letter_retention_ms,
        dead_letters_max: config.store.dead_letters_max,
        ..StoreOptions::default()
    };
    let (store, recovered) = Store::open(&config.server.data, options)?;
    Ok((Some(store), Some(recovered)))
}

type Assembled =
    (Arc<Shared>, Publisher, tokio::sync::mpsc::Receiver<shared::Command>, Option<Recovered>);

fn assemble(config: Config, opened: (Option<Store>, Option<Recovered>)) -> Assembled {
    let (store, recovered) = opened;
    let boot_epoch = recovered.as_ref().map_or(0, |r| r.boot_epoch);
    let stored = recovered.as_ref().and_then(|r| r.pools.as_ref());
    let (pool_config, pool_version) = recover::pools(&config, stored);
    let clock = Arc::new(Clock::new());
    let metrics = Arc::new(Metrics::new());
    metrics.pause_ms.set(config.segmenter.pause_ms as i64);
    let registry = Arc::new(Registry::new(config.node.clone()));
    let (publisher, pools) = Publisher::new(pool_config, pool_version);
    let scheduler = Scheduler::new(
        config.job.clone(),
        config.session.jobs_max,
        boot_epoch,
        Arc::clone(&registry),
        Arc::clone(&pools),
        Arc::clone(&metrics),
    );
    let (control, commands) = Control::new();
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
        awaited: Default::default(),
        control,
        ready: false.into(),
        closing: watch::Sender::new(false),
        boot_epoch,
        config,
    });
    (shared, publisher, commands, recovered)
}
