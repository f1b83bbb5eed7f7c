//! The verbs of the program. The only module that prints, and the only one with untyped errors.
//!
//! It refuses to know anything below its floor that the server does not offer.

mod backup;
mod check;
mod dead_letters;
mod demo;
mod drain;
mod explain;
mod http;
mod inspect;
mod keys;
mod load;
mod log_level;
mod manual;
mod node;
mod pair;
mod pools;
mod reload;
mod serve;
mod show;
mod simulate;
mod speak;
mod systemd;
mod top;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::warn;

use crate::config::{Config, Faults, Loaded, environment};

/// Exit codes, as documented in docs/OPERATING.md.
mod code {
    /// Something failed at work: no connection, a job without an answer.
    pub(super) const FAILED: u8 = 1;
    /// The command line or the configuration is at fault.
    pub(super) const USAGE: u8 = 2;
    /// The address cannot be listened on.
    pub(super) const LISTEN: u8 = 69;
    /// The data directory cannot be used.
    pub(super) const DATA: u8 = 65;
    /// Ended before the stop was in good order: asked a second time, or out of time.
    pub(super) const AT_ONCE: u8 = 75;
}

/// Live speech translation: takes speech from sessions, gets it translated by nodes.
#[derive(Debug, Parser)]
#[command(name = "utterd", version, about)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the server.
    ///
    /// Sessions come to /ws/session, nodes to /ws/node, operators to /api/v1. Settings come, in
    /// rising order of rank, from embedded defaults, a file, variables UTTERD_<SECTION>_<KEY>, and
    /// the flags below. It prints `utterd listening on HOST:PORT` when it takes sessions; the log
    /// goes to standard error.
    Serve(serve::Args),
    /// Check a configuration file and tell every fault at once.
    Check(check::Args),
    /// Run a server with one echo node, send it an utterance, and show what happened.
    Demo(demo::Args),
    /// Run a node: register with a server and do its jobs.
    Node(node::Args),
    /// Speak a WAV file to a server and save what comes back.
    Speak(speak::Args),
    /// Run the core in a virtual world with faults and judges.
    Simulate(simulate::Args),
    /// Put load on a server: how fast, at what cost, and whether every answer is right.
    Load(load::Args),
    /// Make, list or revoke keys: who may come in.
    Keys(keys::Args),
    /// Make a code that pairs one session with one node.
    Pair(pair::Args),
    /// Have the server stopped in good order, or one node emptied.
    Drain(drain::Args),
    /// Give a node work again.
    Undrain(drain::UndrainArgs),
    /// Have settings and certificates read again.
    Reload(reload::Args),
    /// Show or change pools.
    Pools(pools::Args),
    /// Show or change what is logged.
    LogLevel(log_level::Args),
    /// Copy the database while the server runs, or a closed one.
    Backup(backup::Args),
    /// Show jobs, sessions, nodes, pools and rooms, of a server or of a closed database.
    Inspect(inspect::Args),
    /// Tell who would get a job now, and why not the others.
    Explain(explain::Args),
    /// Watch a server: what it holds, its nodes, its jobs and its sessions.
    Top(top::Args),
    /// Show, send again or drop what could not be brought to its end.
    DeadLetters(dead_letters::Args),
    /// Print the manual page of the program or of a verb.
    Man(manual::ManArgs),
    /// Print what a shell needs to complete this command line.
    Completions(manual::CompletionsArgs),
}

/// Runs the program; returns its exit code.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let outcome = match cli.verb {
        Verb::Serve(args) => serve::run(args),
        Verb::Check(args) => check::run(&args),
        Verb::Demo(args) => demo::run(args),
        Verb::Node(args) => node::run(args),
        Verb::Speak(args) => speak::run(args),
        Verb::Simulate(args) => simulate::run(&args),
        Verb::Load(args) => load::run(args),
        Verb::Keys(args) => keys::run(&args),
        Verb::Pair(args) => pair::run(&args),
        Verb::Drain(args) => drain::run(&args),
        Verb::Undrain(args) => drain::undrain(&args),
        Verb::Reload(args) => reload::run(&args),
        Verb::Pools(args) => pools::run(&args),
        Verb::LogLevel(args) => log_level::run(&args),
        Verb::Backup(args) => backup::run(&args),
        Verb::Inspect(args) => inspect::run(&args),
        Verb::Explain(args) => explain::run(&args),
        Verb::Top(args) => top::run(&args),
        Verb::DeadLetters(args) => dead_letters::run(&args),
        Verb::Man(args) => manual::man(&args),
        Verb::Completions(args) => manual::completions(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            complain(&format!("utterd: {:#}", failure.error));
            ExitCode::from(failure.code)
        }
    }
}

/// A verb failed: what to say, and the exit code.
struct Failure {
    error: anyhow::Error,
    code: u8,
}

impl Failure {
    fn new(code: u8, error: impl Into<anyhow::Error>) -> Self {
        Self { error: error.into(), code }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { error: error.into(), code: code::FAILED }
    }
}

type Outcome = Result<(), Failure>;

/// Where configuration comes from.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Configuration")]
struct ConfigArgs {
    /// Configuration file (TOML); without one, the embedded defaults.
    #[arg(long, value_name = "FILE", env = "UTTERD_CONFIG")]
    config: Option<PathBuf>,
    /// Address to listen on; port 0 takes any free one.
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// Directory of the database, created if missing.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

impl ConfigArgs {
    /// File, environment and flags, in rising order of rank, with where each value was written.
    fn read(&self) -> Result<Loaded, Faults> {
        let flags = [
            ("UTTERD_SERVER_LISTEN", self.listen.clone()),
            ("UTTERD_SERVER_DATA", self.data.as_ref().map(|d| d.display().to_string())),
        ];
        let flags = flags.into_iter().filter_map(|(k, v)| Some((k.to_owned(), v?)));
        let environment: std::collections::BTreeMap<_, _> = environment().chain(flags).collect();
        Config::load_placed(self.config.as_deref(), environment.into_iter())
    }
}

fn faulty(faults: Faults) -> Failure {
    let text = format!("the configuration has faults:\n{faults}");
    Failure::new(code::USAGE, anyhow::Error::msg(text))
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

#[allow(clippy::print_stdout, reason = "the program's own voice")]
fn say(text: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    // Nobody listens any more, as in `utterd demo | head`: nothing is left to say it to.
    if writeln!(out, "{text}").and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

#[allow(clippy::print_stderr, reason = "the program's own voice")]
fn complain(text: &str) {
    eprintln!("{text}");
}

/// The signals that ask the process to end: SIGTERM and SIGINT.
struct Signals {
    terminate: Option<Signal>,
    interrupt: Option<Signal>,
}

impl Signals {
    /// From now on they no longer end the process by themselves.
    fn caught() -> Self {
        Self {
            terminate: caught(SignalKind::terminate(), "SIGTERM"),
            interrupt: caught(SignalKind::interrupt(), "SIGINT"),
        }
    }

    /// Resolves at the next one.
    async fn next(&mut self) {
        let Self { terminate, interrupt } = self;
        tokio::select! {
            () = next_of(terminate) => {}
            () = next_of(interrupt) => {}
        }
    }
}

/// From now on the signal does not end the process by itself.
fn caught(kind: SignalKind, name: &str) -> Option<Signal> {
    signal(kind).inspect_err(|error| warn!(%error, "{name} cannot be caught")).ok()
}

/// Resolves at the next one; never, if it is not caught.
async fn next_of(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => {
            // A stream of signals does not end.
            if signal.recv().await.is_none() {
                std::future::pending().await
            }
        }
        None => std::future::pending().await,
    }
}
