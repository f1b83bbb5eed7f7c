//! `utterd serve`.

use std::convert::Infallible;
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind};
use tracing::{error, warn};

use super::{
    ConfigArgs, Failure, Outcome, Signals, caught, code, faulty, next_of, runtime, say, systemd,
};
use crate::config::Loaded;
use crate::server::{Handed, STOP_MAX, Server, Source, StartError, Stopped};
use crate::telemetry;

#[derive(Debug, clap::Args)]
#[command(after_help = AFTER, after_long_help = AFTER)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArgs,
}

const AFTER: &str = "\
Examples:
  utterd serve
  utterd serve --config /etc/utterd/utterd.toml
  UTTERD_LOG_LEVEL=debug utterd serve --listen 127.0.0.1:0 --data /tmp/utterd
  utterd check --example > utterd.toml     every setting, with its meaning
  utterd check utterd.toml                 every fault of a file at once

Signals:
  SIGTERM, SIGINT  stop in good order, within 30 s; a second one ends it at once
  SIGHUP           read settings and certificates again

Exit codes:
  0   stopped in good order
  2   the command line, the configuration or a certificate is at fault
  65  the data directory cannot be used: locked, corrupt, vanished
  69  an address cannot be listened on, or a socket handed over cannot be used
  75  ended at once: asked to stop twice, or not in good order within 30 s";

pub(super) fn run(args: Args) -> Outcome {
    let loaded = args.config.read().map_err(faulty)?;
    let _log = telemetry::log::init(&loaded.config.log)?;
    let limits = getrlimit(Resource::Nofile);
    // Each connection is a descriptor, and many systems begin with a thousand of them.
    let raised = setrlimit(Resource::Nofile, Rlimit { current: limits.maximum, ..limits });
    if let Err(error) = raised {
        warn!(%error, "the limit of open files stays as it is");
    }
    // Before there is a second thread: it takes variables out of the environment.
    let handed = systemd::handed_over().map_err(|error| Failure::new(code::LISTEN, error))?;
    // Flags and variables of the start go on ranking above the file.
    let source: Source = Arc::new(move || args.config.read());
    runtime()?.block_on(serve(loaded, source, handed))
}

async fn serve(loaded: Loaded, source: Source, handed: Handed) -> Outcome {
    let mut signals = Signals::caught();
    let hangups = caught(SignalKind::hangup(), "SIGHUP");
    let server = tokio::select! {
        started = Server::start_with(loaded, handed) => started.map_err(|error| {
            let code = match &error {
                StartError::Listen { .. } => code::LISTEN,
                StartError::Certificates(_) => code::USAGE,
                StartError::Store(_) | StartError::Secret { .. } => code::DATA,
            };
            Failure::new(code, error)
        })?,
        // No session was taken yet, and what there was is on disk.
        () = signals.next() => return Ok(()),
    };
    say(&format!("utterd listening on {}", server.addr()));
    if server.node_addr() != server.addr() {
        say(&format!("utterd listening for nodes on {}", server.node_addr()));
    }
    server.reload_from(source);
    let asked = server.asked_to_stop();
    systemd::notify("READY=1");
    let alive = tokio::spawn(systemd::keep_alive());
    tokio::select! {
        () = signals.next() => {}
        () = asked => {}
        never = reload_on(hangups, &server) => match never {},
    }
    systemd::notify("STOPPING=1");
    stop(server, &mut signals).await;
    alive.abort();
    Ok(())
}

/// Has settings and certificates read again at each SIGHUP.
async fn reload_on(mut hangups: Option<Signal>, server: &Server) -> Infallible {
    loop {
        next_of(&mut hangups).await;
        if server.reload().await.is_err() {
            warn!("SIGHUP had no effect");
        }
    }
}

/// Stops the server in good order; a further signal, or the end of the time for it, ends the
/// process at once.
pub(super) async fn stop(server: Server, signals: &mut Signals) {
    watch_the_clock();
    tokio::select! {
        stopped = server.stop() => if stopped == Stopped::StoreLate {
            end_at_once("the store is late");
        },
        () = signals.next() => end_at_once("asked to stop again"),
    }
}

/// Ends the process when the time for a stop is over. A thread of its own: whatever holds up the
/// stop may hold up the runtime too.
fn watch_the_clock() {
    let watch = || {
        std::thread::sleep(STOP_MAX);
        end_at_once("the time to stop is over");
    };
    let started = std::thread::Builder::new().name("stop-watch".to_owned()).spawn(watch);
    if let Err(error) = started {
        warn!(%error, "nothing limits the time of this stop");
    }
}

/// What is on disk is taken back at the next start.
fn end_at_once(why: &str) {
    error!(why, "ending at once");
    std::process::exit(code::AT_ONCE.into());
}
