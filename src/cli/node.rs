//! `utterd node`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::ValueEnum;
use tokio::sync::mpsc;

use super::http::trust;
use super::{Failure, Outcome, Signals, code, runtime, say};
use crate::config;
use crate::peer::command::{CommandConfig, CommandEngine, CommandLines};
use crate::peer::dial::Identity;
use crate::peer::engine::{ECHO_LANGUAGES, EchoEngine, Engine};
use crate::peer::node::{NodeEvent, NodeOptions};
use crate::telemetry;

#[derive(Debug, Clone, Copy, ValueEnum)]
enum EngineName {
    /// Gives the speaker's own audio back.
    Echo,
    /// Runs three programs: speech to text, text to text, text to speech.
    Command,
}

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where the server listens: ws:// or wss://.
    #[arg(long, default_value = "ws://127.0.0.1:5010/ws/node")]
    url: String,
    /// Key of the server's to show, if it asks for one.
    #[arg(long, env = "UTTERD_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Certificates to believe of a wss:// server, and no others (PEM).
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Certificate chain to show to a server that asks for one (PEM).
    #[arg(long, value_name = "FILE", requires_all = ["key", "ca"])]
    cert: Option<PathBuf>,
    /// The private key that belongs to it (PEM).
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// What does the work.
    #[arg(long, value_enum, default_value = "echo")]
    engine: EngineName,
    /// The three programs, as a TOML file.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["asr", "nmt", "tts"])]
    config: Option<PathBuf>,
    /// Speech to text: command line; {wav} {src} are filled in, the text is read from its output.
    #[arg(long, value_name = "COMMAND", requires_all = ["nmt", "tts", "pairs"])]
    asr: Option<String>,
    /// Text to text: command line; {src} {tgt} {text}, the text also on its input.
    #[arg(long, value_name = "COMMAND")]
    nmt: Option<String>,
    /// Text to speech: command line; {wav} {tgt} {text}, the text also on its input.
    #[arg(long, value_name = "COMMAND")]
    tts: Option<String>,
    /// Opus to WAV, for speakers that send Opus: command line.
    #[arg(long, value_name = "COMMAND")]
    decode: Option<String>,
    /// Directions served by the three programs, as src:tgt; may be repeated.
    #[arg(long, value_name = "SRC:TGT", value_delimiter = ',')]
    pairs: Vec<String>,
    /// Languages of the echo engine, all directions between them.
    #[arg(long, value_name = "LANG", value_delimiter = ',')]
    languages: Vec<String>,
    /// Time the echo engine takes for each job, in milliseconds.
    #[arg(long, default_value_t = 0)]
    delay_ms: u64,
    /// Name to register by; without one the server chooses.
    #[arg(long)]
    id: Option<String>,
    /// Jobs done at the same time.
    #[arg(long, default_value_t = 4)]
    capacity: u32,
}

pub(super) fn run(args: Args) -> Outcome {
    let _log =
        telemetry::log::init(&config::Log { level: "warn".into(), ..config::Log::default() })?;
    let engine = engine(&args).map_err(|error| Failure::new(code::USAGE, error))?;
    let identity = args.cert.clone().zip(args.key.clone());
    let identity = identity.map(|(cert, key)| Identity { cert, key });
    let options = NodeOptions {
        trust: trust(args.ca.as_deref(), identity.as_ref())?,
        node_id: args.id.clone(),
        key: args.api_key.clone(),
        capacity: args.capacity,
        ..NodeOptions::new(args.url.clone(), engine)
    };
    runtime()?.block_on(async {
        let (events, mut seen) = mpsc::channel(256);
        let printer = tokio::spawn(async move {
            while let Some(event) = seen.recv().await {
                say(&line(&event));
            }
        });
        let mut signals = Signals::caught();
        let ended = crate::peer::node::run(options, signals.next(), Some(events)).await;
        printer.await.context("the printer failed")?;
        Ok(ended?)
    })
}

fn engine(args: &Args) -> anyhow::Result<Engine> {
    match args.engine {
        EngineName::Echo => {
            let languages = match args.languages.as_slice() {
                [] => ECHO_LANGUAGES.map(str::to_owned).to_vec(),
                named => named.to_vec(),
            };
            let delay = Duration::from_millis(args.delay_ms);
            Ok(Engine::Echo(EchoEngine { languages, delay }))
        }
        EngineName::Command => {
            let config = match (&args.config, &args.asr, &args.nmt, &args.tts) {
                (Some(file), ..) => CommandConfig::load(file)?,
                (None, Some(asr), Some(nmt), Some(tts)) => {
                    CommandConfig::from_lines(&CommandLines {
                        asr: asr.clone(),
                        nmt: nmt.clone(),
                        tts: tts.clone(),
                        decode: args.decode.clone(),
                        pairs: args.pairs.clone(),
                    })?
                }
                _ => anyhow::bail!(
                    "the command engine needs --config FILE, or --asr, --nmt, --tts and --pairs"
                ),
            };
            Ok(Engine::Command(CommandEngine::new(config)?))
        }
    }
}

fn line(event: &NodeEvent) -> String {
    match event {
        NodeEvent::Registered { node_id } => format!("registered as {node_id}"),
        NodeEvent::Refused { message } => format!("refused by the server: {message}"),
        NodeEvent::Assigned { job_id, pair } => format!("{job_id} {pair} begun"),
        NodeEvent::Finished { job_id, failure: None, took } => {
            format!("{job_id} done in {} ms", took.as_millis())
        }
        NodeEvent::Finished { job_id, failure: Some(why), .. } => format!("{job_id} failed: {why}"),
        NodeEvent::Cancelled { job_id } => format!("{job_id} cancelled"),
        NodeEvent::Disconnected { reason, retry_in } => {
            format!("disconnected ({reason}); again in {} ms", retry_in.as_millis())
        }
    }
}
